package ingress

import (
	"bufio"
	"net"
	"time"

	proxyproto "github.com/pires/go-proxyproto"
)

// maxProxyHeader is how much is read of a load balancer before its header has to be complete: one of version 2 has what else it
// tells behind the addresses.
const maxProxyHeader = 4 << 10

// readProxy reads the header of the PROXY protocol and returns what was read behind it. A header that tells no addresses
// (UNKNOWN, LOCAL) is of the load balancer's own connection.
func (c *conn) readProxy(nc net.Conn) (ahead []byte, err error) {
	if err := nc.SetReadDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return nil, err
	}
	r := bufio.NewReaderSize(nc, maxProxyHeader)
	h, err := proxyproto.Read(r)
	if err != nil {
		return nil, err
	}
	if h.Command.IsProxy() {
		if source := addrPort(h.SourceAddr); source.IsValid() {
			c.source = source
		}
	}
	ahead, err = r.Peek(r.Buffered())
	return append([]byte(nil), ahead...), err
}

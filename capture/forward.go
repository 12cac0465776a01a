package capture

import (
	"fmt"
	"net"
	"net/netip"
)

// WayForward is Conn.Way of a connection that was caught by Forward.
const WayForward = "forward"

// Forward catches connections to a port whose destination is fixed in the configuration. The app does
// not know that there is a gateway: there is no handshake, and a refused flow is a reset connection.
type Forward struct {
	host string
	addr netip.Addr
	port uint16
}

var _ Way = (*Forward)(nil)

// NewForward returns the way to the destination to: "host:port", where host is a DNS name, an IPv4
// address, or an IPv6 address in brackets, and port is 1 to 65535. Addresses have to be in their
// canonical form.
func NewForward(to string) (*Forward, error) {
	host, addr, port, err := parseHostPort(to)
	if err != nil {
		return nil, fmt.Errorf("destination %q: %w", clip(to), err)
	}
	return &Forward{host: host, addr: addr, port: port}, nil
}

// Catch returns at once and does not fail.
func (f *Forward) Catch(nc net.Conn) (*Conn, error) {
	return &Conn{Conn: nc, Way: WayForward, Host: f.host, Addr: f.addr, Port: f.port}, nil
}

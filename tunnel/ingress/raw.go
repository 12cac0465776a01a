package ingress

import (
	"io"
	"net"
	"net/netip"
	"time"

	"culvert/tunnel"
)

// carry makes one flow of the connection, whose first bytes are ahead.
func (c *conn) carry(nc net.Conn, ahead []byte, way string) {
	f := c.flow(way)
	c.s.gateway.Carry(f, &raw{nc: nc, ahead: ahead})
}

// refuse records a connection on which no flow could be found, and closes it. told says that the client was told why, in TLS.
func (c *conn) refuse(nc net.Conn, err error, told bool) {
	f := c.flow(wayTCP)
	if c.tls != nil {
		f.Way = wayTLS
	}
	f.Request.Fault = err
	c.s.gateway.Carry(f, &raw{nc: nc, told: told})
}

// flow makes the flow that the whole connection is. It goes to the server name where TLS has told one, else to the address that
// the client has connected to.
func (c *conn) flow(way string) *tunnel.Flow {
	f := &tunnel.Flow{Listener: c.name, Way: way, Source: c.source, Peer: c.peer, Ended: c.done, Taken: true}
	f.Request = &tunnel.Request{Dialled: c.local.Addr()}
	f.Target, f.Request.Fault = tunnel.TargetOf("", c.local.Addr(), c.local.Port())
	if c.tls != nil && c.tls.ServerName != "" {
		c.toName(f, c.tls.ServerName)
	}
	return f
}

// toName leads a flow to the name that the client has asked TLS for.
func (c *conn) toName(f *tunnel.Flow, name string) {
	f.Request.SNI = name
	f.Target, f.Request.Fault = tunnel.TargetOf(name, netip.Addr{}, c.local.Port())
}

// raw is the accepted side of a flow that is a whole connection.
type raw struct {
	nc    net.Conn
	ahead []byte
	told  bool // there is an alert on its way to the client
}

// Accept returns the connection.
func (r *raw) Accept(*tunnel.Flow) (tunnel.Conn, []byte, error) {
	return tunnel.NewConn(r.nc), r.ahead, nil
}

// Refuse breaks the connection: there are no words in which to say no, but for those of TLS.
func (r *raw) Refuse(*tunnel.Flow, error) {
	if r.told {
		farewell(r.nc)
		_ = r.nc.Close()
		return
	}
	tunnel.NewConn(r.nc).Reset(nil)
}

// How long, and for how many bytes, a client is read on that was refused: a socket that is closed with unread bytes is reset, and
// what it was told would be lost.
const (
	farewellTimeout = time.Second
	farewellBytes   = 256 << 10
)

// farewell ends the direction to the client, and waits until it has heard of that.
func farewell(nc net.Conn) {
	c, ok := nc.(interface{ CloseWrite() error })
	if ok && c.CloseWrite() == nil && nc.SetReadDeadline(time.Now().Add(farewellTimeout)) == nil {
		_, _ = io.CopyN(io.Discard, nc, farewellBytes) // whatever ends it
	}
}

// Gone is not known.
func (r *raw) Gone() <-chan struct{} { return nil }

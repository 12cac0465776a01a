package tunnel

import (
	"net/netip"

	"culvert/pki/spiffe"
)

// CarrierKey is what has to be the same for a carrier to serve two exchanges. Keys are comparable.
type CarrierKey struct {
	route  *route // with it the chain, and TLS
	target Target
	source netip.AddrPort // where the destination sees it
	peer   spiffe.ID      // the same
}

// Key is what a carrier has to have that serves x. Policy is asked besides, see Reuse.
func (x *Exchange) Key() CarrierKey {
	k := CarrierKey{route: x.f.via, target: x.f.Target}
	if x.f.via.proxy != 0 || x.f.appTunnel().IsValid() {
		k.source, k.peer = x.f.Source, x.f.Peer
	} else if x.f.via.keep {
		k.source = netip.AddrPortFrom(x.f.Source.Addr(), 0)
	}
	return k
}

// Carrier is a connection to a destination on which requests are sent. One goroutine reads it and one writes.
type Carrier struct {
	Conn
	g       *Gateway
	addr    netip.AddrPort
	entered []addrPair
}

// Open connects to the destination of x, by its route. The connection may serve others after it, see Reuse.
func (x *Exchange) Open() (*Carrier, error) {
	f := x.f
	end, err := f.g.open(f, x.gone, nil)
	if err != nil {
		return nil, err
	}
	c := &Carrier{Conn: end, g: f.g, addr: addrPort(end.RemoteAddr()), entered: f.entered}
	f.entered = nil // they live as long as the carrier
	x.stands(c)
	return c, nil
}

// stands notes that x goes by c.
func (x *Exchange) stands(c *Carrier) {
	x.f.shown.dialled = c.addr
	if !x.opened {
		x.opened = true
		x.f.opened(nil)
	}
}

// Reuse asks what has to be asked before c, which was opened for another exchange with the same key, carries x: where the
// destination is a name that is resolved here, whether the flow may go to the address that c leads to.
func (x *Exchange) Reuse(c *Carrier) error {
	f := x.f
	if !f.resolves() {
		x.stands(c)
		return nil
	}
	addrs := []netip.Addr{c.addr.Addr()}
	if d := f.mayReach(nil); !d.Allow {
		return prohibited(d)
	}
	if d := f.mayReach(addrs); !d.Allow {
		return prohibited(d)
	}
	if err := f.authorizeAddrs(x.ctx, addrs); err != nil {
		return err
	}
	x.stands(c)
	return nil
}

// Break breaks the connection under whoever uses it, who is to close it still. It may be called at any time and from any goroutine.
func (c *Carrier) Break(cause error) { c.Conn.Reset(cause) }

// Quiet reports whether a carrier that has no request has brought nothing since, its end included. It does not wait.
func (c *Carrier) Quiet() bool {
	end := c.Conn
	if p, ok := end.(*pooledStream); ok {
		end = p.Stream
	}
	if s, ok := end.(interface{ Quiet() bool }); ok {
		return s.Quiet()
	}
	return quietSocket(innermost(end))
}

// Close closes the connection.
func (c *Carrier) Close() error {
	err := c.Conn.Close()
	c.left()
	return err
}

// Reset breaks the connection.
func (c *Carrier) Reset(cause error) {
	c.Conn.Reset(cause)
	c.left()
}

func (c *Carrier) left() {
	for _, pair := range c.entered {
		c.g.loops.leave(pair)
	}
	c.entered = nil
}

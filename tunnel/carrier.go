package tunnel

import (
	"cmp"
	"net/netip"
	"slices"

	"culvert/pki/spiffe"
	"culvert/tunnel/endpoint"
)

// CarrierKey is what has to be the same for a carrier to serve two exchanges. Keys are comparable.
type CarrierKey struct {
	route    *route // with it the chain, and TLS
	target   Target
	endpoint string         // of a service
	source   netip.AddrPort // where the destination sees it
	peer     spiffe.ID      // the same
}

// Picks reports whether the destination of x is a service, of which an endpoint is picked for each exchange. Then Open finds a carrier
// that was kept, and Key is known after it.
func (x *Exchange) Picks() bool { return x.f.service() != nil }

// Key is what a carrier has to have that serves x. Policy is asked besides, see Reuse.
func (x *Exchange) Key() CarrierKey {
	if x.f.lease != nil && x.Picks() {
		return x.keyAt(x.f.lease.Endpoint())
	}
	return x.keyAt(nil)
}

// keyAt is the key at an endpoint, nil for none.
func (x *Exchange) keyAt(e *endpoint.Endpoint) CarrierKey {
	k := CarrierKey{route: x.f.via, target: x.f.Target}
	if e != nil {
		k.endpoint = e.Key()
	}
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
	hop     spiffe.ID // the last hop; zero: none
	trace   traceID   // of the tunnel; zero: none
	entered []addrPair
	agent   *agentConn // that it leads to; nil: to none
}

// Open connects to the destination of x, by its route. The connection may serve others after it, see Reuse. Where an endpoint is
// picked (Picks), take is asked for a carrier that was kept for it and may return nil. After failed, the error of what was opened
// before, another endpoint is picked, if there is one.
func (x *Exchange) Open(take func(CarrierKey) *Carrier, failed error) (*Carrier, error) {
	f := x.f
	if f.lease != nil && x.Picks() {
		if failed != nil {
			f.lease.Done(endpoint.Failed, failed)
			x.tried = append(x.tried, f.lease)
		} else {
			f.lease.Done(endpoint.Served, nil)
		}
		f.lease = nil
	}
	x.take = take
	end, err := f.g.open(f, x.gone, nil)
	x.take = nil
	if err != nil {
		return nil, err
	}
	c, ok := end.(*Carrier)
	if !ok {
		c = &Carrier{Conn: end, g: f.g, addr: addrPort(end.RemoteAddr()), hop: hopOf(end), entered: f.entered}
		f.entered = nil // they live as long as the carrier
		if c.hop != (spiffe.ID{}) {
			c.trace = cmp.Or(f.shown.next, f.trace)
		}
		if s, ok := streamUnder(end).(*agentStream); ok {
			c.agent = s.from
		}
	}
	x.stands(c)
	return c, nil
}

// kept is a carrier that was kept for the endpoint that the flow goes to, nil for none.
func (f *Flow) kept(e *endpoint.Endpoint) *Carrier {
	x := f.Request.x
	if x == nil || x.take == nil {
		return nil
	}
	return x.take(x.keyAt(e))
}

// exchangeTried are the leases of endpoints at which the exchange has failed.
func (f *Flow) exchangeTried() []*endpoint.Lease {
	if f.Request.x == nil {
		return nil
	}
	return slices.Clip(f.Request.x.tried)
}

// stands notes that x goes by c.
func (x *Exchange) stands(c *Carrier) {
	s := x.f.shown
	s.dialled, s.hopID, s.next, s.agent = c.addr, c.hop, traceID{}, c.agent
	if c.trace != x.f.trace {
		s.next = c.trace
	}
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

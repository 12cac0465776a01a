package tunnel

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"time"

	"culvert/pki/spiffe"
	"culvert/tunnel/endpoint"
	"culvert/tunnel/h2"
)

// openConnect opens a flow through the hops of its route: a tunnel to the destination at the last hop,
// over a transport that leads through those before it.
func (g *Gateway) openConnect(ctx context.Context, f *Flow, early *Early) (Conn, error) {
	req := g.request(f)
	req.Early, req.times = early, &f.times
	c := f.via.chain.to(f.Target)
	if c != f.via.chain {
		req.Network = f.via.chain.last.inner.network
	} else {
		req.SentBy = c.last.sentBy
	}
	s, _, err := g.pool.connect(ctx, c, req)
	f.lease = req.lease
	if err != nil {
		return nil, err
	}
	f.in.bytes.add(early.carried())
	return s, nil
}

// request is what the next hop is told of f: about its workload, where it came from, its trace. What a
// trusted peer told is passed on; of others only that they passed the tunnel on.
func (g *Gateway) request(f *Flow) *ConnectRequest {
	req := &ConnectRequest{Target: f.Target, UDP: f.UDP, Baggage: f.Request.Baggage}
	if req.Baggage == "" {
		req.Baggage = g.baggageFor(f)
	}
	if f.Request.HTTP == nil { // else the tunnel serves others too, and each request tells for itself
		req.Forwarded = appendForwarded(f.Request.Forwarded, f.Source, f.Target)
	}
	req.Traceparent, req.Tracestate = nextTraceparent(f.Request.Traceparent), f.Request.Tracestate
	if sent := traceOf(req.Traceparent); !f.traced(sent) {
		f.show().next = sent
	}
	if f.passed != nil || f.Way == WayConnect || f.plan.meets {
		req.Via = viaOf(f.passed, g.via)
	}
	return req
}

// baggageFor describes the workload that f comes from: one of ours by its address, else this gateway.
func (g *Gateway) baggageFor(f *Flow) string {
	if w := f.plan.workloads[f.Source.Addr()]; w != nil {
		return w.baggage
	}
	return f.plan.baggage
}

// dialChain makes a transport to the last hop of c: over a connection to it, or, where hops come before
// it, over a tunnel at the hop before the last. It ends with ctx or after the time for dialling;
// times gets where that went.
func (g *Gateway) dialChain(ctx context.Context, c *chain, times *timing) (Transport, error) {
	within := g.plan.Load().timeouts.Dial
	if e := c.last.endpoint; e != nil {
		within = min(within, e.ConnectTimeout())
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	connect := g.env.Transports[c.last.Transport]
	switch {
	case c.last.upstream != nil:
		return nil, &Error{Cause: CauseConfiguration, Hop: c.last.Name, Reason: "it is a proxy and no gateway; nothing but flows and connections to the next hop go by it"}
	case c.last.outer != nil:
		connect = g.dialOuter
	case c.last.Transport == TransportH2:
		connect = g.dialH2
	}
	if connect == nil {
		return nil, &Error{Cause: CauseConfiguration, Hop: c.last.Name, Reason: "no transport " + c.last.Transport}
	}
	began, dialling := time.Now(), times[phaseDial]
	t, err := connect(ctx, c.last, func(ctx context.Context) (net.Conn, error) {
		defer times.since(phaseDial, time.Now())
		return g.reach(ctx, c, c.last.address)
	})
	times.add(phaseTLS, time.Since(began)-time.Duration(times[phaseDial]-dialling)*time.Microsecond)
	if err != nil {
		return nil, err
	}
	return t, nil
}

// reach makes a connection to the last hop of c at one of its addresses.
func (g *Gateway) reach(ctx context.Context, c *chain, addr Target) (net.Conn, error) {
	if c.rest == nil {
		return g.dialHop(ctx, c.last, addr)
	}
	if c.rest.last.upstream != nil {
		nc, lease, err := g.throughProxy(ctx, g.bound(c.rest), addr)
		if lease != nil {
			lease.Done(endpoint.Served, nil) // what is counted are flows
		}
		if err == nil {
			tuneTransport(nc)
		}
		return nc, err
	}
	p := g.plan.Load()
	req := &ConnectRequest{Target: addr, SentBy: c.rest.last.sentBy, Baggage: p.baggage, Traceparent: nextTraceparent("")}
	if p.meets {
		req.Via = g.via
	}
	s, _, err := g.pool.connect(ctx, g.bound(c.rest), req)
	return s, err
}

// dialH2 makes a transport over TLS and HTTP/2.
func (g *Gateway) dialH2(ctx context.Context, hop *Hop, dial func(context.Context) (net.Conn, error)) (Transport, error) {
	nc, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	cfg := g.env.H2
	cfg.Handler, cfg.Budget, cfg.OnOffence = nil, g.env.Budget, g.hopOffended
	return newH2Transport(ctx, nc, hop, g.env.ClientTLS(hop), &cfg, g)
}

// hopOffended is Offended for a connection to a hop.
func (g *Gateway) hopOffended(c *h2.Conn, err *h2.ConnError) {
	var peer spiffe.ID
	if tc, ok := c.NetConn().(*tls.Conn); ok {
		cs := tc.ConnectionState()
		if p, err := g.identify(&cs, addrPort(tc.RemoteAddr()).Addr()); err == nil {
			peer = p.id
		}
	}
	g.Offended(c, peer, err)
}

// dialHop connects to a hop. Neither egress guard nor policy is asked: the operator has named it.
func (g *Gateway) dialHop(ctx context.Context, hop *Hop, t Target) (net.Conn, error) {
	addrs := []netip.Addr{t.Addr}
	if t.IsName() {
		var err error
		if addrs, err = g.env.Resolve(ctx, t.Host); err != nil {
			return nil, &Error{Cause: CauseOf(err), Hop: hop.Name, Err: fmt.Errorf("resolve %s: %w", t.Host, err)}
		}
	}
	nc, err := dialAny(ctx, g.env.Dial, addrs, t.Port)
	if err != nil {
		return nil, &Error{Cause: CauseOf(err), Hop: hop.Name, Reason: shortage(err), Err: err}
	}
	if hop.upstream == nil {
		tuneTransport(nc)
	}
	return nc, nil
}

// TransportDialer makes a transport to hop over connections that dial gives, each to the same address:
// a TCP connection, or a stream inside of another transport. It ends with ctx.
type TransportDialer func(ctx context.Context, hop *Hop, dial func(context.Context) (net.Conn, error)) (Transport, error)

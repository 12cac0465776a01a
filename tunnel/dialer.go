package tunnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
)

// Dialer opens tunnels for a Go program: to destinations at the end of a chain of hops, each a plain
// net.Conn. Tunnels share connections to the hops. Its DialContext fits http.Transport and grpc.
type Dialer struct {
	g     *Gateway
	chain *chain
}

// NewDialer makes a dialer through hops, nearest first; at least one. Of env it needs Self and ClientTLS.
func NewDialer(env Env, hops ...HopConfig) (*Dialer, error) {
	if len(hops) == 0 {
		return nil, errors.New("tunnel: a dialer needs a hop")
	}
	cfg := &Config{Hops: make(map[string]HopConfig)}
	var list []*Hop
	for i, hc := range hops {
		name := hc.Address
		if !isName(name) {
			name = fmt.Sprintf("hop-%d", i+1)
		}
		h, err := newHop(cmp.Or(hc.Address, name), &hc)
		if err != nil {
			return nil, err
		}
		cfg.Hops[name] = hc
		list = append(list, h)
	}
	if env.ClientTLS == nil {
		return nil, errors.New("tunnel: a dialer needs TLS for its hops (Env.ClientTLS)")
	}
	g, err := New(cfg, env)
	if err != nil {
		return nil, err
	}
	p := g.plan.Load()
	for i, h := range list {
		g.bindHop(p, fmt.Sprintf("%d %s", i+1, h.Name), h)
	}
	g.balance(p)
	return &Dialer{g: g, chain: newChain(list)}, nil
}

// DialContext opens a tunnel to address, "host:port"; network is "tcp", "tcp4" or "tcp6". A name is resolved
// by the last hop. It returns when the destination is connected; ctx bounds that and not the life of the
// connection. A hop's refusal is a *RefusedError inside of a *net.OpError. The connection has CloseWrite;
// bytes written before Close are delivered.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	fail := func(err error) error { return &net.OpError{Op: "dial", Net: "tunnel", Err: err} }
	t, err := ParseAuthority(address)
	switch {
	case network != "tcp" && network != "tcp4" && network != "tcp6":
		return nil, fail(net.UnknownNetworkError(network))
	case err != nil:
		return nil, fail(err)
	}
	p := d.g.plan.Load()
	ctx, cancel := context.WithTimeout(ctx, p.timeouts.Open)
	defer cancel()
	s, _, err := d.g.pool.connect(ctx, d.chain.to(t), &ConnectRequest{Target: t, Baggage: p.baggage, Traceparent: nextTraceparent("")})
	if err != nil {
		return nil, fail(err)
	}
	return s, nil
}

// Dial is DialContext without a context.
func (d *Dialer) Dial(network, address string) (net.Conn, error) {
	return d.DialContext(context.Background(), network, address)
}

// Close ends the connections to the hops, and the tunnels in them.
func (d *Dialer) Close() error {
	d.g.Close()
	return nil
}

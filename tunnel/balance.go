package tunnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"culvert/tunnel/endpoint"
)

// setHop is the kind of set that a hop has, in the keys of sets.
const setHop = "hop"

// setKey tells sets apart.
type setKey struct{ kind, name string }

// setConf is a set with the configuration that a plan has for it.
type setConf struct {
	set  *endpoint.Set
	conf *endpoint.Config
}

// bind gives what p leads to its sets: those that are there already, with the load and health of their endpoints, and else
// new ones, in which nothing is begun before balance.
func (g *Gateway) bind(p *plan) {
	p.sets = make(map[setKey]setConf)
	for name, h := range p.hops {
		g.bindHop(p, name, h)
	}
	for _, s := range p.services {
		g.bindService(p, s)
	}
}

func (g *Gateway) bindHop(p *plan, name string, h *Hop) {
	if h.conf == nil {
		return
	}
	h.set = g.setOf(setKey{setHop, name}, h.conf, endpoint.Env{
		Guard: guardHop,
		Dial: func(ctx context.Context, e *endpoint.Endpoint) (net.Conn, error) {
			return g.dialHop(ctx, h, targetOf(e))
		},
		Ping: func(ctx context.Context, e *endpoint.Endpoint) error {
			if h.upstream != nil { // which has no such question
				nc, err := g.dialHop(ctx, h, targetOf(e))
				if err == nil {
					err = nc.Close()
				}
				return err
			}
			now := g.plan.Load().hops[name] // a reload may have changed it
			if now == nil || now.set == nil {
				now = h
			}
			_, _, err := g.pool.ping(ctx, newChain([]*Hop{now}).at(e))
			return err
		},
	})
	p.sets[setKey{setHop, name}] = setConf{h.set, h.conf}
}

// bound is c with the set of its last hop, where c was made beside the plan, for an agent.
func (g *Gateway) bound(c *chain) *chain {
	if c.last.conf == nil || c.last.set != nil {
		return c
	}
	h := g.plan.Load().hops[c.last.Name]
	if h == nil || h.set == nil {
		return c
	}
	with, last := *c, *c.last
	last.set = h.set
	with.last = &last
	return &with
}

// setOf returns the set that there is, or a new one.
func (g *Gateway) setOf(key setKey, conf *endpoint.Config, env endpoint.Env) *endpoint.Set {
	g.mu.Lock()
	s := g.sets[key]
	g.mu.Unlock()
	if s != nil {
		return s
	}
	env.Log = g.env.Log.With(key.kind, key.name)
	env.Locality = func() string { return g.plan.Load().locality }
	env.Resolve = g.env.Lookup
	return endpoint.New(key.name, conf, env)
}

// balance puts the sets of p in the place of those that are there. Called with replacing held, when p is in force.
func (g *Gateway) balance(p *plan) {
	next := make(map[setKey]*endpoint.Set, len(p.sets))
	for key, sc := range p.sets {
		next[key] = sc.set
		sc.set.Update(sc.conf)
		sc.set.Start()
	}
	g.mu.Lock()
	before := g.sets
	g.sets = next
	closed := g.state == stateClosed
	g.mu.Unlock()
	for key, s := range before {
		if next[key] != s {
			s.Close() // what it does ends at once
		}
	}
	if closed {
		g.closeSets()
	}
}

// closeSets ends what sets do.
func (g *Gateway) closeSets() {
	g.mu.Lock()
	list := slices.Collect(maps.Values(g.sets))
	g.mu.Unlock()
	for _, s := range list {
		s.Close()
	}
}

// guardHop is the guard of hops that DNS gives. No policy is asked about hops, and they prove who they are; but none is at an
// address that means this host, or everybody on a link.
func guardHop(addr netip.Addr, _ uint16) error {
	if !addr.IsGlobalUnicast() {
		return fmt.Errorf("%s is no address of another host", addr)
	}
	return nil
}

// targetOf is where an endpoint of a hop is.
func targetOf(e *endpoint.Endpoint) Target { return Target{Host: e.Host, Addr: e.Addr, Port: e.Port} }

// lookup is the default of Env.Lookup. What Env.Resolve says has no TTL.
func (g *Gateway) lookup(ctx context.Context, name string, kind endpoint.Kind) (list []endpoint.Answer, ttl time.Duration, err error) {
	var none *net.DNSError
	if kind == endpoint.Services {
		_, records, err := g.resolver().LookupSRV(ctx, "", "", name)
		if err != nil && !(errors.As(err, &none) && none.IsNotFound) {
			return nil, 0, err
		}
		for _, r := range records {
			list = append(list, endpoint.Answer{Host: r.Target, Port: r.Port, Priority: r.Priority, Weight: r.Weight})
		}
		return list, 0, nil
	}
	addrs, err := g.env.Resolve(ctx, name)
	if err != nil && !(errors.As(err, &none) && none.IsNotFound) {
		return nil, 0, err
	}
	for _, a := range addrs {
		list = append(list, endpoint.Answer{Addr: a})
	}
	return list, 0, nil
}

// pick returns an endpoint of a set for a flow that has tried others. Where there is none yet as DNS is being asked, it waits
// for the answer, or for ctx. The error is an *Error.
func pick(ctx context.Context, s *endpoint.Set, hop string, tried ...*endpoint.Lease) (*endpoint.Lease, error) {
	l, err := s.Pick(tried...)
	if errors.Is(err, endpoint.ErrNone) && s.Asked() != nil {
		select {
		case <-s.Asked():
			l, err = s.Pick(tried...)
		case <-ctx.Done():
			return nil, &Error{Cause: CauseDNSTimeout, Hop: hop, Reason: "DNS has not been heard of yet", Err: ctx.Err()}
		}
	}
	switch {
	case err == nil:
		return l, nil
	case errors.Is(err, endpoint.ErrFull):
		return nil, errCircuit(hop, err)
	}
	return nil, &Error{Cause: CauseNoEndpoint, Hop: hop, Err: err}
}

func errCircuit(hop string, err error) error {
	return &Error{Cause: CauseCircuit, Hop: hop, Reason: "its limits say how many there may be", Err: err}
}

// connectAny asks one of the endpoints of c's last hop for a tunnel, and others when that fails, but not when bytes of the flow may have
// gone on from there.
func (p *pool) connectAny(ctx context.Context, c *chain, req *ConnectRequest) (Stream, *ConnectResponse, error) {
	var tried []*endpoint.Lease
	var last error
	for {
		l, err := pick(ctx, c.last.set, c.last.Name, tried...)
		if err != nil {
			if last != nil {
				err = last // says more than that no other endpoint is left
			}
			return nil, nil, err
		}
		req.lease = l
		s, resp, asked, err := p.connectAt(ctx, c.at(l.Endpoint()), req)
		if err == nil {
			l.Connected()
			s.lease = l
			return s, resp, nil
		}
		elsewhere, failed := judge(ctx, err, asked)
		if failed {
			l.Done(endpoint.Failed, err)
		} else {
			l.Done(endpoint.Served, nil)
		}
		if last = err; !elsewhere || ctx.Err() != nil || asked && !req.Early.again(err) || len(tried) == c.last.set.Retries() {
			return nil, nil, err
		}
		tried = append(tried, l)
		p.stats.retries.add(1)
	}
}

// judge tells what follows from an error of an endpoint: whether another one may do better, and whether this one has failed. asked: it
// was connected to, and asked for a tunnel.
func judge(ctx context.Context, err error, asked bool) (elsewhere, failed bool) {
	if errors.Is(ctx.Err(), context.Canceled) {
		return false, false
	}
	var refused *RefusedError
	cause := CauseOf(err)
	if errors.As(err, &refused) {
		// Its own trouble; what those behind it say holds for the others, too.
		return asked && len(refused.Statuses) == 1 && (cause == CauseFull || cause == CauseDraining), cause == CauseDraining
	}
	switch cause {
	case CauseUnavailable, CauseTimeout, CauseRefused, CauseUnroutable, CauseHopTLS, CauseHopIdentity, CauseHopAlert, CauseHopProtocol,
		CauseDNS, CauseDNSTimeout, CauseUnknownHost:
		return true, true
	case CauseFull: // of streams there, or of files here
		return true, false
	case CauseCircuit: // of connections there
		return true, false
	}
	return false, false
}

// takeConn counts the connection that is about to be made, where connections to the endpoint are counted.
func (g *group) takeConn() error {
	e := g.chain.last.endpoint
	if e == nil {
		return nil
	}
	if err := e.TakeConn(); err != nil {
		return errCircuit(g.chain.last.Name, err)
	}
	return nil
}

// giveConn ends what takeConn began.
func (g *group) giveConn() {
	if e := g.chain.last.endpoint; e != nil {
		e.GiveConn()
	}
}

// EndpointsInfo is a service or a hop with its endpoints, for people to look at.
type EndpointsInfo struct {
	Kind      string          `json:"kind"` // "service" or "hop"
	Name      string          `json:"name"`
	Stats     endpoint.Stats  `json:"-"` // for metrics
	Endpoints []endpoint.Info `json:"endpoints"`
}

// Endpoints returns the services and hops that have endpoints, by kind and name.
func (g *Gateway) Endpoints() []EndpointsInfo {
	g.mu.Lock()
	sets := g.sets // the map does not change
	g.mu.Unlock()
	list := make([]EndpointsInfo, 0, len(sets))
	for key, s := range sets {
		list = append(list, EndpointsInfo{Kind: key.kind, Name: key.name, Stats: s.Stats(), Endpoints: s.List()})
	}
	slices.SortFunc(list, func(a, b EndpointsInfo) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
	return list
}

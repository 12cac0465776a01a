package tunnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"time"

	"culvert/policy"
	"culvert/tunnel/endpoint"
)

// ServiceConfig is a destination that can be had at several places. Flows to it that a route without `via` takes go to one of
// its endpoints.
type ServiceConfig struct {
	// Addresses are virtual addresses that stand for the service as well: flows to them are flows to its name.
	Addresses []string `yaml:"addresses"`
	// Ports are the ports that the service has, each with that of its endpoints: `{80: 8080}`. An endpoint with a port of its own keeps
	// that. Default: every port, and the same at the endpoints. Policy is asked about the port of the endpoint.
	Ports map[uint16]uint16 `yaml:"ports"`
	// Where its endpoints are, and how one is picked, follows here.
	endpoint.Config `yaml:",inline"`
}

// service is a ServiceConfig, ready to use. It does not change, but for what its set learns.
type service struct {
	name   string
	ports  map[uint16]uint16
	own    uint16 // the port that all endpoints have; 0: they have none, or several
	vips   []netip.Addr
	conf   *endpoint.Config
	set    *endpoint.Set
	guards []*policy.Egress // of the gateway and of the routes that could take flows to it
	asked  []uint16         // ports that the configuration names where it speaks of such flows
}

// setService is the kind of set that a service has.
const setService = "service"

// meshPort is where workloads take tunnels.
const meshPort = 15008

// brokeSoon is how soon an endpoint breaks off what counts against it. Later it may have waited for long enough.
const brokeSoon = time.Second

// addServices makes the services of c.
func (p *plan) addServices(c *Config) {
	p.services, p.vips = make(map[string]*service), make(map[netip.Addr]*service)
	for name := range c.Services {
		sc := c.Services[name]
		s := &service{name: strings.ToLower(strings.TrimSuffix(name, ".")), ports: sc.Ports, conf: &sc.Config, own: ownPort(&sc.Config)}
		p.services[s.name] = s
		for _, text := range sc.Addresses {
			if a, err := netip.ParseAddr(text); err == nil { // it was validated
				s.vips = append(s.vips, a.Unmap())
				p.vips[a.Unmap()] = s
			}
		}
	}
}

// ownPort is the port that all endpoints of c have, 0 where they have none, or several.
func ownPort(c *endpoint.Config) uint16 {
	var ports []uint16
	for _, e := range c.Endpoints {
		t, err := ParseAuthority(e.Address)
		if err != nil {
			return 0
		}
		ports = append(ports, t.Port)
	}
	if c.DNS.Name != "" {
		ports = append(ports, c.DNS.Port) // 0 of SRV
	}
	slices.Sort(ports)
	if ports = slices.Compact(ports); len(ports) != 1 {
		return 0
	}
	return ports[0]
}

// guardServices collects what says which addresses of DNS may be endpoints: the guard of the gateway, and what those routes open
// that flows to the service may take.
func (p *plan) guardServices() {
	for _, s := range p.services {
		s.guards, s.asked = []*policy.Egress{p.guard}, slices.Sorted(maps.Keys(s.ports))
		for _, l := range p.listeners {
			for _, r := range l.routes {
				if r.guard != nil && !slices.Contains(s.guards, r.guard) {
					s.guardBy(r)
				}
			}
		}
	}
}

// guardBy adds what r opens, if it could take flows to s.
func (s *service) guardBy(r *route) {
	takes := r.to.Host == s.name
	if takes {
		s.asked = append(s.asked, r.to.Port)
	}
	for _, m := range r.matchers {
		if s.takenBy(m) {
			takes = true
			s.asked = append(s.asked, m.port)
		}
	}
	if takes {
		s.guards, s.asked = append(s.guards, r.guard), append(s.asked, r.ports...)
	}
}

// takenBy reports whether m takes flows to s.
func (s *service) takenBy(m matcher) bool {
	m.port = 0
	return m.matches(Target{Host: s.name}, false) || slices.ContainsFunc(s.vips, func(a netip.Addr) bool { return m.matches(Target{Addr: a}, false) })
}

// port is that of the endpoint e for flows to the port asked; not ok: the service has no such port. Without e it is what all
// endpoints have in common.
func (s *service) port(asked uint16, e *endpoint.Endpoint) (port uint16, ok bool) {
	to, listed := s.ports[asked]
	switch {
	case len(s.ports) > 0 && !listed:
		return 0, false
	case e != nil && e.Port != 0:
		return e.Port, true
	case e == nil && s.own != 0:
		return s.own, true
	}
	return cmp.Or(to, asked), true
}

// service is the one that the flow goes to by an endpoint of it, nil for none.
func (f *Flow) service() *service {
	if f.via == nil || !f.via.direct() || !f.Target.IsName() {
		return nil
	}
	return f.plan.services[f.Target.Host]
}

// routeOf finds the route of a flow. One that leads to a service directly takes it by its name and by its virtual addresses.
func (p *plan) routeOf(l *listenerPlan, f *Flow) *indexed {
	best := l.index.find(f.Target, f.local, f.Request.HTTP, f.Request.SentBy)
	s := p.services[f.Target.Host]
	if s == nil {
		s = p.vips[f.Target.Addr]
	}
	if s == nil {
		return best
	}
	known := []Target{{Host: s.name, Port: f.Target.Port}}
	for _, a := range s.vips {
		known = append(known, Target{Addr: a, Port: f.Target.Port})
	}
	for _, t := range known {
		found := l.index.find(t, false, f.Request.HTTP, f.Request.SentBy)
		if found != nil && found.route.direct() && (best == nil || found.order < best.order) {
			best = found
		}
	}
	return best
}

// bindService gives a service its set.
func (g *Gateway) bindService(p *plan, s *service) {
	key := setKey{setService, s.name}
	now := func() *service { // a reload may have changed it
		if p := g.plan.Load(); p != nil && p.services[s.name] != nil {
			return p.services[s.name]
		}
		return s
	}
	s.set = g.setOf(key, s.conf, endpoint.Env{
		Guard: func(addr netip.Addr, port uint16) error { return now().permits(addr, port) },
		Dial: func(ctx context.Context, e *endpoint.Endpoint) (net.Conn, error) {
			return g.probeService(ctx, now(), e)
		},
	})
	p.sets[key] = setConf{s.set, s.conf}
}

// permits says why an address that DNS gave must not be an endpoint of s; port is 0 where it did not give that.
func (s *service) permits(addr netip.Addr, port uint16) error {
	ports := []uint16{cmp.Or(port, neutralPort)}
	if s.conf.DNS.Type != endpoint.TypeSRV {
		ports = append(ports, s.asked...)
	}
	if d := s.mayReach(s.guards, s.conf.DNS.Name, addr, ports...); !d.Allow {
		return prohibited(d)
	}
	return nil
}

// neutralPort is one that nothing is known of, in the place of those that flows ask for.
const neutralPort = 65535

// mayReach asks guards about an address that DNS gave for host: what opens that name, or the service's, opens it.
func (s *service) mayReach(guards []*policy.Egress, host string, addr netip.Addr, ports ...uint16) (first policy.Decision) {
	for _, e := range guards {
		for _, name := range []string{s.name, host} {
			for _, port := range ports {
				if e == nil || name == "" || port == 0 {
					continue
				}
				d := e.Addr(name, addr, port)
				if d.Allow {
					return d
				}
				if first.Rule == "" {
					first = d
				}
			}
		}
	}
	return first
}

// openService connects to an endpoint of the service that the flow goes to, or opens a tunnel to it, and tries others when that
// fails. Policy is asked about each before it is dialled.
func (g *Gateway) openService(ctx context.Context, f *Flow, s *service) (Conn, error) {
	if _, ok := s.port(f.Target.Port, nil); !ok {
		return nil, &Error{Cause: CauseNoEndpoint, Reason: fmt.Sprintf("service %s has no port %d", s.name, f.Target.Port)}
	}
	tried := f.exchangeTried()
	var last error
	for {
		began := time.Now()
		l, err := pick(ctx, s.set, "", tried...)
		f.times.since(phaseDNS, began)
		if err != nil {
			if last != nil {
				err = last
			}
			return nil, err
		}
		f.lease = l
		end, asked, err := g.openEndpoint(ctx, f, s, l.Endpoint(), len(tried) > 0)
		if err == nil {
			l.Connected() // record tells when it is over
			return end, nil
		}
		elsewhere, failed := judgeEndpoint(ctx, err, asked)
		if errors.Is(err, errOwes) {
			elsewhere, failed, err = false, false, last
		}
		if failed {
			l.Done(endpoint.Failed, err)
		} else {
			l.Done(endpoint.Served, nil)
		}
		if last = err; !elsewhere || ctx.Err() != nil || len(tried) == s.set.Retries() {
			return nil, err
		}
		tried = append(tried, l)
		g.stats.retries.add(1)
	}
}

// judgeEndpoint is judge for the endpoint of a service. What a workload's own gateway cannot reach is the workload.
func judgeEndpoint(ctx context.Context, err error, asked bool) (elsewhere, failed bool) {
	var refused *RefusedError
	if errors.As(err, &refused) && ctx.Err() == nil {
		return refused.Status == 503, refused.Status == 503
	}
	if CauseOf(err) == CauseProhibited {
		return true, false // of this address only
	}
	return judge(ctx, err, asked)
}

// openEndpoint opens the flow to one endpoint. again tells that others were tried before; asked, that a tunnel was asked for.
func (g *Gateway) openEndpoint(ctx context.Context, f *Flow, s *service, e *endpoint.Endpoint, again bool) (_ Conn, asked bool, _ error) {
	ctx, cancel := context.WithTimeout(ctx, e.ConnectTimeout())
	defer cancel()
	port, _ := s.port(f.Target.Port, e)
	addrs := []netip.Addr{e.Addr}
	if e.Host != "" {
		began := time.Now()
		var err error
		addrs, err = g.resolve(ctx, e.Host)
		f.times.since(phaseDNS, began)
		if err != nil {
			return nil, false, err
		}
	}
	if e.Host != "" || e.Resolved {
		ports := []uint16{port}
		if s.conf.DNS.Type != endpoint.TypeSRV {
			ports = append(ports, f.Target.Port) // which the configuration leads to that of the endpoint
		}
		for _, a := range addrs {
			if d := s.mayReach([]*policy.Egress{f.plan.guard, f.via.guard}, cmp.Or(e.Host, s.conf.DNS.Name), a, ports...); !d.Allow {
				return nil, false, prohibited(d)
			}
		}
	}
	if err := f.authorizeEndpoint(ctx, addrs, again); err != nil {
		return nil, false, err
	}
	if c := f.kept(e); c != nil {
		return c, false, nil
	}
	if e.Tun == endpoint.TunHBONE && f.via.inner == 0 {
		return g.tunnelEndpoint(ctx, f, s, e, port)
	}
	end, err := g.dialDirect(ctx, f, addrs, port)
	return end, false, timedOut(ctx, err)
}

// authorizeEndpoint asks policy about an endpoint. What is due is due for the first; for others it may not be something else.
func (f *Flow) authorizeEndpoint(ctx context.Context, addrs []netip.Addr, again bool) error {
	if !again {
		return f.authorizeAddrs(ctx, addrs)
	}
	var r policy.Request
	f.ask(&r, f.plan)
	f.show().addrs, r.Self = addrs, f.self
	for _, r.Addr = range addrs {
		r.Workload = f.plan.workloadOf(Target{Addr: r.Addr})
		d := f.plan.decide(&r)
		if !d.Allow {
			f.asked = askedDeny
			return denied(&d)
		}
		if o := d.Obligations; o != nil && (len(o.Ask) > 0 || len(o.Limits) > 0) && !f.owes(o) {
			return errOwes
		}
	}
	return nil
}

// errOwes is why a flow is not tried at another endpoint for which policy wants something else.
var errOwes = errors.New("other limits or authorizers are due there")

// owes reports whether o is what was due for the endpoint that was tried first.
func (f *Flow) owes(o *policy.Obligations) bool {
	if len(o.Ask) > 0 {
		return false // an authorizer has judged another address
	}
	l := f.limits.Load()
	return l != nil && len(l.entries) == len(o.Limits)
}

// tunnelEndpoint opens a tunnel to a workload: CONNECT to port 15008 of its address under this gateway's own identity, for its
// address and port, as waypoints do.
func (g *Gateway) tunnelEndpoint(ctx context.Context, f *Flow, s *service, e *endpoint.Endpoint, port uint16) (_ Conn, asked bool, _ error) {
	req := g.request(f)
	req.Target, req.times = Target{Addr: e.Addr, Port: port}, &f.times
	if g.plan.Load().own.listensOn(netip.AddrPortFrom(e.Addr, meshPort)) {
		return nil, false, &Error{Cause: CauseLoop, Reason: fmt.Sprintf("this gateway itself listens on %s", netip.AddrPortFrom(e.Addr, meshPort))}
	}
	st, _, asked, err := g.pool.connectAt(ctx, s.chainTo(e), req)
	if err != nil {
		return nil, asked, err
	}
	return st, true, nil
}

// chainTo is the chain to an endpoint that is a workload.
func (s *service) chainTo(e *endpoint.Endpoint) *chain {
	h := &Hop{
		Name: s.name, Identities: e.Identities, Transport: TransportH2, address: Target{Addr: e.Addr, Port: meshPort}, endpoint: e,
		streamsPerConn: defaultStreamsPerConn, spread: min(runtime.GOMAXPROCS(0), maxDefaultSpread),
	}
	return &chain{last: h, name: s.name, key: "service " + s.name + "\nat " + e.Key()}
}

// probeService connects to an endpoint as a flow would, for a probe.
func (g *Gateway) probeService(ctx context.Context, s *service, e *endpoint.Endpoint) (net.Conn, error) {
	port := cmp.Or(e.Port, s.own)
	for _, asked := range slices.Sorted(maps.Keys(s.ports)) {
		port = cmp.Or(port, s.ports[asked])
	}
	if port == 0 {
		return nil, errors.New("it has no port to probe; add one to its address, or ports to the service")
	}
	if e.Tun == endpoint.TunHBONE {
		p := g.plan.Load()
		st, _, _, err := g.pool.connectAt(ctx, s.chainTo(e), &ConnectRequest{
			Target: Target{Addr: e.Addr, Port: port}, Baggage: p.baggage, Traceparent: nextTraceparent(""), Via: g.via,
		})
		if err != nil {
			return nil, err
		}
		return st, nil
	}
	addrs := []netip.Addr{e.Addr}
	if e.Host != "" {
		var err error
		if addrs, err = g.resolve(ctx, e.Host); err != nil {
			return nil, err
		}
		for _, a := range addrs {
			if d := s.mayReach(s.guards, e.Host, a, port); !d.Allow {
				return nil, prohibited(d)
			}
		}
	}
	return dialAny(ctx, g.env.Dial, addrs, port)
}

// endLease tells the endpoint that the flow is over, and whether it has broken it off at once.
func (f *Flow) endLease(cause Cause) {
	if f.lease == nil {
		return
	}
	if f.service() != nil && (cause == CauseDestinationBroke || f.marked(markHungUp)) && f.in.carried()+f.out.carried() == 0 && time.Since(f.started) < brokeSoon {
		f.lease.Done(endpoint.Broke, errors.New("it has accepted a connection and broken it off"))
		return
	}
	f.lease.Done(endpoint.Served, nil) // where no stream has given it back
}

// endpointAt is the address and port of the endpoint that the flow went to; not valid where there is none.
func (f *Flow) endpointAt() netip.AddrPort {
	s := f.service()
	if s == nil || f.lease == nil || len(f.addrs()) == 0 {
		return netip.AddrPort{}
	}
	port, _ := s.port(f.Target.Port, f.lease.Endpoint())
	if dst := f.dialled(); slices.Contains(f.addrs(), dst.Addr()) {
		return netip.AddrPortFrom(dst.Addr(), port)
	}
	return netip.AddrPortFrom(f.addrs()[0], port)
}

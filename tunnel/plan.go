package tunnel

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"culvert/pki/spiffe"
	"culvert/policy"
)

// plan is a Config, ready to decide flows. It does not change; a reload replaces it, and flows that run
// keep the one they began with.
type plan struct {
	name       string // of this gateway, for peers
	baggage    string // of this gateway, for flows of no known workload
	listeners  map[string]*listenerPlan
	workloads  map[netip.Addr]*workload
	self       workload // this gateway, as a destination
	policy     *policy.Policy
	decider    Decider         // decides instead of policy; nil: policy does
	twins      map[string]bool // names that several sets of rules have
	guard      *policy.Egress  // of destinations that no route names
	trusted    *policy.Policy  // peers whose header fields are believed
	timeouts   TimeoutConfig
	expiryEnds bool // what lives ends when its peer's certificate does
	own        ownAddrs
	captures   bool // the system leads flows here, which could be our own
	meets      bool // gateways send flows here
	locality   string
	hops       map[string]*Hop // that routes lead through, by name
	services   map[string]*service
	vips       map[netip.Addr]*service // by their virtual addresses
	sets       map[setKey]setConf
}

// listenerPlan is what one listener leads to.
type listenerPlan struct {
	name     string
	kind     string
	routes   []*route
	index    *routeIndex  // of routes
	agents   []*agentRule // peers that may register
	allLocal bool         // every route leads to this host's own addresses
	names    bool         // a route names a host
	strict   bool         // nothing gets in
}

// takesName reports whether the first route that takes either named or addr does so because it names the host. local
// tells that addr is one of this host's own.
func (l *listenerPlan) takesName(named, addr Target, local bool) bool {
	n := l.index.find(named, false, nil, "")
	if n == nil || !n.match.namesHost() {
		return false
	}
	a := l.index.find(addr, local, nil, "")
	return a == nil || n.order < a.order && n.route != a.route
}

// workload is a program that this gateway stands before.
type workload struct {
	policy.Workload
	baggage   string
	appTunnel netip.AddrPort // where it takes flows together with whose they are; not valid: it takes them as they are
}

// compile makes a plan of c, which has been validated. self is this gateway's identity.
func compile(c *Config, self spiffe.ID) (*plan, error) {
	own := collectOwn(c)
	p := &plan{
		name: c.Name, baggage: baggageOfID(self), listeners: make(map[string]*listenerPlan), workloads: make(map[netip.Addr]*workload),
		timeouts: c.Timeouts.withDefaults(), expiryEnds: c.Expiry == expiryEnd, own: own, locality: c.Locality, hops: make(map[string]*Hop),
	}
	if p.name == "" {
		p.name = self.ServiceAccount()
	}
	if p.name == "" {
		p.name = "gateway"
	}
	p.self.Workload = policy.Workload{Name: p.name, Namespace: self.Namespace()}
	var err error
	if p.trusted, err = policy.Compile(policy.Config{Allow: c.TrustHeaders}); err != nil {
		return nil, fmt.Errorf("trustHeaders: %w", err)
	}
	if p.guard, err = policy.CompileEgress("egress", c.Policy.Egress, own.forPolicy()); err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	for i := range c.Workloads {
		if err := p.addWorkload(&c.Workloads[i], self); err != nil {
			return nil, fmt.Errorf("workloads[%d]: %w", i, err)
		}
	}
	rules := c.Policy
	rules.Namespace, rules.TrustDomain = self.Namespace(), self.TrustDomain()
	rules.Workloads = append(rules.Workloads, &p.self.Workload)
	for _, w := range p.workloads {
		rules.Workloads = append(rules.Workloads, &w.Workload)
	}
	if p.policy, err = policy.Compile(rules); err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	p.twins = twins(rules.Rules)
	p.addServices(c)
	if err := p.addRoutes(c); err != nil {
		return nil, err
	}
	p.guardServices()
	return p, nil
}

// twins returns the names that several sets of rules have.
func twins(list []policy.Rules) map[string]bool {
	seen := make(map[string]bool, len(list)) // true: more than once
	for i := range list {
		_, seen[list[i].Name] = seen[list[i].Name]
	}
	maps.DeleteFunc(seen, func(_ string, more bool) bool { return !more })
	return seen
}

// decide asks policy, or what decides instead.
func (p *plan) decide(r *policy.Request) policy.Decision {
	if p.decider == nil {
		return p.policy.Decide(r) // r stays on the stack
	}
	asked := *r
	return p.decider.Decide(&asked)
}

// workloadOf is what the destination of a flow is: a workload of this gateway's, or this gateway.
func (p *plan) workloadOf(t Target) *policy.Workload {
	if w := p.workloads[t.Addr]; w != nil {
		return &w.Workload
	}
	return &p.self.Workload
}

func (p *plan) addWorkload(c *WorkloadConfig, self spiffe.ID) error {
	namespace := c.Namespace
	if namespace == "" {
		namespace = self.Namespace()
	}
	w := &workload{baggage: baggageOf(namespace, c.Name, c.Labels["version"]), Workload: policy.Workload{Name: c.Name, Namespace: namespace, Labels: c.Labels}}
	if c.ApplicationTunnel != nil {
		w.appTunnel = c.ApplicationTunnel.at()
	}
	for _, text := range c.Addresses {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return err
		}
		p.workloads[addr.Unmap()] = w
	}
	return nil
}

// addRoutes makes the routes and hands each to the listeners it applies to.
func (p *plan) addRoutes(c *Config) error {
	for i := range c.Listeners {
		l := &c.Listeners[i]
		p.listeners[l.Name] = &listenerPlan{name: l.Name, kind: l.Kind, strict: l.Strict, allLocal: true}
		p.captures = p.captures || l.isCapture()
		p.meets = p.meets || l.Kind == KindHBONE || l.Kind == KindXTun || l.Kind == KindAgent
		var err error
		if p.listeners[l.Name].agents, err = newAgentRules(l.Agents); err != nil {
			return fmt.Errorf("listeners[%d]: %w", i, err)
		}
		if err := p.addOffer(c, i); err != nil {
			return err
		}
		for _, via := range l.Via { // of an agent
			if _, err := p.hop(c, via); err != nil {
				return fmt.Errorf("listeners[%d]: %w", i, err)
			}
		}
	}
	for i := range c.Routes {
		r, err := p.newRoute(fmt.Sprintf("routes[%d]", i), c, &c.Routes[i])
		if err != nil {
			return fmt.Errorf("routes[%d]: %w", i, err)
		}
		for name, l := range p.listeners {
			if of := c.Routes[i].Listeners; len(of) == 0 || slices.Contains(of, name) {
				l.routes = append(l.routes, r)
				l.allLocal = l.allLocal && r.onlyLocal()
				l.names = l.names || slices.ContainsFunc(r.matchers, func(m matcher) bool { return m.namesHost() })
			}
		}
	}
	for _, l := range p.listeners {
		l.index = newRouteIndex(l.routes)
	}
	return nil
}

// addOffer makes the route of what a listener offers, which is its first.
func (p *plan) addOffer(c *Config, i int) error {
	rc, ok := offerRoute(&c.Listeners[i])
	if !ok {
		return nil
	}
	name := fmt.Sprintf("listeners[%d].offer", i)
	r, err := p.newRoute(name, c, &rc)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	l := p.listeners[c.Listeners[i].Name]
	l.routes = append(l.routes, r)
	l.allLocal = false
	return nil
}

func (p *plan) newRoute(name string, c *Config, rc *RouteConfig) (*route, error) {
	r := &route{name: name, matchers: compileMatchers(rc), ports: rc.Ports, fromAny: rc.From == fromAny, keep: rc.Source == keepSource, agents: rc.Agents, tls: rc.TLS}
	if source, err := netip.ParseAddr(rc.Source); err == nil {
		r.source = source.Unmap()
	}
	r.inspect = rc.Inspect == inspectHTTP
	r.sentBy, r.proxy = rc.IstioSource, proxyVersions[rc.ProxyProtocol]
	var err error
	if r.http, err = newHTTPMatch(rc.HTTP); err != nil {
		return nil, err
	}
	if rc.To != "" {
		if r.to, err = ParseAuthority(rc.To); err != nil {
			return nil, err
		}
	}
	if rc.Inner == passInner {
		r.inner = cmp.Or(rc.InnerPort, hbonePort)
	}
	if rc.Agents {
		return r, nil
	}
	if len(rc.Via) == 0 {
		entries := guardEntries(rc)
		if len(entries) == 0 {
			return r, nil
		}
		r.guard, err = policy.CompileEgress(name, entries, p.own.forPolicy())
		return r, err
	}
	var list []*Hop
	for _, via := range rc.Via {
		h, err := p.hop(c, via)
		if err != nil {
			return nil, err
		}
		list = append(list, h)
	}
	r.chain = newChain(list)
	return r, nil
}

// hop returns the hop called name, or at that address.
func (p *plan) hop(c *Config, name string) (*Hop, error) {
	if h := p.hops[name]; h != nil {
		return h, nil
	}
	hc, known := c.Hops[name]
	if !known {
		hc = HopConfig{Address: name}
	}
	h, err := newHop(name, &hc)
	if err == nil {
		p.hops[name] = h
	}
	return h, err
}

// isLocal reports whether t is one of this host's own addresses: the one that the connection dialled,
// or a workload's. Loopback is local only to connections made to that loopback address.
func (p *plan) isLocal(t Target, dialled netip.Addr) bool {
	if !t.Addr.IsValid() {
		return false
	}
	if t.Addr == dialled {
		return true
	}
	_, ours := p.workloads[t.Addr]
	return ours
}

// isMeshPort reports whether port is one of those that no tunnel may lead to on a workload, because the
// mesh itself listens there (HBONE.md, "Status codes").
func isMeshPort(port uint16) bool {
	switch port {
	case 15001, 15006, 15008, 15080:
		return true
	}
	return false
}

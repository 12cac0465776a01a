package tunnel

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"culvert/pki/spiffe"
	"culvert/tunnel/h2"
)

// agentConf is what a listener of kind agent does. It does not change.
type agentConf struct {
	chain       *chain // to the hop where it registers
	at          []*Hop // that hop, at each of its addresses
	names       []string
	connections int // to each of its addresses
	offer       map[uint16]Target
}

// newAgentConf makes it of a configuration that was validated.
func newAgentConf(cfg *Config, c *ListenerConfig) (*agentConf, error) {
	a := &agentConf{connections: cmp.Or(c.Connections, 1), offer: make(map[uint16]Target)}
	for _, name := range c.Names {
		t, problem := parseHost(name, false)
		if problem != "" {
			return nil, fmt.Errorf("name %s: %s", name, problem)
		}
		a.names = append(a.names, t.Host)
	}
	slices.Sort(a.names)
	for port, to := range c.Offer {
		t, err := ParseAuthority(to)
		if err != nil {
			return nil, err
		}
		a.offer[port] = t
	}
	var hops []*Hop
	for _, name := range slices.Concat(c.Via, []string{c.Hop}) {
		hc, known := cfg.Hops[name]
		if !known {
			hc = HopConfig{Address: name}
		}
		h, err := newHop(name, &hc)
		if err != nil {
			return nil, err
		}
		hops = append(hops, h)
	}
	a.chain = newChain(hops)
	var err error
	a.at, err = a.chain.last.each()
	return a, err
}

// each returns h at each of its places, with the identities that it may have there.
func (h *Hop) each() (list []*Hop, err error) {
	for i, at := range h.places() {
		one := *h
		one.address = at
		if h.conf != nil && i < len(h.conf.Endpoints) && len(h.conf.Endpoints[i].Identities) > 0 {
			one.Identities = nil
			for _, text := range h.conf.Endpoints[i].Identities {
				id, err := spiffe.ParseName(text)
				if err != nil {
					return nil, fmt.Errorf("hop %s: %w", h.Name, err)
				}
				one.Identities = append(one.Identities, id)
			}
		}
		list = append(list, &one)
	}
	return list, nil
}

// same reports whether connections of one may stay for the other. What is offered is looked up for each flow.
func (c *agentConf) same(o *agentConf) bool {
	return c.chain.key == o.chain.key && c.connections == o.connections && slices.Equal(c.names, o.names) &&
		slices.EqualFunc(c.at, o.at, func(a, b *Hop) bool { return a.address == b.address && slices.Equal(a.Identities, b.Identities) })
}

// offered is where a flow to t goes that has come to the agent: what is offered at that port of its own names, else t. A nil
// agentConf offers nothing.
func (c *agentConf) offered(t Target) Target {
	if c == nil || !slices.Contains(c.names, t.Host) && !keyRange.Contains(t.Addr) {
		return t
	}
	if to, ok := c.offer[t.Port]; ok {
		return to
	}
	return t
}

// offerRoute is the route of a listener's flows to what it offers.
func offerRoute(l *ListenerConfig) (rc RouteConfig, ok bool) {
	for _, port := range slices.Sorted(maps.Keys(l.Offer)) {
		to := l.Offer[port]
		if t, err := ParseAuthority(to); err == nil && t.IsName() {
			rc.Hosts = append(rc.Hosts, to)
		} else {
			rc.Destinations = append(rc.Destinations, to)
		}
	}
	rc.Listeners = []string{l.Name}
	return rc, len(l.Offer) > 0
}

const (
	// A hop that cannot be registered at is dialled again after redialFirst, then after twice as long, up to redialMost, and up
	// to redialCalm when it was so for redialPatience tries. Each time is cut by chance, by half at most, so that a thousand
	// agents whose hop has gone do not come back at once.
	redialFirst    = 200 * time.Millisecond
	redialMost     = 2 * time.Second
	redialPatience = 30
	redialCalm     = 15 * time.Second
	// stable is how long a registration must have lasted for the next try to be a first one.
	stable = 10 * time.Second
	// handover is how long connections of a configuration that was replaced wait for the new ones.
	handover = 10 * time.Second
)

// redial is how long to wait before the try after so many in a row that have failed.
func redial(failures int) time.Duration {
	d := redialMost
	switch {
	case failures > redialPatience:
		d = redialCalm
	case failures < 5:
		d = min(redialFirst<<failures, redialMost)
	}
	return d/2 + rand.N(d/2)
}

// agentRuns is what keeps the connections of a listener of kind agent: a run for the configuration that is current, and one
// for that before until its successor is registered.
type agentRuns struct {
	mu  sync.Mutex // guards the group below
	now *agentRun
}

// agentRun keeps the connections of one configuration.
type agentRun struct {
	l      *listener
	name   string // of the listener
	conf   *agentConf
	ctx    context.Context // ended by end, with which connections are left
	end    context.CancelFunc
	once   sync.Once
	stands chan struct{} // closed when a connection is registered
	failed atomic.Pointer[error]
}

// follow keeps connections as conf has them. Those before are left when one of the new ones stands, so that nothing is
// refused in between.
func (rs *agentRuns) follow(l *listener, conf *listenerConf) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	old := rs.now
	if old != nil && old.conf.same(conf.agent) || l.closed.Load() {
		return
	}
	g := l.g
	r := &agentRun{l: l, name: conf.name, conf: conf.agent, stands: make(chan struct{})}
	r.ctx, r.end = context.WithCancel(g.base)
	rs.now = r
	for _, hop := range r.conf.at {
		for range r.conf.connections {
			g.work.Add(1)
			go r.slotLoop(hop) // ends with the run, by stop, a reload or the gateway; Close waits for it
		}
	}
	if old == nil {
		return
	}
	g.work.Go(func() { // ends with the first registration, after handover or with the run; Close waits for it
		t := time.NewTimer(handover)
		defer t.Stop()
		select {
		case <-r.stands:
		case <-t.C:
		case <-r.ctx.Done():
		}
		old.end()
	})
}

// stop dials no more. Connections that stand are left to who has stopped it.
func (rs *agentRuns) stop() {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.now != nil {
		rs.now.end()
	}
}

// slotLoop keeps one connection to the hop at one of its addresses.
func (r *agentRun) slotLoop(hop *Hop) {
	defer r.l.g.work.Done()
	var last *serverConn // which is left when the next one stands
	for failures := 0; r.ctx.Err() == nil; {
		s, err := r.connect(hop)
		if err != nil {
			r.fail(hop.address, err, failures)
			r.sleep(redial(failures))
			failures++
			continue
		}
		if last != nil {
			last.leave()
		}
		last = s
		r.once.Do(func() { close(r.stands) })
		begun := time.Now()
		s.hop.await(r.ctx)
		if time.Since(begun) >= stable {
			failures = 0
		} else {
			failures++
		}
		if r.ctx.Err() == nil {
			r.l.g.env.Log.Info("agent moves to another connection", "listener", r.name, "hop", r.conf.chain.name, "reason", s.hop.why())
			r.sleep(redial(failures) / 4)
		}
	}
	if last != nil {
		last.leave()
	}
}

func (r *agentRun) sleep(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-r.ctx.Done():
	}
}

// fail logs that the hop cannot be registered at: at first, and when that has lasted.
func (r *agentRun) fail(addr Target, err error, failures int) {
	r.l.g.stats.transportFailed.add(1)
	r.failed.Store(&err)
	if r.ctx.Err() == nil && (failures < 3 || failures%redialPatience == 0) {
		r.l.g.env.Log.Warn("agent cannot register", "listener", r.name, "hop", r.conf.chain.name, "dst", addr.String(), "err", err, "reason", r.hint(err))
	}
}

// hint says what to do about an error of registering.
func (r *agentRun) hint(err error) string {
	var refused *RefusedError
	needs := "its hbone listener needs agents: [{from: [" + r.l.g.env.Self().String() + "], names: [" + strings.Join(r.conf.names, ", ") + "]}]"
	switch {
	case errors.As(err, &refused) && refused.Status == 401:
		return "the hop lets this agent not register; " + needs
	case CauseOf(err) == CauseHopAlert:
		return "the hop takes no agents, or does not trust this one; " + needs + ", and its trust who has signed this identity, or the key"
	}
	return "it is tried again"
}

// connect makes a connection and registers on it.
func (r *agentRun) connect(hop *Hop) (*serverConn, error) {
	g := r.l.g
	ctx, cancel := context.WithTimeout(r.ctx, g.plan.Load().timeouts.Dial)
	defer cancel()
	g.stats.transportDials.add(1)
	checked := g.rechecks.Load()
	nc, err := g.reach(ctx, r.conf.chain, hop.address)
	if err != nil {
		return nil, err
	}
	tc, proof, err := g.meetHop(ctx, nc, hop, forAgent(g.env.ClientTLS(hop)), agentALPN)
	if err != nil {
		return nil, err
	}
	s := &serverConn{g: g, l: r.l, proof: proof, checked: checked, source: addrPort(nc.RemoteAddr())}
	s.one.L = &s.mu
	s.hop = &registration{run: r, granted: make(map[string]bool), over: make(chan struct{}), moving: make(chan struct{})}
	cfg := s.h2Config(proof.id)
	forAgents(cfg)
	// Until the agent is registered nobody has a reason to open streams, and s.conn is set long before.
	ready := make(chan struct{})
	cfg.Handler = func(st *h2.Stream) {
		<-ready
		s.serveStream(st)
	}
	if s.conn, err = h2.NewClient(tc, cfg); err != nil {
		_ = tc.Close()
		return nil, err
	}
	close(ready)
	r.l.connBegun()
	s.attend(func() {})
	if err := s.hop.register(ctx, s); err != nil {
		_ = s.conn.Close() // attend has seen to the rest
		return nil, err
	}
	return s, nil
}

// forAgent is conf for an agent's connection to its hop.
func forAgent(conf *tls.Config) *tls.Config {
	conf = conf.Clone()
	conf.NextProtos = []string{agentALPN}
	return conf
}

// agentTLS is what a listener where agents may register makes of the gateway's TLS configuration: once, as each
// connection keeps its own alive.
type agentTLS struct{ of, conf *tls.Config }

// forAgents is conf for a listener: where agents may register, one that offers their protocol and no other gets it.
func (l *listener) forAgents(conf *tls.Config) *tls.Config {
	if !l.conf.Load().agents {
		return conf
	}
	made := l.agentTLS.Load()
	if made == nil || made.of != conf {
		made = &agentTLS{of: conf, conf: withAgents(conf)}
		l.agentTLS.Store(made)
	}
	return made.conf
}

func withAgents(conf *tls.Config) *tls.Config {
	agents := conf.Clone()
	agents.NextProtos, agents.GetConfigForClient = []string{agentALPN}, nil
	choose := conf.GetConfigForClient
	conf = conf.Clone()
	conf.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		switch {
		case slices.Equal(hello.SupportedProtos, agents.NextProtos):
			return agents, nil
		case choose != nil:
			return choose(hello)
		}
		return nil, nil
	}
	return conf
}

// agentAddr is what stands for the address of a listener that dials.
type agentAddr string

// Network is "agent".
func (agentAddr) Network() string { return KindAgent }

// String returns the hops where the agent registers.
func (a agentAddr) String() string { return string(a) }

package endpoint

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"culvert/pki/spiffe"
)

// Endpoint is one place that a service or a hop can be had at. What is exported does not change; when the
// configuration or DNS says something else of it, there is another Endpoint with the same load and health.
type Endpoint struct {
	// Host is its name, "" where Addr is set.
	Host string
	// Addr is its address, never IPv4-mapped.
	Addr netip.Addr
	// Port is 0 where it has none of its own.
	Port uint16
	// Weight is 1 or more.
	Weight int
	// Locality is where it is, "" where that is not known.
	Locality string
	// Identities are who it may be; none: nothing is said here.
	Identities []spiffe.ID
	// Tun is how it is reached, as in EndpointConfig.
	Tun string
	// Labels are for people.
	Labels map[string]string
	// Resolved tells that DNS gave it, and not the configuration.
	Resolved bool

	priority uint16 // of SRV; 0 is first
	m        *member
}

// String returns the address, with the port if it has one.
func (e *Endpoint) String() string {
	switch {
	case e.Host != "" && e.Port != 0:
		return fmt.Sprintf("%s:%d", e.Host, e.Port)
	case e.Host != "":
		return e.Host
	case e.Port != 0:
		return netip.AddrPortFrom(e.Addr, e.Port).String()
	}
	return e.Addr.String()
}

// Key is what connections to it may be shared by: where it is, how it is reached and who it has to be.
func (e *Endpoint) Key() string {
	var b strings.Builder
	b.WriteString(e.place())
	for _, id := range e.Identities {
		b.WriteByte(' ')
		b.WriteString(id.String())
	}
	return b.String()
}

// place is what makes it the same endpoint after the configuration has changed.
func (e *Endpoint) place() string { return e.String() + " " + e.Tun }

// Env is what a Set needs from outside. Fields that are nil are not needed where the configuration asks for nothing of the
// kind.
type Env struct {
	// Locality returns where this gateway is.
	Locality func() string
	// Resolve looks a name up. ttl is how long the answer holds, 0 where that is not known. That there are no such records is an
	// answer without entries and no error. It ends with ctx.
	Resolve func(ctx context.Context, name string, kind Kind) (answers []Answer, ttl time.Duration, err error)
	// Guard says why an address that DNS gave must not be used, nil if it may.
	Guard func(addr netip.Addr, port uint16) error
	// Dial connects to e as a flow would. It ends with ctx.
	Dial func(ctx context.Context, e *Endpoint) (net.Conn, error)
	// Ping reaches e as a flow would, up to a question and its answer. It ends with ctx.
	Ping func(ctx context.Context, e *Endpoint) error
	// Log hears of endpoints that are ejected, go down or come back; it says of which service or hop. Required.
	Log *slog.Logger
	// Rand returns a number from 0 to n-1. Default: that of math/rand/v2.
	Rand func(n int64) int64
}

// Set is the endpoints of one service or hop. Its methods may be used concurrently, and none but Close and Refresh waits for
// anything. Nothing is probed or looked up before Start.
type Set struct {
	// immutable after New
	name string
	env  Env
	base context.Context // ended by Close
	end  context.CancelFunc

	loops sync.WaitGroup // probes and questions to DNS

	mu       sync.Mutex // guards the group below
	conf     *Config    // with its defaults
	started  bool
	ended    bool
	stop     map[string]context.CancelFunc // ends a loop, by what it does
	answered chan struct{}                 // closed when DNS was asked once; nil: it is not asked
	list     []*Endpoint                   // of the configuration
	found    []*Endpoint                   // of DNS
	foundAt  time.Time                     // when DNS has last said so
	members  []*member                     // all in use
	byPlace  map[string]*member
	tiers    []tier    // of members, nearest first; valid while stale is false and until then
	stale    bool      // members have changed
	until    time.Time // when an ejection is over; zero: none is
	load     load      // of all
	counts   counts
	events   []event // to log when mu is given up
}

// load is what is carried at a time.
type load struct{ flows, pending, conns int }

// member is an endpoint with its load and health. Guarded by the Set's mu.
type member struct {
	set  *Set
	e    *Endpoint
	load load
	gone bool // neither the configuration nor DNS has it any more

	fails     int // flows in a row that could not get there
	breaks    int // flows in a row that it broke off at once
	ejections int // in a row
	ejected   time.Time
	trial     bool // it was ejected, and nothing has succeeded since
	down      bool // probes say so
	probes    int  // in a row that say the contrary
	problem   string
	problemAt time.Time
}

// event is something to log.
type event struct {
	level slog.Level
	msg   string
	attrs []slog.Attr
}

// New makes a Set of c, which was validated. name is that of the service or hop.
func New(name string, c *Config, env Env) *Set {
	if env.Rand == nil {
		env.Rand = rand.Int64N
	}
	s := &Set{name: name, env: env, byPlace: make(map[string]*member), stop: make(map[string]context.CancelFunc)}
	s.base, s.end = context.WithCancel(context.Background())
	s.configure(c)
	return s
}

// Start begins to probe and to look names up, until Close.
func (s *Set) Start() {
	s.mu.Lock()
	defer s.unlock()
	if s.started || s.ended {
		return
	}
	s.started = true
	s.startLoops()
}

// Update replaces the configuration. Endpoints that stay keep their load and health; those that are gone get no new flows.
func (s *Set) Update(c *Config) {
	before := s.config()
	s.configure(c)
	s.mu.Lock()
	found := s.found
	s.unlock()
	kept, guarded, _ := s.permitted(slices.Clone(found)) // the guard may be another one
	s.mu.Lock()
	defer s.unlock()
	if guarded > 0 && len(s.found) == len(found) {
		s.found = kept
		s.compose()
	}
	if !s.started || s.ended {
		return
	}
	if before.DNS != s.conf.DNS {
		s.halt(loopDNS)
	}
	if before.Health != s.conf.Health {
		s.halt(loopProbe)
		for _, m := range s.members {
			m.down, m.probes = false, 0 // other probes may find otherwise
		}
		s.stale = true
	}
	s.startLoops()
}

// Close ends what Start began, and waits for it. Leases may be used on.
func (s *Set) Close() {
	s.mu.Lock()
	s.ended = true
	s.unlock()
	s.end()
	s.loops.Wait()
}

// Name is that of the service or hop.
func (s *Set) Name() string { return s.name }

// Retries is on how many other endpoints a flow may be tried.
func (s *Set) Retries() int { return s.config().Retries }

// ConnectTimeout is how long connecting to one endpoint may take.
func (s *Set) ConnectTimeout() time.Duration { return s.config().ConnectTimeout }

func (s *Set) config() *Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conf
}

// configure takes c over.
func (s *Set) configure(c *Config) {
	conf := c.withDefaults()
	list := make([]*Endpoint, 0, len(c.Endpoints))
	for i := range c.Endpoints {
		if e := newEndpoint(&c.Endpoints[i]); e != nil {
			list = append(list, e)
		}
	}
	s.mu.Lock()
	defer s.unlock()
	if s.conf == nil || s.conf.DNS != conf.DNS {
		if s.conf == nil || s.conf.DNS.Name != conf.DNS.Name || s.conf.DNS.Type != conf.DNS.Type {
			s.found, s.foundAt = nil, time.Time{}
		}
		s.answered = nil
		if conf.DNS.Name != "" {
			s.answered = make(chan struct{})
		}
	}
	s.conf, s.list = &conf, list
	s.compose()
}

// newEndpoint returns nil for what Validate refuses.
func newEndpoint(c *EndpointConfig) *Endpoint {
	e := &Endpoint{Weight: max(c.Weight, 1), Locality: c.Locality, Tun: c.Tun, Labels: c.Labels}
	var err error
	if e.Host, e.Addr, e.Port, err = splitAddress(c.Address); err != nil {
		return nil
	}
	for _, name := range c.Identities {
		id, err := spiffe.ParseName(name)
		if err != nil {
			return nil
		}
		e.Identities = append(e.Identities, id)
	}
	return e
}

// compose makes the members of what the configuration and DNS say. Called with mu held.
func (s *Set) compose() {
	next := make(map[string]*member, len(s.list)+len(s.found))
	var members []*member
	for _, e := range slices.Concat(s.list, s.found) { // the configuration knows more of those that both have
		place := e.place()
		if next[place] != nil {
			continue
		}
		m := s.byPlace[place]
		if m == nil {
			m = &member{set: s}
		}
		e.m, m.e = m, e
		next[place] = m
		members = append(members, m)
	}
	for place, m := range s.byPlace {
		m.gone = next[place] == nil
	}
	s.members, s.byPlace, s.stale = members, next, true
}

// unlock gives mu up and logs what has happened.
func (s *Set) unlock() {
	events := s.events
	s.events = nil
	s.mu.Unlock()
	for _, e := range events {
		s.env.Log.LogAttrs(context.Background(), e.level, e.msg, e.attrs...)
	}
}

// note has something logged when mu is given up. Called with mu held.
func (s *Set) note(level slog.Level, msg string, attrs ...slog.Attr) {
	s.events = append(s.events, event{level, msg, attrs})
}

// What loops do.
const (
	loopDNS   = "dns"
	loopProbe = "probe"
)

// startLoops starts what the configuration asks for and does not run. Called with mu held.
func (s *Set) startLoops() {
	conf := s.conf
	for what, loop := range map[string]func(context.Context){
		loopDNS: func(ctx context.Context) { s.dnsLoop(ctx, conf.DNS) }, loopProbe: func(ctx context.Context) { s.probeLoop(ctx, conf.Health) },
	} {
		wanted := what == loopDNS && s.conf.DNS.Name != "" || what == loopProbe && s.conf.Health.Probe != ""
		if s.stop[what] != nil || !wanted {
			continue
		}
		ctx, stop := context.WithCancel(s.base)
		s.stop[what] = stop
		s.loops.Go(func() { loop(ctx) }) // ends with ctx; Close waits for it
	}
}

// halt ends a loop. It may go on for a moment. Called with mu held.
func (s *Set) halt(what string) {
	if stop := s.stop[what]; stop != nil {
		stop()
		delete(s.stop, what)
	}
}

// sleep waits for d and reports whether ctx has not ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// counts are what metrics show of a Set.
type counts struct {
	picks, retries, overflow, unwell, full, ejections, spared, dnsFailures, guarded, dropped int64
}

// Stats is a snapshot of a Set. Those that end in s, and Overflow, Unwell and Full, count events since the start.
type Stats struct {
	// Endpoints is how many there are, Healthy how many of them are neither ejected nor down, Ejected and Down how many are.
	Endpoints, Healthy, Ejected, Down int64
	// Flows is how many flows go to them now, Pending how many of these wait to be connected, Connections how many connections
	// carry tunnels to them.
	Flows, Pending, Connections int64
	// Picks is how often one was picked, Retries how often for a flow that another one had failed, Overflow how often one that is
	// not among the nearest, Unwell how often one that is ejected or down, as no other was left.
	Picks, Retries, Overflow, Unwell int64
	// Full is how many flows were refused because a limit was reached.
	Full int64
	// Ejections is how often one was ejected, Spared how often one was not because too many were.
	Ejections, Spared int64
	// DNSFailures is how often looking the name up has failed or found nothing, Guarded how many addresses it gave that must not be used,
	// Dropped how many beyond those that are used.
	DNSFailures, Guarded, Dropped int64
}

// Stats returns the counters as they are now.
func (s *Set) Stats() Stats {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &s.counts
	st := Stats{
		Endpoints: int64(len(s.members)), Flows: int64(s.load.flows), Pending: int64(s.load.pending), Connections: int64(s.load.conns),
		Picks: c.picks, Retries: c.retries, Overflow: c.overflow, Unwell: c.unwell, Full: c.full, Ejections: c.ejections, Spared: c.spared,
		DNSFailures: c.dnsFailures, Guarded: c.guarded, Dropped: c.dropped,
	}
	for _, m := range s.members {
		switch {
		case m.down:
			st.Down++
		case m.isEjected(now):
			st.Ejected++
		default:
			st.Healthy++
		}
	}
	return st
}

// Info is an endpoint, for people to look at.
type Info struct {
	Address     string            `json:"address"`
	Tun         string            `json:"tun,omitempty"`
	Health      string            `json:"health"` // ok, trial, ejected, down
	Weight      int               `json:"weight"`
	Locality    string            `json:"locality,omitempty"`
	Identities  []string          `json:"identities,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	DNS         bool              `json:"dns,omitempty"` // DNS gave it
	Flows       int               `json:"flows"`
	Pending     int               `json:"pending"`
	Connections int               `json:"connections"`
	// EjectedUntil is when it is tried again.
	EjectedUntil *time.Time `json:"ejected_until,omitempty"`
	// LastFailure is what went wrong last, and LastFailureAt when.
	LastFailure   string     `json:"last_failure,omitempty"`
	LastFailureAt *time.Time `json:"last_failure_at,omitempty"`
}

// List returns all endpoints, in the order of the configuration.
func (s *Set) List() []Info {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Info, 0, len(s.members))
	for _, m := range s.members {
		i := Info{
			Address: m.e.String(), Tun: m.e.Tun, Health: m.health(now), Weight: m.e.Weight, Locality: m.e.Locality, Labels: maps.Clone(m.e.Labels),
			DNS: m.e.Resolved, Flows: m.load.flows, Pending: m.load.pending, Connections: m.load.conns, LastFailure: m.problem,
		}
		for _, id := range m.e.Identities {
			i.Identities = append(i.Identities, id.String())
		}
		if at := m.ejected; m.isEjected(now) {
			i.EjectedUntil = &at
		}
		if at := m.problemAt; !at.IsZero() {
			i.LastFailureAt = &at
		}
		list = append(list, i)
	}
	return list
}

// health is the word for how m fares.
func (m *member) health(now time.Time) string {
	switch {
	case m.down:
		return "down"
	case m.isEjected(now):
		return "ejected"
	case m.trial:
		return "trial"
	}
	return "ok"
}

// maxProblemLen bounds what is kept of an error, which may repeat what an endpoint has said.
const maxProblemLen = 200

// remember notes what went wrong last. Called with mu held.
func (m *member) remember(err error) {
	if err == nil {
		err = errors.New("it failed")
	}
	m.problem, m.problemAt = err.Error(), time.Now()
	if len(m.problem) > maxProblemLen {
		m.problem = strings.ToValidUTF8(m.problem[:maxProblemLen], "")
	}
}

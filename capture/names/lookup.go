package names

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// ResolverConfig says how the gateway itself finds the addresses of names. /etc/hosts and the search domains of
// resolv.conf(5) count as for other programs of the host.
type ResolverConfig struct {
	// Upstream are the resolvers that are asked, each `host:port` or an address, one after the other. Default: those
	// of resolv.conf.
	Upstream []string `yaml:"upstream"`
	// Timeout is how long one of them may take. Default 2s; each is asked twice.
	Timeout time.Duration `yaml:"timeout"`
	// MinTTL is how long an answer is kept at least, also the news that there is no such name, or that nobody answers.
	// Default 1s; negative: as long as the answer says.
	MinTTL time.Duration `yaml:"minTTL"`
	// MaxTTL is how long an answer is kept at most. Default 1h. That there is no such name is believed for 5m at most.
	MaxTTL time.Duration `yaml:"maxTTL"`
	// CacheEntries is how many answers are kept, one each for the IPv4 and the IPv6 addresses of a name. Default 10000;
	// negative: none.
	CacheEntries int `yaml:"cacheEntries"`
}

const (
	defaultResolverTimeout = 2 * time.Second
	defaultMinTTL          = time.Second
	defaultMaxTTL          = time.Hour
	// asksEach is how often a resolver is asked.
	asksEach = 2
	// lookupTime is how long all resolvers together may take, less than a flow may for its destination.
	lookupTime = 8 * time.Second
	// resolutionDelay is how long the addresses of one family wait for those of the other (RFC 8305, section 3).
	resolutionDelay = 50 * time.Millisecond
	// maxAddresses is how many addresses of a family are kept of a name; far fewer are dialled.
	maxAddresses = 32
	// maxFlights is how many questions are under way at a time; more wait. Peers choose the names.
	maxFlights = 1024
)

// Resolver finds the addresses of names for the gateway itself, and keeps them for as long as the answers say. Methods may
// be called concurrently.
type Resolver struct {
	// immutable after NewResolver
	client   client
	upstream []string // nil: the system's
	min, max time.Duration
	entries  int
	system   *net.Resolver                  // where there is no resolv.conf
	source   func(to netip.Addr) netip.Addr // the address that this host has on the way to another; not valid: there is no way
	base     context.Context                // ended by Close
	end      context.CancelFunc
	slots    chan struct{}

	hosts  hostsFile
	conf   resolvConf
	work   sync.WaitGroup // flights
	asked  atomic.Int64   // questions sent on
	broken atomic.Int64   // client.dropped

	mu      sync.Mutex // guards the group below
	cache   map[lookupKey]*list.Element
	order   list.List // of *lookup that are over, the last used first
	flights map[lookupKey]*lookup
	closed  bool
}

// lookupKey is what is asked for: the records of one type of a name.
type lookupKey struct {
	name string
	kind uint16
}

// lookup is a question, and what came of it.
type lookup struct {
	key  lookupKey
	done chan struct{} // closed when the rest is set

	addrs []ranked
	srv   []*net.SRV
	err   error // nil, a *net.DNSError, or that Close was called
	until time.Time
	turn  atomic.Uint32 // counts who was given addrs
}

// NewResolver makes a resolver of cfg; dial connects to those that it asks. What is wrong with cfg comes back as Validate
// says. It must be closed.
func NewResolver(cfg *ResolverConfig, dial Dial) (*Resolver, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	r := &Resolver{
		min: cfg.MinTTL, max: cfg.MaxTTL, entries: cfg.CacheEntries, hosts: hostsFile{path: "/etc/hosts"}, conf: resolvConf{path: "/etc/resolv.conf"},
		system: &net.Resolver{PreferGo: true, Dial: dial}, source: sourceTo,
		slots: make(chan struct{}, maxFlights), cache: make(map[lookupKey]*list.Element), flights: make(map[lookupKey]*lookup),
	}
	or := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
	}
	timeout := cfg.Timeout
	or(&timeout, defaultResolverTimeout)
	or(&r.min, defaultMinTTL)
	or(&r.max, defaultMaxTTL)
	if r.min = max(r.min, 0); r.entries == 0 {
		r.entries = defaultEntries
	}
	for _, text := range cfg.Upstream {
		server, _ := serverAddress(text) // Validate has looked
		r.upstream = append(r.upstream, server)
	}
	r.client = client{dial: dial, timeout: timeout, dropped: &r.broken}
	r.base, r.end = context.WithCancel(context.Background())
	return r, nil
}

// Validate returns everything that is wrong with c as joined *FieldErrors, or nil.
func (c *ResolverConfig) Validate() error {
	var faults []error
	fault := func(field, format string, args ...any) {
		faults = append(faults, &FieldError{Field: field, What: fmt.Sprintf(format, args...)})
	}
	for i, text := range c.Upstream {
		if _, ok := serverAddress(text); !ok {
			fault(fmt.Sprintf("upstream[%d]", i), "%q is no resolver; it should be host:port or an address, such as 192.0.2.53", text)
		}
	}
	if c.Timeout < 0 || c.Timeout > 0 && c.Timeout < time.Millisecond {
		fault("timeout", "%v is no time to wait; it should be at least 1ms, or left out for %v", c.Timeout, defaultResolverTimeout)
	}
	if c.MaxTTL < 0 {
		fault("maxTTL", "%v is no time to keep an answer; it should be positive, or left out for %v", c.MaxTTL, defaultMaxTTL)
	}
	if c.MaxTTL > 0 && c.MinTTL > c.MaxTTL {
		fault("minTTL", "%v is more than maxTTL, which is %v; it should be less", c.MinTTL, c.MaxTTL)
	}
	return errors.Join(faults...)
}

// Close ends the questions that are under way, and waits for them.
func (r *Resolver) Close() {
	r.end()
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.work.Wait()
}

// Lookup returns the addresses of host in the order in which they should be tried (RFC 6724). Both families are asked for
// at once, and one that has come waits for the other no longer than resolutionDelay. An answer is used as long as its
// TTL lasts, and never after. An error is a *net.DNSError, or that ctx was cancelled.
func (r *Resolver) Lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	addrs, _, err := r.LookupTTL(ctx, host)
	return addrs, err
}

// LookupTTL is Lookup that tells for how long the addresses are good; 0: nobody says.
func (r *Resolver) LookupTTL(ctx context.Context, host string) ([]netip.Addr, time.Duration, error) {
	name := strings.TrimSuffix(strings.ToLower(host), ".")
	if addr, err := netip.ParseAddr(name); err == nil {
		return []netip.Addr{addr}, 0, nil
	}
	if addrs := r.hosts.addrs(name); len(addrs) > 0 {
		return sorted(r.rank(addrs)), 0, nil
	}
	if name == "localhost" || strings.HasSuffix(name, ".localhost") { // RFC 6761, section 6.3: it is asked of nobody
		return []netip.Addr{netip.IPv6Loopback(), netip.AddrFrom4([4]byte{127, 0, 0, 1})}, 0, nil
	}
	if !isHost(canonical(name)) {
		return nil, 0, notFound(host)
	}
	conf := r.config()
	if conf == nil {
		addrs, err := r.system.LookupNetIP(ctx, "ip", host)
		return addrs, 0, err
	}
	var why error
	for _, candidate := range conf.NameList(name) {
		if _, ok := dns.IsDomainName(candidate); !ok {
			continue // too long with its search domain
		}
		list, until, err := r.addresses(ctx, canonical(candidate))
		if err == nil {
			return sorted(list), time.Until(until), nil
		}
		if ctx.Err() != nil {
			return nil, 0, ended(ctx, host)
		}
		if !isNotFound(err) && why == nil {
			why = err
		}
	}
	if why == nil {
		why = notFound(host)
	}
	return nil, 0, why
}

// LookupSRV returns the SRV records of name, such as "_http._tcp.orders.example", sorted by priority; those of one priority
// are in no order. They are good for ttl, 0: nobody says. Errors are those of Lookup.
func (r *Resolver) LookupSRV(ctx context.Context, name string) (_ []*net.SRV, ttl time.Duration, _ error) {
	name = canonical(strings.ToLower(name))
	if _, ok := dns.IsDomainName(name); !ok || !isHost(name) {
		return nil, 0, notFound(name)
	}
	if r.config() == nil {
		_, list, err := r.system.LookupSRV(ctx, "", "", name)
		return list, 0, err
	}
	l := r.start(lookupKey{name, dns.TypeSRV})
	select {
	case <-l.done:
		return slices.Clone(l.srv), time.Until(l.until), l.err
	case <-ctx.Done():
		return nil, 0, ended(ctx, name)
	}
}

// config returns what resolv.conf says, or a stand-in for it where resolvers are configured; nil: there is none. When it
// changes, what others have answered is forgotten.
func (r *Resolver) config() *dns.ClientConfig {
	conf, changed := r.conf.read()
	if changed {
		r.forget()
	}
	switch {
	case conf == nil && len(r.upstream) > 0:
		return &dns.ClientConfig{Ndots: 1}
	case conf == nil || len(conf.Servers) == 0 && len(r.upstream) == 0:
		return nil
	}
	return conf
}

// forget empties the cache.
func (r *Resolver) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.cache)
	r.order.Init()
}

// addresses returns the addresses of one name, and until when they are good. It asks for both families side by side.
func (r *Resolver) addresses(ctx context.Context, name string) (list []ranked, until time.Time, why error) {
	open := []*lookup{r.start(lookupKey{name, dns.TypeAAAA}), r.start(lookupKey{name, dns.TypeA})}
	var late <-chan time.Time
	take := func(l *lookup) {
		open = slices.DeleteFunc(open, func(o *lookup) bool { return o == l })
		list = append(list, l.ranked()...)
		if until.IsZero() || l.until.Before(until) {
			until = l.until
		}
		if why == nil || isNotFound(why) {
			why = l.err
		}
		if late == nil && len(open) > 0 && slices.ContainsFunc(l.addrs, func(a ranked) bool { return a.usable }) {
			late = time.NewTimer(resolutionDelay).C
		}
	}
	for len(open) > 0 {
		first, last := open[0], open[len(open)-1]
		select {
		case <-first.done:
			take(first)
			continue
		default:
		}
		select {
		case <-first.done:
			take(first)
		case <-last.done:
			take(last)
		case <-late:
			return list, until, nil
		case <-ctx.Done():
			return nil, until, ctx.Err()
		}
	}
	if len(list) > 0 {
		return list, until, nil
	}
	return nil, until, why
}

// start returns the question of key: one whose answer holds, one that is under way, or a new one.
func (r *Resolver) start(key lookupKey) *lookup {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.cache[key]; e != nil {
		l := e.Value.(*lookup)
		if time.Now().Before(l.until) {
			r.order.MoveToFront(e)
			return l
		}
		r.order.Remove(e)
		delete(r.cache, key)
	}
	if l := r.flights[key]; l != nil {
		return l
	}
	l := &lookup{key: key, done: make(chan struct{})}
	if r.closed {
		l.err = context.Canceled
		close(l.done)
		return l
	}
	r.flights[key] = l
	r.work.Go(func() { r.fly(l) }) // ends after lookupTime, or with Close, which waits for it
	return l
}

// fly asks the resolvers, for everybody who wants to know. It goes on when nobody does any more: the next one will.
func (r *Resolver) fly(l *lookup) {
	ctx, cancel := context.WithTimeout(r.base, lookupTime)
	defer cancel()
	ttl := r.min
	select {
	case r.slots <- struct{}{}:
		var m *dns.Msg
		if m, l.err = r.ask(ctx, l.key); l.err == nil {
			ttl = r.take(l, m)
		}
		<-r.slots
	case <-ctx.Done():
		l.err = failed(l.key.name, ctx.Err())
	}
	l.until = time.Now().Add(ttl)
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.flights, l.key)
	close(l.done)
	if r.entries <= 0 || ttl <= 0 || r.base.Err() != nil {
		return
	}
	r.cache[l.key] = r.order.PushFront(l)
	for len(r.cache) > r.entries {
		last := r.order.Back()
		r.order.Remove(last)
		delete(r.cache, last.Value.(*lookup).key)
	}
}

// ask asks the resolvers, each again when all have failed: a datagram may get lost.
func (r *Resolver) ask(ctx context.Context, key lookupKey) (*dns.Msg, error) {
	servers := r.upstream
	if len(servers) == 0 {
		if conf, _ := r.conf.read(); conf != nil {
			for _, server := range conf.Servers {
				servers = append(servers, net.JoinHostPort(server, conf.Port))
			}
		}
	}
	q := new(dns.Msg)
	q.Question = []dns.Question{{Name: key.name, Qtype: key.kind, Qclass: dns.ClassINET}}
	r.asked.Add(1)
	m, err := r.client.ask(ctx, q, slices.Repeat(servers, asksEach))
	switch {
	case err != nil:
		return nil, failed(key.name, err)
	case m == nil:
		return nil, failed(key.name, errors.New("there is no resolver"))
	}
	return m, nil
}

// take makes of an answer what is kept of it, and returns for how long.
func (r *Resolver) take(l *lookup, m *dns.Msg) time.Duration {
	var addrs []netip.Addr
	for _, rr := range m.Answer {
		if srv, ok := rr.(*dns.SRV); ok && l.key.kind == dns.TypeSRV && len(l.srv) < maxAddresses {
			l.srv = append(l.srv, &net.SRV{Target: srv.Target, Port: srv.Port, Priority: srv.Priority, Weight: srv.Weight})
		}
		for _, ip := range addresses(rr) {
			if addr, ok := netip.AddrFromSlice(ip); ok && rr.Header().Rrtype == l.key.kind && len(addrs) < maxAddresses {
				addrs = append(addrs, addr.Unmap())
			}
		}
	}
	slices.SortStableFunc(l.srv, func(a, b *net.SRV) int { return int(a.Priority) - int(b.Priority) })
	l.addrs = r.rank(addrs)
	if len(l.addrs)+len(l.srv) == 0 {
		l.err = notFound(l.key.name)
	}
	return min(max(timeToLive(m), r.min), r.max)
}

// ranked returns the addresses, others of them first at each call: as they would come from a resolver that shares out
// flows.
func (l *lookup) ranked() []ranked {
	n := len(l.addrs)
	if n < 2 {
		return l.addrs
	}
	at := int(l.turn.Add(1)-1) % n
	return slices.Concat(l.addrs[at:], l.addrs[:at])
}

func notFound(name string) error {
	return &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
}

func isNotFound(err error) bool {
	var dnsErr *net.DNSError
	return errors.As(err, &dnsErr) && dnsErr.IsNotFound
}

// failed is why there is no answer.
func failed(name string, err error) error {
	return &net.DNSError{UnwrapErr: err, Err: err.Error(), Name: name, IsTemporary: true, IsTimeout: errors.Is(err, context.DeadlineExceeded)}
}

// ended is the error of a question that ctx has ended.
func ended(ctx context.Context, name string) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return failed(name, ctx.Err())
	}
	return ctx.Err()
}

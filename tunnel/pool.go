package tunnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"culvert/pki/spiffe"
	"culvert/tunnel/endpoint"
	"culvert/tunnel/h2"
)

const (
	// defaultStreamsPerConn is how many streams a connection to a hop carries before another one is
	// opened, as ztunnel does (POOL_MAX_STREAMS_PER_CONNECTION).
	defaultStreamsPerConn = 100
	// maxDefaultSpread bounds over how many connections the flows to a hop are spread by default. One is read
	// and written by one processor at a time.
	maxDefaultSpread = 4
	// surplusIdle is how long a connection beyond those that flows are spread over may be without one. The others
	// stay until the hop or IdleTimeout of h2 ends them.
	surplusIdle = 10 * time.Second
	// groupIdle is how long a chain of hops to which there is no connection is kept, with what is known of it.
	groupIdle = 30 * time.Second
	// closely is how soon after another a flow comes to a hop that is in use, so that more connections to it
	// are worth their handshakes.
	closely = 10 * time.Second
	// spareFraction is the part of one connection's streams that a hop should have free: with fewer,
	// another connection is made beside, so that no flow waits for a handshake.
	spareFraction = 10
	// maxBarren is how many connections a hop may have that it allows no streams on, and that carry none or
	// have never carried one. A hop that takes every handshake and then no stream gets no more of them.
	maxBarren = 8
	// maxTries is how often a tunnel is asked for that a hop has not processed.
	maxTries = 3
	// A hop that cannot be connected to is left alone for retryFirst, then twice as long, up to
	// retryMost; flows that come meanwhile get the error at once.
	retryFirst = 200 * time.Millisecond
	retryMost  = 5 * time.Second
	// misuseRetry is for how long a hop is left alone at least after we had to end a connection for what it
	// did there: a hostile one can do it so often, and no more.
	misuseRetry = time.Second
)

// errPoolClosed is returned while a pool is closing.
var errPoolClosed = &Error{Cause: CauseDraining, Reason: "no new tunnels are opened while the gateway stops"}

// errDropped is returned by take of a group that was idle for long; the pool has another one.
var errDropped = errors.New("the group is dropped")

// pool keeps transports by the chain of hops that they lead to. Many streams share a connection; a hot hop
// gets several.
type pool struct {
	// immutable after newPool
	self  func() spiffe.ID
	dial  func(ctx context.Context, c *chain, times *timing) (Transport, error)
	stats *stats
	base  context.Context // ended by close
	end   context.CancelFunc
	// checks counts the looks at peers (Gateway.Recheck); nil: there are none. check looks at a transport that one may have missed.
	checks func() uint64
	check  func(*pooled)

	loops sync.WaitGroup // dials and watchers

	mu     sync.Mutex          // guards the group below; taken before a group's
	groups map[groupKey]*group // without those that were dropped, being idle
	closed bool
}

// groupKey says what transports must have in common: who we are on them, and where they lead. A new identity
// starts new ones; those of the old one get no more streams and end when they have been idle.
type groupKey struct {
	self  spiffe.ID
	chain string // chain.key
}

// group is the transports to one chain of hops.
type group struct {
	pool  *pool
	chain *chain

	mu       sync.Mutex // guards the group below
	conns    []*pooled
	live     map[*pooled]struct{} // those of conns, and those that get no more streams and have not ended
	taken    time.Time            // when a flow came last
	dialing  *dialing             // nil: none under way
	allows   int                  // streams on one connection, as the hop said on one before; 0: not known
	failures int                  // dials failed in a row
	leaving  int                  // connections in a row on which the hop has said only that it leaves
	lastErr  error                // of the last dial, nil if it succeeded
	retryAt  time.Time
	closed   bool
	dropped  bool // the pool has forgotten it: take gives errDropped
}

// dialing is one attempt to connect, for which any number of flows may wait.
type dialing struct {
	done  chan struct{}
	err   error  // valid when done is closed
	times timing // as err
}

// pooled is a transport in a group.
type pooled struct {
	Transport
	group  *group
	inUse  int  // streams, those that are being opened included; guarded by group.mu
	proven bool // the hop has answered once; guarded by group.mu
	buried bool // its end was noted; guarded by group.mu
	allows int  // streams, as the hop has said; 0: not known; guarded by group.mu
	made   time.Time
	idleAt time.Time // when prune found no stream on it; zero: when it looked last there was one; guarded by group.mu
}

func newPool(self func() spiffe.ID, dial func(context.Context, *chain, *timing) (Transport, error), st *stats) *pool {
	p := &pool{self: self, dial: dial, stats: st, groups: make(map[groupKey]*group)}
	p.base, p.end = context.WithCancel(context.Background())
	return p
}

// connect asks the last hop of c for a tunnel.
func (p *pool) connect(ctx context.Context, c *chain, req *ConnectRequest) (Stream, *ConnectResponse, error) {
	if c.last.set != nil {
		return p.connectAny(ctx, c, req)
	}
	s, resp, _, err := p.connectAt(ctx, c, req)
	if err != nil {
		return nil, nil, err
	}
	return s, resp, nil
}

// connectAt asks the last hop of c, which has one address, for a tunnel. What a hop has not processed is tried again, up to
// maxTries, but not when bytes of the flow may have gone on from there; see Early. asked tells that the hop was connected
// to in the last try.
func (p *pool) connectAt(ctx context.Context, c *chain, req *ConnectRequest) (_ *pooledStream, _ *ConnectResponse, asked bool, _ error) {
	for try := 1; ; try++ {
		g, t, err := p.take(ctx, c, req.times)
		if err != nil {
			return nil, nil, false, err
		}
		began := time.Now()
		s, resp, err := t.Connect(ctx, req)
		req.times.since(phaseAnswer, began)
		if err == nil {
			g.answered(t)
			return &pooledStream{Stream: s, from: t}, resp, true, nil
		}
		again := g.failed(t, err) && req.Early.again(err)
		if !again || try == maxTries || ctx.Err() != nil {
			return nil, nil, true, err
		}
		p.stats.retries.add(1)
	}
}

// ping measures a round trip to the last hop of c, on a transport as connect would use it.
func (p *pool) ping(ctx context.Context, c *chain) (spiffe.ID, time.Duration, error) {
	if c.last.set != nil {
		l, err := pick(ctx, c.last.set, c.last.Name)
		if err != nil {
			return spiffe.ID{}, 0, err
		}
		defer l.Done(endpoint.Served, nil)
		c = c.at(l.Endpoint())
	}
	g, t, err := p.take(ctx, c, nil)
	if err != nil {
		return spiffe.ID{}, 0, err
	}
	rtt, err := t.Ping(ctx)
	if err != nil {
		g.failed(t, err)
		return t.Peer(), 0, fmt.Errorf("ping hop %s: %w", c.last.Name, err)
	}
	g.answered(t)
	t.giveBack()
	return t.Peer(), rtt, nil
}

// take returns a transport to the last hop of c with a stream set aside, and its group. times gets what had to be waited for.
func (p *pool) take(ctx context.Context, c *chain, times *timing) (*group, *pooled, error) {
	for {
		g, err := p.group(c)
		if err != nil {
			return nil, nil, err
		}
		t, err := g.take(ctx, times)
		if err == nil {
			return g, t, nil
		}
		if !errors.Is(err, errDropped) {
			return nil, nil, fmt.Errorf("connect to hop %s: %w", c.last, err)
		}
	}
}

func (p *pool) group(c *chain) (*group, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, errPoolClosed
	}
	key := groupKey{p.self(), c.key}
	g := p.groups[key]
	if g == nil {
		g = &group{pool: p, chain: c, live: make(map[*pooled]struct{})}
		p.groups[key] = g
	}
	return g, nil
}

// take returns a transport with a stream set aside. It waits for a handshake only where no transport has
// room, and until ctx ends. No lock is held while it waits, of which times gets to know.
func (g *group) take(ctx context.Context, times *timing) (*pooled, error) {
	for {
		g.mu.Lock()
		now := time.Now()
		t, scarce := g.roomiest(now)
		if t != nil {
			t.inUse++
			g.taken = now
			if scarce && now.After(g.retryAt) {
				g.startDial()
			}
			g.mu.Unlock()
			return t, nil
		}
		if g.closed || g.dropped {
			defer g.mu.Unlock()
			if g.closed {
				return nil, errPoolClosed
			}
			return nil, errDropped
		}
		g.buryEnded()
		if g.dialing == nil && now.Before(g.retryAt) {
			err := g.lastErr
			g.mu.Unlock()
			return nil, fmt.Errorf("not tried again yet: %w", err)
		}
		if g.barren() >= maxBarren {
			g.mu.Unlock()
			return nil, &Error{Cause: CauseFull, Hop: g.chain.last.Name, Reason: "the hop allows no streams"}
		}
		d := g.startDial()
		g.mu.Unlock()
		select {
		case <-d.done:
			times.wait(time.Since(now), &d.times)
			if d.err != nil {
				return nil, d.err
			}
		case <-ctx.Done():
			times.since(phaseQueue, now) // how far the dial is, is not known
			return nil, ctx.Err()
		}
	}
}

// roomiest returns the transport with the most free streams, nil if none has one, and whether another should
// be made beside: hardly any are free on all of them, or flows that come together, or closely after each other,
// are not spread yet. Called with mu held; a transport's Slots does not wait.
func (g *group) roomiest(now time.Time) (best *pooled, scarce bool) {
	most, free, limit := 0, 0, g.chain.last.streamsPerConn
	for _, t := range g.conns {
		room := min(limit, g.allowed(t)) - t.inUse
		if room <= 0 {
			continue // of many connections to a hot hop most are full
		}
		room = min(room, t.Slots())
		if room > most {
			best, most = t, room
		}
		free += max(room, 0)
	}
	if best == nil {
		return nil, false
	}
	together := best.inUse > 0 || now.Sub(g.taken) < closely
	spread := len(g.conns) >= g.chain.last.spread || g.chain.rest != nil // those to the first hop of a chain are spread
	return best, together && !spread || free <= (best.inUse+most)/spareFraction
}

// barren counts the transports that the hop allows no streams on, though we would have them. Called with mu
// held.
func (g *group) barren() (n int) {
	for _, t := range g.conns {
		if (t.inUse == 0 || !t.proven) && t.inUse < g.chain.last.streamsPerConn && t.Slots() == 0 {
			n++
		}
	}
	return n
}

// allowed is how many streams the hop will allow on t. Until it has said so it is taken to be what it said on an
// earlier connection: else all flows that have waited for a connection would be sent to a new one at once, and most
// of them be refused there, again and again. Called with mu held.
func (g *group) allowed(t *pooled) int {
	if t.allows == 0 {
		if l, ok := t.Transport.(interface{ limit() int }); ok {
			t.allows = l.limit()
		}
		if t.allows > 0 {
			g.allows = t.allows
		}
	}
	if n := cmp.Or(t.allows, g.allows); n > 0 {
		return n
	}
	return math.MaxInt
}

// startDial begins a handshake where none is under way, and returns the one that is. Called with mu held.
func (g *group) startDial() *dialing {
	if g.dialing != nil {
		return g.dialing
	}
	d := &dialing{done: make(chan struct{})}
	if g.closed {
		d.err = errPoolClosed
		close(d.done)
		return d
	}
	g.dialing = d
	g.pool.loops.Add(1)
	go g.dial(d) // ends with the handshake, which has a timeout, or with the pool; close waits for it
	return d
}

// dial makes a transport and tells everybody who waits.
func (g *group) dial(d *dialing) {
	defer g.pool.loops.Done()
	st := g.pool.stats
	st.transportDials.add(1)
	var checked uint64
	if g.pool.checks != nil {
		checked = g.pool.checks()
	}
	var t Transport
	err := g.takeConn()
	full := err != nil
	if !full {
		t, err = g.pool.dial(g.pool.base, g.chain, &d.times)
	}
	var made *pooled
	away := false
	if err == nil && t.Slots() == 0 {
		away = goingAway(t)
		// Else who waits would connect again and again.
		if err = t.Err(); err == nil {
			err = &Error{Cause: CauseFull, Hop: g.chain.last.Name, Reason: "the hop allows no streams"}
		}
	}
	g.mu.Lock()
	g.dialing = nil
	drop := err != nil
	switch {
	case away && !g.closed && g.mayLeave():
		err = nil // who waits connects again
	case full: // which is no fault of the hop's
	case err != nil:
		st.transportFailed.add(1)
		g.backOff(err)
	case g.closed:
		err, drop = errPoolClosed, true
	default:
		made = &pooled{Transport: t, group: g, made: time.Now()}
		g.conns = append(g.conns, made)
		g.live[made] = struct{}{}
		st.transports.add(1)
		g.pool.loops.Add(1)
		go g.watch(made) // ends with the transport; close waits for it
	}
	d.err = err
	g.mu.Unlock()
	if made == nil && !full {
		g.giveConn()
	}
	if made != nil && g.pool.checks != nil && g.pool.checks() != checked {
		g.pool.check(made) // which did not see it
	}
	close(d.done)
	if drop && t != nil {
		_ = t.Close() // it came too late
	}
}

// goingAway reports whether the hop takes no more streams on t.
func goingAway(t Transport) bool {
	select {
	case <-t.Draining():
		return true
	default:
		return false
	}
}

// mayLeave notes a connection on which the hop has said nothing but that it leaves, and reports whether that
// is no failed dial: a hop that is replaced while it runs takes the connection, and the next one reaches its
// successor. A hop that says nothing else cannot be connected to. Called with mu held.
func (g *group) mayLeave() bool {
	g.leaving++
	return g.leaving < maxTries
}

// backOff notes that the hop cannot be connected to. Called with mu held.
func (g *group) backOff(err error) {
	wait := retryMost
	if g.failures < 10 {
		wait = min(retryFirst<<g.failures, retryMost)
	}
	g.failures++
	g.lastErr, g.retryAt = err, time.Now().Add(wait)
}

// answered notes that the hop has answered on t.
func (g *group) answered(t *pooled) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.prove(t)
}

// prove ends a wait for the hop, as it has answered on t, unless t has ended meanwhile and that has told more.
// Called with mu held.
func (g *group) prove(t *pooled) {
	t.proven = true
	if !t.buried {
		g.failures, g.leaving, g.lastErr, g.retryAt = 0, 0, nil, time.Time{}
	}
}

// failed gives the stream back that was set aside on t, and reports whether the request may be sent
// again: the hop has not touched it, or the connection has died that had served others before, such as
// one that a firewall has forgotten. A connection that dies before the hop has answered anything counts as
// a failed dial: in TLS 1.3 a hop refuses a client's certificate only after the handshake.
func (g *group) failed(t *pooled, err error) bool {
	var unprocessed *UnprocessedError
	var refused *RefusedError
	dead := t.ended()
	g.mu.Lock()
	defer g.mu.Unlock()
	t.inUse--
	switch {
	case errors.As(err, &refused):
		refused.ID = t.Peer()
		g.prove(t)
		return false
	case dead:
		g.bury(t, err)
		return t.proven || errors.As(err, &unprocessed) && goingAway(t)
	}
	return errors.As(err, &unprocessed)
}

// bury notes that t has ended; err, if not nil, says more than t itself. One that has ended soon, and before
// the hop has answered anything on it, counts as a failed dial, and so does one that the hop has misused, or
// each flow would give it another connection to misuse. Called with mu held.
func (g *group) bury(t *pooled, err error) {
	g.remove(t)
	if t.buried {
		return
	}
	t.buried = true
	if misused(t.Err()) {
		if err == nil {
			err = fmt.Errorf("the connection was ended: %w", t.Err())
		}
		g.backOff(err)
		g.retryAt = time.Now().Add(max(time.Until(g.retryAt), misuseRetry))
	} else if !t.proven && time.Since(t.made) < retryMost && !(goingAway(t) && g.mayLeave()) {
		if err == nil {
			err = fmt.Errorf("the connection ended before an answer: %w", t.Err())
		}
		g.backOff(err)
	}
}

// misused reports whether a transport has ended with err because of what the hop did on it.
func misused(err error) bool {
	var end *h2.ConnError
	return errors.As(err, &end) && end.By == h2.Local && end.Code != h2.NoError
}

// buryEnded takes out what has ended and was not watched yet. Called with mu held.
func (g *group) buryEnded() {
	for i := len(g.conns) - 1; i >= 0; i-- {
		if t := g.conns[i]; t.ended() {
			g.bury(t, nil)
		}
	}
}

// ended reports whether the transport has ended.
func (t *pooled) ended() bool {
	select {
	case <-t.Done():
		return true
	default:
		return false
	}
}

// remove takes t out of the group, so that it gets no new streams, and reports whether it was there. Called with mu held.
func (g *group) remove(t *pooled) bool {
	i := slices.Index(g.conns, t)
	if i >= 0 {
		g.conns = slices.Delete(g.conns, i, i+1)
	}
	return i >= 0
}

// watch retires a transport when the hop wants no more streams on it, or when it has ended. Streams that
// are open live on.
func (g *group) watch(t *pooled) {
	defer g.pool.loops.Done()
	select {
	case <-t.Draining():
		g.mu.Lock()
		g.remove(t)
		g.mu.Unlock()
		_ = t.Drain(g.pool.base) // it is over for new streams; those that live may
	case <-t.Done():
	}
	<-t.Done()
	g.mu.Lock()
	g.bury(t, nil)
	delete(g.live, t)
	g.mu.Unlock()
	g.giveConn()
	_ = t.Close() // gives back what it holds
	g.pool.stats.transports.add(-1)
}

// drain takes no new tunnels, waits until those that are open have ended, and closes. When ctx ends first
// they are cut.
func (p *pool) drain(ctx context.Context) {
	var draining sync.WaitGroup
	for _, t := range p.shut() {
		draining.Go(func() { _ = t.Drain(ctx) }) // ends with the streams or ctx; its error is Err, which nobody wants
	}
	ended := make(chan struct{})
	go func() { // ends when close has ended the rest, at the latest; drain waits for it
		defer close(ended)
		draining.Wait()
		p.loops.Wait() // transports that hops have retired before
	}()
	select {
	case <-ended:
	case <-ctx.Done():
	}
	p.close()
	<-ended
}

// close ends all transports and waits for everything that the pool has started.
func (p *pool) close() {
	list := p.shut()
	p.end()
	for _, t := range list {
		_ = t.Close()
	}
	p.loops.Wait()
}

// shut closes the pool for new tunnels and returns the transports in it.
func (p *pool) shut() []*pooled {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	var list []*pooled
	for _, g := range p.groups {
		g.mu.Lock()
		g.closed = true
		list = append(list, g.conns...)
		g.mu.Unlock()
	}
	return list
}

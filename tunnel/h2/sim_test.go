package h2

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"culvert/tunnel/tunneltest/memnet"
	"culvert/tunnel/tunneltest/sim"
)

// simFound are the seeds of TestSim that have ever failed.
var simFound = []sim.Found{
	{Seed: 1, What: "a client that did not know the limit of streams yet was ended as an offender"},
	{Seed: 8, What: "Drain closed the socket while the tail of the last stream was on its way"},
	{Seed: 38, What: "a request parsed after a failed write made a stream that never ended"},
}

// TestSim joins a client and a server by a connection with faults, lets them carry flows that are drawn by a seed,
// and checks SECURITY.md's goal 9: streams are byte-exact, a cut is no clean end and no clean end a cut, windows are
// conserved, slots are freed after their work, and nothing is left.
func TestSim(t *testing.T) {
	sim.Run(t, simFound, func(t *testing.T, seed uint64) { newH2Sim(t, seed, nil).run() })
}

// simBothFound are the seeds of TestSimBidirectional that have ever failed.
var simBothFound = []sim.Found{}

// TestSimBidirectional is TestSim for a connection on which both ends open streams: what holds there holds for each
// direction, and neither stands in the other's way.
func TestSimBidirectional(t *testing.T) {
	sim.Run(t, simBothFound, func(t *testing.T, seed uint64) { newH2Sim(t, seed, sim.Rand(seed, 7)).run() })
}

// h2Sim is one seed.
type h2Sim struct {
	t    *testing.T
	seed uint64
	r    *rand.Rand

	client, server         *Conn
	clientNC               *memnet.Conn
	clientBudget, srvBudge *Budget
	flows                  []*h2SimFlow
	resume                 chan struct{}

	mayBreak bool          // the connection is cut, or closed, while flows run
	drainAt  time.Duration // 0: never
	drainer  *Conn
	draining atomic.Bool
	closeAt  time.Duration // 0: never

	// handlers of the server, and of the client, that have not called Close
	live, clientLive atomic.Int64
}

// simDeadline is by when everything must be over, however slow the links: then something hangs.
const simDeadline = 12 * time.Hour

// newH2Sim draws one seed; both, unless it is nil, says which flows the server opens.
func newH2Sim(t *testing.T, seed uint64, both *rand.Rand) *h2Sim {
	s := &h2Sim{t: t, seed: seed, r: sim.Rand(seed, 2), resume: make(chan struct{})}
	r := s.r
	out, back := sim.DrawLinks(r)
	if sim.Chance(r, 4) {
		sim.DrawCut(r, &out, &back, 1<<20)
		s.mayBreak = true
	}
	if sim.Chance(r, 4) {
		s.drainAt = time.Duration(1+r.IntN(3000)) * time.Millisecond
	}
	if sim.Chance(r, 8) {
		s.closeAt = time.Duration(1+r.IntN(3000)) * time.Millisecond
		s.mayBreak = true
	}
	a, b := memnet.PipeOver(netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2"), out, back)
	s.clientNC = a
	s.clientBudget, s.srvBudge = drawBudget(r), drawBudget(r)
	ccfg, scfg := drawConfig(r, s.clientBudget), drawConfig(r, s.srvBudge)
	scfg.Handler = func(st *Stream) { s.handle(st, s.server, &s.live) }
	if both != nil {
		ccfg.Bidirectional, scfg.Bidirectional = true, true
		ccfg.Handler = func(st *Stream) { s.handle(st, s.client, &s.clientLive) }
	}
	s.flows = make([]*h2SimFlow, 1+r.IntN(40))
	parked := 0
	for i := range s.flows {
		s.flows[i] = drawH2Flow(r, i, s.resume)
		most := scfg.MaxStreams
		if both != nil && sim.Chance(both, 2) {
			s.flows[i].byServer, most = true, ccfg.MaxStreams
		}
		if s.flows[i].Parked() {
			if parked++; parked > 3 || most > 0 && most < 20 {
				s.flows[i].Unpark() // the others need the slots
			}
		}
	}
	var err error
	if s.server, err = NewServer(b, scfg); err != nil {
		t.Fatal(err)
	}
	if s.client, err = NewClient(a, ccfg); err != nil {
		t.Fatal(err)
	}
	s.drainer = sim.Pick(r, s.client, s.server)
	return s
}

func drawBudget(r *rand.Rand) *Budget {
	return NewBudget(sim.Pick[int64](r, 0, 0, 512<<10, 2<<20, 64<<20))
}

func drawConfig(r *rand.Rand, b *Budget) *Config {
	return &Config{
		Budget:          b,
		IdleTimeout:     time.Hour, // of the rests below none is as long
		StreamWindow:    sim.Pick[int32](r, 0, 0, 1000, 5000, 65535, 1<<20),
		MaxStreamWindow: sim.Pick[int32](r, 0, 0, 100_000, 1<<20),
		ConnWindow:      sim.Pick[int32](r, 0, 0, 65535, 200_000, 1<<20),
		MaxFrameBytes:   sim.Pick[uint32](r, 0, 16384, 20_000),
		MaxStreams:      sim.Pick[uint32](r, 0, 0, 1, 3, 20),
	}
}

// h2SimFlow is a flow with what the server does before it carries it, and the client's patience.
type h2SimFlow struct {
	*sim.Flow
	byServer bool // it asks
	start    time.Duration
	answer   time.Duration // after which the server answers
	how      h2SimAnswer
	patience time.Duration // of the client, with the answer; 0: endless
	failed   error         // why the client has no stream; nil: it had one
	opens    int           // tries
	over     chan struct{}
}

// h2SimAnswer is what the server does with a request.
type h2SimAnswer uint8

const (
	answerYes h2SimAnswer = iota
	answerNo
	answerReset
	answerNever // until the client gives up
)

func drawH2Flow(r *rand.Rand, id int, resume chan struct{}) *h2SimFlow {
	f := &h2SimFlow{Flow: sim.DrawFlow(r, id, sim.Pick(r, 1000, 100_000, 2<<20), resume), over: make(chan struct{})}
	if sim.Chance(r, 2) {
		f.start = time.Duration(r.IntN(4000)) * time.Millisecond
	}
	if sim.Chance(r, 3) {
		f.answer = time.Duration(r.IntN(3000)) * time.Millisecond
	}
	switch r.IntN(12) {
	case 0:
		f.how = answerNo
	case 1:
		f.how = answerReset
	case 2:
		f.how, f.patience = answerNever, time.Duration(1+r.IntN(5000))*time.Millisecond
	case 3:
		f.patience = time.Duration(1+r.IntN(3000)) * time.Millisecond
	}
	return f
}

// h2SimEnd is a stream as an end of a flow.
type h2SimEnd struct{ *Stream }

func (e h2SimEnd) Abort() { e.Reset(Cancel) }

// handle serves a request as its flow says.
func (s *h2Sim) handle(st *Stream, by *Conn, n *atomic.Int64) {
	s.checkSlots(by, n.Add(1))
	e := &h2SimHandled{h2SimEnd: h2SimEnd{st}, live: n}
	defer e.Close()
	id, err := strconv.Atoi(strings.TrimSuffix(st.Request().Authority, ".test:80"))
	if err != nil {
		s.t.Errorf("%s: authority %q", s, st.Request().Authority)
		return
	}
	f := s.flows[id]
	select {
	case <-time.After(f.answer):
	case <-st.Done():
		return
	}
	switch f.how {
	case answerNo:
		st.Respond(&Header{Status: 503}, true)
	case answerReset:
		st.Reset(RefusedStream)
	case answerNever:
		<-st.Done()
	default:
		if st.Respond(&Header{Status: 200}, false) == nil {
			f.RunB(e)
		}
	}
}

// h2SimHandled is an end that a handler has. It is counted until Close, which frees its slot.
type h2SimHandled struct {
	h2SimEnd
	live *atomic.Int64
	once sync.Once
}

func (e *h2SimHandled) Close() error {
	e.once.Do(func() { e.live.Add(-1) })
	return e.h2SimEnd.Close()
}

// checkSlots checks that streams whose work goes on hold their slots (SECURITY.md, rows 1 and 2).
func (s *h2Sim) checkSlots(c *Conn, live int64) {
	if c == nil {
		return // the first request was faster than NewServer
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	limit := int(c.cfg.MaxStreams)
	if n := c.peerOpen + c.peerHeld; n > limit {
		s.t.Errorf("%s: %d streams open or reset with work behind, the limit is %d", s, n, limit)
	}
	if live > int64(2*limit) {
		s.t.Errorf("%s: %d handlers live, twice the limit is %d", s, live, 2*limit)
	}
}

func (s *h2Sim) String() string { return fmt.Sprintf("seed %d", s.seed) }

// asker is the end that opens the flow.
func (s *h2Sim) asker(f *h2SimFlow) *Conn {
	if f.byServer {
		return s.server
	}
	return s.client
}

// carry is the part of a flow that its asker has.
func (s *h2Sim) carry(f *h2SimFlow) {
	defer close(f.over)
	time.Sleep(f.start)
	ctx := context.Background()
	if f.patience > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.patience)
		defer cancel()
	}
	for {
		f.opens++
		st, err := s.open(ctx, f)
		if err == nil {
			f.RunA(h2SimEnd{st})
			return
		}
		var refused *StreamError
		if f.how != answerReset && errors.As(err, &refused) && refused.By == Peer && refused.Code == RefusedStream && s.asker(f).Err() == nil {
			time.Sleep(100 * time.Millisecond) // the server's limit was not known, or its work lags behind
			continue
		}
		f.failed = err
		return
	}
}

func (s *h2Sim) open(ctx context.Context, f *h2SimFlow) (*Stream, error) {
	st, err := s.asker(f).Open(ctx, &Header{Method: "CONNECT", Authority: fmt.Sprintf("%d.test:80", f.ID)}, false)
	if err != nil {
		return nil, err
	}
	resp, err := st.Response(ctx)
	if err == nil && resp.Status != 200 {
		err = fmt.Errorf("status %d", resp.Status)
	}
	if err != nil {
		st.Reset(Cancel) // Close alone would end the way to the server, which may have said yes by now
		st.Close()
		return nil, err
	}
	return st, nil
}

func (s *h2Sim) run() {
	for _, f := range s.flows {
		go s.carry(f) // ends with the flow, which is waited for below
	}
	drained := make(chan struct{})
	go func() { // ends with the connection; waited for below
		defer close(drained)
		if s.drainAt > 0 {
			time.Sleep(s.drainAt)
			s.draining.Store(true)
			s.drainer.Drain(context.Background())
		}
	}()
	if s.closeAt > 0 {
		time.Sleep(s.closeAt)
		sim.Pick(s.r, s.client, s.server).Close()
	}
	s.await(false)
	s.rest("with idle streams", 20*time.Minute) // longer than all pauses of a flow
	close(s.resume)
	s.await(true)
	if s.drainAt == 0 {
		s.rest("after all flows", time.Minute)
	}
	first, second := s.client, s.server
	if sim.Chance(s.r, 2) {
		first, second = second, first
	}
	first.Close()
	time.Sleep(time.Minute)
	second.Close()
	<-drained
	s.checkFlows()
	s.checkNothingLeft()
}

// await waits for the flows that are not parked, or for all.
func (s *h2Sim) await(parked bool) {
	late := time.NewTimer(simDeadline)
	defer late.Stop()
	for _, f := range s.flows {
		if f.Parked() && !parked {
			continue
		}
		select {
		case <-f.over:
		case <-late.C:
			s.hangs(f.String())
		}
	}
	for waited := time.Duration(0); parked && s.live.Load()+s.clientLive.Load() > 0; waited += time.Second {
		if time.Sleep(time.Second); waited > simDeadline {
			s.hangs("a handler")
		}
	}
}

// hangs ends the test with the stacks of all goroutines.
func (s *h2Sim) hangs(what string) {
	var b strings.Builder
	_ = pprof.Lookup("goroutine").WriteTo(&b, 1)
	s.t.Fatalf("%s: hangs: %s\nclient %s\nserver %s\n%s", s, what, books(s.client), books(s.server), b.String())
}

// rest lets the connection come to rest and compares both ends' windows.
func (s *h2Sim) rest(when string, d time.Duration) {
	time.Sleep(d + 5*time.Second)
	synctest.Wait()
	if s.client.Err() != nil || s.server.Err() != nil {
		if !s.mayBreak && s.drainAt == 0 {
			s.t.Errorf("%s: %s: the connection has ended: client %v, server %v", s, when, s.client.Err(), s.server.Err())
		}
		return
	}
	s.compare(when, "client to server", s.client, s.server)
	s.compare(when, "server to client", s.server, s.client)
	if s.t.Failed() {
		s.t.Logf("client %s\nserver %s", books(s.client), books(s.server))
	}
}

// compare checks that what the sender may send is what the receiver expects, and that nothing of the receiver's
// windows is lost.
func (s *h2Sim) compare(when, way string, from, to *Conn) {
	from.mu.Lock()
	defer from.mu.Unlock()
	sends := make(map[uint32]int64)
	for id, st := range from.streams {
		if st.state.canSend() {
			sends[id] = st.send.window
		}
	}
	conn := from.sendWindow.window
	to.mu.Lock()
	defer to.mu.Unlock()
	owed := to.owed.Load()
	if int64(to.recv.window) != conn {
		s.t.Errorf("%s: %s: %s: the sender may send %d bytes, the receiver expects %d", s, when, way, conn, to.recv.window)
	}
	if sum := int64(to.recv.window) + int64(to.recv.pending) + owed; sum != int64(to.recv.size) {
		s.t.Errorf("%s: %s: %s: the connection's window is %d, and %d pending, %d owed; want %d in all",
			s, when, way, to.recv.window, to.recv.pending, owed, to.recv.size)
	}
	if owed > 0 && !to.cfg.Budget.Full() {
		s.t.Errorf("%s: %s: %s: %d bytes of the connection's window are held back, and the budget has room", s, when, way, owed)
	}
	for id, st := range to.streams {
		if !st.state.canReceive() {
			continue
		}
		st.mu.Lock()
		unread := st.queue.bytes()
		if window, ok := sends[id]; !ok || window != int64(st.flow.window) {
			s.t.Errorf("%s: %s: %s: stream %d: the sender may send %d bytes (%v), the receiver expects %d", s, when, way, id, window, ok, st.flow.window)
		}
		if sum := int64(st.flow.window) + int64(st.flow.pending) + unread; sum != int64(st.flow.size) {
			s.t.Errorf("%s: %s: %s: stream %d: window %d, %d pending, %d unread; want %d in all", s, when, way, id, st.flow.window, st.flow.pending, unread, st.flow.size)
		}
		st.mu.Unlock()
	}
}

// bytes is how much is in the queue.
func (q *recvQueue) bytes() (n int64) {
	for _, g := range q.segs[q.head:] {
		n += int64(g.end - g.off)
	}
	return n
}

// checkFlows checks what became of every flow.
func (s *h2Sim) checkFlows() {
	calm := s.clientBudget.Resets()+s.srvBudge.Resets() == 0
	for _, f := range s.flows {
		var gone *ConnError
		tooLate := errors.Is(f.failed, ErrDraining) || errors.As(f.failed, &gone) && gone.Code == NoError
		mayFail := s.mayBreak || s.draining.Load() && tooLate
		whole := f.how == answerYes && f.Plain() && !mayFail && f.failed == nil && (calm || f.Patient())
		for name, w := range map[string]*sim.Way{"up": &f.Up, "down": &f.Down} {
			if wrong := w.Check(whole); wrong != "" {
				s.t.Errorf("%s: flow %d %s: %s\n%v", s, f.ID, name, wrong, f)
			}
		}
		if f.failed != nil && f.how == answerYes && f.patience == 0 && !mayFail {
			s.t.Errorf("%s: flow %d has no stream after %d tries: %v", s, f.ID, f.opens, f.failed)
		}
	}
}

// checkNothingLeft checks the books of two connections that are closed.
func (s *h2Sim) checkNothingLeft() {
	time.Sleep(time.Minute)
	synctest.Wait()
	for name, c := range map[string]*Conn{"client": s.client, "server": s.server} {
		c.mu.Lock()
		if len(c.streams)+c.peerOpen+c.peerHeld+c.peerTail+c.ownOpen+len(c.unread) > 0 || !c.ring.empty() || c.busy {
			s.t.Errorf("%s: the %s has left %s", s, name, c.booksLocked())
		}
		c.mu.Unlock()
		if used := c.cfg.Budget.Used(); used != 0 {
			s.t.Errorf("%s: the %s's budget counts %d bytes when all is over", s, name, used)
		}
		if n := len(c.cfg.Budget.Conns()); n != 0 {
			s.t.Errorf("%s: the %s's budget has %d connections when all is over", s, name, n)
		}
		select {
		case <-c.readDone:
		default:
			s.t.Errorf("%s: the %s still reads", s, name)
		}
	}
	if n := s.live.Load() + s.clientLive.Load(); n != 0 {
		s.t.Errorf("%s: %d handlers live when all is over", s, n)
	}
}

func books(c *Conn) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.booksLocked()
}

// booksLocked describes a connection. Called with mu held.
func (c *Conn) booksLocked() string {
	var b strings.Builder
	fmt.Fprintf(&b, "err %v; %d streams, %d own, %d peer's open, %d held, %d tails, %d unread; send window %d, receive %+v, owed %d; budget %d of %d; busy %v flushing %v ctrl %d ring %v",
		c.err, len(c.streams), c.ownOpen, c.peerOpen, c.peerHeld, c.peerTail, len(c.unread), c.sendWindow.window, c.recv, c.owed.Load(),
		c.cfg.Budget.Used(), c.cfg.Budget.Limit(), c.busy, c.flushing, len(c.ctrl), !c.ring.empty())
	for id, st := range c.streams {
		st.mu.Lock()
		fmt.Fprintf(&b, "\n  %d %s: send window %d, left to write %d, active %v, in flight %v, queued %v; receive %+v, unread segments %d, eof %v",
			id, st.state, st.send.window, len(st.out.p), st.out.active, st.out.inFlight, st.out.queued, st.flow, len(st.queue.segs)-st.queue.head, st.eof)
		st.mu.Unlock()
	}
	return b.String()
}

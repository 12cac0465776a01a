package tunneltest

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"culvert/pki/spiffe"
	"culvert/tunnel"
	"culvert/tunnel/h2"
	"culvert/tunnel/tunneltest/memnet"
	"culvert/tunnel/tunneltest/sim"
)

// simFound are the seeds of TestSim that have ever failed.
var simFound = []sim.Found{
	{Seed: 99, What: "a hop that allows few streams refused a flow on three new connections, one after the other"},
}

// TestSim sends flows that are drawn by a seed through gateways on a network with faults, and checks SECURITY.md's
// goal 9: streams are byte-exact, a cut is no clean end and no clean end a cut, windows are conserved, no more is
// dialled than streams are allowed, each flow leaves one record that says the right thing, and nothing is left.
func TestSim(t *testing.T) {
	sim.Run(t, simFound, func(t *testing.T, seed uint64) { newPairSim(t, seed).run() })
}

// The ways in which gateways stand behind each other.
const (
	simPair   = iota // entry, exit
	simRelay         // entry, a gateway that passes streams on, exit
	simNested        // a tunnel from entry to exit within the tunnel to the gateway between
	simLayouts
)

// simMiddle is the address of the gateway between.
const simMiddle = "10.0.0.3"

// simPorts is where the destinations' ports begin; a flow's own is its number more.
const simPorts = 20_000

// simNode is one gateway of a simulation.
type simNode struct {
	name   string
	g      *tunnel.Gateway
	cfg    *tunnel.Config
	budget *h2.Budget
	id     atomic.Pointer[Identity]
	log    simLog
}

// simRun is one seed.
type simRun struct {
	t      *testing.T
	seed   uint64
	r      *rand.Rand
	net    *memnet.Net
	layout int
	nodes  []*simNode // entry first
	flows  []*simFlow
	resume chan struct{}

	hopOut, hopBack memnet.Link
	maxStreams      uint32 // of the exit
	mayBreak        bool   // flows that stand may be cut
	mayRefuse       bool   // flows may be refused, for a reason that is not theirs

	dialling  atomic.Int64 // by the exit, to destinations
	accepting sync.WaitGroup
}

// simFlow is a flow with its destination and the app's patience.
type simFlow struct {
	*sim.Flow
	start    time.Duration
	dest     simDest
	links    [2]memnet.Link // of the destination's connection
	app      [2]memnet.Link
	cut      bool          // one of them breaks
	patience time.Duration // of the app, with the opening; 0: endless
	early    bool          // the app does not wait for the opening
	err      error         // of the opening
	over     chan struct{}
}

// simDest is what is at a flow's destination.
type simDest uint8

const (
	destServes simDest = iota
	destRefuses
	destSilent
)

func newPairSim(t *testing.T, seed uint64) *simRun {
	s := &simRun{t: t, seed: seed, r: sim.Rand(seed, 3), net: memnet.New(), resume: make(chan struct{})}
	r := s.r
	s.layout = r.IntN(simLayouts)
	s.drawHop()
	s.flows = make([]*simFlow, 1+r.IntN(25))
	parked := 0
	for i := range s.flows {
		f := drawSimFlow(r, i, s.resume)
		if f.Parked() {
			if parked++; parked > 3 {
				f.Unpark()
			}
		}
		f.early = f.patience == 0 && sim.Chance(sim.Rand(seed, 100+uint64(i)), 3) // r goes on as if this were not drawn
		s.flows[i] = f
	}
	s.net.Over(s.links)
	ca := NewCA(t)
	exit := &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "mesh", Kind: tunnel.KindHBONE, Address: ExitListen}},
		Routes:    []tunnel.RouteConfig{{Listeners: []string{"mesh"}, Destinations: []string{"local"}}},
	}
	entry := &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: appsListener, Kind: tunnel.KindSOCKS5, Address: "127.0.0.1:1080"}},
		Hops:      map[string]tunnel.HopConfig{"exit": {Address: ExitListen}, "middle": {Address: simMiddle + ":15008"}},
		Routes:    []tunnel.RouteConfig{{Listeners: []string{appsListener}, Via: []string{"exit"}}},
	}
	middle := &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "mesh", Kind: tunnel.KindHBONE, Address: simMiddle + ":15008"}},
		Hops:      map[string]tunnel.HopConfig{"exit": {Address: ExitListen}},
		Routes:    []tunnel.RouteConfig{{Listeners: []string{"mesh"}, Via: []string{"exit"}}},
	}
	switch s.layout {
	case simRelay:
		entry.Routes[0].Via = []string{"middle"}
	case simNested:
		entry.Routes[0].Via = []string{"middle", "exit"}
		middle.Routes[0] = tunnel.RouteConfig{Listeners: []string{"mesh"}, Destinations: []string{ExitListen}}
	}
	nodes := []*simNode{s.newNode(ca, "exit", ExitAddr, exit)}
	if s.layout != simPair {
		nodes = append([]*simNode{s.newNode(ca, "middle", simMiddle, middle)}, nodes...)
	}
	s.nodes = append([]*simNode{s.newNode(ca, "entry", EntryAddr, entry)}, nodes...)
	return s
}

// drawHop draws the links between gateways and what they make possible.
func (s *simRun) drawHop() {
	r := s.r
	s.hopOut, s.hopBack = sim.DrawLinks(r)
	if s.hopOut.BufferBytes == 1000 {
		s.hopOut.BufferBytes, s.hopBack.BufferBytes = 0, 0
	}
	// Opening has time-outs, which a slow link reaches.
	s.mayRefuse = len(s.hopOut.Stalls)+len(s.hopBack.Stalls) > 0 || s.hopOut.BufferBytes > 0 || s.hopOut.BytesPerSecond > 0
	if sim.Chance(r, 5) {
		sim.DrawCut(r, &s.hopOut, &s.hopBack, 1<<20)
		s.mayBreak = true
	}
	s.maxStreams = sim.Pick[uint32](r, h2.DefaultMaxStreams, h2.DefaultMaxStreams, 20, 3)
}

func drawSimFlow(r *rand.Rand, id int, resume chan struct{}) *simFlow {
	f := &simFlow{Flow: sim.DrawFlow(r, id, sim.Pick(r, 1000, 100_000, 1<<20), resume), over: make(chan struct{})}
	if sim.Chance(r, 2) {
		f.start = time.Duration(r.IntN(4000)) * time.Millisecond
	}
	switch r.IntN(12) {
	case 0:
		f.dest = destRefuses
	case 1:
		f.dest = destSilent
	}
	f.links[0], f.links[1] = sim.DrawLinks(r)
	f.app[0], f.app[1] = sim.DrawLinks(r)
	if sim.Chance(r, 4) {
		f.links[0].Connect = time.Duration(r.IntN(5000)) * time.Millisecond
	}
	if sim.Chance(r, 15) {
		l := sim.Pick(r, &f.links, &f.app)
		sim.DrawCut(r, &l[0], &l[1], 100_000)
		f.cut = true
	}
	if sim.Chance(r, 6) {
		f.patience = time.Duration(1+r.IntN(3000)) * time.Millisecond
	}
	return f
}

// links are those of a connection that a gateway makes.
func (s *simRun) links(_ netip.Addr, to netip.AddrPort) (out, back memnet.Link) {
	if i := int(to.Port()) - simPorts; i >= 0 && i < len(s.flows) {
		return s.flows[i].links[0], s.flows[i].links[1]
	}
	return s.hopOut, s.hopBack
}

func (s *simRun) newNode(ca *CA, name, addr string, cfg *tunnel.Config) *simNode {
	r := s.r
	n := &simNode{name: name, cfg: cfg, budget: h2.NewBudget(sim.Pick[int64](r, 0, 0, 2<<20, 64<<20))}
	if n.budget.Limit() > 0 && n.budget.Limit() < 64<<20 {
		s.mayRefuse = true
	}
	n.id.Store(ca.Issue(s.t, "cluster.local", "default", name))
	limits := h2.Config{
		StreamWindow:    sim.Pick[int32](r, 0, 0, 1000, 5000, 65535, 1<<20),
		MaxStreamWindow: sim.Pick[int32](r, 0, 0, 100_000, 1<<20),
		ConnWindow:      sim.Pick[int32](r, 0, 0, 65535, 200_000, 1<<20),
		MaxFrameBytes:   sim.Pick[uint32](r, 0, 16384, 20_000),
		MaxStreams:      s.maxStreams,
	}
	n.g = NewGateway(s.t, s.net, addr, n.id.Load(), cfg, nil, func(env *tunnel.Env) {
		env.H2, env.Budget, env.Log = limits, n.budget, slog.New(&n.log)
		env.Self = func() spiffe.ID { return n.id.Load().Self() }
		env.ServerTLS = func(l string) *tls.Config { return n.id.Load().ServerTLS(l) }
		env.ClientTLS = func(h *tunnel.Hop) *tls.Config { return n.id.Load().ClientTLS(h) }
		if name == "exit" {
			dial := env.Dial
			env.Dial = func(ctx context.Context, to netip.AddrPort) (net.Conn, error) { return s.dial(ctx, dial, to) }
		}
	}, &n.log)
	return n
}

// dial is the exit's way to destinations. A stream that is gone holds its slot until its dial has ended
// (SECURITY.md, rows 1 and 2), so there are never more dials than slots.
func (s *simRun) dial(ctx context.Context, dial func(context.Context, netip.AddrPort) (net.Conn, error), to netip.AddrPort) (net.Conn, error) {
	n := s.dialling.Add(1)
	defer s.dialling.Add(-1)
	if most := int64(s.maxStreams) * int64(s.net.Dials(netip.MustParseAddrPort(ExitListen))); n > most {
		s.t.Errorf("%s: %d dials at once, all connections together may have %d streams", s, n, most)
	}
	return dial(ctx, to)
}

// simEnd is a connection as an end of a flow.
type simEnd struct{ *memnet.Conn }

func (e simEnd) Abort() {
	_ = e.SetLinger(0)
	_ = e.Close() // it may be closed
}

// serve makes the destination of a flow, until stop is closed.
func (s *simRun) serve(f *simFlow, stop <-chan struct{}) {
	addr := netip.AddrPortFrom(netip.MustParseAddr(ExitAddr), uint16(simPorts+f.ID))
	switch f.dest {
	case destRefuses:
		return
	case destSilent:
		s.net.Silence(addr)
		return
	}
	l, err := s.net.Listen(addr.String())
	if err != nil {
		s.t.Fatal(err)
	}
	s.accepting.Go(func() { // ends with stop and the connections; waited for at the end
		go func() { // ends with stop
			<-stop
			l.Close()
		}()
		var served atomic.Int64
		l.Serve(func(c *memnet.Conn) {
			if served.Add(1) > 1 {
				// A flow is asked for again when a connection dies before the answer that had served others.
				if !s.mayBreak {
					s.t.Errorf("%s: flow %d has reached its destination twice", s, f.ID)
				}
				simEnd{c}.Abort()
				return
			}
			f.RunB(simEnd{c})
		})
	})
}

// carry is the app's part of a flow.
func (s *simRun) carry(f *simFlow) {
	defer close(f.over)
	time.Sleep(f.start)
	ctx := context.Background()
	if f.patience > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.patience)
		defer cancel()
	}
	target, err := tunnel.ParseAuthority(f.target())
	if err != nil {
		s.t.Errorf("%s: %v", s, err)
		return
	}
	source := netip.AddrPortFrom(netip.MustParseAddr(EntryAddr), uint16(simPorts+f.ID))
	app, end := s.net.PipeOver(source, netip.MustParseAddrPort("127.0.0.1:1080"), f.app[0], f.app[1])
	var running sync.WaitGroup
	if f.early {
		running.Go(func() { f.RunA(simEnd{app}) }) // ends with the flow, and is waited for
	}
	f.err = carry(ctx, s.nodes[0].g, appsListener, source, target, end, f.early)
	switch {
	case f.err != nil && f.early:
		simEnd{end}.Abort()
	case f.err != nil:
		_ = app.Close()
		_ = end.Close()
	case !f.early:
		f.RunA(simEnd{app})
	}
	running.Wait()
}

func (s *simRun) String() string {
	return fmt.Sprintf("seed %d (layout %d)", s.seed, s.layout)
}

func (s *simRun) run() {
	stop := make(chan struct{})
	for _, f := range s.flows {
		s.serve(f, stop)
		go s.carry(f) // ends with the flow, which is waited for below
	}
	var events sync.WaitGroup
	s.drawEvents(&events)
	s.await(false)
	close(s.resume)
	s.await(true)
	events.Wait()
	s.rest()
	for _, n := range s.nodes {
		n.g.Close()
	}
	close(stop)
	s.accepting.Wait()
	s.checkFlows()
	s.checkNothingLeft()
}

// drawEvents lets things happen in the middle.
func (s *simRun) drawEvents(events *sync.WaitGroup) {
	at := func() time.Duration { return time.Duration(1+s.r.IntN(4000)) * time.Millisecond }
	do := func(after time.Duration, what func()) {
		events.Go(func() { // ends with what; waited for by run
			time.Sleep(after)
			what()
		})
	}
	if sim.Chance(s.r, 6) {
		s.mayBreak = true
		hop := netip.MustParseAddrPort(sim.Pick(s.r, ExitListen, simMiddle+":15008"))
		do(at(), func() { s.net.Cut(hop) })
	}
	if sim.Chance(s.r, 5) {
		n, patience := sim.Pick(s.r, s.nodes...), sim.Pick(s.r, simDeadline, time.Second)
		s.mayRefuse = true
		if patience < simDeadline {
			s.mayBreak = true
		}
		do(at(), func() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			_ = n.g.Drain(ctx) // whether it had to cut is seen in the flows
		})
	}
	if sim.Chance(s.r, 4) {
		n := sim.Pick(s.r, s.nodes...)
		do(at(), func() {
			if err := n.g.Reload(context.Background(), n.cfg); err != nil && tunnel.CauseOf(err) != tunnel.CauseDraining {
				s.t.Errorf("%s: reload of the %s: %v", s, n.name, err)
			}
		})
	}
	if sim.Chance(s.r, 4) {
		n := sim.Pick(s.r, s.nodes...)
		next := (&CA{n.id.Load().ca.cert, n.id.Load().ca.key}).Issue(s.t, "cluster.local", "default", n.name+"-2")
		do(at(), func() { n.id.Store(next) })
	}
}

// simDeadline is by when everything must be over, however slow the links: then something hangs.
const simDeadline = 12 * time.Hour

// await waits for the flows that are not parked, or for all.
func (s *simRun) await(parked bool) {
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
	for waited := time.Duration(0); parked && s.active() > 0; waited += time.Second {
		if time.Sleep(time.Second); waited > simDeadline {
			s.hangs("a flow within the gateways")
		}
	}
}

// active is how many flows the gateways have; those that are tunnels for the connections of others do not count.
func (s *simRun) active() (n int64) {
	for _, node := range s.nodes {
		if s.layout != simNested || node.name != "middle" {
			n += node.g.Stats().Active
		}
	}
	return n
}

// hangs ends the test with the stacks of all goroutines.
func (s *simRun) hangs(what string) {
	var b strings.Builder
	_ = pprof.Lookup("goroutine").WriteTo(&b, 1)
	s.t.Fatalf("%s: hangs: %s\n%s", s, what, b.String())
}

// rest lets everything come to rest and compares the windows of connections between gateways.
func (s *simRun) rest() {
	time.Sleep(time.Minute + 5*time.Second)
	synctest.Wait()
	all := make(map[string]*h2.Conn)
	for _, n := range s.nodes {
		for _, c := range n.budget.Conns() {
			all[c.NetConn().LocalAddr().String()+" "+c.NetConn().RemoteAddr().String()] = c
		}
	}
	for _, c := range all {
		if s.layout == simNested || c.Err() != nil {
			continue // the tunnel within has the addresses of the one around it
		}
		nc := c.NetConn()
		peer := all[nc.RemoteAddr().String()+" "+nc.LocalAddr().String()]
		if peer == nil {
			s.t.Errorf("%s: a connection from %v to %v has no other end", s, nc.LocalAddr(), nc.RemoteAddr())
			continue
		}
		if sends, receives := c.Stats(), peer.Stats(); sends.SendWindow != receives.RecvWindow {
			s.t.Errorf("%s: from %v to %v %d bytes may be sent, and %d are expected", s, nc.LocalAddr(), nc.RemoteAddr(), sends.SendWindow, receives.RecvWindow)
		}
	}
}

// checkNothingLeft checks the books when all gateways are closed.
func (s *simRun) checkNothingLeft() {
	time.Sleep(time.Minute)
	synctest.Wait()
	for _, n := range s.nodes {
		if st := n.g.Stats(); st.Active != 0 || st.Connections != 0 || st.Transports != 0 || len(n.g.Flows(10)) != 0 {
			s.t.Errorf("%s: the %s has left %d flows, %d connections, %d transports", s, n.name, st.Active, st.Connections, st.Transports)
		}
		if used, conns := n.budget.Used(), len(n.budget.Conns()); used != 0 || conns != 0 {
			s.t.Errorf("%s: the %s's budget counts %d bytes and %d connections when all is over", s, n.name, used, conns)
		}
	}
	for _, c := range s.net.Open() {
		s.t.Errorf("%s: the end of a connection from %v to %v was left open", s, c.LocalAddr(), c.RemoteAddr())
	}
	if n := s.dialling.Load(); n != 0 {
		s.t.Errorf("%s: %d dials are left", s, n)
	}
}

// checkFlows checks what became of every flow, and its records.
func (s *simRun) checkFlows() {
	calm := true
	for _, n := range s.nodes {
		calm = calm && n.budget.Resets() == 0
	}
	for _, f := range s.flows {
		whole := f.err == nil && f.Plain() && !f.cut && !s.mayBreak && calm
		for name, w := range map[string]*sim.Way{"up": &f.Up, "down": &f.Down} {
			if wrong := w.Check(whole); wrong != "" {
				s.t.Errorf("%s: flow %d %s: %s\n%v\n%s", s, f.ID, name, wrong, f, s.told(f))
			}
		}
		leaves := f.early && (!f.Plain() || f.cut) // maybe before the answer
		if f.err != nil && f.dest == destServes && f.patience == 0 && !s.mayBreak && !s.mayRefuse && !leaves {
			s.t.Errorf("%s: flow %d was not opened: %v\n%s", s, f.ID, f.err, s.told(f))
		}
		s.checkRecords(f, whole)
	}
}

// told is what the gateways say of a flow.
func (s *simRun) told(f *simFlow) string {
	var b strings.Builder
	for _, n := range s.nodes {
		fmt.Fprintf(&b, "%s: %+v\n", n.name, n.log.of(f.target()))
	}
	return b.String()
}

func (f *simFlow) target() string { return fmt.Sprintf("%s:%d", ExitAddr, simPorts+f.ID) }

// checkRecords checks that each gateway has one record of a flow at most, the entry one, and what it says.
func (s *simRun) checkRecords(f *simFlow, whole bool) {
	for i, n := range s.nodes {
		if s.layout == simNested && n.name == "middle" {
			continue // it sees tunnels only
		}
		list := n.log.of(f.target())
		switch {
		case i == 0 && len(list) != 1, whole && len(list) != 1:
			s.t.Errorf("%s: the %s has %d records of flow %d (%v), want one", s, n.name, len(list), f.ID, f.err)
		case whole && (list[0].reason != "" || list[0].in != int64(f.Up.Size) || list[0].out != int64(f.Down.Size)):
			s.t.Errorf("%s: the %s says of flow %d, which ended well: %+v; want %d and %d bytes", s, n.name, f.ID, list[0], f.Up.Size, f.Down.Size)
		}
		for _, rec := range list {
			if !s.causeFits(f, rec.reason) {
				s.t.Errorf("%s: the %s says of flow %d (%v): %+v\n%v\n%s", s, n.name, f.ID, f.err, rec, f, s.told(f))
			}
		}
	}
	if n := s.nodes[len(s.nodes)-1]; f.err == nil && !s.mayBreak && len(n.log.of(f.target())) != 1 {
		s.t.Errorf("%s: the exit has not one record of flow %d, which stood", s, f.ID)
	}
}

// causeFits reports whether a record's reason is one that what happened to the flow can have; "" is a good end.
func (s *simRun) causeFits(f *simFlow, reason string) bool {
	fits := []string{""}
	if f.err != nil {
		fits = nil
	}
	if s.mayBreak || s.mayRefuse || f.cut {
		fits = append(fits, "unavailable", "draining", "full", "timeout", "hop-alert", "hop-tls", "source-gone", "refused")
	}
	if !f.Plain() || f.cut || s.mayBreak || s.mayRefuse {
		fits = append(fits, "source-broke", "destination-broke", "cut")
	}
	switch {
	case f.dest == destRefuses:
		fits = append(fits, "refused")
	case f.dest == destSilent:
		fits = append(fits, "timeout")
	}
	if f.early && !f.Plain() {
		fits = append(fits, "source-gone", "")
	}
	if f.patience > 0 {
		fits = append(fits, "source-gone")
		if f.err != nil {
			fits = append(fits, "", "source-broke") // it stood at the exit when the app gave up
		}
	}
	for _, c := range fits {
		if c == reason {
			return true
		}
	}
	return false
}

// simRecord is what a gateway says of a flow.
type simRecord struct {
	reason, err string
	in, out     int64
}

// simLog is a slog.Handler that keeps the records of flows by their destinations.
type simLog struct {
	mu      sync.Mutex
	records map[string][]simRecord
}

func (l *simLog) Enabled(context.Context, slog.Level) bool { return true }
func (l *simLog) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *simLog) WithGroup(string) slog.Handler            { return l }

func (l *simLog) Handle(_ context.Context, r slog.Record) error {
	var rec simRecord
	dst := ""
	r.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "dst":
			dst = a.Value.String()
		case "reason":
			rec.reason = a.Value.String()
		case "err":
			rec.err = a.Value.String()
		case "bytes_in":
			rec.in = a.Value.Int64()
		case "bytes_out":
			rec.out = a.Value.Int64()
		}
		return true
	})
	if r.Message == "flow" {
		l.mu.Lock()
		if l.records == nil {
			l.records = make(map[string][]simRecord)
		}
		l.records[dst] = append(l.records[dst], rec)
		l.mu.Unlock()
	}
	return nil
}

func (l *simLog) of(dst string) []simRecord {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.records[dst]
}

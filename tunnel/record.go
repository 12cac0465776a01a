package tunnel

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"time"

	"culvert/pki/spiffe"
)

// begin enters a flow into the books, with the plan that decides it.
func (g *Gateway) begin(f *Flow) {
	f.prepare(g, g.lastID.Add(1), g.plan.Load())
	g.stats.flows.add(1)
	g.stats.active.add(1)
	g.flows.add(f)
}

// admit refuses what this gateway has no room for, whatever it is.
func (g *Gateway) admit(f *Flow) error {
	switch {
	case f.Request.Fault != nil:
		return f.Request.Fault
	case g.cutting.Load(), g.draining.Load() && !f.Taken:
		return errDraining
	case g.env.Budget != nil && g.env.Budget.Full():
		return &Error{Cause: CauseFull, Reason: "the memory for streams is used up; give the gateway more, or limit its listeners"}
	case f.passed != nil && f.passed.again:
		return errAgain(f.passed)
	case f.passed != nil && f.passed.hops >= maxHops:
		return &Error{Cause: CauseLoop, Reason: "it has passed " + strconv.Itoa(maxHops) + " gateways or more"}
	}
	return nil
}

// record takes a flow off the books, writes its one line and tells who wants to know. err is why it was
// refused, or ended before its time. It is the last that happens to a flow.
func (g *Gateway) record(f *Flow, err error) {
	g.flows.remove(f)
	f.leaveLimits()
	for _, pair := range f.entered {
		g.loops.leave(pair)
	}
	cause := CauseOf(err)
	f.endLease(cause)
	in, out := f.in.carried(), f.out.carried()
	g.stats.ended[cause].add(1)
	g.stats.bytesIn.add(in)
	g.stats.bytesOut.add(out)
	first := f.firstByte()
	if first > 0 {
		g.stats.firstByte.observe(first)
	}
	if log := g.env.Log; log.Enabled(context.Background(), slog.LevelInfo) {
		attrs := make([]slog.Attr, 0, maxRecordAttrs)
		attrs = append(attrs, slog.String("flow", f.name()), slog.String("listener", f.Listener), slog.String("way", f.Way))
		attrs = f.describe(attrs, err)
		if err != nil {
			attrs = append(attrs, slog.String("reason", cause.String()), slog.String("err", err.Error()))
		}
		if f.marked(markAudit) {
			attrs = append(attrs, slog.Bool("audit", true))
		}
		if f.shown != nil && f.shown.status != 0 {
			attrs = append(attrs, slog.Int("status", f.shown.status))
		}
		attrs = append(attrs, slog.Int64("bytes_in", in), slog.Int64("bytes_out", out))
		if in, out, lost, ok := f.packets(); ok {
			attrs = append(attrs, slog.Int64("packets_in", in), slog.Int64("packets_out", out), slog.Int64("packets_lost", lost))
		}
		attrs = f.timings(append(attrs, slog.Duration("dur", time.Since(f.started))), first)
		attrs = f.question(attrs)
		log.LogAttrs(context.Background(), slog.LevelInfo, "flow", attrs...)
	}
	if f.Ended != nil {
		f.Ended()
	}
	if f.from != nil {
		f.from.streamEnded()
	}
	g.stats.active.add(-1)
	g.noteIdle()
}

// refusal returns the gateway whose no err is, "" for this one, and the rule that it names.
func refusal(err error) (by, rule string) {
	var own *Error
	var refused *RefusedError
	switch {
	case errors.As(err, &own): // first, as in CauseOf
		return "", own.Rule
	case errors.As(err, &refused):
		return refused.refuser()
	}
	return "", ""
}

// describe appends who the flow is of and where it goes; what is not known is left out. The rule is the one
// that refused it for err, here or, then "by" says where, at another gateway, else the one that let it pass.
func (f *Flow) describe(attrs []slog.Attr, err error) []slog.Attr {
	add := func(key, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(key, value))
		}
	}
	if f.UDP {
		add("network", "udp")
	}
	add("trace", f.trace.String())
	if f.shown != nil {
		add("next_trace", f.shown.next.String())
	}
	if f.Source.IsValid() {
		add("src", f.Source.String())
	}
	add("peer", f.Peer.String())
	if f.shown != nil {
		add("asked", f.shown.wanted.String())
	}
	if f.Target.IsName() {
		add("host", f.Target.String())
	}
	if dst := f.dialled(); !f.Target.IsName() {
		add("dst", f.Target.String())
	} else if at := f.endpointAt(); at.IsValid() && f.via.inner == 0 { // else it went to another port of that
		add("dst", at.String())
	} else if dst.IsValid() && (f.via == nil || f.via.direct()) {
		add("dst", dst.String()) // of a name; beyond a hop only the last one knows
	}
	if f.passed != nil {
		add("via", f.passed.list)
	}
	if f.via != nil {
		add("hop", f.via.leadsTo())
	}
	if f.lease != nil {
		add("endpoint", f.lease.Endpoint().String())
	}
	add("hop_id", f.hopID(err).String())
	by, rule := refusal(err)
	add("by", by)
	if by == "" {
		rule = cmp.Or(rule, f.rule)
	}
	add("rule", rule)
	return attrs
}

const (
	// maxRecordAttrs is how many attributes most records have at most, so that their list is made once.
	maxRecordAttrs = 28
	// maxRecordAddrs is how many addresses of a name a record has; of the rest it tells the number.
	maxRecordAddrs = 16
)

// asked is what policy has said of a flow when it was accepted.
type asked uint8

const (
	askedNone  asked = iota // nothing: the flow was refused before
	askedAllow              // it may pass; what has become of it after is another matter
	askedDeny
)

// String returns the word that records have for a.
func (a asked) String() string {
	switch a {
	case askedAllow:
		return "allow"
	case askedDeny:
		return "deny"
	}
	return "none"
}

// hopID is who the hop is by which the flow went on, or the agent, or who of these refused it, as the certificate has
// proved; zero: none, or not reached.
func (f *Flow) hopID(err error) spiffe.ID {
	var refused *RefusedError
	if errors.As(err, &refused) {
		return refused.ID
	}
	if f.in.dst == nil && f.shown != nil {
		return f.shown.hopID
	}
	return hopOf(f.in.dst)
}

// hopOf is who the last hop is that c, the opened side of a flow, goes by, zero for none.
func hopOf(c Conn) spiffe.ID {
	switch s := streamUnder(c).(type) {
	case *pooledStream:
		return s.from.Peer()
	case *agentStream:
		return s.from.Peer()
	}
	return spiffe.ID{}
}

// question appends what policy has said of the flow, and what it was asked besides that which a record has anyhow, so
// that `gateway policy replay` can ask it, or another one, the same again. What ask fills in stands here too.
func (f *Flow) question(attrs []slog.Attr) []slog.Attr {
	attrs = append(attrs, slog.String("decided", f.asked.String()))
	if f.asked == askedNone {
		if f.shown != nil {
			attrs = f.shown.request(attrs)
		}
		return attrs
	}
	attrs = append(attrs, slog.String("self", f.self.String()))
	if w := f.plan.workloadOf(Target{Addr: f.judged()}); w.Name != f.self.ServiceAccount() || w.Namespace != f.self.Namespace() {
		attrs = append(attrs, slog.String("workload", w.Namespace+"/"+w.Name))
	}
	if f.local {
		attrs = append(attrs, slog.Bool("local", true))
	}
	if f.shown != nil {
		attrs = f.shown.question(attrs)
	}
	if f.via == nil {
		return attrs
	}
	if f.via.fromAny {
		attrs = append(attrs, slog.String("open", f.via.name))
	}
	if f.from != nil && f.from.inside != nil {
		attrs = append(attrs, slog.String("outer", f.from.inside.form+" "+f.from.inside.subject()))
	}
	if port := f.judgedPort(); port != f.Target.Port {
		attrs = append(attrs, slog.Int("port", int(port)))
	}
	if f.resolves() {
		attrs = append(attrs, slog.Bool("unresolved", true))
		if n := len(f.addrs()); n > 1 || n == 1 && f.addrs()[0] != f.dialled().Addr() {
			attrs = append(attrs, slog.String("addrs", addrList(f.addrs())))
		}
	}
	return attrs
}

// judged is the address that policy was asked about; of a name the one that was dialled, or the first. It is not valid
// where there is none.
func (f *Flow) judged() netip.Addr {
	if len(f.addrs()) == 0 {
		return f.Target.Addr
	}
	if dst := f.dialled().Addr(); slices.Contains(f.addrs(), dst) {
		return dst
	}
	return f.addrs()[0]
}

// addrList has commas between addresses, and "+N" at its end for those that are too many.
func addrList(addrs []netip.Addr) string {
	var b []byte
	for i, a := range addrs {
		if i > 0 {
			b = append(b, ',')
		}
		if i == maxRecordAddrs {
			return string(strconv.AppendInt(append(b, '+'), int64(len(addrs)-i), 10))
		}
		b = a.AppendTo(b)
	}
	return string(b)
}

// dialled is the address that the opened side leads to, of the destination or of the hop's connection; not
// valid where the flow did not stand.
func (f *Flow) dialled() netip.AddrPort {
	if f.shown != nil && f.shown.dialled.IsValid() {
		return f.shown.dialled
	}
	if f.in.dst == nil {
		return netip.AddrPort{}
	}
	return addrPort(f.in.dst.RemoteAddr())
}

// name is how records and /flows call the flow.
func (f *Flow) name() string { return strconv.FormatUint(f.id, 16) }

// FlowInfo is a live flow, for people to look at.
type FlowInfo struct {
	Flow     string    `json:"flow"`
	Listener string    `json:"listener"`
	Way      string    `json:"way"`
	Network  string    `json:"network,omitempty"` // "udp"; "": TCP
	Src      string    `json:"src,omitempty"`
	Peer     string    `json:"peer,omitempty"`
	Target   string    `json:"target"`
	Hop      string    `json:"hop,omitempty"`
	Agent    string    `json:"agent,omitempty"`
	Endpoint string    `json:"endpoint,omitempty"`
	Rule     string    `json:"rule,omitempty"`
	Trace    string    `json:"trace,omitempty"`
	Stands   bool      `json:"stands"`
	BytesIn  int64     `json:"bytes_in"`
	BytesOut int64     `json:"bytes_out"`
	Started  time.Time `json:"started"`
	Audit    bool      `json:"audit,omitempty"`
	// Limits that it counts in, together with other flows of its identity.
	Limits []LimitInfo `json:"limits,omitempty"`
}

// Flows returns up to limit of the live flows, the youngest first.
func (g *Gateway) Flows(limit int) []FlowInfo {
	limit = min(limit, maxListedFlows)
	var list []FlowInfo
	g.flows.each(func(f *Flow) bool {
		list = append(list, f.info())
		return len(list) < limit*flowShards // each shard has its own order
	})
	slices.SortFunc(list, func(a, b FlowInfo) int { return b.Started.Compare(a.Started) })
	return list[:min(len(list), limit)]
}

// info describes f while it is carried by another goroutine: what that goroutine sets is read under the
// lock that it has taken after.
func (f *Flow) info() FlowInfo {
	i := FlowInfo{
		Flow: f.name(), Listener: f.Listener, Way: f.Way, Peer: f.Peer.String(), Started: f.started,
		BytesIn: f.in.carried(), BytesOut: f.out.carried(), Audit: f.marked(markAudit), Limits: f.limits.Load().info(),
	}
	if f.Source.IsValid() {
		i.Src = f.Source.String()
	}
	if f.UDP {
		i.Network = "udp"
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	i.Trace, i.Target = f.trace.String(), f.Target.String()
	if i.Stands = f.in.dst != nil || f.marked(markAnswered); i.Stands { // not stands, as mu is held
		i.Hop, i.Rule = f.via.leadsTo(), f.rule
		if s, ok := streamUnder(f.in.dst).(*agentStream); ok {
			i.Agent = s.from.proof.id.String()
		}
		if f.lease != nil {
			i.Endpoint = f.lease.Endpoint().String()
		}
	}
	return i
}

// maxListedFlows bounds what Flows returns, whatever it is asked for.
const maxListedFlows = 100_000

// flowShards is into how many parts the table of flows is cut, so that opening flows does not queue at
// one lock.
const flowShards = 16

// flowTable holds the live flows in lists made of the flows themselves: entering and leaving costs no
// memory and the same whatever their number.
type flowTable struct {
	shards [flowShards]flowShard
}

type flowShard struct {
	mu   sync.Mutex
	head *Flow // the youngest; guarded by mu
}

func (t *flowTable) shard(f *Flow) *flowShard { return &t.shards[f.id%flowShards] }

func (t *flowTable) add(f *Flow) {
	s := t.shard(f)
	s.mu.Lock()
	f.next = s.head
	if s.head != nil {
		s.head.prev = f
	}
	s.head = f
	s.mu.Unlock()
}

func (t *flowTable) remove(f *Flow) {
	s := t.shard(f)
	s.mu.Lock()
	if f.prev != nil {
		f.prev.next = f.next
	} else {
		s.head = f.next
	}
	if f.next != nil {
		f.next.prev = f.prev
	}
	f.prev, f.next = nil, nil
	s.mu.Unlock()
}

// each calls do for every live flow until it returns false. do runs under a lock that new and ending
// flows take, so it is short and must not end flows itself.
func (t *flowTable) each(do func(*Flow) bool) {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		for f := s.head; f != nil; f = f.next {
			if !do(f) {
				s.mu.Unlock()
				return
			}
		}
		s.mu.Unlock()
	}
}

const (
	// sweepInterval is how often flows are looked at: their idle time and age are exact to it.
	sweepInterval = time.Second
	// maxRenewals is how many flows are renewed at one look, so that ten thousand flows which fall idle
	// together are renewed within some seconds and not all at once.
	maxRenewals = 2000
)

// sweepLoop ends flows that are idle or old, and makes those lean that have fallen silent. No timer runs for
// a flow: its bytes are compared with those at the last look.
func (g *Gateway) sweepLoop() {
	defer g.work.Done()
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			g.sweep(time.Now())
		case <-g.base.Done():
			return
		}
	}
}

func (g *Gateway) sweep(now time.Time) {
	var idle, old, silent []*Flow
	g.flows.each(func(f *Flow) bool {
		t, age := &f.plan.timeouts, now.Sub(f.started)
		n := f.in.carried() + f.out.carried()
		if f.UDP {
			in, out, _, _ := f.packets()
			n += in + out // of which some may be empty
		}
		switch {
		case n != f.seenBytes:
			f.seenBytes, f.seenAt, f.lean = n, age, false
		case !f.lean && len(silent) < maxRenewals && f.stands():
			f.lean = true
			silent = append(silent, f)
		}
		switch {
		case t.Age > 0 && age >= t.Age:
			old = append(old, f)
		case f.idleLimit() > 0 && age-f.seenAt >= f.idleLimit():
			idle = append(idle, f)
		}
		return true
	})
	for _, f := range idle {
		if !f.expire(now.Sub(f.started) - f.seenAt) {
			f.cut(&Error{Cause: CauseIdle, Reason: "no byte in either direction for " + f.idleLimit().String()})
		}
	}
	for _, f := range old {
		f.cut(&Error{Cause: CauseAge, Reason: "it lasted " + f.plan.timeouts.Age.String()})
	}
	for _, f := range silent {
		f.renew()
	}
	g.expire(now)
	g.cutSpent(now)
	g.pool.prune(now)
	g.agents.prune(now)
	if g.trimmer.due(len(silent), g.stats.active.load(), g.numConns(), now) {
		trim()
	}
}

const (
	// trimFlows is how many flows must have fallen silent, or ended, for their memory to be worth a collection.
	trimFlows = 1000
	// trimConn is for how many flows a connection between gateways counts that has ended.
	trimConn = 50
	// trimConns is how many connections must have come for what their handshakes have left to be worth one.
	trimConns = 200
	// trimPause is the shortest time between two such collections.
	trimPause = 10 * time.Second
)

// trimmer sees when many flows have fallen silent or ended, or many connections have come, such as those of agents. What
// opening them has cost, the stacks that renewing
// has set free and what those held that are gone would otherwise stay until the next collection, which an idle
// gateway has every two minutes, and with the process for long after. Owned by sweepLoop.
type trimmer struct {
	silent int       // flows that fell silent since the last trim
	most   int64     // flows that were live at once since then
	live   int64     // at the last look
	fewest int64     // connections that there were at once since the last trim
	at     time.Time // of the last trim
}

// due reports whether memory should be given back to the system now.
func (t *trimmer) due(silent int, flows, conns int64, now time.Time) bool {
	live := flows + trimConn*conns
	t.silent += silent
	t.fewest = min(t.fewest, conns)
	t.most = max(t.most, live)
	calm := silent <= trimFlows/10 && max(t.live-live, live-t.live) <= trimFlows/10 // no more are to come
	t.live = live
	worth := t.silent >= trimFlows || t.most-live >= trimFlows || conns-t.fewest >= trimConns
	if !worth || !calm || now.Sub(t.at) < trimPause {
		return false
	}
	*t = trimmer{most: live, live: live, fewest: conns, at: now}
	return true
}

// numConns is how many connections there are with other gateways.
func (g *Gateway) numConns() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return int64(len(g.servers)) + g.stats.transports.load()
}

func trim() {
	runtime.GC() // pools give up what they hold at the second collection
	debug.FreeOSMemory()
}

package tunnel

import (
	"cmp"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"time"

	"culvert/policy"
	"culvert/tunnel/endpoint"
)

// Accepted is the side on which a flow came in: what it is answered with, and what is relayed then.
type Accepted interface {
	// Accept says yes, once the tunnel stands, and returns the end to relay together with bytes that came
	// with the request and go first. After an error the accepted end is closed.
	Accept(f *Flow) (end Conn, ahead []byte, err error)
	// Refuse says no in the words of the way, and closes.
	Refuse(f *Flow, err error)
	// Gone is closed when nobody waits for an answer any more; nil where that cannot be seen. It is asked
	// only when opening takes long.
	Gone() <-chan struct{}
}

// Carry takes one flow from acceptance to record: decide, open, answer, relay, record. Errors before the
// answer become the answer; errors after it reset both ends; every flow leaves one record. It returns when
// the flow is refused, or some time after it stands: an idle flow needs no goroutine that was used for more
// than waiting, or none at all. Flow.Ended tells when it is over.
func (g *Gateway) Carry(f *Flow, a Accepted) {
	err := g.enter(f, a.Gone)
	if err == nil && f.inspects() {
		g.inspect(f, a)
		return
	}
	var opened Conn
	early := earlyOf(f, a)
	if err == nil {
		opened, err = g.open(f, a.Gone, early)
	}
	f.opened(err)
	if err != nil {
		a.Refuse(f, err)
		g.record(f, err)
		return
	}
	accepted, ahead, err := a.Accept(f)
	if err != nil {
		err = relayCause(err, CauseSourceGone)
		opened.Reset(err)
		g.record(f, err)
		return
	}
	f.relay(accepted, append(ahead, early.left()...), opened)
}

// enter enters a flow into the books and finds out whether it may pass.
func (g *Gateway) enter(f *Flow, gone func() <-chan struct{}) error {
	g.begin(f)
	f.introduce()
	err := g.decide(f)
	if err == nil && !f.resolves() && !f.inspects() { // else openDirect asks, when there are addresses
		err = g.askBefore(f, gone)
	}
	return err
}

// ruleStrict is Error.Rule of a flow that a strict listener refuses.
const ruleStrict = "strict"

// decide finds out whether the flow may pass, and the route that it takes. Every hop decides for itself.
func (g *Gateway) decide(f *Flow) error {
	if err := g.admit(f); err != nil {
		return err
	}
	p := f.plan
	l := p.listeners[f.Listener]
	if l == nil {
		return &Error{Cause: CauseDraining, Reason: "listener " + f.Listener + " is no longer configured"}
	}
	if l.strict {
		return &Error{Cause: CauseDenied, Rule: ruleStrict, Reason: "listener " + f.Listener + " is strict: flows come in by tunnels, not plain; strict: false (--inbound permissive) lets them in"}
	}
	f.local = p.isLocal(f.Target, f.Request.Dialled)
	if found := p.routeOf(l, f); found != nil {
		f.via, f.named = found.route, found.match.names()
		if f.inspects() {
			return nil // policy is asked about what is found in it
		}
		f.lead()
	} else if f.Request.HTTP != nil && f.Peer.IsZero() {
		return l.unrouted(f) // 404 is what says so to a client; policy would ask who it is, and it is nobody
	}
	g.showToken(f)
	if err := g.authorize(f); err != nil {
		return err
	}
	if f.via == nil {
		return l.unrouted(f)
	}
	if l.ofPeers() && f.via.direct() && f.local && !f.named && isMeshPort(f.Target.Port) {
		return &Error{Cause: CauseOwnPort, Reason: "the mesh itself listens on this port of a workload; a route that names the address opens it"}
	}
	if f.resolves() {
		return nil // openDirect asks about the addresses, and does what is due then
	}
	return g.oblige(f)
}

// lead has the flow go where its route leads, if that is elsewhere than it wanted: of a virtual address to its service.
func (f *Flow) lead() {
	to := cmp.Or(f.via.to, f.Target)
	if s := f.plan.vips[to.Addr]; s != nil && f.via.direct() {
		to = Target{Host: s.name, Port: to.Port}
	}
	if to == f.Target && f.via.to == (Target{}) {
		return
	}
	f.show().wanted = f.Target
	f.mu.Lock() // others may look at the flow
	f.Target = to
	f.mu.Unlock()
	f.local, f.named = f.plan.isLocal(f.Target, netip.Addr{}), true
}

// authorize asks policy whether the peer may pass. A route that is open to anybody stands in for an
// identity, and for nothing else: a peer that has one is judged by it.
func (g *Gateway) authorize(f *Flow) error {
	var r policy.Request
	f.ask(&r, f.plan)
	d := f.plan.decide(&r)
	f.rule, f.self, f.asked = d.Rule, r.Self, askedAllow
	g.report(f, &d)
	if !d.Allow {
		f.asked = askedDeny
		return denied(&d)
	}
	f.note(&r, &d)
	f.toAsk(&r, &d)
	return nil
}

// ask fills in what policy is asked about the flow. The record has all of it (see question).
func (f *Flow) ask(r *policy.Request, p *plan) {
	*r = policy.Request{
		Peer: f.Peer, Self: f.g.env.Self(), Host: f.Target.Host, Addr: f.Target.Addr, Port: f.Target.Port,
		Listener: f.Listener, Source: f.Source, Local: f.local, Workload: p.workloadOf(f.Target), Time: time.Now(),
	}
	if f.shown != nil {
		r.SNI, r.Remote, r.BadToken = f.shown.sni, f.shown.remote, f.shown.badToken
		if t := f.shown.token; t != nil {
			r.Token = &t.Token
		}
		r.HTTP = f.shown.http
	}
	if f.via != nil {
		if f.via.fromAny {
			r.Open = f.via.name
		}
		r.Unresolved = f.resolves() // the addresses will be asked about
		r.Port = f.judgedPort()
	}
}

// judgedPort is the port that policy is asked about: of a service that of its endpoint.
func (f *Flow) judgedPort() uint16 {
	s := f.service()
	if s == nil {
		return f.Target.Port
	}
	var e *endpoint.Endpoint
	if f.lease != nil {
		e = f.lease.Endpoint()
	}
	port, _ := s.port(f.Target.Port, e)
	return cmp.Or(port, f.Target.Port)
}

// resolves reports whether the destination is a name that is resolved here, so that policy is asked about its addresses
// as well.
func (f *Flow) resolves() bool { return f.via != nil && f.via.direct() && f.Target.IsName() }

// denied is why policy does not let a flow pass.
func denied(d *policy.Decision) *Error {
	reason := d.Reason
	if place := d.Place.String(); place != "" {
		reason += " (" + place + ")"
	}
	return &Error{Cause: CauseDenied, Policy: d.Policy, Rule: d.Rule, BadToken: d.BadToken, Reason: reason}
}

// decideAgain ends the live flows that policy does not let pass any more.
func (g *Gateway) decideAgain(p *plan) {
	var live []*Flow
	g.flows.each(func(f *Flow) bool {
		live = append(live, f)
		return true
	})
	var list []askedAgain
	for _, f := range live {
		if !f.stands() {
			continue // it looks for itself when it does
		}
		if q := f.decideAgain(p); q != nil {
			list = append(list, askedAgain{f, q})
		}
	}
	g.askAgain(list)
}

// decideAgain ends the flow, which stands, if the policy of p does not let it pass, and else gives it the limits of p. It
// returns who has to be asked again as well, nil for nobody.
func (f *Flow) decideAgain(p *plan) *asks {
	var r policy.Request
	f.ask(&r, p)
	if r.Unresolved {
		r.Addr = f.dialled().Addr()
		r.Workload = p.workloadOf(Target{Addr: r.Addr})
	}
	d := p.decide(&r)
	if !d.Allow {
		f.cut(denied(&d))
		return nil
	}
	f.rebind(p, &r, &d)
	return (*asks)(nil).with(&r, &d)
}

// lookAgain ends the flow, which stands from now on, if it may not pass any more since it was decided about: whoever looks at
// all flows that stand has not seen it.
func (f *Flow) lookAgain() {
	if p := f.g.plan.Load(); p != nil && p != f.plan {
		if q := f.decideAgain(p); q != nil { // a reload did not wait for it
			f.askAgain(f.g.base, q)
		}
		if why := f.agentProblem(p); why != nil { // nor did that
			f.cut(why)
		}
	}
	if f.shown != nil {
		if why := f.tokenProblem(time.Now(), f.g.plan.Load().expiryEnds); why != nil { // Recheck did not wait for it either
			f.cut(why)
		}
	}
}

// report tells, once, what the rules that are not in force yet would have decided.
func (g *Gateway) report(f *Flow, d *policy.Decision) {
	if d.Report == nil || f.marks.Or(markReported)&markReported != 0 {
		return
	}
	g.env.Log.LogAttrs(g.base, slog.LevelWarn, "policy in report", slog.String("flow", strconv.FormatUint(f.id, 16)), slog.String("peer", f.Peer.String()),
		slog.String("dst", f.Target.String()), slog.Bool("allowed", d.Allow), slog.String("rule", d.Report.Rule), slog.String("place", d.Report.Place.String()))
}

// ofPeers reports whether flows come in by tunnels of peers.
func (l *listenerPlan) ofPeers() bool { return l.kind == KindHBONE || l.kind == KindXTun }

// unrouted says why no route takes the flow, with the status that HBONE has for it: where only this
// host's own addresses are destinations, another address is the peer's mistake and a name is not known.
func (l *listenerPlan) unrouted(f *Flow) error {
	switch {
	case l.ofPeers() && l.allLocal && f.Target.IsName():
		return &Error{Cause: CauseUnknownHost, Reason: "listener " + l.name + " leads to this host's own addresses only; a name needs a route (or --egress NAME)"}
	case l.ofPeers() && l.allLocal:
		return &Error{Cause: CauseNotLocal, Reason: "listener " + l.name + " leads to this host's own addresses only, and the connection was made to " + f.Request.Dialled.String()}
	}
	reason := "no route of listener " + l.name + " takes it; add one"
	if l.kind == KindAgent {
		reason += fmt.Sprintf(", or have the agent offer port %d (--offer %d=HOST:PORT)", f.Target.Port, f.Target.Port)
	}
	return &Error{Cause: CauseNoRoute, Reason: reason}
}

// relay carries bytes between both ends until both directions have ended; then the flow is recorded, by
// whoever ends the last one. The direction that reads a socket needs a goroutine, and has this one. A stream
// pipes by itself.
func (f *Flow) relay(accepted Conn, ahead []byte, opened Conn) {
	if !f.stand(accepted, opened) {
		f.g.record(f, f.reason())
		return
	}
	f.lookAgain()
	f.left.Store(2)
	fromAccepted, acceptedPipes := accepted.(Stream)
	fromOpened, openedPipes := opened.(Stream)
	switch {
	case acceptedPipes && openedPipes:
		fromAccepted.Pipe(&f.in, f.in.piped)
		fromOpened.Pipe(&f.out, f.out.piped)
	case openedPipes:
		fromOpened.Pipe(&f.out, f.out.piped)
		f.in.pump(ahead)
	case acceptedPipes:
		fromAccepted.Pipe(&f.in, f.in.piped)
		f.out.pump(nil)
	default:
		go f.out.pump(nil) // ends with its direction; the flow is over when both have ended, which Close waits for
		f.in.pump(ahead)
	}
}

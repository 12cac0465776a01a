package tunnel

import (
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"culvert/policy"
)

// due is what policy asks of this gateway before it lets a flow begin.
type due struct {
	who    counted
	policy string
	limits []*policy.Limit
	twins  map[string]bool // see plan
	audit  bool
}

// note adds what a decision asks for.
func (f *Flow) note(r *policy.Request, d *policy.Decision) {
	o := d.Obligations
	if o != nil && len(o.Headers) > 0 && f.Request.HTTP != nil {
		f.shown.headers = append(f.shown.headers, o.Headers...)
	}
	if o == nil || len(o.Limits) == 0 && !o.Audit {
		return
	}
	if f.Request.due == nil {
		f.Request.due = &due{who: countedFor(r), policy: d.Policy, twins: f.plan.twins}
	}
	f.Request.due.add(o)
}

func (u *due) add(o *policy.Obligations) {
	u.audit = u.audit || o.Audit
	for _, l := range o.Limits {
		if !slices.Contains(u.limits, l) {
			u.limits = append(u.limits, l)
		}
	}
}

// oblige carries out what is due before the flow begins: it counts it in with its limits, and refuses it if one has no
// room; then nothing is counted. A flow that is watched is told of at once.
func (g *Gateway) oblige(f *Flow) error {
	u := f.Request.due
	if u == nil {
		return nil
	}
	f.Request.due = nil
	if f.limits.Load() != nil {
		return nil // an exchange that is tried again
	}
	if u.audit {
		f.marks.Or(markAudit)
	}
	l, err := g.limits.enter(u, false)
	if err != nil {
		return err
	}
	f.limits.Store(l)
	if u.audit {
		g.audited(f)
	}
	return nil
}

// audited tells of a flow that a rule watches when it begins, as its record may come much later.
func (g *Gateway) audited(f *Flow) {
	attrs := append(make([]slog.Attr, 0, 12), slog.String("flow", f.name()), slog.String("listener", f.Listener), slog.String("way", f.Way))
	g.env.Log.LogAttrs(g.base, slog.LevelInfo, "flow begins", append(f.describe(attrs, nil), slog.Bool("audit", true))...)
}

// flowLimits are the limits that a flow counts in. They do not change; after a reload the flow has others.
type flowLimits struct {
	who     counted
	entries []*limitEntry
	paced   bool          // one of them is of bytes
	stop    chan struct{} // closed by end
	once    sync.Once
}

// enter counts a flow in with every limit of u, or with none and says which of them refuses it. With force all have room. Of
// no limits it returns nil.
func (t *limitTable) enter(u *due, force bool) (*flowLimits, error) {
	if len(u.limits) == 0 {
		return nil, nil
	}
	now := time.Now()
	l := &flowLimits{who: u.who, stop: make(chan struct{})}
	var started []*rate.Reservation
	for _, limit := range u.limits {
		line := 0
		if u.twins[limit.Name] {
			line = limit.Place.Line
		}
		e, r, why := t.admit(limit, line, u.who, now, force)
		if why != "" && !force {
			for _, r := range started {
				r.CancelAt(now)
			}
			t.leaveAll(l)
			t.count(limit.Name)
			return nil, limited(limit, u, why)
		}
		if e == nil {
			continue
		}
		if r != nil {
			started = append(started, r)
		}
		l.entries = append(l.entries, e)
		l.paced = l.paced || limit.BytesPerSecond > 0 || limit.Quota > 0
	}
	return l, nil
}

// limited is why a limit does not let a flow pass, or not any longer.
func limited(l *policy.Limit, u *due, why string) *Error {
	reason := why + ", for " + u.who.String()
	if place := l.Place.String(); place != "" {
		reason += " (" + place + ")"
	}
	return &Error{Cause: CauseLimited, Policy: u.policy, Rule: l.Name, Reason: reason}
}

func (t *limitTable) leaveAll(l *flowLimits) {
	for _, e := range l.entries {
		t.leave(e)
	}
}

// rebind has a live flow count in with the limits that the policy of p has for it. None refuses it.
func (f *Flow) rebind(p *plan, r *policy.Request, d *policy.Decision) {
	u := &due{who: countedFor(r), policy: d.Policy, twins: p.twins}
	if d.Obligations != nil {
		u.add(d.Obligations)
	}
	if u.audit && f.marks.Or(markAudit)&markAudit == 0 {
		f.g.audited(f)
	}
	if len(u.limits) == 0 && f.limits.Load() == nil {
		return
	}
	table := &f.g.limits
	l, _ := table.enter(u, true) // it cannot refuse
	f.mu.Lock()
	if f.marked(markRecorded) || f.why != nil { // it has ended meanwhile, or will
		f.mu.Unlock()
		if l != nil {
			table.leaveAll(l)
		}
		return
	}
	before := f.limits.Swap(l)
	f.mu.Unlock()
	if before != nil {
		before.end()
		table.leaveAll(before)
	}
	if l != nil && l.paced && (before == nil || !before.paced) {
		f.restart()
	}
}

// leaveLimits counts the flow out, once and for all.
func (f *Flow) leaveLimits() {
	f.mu.Lock()
	f.marks.Or(markRecorded)
	l := f.limits.Swap(nil)
	f.mu.Unlock()
	if l != nil {
		l.end()
		f.g.limits.leaveAll(l)
	}
}

// end lets those go on that wait: the flow is over, or has other limits.
func (l *flowLimits) end() { l.once.Do(func() { close(l.stop) }) }

// endWaits lets the directions of the flow go on that wait for a limit: their ends are broken, and they shall find out.
func (f *Flow) endWaits() {
	if l := f.limits.Load(); l != nil {
		l.end()
	}
}

// paced reports whether the flow's bytes are counted.
func (f *Flow) paced() bool {
	l := f.limits.Load()
	return l != nil && l.paced
}

// cutSpent ends the live flows whose quota is used up. Those that carry bytes find out by themselves.
func (g *Gateway) cutSpent(now time.Time) {
	if g.limits.entries.load() == 0 {
		return
	}
	g.limits.sweep(now)
	type over struct {
		f   *Flow
		why *Error
	}
	var list []over
	g.flows.each(func(f *Flow) bool {
		if l := f.limits.Load(); l != nil && l.paced {
			if why := l.spent(now); why != nil {
				list = append(list, over{f, why})
			}
		}
		return true
	})
	for _, o := range list {
		o.f.cutLimited(o.why)
	}
}

// cutLimited ends a flow whose quota is used up, once.
func (f *Flow) cutLimited(why *Error) {
	f.mu.Lock()
	first := f.why == nil
	f.mu.Unlock()
	if first {
		f.g.limits.count(why.Rule)
	}
	f.cut(why)
}

// spent is why the flow has to end, nil while its quotas last.
func (l *flowLimits) spent(now time.Time) *Error {
	for _, e := range l.entries {
		e.shard.mu.Lock()
		limit, spent := e.limit, e.spent(now)
		e.shard.mu.Unlock()
		if spent {
			return limited(limit, &due{who: l.who}, "the quota is used up")
		}
	}
	return nil
}

// LimitInfo is a limit that a live flow counts in.
type LimitInfo struct {
	Rule  string `json:"rule,omitempty"`
	Place string `json:"place,omitempty"`
	// Counts is whom it counts together with the flow: an identity or a prefix, or "everybody without a count" where the
	// table of limits was full.
	Counts string `json:"counts"`
	// Flows live, of MaxFlows; 0: any number may.
	Flows    int `json:"flows"`
	MaxFlows int `json:"max_flows,omitempty"`
	// BytesPerSecond may pass; 0: any number.
	BytesPerSecond int64 `json:"bytes_per_second,omitempty"`
	// Used is how many bytes of Quota have passed in the period that ends at Until.
	Used  int64      `json:"used,omitempty"`
	Quota int64      `json:"quota,omitempty"`
	Until *time.Time `json:"until,omitempty"`
	// Waiting is how many directions of flows wait for the rate.
	Waiting int `json:"waiting,omitempty"`
}

// sharedCount is LimitInfo.Counts of a count that is shared.
const sharedCount = "everybody without a count"

// info describes what limits the flow.
func (l *flowLimits) info() (list []LimitInfo) {
	if l == nil {
		return nil
	}
	for _, e := range l.entries {
		e.shard.mu.Lock()
		i := LimitInfo{
			Rule: e.limit.Name, Place: e.limit.Place.String(), Counts: l.who.String(), Flows: e.flows, MaxFlows: e.limit.Flows,
			BytesPerSecond: e.limit.BytesPerSecond, Quota: e.limit.Quota, Waiting: e.waiting,
		}
		if e.limit.Quota > 0 {
			until := e.until
			i.Used, i.Until = e.used, &until
		}
		if e.shared {
			i.Counts = sharedCount
		}
		e.shard.mu.Unlock()
		list = append(list, i)
	}
	return list
}

package policy

import (
	"math"
	"slices"
	"strings"
	"time"
)

// Limits of obligations: what is above is a slip of the finger, or means none.
const (
	maxPerSecond      = 1e9
	minPerSecond      = 1.0 / 86400 // one a day
	maxCount          = 1_000_000_000
	maxBytesPerSecond = 1 << 50
	maxQuotaBytes     = 1 << 60
	maxPeriod         = 366 * 24 * time.Hour
	minPeriod         = time.Second
	defaultPeriod     = 24 * time.Hour
	maxFields         = 32   // that a rule sets
	maxFieldNameBytes = 256  // of one of them
	maxFieldBytes     = 4096 // of its value
	maxAuthorizers    = 64   // each is looked for in each decision
)

// duties are what rules ask of the hop besides allowing and denying.
type duties struct {
	own    []*Obligations // of ALLOW rules: ruleCode.duty, from 1
	askers []asker
	audit  index
	// audited is for what is only recorded.
	audited *Obligations
}

// asker is an authorizer, with the rules that ask it.
type asker struct {
	name  string
	rules index
	// plain is for what is asked of it alone, and audited for what is also recorded.
	plain, audited *Obligations
}

// obliges reports whether there is something to do for more than the rule that decides.
func (u *duties) obliges() bool { return u.audit.size > 0 || len(u.askers) > 0 }

// oblige adds to a decision what the rules of AUDIT and of authorizers ask for. It allocates only where one flow is asked about at
// several authorizers, or at one and the ALLOW rule that decides has obligations, or such a rule is to be recorded as well.
func (s *snapshot) oblige(v *view, d *Decision) {
	audit := false
	if s.audit.size > 0 {
		_, audit = s.audit.find(s, v, unknown)
	}
	if !d.Allow {
		if audit {
			d.Obligations = s.audited
		}
		return
	}
	var one *asker
	var ask []string
	for i := range s.askers {
		a := &s.askers[i]
		if _, found := a.rules.find(s, v, unknown); !found {
			continue
		}
		if one == nil {
			one = a
			continue
		}
		if ask == nil {
			ask = append(ask, one.name)
		}
		ask = append(ask, a.name)
	}
	switch {
	case one == nil && !audit:
	case d.Obligations == nil && one == nil:
		d.Obligations = s.audited
	case d.Obligations == nil && ask == nil && audit:
		d.Obligations = one.audited
	case d.Obligations == nil && ask == nil:
		d.Obligations = one.plain
	default:
		if one != nil && ask == nil {
			ask = one.plain.Ask
		}
		all := Obligations{Ask: ask, Audit: audit}
		if d.Obligations != nil {
			all.Limits, all.Headers = d.Obligations.Limits, d.Obligations.Headers
		}
		d.Obligations = &all
	}
}

// duty compiles the obligations of a set of ALLOW and returns its number, 0 for none.
func (c *rulesCompiler) duty(set *Rules) uint32 {
	if set.Limit == nil && len(set.Headers) == 0 {
		return 0
	}
	if set.Action != "" && set.Action != ActionAllow {
		at := "limits"
		if set.Limit == nil {
			at = "headers"
		}
		c.fault(at, "is for rules that allow, and this one does not; move it there")
		return 0
	}
	var o Obligations
	if set.Limit != nil {
		l := *set.Limit
		c.checkLimit(&l)
		l.Place, l.Name = set.place(), set.Name
		o.Limits = []*Limit{&l}
	}
	o.Headers = c.fields(set.Headers)
	c.own = append(c.own, &o)
	return uint32(len(c.own))
}

// checkLimit finds figures that are none, and fills in the ones that are left out.
func (c *rulesCompiler) checkLimit(l *Limit) {
	fault := func(field, format string, args ...any) { c.fault("limits."+field, format, args...) }
	if *l == (Limit{}) {
		c.fault("limits", "has no figure; write one such as flowsPerSecond, flows, bytesPerSecond or quota")
	}
	if f := l.FlowsPerSecond; f != 0 && !(f >= minPerSecond && f <= maxPerSecond) { // also if it is no number
		fault("flowsPerSecond", "%v is out of bounds; it should be between one a day (%.2g) and %g", f, minPerSecond, float64(maxPerSecond))
	}
	whole := func(field string, n, most int64) {
		if n < 0 || n > most {
			fault(field, "%d is out of bounds; it should be from 1 to %d", n, most)
		}
	}
	whole("burst", int64(l.Burst), maxCount)
	whole("flows", int64(l.Flows), maxCount)
	whole("bytesPerSecond", l.BytesPerSecond, maxBytesPerSecond)
	whole("quota", l.Quota, maxQuotaBytes)
	if l.Burst != 0 && l.FlowsPerSecond == 0 {
		fault("burst", "stands without flowsPerSecond, which it belongs to")
	}
	switch {
	case l.Period != 0 && l.Quota == 0:
		fault("period", "stands without quota, which it belongs to")
	case l.Period != 0 && (l.Period < minPeriod || l.Period > maxPeriod):
		fault("period", "%v is out of bounds; it should be between %v and 366 days", l.Period, minPeriod)
	}
	if l.FlowsPerSecond > 0 && l.Burst == 0 {
		l.Burst = max(1, int(math.Ceil(min(l.FlowsPerSecond, maxPerSecond))))
	}
	if l.Quota > 0 && l.Period == 0 {
		l.Period = defaultPeriod
	}
}

// fields are the headers of a set, by name.
func (c *rulesCompiler) fields(list []Header) []Header {
	if len(list) > maxFields {
		c.fault("headers", "has %d fields; at most %d are let", len(list), maxFields)
		return nil
	}
	var out []Header
	for _, h := range list {
		at := "headers." + h.Name
		name := strings.ToLower(h.Name)
		switch why := forbiddenField(name); {
		case !isToken(name):
			c.fault(at, "%q is no name of a field; write one such as x-team", h.Name)
		case why != "":
			c.fault(at, "%q %s", h.Name, why)
		case !isFieldValue(h.Value):
			c.fault(at, "%q is no value of a field, which has printable ASCII, no space at its ends, and at most %d bytes", h.Value, maxFieldBytes)
		case slices.ContainsFunc(out, func(o Header) bool { return o.Name == name }):
			c.fault(at, "%q is there twice, as names have no case; keep one", h.Name)
		}
		out = append(out, Header{Name: name, Value: h.Value})
	}
	slices.SortFunc(out, func(a, b Header) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// isFieldValue is RFC 9110, section 5.5, without what is obsolete.
func isFieldValue(s string) bool {
	return len(s) <= maxFieldBytes && strings.TrimSpace(s) == s && !strings.ContainsFunc(s, func(c rune) bool { return c < ' ' && c != '\t' || c > '~' })
}

// forbiddenField says why a field cannot be set by a rule: it is about the connection (RFC 9110, section 7.6.1) or the frame of the
// message, "" if it can.
func forbiddenField(name string) string {
	switch strings.ToLower(name) {
	case "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "content-length", "expect":
		return "is a field of the connection or of the message's frame, which no rule sets"
	case "host", "forwarded", "proxy-authorization", "proxy-authenticate":
		return "is a field that the hop itself writes or takes out"
	}
	return ""
}

// addAsker adds an authorizer with its rules.
func (s *snapshot) addAsker(name string, rules []uint32) {
	a := asker{name: name, plain: &Obligations{Ask: []string{name}}, audited: &Obligations{Ask: []string{name}, Audit: true}}
	a.rules.later = yes
	a.rules.build(s, rules)
	s.askers = append(s.askers, a)
}

// checkDuty finds out whether a set of AUDIT or of an authorizer can be done.
func (c *rulesCompiler) checkDuty(set *Rules, authorizers []string) {
	at := "authorizer"
	if set.Wrapped {
		at = "provider.name"
	}
	switch {
	case set.Action != ActionAsk && set.Authorizer != "":
		c.fault(at, "%q would be asked by nobody: the action is not to ask", set.Authorizer)
	case set.Action == ActionAsk && set.Authorizer == "":
		c.fault(at, "is missing; write the name of the authorizer to ask")
	case set.Action == ActionAsk && !slices.Contains(authorizers, set.Authorizer):
		known := "none is configured; add it to policy.authorizers, or name it with --authorizer where a command asks"
		if len(authorizers) > 0 {
			known = "known are " + strings.Join(authorizers[:min(len(authorizers), maxNamed)], ", ")
		}
		c.fault(at, "%q is no authorizer that this gateway knows; %s", set.Authorizer, known)
	}
	if set.Mode == ModeReport && (set.Action == ActionAsk || set.Action == ActionAudit) {
		c.fault("mode", "report is for rules that allow or deny; it should be enforce or off")
	}
}

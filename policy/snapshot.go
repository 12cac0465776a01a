package policy

import "net/netip"

// snapshot is all rules, made ready for decisions: flat lists, so that a hundred thousand of them are a few large objects
// to the collector, and an index of what each asks for. It does not change.
type snapshot struct {
	sets    []ruleSet
	rules   []ruleCode
	clauses []span // of tests, all of which have to hold
	tests   []test
	strings []stringMatch
	blocks  []netip.Prefix
	ports   []uint16
	names   []string // of header fields and claims

	programs []*celProgram
	duties

	deny, allow             index  // of what is in force
	denyReport, allowReport index  // of what is not yet
	allowScopes             scopes // of ALLOW
	reportScopes            scopes // and of ALLOW in report
}

// reports tells whether there are rules whose decision is only told.
func (s *snapshot) reports() bool {
	return s.denyReport.size > 0 || !s.reportScopes.empty()
}

// ruleSet is what the rules of a Rules have in common.
type ruleSet struct {
	name  string
	file  string
	scope Scope
}

// span is a part of one of the snapshot's lists.
type span struct{ from, to uint32 }

// ruleCode is one compiled Rule.
type ruleCode struct {
	set            uint32
	line           uint32
	duty           uint32 // of duties.own, from 1; 0 is none
	cel            uint32 // of programs, from 1; 0 is none
	from, to, when span   // from and to: of clauses, of which one has to hold if there is one; when: of tests
}

// test compares an attribute with a list of values.
type test struct {
	attribute attribute
	negated   bool
	name      uint32 // index of names, of those attributes that have one
	values    span   // of ports, blocks or strings, as the attribute is
}

// holds tries one test.
func (s *snapshot) holds(t *test, v *view) truth {
	var is truth
	switch t.attribute {
	case ofPort:
		is = no
		for _, port := range s.ports[t.values.from:t.values.to] {
			if port == v.Port {
				is = yes
				break
			}
		}
	case ofDestinationIP:
		if v.Unresolved && !v.Addr.IsValid() {
			return v.later
		}
		is = s.inBlocks(t, v)
	case ofSourceIP, ofRemoteIP:
		is = s.inBlocks(t, v)
	default:
		is = v.matchText(t.attribute, s.names[t.name], s.strings[t.values.from:t.values.to])
	}
	if t.negated {
		return is.not()
	}
	return is
}

func (s *snapshot) inBlocks(t *test, v *view) truth {
	addr := v.address(t.attribute)
	if !addr.IsValid() {
		return unknown
	}
	for i := range s.blocks[t.values.from:t.values.to] {
		if s.blocks[int(t.values.from)+i].Contains(addr) {
			return yes
		}
	}
	return no
}

// all is whether all tests of a clause hold.
func (s *snapshot) all(c span, v *view) truth {
	is := yes
	for i := c.from; i < c.to; i++ {
		if is = min(is, s.holds(&s.tests[i], v)); is == no {
			return no
		}
	}
	return is
}

// oneOf is whether one of some clauses holds, or there is none.
func (s *snapshot) oneOf(list span, v *view) truth {
	if list.from == list.to {
		return yes
	}
	is := no
	for i := list.from; i < list.to; i++ {
		if is = max(is, s.all(s.clauses[i], v)); is == yes {
			return yes
		}
	}
	return is
}

// matches reports whether a rule takes a request, for which least is enough.
func (s *snapshot) matches(i uint32, v *view, least truth) bool {
	r := &s.rules[i]
	return s.all(r.when, v) >= least && s.oneOf(r.to, v) >= least && s.oneOf(r.from, v) >= least && s.sets[r.set].scope.selects(v.Workload) &&
		(r.cel == 0 || s.programs[r.cel-1].holds(v) >= least)
}

// decided is the decision of a rule.
func (s *snapshot) decided(i uint32, allow bool) Decision {
	r := &s.rules[i]
	set := &s.sets[r.set]
	d := Decision{Allow: allow, Policy: policyRules, Rule: set.name, Place: Place{File: set.file, Line: int(r.line)}, Reason: "a DENY rule takes it"}
	if allow {
		d.Reason = "an ALLOW rule takes it"
		if r.duty != 0 {
			d.Obligations = s.own[r.duty-1]
		}
	}
	return d
}

// judge says what the rules make of a request: by the ones in force, or also by those that are only reported. told is false
// where they leave it to the default policy. entry is the decision of --allow, if that lets the peer in.
func (s *snapshot) judge(v *view, report bool, entry Decision) (d Decision, told bool) {
	if i, ok := s.deny.find(s, v, unknown); ok {
		return s.decided(i, false), true
	}
	if report {
		if i, ok := s.denyReport.find(s, v, unknown); ok {
			return s.decided(i, false), true
		}
	}
	if !s.allowScopes.selects(v.Workload) && !(report && s.reportScopes.selects(v.Workload)) {
		return Decision{}, false
	}
	if i, ok := s.allow.find(s, v, yes); ok {
		return s.decided(i, true), true
	}
	if report {
		if i, ok := s.allowReport.find(s, v, yes); ok {
			return s.decided(i, true), true
		}
	}
	if entry.Allow {
		return entry, true
	}
	reason := s.allowScopes.reason(v.Workload)
	if reason == "" || report {
		reason = "no ALLOW rule for the destination matches"
	}
	return Decision{Policy: policyRules, Rule: ruleNoAllow, Reason: reason}, true
}

package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// scopes are what some sets select.
type scopes struct {
	list  map[string]*scoped   // by what they say
	known map[*Workload]string // the reason of a refusal, "" of workloads that none selects
}

// scoped is a scope and the sets that have it.
type scoped struct {
	Scope
	sets []string
}

func (l *scopes) empty() bool { return len(l.list) == 0 }

// add notes the scope of a set, which stands at a place.
func (l *scopes) add(s *Scope, set string, at Place) {
	if l.list == nil {
		l.list = make(map[string]*scoped)
	}
	key := fmt.Sprint(*s) // maps are printed in order
	if l.list[key] == nil {
		l.list[key] = &scoped{Scope: *s}
	}
	if place := at.String(); place != "" {
		set += " (" + place + ")"
	}
	if one := l.list[key]; len(one.sets) <= maxNamed {
		one.sets = append(one.sets, set)
	}
}

// maxNamed is how many sets a reason names.
const maxNamed = 3

// settle finds out about workloads in advance.
func (l *scopes) settle(workloads []*Workload) {
	known := make(map[*Workload]string, len(workloads))
	for _, w := range workloads {
		known[w] = l.reason(w)
	}
	l.known = known
}

// selects reports whether one of them has the workload.
func (l *scopes) selects(w *Workload) bool {
	if reason, known := l.known[w]; known || len(l.list) == 0 {
		return reason != ""
	}
	for _, s := range l.list {
		if s.selects(w) {
			return true
		}
	}
	return false
}

// reason says whose rules do not match, "" if no set selects the workload.
func (l *scopes) reason(w *Workload) string {
	if reason, known := l.known[w]; known {
		return reason
	}
	var sets []string
	for _, s := range l.list {
		if s.selects(w) {
			sets = append(sets, s.sets...)
		}
	}
	slices.Sort(sets)
	switch n := len(sets); {
	case n == 0:
		return ""
	case n > maxNamed:
		sets = append(sets[:maxNamed], "others")
	}
	return "no ALLOW rule for the destination matches: " + strings.Join(sets, ", ")
}

// check finds labels and names that no workload has: fault gets the label, or the index of the name, which is -1 for labels.
func (s *Scope) check(fault func(label string, name int, what string)) {
	for _, key := range slices.Sorted(maps.Keys(s.Labels)) {
		if value := s.Labels[key]; key == "" || strings.Contains(key+value, "*") {
			fault(key, -1, fmt.Sprintf("%q: %q is a label that no workload has; it is compared whole, without \"*\"", key, value))
		}
	}
	for i, name := range s.Names {
		if name == "" || strings.Contains(name, "*") {
			fault("", i, fmt.Sprintf("%q is a name that no workload has; it is compared whole, without \"*\"", name))
		}
	}
}

package policy

import (
	"fmt"
	"slices"
)

// PeerRule says whether peers without an identity may reach a workload, as a PeerAuthentication of Istio does.
type PeerRule struct {
	Place
	// Name of the rule: NAMESPACE/NAME of Istio's.
	Name string
	// Scope selects the workloads that it is for. Of several rules that of the narrowest scope counts: labels before a
	// namespace before all, and of the same the first.
	Scope Scope
	// Strict refuses peers without an identity; Unset leaves that to the next wider rule.
	Strict, Unset bool
	// Ports are those for which it is otherwise: true is strict.
	Ports map[uint16]bool
}

// PeerAuthenticationSpec is the spec of a PeerAuthentication of Istio (security.istio.io/v1).
type PeerAuthenticationSpec struct {
	Selector      WorkloadSelector     `yaml:"selector"`
	MTLS          MutualTLS            `yaml:"mtls"`
	PortLevelMTLS map[string]MutualTLS `yaml:"portLevelMtls"`
}

// MutualTLS is a mode of mutual TLS: STRICT, PERMISSIVE or UNSET.
type MutualTLS struct {
	Mode string `yaml:"mode"`
}

// Rule makes the rule of the object o. What this gateway does not do is a *Problem each.
func (a *PeerAuthenticationSpec) Rule(o *Object) (PeerRule, []error) {
	r := PeerRule{Name: o.name(), Place: o.Place(o.path("spec")), Scope: o.scope(a.Selector)}
	var problems []error
	problem := func(at, format string, args ...any) {
		problems = append(problems, &Problem{At: o.path("spec." + at), What: fmt.Sprintf(format, args...)})
	}
	mode := func(at, mode string) (strict, unset bool) {
		switch mode {
		case "STRICT":
			return true, false
		case "PERMISSIVE":
			return false, false
		case "", "UNSET":
			return false, true
		case "DISABLE":
			problem(at, "DISABLE is not supported: a workload behind this gateway can always be reached by mutual TLS; it should be PERMISSIVE")
		default:
			problem(at, "%q is no mode; it should be STRICT, PERMISSIVE or UNSET", mode)
		}
		return true, false
	}
	checkSelector(&r.Scope, problem)
	r.Strict, r.Unset = mode("mtls.mode", a.MTLS.Mode)
	for text, one := range a.PortLevelMTLS {
		at := "portLevelMtls." + text
		port, ok := parsePort(text)
		if !ok {
			problem(at, "%q is no port; it should be a number from 1 to 65535", text)
			continue
		}
		if len(a.Selector.MatchLabels) == 0 {
			problem(at, "needs a selector, as a port is one of a workload")
		}
		strict, unset := mode(at+".mode", one.Mode)
		if unset {
			continue
		}
		if r.Ports == nil {
			r.Ports = make(map[uint16]bool)
		}
		r.Ports[port] = strict
	}
	return r, problems
}

// width orders scopes: the narrowest first.
func (s *Scope) width() int {
	switch {
	case len(s.Labels) > 0 || len(s.Names) > 0:
		return 0
	case s.Namespace != "" || s.Own:
		return 1
	}
	return 2
}

// compilePeers puts rules in the order in which they count.
func compilePeers(c *Config) []PeerRule {
	list := slices.Clone(c.Peers)
	for i := range list {
		list[i].Scope = list[i].Scope.in(c.Namespace)
	}
	slices.SortStableFunc(list, func(a, b PeerRule) int { return a.Scope.width() - b.Scope.width() })
	return list
}

// refusesNobody returns the rule that refuses a peer without an identity, nil if none does.
func (p *Policy) refusesNobody(w *Workload, port uint16) *PeerRule {
	for i := range p.peers {
		r := &p.peers[i]
		if !r.Scope.selects(w) {
			continue
		}
		strict, byPort := r.Ports[port]
		switch {
		case byPort && strict, !byPort && !r.Unset && r.Strict:
			return r
		case byPort, !r.Unset:
			return nil
		}
	}
	return nil
}

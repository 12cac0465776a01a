package policy

import (
	"fmt"
	"slices"
)

// RootNamespace is the namespace whose policies of Istio are for all namespaces.
const RootNamespace = "istio-system"

// AuthorizationSpec is the spec of an AuthorizationPolicy of Istio (security.istio.io/v1).
type AuthorizationSpec struct {
	Selector   WorkloadSelector    `yaml:"selector"`
	TargetRef  *TargetRef          `yaml:"targetRef"`
	TargetRefs []TargetRef         `yaml:"targetRefs"`
	Action     string              `yaml:"action"`
	Provider   *ProviderRef        `yaml:"provider"`
	Rules      []AuthorizationRule `yaml:"rules"`
}

// WorkloadSelector selects workloads by all of some labels.
type WorkloadSelector struct {
	MatchLabels map[string]string `yaml:"matchLabels"`
}

// TargetRef names what a policy is attached to.
type TargetRef struct {
	Group     string `yaml:"group"`
	Kind      string `yaml:"kind"`
	Name      string `yaml:"name"`
	Namespace string `yaml:"namespace"`
}

// ProviderRef names an authorizer of action CUSTOM.
type ProviderRef struct {
	Name string `yaml:"name"`
}

// AuthorizationRule is a rule of an AuthorizationPolicy.
type AuthorizationRule struct {
	From []RuleFrom  `yaml:"from"`
	To   []RuleTo    `yaml:"to"`
	When []Condition `yaml:"when"`
}

// RuleFrom is an entry of from.
type RuleFrom struct {
	Source Source `yaml:"source"`
}

// RuleTo is an entry of to.
type RuleTo struct {
	Operation Operation `yaml:"operation"`
}

// Object is what an object of Kubernetes is called, and where it stands.
type Object struct {
	// Name and Namespace of the object.
	Name, Namespace string
	// At is the path of the object in its file, "" if it is the whole document.
	At string
	// Place returns where a path is written.
	Place func(path string) Place
	// DryRun has the policy report only, as of the annotation istio.io/dry-run.
	DryRun bool
}

func (o *Object) path(field string) string {
	if o.At == "" {
		return field
	}
	return o.At + "." + field
}

// name is NAMESPACE/NAME, as far as there is a namespace.
func (o *Object) name() string {
	if o.Namespace == "" {
		return o.Name
	}
	return o.Namespace + "/" + o.Name
}

// scope is what a policy selects: of its own namespace, of all where that is the root, or else of this gateway's.
func (o *Object) scope(selector WorkloadSelector) Scope {
	s := Scope{Namespace: o.Namespace, Own: o.Namespace == "", Labels: selector.MatchLabels}
	if s.Namespace == RootNamespace {
		s.Namespace = ""
	}
	return s
}

// Problem is something that is wrong with a policy, or that this gateway cannot do.
type Problem struct {
	// At is the path in the file, and What what is wrong there and what would be right.
	At, What string
}

// Error returns path and problem on one line.
func (p *Problem) Error() string { return p.At + ": " + p.What }

// Set makes the rules of the policy called o. What this gateway does not do is a *Problem each: a policy is taken whole or
// not at all.
func (a *AuthorizationSpec) Set(o *Object) (Rules, []error) {
	r := Rules{Name: o.name(), At: o.path("spec"), Wrapped: true, Action: Action(a.Action), Scope: o.scope(a.Selector)}
	if o.DryRun {
		r.Mode = ModeReport
	}
	var problems []error
	problem := func(at, format string, args ...any) {
		problems = append(problems, &Problem{At: o.path("spec." + at), What: fmt.Sprintf(format, args...)})
	}
	switch a.Action {
	case "", "ALLOW", "DENY":
	case "AUDIT", "CUSTOM":
		if a.Action == "CUSTOM" {
			r.Action = ActionAsk
		}
		if o.DryRun {
			problem("action", "%s cannot be tried by istio.io/dry-run, which is for ALLOW and DENY", a.Action)
		}
	default:
		problem("action", "%q is no action; it should be ALLOW, DENY, AUDIT or CUSTOM", a.Action)
		r.Action = ""
	}
	if a.Provider != nil {
		r.Authorizer = a.Provider.Name
		if a.Action != "CUSTOM" {
			problem("provider", "belongs to action CUSTOM")
			r.Authorizer = ""
		}
	}
	r.Scope.Names = targets(o, a.Selector, a.TargetRef, a.TargetRefs, problem)
	for i := range a.Rules {
		in := &a.Rules[i]
		out := Rule{When: in.When, Place: o.Place(o.path(fmt.Sprintf("spec.rules[%d]", i)))}
		for k := range in.From {
			out.From = append(out.From, in.From[k].Source)
		}
		for k := range in.To {
			out.To = append(out.To, in.To[k].Operation)
		}
		r.Rules = append(r.Rules, out)
	}
	return r, problems
}

// targets are the names of workloads that a policy is attached to, none for all that its selector takes.
func targets(o *Object, selector WorkloadSelector, one *TargetRef, many []TargetRef, problem func(at, format string, args ...any)) (names []string) {
	refs := slices.Clone(many)
	at := "targetRefs[%d]"
	if one != nil {
		if len(refs) > 0 {
			problem("targetRef", "stands beside targetRefs; keep one of them")
		}
		refs, at = append(refs, *one), "targetRef%.0d"
	}
	if len(refs) > 0 && len(selector.MatchLabels) > 0 {
		problem("selector", "stands beside targetRefs; keep one of them")
	}
	for i, ref := range refs {
		switch {
		case ref.Name == "":
			problem(fmt.Sprintf(at, i), "has no name; write that of a workload")
		case ref.Namespace != "" && ref.Namespace != o.Namespace:
			problem(fmt.Sprintf(at, i), "is of another namespace, %q, than the policy", ref.Namespace)
		case ref.Kind == "Service" && (ref.Group == "" || ref.Group == "core"), ref.Kind == "Gateway" && ref.Group == "gateway.networking.k8s.io":
			names = append(names, ref.Name)
		default:
			problem(fmt.Sprintf(at, i), "kind %q of group %q is not supported; it should be Service, or Gateway of gateway.networking.k8s.io", ref.Kind, ref.Group)
		}
	}
	return names
}

// checkSelector finds labels that no workload has.
func checkSelector(s *Scope, problem func(at, format string, args ...any)) {
	labels := Scope{Labels: s.Labels}
	labels.check(func(label string, _ int, what string) { problem("selector.matchLabels."+label, "%s", what) })
}

package policy

import "fmt"

// Action is what comes of a rule that matches.
type Action string

// Actions. A DENY stands above every ALLOW. Where an ALLOW selects the workload, only what some ALLOW matches may pass.
// The others neither allow nor deny, and all of them that match count, also where they cannot be ruled out.
const (
	ActionAllow Action = "ALLOW"
	ActionDeny  Action = "DENY"
	ActionAsk   Action = "ASK"   // Rules.Authorizer has to allow it as well; CUSTOM of Istio's
	ActionAudit Action = "AUDIT" // it is recorded
)

// Mode is how far a policy is in force.
type Mode string

// Modes. The zero value is ModeEnforce.
const (
	ModeEnforce Mode = "enforce"
	ModeReport  Mode = "report" // its decision is told in Decision.Report, and changes nothing
	ModeOff     Mode = "off"
)

// Place is where something is written. Line counts from 1; 0 is unknown.
type Place struct {
	File string
	Line int
}

// String returns FILE:LINE, or as much of it as is known.
func (p Place) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

// Rules is one set of rules with one action, such as an AuthorizationPolicy of Istio.
type Rules struct {
	// Name is what the set is called: NAMESPACE/NAME of Istio's.
	Name string
	// At is the path of the set in its file, as in "items[2].spec"; RuleErrors have it.
	At string
	// Wrapped tells that an entry of from holds a source, and one of to an operation, as in Istio's: RuleErrors have them.
	Wrapped bool
	// Flat tells that the fields of the only rule stand in the set itself, as in this gateway's own: RuleErrors have it.
	Flat bool
	// Action is ALLOW, DENY, ASK or AUDIT. Default: ALLOW.
	Action Action
	// Authorizer is who is asked, of ActionAsk, one of Config.Authorizers.
	Authorizer string
	// Limit and Headers are obligations of what is allowed by it, nil for none. Place and Name of the Limit are filled in.
	Limit   *Limit
	Headers []Header
	// Mode is how far it is in force. Default: enforce.
	Mode Mode
	// Scope selects the workloads that it is for.
	Scope Scope
	// Rules of which one has to match. Without any nothing matches.
	Rules []Rule
}

// place is where the first rule is written.
func (r *Rules) place() Place {
	if len(r.Rules) == 0 {
		return Place{}
	}
	return r.Rules[0].Place
}

// Scope selects workloads. The zero value selects all.
type Scope struct {
	// Namespace the workload has to be in; "" is any.
	Namespace string
	// Own stands for the namespace of this gateway, Config.Namespace.
	Own bool
	// Labels that the workload has to have.
	Labels map[string]string
	// Names of workloads, of which it has to have one; none is any.
	Names []string
}

// Workload is what a destination is, as far as a gateway knows.
type Workload struct {
	// Name and Namespace of the workload.
	Name, Namespace string
	// Labels of the workload.
	Labels map[string]string
}

// Rule matches a request that one of From (if there are any), one of To (if there are any), all of When and CEL (if there is one)
// match.
type Rule struct {
	Place
	From []Source
	To   []Operation
	When []Condition
	// CEL is an expression that has to be true; doc.go says of what. It is tried last, and only if the rest matches.
	CEL string
}

// Source is who a request comes from: all lists that are not empty have to match, each with one of its values, and none
// of the Not lists may.
//
// A value is exact ("a"), a prefix ("a*"), a suffix ("*a"), or "*", which is any that is not empty.
type Source struct {
	// Principals are SPIFFE IDs without "spiffe://".
	Principals []string `yaml:"principals"`
	// NotPrincipals may not match.
	NotPrincipals []string `yaml:"notPrincipals"`
	// RequestPrincipals are ISS/SUB of a token.
	RequestPrincipals []string `yaml:"requestPrincipals"`
	// NotRequestPrincipals may not match.
	NotRequestPrincipals []string `yaml:"notRequestPrincipals"`
	// Namespaces of the peer's identity.
	Namespaces []string `yaml:"namespaces"`
	// NotNamespaces may not match.
	NotNamespaces []string `yaml:"notNamespaces"`
	// ServiceAccounts of the peer's identity, as NAMESPACE/ACCOUNT, or ACCOUNT of the namespace of the set. No prefixes.
	ServiceAccounts []string `yaml:"serviceAccounts"`
	// NotServiceAccounts may not match.
	NotServiceAccounts []string `yaml:"notServiceAccounts"`
	// IPBlocks are addresses and ranges that the connection comes from.
	IPBlocks []string `yaml:"ipBlocks"`
	// NotIPBlocks may not match.
	NotIPBlocks []string `yaml:"notIpBlocks"`
	// RemoteIPBlocks are those of the client, as a proxy that is trusted tells.
	RemoteIPBlocks []string `yaml:"remoteIpBlocks"`
	// NotRemoteIPBlocks may not match.
	NotRemoteIPBlocks []string `yaml:"notRemoteIpBlocks"`
}

// Operation is what a request is for. Values are as in Source.
type Operation struct {
	// Hosts are names of the destination, in any case.
	Hosts []string `yaml:"hosts"`
	// NotHosts may not match.
	NotHosts []string `yaml:"notHosts"`
	// Ports of the destination.
	Ports []string `yaml:"ports"`
	// NotPorts may not match.
	NotPorts []string `yaml:"notPorts"`
	// Methods of HTTP, or the full name of gRPC.
	Methods []string `yaml:"methods"`
	// NotMethods may not match.
	NotMethods []string `yaml:"notMethods"`
	// Paths of HTTP, without the query. "{*}" is one segment, "{**}" any number at the end.
	Paths []string `yaml:"paths"`
	// NotPaths may not match.
	NotPaths []string `yaml:"notPaths"`
}

// Condition compares an attribute: one of Values has to match, and none of NotValues may.
type Condition struct {
	// Key is the attribute: request.headers[NAME], source.ip, remote.ip, source.namespace, source.principal,
	// source.serviceAccount, request.auth.principal, request.auth.audiences, request.auth.presenter,
	// request.auth.claims[NAME] (and [NAME][NAME]), destination.ip, destination.port, connection.sni.
	Key string `yaml:"key"`
	// Values of which one has to match. Default: any.
	Values []string `yaml:"values"`
	// NotValues of which none may match.
	NotValues []string `yaml:"notValues"`
}

// RuleError is a fault of a rule.
type RuleError struct {
	// Set is the index of the Rules in Config.Rules.
	Set int
	// At is the path of the value in its file, as in "spec.rules[0].to[1].operation.ports[0]".
	At string
	// Reason says what is wrong with it and what would be right.
	Reason string
	// CEL is the place in the expression, of those, else nil.
	CEL *CELError
}

// Error returns path and reason on one line.
func (e *RuleError) Error() string { return e.At + ": " + e.Reason }

// in is the scope as a gateway of that namespace understands it: what is its own is told by name.
func (s Scope) in(namespace string) Scope {
	if s.Own {
		s.Namespace, s.Own = namespace, false
	}
	return s
}

// selects reports whether the scope has w; nil is a workload that nobody knows.
func (s *Scope) selects(w *Workload) bool {
	if s.Namespace == "" && !s.Own && len(s.Labels) == 0 && len(s.Names) == 0 {
		return true
	}
	if w == nil || s.Namespace != "" && w.Namespace != s.Namespace {
		return false
	}
	for key, value := range s.Labels {
		if has, ok := w.Labels[key]; !ok || has != value {
			return false
		}
	}
	for _, name := range s.Names {
		if name == w.Name {
			return true
		}
	}
	return len(s.Names) == 0
}

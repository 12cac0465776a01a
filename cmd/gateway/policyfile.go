package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"

	"culvert/pki/spiffe"
	"culvert/policy"
)

// PolicyFile is a file of rules in this gateway's own words. A file may have several documents, and objects of Istio among
// them.
type PolicyFile struct {
	// Rules of which each is a policy of its own.
	Rules []PolicyRule `yaml:"rules"`
	// Tests are requests with the decision that has to come of them; else the policies are not taken.
	Tests []PolicyTest `yaml:"tests"`
}

// PolicyRule is one rule.
type PolicyRule struct {
	// Name of the rule, in records and refusals. Default: `rules[N]`.
	Name string `yaml:"name"`
	// Action is `allow` or `deny`. Where an allow rule is for a workload, only what one matches may reach it. Default: allow.
	Action string `yaml:"action"`
	// Mode is `enforce`, `report` (what it would change is told, and nothing more) or `off`. Default: enforce.
	Mode string `yaml:"mode"`
	// Workloads that it is for. Default: all.
	Workloads PolicyScope `yaml:"workloads"`
	// From are the sources of which one has to match. Default: any.
	From []policy.Source `yaml:"from"`
	// To are the operations of which one has to match. Default: any.
	To []policy.Operation `yaml:"to"`
	// When are conditions, all of which have to hold.
	When []policy.Condition `yaml:"when"`
}

// PolicyScope selects workloads.
type PolicyScope struct {
	// Namespace of the workloads. Default: any.
	Namespace string `yaml:"namespace"`
	// Labels that they have.
	Labels map[string]string `yaml:"labels"`
	// Names of which they have one. Default: any.
	Names []string `yaml:"names"`
}

// PolicyTest is a request, and what has to come of it.
type PolicyTest struct {
	// Peer is the SPIFFE ID of who asks. Default: nobody that is known.
	Peer string `yaml:"peer"`
	// Source is the address that the connection comes from.
	Source string `yaml:"source"`
	// Dst is the destination: an address or a name, and a port.
	Dst string `yaml:"dst"`
	// Workload is the name of what the destination is. Default: none.
	Workload string `yaml:"workload"`
	// Namespace of that workload. Default: that of this gateway.
	Namespace string `yaml:"namespace"`
	// Labels of that workload.
	Labels map[string]string `yaml:"labels"`
	// SNI is the server name that TLS was asked for.
	SNI string `yaml:"sni"`
	// Method of a request of HTTP, where the hop has it in the clear.
	Method string `yaml:"method"`
	// Path of that request.
	Path string `yaml:"path"`
	// Headers of that request.
	Headers map[string]string `yaml:"headers"`
	// Want is `allow` or `deny`.
	Want string `yaml:"want"`
	// Rule is the name of the rule that has to decide. Default: any.
	Rule string `yaml:"rule"`
}

// policies are what some files say.
type policies struct {
	sets   []policy.Rules
	peers  []policy.PeerRule
	places []*places // of each set
	tests  []placedTest
	faults *faults
}

// placedTest is a test and where it is written.
type placedTest struct {
	PolicyTest
	policy.Place
}

// readPolicies reads files. Everything that is wrong is in f.
func readPolicies(files []string, f *faults) *policies {
	p := &policies{faults: f}
	for _, file := range files {
		text, err := readBounded(file)
		if err != nil {
			p.faults.list = append(p.faults.list, fault{file: file, what: fmt.Sprintf("cannot be read: %v", rootCause(err))})
			continue
		}
		p.read(file, text)
	}
	return p
}

// read takes the documents of one file.
func (p *policies) read(file string, text []byte) {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	for {
		d := &decoder{places: newPlaces(file), faults: p.faults}
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			d.syntax(err)
			return
		}
		if n := doc.Content[0]; n.Kind != yaml.ScalarNode || n.Tag != "!!null" { // an empty document, as behind the last ---
			p.document(d, n)
		}
	}
}

// document takes one document: an object of Kubernetes, or rules of ours.
func (p *policies) document(d *decoder, n *yaml.Node) {
	if n.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == "kind" || n.Content[i].Value == "apiVersion" {
				p.object(d, n, "")
				return
			}
		}
	}
	var file PolicyFile
	d.value("", n, reflect.ValueOf(&file).Elem())
	for i := range file.Rules {
		p.rule(d, &file.Rules[i], fmt.Sprintf("rules[%d]", i))
	}
	for i, t := range file.Tests {
		p.tests = append(p.tests, placedTest{t, p.place(d, fmt.Sprintf("tests[%d]", i))})
	}
}

func (p *policies) place(d *decoder, path string) policy.Place {
	f := d.places.at(path, "")
	return policy.Place{File: f.file, Line: f.line}
}

func (p *policies) rule(d *decoder, r *PolicyRule, at string) {
	set := policy.Rules{
		Name: r.Name, At: at, Mode: policy.Mode(r.Mode), Scope: policy.Scope{Namespace: r.Workloads.Namespace, Labels: r.Workloads.Labels, Names: r.Workloads.Names},
		Rules: []policy.Rule{{Place: p.place(d, at), From: r.From, To: r.To, When: r.When}},
	}
	if set.Name == "" {
		set.Name = at
	}
	switch r.Action {
	case "", "allow":
	case "deny":
		set.Action = policy.ActionDeny
	default:
		p.note(d, at+".action", fmt.Sprintf("action: %q is none; it should be allow or deny", r.Action))
	}
	p.add(d, set)
}

func (p *policies) add(d *decoder, set policy.Rules) {
	p.sets = append(p.sets, set)
	p.places = append(p.places, d.places)
}

func (p *policies) note(d *decoder, at, what string) {
	p.faults.list = append(p.faults.list, d.places.at(at, what))
}

// manifest is an object of Kubernetes, or a list of some.
type manifest struct {
	APIVersion string      `yaml:"apiVersion"`
	Kind       string      `yaml:"kind"`
	Metadata   yaml.Node   `yaml:"metadata"`
	Spec       yaml.Node   `yaml:"spec"`
	Status     yaml.Node   `yaml:"status"` // of no interest
	Items      []yaml.Node `yaml:"items"`
}

// istioGroup is the group of the policies of Istio, with its versions.
const istioGroup = "security.istio.io/"

func (p *policies) object(d *decoder, n *yaml.Node, at string) {
	var m manifest
	d.value(at, n, reflect.ValueOf(&m).Elem())
	path := func(field string) string { return strings.TrimPrefix(at+"."+field, ".") }
	istio := m.APIVersion == istioGroup+"v1" || m.APIVersion == istioGroup+"v1beta1"
	spec := func(of any) {
		if m.Spec.Kind != 0 {
			d.value(path("spec"), &m.Spec, reflect.ValueOf(of).Elem())
		}
	}
	switch {
	case m.Kind == "List" && m.APIVersion == "v1", m.Kind == "AuthorizationPolicyList" && strings.HasPrefix(m.APIVersion, istioGroup):
		if at != "" {
			p.note(d, path("kind"), "a list inside of a list; write its items here")
			return
		}
		for i := range m.Items {
			p.object(d, &m.Items[i], fmt.Sprintf("items[%d]", i))
		}
	case m.Kind == "AuthorizationPolicy" && istio:
		o := p.named(d, &m, at)
		var a policy.AuthorizationSpec
		spec(&a)
		set, problems := a.Set(o)
		p.problems(d, problems)
		p.add(d, set)
	case m.Kind == "PeerAuthentication" && istio:
		o := p.named(d, &m, at)
		var a policy.PeerAuthenticationSpec
		spec(&a)
		rule, problems := a.Rule(o)
		p.problems(d, problems)
		p.peers = append(p.peers, rule)
	default:
		p.note(d, path("kind"), fmt.Sprintf("kind: %q of apiVersion %q is not supported; AuthorizationPolicy and PeerAuthentication of %sv1 are, and rules of this gateway's own, without kind", m.Kind, m.APIVersion, istioGroup))
	}
}

// named is what an object is called, and where it stands.
func (p *policies) named(d *decoder, m *manifest, at string) *policy.Object {
	o := objectOf(&m.Metadata)
	o.At, o.Place = at, func(at string) policy.Place { return p.place(d, at) }
	if o.Name == "" {
		p.note(d, strings.TrimPrefix(at+".metadata", "."), "metadata: name is missing; refusals are explained by it")
	}
	return &o
}

func (p *policies) problems(d *decoder, list []error) {
	for _, one := range list {
		var problem *policy.Problem
		if errors.As(one, &problem) {
			p.note(d, problem.At, problem.Error())
		}
	}
}

// objectOf reads what counts of metadata, of which Kubernetes writes more with each version.
func objectOf(metadata *yaml.Node) (o policy.Object) {
	value := func(n *yaml.Node, key string) *yaml.Node {
		for i := 0; i+1 < len(n.Content) && n.Kind == yaml.MappingNode; i += 2 {
			if n.Content[i].Value == key {
				return n.Content[i+1]
			}
		}
		return &yaml.Node{}
	}
	o.Name, o.Namespace = value(metadata, "name").Value, value(metadata, "namespace").Value
	o.DryRun = value(value(metadata, "annotations"), "istio.io/dry-run").Value == "true"
	return o
}

// compile makes the policy of what was read and allow for a gateway of that namespace, and notes what is wrong.
func (p *policies) compile(allow []string, namespace string) *policy.Policy {
	rules, err := policy.Compile(policy.Config{Rules: p.sets, Peers: p.peers, Allow: allow, Namespace: namespace})
	p.join(err)
	return rules
}

// testPolicies runs the tests beside the policies; self is this gateway.
func (c *Config) testPolicies(self spiffe.ID) error {
	if c.policies == nil || len(c.policies.tests) == 0 {
		return nil
	}
	return c.policies.test(io.Discard, c.policies.compile(c.Policy.Allow, self.Namespace()), self)
}

// join notes the faults of a compilation at their lines.
func (p *policies) join(err error) {
	if err == nil {
		return
	}
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		for _, one := range many.Unwrap() {
			p.join(one)
		}
		return
	}
	var rule *policy.RuleError
	if errors.As(err, &rule) {
		p.faults.list = append(p.faults.list, p.places[rule.Set].at(rule.At, rule.Error()))
		return
	}
	p.faults.list = append(p.faults.list, fault{what: err.Error()})
}

// request makes the request of a test; self is this gateway.
func (t *PolicyTest) request(self spiffe.ID) (*policy.Request, error) {
	r := &policy.Request{Self: self, SNI: t.SNI, Workload: &policy.Workload{Name: t.Workload, Namespace: t.Namespace, Labels: t.Labels}}
	if t.Namespace == "" {
		r.Workload.Namespace = self.Namespace()
	}
	var err error
	if t.Peer != "" {
		if r.Peer, err = spiffe.Parse(t.Peer); err != nil {
			return nil, fmt.Errorf("peer: %w", err)
		}
	}
	if t.Source != "" {
		addr, err := netip.ParseAddr(t.Source)
		if err != nil {
			return nil, fmt.Errorf("source: %q is no address; it should be like 10.0.0.7", t.Source)
		}
		r.Source = netip.AddrPortFrom(addr.Unmap(), 0)
	}
	if err := setDestination(r, t.Dst); err != nil {
		return nil, err
	}
	if t.Method != "" || t.Path != "" || t.Headers != nil {
		headers := make(map[string]string)
		for name, value := range t.Headers {
			headers[strings.ToLower(name)] = value
		}
		r.HTTP = &policy.HTTP{Method: t.Method, Path: t.Path, Host: r.Host, Header: func(name string) (string, bool) {
			value, ok := headers[name]
			return value, ok
		}}
	}
	return r, nil
}

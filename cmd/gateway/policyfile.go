package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

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
	// Action is `allow`, `deny`, `ask` (what it matches has to be allowed by an authorizer as well) or `audit` (what it matches
	// is recorded as such). Where an allow rule is for a workload, only what one matches may reach it. Default: allow.
	Action string `yaml:"action"`
	// Authorizer that is asked, of action `ask`.
	Authorizer string `yaml:"authorizer"`
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
	// CEL is an expression that has to be true as well; see above. It is tried last.
	CEL yaml.Node `yaml:"cel"`
	// Limits of what one identity may do that the rule allows; peers without one are counted by address. Default: none.
	Limits *PolicyLimits `yaml:"limits"`
	// Headers are fields that are added to a request that the rule allows, where the hop has it in the clear.
	Headers map[string]string `yaml:"headers"`
}

// PolicyLimits bound what one identity may do.
type PolicyLimits struct {
	// FlowsPerSecond that may begin, on average. A fraction is one flow in so many seconds. Default: any number.
	FlowsPerSecond *float64 `yaml:"flowsPerSecond"`
	// Burst of flows that may begin at once. Default: FlowsPerSecond.
	Burst *int `yaml:"burst"`
	// Flows that may live at once. Default: any number.
	Flows *int `yaml:"flows"`
	// BytesPerSecond that may pass, both ways together; flows wait. Default: any number.
	BytesPerSecond *Size `yaml:"bytesPerSecond"`
	// Quota of bytes that may pass in a period; then flows end. Default: any number.
	Quota *Size `yaml:"quota"`
	// Period of the quota, from the first flow. Default: 24h.
	Period *time.Duration `yaml:"period"`
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

// policies are what some files say.
type policies struct {
	count       int // of policies
	sets        []policy.Rules
	places      []*places        // of each set
	expressions []*celExpression // of each set, nil for none
	peers       []policy.PeerRule
	tokens      []policy.TokenRule
	tokenPlaces []*places // of each of tokens
	tests       []placedTest
	faults      *faults
}

// placedTest is a test and where it is written.
type placedTest struct {
	PolicyTest
	policy.Place
}

// readPolicies reads files. Everything that is wrong is in f.
func readPolicies(files []string, f *faults) *policies { return readPoliciesBy(files, f, readBounded) }

// readPoliciesBy is readPolicies with another way to read them.
func readPoliciesBy(files []string, f *faults, read fileReader) *policies {
	p := &policies{faults: f}
	for _, file := range files {
		text, err := read(file)
		if err != nil {
			p.faults.list = append(p.faults.list, fault{file: file, what: unreadable(err, "")})
			continue
		}
		p.read(file, text)
	}
	return p
}

// read takes the documents of one file.
func (p *policies) read(file string, text []byte) {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	for found := false; ; {
		d := &decoder{places: newPlaces(file), faults: p.faults}
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			if !found {
				d.note(&yaml.Node{Line: 1}, "there is no policy in the file, which may have been cut off; write `rules: []` if that is meant")
			}
			return
		}
		if err != nil {
			d.syntax(err)
			return
		}
		n := doc.Content[0]
		if n.Kind == yaml.ScalarNode && n.Tag == "!!null" { // an empty document, as behind the last ---
			continue
		}
		found = true
		if bad := newExpansion().tooLarge(n); bad != nil {
			d.note(bad, "its anchors (&) and aliases (*) make it too large, or without end; write it out")
			return
		}
		p.document(d, n, text)
	}
}

// maxExpanded is how many values a document may have when its aliases are written out.
const maxExpanded = 1_000_000

// expansion finds documents that are small to write and have no end: aliases of lists of aliases.
type expansion struct {
	sizes map[*yaml.Node]int
	open  map[*yaml.Node]bool
}

func newExpansion() *expansion {
	return &expansion{sizes: make(map[*yaml.Node]int), open: make(map[*yaml.Node]bool)}
}

// tooLarge returns the value at which it becomes too large, nil for a document that is small enough.
func (e *expansion) tooLarge(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		if e.open[n.Alias] {
			return n
		}
		if _, known := e.sizes[n.Alias]; !known {
			if bad := e.tooLarge(n.Alias); bad != nil {
				return bad
			}
		}
		e.sizes[n] = e.sizes[n.Alias]
		return nil
	}
	if _, known := e.sizes[n]; known {
		return nil
	}
	e.open[n] = true
	size := 1
	for _, inner := range n.Content {
		if bad := e.tooLarge(inner); bad != nil {
			return bad
		}
		if size += e.sizes[inner]; size > maxExpanded {
			return inner
		}
	}
	delete(e.open, n)
	e.sizes[n] = size
	return nil
}

// document takes one document: an object of Kubernetes, or rules of ours.
func (p *policies) document(d *decoder, n *yaml.Node, text []byte) {
	if n.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == "kind" || n.Content[i].Value == "apiVersion" {
				p.object(d, n, "")
				return
			}
		}
	}
	noBlanks(d, "", n)
	var file PolicyFile
	d.value("", n, reflect.ValueOf(&file).Elem())
	for i := range file.Rules {
		p.rule(d, &file.Rules[i], fmt.Sprintf("rules[%d]", i), text)
	}
	for i, t := range file.Tests {
		p.tests = append(p.tests, placedTest{t, p.place(d, fmt.Sprintf("tests[%d]", i))})
	}
}

func (p *policies) place(d *decoder, path string) policy.Place {
	f := d.places.at(path, "")
	return policy.Place{File: f.file, Line: f.line}
}

// noBlanks notes fields without a value and empty lists, which elsewhere are as if they were not there: a policy that asks for a
// principal and names none must not let in everybody.
func noBlanks(d *decoder, path string, n *yaml.Node) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	switch {
	case n.Kind == yaml.ScalarNode && n.Tag == "!!null":
		d.note(n, "%s has no value; write one or remove the line", orDocument(path))
	case n.Kind == yaml.SequenceNode && len(n.Content) == 0 && !strings.HasSuffix(path, "spec.rules") && path != "rules" && path != "tests":
		d.note(n, "%s is an empty list, which asks for nothing; write a value or remove the line", orDocument(path))
	case n.Kind == yaml.SequenceNode:
		for i, one := range n.Content {
			noBlanks(d, fmt.Sprintf("%s[%d]", path, i), one)
		}
	case n.Kind == yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			noBlanks(d, strings.TrimPrefix(path+"."+n.Content[i].Value, "."), n.Content[i+1])
		}
	}
}

func (p *policies) rule(d *decoder, r *PolicyRule, at string, text []byte) {
	set := policy.Rules{
		Name: r.Name, At: at, Flat: true, Mode: policy.Mode(r.Mode), Authorizer: r.Authorizer, Limit: r.Limits.limit(d, at+".limits"), Headers: headersOf(r.Headers),
		Scope: policy.Scope{Namespace: r.Workloads.Namespace, Labels: r.Workloads.Labels, Names: r.Workloads.Names},
		Rules: []policy.Rule{{Place: p.place(d, at), From: r.From, To: r.To, When: r.When}},
	}
	if set.Name == "" {
		set.Name = at
	}
	switch r.Action {
	case "", "allow":
	case "deny":
		set.Action = policy.ActionDeny
	case "ask":
		set.Action = policy.ActionAsk
	case "audit":
		set.Action = policy.ActionAudit
	default:
		p.note(d, at+".action", fmt.Sprintf("action: %q is none; it should be allow, deny, ask or audit", r.Action))
	}
	p.count++
	p.add(d, set)
	if r.CEL.Kind != 0 {
		if r.CEL.Kind == yaml.AliasNode {
			r.CEL = *r.CEL.Alias
		}
		if d.scalar(at+".cel", &r.CEL, "an expression") && strings.TrimSpace(r.CEL.Value) == "" {
			d.note(&r.CEL, "%s.cel is empty; write an expression or remove the line", at)
		}
		p.sets[len(p.sets)-1].Rules[0].CEL = r.CEL.Value
		p.expressions[len(p.sets)-1] = &celExpression{node: r.CEL, text: text}
	}
}

// limit is what policy is told of limits, nil for none. A figure of 0 is none, and somebody may mean that nothing is let by it.
func (l *PolicyLimits) limit(d *decoder, at string) *policy.Limit {
	if l == nil {
		return nil
	}
	zero := func(field string) {
		d.faults.list = append(d.faults.list, d.places.at(at+"."+field, at+"."+field+": 0 would be no limit; write one, remove the line, or deny what is not to pass"))
	}
	return &policy.Limit{
		FlowsPerSecond: figure(l.FlowsPerSecond, "flowsPerSecond", zero), Burst: figure(l.Burst, "burst", zero), Flows: figure(l.Flows, "flows", zero),
		BytesPerSecond: int64(figure(l.BytesPerSecond, "bytesPerSecond", zero)), Quota: int64(figure(l.Quota, "quota", zero)), Period: figure(l.Period, "period", zero),
	}
}

// figure is what n says, or 0 where nothing is written.
func figure[N int | float64 | Size | time.Duration](n *N, field string, zero func(string)) N {
	if n == nil {
		return 0
	}
	if *n == 0 {
		zero(field)
	}
	return *n
}

func headersOf(named map[string]string) (list []policy.Header) {
	for _, name := range slices.Sorted(maps.Keys(named)) {
		list = append(list, policy.Header{Name: name, Value: named[name]})
	}
	return list
}

// celExpression is where an expression is written.
type celExpression struct {
	node yaml.Node
	text []byte // of the file
}

// place finds the place of an error in the file; column is 0 where the text stands there in other words, as of escapes.
func (c *celExpression) place(e *policy.CELError) (line, column int) {
	lines := strings.Split(string(c.text), "\n")
	source := func(line int) []rune {
		if line < 1 || line > len(lines) {
			return nil
		}
		return []rune(strings.TrimRight(lines[line-1], "\r"))
	}
	if e.Line == 0 {
		return c.node.Line, 0
	}
	value := strings.Split(c.node.Value, "\n")
	if e.Line > len(value) {
		return c.node.Line, 0
	}
	want := []rune(value[e.Line-1])
	at, skip := c.node.Line, c.node.Column-1
	switch c.node.Style {
	case yaml.LiteralStyle:
		at += e.Line
		skip = len(source(at)) - len(want)
	case yaml.DoubleQuotedStyle, yaml.SingleQuotedStyle:
		skip++
	}
	have := source(at)
	if skip < 0 || skip+len(want) > len(have) || string(have[skip:skip+len(want)]) != string(want) || c.node.Style != yaml.LiteralStyle && len(value) > 1 {
		return c.node.Line, 0
	}
	return at, skip + e.Column
}

func (p *policies) add(d *decoder, set policy.Rules) {
	p.sets = append(p.sets, set)
	p.places = append(p.places, d.places)
	p.expressions = append(p.expressions, nil)
}

func (p *policies) note(d *decoder, at, what string) {
	p.faults.list = append(p.faults.list, d.places.at(at, what))
}

// compile makes the policy of what was read, for the gateway that c is of otherwise, and notes what is wrong.
func (p *policies) compile(c policy.Config) *policy.Policy {
	p.into(&c)
	rules, err := policy.Compile(c)
	p.join(err)
	return rules
}

// authorizers are the names of all that rules ask.
func (p *policies) authorizers() (names []string) {
	for i := range p.sets {
		if name := p.sets[i].Authorizer; name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// into puts what was read into c.
func (p *policies) into(c *policy.Config) {
	c.Rules, c.Peers, c.TokenRules, c.TokenSupport = p.sets, p.peers, p.tokens, tokenSupport
}

// tokenSupport is what this gateway can do with tokens besides looking for them in fields. It is never written.
var tokenSupport = policy.TokenSupport{}

// testPolicies runs the tests beside the policies; self is this gateway.
func (c *Config) testPolicies(self spiffe.ID) error {
	if c.policies == nil || len(c.policies.tests) == 0 {
		return nil
	}
	rules := c.Policy
	rules.Namespace, rules.TrustDomain = self.Namespace(), self.TrustDomain()
	return c.policies.test(io.Discard, c.policies.compile(rules), self)
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
		f := p.places[rule.Set].at(rule.At, rule.Error())
		if in := p.expressions[rule.Set]; rule.CEL != nil && in != nil {
			line, column := in.place(rule.CEL)
			if f.line = line; column > 0 {
				f.what = fmt.Sprintf("%s: column %d: %s", rule.At, column, rule.CEL.Problem)
			}
		}
		p.faults.list = append(p.faults.list, f)
		return
	}
	var token *policy.TokenRuleError
	if errors.As(err, &token) {
		p.faults.list = append(p.faults.list, p.tokenPlaces[token.Index].at(token.At, token.Error()))
		return
	}
	p.faults.list = append(p.faults.list, fault{what: err.Error()})
}

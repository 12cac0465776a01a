package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"culvert/pki/spiffe"
)

// rulesCompiler makes a snapshot.
type rulesCompiler struct {
	snapshot
	faults []error
	set    int    // under way
	at     string // its path
	inFrom string // what stands between an entry of from and its fields
	inTo   string
	named  map[string]uint32

	trusted trustDomains
	cel     *celCompiler // nil: there was no expression yet
}

// compileRules makes the snapshot of the Rules of a Config, nil if there are none.
func compileRules(cfg *Config) (*snapshot, []error) {
	sets := cfg.Rules
	c := &rulesCompiler{named: map[string]uint32{"": 0}, snapshot: snapshot{names: []string{""}}, trusted: newTrustDomains(cfg)}
	if n := len(cfg.Authorizers); n > maxAuthorizers {
		c.faults = append(c.faults, &EntryError{Field: "authorizers", Index: maxAuthorizers, Entry: cfg.Authorizers[maxAuthorizers], Reason: fmt.Sprintf("is one of %d; at most %d are let", n, maxAuthorizers)})
	}
	lists := ruleLists{ask: make(map[string][]uint32)}
	for i := range sets {
		set := &sets[i]
		c.set, c.at, c.inFrom, c.inTo = i, set.At, "", ""
		if set.Wrapped {
			c.inFrom, c.inTo = ".source", ".operation"
		}
		c.checkDuty(set, cfg.Authorizers)
		if !c.usable(set) || set.Mode == ModeOff {
			continue
		}
		scope := set.Scope.in(cfg.Namespace)
		c.checkScope(set)
		before := c.snapshot
		c.sets = append(c.sets, ruleSet{name: set.Name, scope: scope})
		duty := c.duty(set)
		first := len(c.rules)
		for k := range set.Rules {
			at := ""
			if !set.Flat {
				at = fmt.Sprintf("rules[%d].", k)
			}
			c.rule(&set.Rules[k], at, duty)
		}
		if cfg.Workloads != nil && !scope.selects(nil) && !slices.ContainsFunc(cfg.Workloads, scope.selects) {
			before.names = c.names // c.named knows where they are
			c.snapshot = before
			continue
		}
		switch {
		case set.Action != "" && set.Action != ActionAllow:
		case set.Mode == ModeReport:
			c.reportScopes.add(&scope, set.Name, set.place())
		default:
			c.allowScopes.add(&scope, set.Name, set.place())
		}
		lists.add(set, first, len(c.rules))
	}
	if len(c.faults) > 0 || len(c.sets) == 0 {
		return nil, c.faults
	}
	return c.finish(cfg, &lists), nil
}

// ruleLists are the rules by what comes of them.
type ruleLists struct {
	deny, allow, denyReport, allowReport, audit []uint32
	ask                                         map[string][]uint32 // by authorizer
}

// add puts rules of a set where they belong.
func (l *ruleLists) add(set *Rules, from, to int) {
	list := &l.allow
	switch report := set.Mode == ModeReport; {
	case set.Action == ActionAsk:
		for i := from; i < to; i++ {
			l.ask[set.Authorizer] = append(l.ask[set.Authorizer], uint32(i))
		}
		return
	case set.Action == ActionAudit:
		list = &l.audit
	case set.Action == ActionDeny && report:
		list = &l.denyReport
	case set.Action == ActionDeny:
		list = &l.deny
	case report:
		list = &l.allowReport
	}
	for i := from; i < to; i++ {
		*list = append(*list, uint32(i))
	}
}

// finish makes the snapshot that is kept.
func (c *rulesCompiler) finish(cfg *Config, lists *ruleLists) *snapshot {
	s := &snapshot{
		sets: slices.Clip(c.sets), rules: slices.Clip(c.rules), clauses: slices.Clip(c.clauses), tests: slices.Clip(c.tests), strings: slices.Clip(c.strings),
		blocks: slices.Clip(c.blocks), ports: slices.Clip(c.ports), names: c.names, programs: c.programs, allowScopes: c.allowScopes, reportScopes: c.reportScopes,
		duties: duties{own: slices.Clip(c.own), audited: &Obligations{Audit: true}},
	}
	s.allowScopes.settle(cfg.Workloads)
	s.reportScopes.settle(cfg.Workloads)
	for _, one := range []struct {
		list  []uint32
		x     *index
		later truth
	}{{lists.deny, &s.deny, no}, {lists.allow, &s.allow, yes}, {lists.denyReport, &s.denyReport, no}, {lists.allowReport, &s.allowReport, yes}, {lists.audit, &s.audit, yes}} {
		one.x.later = one.later
		one.x.build(s, one.list)
	}
	for _, name := range cfg.Authorizers {
		if rules := lists.ask[name]; len(rules) > 0 {
			s.addAsker(name, rules)
			delete(lists.ask, name)
		}
	}
	return s
}

func (c *rulesCompiler) fault(at, format string, args ...any) {
	c.faults = append(c.faults, &RuleError{Set: c.set, At: strings.TrimPrefix(c.at+"."+at, "."), Reason: fmt.Sprintf(format, args...)})
}

func (c *rulesCompiler) usable(set *Rules) bool {
	switch set.Action {
	case "", ActionAllow, ActionDeny, ActionAsk, ActionAudit:
	default:
		c.fault("action", "%q is no action; it should be ALLOW, DENY, ASK or AUDIT", set.Action)
	}
	switch set.Mode {
	case "", ModeEnforce, ModeReport, ModeOff:
	default:
		c.fault("mode", "%q is no mode; it should be enforce, report or off", set.Mode)
		return false
	}
	return true
}

// checkScope finds labels and names that no workload has, and with which a set would select nothing.
func (c *rulesCompiler) checkScope(set *Rules) {
	labels, names := "workloads.labels", "workloads.names[%d]"
	if set.Wrapped {
		labels, names = "selector.matchLabels", "targetRefs[%d]"
	}
	set.Scope.check(func(label string, name int, what string) {
		if name >= 0 {
			label = fmt.Sprintf(names, name)
		} else {
			label = labels + "." + label
		}
		c.fault(label, "%s", what)
	})
}

func (c *rulesCompiler) rule(r *Rule, at string, duty uint32) {
	c.sets[len(c.sets)-1].file = r.File
	out := ruleCode{set: uint32(len(c.sets) - 1), line: uint32(r.Line), duty: duty}
	var clauses []span
	for i := range r.From {
		clauses = append(clauses, c.source(&r.From[i], fmt.Sprintf("%sfrom[%d]%s", at, i, c.inFrom)))
	}
	out.from = c.addClauses(clauses)
	clauses = nil
	for i := range r.To {
		clauses = append(clauses, c.operation(&r.To[i], fmt.Sprintf("%sto[%d]%s", at, i, c.inTo)))
	}
	out.to = c.addClauses(clauses)
	from := len(c.tests)
	for i := range r.When {
		c.condition(&r.When[i], fmt.Sprintf("%swhen[%d]", at, i))
	}
	out.when = span{uint32(from), uint32(len(c.tests))}
	if r.CEL != "" {
		out.cel = c.expression(r.CEL, at+"cel")
	}
	c.rules = append(c.rules, out)
}

// expression compiles CEL and returns its number.
func (c *rulesCompiler) expression(text, at string) uint32 {
	if c.cel == nil {
		var err error
		if c.cel, err = newCELCompiler(); err != nil {
			panic("BUG: CEL: " + err.Error()) // which depends on nothing but what is written here
		}
	}
	p, fault := c.cel.compile(text)
	if fault != nil {
		c.fault(at, "%v", fault)
		c.faults[len(c.faults)-1].(*RuleError).CEL = fault
		return 0
	}
	c.programs = append(c.programs, p)
	return uint32(len(c.programs))
}

func (c *rulesCompiler) addClauses(list []span) span {
	from := len(c.clauses)
	c.clauses = append(c.clauses, list...)
	return span{uint32(from), uint32(len(c.clauses))}
}

// clause gathers tests.
func (c *rulesCompiler) clause(at string, add func()) span {
	from := len(c.tests)
	faults := len(c.faults)
	add()
	if len(c.tests) == from && len(c.faults) == faults {
		c.fault(at, "has no field, and would match everything; write at least one")
	}
	return span{uint32(from), uint32(len(c.tests))}
}

func (c *rulesCompiler) source(s *Source, at string) span {
	return c.clause(at, func() {
		c.list(ofPrincipal, at, "principals", s.Principals, s.NotPrincipals)
		c.list(ofRequestPrincipal, at, "requestPrincipals", s.RequestPrincipals, s.NotRequestPrincipals)
		c.list(ofNamespace, at, "namespaces", s.Namespaces, s.NotNamespaces)
		c.list(ofServiceAccount, at, "serviceAccounts", s.ServiceAccounts, s.NotServiceAccounts)
		c.list(ofSourceIP, at, "ipBlocks", s.IPBlocks, s.NotIPBlocks)
		c.list(ofRemoteIP, at, "remoteIpBlocks", s.RemoteIPBlocks, s.NotRemoteIPBlocks)
	})
}

func (c *rulesCompiler) operation(o *Operation, at string) span {
	return c.clause(at, func() {
		c.list(ofHost, at, "hosts", o.Hosts, o.NotHosts)
		c.list(ofPort, at, "ports", o.Ports, o.NotPorts)
		c.list(ofMethod, at, "methods", o.Methods, o.NotMethods)
		c.list(ofPath, at, "paths", o.Paths, o.NotPaths)
	})
}

// conditionKeys are the attributes of conditions without a name. It is never written.
var conditionKeys = map[string]attribute{
	"source.ip": ofSourceIP, "remote.ip": ofRemoteIP, "source.namespace": ofNamespace, "source.principal": ofPrincipal,
	"source.serviceAccount": ofServiceAccount, "request.auth.principal": ofRequestPrincipal, "request.auth.audiences": ofAudience,
	"request.auth.presenter": ofPresenter, "destination.ip": ofDestinationIP, "destination.port": ofPort, "connection.sni": ofSNI,
}

func (c *rulesCompiler) condition(w *Condition, at string) {
	attr, known := conditionKeys[w.Key]
	var name string
	if !known {
		var fault string
		if attr, name, fault = namedKey(w.Key); fault != "" {
			c.fault(at+".key", "%q %s", w.Key, fault)
			return
		}
	}
	if len(w.Values)+len(w.NotValues) == 0 {
		c.fault(at, "has neither values nor notValues; write what %s is compared with", w.Key)
		return
	}
	c.compare(attr, name, at, "values", w.Values, false)
	c.compare(attr, name, at, "notValues", w.NotValues, true)
}

// namedKey reads request.headers[NAME] and request.auth.claims[NAME][NAME].
func namedKey(key string) (a attribute, name, fault string) {
	prefix, rest, ok := strings.Cut(key, "[")
	switch {
	case ok && prefix == "request.headers":
		a = ofHeader
	case ok && prefix == "request.auth.claims":
		a = ofClaim
	default:
		return 0, "", "is no key that this gateway knows; it should be one such as source.ip, destination.port, request.headers[x-name] or request.auth.claims[iss]"
	}
	inner, closed := strings.CutSuffix(rest, "]")
	parts := strings.Split(inner, "][")
	if !closed || slices.Contains(parts, "") || a == ofHeader && len(parts) > 1 {
		return 0, "", "has no name in its brackets; write " + prefix + "[NAME]"
	}
	if a == ofHeader {
		return a, strings.ToLower(parts[0]), ""
	}
	return a, strings.Join(parts, "\x00"), ""
}

// list adds the tests of a field and of its opposite.
func (c *rulesCompiler) list(a attribute, at, field string, values, not []string) {
	c.compare(a, "", at, field, values, false)
	c.compare(a, "", at, "not"+strings.ToUpper(field[:1])+field[1:], not, true)
}

// compare adds the test of a list, unless that is empty.
func (c *rulesCompiler) compare(a attribute, name, at, field string, values []string, negated bool) {
	if len(values) == 0 {
		return
	}
	t := test{attribute: a, negated: negated}
	if name != "" {
		i, there := c.named[name]
		if !there {
			i = uint32(len(c.names))
			c.names = append(c.names, name)
			c.named[name] = i
		}
		t.name = i
	}
	var length func() int
	switch a {
	case ofPort:
		length = func() int { return len(c.ports) }
	case ofSourceIP, ofRemoteIP, ofDestinationIP:
		length = func() int { return len(c.blocks) }
	default:
		length = func() int { return len(c.strings) }
	}
	from := length()
	for i, value := range values {
		if fault := c.value(a, value); fault != "" {
			c.fault(fmt.Sprintf("%s.%s[%d]", at, field, i), "%q %s", value, fault)
		}
	}
	t.values = span{uint32(from), uint32(length())}
	c.tests = append(c.tests, t)
}

// value adds one value of a list.
func (c *rulesCompiler) value(a attribute, value string) (fault string) {
	switch a {
	case ofPort:
		port, ok := parsePort(value)
		if !ok {
			return "is no port; it should be a number from 1 to 65535"
		}
		c.ports = append(c.ports, port)
		return ""
	case ofSourceIP, ofRemoteIP, ofDestinationIP:
		prefix, fault := parseBlock(value)
		if fault == "" {
			c.blocks = append(c.blocks, prefix)
		}
		return fault
	}
	m, fault := parseMatch(a, value, c.namespace())
	if fault != "" {
		return fault
	}
	if a != ofPrincipal || m.kind != isExactly && m.kind != hasPrefix {
		c.strings = append(c.strings, m)
		return ""
	}
	istio := c.inFrom != ""
	if !c.trusted.replaced(m.text, istio) {
		c.strings = append(c.strings, m)
	}
	for _, text := range c.trusted.others(m.text, istio) {
		c.strings = append(c.strings, stringMatch{kind: m.kind, text: text})
	}
	return ""
}

// namespace is that of the set under way.
func (c *rulesCompiler) namespace() string { return c.sets[len(c.sets)-1].scope.Namespace }

// parseBlock reads an address or a range.
func parseBlock(value string) (prefix netip.Prefix, fault string) {
	if addr, err := netip.ParseAddr(value); err == nil && addr.Zone() == "" {
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), ""
	}
	prefix, err := netip.ParsePrefix(value)
	if err != nil {
		return prefix, "is neither an address nor a range; it should be one such as 10.0.0.9 or 10.0.0.0/8"
	}
	if prefix.Addr().Is4In6() {
		return prefix, "is an IPv4 range in IPv6 clothes; write it as IPv4, such as 10.0.0.0/8"
	}
	return prefix.Masked(), ""
}

// parseMatch reads a text with a "*" at one of its ends, or none.
func parseMatch(a attribute, value, namespace string) (m stringMatch, fault string) {
	if value == "" {
		return m, "is empty; write a value, or * for any"
	}
	if a == ofHost {
		value = strings.ToLower(strings.TrimSuffix(value, "."))
	}
	if a == ofPath && strings.Contains(value, "{") {
		return parseTemplate(value)
	}
	switch stars := strings.Count(value, "*"); {
	case value == "*":
		return stringMatch{kind: isPresent}, ""
	case stars == 0:
		m = stringMatch{kind: isExactly, text: value}
	case stars == 1 && strings.HasSuffix(value, "*"):
		m = stringMatch{kind: hasPrefix, text: value[:len(value)-1]}
	case stars == 1 && value[0] == '*':
		m = stringMatch{kind: hasSuffix, text: value[1:]}
	default:
		return m, `has a "*" inside; one may stand at the beginning or at the end`
	}
	return m, m.checkIdentity(a, namespace)
}

// checkIdentity finds values that no identity has, which would make a rule something else than what was meant.
func (m *stringMatch) checkIdentity(a attribute, namespace string) (fault string) {
	switch a {
	case ofServiceAccount:
		if m.kind != isExactly {
			return `has a "*"; a service account is written whole, as NAMESPACE/ACCOUNT or ACCOUNT`
		}
		ns, account, ok := strings.Cut(m.text, "/")
		if !ok {
			ns, account = namespace, m.text
		}
		if ns == "" {
			return "has no namespace, and the policy is for all of them; write NAMESPACE/ACCOUNT"
		}
		if _, err := spiffe.New("x", ns, account); err != nil {
			return "is no service account; write NAMESPACE/ACCOUNT"
		}
		m.text = ns + "/sa/" + account
	case ofPrincipal:
		if m.kind == isExactly && strings.HasPrefix(m.text, keyScheme) {
			if _, err := spiffe.ParseKey(m.text); err != nil {
				return "is no self-made key; write key: and the 52 letters that follow it"
			}
			return ""
		}
		if strings.HasPrefix(m.text, scheme) {
			return "begins with spiffe://, which principals are written without"
		}
		if fault := foreignText(m.text); fault != "" {
			return fault
		}
		if m.kind == isExactly {
			if _, err := spiffe.Parse(scheme + m.text); err != nil {
				return "is no identity; write TRUSTDOMAIN/ns/NAMESPACE/sa/ACCOUNT"
			}
		}
	case ofNamespace:
		if strings.Trim(m.text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_") != "" {
			return "is no namespace, which has letters, digits, \".\", \"-\" and \"_\""
		}
	}
	return ""
}

// parseTemplate reads a path with "{*}" and, once, "{**}".
func parseTemplate(value string) (m stringMatch, fault string) {
	const want = `; "{*}" stands for a whole segment, "{**}" for any number of them`
	if !strings.HasPrefix(value, "/") {
		return m, "does not begin with /" + want
	}
	for segment := range strings.SplitSeq(value, "/") {
		if segment != "{*}" && segment != "{**}" && strings.ContainsAny(segment, "{}*") {
			return m, "has a segment that is no template" + want
		}
	}
	if strings.Count(value, "{**}") > 1 {
		return m, `has "{**}" twice`
	}
	return stringMatch{kind: isTemplate, text: value}, ""
}

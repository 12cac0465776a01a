package policy

import (
	"fmt"
	"hash/maphash"
	"math/bits"
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
}

// compileRules makes the snapshot of the Rules of a Config, nil if there are none.
func compileRules(cfg *Config) (*snapshot, []error) {
	sets, workloads := cfg.Rules, cfg.Workloads
	c := &rulesCompiler{named: map[string]uint32{"": 0}, snapshot: snapshot{names: []string{""}}}
	var deny, allow, denyReport, allowReport []uint32
	for i := range sets {
		set := &sets[i]
		c.set, c.at, c.inFrom, c.inTo = i, set.At, "", ""
		if set.Wrapped {
			c.inFrom, c.inTo = ".source", ".operation"
		}
		if !c.usable(set) || set.Mode == ModeOff {
			continue
		}
		before := c.snapshot
		scope := set.Scope.in(cfg.Namespace)
		list := &allow
		switch report := set.Mode == ModeReport; {
		case set.Action == ActionDeny && report:
			list = &denyReport
		case set.Action == ActionDeny:
			list = &deny
		case report:
			list = &allowReport
			c.reportScopes.add(&scope, set.Name, set.place())
		default:
			c.allowScopes.add(&scope, set.Name, set.place())
		}
		c.sets = append(c.sets, ruleSet{name: set.Name, scope: scope})
		for k := range set.Rules {
			*list = append(*list, uint32(len(c.rules)))
			c.rule(&set.Rules[k], k)
		}
		if workloads != nil && !scope.selects(nil) && !slices.ContainsFunc(workloads, scope.selects) {
			*list = (*list)[:len(*list)-len(set.Rules)]
			before.names = c.names // c.named knows where they are
			c.snapshot = before
		}
	}
	if len(c.faults) > 0 || len(c.sets) == 0 {
		return nil, c.faults
	}
	s := &snapshot{
		sets: slices.Clip(c.sets), rules: slices.Clip(c.rules), clauses: slices.Clip(c.clauses), tests: slices.Clip(c.tests), strings: slices.Clip(c.strings),
		blocks: slices.Clip(c.blocks), ports: slices.Clip(c.ports), names: c.names, allowScopes: c.allowScopes, reportScopes: c.reportScopes,
	}
	s.allowScopes.settle(workloads)
	s.reportScopes.settle(workloads)
	for _, one := range []struct {
		list []uint32
		x    *index
	}{{deny, &s.deny}, {allow, &s.allow}, {denyReport, &s.denyReport}, {allowReport, &s.allowReport}} {
		one.x.build(s, one.list)
	}
	return s, nil
}

func (c *rulesCompiler) fault(at, format string, args ...any) {
	c.faults = append(c.faults, &RuleError{Set: c.set, At: strings.TrimPrefix(c.at+"."+at, "."), Reason: fmt.Sprintf(format, args...)})
}

func (c *rulesCompiler) usable(set *Rules) bool {
	switch set.Action {
	case "", ActionAllow, ActionDeny:
	default:
		c.fault("action", "%q is no action here; it should be ALLOW or DENY", set.Action)
	}
	switch set.Mode {
	case "", ModeEnforce, ModeReport, ModeOff:
	default:
		c.fault("mode", "%q is no mode; it should be enforce, report or off", set.Mode)
		return false
	}
	return true
}

func (c *rulesCompiler) rule(r *Rule, k int) {
	set := &c.sets[len(c.sets)-1]
	set.file = r.File
	out := ruleCode{set: uint32(len(c.sets) - 1), line: uint32(r.Line)}
	at := fmt.Sprintf("rules[%d]", k)
	var clauses []span
	for i := range r.From {
		clauses = append(clauses, c.source(&r.From[i], fmt.Sprintf("%s.from[%d]%s", at, i, c.inFrom)))
	}
	out.from = c.addClauses(clauses)
	clauses = nil
	for i := range r.To {
		clauses = append(clauses, c.operation(&r.To[i], fmt.Sprintf("%s.to[%d]%s", at, i, c.inTo)))
	}
	out.to = c.addClauses(clauses)
	from := len(c.tests)
	for i := range r.When {
		c.condition(&r.When[i], fmt.Sprintf("%s.when[%d]", at, i))
	}
	out.when = span{uint32(from), uint32(len(c.tests))}
	c.rules = append(c.rules, out)
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
	if fault == "" {
		c.strings = append(c.strings, m)
	}
	return fault
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
		if strings.HasPrefix(m.text, scheme) {
			return "begins with spiffe://, which principals are written without"
		}
		if strings.HasPrefix(m.text, "key:") {
			return keyFault(m)
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

// keyFault says what is wrong with the name of a self-made key, "" if it is right. Names of keys have no parts that a
// prefix could stand for.
func keyFault(m *stringMatch) string {
	if m.kind != isExactly {
		return "has a \"*\" in the name of a key; write the whole name"
	}
	if _, err := spiffe.ParseKey(m.text); err != nil {
		return "is no name of a key; write key: and its 52 letters"
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

// build makes the index of some rules of s. Each stands under the values of the attribute that the fewest others share.
func (x *index) build(s *snapshot, list []uint32) {
	x.seed, x.size = maphash.MakeSeed(), len(list)
	x.heads = make([]uint32, 1<<bits.Len(uint(len(list))))
	popular := make([]uint32, len(x.heads)) // rules that could stand in each place
	var keys []indexKey
	for _, i := range list {
		for choice := range numChoices {
			keys, _ = s.keysOf(i, choice, keys[:0])
			for k := range keys {
				popular[x.place(&keys[k])]++
			}
		}
	}
	var best []indexKey
	for _, i := range list {
		least, found := uint32(0), false
		for choice := range numChoices {
			var ok bool
			if keys, ok = s.keysOf(i, choice, keys[:0]); !ok {
				continue
			}
			worst := uint32(0)
			for k := range keys {
				worst = max(worst, popular[x.place(&keys[k])])
			}
			if !found || worst < least {
				best, least, found = append(best[:0], keys...), worst, true
			}
		}
		if !found {
			x.always = append(x.always, i)
			continue
		}
		for k := range best {
			x.add(&best[k], i)
		}
	}
	x.entries, x.always = slices.Clip(x.entries), slices.Clip(x.always)
}

func (x *index) add(k *indexKey, i uint32) {
	x.used[k.kind] = true
	if k.prefix.IsValid() {
		length := uint8(k.prefix.Bits())
		if k.prefix.Addr().Is6() {
			length += lengthIPv6
		}
		if !slices.Contains(x.lengths[k.kind], length) {
			x.lengths[k.kind] = append(x.lengths[k.kind], length)
		}
	}
	head := &x.heads[x.place(k)]
	x.entries = append(x.entries, indexEntry{rule: i, next: *head})
	*head = uint32(len(x.entries))
}

// numChoices is by how many parts of a rule it can be found: from, to, and each kind of condition.
const (
	choiceFrom = iota
	choiceTo
	choiceWhen
	numChoices
)

// keysOf returns the keys under which a rule may stand by one of its parts; ok is false where it has no such values.
func (s *snapshot) keysOf(i uint32, choice int, keys []indexKey) (list []indexKey, ok bool) {
	r := &s.rules[i]
	part := r.from
	switch choice {
	case choiceTo:
		part = r.to
	case choiceWhen:
		return s.keysOfTests(r.when, keys)
	}
	for c := part.from; c < part.to; c++ {
		if keys, ok = s.keysOfTests(s.clauses[c], keys); !ok {
			return nil, false
		}
	}
	return keys, part.from < part.to
}

// keysOfTests adds the keys of one of some tests, all of which have to hold.
func (s *snapshot) keysOfTests(part span, keys []indexKey) (list []indexKey, ok bool) {
	for i := part.from; i < part.to; i++ {
		if more, ok := s.keysOfTest(&s.tests[i], keys); ok {
			return more, true
		}
	}
	return keys, false
}

// keyKinds are the attributes by which rules are found. It is never written.
var keyKinds = map[attribute]keyKind{
	ofPrincipal: byPrincipal, ofServiceAccount: byAccount, ofNamespace: byNamespace, ofPort: byPort, ofSourceIP: bySource, ofDestinationIP: byDestination,
}

func (s *snapshot) keysOfTest(t *test, keys []indexKey) (list []indexKey, ok bool) {
	kind, ok := keyKinds[t.attribute]
	if !ok || t.negated {
		return keys, false
	}
	for i := t.values.from; i < t.values.to; i++ {
		switch kind {
		case byPort:
			keys = append(keys, indexKey{kind: kind, port: s.ports[i]})
		case bySource, byDestination:
			keys = append(keys, indexKey{kind: kind, prefix: s.blocks[i]})
		default:
			if s.strings[i].kind != isExactly {
				return keys, false
			}
			keys = append(keys, indexKey{kind: kind, text: s.strings[i].text})
		}
	}
	return keys, true
}

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"culvert/pki/spiffe"
	"culvert/policy"
	"culvert/tunnel"
)

// Bounds of what a replay keeps, whatever a log holds.
const (
	// maxQuestions is how many different questions are remembered with their answers, and maxQuestionBytes what they
	// may take; then it begins anew. Asking again costs time and changes nothing.
	maxQuestions     = 1 << 16
	maxQuestionBytes = 32 << 20
	// maxNamespaces is of how many namespaces the gateways may be whose records are replayed: what is a policy's own
	// namespace differs with it, so that each takes a compilation.
	maxNamespaces = 64
)

// Why a record that can be read cannot be replayed.
var (
	errAskOld       = errors.New("the record has no decision: it is of a gateway before `gateway policy replay`")
	errAskValue     = errors.New("a value is none that a gateway writes")
	errAskAddrs     = errors.New("the name had more addresses than a record holds")
	errAskLabels    = errors.New("the labels of the workload are not known, and the candidate asks for labels; give the configuration with its `workloads:` by -c FILE")
	errAskWorkloads = errors.New("the record does not tell which workload each address of the name is; give the configuration with its `workloads:` by -c FILE")
	errAskToken     = errors.New("the flow showed a token, of which records have the name only, and the candidate asks for tokens")
	errAskMoment    = errors.New("the candidate has an expression that asks for the time or the port of the source, which are not replayed")
	errAskMany      = errors.New("there are gateways of more namespaces than can be replayed at once")
)

// candidate is a policy that is asked what gateways were asked.
type candidate struct {
	policies  *policies
	base      policy.Config                   // without what depends on who the gateway was
	complete  bool                            // the configuration is there: what it does not name is the gateway itself
	name      string                          // of the gateway, "" where its identity names it
	workloads map[netip.Addr]*policy.Workload // of the configuration; without a namespace those of the gateway's own
	labels    bool                            // it asks for labels
	tokens    bool                            // it asks for tokens
	moment    bool                            // it asks for what differs from flow to flow

	compiled map[string]*policy.Policy // by the namespace of the gateway
	answers  map[string]*answer        // by the question
	bytes    int                       // of its keys
	key      []byte                    // of the question that is asked
}

// answer is what the candidate says to a question.
type answer struct {
	policy.Decision
	problem  error // why it cannot be asked
	nameOnly bool  // the addresses of the name were not known
}

// newCandidate makes a candidate of policies that have no fault, of entries as of `gateway run --allow`, and of the
// configuration that it is for, nil if there is none.
func newCandidate(p *policies, allow []string, cfg *Config) *candidate {
	c := &candidate{policies: p, base: policy.Config{Allow: allow, Authorizers: p.authorizers()}, workloads: make(map[netip.Addr]*policy.Workload), compiled: make(map[string]*policy.Policy), answers: make(map[string]*answer)}
	if cfg != nil {
		c.complete, c.name = true, cfg.Name
		c.base.Allow, c.base.TrustDomainAliases = append(slices.Clone(cfg.Policy.Allow), allow...), cfg.Trust.Aliases
		c.base.TokenIssuers = cfg.Tokens.Names()
		for i := range cfg.Workloads {
			c.addWorkload(&cfg.Workloads[i])
		}
	}
	c.labels = slices.ContainsFunc(p.sets, func(s policy.Rules) bool { return len(s.Scope.Labels) > 0 }) ||
		slices.ContainsFunc(p.peers, func(r policy.PeerRule) bool { return len(r.Scope.Labels) > 0 })
	c.tokens = len(p.tokens) > 0
	for i := range p.sets {
		for j := range p.sets[i].Rules {
			c.look(&p.sets[i].Rules[j])
		}
	}
	return c
}

// look notes what a rule asks for that records do not have.
func (c *candidate) look(r *policy.Rule) {
	c.tokens = c.tokens || strings.Contains(r.CEL, "token")
	c.moment = c.moment || strings.Contains(r.CEL, "time") || strings.Contains(r.CEL, "source.port")
	for _, s := range r.From {
		c.tokens = c.tokens || len(s.RequestPrincipals)+len(s.NotRequestPrincipals) > 0
	}
	for _, w := range r.When {
		c.tokens = c.tokens || strings.HasPrefix(w.Key, "request.auth.")
	}
}

func (c *candidate) addWorkload(w *tunnel.WorkloadConfig) {
	for _, text := range w.Addresses {
		if addr, err := netip.ParseAddr(text); err == nil { // validate has looked at it
			c.workloads[addr.Unmap()] = &policy.Workload{Name: w.Name, Namespace: w.Namespace, Labels: w.Labels}
		}
	}
}

// ask asks what the gateway was asked about the flow of r. Equal questions are asked once, as long as they are remembered.
func (c *candidate) ask(r *flowRecord) *answer {
	c.key = c.key[:0]
	for k := keyListener; k < numRecordKeys; k++ {
		value := r.get(k)
		switch k {
		case keyBy, keyRule, keyReason, keyDecided:
			continue // what came of it
		case keySrc:
			value = value[:max(bytes.LastIndexByte(value, ':'), 0)] // no rule asks for the port
		case keyDst:
			if r.has(keyHost) && !r.has(keyUnresolved) {
				value = nil
			}
		}
		c.key = append(binary.AppendUvarint(c.key, uint64(len(value))), value...)
	}
	if a := c.answers[string(c.key)]; a != nil {
		return a
	}
	a := c.answer(r)
	if len(c.answers) >= maxQuestions || c.bytes > maxQuestionBytes {
		clear(c.answers)
		c.bytes = 0
	}
	c.answers[string(c.key)] = a
	c.bytes += len(c.key)
	return a
}

// answer decides, as tunnel.Gateway does: about the destination as it was asked for, and, where that is a name which was
// resolved, about each of its addresses, of which one that is refused refuses all.
func (c *candidate) answer(r *flowRecord) *answer {
	q := newAsking(r)
	if q.err != nil {
		return &answer{problem: q.err}
	}
	switch {
	case c.moment:
		return &answer{problem: errAskMoment}
	case c.tokens && r.has(keyToken):
		return &answer{problem: errAskToken}
	}
	rules := c.compile(q.Self)
	if rules == nil {
		return &answer{problem: errAskMany}
	}
	if q.err = c.setWorkload(q, q.Addr); q.err != nil {
		return &answer{problem: q.err}
	}
	a := &answer{Decision: rules.Decide(&q.Request), nameOnly: q.Unresolved && len(q.addrs) == 0}
	for _, q.Addr = range q.addrs {
		if !a.Allow {
			break
		}
		if err := c.setWorkload(q, q.Addr); err != nil {
			return &answer{problem: err}
		}
		// What lets a flow pass is told of its name; what refuses it, of the address.
		if d := rules.Decide(&q.Request); !d.Allow {
			a.Decision = d
		}
	}
	return a
}

// compile returns the policy for a gateway of that trust domain and namespace, nil if there are too many of them.
func (c *candidate) compile(self spiffe.ID) *policy.Policy {
	of := c.base
	of.TrustDomain, of.Namespace = self.TrustDomain(), self.Namespace()
	key := of.TrustDomain + "/" + of.Namespace
	if p := c.compiled[key]; p != nil || len(c.compiled) >= maxNamespaces {
		return p
	}
	p := c.policies.compile(of)
	c.compiled[key] = p
	return p
}

// asking is a request that is made of a record.
type asking struct {
	policy.Request
	addrs    []netip.Addr // of the name, where they were asked about
	workload string       // NAMESPACE/NAME, of the address that was dialled; "": the gateway itself
	judged   netip.Addr   // that address; not valid for a name that was not resolved here
	err      error        // why it cannot be asked
}

// newAsking reads the values of a record, as strictly as they were written.
func newAsking(r *flowRecord) *asking {
	q := &asking{workload: string(r.get(keyWorkload))}
	q.Listener, q.Open = string(r.get(keyListener)), string(r.get(keyOpen))
	q.Local, q.Unresolved = q.flag(r, keyLocal), q.flag(r, keyUnresolved)
	q.check(q.Peer.UnmarshalText(r.get(keyPeer)))
	q.check(q.Self.UnmarshalText(r.get(keySelf)))
	if src := string(r.get(keySrc)); src != "" {
		at, err := netip.ParseAddrPort(src)
		q.check(err)
		q.Source = netip.AddrPortFrom(at.Addr(), 0)
	}
	q.SNI, q.BadToken = string(r.get(keySNI)), string(r.get(keyBadToken))
	if remote := string(r.get(keyRemote)); remote != "" {
		var err error
		q.Remote, err = netip.ParseAddr(remote)
		q.check(err)
	}
	if r.has(keyMethod) { // its fields are in no record
		q.HTTP = &policy.HTTP{
			Method: string(r.get(keyMethod)), Path: string(r.get(keyPath)), Host: string(r.get(keyAuthority)),
			Header: func(string) (string, bool) { return "", false },
		}
	}
	host, dst := string(r.get(keyHost)), string(r.get(keyDst))
	switch {
	case host != "":
		q.check(setDestination(&q.Request, host))
		q.Unresolved = string(r.get(keyUnresolved)) == "true" // by the route, and not by the form
		if q.err == nil && q.Host == "" {
			q.err = errAskValue
		}
	case strings.HasPrefix(dst, "unix:"), dst == "": // of which policy sees neither address nor port
	default:
		q.check(setDestination(&q.Request, dst))
		if q.err == nil && (q.Host != "" || r.has(keyUnresolved)) {
			q.err = errAskValue
		}
	}
	if r.has(keyPort) { // of the endpoint, which is what policy is asked about
		port, err := strconv.ParseUint(string(r.get(keyPort)), 10, 16)
		q.check(err)
		q.Port = uint16(port)
	}
	q.judged = q.Addr
	if q.Unresolved && q.err == nil {
		q.setAddrs(string(r.get(keyAddrs)), dst)
	}
	return q
}

// check notes that a value is none.
func (q *asking) check(err error) {
	if err != nil {
		q.err = errAskValue
	}
}

// flag reads a key that is there where something holds.
func (q *asking) flag(r *flowRecord, k recordKey) bool {
	if value := r.get(k); r.has(k) && string(value) != "true" {
		q.err = errAskValue
	}
	return r.has(k)
}

// setAddrs notes the addresses of the name: all of them, or the one that was dialled, or none if it was not resolved.
func (q *asking) setAddrs(list, dst string) {
	if dst != "" {
		to, err := tunnel.ParseAuthority(dst)
		if q.check(err); err != nil {
			return
		}
		q.judged = to.Addr
		q.addrs = []netip.Addr{to.Addr}
	}
	if list == "" {
		return
	}
	q.addrs = nil
	for text := range strings.SplitSeq(list, ",") {
		if strings.HasPrefix(text, "+") {
			q.err = errAskAddrs
			return
		}
		addr, err := netip.ParseAddr(text)
		if q.check(err); err != nil {
			return
		}
		q.addrs = append(q.addrs, addr)
	}
	if !slices.Contains(q.addrs, q.judged) {
		q.judged = q.addrs[0]
	}
}

// setWorkload finds out what the destination is, whose address is addr: a workload of the configuration, that of the
// record, or the gateway itself.
func (c *candidate) setWorkload(q *asking, addr netip.Addr) error {
	own := policy.Workload{Name: c.name, Namespace: q.Self.Namespace()}
	if own.Name == "" {
		own.Name = q.Self.ServiceAccount()
	}
	if own.Name == "" {
		own.Name = "gateway" // as tunnel has it
	}
	q.Workload = &own
	if w := c.workloads[addr]; w != nil {
		own.Name, own.Labels = w.Name, w.Labels
		if w.Namespace != "" {
			own.Namespace = w.Namespace
		}
		return nil
	}
	switch {
	case q.workload == "", q.workload == own.Namespace+"/"+own.Name:
		return nil
	case !addr.IsValid() && q.judged.IsValid() && c.complete:
		return nil // before a name is resolved
	case addr != q.judged:
		return errAskWorkloads
	}
	var ok bool
	if own.Namespace, own.Name, ok = strings.Cut(q.workload, "/"); !ok {
		return errAskValue
	}
	if c.labels {
		return errAskLabels
	}
	return nil
}

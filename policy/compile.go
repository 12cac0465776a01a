package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"culvert/pki/spiffe"
)

// Config says who may pass and what may be reached. The zero value is the default policy alone and an egress
// guard without entries. It must not be changed after it was handed over.
type Config struct {
	// Allow lists the peers that are let in besides those of this gateway's own trust domain and namespace,
	// which always are. An entry is a SPIFFE ID with or without "spiffe://"
	// ("cluster.local/ns/shop/sa/orders"), the beginning of one ("cluster.local/ns/shop/*"), the end of one
	// ("*/sa/orders"), "*" for every peer that has an identity, or "any" for every peer, also one without.
	// A "*" stands for any characters, also "/". Default: none.
	Allow []string `yaml:"allow"`

	// Mode is how far all of this is in force on this gateway: `enforce`; `report`, where every flow passes, and what would
	// have been refused is told in the log, by rule; or `off`, where nobody asks. The egress guard and routes stand in all of
	// them. Default: enforce.
	Mode Mode `yaml:"mode"`

	// Egress lists what flows may reach through this gateway when it dials on their behalf: a name
	// ("api.example.com"), all names below one ("*.example.com", not example.com itself), an address
	// ("10.1.2.3", "2001:db8::1") or a range ("10.0.0.0/8"), each with an optional port
	// ("api.example.com:443", "[2001:db8::1]:443", "10.0.0.0/8:443"), or "*" for all that is not guarded.
	// With an entry here nothing else may be reached. Default: none, which allows every public address
	// where a route leads to it.
	//
	// An entry also lifts the guard for what it names. An address or range lifts it for the guarded range in
	// which it lies, so "10.1.0.0/16" opens private addresses, and neither "0.0.0.0/0" nor
	// "169.254.0.0/16" opens the metadata service at 169.254.169.254, which wants "169.254.169.254" itself. A
	// name lifts it for private addresses that the name resolves to, and never for loopback, link-local and
	// metadata addresses and other special ranges (except that "localhost" opens loopback). Ports 22, 25 and
	// those of a gateway's own use have to be written: "db.example.com:22".
	Egress []string `yaml:"egress"`

	// TrustDomainAliases are other names of this gateway's trust domain, such as the one it had before: a principal of a rule
	// or of Allow that is written with one of them is meant for all of them. The default policy knows only the own
	// trust domain. In policies of Istio "cluster.local" is such a name without being listed here. Default: none.
	TrustDomainAliases []string `yaml:"-"`

	// Files are files of policies: rules of this gateway's own, and AuthorizationPolicies, PeerAuthentications and
	// RequestAuthentications of Istio as `kubectl get -o yaml` prints them. `gateway policy check FILE` says what is wrong with one. A changed file is read
	// again, and flows that it does not let pass any more end. Default: none.
	Files []string `yaml:"files"`

	// Rules are what was read from Files.
	Rules []Rules `yaml:"-"`
	// Peers are what was read from Files of peers without an identity.
	Peers []PeerRule `yaml:"-"`
	// TokenRules are what was read from Files of tokens.
	TokenRules []TokenRule `yaml:"-"`
	// Authorizers are the names of those that rules may ask.
	Authorizers []string `yaml:"-"`
	// TokenIssuers are those whose tokens count for every workload. Of other issuers that TokenRules name they count only for the
	// workloads of those rules, and for others it is as if none was shown.
	TokenIssuers []string `yaml:"-"`
	// TokenSupport is what this hop can do with tokens.
	TokenSupport TokenSupport `yaml:"-"`
	// Namespace is that of this gateway.
	Namespace string `yaml:"-"`
	// TrustDomain is that of this gateway; "" is not known, and then there are no aliases.
	TrustDomain string `yaml:"-"`
	// Workloads are all that requests will name; rules for others are left out. Nil: any may come.
	Workloads []*Workload `yaml:"-"`
}

// Validate reports all faults of c at once, each as an *EntryError inside one joined error, or nil.
func (c *Config) Validate() error {
	_, faults := compileAllow(c)
	switch c.Mode {
	case "", ModeEnforce, ModeReport, ModeOff:
	default:
		faults = append(faults, &EntryError{Field: "mode", Index: -1, Entry: string(c.Mode), Reason: "is no mode; it should be enforce, report or off"})
	}
	_, more := parseEntries(policyEgress, c.Egress)
	checked := *c
	checked.Workloads = nil
	_, rules := compileRules(&checked)
	_, tokens := compileTokens(&checked)
	return errors.Join(slices.Concat(faults, more, rules, tokens)...)
}

// EntryError is a fault of one entry of a list in a configuration. Errors of Compile, CompileEgress and
// Config.Validate are joined EntryErrors: their Unwrap() []error has one per faulty entry.
type EntryError struct {
	// Field is the list: "allow", "egress" or the name given to CompileEgress.
	Field string
	// Index is the entry's place in the list, from zero; -1 where the field is no list.
	Index int
	// Entry is the entry as it was written.
	Entry string
	// Reason says what is wrong with it and what would be right.
	Reason string
}

// Error returns list, place, entry and reason on one line.
func (e *EntryError) Error() string {
	if e.Index < 0 {
		return fmt.Sprintf("%s %q: %s", e.Field, e.Entry, e.Reason)
	}
	return fmt.Sprintf("%s[%d] %q: %s", e.Field, e.Index, e.Entry, e.Reason)
}

// Compile makes the Policy of c.Allow, c.Rules, c.Peers and c.TokenRules. All faults are reported at once (see EntryError,
// RuleError and TokenRuleError); then the Policy is nil. c.Egress is left to CompileEgress.
func Compile(c Config) (*Policy, error) {
	p, faults := compileAllow(&c)
	rules, more := compileRules(&c)
	tokens, others := compileTokens(&c)
	if faults = slices.Concat(faults, more, others); len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	p.rules, p.peers, p.tokens = rules, compilePeers(&c), tokens
	return p, nil
}

func compileAllow(c *Config) (*Policy, []error) {
	p := &Policy{entries: len(c.Allow), exact: make(map[spiffe.ID]Decision), aliases: c.TrustDomainAliases, mode: c.Mode}
	var faults []error
	for i, td := range c.TrustDomainAliases {
		if spiffe.CheckTrustDomain(td) != nil {
			faults = append(faults, &EntryError{Field: "trustDomainAliases", Index: i, Entry: td, Reason: "is no trust domain; write one such as old.example"})
		}
	}
	aliases := newTrustDomains(c)
	for i, entry := range c.Allow {
		pr, fault := parsePrincipal(entry)
		if fault != "" {
			faults = append(faults, &EntryError{Field: policyAllow, Index: i, Entry: entry, Reason: fault})
			continue
		}
		d := Decision{
			Allow:  true,
			Policy: policyAllow,
			Rule:   rule(policyAllow, i),
			Reason: fmt.Sprintf("allow entry %q names the peer", entry),
		}
		p.add(pr, d)
		for _, other := range aliases.others(strings.TrimPrefix(entry, scheme), false) {
			if pr, fault := parsePrincipal(other); fault == "" {
				p.add(pr, d)
			}
		}
	}
	return p, faults
}

// add puts an entry where Decide looks for it. Of two entries for the same peers the first one decides.
func (p *Policy) add(pr principal, d Decision) {
	switch pr.kind {
	case anyone:
		if !p.anyone.Allow {
			p.anyone = d
		}
	case exactly:
		if _, ok := p.exact[pr.id]; !ok {
			p.exact[pr.id] = d
		}
	default:
		p.patterns = append(p.patterns, pattern{principal: pr, decision: d})
	}
}

// rule names entry i of the list called name, as in Decision.Rule.
func rule(name string, i int) string {
	return fmt.Sprintf("%s[%d]", name, i)
}

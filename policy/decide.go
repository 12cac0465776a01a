package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"culvert/pki/spiffe"
)

// Request is what one hop knows of a flow when it decides.
type Request struct {
	// Peer is the authenticated other end; zero means that there is none, as on plain ingress.
	Peer spiffe.ID
	// Self is the identity of this gateway.
	Self spiffe.ID
	// Host is the destination when it is a name, else "".
	Host string
	// Addr is the destination when it is an address, after Unmap; else the zero Addr.
	Addr netip.Addr
	// Port is the destination's port.
	Port uint16
	// Listener is the name of the listener that accepted the flow.
	Listener string
	// Source is where the connection that carries the flow came from.
	Source netip.AddrPort
	// Local tells that the destination is this host's own.
	Local bool
	// Unresolved tells that Host will be resolved here, and its addresses be asked about, each with Addr set: a rule that
	// asks for an address does not refuse yet.
	Unresolved bool
	// Workload is what the destination is, or else this gateway; nil: not known.
	Workload *Workload
	// Remote is the client's address, as a proxy that is trusted has told; the zero Addr: that of Source.
	Remote netip.Addr
	// SNI is the server name that the client has asked TLS for, "" where the hop has seen none.
	SNI string
	// HTTP is the request, where the hop has it in the clear.
	HTTP *HTTP
	// Token is what the client has shown besides and is valid, nil for none. TokenRules of the workload have to name its issuer
	// and audience where there are some; where there are none it counts as the hop has found it.
	Token *Token
	// BadToken is why a token that the client has shown is not valid, "" if none was shown or it is.
	BadToken string
	// Time is when it is asked; the zero Time is not known, and a rule that asks for it not either.
	Time time.Time
	// Open names the route that takes peers without an identity, "" if the route does not.
	Open string
}

// Decision is the answer to a Request or to an egress question.
type Decision struct {
	// Allow tells whether the flow may go on.
	Allow bool
	// BadToken tells that the token is why it is refused: HTTP has 401 for that (RFC 6750, section 3.1).
	BadToken bool
	// Policy is what decided: "default", "allow", "route", "rules", "tokens", "mode" or "egress".
	Policy string
	// Rule is the part of it that decided, a word to search the configuration or the documentation for:
	// "same-namespace", "same-identity", "unauthenticated", "allow[2]", "egress[0]", "guard",
	// "guard/link-local", "guard/port", "resolve", "unlisted", the name of a route or of a set of rules, "no-allow". The
	// number counts entries from zero.
	Rule string
	// Place is where the rule is written, where that is known.
	Place Place
	// Reason is one plain sentence for the operator of this gateway, without a full stop. It may name
	// addresses and identities, so a peer is not shown it.
	Reason string
	// Obligations are what has to be done with the flow if it is allowed, nil for nothing. Of a flow that is refused only Audit
	// is ever set.
	Obligations *Obligations
	// Report is what would have been decided with the rules whose mode is report, where that is something else.
	Report *Decision
}

// Names that Decision.Policy and Decision.Rule take.
const (
	policyDefault = "default"
	policyAllow   = "allow"
	policyEgress  = "egress"
	policyRoute   = "route"
	policyRules   = "rules"
	policyTokens  = "tokens"
	policyMode    = "mode"

	ruleSameNamespace   = "same-namespace"
	ruleSameIdentity    = "same-identity"
	ruleUnauthenticated = "unauthenticated"
	ruleNoAllow         = "no-allow"
)

// Policy decides which peers may pass. The zero value is the default policy. It is made by Compile, never
// changes, and may be used concurrently.
type Policy struct {
	entries  int                    // how many allow entries there are, for the reasons of refusals
	exact    map[spiffe.ID]Decision // entries that name one identity
	patterns []pattern              // entries with a wildcard, in the order of the configuration
	mode     Mode                   // of all of it; "" is enforce
	aliases  []string               // other names of the own trust domain
	anyone   Decision               // the entry "any"; Allow is false when there is none
	rules    *snapshot              // nil: none
	peers    []PeerRule             // the narrowest first
	tokens   *tokenRules            // nil: none
}

// Decide tells whether the peer of r may pass and why. r must not be nil and is not kept. A request that is
// allowed, or that a rule refuses, costs no allocation.
//
// A PeerRule that is strict refuses who has no identity, and TokenRules refuse a token that is not valid for the workload. A
// DENY rule stands above all else. Where an ALLOW policy selects the workload, one of its kind has to match, or an entry of
// Config.Allow to name the peer. Else the default policy and those entries decide.
//
// In report what would be refused passes, and Decision.Report is the refusal; off, everything passes.
func (p *Policy) Decide(r *Request) Decision {
	switch p.mode {
	case ModeReport:
		return p.inReport(r)
	case ModeOff:
		return Decision{Allow: true, Policy: policyMode, Rule: string(ModeOff), Reason: "policy is off on this gateway"}
	}
	return p.decide(r)
}

// inReport lets pass what it tells to be refused otherwise.
func (p *Policy) inReport(r *Request) Decision {
	d := p.decide(r)
	if d.Allow {
		return d
	}
	return Decision{Allow: true, Policy: policyMode, Rule: string(ModeReport), Reason: "policy is in report on this gateway", Report: &d}
}

func (p *Policy) decide(r *Request) Decision {
	if r.Peer.IsZero() && len(p.peers) > 0 {
		if strict := p.refusesNobody(r.Workload, r.Port); strict != nil {
			return Decision{Policy: policyRules, Rule: strict.Name, Place: strict.Place, Reason: "its mode is STRICT: only peers that show an identity get in"}
		}
	}
	if p.tokens != nil && (r.BadToken != "" || r.Token != nil) {
		if d, refused := p.tokens.refuses(r); refused {
			return d
		}
		if p.tokens.foreign(r) {
			without := *r
			without.Token = nil
			r = &without
		}
	}
	if p.rules == nil {
		return p.decideWithout(r)
	}
	v := newView(r)
	entry := p.entryFor(r.Peer)
	d, told := p.rules.judge(&v, false, entry)
	if !told {
		d = p.decideWithout(r)
	}
	if p.rules.obliges() {
		p.rules.oblige(&v, &d)
	}
	if p.rules.reports() {
		would, told := p.rules.judge(&v, true, entry)
		if !told {
			would = p.decideWithout(r)
		}
		if would.Allow != d.Allow {
			d.Report = &would
		}
	}
	return d
}

// decideWithout decides where no rule does.
func (p *Policy) decideWithout(r *Request) Decision {
	if r.Peer.IsZero() {
		switch {
		case r.Open != "":
			return Decision{Allow: true, Policy: policyRoute, Rule: r.Open, Reason: "the route takes peers without an identity"}
		case p.anyone.Allow:
			return p.anyone
		}
		return Decision{
			Policy: policyDefault,
			Rule:   ruleUnauthenticated,
			Reason: `the peer has no authenticated identity; it must show a client certificate with a SPIFFE ID, or "--allow any" must let everybody in, or the route that it takes (from: any)`,
		}
	}
	if d := p.byDefault(r.Peer, r.Self); d.Allow {
		return d
	}
	if d := p.entryFor(r.Peer); d.Allow {
		return d
	}
	return p.refuse(r.Peer, r.Self)
}

// entryFor is the decision of the allow entry that names a peer; it does not allow where none does.
func (p *Policy) entryFor(peer spiffe.ID) Decision {
	if peer.IsZero() {
		return p.anyone
	}
	if d, ok := p.exact[peer]; ok {
		return d
	}
	for i := range p.patterns {
		if p.patterns[i].matches(peer) {
			return p.patterns[i].decision
		}
	}
	return p.anyone
}

// byDefault is the default policy: same trust domain and namespace. A namespace that is "" is none and equals
// no other; then only the very same identity is the same. peer is not zero.
func (p *Policy) byDefault(peer, self spiffe.ID) Decision {
	namespace := peer.Namespace()
	switch {
	case namespace != "" && namespace == self.Namespace() && p.sameDomain(peer, self):
		return Decision{
			Allow:  true,
			Policy: policyDefault,
			Rule:   ruleSameNamespace,
			Reason: "the peer has the trust domain and namespace of this gateway",
		}
	case peer == self:
		return Decision{
			Allow:  true,
			Policy: policyDefault,
			Rule:   ruleSameIdentity,
			Reason: "the peer has the identity of this gateway",
		}
	}
	return Decision{}
}

// sameDomain reports whether peer is of the trust domain of self, under whichever of its names.
func (p *Policy) sameDomain(peer, self spiffe.ID) bool {
	return peer.TrustDomain() == self.TrustDomain() || len(p.aliases) > 0 && slices.Contains(p.aliases, peer.TrustDomain())
}

// refuse says why neither the default policy nor an allow entry lets peer in, and what would.
func (p *Policy) refuse(peer, self spiffe.ID) Decision {
	var b strings.Builder
	fmt.Fprintf(&b, "peer %s ", peer)
	switch namespace := peer.Namespace(); {
	case !p.sameDomain(peer, self):
		fmt.Fprintf(&b, "is of trust domain %q", peer.TrustDomain())
	case namespace == "":
		b.WriteString("has no path of the form /ns/NAMESPACE/sa/ACCOUNT")
	default:
		fmt.Fprintf(&b, "is in namespace %q", namespace)
	}
	switch {
	case self.IsZero():
		b.WriteString("; this gateway has no identity, so that its default policy allows nobody")
	case self.Namespace() == "":
		fmt.Fprintf(&b, "; the identity of this gateway, %s, has no namespace, so that its default policy allows only that identity", self)
	default:
		fmt.Fprintf(&b, "; the default policy allows only namespace %q of trust domain %q", self.Namespace(), self.TrustDomain())
	}
	switch p.entries {
	case 0:
	case 1:
		b.WriteString(", and the one allow entry does not name it")
	default:
		fmt.Fprintf(&b, ", and none of the %d allow entries names it", p.entries)
	}
	fmt.Fprintf(&b, "; add --allow %s to let it in", withoutScheme(peer))
	return Decision{Policy: policyDefault, Rule: ruleSameNamespace, Reason: b.String()}
}

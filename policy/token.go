package policy

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

// TokenRule says which tokens count for some workloads, as a jwtRules entry of a RequestAuthentication of Istio does. Of
// those workloads a request with a token that is not valid is refused; one without a token passes, and has no request
// principal.
type TokenRule struct {
	Place
	// Name of the rule: NAMESPACE/NAME of Istio's.
	Name string
	// At is the path of the rule in its file, as in "spec.jwtRules[0]": TokenRuleErrors have it.
	At string
	// Scope selects the workloads that it is for.
	Scope Scope
	// Issuer has to be the "iss" of a token (RFC 7519, section 4.1.1), letter by letter.
	Issuer string
	// Audiences of which the token has to have one (RFC 7519, section 4.1.3). None: any token of the issuer counts.
	Audiences []string
	// JWKS are the issuer's keys (RFC 7517, section 5), and JWKSURI is where they are fetched. One of them is set.
	JWKS, JWKSURI string
	// FromHeaders, FromParams and FromCookies are where a token is looked for. Compile fills in Istio's default where all are
	// empty: the field "authorization" with "Bearer ", and the parameter "access_token" where the hop reads parameters.
	FromHeaders []TokenHeader
	FromParams  []string
	FromCookies []string
	// OutputPayloadToHeader is the field that the payload of a valid token is handed on in, base64url; "" for none.
	OutputPayloadToHeader string
	// OutputClaimToHeaders are claims that are handed on in fields.
	OutputClaimToHeaders []ClaimHeader
	// ForwardOriginalToken has the hop hand on the token; else it takes the token out of the request.
	ForwardOriginalToken bool
	// Timeout of fetching JWKSURI. Default: 5s.
	Timeout time.Duration
}

// TokenHeader is a field of a request that holds a token behind Prefix.
type TokenHeader struct {
	Name   string `yaml:"name"`   // in lower case when it is compiled
	Prefix string `yaml:"prefix"` // "" is none
}

// ClaimHeader is a field to which a claim goes.
type ClaimHeader struct {
	Header string `yaml:"header"`
	Claim  string `yaml:"claim"`
}

// TokenSupport is what a hop can do with tokens besides looking for them in fields of the request. What it cannot, a TokenRule
// may not ask for.
type TokenSupport struct {
	// Params tells that tokens are looked for in the query, Cookies that they are in cookies.
	Params, Cookies bool
	// Outputs tells that payloads and claims are handed on in fields.
	Outputs bool
	// Forward tells that the token is handed on where the rule says so, and taken out where not.
	Forward bool
}

// TokenRuleError is a fault of a TokenRule.
type TokenRuleError struct {
	// Index of the rule in Config.TokenRules.
	Index int
	// At is the path of the value in its file.
	At string
	// Reason says what is wrong with it and what would be right.
	Reason string
}

// Error returns path and reason on one line.
func (e *TokenRuleError) Error() string { return e.At + ": " + e.Reason }

// Limits of token rules. Fetching keys is waited for by a request, so that it may not take long.
const (
	defaultTokenTimeout = 5 * time.Second // as in Istio
	maxTokenTimeout     = time.Minute
	maxJWKSBytes        = 1 << 20
)

// RequestAuthenticationSpec is the spec of a RequestAuthentication of Istio (security.istio.io/v1).
type RequestAuthenticationSpec struct {
	Selector   WorkloadSelector `yaml:"selector"`
	TargetRef  *TargetRef       `yaml:"targetRef"`
	TargetRefs []TargetRef      `yaml:"targetRefs"`
	JWTRules   []JWTRule        `yaml:"jwtRules"`
}

// JWTRule is an entry of jwtRules.
type JWTRule struct {
	Issuer                string         `yaml:"issuer"`
	Audiences             []string       `yaml:"audiences"`
	JWKSURI               string         `yaml:"jwksUri"`
	JWKS                  string         `yaml:"jwks"`
	FromHeaders           []TokenHeader  `yaml:"fromHeaders"`
	FromParams            []string       `yaml:"fromParams"`
	FromCookies           []string       `yaml:"fromCookies"`
	OutputPayloadToHeader string         `yaml:"outputPayloadToHeader"`
	ForwardOriginalToken  bool           `yaml:"forwardOriginalToken"`
	OutputClaimToHeaders  []ClaimHeader  `yaml:"outputClaimToHeaders"`
	Timeout               *time.Duration `yaml:"timeout"`
}

// TokenRules makes the rules of the object o. What this gateway does not do is a *Problem each, or found by Compile.
func (a *RequestAuthenticationSpec) TokenRules(o *Object) ([]TokenRule, []error) {
	scope := o.scope(a.Selector)
	var problems []error
	problem := func(at, format string, args ...any) {
		problems = append(problems, &Problem{At: o.path("spec." + at), What: fmt.Sprintf(format, args...)})
	}
	if o.DryRun {
		problem("jwtRules", "istio.io/dry-run is for AuthorizationPolicies; remove the annotation")
	}
	scope.Names = targets(o, a.Selector, a.TargetRef, a.TargetRefs, problem)
	checkSelector(&scope, problem)
	if len(a.JWTRules) == 0 {
		problem("jwtRules", "is empty, so that no token would be looked at; write at least one issuer")
	}
	var list []TokenRule
	for i := range a.JWTRules {
		in, at := &a.JWTRules[i], o.path(fmt.Sprintf("spec.jwtRules[%d]", i))
		r := TokenRule{
			Place: o.Place(at), Name: o.name(), At: at, Scope: scope, Issuer: in.Issuer, Audiences: in.Audiences, JWKS: in.JWKS, JWKSURI: in.JWKSURI,
			FromHeaders: in.FromHeaders, FromParams: in.FromParams, FromCookies: in.FromCookies, OutputPayloadToHeader: in.OutputPayloadToHeader,
			OutputClaimToHeaders: in.OutputClaimToHeaders, ForwardOriginalToken: in.ForwardOriginalToken,
		}
		if in.Timeout != nil {
			if r.Timeout = *in.Timeout; r.Timeout <= 0 {
				problem(fmt.Sprintf("jwtRules[%d].timeout", i), "%v is no time to wait; it should be one such as 5s", r.Timeout)
			}
		}
		list = append(list, r)
	}
	return list, problems
}

// tokenRules are compiled TokenRules by the namespace of their scope, "" for all namespaces.
type tokenRules struct {
	byNamespace map[string][]*TokenRule
	known       map[*Workload][]*TokenRule
	named       map[string]bool // issuers; true: they count for the workloads of their rules only
}

// compileTokens checks rules and makes them ready, nil if there are none.
func compileTokens(c *Config) (*tokenRules, []error) {
	if len(c.TokenRules) == 0 {
		return nil, nil
	}
	all := &tokenRules{named: make(map[string]bool), byNamespace: make(map[string][]*TokenRule), known: make(map[*Workload][]*TokenRule, len(c.Workloads))}
	var faults []error
	for i := range c.TokenRules {
		r := c.TokenRules[i]
		r.FromHeaders = slices.Clone(r.FromHeaders)
		r.check(&c.TokenSupport, func(at, format string, args ...any) {
			faults = append(faults, &TokenRuleError{Index: i, At: strings.TrimPrefix(r.At+"."+at, "."), Reason: fmt.Sprintf(format, args...)})
		})
		for k := range r.FromHeaders {
			r.FromHeaders[k].Name = strings.ToLower(r.FromHeaders[k].Name)
		}
		if len(r.FromHeaders)+len(r.FromParams)+len(r.FromCookies) == 0 {
			r.FromHeaders = []TokenHeader{{Name: "authorization", Prefix: "Bearer "}}
			if c.TokenSupport.Params {
				r.FromParams = []string{"access_token"}
			}
		}
		if r.Timeout == 0 {
			r.Timeout = defaultTokenTimeout
		}
		r.Scope = r.Scope.in(c.Namespace)
		all.named[r.Issuer] = !slices.Contains(c.TokenIssuers, r.Issuer)
		all.byNamespace[r.Scope.Namespace] = append(all.byNamespace[r.Scope.Namespace], &r)
	}
	for _, w := range c.Workloads {
		all.known[w] = all.of(w)
	}
	return all, faults
}

// check notes what is wrong with a rule, and what the hop cannot do.
func (r *TokenRule) check(can *TokenSupport, fault func(at, format string, args ...any)) {
	switch {
	case r.Issuer == "":
		fault("issuer", "is missing; write the \"iss\" of the tokens, such as https://issuer.example")
	case hasControl(r.Issuer):
		fault("issuer", "%q has a control character", r.Issuer)
	}
	for i, one := range r.Audiences {
		if one == "" || hasControl(one) {
			fault(fmt.Sprintf("audiences[%d]", i), "%q is no audience; write the \"aud\" of the tokens", one)
		}
	}
	r.checkKeys(fault)
	for i, one := range r.FromHeaders {
		if !isToken(one.Name) {
			fault(fmt.Sprintf("fromHeaders[%d].name", i), "%q is no name of a field; write one such as x-jwt", one.Name)
		}
		if hasControl(one.Prefix) {
			fault(fmt.Sprintf("fromHeaders[%d].prefix", i), "%q has a control character", one.Prefix)
		}
	}
	named := func(at string, list []string, supported bool, what string) {
		for i, one := range list {
			switch at := fmt.Sprintf("%s[%d]", at, i); {
			case !supported:
				fault(at, "this gateway does not look for tokens in %s; use fromHeaders", what)
			case one == "" || hasControl(one):
				fault(at, "%q is no name", one)
			}
		}
	}
	named("fromParams", r.FromParams, can.Params, "the query")
	named("fromCookies", r.FromCookies, can.Cookies, "cookies")
	outputs := func(at, header string) {
		switch {
		case !can.Outputs:
			fault(at, "this gateway does not hand on what a token says; remove it")
		case !isToken(header) || forbiddenField(header) != "":
			fault(at, "%q is no field that can be set; write one such as x-jwt-payload", header)
		}
	}
	if r.OutputPayloadToHeader != "" {
		outputs("outputPayloadToHeader", r.OutputPayloadToHeader)
	}
	for i, one := range r.OutputClaimToHeaders {
		at := fmt.Sprintf("outputClaimToHeaders[%d]", i)
		outputs(at+".header", one.Header)
		if one.Claim == "" {
			fault(at+".claim", "is missing; write the name of a claim")
		}
	}
	if r.ForwardOriginalToken && !can.Forward {
		fault("forwardOriginalToken", "this gateway does not hand on tokens; remove it")
	}
	if r.Timeout < 0 || r.Timeout > maxTokenTimeout {
		fault("timeout", "%v is not between 0 and %v", r.Timeout, maxTokenTimeout)
	}
}

// checkKeys finds out whether a rule says where its keys are, in one way.
func (r *TokenRule) checkKeys(fault func(at, format string, args ...any)) {
	switch {
	case r.JWKS != "" && r.JWKSURI != "":
		fault("jwks", "stands beside jwksUri; keep one of them")
	case r.JWKS != "":
		var set struct {
			Keys []json.RawMessage `json:"keys"`
		}
		if len(r.JWKS) > maxJWKSBytes {
			fault("jwks", "is longer than %d bytes", maxJWKSBytes)
		} else if err := json.Unmarshal([]byte(r.JWKS), &set); err != nil || len(set.Keys) == 0 {
			fault("jwks", `is no set of keys; it should be like {"keys": [{"kty": "EC", …}]}`)
		}
	case r.JWKSURI == "":
		fault("jwksUri", "is missing, and so is jwks; keys are not looked for at the issuer's, so write jwksUri")
	default:
		u, err := url.Parse(r.JWKSURI)
		if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" {
			fault("jwksUri", "%q is no address; it should be like https://issuer.example/jwks.json", r.JWKSURI)
		} else if u.Scheme != "https" && (u.Scheme != "http" || !isLoopback(u.Hostname())) {
			fault("jwksUri", "%q is not https, so that whoever is on the way could put in keys; write https://", r.JWKSURI)
		}
	}
}

func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback() || host == "localhost"
}

// hasControl reports whether s has what no line of text has.
func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c == 0x7f })
}

// isToken reports whether s is a name of a field (RFC 9110, section 5.6.2).
func isToken(s string) bool {
	return s != "" && len(s) <= maxFieldNameBytes && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+-.^_`|~") == ""
}

// of returns the rules that select w. The list is not to be changed.
func (t *tokenRules) of(w *Workload) []*TokenRule {
	if list, known := t.known[w]; known {
		return list
	}
	var list []*TokenRule
	pick := func(namespace string) {
		for _, r := range t.byNamespace[namespace] {
			if r.Scope.selects(w) {
				list = append(list, r)
			}
		}
	}
	pick("")
	if w != nil && w.Namespace != "" {
		pick(w.Namespace)
	}
	return list
}

// TokenRules returns the rules by which a token counts for a workload, nil for none: then no token is asked for or looked at.
// The list is not to be changed. It costs no allocation for the Workloads of the Config.
func (p *Policy) TokenRules(w *Workload) []*TokenRule {
	if p.tokens == nil {
		return nil
	}
	return p.tokens.of(w)
}

// AllTokenRules returns all rules with what Compile has filled in, those of one namespace together, for who fetches their keys.
func (p *Policy) AllTokenRules() []*TokenRule {
	if p.tokens == nil {
		return nil
	}
	var list []*TokenRule
	for _, some := range p.tokens.byNamespace {
		list = append(list, some...)
	}
	slices.SortFunc(list, func(a, b *TokenRule) int { return strings.Compare(a.Name+"\x00"+a.At, b.Name+"\x00"+b.At) })
	return list
}

// foreign reports whether the token of r is of an issuer that counts for other workloads only.
func (t *tokenRules) foreign(r *Request) bool {
	return r.Token != nil && t.named[r.Token.Issuer] && len(t.of(r.Workload)) == 0
}

// refuses is the decision on a token that does not count for the workload; refused is false where nothing is wrong.
func (t *tokenRules) refuses(r *Request) (d Decision, refused bool) {
	list := t.of(r.Workload)
	if len(list) == 0 {
		return d, false
	}
	deny := func(by *TokenRule, reason string) (Decision, bool) {
		return Decision{BadToken: true, Policy: policyTokens, Rule: by.Name, Place: by.Place, Reason: reason}, true
	}
	if r.BadToken != "" {
		return deny(list[0], "the token is not valid: "+r.BadToken)
	}
	var audience *TokenRule
	for _, one := range list {
		if one.Issuer != r.Token.Issuer {
			continue
		}
		if len(one.Audiences) == 0 || slices.ContainsFunc(one.Audiences, func(a string) bool { return slices.Contains(r.Token.Audiences, a) }) {
			return d, false
		}
		audience = one
	}
	if audience != nil {
		return deny(audience, fmt.Sprintf("the token is for %q, and the rule takes tokens for %q", r.Token.Audiences, audience.Audiences))
	}
	return deny(list[0], fmt.Sprintf("the token is of issuer %q, which no rule for the destination names", r.Token.Issuer))
}

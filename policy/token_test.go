package policy

import (
	"errors"
	"strings"
	"testing"
	"time"

	"culvert/pki/spiffe"
)

const someKeys = `{"keys": [{"kty": "EC"}]}`

// Of a workload with token rules a token has to be one of theirs; without a token a request passes.
func TestTokenRules(t *testing.T) {
	one := TokenRule{Name: "one", Issuer: "https://one", JWKS: someKeys}
	shop := TokenRule{Name: "shop", Scope: Scope{Namespace: "shop"}, Issuer: "https://shop", JWKS: someKeys}
	web := TokenRule{Name: "web", Scope: Scope{Namespace: "default", Labels: map[string]string{"app": "gw"}}, Issuer: "https://web", JWKS: someKeys, Audiences: []string{"a", "b"}}
	own := TokenRule{Name: "own", Scope: Scope{Own: true}, Issuer: "https://own", JWKS: someKeys}
	token := func(issuer string, audiences ...string) *Token {
		return &Token{Issuer: issuer, Subject: "s", Audiences: audiences}
	}
	for _, tt := range []struct {
		name  string
		rules []TokenRule
		token *Token
		bad   string
		want  string // the rule that refuses, "" for none
	}{
		{"no rule and a bad token", nil, nil, "expired", ""},
		{"no rule and a token", nil, token("https://x"), "", ""},
		{"no token", []TokenRule{one}, nil, "", ""},
		{"a bad token", []TokenRule{one}, nil, "expired", "one"},
		{"a bad token beside a good one", []TokenRule{one}, token("https://one"), "expired", "one"},
		{"a good token", []TokenRule{one}, token("https://one"), "", ""},
		{"a token of another issuer", []TokenRule{one}, token("https://one/"), "", "one"},
		{"a token of an issuer for other workloads", []TokenRule{one, shop}, token("https://shop"), "", "one"},
		{"rules for other workloads", []TokenRule{shop}, nil, "expired", ""},
		{"rules of several sets count together", []TokenRule{one, web}, token("https://web", "b", "c"), "", ""},
		{"another audience", []TokenRule{one, web}, token("https://web", "c"), "", "web"},
		{"no audience", []TokenRule{web}, token("https://web"), "", "web"},
		{"one issuer with two audiences in two rules", []TokenRule{{Name: "x", Issuer: "https://web", Audiences: []string{"c"}, JWKS: someKeys}, web}, token("https://web", "a"), "", ""},
		{"rules of the own namespace", []TokenRule{own}, nil, "expired", "own"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := asks(t, webID, "10.0.0.9:8080")
			r.Token, r.BadToken = tt.token, tt.bad
			for _, workloads := range [][]*Workload{nil, {r.Workload}} {
				p, err := Compile(Config{TokenRules: tt.rules, Namespace: "default", Workloads: workloads})
				if err != nil {
					t.Fatal(err)
				}
				d := p.Decide(r)
				if d.Allow != (tt.want == "") || d.BadToken == d.Allow || !d.Allow && (d.Rule != tt.want || d.Policy != "tokens" || d.Reason == "") {
					t.Errorf("Decide = %+v, want it to be refused by %q", d, tt.want)
				}
			}
		})
	}
}

// The hop is told which rules count for a workload, with what was left out filled in.
func TestTokenRulesOfWorkload(t *testing.T) {
	gw := &Workload{Name: "gw", Namespace: "default", Labels: map[string]string{"app": "gw"}}
	c := Config{Workloads: []*Workload{gw}, Namespace: "default", TokenSupport: TokenSupport{Params: true}, TokenRules: []TokenRule{
		{Name: "all", Issuer: "i", JWKS: someKeys},
		{Name: "named", Issuer: "j", JWKSURI: "https://j/keys", Scope: Scope{Own: true, Names: []string{"gw"}}, FromHeaders: []TokenHeader{{Name: "X-JWT"}}, Timeout: time.Second},
		{Name: "other", Issuer: "k", JWKS: someKeys, Scope: Scope{Namespace: "shop"}},
	}}
	p, err := Compile(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		workload *Workload
		want     string
	}{{gw, "all named"}, {&Workload{Name: "gw", Namespace: "default"}, "all named"}, {&Workload{Name: "x", Namespace: "shop"}, "all other"}, {nil, "all"}} {
		var names []string
		for _, r := range p.TokenRules(tt.workload) {
			names = append(names, r.Name)
		}
		if got := strings.Join(names, " "); got != tt.want {
			t.Errorf("TokenRules(%+v) = %s, want %s", tt.workload, got, tt.want)
		}
	}
	all := p.AllTokenRules()
	if len(all) != 3 || all[0].Timeout != 5*time.Second || len(all[0].FromHeaders) != 1 || all[0].FromHeaders[0] != (TokenHeader{"authorization", "Bearer "}) || all[0].FromParams[0] != "access_token" {
		t.Errorf("AllTokenRules = %+v, want the defaults of Istio", all)
	}
	if named := all[1]; named.FromHeaders[0].Name != "x-jwt" || len(named.FromParams) != 0 || named.Timeout != time.Second || named.Scope.Namespace != "default" {
		t.Errorf("the rule that says everything is %+v", named)
	}
	if c.TokenRules[1].FromHeaders[0].Name != "X-JWT" {
		t.Error("Compile changes what it was given")
	}
	if n := testing.AllocsPerRun(100, func() { p.TokenRules(gw) }); n != 0 {
		t.Errorf("TokenRules of a workload that is known costs %v allocations", n)
	}
	if none, err := Compile(Config{}); err != nil || none.TokenRules(gw) != nil || none.AllTokenRules() != nil {
		t.Errorf("without rules there are some: %v", err)
	}
}

// What is wrong with a token rule, or cannot be done here, is a fault with its path.
func TestTokenRuleFaults(t *testing.T) {
	good := TokenRule{At: "spec.jwtRules[0]", Issuer: "i", JWKS: someKeys}
	for _, tt := range []struct {
		name   string
		change func(*TokenRule)
		want   string
	}{
		{"no issuer", func(r *TokenRule) { r.Issuer = "" }, "spec.jwtRules[0].issuer: is missing"},
		{"an issuer of two lines", func(r *TokenRule) { r.Issuer = "a\nb" }, "issuer: "},
		{"an empty audience", func(r *TokenRule) { r.Audiences = []string{"a", ""} }, "audiences[1]: "},
		{"no keys", func(r *TokenRule) { r.JWKS = "" }, "jwksUri: is missing, and so is jwks"},
		{"keys twice", func(r *TokenRule) { r.JWKSURI = "https://i/keys" }, "jwks: stands beside jwksUri"},
		{"keys that are none", func(r *TokenRule) { r.JWKS = "{}" }, "jwks: is no set of keys"},
		{"keys that are no JSON", func(r *TokenRule) { r.JWKS = "-----BEGIN PUBLIC KEY-----" }, "jwks: is no set of keys"},
		{"too many keys", func(r *TokenRule) { r.JWKS = strings.Repeat(" ", maxJWKSBytes) + someKeys }, "jwks: is longer than"},
		{"keys in the clear", func(r *TokenRule) { r.JWKS, r.JWKSURI = "", "http://issuer.example/keys" }, "jwksUri: \"http://issuer.example/keys\" is not https"},
		{"keys of a file", func(r *TokenRule) { r.JWKS, r.JWKSURI = "", "file:///etc/passwd" }, "jwksUri: "},
		{"keys with a password", func(r *TokenRule) { r.JWKS, r.JWKSURI = "", "https://a:b@issuer.example/keys" }, "jwksUri: "},
		{"a field that is none", func(r *TokenRule) { r.FromHeaders = []TokenHeader{{Name: "x y"}} }, "fromHeaders[0].name: "},
		{"a prefix of two lines", func(r *TokenRule) { r.FromHeaders = []TokenHeader{{Name: "x", Prefix: "\r\n"}} }, "fromHeaders[0].prefix: "},
		{"a parameter", func(r *TokenRule) { r.FromParams = []string{"token"} }, "fromParams[0]: this gateway does not"},
		{"a cookie", func(r *TokenRule) { r.FromCookies = []string{"token"} }, "fromCookies[0]: this gateway does not"},
		{"a payload to hand on", func(r *TokenRule) { r.OutputPayloadToHeader = "x-p" }, "outputPayloadToHeader: this gateway does not"},
		{"a claim to hand on", func(r *TokenRule) { r.OutputClaimToHeaders = []ClaimHeader{{"x", "y"}} }, "outputClaimToHeaders[0].header: this gateway does not"},
		{"a token to hand on", func(r *TokenRule) { r.ForwardOriginalToken = true }, "forwardOriginalToken: this gateway does not"},
		{"a time that is too long", func(r *TokenRule) { r.Timeout = time.Hour }, "timeout: "},
		{"a time before", func(r *TokenRule) { r.Timeout = -1 }, "timeout: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := good
			tt.change(&r)
			_, err := Compile(Config{TokenRules: []TokenRule{good, r}})
			var fault *TokenRuleError
			if !errors.As(err, &fault) || fault.Index != 1 || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Compile = %v, want %q", err, tt.want)
			}
			if (&Config{TokenRules: []TokenRule{r}}).Validate() == nil {
				t.Error("Validate accepts it")
			}
		})
	}
	all := TokenSupport{Params: true, Cookies: true, Outputs: true, Forward: true}
	r := TokenRule{Issuer: "i", JWKSURI: "http://127.0.0.1:8080/keys", FromParams: []string{"t"}, FromCookies: []string{"c"}, OutputPayloadToHeader: "x-p", OutputClaimToHeaders: []ClaimHeader{{"x-sub", "sub"}}, ForwardOriginalToken: true}
	if _, err := Compile(Config{TokenRules: []TokenRule{r}, TokenSupport: all}); err != nil {
		t.Errorf("where the hop can do all of it: %v", err)
	}
	r.FromParams, r.OutputPayloadToHeader, r.OutputClaimToHeaders = []string{""}, "Host", []ClaimHeader{{"x", ""}}
	_, err := Compile(Config{TokenRules: []TokenRule{r}, TokenSupport: all})
	for _, want := range []string{"fromParams[0]", "outputPayloadToHeader", "outputClaimToHeaders[0].claim"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no fault of %s: %v", want, err)
		}
	}
}

// Only claims that are lists of words by their meaning are taken apart: a name that a user chooses is none.
func TestClaimsAreTakenWhole(t *testing.T) {
	r := asks(t, webID, "10.0.0.9:8080")
	r.HTTP = &HTTP{Header: func(string) (string, bool) { return "", false }}
	r.Token = &Token{Claims: map[string]any{"name": "eve admin", "scope": "read admin", "deep": map[string]any{"scope": "a b"}}}
	for key, want := range map[string]bool{"name": false, "scope": true} {
		p := compileSets(t, Rules{Name: "a", Rules: []Rule{{When: []Condition{{Key: "request.auth.claims[" + key + "]", Values: []string{"admin"}}}}}})
		if d := p.Decide(r); d.Allow != want {
			t.Errorf("a word of claim %s: %v, want %v", key, d.Allow, want)
		}
	}
}

// Principals with one name of the own trust domain stand for all of them.
func TestTrustDomainAliases(t *testing.T) {
	const old = "spiffe://old.example/ns/default/sa/web"
	principals := func(wrapped bool, list ...string) []Rules {
		return []Rules{{Name: "a", Wrapped: wrapped, Rules: []Rule{{From: []Source{{Principals: list}}}}}}
	}
	for _, tt := range []struct {
		name    string
		rules   []Rules
		allow   []string
		own     string
		aliases []string
		peer    string
		want    bool
	}{
		{"without aliases", principals(true, "old.example/ns/default/sa/web"), nil, "cluster.local", nil, webID, false},
		{"written with the alias", principals(true, "old.example/ns/default/sa/web"), nil, "cluster.local", []string{"old.example"}, webID, true},
		{"and the reverse", principals(true, "cluster.local/ns/default/sa/web"), nil, "cluster.local", []string{"old.example"}, old, true},
		{"one alias for another", principals(true, "older/ns/default/sa/web"), nil, "cluster.local", []string{"old.example", "older"}, old, true},
		{"a prefix", principals(false, "old.example/ns/default/*"), nil, "cluster.local", []string{"old.example"}, webID, true},
		{"a suffix stands for all anyway", principals(false, "*/sa/web"), nil, "cluster.local", []string{"old.example"}, old, true},
		{"an end that looks like an alias", principals(false, "*old.example/ns/default/sa/web"), nil, "cluster.local", []string{"old.example"}, webID, false},
		{"a trust domain of others", principals(true, "foreign/ns/default/sa/web"), nil, "cluster.local", []string{"old.example"}, webID, false},
		{"cluster.local of Istio is the own one", principals(true, "cluster.local/ns/default/sa/web"), nil, "old.example", nil, old, true},
		{"and no other", principals(true, "cluster.local/ns/default/sa/web"), nil, "old.example", nil, webID, false},
		{"and a name like others in our rules", principals(false, "cluster.local/ns/default/sa/web"), nil, "old.example", nil, old, false},
		{"no own trust domain, no aliases", principals(true, "old.example/ns/default/sa/web"), nil, "", []string{"old.example"}, webID, false},
		{"allow entry", nil, []string{"spiffe://old.example/ns/other/sa/*"}, "cluster.local", []string{"old.example"}, "spiffe://cluster.local/ns/other/sa/x", true},
		{"the default policy knows them too", nil, nil, "cluster.local", []string{"old.example"}, old, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := Compile(Config{Rules: tt.rules, Allow: tt.allow, TrustDomain: tt.own, TrustDomainAliases: tt.aliases})
			if err != nil {
				t.Fatal(err)
			}
			if d := p.Decide(asks(t, tt.peer, "10.0.0.9:8080")); d.Allow != tt.want {
				t.Errorf("Decide = %v by %s (%s), want %v", d.Allow, d.Rule, d.Reason, tt.want)
			}
		})
	}
	if _, err := Compile(Config{TrustDomainAliases: []string{"Old/"}}); err == nil || !strings.Contains(err.Error(), "trustDomainAliases[0]") {
		t.Errorf("an alias that is no trust domain: %v", err)
	}
}

// A rule about tokens in one namespace makes nobody an issuer for another: there its tokens are none, unless the hop itself
// believes the issuer.
func TestIssuerOfAnotherNamespace(t *testing.T) {
	cfg := Config{
		TokenRules: []TokenRule{{Name: "lab", Scope: Scope{Namespace: "lab"}, Issuer: "https://lab", JWKS: someKeys}},
		Rules:      []Rules{{Name: "people", Rules: []Rule{{From: []Source{{RequestPrincipals: []string{"*"}}}}}}},
	}
	for _, tt := range []struct {
		name, issuer, namespace string
		believed                []string
		want                    bool
	}{
		{"where the rule is", "https://lab", "lab", nil, true},
		{"elsewhere", "https://lab", "default", nil, false},
		{"elsewhere, but the hop believes it", "https://lab", "default", []string{"https://lab"}, true},
		{"of no rule", "https://one", "default", nil, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := cfg
			c.TokenIssuers = tt.believed
			p, err := Compile(c)
			if err != nil {
				t.Fatal(err)
			}
			r := asks(t, webID, "10.0.0.9:8080")
			r.Workload = &Workload{Name: "w", Namespace: tt.namespace}
			r.Token = &Token{Issuer: tt.issuer, Subject: "s"}
			if d := p.Decide(r); d.Allow != tt.want {
				t.Errorf("Decide = %+v, want Allow = %v", d, tt.want)
			}
			if r.Token == nil {
				t.Error("the request was changed")
			}
		})
	}
}

// What a token says is known where there is no HTTP, too.
func TestPresenterOfATunnel(t *testing.T) {
	for _, tt := range []struct {
		token *Token
		want  bool // of an ALLOW for the presenter, and of a DENY for another
	}{{&Token{Issuer: "i", AuthorizedParty: "app"}, true}, {&Token{Issuer: "i", AuthorizedParty: "other"}, false}, {nil, false}} {
		r := asks(t, webID, "10.0.0.9:8080")
		r.Token = tt.token
		when := []Condition{{Key: "request.auth.presenter", Values: []string{"app"}}}
		if d := compileSets(t, Rules{Name: "a", Rules: []Rule{{When: when}}}).Decide(r); d.Allow != tt.want {
			t.Errorf("ALLOW of %+v: %+v, want %v", tt.token, d, tt.want)
		}
		when[0].Values = []string{"other"}
		if d := compileSets(t, Rules{Name: "d", Action: ActionDeny, Rules: []Rule{{When: when}}}).Decide(r); d.Allow != tt.want {
			t.Errorf("DENY of %+v: %+v, want %v", tt.token, d, tt.want)
		}
	}
}

// A self-made key is taken by no wildcard of an ALLOW, and by each that it cannot be told from of a DENY.
func TestKeysAndWildcards(t *testing.T) {
	key := spiffe.KeyID([32]byte{1})
	for _, tt := range []struct {
		action          Action
		principals, not []string
		want            bool
	}{
		{ActionAllow, []string{"*"}, nil, false},
		{ActionAllow, []string{key.String()}, nil, true},
		{ActionAllow, nil, []string{"*"}, false},
		{ActionDeny, []string{"*"}, nil, false},
		{ActionDeny, []string{"cluster.local/*"}, nil, true},
		{ActionDeny, nil, []string{"*"}, false},
		{ActionDeny, nil, []string{key.String()}, true},
		{ActionDeny, []string{key.String()}, nil, false},
	} {
		r := asks(t, webID, "10.0.0.9:8080")
		r.Peer = key
		set := Rules{Name: "r", Action: tt.action, Rules: []Rule{{From: []Source{{Principals: tt.principals, NotPrincipals: tt.not}}}}}
		p, err := Compile(Config{Rules: []Rules{set}, Allow: map[bool][]string{true: {key.String()}}[tt.action == ActionDeny]})
		if err != nil {
			t.Fatal(err)
		}
		if d := p.Decide(r); d.Allow != tt.want {
			t.Errorf("%s %v, not %v: %+v, want Allow = %v", tt.action, tt.principals, tt.not, d, tt.want)
		}
	}
}

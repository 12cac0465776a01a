package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"culvert/pki/spiffe"
	"culvert/policy"
)

// manifestOf is an object of Istio with a spec, which is given in the flow style or in lines that begin at the margin.
func manifestOf(kind, namespace, name, spec string) string {
	if !strings.HasPrefix(spec, "{") {
		spec = "\n  " + strings.ReplaceAll(strings.TrimSpace(spec), "\n", "\n  ")
	}
	return fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: %s\nmetadata:\n  name: %s\n  namespace: %s\nspec: %s\n", kind, name, namespace, spec)
}

func authz(name, spec string) string { return manifestOf("AuthorizationPolicy", "foo", name, spec) }

func join(docs ...string) string { return strings.Join(docs, "---\n") }

// istioCase is what policies make of one request.
type istioCase struct {
	name     string
	policies string
	request  PolicyTest // of workload httpbin of namespace foo with the label app=httpbin, at 10.1.0.5:8000, by sleep of namespace foo, unless it says otherwise
	want     string     // allow or deny
	rule     string
	change   func(*policy.Decision) string // what is wrong with it besides, "" for nothing
}

const (
	sleepFoo = "spiffe://cluster.local/ns/foo/sa/sleep"
	sleepBar = "spiffe://cluster.local/ns/bar/sa/sleep"
	issuer   = "https://issuer.example"
	jwks     = `{"keys": [{"kty": "EC"}]}`
)

func (c *istioCase) run(t *testing.T) {
	self, err := spiffe.Parse("spiffe://cluster.local/ns/foo/sa/httpbin")
	if err != nil {
		t.Fatal(err)
	}
	p := &policies{faults: new(faults)}
	p.read("p.yaml", []byte(c.policies))
	rules := p.compile(policy.Config{
		Namespace: self.Namespace(), TrustDomain: self.TrustDomain(), TrustDomainAliases: []string{"old-td"}, Authorizers: []string{"ext-authz", "second"},
	})
	if err := p.faults.err(); err != nil {
		t.Fatal(err)
	}
	q := c.request
	if q.Workload == "" {
		q.Workload, q.Labels = "httpbin", map[string]string{"app": "httpbin"}
	}
	if q.Dst == "" {
		q.Dst = "10.1.0.5:8000"
	}
	switch q.Peer {
	case "":
		q.Peer = sleepFoo
	case "none":
		q.Peer = ""
	}
	r, err := q.request(self)
	if err != nil {
		t.Fatal(err)
	}
	d := rules.Decide(r)
	if d.Allow != (c.want == "allow") || d.Rule != c.rule {
		t.Errorf("%s, want %s by %s", explanation(&d), c.want, c.rule)
	}
	if strings.Contains(d.Rule, "/") && (d.Place.File != "p.yaml" || d.Place.Line < 1) {
		t.Errorf("%s decides, and stands nowhere", d.Rule)
	}
	if c.change != nil {
		if wrong := c.change(&d); wrong != "" {
			t.Error(wrong)
		}
	}
}

func runIstio(t *testing.T, cases []istioCase) {
	t.Helper()
	for i := range cases {
		t.Run(cases[i].name, cases[i].run)
	}
}

// TestIstioActions: which policies count for a workload, and what comes of several. Three things differ from Istio: without an
// ALLOW that selects the workload our default policy stands, not everything passes; and what we do not do is an error.
func TestIstioActions(t *testing.T) {
	get, post := PolicyTest{Method: "GET", Path: "/"}, PolicyTest{Method: "POST", Path: "/"}
	barGet := PolicyTest{Peer: sleepBar, Method: "GET", Path: "/"}
	allowGet := authz("allow-get", `{action: ALLOW, rules: [{to: [{operation: {methods: ["GET"]}}]}]}`)
	denyPost := authz("deny-post", `{action: DENY, rules: [{to: [{operation: {methods: ["POST"]}}]}]}`)
	nothing, all := authz("nothing", `{}`), authz("all", `{rules: [{}]}`)
	other := authz("other", `{selector: {matchLabels: {app: other}}}`)
	meshWide := manifestOf("AuthorizationPolicy", "istio-system", "mesh", `{action: DENY, rules: [{to: [{operation: {ports: ["8000"]}}]}]}`)
	runIstio(t, []istioCase{
		{"no policy, own namespace", "rules: []\n", get, "allow", "same-namespace", nil},
		{"no policy, another namespace", "rules: []\n", barGet, "deny", "same-namespace", nil},
		{"allow-nothing", nothing, get, "deny", "no-allow", nil},
		{"allow-nothing by an empty list", authz("nothing", `{rules: []}`), get, "deny", "no-allow", nil},
		{"allow-nothing is not for other namespaces", nothing, PolicyTest{Namespace: "bar", Workload: "x"}, "allow", "same-namespace", nil},
		{"allow-all", all, PolicyTest{Peer: "none"}, "allow", "foo/all", nil},
		{"allow-all beside allow-nothing", join(nothing, all), barGet, "allow", "foo/all", nil},
		{"deny-all", authz("deny", `{action: DENY, rules: [{}]}`), get, "deny", "foo/deny", nil},
		{"deny-all above allow-all", join(all, authz("deny", `{action: DENY, rules: [{}]}`)), get, "deny", "foo/deny", nil},
		{"a deny without rules denies nothing", authz("deny", `{action: DENY}`), get, "allow", "same-namespace", nil},
		{"and leaves an allow alone", join(all, authz("deny", `{action: DENY, rules: []}`)), barGet, "allow", "foo/all", nil},
		{"a deny that does not match leaves the default", denyPost, get, "allow", "same-namespace", nil},
		{"nor opens anything", denyPost, barGet, "deny", "same-namespace", nil},
		{"a deny that matches", denyPost, post, "deny", "foo/deny-post", nil},
		{"an allow that matches", allowGet, barGet, "allow", "foo/allow-get", nil},
		{"an allow that does not", allowGet, post, "deny", "no-allow", nil},
		{"the action is ALLOW where none is written", authz("a", `{rules: [{to: [{operation: {methods: ["GET"]}}]}]}`), barGet, "allow", "foo/a", nil},
		{"one of several allows", join(authz("a", `{rules: [{to: [{operation: {methods: ["PUT"]}}]}]}`), allowGet), barGet, "allow", "foo/allow-get", nil},
		{"one of several rules", authz("a", `{rules: [{to: [{operation: {methods: ["PUT"]}}]}, {to: [{operation: {methods: ["GET"]}}]}]}`), get, "allow", "foo/a", nil},
		{"another selector", other, get, "allow", "same-namespace", nil},
		{"the selector", authz("mine", `{selector: {matchLabels: {app: httpbin}}}`), get, "deny", "no-allow", nil},
		{"a selector of which one label is missing", authz("mine", `{selector: {matchLabels: {app: httpbin, version: v1}}}`), get, "allow", "same-namespace", nil},
		{"a policy of the root namespace", join(all, meshWide), get, "deny", "istio-system/mesh", nil},
		{"and with a selector", manifestOf("AuthorizationPolicy", "istio-system", "mesh", `{selector: {matchLabels: {app: httpbin}}}`), get, "deny", "no-allow", nil},
		{"and for another namespace", meshWide, PolicyTest{Namespace: "bar", Workload: "x"}, "deny", "istio-system/mesh", nil},
		{"a policy of another namespace", manifestOf("AuthorizationPolicy", "bar", "b", `{}`), get, "allow", "same-namespace", nil},
		{"the older version", strings.Replace(nothing, "/v1\n", "/v1beta1\n", 1), get, "deny", "no-allow", nil},
		{"attached to a service", authz("a", `{targetRefs: [{kind: Service, group: "", name: httpbin}]}`), get, "deny", "no-allow", nil},
		{"attached to another", authz("a", `{targetRefs: [{kind: Service, group: core, name: other}]}`), get, "allow", "same-namespace", nil},
		{"attached to a gateway", authz("a", `{targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: httpbin}], rules: [{}]}`), barGet, "allow", "foo/a", nil},
		{"attached in the old way", authz("a", `{targetRef: {kind: Gateway, group: gateway.networking.k8s.io, name: httpbin}}`), get, "deny", "no-allow", nil},
		{"a list of them", "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicyList\nmetadata: {resourceVersion: \"\"}\nitems:\n- " + strings.ReplaceAll(strings.TrimSpace(allowGet), "\n", "\n  ") + "\n", barGet, "allow", "foo/allow-get", nil},

		{"a dry run of a deny", strings.Replace(denyPost, "  namespace", "  annotations: {istio.io/dry-run: \"true\"}\n  namespace", 1), post, "allow", "same-namespace", reports("foo/deny-post")},
		{"a dry run of an allow-nothing", strings.Replace(nothing, "  namespace", "  annotations: {istio.io/dry-run: \"true\"}\n  namespace", 1), get, "allow", "same-namespace", reports("no-allow")},
		{"a dry run that is none", strings.Replace(denyPost, "  namespace", "  annotations: {istio.io/dry-run: \"false\"}\n  namespace", 1), post, "deny", "foo/deny-post", reports("")},

		{"audit neither allows", authz("audit", `{action: AUDIT, rules: [{}]}`), barGet, "deny", "same-namespace", audits(true)},
		{"nor denies", authz("audit", `{action: AUDIT, rules: [{}]}`), get, "allow", "same-namespace", audits(true)},
		{"nor counts as an allow", authz("audit", `{action: AUDIT, rules: [{to: [{operation: {methods: ["POST"]}}]}]}`), get, "allow", "same-namespace", audits(false)},
		{"audit of what an allow takes", join(allowGet, authz("audit", `{action: AUDIT, rules: [{to: [{operation: {paths: ["/"]}}]}]}`)), get, "allow", "foo/allow-get", audits(true)},
	})
}

func reports(rule string) func(*policy.Decision) string {
	return func(d *policy.Decision) string {
		if d.Report == nil && rule != "" || d.Report != nil && d.Report.Rule != rule {
			return fmt.Sprintf("the report is %+v, want one by %q", d.Report, rule)
		}
		return ""
	}
}

func audits(want bool) func(*policy.Decision) string {
	return func(d *policy.Decision) string {
		if got := d.Obligations != nil && d.Obligations.Audit; got != want {
			return fmt.Sprintf("recorded: %v, want %v", got, want)
		}
		return ""
	}
}

func asksFor(want ...string) func(*policy.Decision) string {
	return func(d *policy.Decision) string {
		var got []string
		if d.Obligations != nil {
			got = d.Obligations.Ask
		}
		if !slices.Equal(got, want) {
			return fmt.Sprintf("asks %q, want %q", got, want)
		}
		return ""
	}
}

// TestIstioMatching: each field and key, and how several of them go together.
func TestIstioMatching(t *testing.T) {
	from := func(source string) string {
		return authz("p", `{rules: [{from: [{source: {`+source+`}}]}]}`)
	}
	to := func(operation string) string {
		return authz("p", `{rules: [{to: [{operation: {`+operation+`}}]}]}`)
	}
	when := func(key, values string) string {
		return authz("p", `{rules: [{when: [{key: "`+key+`", `+values+`}]}]}`)
	}
	web := PolicyTest{Method: "GET", Path: "/info/a", Source: "10.9.0.1", Headers: map[string]string{"User-Agent": "Mozilla/5.0", "X-Token": "admin"}}
	by := func(change func(*PolicyTest)) PolicyTest {
		q := web
		change(&q)
		return q
	}
	host := func(name string) PolicyTest { return by(func(q *PolicyTest) { q.Dst = name + ":8000" }) }
	claims := func(json string) PolicyTest { return by(func(q *PolicyTest) { q.TokenClaims = json }) }
	token := claims(`{"iss": "` + issuer + `", "sub": "ann", "aud": ["web", "api"], "azp": "app", "groups": ["admins", "devs"], "scope": "read write", "org": {"unit": "x"}, "on": true}`)
	var cases []istioCase
	for _, tt := range []struct {
		name, policies string
		request        PolicyTest
		match          bool
	}{
		{"principal", from(`principals: ["cluster.local/ns/foo/sa/sleep"]`), web, true},
		{"one of two principals", from(`principals: ["cluster.local/ns/foo/sa/x", "cluster.local/ns/foo/sa/sleep"]`), web, true},
		{"another principal", from(`principals: ["cluster.local/ns/foo/sa/sleepy"]`), web, false},
		{"principal of another trust domain", from(`principals: ["td1/ns/foo/sa/sleep"]`), web, false},
		{"principal of an alias", from(`principals: ["old-td/ns/foo/sa/sleep"]`), web, true},
		{"peer of an alias", from(`principals: ["cluster.local/ns/foo/sa/sleep"]`), by(func(q *PolicyTest) { q.Peer = "spiffe://old-td/ns/foo/sa/sleep" }), true},
		{"not a principal of an alias", from(`notPrincipals: ["old-td/ns/foo/sa/sleep"]`), web, false},
		{"peer of another trust domain", from(`principals: ["cluster.local/ns/foo/sa/sleep"]`), by(func(q *PolicyTest) { q.Peer = "spiffe://td1/ns/foo/sa/sleep" }), false},
		{"principals that begin so", from(`principals: ["cluster.local/ns/foo/*"]`), web, true},
		{"principals that end so", from(`principals: ["*/sa/sleep"]`), web, true},
		{"any principal", from(`principals: ["*"]`), web, true},
		{"any principal, and nobody", from(`principals: ["*"]`), by(func(q *PolicyTest) { q.Peer = "none" }), false},
		{"no principal", from(`notPrincipals: ["*"]`), by(func(q *PolicyTest) { q.Peer = "none" }), true},
		{"not that principal", from(`notPrincipals: ["cluster.local/ns/foo/sa/sleep"]`), web, false},
		{"namespace", from(`namespaces: ["foo"]`), web, true},
		{"another namespace", from(`namespaces: ["fo"]`), web, false},
		{"namespaces that begin so", from(`namespaces: ["f*"]`), web, true},
		{"not that namespace", from(`notNamespaces: ["foo"]`), web, false},
		{"a namespace, and nobody", from(`namespaces: ["*"]`), by(func(q *PolicyTest) { q.Peer = "none" }), false},
		{"service account", from(`serviceAccounts: ["foo/sleep"]`), web, true},
		{"service account of the policy's namespace", from(`serviceAccounts: ["sleep"]`), web, true},
		{"service account of another namespace", from(`serviceAccounts: ["sleep"]`), by(func(q *PolicyTest) { q.Peer = sleepBar }), false},
		{"not that service account", from(`notServiceAccounts: ["foo/sleep"]`), web, false},
		{"address", from(`ipBlocks: ["10.9.0.1"]`), web, true},
		{"range", from(`ipBlocks: ["192.0.2.0/24", "10.9.0.0/16"]`), web, true},
		{"range of IPv6", from(`ipBlocks: ["2001:db8::/32"]`), by(func(q *PolicyTest) { q.Source = "2001:db8::7" }), true},
		{"another range", from(`ipBlocks: ["10.8.0.0/16"]`), web, false},
		{"not that range", from(`notIpBlocks: ["10.9.0.0/16"]`), web, false},
		{"address of the client", from(`remoteIpBlocks: ["192.0.2.0/24"]`), by(func(q *PolicyTest) { q.Remote = "192.0.2.7" }), true},
		{"not the address of the proxy", from(`remoteIpBlocks: ["10.9.0.0/16"]`), by(func(q *PolicyTest) { q.Remote = "192.0.2.7" }), false},
		{"not that address of the client", from(`notRemoteIpBlocks: ["192.0.2.0/24"]`), by(func(q *PolicyTest) { q.Remote = "192.0.2.7" }), false},
		{"fields of a source go together", from(`principals: ["cluster.local/ns/foo/sa/sleep"], namespaces: ["bar"]`), web, false},
		{"a field and its opposite", from(`namespaces: ["f*"], notNamespaces: ["foo"]`), web, false},
		{"sources do not", authz("p", `{rules: [{from: [{source: {namespaces: ["bar"]}}, {source: {principals: ["*/sa/sleep"]}}]}]}`), web, true},
		{"from, to and when go together", authz("p", `{rules: [{from: [{source: {namespaces: ["foo"]}}], to: [{operation: {methods: ["GET"]}}], when: [{key: source.ip, values: ["10.8.0.0/16"]}]}]}`), web, false},
		{"request principal", from(`requestPrincipals: ["` + issuer + `/ann"]`), token, true},
		{"another request principal", from(`requestPrincipals: ["` + issuer + `/bob"]`), token, false},
		{"request principals of an issuer", from(`requestPrincipals: ["` + issuer + `/*"]`), token, true},
		{"request principals that end so", from(`requestPrincipals: ["*/ann"]`), token, true},
		{"any request principal", from(`requestPrincipals: ["*"]`), token, true},
		{"any request principal, without a token", from(`requestPrincipals: ["*"]`), web, false},
		{"any request principal of a token without a subject", from(`requestPrincipals: ["*"]`), claims(`{"iss": "` + issuer + `"}`), false},
		{"no request principal", from(`notRequestPrincipals: ["*"]`), web, true},

		{"method", to(`methods: ["GET", "HEAD"]`), web, true},
		{"another method", to(`methods: ["get"]`), web, false},
		{"not that method", to(`notMethods: ["GET"]`), web, false},
		{"path", to(`paths: ["/info/a"]`), web, true},
		{"paths that begin so", to(`paths: ["/info*"]`), web, true},
		{"paths that end so", to(`paths: ["*/a"]`), web, true},
		{"another path", to(`paths: ["/info"]`), web, false},
		{"not that path", to(`notPaths: ["/info*"]`), web, false},
		{"a path with one segment", to(`paths: ["/info/{*}"]`), web, true},
		{"not with two", to(`paths: ["/info/{*}"]`), by(func(q *PolicyTest) { q.Path = "/info/a/b" }), false},
		{"with any number", to(`paths: ["/{**}/b"]`), by(func(q *PolicyTest) { q.Path = "/info/a/b" }), true},
		{"a path of both", to(`paths: ["/{*}/a/{**}"]`), by(func(q *PolicyTest) { q.Path = "/info/a/b/c" }), true},
		{"host", to(`hosts: ["shop.example"]`), host("shop.example"), true},
		{"host in another case", to(`hosts: ["Shop.Example"]`), host("shop.example"), true},
		{"hosts that end so", to(`hosts: ["*.example"]`), host("a.shop.example"), true},
		{"not itself", to(`hosts: ["*.shop.example"]`), host("shop.example"), false},
		{"not that host", to(`notHosts: ["shop.example"]`), host("shop.example"), false},
		{"port", to(`ports: ["8000"]`), web, true},
		{"another port", to(`ports: ["80"]`), web, false},
		{"not that port", to(`notPorts: ["8000"]`), web, false},
		{"fields of an operation go together", to(`methods: ["GET"], paths: ["/x"]`), web, false},
		{"operations do not", authz("p", `{rules: [{to: [{operation: {methods: ["PUT"]}}, {operation: {paths: ["/info*"]}}]}]}`), web, true},
		{"gRPC by its path", to(`paths: ["/pkg.Service/Call"], methods: ["POST"]`), by(func(q *PolicyTest) { q.Method, q.Path = "POST", "/pkg.Service/Call" }), true},

		{"header", when("request.headers[X-Token]", `values: ["admin"]`), web, true},
		{"header that begins so", when("request.headers[User-Agent]", `values: ["Mozilla/*"]`), web, true},
		{"header that is not there", when("request.headers[x-none]", `values: ["*"]`), web, false},
		{"not that header", when("request.headers[x-token]", `notValues: ["admin"]`), web, false},
		{"not that header, where it is not there", when("request.headers[x-none]", `notValues: ["admin"]`), web, true},
		{"values and their opposite", when("request.headers[user-agent]", `values: ["Mozilla/*"], notValues: ["*/5.0"]`), web, false},
		{"source.ip", when("source.ip", `values: ["10.9.0.0/16"]`), web, true},
		{"remote.ip", when("remote.ip", `values: ["192.0.2.0/24"]`), by(func(q *PolicyTest) { q.Remote = "192.0.2.7" }), true},
		{"source.namespace", when("source.namespace", `values: ["foo"]`), web, true},
		{"source.principal", when("source.principal", `values: ["cluster.local/ns/foo/sa/sleep"]`), web, true},
		{"source.principal of an alias", when("source.principal", `values: ["old-td/ns/foo/sa/sleep"]`), web, true},
		{"source.serviceAccount", when("source.serviceAccount", `notValues: ["foo/sleep"]`), web, false},
		{"request.auth.principal", when("request.auth.principal", `values: ["`+issuer+`/ann"]`), token, true},
		{"request.auth.audiences", when("request.auth.audiences", `values: ["api"]`), token, true},
		{"request.auth.presenter", when("request.auth.presenter", `values: ["app"]`), token, true},
		{"a claim that is a list", when("request.auth.claims[groups]", `values: ["admins"]`), token, true},
		{"a claim that is a list of others", when("request.auth.claims[groups]", `values: ["ops"]`), token, false},
		{"a claim of words", when("request.auth.claims[scope]", `values: ["write"]`), token, true},
		{"a claim inside of another", when("request.auth.claims[org][unit]", `values: ["x"]`), token, true},
		{"a claim of truth", when("request.auth.claims[on]", `values: ["true"]`), token, true},
		{"a claim, without a token", when("request.auth.claims[groups]", `notValues: ["ops"]`), web, true},
		{"destination.ip", when("destination.ip", `values: ["10.1.0.0/16"]`), web, true},
		{"destination.port", when("destination.port", `values: ["8000", "8001"]`), web, true},
		{"connection.sni", when("connection.sni", `values: ["*.example"]`), by(func(q *PolicyTest) { q.SNI = "a.example" }), true},
		{"another connection.sni", when("connection.sni", `values: ["*.example"]`), by(func(q *PolicyTest) { q.SNI = "example" }), false},
		{"two conditions go together", authz("p", `{rules: [{when: [{key: source.namespace, values: ["foo"]}, {key: destination.port, values: ["1"]}]}]}`), web, false},
	} {
		want, rule := "deny", "no-allow"
		if tt.match {
			want, rule = "allow", "foo/p"
		}
		cases = append(cases, istioCase{tt.name, tt.policies, tt.request, want, rule, nil})
		want, rule = "allow", "foo/all"
		if tt.match {
			want, rule = "deny", "foo/p"
		}
		cases = append(cases, istioCase{tt.name + ", denied", join(authz("all", `{rules: [{}]}`), strings.Replace(tt.policies, "{rules", "{action: DENY, rules", 1)), tt.request, want, rule, nil})
	}
	runIstio(t, cases)
}

// TestIstioTasks are the situations of Istio's security tasks and of the examples in the reference of AuthorizationPolicy.
func TestIstioTasks(t *testing.T) {
	page := func(method string) PolicyTest {
		return PolicyTest{Workload: "productpage", Labels: map[string]string{"app": "productpage"}, Method: method, Path: "/productpage", Peer: "none"}
	}
	viewer := authz("viewer", "selector: {matchLabels: {app: productpage}}\naction: ALLOW\nrules:\n- to: [{operation: {methods: [GET]}}]")
	details := join(authz("nothing", `{}`), authz("details", "selector: {matchLabels: {app: details}}\nrules:\n- from: [{source: {principals: [cluster.local/ns/foo/sa/page]}}]\n  to: [{operation: {methods: [GET]}}]"))
	detailsBy := func(peer string) PolicyTest {
		return PolicyTest{Workload: "details", Labels: map[string]string{"app": "details"}, Method: "GET", Path: "/", Peer: peer}
	}
	httpbin := authz("httpbin", `
action: ALLOW
rules:
- from:
  - source: {principals: ["cluster.local/ns/bar/sa/sleep"]}
  - source: {namespaces: ["test"]}
  to:
  - operation: {methods: ["GET"], paths: ["/info*"]}
  - operation: {methods: ["POST"], paths: ["/data"]}
  when:
  - {key: "request.auth.claims[iss]", values: ["`+issuer+`"]}`)
	call := func(peer, method, path, iss string) PolicyTest {
		return PolicyTest{Peer: peer, Method: method, Path: path, TokenClaims: `{"iss": "` + iss + `", "sub": "x"}`}
	}
	test := "spiffe://cluster.local/ns/test/sa/any"
	tcp := func(action, ports, methods string) string {
		return authz("tcp", `{selector: {matchLabels: {app: httpbin}}, action: `+action+`, rules: [{to: [{operation: {ports: [`+ports+`]`+methods+`}}]}]}`)
	}
	port := func(n string) PolicyTest { return PolicyTest{Dst: "10.1.0.5:" + n} }
	ingress := func(kind, action string) string {
		return manifestOf("AuthorizationPolicy", "istio-system", "ingress", `{selector: {matchLabels: {app: httpbin}}, action: `+action+`, rules: [{from: [{source: {`+kind+`: ["1.2.3.4", "5.6.7.0/24"]}}]}]}`)
	}
	outside := func(source, remote string) PolicyTest {
		return PolicyTest{Peer: "none", Source: source, Remote: remote, Method: "GET", Path: "/"}
	}
	custom := authz("ext", `{selector: {matchLabels: {app: httpbin}}, action: CUSTOM, provider: {name: ext-authz}, rules: [{to: [{operation: {paths: ["/headers"]}}]}]}`)
	notFoo := authz("not-foo", `{action: DENY, rules: [{from: [{source: {notNamespaces: ["foo"]}}]}]}`)
	strict := manifestOf("PeerAuthentication", "foo", "default", `{mtls: {mode: STRICT}}`)
	runIstio(t, []istioCase{
		{"viewers of the page", viewer, page("GET"), "allow", "foo/viewer", nil},
		{"who wants more", viewer, page("POST"), "deny", "no-allow", nil},
		{"the page may see details", details, detailsBy("spiffe://cluster.local/ns/foo/sa/page"), "allow", "foo/details", nil},
		{"others may not", details, detailsBy(sleepFoo), "deny", "no-allow", nil},
		{"httpbin by principal", httpbin, call(sleepBar, "GET", "/info/x", issuer), "allow", "foo/httpbin", nil},
		{"httpbin by namespace", httpbin, call(test, "POST", "/data", issuer), "allow", "foo/httpbin", nil},
		{"httpbin for something else", httpbin, call(test, "POST", "/info", issuer), "deny", "no-allow", nil},
		{"httpbin with a token of others", httpbin, call(test, "GET", "/info", "https://other"), "deny", "no-allow", nil},
		{"httpbin by others", httpbin, call(sleepFoo, "GET", "/info", issuer), "deny", "no-allow", nil},
		{"deny-method-get", authz("deny-method-get", `{action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}`), PolicyTest{Method: "GET", Path: "/"}, "deny", "foo/deny-method-get", nil},
		{"and another method", authz("deny-method-get", `{action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}`), PolicyTest{Method: "POST", Path: "/"}, "allow", "same-namespace", nil},
		{"unless a header says so", authz("deny", `{action: DENY, rules: [{to: [{operation: {methods: [GET]}}], when: [{key: "request.headers[x-token]", notValues: [admin]}]}]}`), PolicyTest{Method: "GET", Path: "/", Headers: map[string]string{"x-token": "admin"}}, "allow", "same-namespace", nil},
		{"explicit deny", join(authz("all", `{rules: [{}]}`), notFoo), PolicyTest{Peer: sleepBar}, "deny", "foo/not-foo", nil},
		{"and who is not meant", join(authz("all", `{rules: [{}]}`), notFoo), PolicyTest{}, "allow", "foo/all", nil},
		{"and who has no identity", join(authz("all", `{rules: [{}]}`), notFoo), PolicyTest{Peer: "none"}, "deny", "foo/not-foo", nil},
		{"ports 9000 and 9001", tcp("ALLOW", `"9000", "9001"`, ""), port("9001"), "allow", "foo/tcp", nil},
		{"and 9002", tcp("ALLOW", `"9000", "9001"`, ""), port("9002"), "deny", "no-allow", nil},
		{"an allow of a method that a tunnel hides", tcp("ALLOW", `"9000"`, `, methods: [GET]`), port("9000"), "deny", "no-allow", nil},
		{"a deny of one", tcp("DENY", `"9000"`, `, methods: [GET]`), port("9000"), "deny", "foo/tcp", nil},
		{"which leaves other ports alone", tcp("DENY", `"9000"`, `, methods: [GET]`), port("9001"), "allow", "same-namespace", nil},
		{"who may come in", ingress("ipBlocks", "ALLOW"), outside("5.6.7.8", ""), "allow", "istio-system/ingress", nil},
		{"who may not", ingress("ipBlocks", "ALLOW"), outside("5.6.8.8", ""), "deny", "no-allow", nil},
		{"who comes through a proxy", ingress("remoteIpBlocks", "ALLOW"), outside("10.0.0.1", "1.2.3.4"), "allow", "istio-system/ingress", nil},
		{"whose proxy would have been let in", ingress("remoteIpBlocks", "ALLOW"), outside("1.2.3.4", "10.0.0.1"), "deny", "no-allow", nil},
		{"who is kept out", join(authz("all", `{rules: [{}]}`), ingress("remoteIpBlocks", "DENY")), outside("10.0.0.1", "5.6.7.9"), "deny", "istio-system/ingress", nil},
		{"who is not", join(authz("all", `{rules: [{}]}`), ingress("remoteIpBlocks", "DENY")), outside("10.0.0.1", "5.6.9.9"), "allow", "foo/all", nil},
		{"custom", custom, PolicyTest{Method: "GET", Path: "/headers"}, "allow", "same-namespace", asksFor("ext-authz")},
		{"custom of another path", custom, PolicyTest{Method: "GET", Path: "/ip"}, "allow", "same-namespace", asksFor()},
		{"custom does not let in", custom, PolicyTest{Peer: sleepBar, Method: "GET", Path: "/headers"}, "deny", "same-namespace", asksFor()},
		{"custom where a tunnel hides the path", custom, PolicyTest{}, "allow", "same-namespace", asksFor("ext-authz")},
		{"custom twice", join(custom, strings.ReplaceAll(custom, "ext-authz", "second"), authz("all", `{rules: [{}]}`)), PolicyTest{Method: "GET", Path: "/headers"}, "allow", "foo/all", asksFor("ext-authz", "second")},
		{"strict", join(strict, authz("all", `{rules: [{}]}`)), PolicyTest{Peer: "none"}, "deny", "foo/default", nil},
		{"strict, and who shows an identity", join(strict, authz("all", `{rules: [{}]}`)), PolicyTest{Peer: sleepBar}, "allow", "foo/all", nil},
	})
}

// TestIstioRequestAuthentication: a token that is not valid is refused, one that is not there passes.
func TestIstioRequestAuthentication(t *testing.T) {
	tokens := func(namespace, spec string) string {
		return manifestOf("RequestAuthentication", namespace, "jwt", spec)
	}
	one := func(more string) string {
		return `{selector: {matchLabels: {app: httpbin}}, jwtRules: [{issuer: "` + issuer + `", jwksUri: "https://issuer.example/keys"` + more + `}]}`
	}
	require := authz("require-jwt", `{selector: {matchLabels: {app: httpbin}}, action: ALLOW, rules: [{from: [{source: {requestPrincipals: ["`+issuer+`/ann"]}}]}]}`)
	group := authz("group", `{selector: {matchLabels: {app: httpbin}}, rules: [{from: [{source: {requestPrincipals: ["*"]}}], when: [{key: "request.auth.claims[groups]", values: [group1]}]}]}`)
	noToken := authz("no-token", `{action: DENY, rules: [{from: [{source: {notRequestPrincipals: ["*"]}}], to: [{operation: {notPaths: ["/healthz"]}}]}]}`)
	get := func(claims, bad string) PolicyTest {
		return PolicyTest{Method: "GET", Path: "/headers", TokenClaims: claims, BadToken: bad}
	}
	ann := `{"iss": "` + issuer + `", "sub": "ann", "aud": "web", "groups": ["group1", "group2"]}`
	unauthorized := func(want bool) func(*policy.Decision) string {
		return func(d *policy.Decision) string {
			if d.BadToken != want {
				return fmt.Sprintf("refused for its token: %v, want %v", d.BadToken, want)
			}
			return ""
		}
	}
	runIstio(t, []istioCase{
		{"no token", tokens("foo", one("")), get("", ""), "allow", "same-namespace", unauthorized(false)},
		{"a valid token", tokens("foo", one("")), get(ann, ""), "allow", "same-namespace", unauthorized(false)},
		{"a token that is not valid", tokens("foo", one("")), get("", "its signature is wrong"), "deny", "foo/jwt", unauthorized(true)},
		{"before any policy", join(tokens("foo", one("")), authz("all", `{rules: [{}]}`)), get("", "it has expired"), "deny", "foo/jwt", unauthorized(true)},
		{"a token of another issuer", tokens("foo", one("")), get(`{"iss": "https://other", "sub": "ann"}`, ""), "deny", "foo/jwt", unauthorized(true)},
		{"an audience", tokens("foo", one(`, audiences: [api, web]`)), get(ann, ""), "allow", "same-namespace", nil},
		{"another audience", tokens("foo", one(`, audiences: [api]`)), get(ann, ""), "deny", "foo/jwt", unauthorized(true)},
		{"of the root namespace", tokens("istio-system", one("")), get("", "it has expired"), "deny", "istio-system/jwt", nil},
		{"of another namespace", tokens("bar", one("")), get("", "it has expired"), "allow", "same-namespace", nil},
		{"of another workload", tokens("foo", strings.Replace(one(""), "app: httpbin", "app: other", 1)), get("", "it has expired"), "allow", "same-namespace", nil},
		{"attached to a service", tokens("foo", strings.Replace(one(""), "selector: {matchLabels: {app: httpbin}}", "targetRefs: [{kind: Service, name: httpbin}]", 1)), get("", "it has expired"), "deny", "foo/jwt", nil},
		{"the older version", strings.Replace(tokens("foo", one("")), "/v1\n", "/v1beta1\n", 1), get("", "it has expired"), "deny", "foo/jwt", nil},
		{"keys that are written out", tokens("foo", `{jwtRules: [{issuer: a, jwks: '`+jwks+`', fromHeaders: [{name: x-jwt, prefix: "JWT "}], timeout: 2s}]}`), get(`{"iss": "a"}`, ""), "allow", "same-namespace", nil},
		{"require-jwt and no token", join(tokens("foo", one("")), require), get("", ""), "deny", "no-allow", unauthorized(false)},
		{"require-jwt and a token", join(tokens("foo", one("")), require), get(ann, ""), "allow", "foo/require-jwt", nil},
		{"the group", join(tokens("foo", one("")), group), get(ann, ""), "allow", "foo/group", nil},
		{"another group", join(tokens("foo", one("")), group), get(strings.Replace(ann, "group1", "group3", 1), ""), "deny", "no-allow", nil},
		{"refuse who has no token", join(tokens("foo", one("")), noToken), get("", ""), "deny", "foo/no-token", nil},
		{"but for a path", join(tokens("foo", one("")), noToken), PolicyTest{Method: "GET", Path: "/healthz"}, "allow", "same-namespace", nil},
		{"refuse nobody who has one", join(tokens("foo", one("")), noToken), get(ann, ""), "allow", "same-namespace", nil},
	})
}

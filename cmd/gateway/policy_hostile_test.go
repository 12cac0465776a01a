package main

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"culvert/policy"
)

// readText reads and compiles one file of policies, as for a gateway that knows the authorizer opa.
func readText(text string) (*policies, *policy.Policy) {
	p := &policies{faults: new(faults)}
	p.read("p.yaml", []byte(text))
	rules := p.compile(policy.Config{Namespace: "default", TrustDomain: "cluster.local", Authorizers: []string{"opa"}})
	return p, rules
}

// faulty is a file that has to be refused, at a line, with some words.
type faulty struct {
	name, text string
	line       string
	want       string
}

func runFaulty(t *testing.T, cases []faulty) {
	t.Helper()
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			p, _ := readText(tt.text)
			err := p.faults.err()
			if err == nil {
				t.Fatalf("it is accepted:\n%s", tt.text)
			}
			for one := range strings.SplitSeq(err.Error(), "\n") {
				if !regexp.MustCompile(`^p\.yaml:[1-9][0-9]*: .`).MatchString(one) {
					t.Errorf("a fault without its line: %s", one)
				}
			}
			if !regexp.MustCompile(`(?m)^p\.yaml:` + tt.line + `: .*` + regexp.QuoteMeta(tt.want)).MatchString(err.Error()) {
				t.Errorf("no fault of line %s with %q:\n%v", tt.line, tt.want, err)
			}
		})
	}
}

// Every field of a policy, misspelt, in this gateway's own language and in Istio's.
func TestPolicyTypos(t *testing.T) {
	const own = `rules:
- name: a
  action: allow
  mode: enforce
  workloads: {namespace: shop, labels: {app: web}, names: [web]}
  from:
  - principals: ["a/ns/b/sa/c"]
    notPrincipals: ["a/ns/b/sa/d"]
    requestPrincipals: ["i/s"]
    notRequestPrincipals: ["i/t"]
    namespaces: [b]
    notNamespaces: [c]
    serviceAccounts: [b/c]
    notServiceAccounts: [b/d]
    ipBlocks: [10.0.0.0/8]
    notIpBlocks: [10.1.0.0/16]
    remoteIpBlocks: [10.0.0.0/8]
    notRemoteIpBlocks: [10.1.0.0/16]
  to:
  - hosts: [h]
    notHosts: [g]
    ports: ["80"]
    notPorts: ["81"]
    methods: [GET]
    notMethods: [PUT]
    paths: [/a]
    notPaths: [/b]
  when:
  - {key: source.ip, values: [10.0.0.0/8], notValues: [10.2.0.0/16]}
  cel: listener == "mesh"
  limits: {flowsPerSecond: 2.5, burst: 5, flows: 10, bytesPerSecond: 1MiB, quota: 1GiB, period: 1h}
  headers: {x-team: blue}
- {action: ask, authorizer: opa}
tests:
- {peer: "spiffe://a/ns/b/sa/c", source: 10.0.0.1, remote: 10.0.0.1, dst: "10.0.0.9:80", listener: mesh, workload: web, namespace: shop, labels: {app: web},
   sni: s, method: GET, path: /a, headers: {a: b}, tokenClaims: "{}", badToken: "", time: "2026-01-01T00:00:00Z", want: deny, rule: a}
`
	istio := join(`apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: a
  namespace: default
  annotations: {istio.io/dry-run: "true"}
spec:
  selector: {matchLabels: {app: web}}
  action: ALLOW
  rules:
  - from:
    - source:
        principals: ["a/ns/b/sa/c"]
        notPrincipals: ["a/ns/b/sa/d"]
        requestPrincipals: ["i/s"]
        notRequestPrincipals: ["i/t"]
        namespaces: [b]
        notNamespaces: [c]
        serviceAccounts: [b/c]
        notServiceAccounts: [b/d]
        ipBlocks: [10.0.0.0/8]
        notIpBlocks: [10.1.0.0/16]
        remoteIpBlocks: [10.0.0.0/8]
        notRemoteIpBlocks: [10.1.0.0/16]
    to:
    - operation:
        hosts: [h]
        notHosts: [g]
        ports: ["80"]
        notPorts: ["81"]
        methods: [GET]
        notMethods: [PUT]
        paths: [/a]
        notPaths: [/b]
    when:
    - {key: source.ip, values: [10.0.0.0/8], notValues: [10.2.0.0/16]}
`, authz("c", `{targetRefs: [{group: "", kind: Service, name: x, namespace: foo}], action: CUSTOM, provider: {name: opa}, rules: [{}]}`),
		authz("d", `{targetRef: {kind: Service, name: x}}`),
		manifestOf("PeerAuthentication", "foo", "e", `{selector: {matchLabels: {a: b}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: PERMISSIVE}}}`),
		manifestOf("RequestAuthentication", "foo", "f", `{selector: {matchLabels: {a: b}}, jwtRules: [{issuer: i, audiences: [a], jwksUri: "https://i/k", fromHeaders: [{name: x, prefix: "y "}], forwardOriginalToken: false, timeout: 5s}]}`))
	free := map[string]bool{ // names of the user's choice
		"app": true, "x-team": true, "a": true, "istio.io/dry-run": true, "8080": true,
	}
	key := regexp.MustCompile(`[A-Za-z0-9.\-/]+:(?: |\n)`)
	for language, text := range map[string]string{"own": own, "istio": istio} {
		p, _ := readText(text)
		if err := p.faults.err(); err != nil {
			t.Fatalf("%s: %v", language, err)
		}
		seen := 0
		for _, at := range key.FindAllStringIndex(text, -1) {
			name := text[at[0] : at[1]-2]
			if free[name] {
				continue
			}
			seen++
			for _, wrong := range []string{name + "s", name[1:] + "x", strings.ToUpper(name), name + "_"} {
				broken := text[:at[0]] + wrong + text[at[1]-2:]
				p, _ := readText(broken)
				err := p.faults.err()
				if err == nil {
					t.Errorf("%s: %q for %q is accepted", language, wrong, name)
					continue
				}
				line := strings.Count(text[:at[0]], "\n") + 1
				if want := regexp.MustCompile(`(?m)^p\.yaml:` + strconv.Itoa(line) + `: `); !want.MatchString(err.Error()) && name != "kind" && name != "apiVersion" {
					t.Errorf("%s: %q for %q: no fault of line %d:\n%v", language, wrong, name, line, err)
				}
			}
		}
		if seen < 50 {
			t.Errorf("%s: only %d fields were tried", language, seen)
		}
	}
}

// What can be wrong with values and with the file itself.
func TestPolicyHostile(t *testing.T) {
	rule := func(fields string) string { return "rules:\n- name: a\n  " + fields + "\n" }
	source := func(fields string) string { return rule("from:\n  - " + fields) }
	operation := func(fields string) string { return rule("to:\n  - " + fields) }
	spec := func(fields string) string { return authz("p", fields) }
	jwt := func(fields string) string {
		return manifestOf("RequestAuthentication", "foo", "p", "jwtRules:\n- issuer: i\n  "+fields)
	}
	peer := func(fields string) string { return manifestOf("PeerAuthentication", "foo", "p", fields) }
	bomb := "rules:\n- name: &a aaaaaaaa\n  from:\n  - principals: &b [" + strings.Repeat("*a,", 2000) + "*a]\n"
	runFaulty(t, []faulty{
		{"nothing", "", "1", "there is no policy in the file"},
		{"only a comment", "# rules\n---\n", "1", "there is no policy in the file"},
		{"a text", "allow", "1", "it should be a mapping"},
		{"a list", "- name: a\n", "1", "it should be a mapping"},
		{"no YAML", "rules: [", "1", "not YAML"},
		{"cut off", "rules:\n- name: a\n  from: [{principals: [", "[23]", "not YAML"},
		{"a tab", "rules:\n- name: a\n\taction: deny\n", "[23]", "not YAML"},
		{"NUL", "rules: []\x00\n", "1", "not YAML"},
		{"no UTF-8", "rules: [{name: \"\xff\xfe\"}]\n", "1", "not YAML"},
		{"UTF-16", "\xff\xfer\x00u\x00", "1", ""},
		{"a binary", "\x7fELF\x02\x01\x01\x00", "1", "not YAML"},
		{"JSON that is cut off", `{"rules": [{"name": "a"}`, "1", "not YAML"},
		{"a field twice", rule("action: deny\n  action: allow"), "4", `field "action" in rules[0] is there twice`},
		{"rules twice", "rules: []\nrules: []\n", "2", `field "rules" is there twice`},
		{"a field twice in an object", spec("action: DENY\naction: ALLOW"), "8", "is there twice"},
		{"a namespace twice", strings.Replace(spec(`{}`), "  name: p", "  name: p\n  namespace: bar", 1), "6", "is there twice"},
		{"a merge key", "rules:\n- &a {name: a, action: deny}\n- <<: *a\n", "3", "merge keys"},
		{"aliases without end", "a: &a [*a]\n", "1", "anchors"},
		{"aliases of aliases", bomb + "  to: &c\n  - hosts: [" + strings.Repeat("*b,", 2000) + "*b]\n", "[0-9]+", "anchors"},
		{"a lot of laughs", "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + laughs("abcdefghi"), "[0-9]+", "anchors"},
		{"deep", strings.Repeat("[", 20000), "1", "not YAML"},
		{"deep mappings", strings.Repeat("{a: ", 20000), "1", "not YAML"},
		{"a key that is a list", "? [a]\n: b\n", "1", "it should be a name"},

		{"another version", strings.Replace(spec(`{}`), "/v1\n", "/v2\n", 1), "2", "is not supported"},
		{"another group", strings.Replace(spec(`{}`), "security.", "networking.", 1), "2", "is not supported"},
		{"no version", strings.Replace(spec(`{}`), "apiVersion: security.istio.io/v1\n", "", 1), "1", "is not supported"},
		{"no kind", strings.Replace(spec(`{}`), "kind: AuthorizationPolicy\n", "", 1), "1", "is not supported"},
		{"a kind of others", manifestOf("NetworkPolicy", "foo", "p", `{}`), "2", "is not supported"},
		{"a kind in another case", manifestOf("authorizationPolicy", "foo", "p", `{}`), "2", "is not supported"},
		{"a list of another version", "apiVersion: security.istio.io/v9\nkind: AuthorizationPolicyList\nitems: []\n", "2", "is not supported"},
		{"a list in a list", "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: List}\n", "4", "a list inside of a list"},
		{"something else in a list", "apiVersion: v1\nkind: List\nitems:\n- rules: []\n", "4", "unknown field"},
		{"no name", "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {}\n", "3", "name is missing"},
		{"a dry run of what", strings.Replace(spec(`{}`), "  name: p", "  name: p\n  annotations: {istio.io/dry-run: \"yes\"}", 1), "5", "neither"},
		{"a dry run of CUSTOM", strings.Replace(spec("action: CUSTOM\nprovider: {name: opa}"), "  name: p", "  name: p\n  annotations: {istio.io/dry-run: \"true\"}", 1), "8", "cannot be tried"},
		{"a dry run of tokens", strings.Replace(jwt(`jwks: '`+jwks+`'`), "  name: p", "  name: p\n  annotations: {istio.io/dry-run: \"true\"}", 1), "8", "is for AuthorizationPolicies"},

		{"an action that is none", rule("action: permit"), "3", `"permit" is none`},
		{"an action of Istio's", rule("action: DENY"), "3", `"DENY" is none`},
		{"an action of ours", spec("action: deny"), "7", `"deny" is no action`},
		{"a mode that is none", rule("mode: reporting"), "3", `"reporting" is no mode`},
		{"no value", rule("action:"), "3", "has no value"},
		{"no sources", rule("from:"), "3", "has no value"},
		{"an empty list of sources", rule("from: []"), "3", "is an empty list"},
		{"an empty source", source("{}"), "4", "has no field"},
		{"a source without values", source("{principals: }"), "4", "has no value"},
		{"a source with an empty list", source("{principals: []}"), "4", "is an empty list"},
		{"and one beside it", source("{principals: [], namespaces: [a]}"), "4", "is an empty list"},
		{"a text for a list", source("{principals: a/b}"), "4", "it should be a list"},
		{"a mapping for a list", source("{principals: {a: b}}"), "4", "it should be a list"},
		{"a list for a text", source("{principals: [[a/b]]}"), "4", "it should be a text"},
		{"a list for a mapping", rule("workloads: [a]"), "3", "it should be a mapping"},
		{"an empty principal", source(`{principals: [""]}`), "4", "is empty"},
		{"a star inside", source(`{principals: ["a/ns/*/sa/b"]}`), "4", `has a "*" inside`},
		{"two stars", source(`{principals: ["*a*"]}`), "4", `has a "*" inside`},
		{"a principal with its scheme", source(`{principals: ["spiffe://a/ns/b/sa/c"]}`), "4", "begins with spiffe://"},
		{"a principal without a path", source(`{principals: [cluster.local]}`), "4", "is no identity"},
		{"a principal with a space", source(`{principals: ["a/ns/b/sa/c "]}`), "4", "has a space"},
		{"several principals in one", source(`{principals: ["a/b,a/c"]}`), "4", "has a comma"},
		{"a key that is none", source(`{principals: ["key:abc"]}`), "4", "is no self-made key"},
		{"a namespace that is none", source(`{namespaces: ["a/b"]}`), "4", "is no namespace"},
		{"a service account with a star", source(`{serviceAccounts: ["a/*"]}`), "4", `has a "*"`},
		{"a service account of nowhere", source(`{serviceAccounts: [web]}`), "4", "has no namespace"},
		{"a range that is none", source(`{ipBlocks: [10.0.0.0/33]}`), "4", "is neither an address nor a range"},
		{"an address that is none", source(`{ipBlocks: [10.0.0]}`), "4", "is neither an address nor a range"},
		{"an address with a port", source(`{ipBlocks: ["10.0.0.1:80"]}`), "4", "is neither an address nor a range"},
		{"any address", source(`{ipBlocks: ["*"]}`), "4", "is neither an address nor a range"},
		{"an address with a zone", source(`{ipBlocks: ["fe80::1%eth0"]}`), "4", "is neither an address nor a range"},
		{"a range in other clothes", source(`{ipBlocks: ["::ffff:10.0.0.0/104"]}`), "4", "IPv6 clothes"},
		{"an empty operation", operation("{}"), "4", "has no field"},
		{"port 0", operation("{ports: [0]}"), "4", "is no port"},
		{"port 65536", operation("{ports: [65536]}"), "4", "is no port"},
		{"a port by name", operation("{ports: [http]}"), "4", "is no port"},
		{"a negative port", operation("{ports: [-1]}"), "4", "is no port"},
		{"a range of ports", operation(`{ports: ["80-90"]}`), "4", "is no port"},
		{"any port", operation(`{ports: ["*"]}`), "4", "is no port"},
		{"a port with zeros", operation(`{ports: ["0080"]}`), "4", "is no port"},
		{"an empty method", operation(`{methods: [""]}`), "4", "is empty"},
		{"a template that is none", operation(`{paths: ["/a{*}"]}`), "4", "no template"},
		{"a template with two ends", operation(`{paths: ["/{**}/{**}"]}`), "4", "twice"},
		{"a template with a star", operation(`{paths: ["/{*}/*"]}`), "4", "no template"},
		{"a condition of nothing", rule("when: [{}]"), "3", "is no key"},
		{"a condition without values", rule("when: [{key: source.ip}]"), "3", "has neither values nor notValues"},
		{"a key that is none", rule("when: [{key: source.port, values: [a]}]"), "3", "is no key"},
		{"a key of Envoy's", spec(`{rules: [{when: [{key: "experimental.envoy.filters.network.mysql_proxy[db]", values: [a]}]}]}`), "6", "is no key"},
		{"a header without a name", rule(`when: [{key: "request.headers[]", values: [a]}]`), "3", "has no name in its brackets"},
		{"a header that is open", rule(`when: [{key: "request.headers[x", values: [a]}]`), "3", "has no name in its brackets"},
		{"a label with a star", rule("workloads: {labels: {app: web*}}"), "3", "is a label that no workload has"},
		{"a selector with a star", spec("selector: {matchLabels: {app: \"*\"}}"), "7", "is a label that no workload has"},
		{"a name with a star", rule("workloads: {names: [\"*\"]}"), "3", "is a name that no workload has"},
		{"a selector without a value", spec("selector:"), "7", "has no value"},
		{"labels without a value", spec("selector: {matchLabels: }"), "7", "has no value"},

		{"CUSTOM without a provider", spec("action: CUSTOM\nrules: [{}]"), "6", "is missing"},
		{"CUSTOM with an unknown provider", spec("action: CUSTOM\nprovider:\n  name: oppa\nrules: [{}]"), "9", `"oppa" is no authorizer`},
		{"a provider of an ALLOW", spec("provider: {name: opa}\nrules: [{}]"), "7", "belongs to action CUSTOM"},
		{"ask without an authorizer", rule("action: ask"), "2", "is missing"},
		{"ask an unknown one", rule("action: ask\n  authorizer: oppa"), "4", `"oppa" is no authorizer`},
		{"an authorizer of an allow", rule("authorizer: opa"), "3", "would be asked by nobody"},
		{"audit in report", rule("action: audit\n  mode: report"), "4", "is for rules that allow or deny"},
		{"a target without a name", spec("targetRefs:\n- {kind: Service}"), "8", "has no name"},
		{"a target of another kind", spec("targetRefs:\n- {kind: Pod, name: a}"), "8", "is not supported"},
		{"a target of another namespace", spec("targetRefs:\n- {kind: Service, name: a, namespace: bar}"), "8", "is of another namespace"},
		{"a target and a selector", spec("selector: {matchLabels: {a: b}}\ntargetRefs:\n- {kind: Service, name: a}"), "7", "stands beside"},

		{"limits of nothing", rule("limits: {}"), "3", "has no figure"},
		{"limits of a deny", rule("action: deny\n  limits: {flows: 1}"), "4", "is for rules that allow"},
		{"a limit of 0", rule("limits:\n    flows: 0"), "4", "would be no limit"},
		{"a negative limit", rule("limits:\n    flows: -1"), "4", "out of bounds"},
		{"a limit that is a text", rule("limits:\n    flows: many"), "4", "is not a whole number"},
		{"a limit with a fraction", rule("limits:\n    flows: 1.5"), "4", "is not a whole number"},
		{"a rate that is a text", rule("limits:\n    flowsPerSecond: fast"), "4", "is not a number"},
		{"a rate that is no number", rule("limits:\n    flowsPerSecond: NaN"), "4", "out of bounds"},
		{"a rate without end", rule("limits:\n    flowsPerSecond: +Inf"), "4", "out of bounds"},
		{"an absurd rate", rule("limits:\n    flowsPerSecond: 1e300"), "4", "out of bounds"},
		{"a negative size", rule("limits:\n    bytesPerSecond: -1MiB"), "4", "is not a size"},
		{"a size of bits", rule("limits:\n    quota: 1Gbps"), "4", "is not a size"},
		{"an absurd size", rule("limits:\n    bytesPerSecond: 99999TiB"), "4", "out of bounds"},
		{"a period without its unit", rule("limits:\n    quota: 1MiB\n    period: 60"), "5", "is not a time"},
		{"a negative period", rule("limits:\n    quota: 1MiB\n    period: -1h"), "5", "out of bounds"},
		{"a period of nothing", rule("limits:\n    period: 1h"), "4", "stands without quota"},
		{"a burst of nothing", rule("limits:\n    burst: 5"), "4", "stands without flowsPerSecond"},
		{"a field that is none", rule("headers:\n    \"x y\": a"), "4", "is no name of a field"},
		{"a field of two lines", rule("headers:\n    x: \"a\\r\\nb: c\""), "4", "is no value of a field"},
		{"a field of the connection", rule("headers:\n    Connection: close"), "4", "is a field of the connection"},
		{"a field without a value", rule("headers:\n    x:"), "4", "has no value"},

		{"tokens of no issuer", manifestOf("RequestAuthentication", "foo", "p", "jwtRules:\n- jwks: '"+jwks+"'"), "8", "issuer: is missing"},
		{"no tokens", manifestOf("RequestAuthentication", "foo", "p", "{}"), "6", "is empty"},
		{"tokens without keys", jwt("audiences: [a]"), "8", "jwksUri: is missing"},
		{"tokens with keys twice", jwt("jwks: '" + jwks + "'\n  jwksUri: https://i/k"), "9", "stands beside jwksUri"},
		{"keys that are none", jwt("jwks: '{}'"), "9", "is no set of keys"},
		{"keys in the clear", jwt("jwksUri: http://i/k"), "9", "is not https"},
		{"keys of nowhere", jwt("jwksUri: https://"), "9", "is no address"},
		{"keys of the old name", jwt("jwks_uri: https://i/k"), "9", "unknown field"},
		{"words of claims", jwt("jwksUri: https://i/k\n  spaceDelimitedClaims: [a]"), "10", "unknown field"},
		{"a token in a parameter", jwt("jwksUri: https://i/k\n  fromParams: [t]"), "10", "does not look for tokens"},
		{"a token in a cookie", jwt("jwksUri: https://i/k\n  fromCookies: [t]"), "10", "does not look for tokens"},
		{"a token to hand on", jwt("jwksUri: https://i/k\n  forwardOriginalToken: true"), "10", "does not hand on"},
		{"a payload to hand on", jwt("jwksUri: https://i/k\n  outputPayloadToHeader: x"), "10", "does not hand on"},
		{"a claim to hand on", jwt("jwksUri: https://i/k\n  outputClaimToHeaders: [{header: x, claim: y}]"), "10", "does not hand on"},
		{"a header of no name", jwt("jwksUri: https://i/k\n  fromHeaders: [{prefix: x}]"), "10", "is no name of a field"},
		{"no time to fetch keys", jwt("jwksUri: https://i/k\n  timeout: 0s"), "10", "is no time to wait"},
		{"a time without its unit", jwt("jwksUri: https://i/k\n  timeout: 5"), "10", "is not a time"},
		{"an empty audience", jwt("jwksUri: https://i/k\n  audiences: [\"\"]"), "10", "is no audience"},
		{"truth that is a text", jwt("jwksUri: https://i/k\n  forwardOriginalToken: yes"), "10", "is not true or false"},

		{"a mode of peers that is none", peer("mtls: {mode: strict}"), "7", `"strict" is no mode`},
		{"a mode that is not done", peer("mtls: {mode: DISABLE}"), "7", "DISABLE is not supported"},
		{"a mode without a value", peer("mtls: {mode: }"), "7", "has no value"},
		{"a port of all workloads", peer("mtls: {mode: STRICT}\nportLevelMtls: {80: {mode: STRICT}}"), "8", "needs a selector"},
		{"a port that is none", peer("selector: {matchLabels: {a: b}}\nportLevelMtls: {http: {mode: STRICT}}"), "8", "is no port"},
		{"a selector of peers with a star", peer("selector: {matchLabels: {a: \"*\"}}\nmtls: {mode: STRICT}"), "7", "is a label that no workload has"},

		{"a test without a rule to run", "tests:\n- {dst: \"a:1\", wants: deny}\n", "2", "unknown field"},
	})
}

// laughs are lists of nine aliases of the list before.
func laughs(names string) string {
	var b strings.Builder
	for i := 1; i < len(names); i++ {
		b.WriteString(names[i:i+1] + ": &" + names[i:i+1] + " [" + strings.Repeat("*"+names[i-1:i]+",", 9) + "x]\n")
	}
	return b.String()
}

// Expressions that are wrong are shown where they are wrong, line and column.
func TestPolicyExpressions(t *testing.T) {
	runFaulty(t, []faulty{
		{"plain", "rules:\n- name: a\n  cel: listener == peer.nam\n", "3", "rules[0].cel: column 20: undeclared reference to 'peer'"},
		{"in quotes", "rules:\n- {name: a, cel: 'listener == \"x\" && nobody'}\n", "2", "rules[0].cel: column 38: undeclared reference to 'nobody'"},
		{"in double quotes", "rules:\n- {name: a, cel: \"listener == nobody\"}\n", "2", "rules[0].cel: column 31: "},
		{"with escapes", "rules:\n- {name: a, cel: \"listener == \\\"x\\\" && nobody\"}\n", "2", "column 20 of the expression: "},
		{"of several lines", "rules:\n- name: a\n  cel: |\n    listener == \"x\"\n      && nobody\n", "5", "rules[0].cel: column 10: "},
		{"folded", "rules:\n- name: a\n  cel: >-\n    listener == \"x\"\n    && nobody\n", "3", "column 20 of the expression: "},
		{"a text", "rules:\n- {name: a, cel: listener}\n", "2", "it should be true or false"},
		{"empty", "rules:\n- {name: a, cel: \"\"}\n", "2", "is empty"},
		{"no value", "rules:\n- name: a\n  cel:\n", "3", "has no value"},
		{"a list", "rules:\n- name: a\n  cel: [true]\n", "3", "it should be an expression"},
		{"in an alias", "rules:\n- {name: &x nobody, cel: *x}\n", "2", "undeclared reference"},
		{"in Istio's", authz("a", `{rules: [{cel: "true"}]}`), "6", "unknown field"},
		{"too costly", "rules:\n- name: a\n  cel: token.claims.g.all(a, token.claims.g.all(b, a == b))\n", "3", "may cost"},
		{"too long", "rules:\n- name: a\n  cel: listener == \"" + strings.Repeat("x", 5000) + "\"\n", "3", "is longer than"},
	})
}

// A file that is too long is not read.
func TestPolicyFileTooLong(t *testing.T) {
	t.Chdir(t.TempDir())
	text := "rules: []\n" + strings.Repeat("# a long comment\n", 10<<20/17)
	if err := os.WriteFile("p.yaml", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := readPolicies([]string{"p.yaml"}, new(faults))
	if err := p.faults.err(); err == nil || !strings.Contains(err.Error(), "p.yaml: cannot be read: it is longer than 4MiB") {
		t.Errorf("a file of 10 MiB: %v", err)
	}
}

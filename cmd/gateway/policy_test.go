package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"culvert/pki/spiffe"
	"culvert/policy"
	"culvert/tunnel/tunneltest"
)

// istioPolicy lets one client reach one port.
const istioPolicy = `apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-client, namespace: default}
spec:
  action: ALLOW
  rules:
  - from: [{source: {principals: ["cluster.local/ns/default/sa/client"]}}]
    to: [{operation: {ports: ["8080"]}}]
`

// strictPeers lets nobody in without an identity, but to one workload, and there to all ports but one.
const strictPeers = `apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: old, namespace: default}
spec:
  selector: {matchLabels: {app: old}}
  mtls: {mode: PERMISSIVE}
  portLevelMtls:
    9090: {mode: STRICT}
`

// ownPolicy has rules of every kind, and tests.
const ownPolicy = `rules:
- name: orders
  from: [{principals: ["cluster.local/ns/shop/*"]}]
  to: [{ports: ["8080"]}]
- name: no-metadata
  action: deny
  when: [{key: destination.ip, values: ["169.254.169.254"]}]
- {name: soon, mode: report, action: deny, workloads: {labels: {app: web}}}
tests:
- {peer: "spiffe://cluster.local/ns/shop/sa/web", dst: "10.0.0.9:8080", want: allow, rule: orders}
- {peer: "spiffe://cluster.local/ns/shop/sa/web", dst: "169.254.169.254:8080", want: deny, rule: no-metadata}
- {peer: "spiffe://cluster.local/ns/default/sa/web", dst: "db.internal:8080", want: deny}
`

// tokenPolicy takes tokens of one issuer, and one subject of it.
const tokenPolicy = `apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: default}
spec:
  jwtRules:
  - {issuer: "https://issuer.example", audiences: [api], jwksUri: "https://issuer.example/keys"}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ann, namespace: default}
spec:
  rules:
  - from: [{source: {requestPrincipals: ["https://issuer.example/ann"]}}]
`

// dutyPolicy has everything that comes with a flow that is allowed.
const dutyPolicy = `rules:
- name: hours
  cel: listener == "mesh" && time.getHours() >= 8 && time.getHours() < 18
  limits: {flowsPerSecond: 0.5, flows: 3, bytesPerSecond: 1MiB, quota: 2GiB}
  headers: {X-Team: blue}
- name: opa
  action: ask
  authorizer: opa
- {name: watch, action: audit, to: [{ports: ["8080"]}]}
tests:
- {peer: "spiffe://cluster.local/ns/default/sa/a", dst: "10.0.0.9:8080", listener: mesh, time: "2026-03-02T09:30:00Z", want: allow, rule: hours}
- {peer: "spiffe://cluster.local/ns/default/sa/a", dst: "10.0.0.9:8080", listener: other, time: "2026-03-02T09:30:00Z", want: deny}
- {peer: "spiffe://cluster.local/ns/default/sa/a", dst: "10.0.0.9:8080", listener: mesh, want: deny}
`

// gatewayCommand runs one command in a folder with some files and returns its code and all that it prints.
func gatewayCommand(t *testing.T, files map[string]string, args ...string) (code int, out string) {
	t.Helper()
	t.Chdir(t.TempDir())
	for name, text := range files {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var log tunneltest.Log
	code = execute(t.Context(), args, &log, &log)
	return code, log.String()
}

func TestPolicyCommands(t *testing.T) {
	client := "spiffe://cluster.local/ns/default/sa/client"
	list := "apiVersion: v1\nkind: List\nitems:\n- " + strings.ReplaceAll(strings.TrimSpace(istioPolicy), "\n", "\n  ") + "\n"
	fromCluster := strings.Replace(istioPolicy, "metadata: {name: only-client, namespace: default}",
		"metadata:\n  name: only-client\n  namespace: default\n  resourceVersion: \"7\"\n  uid: x\n  managedFields:\n  - {manager: kubectl}", 1) + "status: {}\n"
	for _, tt := range []struct {
		name string
		file string
		args []string
		code int
		want []string
	}{
		{"check", istioPolicy, []string{"check", "p.yaml"}, 0, []string{"p.yaml: 1 policy, 0 tests, all right"}},
		{"check of own rules", ownPolicy, []string{"check", "p.yaml"}, 0, []string{"3 policies, 3 tests"}},
		{"check of several documents", istioPolicy + "---\n" + ownPolicy + "---\n", []string{"check", "p.yaml"}, 0, []string{"4 policies, 3 tests"}},
		{"check of a list", list, []string{"check", "p.yaml"}, 0, []string{"1 policy"}},
		{"check of what a cluster prints", fromCluster, []string{"check", "p.yaml"}, 0, []string{"1 policy"}},
		{"a typo", strings.Replace(istioPolicy, "principals", "principles", 1), []string{"check", "p.yaml"}, 2, []string{`p.yaml:7: unknown field "principles"`, `did you mean "principals"?`}},
		{"a value that is none", strings.Replace(istioPolicy, `"8080"`, `"http"`, 1), []string{"check", "p.yaml"}, 2, []string{"p.yaml:8: spec.rules[0].to[0].operation.ports[0]", "is no port"}},
		{"a kind that is not supported", strings.Replace(istioPolicy, "AuthorizationPolicy", "Telemetry", 1), []string{"check", "p.yaml"}, 2, []string{`p.yaml:2: kind: "Telemetry"`, "not supported"}},
		{"an action that is none", strings.Replace(istioPolicy, "ALLOW", "REFUSE", 1), []string{"check", "p.yaml"}, 2, []string{"p.yaml:5: spec.action: \"REFUSE\" is no action"}},
		{"no name", strings.Replace(istioPolicy, "name: only-client, ", "", 1), []string{"check", "p.yaml"}, 2, []string{"p.yaml:3: metadata: name is missing"}},
		{"no file", "", []string{"check"}, 2, []string{"takes a FILE or several"}},
		{"a file that is not there", "", []string{"check", "none.yaml"}, 2, []string{"none.yaml: cannot be read"}},
		{"a test that fails", strings.Replace(ownPolicy, "want: allow", "want: deny", 1), []string{"check", "p.yaml"}, 2, []string{"p.yaml:10: wants deny orders, and gets: allow by orders (p.yaml:2)"}},
		{"test", ownPolicy, []string{"test", "p.yaml"}, 0, []string{"ok    p.yaml:10: allow by orders (p.yaml:2)", "ok    p.yaml:12: deny by no-allow"}},
		{"test without tests", istioPolicy, []string{"test", "p.yaml"}, 2, []string{"there is no test in p.yaml"}},

		{"a strict peer authentication", strictPeers, []string{"explain", "--policy", "p.yaml", "--allow", "any", "--dst", "10.0.0.9:8080"}, 0, []string{"deny by istio-system/default (p.yaml:4): its mode is STRICT"}},
		{"and who has an identity", strictPeers, []string{"explain", "--policy", "p.yaml", "--peer", client, "--dst", "10.0.0.9:8080"}, 0, []string{"allow by same-namespace"}},
		{"and a workload for which it is permissive", strictPeers, []string{"explain", "--policy", "p.yaml", "--allow", "any", "--labels", "app=old", "--dst", "10.0.0.9:8080"}, 0, []string{"allow by allow[0]"}},
		{"but for a port", strictPeers, []string{"explain", "--policy", "p.yaml", "--allow", "any", "--labels", "app=old", "--dst", "10.0.0.9:9090"}, 0, []string{"deny by default/old (p.yaml:9)"}},
		{"a mode that is not supported", strings.Replace(strictPeers, "PERMISSIVE", "DISABLE", 1), []string{"check", "p.yaml"}, 2, []string{"p.yaml:11: spec.mtls.mode: DISABLE is not supported"}},

		{"explain what is allowed", istioPolicy, []string{"explain", "--policy", "p.yaml", "--peer", client, "--dst", "10.0.0.9:8080"}, 0, []string{"allow by default/only-client (p.yaml:7)"}},
		{"explain another port", istioPolicy, []string{"explain", "--policy", "p.yaml", "--peer", client, "--dst", "10.0.0.9:9090"}, 0, []string{"deny by no-allow: no ALLOW rule for the destination matches: default/only-client (p.yaml:7)"}},
		{"explain nobody", istioPolicy, []string{"explain", "--policy", "p.yaml", "--dst", "10.0.0.9:8080"}, 0, []string{"deny by no-allow"}},
		{"explain another namespace", istioPolicy, []string{"explain", "--policy", "p.yaml", "--namespace", "shop", "--dst", "10.0.0.9:8080"}, 0, []string{"deny by unauthenticated"}},
		{"explain with an entry", istioPolicy, []string{"explain", "--policy", "p.yaml", "--allow", "*", "--peer", client, "--dst", "10.0.0.9:9090"}, 0, []string{"allow by allow[0]"}},
		{"explain a report", ownPolicy, []string{"explain", "--policy", "p.yaml", "--labels", "app=web", "--peer", "spiffe://cluster.local/ns/shop/sa/web", "--dst", "10.0.0.9:8080"}, 0,
			[]string{"allow by orders (p.yaml:2)", "with the rules in report it would be: deny by soon (p.yaml:8)"}},
		{"check of tokens", tokenPolicy, []string{"check", "p.yaml"}, 0, []string{"2 policies, 0 tests"}},
		{"explain a token", tokenPolicy, []string{"explain", "--policy", "p.yaml", "--peer", client, "--dst", "10.0.0.9:8080", "--token-claims", `{"iss": "https://issuer.example", "sub": "ann", "aud": ["api"]}`}, 0, []string{"allow by default/ann (p.yaml:13)"}},
		{"explain a token of others", tokenPolicy, []string{"explain", "--policy", "p.yaml", "--peer", client, "--dst", "10.0.0.9:8080", "--token-claims", `{"iss": "https://other.example"}`}, 0, []string{`deny by default/tokens (p.yaml:6): the token is of issuer "https://other.example"`}},
		{"explain a token for others", tokenPolicy, []string{"explain", "--policy", "p.yaml", "--peer", client, "--dst", "10.0.0.9:8080", "--token-claims", `{"iss": "https://issuer.example", "aud": "web"}`}, 0, []string{`deny by default/tokens (p.yaml:6): the token is for ["web"]`}},
		{"explain a token that is not valid", tokenPolicy, []string{"explain", "--policy", "p.yaml", "--peer", client, "--dst", "10.0.0.9:8080", "--bad-token", "it has expired"}, 0, []string{"deny by default/tokens (p.yaml:6): the token is not valid: it has expired"}},
		{"explain no token", tokenPolicy, []string{"explain", "--policy", "p.yaml", "--peer", client, "--dst", "10.0.0.9:8080", "--method", "GET"}, 0, []string{"deny by no-allow"}},
		{"explain claims that are none", tokenPolicy, []string{"explain", "--policy", "p.yaml", "--dst", "10.0.0.9:8080", "--token-claims", `[]`}, 2, []string{"--token-claims: "}},
		{"explain an audience that is none", tokenPolicy, []string{"explain", "--policy", "p.yaml", "--dst", "10.0.0.9:8080", "--token-claims", `{"aud": 7}`}, 2, []string{"--token-claims: aud is neither"}},
		{"explain a time that is none", tokenPolicy, []string{"explain", "--policy", "p.yaml", "--dst", "10.0.0.9:8080", "--time", "noon"}, 2, []string{"--time: "}},
		{"check of what comes with a flow", dutyPolicy, []string{"check", "--authorizer", "opa", "p.yaml"}, 0, []string{"3 policies, 3 tests"}},
		{"of an authorizer that nobody names", dutyPolicy, []string{"check", "p.yaml"}, 2, []string{`p.yaml:8: rules[1].authorizer: "opa" is no authorizer that this gateway knows; none is configured`}},
		{"explain what comes with a flow", dutyPolicy, []string{"explain", "--authorizer", "opa", "--policy", "p.yaml", "--peer", client, "--dst", "10.0.0.9:8080", "--listener", "mesh", "--time", "2026-03-02T09:30:00Z"}, 0,
			[]string{"allow by hours (p.yaml:2): an ALLOW rule takes it; asks opa, lets 0.5 flows a second begin, 1 at once, lets 3 flows live, lets 1MiB a second pass, lets 2GiB in 24h0m0s pass, sets x-team, is recorded"}},
		{"explain another hour", dutyPolicy, []string{"explain", "--authorizer", "opa", "--policy", "p.yaml", "--peer", client, "--dst", "10.0.0.9:8080", "--listener", "mesh", "--time", "2026-03-02T19:30:00Z"}, 0, []string{"deny by no-allow", "; is recorded"}},
		{"explain an alias", istioPolicy, []string{"explain", "--policy", "p.yaml", "--trust-domain-alias", "old.example", "--peer", strings.Replace(client, "cluster.local", "old.example", 1), "--dst", "10.0.0.9:8080"}, 0, []string{"allow by default/only-client"}},

		{"explain without a destination", istioPolicy, []string{"explain", "--policy", "p.yaml"}, 2, []string{"--dst is missing"}},
		{"explain a destination that is none", istioPolicy, []string{"explain", "--policy", "p.yaml", "--dst", "10.0.0.9"}, 2, []string{"it should be like 10.0.0.9:8080"}},
		{"explain a peer that is none", istioPolicy, []string{"explain", "--policy", "p.yaml", "--dst", "10.0.0.9:1", "--peer", "client"}, 2, []string{"--peer: "}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, out := gatewayCommand(t, map[string]string{"p.yaml": tt.file}, append([]string{"policy"}, tt.args...)...)
			if code != tt.code {
				t.Errorf("exit code %d, want %d:\n%s", code, tt.code, out)
			}
			for _, want := range tt.want {
				if !strings.Contains(out, want) {
					t.Errorf("no %q in:\n%s", want, out)
				}
			}
		})
	}
}

// A configuration with a policy that is wrong, or whose tests fail, is refused.
func TestPolicyFilesAreChecked(t *testing.T) {
	config := "listeners:\n- {name: mesh, kind: hbone, address: \"127.0.0.1:0\"}\nroutes:\n- {listeners: [mesh], destinations: [local]}\npolicy: {files: [p.yaml]}\n"
	code, out := gatewayCommand(t, map[string]string{"gw.yaml": config, "p.yaml": strings.Replace(ownPolicy, "ports", "port", 1)}, "check", "-c", "gw.yaml")
	if code != exitUsage || !strings.Contains(out, `p.yaml:4: unknown field "port"`) {
		t.Errorf("check = %d, %s", code, out)
	}
	if code, out = gatewayCommand(t, map[string]string{"gw.yaml": config}, "check", "-c", "gw.yaml"); code != exitUsage || !strings.Contains(out, "p.yaml: cannot be read") {
		t.Errorf("check without the file = %d, %s", code, out)
	}
}

// FuzzPolicyFile: whatever a file says, it is refused with its place, or makes a policy that decides.
func FuzzPolicyFile(f *testing.F) {
	f.Add(istioPolicy)
	f.Add(ownPolicy)
	f.Add(istioPolicy + "---\n" + ownPolicy)
	f.Add("kind: List\napiVersion: v1\nitems: [{kind: List, apiVersion: v1}]")
	f.Add("rules: [{action: allow, from: [{}], when: [{key: \"request.auth.claims[a][b]\", notValues: [\"*x\"]}]}]")
	f.Add("a: &a [*a]")
	f.Add(tokenPolicy)
	f.Add(dutyPolicy)
	f.Add(strictPeers)
	f.Add("rules:\n- cel: |\n    true &&\n      nobody\n- {cel: \"\\x41\", limits: {flows: 0}, headers: {a: b}}")
	f.Fuzz(func(t *testing.T, text string) {
		p := &policies{faults: new(faults)}
		p.read(filepath.Join("dir", "p.yaml"), []byte(text))
		rules := p.compile(policy.Config{Namespace: "default", TrustDomain: "cluster.local", Authorizers: []string{"opa"}})
		if err := p.faults.err(); err != nil {
			if strings.TrimSpace(err.Error()) == "" {
				t.Error("a fault that says nothing")
			}
			return
		}
		if rules == nil {
			t.Fatal("neither a fault nor a policy")
		}
		test := PolicyTest{Peer: defaultSelf, Dst: "10.0.0.9:8080"}
		self, err := spiffe.Parse(defaultSelf)
		if err != nil {
			t.Fatal(err)
		}
		r, err := test.request(self)
		if err != nil {
			t.Fatal(err)
		}
		if d := rules.Decide(r); d.Rule == "" || d.Reason == "" || !d.Allow && d.Policy == "" {
			t.Errorf("Decide = %+v", d)
		}
	})
}

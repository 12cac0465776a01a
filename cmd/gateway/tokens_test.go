package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"culvert/tunnel/h2"
)

// oidcIssuer is an OpenID Connect provider: discovery, a key set that it can rotate, and tokens.
type oidcIssuer struct {
	t      *testing.T
	server *httptest.Server

	mu   sync.Mutex
	kid  int
	keys map[string]*ecdsa.PrivateKey // that are published
	last *ecdsa.PrivateKey
}

func newOIDCIssuer(t *testing.T) *oidcIssuer {
	t.Helper()
	i := &oidcIssuer{t: t, keys: make(map[string]*ecdsa.PrivateKey)}
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": i.server.URL, "jwks_uri": i.server.URL + "/keys"})
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) {
		i.mu.Lock()
		defer i.mu.Unlock()
		var set struct {
			Keys []map[string]string `json:"keys"`
		}
		for kid, key := range i.keys {
			point := must(key.PublicKey.Bytes())
			set.Keys = append(set.Keys, map[string]string{
				"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": kid,
				"x": base64.RawURLEncoding.EncodeToString(point[1:33]), "y": base64.RawURLEncoding.EncodeToString(point[33:]),
			})
		}
		_ = json.NewEncoder(w).Encode(set)
	})
	i.server = httptest.NewTLSServer(mux)
	t.Cleanup(i.server.Close)
	i.rotate()
	return i
}

// rotate publishes a new key in place of the old one.
func (i *oidcIssuer) rotate() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.kid++
	clear(i.keys)
	i.last = must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	i.keys[fmt.Sprint(i.kid)] = i.last
}

// token signs claims for audience as sub.
func (i *oidcIssuer) token(sub, audience string, groups ...string) string {
	i.t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	t := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{
		"iss": i.server.URL, "sub": sub, "aud": audience, "exp": time.Now().Add(time.Hour).Unix(), "groups": groups,
	})
	t.Header["kid"] = fmt.Sprint(i.kid)
	return must(t.SignedString(i.last))
}

// A gateway believes the tokens of an OpenID Connect issuer, decides by what they say, and explains why not; when the
// issuer withdraws a key, the flows end that were begun with its tokens.
func TestTokensOfAnIssuer(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds; make test has it")
	}
	m := newMesh(t)
	i := newOIDCIssuer(t)
	m.write("issuer.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.server.Certificate().Raw}))
	m.write("policy.yaml", fmt.Appendf(nil, `apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: people, namespace: default}
spec:
  jwtRules:
  - {issuer: %q, audiences: [mesh], jwksUri: %q}
---
rules:
- {name: admins, when: [{key: "request.auth.claims[groups]", values: [admin]}]}
`, i.server.URL, i.server.URL+"/keys"))
	ln, adm := listenLoopback(t), listenLoopback(t)
	m.write("exit.yaml", fmt.Appendf(nil, `%stokens: {issuers: [{issuer: %q, discovery: true, audiences: [mesh], caFile: issuer.pem}]}
policy: {files: [policy.yaml]}
admin: {address: "%s"}
listeners:
- {name: mesh, kind: hbone, address: "%s"}
routes:
- {listeners: [mesh], destinations: [local]}
`, m.yaml("exit"), i.server.URL, adm.Addr(), ln.Addr()))
	exit := &running{address: ln.Addr().String(), admin: adm.Addr().String()}
	exit.process = gatewayProcess(t, "run", "-c", m.path("exit.yaml")).inherit(ln, adm).start()
	exit.ready()
	target := echoServer(t)
	conn := must(m.connectAs("entry", exit.address))
	ask := func(token string) *h2.Header {
		h := &h2.Header{Method: "CONNECT", Authority: target}
		if token != "" {
			h.Fields = []h2.Field{{Name: "authorization", Value: "Bearer " + token}}
		}
		return h
	}
	good := i.token("ann", "mesh", "staff", "admin")
	for _, tt := range []struct {
		name, token string
		want        int
		says        string // of the log
	}{
		{"an admin", good, 200, "token=" + i.server.URL + "/ann"},
		{"again, as remembered", good, 200, ""},
		{"no admin", i.token("bob", "mesh", "staff"), 401, "token=" + i.server.URL + "/bob"},
		{"no token", "", 401, "rule=no-allow"},
		{"of another audience", i.token("ann", "shop", "admin"), 401, "rule=default/people"},
		{"altered", good[:len(good)-4] + "AAAA", 401, "bad_token="},
		{"not signed", strings.Join([]string{base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)), strings.Split(good, ".")[1], ""}, "."), 401, "bad_token="},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got, status := askStatus(t, conn, ask(tt.token)); got != tt.want {
				t.Errorf("status %d (%s), want %d", got, status, tt.want)
			}
			if tt.says != "" {
				eventually(t, "the record", func() error {
					if log := exit.stderr.String(); !strings.Contains(log, tt.says) {
						return fmt.Errorf("the log does not have %q", tt.says)
					}
					return nil
				})
			}
		})
	}
	if log := exit.stderr.String(); strings.Contains(log, good) || strings.Contains(log, strings.Split(good, ".")[2]) {
		t.Error("a token is in the log")
	}

	live := must(conn.Open(t.Context(), ask(good), false))
	if res := must(live.Response(t.Context())); res.Status != 200 {
		t.Fatalf("status %d", res.Status)
	}
	if _, err := live.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(live, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	i.rotate()
	// A token of the new key has the gateway read the keys, of which the old one is none any more.
	next := i.token("ann", "mesh", "admin")
	eventually(t, "a token of the new key", func() error {
		if got, status := askStatus(t, conn, ask(next)); got != 200 {
			return fmt.Errorf("status %d (%s)", got, status)
		}
		return nil
	})
	_ = live.SetReadDeadline(time.Now().Add(patience))
	if _, err := live.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("the flow of a withdrawn key reads %v, want that it was reset", err)
	}
	if got, _ := askStatus(t, conn, ask(good)); got != 401 {
		t.Errorf("a token of the withdrawn key = %d, want 401", got)
	}
	exit.metric(`culvert_flows_ended_total{cause="revoked"} 1`)
}

// The keys of a RequestAuthentication may stand in it.
func TestTokensOfKeysInAPolicy(t *testing.T) {
	m := newMesh(t)
	i := newOIDCIssuer(t)
	answer := must(i.server.Client().Get(i.server.URL + "/keys"))
	keys := must(io.ReadAll(answer.Body))
	_ = answer.Body.Close()
	m.write("policy.yaml", fmt.Appendf(nil, `apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: people, namespace: default}
spec:
  jwtRules:
  - {issuer: %q, audiences: [mesh], jwks: %q}
---
rules:
- {name: people, from: [{requestPrincipals: ["*"]}]}
`, i.server.URL, keys))
	ln, adm := listenLoopback(t), listenLoopback(t)
	m.write("exit.yaml", fmt.Appendf(nil, `%spolicy: {files: [policy.yaml]}
admin: {address: "%s"}
listeners:
- {name: mesh, kind: hbone, address: "%s"}
routes:
- {listeners: [mesh], destinations: [local]}
`, m.yaml("exit"), adm.Addr(), ln.Addr()))
	exit := &running{address: ln.Addr().String(), admin: adm.Addr().String()}
	exit.process = gatewayProcess(t, "run", "-c", m.path("exit.yaml")).inherit(ln, adm).start()
	exit.ready()
	target := echoServer(t)
	conn := must(m.connectAs("entry", exit.address))
	for _, tt := range []struct {
		name, token string
		want        int
	}{
		{"with a token", "Bearer " + i.token("ann", "mesh"), 200},
		{"of another audience", "Bearer " + i.token("ann", "other"), 401},
		{"without one", "", 401},
	} {
		h := &h2.Header{Method: "CONNECT", Authority: target}
		if tt.token != "" {
			h.Fields = []h2.Field{{Name: "authorization", Value: tt.token}}
		}
		if got, status := askStatus(t, conn, h); got != tt.want {
			t.Errorf("%s: status %d (%s), want %d", tt.name, got, status, tt.want)
		}
	}
}

// What is wrong with issuers is told with its line, and a gateway does not start with it.
func TestIssuersThatCannotBeUsed(t *testing.T) {
	rule := func(of string) string {
		return "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: people, namespace: default}\nspec:\n  jwtRules:\n" + of
	}
	gateway := `listeners: [{name: mesh, kind: hbone, address: "127.0.0.1:0"}]
routes: [{listeners: [mesh], destinations: [local]}]
policy: {files: [p.yaml]}
`
	for _, tt := range []struct{ name, config, policy, want string }{
		{"no keys", gateway + "tokens: {issuers: [{issuer: \"https://i.example\", audiences: [a]}]}\n", "rules: []", "gw.yaml:4: "},
		{"no audience", gateway + "tokens:\n  issuers:\n  - {issuer: \"https://i.example\", jwksUri: \"https://i.example/keys\"}\n", "rules: []", "gw.yaml:6: "},
		{"a file that is not there", gateway + "tokens: {issuers: [{issuer: i, audiences: [a], jwksFile: none.json}]}\n", "rules: []", "gw.yaml:4: issuers[0].jwksFile: "},
		{"a field that is none", gateway + "tokens: {issuer: x}\n", "rules: []", "gw.yaml:4: "},
		{"two sets of keys of one issuer", gateway, rule("  - {issuer: i, jwksUri: \"https://i.example/a\"}\n  - {issuer: i, jwksUri: \"https://i.example/b\"}\n"), "p.yaml:7: "},
		{"keys that cannot be used", gateway, rule("  - {issuer: i, jwks: '{\"keys\": [{\"kty\": \"oct\"}]}'}\n"), "p.yaml:6: spec.jwtRules[0].jwks: "},
		{"a time that is not kept", gateway, rule("  - {issuer: i, jwksUri: \"https://i.example/a\", timeout: 3s}\n"), "p.yaml:6: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, out := gatewayCommand(t, map[string]string{"gw.yaml": tt.config, "p.yaml": tt.policy}, "check", "-c", "gw.yaml")
			if code != exitUsage || !strings.Contains(out, tt.want) {
				t.Errorf("check = %d, %s, want a fault at %s", code, out, tt.want)
			}
		})
	}
}

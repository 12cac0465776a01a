package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"culvert/pki"
	"culvert/pki/spiffe"
)

// claimsToken signs claims of the issuer.
func (i *oidcIssuer) claimsToken(claims jwt.MapClaims) string {
	i.t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	claims["iss"], claims["exp"] = i.server.URL, time.Now().Add(time.Hour).Unix()
	t := jwt.NewWithClaims(jwt.SigningMethodES256, claims)
	t.Header["kid"] = fmt.Sprint(i.kid)
	return must(t.SignedString(i.last))
}

// The bearers of tokens of an OpenID Connect issuer, and service accounts of Kubernetes, get certificates from the CA: a
// gateway takes its identity from it so.
func TestCATakesTokensOfIssuers(t *testing.T) {
	m := newMesh(t)
	people, cluster := newOIDCIssuer(t), newOIDCIssuer(t)
	m.write("issuer.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: people.server.Certificate().Raw}))
	m.write("tokens.yaml", fmt.Appendf(nil, `issuers:
- {issuer: %q, discovery: true, audiences: [ca], caFile: issuer.pem}
- {issuer: %q, jwksUri: %q, audiences: [istio-ca], caFile: issuer.pem, kubernetes: true}
identities:
  %q: "spiffe://cluster.local/ns/people/sa/{sub}"
`, people.server.URL, cluster.server.URL, cluster.server.URL+"/keys", people.server.URL))
	state := m.path("ca")
	ca := gatewayProcess(t, "ca", "serve", "--state", state, "--listen", "127.0.0.1:0", "--tokens", m.path("tokens.yaml")).start()
	var address string
	eventually(t, "the CA serves", func() error {
		found := regexp.MustCompile(`msg="CA serves".* address=(\S+)`).FindStringSubmatch(ca.stderr.String())
		if found == nil {
			return fmt.Errorf("not yet")
		}
		address = found[1]
		return nil
	})
	account := jwt.MapClaims{"aud": "istio-ca", "sub": "system:serviceaccount:shop:web",
		"kubernetes.io": map[string]any{"namespace": "shop", "serviceaccount": map[string]any{"name": "web", "uid": "1"}}}
	for _, tt := range []struct{ name, token, want string }{
		{"a person", people.claimsToken(jwt.MapClaims{"aud": "ca", "sub": "ann"}), "spiffe://cluster.local/ns/people/sa/ann"},
		{"a service account", cluster.claimsToken(account), "spiffe://cluster.local/ns/shop/sa/web"},
		{"a person with a path for a name", people.claimsToken(jwt.MapClaims{"aud": "ca", "sub": "x/sa/admin"}), ""},
		{"a person without a name", people.claimsToken(jwt.MapClaims{"aud": "ca"}), ""},
		{"a list for a name", people.claimsToken(jwt.MapClaims{"aud": "ca", "sub": "a..b/.."}), ""},
		{"for another audience", people.claimsToken(jwt.MapClaims{"aud": "shop", "sub": "ann"}), ""},
		{"no token", "nonsense", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Chmod(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			source, err := pki.Open(t.Context(), pki.Config{State: dir, CA: pki.CAConfig{
				Address: address, Roots: state + "/ca.pem", TokenFile: m.write("token", []byte(tt.token)),
			}}, "host", newLogging(os.Stderr, LogConfig{Level: "error"}).Logger)
			if (err == nil) != (tt.want != "") {
				t.Fatalf("Open = %v, want the identity %q", err, tt.want)
			}
			if err == nil {
				defer source.Close()
				if got := source.ID(); got != must(spiffe.Parse(tt.want)) {
					t.Errorf("the identity is %s, want %s", got, tt.want)
				}
			}
		})
	}
	if log := ca.stderr.String(); strings.Contains(log, "eyJ") {
		t.Errorf("a token is in the log:\n%s", log)
	}
}

// What is wrong with the file is told with its line.
func TestCATokensThatCannotBeUsed(t *testing.T) {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	m := newMesh(t)
	m.write("key.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: must(x509.MarshalPKIXPublicKey(&key.PublicKey))}))
	const one = "issuers:\n- {issuer: i, audiences: [ca], keys: [{file: key.pem}]}\n"
	for _, tt := range []struct{ name, text, want string }{
		{"no identity", one, "tokens.yaml:2: "},
		{"an identity that is none", one + "identities:\n  i: people/{sub}\n", "tokens.yaml:4: "},
		{"of another issuer", one + "identities: {i: \"spiffe://cluster.local/ns/p/sa/{sub}\", j: \"spiffe://cluster.local/a\"}\n", "is no issuer of this file"},
		{"a field that is none", one + "identity: x\n", "tokens.yaml:3: "},
		{"self-made keys", one + "identities: {i: \"spiffe://cluster.local/ns/p/sa/{sub}\"}\nselfSigned: {audiences: [a]}\n", "tokens.yaml:4: "},
		{"no key file", strings.Replace(one, "key.pem", "none.pem", 1) + "identities: {i: \"spiffe://cluster.local/ns/p/sa/{sub}\"}\n", "none.pem"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := m.write("tokens.yaml", []byte(tt.text))
			if _, err := readCATokens(file, "cluster.local"); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("readCATokens = %v, want %q", err, tt.want)
			}
		})
	}
}

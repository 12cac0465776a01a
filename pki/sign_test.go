package pki_test

import (
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
	"time"

	"culvert/pki"
	"culvert/pki/jwt"
	"culvert/pki/spiffe"
)

// What the key of an identity signs is verified by who has its certificate, and by nobody for another audience.
func TestSignJWT(t *testing.T) {
	ca, err := pki.NewCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	id, err := spiffe.Parse("spiffe://cluster.local/ns/default/sa/gw")
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.Issue(id, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	m, err := pki.Parse(cert, key, ca.PEM())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "gw.pem")
	leaf := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.Certificate.Leaf.Raw})
	if err := os.WriteFile(file, leaf, 0o600); err != nil {
		t.Fatal(err)
	}
	token, until, err := pki.Fixed(m).SignJWT("lb.example")
	if err != nil || time.Until(until) > 5*time.Minute || time.Until(until) < 4*time.Minute {
		t.Fatalf("SignJWT = %v until %v", err, until)
	}
	for audience, ok := range map[string]bool{"lb.example": true, "other.example": false} {
		v, err := jwt.New(jwt.Config{Issuers: []jwt.IssuerConfig{{Issuer: id.String(), Audiences: []string{audience}, Keys: []jwt.KeyConfig{{File: file}}}}}, jwt.Env{})
		if err != nil {
			t.Fatal(err)
		}
		got, err := v.Verify(t.Context(), token)
		if ok != (err == nil) || ok && (got.Subject != id.String() || got.Issuer != id.String()) {
			t.Errorf("Verify for %s = %+v, %v", audience, got, err)
		}
		_ = v.Close()
	}
}

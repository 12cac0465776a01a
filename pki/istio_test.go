package pki

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// istioConfig is the configuration of a gateway whose identity an Istio CA signs.
func istioConfig(t *testing.T, a *testAuthority, token string) Config {
	t.Helper()
	dir := t.TempDir()
	return Config{State: filepath.Join(dir, "state"), Poll: minPoll, CA: CAConfig{
		Address: a.addr, Roots: put(t, dir, "roots.pem", []byte(mustRead(t, a.dir, caCertFile)), 0o600), TokenFile: put(t, dir, "token", []byte(token+"\n"), 0o600),
	}}
}

func TestIstioCA(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds; make test has it")
	}
	a := newAuthority(t, AuthorityConfig{Tokens: workloadTokens, Names: []string{"127.0.0.1"}})
	a.cfg.TTL = 6 * time.Second // less than a configuration may say
	a.serve("")
	cfg := istioConfig(t, a, tokenFor(webID(t), time.Hour))
	logs, log := newLogs()
	s, err := Open(t.Context(), cfg, "host", log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if s.ID() != webID(t) {
		t.Errorf("the identity is %s, want %s", s.ID(), webID(t))
	}
	first := s.Current()
	wait(t, s.Changed())
	next := s.Current()
	if next.chain[0].SerialNumber.Cmp(first.chain[0].SerialNumber) == 0 || string(next.chain[0].RawSubjectPublicKeyInfo) != string(first.chain[0].RawSubjectPublicKeyInfo) {
		t.Errorf("it was not renewed with its key\n%s", logs)
	}
	if p := handshake(t, s.ServerTLS(nil), s.ClientTLS(nil)); p.clientErr != nil || p.serverErr != nil {
		t.Errorf("handshake: %v, %v", p.clientErr, p.serverErr)
	}
	// The kept one serves a start without the CA.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	a.end()
	again, err := Open(t.Context(), cfg, "host", quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { again.Close() })
	if again.ID() != webID(t) {
		t.Errorf("the kept identity is %s", again.ID())
	}
}

func TestIstioCARefuses(t *testing.T) {
	a := newAuthority(t, AuthorityConfig{Tokens: workloadTokens, Names: []string{"127.0.0.1"}})
	a.serve("")
	other := mustCA(t, testTD)
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"a token that is none", func(c *Config) { put(t, filepath.Dir(c.CA.TokenFile), "token", []byte("nonsense"), 0o600) }, "token"},
		{"no token file", func(c *Config) { c.CA.TokenFile += "x" }, "no such file"},
		{"a huge token", func(c *Config) {
			put(t, filepath.Dir(c.CA.TokenFile), "token", []byte(strings.Repeat("x", maxTokenBytes+1)), 0o600)
		}, "longer"},
		{"another CA's server", func(c *Config) { put(t, filepath.Dir(c.CA.Roots), "roots.pem", other.PEM(), 0o600) }, "certificate"},
		{"another name", func(c *Config) { c.CA.ServerName = "other.example" }, "other.example"},
		{"an identity that the token does not give", func(c *Config) { c.CA.ID = "spiffe://cluster.local/ns/default/sa/other" }, "other"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := istioConfig(t, a, tokenFor(webID(t), time.Hour))
			tt.change(&cfg)
			_, err := Open(t.Context(), cfg, "host", quiet())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Open = %v, want %q", err, tt.want)
			}
			if _, err := os.Stat(filepath.Join(cfg.State, istioDir, identityCertFile)); err == nil {
				t.Error("a certificate was written")
			}
		})
	}
}

package jwt

import (
	"crypto"
	"fmt"
	"strings"
	"testing"
)

// TestCacheBounds has one issuer with very many tokens, one of whose subjects has most of them, beside another issuer.
func TestCacheBounds(t *testing.T) {
	s := p256()
	cfg := config(jwks(s))
	cfg.Issuers = append(cfg.Issuers, IssuerConfig{Issuer: "https://other.example", AnyAudience: true, JWKS: jwks(s)})
	cfg.CacheEntries = 64
	v := newVerifier(t, cfg, Env{})
	other := s.token(t, goodClaims(map[string]any{"iss": "https://other.example"}))
	wantTaken(t, v, other)
	bob := s.token(t, goodClaims(map[string]any{"sub": "bob"}))
	wantTaken(t, v, bob)
	for i := range 100 {
		wantTaken(t, v, s.token(t, goodClaims(map[string]any{"jti": fmt.Sprint(i)})))
	}
	if got := v.Stats().Entries; got != 4+2 {
		t.Errorf("%d entries, want the 4 that are alice's share (64 / 2 / 8), bob's and the other issuer's", got)
	}
	remembered := func(token string, want bool, who string) {
		t.Helper()
		before := v.Stats().Verified
		wantTaken(t, v, token)
		if got := v.Stats().Verified == before; got != want {
			t.Errorf("%s: remembered = %v, want %v", who, got, want)
		}
	}
	remembered(bob, true, "bob, beside alice's hundred")
	for i := range 100 {
		wantTaken(t, v, s.token(t, goodClaims(map[string]any{"sub": fmt.Sprint("subject ", i)})))
	}
	if got := v.Stats().Entries; got != 32+1 {
		t.Errorf("%d entries, want the 32 that are the issuer's share, and the other issuer's", got)
	}
	remembered(bob, false, "bob, after a hundred other subjects")
	remembered(other, true, "the other issuer's")
	share := v.issuers[testIssuer].share
	if len(share.subjects) > 32 || share.order.Len() != 32 {
		t.Errorf("%d subjects and %d entries are in the share, want 32 at most", len(share.subjects), share.order.Len())
	}
}

// TestCacheKeepsWhatIsUsed has one token that is shown again and again among many that are shown once.
func TestCacheKeepsWhatIsUsed(t *testing.T) {
	s := p256()
	cfg := config(jwks(s))
	cfg.CacheEntries = 16
	v := newVerifier(t, cfg, Env{})
	bob := s.token(t, goodClaims(map[string]any{"sub": "bob"}))
	for i := range 100 {
		wantTaken(t, v, bob)
		wantTaken(t, v, s.token(t, goodClaims(map[string]any{"sub": fmt.Sprint("subject ", i)})))
	}
	if got := v.Stats(); got.Verified != 101 || got.Hits != 99 {
		t.Errorf("Stats = %+v, want bob's token checked once", got)
	}
}

// TestCacheOfOneKey has a self-made key that says it speaks for ever new subjects.
func TestCacheOfOneKey(t *testing.T) {
	s := p256()
	s.kid = selfName
	v := newVerifier(t, Config{SelfSigned: &SelfSignedConfig{AnyAudience: true}, CacheEntries: 64}, Env{PinnedKey: func(string) crypto.PublicKey { return s.key.Public() }})
	for i := range 50 {
		wantTaken(t, v, s.token(t, goodClaims(map[string]any{"iss": selfName, "sub": fmt.Sprint(i)})))
	}
	if got := v.Stats().Entries; got != 64/subjectShare {
		t.Errorf("one key has %d entries, want %d", got, 64/subjectShare)
	}
}

func TestCacheBytes(t *testing.T) {
	s := edwards()
	cfg := config(jwks(s))
	cfg.CacheEntries = 16
	v := newVerifier(t, cfg, Env{})
	for i := range 40 {
		wantTaken(t, v, s.token(t, goodClaims(map[string]any{"sub": fmt.Sprint(i), "x": strings.Repeat("x", 4000)})))
		if got := v.Stats(); got.Bytes > 16*meanEntryBytes || got.Entries > 16 {
			t.Fatalf("Stats = %+v, want %d bytes at most", got, 16*meanEntryBytes)
		}
	}
	if got := v.Stats(); got.Entries < 1 || got.Entries > 3 {
		t.Errorf("%d entries, want the few that there is room for", got.Entries)
	}
}

func TestCacheOff(t *testing.T) {
	s := edwards()
	cfg := config(jwks(s))
	cfg.CacheEntries = -1
	v := newVerifier(t, cfg, Env{})
	token := s.token(t, goodClaims(nil))
	wantTaken(t, v, token)
	wantTaken(t, v, token)
	if got := v.Stats(); got.Verified != 2 || got.Entries != 0 {
		t.Errorf("Stats = %+v, want two signatures checked and nothing kept", got)
	}
}

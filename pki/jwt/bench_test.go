package jwt

import (
	"fmt"
	"testing"
)

// BenchmarkVerifyRemembered is what a token costs that was verified before: one microsecond at most.
func BenchmarkVerifyRemembered(b *testing.B) {
	v := newVerifier(b, config(jwks(p256())), Env{})
	token := p256().token(b, goodClaims(map[string]any{"groups": []string{"a", "b"}, "email": "alice@issuer.example", "name": "Alice Example"}))
	if _, err := v.Verify(b.Context(), token); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.SetBytes(int64(len(token)))
	for b.Loop() {
		if _, err := v.Verify(b.Context(), token); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkVerifyFirst is what a token costs that nobody has seen.
func BenchmarkVerifyFirst(b *testing.B) {
	for _, s := range []signer{p256(), edwards(), rsa2048()} {
		b.Run(s.alg(), func(b *testing.B) {
			cfg := config(jwks(s))
			cfg.CacheEntries = -1
			v := newVerifier(b, cfg, Env{})
			tokens := make([]string, 16)
			for i := range tokens {
				tokens[i] = s.token(b, goodClaims(map[string]any{"jti": fmt.Sprint(i)}))
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, err := v.Verify(b.Context(), tokens[i%len(tokens)]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkVerifyRefused is what a made-up token costs us.
func BenchmarkVerifyRefused(b *testing.B) {
	v := newVerifier(b, config(jwks(p256())), Env{})
	good := p256().token(b, goodClaims(nil))
	for name, token := range map[string]string{
		"signature": good[:len(good)-4] + "AAAA", "issuer": p256().token(b, goodClaims(map[string]any{"iss": "https://x"})), "garbage": good[:40],
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.Verify(b.Context(), token); err == nil {
					b.Fatal("taken")
				}
			}
		})
	}
}

package jwt

import (
	"context"
	"crypto"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	jwtlib "github.com/golang-jwt/jwt/v5"
)

func allSigners() []signer { return []signer{p256(), p384(), p521(), edwards(), rsa2048()} }

// TestVerifyTakesEachAlgorithm has each algorithm of each kind of key signed by the standard library and by golang-jwt.
func TestVerifyTakesEachAlgorithm(t *testing.T) {
	v := newVerifier(t, config(jwks(allSigners()...)), Env{})
	for _, s := range allSigners() {
		for _, alg := range algorithmsOf(s.key.Public()) {
			t.Run(alg, func(t *testing.T) {
				payload, err := json.Marshal(goodClaims(map[string]any{"azp": "app", "groups": []string{"a"}, "n": 7, "sub": alg}))
				if err != nil {
					t.Fatal(err)
				}
				got := wantTaken(t, v, s.raw(t, alg, `{"alg":"`+alg+`","kid":"`+s.kid+`"}`, string(payload)))
				if got.Issuer != testIssuer || got.Subject != alg || !slices.Equal(got.Audiences, []string{testAudience}) || got.AuthorizedParty != "app" ||
					text(got.Claims["groups"]) != "[a]" || got.Claims["n"] != json.Number("7") || got.Key != "" || got.Kubernetes != nil {
					t.Errorf("Verify = %+v", got)
				}
				left := time.Until(got.NotAfter)
				if left < 59*time.Minute || left > 61*time.Minute {
					t.Errorf("NotAfter is %v ahead, want an hour and the leeway", left)
				}
				lib := jwtlib.NewWithClaims(jwtlib.GetSigningMethod(alg), jwtlib.MapClaims(goodClaims(map[string]any{"jti": "lib"})))
				lib.Header["kid"] = s.kid
				signed, err := lib.SignedString(s.key)
				if err != nil {
					t.Fatal(err)
				}
				wantTaken(t, v, signed)
			})
		}
	}
}

func TestVerifyTakesOddButGood(t *testing.T) {
	s := p256()
	cfg := config(jwks(s))
	cfg.Issuers[0].Audiences = []string{"first", testAudience}
	v := newVerifier(t, cfg, Env{})
	now := time.Now().Unix()
	header := func(more string) string { return `{"alg":"ES256","kid":"p256"` + more + `}` }
	for _, tc := range []struct {
		name, header string
		claims       map[string]any
	}{
		{"audience in a list", header(""), map[string]any{"aud": []string{"other", testAudience}}},
		{"times with a fraction", header(""), map[string]any{"exp": float64(now) + 3600.25, "iat": float64(now) - 0.5}},
		{"ended within the leeway", header(""), map[string]any{"exp": now - 10}},
		{"begins within the leeway", header(""), map[string]any{"nbf": now + 10, "iat": now + 10}},
		{"no nbf, iat and sub", header(""), map[string]any{"nbf": nil, "iat": nil, "sub": nil}},
		{"access token type", header(`,"typ":"at+jwt"`), nil},
		{"media type", header(`,"typ":"application/JWT"`), nil},
		{"no kid", `{"alg":"ES256"}`, nil},
		{"a jku that nobody follows", header(`,"jku":"https://evil.example/jwks"`), nil},
		{"exp in the year 9999", header(""), map[string]any{"exp": int64(maxNumericDate)}},
		{"exponent in exp", header(""), map[string]any{"exp": json.Number("9e9")}},
		{"200 groups", header(""), map[string]any{"groups": strings.Split(strings.Repeat("0123456789,", 200), ",")}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			payload, err := json.Marshal(goodClaims(tc.claims))
			if err != nil {
				t.Fatal(err)
			}
			wantTaken(t, v, s.raw(t, "ES256", tc.header, string(payload)))
		})
	}
}

func TestVerifyOnceForOneToken(t *testing.T) {
	s := p256()
	v := newVerifier(t, config(jwks(s)), Env{})
	token := s.token(t, goodClaims(nil))
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if _, err := v.Verify(t.Context(), token); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got := v.Stats(); got.Verified != 1 || got.Entries != 1 {
		t.Errorf("Stats = %+v, want one signature checked and one entry", got)
	}
	// Who comes late, after the first has verified and before it looks, finds the result.
	if _, err := v.verifyNew(token, sha256.Sum256([]byte(token))); err != nil || v.Stats().Verified != 1 {
		t.Errorf("verifyNew = %v, %+v, want no second check", err, v.Stats())
	}
	first, second := wantTaken(t, v, token), wantTaken(t, v, token)
	if first != second {
		t.Error("the same token came out as two values")
	}
	// A token that is refused is checked each time: keeping those would give a stranger room.
	bad := token[:len(token)-4] + "AAAA"
	wantRefused(t, v, bad, BadSignature)
	wantRefused(t, v, bad, BadSignature)
	if got := v.Stats(); got.Verified != 3 || got.Entries != 1 {
		t.Errorf("Stats = %+v, want three signatures checked and one entry", got)
	}
}

func TestVerifyForgetsWhatHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := p256()
		cfg := config(jwks(s))
		cfg.Leeway = -1
		v := newVerifier(t, cfg, Env{})
		token := s.token(t, goodClaims(nil))
		got := wantTaken(t, v, token)
		time.Sleep(time.Hour - time.Second)
		if wantTaken(t, v, token); !v.Valid(got) {
			t.Error("Valid = false before its end")
		}
		time.Sleep(time.Second)
		if v.Valid(got) {
			t.Error("Valid = true at its end")
		}
		wantRefused(t, v, token, Expired)
		if n := v.Stats().Entries; n != 0 {
			t.Errorf("%d entries are left", n)
		}
	})
}

func TestVerifyIssuersByName(t *testing.T) {
	a, b := p256(), edwards()
	cfg := config(jwks(a))
	cfg.Issuers = append(cfg.Issuers, IssuerConfig{Issuer: "https://other.example", AnyAudience: true, JWKS: jwks(b)})
	v := newVerifier(t, cfg, Env{})
	wantTaken(t, v, a.token(t, goodClaims(nil)))
	got := wantTaken(t, v, b.token(t, goodClaims(map[string]any{"iss": "https://other.example", "aud": nil})))
	if got.Issuer != "https://other.example" || got.Audiences != nil {
		t.Errorf("Verify = %+v", got)
	}
	// A key of one issuer signs nothing for the other.
	wantRefused(t, v, b.token(t, goodClaims(nil)), UnknownKey)
	wantRefused(t, v, a.token(t, goodClaims(map[string]any{"iss": "https://other.example"})), UnknownKey)
	b.kid = a.kid
	wantRefused(t, v, b.token(t, goodClaims(nil)), BadAlgorithm)
}

func TestVerifyFixedKeys(t *testing.T) {
	a, b := p256(), rsa2048()
	cfg := Config{Issuers: []IssuerConfig{{Issuer: testIssuer, Audiences: []string{testAudience}, Keys: []KeyConfig{
		{ID: "p256", File: writeFile(t, "a.pem", a.publicPEM(t))}, {File: writeFile(t, "b.pem", b.publicPEM(t))},
	}}}}
	v := newVerifier(t, cfg, Env{})
	wantTaken(t, v, a.token(t, goodClaims(nil)))
	wantRefused(t, v, b.token(t, goodClaims(nil)), UnknownKey)
	payload, err := json.Marshal(goodClaims(nil))
	if err != nil {
		t.Fatal(err)
	}
	wantTaken(t, v, b.raw(t, "RS256", `{"alg":"RS256"}`, string(payload)))
}

func kubernetesClaims(more map[string]any) map[string]any {
	c := map[string]any{"sub": "system:serviceaccount:shop:orders", "kubernetes.io": map[string]any{
		"namespace": "shop", "serviceaccount": map[string]any{"name": "orders", "uid": "1"}, "pod": map[string]any{"name": "orders-0", "uid": "2"},
	}}
	for name, value := range more {
		c[name] = value
	}
	return goodClaims(c)
}

func TestVerifyKubernetes(t *testing.T) {
	s := rsa2048()
	cfg := config(jwks(s))
	cfg.Issuers[0].Kubernetes = true
	v := newVerifier(t, cfg, Env{})
	got := wantTaken(t, v, s.token(t, kubernetesClaims(nil)))
	if want := (Kubernetes{Namespace: "shop", ServiceAccount: "orders", Pod: "orders-0"}); got.Kubernetes == nil || *got.Kubernetes != want {
		t.Errorf("Kubernetes = %+v, want %+v", got.Kubernetes, want)
	}
	account := func(namespace, name any) map[string]any {
		return map[string]any{"kubernetes.io": map[string]any{"namespace": namespace, "serviceaccount": map[string]any{"name": name}}}
	}
	if got := wantTaken(t, v, s.token(t, kubernetesClaims(account("shop", "orders")))); got.Kubernetes.Pod != "" {
		t.Errorf("Pod = %q without one", got.Kubernetes.Pod)
	}
	for name, claims := range map[string]map[string]any{
		"no claim":                {"kubernetes.io": nil},
		"claim is a text":         {"kubernetes.io": "shop"},
		"another namespace":       account("other", "orders"),
		"another account":         account("shop", "other"),
		"namespace is a number":   account(7, "orders"),
		"no account":              account("shop", ""),
		"a name that is no name":  account("shop", "orders:admin"),
		"sub has one colon more":  {"sub": "system:serviceaccount:shop:orders:x"},
		"sub of a user":           {"sub": "shop"},
		"sub is missing":          {"sub": nil},
		"pod is a path":           {"kubernetes.io": map[string]any{"namespace": "shop", "serviceaccount": map[string]any{"name": "orders"}, "pod": map[string]any{"name": "../x"}}},
		"colon moves to the name": {"sub": "system:serviceaccount:a:b:c", "kubernetes.io": map[string]any{"namespace": "a:b", "serviceaccount": map[string]any{"name": "c"}}},
	} {
		t.Run(name, func(t *testing.T) { wantRefused(t, v, s.token(t, kubernetesClaims(claims)), BadClaim) })
	}
}

const selfName = "key:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

func TestVerifySelfSigned(t *testing.T) {
	s, other := p256(), edwards()
	s.kid = selfName
	var mu sync.Mutex
	pinned := map[string]crypto.PublicKey{selfName: s.key.Public()}
	pin := func(name string) crypto.PublicKey {
		mu.Lock()
		defer mu.Unlock()
		return pinned[name]
	}
	cfg := config(jwks(other))
	cfg.SelfSigned = &SelfSignedConfig{Audiences: []string{testAudience}}
	v := newVerifier(t, cfg, Env{PinnedKey: pin})
	for name, claims := range map[string]map[string]any{
		"by iss": {"iss": selfName}, "by kid": {"iss": nil}, "by sub": {"iss": nil, "sub": selfName}, "by all": {"iss": selfName, "sub": selfName},
	} {
		t.Run(name, func(t *testing.T) {
			got := wantTaken(t, v, s.token(t, goodClaims(claims)))
			if got.Key != selfName || got.Issuer != selfName {
				t.Errorf("Key, Issuer = %q, %q, want %q", got.Key, got.Issuer, selfName)
			}
		})
	}
	for _, tc := range []struct {
		name   string
		by     signer
		kid    string
		claims map[string]any
		want   Reason
	}{
		{"speaks for another key", s, selfName, map[string]any{"iss": selfName, "sub": "key:b"}, BadClaim},
		{"kid of another key", s, "key:b", map[string]any{"iss": selfName}, BadClaim},
		{"another key signs", other, selfName, map[string]any{"iss": selfName}, BadAlgorithm},
		{"another key of the kind signs", signer{"", ecKey(elliptic.P256())}, selfName, map[string]any{"iss": selfName}, BadSignature},
		{"not pinned", s, "key:b", map[string]any{"iss": "key:b"}, UnknownKey},
		{"another audience", s, selfName, map[string]any{"iss": selfName, "aud": "x"}, BadAudience},
		{"no end", s, selfName, map[string]any{"iss": selfName, "exp": nil}, BadClaim},
		{"very long name", s, selfName, map[string]any{"iss": "key:" + strings.Repeat("a", 2000)}, BadClaim},
		{"an issuer that the key is none of", s, selfName, nil, UnknownKey},
		{"no issuer and no name", s, "x", map[string]any{"iss": nil}, UnknownIssuer},
	} {
		t.Run(tc.name, func(t *testing.T) {
			by := tc.by
			by.kid = tc.kid
			wantRefused(t, v, by.token(t, goodClaims(tc.claims)), tc.want)
		})
	}
	// A pin that is taken away ends what was remembered.
	token := s.token(t, goodClaims(map[string]any{"iss": selfName}))
	got := wantTaken(t, v, token)
	mu.Lock()
	pinned[selfName] = other.key.Public()
	mu.Unlock()
	if v.Valid(got) {
		t.Error("Valid = true after the pin was given to another key")
	}
	wantRefused(t, v, token, BadAlgorithm)
	mu.Lock()
	delete(pinned, selfName)
	mu.Unlock()
	wantRefused(t, v, token, UnknownKey)
}

func TestSelfSignedNotConfigured(t *testing.T) {
	s := p256()
	v := newVerifier(t, config(jwks(s)), Env{PinnedKey: func(string) crypto.PublicKey { return s.key.Public() }})
	wantRefused(t, v, s.token(t, goodClaims(map[string]any{"iss": selfName})), UnknownIssuer)
}

func TestVerifyEndOfContextIsFound(t *testing.T) {
	hang := newIssuerServer(t)
	hang.set(func(r *issuerAnswer) { r.hang = true })
	v := newVerifier(t, hang.config(), hang.env())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := v.Verify(ctx, p256().token(t, hang.claims()))
	if e, ok := errors.AsType[*Error](err); !ok || e.Reason != KeysUnavailable || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Verify = %v, want %s and the end of the context", err, KeysUnavailable)
	}
}

// A configuration that changes makes another Verifier; it decides about tokens that the one before has verified.
func TestValidOfAnEarlierVerifier(t *testing.T) {
	kept, gone := p256(), signer{"gone", ecKey(elliptic256())}
	before := newVerifier(t, config(jwks(kept, gone)), Env{})
	held, lost := wantTaken(t, before, kept.token(t, goodClaims(nil))), wantTaken(t, before, gone.token(t, goodClaims(nil)))
	with := func(change func(*IssuerConfig)) Config {
		c := config(jwks(kept))
		change(&c.Issuers[0])
		return c
	}
	file := writeFile(t, "keys", jwks(kept))
	for _, tt := range []struct {
		name       string
		cfg        Config
		kept, lost bool
	}{
		{"a key fewer", config(jwks(kept)), true, false},
		{"from a file", with(func(c *IssuerConfig) { c.JWKS, c.JWKSFile = "", file }), true, false},
		{"another audience", with(func(c *IssuerConfig) { c.Audiences = []string{"shop"} }), false, false},
		{"of Kubernetes only", with(func(c *IssuerConfig) { c.Kubernetes = true }), false, false},
		{"another issuer", with(func(c *IssuerConfig) { c.Issuer = "https://another.example" }), false, false},
		{"keys that are not read yet", with(func(c *IssuerConfig) { c.JWKS, c.JWKSURI, c.LoopbackHTTP = "", "http://127.0.0.1:1/keys", true }), true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			after := newVerifier(t, tt.cfg, Env{})
			_ = before.Close()
			if got := after.Valid(held); got != tt.kept {
				t.Errorf("the token of the key that stays: Valid = %v, want %v", got, tt.kept)
			}
			if got := after.Valid(lost); got != tt.lost {
				t.Errorf("the token of the key that goes: Valid = %v, want %v", got, tt.lost)
			}
		})
	}
}

// The first keys of an issuer may lack one that a Verifier before has had, so that they are a change.
func TestFirstKeysAreAChange(t *testing.T) {
	s := newIssuerServer(t)
	v := newVerifier(t, s.direct(), s.env())
	changed := v.Changed()
	wantTaken(t, v, p256().token(t, s.claims()))
	select {
	case <-changed:
	case <-time.After(10 * time.Second):
		t.Fatal("Changed did not say that there are keys")
	}
}

package jwt

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	testIssuer   = "https://issuer.example"
	testAudience = "gateway"
)

// signer is a key of an issuer in a test.
type signer struct {
	kid string
	key crypto.Signer
}

func ecKey(curve elliptic.Curve) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
}

// The keys that most tests share: RSA keys take long to make.
var (
	p256    = sync.OnceValue(func() signer { return signer{"p256", ecKey(elliptic.P256())} })
	p384    = sync.OnceValue(func() signer { return signer{"p384", ecKey(elliptic.P384())} })
	p521    = sync.OnceValue(func() signer { return signer{"p521", ecKey(elliptic.P521())} })
	edwards = sync.OnceValue(func() signer {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			panic(err)
		}
		return signer{"ed", key}
	})
	rsa2048 = sync.OnceValue(func() signer {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		return signer{"rsa", key}
	})
)

func b64(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }

// sign makes the signature that RFC 7518 describes for alg, with nothing but the standard library.
func (s signer) sign(t testing.TB, alg, input string) []byte {
	t.Helper()
	digest := map[string][]byte{
		"256": sum(sha256.Sum256([]byte(input))), "384": sum(sha512.Sum384([]byte(input))), "512": sum(sha512.Sum512([]byte(input))),
	}
	hash := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}
	var sig []byte
	var err error
	switch key := s.key.(type) {
	case ed25519.PrivateKey:
		return ed25519.Sign(key, []byte(input))
	case *ecdsa.PrivateKey:
		r, ss, e := ecdsa.Sign(rand.Reader, key, digest[alg[2:]])
		size := (key.Curve.Params().BitSize + 7) / 8
		sig, err = append(r.FillBytes(make([]byte, size)), ss.FillBytes(make([]byte, size))...), e
	case *rsa.PrivateKey:
		if alg[0] == 'P' {
			sig, err = rsa.SignPSS(rand.Reader, key, hash[alg[2:]], digest[alg[2:]], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		} else {
			sig, err = rsa.SignPKCS1v15(rand.Reader, key, hash[alg[2:]], digest[alg[2:]])
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

func sum[T [32]byte | [48]byte | [64]byte](digest T) []byte {
	switch d := any(digest).(type) {
	case [32]byte:
		return d[:]
	case [48]byte:
		return d[:]
	case [64]byte:
		return d[:]
	}
	return nil
}

// alg is the one that s signs with unless a test says otherwise.
func (s signer) alg() string { return algorithmsOf(s.key.Public())[0] }

// raw signs a header and a payload as they are.
func (s signer) raw(t testing.TB, alg, header, payload string) string {
	t.Helper()
	input := b64([]byte(header)) + "." + b64([]byte(payload))
	return input + "." + b64(s.sign(t, alg, input))
}

// token signs claims in the usual way.
func (s signer) token(t testing.TB, c map[string]any) string {
	t.Helper()
	header, err := json.Marshal(map[string]any{"typ": "JWT", "alg": s.alg(), "kid": s.kid})
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return s.raw(t, s.alg(), string(header), string(payload))
}

// goodClaims are claims of an hour, changed by more; a nil takes one away.
func goodClaims(more map[string]any) map[string]any {
	now := time.Now().Unix()
	c := map[string]any{"iss": testIssuer, "aud": testAudience, "sub": "alice", "iat": now, "nbf": now, "exp": now + 3600}
	maps.Copy(c, more)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

// jwk is the key of s as RFC 7517 writes it.
func (s signer) jwk() map[string]any {
	m := map[string]any{"kid": s.kid, "use": "sig"}
	switch key := s.key.Public().(type) {
	case *ecdsa.PublicKey:
		point, err := key.Bytes()
		if err != nil {
			panic(err)
		}
		half := (len(point) - 1) / 2
		m["kty"], m["crv"], m["x"], m["y"] = "EC", key.Params().Name, b64(point[1:1+half]), b64(point[1+half:])
	case *rsa.PublicKey:
		m["kty"], m["n"], m["e"] = "RSA", b64(key.N.Bytes()), b64(big.NewInt(int64(key.E)).Bytes())
	case ed25519.PublicKey:
		m["kty"], m["crv"], m["x"] = "OKP", "Ed25519", b64(key)
	}
	return m
}

// jwks is a key set of signers.
func jwks(signers ...signer) string {
	list := []any{}
	for _, s := range signers {
		list = append(list, s.jwk())
	}
	return jwksOf(list...)
}

func jwksOf(keys ...any) string {
	text, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		panic(err)
	}
	return string(text)
}

// config is that of the test's issuer with a key set.
func config(set string) Config {
	return Config{Issuers: []IssuerConfig{{Issuer: testIssuer, Audiences: []string{testAudience}, JWKS: set}}}
}

func newVerifier(t testing.TB, cfg Config, env Env) *Verifier {
	t.Helper()
	v, err := New(cfg, env)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v
}

// wantRefused checks that a token is refused for a reason, and that the text of the refusal does not hold it.
func wantRefused(t *testing.T, v *Verifier, token string, want Reason) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	got, err := v.Verify(ctx, token)
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Reason != want {
		t.Fatalf("Verify = %v, %v, want an Error with the reason %s", got, err, want)
	}
	for part := range strings.SplitSeq(token, ".") {
		if len(part) > 20 && strings.Contains(err.Error(), part) {
			t.Errorf("the text of the refusal has a part of the token: %v", err)
		}
	}
	if len(err.Error()) > 1024 {
		t.Errorf("the text of the refusal has %d bytes", len(err.Error()))
	}
}

func wantTaken(t *testing.T, v *Verifier, token string) *Token {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	got, err := v.Verify(ctx, token)
	if err != nil {
		t.Fatalf("Verify = %v, want a token", err)
	}
	return got
}

// writeFile writes a file in a folder of the test.
func writeFile(t testing.TB, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// publicPEM is the public key of s as a PEM block.
func (s signer) publicPEM(t testing.TB) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(s.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// hmacToken signs with HMAC-SHA-256, which has no place here.
func hmacToken(secret []byte, header, payload string) string {
	input := b64([]byte(header)) + "." + b64([]byte(payload))
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(input))
	return input + "." + b64(mac.Sum(nil))
}

// waitFor polls until ok, for ten seconds at most.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("did not happen in 10 s: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func text(v any) string { return fmt.Sprint(v) }

func elliptic256() elliptic.Curve { return elliptic.P256() }

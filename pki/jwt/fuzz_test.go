package jwt

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
)

// FuzzVerify changes tokens: only what is signed comes through, and a refusal never holds the token.
func FuzzVerify(f *testing.F) {
	v := newVerifier(f, config(jwks(p256(), edwards(), rsa2048())), Env{})
	good := p256().token(f, goodClaims(nil))
	parts := strings.Split(good, ".")
	for _, seed := range []string{
		good, edwards().token(f, goodClaims(nil)), rsa2048().token(f, goodClaims(nil)), p256().token(f, kubernetesClaims(nil)), "", "..", "a.b.c", good + ".", good + "\n",
		b64([]byte(`{"alg":"none"}`)) + "." + parts[1] + ".", p256().raw(f, "ES256", `{"alg":"ES256","kid":"p256","crit":["a"]}`, `{"iss":"x","exp":1e400}`),
		hmacToken(nil, `{"alg":"HS256"}`, `{}`), strings.Repeat("[", 4000),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, token string) {
		got, err := v.Verify(context.Background(), token)
		if err == nil {
			if got.Issuer != testIssuer || got.NotAfter.IsZero() {
				t.Fatalf("Verify(%q) = %+v", token, got)
			}
			return
		}
		e, ok := errors.AsType[*Error](err)
		if !ok || e.Reason == "" {
			t.Fatalf("Verify(%q) = %v, want an Error with a reason", token, err)
		}
		if len(token) > 2*maxShown && strings.Contains(err.Error(), token) {
			t.Fatalf("the refusal holds the token: %v", err)
		}
	})
}

// FuzzDecodeObject compares the strict reader with encoding/json: what it takes is JSON and means the same there.
func FuzzDecodeObject(f *testing.F) {
	for _, seed := range []string{`{}`, `{"a":[1,2.5e3,"x",null,true,{"b":{}}]}`, `{"a":1,"a":2}`, `{"a":"\ud83d\ude00"}`, `{"a":1,}`, `[`, `{"a":01}`, "{\"a\":\"\xff\"}"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := decodeObject(data, maxValues)
		if err != nil {
			return
		}
		dec := json.NewDecoder(bytes.NewReader(data))
		dec.UseNumber()
		var want map[string]any
		if err := dec.Decode(&want); err != nil || !json.Valid(data) {
			t.Fatalf("decodeObject took %q, encoding/json says %v", data, err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("decodeObject(%q) = %v, encoding/json has %v", data, got, want)
		}
	})
}

// FuzzParseSet has key sets: whatever they say, the keys that come out are of a kind that is taken.
func FuzzParseSet(f *testing.F) {
	for _, s := range allSigners() {
		f.Add([]byte(jwks(s)))
	}
	f.Add([]byte(`{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"},{"kty":"OKP","crv":"Ed25519","x":"AA=="}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		keys, err := parseSet(data, nil)
		if err != nil {
			return
		}
		if len(keys) == 0 || len(keys) > maxSetKeys {
			t.Fatalf("parseSet(%q) = %d keys", data, len(keys))
		}
		for _, key := range keys {
			if len(key.algs) == 0 || algorithmsOf(key.public) == nil || len(key.id) > maxKeyIDBytes {
				t.Fatalf("parseSet(%q) has the key %+v", data, key)
			}
		}
	})
}

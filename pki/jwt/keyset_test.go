package jwt

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"maps"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParseSetPassesOverOddKeys(t *testing.T) {
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	with := func(s signer, change map[string]any) map[string]any {
		m := s.jwk()
		maps.Copy(m, change)
		return m
	}
	huge := new(big.Int).Lsh(big.NewInt(1), 9000)
	for name, key := range map[string]any{
		"for encryption":            with(p256(), map[string]any{"use": "enc"}),
		"use is a list":             with(p256(), map[string]any{"use": []string{"sig"}}),
		"not to verify":             with(p256(), map[string]any{"key_ops": []string{"deriveKey"}}),
		"key_ops is a text":         with(p256(), map[string]any{"key_ops": "verify"}),
		"kid is a number":           with(p256(), map[string]any{"kid": 7}),
		"kid is very long":          with(p256(), map[string]any{"kid": strings.Repeat("k", maxKeyIDBytes+1)}),
		"alg of another kind":       with(p256(), map[string]any{"alg": "RS256"}),
		"alg of HMAC":               with(rsa2048(), map[string]any{"alg": "HS256"}),
		"alg none":                  with(p256(), map[string]any{"alg": "none"}),
		"alg is a number":           with(p256(), map[string]any{"alg": 1}),
		"symmetric":                 map[string]any{"kty": "oct", "k": "AAAA", "kid": "a"},
		"another curve":             with(p256(), map[string]any{"crv": "secp256k1"}),
		"curve of another size":     with(p256(), map[string]any{"crv": "P-384"}),
		"not on the curve":          with(p256(), map[string]any{"y": b64(make([]byte, 32))}),
		"point at infinity":         with(p256(), map[string]any{"x": b64(make([]byte, 32)), "y": b64(make([]byte, 32))}),
		"coordinate of a kilobyte":  with(p256(), map[string]any{"x": b64(make([]byte, 1024)) + "AQ"}),
		"coordinate is no base64":   with(p256(), map[string]any{"x": "???"}),
		"no coordinate":             with(p256(), map[string]any{"x": nil}),
		"RSA of 1024 bits":          signer{"weak", weak}.jwk(),
		"RSA of 9000 bits":          with(rsa2048(), map[string]any{"n": b64(huge.Bytes())}),
		"RSA with the exponent 1":   with(rsa2048(), map[string]any{"e": "AQ"}),
		"RSA with a huge exponent":  with(rsa2048(), map[string]any{"e": b64(huge.Bytes())}),
		"RSA, exponent wraps round": with(rsa2048(), map[string]any{"e": b64(append(append([]byte{1}, make([]byte, 5)...), 1, 0, 1))}),
		"Ed25519 of 31 bytes":       with(edwards(), map[string]any{"x": b64(make([]byte, 31))}),
		"X25519":                    with(edwards(), map[string]any{"crv": "X25519"}),
		"members in capitals":       map[string]any{"KTY": "EC", "CRV": "P-256", "X": p256().jwk()["x"], "Y": p256().jwk()["y"]},
		"a text":                    "key",
		"null":                      nil,
	} {
		t.Run(name, func(t *testing.T) {
			if keys, err := parseSet([]byte(jwksOf(key)), nil); err == nil {
				t.Errorf("parseSet took it: %+v", keys[0])
			}
			keys, err := parseSet([]byte(jwksOf(key, edwards().jwk())), nil)
			if err != nil || len(keys) != 1 || keys[0].id != "ed" {
				t.Errorf("parseSet = %v, %v, want the other key alone", keys, err)
			}
		})
	}
}

func TestParseSetTakesAlg(t *testing.T) {
	m := rsa2048().jwk()
	m["alg"], m["key_ops"], m["x5u"], m["x5c"] = "PS384", []string{"verify"}, "https://evil.example", []string{"AAAA"}
	keys, err := parseSet([]byte(jwksOf(m)), nil)
	if err != nil || len(keys) != 1 || !slices.Equal(keys[0].algs, []string{"PS384"}) {
		t.Fatalf("parseSet = %v, %v, want one key for PS384", keys, err)
	}
	v := newVerifier(t, config(jwksOf(m)), Env{})
	wantTaken(t, v, rsa2048().raw(t, "PS384", `{"alg":"PS384","kid":"rsa"}`, goodPayload(t)))
	wantRefused(t, v, rsa2048().raw(t, "PS256", `{"alg":"PS256","kid":"rsa"}`, goodPayload(t)), BadAlgorithm)
}

// TestCandidatesAreFew has many keys of one kid, and many with none.
func TestCandidatesAreFew(t *testing.T) {
	var many []any
	for range maxSetKeys - 1 {
		many = append(many, signer{"same", ecKey(elliptic256())}.jwk())
	}
	v := newVerifier(t, config(jwksOf(append(many, signer{"same", p256().key}.jwk())...)), Env{})
	wantRefused(t, v, signer{"same", p256().key}.token(t, goodClaims(nil)), BadSignature)
	if n := v.Stats().Verified; n != maxTries {
		t.Errorf("%d signatures were checked, want %d", n, maxTries)
	}
}

func TestLifeOf(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"": defaultLife, "max-age=600": 10 * time.Minute, "public, max-age=600": 10 * time.Minute, "Max-Age=\"600\"": 10 * time.Minute,
		"max-age=0": minLife, "max-age=1": minLife, "max-age=31536000": maxLife, "max-age=99999999999999999999": defaultLife, "max-age=-1": defaultLife,
		"max-age": defaultLife, "no-store": minLife, "no-cache, max-age=600": minLife, "private": defaultLife,
	} {
		h := http.Header{}
		if value != "" {
			h.Set("Cache-Control", value)
		}
		if got := lifeOf(h); got != want {
			t.Errorf("lifeOf(%q) = %v, want %v", value, got, want)
		}
	}
}

func TestDecodeObject(t *testing.T) {
	for name, tc := range map[string]struct {
		in string
		ok bool
	}{
		"object": {`{"a":[1,"b",null,true,{"c":{}}]}`, true}, "blanks": {" {\n\t} \r\n", true}, "empty": {"{}", true},
		"nothing": {"", false}, "two": {"{}{}", false}, "rest": {"{} x", false}, "bracket too many": {"{}}", false}, "not ended": {`{"a":1`, false},
		"comma at the end": {`{"a":1,}`, false}, "comma in a list": {`{"a":[1,]}`, false}, "no comma": {`{"a":1 "b":2}`, false}, "no colon": {`{"a" 1}`, false},
		"number as a name": {`{1:2}`, false}, "wrong bracket": {`{"a":[1}]`, false}, "quote alone": {`{"a":"b}`, false}, "leading zero": {`{"a":01}`, false},
		"NaN": {`{"a":NaN}`, false}, "plus": {`{"a":+1}`, false}, "hex": {`{"a":0x1}`, false}, "line end in a text": {"{\"a\":\"\n\"}", false},
		"comment": {`{"a":1/**/}`, false}, "single quotes": {`{'a':1}`, false}, "name twice": {`{"a":1,"a":1}`, false}, "name twice in a list": {`{"x":[{"a":1,"a":1}]}`, false},
		"name twice by escape": {`{"a":1,"\u0061":1}`, false}, "empty name twice": {`{"":1,"":1}`, false}, "U+FFFD": {"{\"a\":\"\ufffd\"}", false}, "half a pair as name": {`{"\udc00":1}`, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := decodeObject([]byte(tc.in), maxValues)
			if (err == nil) != tc.ok {
				t.Errorf("decodeObject(%q) = %v, %v", tc.in, got, err)
			}
			if tc.ok && !json.Valid([]byte(tc.in)) {
				t.Error("the test is wrong: this is not JSON")
			}
		})
	}
}

package jwt

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// threat is a token that has to be refused.
type threat struct {
	name  string
	token string
	want  Reason
}

// TestThreats has each known way to get a token past a careless verifier.
func TestThreats(t *testing.T) {
	v := newVerifier(t, config(jwks(allSigners()...)), Env{})
	for _, list := range [][]threat{algorithmThreats(t), keyThreats(t), headerThreats(t), timeThreats(t), claimThreats(t), shapeThreats(t), sizeThreats(t)} {
		for _, tc := range list {
			t.Run(tc.name, func(t *testing.T) { wantRefused(t, v, tc.token, tc.want) })
		}
	}
	if n := v.Stats().Entries; n != 0 {
		t.Errorf("%d tokens were remembered", n)
	}
}

// goodPayload is the payload of a token that would be taken.
func goodPayload(t *testing.T) string {
	t.Helper()
	payload, err := json.Marshal(goodClaims(nil))
	if err != nil {
		t.Fatal(err)
	}
	return string(payload)
}

func algorithmThreats(t *testing.T) (list []threat) {
	payload := goodPayload(t)
	for _, none := range []string{"none", "None", "nOnE", "NONE", ""} {
		head := b64([]byte(`{"alg":"` + none + `"}`))
		list = append(list,
			threat{"alg " + none + " with no signature", head + "." + b64([]byte(payload)) + ".", Malformed},
			threat{"alg " + none + " with a signature", head + "." + b64([]byte(payload)) + ".AAAA", BadAlgorithm},
			threat{"alg " + none + " under a real signature", p256().raw(t, "ES256", `{"alg":"`+none+`","kid":"p256"}`, payload), BadAlgorithm})
	}
	ec, rs := p256(), rsa2048()
	der, err := ecdsa.SignASN1(rand.Reader, ec.key.(*ecdsa.PrivateKey), sum(sha256.Sum256([]byte(b64([]byte(`{"alg":"ES256","kid":"p256"}`))+"."+b64([]byte(payload))))))
	if err != nil {
		t.Fatal(err)
	}
	other := strings.Split(ec.token(t, goodClaims(map[string]any{"sub": "bob"})), ".")
	return append(list,
		threat{"HS256 with the public RSA key as its secret", hmacToken([]byte(rs.publicPEM(t)), `{"alg":"HS256","kid":"rsa"}`, payload), BadAlgorithm},
		threat{"HS256 with the modulus as its secret", hmacToken(rs.key.Public().(*rsa.PublicKey).N.Bytes(), `{"alg":"HS256","kid":"rsa"}`, payload), BadAlgorithm},
		threat{"HS256 with an empty secret", hmacToken(nil, `{"alg":"HS256"}`, payload), BadAlgorithm},
		threat{"ES256 by name, RSA by kid", ec.raw(t, "ES256", `{"alg":"ES256","kid":"rsa"}`, payload), BadAlgorithm},
		threat{"RS256 by name, EC by kid", rs.raw(t, "RS256", `{"alg":"RS256","kid":"p256"}`, payload), BadAlgorithm},
		threat{"RS256 said, PS256 signed", rs.raw(t, "PS256", `{"alg":"RS256","kid":"rsa"}`, payload), BadSignature},
		threat{"ES256 said with a P-384 key", p384().raw(t, "ES256", `{"alg":"ES256","kid":"p384"}`, payload), BadAlgorithm},
		threat{"ES384 said with a P-256 key", ec.raw(t, "ES384", `{"alg":"ES384","kid":"p256"}`, payload), BadAlgorithm},
		threat{"ES256K", ec.raw(t, "ES256", `{"alg":"ES256K","kid":"p256"}`, payload), BadAlgorithm},
		threat{"alg in lower case", ec.raw(t, "ES256", `{"alg":"es256","kid":"p256"}`, payload), BadAlgorithm},
		threat{"alg missing", ec.raw(t, "ES256", `{"kid":"p256"}`, payload), BadAlgorithm},
		threat{"alg in a list", ec.raw(t, "ES256", `{"alg":["ES256"],"kid":"p256"}`, payload), BadAlgorithm},
		threat{"alg by another name in capitals", ec.raw(t, "ES256", `{"ALG":"ES256","kid":"p256"}`, payload), BadAlgorithm},
		threat{"signature in DER", b64([]byte(`{"alg":"ES256","kid":"p256"}`)) + "." + b64([]byte(payload)) + "." + b64(der), BadSignature},
		threat{"signature of zeros (CVE-2022-21449)", b64([]byte(`{"alg":"ES256","kid":"p256"}`)) + "." + b64([]byte(payload)) + "." + b64(make([]byte, 64)), BadSignature},
		threat{"signature one byte short", b64([]byte(`{"alg":"ES256","kid":"p256"}`)) + "." + b64([]byte(payload)) + "." + b64(make([]byte, 63)), BadSignature},
		threat{"signature of zeros, Ed25519", b64([]byte(`{"alg":"EdDSA","kid":"ed"}`)) + "." + b64([]byte(payload)) + "." + b64(make([]byte, 64)), BadSignature},
		threat{"signature of another payload", strings.Join([]string{other[0], b64([]byte(payload)), other[2]}, "."), BadSignature},
	)
}

func keyThreats(t *testing.T) (list []threat) {
	payload, ec := goodPayload(t), p256()
	stranger := signer{"mine", ecKey(ec.key.(*ecdsa.PrivateKey).Curve)}
	jwk, err := json.Marshal(stranger.jwk())
	if err != nil {
		t.Fatal(err)
	}
	for name, header := range map[string]string{
		"jwk":             `"jwk":` + string(jwk),
		"jku":             `"jku":"https://evil.example/jwks.json"`,
		"jku of ours":     `"jku":"https://issuer.example.evil.example/jwks.json"`,
		"x5u":             `"x5u":"https://evil.example/cert.pem"`,
		"x5c":             `"x5c":["MIIB"]`,
		"jku to a file":   `"jku":"file:///etc/passwd"`,
		"jku to metadata": `"jku":"http://169.254.169.254/latest"`,
	} {
		list = append(list,
			threat{"a key of the sender by " + name, stranger.raw(t, "ES256", `{"alg":"ES256","kid":"mine",`+header+`}`, payload), UnknownKey},
			threat{"a key of the sender by " + name + ", kid of ours", stranger.raw(t, "ES256", `{"alg":"ES256","kid":"p256",`+header+`}`, payload), BadSignature},
			threat{"a key of the sender by " + name + ", no kid", stranger.raw(t, "ES256", `{"alg":"ES256",`+header+`}`, payload), BadSignature})
	}
	for name, kid := range map[string]string{
		"path": "../../../../dev/null", "absolute path": "/dev/null", "SQL": "p256' UNION SELECT 'secret' --", "shell": "p256|sleep 10",
		"URL": "https://evil.example/key", "in capitals": "P256", "with a blank": "p256 ", "LDAP": "*)(uid=*", "dots": "p256/.",
	} {
		list = append(list, threat{"kid: " + name, ec.raw(t, "ES256", `{"alg":"ES256","kid":"`+kid+`"}`, payload), UnknownKey})
	}
	for name, kid := range map[string]string{
		"very long": `"` + strings.Repeat("p", maxKeyIDBytes+1) + `"`, "with NUL": `"p256\u0000"`, "with a line end": `"p256\r\n"`, "number": `1`,
		"list": `["p256"]`, "object": `{"a":"p256"}`, "empty": `""`, "null": `null`, "true": `true`,
	} {
		list = append(list, threat{"kid is " + name, ec.raw(t, "ES256", `{"alg":"ES256","kid":`+kid+`}`, payload), BadHeader})
	}
	return list
}

func headerThreats(t *testing.T) (list []threat) {
	payload, ec := goodPayload(t), p256()
	with := func(name, more string, want Reason) {
		list = append(list, threat{name, ec.raw(t, "ES256", `{"alg":"ES256","kid":"p256"`+more+`}`, payload), want})
	}
	with("crit", `,"crit":["exp"],"exp":1`, BadHeader)
	with("crit is empty", `,"crit":[]`, BadHeader)
	with("crit is null", `,"crit":null`, BadHeader)
	with("b64 false in crit", `,"b64":false,"crit":["b64"]`, BadHeader)
	with("b64 false alone", `,"b64":false`, BadHeader)
	with("b64 true", `,"b64":true`, BadHeader)
	with("a token within", `,"cty":"JWT"`, BadHeader)
	with("typ of a logout token", `,"typ":"logout+jwt"`, BadHeader)
	with("typ of a proof", `,"typ":"dpop+jwt"`, BadHeader)
	with("typ is a number", `,"typ":1`, BadHeader)
	with("alg twice", `,"alg":"none"`, Malformed)
	with("alg twice, the same", `,"alg":"ES256"`, Malformed)
	with("alg twice, one with an escape", `,"\u0061lg":"none"`, Malformed)
	with("kid twice", `,"kid":"ed"`, Malformed)
	with("twice, deep inside", `,"x":[{"y":{"a":1,"a":2}}]`, Malformed)
	with("half a surrogate pair", `,"x":"\ud800"`, Malformed)
	list = append(list,
		threat{"header is a list", ec.raw(t, "ES256", `["ES256"]`, payload), Malformed},
		threat{"header is null", ec.raw(t, "ES256", `null`, payload), Malformed},
		threat{"header is a text", ec.raw(t, "ES256", `"ES256"`, payload), Malformed},
		threat{"header is empty", ec.raw(t, "ES256", ``, payload), Malformed},
		threat{"header with something after it", ec.raw(t, "ES256", `{"alg":"ES256","kid":"p256"}{}`, payload), Malformed},
		threat{"header with a comma too many", ec.raw(t, "ES256", `{"alg":"ES256","kid":"p256",}`, payload), Malformed},
		threat{"header that does not end", ec.raw(t, "ES256", `{"alg":"ES256","kid":"p256"`, payload), Malformed},
	)
	return list
}

func timeThreats(t *testing.T) (list []threat) {
	ec, now := p256(), time.Now().Unix()
	with := func(name, claim string, value any, want Reason) {
		list = append(list, threat{name, ec.token(t, goodClaims(map[string]any{claim: value})), want})
	}
	number := func(s string) json.Number { return json.Number(s) }
	with("exp missing", "exp", nil, BadClaim)
	with("exp passed", "exp", now-31, Expired)
	with("exp is 0", "exp", 0, Expired)
	with("exp is negative", "exp", -1, BadClaim)
	with("exp is a text", "exp", text(now+3600), BadClaim)
	with("exp is true", "exp", true, BadClaim)
	with("exp is a list", "exp", []int64{now + 3600}, BadClaim)
	with("exp is huge", "exp", number("1e19"), BadClaim)
	with("exp beyond int64", "exp", number("9223372036854775808"), BadClaim)
	with("exp beyond a float", "exp", number("1e400"), BadClaim)
	with("exp after 9999", "exp", int64(maxNumericDate+1), BadClaim)
	with("exp in milliseconds", "exp", (now+3600)*1000, BadClaim)
	with("nbf in the future", "nbf", now+40, NotYetValid)
	with("nbf in the far future (wraps round in golang-jwt 5.3.1)", "nbf", number("1e19"), BadClaim)
	with("nbf is a text", "nbf", text(now), BadClaim)
	with("nbf is negative", "nbf", -5, BadClaim)
	with("iat in the future", "iat", now+40, NotYetValid)
	with("iat in the far future", "iat", number("1e308"), BadClaim)
	with("iat is a text", "iat", "now", BadClaim)
	for _, name := range []string{"exp", "nbf", "iat"} {
		payload := strings.TrimSuffix(goodPayload(t), "}")
		list = append(list,
			threat{name + " twice", ec.raw(t, "ES256", `{"alg":"ES256","kid":"p256"}`, payload+`,"`+name+`":9999999999}`), Malformed},
			threat{name + " is null", ec.raw(t, "ES256", `{"alg":"ES256","kid":"p256"}`, strings.Replace(payload, `"`+name+`":`, `"`+name+`":null,"x`+name+`":`, 1)+`}`), BadClaim})
	}
	return list
}

func claimThreats(t *testing.T) (list []threat) {
	ec := p256()
	with := func(name, claim string, value any, want Reason) {
		list = append(list, threat{name, ec.token(t, goodClaims(map[string]any{claim: value})), want})
	}
	with("aud missing", "aud", nil, BadAudience)
	with("aud of another", "aud", "other", BadAudience)
	with("aud begins like ours", "aud", testAudience+".evil.example", BadAudience)
	with("aud in capitals", "aud", strings.ToUpper(testAudience), BadAudience)
	with("aud is an empty list", "aud", []string{}, BadAudience)
	with("aud is a list of others", "aud", []string{"a", "b"}, BadAudience)
	with("aud is a number", "aud", 7, BadAudience)
	with("aud is a list with a number", "aud", []any{testAudience, 7}, BadAudience)
	with("aud is an object", "aud", map[string]any{testAudience: true}, BadAudience)
	with("aud is empty", "aud", "", BadAudience)
	with("aud is two in one text", "aud", "a "+testAudience, BadAudience)
	with("iss missing", "iss", nil, UnknownIssuer)
	with("iss of another", "iss", "https://evil.example", UnknownIssuer)
	with("iss with a slash at its end", "iss", testIssuer+"/", UnknownIssuer)
	with("iss in capitals", "iss", strings.ToUpper(testIssuer), UnknownIssuer)
	with("iss with a longer host", "iss", testIssuer+".evil.example", UnknownIssuer)
	with("iss is empty", "iss", "", UnknownIssuer)
	with("iss is a list", "iss", []string{testIssuer}, BadClaim)
	with("iss is very long", "iss", strings.Repeat("i", 3000), UnknownIssuer)
	with("iss has a line end", "iss", testIssuer+"\r\nx: y", UnknownIssuer)
	with("sub is a number", "sub", 7, BadClaim)
	with("sub is empty", "sub", "", BadClaim)
	with("sub has a line end", "sub", "alice\nadmin", BadClaim)
	with("sub is an object", "sub", map[string]any{}, BadClaim)
	with("azp is a list", "azp", []string{"a"}, BadClaim)
	payload := strings.TrimSuffix(goodPayload(t), "}")
	for name, more := range map[string]string{
		"iss": `"iss":"` + testIssuer + `"`, "sub": `"sub":"admin"`, "aud": `"aud":"` + testAudience + `"`, "sub with an escape": `"\u0073ub":"admin"`,
		"a member deep inside": `"a":{"b":{"c":1,"c":2}}`,
	} {
		list = append(list, threat{name + " twice", ec.raw(t, "ES256", `{"alg":"ES256","kid":"p256"}`, payload+","+more+"}"), Malformed})
	}
	return list
}

func shapeThreats(t *testing.T) (list []threat) {
	ec := p256()
	good := ec.token(t, goodClaims(nil))
	parts := strings.Split(good, ".")
	head := `{"alg":"ES256","kid":"p256"}`
	last := strings.IndexByte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", good[len(good)-1])
	// 64 bytes leave four bits of the last letter unused: another letter with the same first two bits.
	twin := good[:len(good)-1] + string("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[last|1])
	return []threat{
		{"nothing", "", Malformed},
		{"one dot", ".", Malformed},
		{"two dots", "..", Malformed},
		{"one part", parts[0], Malformed},
		{"two parts", parts[0] + "." + parts[1], Malformed},
		{"four parts", good + ".AAAA", Malformed},
		{"a dot at the end", good + ".", Malformed},
		{"five parts, encrypted", b64([]byte(`{"alg":"RSA-OAEP","enc":"A128GCM"}`)) + ".AAAA.AAAA.AAAA.AAAA", Malformed},
		{"no signature", parts[0] + "." + parts[1] + ".", Malformed},
		{"a token as the payload", ec.raw(t, "ES256", head, good), Malformed},
		{"payload is a list", ec.raw(t, "ES256", head, "["+goodPayload(t)+"]"), Malformed},
		{"payload is a text", ec.raw(t, "ES256", head, `"x"`), Malformed},
		{"payload is null", ec.raw(t, "ES256", head, `null`), Malformed},
		{"payload with something after it", ec.raw(t, "ES256", head, goodPayload(t)+" x"), Malformed},
		{"payload with a second object", ec.raw(t, "ES256", head, goodPayload(t)+goodPayload(t)), Malformed},
		{"payload is not UTF-8", ec.raw(t, "ES256", head, strings.Replace(goodPayload(t), "alice", "al\xffce", 1)), Malformed},
		{"payload with half a surrogate pair", ec.raw(t, "ES256", head, strings.Replace(goodPayload(t), "alice", `al\ud83dice`, 1)), Malformed},
		{"payload with a byte order mark", ec.raw(t, "ES256", head, "\xef\xbb\xbf"+goodPayload(t)), Malformed},
		{"a blank before", " " + good, Malformed},
		{"a blank after", good + " ", Malformed},
		{"a line end after", good + "\n", Malformed},
		{"a line end within", good[:30] + "\r\n" + good[30:], Malformed},
		{"a tab within", good[:30] + "\t" + good[30:], Malformed},
		{"padding", good + "==", Malformed},
		{"other alphabet", strings.NewReplacer("-", "+", "_", "/").Replace(parts[0] + "." + parts[1] + "." + strings.Repeat("-_", 43)), Malformed},
		{"the last letter spelt otherwise", twin, Malformed},
		{"Bearer before", "Bearer " + good, Malformed},
		{"NUL after", good + "\x00", Malformed},
		{"other dots", strings.ReplaceAll(good, ".", "。"), Malformed},
		{"JSON serialization", `{"protected":"` + parts[0] + `","payload":"` + parts[1] + `","signature":"` + parts[2] + `"}`, Malformed},
	}
}

func sizeThreats(t *testing.T) []threat {
	ec := p256()
	head := `{"alg":"ES256","kid":"p256"}`
	payload := strings.TrimSuffix(goodPayload(t), "}")
	deep := payload + `,"a":` + strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth) + "}"
	return []threat{
		{"a megabyte", strings.Repeat("A", 1<<20), TooLarge},
		{"a megabyte, signed", ec.token(t, goodClaims(map[string]any{"x": strings.Repeat("x", 1<<20)})), TooLarge},
		{"a megabyte of dots", strings.Repeat(".", 1<<20), TooLarge},
		{"8 KiB of dots", strings.Repeat(".", maxTokenBytes), Malformed},
		{"too deep", ec.raw(t, "ES256", head, deep), TooLarge},
		{"very deep, never closed", ec.raw(t, "ES256", head, `{"a":`+strings.Repeat("[", 5000)), TooLarge},
		{"very deep objects", ec.raw(t, "ES256", head, strings.Repeat(`{"a":`, 1000)), TooLarge},
		{"very deep header", ec.raw(t, "ES256", `{"a":`+strings.Repeat("[", 5000), payload+"}"), TooLarge},
		{"too many values", ec.raw(t, "ES256", head, payload+`,"a":[`+strings.Repeat("1,", maxValues)+`1]}`), TooLarge},
	}
}

// TestThreatsThatAreNone has the neighbours of some threats, so that those are not refused for something else.
func TestThreatsThatAreNone(t *testing.T) {
	ec := p256()
	v := newVerifier(t, config(jwks(allSigners()...)), Env{})
	payload := strings.TrimSuffix(goodPayload(t), "}")
	for name, more := range map[string]string{
		"":                              "",
		"as deep as may be":             `,"a":` + strings.Repeat("[", maxDepth-1) + strings.Repeat("]", maxDepth-1),
		"as many values":                `,"a":[` + strings.Repeat("1,", maxValues-9) + `1]`,
		"a whole surrogate pair":        `,"a":"\ud83d\ude00"`,
		"the same member at two levels": `,"a":{"sub":"x","a":{"a":1}}`,
		"members that differ in case":   `,"SUB":"x","Exp":1`,
		"a number beyond a float":       `,"a":1e400`,
	} {
		t.Run(name, func(t *testing.T) {
			wantTaken(t, v, ec.raw(t, "ES256", `{"alg":"ES256","kid":"p256"}`, payload+more+"}"))
		})
	}
}

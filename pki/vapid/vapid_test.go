package vapid

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	jwtlib "github.com/golang-jwt/jwt/v5"
)

func newVerifier(t testing.TB, c Config) *Verifier {
	t.Helper()
	v, err := NewVerifier(c)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func point(t testing.TB, key *ecdsa.PrivateKey) (p [KeyBytes]byte) {
	t.Helper()
	data, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	copy(p[:], data)
	return p
}

func b64(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }

// sign makes a token of any header and payload.
func sign(t testing.TB, key *ecdsa.PrivateKey, header, payload string) string {
	t.Helper()
	input := b64([]byte(header)) + "." + b64([]byte(payload))
	digest := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	return input + "." + b64(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
}

func TestParseAuthorization(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		want     Reason
	}{
		{"as in the RFC", "vapid t=TOKEN, k=KEY", ""},
		{"k first", "vapid k=KEY, t=TOKEN", ""},
		{"another parameter", "vapid t=TOKEN, foo=bar, k=KEY", ""},
		{"a quoted one", `vapid t=TOKEN, foo="a, b=\"c\"", k=KEY`, ""},
		{"capitals", "VAPID T=TOKEN, K=KEY", ""},
		{"no blank after the comma", "vapid t=TOKEN,k=KEY", ""},
		{"blanks", "  vapid   t = TOKEN\t,  k= KEY  ", ""},
		{"empty elements", "vapid ,t=TOKEN,, k=KEY,", ""},
		{"quoted", `vapid t="TOKEN", k="KEY"`, ""},
		{"quoted with an escape", `vapid t="\TOKEN", k="KEY"`, ""},
		{"nothing", "", OtherScheme},
		{"another scheme", "Bearer TOKEN", OtherScheme},
		{"a scheme that begins so", "vapidx t=TOKEN, k=KEY", OtherScheme},
		{"the old scheme", "WebPush TOKEN", OtherScheme},
		{"scheme alone", "vapid", Malformed},
		{"no parameters", "vapid ", Malformed},
		{"no t", "vapid k=KEY", Malformed},
		{"no k", "vapid t=TOKEN", Malformed},
		{"empty t", "vapid t=, k=KEY", Malformed},
		{"empty quoted t", `vapid t="", k=KEY`, Malformed},
		{"t twice", "vapid t=TOKEN, t=TOKEN, k=KEY", Malformed},
		{"t twice, in capitals", "vapid t=TOKEN, T=other, k=KEY", Malformed},
		{"k twice", "vapid t=TOKEN, k=KEY, k=KEY", Malformed},
		{"a token68", "vapid TOKEN", Malformed},
		{"no comma", "vapid t=TOKEN k=KEY", Malformed},
		{"semicolon", "vapid t=TOKEN; k=KEY", Malformed},
		{"open quote", `vapid t=TOKEN, k="KEY`, Malformed},
		{"backslash at the end", `vapid t=TOKEN, k="KEY\`, Malformed},
		{"no name", "vapid =TOKEN, k=KEY", Malformed},
		{"two equal signs", "vapid t==TOKEN, k=KEY", Malformed},
		{"control character", "vapid t=TOKEN\x00, k=KEY", Malformed},
		{"line end in quotes", "vapid t=TOKEN, a=\"\r\n\", k=KEY", Malformed},
		{"beyond ASCII", "vapid t=TOKEN, ü=x, k=KEY", Malformed},
		{"two credentials", "vapid t=TOKEN, k=KEY, Bearer x", Malformed},
		{"padding", "vapid t=TOKEN, k=KEY=", Malformed},
		{"padding in quotes", `vapid t=TOKEN, k="KEY="`, BadKey},
		{"short key", "vapid t=TOKEN, k=BBBB", BadKey},
		{"long key", "vapid t=TOKEN, k=KEYAAAA", BadKey},
		{"other alphabet", "vapid t=TOKEN, k=" + strings.Repeat("+", 87), BadKey},
		{"last letter spelt otherwise", "vapid t=TOKEN, k=" + rfcKey[:86] + "t", BadKey},
		{"very long", "vapid t=TOKEN, k=KEY, a=" + strings.Repeat("a", maxHeaderBytes), TooLarge},
		{"a megabyte of commas", "vapid " + strings.Repeat(",", 1<<20), TooLarge},
		{"many parameters", "vapid " + manyParams(maxParams) + " t=TOKEN, k=KEY", TooLarge},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := strings.NewReplacer("TOKEN", rfcToken, "KEY", rfcKey).Replace(tc.in)
			c, err := ParseAuthorization(in)
			if got := reasonOf(err); got != tc.want {
				t.Fatalf("ParseAuthorization = %v, want %q", err, tc.want)
			}
			if err == nil && (c.Token != rfcToken || b64(c.Key[:]) != rfcKey) {
				t.Errorf("ParseAuthorization = %q %x", c.Token, c.Key)
			}
			if err != nil && strings.Contains(err.Error(), rfcToken[40:]) {
				t.Errorf("the refusal holds the token: %v", err)
			}
		})
	}
	if s := fmt.Sprint(Credentials{Token: "secret"}); strings.Contains(s, "secret") {
		t.Errorf("Credentials print as %q", s)
	}
}

func manyParams(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "p%d=x,", i)
	}
	return b.String()
}

// TestThreats has tokens that have to be refused.
func TestThreats(t *testing.T) {
	key, v := newKey(t), newVerifier(t, Config{})
	own := point(t, key)
	const head = `{"typ":"JWT","alg":"ES256"}`
	good := claimsText(t, nil)
	input := b64([]byte(head)) + "." + b64([]byte(good))
	digest := sha256.Sum256([]byte(input))
	der, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha256.New, own[:])
	hs := b64([]byte(`{"alg":"HS256"}`)) + "." + b64([]byte(good))
	mac.Write([]byte(hs))
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	with := func(name string, value any) string {
		return sign(t, key, head, claimsText(t, map[string]any{name: value}))
	}
	raw := func(payload string) string { return sign(t, key, head, payload) }
	open := strings.TrimSuffix(good, "}")
	for _, tc := range []struct {
		name, token string
		want        Reason
	}{
		{"none", b64([]byte(`{"alg":"none"}`)) + "." + b64([]byte(good)) + ".", BadAlgorithm},
		{"None under a signature", sign(t, key, `{"alg":"None"}`, good), BadAlgorithm},
		{"HS256 with the public key", hs + "." + b64(mac.Sum(nil)), BadAlgorithm},
		{"RS256", sign(t, key, `{"alg":"RS256"}`, good), BadAlgorithm},
		{"ES384", sign(t, key, `{"alg":"ES384"}`, good), BadAlgorithm},
		{"no alg", sign(t, key, `{"typ":"JWT"}`, good), BadAlgorithm},
		{"alg is null", sign(t, key, `{"alg":null}`, good), BadAlgorithm},
		{"ALG", sign(t, key, `{"ALG":"ES256"}`, good), BadAlgorithm},
		{"Ed25519 under ES256", input + "." + b64(ed25519.Sign(edwards, []byte(input))), BadSignature},
		{"signature in DER", input + "." + b64(der), BadSignature},
		{"signature of zeros", input + "." + b64(make([]byte, 64)), BadSignature},
		{"no signature", input + ".", BadSignature},
		{"short signature", input + "." + b64(make([]byte, 63)), BadSignature},
		{"signature of another key", sign(t, newKey(t), head, good), BadSignature},
		{"alg twice", sign(t, key, `{"alg":"ES256","alg":"none"}`, good), Malformed},
		{"alg twice by escape", sign(t, key, `{"alg":"ES256","\u0061lg":"none"}`, good), Malformed},
		{"crit", sign(t, key, `{"alg":"ES256","crit":["exp"]}`, good), Malformed},
		{"b64", sign(t, key, `{"alg":"ES256","b64":false}`, good), Malformed},
		{"another typ", sign(t, key, `{"alg":"ES256","typ":"dpop+jwt"}`, good), Malformed},
		{"typ is a number", sign(t, key, `{"alg":"ES256","typ":1}`, good), Malformed},
		{"header is a list", sign(t, key, `["ES256"]`, good), Malformed},
		{"five parts", "a.b.c.d.e", Malformed},
		{"line end in the token", input[:20] + "\n" + input[20:] + ".AAAA", Malformed},
		{"padding", sign(t, key, head, good) + "==", Malformed},
		{"payload is a list", raw("[]"), Malformed},
		{"payload and more", raw(good + "{}"), Malformed},
		{"payload is not UTF-8", raw(strings.Replace(good, "mailto:", "mailto:\xff", 1)), Malformed},
		{"payload with a comma too many", raw(open + ",}"), Malformed},
		{"exp twice", raw(open + `,"exp":1}`), Malformed},
		{"aud twice", raw(open + `,"aud":"x"}`), Malformed},
		{"many members", raw(open + "," + manyMembers(maxMembers) + "}"), Malformed},
		{"very long", raw(open + `,"x":"` + strings.Repeat("x", maxTokenBytes) + `"}`), TooLarge},
		{"a megabyte", strings.Repeat("A", 1<<20), TooLarge},
		{"very deep", raw(open + `,"x":` + strings.Repeat("[", 2500) + "}"), Malformed},
		{"aud missing", with("aud", nil), BadAudience},
		{"aud of another", with("aud", "https://push.example.com"), BadAudience},
		{"aud with a path", with("aud", rfcOrigin+"/p/abc"), BadAudience},
		{"aud with a slash", with("aud", rfcOrigin+"/"), BadAudience},
		{"aud with another port", with("aud", rfcOrigin+":8443"), BadAudience},
		{"aud in capitals", with("aud", strings.ToUpper(rfcOrigin)), BadAudience},
		{"aud with http", with("aud", "http://push.example.net"), BadAudience},
		{"aud begins like ours", with("aud", rfcOrigin+".evil.example"), BadAudience},
		{"aud is a number", with("aud", 7), BadAudience},
		{"aud is null", raw(`{"aud":null,"exp":1}`), BadAudience},
		{"aud is an object", with("aud", map[string]any{rfcOrigin: 1}), BadAudience},
		{"aud is a list with a number", with("aud", []any{rfcOrigin, 7}), BadAudience},
		{"aud is an empty list", with("aud", []any{}), BadAudience},
		{"aud is a long list", with("aud", strings.Split(strings.Repeat("a,", maxAudiences)+rfcOrigin, ",")), TooLarge},
		{"exp missing", with("exp", nil), BadClaim},
		{"exp is a text", with("exp", fmt.Sprint(time.Now().Add(time.Hour).Unix())), BadClaim},
		{"exp is null", raw(`{"aud":"` + rfcOrigin + `","exp":null}`), BadClaim},
		{"exp is negative", with("exp", -1), BadClaim},
		{"exp is 0", with("exp", 0), BadClaim},
		{"exp is huge", raw(`{"aud":"` + rfcOrigin + `","exp":1e19}`), BadClaim},
		{"exp is beyond a float", raw(`{"aud":"` + rfcOrigin + `","exp":1e400}`), BadClaim},
		{"exp is true", with("exp", true), BadClaim},
		{"exp in milliseconds", with("exp", time.Now().UnixMilli()), BadClaim},
		{"sub is a number", with("sub", 7), BadClaim},
		{"sub is empty", with("sub", ""), BadClaim},
		{"sub is http", with("sub", "http://example.com"), BadClaim},
		{"sub is javascript", with("sub", "javascript:alert(1)"), BadClaim},
		{"sub has a line end", with("sub", "mailto:a@b\r\nx: y"), BadClaim},
		{"sub is very long", with("sub", "mailto:"+strings.Repeat("a", maxSubjectBytes)), BadClaim},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, err := v.Verify(Credentials{Token: tc.token, Key: own}, rfcOrigin)
			if got := reasonOf(err); got != tc.want {
				t.Fatalf("Verify = %+v, %v, want %q", s, err, tc.want)
			}
			for part := range strings.SplitSeq(tc.token, ".") {
				if len(part) > 30 && strings.Contains(err.Error(), part) {
					t.Errorf("the refusal holds a part of the token: %v", err)
				}
			}
		})
	}
	for name, k := range map[string][KeyBytes]byte{
		"zeros": {}, "compressed": {2, 1}, "off the curve": {4, 1}, "infinity": {4},
	} {
		if _, err := v.Verify(Credentials{Token: sign(t, key, head, good), Key: k}, rfcOrigin); reasonOf(err) != BadKey {
			t.Errorf("Verify with a key of %s = %v, want %s", name, err, BadKey)
		}
	}
}

func manyMembers(n int) string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf(`"m%d":1`, i)
	}
	return strings.Join(list, ",")
}

func TestVerifyTakes(t *testing.T) {
	key, v := newKey(t), newVerifier(t, Config{})
	lib := func(claims jwtlib.MapClaims) string {
		token, err := jwtlib.NewWithClaims(jwtlib.SigningMethodES256, claims).SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	exp := time.Now().Add(time.Hour).Unix()
	for name, token := range map[string]string{
		"golang-jwt":              lib(jwtlib.MapClaims{"aud": rfcOrigin, "exp": exp, "sub": rfcSubject}),
		"golang-jwt, aud in list": lib(jwtlib.MapClaims{"aud": []string{"https://other.example", rfcOrigin}, "exp": exp}),
		"no sub":                  sign(t, key, `{"alg":"ES256"}`, claimsText(t, map[string]any{"sub": nil})),
		"https sub":               sign(t, key, `{"alg":"ES256"}`, claimsText(t, map[string]any{"sub": "https://example.com/contact"})),
		"mailto as some write it": sign(t, key, `{"alg":"ES256"}`, claimsText(t, map[string]any{"sub": "mailto: <push@example.com>"})),
		"fraction":                sign(t, key, `{"alg":"ES256"}`, fmt.Sprintf(`{"aud":%q,"exp":%d.75}`, rfcOrigin, exp)),
		"blanks":                  sign(t, key, " { \"alg\" : \"ES256\" , \"typ\" : \"jwt\" } ", fmt.Sprintf("{\n \"aud\" : %q ,\n \"exp\" :  %d }\n", rfcOrigin, exp)),
		"more claims":             sign(t, key, `{"alg":"ES256"}`, claimsText(t, map[string]any{"x": map[string]any{"a": 1}, "jti": "1"})),
	} {
		t.Run(name, func(t *testing.T) {
			s, err := v.Verify(Credentials{Token: token, Key: point(t, key)}, rfcOrigin)
			if err != nil || s.Key != point(t, key) || s.NotAfter.Unix() != exp+int64(defaultSkew/time.Second) {
				t.Errorf("Verify = %+v, %v", s, err)
			}
		})
	}
}

// TestSignIsTakenByOthers has what Sign makes read by golang-jwt.
func TestSignIsTakenByOthers(t *testing.T) {
	key := newKey(t)
	for range 300 { // r or s begins with a zero byte in one of 128
		field, err := Sign(key, rfcOrigin, rfcSubject, time.Now().Add(12*time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		c, err := ParseAuthorization(field)
		if err != nil || c.Key != point(t, key) {
			t.Fatalf("ParseAuthorization = %v", err)
		}
		token, err := jwtlib.Parse(c.Token, func(*jwtlib.Token) (any, error) { return &key.PublicKey, nil }, jwtlib.WithStrictDecoding(),
			jwtlib.WithValidMethods([]string{"ES256"}), jwtlib.WithAudience(rfcOrigin), jwtlib.WithSubject(rfcSubject), jwtlib.WithExpirationRequired())
		if err != nil || !token.Valid {
			t.Fatalf("golang-jwt does not take what Sign made: %v", err)
		}
	}
}

func TestSignRefuses(t *testing.T) {
	key := newKey(t)
	other, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	soon := time.Now().Add(time.Hour)
	for name, tc := range map[string]struct {
		key         *ecdsa.PrivateKey
		origin, sub string
		exp         time.Time
	}{
		"P-384": {other, rfcOrigin, "", soon}, "no origin": {key, "", "", soon}, "past": {key, rfcOrigin, "", time.Now()},
		"more than a day": {key, rfcOrigin, "", time.Now().Add(24*time.Hour + time.Minute)}, "no address": {key, rfcOrigin, "push@example.com", soon},
		"long address": {key, rfcOrigin, "mailto:" + strings.Repeat("a", 5000), soon}, "long origin": {key, "https://" + strings.Repeat("a", 5000), "", soon},
	} {
		if field, err := Sign(tc.key, tc.origin, tc.sub, tc.exp); err == nil {
			t.Errorf("%s: Sign = %q, want an error", name, field)
		}
	}
}

func TestOrigin(t *testing.T) {
	for in, want := range map[string]string{
		"https://push.example.net/p/abc": "https://push.example.net", "https://push.example.net:443/": "https://push.example.net",
		"HTTPS://Push.Example.NET:8443/x": "https://push.example.net:8443", "http://push.example.net:80": "http://push.example.net",
		"http://push.example.net:443": "http://push.example.net:443", "https://[2001:DB8::1]:443/": "https://[2001:db8::1]", "https://user:pass@a.example": "https://a.example", "/p/abc": "",
	} {
		u, err := url.Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := Origin(u); got != want {
			t.Errorf("Origin(%s) = %q, want %q", in, got, want)
		}
	}
}

func TestConfigValidate(t *testing.T) {
	for _, c := range []Config{{}, {Skew: time.Minute, CacheEntries: 16}, {Skew: -1, CacheEntries: -1}} {
		if err := c.Validate(); err != nil {
			t.Errorf("Validate(%+v) = %v", c, err)
		}
	}
	_, err := NewVerifier(Config{Skew: time.Hour, CacheEntries: 3})
	if err == nil || !strings.Contains(err.Error(), "skew: ") || !strings.Contains(err.Error(), "cacheEntries: ") {
		t.Errorf("NewVerifier = %v, want both faults", err)
	}
}

func TestVerifyOnceForOneToken(t *testing.T) {
	key, v := newKey(t), newVerifier(t, Config{})
	c := Credentials{Token: sign(t, key, `{"alg":"ES256"}`, claimsText(t, nil)), Key: point(t, key)}
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if _, err := v.Verify(c, rfcOrigin); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got := v.Stats(); got.Verified != 1 {
		t.Errorf("%d signatures were checked, want one", got.Verified)
	}
	// Who comes late, after the first has verified and before it looks, finds the result.
	if _, err := v.verifyNew(&c, digestOf(&c)); err != nil || v.Stats().Verified != 1 {
		t.Errorf("verifyNew = %v, %+v, want no second check", err, v.Stats())
	}
	none := newVerifier(t, Config{CacheEntries: -1})
	for range 2 {
		if _, err := none.Verify(c, rfcOrigin); err != nil {
			t.Fatal(err)
		}
	}
	if got := none.Stats(); got.Verified != 2 || got.Entries != 0 {
		t.Errorf("Stats = %+v without a cache", got)
	}
}

// TestCacheFlood has strangers with ever new keys and tokens beside senders that send.
func TestCacheFlood(t *testing.T) {
	v := newVerifier(t, Config{CacheEntries: 64})
	show := func(key *ecdsa.PrivateKey, jti int) Credentials {
		t.Helper()
		c := Credentials{Token: sign(t, key, `{"alg":"ES256"}`, claimsText(t, map[string]any{"jti": jti})), Key: point(t, key)}
		if _, err := v.Verify(c, rfcOrigin); err != nil {
			t.Fatal(err)
		}
		return c
	}
	again := func(c Credentials, want bool, what string) {
		t.Helper()
		before := v.Stats().Verified
		if _, err := v.Verify(c, rfcOrigin); err != nil {
			t.Fatal(err)
		}
		if got := v.Stats().Verified == before; got != want {
			t.Errorf("%s: remembered = %v, want %v", what, got, want)
		}
	}
	sender := show(newKey(t), 0)
	again(sender, true, "at once")
	once := show(newKey(t), 0)
	for range 200 {
		show(newKey(t), 0)
	}
	again(sender, true, "a sender that sends, after 200 keys that were shown once")
	again(once, false, "a sender that sent once, after them")
	if n := v.Stats().Entries; n > 64/newShare+2 {
		t.Errorf("%d entries, want a quarter and the two that came back", n)
	}
	// One key with ever new tokens, each shown twice.
	greedy := newKey(t)
	for i := range 100 {
		again(show(greedy, i), true, "at once")
	}
	if n := len(v.cache.often.keys[point(t, greedy)]); n != keyEntries {
		t.Errorf("one key has %d places, want %d", n, keyEntries)
	}
	again(sender, true, "a sender that sends, beside a greedy key")
	for range 200 {
		again(show(newKey(t), 0), true, "at once")
	}
	if got := v.Stats().Entries; got > 64 || v.cache.often.order.Len() != 48 || len(v.cache.often.keys) > 48 || len(v.cache.once.keys) > 16 {
		t.Errorf("%d entries, %d of them often, of %d keys", got, v.cache.often.order.Len(), len(v.cache.often.keys))
	}
}

// FuzzParseAuthorization has fields: what is read is within bounds, and written again it is read the same.
func FuzzParseAuthorization(f *testing.F) {
	for _, seed := range []string{
		"vapid t=" + rfcToken + ", k=" + rfcKey, "vapid k=" + rfcKey + ",t=" + rfcToken, `VAPID t="a\"b", k="` + rfcKey + `", x=y`, "vapid", "Bearer x", "vapid t=,,,=",
	} {
		f.Add(seed)
	}
	v := newVerifier(f, Config{})
	f.Fuzz(func(t *testing.T, value string) {
		c, err := ParseAuthorization(value)
		if err != nil {
			if r := reasonOf(err); r == "" || strings.HasPrefix(string(r), "not") || len(err.Error()) > 1024 {
				t.Fatalf("ParseAuthorization(%q) = %v", value, err)
			}
			return
		}
		if c.Token == "" || len(c.Token) > len(value) {
			t.Fatalf("ParseAuthorization(%q) has the token %q", value, c.Token)
		}
		quoted := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(c.Token)
		same, err := ParseAuthorization(`vapid k=` + b64(c.Key[:]) + `, t="` + quoted + `"`)
		if err != nil && reasonOf(err) != TooLarge || err == nil && same != c {
			t.Fatalf("ParseAuthorization(%q) = %q, and that written again is %q, %v", value, c.Token, same.Token, err)
		}
		if _, err := v.Verify(c, rfcOrigin); err == nil {
			t.Fatalf("Verify took %q", value)
		}
	})
}

// FuzzToken has tokens of any header and payload, rightly signed, so that what is behind the signature is reached.
func FuzzToken(f *testing.F) {
	key := newKey(f)
	f.Add(`{"alg":"ES256"}`, claimsText(f, nil))
	f.Add(`{"typ":"JWT","alg":"ES256"}`, `{"aud":["a",1],"exp":1e400,"sub":""}`)
	f.Add(`[`, `{"a":1,"a":2}`)
	v := newVerifier(f, Config{})
	f.Fuzz(func(t *testing.T, header, payload string) {
		s, err := v.Verify(Credentials{Token: sign(t, key, header, payload), Key: point(t, key)}, rfcOrigin)
		if err == nil && (!strings.Contains(header, "ES256") || time.Until(s.NotAfter) > maxLife+2*defaultSkew || time.Until(s.NotAfter) < -time.Second) {
			t.Fatalf("Verify(%q, %q) = %+v", header, payload, s)
		}
		if r := reasonOf(err); strings.HasPrefix(string(r), "not an") {
			t.Fatalf("Verify(%q, %q) = %v", header, payload, err)
		}
	})
}

// BenchmarkVerifyRemembered is what a token costs that was verified before: one microsecond at most.
func BenchmarkVerifyRemembered(b *testing.B) {
	key, v := newKey(b), newVerifier(b, Config{})
	c := Credentials{Token: sign(b, key, `{"typ":"JWT","alg":"ES256"}`, claimsText(b, nil)), Key: point(b, key)}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(c, rfcOrigin); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkVerifyField is the same with the field to read.
func BenchmarkVerifyField(b *testing.B) {
	key, v := newKey(b), newVerifier(b, Config{})
	field, err := Sign(key, rfcOrigin, rfcSubject, time.Now().Add(time.Hour))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.VerifyAuthorization(field, rfcOrigin); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkVerifyFirst is what a token costs that nobody has seen.
func BenchmarkVerifyFirst(b *testing.B) {
	key, v := newKey(b), newVerifier(b, Config{CacheEntries: -1})
	c := Credentials{Token: sign(b, key, `{"typ":"JWT","alg":"ES256"}`, claimsText(b, nil)), Key: point(b, key)}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(c, rfcOrigin); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSign is what a sender pays for a field.
func BenchmarkSign(b *testing.B) {
	key := newKey(b)
	exp := time.Now().Add(time.Hour)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Sign(key, rfcOrigin, rfcSubject, exp); err != nil {
			b.Fatal(err)
		}
	}
}

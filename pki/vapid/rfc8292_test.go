package vapid

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// The example of RFC 8292, section 2.4: figure 1 has the field, figure 2 what is in it.
const (
	rfcToken = "eyJ0eXAiOiJKV1QiLCJhbGciOiJFUzI1NiJ9.eyJhdWQiOiJodHRwczovL3B1c2guZXhhbXBsZS5uZXQiLCJleHAiOjE0NTM1MjM3NjgsInN1YiI6Im1haWx0bzpwdXNo" +
		"QGV4YW1wbGUuY29tIn0.i3CYb7t4xfxCDquptFOepC9GAu_HLGkMlMuCGSK2rpiUfnK9ojFwDXb1JrErtmysazNjjvW2L9OkSSHzvoD1oA"
	rfcKey     = "BA1Hxzyi1RUM1b5wjxsn7nGxAszw2u61m164i3MrAIxHF6YK5h4SDYic-dRuU_RCPCfA5aq9ojSwk5Y2EmClBPs"
	rfcOrigin  = "https://push.example.net"
	rfcSubject = "mailto:push@example.com"
	rfcExpires = 1453523768
)

// TestRFC8292_2_4 verifies the example at the time it was made for, which synthetic time cannot reach: the token's own
// checks are run, and its end by hand.
func TestRFC8292_2_4(t *testing.T) {
	c, err := ParseAuthorization("vapid t=" + rfcToken + ",\n k=" + rfcKey)
	if err == nil {
		t.Fatal("a line end within the field was taken")
	}
	if c, err = ParseAuthorization("vapid t=" + rfcToken + ", k=" + rfcKey); err != nil {
		t.Fatal(err)
	}
	read, err := checkToken(&c)
	if err != nil {
		t.Fatalf("checkToken = %v", err)
	}
	if read.expires.Unix() != rfcExpires || read.subject != rfcSubject || len(read.audiences) != 1 || read.audiences[0] != rfcOrigin {
		t.Errorf("checkToken = %+v", read)
	}
	v := newVerifier(t, Config{})
	if _, err := v.Verify(c, rfcOrigin); reasonOf(err) != Expired {
		t.Errorf("Verify = %v, want %s: it ended in 2016", err, Expired)
	}
	s := &Sender{NotAfter: read.expires}
	for ahead, want := range map[time.Duration]Reason{time.Second: "", maxLife: "", 0: Expired, -time.Second: Expired} {
		v.skew = 0
		if got := reasonOf(v.checkTime(s, read.expires.Add(-ahead))); got != want {
			t.Errorf("checkTime %v before the end = %q, want %q", ahead, got, want)
		}
	}
	// What we sign has the same bytes: header, claims and their order.
	input, err := signingInput(rfcOrigin, rfcSubject, time.Unix(rfcExpires, 0))
	if want := rfcToken[:strings.LastIndexByte(rfcToken, '.')]; err != nil || input != want {
		t.Errorf("signingInput = %q, %v, want %q", input, err, want)
	}
	if base64.RawURLEncoding.EncodeToString(c.Key[:]) != rfcKey {
		t.Error("the key came out as another")
	}
}

// TestRFC8292_2 "The "exp" claim MUST NOT be more than 24 hours from the time of the request."
func TestRFC8292_2(t *testing.T) {
	for _, tc := range []struct {
		name  string
		skew  time.Duration
		ahead time.Duration
		want  Reason
	}{
		{"ended a second ago", -1, -time.Second, Expired},
		{"ends now", -1, 0, Expired},
		{"a second left", -1, time.Second, ""},
		{"24 h", -1, 24 * time.Hour, ""},
		{"24 h and a second", -1, 24*time.Hour + time.Second, TooLong},
		{"ended within the skew", 0, -29 * time.Second, ""},
		{"ended with the skew", 0, -30 * time.Second, Expired},
		{"24 h and the skew", 0, 24*time.Hour + 30*time.Second, ""},
		{"24 h, the skew and a second", 0, 24*time.Hour + 31*time.Second, TooLong},
		{"in a year", 0, 365 * 24 * time.Hour, TooLong},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				key, v := newKey(t), newVerifier(t, Config{Skew: tc.skew})
				token := sign(t, key, `{"alg":"ES256"}`, claimsText(t, map[string]any{"exp": time.Now().Add(tc.ahead).Unix()}))
				_, err := v.Verify(Credentials{Token: token, Key: point(t, key)}, rfcOrigin)
				if got := reasonOf(err); got != tc.want {
					t.Errorf("Verify = %v, want %q", err, tc.want)
				}
			})
		})
	}
}

// TestRFC8292_5 "the push service … can remember" a signature that was good, until the token ends and no longer.
func TestRFC8292_5(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := newKey(t)
		v := newVerifier(t, Config{})
		field, err := Sign(key, rfcOrigin, rfcSubject, time.Now().Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			s, err := v.VerifyAuthorization(field, rfcOrigin)
			if err != nil || s.Key != point(t, key) || s.Subject != rfcSubject {
				t.Fatalf("VerifyAuthorization = %+v, %v", s, err)
			}
		}
		if got := v.Stats(); got.Verified != 1 || got.Hits != 9 || got.Entries != 1 {
			t.Errorf("Stats = %+v, want one signature checked in ten", got)
		}
		// At another origin the same token is nothing, remembered or not.
		for _, origin := range []string{"https://push.example.com", "http://push.example.net", "https://push.example.net:8443", "", "https://push.example.net/"} {
			if _, err := v.VerifyAuthorization(field, origin); reasonOf(err) != BadAudience {
				t.Errorf("VerifyAuthorization at %q = %v, want %s", origin, err, BadAudience)
			}
		}
		// With another key it is nothing either.
		if _, err := v.VerifyAuthorization(field[:strings.Index(field, "k=")]+"k="+rfcKey, rfcOrigin); reasonOf(err) != BadSignature {
			t.Errorf("VerifyAuthorization with another key = %v, want %s", err, BadSignature)
		}
		time.Sleep(time.Hour + defaultSkew)
		if _, err := v.VerifyAuthorization(field, rfcOrigin); reasonOf(err) != Expired {
			t.Errorf("VerifyAuthorization after its end = %v, want %s", err, Expired)
		}
	})
}

func reasonOf(err error) Reason {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Reason
	}
	return Reason("not an Error: " + err.Error())
}

func claimsText(t testing.TB, change map[string]any) string {
	t.Helper()
	c := map[string]any{"aud": rfcOrigin, "exp": time.Now().Add(time.Hour).Unix(), "sub": rfcSubject}
	for name, v := range change {
		if c[name] = v; v == nil {
			delete(c, name)
		}
	}
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

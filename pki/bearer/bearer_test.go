package bearer

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// write writes a file and returns its path.
func write(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestValidate(t *testing.T) {
	good := OIDCConfig{TokenURL: "https://idp.example/token", ID: "gw", SecretFile: "secret"}
	with := func(mend func(*OIDCConfig)) *OIDCConfig {
		o := good
		mend(&o)
		return &o
	}
	for _, tt := range []struct {
		name   string
		c      Config
		fields string
	}{
		{"nothing", Config{}, ""},
		{"a file", Config{File: "jwt"}, ""},
		{"a provider", Config{OIDC: &good}, ""},
		{"signed here", Config{Sign: true, Audience: "lb"}, ""},
		{"two places", Config{File: "jwt", Sign: true}, ":"},
		{"no place", Config{Audience: "lb"}, ": audience:"},
		{"an audience for a file", Config{File: "jwt", Audience: "lb"}, "audience:"},
		{"http", Config{OIDC: with(func(o *OIDCConfig) { o.TokenURL = "http://idp.example/token" })}, "oidc.tokenUrl:"},
		{"http to elsewhere, though loopback is meant", Config{OIDC: with(func(o *OIDCConfig) { o.TokenURL, o.LoopbackHTTP = "http://idp.example/token", true })}, "oidc.tokenUrl:"},
		{"http to loopback", Config{OIDC: with(func(o *OIDCConfig) { o.TokenURL = "http://127.0.0.1/token" })}, "oidc.tokenUrl:"},
		{"http to loopback, as meant", Config{OIDC: with(func(o *OIDCConfig) { o.TokenURL, o.LoopbackHTTP = "http://[::1]/token", true })}, ""},
		{"no address", Config{OIDC: with(func(o *OIDCConfig) { o.TokenURL = "idp.example/token" })}, "oidc.tokenUrl:"},
		{"a file as address", Config{OIDC: with(func(o *OIDCConfig) { o.TokenURL = "file:///token" })}, "oidc.tokenUrl:"},
		{"a name in the address", Config{OIDC: with(func(o *OIDCConfig) { o.TokenURL = "https://me:pw@idp.example/" })}, "oidc.tokenUrl:"},
		{"no client", Config{OIDC: with(func(o *OIDCConfig) { o.ID, o.SecretFile = "", "" })}, "oidc.id: oidc.secretFile:"},
		{"two names", Config{OIDC: with(func(o *OIDCConfig) { o.IDFile = "id" })}, "oidc.id:"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			err := tt.c.Validate()
			if many, ok := err.(interface{ Unwrap() []error }); ok {
				for _, one := range many.Unwrap() {
					got = append(got, one.(*FieldError).Field+":")
				}
			}
			if text := strings.Join(got, " "); text != tt.fields {
				t.Errorf("Validate = %v, want faults at %q", err, tt.fields)
			}
		})
	}
}

func TestFileIsReadAgain(t *testing.T) {
	file := write(t, "jwt", "one.two.three\n")
	s := New(Config{File: file})
	if got, err := s.Token(t.Context(), new(Env), "lb"); got != "one.two.three" || err != nil {
		t.Errorf("Token = %q, %v", got, err)
	}
	for text, ok := range map[string]bool{
		"four.five.six": true, "": false, "two words": false, "a\r\nx: y": false, "a\x00b": false, "ä": false, strings.Repeat("x", maxTokenBytes+1): false,
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := s.Token(t.Context(), new(Env), "lb")
		if ok != (err == nil) || ok && got != text {
			t.Errorf("Token of %.20q = %q, %v", text, got, err)
		}
		if err != nil && text != "" && strings.Contains(err.Error(), text) {
			t.Errorf("the error shows the token: %v", err)
		}
	}
	_ = os.Remove(file)
	if _, err := s.Token(t.Context(), new(Env), "lb"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Token without a file = %v", err)
	}
}

// provider is a token endpoint on loopback.
func provider(t *testing.T, h http.HandlerFunc) *OIDCConfig {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return &OIDCConfig{TokenURL: srv.URL + "/token", LoopbackHTTP: true, ID: "gw one", SecretFile: write(t, "secret", "s:e/cret\n"), Scope: "tun", Audience: "lb"}
}

func TestProviderIsAskedAsItShouldBe(t *testing.T) {
	o := provider(t, func(w http.ResponseWriter, r *http.Request) {
		id, secret, _ := r.BasicAuth()
		body, _ := io.ReadAll(r.Body)
		if id != "gw+one" || secret != "s%3Ae%2Fcret" || r.Method != http.MethodPost || r.URL.Path != "/token" ||
			string(body) != "audience=lb&grant_type=client_credentials&scope=tun" {
			t.Errorf("asked with %q, %q, %s %s, %s", id, secret, r.Method, r.URL, body)
		}
		_, _ = io.WriteString(w, `{"access_token":"abc","token_type":"bearer","expires_in":3600}`)
	})
	if got, err := New(Config{OIDC: o}).Token(t.Context(), new(Env), ""); got != "abc" || err != nil {
		t.Errorf("Token = %q, %v", got, err)
	}
}

func TestHostileProvider(t *testing.T) {
	jwt := func(claims string) string {
		return "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln"
	}
	for _, tt := range []struct {
		name   string
		status int
		body   string
		says   string
	}{
		{"huge", 200, `{"access_token":"` + strings.Repeat("x", maxAnswerBytes), "longer than"},
		{"no JSON", 200, "<html>", "not the JSON"},
		{"a list", 200, "[]", "not the JSON"},
		{"nothing", 200, "", "not the JSON"},
		{"no token", 200, `{"token_type":"Bearer"}`, "no access_token"},
		{"a number as token", 200, `{"access_token":7}`, "not the JSON"},
		{"another type", 200, `{"access_token":"a","token_type":"mac"}`, "another type"},
		{"a token with a line end", 200, `{"access_token":"a\r\nx: y"}`, "no token has"},
		{"a token that is too long", 200, `{"access_token":"` + strings.Repeat("x", maxTokenBytes+1) + `"}`, "bytes"},
		{"a token that has ended", 200, `{"access_token":"` + jwt(`{"exp":1}`) + `"}`, "ended already"},
		{"redirect", 302, "", "answered 302"},
		{"401", 401, `{"error":"invalid_client","error_description":"s:e/cret"}`, "answered 401: invalid_client"},
		{"401 in its own words", 401, `{"error":"your secret is s:e/cret"}`, "answered 401"},
		{"500", 500, "s:e/cret", "answered 500"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var asked atomic.Int64
			o := provider(t, func(w http.ResponseWriter, r *http.Request) {
				if asked.Add(1); r.URL.Path != "/token" {
					t.Errorf("the redirect was followed, with %q", r.Header.Get("Authorization"))
				}
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(tt.status)
				_, _ = io.WriteString(w, tt.body)
			})
			s := New(Config{OIDC: o})
			for range 3 { // it is not asked again and again
				_, err := s.Token(t.Context(), new(Env), "")
				if err == nil || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "cret") {
					t.Errorf("Token = %v, want an error that says %q", err, tt.says)
				}
			}
			if n := asked.Load(); n != 1 {
				t.Errorf("asked %d times, want once", n)
			}
		})
	}
}

func TestSlowProvider(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		started := time.Now()
		env := &Env{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			a, b := net.Pipe()
			go func() { // ends with the connection
				buf := make([]byte, 4096)
				for {
					if _, err := b.Read(buf); err != nil {
						return
					}
				}
			}()
			return a, nil
		}}
		s := New(Config{OIDC: &OIDCConfig{TokenURL: "http://127.0.0.1/", LoopbackHTTP: true, ID: "gw", SecretFile: write(t, "secret", "x")}})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := s.Token(ctx, env, ""); !errors.Is(err, context.DeadlineExceeded) || time.Since(started) != time.Second {
			t.Errorf("Token = %v after %v, want the end of its context", err, time.Since(started))
		}
		if _, err := s.Token(t.Context(), env, ""); err == nil || time.Since(started) != fetchTimeout {
			t.Errorf("Token = %v after %v, want an error after %v", err, time.Since(started), fetchTimeout)
		}
		synctest.Wait()
	})
}

// A token is used until shortly before its end, and replaced by one request, while it still counts.
func TestTokenIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, fails := 0, false
		env := &Env{Sign: func(audience string) (string, time.Time, error) {
			if fails {
				return "", time.Time{}, errors.New("no key")
			}
			n++
			return fmt.Sprintf("%s-%d", audience, n), time.Now().Add(5 * time.Minute), nil
		}}
		s := New(Config{Sign: true})
		want := func(text string) {
			t.Helper()
			if got, err := s.Token(t.Context(), env, "lb"); got != text || err != nil {
				t.Errorf("Token = %q, %v, want %q", got, err, text)
			}
			synctest.Wait()
		}
		want("lb-1")
		time.Sleep(4*time.Minute + 29*time.Second)
		want("lb-1")
		time.Sleep(2 * time.Second)
		want("lb-1") // and it is replaced meanwhile
		want("lb-2")
		fails = true
		time.Sleep(4*time.Minute + 45*time.Second)
		want("lb-2")
		time.Sleep(20 * time.Second)
		if _, err := s.Token(t.Context(), env, "lb"); err == nil {
			t.Error("a token that has ended is shown")
		}
		fails = false
		if _, err := s.Token(t.Context(), env, "lb"); err == nil {
			t.Error("tried again at once")
		}
		time.Sleep(retryAfter)
		want("lb-3")
	})
}

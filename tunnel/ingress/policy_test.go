package ingress_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"culvert/policy"
	"culvert/tunnel"
)

// Tokens of clients (RFC 6750) are looked for in each request, and a request without the one that policy asks for is refused.
func TestTokensOfClients(t *testing.T) {
	e := newEdgeEnv(t, nil, func(c *tunnel.Config) {
		c.Policy.TokenRules = []policy.TokenRule{{Name: "tokens", Issuer: "issuer", JWKS: `{"keys":[{}]}`}}
		c.Policy.Rules = []policy.Rules{
			{Name: "ann", Rules: []policy.Rule{{From: []policy.Source{{RequestPrincipals: []string{"issuer/ann"}}}}}},
			{Name: "all", Rules: []policy.Rule{{To: []policy.Operation{{Paths: []string{"/open"}}}}}},
		}
	}, func(env *tunnel.Env) {
		env.VerifyToken = func(_ context.Context, text string) (*tunnel.Token, error) {
			name, ok := strings.CutPrefix(text, "good-")
			if !ok {
				return nil, errors.New("the signature is not one of the key")
			}
			return &tunnel.Token{Token: policy.Token{Issuer: "issuer", Subject: name}}, nil
		}
	})
	e.serve(t, appListen, echo)
	for name, protocols := range map[string]func(*http.Protocols){"HTTP/1.1": http1, "HTTP/2": http2} {
		t.Run(name, func(t *testing.T) {
			c := e.client(t, protocols)
			for _, tt := range []struct {
				path   string
				tokens []string
				status int
			}{
				{"/", []string{"Bearer good-ann"}, 200}, {"/", nil, 403}, {"/", []string{"Bearer bad"}, 401}, {"/", []string{"Bearer good-bob"}, 403},
				{"/open", nil, 200}, {"/open", []string{"Bearer bad"}, 401}, {"/", []string{"Bearer good-ann", "Bearer bad"}, 401}, {"/", []string{"Bearer good-ann"}, 200},
			} {
				r, err := http.NewRequest("GET", "http://shop.example"+tt.path, nil)
				if err != nil {
					t.Fatal(err)
				}
				if tt.tokens != nil {
					r.Header["Authorization"] = tt.tokens
				}
				resp, err := c.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				challenge := strings.HasPrefix(resp.Header.Get("Www-Authenticate"), "Bearer")
				if resp.StatusCode != tt.status || challenge != (tt.status == 401) {
					t.Errorf("%s with %q: %d %v, want %d", tt.path, tt.tokens, resp.StatusCode, resp.Header, tt.status)
				}
			}
		})
	}
	e.gw.Close()
	if log := e.log.String(); !strings.Contains(log, "token=issuer/ann") || strings.Contains(log, "good-") {
		t.Errorf("the records have the token, or not whose it is:\n%s", log)
	}
}

// Authorizers outside are asked about each request, with its method, path and fields, before a byte of it goes on.
func TestAuthorizersOfRequests(t *testing.T) {
	var mu sync.Mutex
	asked := map[string]int{}
	e := newEdgeEnv(t, nil, func(c *tunnel.Config) {
		c.Policy.Authorizers = []string{"outside"}
		c.Policy.Rules = []policy.Rules{{Name: "ask", Action: policy.ActionAsk, Authorizer: "outside", Rules: []policy.Rule{{To: []policy.Operation{{Paths: []string{"/asked/*"}}}}}}}
	}, func(env *tunnel.Env) {
		env.Ask = func(_ context.Context, name string, r *policy.Request) policy.Decision {
			if r.HTTP == nil {
				t.Error("it is asked about something that is no request")
				return policy.Decision{}
			}
			pass, _ := r.HTTP.Header("x-pass")
			mu.Lock()
			asked[strings.Join([]string{name, r.HTTP.Method, r.HTTP.Host, r.HTTP.Path, pass}, " ")]++
			mu.Unlock()
			return policy.Decision{Allow: pass == "yes", Policy: "ask", Rule: "ask/outside", Reason: "it wants another pass"}
		}
	})
	var served sync.Map
	e.serve(t, appListen, func(_ http.ResponseWriter, r *http.Request) { served.Store(r.URL.Path, true) })
	for _, protocols := range []func(*http.Protocols){http1, http2} {
		c := e.client(t, protocols)
		for _, tt := range []struct {
			path, pass string
			status     int
		}{{"/asked/a", "yes", 200}, {"/asked/b", "no", 403}, {"/asked//b", "no", 403}, {"/free", "no", 200}, {"/asked/a", "yes", 200}} {
			r, err := http.NewRequest("POST", "http://shop.example"+tt.path, strings.NewReader("body"))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("X-Pass", tt.pass)
			resp, err := c.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			if resp.StatusCode != tt.status {
				t.Errorf("%s: %d, want %d", tt.path, resp.StatusCode, tt.status)
			}
		}
	}
	e.gw.Close()
	if _, ok := served.Load("/asked/b"); ok {
		t.Error("the application has got what was refused")
	}
	if got, want := fmt.Sprint(asked), "map[outside POST shop.example /asked/a yes:4 outside POST shop.example /asked/b no:4]"; got != want {
		t.Errorf("asked %s, want %s", got, want)
	}
	if !strings.Contains(e.log.String(), "rule=ask/outside") {
		t.Errorf("the records do not name it:\n%s", e.log)
	}
}

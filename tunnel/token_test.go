package tunnel_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"culvert/policy"
	"culvert/tunnel"
	"culvert/tunnel/h2"
	"culvert/tunnel/tunneltest"
)

// tokenExit is an exit that knows one token, "good", of issuer/ann.
func tokenExit(until time.Time, valid func() bool, rules ...policy.TokenRule) tunneltest.Options {
	return tunneltest.Options{
		Exit: func(c *tunnel.Config) {
			c.Policy.TokenRules = rules
			c.Policy.Rules = []policy.Rules{{Name: "ann", Rules: []policy.Rule{{From: []policy.Source{{RequestPrincipals: []string{"issuer/ann"}}}}}}}
		},
		ExitEnv: func(e *tunnel.Env) {
			e.VerifyToken = func(_ context.Context, text string) (*tunnel.Token, error) {
				if text != "good" {
					return nil, errors.New("the signature is not one of the key")
				}
				return &tunnel.Token{Token: policy.Token{Issuer: "issuer", Subject: "ann", Audiences: []string{"mesh"}}, Until: until, Valid: valid}, nil
			}
		},
	}
}

func TestTokenOfARequest(t *testing.T) {
	rule := policy.TokenRule{Name: "tokens", Issuer: "issuer", JWKS: `{"keys":[{}]}`}
	elsewhere := rule
	elsewhere.FromHeaders = []policy.TokenHeader{{Name: "x-jwt"}}
	otherIssuer := rule
	otherIssuer.Issuer = "another"
	otherAudience := rule
	otherAudience.Audiences = []string{"shop"}
	for _, tt := range []struct {
		name   string
		rules  []policy.TokenRule
		fields []h2.Field
		want   int
	}{
		{"none", nil, nil, 401},
		{"good", nil, []h2.Field{{Name: "authorization", Value: "Bearer good"}}, 200},
		{"in another case", nil, []h2.Field{{Name: "authorization", Value: "bearer good"}}, 200},
		{"bad, where nothing asks for tokens but a rule", nil, []h2.Field{{Name: "authorization", Value: "Bearer bad"}}, 401},
		{"another scheme", nil, []h2.Field{{Name: "authorization", Value: "Basic good"}}, 401},
		{"rule, good", []policy.TokenRule{rule}, []h2.Field{{Name: "authorization", Value: "Bearer good"}}, 200},
		{"rule, bad", []policy.TokenRule{rule}, []h2.Field{{Name: "authorization", Value: "Bearer bad"}}, 401},
		{"rule, two tokens", []policy.TokenRule{rule}, []h2.Field{{Name: "authorization", Value: "Bearer good"}, {Name: "authorization", Value: "Bearer bad"}}, 401},
		{"rule, the same twice", []policy.TokenRule{rule}, []h2.Field{{Name: "authorization", Value: "Bearer good"}, {Name: "authorization", Value: "Bearer good"}}, 200},
		{"rule of another field", []policy.TokenRule{elsewhere}, []h2.Field{{Name: "x-jwt", Value: "good"}}, 200},
		{"rule of another field, usual one", []policy.TokenRule{elsewhere}, []h2.Field{{Name: "authorization", Value: "Bearer good"}}, 401},
		{"rule of another issuer", []policy.TokenRule{otherIssuer}, []h2.Field{{Name: "authorization", Value: "Bearer good"}}, 401},
		{"rule of another audience", []policy.TokenRule{otherAudience}, []h2.Field{{Name: "authorization", Value: "Bearer good"}}, 401},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := tunneltest.NewPair(t, tokenExit(time.Time{}, nil, tt.rules...))
			p.Echo(t, "10.0.0.2:80")
			peer := mustPeer(t, p.Net, p.CA.Issue(t, "cluster.local", "default", "entry"), tunneltest.ExitListen)
			if got, status := peer.status("10.0.0.2:80", tt.fields...); got != tt.want {
				t.Errorf("status %d (%s), want %d", got, status, tt.want)
			}
			waitUntil(t, "the record", func() bool { return strings.Contains(p.Log.String(), "msg=flow ") })
			if log := p.Log.String(); strings.Contains(log, "=good") || strings.Contains(log, " good") || tt.want == 200 && !strings.Contains(log, "token=issuer/ann") {
				t.Errorf("the log has the token, or not whose it is:\n%s", log)
			}
		})
	}
}

// Flows end when the key of their token is withdrawn, and those of others do not.
func TestTokenIsWithdrawn(t *testing.T) {
	var valid atomic.Bool
	valid.Store(true)
	p := tunneltest.NewPair(t, tokenExit(time.Now().Add(time.Hour), valid.Load))
	p.Echo(t, "10.0.0.2:80")
	peer := mustPeer(t, p.Net, p.CA.Issue(t, "cluster.local", "default", "entry"), tunneltest.ExitListen)
	s, resp := peer.connect("10.0.0.2:80", h2.Field{Name: "authorization", Value: "Bearer good"})
	if resp.Status != 200 {
		t.Fatalf("status %d", resp.Status)
	}
	p.Exit.Recheck()
	if _, err := s.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
		t.Fatalf("a flow whose token is valid reads %v", err)
	}
	valid.Store(false)
	p.Exit.Recheck()
	if _, err := s.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the flow reads %v, want that it was reset", err)
	}
	waitUntil(t, "the record", func() bool { return p.Exit.Stats().Ended["revoked"] == 1 })
}

// When a token ends, live flows run on, or end where the configuration wants that.
func TestTokenEnds(t *testing.T) {
	for _, expiry := range []string{"drain", "end"} {
		t.Run(expiry, func(t *testing.T) {
			until := time.Now().Add(50 * time.Millisecond)
			o := tokenExit(until, func() bool { return time.Now().Before(until) })
			exit := o.Exit
			o.Exit = func(c *tunnel.Config) {
				exit(c)
				c.Expiry = expiry
			}
			p := tunneltest.NewPair(t, o)
			p.Echo(t, "10.0.0.2:80")
			peer := mustPeer(t, p.Net, p.CA.Issue(t, "cluster.local", "default", "entry"), tunneltest.ExitListen)
			s, resp := peer.connect("10.0.0.2:80", h2.Field{Name: "authorization", Value: "Bearer good"})
			if resp.Status != 200 {
				t.Fatalf("status %d", resp.Status)
			}
			if expiry == "end" {
				if _, err := s.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
					t.Errorf("the flow reads %v, want that it was reset", err)
				}
				waitUntil(t, "the record", func() bool { return p.Exit.Stats().Ended["expired"] == 1 })
				return
			}
			time.Sleep(time.Until(until) + 10*time.Millisecond)
			p.Exit.Recheck()
			if _, err := s.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
				t.Errorf("the flow reads %v, want that it runs on", err)
			}
		})
	}
}

// A token whose key is withdrawn while its flow is being opened is of no use when the flow stands.
func TestTokenIsWithdrawnWhileTheFlowIsOpened(t *testing.T) {
	var valid atomic.Bool
	valid.Store(true)
	o := tokenExit(time.Now().Add(time.Hour), valid.Load)
	var exit atomic.Pointer[tunnel.Gateway]
	env := o.ExitEnv
	o.ExitEnv = func(e *tunnel.Env) {
		env(e)
		dial := e.Dial
		e.Dial = func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
			valid.Store(false)
			exit.Load().Recheck()
			return dial(ctx, addr)
		}
	}
	p := tunneltest.NewPair(t, o)
	exit.Store(p.Exit)
	p.Echo(t, "10.0.0.2:80")
	peer := mustPeer(t, p.Net, p.CA.Issue(t, "cluster.local", "default", "entry"), tunneltest.ExitListen)
	s, resp := peer.connect("10.0.0.2:80", h2.Field{Name: "authorization", Value: "Bearer good"})
	if resp.Status == 200 {
		_ = s.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := s.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the flow reads %v, want that it was reset", err)
		}
	}
	waitUntil(t, "the record", func() bool { return p.Exit.Stats().Ended["revoked"] == 1 })
}

package tunnel_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"culvert/pki/bearer"
	"culvert/pki/jwt"
	"culvert/policy"
	"culvert/tunnel"
	"culvert/tunnel/endpoint"
	"culvert/tunnel/tunneltest"
	"culvert/tunnel/tunneltest/memnet"
)

// tunListen is where the exit of an outerPair takes requests with x-tun.
const tunListen = tunneltest.ExitAddr + ":8443"

// outerPair is an entry that sends its flows in requests with x-tun, and an exit that takes them; where nothing else is said
// there is no proxy between them, which makes no difference to either.
type outerPair struct {
	net         *memnet.Net
	ca          *tunneltest.CA
	entry, exit *tunnel.Gateway
	log         *tunneltest.Log
}

// goodToken is what verifyText takes.
const goodToken = "good"

// verifyText verifies tokens that are a word: "good", or what is wrong with them.
func verifyText(_ context.Context, text string) (*tunnel.Token, error) {
	if text == goodToken {
		return &tunnel.Token{Token: policy.Token{Issuer: "https://idp.example", Subject: "entry", Audiences: []string{"gw"}}}, nil
	}
	return nil, &jwt.Error{Reason: jwt.Reason(text), Detail: "test"}
}

// outerOptions are how an outerPair differs from the plain one.
type outerOptions struct {
	hop      func(*tunnel.HopConfig)
	exit     func(*tunnel.Config)
	exitEnv  func(*tunnel.Env)
	entryEnv func(*tunnel.Env)
	entryID  *tunneltest.Identity
	token    string
}

func newOuterPair(t testing.TB, form string, o outerOptions) *outerPair {
	t.Helper()
	p := &outerPair{net: memnet.New(), ca: tunneltest.NewCA(t), log: &tunneltest.Log{}}
	log := slog.NewTextHandler(p.log, nil)
	exit := &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "tun", Kind: tunnel.KindXTun, Address: tunListen}},
		Routes:    []tunnel.RouteConfig{{Listeners: []string{"tun"}, Destinations: []string{"local"}}},
	}
	p.exit = tunneltest.NewGateway(t, p.net, tunneltest.ExitAddr, p.ca.Issue(t, "cluster.local", "default", "exit"), exit, o.exit, func(e *tunnel.Env) {
		e.VerifyToken = verifyText
		if o.exitEnv != nil {
			o.exitEnv(e)
		}
	}, log)
	hop := tunnel.HopConfig{Address: tunListen, Tun: form, Authority: "lb.example", TLS: tunnel.HopTLSConfig{None: true}, Token: bearer.Config{Sign: true}}
	if o.hop != nil {
		o.hop(&hop)
	}
	entry := &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "apps", Kind: tunnel.KindSOCKS5, Address: "127.0.0.1:1080"}},
		Hops:      map[string]tunnel.HopConfig{"lb": hop},
		Routes:    []tunnel.RouteConfig{{Listeners: []string{"apps"}, Via: []string{"lb"}}},
	}
	if o.entryID == nil {
		o.entryID = p.ca.Issue(t, "cluster.local", "default", "entry")
	}
	token := goodToken
	if o.token != "" {
		token = o.token
	}
	p.entry = tunneltest.NewGateway(t, p.net, tunneltest.EntryAddr, o.entryID, entry, nil, func(e *tunnel.Env) {
		e.Bearer.Sign = func(string) (string, time.Time, error) { return token, time.Now().Add(time.Hour), nil }
		if o.entryEnv != nil {
			o.entryEnv(e)
		}
	}, log)
	return p
}

func (p *outerPair) dial(t *testing.T, target string) (*memnet.Conn, error) {
	t.Helper()
	return tunneltest.Dial(testContext(t), p.entry, "apps", target)
}

// forms are the ways through a proxy.
var forms = []string{"POST", "CONNECT", "WEBSOCKET", "GRPC"}

func TestXTunCarriesFlows(t *testing.T) {
	for _, form := range forms {
		t.Run(form, func(t *testing.T) {
			p := newOuterPair(t, form, outerOptions{})
			tunneltest.Echo(t, p.net, "10.0.0.2:80")
			tunneltest.Echo(t, p.net, "10.0.0.2:81")
			for _, to := range []string{"10.0.0.2:80", "10.0.0.2:80", "10.0.0.2:81"} {
				c, err := p.dial(t, to)
				if err != nil {
					t.Fatalf("%v\n%s", err, p.log)
				}
				wantEcho(t, c, strings.Repeat("through ", 20_000))
			}
			p.entry.Close()
			p.exit.Close()
			log := p.log.String()
			if n := strings.Count(log, "peer=spiffe://cluster.local/ns/default/sa/entry"); n < 3 {
				t.Errorf("the exit does not see who the entry is: %s", log)
			}
			if !strings.Contains(log, "hop=lb ") {
				t.Errorf("the entry's record does not name the chain: %s", log)
			}
		})
	}
}

// Each proxy of a hop may let tunnels pass in a form of its own.
func TestXTunFormsOfEndpoints(t *testing.T) {
	all := map[string]string{tunneltest.ExitAddr + ":15111": "POST", tunneltest.ExitAddr + ":15112": "GRPC", tunneltest.ExitAddr + ":15113": "WEBSOCKET"}
	p := newOuterPair(t, "POST", outerOptions{
		hop: func(h *tunnel.HopConfig) {
			h.Address = ""
			for address, form := range all {
				if form == "POST" {
					form = "" // as the hop says
				}
				h.Endpoints = append(h.Endpoints, endpoint.EndpointConfig{Address: address, Tun: form})
			}
		},
		exit: func(c *tunnel.Config) {
			c.Listeners, c.Routes[0].Listeners = nil, nil
			for address, form := range all {
				c.Listeners = append(c.Listeners, tunnel.ListenerConfig{Name: "only-" + form, Kind: tunnel.KindXTun, Address: address})
			}
		},
	})
	for i := range 9 { // each stays, so that the next goes elsewhere; and each is another destination, with a connection of its own
		to := fmt.Sprintf("10.0.0.2:%d", 80+i)
		tunneltest.Echo(t, p.net, to)
		c, err := p.dial(t, to)
		if err != nil {
			t.Fatalf("%v\n%s", err, p.log)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "x"); err != nil {
			t.Fatal(err)
		}
	}
	p.entry.Close()
	p.exit.Close()
	for _, form := range all {
		if log := p.log.String(); !strings.Contains(log, "listener=only-"+form+" ") || !strings.Contains(log, "outer=\""+form+" ") {
			t.Errorf("no flow in the form %s:\n%s", form, log)
		}
	}
}

func TestXTunRefusals(t *testing.T) {
	for _, tt := range []struct {
		name, token, target string
		cause               tunnel.Cause
		says                string
	}{
		{"expired token", "expired", "10.0.0.2:80", tunnel.CauseToken, "expired"},
		{"token for others", "bad-audience", "10.0.0.2:80", tunnel.CauseToken, "bad-audience"},
		{"nothing listens", goodToken, "10.0.0.2:82", tunnel.CauseRefused, ""},
		{"not this host", goodToken, "10.0.0.9:80", tunnel.CauseNotLocal, ""},
		{"our own listener", goodToken, tunListen, tunnel.CauseLoop, ""},
	} {
		for _, form := range forms {
			t.Run(tt.name+", "+form, func(t *testing.T) {
				p := newOuterPair(t, form, outerOptions{token: tt.token})
				_, err := p.dial(t, tt.target)
				var refused *tunnel.RefusedError
				if !errors.As(err, &refused) || tunnel.CauseOf(err) != tt.cause || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("dial = %v (%v), want a refusal for %v that says %q\n%s", err, tunnel.CauseOf(err), tt.cause, tt.says, p.log)
				}
			})
		}
	}
}

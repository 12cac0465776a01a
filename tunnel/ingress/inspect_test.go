package ingress_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"culvert/policy"
	"culvert/tunnel"
	"culvert/tunnel/h2"
	"culvert/tunnel/ingress"
	"culvert/tunnel/tunneltest"
)

// Tunnels of the mesh that are looked into: each request in them is decided by its method and path, under the peer's identity, and all
// of them go where the tunnel leads, whatever host they name.
func TestInspect(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{
		Exit: func(c *tunnel.Config) {
			tag := func(tag string) tunnel.HeaderChangeConfig {
				return tunnel.HeaderChangeConfig{Set: map[string]string{"X-Route": tag}}
			}
			c.Routes = []tunnel.RouteConfig{
				{Destinations: []string{"local:80"}, Inspect: "http", HTTP: &tunnel.RouteHTTPConfig{Prefix: "/api", RequestHeaders: tag("api")}},
				{Destinations: []string{"local:80"}, Inspect: "http", HTTP: &tunnel.RouteHTTPConfig{RequestHeaders: tag("rest")}},
				{Destinations: []string{"local"}},
			}
			c.Policy.Rules = []policy.Rules{{Name: "no-admin", Action: policy.ActionDeny, Rules: []policy.Rule{{To: []policy.Operation{{Paths: []string{"/admin"}, Ports: []string{"80"}}}}}}}
		},
		ExitEnv: func(e *tunnel.Env) {
			e.Inspector = ingress.NewInspector(ingress.Env{H2: h2.Config{PingInterval: -1}})
		},
	})
	web := &edge{net: p.Net}
	web.serve(t, "10.0.0.2:80", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s %s", r.Header.Get("X-Route"), r.Host, r.URL.Path, r.Header.Get("X-Forwarded-For"))
	})
	tunneltest.Echo(t, p.Net, "10.0.0.2:90")
	for name, protocols := range map[string]func(*http.Protocols){"HTTP/1.1": http1, "HTTP/2": http2} {
		t.Run(name, func(t *testing.T) {
			tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return p.Dial(ctx, "10.0.0.2:80") }, Protocols: new(http.Protocols)}
			protocols(tr.Protocols)
			defer tr.CloseIdleConnections()
			for _, tt := range []struct {
				path   string
				status int
				want   string
			}{{"/api/x", 200, "api other.example /api/x 10.0.0.1"}, {"/x", 200, "rest other.example /x 10.0.0.1"}, {"/admin", 403, ""}, {"/x", 200, "rest other.example /x 10.0.0.1"}} {
				r, err := http.NewRequest("GET", "http://other.example"+tt.path, nil)
				if err != nil {
					t.Fatal(err)
				}
				r.Header.Set("X-Forwarded-For", "203.0.113.1")
				resp, err := tr.RoundTrip(r)
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(resp.Body)
				if resp.StatusCode != tt.status || tt.status == 200 && string(body) != tt.want {
					t.Errorf("%s: %d %q, want %d %q", tt.path, resp.StatusCode, body, tt.status, tt.want)
				}
			}
		})
	}
	t.Run("no HTTP", func(t *testing.T) {
		c, err := p.Dial(t.Context(), "10.0.0.2:80")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, "\x00\x01\x02\r\n\r\n")
		if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || resp.StatusCode != 400 {
			t.Errorf("%v, %v, want 400", resp, err)
		}
		_ = c.Close()
	})
	t.Run("another port", func(t *testing.T) {
		c, err := p.Dial(t.Context(), "10.0.0.2:90")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, "GET nothing")
		_ = c.CloseWrite()
		if all, err := io.ReadAll(c); string(all) != "GET nothing" || err != nil {
			t.Errorf("%q, %v", all, err)
		}
	})
	p.Entry.Close()
	p.Exit.Close()
	if s := p.Exit.Stats(); s.Active != 0 || s.Connections != 0 {
		t.Errorf("%d flows and %d connections are left", s.Active, s.Connections)
	}
	log := p.Log.String()
	if strings.Count(log, "path=/api/x") != 2 || !strings.Contains(log, "way=http/1.1") || !strings.Contains(log, "rule=no-admin") || !strings.Contains(log, "peer=spiffe://cluster.local/ns/default/sa/entry") {
		t.Errorf("the records lack something:\n%s", log)
	}
}

// A gateway that is closed or drained does not wait for a client that keeps its tunnel open.
func TestInspectEnds(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{
		Exit:    func(c *tunnel.Config) { c.Routes[0].Inspect = "http" },
		ExitEnv: func(e *tunnel.Env) { e.Inspector = ingress.NewInspector(ingress.Env{}) },
	})
	web := &edge{net: p.Net}
	web.serve(t, "10.0.0.2:80", echo)
	c, err := p.Dial(t.Context(), "10.0.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n")
	if resp, _ := answerOn(t, c); resp.StatusCode != 200 {
		t.Fatalf("%d", resp.StatusCode)
	}
	if err := p.Exit.Drain(t.Context()); err != nil {
		t.Errorf("Drain = %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the connection is still open")
	}
}

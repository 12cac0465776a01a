package tunnel_test

import (
	"fmt"
	"strings"
	"testing"

	"culvert/tunnel"
	"culvert/tunnel/h2"
	"culvert/tunnel/tunneltest"
	"culvert/tunnel/tunneltest/memnet"
)

// circle is gateways at 10.0.0.2, 10.0.0.3, … each of which sends everything to the next, the last to the first.
type circle struct {
	net  *memnet.Net
	ca   *tunneltest.CA
	list []*tunnel.Gateway
	logs []*tunneltest.Log
}

func newCircle(t *testing.T, n int, mend func(i int, c *tunnel.Config)) *circle {
	c := &circle{net: memnet.New(), ca: tunneltest.NewCA(t)}
	at := func(i int) string { return fmt.Sprintf("10.0.0.%d", 2+i%n) }
	for i := range n {
		c.logs = append(c.logs, &tunneltest.Log{})
		cfg := &tunnel.Config{
			Listeners: []tunnel.ListenerConfig{{Name: "mesh", Kind: tunnel.KindHBONE, Address: at(i) + ":15008"}},
			Routes:    []tunnel.RouteConfig{{Via: []string{at(i+1) + ":15008"}}},
		}
		c.list = append(c.list, tunneltest.NewGateway(t, c.net, at(i), c.ca.Issue(t, "cluster.local", "default", fmt.Sprintf("gw%d", i)), cfg,
			func(cfg *tunnel.Config) {
				if mend != nil {
					mend(i, cfg)
				}
			}, nil, logTo(c.logs[i])))
	}
	return c
}

// flows is how many flows the gateways have seen.
func (c *circle) flows() (n int64) {
	for _, g := range c.list {
		n += g.Stats().Flows
	}
	return n
}

// A flow that gateways send in a circle is refused when it comes back to one of them, after one round: by name, with nothing
// left behind.
func TestCircle(t *testing.T) {
	for _, n := range []int{2, 3, 7} {
		t.Run(fmt.Sprintf("of %d", n), func(t *testing.T) {
			c := newCircle(t, n, nil)
			p := mustPeer(t, c.net, c.ca.Issue(t, "cluster.local", "default", "client"), "10.0.0.2:15008")
			const asked = 5
			for range asked {
				status, proxy := p.status("10.0.0.9:80")
				if status != 503 || strings.Count(proxy, "proxy_loop_detected") != 1 || strings.Count(proxy, "received-status=503") != n {
					t.Errorf("answer %d, %s, want 503 with proxy_loop_detected by the first gateway, and the others between", status, proxy)
				}
			}
			if got := c.flows(); got != asked*int64(n+1) {
				t.Errorf("%d flows for %d requests, want each to come round once: %d", got, asked, asked*(n+1))
			}
			var active, transports int64
			for _, g := range c.list {
				g.Close()
				active, transports = active+g.Stats().Active, transports+g.Stats().Transports
			}
			if active+transports != 0 {
				t.Errorf("%d flows and %d connections are left", active, transports)
			}
			if log := c.logs[0].String(); !strings.Contains(log, "it has been at this gateway before, and has come back by 2 culvert-") ||
				strings.Count(log, "via=\"2 culvert-") != asked {
				t.Errorf("the record does not tell the way: %s", log)
			}
		})
	}
}

// A circle that is longer than a tunnel may be ends before it is closed.
func TestCircleOfTen(t *testing.T) {
	c := newCircle(t, 10, nil)
	p := mustPeer(t, c.net, c.ca.Issue(t, "cluster.local", "default", "client"), "10.0.0.2:15008")
	status, proxy := p.status("10.0.0.9:80")
	if status != 503 || !strings.Contains(proxy, "proxy_loop_detected") {
		t.Errorf("answer %d, %s, want 503 with proxy_loop_detected", status, proxy)
	}
	if got := c.flows(); got != 9 {
		t.Errorf("%d flows, want 9: eight are passed on, the ninth is refused", got)
	}
}

// A chain whose far hop is reached through a gateway that sends back here: the connection to the far hop would wait for
// itself.
func TestCircleInAChain(t *testing.T) {
	c := newCircle(t, 2, func(i int, c *tunnel.Config) {
		if i == 0 {
			c.Routes = []tunnel.RouteConfig{{Via: []string{"10.0.0.3:15008", "10.0.0.4:15008"}}}
		}
	})
	p := mustPeer(t, c.net, c.ca.Issue(t, "cluster.local", "default", "client"), "10.0.0.2:15008")
	status, proxy := p.status("10.0.0.9:80")
	if status != 503 || !strings.Contains(proxy, "proxy_loop_detected") {
		t.Errorf("answer %d, %s, want 503 with proxy_loop_detected", status, proxy)
	}
	if got := c.flows(); got != 3 {
		t.Errorf("%d flows, want 3: the one asked for, and the way to the far hop at both gateways", got)
	}
}

// Who knows the id of a gateway has one flow refused there, his own.
func TestForgedVia(t *testing.T) {
	n, ca := memnet.New(), tunneltest.NewCA(t)
	hop := newFakeHop(t, n, ca.Issue(t, "cluster.local", "default", "far"), "10.0.0.3:15008", echo)
	log := &tunneltest.Log{}
	tunneltest.NewGateway(t, n, "10.0.0.2", ca.Issue(t, "cluster.local", "default", "gw"), &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "mesh", Kind: tunnel.KindHBONE, Address: "10.0.0.2:15008"}},
		Routes:    []tunnel.RouteConfig{{Via: []string{"10.0.0.3:15008"}}},
	}, nil, nil, logTo(log))
	client := ca.Issue(t, "cluster.local", "default", "client")
	p := mustPeer(t, n, client, "10.0.0.2:15008")
	via := func(value string) []h2.Field { return []h2.Field{{Name: "via", Value: value}} }
	if status, proxy := p.status("svc.example:80"); status != 200 {
		t.Fatalf("answer %d, %s, want 200", status, proxy)
	}
	id := (<-hop.asked).Get("via")
	if !strings.HasPrefix(id, "2 culvert-") || strings.Contains(id, ",") {
		t.Fatalf("via %q, want one gateway", id)
	}
	if status, proxy := p.status("svc.example:80", via("2 x, "+id)...); status != 503 || !strings.Contains(proxy, "proxy_loop_detected") {
		t.Errorf("answer %d, %s to the gateway's own id, want 503 with proxy_loop_detected", status, proxy)
	}
	for _, q := range []*peer{p, mustPeer(t, n, client, "10.0.0.2:15008")} { // the connection lives, and others do
		if status, proxy := q.status("svc.example:80", via("2 internal.example, "+id[:len(id)-1]+"z")...); status != 200 {
			t.Errorf("answer %d, %s, want 200", status, proxy)
		}
		if got := (<-hop.asked).Get("via"); got != "2 culvert, 2 culvert, "+id {
			t.Errorf("the hop gets via %q, want no word of the stranger", got)
		}
	}
	if strings.Contains(log.String(), "internal.example") {
		t.Errorf("a name that a stranger wrote is in the records: %s", log)
	}
	long := strings.Repeat("2 x,", 12_000)
	if status, proxy := p.status("svc.example:80", via(long)...); status != 503 || !strings.Contains(proxy, "proxy_loop_detected") {
		t.Errorf("answer %d, %s to %d members, want 503 with proxy_loop_detected", status, proxy, len(long)/4)
	}
	if status, proxy := p.status("svc.example:80"); status != 200 {
		t.Errorf("answer %d, %s after that, want 200", status, proxy)
	}
	<-hop.asked
}

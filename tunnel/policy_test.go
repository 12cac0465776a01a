package tunnel_test

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"culvert/policy"
	"culvert/tunnel"
	"culvert/tunnel/h2"
	"culvert/tunnel/tunneltest"
)

// denyPort is a policy that refuses a port.
func denyPort(port string) []policy.Rules {
	return []policy.Rules{{Name: "closed", Action: policy.ActionDeny, Rules: []policy.Rule{
		{Place: policy.Place{File: "p.yaml", Line: 3}, To: []policy.Operation{{Ports: []string{port}}}},
	}}}
}

// A rule refuses new flows, and is named; a reload ends live flows that it takes, and no others.
func TestPolicyEndsLiveFlows(t *testing.T) {
	var config tunnel.Config
	p := tunneltest.NewPair(t, tunneltest.Options{Exit: func(c *tunnel.Config) { config = *c }})
	p.Echo(t, "10.0.0.2:80")
	p.Echo(t, "10.0.0.2:81")
	ended, err := p.Dial(testContext(t), "10.0.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	lives, err := p.Dial(testContext(t), "10.0.0.2:81")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ended.Write([]byte("before")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(ended, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	config.Policy.Rules = denyPort("80")
	if err := p.Exit.Reload(testContext(t), &config); err != nil {
		t.Fatal(err)
	}
	if _, err := ended.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the flow that is denied now reads %v, want ECONNRESET", err)
	}
	wantEcho(t, lives, "the other lives on")
	if err := p.Refusal(testContext(t), "10.0.0.2:80"); tunnel.CauseOf(err) != tunnel.CauseDenied {
		t.Errorf("a new flow = %v, want that it is denied", err)
	}
	waitUntil(t, "both records", func() bool { return p.Exit.Stats().Ended["denied"] == 2 })
	if log := p.Log.String(); !strings.Contains(log, "rule=closed") || !strings.Contains(log, "(p.yaml:3)") {
		t.Errorf("the log does not name the rule and its place:\n%s", log)
	}
}

// A rule that asks for an address decides on what a name resolves to, and not before.
func TestPolicyOfResolvedAddresses(t *testing.T) {
	inside := []policy.Condition{{Key: "destination.ip", Values: []string{"10.7.0.0/16"}}}
	for _, tt := range []struct {
		name  string
		rules policy.Rules
		addrs []string
		want  tunnel.Cause // 0 is allowed
	}{
		{"deny", policy.Rules{Name: "d", Action: policy.ActionDeny, Rules: []policy.Rule{{When: inside}}}, []string{"10.7.0.9"}, tunnel.CauseDenied},
		{"deny, another address", policy.Rules{Name: "d", Action: policy.ActionDeny, Rules: []policy.Rule{{When: inside}}}, []string{"10.0.0.2"}, 0},
		{"deny, one of two", policy.Rules{Name: "d", Action: policy.ActionDeny, Rules: []policy.Rule{{When: inside}}}, []string{"10.0.0.2", "10.7.0.9"}, tunnel.CauseDenied},
		{"allow", policy.Rules{Name: "a", Rules: []policy.Rule{{When: inside}}}, []string{"10.7.0.9"}, 0},
		{"allow, another address", policy.Rules{Name: "a", Rules: []policy.Rule{{When: inside}}}, []string{"10.0.0.2"}, tunnel.CauseDenied},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := tunneltest.NewPair(t, tunneltest.Options{
				Exit: func(c *tunnel.Config) {
					c.Routes = []tunnel.RouteConfig{{Hosts: []string{"shop.example"}}}
					c.Policy.Rules = []policy.Rules{tt.rules}
				},
				ExitEnv: func(e *tunnel.Env) {
					e.Resolve = func(context.Context, string) (list []netip.Addr, err error) {
						for _, a := range tt.addrs {
							list = append(list, netip.MustParseAddr(a))
						}
						return list, nil
					}
				},
			})
			for _, a := range tt.addrs {
				p.Echo(t, a+":80")
			}
			if tt.want != 0 {
				if err := p.Refusal(testContext(t), "shop.example:80"); tunnel.CauseOf(err) != tt.want {
					t.Errorf("the flow = %v, want %s", err, tt.want)
				}
				return
			}
			app, err := p.Dial(testContext(t), "shop.example:80")
			if err != nil {
				t.Fatal(err)
			}
			wantEcho(t, app, "hello")
		})
	}
}

// What a rule in report would refuse goes on, and is told.
func TestPolicyInReport(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{Exit: func(c *tunnel.Config) {
		c.Policy.Rules = denyPort("80")
		c.Policy.Rules[0].Mode = policy.ModeReport
	}})
	p.Echo(t, "10.0.0.2:80")
	app, err := p.Dial(testContext(t), "10.0.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	wantEcho(t, app, "hello")
	waitUntil(t, "the report", func() bool {
		return strings.Contains(p.Log.String(), `msg="policy in report"`) && strings.Contains(p.Log.String(), "rule=closed place=p.yaml:3")
	})
}

// Where a flow began is what a trusted peer tells of it; what others tell is not believed.
func TestPolicyOfRemoteAddress(t *testing.T) {
	for _, tt := range []struct {
		name      string
		trusted   []string
		forwarded string
		want      int
	}{
		{"told by a trusted peer", []string{"cluster.local/ns/default/sa/entry"}, `for="192.0.2.7:4711"`, 200},
		{"the first of several", []string{"cluster.local/ns/default/sa/entry"}, `for=192.0.2.7, for=10.9.9.9`, 200},
		{"another", []string{"cluster.local/ns/default/sa/entry"}, `for="198.51.100.7:4711"`, 401},
		{"told by a stranger", nil, `for="192.0.2.7:4711"`, 401},
		{"not told", []string{"cluster.local/ns/default/sa/entry"}, ``, 401},
		{"no address", []string{"cluster.local/ns/default/sa/entry"}, `for=unknown`, 401},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := tunneltest.NewPair(t, tunneltest.Options{Exit: func(c *tunnel.Config) {
				c.TrustHeaders = tt.trusted
				c.Policy.Rules = []policy.Rules{{Name: "from", Rules: []policy.Rule{{From: []policy.Source{{RemoteIPBlocks: []string{"192.0.2.0/24"}}}}}}}
			}})
			p.Echo(t, "10.0.0.2:80")
			peer := mustPeer(t, p.Net, p.CA.Issue(t, "cluster.local", "default", "entry"), tunneltest.ExitListen)
			if got, status := peer.status("10.0.0.2:80", h2.Field{Name: "forwarded", Value: tt.forwarded}); got != tt.want {
				t.Errorf("status %d (%s), want %d", got, status, tt.want)
			}
		})
	}
}

// A rule in report that asks for an address tells what it would do when the name is resolved, and a rule that does not tells it
// once.
func TestPolicyInReportOfResolvedAddresses(t *testing.T) {
	for _, tt := range []struct {
		name string
		when []policy.Condition
	}{
		{"by address", []policy.Condition{{Key: "destination.ip", Values: []string{"10.7.0.0/16"}}}},
		{"by port", []policy.Condition{{Key: "destination.port", Values: []string{"80"}}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := tunneltest.NewPair(t, tunneltest.Options{
				Exit: func(c *tunnel.Config) {
					c.Routes = []tunnel.RouteConfig{{Hosts: []string{"shop.example"}}}
					c.Policy.Rules = []policy.Rules{{Name: "closed", Action: policy.ActionDeny, Mode: policy.ModeReport, Rules: []policy.Rule{{When: tt.when}}}}
				},
				ExitEnv: func(e *tunnel.Env) {
					e.Resolve = func(context.Context, string) ([]netip.Addr, error) {
						return []netip.Addr{netip.MustParseAddr("10.7.0.9"), netip.MustParseAddr("10.7.0.10")}, nil
					}
				},
			})
			p.Echo(t, "10.7.0.9:80")
			p.Echo(t, "10.7.0.10:80")
			wantEcho(t, dialed(t, p.Entry, "apps", "shop.example:80"), "hello")
			waitUntil(t, "the record", func() bool { return strings.Contains(p.Log.String(), "msg=flow ") })
			if n := strings.Count(p.Log.String(), `msg="policy in report"`); n != 1 {
				t.Errorf("it was told %d times, want once:\n%s", n, p.Log.String())
			}
		})
	}
}

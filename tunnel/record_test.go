package tunnel_test

import (
	"context"
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"culvert/policy"
	"culvert/tunnel"
	"culvert/tunnel/h2"
	"culvert/tunnel/tunneltest"
)

// The one line of the entry says who refused a flow, why, and by which rule; not the rule by which the entry
// itself has let it pass.
func TestRecordNamesTheGatewayThatRefused(t *testing.T) {
	for _, tt := range []struct{ name, target, proxy, want, not string }{
		{"by a rule", "192.0.2.1:80", `"far \"1\""; error=http_request_denied; details="denied by policy"; policy="mine"; rule="no-guests", "near"; received-status=401`,
			`by="far \"1\"" rule=no-guests reason=denied `, "same-namespace"},
		{"without a rule", "192.0.2.1:80", "far; error=connection_refused", "by=far reason=denied ", "rule="},
		{"without a name", "192.0.2.1:80", `""; error=http_request_denied; rule=x`, "by=exit rule=x reason=denied ", "same-namespace"},
		{"without a word", "192.0.2.1:80", "", "by=exit reason=denied ", "rule="},
		{"by the entry", "192.0.2.2:81", "", "rule=same-namespace reason=no-route ", "by="},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := tunneltest.NewPair(t, tunneltest.Options{Entry: func(c *tunnel.Config) {
				c.Hops["exit"] = tunnel.HopConfig{Address: "10.0.0.3:15008"}
				c.Routes[0].Ports = []uint16{80}
			}})
			newFakeHop(t, p.Net, p.CA.Issue(t, "cluster.local", "default", "far"), "10.0.0.3:15008", func(s *h2.Stream) {
				defer s.Close()
				_ = s.Respond(&h2.Header{Status: 401, Fields: []h2.Field{{Name: "proxy-status", Value: tt.proxy}}}, true)
			})
			if err := p.Refusal(testContext(t), tt.target); errors.Is(err, tunneltest.ErrNotRefused) {
				t.Fatal(err)
			}
			p.Entry.Close()
			log := p.Log.String()
			if !strings.Contains(log, tt.want) || strings.Contains(log, tt.not) {
				t.Errorf("record %s, want in it %s and not %s", log, tt.want, tt.not)
			}
		})
	}
}

// The record of a flow that was cut says who has cut it.
func TestRecordOfACutFlow(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(*tunnel.Gateway)
		want string
	}{
		{"by the end of a drain", func(g *tunnel.Gateway) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
			defer cancel()
			g.Drain(ctx)
		}, "cut: the time for draining is over"},
		{"for a cause", func(g *tunnel.Gateway) {
			ctx, cancel := context.WithCancelCause(context.Background())
			cancel(errors.New("told twice"))
			g.Drain(ctx)
		}, "cut: told twice"},
		{"for no cause", func(g *tunnel.Gateway) {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			g.Drain(ctx)
		}, "cut: the drain was ended before its time"},
		{"by Close", (*tunnel.Gateway).Close, "cut: the gateway was closed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := tunneltest.NewPair(t, tunneltest.Options{})
			p.Echo(t, "10.0.0.2:80")
			app, err := p.Dial(testContext(t), "10.0.0.2:80")
			if err != nil {
				t.Fatal(err)
			}
			defer app.Close()
			tt.end(p.Entry)
			if log := p.Log.String(); !strings.Contains(log, `reason=cut err="`+tt.want+`"`) {
				t.Errorf("no record says %q: %s", tt.want, log)
			}
		})
	}
}

// The record of a flow has what policy was asked about it, and what it has said.
func TestRecordHasTheQuestion(t *testing.T) {
	const self = " self=spiffe://cluster.local/ns/default/sa/exit"
	for _, tt := range []struct {
		name   string
		exit   func(*tunnel.Config)
		addrs  []string // of shop.example
		target string
		want   string // in the record of the exit
	}{
		{"of an address of its own", nil, nil, "10.0.0.2:80", " decided=allow" + self + " local=true\n"},
		{"of a workload", func(c *tunnel.Config) {
			c.Workloads = []tunnel.WorkloadConfig{{Name: "orders", Namespace: "shop", Addresses: []string{"10.0.0.9"}}}
		}, nil, "10.0.0.9:80", " decided=allow" + self + " workload=shop/orders local=true\n"},
		{"of a gateway with a name", func(c *tunnel.Config) { c.Name = "edge" }, nil, "10.0.0.2:80", " decided=allow" + self + " workload=default/edge local=true\n"},
		{"by a route for anybody", func(c *tunnel.Config) { c.Routes[0].From = "any" }, nil, "10.0.0.2:80", self + " local=true open=routes[0]\n"},
		{"that a rule refuses", func(c *tunnel.Config) { c.Policy.Rules = denyPort("80") }, nil, "10.0.0.2:80", " decided=deny" + self + " local=true\n"},
		{"that no route takes", nil, nil, "10.0.0.3:80", " decided=allow" + self + "\n"},
		{"of a name", egressOnly, []string{"10.7.0.1"}, "shop.example:80", " dst=10.7.0.1:80 "},
		{"of a name, without its one address twice", egressOnly, []string{"10.7.0.1"}, "shop.example:80", " decided=allow" + self + " unresolved=true\n"},
		{"of a name with addresses", egressOnly, []string{"10.7.0.1", "10.7.0.2"}, "shop.example:80", " unresolved=true addrs=10.7.0.1,10.7.0.2\n"},
		{"of a name where nobody answers", egressOnly, []string{"10.7.0.1"}, "shop.example:81", " unresolved=true addrs=10.7.0.1\n"},
		{"of a name that is not known", egressOnly, nil, "shop.example:80", " unresolved=true\n"},
		{"of a name with too many addresses", egressOnly, many(20), "shop.example:80", "10.8.0.15,10.8.0.16,+4\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := tunneltest.NewPair(t, tunneltest.Options{Exit: tt.exit, ExitEnv: func(e *tunnel.Env) {
				e.Resolve = func(context.Context, string) (list []netip.Addr, err error) {
					for _, a := range tt.addrs {
						list = append(list, netip.MustParseAddr(a))
					}
					return list, nil
				}
			}})
			for _, a := range append(tt.addrs, "10.0.0.2", "10.0.0.9") {
				p.Echo(t, a+":80")
			}
			if app, err := p.Dial(testContext(t), tt.target); err == nil {
				wantEcho(t, app, "hello")
			}
			p.Entry.Close()
			waitUntil(t, "the record of the exit", func() bool { return p.Exit.Stats().Active == 0 })
			if log := p.Log.String(); !strings.Contains(log, tt.want) {
				t.Errorf("no %q in %s", tt.want, log)
			}
		})
	}
}

// A flow that is refused before policy is asked says so.
func TestRecordOfAFlowThatPolicyIsNotAskedAbout(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{Exit: func(c *tunnel.Config) {
		c.Listeners = append(c.Listeners, tunnel.ListenerConfig{Name: "plain", Kind: tunnel.KindRedirect, Address: "127.0.0.1:15006", Strict: true})
	}})
	if _, err := tunneltest.Dial(testContext(t), p.Exit, "plain", "10.0.0.2:80"); tunnel.CauseOf(err) != tunnel.CauseDenied {
		t.Fatalf("a flow at a strict listener = %v, want that it is denied", err)
	}
	waitUntil(t, "the record", func() bool { return strings.HasSuffix(p.Log.String(), "\n") })
	if log := p.Log.String(); !strings.Contains(log, " rule=strict ") || !strings.HasSuffix(log, " decided=none\n") {
		t.Errorf("the record is %s", log)
	}
}

// egressOnly makes the exit resolve shop.example.
func egressOnly(c *tunnel.Config) {
	c.Routes = []tunnel.RouteConfig{{Hosts: []string{"shop.example"}}}
}

// many returns addresses.
func many(n int) (list []string) {
	for i := range n {
		list = append(list, "10.8.0."+strconv.Itoa(i+1))
	}
	return list
}

// A field that policy may be asked about is in the record, or nobody fills it in: then ask has to, and question, and
// `gateway policy replay` reads it.
func TestRecordHasEveryFieldOfTheQuestion(t *testing.T) {
	recorded := []string{"Peer", "Self", "Host", "Addr", "Port", "Listener", "Source", "Local", "Unresolved", "Workload", "Open", "Remote", "SNI", "BadToken",
		"Token", // its name; what else it says is not
		"Time",  // by the time of the record and how long the flow has lasted
	}
	notAsked := []string{"HTTP"}
	for i := range reflect.TypeFor[policy.Request]().NumField() {
		if name := reflect.TypeFor[policy.Request]().Field(i).Name; !slices.Contains(recorded, name) && !slices.Contains(notAsked, name) {
			t.Errorf("policy.Request.%s is in no record", name)
		}
	}
}

package tunnel_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"culvert/policy"
	"culvert/tunnel"
	"culvert/tunnel/h2"
	"culvert/tunnel/tunneltest"
	"culvert/tunnel/tunneltest/memnet"
)

// chained is three gateways: apps at 10.0.0.1 go through a (10.0.0.2) and, inside of that tunnel, to b
// (10.0.0.3), which connects to its own addresses.
type chained struct {
	net         *memnet.Net
	ca          *tunneltest.CA
	entry, a, b *tunnel.Gateway
	logs        map[string]*tunneltest.Log
}

func newChained(t *testing.T, mendA, mendB func(*tunnel.Config)) *chained {
	c := &chained{net: memnet.New(), ca: tunneltest.NewCA(t), logs: map[string]*tunneltest.Log{"entry": {}, "a": {}, "b": {}}}
	start := func(name, addr string, cfg *tunnel.Config, mend func(*tunnel.Config)) *tunnel.Gateway {
		return tunneltest.NewGateway(t, c.net, addr, c.ca.Issue(t, "cluster.local", "default", name), cfg, mend, nil, logTo(c.logs[name]))
	}
	c.b = start("b", "10.0.0.3", &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "mesh", Kind: tunnel.KindHBONE, Address: "10.0.0.3:15008"}},
		Routes:    []tunnel.RouteConfig{{Destinations: []string{"local"}}},
	}, mendB)
	c.a = start("a", "10.0.0.2", &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "mesh", Kind: tunnel.KindHBONE, Address: "10.0.0.2:15008"}},
		Routes:    []tunnel.RouteConfig{{Destinations: []string{"10.0.0.3:15008"}}},
	}, mendA)
	c.entry = start("entry", "10.0.0.1", &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "apps", Kind: tunnel.KindSOCKS5, Address: "127.0.0.1:1080"}},
		Hops: map[string]tunnel.HopConfig{
			"a": {Address: "10.0.0.2:15008", Identity: "spiffe://cluster.local/ns/default/sa/a"},
			"b": {Address: "10.0.0.3:15008", Identity: "spiffe://cluster.local/ns/default/sa/b"},
		},
		Routes: []tunnel.RouteConfig{{Via: []string{"a", "b"}}},
	}, nil)
	return c
}

func TestChainIsNested(t *testing.T) {
	c := newChained(t, nil, nil)
	tunneltest.Echo(t, c.net, "10.0.0.3:80")
	for range 3 {
		conn, err := tunneltest.Dial(testContext(t), c.entry, "apps", "10.0.0.3:80")
		if err != nil {
			t.Fatal(err)
		}
		wantEcho(t, conn, "through both")
	}
	c.entry.Close()
	c.a.Close()
	c.b.Close()
	if s := c.entry.Stats(); s.TransportDials != 2 {
		t.Errorf("%d connections to hops for 3 flows, want 2: one to each", s.TransportDials)
	}
	if log := c.logs["a"].String(); strings.Contains(log, "10.0.0.3:80") || strings.Count(log, "msg=flow") != 1 {
		t.Errorf("a sees more than the next hop: %s", log)
	}
	if log := c.logs["b"].String(); !strings.Contains(log, "peer=spiffe://cluster.local/ns/default/sa/entry") || strings.Count(log, "dst=10.0.0.3:80") != 3 {
		t.Errorf("b does not see the entry's own identity and the destination: %s", log)
	}
	if log := c.logs["entry"].String(); !strings.Contains(log, "hop=a,b") {
		t.Errorf("the entry's record does not name the chain: %s", log)
	}
}

func TestChainRefusals(t *testing.T) {
	t.Run("by the near hop", func(t *testing.T) {
		c := newChained(t, func(cfg *tunnel.Config) { cfg.Routes = []tunnel.RouteConfig{{Destinations: []string{"local"}}} }, nil)
		_, err := tunneltest.Dial(testContext(t), c.entry, "apps", "10.0.0.3:80")
		var refused *tunnel.RefusedError
		if !errors.As(err, &refused) || refused.Hop != "a" || refused.Status != 400 {
			t.Errorf("dial = %v, want the refusal of a", err)
		}
	})
	t.Run("by the far hop", func(t *testing.T) {
		c := newChained(t, nil, nil)
		_, err := tunneltest.Dial(testContext(t), c.entry, "apps", "10.0.0.3:81")
		var refused *tunnel.RefusedError
		if !errors.As(err, &refused) || refused.Hop != "b" || tunnel.CauseOf(err) != tunnel.CauseRefused {
			t.Errorf("dial = %v, want the refusal of b", err)
		}
	})
}

// forwarding is a gateway that sends tunnels on to another one, hop by hop: refusals of the farther one
// come back through it.
func TestRefusalIsPassedOn(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{})
	middle := tunneltest.NewGateway(t, p.Net, "10.0.0.3", p.CA.Issue(t, "cluster.local", "default", "middle"), &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "mesh", Kind: tunnel.KindHBONE, Address: "10.0.0.3:15008"}},
		Hops:      map[string]tunnel.HopConfig{"exit": {Address: tunneltest.ExitListen}},
		Routes:    []tunnel.RouteConfig{{Via: []string{"exit"}}},
	}, nil, nil, logTo(p.Log))
	p.Echo(t, "10.0.0.2:80")
	peer := mustPeer(t, p.Net, p.CA.Issue(t, "cluster.local", "default", "client"), "10.0.0.3:15008")
	if status, proxy := peer.status("10.0.0.2:80"); status != 200 {
		t.Fatalf("answer %d, %s, want 200", status, proxy)
	}
	status, proxy := peer.status("10.0.0.2:82")
	if want := `"exit"; error=connection_refused; details="connection refused", "middle"; received-status=503`; status != 503 || proxy != want {
		t.Errorf("answer %d, %s, want 503, %s", status, proxy, want)
	}
	if got := middle.Stats().Ended["refused"]; got != 1 {
		t.Errorf("%d flows counted as refused, want 1", got)
	}
}

func TestLoops(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{
		Exit: func(c *tunnel.Config) {
			c.Listeners = append(c.Listeners, tunnel.ListenerConfig{Name: "plain", Kind: tunnel.KindForward, Address: "10.0.0.2:8080", To: "10.0.0.2:80"})
			c.Reserved = []netip.AddrPort{netip.MustParseAddrPort("10.0.0.2:15000")}
			c.Routes = append(c.Routes, meshRoute(tunnel.RouteConfig{Destinations: []string{"10.0.0.4"}, Via: []string{"10.0.0.4:15008"}}))
		},
	})
	p.Echo(t, "10.0.0.2:80")
	client := p.CA.Issue(t, "cluster.local", "default", "client")
	peer := mustPeer(t, p.Net, client, tunneltest.ExitListen)
	via := func(n int) h2.Field {
		return h2.Field{Name: "via", Value: strings.TrimSuffix(strings.Repeat("2 x, ", n), ", ")}
	}
	for _, tt := range []struct {
		name, target string
		fields       []h2.Field
		status       int
		proxy        string
	}{
		{"our own plain listener", "10.0.0.2:8080", nil, 503, "proxy_loop_detected"},
		{"the admin address", "10.0.0.2:15000", nil, 503, "proxy_loop_detected"},
		{"seven gateways", "10.0.0.2:80", []h2.Field{via(7)}, 200, ""},
		{"eight gateways", "10.0.0.2:80", []h2.Field{via(8)}, 503, "proxy_loop_detected"},
		{"eight gateways in lines of their own", "10.0.0.2:80", []h2.Field{via(4), via(4)}, 503, "proxy_loop_detected"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			status, proxy := peer.status(tt.target, tt.fields...)
			if status != tt.status || !strings.Contains(proxy, tt.proxy) {
				t.Errorf("answer %d, %s, want %d with %s", status, proxy, tt.status, tt.proxy)
			}
		})
	}
}

// What an egress reaches: names and addresses that a route or the list names, and nothing that is guarded.
func TestEgress(t *testing.T) {
	type answers map[string][]string
	for _, tt := range []struct {
		name   string
		routes []tunnel.RouteConfig
		list   []string
		dns    answers
		target string
		cause  tunnel.Cause // CauseNone: reached
	}{
		{"public address", []tunnel.RouteConfig{{}}, nil, nil, "198.41.0.4:80", tunnel.CauseNone},
		{"loopback", []tunnel.RouteConfig{{}}, nil, nil, "127.0.0.1:80", tunnel.CauseProhibited},
		{"metadata", []tunnel.RouteConfig{{}}, nil, nil, "169.254.169.254:80", tunnel.CauseProhibited},
		{"private", []tunnel.RouteConfig{{}}, nil, nil, "10.9.9.9:80", tunnel.CauseProhibited},
		{"private, the list names it", []tunnel.RouteConfig{{}}, []string{"10.9.0.0/16"}, nil, "10.9.9.9:80", tunnel.CauseNone},
		{"private, the route names it", []tunnel.RouteConfig{{Destinations: []string{"10.9.0.0/16"}}}, nil, nil, "10.9.9.9:80", tunnel.CauseNone},
		{"metadata, the route names everything", []tunnel.RouteConfig{{Destinations: []string{"0.0.0.0/0"}}}, nil, nil, "169.254.169.254:80", tunnel.CauseProhibited},
		{"mail", []tunnel.RouteConfig{{}}, nil, nil, "198.41.0.4:25", tunnel.CauseProhibited},
		{"mail, the route names it", []tunnel.RouteConfig{{Destinations: []string{"198.41.0.4:25"}}}, nil, nil, "198.41.0.4:25", tunnel.CauseNone},
		{"no route", []tunnel.RouteConfig{{Hosts: []string{"a.example"}}}, nil, nil, "198.41.0.4:80", tunnel.CauseNoRoute},
		{"name", []tunnel.RouteConfig{{}}, nil, answers{"a.example": {"198.41.0.4"}}, "a.example:80", tunnel.CauseNone},
		{"name without addresses", []tunnel.RouteConfig{{}}, nil, answers{"a.example": {}}, "a.example:80", tunnel.CauseDNS},
		{"unknown name", []tunnel.RouteConfig{{}}, nil, nil, "a.example:80", tunnel.CauseDNS},
		{"name of a private address", []tunnel.RouteConfig{{}}, nil, answers{"a.example": {"10.9.9.9"}}, "a.example:80", tunnel.CauseProhibited},
		{"name of a private address, the route names it", []tunnel.RouteConfig{{Hosts: []string{"*.example"}}}, nil, answers{"a.example": {"10.9.9.9"}}, "a.example:80", tunnel.CauseNone},
		{"rebound to loopback", []tunnel.RouteConfig{{Hosts: []string{"a.example"}}}, nil, answers{"a.example": {"127.0.0.1"}}, "a.example:80", tunnel.CauseProhibited},
		{"public and guarded", []tunnel.RouteConfig{{}}, nil, answers{"a.example": {"198.41.0.4", "169.254.169.254"}}, "a.example:80", tunnel.CauseProhibited},
		{"guarded and public", []tunnel.RouteConfig{{}}, nil, answers{"a.example": {"127.0.0.1", "198.41.0.4"}}, "a.example:80", tunnel.CauseProhibited},
		{"mapped form", []tunnel.RouteConfig{{}}, nil, answers{"a.example": {"::ffff:127.0.0.1"}}, "a.example:80", tunnel.CauseProhibited},
		{"translated form", []tunnel.RouteConfig{{}}, nil, answers{"a.example": {"64:ff9b::7f00:1"}}, "a.example:80", tunnel.CauseProhibited},
		{"first address is dead", []tunnel.RouteConfig{{}}, nil, answers{"a.example": {"198.41.0.5", "198.41.0.4"}}, "a.example:80", tunnel.CauseNone},
		{"the list names another", []tunnel.RouteConfig{{}}, []string{"b.example"}, answers{"a.example": {"198.41.0.4"}}, "a.example:80", tunnel.CauseProhibited},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := tunneltest.NewPair(t, tunneltest.Options{Exit: func(c *tunnel.Config) {
				c.Routes, c.Policy = tt.routes, policy.Config{Egress: tt.list}
			}})
			for _, addr := range []string{"198.41.0.4:80", "198.41.0.4:25", "127.0.0.1:80", "169.254.169.254:80", "10.9.9.9:80", "10.0.0.2:80"} {
				p.Echo(t, addr)
			}
			for host, list := range tt.dns {
				var addrs []netip.Addr
				for _, a := range list {
					addrs = append(addrs, netip.MustParseAddr(a))
				}
				p.Net.Name(host, addrs...)
			}
			c, err := p.Dial(testContext(t), tt.target)
			if tunnel.CauseOf(err) != tt.cause {
				t.Fatalf("dial = %v, want cause %v", err, tt.cause)
			}
			if err == nil {
				wantEcho(t, c, "out")
			}
			for _, guarded := range []string{"127.0.0.1:80", "169.254.169.254:80"} {
				if n := p.Net.Dials(netip.MustParseAddrPort(guarded)); n != 0 {
					t.Errorf("%s was dialled %d times", guarded, n)
				}
			}
		})
	}
}

// A name is resolved once: what was checked is what is dialled.
func TestNameIsResolvedOnce(t *testing.T) {
	asked := 0
	p := tunneltest.NewPair(t, tunneltest.Options{
		Exit: func(c *tunnel.Config) { c.Routes = []tunnel.RouteConfig{{}} },
		ExitEnv: func(e *tunnel.Env) {
			e.Resolve = func(context.Context, string) ([]netip.Addr, error) {
				if asked++; asked > 1 {
					return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
				}
				return []netip.Addr{netip.MustParseAddr("198.41.0.4")}, nil
			}
		},
	})
	p.Echo(t, "198.41.0.4:80")
	p.Echo(t, "127.0.0.1:80")
	c, err := p.Dial(testContext(t), "rebind.example:80")
	if err != nil {
		t.Fatal(err)
	}
	wantEcho(t, c, "x")
	if asked != 1 || p.Net.Dials(netip.MustParseAddrPort("127.0.0.1:80")) != 0 {
		t.Errorf("the name was resolved %d times, want once", asked)
	}
}

// The rule about ports of the mesh does not apply where a route names the address.
func TestMeshPortOpenedByRoute(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{Exit: func(c *tunnel.Config) {
		c.Routes = append([]tunnel.RouteConfig{meshRoute(tunnel.RouteConfig{Destinations: []string{"10.0.0.5:15008"}})}, c.Routes...)
		c.Workloads = []tunnel.WorkloadConfig{{Name: "gw", Addresses: []string{"10.0.0.5"}}}
	}})
	p.Echo(t, "10.0.0.5:15008")
	p.Echo(t, "10.0.0.5:15006")
	c, err := p.Dial(testContext(t), "10.0.0.5:15008")
	if err != nil {
		t.Fatal(err)
	}
	wantEcho(t, c, "x")
	if err := p.Refusal(testContext(t), "10.0.0.5:15006"); tunnel.CauseOf(err) != tunnel.CauseOwnPort {
		t.Errorf("dial = %v, want the port of the mesh to be refused", err)
	}
}

// A plain port that other hosts reach needs a route that is open to anybody.
func TestFlowsWithoutAnIdentity(t *testing.T) {
	for _, tt := range []struct {
		name   string
		from   string
		allow  []string
		source string
		ok     bool
	}{
		{"from another host", "", nil, "10.0.0.9", false},
		{"from another host, the route is open", "any", nil, "10.0.0.9", true},
		{"from another host, policy is open", "", []string{"any"}, "10.0.0.9", true},
		{"from this host", "", nil, "10.0.0.1", true},
		{"from loopback", "", nil, "127.0.0.1", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := tunneltest.NewPair(t, tunneltest.Options{Entry: func(c *tunnel.Config) {
				c.Listeners = []tunnel.ListenerConfig{{Name: "plain", Kind: tunnel.KindForward, Address: "10.0.0.1:8080", To: "10.0.0.2:80"}}
				c.Routes = []tunnel.RouteConfig{{From: tt.from, Via: []string{"exit"}}}
				c.Policy.Allow = tt.allow
			}})
			p.Echo(t, "10.0.0.2:80")
			c, err := p.Net.From(netip.MustParseAddr(tt.source))(testContext(t), netip.MustParseAddrPort("10.0.0.1:8080"))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if tt.ok {
				wantEcho(t, c.(interface {
					net.Conn
					CloseWrite() error
				}), "x")
				return
			}
			c.Write([]byte("x"))
			if n, err := c.Read(make([]byte, 1)); err == nil {
				t.Errorf("read %d bytes, want a reset: the flow has no identity", n)
			}
			waitUntil(t, "the record", func() bool { return p.Entry.Stats().Ended["denied"] == 1 })
		})
	}
}

package tunnel_test

import (
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"culvert/tunnel"
	"culvert/tunnel/h2"
	"culvert/tunnel/tunneltest"
	"culvert/tunnel/tunneltest/memnet"
)

// eastWest is two networks: apps at the entry (10.0.0.1) go by tunnels inside of those to the gateway ew (10.0.0.2) to the
// workload at 10.0.0.3, which it finds for the name that they ask for, and whose tunnel it does not open.
type eastWest struct {
	net            *memnet.Net
	ca             *tunneltest.CA
	entry, ew, far *tunnel.Gateway
	logs           map[string]*tunneltest.Log
}

const ordersName = "orders.shop.svc"

func newEastWest(t *testing.T, mendEW, mendFar func(*tunnel.Config)) *eastWest {
	e := &eastWest{net: memnet.New(), ca: tunneltest.NewCA(t), logs: map[string]*tunneltest.Log{"entry": {}, "ew": {}, "orders": {}}}
	start := func(name, namespace, addr string, cfg *tunnel.Config, mend func(*tunnel.Config)) *tunnel.Gateway {
		return tunneltest.NewGateway(t, e.net, addr, e.ca.Issue(t, "cluster.local", namespace, name), cfg, mend,
			func(e *tunnel.Env) { e.Resolve = resolveTo("10.0.0.3") }, logTo(e.logs[name]))
	}
	e.far = start("orders", "shop", "10.0.0.3", &tunnel.Config{
		Listeners:    []tunnel.ListenerConfig{{Name: "mesh", Kind: tunnel.KindHBONE, Address: "10.0.0.3:15008"}},
		Routes:       []tunnel.RouteConfig{{Hosts: []string{ordersName}}},
		TrustHeaders: []string{"cluster.local/ns/shop/sa/entry"},
	}, mendFar)
	e.ew = start("ew", "default", "10.0.0.2", &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "mesh", Kind: tunnel.KindHBONE, Address: "10.0.0.2:15008"}},
		Routes:    []tunnel.RouteConfig{{Hosts: []string{ordersName + ":80"}, Inner: "pass"}},
	}, func(c *tunnel.Config) {
		c.Policy.Allow = []string{"cluster.local/ns/shop/*"}
		if mendEW != nil {
			mendEW(c)
		}
	})
	e.entry = start("entry", "shop", "10.0.0.1", &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "apps", Kind: tunnel.KindSOCKS5, Address: "127.0.0.1:1080"}},
		Hops: map[string]tunnel.HopConfig{"ew": {Address: "10.0.0.2:15008", Identity: "spiffe://cluster.local/ns/default/sa/ew",
			Inner: &tunnel.InnerConfig{Identities: []string{"spiffe://cluster.local/ns/shop/sa/orders"}, Network: "net1"}}},
		Routes: []tunnel.RouteConfig{{Via: []string{"ew"}}},
	}, nil)
	return e
}

func TestInnerTunnelIsPassedUnopened(t *testing.T) {
	e := newEastWest(t, nil, nil)
	tunneltest.Echo(t, e.net, "10.0.0.3:80")
	for range 3 {
		conn, err := tunneltest.Dial(testContext(t), e.entry, "apps", ordersName+":80")
		if err != nil {
			t.Fatal(err)
		}
		wantEcho(t, conn, "from end to end")
	}
	for _, g := range []*tunnel.Gateway{e.entry, e.ew, e.far} {
		g.Close()
	}
	const id = "spiffe://cluster.local/ns/"
	if log := e.logs["ew"].String(); strings.Count(log, "msg=flow") != 1 {
		t.Errorf("the gateway between sees more than the tunnel: %s", log)
	}
	r := recordOf(t, e.logs["ew"], "msg=flow")
	if r["host"] != ordersName+":80" || r["dst"] != "10.0.0.3:15008" || r["peer"] != id+"shop/sa/entry" || r["hop_id"] != "" {
		t.Errorf("record of the gateway between %v, want the name asked for and the workload's port for tunnels", r)
	}
	for line := range strings.Lines(e.logs["entry"].String()) {
		if strings.Contains(line, "msg=flow") && (!strings.Contains(line, "hop=ew hop_id="+id+"shop/sa/orders ")) {
			t.Errorf("the entry does not name the workload at the end: %s", line)
		}
	}
	for line := range strings.Lines(e.logs["orders"].String()) {
		if strings.Contains(line, "msg=flow") && (!strings.Contains(line, "from_network=net1") || !strings.Contains(line, "peer="+id+"shop/sa/entry")) {
			t.Errorf("the workload does not know where it comes from: %s", line)
		}
	}
}

// What goes wrong at each of them is told by it.
func TestInnerTunnelRefusals(t *testing.T) {
	for _, tt := range []struct {
		name, target string
		ew, far      func(*tunnel.Config)
		cause        tunnel.Cause
		hop          string
	}{
		{"a port that the gateway between does not know", ordersName + ":81", nil, nil, tunnel.CauseNoRoute, "ew"},
		{"its policy", ordersName + ":80", func(c *tunnel.Config) { c.Policy.Allow = nil }, nil, tunnel.CauseDenied, "ew"},
		{"nobody takes tunnels at the workload", ordersName + ":80", func(c *tunnel.Config) { c.Routes[0].InnerPort = 15009 }, nil, tunnel.CauseRefused, "ew"},
		{"the workload does not serve the name", ordersName + ":80", nil, func(c *tunnel.Config) { c.Routes[0].Hosts[0] = "x.svc" }, tunnel.CauseNoRoute, ordersName + ":80"},
		{"nobody serves there", ordersName + ":80", nil, nil, tunnel.CauseRefused, ordersName + ":80"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEastWest(t, tt.ew, tt.far)
			_, err := tunneltest.Dial(testContext(t), e.entry, "apps", tt.target)
			var refused *tunnel.RefusedError
			if !errors.As(err, &refused) || refused.Hop != tt.hop || tunnel.CauseOf(err) != tt.cause {
				t.Errorf("dial = %v, want %v of %s", err, tt.cause, tt.hop)
			}
		})
	}
}

// A tunnel in which nobody says anything ends when the workload has waited for the handshake, and holds nothing until then.
func TestInnerTunnelThatIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEastWest(t, nil, nil)
		p := mustPeer(t, e.net, e.ca.Issue(t, "cluster.local", "shop", "mute"), "10.0.0.2:15008")
		var streams []*h2.Stream
		for range 20 {
			s, resp := p.connect(ordersName + ":80")
			if resp.Status != 200 {
				t.Fatalf("answer %d, want 200", resp.Status)
			}
			streams = append(streams, s)
		}
		start := time.Now()
		for _, s := range streams {
			_, err := io.ReadAll(s)
			var stream *h2.StreamError
			if err != nil && !errors.As(err, &stream) && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%v", err)
			}
			s.Close()
		}
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("they ended after %v, want the 5s of a handshake and a little", took)
		}
		synctest.Wait()
		if n := e.ew.Stats().Active; n != 0 {
			t.Errorf("%d flows are left at the gateway between", n)
		}
	})
}

// Datagrams are no inner tunnel.
func TestInnerTunnelTakesNoDatagrams(t *testing.T) {
	e := newEastWest(t, nil, nil)
	p := mustPeer(t, e.net, e.ca.Issue(t, "cluster.local", "shop", "client"), "10.0.0.2:15008")
	_, resp := p.ask(&h2.Header{Method: "CONNECT", Protocol: "connect-udp", Scheme: "https", Authority: "ew",
		Path: "/.well-known/masque/udp/" + ordersName + "/80/", Fields: []h2.Field{{Name: "capsule-protocol", Value: "?1"}}})
	if resp.Status != 500 {
		t.Errorf("answer %d, want 500", resp.Status)
	}
}

// A flow goes past the waypoint only if a trusted peer says that it comes from there.
func TestWaypointIsPassedByItsOwn(t *testing.T) {
	n, ca := memnet.New(), tunneltest.NewCA(t)
	waypoint := newFakeHop(t, n, ca.Issue(t, "cluster.local", "default", "waypoint"), "10.0.0.4:15008", echo)
	log := &tunneltest.Log{}
	tunneltest.NewGateway(t, n, "10.0.0.2", ca.Issue(t, "cluster.local", "default", "ew"), &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "mesh", Kind: tunnel.KindHBONE, Address: "10.0.0.2:15008"}},
		Hops:      map[string]tunnel.HopConfig{"waypoint": {Address: "10.0.0.4:15008", IstioSource: "gateway"}},
		Routes: []tunnel.RouteConfig{
			{Hosts: []string{ordersName}, IstioSource: []string{"waypoint"}, Inner: "pass"},
			{Hosts: []string{ordersName}, Via: []string{"waypoint"}},
		},
		TrustHeaders: []string{"cluster.local/ns/default/sa/waypoint"},
	}, nil, func(e *tunnel.Env) { e.Resolve = resolveTo("10.0.0.3") }, logTo(log))
	tunneltest.Echo(t, n, "10.0.0.3:15008")
	for _, tt := range []struct {
		name, who string
		fields    []h2.Field
		past      bool
	}{
		{"the waypoint", "waypoint", []h2.Field{{Name: "x-istio-source", Value: "waypoint"}}, true},
		{"the waypoint, as something else", "waypoint", []h2.Field{{Name: "x-istio-source", Value: "gateway"}}, false},
		{"the waypoint, in silence", "waypoint", nil, false},
		{"a stranger who says so", "client", []h2.Field{{Name: "x-istio-source", Value: "waypoint"}, {Name: "x-forwarded-network", Value: "net9"},
			{Name: "tracestate", Value: "a=b"}, {Name: "baggage", Value: "x=forged"}, {Name: "forwarded", Value: "for=192.0.2.9"}}, false},
		{"no such kind", "waypoint", []h2.Field{{Name: "x-istio-source", Value: "waypoint, waypoint"}}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := mustPeer(t, n, ca.Issue(t, "cluster.local", "default", tt.who), "10.0.0.2:15008")
			s, resp := p.connect(ordersName+":80", tt.fields...)
			if resp.Status != 200 {
				t.Fatalf("answer %d, want 200", resp.Status)
			}
			wantEcho(t, s, "hello")
			var h *h2.Header
			select {
			case h = <-waypoint.asked:
			default:
			}
			if (h == nil) != tt.past {
				t.Fatalf("it went past the waypoint: %v, want %v", h == nil, tt.past)
			}
			if h == nil {
				return
			}
			if h.Get("x-istio-source") != "gateway" || h.Get("x-forwarded-network")+h.Get("tracestate") != "" ||
				strings.Contains(h.Get("baggage")+h.Get("forwarded"), "forged") || strings.Contains(h.Get("forwarded"), "192.0.2.9") {
				t.Errorf("the waypoint gets %v, want what this gateway is, and nothing that a stranger wrote", h.Fields)
			}
		})
	}
	if strings.Contains(log.String(), "net9") {
		t.Errorf("a network that a stranger wrote is in the records: %s", log)
	}
}

// tracestate goes on with the trace of a trusted peer.
func TestTracestateGoesOn(t *testing.T) {
	n, ca := memnet.New(), tunneltest.NewCA(t)
	hop := newFakeHop(t, n, ca.Issue(t, "cluster.local", "default", "far"), "10.0.0.3:15008", echo)
	tunneltest.NewGateway(t, n, "10.0.0.2", ca.Issue(t, "cluster.local", "default", "gw"), &tunnel.Config{
		Listeners:    []tunnel.ListenerConfig{{Name: "mesh", Kind: tunnel.KindHBONE, Address: "10.0.0.2:15008"}},
		Routes:       []tunnel.RouteConfig{{Via: []string{"10.0.0.3:15008"}}},
		TrustHeaders: []string{"cluster.local/ns/default/sa/trusted"},
	}, nil, nil, logTo(&tunneltest.Log{}))
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for _, tt := range []struct{ name, who, parent, state, want string }{
		{"of a trusted peer", "trusted", trace, "rojo=1,congo=2", "rojo=1,congo=2"},
		{"of a stranger", "client", trace, "rojo=1", ""},
		{"without a trace", "trusted", "", "rojo=1", ""},
		{"not valid", "trusted", trace, "rojo", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := mustPeer(t, n, ca.Issue(t, "cluster.local", "default", tt.who), "10.0.0.2:15008")
			p.status("svc.example:80", h2.Field{Name: "traceparent", Value: tt.parent}, h2.Field{Name: "tracestate", Value: tt.state})
			if got := (<-hop.asked).Get("tracestate"); got != tt.want {
				t.Errorf("the hop gets tracestate %q, want %q", got, tt.want)
			}
		})
	}
}

// A workload with an applicationTunnel is told whose flow it is, and what it was for, on one port for all.
func TestApplicationTunnel(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{Exit: func(c *tunnel.Config) {
		c.Workloads = []tunnel.WorkloadConfig{{Name: "orders", Addresses: []string{"10.96.0.10"},
			ApplicationTunnel: &tunnel.AppTunnelConfig{Protocol: "PROXY", Port: 8085, Address: "10.0.0.2"}}}
	}})
	p.Echo(t, "10.0.0.2:8085")
	conn, err := p.Dial(testContext(t), "10.96.0.10:80")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "hello"); err != nil {
		t.Fatal(err)
	}
	_ = conn.CloseWrite()
	got, err := io.ReadAll(conn)
	const head, tail = "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x39\x0a\x00\x00\x01\x0a\x60\x00\x0a", "\x00\x50\xd0\x00\x2aspiffe://cluster.local/ns/default/sa/entryhello"
	if err != nil || !strings.HasPrefix(string(got), head) || !strings.HasSuffix(string(got), tail) || len(got) != len(head)+2+len(tail) {
		t.Errorf("the workload gets %q, %v, want the header, a port of the source and the bytes", got, err)
	}
	if _, err := p.Dial(testContext(t), "10.96.0.10:15008"); tunnel.CauseOf(err) != tunnel.CauseOwnPort {
		t.Errorf("dial of a port of the mesh = %v, want %v", err, tunnel.CauseOwnPort)
	}
}

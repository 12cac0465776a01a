package tunnel_test

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"

	"culvert/policy"
	"culvert/tunnel"
	"culvert/tunnel/tunneltest"
	"culvert/tunnel/tunneltest/memnet"
)

// doubled is an entry (10.0.0.1) that goes through a gateway (10.0.0.2), by tunnels inside of those to it, to the workload
// at 10.0.0.3, which is a gateway too. The one in the middle connects to it as to any destination.
type doubled struct {
	net                *memnet.Net
	entry, middle, far *tunnel.Gateway
	logs               map[string]*tunneltest.Log
}

func newDoubled(t *testing.T, inner tunnel.InnerConfig) *doubled {
	d := &doubled{net: memnet.New(), logs: map[string]*tunneltest.Log{"entry": {}, "a": {}, "b": {}}}
	ca := tunneltest.NewCA(t)
	start := func(name, namespace, addr string, cfg *tunnel.Config, mendEnv func(*tunnel.Env)) *tunnel.Gateway {
		return tunneltest.NewGateway(t, d.net, addr, ca.Issue(t, "cluster.local", namespace, name), cfg, nil, mendEnv, logTo(d.logs[name]))
	}
	d.far = start("b", "shop", "10.0.0.3", &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "mesh", Kind: tunnel.KindHBONE, Address: "10.0.0.3:15008"}},
		Routes:    []tunnel.RouteConfig{{Destinations: []string{"local"}}},
	}, nil)
	d.middle = start("a", "default", "10.0.0.2", &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "mesh", Kind: tunnel.KindHBONE, Address: "10.0.0.2:15008"}},
		Routes:    []tunnel.RouteConfig{{Destinations: []string{"10.0.0.3"}}},
		Policy:    policy.Config{Allow: []string{"cluster.local/ns/shop/*"}},
	}, func(e *tunnel.Env) {
		dial := e.Dial
		e.Dial = func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
			return dial(ctx, netip.AddrPortFrom(to.Addr(), 15008)) // where the workload takes inner tunnels
		}
	})
	d.entry = start("entry", "shop", "10.0.0.1", &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "apps", Kind: tunnel.KindSOCKS5, Address: "127.0.0.1:1080"}},
		Hops:      map[string]tunnel.HopConfig{"a": {Address: "10.0.0.2:15008", Identity: "spiffe://cluster.local/ns/default/sa/a", Inner: &inner}},
		Routes:    []tunnel.RouteConfig{{Via: []string{"a"}}},
	}, nil)
	return d
}

func TestInnerTunnelEndsAtTheWorkload(t *testing.T) {
	for _, tt := range []struct {
		name       string
		identities []string
		ok         bool
	}{
		{"of our namespace", nil, true},
		{"one of a list", []string{"spiffe://cluster.local/ns/shop/sa/x", "spiffe://cluster.local/ns/shop/sa/b"}, true},
		{"another", []string{"spiffe://cluster.local/ns/shop/sa/x"}, false},
		{"the gateway in the middle", []string{"spiffe://cluster.local/ns/default/sa/a"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDoubled(t, tunnel.InnerConfig{Identities: tt.identities, Network: "net1"})
			tunneltest.Echo(t, d.net, "10.0.0.3:80")
			tunneltest.Echo(t, d.net, "10.0.0.3:81")
			for _, to := range []string{"10.0.0.3:80", "10.0.0.3:80", "10.0.0.3:81"} {
				conn, err := tunneltest.Dial(testContext(t), d.entry, "apps", to)
				if !tt.ok {
					if tunnel.CauseOf(err) != tunnel.CauseHopIdentity {
						t.Errorf("Dial = %v, want a refusal for the workload's identity", err)
					}
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				wantEcho(t, conn, "through the inner tunnel")
			}
			d.entry.Close()
			d.middle.Close()
			d.far.Close()
			if log := d.logs["a"].String(); !strings.Contains(log, "dst=10.0.0.3:80") {
				t.Errorf("the middle records no flow to the workload: %s", log)
			}
			if log := d.logs["b"].String(); tt.ok != strings.Contains(log, "peer=spiffe://cluster.local/ns/shop/sa/entry") {
				t.Errorf("the workload does not see the entry's own identity: %s", log)
			}
			if log := d.logs["entry"].String(); tt.ok && !strings.Contains(log, "hop=a") {
				t.Errorf("the entry's record does not name the hop: %s", log)
			}
		})
	}
}

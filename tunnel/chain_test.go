package tunnel_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"culvert/tunnel"
	"culvert/tunnel/tunneltest"
	"culvert/tunnel/tunneltest/memnet"
)

// longChain is an entry whose apps go through n gateways, gw0 at 10.0.0.2 first, each inside of the tunnel to the one before.
// The last connects to its own addresses.
type longChain struct {
	net   *memnet.Net
	entry *tunnel.Gateway
	hops  []*tunnel.Gateway
	logs  []*tunneltest.Log // of the hops
	log   *tunneltest.Log   // of the entry
	to    string            // a server at the last
}

func newLongChain(t *testing.T, n int, mend func(i int, c *tunnel.Config)) *longChain {
	c := &longChain{net: memnet.New(), log: &tunneltest.Log{}, to: fmt.Sprintf("10.0.0.%d:80", 1+n)}
	ca := tunneltest.NewCA(t)
	entry := &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "apps", Kind: tunnel.KindSOCKS5, Address: "127.0.0.1:1080"}},
		Hops:      make(map[string]tunnel.HopConfig), Routes: make([]tunnel.RouteConfig, 1),
	}
	for i := range n {
		addr, name := fmt.Sprintf("10.0.0.%d", 2+i), fmt.Sprintf("gw%d", i)
		cfg := &tunnel.Config{
			Listeners: []tunnel.ListenerConfig{{Name: "mesh", Kind: tunnel.KindHBONE, Address: addr + ":15008"}},
			Routes:    []tunnel.RouteConfig{{Destinations: []string{fmt.Sprintf("10.0.0.%d:15008", 3+i)}}},
		}
		if i == n-1 {
			cfg.Routes[0].Destinations = []string{"local"}
		}
		if mend != nil {
			mend(i, cfg)
		}
		c.logs = append(c.logs, &tunneltest.Log{})
		c.hops = append(c.hops, tunneltest.NewGateway(t, c.net, addr, ca.Issue(t, "cluster.local", "default", name), cfg, nil, nil, logTo(c.logs[i])))
		entry.Hops[name] = tunnel.HopConfig{Address: addr + ":15008", Identity: "spiffe://cluster.local/ns/default/sa/" + name}
		entry.Routes[0].Via = append(entry.Routes[0].Via, name)
	}
	c.entry = tunneltest.NewGateway(t, c.net, "10.0.0.1", ca.Issue(t, "cluster.local", "default", "entry"), entry, nil, nil, logTo(c.log))
	tunneltest.Echo(t, c.net, c.to)
	return c
}

func TestLongChain(t *testing.T) {
	for _, n := range []int{3, 4, 8} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			c := newLongChain(t, n, nil)
			for range 2 {
				conn, err := tunneltest.Dial(testContext(t), c.entry, "apps", c.to)
				if err != nil {
					t.Fatal(err)
				}
				wantEcho(t, conn, "through all")
			}
			c.entry.Close()
			for i, g := range c.hops {
				g.Close()
				log := c.logs[i].String()
				if !strings.Contains(log, "peer=spiffe://cluster.local/ns/default/sa/entry") {
					t.Errorf("gw%d does not see the entry itself: %s", i, log)
				}
				if next := fmt.Sprintf("dst=10.0.0.%d:15008", 3+i); i < n-1 && (strings.Count(log, "msg=flow") != 1 || !strings.Contains(log, next)) {
					t.Errorf("gw%d sees more, or less, than the next hop: %s", i, log)
				}
			}
		})
	}
}

// Each gateway of a chain has its own policy, and its no is told as its own.
func TestLongChainRefusals(t *testing.T) {
	const n = 4
	for refuses := range n {
		t.Run(fmt.Sprintf("by gw%d", refuses), func(t *testing.T) {
			c := newLongChain(t, n, func(i int, c *tunnel.Config) {
				if i == refuses {
					c.Policy.Rules = append(denyPort("15008"), denyPort("80")...)
					c.Policy.Rules[0].Name = "shut"
				}
			})
			_, err := tunneltest.Dial(testContext(t), c.entry, "apps", c.to)
			var refused *tunnel.RefusedError
			if name := fmt.Sprintf("gw%d", refuses); !errors.As(err, &refused) || refused.Hop != name || refused.ID.ServiceAccount() != name || refused.Status != 401 {
				t.Errorf("dial = %v, want a refusal by %s", err, name)
			}
			c.entry.Close()
			r := recordOf(t, c.log, "reason=denied")
			if r["hop"] != "gw0,gw1,gw2,gw3" || r["by"] != fmt.Sprintf("gw%d", refuses) || (r["rule"] == "closed") != (refuses == n-1) || r["rule"] == "" {
				t.Errorf("record %v, want the chain, who refused, and by which rule", r)
			}
		})
	}
}

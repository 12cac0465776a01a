package tunnel_test

import (
	"testing"

	"culvert/tunnel"
	"culvert/tunnel/endpoint"
	"culvert/tunnel/tunneltest"
)

// ordersAt is the service of these tests with its endpoints.
func ordersAt(addresses ...string) map[string]tunnel.ServiceConfig {
	s := tunnel.ServiceConfig{Addresses: []string{"10.96.0.10"}, Ports: map[uint16]uint16{80: 8080}}
	for _, a := range addresses {
		s.Endpoints = append(s.Endpoints, endpoint.EndpointConfig{Address: a, Tun: endpoint.TunHBONE,
			Identities: []string{"spiffe://cluster.local/ns/shop/sa/orders"}})
	}
	return map[string]tunnel.ServiceConfig{ordersName: s}
}

// An inner tunnel goes to the port for tunnels of an endpoint, whatever port the service has there, and to another endpoint
// where one is gone.
func TestInnerTunnelGoesToAnEndpoint(t *testing.T) {
	e := newEastWest(t, func(c *tunnel.Config) { c.Services = ordersAt("10.0.0.9:8080", "10.0.0.3:8080") }, nil)
	tunneltest.Echo(t, e.net, "10.0.0.3:80")
	for range 8 {
		p := mustPeer(t, e.net, e.ca.Issue(t, "cluster.local", "shop", "client"), "10.0.0.2:15008")
		if status, proxy := p.status(ordersName + ":80"); status != 200 {
			t.Errorf("answer %d, %s, want 200: one of the endpoints is there", status, proxy)
		}
	}
	conn, err := tunneltest.Dial(testContext(t), e.entry, "apps", ordersName+":80")
	if err != nil {
		t.Fatal(err)
	}
	wantEcho(t, conn, "from end to end")
	e.entry.Close()
	e.ew.Close()
	if r := recordOf(t, e.logs["ew"], "peer=spiffe://cluster.local/ns/shop/sa/entry"); r["dst"] != "10.0.0.3:15008" || r["hop_id"] != "" {
		t.Errorf("record %v, want the endpoint's port for tunnels, and no identity, as nobody has looked", r)
	}
}

// A waypoint is asked for a service by its virtual address or its name, and opens a tunnel to an endpoint for its address and
// port, under its own identity.
func TestWaypointOpensTunnelsToEndpoints(t *testing.T) {
	e := newEastWest(t, func(c *tunnel.Config) {
		c.Services = ordersAt("10.0.0.3:80")
		c.Routes = []tunnel.RouteConfig{{Hosts: []string{ordersName + ":80"}, Destinations: []string{"10.96.0.10:80"}}}
	}, func(c *tunnel.Config) {
		c.Routes = []tunnel.RouteConfig{{Destinations: []string{"local"}}}
		c.Policy.Allow = []string{"cluster.local/ns/default/sa/ew"}
	})
	tunneltest.Echo(t, e.net, "10.0.0.3:80")
	p := mustPeer(t, e.net, e.ca.Issue(t, "cluster.local", "shop", "client"), "10.0.0.2:15008")
	for _, authority := range []string{"10.96.0.10:80", ordersName + ":80"} {
		s, resp := p.connect(authority)
		if resp.Status != 200 {
			t.Fatalf("%s: answer %d, %s, want 200", authority, resp.Status, resp.Get("proxy-status"))
		}
		wantEcho(t, s, "by the waypoint")
	}
	if status, _ := p.status("10.96.0.10:81"); status == 200 {
		t.Error("a port that the service does not have was taken")
	}
	e.ew.Close()
	e.far.Close()
	const id = "spiffe://cluster.local/ns/"
	if r := recordOf(t, e.logs["orders"], "flow=1 "); r["peer"] != id+"default/sa/ew" || r["dst"] != "10.0.0.3:80" || r["via"] == "" {
		t.Errorf("the workload's record %v, want the waypoint's identity, the workload's own address, and the way", r)
	}
	if r := recordOf(t, e.logs["ew"], "flow=1 "); r["peer"] != id+"shop/sa/client" || r["hop_id"] != id+"shop/sa/orders" {
		t.Errorf("the waypoint's record %v, want both identities", r)
	}
}

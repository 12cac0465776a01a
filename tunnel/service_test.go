package tunnel_test

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"culvert/policy"
	"culvert/tunnel"
	"culvert/tunnel/endpoint"
	"culvert/tunnel/tunneltest"
	"culvert/tunnel/tunneltest/memnet"
)

// stall is a gateway (10.0.0.1) with the service orders.shop.svc, also known as 10.96.0.10.
type stall struct {
	net *memnet.Net
	ca  *tunneltest.CA
	gw  *tunnel.Gateway
	cfg *tunnel.Config
	log tunneltest.Log
}

const (
	orders    = "orders.shop.svc"
	ordersVIP = "10.96.0.10"
)

// newStall starts the gateway. Its only route takes every destination, if mend does not make another one.
func newStall(t *testing.T, s tunnel.ServiceConfig, mend func(*tunnel.Config), env func(*tunnel.Env)) *stall {
	p := &stall{net: memnet.New(), ca: tunneltest.NewCA(t)}
	s.Addresses = []string{ordersVIP}
	p.cfg = &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "apps", Kind: tunnel.KindSOCKS5, Address: "127.0.0.1:1080"}},
		Services:  map[string]tunnel.ServiceConfig{orders: s},
		Routes:    []tunnel.RouteConfig{{}},
	}
	p.gw = tunneltest.NewGateway(t, p.net, "10.0.0.1", p.ca.Issue(t, "cluster.local", "default", "gw"), p.cfg, mend, env, logTo(&p.log))
	return p
}

// named serves connections to address with a greeting.
func (p *stall) named(t *testing.T, address, greeting string) {
	tunneltest.Serve(t, p.net, address, func(c *memnet.Conn) {
		_, _ = c.Write([]byte(greeting))
		_, _ = io.Copy(io.Discard, c)
		_ = c.Close()
	})
}

func (p *stall) dial(target string) (*memnet.Conn, error) {
	return tunneltest.Dial(context.Background(), p.gw, "apps", target)
}

// greeting dials and returns what is said there, or why it could not be reached.
func (p *stall) greeting(t *testing.T, target string) string {
	t.Helper()
	c, err := p.dial(target)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	b := make([]byte, 1)
	if _, err := io.ReadFull(c, b); err != nil {
		return err.Error()
	}
	return string(b)
}

func (p *stall) service() (endpoint.Stats, map[string]endpoint.Info) {
	all := make(map[string]endpoint.Info)
	for _, i := range p.gw.Endpoints() {
		if i.Kind != "service" || i.Name != orders {
			continue
		}
		for _, e := range i.Endpoints {
			all[e.Address] = e
		}
		return i.Stats, all
	}
	return endpoint.Stats{}, all
}

func endpoints(list ...string) (c endpoint.Config) {
	for _, address := range list {
		c.Endpoints = append(c.Endpoints, endpoint.EndpointConfig{Address: address})
	}
	return c
}

func TestServicePorts(t *testing.T) {
	for _, tc := range []struct {
		name    string
		ports   map[uint16]uint16
		address string
		asked   uint16
		want    string // the greeting is the port's first digit
	}{
		{"the same", nil, "10.0.1.1", 8080, "8"},
		{"of the service", map[uint16]uint16{80: 8080, 443: 9443}, "10.0.1.1", 80, "8"},
		{"another of the service", map[uint16]uint16{80: 8080, 443: 9443}, "10.0.1.1", 443, "9"},
		{"of the endpoint", map[uint16]uint16{80: 8080}, "10.0.1.1:9443", 80, "9"},
		{"of the endpoint alone", nil, "10.0.1.1:9443", 1, "9"},
		{"none", map[uint16]uint16{80: 8080}, "10.0.1.1:9443", 81, "no endpoint: service orders.shop.svc has no port 81"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newStall(t, tunnel.ServiceConfig{Ports: tc.ports, Config: endpoints(tc.address)}, nil, nil)
				p.named(t, "10.0.1.1:8080", "8")
				p.named(t, "10.0.1.1:9443", "9")
				for _, host := range []string{orders, "Orders.Shop.svc.", ordersVIP} {
					if got := p.greeting(t, fmt.Sprintf("%s:%d", host, tc.asked)); got != tc.want {
						t.Errorf("%s answers %q, want %q", host, got, tc.want)
					}
				}
			})
		})
	}
}

// TestServiceRoutes: the service is taken by its name or by its virtual address, and one that goes through a hop stays as it was asked for.
func TestServiceRoutes(t *testing.T) {
	for _, tc := range []struct {
		name  string
		route tunnel.RouteConfig
		host  string
		want  string
	}{
		{"name by name", tunnel.RouteConfig{Hosts: []string{"*.shop.svc"}}, orders, "8"},
		{"address by name", tunnel.RouteConfig{Hosts: []string{orders + ":80"}}, ordersVIP, "8"},
		{"address by range", tunnel.RouteConfig{Destinations: []string{"10.96.0.0/12"}}, ordersVIP, "8"},
		{"name by address", tunnel.RouteConfig{Destinations: []string{ordersVIP}}, orders, "8"},
		{"neither", tunnel.RouteConfig{Hosts: []string{"other.svc"}}, orders, "no route"},
		{"another port", tunnel.RouteConfig{Hosts: []string{orders}, Ports: []uint16{81}}, ordersVIP, "no route"},
		{"through a hop", tunnel.RouteConfig{Via: []string{"10.0.5.5:15008"}}, ordersVIP, "hop 10.0.5.5:15008"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newStall(t, tunnel.ServiceConfig{Config: endpoints("10.0.1.1:8080")}, func(c *tunnel.Config) { c.Routes = []tunnel.RouteConfig{tc.route} }, nil)
				p.named(t, "10.0.1.1:8080", "8")
				if got := p.greeting(t, tc.host+":80"); !strings.Contains(got, tc.want) {
					t.Errorf("%s answers %q, want %q", tc.host, got, tc.want)
				}
			})
		})
	}
}

// TestPolicyIsAskedAboutEndpoints: about the address and port that is dialled, with the name of the service.
func TestPolicyIsAskedAboutEndpoints(t *testing.T) {
	deny := func(r policy.Rule) []policy.Rules {
		return []policy.Rules{{Name: "d", Action: policy.ActionDeny, Rules: []policy.Rule{r}}}
	}
	port := func(port string) policy.Rule { return policy.Rule{To: []policy.Operation{{Ports: []string{port}}}} }
	host := func(host string) policy.Rule { return policy.Rule{To: []policy.Operation{{Hosts: []string{host}}}} }
	address := func(cidr string) policy.Rule {
		return policy.Rule{When: []policy.Condition{{Key: "destination.ip", Values: []string{cidr}}}}
	}
	for _, tc := range []struct {
		name string
		rule policy.Rule
		want string
	}{
		{"denies the address", address("10.0.1.1"), "denied by policy"},
		{"denies another address", address("10.0.1.2"), "8"},
		{"denies the virtual address", address(ordersVIP), "8"},
		{"denies the port of the endpoint", port("8080"), "denied by policy"},
		{"denies the port that was asked for", port("80"), "8"},
		{"denies the name", host(orders), "denied by policy"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newStall(t, tunnel.ServiceConfig{Config: endpoints("10.0.1.1:8080")}, func(c *tunnel.Config) { c.Policy.Rules = deny(tc.rule) }, nil)
				p.named(t, "10.0.1.1:8080", "8")
				for _, host := range []string{orders, ordersVIP} {
					if got := p.greeting(t, host+":80"); !strings.HasPrefix(got, tc.want) {
						t.Errorf("%s answers %q, want %q", host, got, tc.want)
					}
				}
				if st, _ := p.service(); st.Ejections+st.Retries != 0 {
					t.Errorf("stats = %+v, want that policy blames no endpoint", st)
				}
				if tc.want == "8" && p.net.Dials(netip.MustParseAddrPort("10.0.1.1:8080")) != 2 || tc.want != "8" && p.net.Dials(netip.MustParseAddrPort("10.0.1.1:8080")) != 0 {
					t.Error("what was refused was dialled")
				}
			})
		})
	}
}

// TestPolicyAboutAnotherEndpoint: the first refuses connections, and policy the second.
func TestPolicyAboutAnotherEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newStall(t, tunnel.ServiceConfig{Config: endpoints("10.0.1.1:8080", "10.0.1.2:8080")}, func(c *tunnel.Config) {
			c.Policy.Rules = []policy.Rules{{Name: "d", Action: policy.ActionDeny, Rules: []policy.Rule{
				{When: []policy.Condition{{Key: "destination.ip", Values: []string{"10.0.1.2"}}}},
			}}}
		}, nil)
		p.named(t, "10.0.1.2:8080", "8")
		for range 20 {
			if got := p.greeting(t, orders+":80"); !strings.HasPrefix(got, "denied by policy") {
				t.Errorf("answer %q, want that policy denies it", got)
			}
		}
		if n := p.net.Dials(netip.MustParseAddrPort("10.0.1.2:8080")); n != 0 {
			t.Errorf("it was dialled %d times", n)
		}
	})
}

// TestServiceTriesAnotherEndpoint: no flow fails while one endpoint is left, and the record says which it was.
func TestServiceTriesAnotherEndpoint(t *testing.T) {
	for name, silent := range map[string]bool{"refuses": false, "hangs": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newStall(t, tunnel.ServiceConfig{Config: endpoints("10.0.1.1:8080", "10.0.1.2:8080")}, nil, nil)
				p.named(t, "10.0.1.2:8080", "2")
				if silent {
					p.net.Silence(netip.MustParseAddrPort("10.0.1.1:8080"))
				}
				for range 12 {
					if got := p.greeting(t, orders+":80"); got != "2" {
						t.Fatalf("answer %q, want that of the second", got)
					}
				}
				synctest.Wait()
				st, all := p.service()
				if all["10.0.1.1:8080"].Health != "ejected" || st.Retries < 3 || st.Flows != 0 || st.Pending != 0 {
					t.Errorf("stats = %+v, endpoints = %+v, want the first ejected after 3 retries", st, all)
				}
				if !strings.Contains(p.log.String(), "host=orders.shop.svc:80 dst=10.0.1.2:8080 endpoint=10.0.1.2:8080") {
					t.Errorf("no record names the service and the endpoint:\n%s", p.log.String())
				}
			})
		})
	}
}

// TestEndpointThatHangsUp accepts and closes, or resets, what nobody has said anything on: that is ejected. Where the app has said
// something first, it may be that what it does not like.
func TestEndpointThatHangsUp(t *testing.T) {
	for _, tc := range []struct {
		name  string
		reset bool
		talks bool
		want  string
	}{{"closes", false, false, "ejected"}, {"resets", true, false, "ejected"}, {"closes on what it is told", false, true, "ok"}} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newStall(t, tunnel.ServiceConfig{Config: endpoints("10.0.1.1:8080", "10.0.1.2:8080")}, nil, nil)
				p.named(t, "10.0.1.2:8080", "2")
				tunneltest.Serve(t, p.net, "10.0.1.1:8080", func(c *memnet.Conn) {
					if tc.talks {
						_, _ = c.Read(make([]byte, 1))
					}
					if tc.reset {
						_ = c.SetLinger(0)
					}
					_ = c.Close()
				})
				for range 20 {
					c, err := p.dial(orders + ":80")
					if err != nil {
						t.Fatal(err)
					}
					if tc.talks {
						_, _ = c.Write([]byte("x"))
					}
					_, _ = c.Read(make([]byte, 1))
					_ = c.Close()
					synctest.Wait()
				}
				if _, all := p.service(); all["10.0.1.1:8080"].Health != tc.want {
					t.Errorf("it has %+v, want %s", all["10.0.1.1:8080"], tc.want)
				}
			})
		})
	}
}

// TestServiceGuard: the addresses of the configuration are as good as written in a route, those of DNS are judged by what opens the
// service's name.
func TestServiceGuard(t *testing.T) {
	dns := endpoint.Config{DNS: endpoint.DNSConfig{Name: "orders.internal", Port: 8080}}
	srv := endpoint.Config{DNS: endpoint.DNSConfig{Name: "_orders._tcp.internal", Type: endpoint.TypeSRV}}
	for _, tc := range []struct {
		name   string
		conf   endpoint.Config
		route  tunnel.RouteConfig
		egress []string
		addr   string
		port   uint16 // of SRV
		want   string
	}{
		{"private, written", endpoints("10.0.1.1:8080"), tunnel.RouteConfig{}, nil, "", 0, "8"},
		{"loopback, written", endpoints("127.0.0.1:8080"), tunnel.RouteConfig{}, nil, "", 0, "8"},
		{"private, of DNS", dns, tunnel.RouteConfig{}, nil, "10.0.1.1", 0, "no endpoint"},
		{"private, of DNS, and a route names the service", dns, tunnel.RouteConfig{Hosts: []string{orders + ":80"}}, nil, "10.0.1.1", 0, "8"},
		{"private, of DNS, and a route names the range", dns, tunnel.RouteConfig{Hosts: []string{orders}, Destinations: []string{"10.0.0.0/8"}}, nil, "10.0.1.1", 0, "8"},
		{"private, of DNS, and the list names what is looked up", dns, tunnel.RouteConfig{}, []string{"orders.internal"}, "10.0.1.1", 0, "8"},
		{"public, of DNS", dns, tunnel.RouteConfig{}, nil, "192.0.2.1", 0, "no endpoint"}, // documentation addresses are guarded
		{"loopback, of DNS", dns, tunnel.RouteConfig{Hosts: []string{orders}}, nil, "127.0.0.1", 0, "no endpoint"},
		{"metadata, of DNS", dns, tunnel.RouteConfig{Hosts: []string{orders}}, nil, "169.254.169.254", 0, "no endpoint"},
		{"mapped metadata, of DNS", dns, tunnel.RouteConfig{Hosts: []string{orders}}, nil, "::ffff:169.254.169.254", 0, "no endpoint"},
		{"SRV", srv, tunnel.RouteConfig{Hosts: []string{orders}}, nil, "10.0.1.1", 8080, "8"},
		{"SRV to the port of SSH", srv, tunnel.RouteConfig{Hosts: []string{orders}}, nil, "10.0.1.1", 22, "no endpoint"},
		{"SRV to an administrative port", srv, tunnel.RouteConfig{Hosts: []string{orders}}, nil, "10.0.1.1", 15000, "no endpoint"},
		{"a name, written", endpoints("orders.internal:8080"), tunnel.RouteConfig{}, nil, "10.0.1.1", 0, "destination is not allowed"},
		{"a name, written, and a route names the service", endpoints("orders.internal:8080"), tunnel.RouteConfig{Hosts: []string{orders}}, nil, "10.0.1.1", 0, "8"},
		{"a name that means loopback", endpoints("orders.internal:8080"), tunnel.RouteConfig{Hosts: []string{orders}}, nil, "127.0.0.1", 0, "destination is not allowed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newStall(t, tunnel.ServiceConfig{Config: tc.conf}, func(c *tunnel.Config) {
					c.Routes, c.Policy.Egress = []tunnel.RouteConfig{tc.route}, tc.egress
				}, func(e *tunnel.Env) {
					e.Lookup = func(_ context.Context, _ string, kind endpoint.Kind) ([]endpoint.Answer, time.Duration, error) {
						if kind == endpoint.Services {
							return []endpoint.Answer{{Host: "a.internal", Port: tc.port}}, 0, nil
						}
						return []endpoint.Answer{{Addr: netip.MustParseAddr(tc.addr)}}, 0, nil
					}
				})
				if tc.addr != "" {
					p.net.Name("orders.internal", netip.MustParseAddr(tc.addr))
				}
				for _, a := range []string{"10.0.1.1:8080", "127.0.0.1:8080", "192.0.2.1:8080", "169.254.169.254:8080", "10.0.1.1:22", "10.0.1.1:15000"} {
					p.named(t, a, "8")
				}
				got := p.greeting(t, orders+":80")
				if !strings.HasPrefix(got, tc.want) {
					t.Errorf("answer %q, want %q", got, tc.want)
				}
				for _, a := range []string{"127.0.0.1:8080", "169.254.169.254:8080", "10.0.1.1:22", "10.0.1.1:15000"} {
					if tc.want != "8" && p.net.Dials(netip.MustParseAddrPort(a)) != 0 {
						t.Errorf("%s was dialled", a)
					}
				}
			})
		})
	}
}

// TestReloadClosesTheGuard: a route that opened the addresses is gone.
func TestReloadClosesTheGuard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newStall(t, tunnel.ServiceConfig{Config: endpoint.Config{DNS: endpoint.DNSConfig{Name: "orders.internal", Port: 8080}}}, func(c *tunnel.Config) {
			c.Routes = []tunnel.RouteConfig{{Hosts: []string{orders}}}
		}, nil)
		p.net.Name("orders.internal", netip.MustParseAddr("10.0.1.1"))
		p.named(t, "10.0.1.1:8080", "8")
		time.Sleep(time.Minute)
		if got := p.greeting(t, orders+":80"); got != "8" {
			t.Fatalf("answer %q, want 8", got)
		}
		p.cfg.Routes = []tunnel.RouteConfig{{}}
		if err := p.gw.Reload(t.Context(), p.cfg); err != nil {
			t.Fatal(err)
		}
		if got := p.greeting(t, orders+":80"); !strings.HasPrefix(got, "no endpoint") {
			t.Errorf("answer %q, want that there is no endpoint", got)
		}
	})
}

// TestWaypoint: a tunnel to a workload is asked for at port 15008 of its address, for its address and port, under the gateway's own
// identity, and whoever is there has to be who it should be.
func TestWaypoint(t *testing.T) {
	for _, tc := range []struct {
		name       string
		identities []string
		want       string
	}{
		{"of our namespace", nil, "the next hop is not who it should be"},
		{"one of a list", []string{"spiffe://cluster.local/ns/shop/sa/x", "spiffe://cluster.local/ns/shop/sa/orders"}, "8"},
		{"another", []string{"spiffe://cluster.local/ns/shop/sa/x"}, "the next hop is not who it should be"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newStall(t, tunnel.ServiceConfig{Ports: map[uint16]uint16{80: 8080}, Config: endpoint.Config{Endpoints: []endpoint.EndpointConfig{
					{Address: "10.0.1.1", Tun: endpoint.TunHBONE, Identities: tc.identities},
				}}}, nil, nil)
				var log tunneltest.Log
				tunneltest.NewGateway(t, p.net, "10.0.1.1", p.ca.Issue(t, "cluster.local", "shop", "orders"), &tunnel.Config{
					Listeners: []tunnel.ListenerConfig{{Name: "mesh", Kind: tunnel.KindHBONE, Address: "10.0.1.1:15008"}},
					Routes:    []tunnel.RouteConfig{{Destinations: []string{"local"}}},
					Policy:    policy.Config{Allow: []string{"cluster.local/ns/default/sa/gw"}},
				}, nil, nil, logTo(&log))
				p.named(t, "10.0.1.1:8080", "8")
				if got := p.greeting(t, ordersVIP+":80"); !strings.Contains(got, tc.want) {
					t.Errorf("answer %q, want %q", got, tc.want)
				}
				synctest.Wait()
				if tc.want == "8" && (!strings.Contains(log.String(), "peer=spiffe://cluster.local/ns/default/sa/gw dst=10.0.1.1:8080") ||
					!strings.Contains(p.log.String(), "host=orders.shop.svc:80 dst=10.0.1.1:8080 endpoint=10.0.1.1 hop_id=spiffe://cluster.local/ns/shop/sa/orders") ||
					!strings.Contains(p.log.String(), " port=8080 ")) {
					t.Errorf("records:\n%s\n%s", p.log.String(), log.String())
				}
			})
		})
	}
}

// TestWaypointTriesAnotherWorkload: the first workload's gateway is there, and the workload behind it is not.
func TestWaypointTriesAnotherWorkload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var list []endpoint.EndpointConfig
		for i := range 2 {
			list = append(list, endpoint.EndpointConfig{Address: fmt.Sprintf("10.0.1.%d:8080", i+1), Tun: endpoint.TunHBONE})
		}
		p := newStall(t, tunnel.ServiceConfig{Config: endpoint.Config{Endpoints: list}}, nil, nil)
		for i := range 2 {
			host := fmt.Sprintf("10.0.1.%d", i+1)
			tunneltest.NewGateway(t, p.net, host, p.ca.Issue(t, "cluster.local", "default", "orders"), &tunnel.Config{
				Listeners: []tunnel.ListenerConfig{{Name: "mesh", Kind: tunnel.KindHBONE, Address: host + ":15008"}},
				Routes:    []tunnel.RouteConfig{{Destinations: []string{"local"}}},
			}, nil, nil, logTo(new(tunneltest.Log)))
		}
		p.named(t, "10.0.1.2:8080", "2")
		for range 12 {
			if got := p.greeting(t, orders+":80"); got != "2" {
				t.Fatalf("answer %q, want that of the second", got)
			}
		}
		if _, all := p.service(); all["10.0.1.1:8080"].Health != "ejected" {
			t.Errorf("the first has %+v, want that it is ejected", all["10.0.1.1:8080"])
		}
	})
}

// TestServiceIsProbed with GETs, plain and by a tunnel.
func TestServiceIsProbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newStall(t, tunnel.ServiceConfig{Config: endpoint.Config{
			Endpoints: []endpoint.EndpointConfig{{Address: "10.0.1.1:8080"}, {Address: "10.0.1.2:8080"}, {Address: "10.0.1.3:8080", Tun: endpoint.TunHBONE}},
			Health:    endpoint.HealthConfig{Probe: endpoint.ProbeHTTP},
		}}, nil, nil)
		for i, status := range []int{200, 503, 204} {
			tunneltest.Serve(t, p.net, fmt.Sprintf("10.0.1.%d:8080", i+1), func(c *memnet.Conn) {
				_, _ = c.Read(make([]byte, 1000))
				_, _ = fmt.Fprintf(c, "HTTP/1.1 %d x\r\n\r\n", status)
				_ = c.Close()
			})
		}
		tunneltest.NewGateway(t, p.net, "10.0.1.3", p.ca.Issue(t, "cluster.local", "default", "orders"), &tunnel.Config{
			Listeners: []tunnel.ListenerConfig{{Name: "mesh", Kind: tunnel.KindHBONE, Address: "10.0.1.3:15008"}},
			Routes:    []tunnel.RouteConfig{{Destinations: []string{"local"}}},
		}, nil, nil, logTo(new(tunneltest.Log)))
		time.Sleep(time.Minute)
		_, all := p.service()
		if got := all["10.0.1.1:8080"].Health + all["10.0.1.2:8080"].Health + all["10.0.1.3:8080"].Health; got != "okdownok" {
			t.Errorf("endpoints = %+v, want ok, down, ok", all)
		}
		if all["10.0.1.3:8080"].LastFailure != "" {
			t.Errorf("the one behind a tunnel has failed: %s", all["10.0.1.3:8080"].LastFailure)
		}
	})
}

// TestReloadBesideLiveFlows changes the endpoints of a service again and again while flows come, live and end.
func TestReloadBesideLiveFlows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list := []string{"10.0.1.1:8080", "10.0.1.2:8080", "10.0.1.3:8080"}
		p := newStall(t, tunnel.ServiceConfig{Config: endpoints(list...)}, nil, nil)
		for _, a := range list {
			tunneltest.Echo(t, p.net, a)
		}
		var live []*memnet.Conn
		for i := range 30 {
			c, err := p.dial(orders + ":80")
			if err != nil {
				t.Fatal(err)
			}
			live = append(live, c)
			p.cfg.Services[orders] = tunnel.ServiceConfig{Addresses: []string{ordersVIP}, Config: endpoints(list[i%3], list[(i+1)%3])}
			if err := p.gw.Reload(t.Context(), p.cfg); err != nil {
				t.Fatal(err)
			}
			for _, c := range live {
				says(t, c, "still here")
			}
		}
		if st, _ := p.service(); st.Flows != 30 {
			t.Errorf("%d flows, want 30", st.Flows)
		}
		for _, c := range live {
			_ = c.Close()
		}
		synctest.Wait()
		if st, _ := p.service(); st.Flows != 0 || p.gw.Stats().Ended["ok"] != 30 {
			t.Errorf("%d flows left, ended = %v, want that 30 have ended well", st.Flows, p.gw.Stats().Ended)
		}
	})
}

func TestServiceLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := endpoints("10.0.1.1:8080")
		c.Limits.Flows = 2
		p := newStall(t, tunnel.ServiceConfig{Config: c}, nil, nil)
		tunneltest.Echo(t, p.net, "10.0.1.1:8080")
		var live []*memnet.Conn
		for range 2 {
			c, err := p.dial(orders + ":80")
			if err != nil {
				t.Fatal(err)
			}
			live = append(live, c)
		}
		if _, err := p.dial(orders + ":80"); tunnel.CauseOf(err) != tunnel.CauseCircuit {
			t.Errorf("dial = %v, want the limit", err)
		}
		_ = live[0].Close()
		synctest.Wait()
		c2, err := p.dial(orders + ":80")
		if err != nil {
			t.Fatalf("dial when one is over = %v", err)
		}
		says(t, c2, "there is room again")
	})
}

package tunnel

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"culvert/capture"
	"culvert/policy"
	"culvert/tunnel/endpoint"
)

func TestRouteMatch(t *testing.T) {
	target := func(s string) Target {
		got, err := ParseAuthority(s)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	for _, tt := range []struct {
		name    string
		route   RouteConfig
		takes   []string // "local:" in front: the address is this host's own
		refuses []string
	}{
		{"everything", RouteConfig{}, []string{"a:1", "192.0.2.1:1"}, nil},
		{"star", RouteConfig{Hosts: []string{"*"}}, []string{"a:1", "[2001:db8::1]:1"}, nil},
		{"star with a port", RouteConfig{Hosts: []string{"*:80"}}, []string{"a:80", "192.0.2.1:80"}, []string{"a:81"}},
		{"name", RouteConfig{Hosts: []string{"Orders.shop.svc."}}, []string{"orders.shop.svc:80"}, []string{"shop.svc:80", "xorders.shop.svc:80", "192.0.2.1:80"}},
		{"name and port", RouteConfig{Hosts: []string{"a.b:80"}}, []string{"a.b:80"}, []string{"a.b:81"}},
		{"names below", RouteConfig{Hosts: []string{"*.shop.svc"}}, []string{"a.shop.svc:1", "a.b.shop.svc:1"}, []string{"shop.svc:1", "ashop.svc:1"}},
		{"ports", RouteConfig{Hosts: []string{"a"}, Ports: []uint16{80, 443}}, []string{"a:80", "a:443"}, []string{"a:81"}},
		{"local", RouteConfig{Destinations: []string{"local"}}, []string{"local:192.0.2.1:80"}, []string{"192.0.2.1:80", "localhost:80"}},
		{"range", RouteConfig{Destinations: []string{"10.0.0.0/8"}}, []string{"10.1.2.3:80"}, []string{"11.0.0.1:80", "[2001:db8::1]:80", "a:80"}},
		{"range and port", RouteConfig{Destinations: []string{"10.0.0.0/8:443"}}, []string{"10.1.2.3:443"}, []string{"10.1.2.3:80"}},
		{"address", RouteConfig{Destinations: []string{"2001:db8::1"}}, []string{"[2001:db8::1]:80"}, []string{"[2001:db8::2]:80"}},
		{"address and port", RouteConfig{Destinations: []string{"[2001:db8::1]:80"}}, []string{"[2001:db8::1]:80"}, []string{"[2001:db8::1]:81"}},
		{"either", RouteConfig{Hosts: []string{"a"}, Destinations: []string{"192.0.2.1"}}, []string{"a:1", "192.0.2.1:1"}, []string{"b:1", "192.0.2.2:1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := route{matchers: compileMatchers(&tt.route), ports: tt.route.Ports}
			check := func(list []string, want bool) {
				for _, s := range list {
					text, local := strings.CutPrefix(s, "local:")
					if got := r.match(target(text), local) != nil; got != want {
						t.Errorf("match(%s) = %v, want %v", s, got, want)
					}
				}
			}
			check(tt.takes, true)
			check(tt.refuses, false)
		})
	}
}

// A name that an app has said leads a flow elsewhere only where no route before takes its address.
func TestRouteTakesName(t *testing.T) {
	named, addr := Target{Host: "orders.shop.svc", Port: 80}, Target{Addr: netip.MustParseAddr("10.0.0.2"), Port: 80}
	for _, tt := range []struct {
		name   string
		routes []string
		local  bool
		want   bool
	}{
		{"a name", []string{"*.shop.svc"}, false, true},
		{"everything", []string{"*"}, false, false},
		{"the address first", []string{"10.0.0.0/8", "*.shop.svc"}, false, false},
		{"the name first", []string{"*.shop.svc", "10.0.0.0/8"}, false, true},
		{"inbound, this host first", []string{"local", "*.shop.svc"}, true, false},
		{"outbound, this host first", []string{"local", "*.shop.svc"}, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var l listenerPlan
			for _, text := range tt.routes {
				l.routes = append(l.routes, &route{matchers: []matcher{parseMatcher(text)}})
			}
			l.index = newRouteIndex(l.routes)
			if got := l.takesName(named, addr, tt.local); got != tt.want {
				t.Errorf("takesName = %t, want %t", got, tt.want)
			}
		})
	}
}

// soundConfig is right as it stands; tests break one thing of it.
func soundConfig() *Config {
	return &Config{
		Listeners: []ListenerConfig{
			{Name: "apps", Kind: KindSOCKS5, Address: "127.0.0.1:1080"},
			{Name: "mesh", Kind: KindHBONE, Address: ":15008"},
			{Name: "orders", Kind: KindForward, Address: "127.0.0.1:8080", To: "orders.shop.svc:80"},
		},
		Hops: map[string]HopConfig{
			"east": {Address: "east.example:15008", Identity: "spiffe://cluster.local/ns/default/sa/gw"},
			"lb":   {Config: endpoint.Config{Endpoints: []endpoint.EndpointConfig{{Address: "lb1:443", Weight: 2}, {Address: "lb2:443"}}}, Transport: "h2"},
		},
		Workloads: []WorkloadConfig{{Name: "orders", Addresses: []string{"10.0.0.9"}}},
		Routes: []RouteConfig{
			{Listeners: []string{"apps"}, Hosts: []string{"*.shop.svc"}, Via: []string{"lb", "east"}},
			{Listeners: []string{"mesh"}, Destinations: []string{"local"}, Via: []string{}},
			{Listeners: []string{"orders"}, Via: []string{"10.0.0.1:15008"}},
		},
	}
}

func TestValidate(t *testing.T) {
	for _, tt := range []struct {
		name string
		mend func(*Config)
		path string // "": nothing is wrong
		what string // part of the text
	}{
		{"sound", func(*Config) {}, "", ""},
		{"no name", func(c *Config) { c.Listeners[0].Name = ""; c.Routes[0].Listeners = nil }, "listeners[0]", "no name"},
		{"odd name", func(c *Config) { c.Listeners[1].Name = "a b"; c.Routes[1].Listeners = nil }, "listeners[1].name", "letters"},
		{"proxy", func(c *Config) {
			c.Hops["corp"] = HopConfig{Address: "p:3128", Proxy: "https", Login: "f", TLS: HopTLSConfig{Roots: "r"}}
		}, "", ""},
		{"proxy of no kind", func(c *Config) { c.Hops["corp"] = HopConfig{Address: "p:3128", Proxy: "socks4"} }, "hops.corp.proxy", "http, https, socks5"},
		{"proxy with an identity", func(c *Config) {
			c.Hops["corp"] = HopConfig{Address: "p:3128", Proxy: "http", Identity: "spiffe://cluster.local/ns/default/sa/gw"}
		}, "hops.corp.identity", "gateway behind"},
		{"proxy with an inner tunnel", func(c *Config) { c.Hops["corp"] = HopConfig{Address: "p:3128", Proxy: "http", Inner: &InnerConfig{}} }, "hops.corp.inner", "gateway behind"},
		{"proxy in the clear with tls", func(c *Config) {
			c.Hops["corp"] = HopConfig{Address: "p:3128", Proxy: "http", TLS: HopTLSConfig{Roots: "r"}}
		}, "hops.corp.tls", "remove"},
		{"https proxy without tls", func(c *Config) {
			c.Hops["corp"] = HopConfig{Address: "p:3128", Proxy: "https", TLS: HopTLSConfig{None: true}}
		}, "hops.corp.tls.none", "proxy: http"},
		{"login and no proxy", func(c *Config) { c.Hops["corp"] = HopConfig{Address: "p:3128", Login: "f"} }, "hops.corp.login", "proxy: http"},
		{"tls", func(c *Config) {
			c.Routes[0].TLS = &TLSConfig{ServerName: "a.example", Cert: "a", Key: "b", ALPN: []string{"h2"}, MinVersion: "1.3"}
		}, "", ""},
		{"tls with an odd name", func(c *Config) { c.Routes[0].TLS = &TLSConfig{ServerName: "a b"} }, "routes[0].tls.serverName", "api.example.com"},
		{"tls with a name and a port", func(c *Config) { c.Routes[0].TLS = &TLSConfig{ServerName: "a.example:443"} }, "routes[0].tls.serverName", "api.example.com"},
		{"tls with no key", func(c *Config) { c.Routes[0].TLS = &TLSConfig{Cert: "a"} }, "routes[0].tls.key", "no key"},
		{"tls with a key only", func(c *Config) { c.Routes[0].TLS = &TLSConfig{Key: "a"} }, "routes[0].tls.cert", "no certificate"},
		{"tls with no protocol", func(c *Config) { c.Routes[0].TLS = &TLSConfig{ALPN: []string{""}} }, "routes[0].tls.alpn[0]", "http/1.1"},
		{"tls of old", func(c *Config) { c.Routes[0].TLS = &TLSConfig{MinVersion: "1.0"} }, "routes[0].tls.minVersion", "1.2 or 1.3"},
		{"name twice", func(c *Config) { c.Listeners[2].Name = "apps"; c.Routes[2].Listeners = []string{"mesh"} }, "listeners[2].name", "twice"},
		{"address twice", func(c *Config) { c.Listeners[2].Address = "127.0.0.1:1080" }, "listeners[2].address", "taken"},
		{"address without port", func(c *Config) { c.Listeners[0].Address = "127.0.0.1" }, "listeners[0].address", "host:port"},
		{"address is a name", func(c *Config) { c.Listeners[1].Address = "example.com:1" }, "listeners[1].address", "not an IP address"},
		{"port out of range", func(c *Config) { c.Listeners[1].Address = ":99999" }, "listeners[1].address", "65535"},
		{"no kind", func(c *Config) { c.Listeners[1].Kind = "" }, "listeners[1]", "no kind"},
		{"unknown kind", func(c *Config) { c.Listeners[1].Kind = "hbon" }, "listeners[1].kind", "hbone"},
		{"forward to nowhere", func(c *Config) { c.Listeners[2].To = "" }, "listeners[2].to", ""},
		{"to on another kind", func(c *Config) { c.Listeners[1].To = "a:1" }, "listeners[1].to", "only a listener of kind forward"},
		{"socks5 off loopback", func(c *Config) { c.Listeners[0].Address = ":1080" }, "listeners[0].address", "open: true"},
		{"socks5 off loopback, open", func(c *Config) { c.Listeners[0].Address = ":1080"; c.Listeners[0].Open = true }, "", ""},
		{"socks5 off loopback, with login", func(c *Config) {
			c.Listeners[0].Address = ":1080"
			c.Listeners[0].SOCKS5.Users = map[string]capture.Password{"a": "b"}
		}, "", ""},
		{"empty users", func(c *Config) { c.Listeners[0].SOCKS5.Users = map[string]capture.Password{} }, "listeners[0].socks5.users", ""},
		{"users on another kind", func(c *Config) { c.Listeners[1].SOCKS5.UsersFile = "x" }, "listeners[1].socks5", "only"},
		{"http on another kind", func(c *Config) { c.Listeners[0].HTTP.TokensFile = "x" }, "listeners[0].http", "only"},
		{"http proxy off loopback", func(c *Config) { c.Listeners[0].Kind, c.Listeners[0].Address = KindHTTPProxy, ":1080" }, "listeners[0].address", "HTTP proxy"},
		{"http proxy off loopback, with login", func(c *Config) {
			c.Listeners[0].Kind, c.Listeners[0].Address, c.Listeners[0].HTTP.TokensFile = KindHTTPProxy, ":1080", "x"
		}, "", ""},
		{"both off loopback, with a login for one", func(c *Config) {
			c.Listeners[0].Kind, c.Listeners[0].Address, c.Listeners[0].HTTP.TokensFile = KindProxy, ":1080", "x"
		}, "listeners[0].address", "SOCKS5"},
		{"both, with tokens for one", func(c *Config) {
			c.Listeners[0].Kind, c.Listeners[0].HTTP.TokensFile = KindProxy, "x"
		}, "listeners[0].http", "tokens"},
		{"both off loopback, with users of HTTP", func(c *Config) {
			c.Listeners[0].Kind, c.Listeners[0].Address, c.Listeners[0].HTTP.UsersFile = KindProxy, ":1080", "x"
		}, "", ""},
		{"both off loopback, with login", func(c *Config) {
			c.Listeners[0].Kind, c.Listeners[0].Address, c.Listeners[0].SOCKS5.UsersFile = KindProxy, ":1080", "x"
		}, "", ""},
		{"identity of a user", func(c *Config) {
			c.Listeners[0].SOCKS5.UsersFile, c.Listeners[0].Identities = "x", map[string]string{"bob": "bob"}
		}, "listeners[0].identities.bob", "spiffe://"},
		{"identities without users", func(c *Config) {
			c.Listeners[0].Identities = map[string]string{"bob": "spiffe://cluster.local/ns/default/sa/bob"}
		}, "listeners[0].identities", "nobody logs in"},
		{"network", func(c *Config) { c.Listeners[2].Network = "sctp" }, "listeners[2].network", "tcp or udp"},
		{"network of another kind", func(c *Config) { c.Listeners[0].Network = "udp" }, "listeners[0].network", "remove"},
		{"udp to a unix socket", func(c *Config) { c.Listeners[2].Network, c.Listeners[2].To = "udp", "unix:/run/x" }, "listeners[2].to", "datagrams"},
		{"unix socket", func(c *Config) { c.Listeners[2].Address = "unix:/run/x.sock" }, "", ""},
		{"unix socket without a path", func(c *Config) { c.Listeners[2].Address = "unix:x.sock" }, "listeners[2].address", "absolute"},
		{"range of ports", func(c *Config) { c.Listeners[2].Address = "127.0.0.1:8000-8010" }, "", ""},
		{"range of ports on another kind", func(c *Config) { c.Listeners[0].Address = "127.0.0.1:8000-8010" }, "listeners[0].address", "forward"},
		{"ranges of other lengths", func(c *Config) {
			c.Listeners[2].Address, c.Listeners[2].To = "127.0.0.1:8000-8010", "orders.shop.svc:90-91"
		}, "listeners[2].to", "2 ports"},
		{"sniff on another kind", func(c *Config) { c.Listeners[0].Sniff = time.Second }, "listeners[0].sniff", "tproxy"},
		{"strict on another kind", func(c *Config) { c.Listeners[0].Strict = true }, "listeners[0].strict", "tproxy"},
		{"captured on another kind", func(c *Config) { c.Listeners[0].Captured = true }, "listeners[0].captured", "dns"},
		{"source", func(c *Config) { c.Routes[1].Source = "hide" }, "routes[1].source", "keep"},
		{"server names on another kind", func(c *Config) { c.Listeners[0].SNIPassthrough = true }, "listeners[0].sniPassthrough", "hbone"},
		{"inner", func(c *Config) { c.Routes[1].Inner = "open" }, "routes[1].inner", "pass"},
		{"inner beyond a hop", func(c *Config) { c.Routes[0].Inner = "pass" }, "routes[0].inner", "before the workload"},
		{"port of no inner tunnel", func(c *Config) { c.Routes[1].InnerPort = 1 }, "routes[1].innerPort", "inner: pass"},
		{"inner tunnel to nobody", func(c *Config) {
			c.Hops["east"] = HopConfig{Address: "a:1", Inner: &InnerConfig{Identities: []string{}}}
		}, "hops.east.inner.identities", "never connect"},
		{"kind of a sender", func(c *Config) { c.Routes[1].IstioSource = []string{"waypoint", "way"} }, "routes[1].istioSource[1]", "waypoint, gateway, sidecar"},
		{"no kind of a sender", func(c *Config) { c.Routes[1].IstioSource = []string{} }, "routes[1].istioSource", "never match"},
		{"kind of ours", func(c *Config) { c.Hops["east"] = HopConfig{Address: "a:1", IstioSource: "egress"} }, "hops.east.istioSource", "waypoint"},
		{"a route for a sender takes not all", func(c *Config) {
			c.Routes = append([]RouteConfig{{IstioSource: []string{"waypoint"}, Via: []string{"lb"}}}, c.Routes...)
		}, "", ""},
		{"source of this host", func(c *Config) { c.Routes[0].Source, c.Routes[0].Via = "10.0.0.5", nil }, "", ""},
		{"source of this host beyond a hop", func(c *Config) { c.Routes[0].Source = "10.0.0.5" }, "routes[0].source", "next hop"},
		{"source with a port", func(c *Config) { c.Routes[0].Source, c.Routes[0].Via = "10.0.0.5:0", nil }, "routes[0].source", "such as 10.0.0.5"},
		{"source that is none", func(c *Config) { c.Routes[0].Source, c.Routes[0].Via = "0.0.0.0", nil }, "routes[0].source", "such as 10.0.0.5"},
		{"source beyond a hop", func(c *Config) { c.Routes[0].Source = "keep" }, "routes[0].source", "next hop"},
		{"form of an endpoint of no proxy", func(c *Config) {
			c.Hops["east"] = HopConfig{Config: endpoint.Config{Endpoints: []endpoint.EndpointConfig{{Address: "a:1"}, {Address: "b:1", Tun: "POST"}}}}
		}, "hops.east.endpoints[1].tun", "give the hop one"},
		{"unknown form of an endpoint", func(c *Config) {
			c.Hops["east"] = HopConfig{Tun: "POST", Config: endpoint.Config{Endpoints: []endpoint.EndpointConfig{{Address: "a:1", Tun: "HBONE"}}}}
		}, "hops.east.endpoints[0].tun", "POST, CONNECT, WEBSOCKET, GRPC"},
		{"identity of a proxy among several", func(c *Config) {
			c.Hops["east"] = HopConfig{Tun: "POST", Config: endpoint.Config{Endpoints: []endpoint.EndpointConfig{{Address: "a:1", Identities: []string{"spiffe://a/b"}}}}}
		}, "hops.east.endpoints[0].identities", "inner"},
		{"proxy that is pinged", func(c *Config) {
			c.Hops["east"] = HopConfig{Tun: "POST", Config: endpoint.Config{Endpoints: []endpoint.EndpointConfig{{Address: "a:1"}}, Health: endpoint.HealthConfig{Probe: "ping"}}}
		}, "hops.east.health.probe", "write connect"},
		{"path of an endpoint that has one", func(c *Config) {
			c.Hops["east"] = HopConfig{Tun: "CONNECT", Path: "/in", Config: endpoint.Config{Endpoints: []endpoint.EndpointConfig{{Address: "a:1"}, {Address: "b:1", Tun: "POST"}}}}
		}, "", ""},
		{"hop without address", func(c *Config) { c.Hops["east"] = HopConfig{} }, "hops.east", "no address"},
		{"hop with both", func(c *Config) {
			c.Hops["east"] = HopConfig{Address: "a:1", Config: endpoint.Config{Endpoints: []endpoint.EndpointConfig{{Address: "b:1"}}}}
		}, "hops.east", "write one"},
		{"hop address", func(c *Config) { c.Hops["east"] = HopConfig{Address: "east.example"} }, "hops.east.address", "host:port"},
		{"endpoint address", func(c *Config) {
			c.Hops["lb"] = HopConfig{Config: endpoint.Config{Endpoints: []endpoint.EndpointConfig{{Address: "a:1"}, {Address: "a:0"}}}}
		}, "hops.lb.endpoints[1].address", "65535"},
		{"endpoint weight", func(c *Config) {
			c.Hops["lb"] = HopConfig{Config: endpoint.Config{Endpoints: []endpoint.EndpointConfig{{Address: "a:1", Weight: -1}}}}
		}, "hops.lb.endpoints[0].weight", "-1"},
		{"hop identity", func(c *Config) { c.Hops["east"] = HopConfig{Address: "a:1", Identity: "gw"} }, "hops.east.identity", "spiffe://"},
		{"transport", func(c *Config) { c.Hops["east"] = HopConfig{Address: "a:1", Transport: "h9"} }, "hops.east.transport", "h2"},
		{"workload", func(c *Config) { c.Workloads[0].Addresses = []string{"10.0.0.9", "x"} }, "workloads[0].addresses[1]", "IP address"},
		{"application tunnel", func(c *Config) { c.Workloads[0].ApplicationTunnel = &AppTunnelConfig{Protocol: "NONE", Port: 1} }, "workloads[0].applicationTunnel.protocol", "PROXY"},
		{"application tunnel to nowhere", func(c *Config) { c.Workloads[0].ApplicationTunnel = &AppTunnelConfig{Protocol: "PROXY"} }, "workloads[0].applicationTunnel.port", "65535"},
		{"application tunnel to a name", func(c *Config) {
			c.Workloads[0].ApplicationTunnel = &AppTunnelConfig{Protocol: "PROXY", Port: 1, Address: "app"}
		}, "workloads[0].applicationTunnel.address", "IP address"},
		{"unknown listener", func(c *Config) { c.Routes[0].Listeners = []string{"app"} }, "routes[0].listeners[0]", "apps"},
		{"unknown hop", func(c *Config) { c.Routes[0].Via = []string{"lb", "eats"} }, "routes[0].via[1]", "east, lb"},
		{"hop's address", func(c *Config) { c.Routes[2].Via = []string{"10.0.0.1:0"} }, "routes[2].via[0]", "host:port"},
		{"hop twice", func(c *Config) { c.Routes[0].Via = []string{"lb", "lb"} }, "routes[0].via[1]", "twice"},
		{"empty listeners", func(c *Config) { c.Routes[0].Listeners = []string{} }, "routes[0].listeners", "never match"},
		{"empty hosts", func(c *Config) { c.Routes[0].Hosts = []string{} }, "routes[0].hosts", "never match"},
		{"empty ports", func(c *Config) { c.Routes[0].Ports = []uint16{} }, "routes[0].ports", "never match"},
		{"port 0", func(c *Config) { c.Routes[0].Ports = []uint16{80, 0} }, "routes[0].ports[1]", "65535"},
		{"from", func(c *Config) { c.Routes[0].From = "all" }, "routes[0].from", "any"},
		{"address under hosts", func(c *Config) { c.Routes[0].Hosts = []string{"10.0.0.1"} }, "routes[0].hosts[0]", "destinations"},
		{"name under destinations", func(c *Config) { c.Routes[1].Destinations = []string{"a"} }, "routes[1].destinations[0]", "hosts"},
		{"bad entry", func(c *Config) { c.Routes[0].Hosts = []string{"a b"} }, "routes[0].hosts[0]", ""},
		{"local via a hop", func(c *Config) { c.Routes[1].Via = []string{"lb"} }, "routes[1].destinations[0]", "directly"},
		{"policy", func(c *Config) { c.Policy.Allow = []string{"*", ""} }, "policy.allow[1]", ""},
		{"trustHeaders", func(c *Config) { c.TrustHeaders = []string{""} }, "trustHeaders[0]", ""},
		{"shadowed by one before", func(c *Config) {
			c.Routes = append([]RouteConfig{{Listeners: []string{"apps"}, Via: []string{"lb"}}}, c.Routes...)
		}, "routes[1]", "routes[0] before it takes"},
		{"shadowed by two before", func(c *Config) {
			c.Routes = []RouteConfig{
				{Listeners: []string{"apps"}, Via: []string{"lb"}},
				{Listeners: []string{"mesh", "orders"}, Via: []string{"lb"}},
				{Hosts: []string{"a"}, Via: []string{"east"}},
			}
		}, "routes[2]", "routes[0] and routes[1] before it take"},
		{"shadowed range", func(c *Config) {
			c.Routes = []RouteConfig{{Destinations: []string{"10.0.0.0/8"}, Via: []string{"lb"}}, {Destinations: []string{"10.1.2.3:80"}, Via: []string{"lb"}}}
		}, "routes[1]", "never match"},
		{"shadowed ports", func(c *Config) {
			c.Routes = []RouteConfig{{Hosts: []string{"*.a"}, Ports: []uint16{80, 443}, Via: []string{"lb"}}, {Hosts: []string{"b.a", "c.a:443"}, Ports: []uint16{80, 443}, Via: []string{"lb"}}}
		}, "routes[1]", "never match"},
		{"one port is left", func(c *Config) {
			c.Routes = []RouteConfig{{Hosts: []string{"*.a"}, Ports: []uint16{80}, Via: []string{"lb"}}, {Hosts: []string{"b.a"}, Ports: []uint16{80, 443}, Via: []string{"lb"}}}
		}, "", ""},
		{"one listener is left", func(c *Config) {
			c.Routes = []RouteConfig{{Listeners: []string{"apps"}, Via: []string{"lb"}}, {Via: []string{"lb"}}}
		}, "", ""},
		{"forwards elsewhere", func(c *Config) {
			c.Routes[2] = RouteConfig{Listeners: []string{"orders"}, Hosts: []string{"other"}, Via: []string{"lb"}}
		}, "routes[2]", "forward to other"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := soundConfig()
			tt.mend(c)
			err := c.Validate()
			var problems Problems
			if tt.path == "" {
				if err != nil {
					t.Fatalf("Validate() = %v, want nil", err)
				}
				return
			}
			if !errors.As(err, &problems) || len(problems) != 1 {
				t.Fatalf("Validate() = %v, want one problem at %s", err, tt.path)
			}
			if p := problems[0]; p.Path != tt.path || !strings.Contains(p.What, tt.what) || p.What == "" {
				t.Errorf("Validate() = %s: %s, want a problem at %s with %q", p.Path, p.What, tt.path, tt.what)
			}
		})
	}
	bad := soundConfig()
	bad.Listeners[0].Kind, bad.Routes[0].Via, bad.Workloads[0].Addresses = "x", []string{"y"}, []string{"z"}
	var problems Problems
	if err := bad.Validate(); !errors.As(err, &problems) || len(problems) != 3 || strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("Validate() of three faults = %v, want all three, a line each", err)
	}
}

func TestGuardEntries(t *testing.T) {
	c := RouteConfig{Hosts: []string{"a.example", "b.example:22"}, Destinations: []string{"local", "10.0.0.0/8", "fd00::1"}, Ports: []uint16{22}}
	got := guardEntries(&c)
	if want := "a.example:22 b.example:22 10.0.0.0/8:22 [fd00::1]:22"; strings.Join(got, " ") != want {
		t.Errorf("guardEntries = %q, want %s", got, want)
	}
	guard, err := policy.CompileEgress("routes[0]", got, policy.Own{})
	if err != nil {
		t.Fatal(err)
	}
	if d := guard.Addr("", netip.MustParseAddr("10.1.2.3"), 22); !d.Allow {
		t.Errorf("a route that names the range and the port does not open it: %s", d.Reason)
	}
	if d := guard.Addr("", netip.MustParseAddr("169.254.169.254"), 22); d.Allow {
		t.Errorf("a route opens the metadata service, which it does not name")
	}
}

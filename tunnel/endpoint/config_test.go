package endpoint

import (
	"strings"
	"testing"
	"time"
)

func TestValidate(t *testing.T) {
	one := func(e EndpointConfig) Config { return Config{Endpoints: []EndpointConfig{e}} }
	for _, tc := range []struct {
		name string
		c    Config
		hop  bool
		want string // the field and a part of what is said; "": nothing is
	}{
		{"nothing", Config{}, false, ""},
		{"addresses", Config{Endpoints: []EndpointConfig{{Address: "10.0.0.1"}, {Address: "fd00::1"}, {Address: "[fd00::1]:80"}, {Address: "x.example:80"}, {Address: "x.example"}}}, false, ""},
		{"hop", one(EndpointConfig{Address: "gw.example:15008", Weight: 3, Identities: []string{"spiffe://cluster.local/ns/a/sa/b"}}), true, ""},
		{"no port of a hop", one(EndpointConfig{Address: "gw.example"}), true, "endpoints[0].address: \"gw.example\" has no port"},
		{"no address", one(EndpointConfig{Weight: 1}), false, "endpoints[0]: the endpoint has no address"},
		{"port 0", one(EndpointConfig{Address: "10.0.0.1:0"}), false, "no port from 1 to 65535"},
		{"port of a stranger", one(EndpointConfig{Address: "10.0.0.1:http"}), false, "no port from 1 to 65535"},
		{"spaces", one(EndpointConfig{Address: "a b:80"}), false, "neither a name nor an address"},
		{"number", one(EndpointConfig{Address: "10.1:80"}), false, "neither a name nor an address"},
		{"zone", one(EndpointConfig{Address: "[fe80::1%eth0]:80"}), false, "has a zone"},
		{"all hosts", one(EndpointConfig{Address: "0.0.0.0:80"}), false, "no address of one host"},
		{"twice", Config{Endpoints: []EndpointConfig{{Address: "10.0.0.1:80"}, {Address: "10.0.0.1:80"}}}, false, "endpoints[1].address: \"10.0.0.1:80\" is there twice"},
		{"weight", one(EndpointConfig{Address: "10.0.0.1", Weight: -1}), false, "endpoints[0].weight: the weight is -1"},
		{"great weight", one(EndpointConfig{Address: "10.0.0.1", Weight: 1 << 20}), false, "endpoints[0].weight"},
		{"locality", one(EndpointConfig{Address: "10.0.0.1", Locality: "eu//a"}), false, "endpoints[0].locality: \"eu//a\" is no locality"},
		{"deep locality", one(EndpointConfig{Address: "10.0.0.1", Locality: "a/b/c/d"}), false, "endpoints[0].locality"},
		{"identity", one(EndpointConfig{Address: "10.0.0.1", Tun: TunHBONE, Identities: []string{"orders"}}), false, "endpoints[0].identities[0]"},
		{"identity without a tunnel", one(EndpointConfig{Address: "10.0.0.1", Identities: []string{"spiffe://cluster.local/ns/a/sa/b"}}), false, "proves no identity"},
		{"tun", one(EndpointConfig{Address: "10.0.0.1", Tun: "hbone"}), false, "endpoints[0].tun: \"hbone\" is no way"},
		{"tun of a hop", one(EndpointConfig{Address: "10.0.0.1:443", Tun: "POST"}), true, ""}, // the hop knows
		{"tunnel to a name", one(EndpointConfig{Address: "orders.internal", Tun: TunHBONE}), false, "is a name"},
		{"dns without name", Config{DNS: DNSConfig{Port: 80}}, false, "dns: there is no name"},
		{"dns", Config{DNS: DNSConfig{Name: "orders.internal"}}, false, ""},
		{"dns with a port in it", Config{DNS: DNSConfig{Name: "orders.internal:80"}}, false, "dns.name"},
		{"dns of an address", Config{DNS: DNSConfig{Name: "10.0.0.1"}}, false, "dns.name"},
		{"dns of a hop", Config{DNS: DNSConfig{Name: "gw.internal"}}, true, "dns: addresses have no port"},
		{"srv of a hop", Config{DNS: DNSConfig{Name: "_gw._tcp.internal", Type: TypeSRV}}, true, ""},
		{"srv with a port", Config{DNS: DNSConfig{Name: "_gw._tcp.internal", Type: TypeSRV, Port: 1}}, true, "dns.port"},
		{"type", Config{DNS: DNSConfig{Name: "a.b", Type: "mx"}}, false, "dns.type"},
		{"too often", Config{DNS: DNSConfig{Name: "a.b", Every: time.Millisecond}}, false, "dns.every"},
		{"probe", Config{Health: HealthConfig{Probe: "icmp"}}, false, "health.probe"},
		{"no probe", Config{Health: HealthConfig{Path: "/"}}, false, "health: nothing is probed"},
		{"http of a hop", Config{Health: HealthConfig{Probe: ProbeHTTP}}, true, "health.probe: a hop answers no requests"},
		{"ping of a service", Config{Health: HealthConfig{Probe: ProbePing}}, false, "health.probe: only hops"},
		{"path", Config{Health: HealthConfig{Probe: ProbeHTTP, Path: "/ x\r\nHost: y"}}, false, "health.path"},
		{"host", Config{Health: HealthConfig{Probe: ProbeHTTP, Host: "a\r\nb"}}, false, "health.host"},
		{"interval", Config{Health: HealthConfig{Probe: ProbeConnect, Interval: -1}}, false, "health.interval"},
		{"timeout", Config{Health: HealthConfig{Probe: ProbeConnect, Timeout: 5}}, false, "health.timeout"},
		{"numbers of probes", Config{Health: HealthConfig{Probe: ProbeConnect, Healthy: -1, Unhealthy: 1}}, false, "health.healthy"},
		{"ejection", Config{Ejection: EjectionConfig{Time: time.Hour, Longest: time.Minute}}, false, "ejection.longest"},
		{"most", Config{Ejection: EjectionConfig{Most: 101}}, false, "ejection.most"},
		{"limits", Config{Limits: LimitsConfig{Endpoint: EndpointLimitsConfig{Flows: -1}}}, false, "limits.endpoint.flows"},
		{"connect timeout", Config{ConnectTimeout: 1}, false, "connectTimeout: 1ns is no time"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := tc.c.Validate(tc.hop)
			switch {
			case err == nil && tc.want != "":
				t.Errorf("Validate() = nil, want %q", tc.want)
			case err != nil && (tc.want == "" || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n")):
				t.Errorf("Validate() = %v, want only %q", err, tc.want)
			}
		})
	}
}

func TestConfigIsZero(t *testing.T) {
	if c := (Config{}); !c.IsZero() || c.Places() {
		t.Error("the zero Config is not zero")
	}
	if c := (Config{Retries: 1}); c.IsZero() {
		t.Error("a Config with retries is zero")
	}
}

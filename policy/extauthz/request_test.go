package extauthz

import (
	"net/netip"
	"strings"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"culvert/pki/spiffe"
	"culvert/policy"
)

// id parses an identity.
func id(tb testing.TB, s string) spiffe.ID {
	tb.Helper()
	parsed, err := spiffe.Parse(s)
	if err != nil {
		tb.Fatal(err)
	}
	return parsed
}

// headersOf is HTTP.Header of a map.
func headersOf(m map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		value, ok := m[name]
		return value, ok
	}
}

func TestQuestion(t *testing.T) {
	alice, gw := id(t, "spiffe://cluster.local/ns/shop/sa/alice"), id(t, "spiffe://cluster.local/ns/mesh/sa/gw")
	for _, tt := range []struct {
		name string
		r    policy.Request
		want string
	}{
		{"flow to an address", policy.Request{
			Peer: alice, Self: gw, Addr: netip.MustParseAddr("10.0.0.9"), Port: 8080, Listener: "mesh", Source: netip.MustParseAddrPort("[::ffff:10.0.0.7]:5000"),
			Workload: &policy.Workload{Name: "orders", Namespace: "shop", Labels: map[string]string{"app": "orders"}},
		}, `attributes {
			source { address { socket_address { address: "10.0.0.7" port_value: 5000 } } principal: "spiffe://cluster.local/ns/shop/sa/alice" }
			destination { address { socket_address { address: "10.0.0.9" port_value: 8080 } } principal: "spiffe://cluster.local/ns/mesh/sa/gw" }
			request { http { method: "CONNECT" host: "10.0.0.9:8080" protocol: "HTTP/2" size: -1 } }
			context_extensions { key: "listener" value: "mesh" }
			context_extensions { key: "workload" value: "orders" }
			context_extensions { key: "namespace" value: "shop" }
		}`},
		{"flow to a name", policy.Request{Peer: alice, Self: gw, Host: "db.internal", Port: 5432, Listener: "apps", SNI: "db.example", Remote: netip.MustParseAddr("192.0.2.1")}, `attributes {
			source { principal: "spiffe://cluster.local/ns/shop/sa/alice" }
			destination { address { socket_address { address: "db.internal" port_value: 5432 } } principal: "spiffe://cluster.local/ns/mesh/sa/gw" }
			request { http { method: "CONNECT" host: "db.internal:5432" protocol: "HTTP/2" size: -1 } }
			context_extensions { key: "listener" value: "apps" }
			context_extensions { key: "remote" value: "192.0.2.1" }
			tls_session { sni: "db.example" }
		}`},
		{"flow to an address of IPv6", policy.Request{Addr: netip.MustParseAddr("2001:db8::1"), Port: 53}, `attributes {
			source {}
			destination { address { socket_address { address: "2001:db8::1" port_value: 53 } } }
			request { http { method: "CONNECT" host: "[2001:db8::1]:53" protocol: "HTTP/2" size: -1 } }
			context_extensions { key: "listener" value: "" }
		}`},
		{"name that is resolved", policy.Request{Host: "db.internal", Addr: netip.MustParseAddr("10.1.1.1"), Port: 5432}, `attributes {
			source {}
			destination { address { socket_address { address: "10.1.1.1" port_value: 5432 } } }
			request { http { method: "CONNECT" host: "db.internal:5432" protocol: "HTTP/2" size: -1 } }
			context_extensions { key: "listener" value: "" }
		}`},
		{"request in the clear", policy.Request{Addr: netip.MustParseAddr("10.0.0.9"), Port: 80, Peer: alice, HTTP: &policy.HTTP{
			Method: "POST", Path: "/orders/7", Host: "orders.example",
			Header: headersOf(map[string]string{"authorization": "Bearer t", "x-bad": "a\xffb", "cookie": "not shown", "x-empty": ""}),
		}}, `attributes {
			source { principal: "spiffe://cluster.local/ns/shop/sa/alice" }
			destination { address { socket_address { address: "10.0.0.9" port_value: 80 } } }
			request { http { method: "POST" path: "/orders/7" host: "orders.example" size: -1
				headers { key: "authorization" value: "Bearer t" } headers { key: "x-bad" value: "a!b" } headers { key: "x-empty" value: "" } } }
			context_extensions { key: "listener" value: "" }
		}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &Client{headers: lowerNames([]string{"Authorization", "x-bad", "X-Empty", "x-absent"})}
			got, err := c.question(&tt.r)
			if err != nil {
				t.Fatal(err)
			}
			if got.Attributes.Request.Time == nil {
				t.Error("it has no time")
			}
			got.Attributes.Request.Time = nil
			want := new(authv3.CheckRequest)
			if err := prototext.Unmarshal([]byte(tt.want), want); err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(got, want) {
				t.Errorf("question = %s\nwant %s", prototext.Format(got), prototext.Format(want))
			}
		})
	}
}

// What cannot be asked about as it is is refused, and the authorizer judges nothing else instead.
func TestQuestionThatCannotBeAsked(t *testing.T) {
	none := headersOf(nil)
	for _, tt := range []struct {
		name, want string
		r          policy.Request
	}{
		{"path", "path has bytes", policy.Request{HTTP: &policy.HTTP{Method: "GET", Path: "/\xff", Header: none}}},
		{"method", "method has bytes", policy.Request{HTTP: &policy.HTTP{Method: "\xc3", Header: none}}},
		{"host", "host has bytes", policy.Request{HTTP: &policy.HTTP{Method: "GET", Host: "\xc0\xaf", Header: none}}},
		{"server name", "server name of TLS has bytes", policy.Request{SNI: "\xfe"}},
		{"destination", "host has bytes", policy.Request{Host: "\xfe"}},
		{"long", "fewer headers", policy.Request{HTTP: &policy.HTTP{Method: "GET", Path: "/" + strings.Repeat("a", maxAskBytes), Header: none}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := new(Client).question(&tt.r); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("question = %v, want an error with %q", err, tt.want)
			}
		})
	}
}

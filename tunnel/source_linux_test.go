package tunnel_test

import (
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"culvert/policy"
	"culvert/tunnel"
	"culvert/tunnel/tunneltest"
	"culvert/tunnel/tunneltest/memnet"
)

// A route says which of this host's addresses its flows come from.
func TestSourceOfRoute(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() { // ends with the listener
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			io.WriteString(nc, nc.RemoteAddr().(*net.TCPAddr).IP.String())
			nc.Close()
		}
	}()
	port := ln.Addr().(*net.TCPAddr).AddrPort().Port()
	for _, tt := range []struct {
		name, source string
		addrs        []string // of the destination
		cause        tunnel.Cause
		want         string // what it sees, or in the error
	}{
		{"as the system has it", "", []string{"127.0.0.1"}, tunnel.CauseNone, "127.0.0.1"},
		{"another of the host's", "127.0.0.5", []string{"127.0.0.1"}, tunnel.CauseNone, "127.0.0.5"},
		{"in its mapped form", "::ffff:127.0.0.5", []string{"127.0.0.1"}, tunnel.CauseNone, "127.0.0.5"},
		{"not the host's", "192.0.2.77", []string{"127.0.0.1"}, tunnel.CauseConfiguration, "this host has no address 192.0.2.77, the source of routes[0]"},
		{"both families", "127.0.0.5", []string{"::1", "127.0.0.1"}, tunnel.CauseNone, "127.0.0.5"},
		{"the other family", "127.0.0.5", []string{"::1"}, tunnel.CauseUnroutable, "no address of the family of 127.0.0.5"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := memnet.New() // only for the names
			var addrs []netip.Addr
			for _, a := range tt.addrs {
				addrs = append(addrs, netip.MustParseAddr(a))
			}
			n.Name("www.example", addrs...)
			id := tunneltest.NewCA(t).Issue(t, "cluster.local", "default", "gw")
			g := tunneltest.NewGateway(t, n, "10.0.0.1", id, &tunnel.Config{
				Listeners: []tunnel.ListenerConfig{{Name: "apps", Kind: tunnel.KindSOCKS5, Address: "127.0.0.1:1080"}},
				Routes:    []tunnel.RouteConfig{{Source: tt.source}},
				Policy:    policy.Config{Egress: []string{"127.0.0.0/8", "::1"}},
			}, nil, func(e *tunnel.Env) { e.Dial = nil }, logTo(&tunneltest.Log{}))
			c, err := tunneltest.Dial(testContext(t), g, "apps", netip.AddrPortFrom(addrs[0], port).String())
			if len(addrs) > 1 {
				c, err = tunneltest.Dial(testContext(t), g, "apps", "www.example:"+strings.TrimPrefix(ln.Addr().String(), "127.0.0.1:"))
			}
			if tunnel.CauseOf(err) != tt.cause || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("dial = %v (cause %v), want cause %v and %q", err, tunnel.CauseOf(err), tt.cause, tt.want)
			}
			if err != nil {
				return
			}
			c.CloseWrite()
			if got, err := io.ReadAll(c); string(got) != tt.want || err != nil {
				t.Errorf("the flow comes from %q, %v, want %s", got, err, tt.want)
			}
		})
	}
}

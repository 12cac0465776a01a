package tunnel_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"culvert/tunnel"
	"culvert/tunnel/tunneltest"
	"culvert/tunnel/tunneltest/memnet"
)

// sniMesh is a gateway (10.0.0.2) that passes TLS on by its server name besides serving HBONE, and a TLS server (10.0.0.3) that
// says what name it was asked for, and returns what it gets.
type sniMesh struct {
	*tunneltest.Pair
	client *tunneltest.Identity
}

func newSNIMesh(t *testing.T, mend func(*tunnel.Config)) *sniMesh {
	m := &sniMesh{Pair: tunneltest.NewPair(t, tunneltest.Options{
		ExitEnv: func(e *tunnel.Env) { e.Resolve = resolveTo("10.0.0.3") },
		Exit: func(c *tunnel.Config) {
			c.Listeners[0].SNIPassthrough = true
			c.Routes = append(c.Routes,
				tunnel.RouteConfig{Hosts: []string{"*.shop.svc:8443", "plain.example"}, From: "any"},
				tunnel.RouteConfig{Hosts: []string{"closed.example"}})
			if mend != nil {
				mend(c)
			}
		},
	})}
	m.client = m.CA.Issue(t, "cluster.local", "default", "client")
	server := m.CA.Issue(t, "cluster.local", "default", "server")
	for _, port := range []string{"443", "8443"} {
		tunneltest.Serve(t, m.Net, "10.0.0.3:"+port, func(nc *memnet.Conn) {
			cfg := server.AnyTLS()
			cfg.NextProtos = nil
			tc := tls.Server(nc, cfg)
			defer tc.Close()
			if tc.Handshake() == nil {
				_, _ = io.WriteString(tc, port+" "+tc.ConnectionState().ServerName+"\n")
				_, _ = io.Copy(tc, tc)
			}
		})
	}
	m.Echo(t, "10.0.0.2:80")
	return m
}

// dial connects to the gateway's mesh listener.
func (m *sniMesh) dial(t *testing.T) net.Conn {
	t.Helper()
	nc, err := m.Net.From(netip.MustParseAddr(tunneltest.EntryAddr))(testContext(t), netip.MustParseAddrPort(tunneltest.ExitListen))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return nc
}

// asks connects over nc with TLS to name, and returns what the server says first.
func (m *sniMesh) asks(nc net.Conn, name string) (string, error) {
	cfg := m.client.AnyTLS()
	cfg.ServerName, cfg.NextProtos = name, nil
	tc := tls.Client(nc, cfg)
	b := make([]byte, 100)
	n, err := tc.Read(b)
	return string(b[:n]), err
}

func TestSNIPassthrough(t *testing.T) {
	for _, tt := range []struct {
		name, sni string
		want      string
		reason    string // of the record, where it is refused
	}{
		{"Istio's form", "outbound_.8443_._.orders.shop.svc", "8443 outbound_.8443_._.orders.shop.svc\n", ""},
		{"with a subset", "outbound_.8443_.v1_.orders.shop.svc", "8443 outbound_.8443_.v1_.orders.shop.svc\n", ""},
		{"another case", "Outbound_.8443_._.Orders.Shop.svc", "8443 Outbound_.8443_._.Orders.Shop.svc\n", ""},
		{"a plain name that a route has", "plain.example", "443 plain.example\n", ""},
		{"a port that no route has", "outbound_.80_._.orders.shop.svc", "", "denied"},
		{"a host that no route has", "outbound_.8443_._.metadata.example", "", "denied"},
		{"a route for peers with identities", "outbound_.443_._.closed.example", "", "denied"},
		{"no port", "outbound_.x_._.orders.shop.svc", "", "malformed"},
		{"a port with a sign", "outbound_.0080_._.orders.shop.svc", "", "malformed"},
		{"port 0", "outbound_.0_._.orders.shop.svc", "", "malformed"},
		{"no host", "outbound_.8443_._", "", "malformed"},
		{"no subset", "outbound_.8443_.orders", "", "malformed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newSNIMesh(t, nil)
			got, err := m.asks(m.dial(t), tt.sni)
			if got != tt.want || (err == nil) != (tt.want != "") {
				t.Errorf("the server says %q, %v, want %q", got, err, tt.want)
			}
			m.Exit.Close()
			r := recordOf(t, m.Log, "way=sni")
			if r["peer"] != "" || r["sni"] != "" && r["sni"] != strings.ToLower(tt.sni) || tt.reason != "" && r["reason"] != tt.reason {
				t.Errorf("record %v, want no peer, the server name, and the reason %q", r, tt.reason)
			}
		})
	}
}

// What is no TLS for somewhere else is HBONE, as without the option: also with a server name.
func TestHBONEBesideSNI(t *testing.T) {
	m := newSNIMesh(t, nil)
	for _, sni := range []string{"", "gw.example", "closed.example", "10.0.0.2"} {
		cfg := m.client.AnyTLS()
		cfg.ServerName = sni
		tc := tls.Client(m.dial(t), cfg)
		p := peerOver(t, tc)
		s, resp := p.connect("10.0.0.2:80")
		if resp.Status != 200 {
			t.Fatalf("with server name %q: answer %d, want 200", sni, resp.Status)
		}
		wantEcho(t, s, "as before")
	}
	c, err := m.Dial(testContext(t), "10.0.0.2:80") // by the other gateway
	if err != nil {
		t.Fatal(err)
	}
	wantEcho(t, c, "as before")
	for _, text := range []string{"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x00\x05\x01\x00\x00\x01x", "\x00"} {
		nc := m.dial(t)
		_, _ = io.WriteString(nc, text)
		_ = nc.(*memnet.Conn).CloseWrite()
		if _, err := io.ReadAll(nc); err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("after %q: %v", text, err)
		}
	}
	if got := m.Exit.Stats().TLSRefused; got != 3 {
		t.Errorf("%d peers were refused in TLS, want those who spoke none: 3", got)
	}
}

// A ClientHello that does not come to its end is waited for as long as a handshake may take, and no more of it is kept than is
// looked at.
func TestSNIOfASlowPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newSNIMesh(t, nil)
		start := time.Now()
		for _, text := range []string{"", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "\x16\x03\x01\x40\x00\x01\x00\x3f\xfc" + strings.Repeat("x", 10_000)} {
			nc := m.dial(t)
			_, _ = io.WriteString(nc, text)
			if _, err := io.ReadAll(nc); err != nil && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%v", err)
			}
			if took := time.Since(start); took < 5*time.Second || took > 7*time.Second { // the handshake's time, and the goodbye's
				t.Errorf("it took %v, want the 5s of a handshake and no more than a goodbye beside", took)
			}
			start = time.Now()
		}
		flood := m.dial(t)
		n, err := flood.Write(bytes.Repeat([]byte("\x16\x03\x01\x00\x01\x01"), 1<<20))
		if err == nil {
			t.Errorf("%d bytes of ClientHellos were taken", n)
		}
		if c := m.Exit.Stats().Connections; c != 0 {
			synctest.Wait()
			if c = m.Exit.Stats().Connections; c != 0 {
				t.Errorf("%d connections are left", c)
			}
		}
	})
}

// TLS that gateways pass to each other in a circle carries nothing to know it by, but the random bytes of its client.
func TestSNICircle(t *testing.T) {
	n, ca := memnet.New(), tunneltest.NewCA(t)
	var list []*tunnel.Gateway
	log := &tunneltest.Log{}
	for _, addrs := range [][2]string{{"10.0.0.2", "10.0.0.3"}, {"10.0.0.3", "10.0.0.2"}} {
		list = append(list, tunneltest.NewGateway(t, n, addrs[0], ca.Issue(t, "cluster.local", "default", "gw"), &tunnel.Config{
			Listeners: []tunnel.ListenerConfig{{Name: "mesh", Kind: tunnel.KindHBONE, Address: addrs[0] + ":15443", SNIPassthrough: true}},
			Routes:    []tunnel.RouteConfig{{Hosts: []string{"orders.shop.svc"}, From: "any"}},
		}, nil, func(e *tunnel.Env) { e.Resolve = resolveTo(addrs[1]) }, logTo(log)))
	}
	nc, err := n.From(netip.MustParseAddr(tunneltest.EntryAddr))(testContext(t), netip.MustParseAddrPort("10.0.0.2:15443"))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	cfg := ca.Issue(t, "cluster.local", "default", "client").AnyTLS()
	cfg.ServerName = "outbound_.15443_._.orders.shop.svc"
	if err := tls.Client(nc, cfg).Handshake(); err == nil {
		t.Error("the handshake succeeded")
	}
	var flows, loops int64
	for _, g := range list {
		g.Close()
		flows += g.Stats().Flows
		loops += g.Stats().Ended["loop"]
	}
	if flows != 3 || loops != 1 {
		t.Errorf("%d flows, %d refused as loops, want 3 and the last: %s", flows, loops, log)
	}
}

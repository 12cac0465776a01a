package tunnel_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"culvert/policy"
	"culvert/tunnel"
	"culvert/tunnel/h2"
	"culvert/tunnel/tunneltest"
	"culvert/tunnel/tunneltest/memnet"
)

func logTo(l *tunneltest.Log) slog.Handler { return slog.NewTextHandler(l, nil) }

func TestPairCarriesFlows(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{})
	p.Echo(t, "10.0.0.2:80")
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			c, err := p.Dial(testContext(t), "10.0.0.2:80")
			if err != nil {
				t.Error(err)
				return
			}
			wantEcho(t, c, strings.Repeat("hello ", 10_000))
		})
	}
	wg.Wait()
	p.Entry.Close()
	p.Exit.Close()
	for name, g := range map[string]*tunnel.Gateway{"entry": p.Entry, "exit": p.Exit} {
		s := g.Stats()
		if s.Flows != 50 || s.Active != 0 || s.Ended["ok"] != 50 || s.BytesIn != 50*60_000 || s.BytesOut != 50*60_000 {
			t.Errorf("%s: %d flows, %d active, %d ended well, %d and %d bytes; want 50, 0, 50, 3000000 each", name, s.Flows, s.Active, s.Ended["ok"], s.BytesIn, s.BytesOut)
		}
	}
	if s := p.Entry.Stats(); s.TransportDials != 1 || s.Transports != 0 {
		t.Errorf("%d connections made to the hop, %d open after Close, want 1 and 0", s.TransportDials, s.Transports)
	}
}

// What an exit answers, as HBONE.md has it.
func TestExitStatus(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{})
	p.Echo(t, "10.0.0.2:80")
	p.Net.Silence(netip.MustParseAddrPort("10.0.0.2:81"))
	same := p.CA.Issue(t, "cluster.local", "default", "client")
	other := p.CA.Issue(t, "cluster.local", "other", "client")
	for _, tt := range []struct {
		name      string
		who       *tunneltest.Identity
		method    string
		authority string
		status    int
		proxy     string // error type
	}{
		{"allowed", same, "CONNECT", "10.0.0.2:80", 200, ""},
		{"GET", same, "GET", "10.0.0.2:80", 400, "http_request_error"},
		{"POST", same, "POST", "10.0.0.2:80", 400, "http_request_error"},
		{"no port", same, "CONNECT", "10.0.0.2", 400, "http_request_error"},
		{"port 0", same, "CONNECT", "10.0.0.2:0", 400, "http_request_error"},
		{"port 99999", same, "CONNECT", "10.0.0.2:99999", 400, "http_request_error"},
		{"userinfo", same, "CONNECT", "a@10.0.0.2:80", 400, "http_request_error"},
		{"zone", same, "CONNECT", "[fe80::1%25eth0]:80", 400, "http_request_error"},
		{"odd spelling", same, "CONNECT", "0x0a.0.0.2:80", 400, "http_request_error"},
		{"mapped", same, "CONNECT", "[::ffff:10.0.0.2]:80", 400, "http_request_error"},
		{"not the address that was dialled", same, "CONNECT", "10.0.0.3:80", 400, "http_request_error"},
		{"loopback", same, "CONNECT", "127.0.0.1:80", 400, "http_request_error"},
		{"unknown host", same, "CONNECT", "nobody.example:80", 503, "destination_not_found"},
		{"nobody listens", same, "CONNECT", "10.0.0.2:82", 503, "connection_refused"},
		{"a port of the mesh", same, "CONNECT", "10.0.0.2:15006", 503, "destination_unavailable"},
		{"our own listener", same, "CONNECT", "10.0.0.2:15008", 503, "destination_unavailable"},
		{"another namespace", other, "CONNECT", "10.0.0.2:80", 401, "http_request_denied"},
		{"another namespace, no route", other, "CONNECT", "10.0.0.3:80", 401, "http_request_denied"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := &h2.Header{Method: tt.method, Authority: tt.authority}
			if tt.method != "CONNECT" {
				h.Scheme, h.Path = "https", "/"
			}
			s, resp := mustPeer(t, p.Net, tt.who, tunneltest.ExitListen).ask(h)
			status := resp.Get("proxy-status")
			if resp.Status != tt.status || !strings.Contains(status, "error="+tt.proxy) && tt.proxy != "" {
				t.Fatalf("answer %d, %s, want %d with error=%s", resp.Status, status, tt.status, tt.proxy)
			}
			if strings.Contains(status, "10.0.0.") || strings.Contains(status, "spiffe") {
				t.Errorf("proxy-status tells addresses or identities: %s", status)
			}
			if tt.status == 200 {
				if b := resp.Get("baggage"); b != "k8s.namespace.name=default,k8s.deployment.name=exit,service.name=exit" {
					t.Errorf("baggage %q, want that of the exit", b)
				}
				return
			}
			if n, err := s.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("body %d, %v, want none", n, err)
			}
			if !strings.HasPrefix(status, `"exit"; `) || resp.Get("baggage") != "" {
				t.Errorf("proxy-status %s, baggage %q, want the exit to name itself and no baggage", status, resp.Get("baggage"))
			}
		})
	}
	log := p.Log.String()
	for _, want := range []string{"reason=denied", "peer=spiffe://cluster.local/ns/other/sa/client", "reason=refused", "reason=not-local", "reason=malformed"} {
		if !strings.Contains(log, want) {
			t.Errorf("no record has %s", want)
		}
	}
}

func TestPeersThatTLSRefuses(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{})
	foreign := p.CA.Issue(t, "evil.example", "default", "client")
	c, err := newPeer(t, p.Net, foreign, "10.0.0.1", tunneltest.ExitListen)
	if err != nil {
		t.Fatal(err) // in TLS 1.3 the client's side of the handshake is complete before the server's verdict
	}
	<-c.conn.Done()
	if err := c.conn.Err(); tunnel.CauseOf(err) != tunnel.CauseHopAlert {
		t.Errorf("the peer saw %v, want a TLS alert", err)
	}
	stranger := tunneltest.NewCA(t).Issue(t, "cluster.local", "default", "client")
	if _, err := newPeer(t, p.Net, stranger, "10.0.0.1", tunneltest.ExitListen); err == nil {
		t.Error("a peer of another CA got through TLS")
	}
	waitUntil(t, "both peers to be refused", func() bool { return p.Exit.Stats().TLSRefused == 2 })
	if s := p.Exit.Stats(); s.Flows != 0 {
		t.Errorf("%d flows, want none", s.Flows)
	}
	if !strings.Contains(p.Log.String(), "peer refused") || !strings.Contains(p.Log.String(), "evil.example") {
		t.Errorf("the log does not tell of the refused peer: %s", p.Log)
	}
}

// An app behind the entry learns what the exit says.
func TestRefusalReachesTheApp(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{})
	for _, tt := range []struct {
		name, target string
		cause        tunnel.Cause
	}{
		{"connection refused", "10.0.0.2:82", tunnel.CauseRefused},
		{"not local", "10.0.0.9:80", tunnel.CauseNotLocal},
		{"unknown host", "nobody.example:80", tunnel.CauseUnknownHost},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := p.Refusal(testContext(t), tt.target)
			var refused *tunnel.RefusedError
			if !errors.As(err, &refused) || tunnel.CauseOf(err) != tt.cause {
				t.Fatalf("dial = %v, want a refusal with cause %v", err, tt.cause)
			}
			if refused.Hop != "exit" || len(refused.Statuses) != 1 || refused.Statuses[0].Name != "exit" {
				t.Errorf("refusal %+v, want it to name the hop", refused)
			}
		})
	}
	p.Exit.Close()
	if err := p.Refusal(testContext(t), "10.0.0.2:80"); tunnel.CauseOf(err) == tunnel.CauseNone {
		t.Errorf("dial with a dead hop = %v, want an error", err)
	}
}

func TestWrongHopIdentity(t *testing.T) {
	for _, tt := range []struct {
		name     string
		exit     [3]string
		identity string // of the hop in the configuration
		cause    tunnel.Cause
	}{
		{"another namespace", [3]string{"cluster.local", "other", "exit"}, "", tunnel.CauseHopIdentity},
		{"another trust domain", [3]string{"evil.example", "default", "exit"}, "", tunnel.CauseHopIdentity},
		{"not who is configured", [3]string{"cluster.local", "default", "exit"}, "spiffe://cluster.local/ns/default/sa/other", tunnel.CauseHopIdentity},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ca := tunneltest.NewCA(t)
			p := tunneltest.NewPair(t, tunneltest.Options{
				EntryID: ca.Issue(t, "cluster.local", "default", "entry"), ExitID: ca.Issue(t, tt.exit[0], tt.exit[1], tt.exit[2]),
				Entry: func(c *tunnel.Config) {
					c.Hops["exit"] = tunnel.HopConfig{Address: tunneltest.ExitListen, Identity: tt.identity}
				},
			})
			for range 3 {
				if err := p.Refusal(testContext(t), "10.0.0.2:80"); tunnel.CauseOf(err) != tt.cause {
					t.Fatalf("dial = %v, want cause %v", err, tt.cause)
				}
			}
			if s := p.Entry.Stats(); s.TransportDials != 1 {
				t.Errorf("%d handshakes for 3 flows, want 1: the hop is left alone for a while", s.TransportDials)
			}
		})
	}
}

// A hop that refuses our certificate does so after our side of the handshake.
func TestHopRefusesUs(t *testing.T) {
	ca := tunneltest.NewCA(t)
	p := tunneltest.NewPair(t, tunneltest.Options{
		EntryID: ca.Issue(t, "evil.example", "default", "entry"), ExitID: ca.Issue(t, "cluster.local", "default", "exit"),
		Entry: func(c *tunnel.Config) {
			c.Hops["exit"] = tunnel.HopConfig{Address: tunneltest.ExitListen, Identity: "spiffe://cluster.local/ns/default/sa/exit"}
		},
	})
	for range 3 {
		if err := p.Refusal(testContext(t), "10.0.0.2:80"); tunnel.CauseOf(err) != tunnel.CauseHopAlert {
			t.Fatalf("dial = %v, want cause %v", err, tunnel.CauseHopAlert)
		}
	}
	if s := p.Entry.Stats(); s.TransportDials != 1 {
		t.Errorf("%d handshakes for 3 flows with a hop that refuses us, want 1", s.TransportDials)
	}
}

// What a hop is told, in which order, and who believes it.
func TestHeaderFields(t *testing.T) {
	n, ca := memnet.New(), tunneltest.NewCA(t)
	gw, client := ca.Issue(t, "cluster.local", "default", "gw"), ca.Issue(t, "cluster.local", "default", "client")
	hop := newFakeHop(t, n, ca.Issue(t, "cluster.local", "default", "far"), "10.0.0.3:15008", echo)
	cfg := func(trust ...string) *tunnel.Config {
		return &tunnel.Config{
			Listeners:    []tunnel.ListenerConfig{{Name: "mesh", Kind: tunnel.KindHBONE, Address: "10.0.0.2:15008"}},
			Routes:       []tunnel.RouteConfig{{Via: []string{"10.0.0.3:15008"}}},
			TrustHeaders: trust,
			Workloads:    []tunnel.WorkloadConfig{{Name: "shop", Namespace: "web", Addresses: []string{tunneltest.EntryAddr}, Labels: map[string]string{"version": "v7"}}},
		}
	}
	log := &tunneltest.Log{}
	g := tunneltest.NewGateway(t, n, "10.0.0.2", gw, cfg(), nil, nil, logTo(log))
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	told := []h2.Field{{Name: "baggage", Value: "k8s.namespace.name=forged"}, {Name: "baggage", Value: "x=y"}, {Name: "forwarded", Value: `for="192.0.2.9:1"`},
		{Name: "traceparent", Value: trace}, {Name: "via", Value: "2 someone"}, {Name: "x-istio-source", Value: "gateway"}}
	ask := func() map[string]string {
		t.Helper()
		p := mustPeer(t, n, client, "10.0.0.2:15008")
		if status, proxy := p.status("svc.example:80", told...); status != 200 {
			t.Fatalf("answer %d, %s, want 200", status, proxy)
		}
		h := <-hop.asked
		got, order := make(map[string]string), []string{}
		for _, f := range h.Fields {
			got[f.Name] = f.Value
			order = append(order, f.Name)
		}
		if h.Authority != "svc.example:80" || strings.Join(order, " ") != "baggage forwarded traceparent via" {
			t.Errorf("request to %s with fields %v, want baggage, forwarded, traceparent, via", h.Authority, order)
		}
		return got
	}
	got := ask()
	if want := "k8s.namespace.name=web,k8s.deployment.name=shop,service.name=shop,service.version=v7"; got["baggage"] != want {
		t.Errorf("baggage %q, want %q: of the source's workload, not what an untrusted peer says", got["baggage"], want)
	}
	if f := got["forwarded"]; !strings.HasPrefix(f, `for="10.0.0.1:`) || !strings.HasSuffix(f, `";host=svc.example`) {
		t.Errorf("forwarded %q, want the peer's own address alone", f)
	}
	if got["traceparent"][:36] == trace[:36] || !strings.HasPrefix(got["via"], "2 culvert, 2 culvert-") {
		t.Errorf("traceparent %q, via %q, want a new trace and two gateways without the name", got["traceparent"], got["via"])
	}
	if err := g.Reload(context.Background(), cfg("cluster.local/ns/default/sa/client")); err != nil {
		t.Fatal(err)
	}
	got = ask()
	if got["baggage"] != "k8s.namespace.name=forged,x=y" {
		t.Errorf("baggage %q, want that of a trusted peer", got["baggage"])
	}
	if f := got["forwarded"]; !strings.HasPrefix(f, `for="192.0.2.9:1", for="10.0.0.1:`) {
		t.Errorf("forwarded %q, want the list to grow", f)
	}
	if tp := got["traceparent"]; tp[:36] != trace[:36] || tp == trace {
		t.Errorf("traceparent %q, want the trace to go on with a parent id of ours", tp)
	}
	if !strings.HasPrefix(got["via"], "2 someone, 2 culvert-") {
		t.Errorf("via %q, want the name that a trusted peer told and ours", got["via"])
	}
}

func TestEntryTellsWhatZtunnelTells(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{Entry: func(c *tunnel.Config) {
		c.Hops["exit"] = tunnel.HopConfig{Address: "10.0.0.3:15008"}
	}})
	hop := newFakeHop(t, p.Net, p.CA.Issue(t, "cluster.local", "default", "far"), "10.0.0.3:15008", echo)
	c, err := p.Dial(testContext(t), "192.0.2.1:80")
	if err != nil {
		t.Fatal(err)
	}
	wantEcho(t, c, "x")
	var order []string
	h := <-hop.asked
	for _, f := range h.Fields {
		order = append(order, f.Name)
	}
	if strings.Join(order, " ") != "baggage forwarded traceparent" || h.Scheme != "" || h.Path != "" {
		t.Errorf("fields %v, scheme %q, path %q, want only baggage, forwarded, traceparent", order, h.Scheme, h.Path)
	}
	if got, want := h.Get("forwarded"), `for="10.0.0.1:50000"`; got != want {
		t.Errorf("forwarded %s, want %s", got, want)
	}
}

// Anything but exactly 200 is a refusal; a content-length with it means nothing.
func TestHopAnswers(t *testing.T) {
	for _, tt := range []struct {
		name   string
		status int
		fields []h2.Field
		cause  tunnel.Cause
	}{
		{"200 with a content-length", 200, []h2.Field{{Name: "content-length", Value: "3"}}, tunnel.CauseNone},
		{"204", 204, nil, tunnel.CauseHopProtocol},
		{"302", 302, nil, tunnel.CauseHopProtocol},
		{"403 as Envoy", 403, nil, tunnel.CauseDenied},
		{"503 with a reason", 503, []h2.Field{{Name: "proxy-status", Value: "far; error=dns_timeout"}}, tunnel.CauseDNSTimeout},
		{"a garbled reason", 503, []h2.Field{{Name: "proxy-status", Value: `"`}}, tunnel.CauseUnavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := tunneltest.NewPair(t, tunneltest.Options{Entry: func(c *tunnel.Config) {
				c.Hops["exit"] = tunnel.HopConfig{Address: "10.0.0.3:15008"}
			}})
			newFakeHop(t, p.Net, p.CA.Issue(t, "cluster.local", "default", "far"), "10.0.0.3:15008", func(s *h2.Stream) {
				defer s.Close()
				if s.Respond(&h2.Header{Status: tt.status, Fields: tt.fields}, false) == nil {
					io.Copy(s, s)
				}
			})
			c, err := p.Dial(testContext(t), "192.0.2.1:80")
			if tunnel.CauseOf(err) != tt.cause {
				t.Fatalf("dial = %v, want cause %v", err, tt.cause)
			}
			if err == nil {
				wantEcho(t, c, "more than three bytes")
			}
		})
	}
}

func TestTunnelIsCutByTheHop(t *testing.T) {
	for _, code := range []h2.ErrCode{h2.NoError, h2.Cancel, h2.ConnectError, h2.InternalError} {
		t.Run(code.String(), func(t *testing.T) {
			p := tunneltest.NewPair(t, tunneltest.Options{Entry: func(c *tunnel.Config) {
				c.Hops["exit"] = tunnel.HopConfig{Address: "10.0.0.3:15008"}
			}})
			newFakeHop(t, p.Net, p.CA.Issue(t, "cluster.local", "default", "far"), "10.0.0.3:15008", func(s *h2.Stream) {
				s.Respond(&h2.Header{Status: 200}, false)
				s.Write([]byte("part"))
				s.Read(make([]byte, 1)) // the app has read it
				s.Reset(code)
				s.Close()
			})
			c, err := p.Dial(testContext(t), "192.0.2.1:80")
			if err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 4)
			io.ReadFull(c, buf)
			c.Write([]byte("x"))
			if n, err := c.Read(buf); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("app read %d, %v, want ECONNRESET: a cut tunnel is no end", n, err)
			}
			c.Close()
		})
	}
}

// A destination that resets shows at the peer as CONNECT_ERROR (RFC 9113, section 8.5).
func TestDestinationResets(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{})
	tunneltest.Serve(t, p.Net, "10.0.0.2:80", func(c *memnet.Conn) {
		c.Read(make([]byte, 1))
		c.SetLinger(0)
		c.Close()
	})
	s, resp := mustPeer(t, p.Net, p.CA.Issue(t, "cluster.local", "default", "client"), tunneltest.ExitListen).connect("10.0.0.2:80")
	if resp.Status != 200 {
		t.Fatalf("answer %d, want 200", resp.Status)
	}
	s.Write([]byte("x"))
	_, err := s.Read(make([]byte, 1))
	var reset *h2.StreamError
	if !errors.As(err, &reset) || reset.Code != h2.ConnectError || reset.By != h2.Peer {
		t.Errorf("Read = %v, want RST_STREAM(CONNECT_ERROR) by the peer", err)
	}
}

// A peer that resets its stream cuts the connection to the destination.
func TestPeerResets(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{})
	broke := make(chan error, 1)
	tunneltest.Serve(t, p.Net, "10.0.0.2:80", func(c *memnet.Conn) {
		_, err := io.ReadAll(c)
		broke <- err
		c.Close()
	})
	s, resp := mustPeer(t, p.Net, p.CA.Issue(t, "cluster.local", "default", "client"), tunneltest.ExitListen).connect("10.0.0.2:80")
	if resp.Status != 200 {
		t.Fatalf("answer %d, want 200", resp.Status)
	}
	s.Write([]byte("x"))
	s.Reset(h2.Cancel)
	if err := <-broke; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the destination read %v, want ECONNRESET", err)
	}
}

// A dial is cancelled with the stream that asked for it.
func TestDialEndsWithTheStream(t *testing.T) {
	cancelled := make(chan struct{})
	p := tunneltest.NewPair(t, tunneltest.Options{ExitEnv: func(e *tunnel.Env) {
		dial := e.Dial
		e.Dial = func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
			c, err := dial(ctx, to)
			if ctx.Err() != nil {
				close(cancelled)
			}
			return c, err
		}
	}})
	p.Net.Silence(netip.MustParseAddrPort("10.0.0.2:81"))
	peer := mustPeer(t, p.Net, p.CA.Issue(t, "cluster.local", "default", "client"), tunneltest.ExitListen)
	s, err := peer.conn.Open(testContext(t), &h2.Header{Method: "CONNECT", Authority: "10.0.0.2:81"}, false)
	if err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "the dial", func() bool { return p.Net.Dials(netip.MustParseAddrPort("10.0.0.2:81")) > 0 })
	s.Reset(h2.Cancel)
	s.Close()
	select {
	case <-cancelled:
	case <-time.After(5 * time.Second):
		t.Error("the dial goes on although nobody waits for it")
	}
}

func TestDialTimeout(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{Exit: func(c *tunnel.Config) { c.Timeouts.Dial = 20 * time.Millisecond }})
	p.Net.Silence(netip.MustParseAddrPort("10.0.0.2:81"))
	if err := p.Refusal(testContext(t), "10.0.0.2:81"); tunnel.CauseOf(err) != tunnel.CauseTimeout {
		t.Errorf("dial = %v, want cause %v", err, tunnel.CauseTimeout)
	}
}

func TestBudgetFull(t *testing.T) {
	budget := h2.NewBudget(1)
	p := tunneltest.NewPair(t, tunneltest.Options{ExitEnv: func(e *tunnel.Env) { e.Budget = budget }})
	// A byte is less than what the connection between the gateways holds.
	if err := p.Refusal(testContext(t), "10.0.0.2:80"); tunnel.CauseOf(err) != tunnel.CauseFull {
		t.Errorf("dial = %v, want cause %v", err, tunnel.CauseFull)
	}
}

func TestPolicyAllowAdds(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{Exit: func(c *tunnel.Config) {
		c.Policy = policy.Config{Allow: []string{"cluster.local/ns/other/*"}}
	}})
	p.Echo(t, "10.0.0.2:80")
	other := p.CA.Issue(t, "cluster.local", "other", "client")
	if status, proxy := mustPeer(t, p.Net, other, tunneltest.ExitListen).status("10.0.0.2:80"); status != 200 {
		t.Errorf("answer %d, %s, want 200", status, proxy)
	}
}

// An app that goes away while the tunnel is opened leaves nothing behind.
func TestAppGoneBeforeTheAnswer(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{})
	broke := make(chan error, 1)
	tunneltest.Serve(t, p.Net, "10.0.0.2:80", func(c *memnet.Conn) {
		_, err := io.ReadAll(c)
		broke <- err
		c.Close()
	})
	f := &tunnel.Flow{Listener: "apps", Way: "test", Peer: p.Entry.Self(), Target: tunnel.Target{Addr: netip.MustParseAddr("10.0.0.2"), Port: 80}}
	over := make(chan struct{})
	f.Ended = func() { close(over) }
	p.Entry.Carry(f, goneApp{})
	<-over
	if err := <-broke; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the destination read %v, want ECONNRESET", err)
	}
	if got := p.Entry.Stats().Ended["source-gone"]; got != 1 {
		t.Errorf("%d flows counted as source-gone, want 1", got)
	}
}

// goneApp is gone when it is answered.
type goneApp struct{}

func (goneApp) Accept(*tunnel.Flow) (tunnel.Conn, []byte, error) { return nil, nil, io.ErrClosedPipe }
func (goneApp) Refuse(*tunnel.Flow, error)                       {}
func (goneApp) Gone() <-chan struct{}                            { return nil }

package tunnel_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"culvert/capture"
	"culvert/tunnel"
	"culvert/tunnel/h2"
	"culvert/tunnel/tunneltest"
	"culvert/tunnel/tunneltest/memnet"
)

func TestDrainWaitsForFlows(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{})
	p.Echo(t, "10.0.0.2:80")
	live, err := p.Dial(testContext(t), "10.0.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	peer := mustPeer(t, p.Net, p.CA.Issue(t, "cluster.local", "default", "client"), tunneltest.ExitListen)
	tunnelled, _ := peer.connect("10.0.0.2:80")
	drained := make(chan error, 1)
	go func() { drained <- p.Exit.Drain(testContext(t)) }() // ends with the flows; received below
	<-peer.conn.Retired()
	if _, err := p.Net.From(netip.MustParseAddr("10.0.0.1"))(testContext(t), netip.MustParseAddrPort(tunneltest.ExitListen)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("connect while draining = %v, want ECONNREFUSED: the listener is closed", err)
	}
	wantEcho(t, live, "still here")
	tunnelled.Write([]byte("me too"))
	tunnelled.CloseWrite()
	if got, err := io.ReadAll(tunnelled); string(got) != "me too" || err != nil {
		t.Errorf("a live tunnel read %q, %v while draining", got, err)
	}
	tunnelled.Close()
	if err := <-drained; err != nil {
		t.Errorf("Drain = %v, want nil: every flow ended by itself", err)
	}
	if s := p.Exit.Stats(); s.Ended["ok"] != 2 || s.Active != 0 || s.Connections != 0 {
		t.Errorf("%d flows ended well, %d live, %d connections; want 2, 0, 0", s.Ended["ok"], s.Active, s.Connections)
	}
}

// A flow that is handed in while the gateway drains is refused.
func TestDrainRefusesNewFlows(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{})
	p.Echo(t, "10.0.0.2:80")
	live, err := p.Dial(testContext(t), "10.0.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	drained := make(chan error, 1)
	go func() { drained <- p.Entry.Drain(testContext(t)) }() // ends with the flow; received below
	waitUntil(t, "the drain to begin", func() bool { return tunnel.CauseOf(p.Refusal(testContext(t), "10.0.0.2:80")) == tunnel.CauseDraining })
	wantEcho(t, live, "x")
	if err := <-drained; err != nil {
		t.Errorf("Drain = %v, want nil", err)
	}
}

func TestDrainDeadlineCuts(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{})
	p.Echo(t, "10.0.0.2:80")
	app, err := p.Dial(testContext(t), "10.0.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	app.Write([]byte("x"))
	io.ReadFull(app, make([]byte, 1))
	tunnelled, _ := mustPeer(t, p.Net, p.CA.Issue(t, "cluster.local", "default", "client"), tunneltest.ExitListen).connect("10.0.0.2:80")
	ctx, cancel := context.WithTimeout(testContext(t), 50*time.Millisecond)
	defer cancel()
	if err := p.Exit.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Drain = %v, want its deadline", err)
	}
	if _, err := app.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("app read %v, want ECONNRESET: a flow that is cut is not complete", err)
	}
	_, err = tunnelled.Read(make([]byte, 1))
	var reset *h2.StreamError
	if !errors.As(err, &reset) || reset.Code != h2.ConnectError || reset.By != h2.Peer {
		t.Errorf("a peer read %v, want RST_STREAM(CONNECT_ERROR)", err)
	}
	if got := p.Exit.Stats().Ended["cut"]; got != 2 {
		t.Errorf("%d flows counted as cut, want 2", got)
	}
}

func TestSecondDrainEndsAtOnce(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{})
	p.Echo(t, "10.0.0.2:80")
	app, err := p.Dial(testContext(t), "10.0.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	var wg sync.WaitGroup
	first := make(chan error, 1)
	wg.Go(func() { first <- p.Exit.Drain(context.Background()) })
	waitUntil(t, "the drain to begin", func() bool {
		_, err := p.Net.From(netip.MustParseAddr("10.0.0.1"))(testContext(t), netip.MustParseAddrPort(tunneltest.ExitListen))
		return err != nil
	})
	p.Exit.Drain(context.Background())
	if err := <-first; err == nil {
		t.Error("the first Drain = nil, want an error: a flow was cut")
	}
	wg.Wait()
}

func TestIdleAndAge(t *testing.T) {
	for _, tt := range []struct {
		name     string
		timeouts tunnel.TimeoutConfig
		talk     bool
		cause    string
	}{
		{"idle", tunnel.TimeoutConfig{Idle: 1500 * time.Millisecond}, false, "idle"},
		{"age, although it talks", tunnel.TimeoutConfig{Age: 5 * time.Second, Idle: time.Hour}, true, "age"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := tunneltest.NewPair(t, tunneltest.Options{Entry: func(c *tunnel.Config) { c.Timeouts = tt.timeouts }})
			p.Echo(t, "10.0.0.2:80")
			app, err := p.Dial(testContext(t), "10.0.0.2:80")
			if err != nil {
				t.Fatal(err)
			}
			defer app.Close()
			buf := make([]byte, 1)
			for tt.talk {
				if _, err := app.Write(buf); err != nil {
					break
				}
				if _, err := io.ReadFull(app, buf); err != nil {
					break
				}
			}
			if _, err := app.Read(buf); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("app read %v, want ECONNRESET", err)
			}
			waitUntil(t, "the record", func() bool { return p.Entry.Stats().Ended[tt.cause] == 1 })
		})
	}
}

func TestReload(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{})
	p.Echo(t, "10.0.0.2:80")
	old, err := p.Dial(testContext(t), "10.0.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	next := func() *tunnel.Config {
		return &tunnel.Config{
			Listeners: []tunnel.ListenerConfig{
				{Name: "apps", Kind: tunnel.KindSOCKS5, Address: "127.0.0.1:1080"},
				{Name: "plain", Kind: tunnel.KindForward, Address: "127.0.0.1:8080", To: "10.0.0.2:80"},
			},
			Hops: map[string]tunnel.HopConfig{"exit": {Address: tunneltest.ExitListen, Connections: 1}},
			Routes: []tunnel.RouteConfig{
				{Listeners: []string{"plain"}, Via: []string{"exit"}},
				{Listeners: []string{"apps"}, Hosts: []string{"only.example"}, Via: []string{"exit"}},
			},
		}
	}
	bad := next()
	bad.Routes[0].Via = []string{"nowhere"}
	var problems tunnel.Problems
	if err := p.Entry.Reload(testContext(t), bad); !errors.As(err, &problems) || problems[0].Path != "routes[0].via[0]" {
		t.Errorf("Reload of an unknown hop = %v, want a problem at routes[0].via[0]", err)
	}
	taken := next()
	taken.Listeners[1].Address = tunneltest.ExitListen // in use
	if err := p.Entry.Reload(testContext(t), taken); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "plain") {
		t.Errorf("Reload with a port in use = %v, want EADDRINUSE and the listener's name", err)
	}
	again, err := p.Dial(testContext(t), "10.0.0.2:80")
	if err != nil {
		t.Fatalf("after two bad reloads dial = %v, want the old configuration to run", err)
	}
	wantEcho(t, again, "x")
	if err := p.Entry.Reload(testContext(t), next()); err != nil {
		t.Fatal(err)
	}
	if err := p.Refusal(testContext(t), "10.0.0.2:80"); tunnel.CauseOf(err) != tunnel.CauseNoRoute {
		t.Errorf("dial = %v, want the new routes to refuse it", err)
	}
	c, err := p.Net.From(netip.MustParseAddr("127.0.0.1"))(testContext(t), netip.MustParseAddrPort("127.0.0.1:8080"))
	if err != nil {
		t.Fatalf("the new listener: %v", err)
	}
	wantEcho(t, c.(*memnet.Conn), "new")
	wantEcho(t, old, "the flow that ran lives on")
	gone := next()
	gone.Listeners, gone.Routes = gone.Listeners[:1], gone.Routes[1:]
	if err := p.Entry.Reload(testContext(t), gone); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Net.From(netip.MustParseAddr("127.0.0.1"))(testContext(t), netip.MustParseAddrPort("127.0.0.1:8080")); err == nil {
		t.Error("a listener that is no longer configured still accepts")
	}
	if got := p.Entry.Stats().TransportDials; got != 1 {
		t.Errorf("%d connections to the hop, want 1: reloads keep it", got)
	}
}

func TestFlowsTable(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{})
	p.Echo(t, "10.0.0.2:80")
	var list []*memnet.Conn
	for range 20 {
		c, err := p.Dial(testContext(t), "10.0.0.2:80")
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte("123"))
		io.ReadFull(c, make([]byte, 3))
		list = append(list, c)
	}
	// A byte is counted when it has been written, which is a moment before the count.
	waitUntil(t, "the counts", func() bool { s := p.Entry.Stats(); return s.BytesIn == 60 && s.BytesOut == 60 })
	flows := p.Entry.Flows(5)
	if len(flows) != 5 {
		t.Fatalf("Flows(5) returned %d", len(flows))
	}
	for i, f := range flows {
		if !f.Stands || f.Hop != "exit" || f.Target != "10.0.0.2:80" || f.Src != "10.0.0.1:50000" || f.BytesOut != 3 || f.BytesIn != 3 {
			t.Errorf("flow %+v, want it to stand, via exit, with 3 bytes each way", f)
		}
		if i > 0 && f.Started.After(flows[i-1].Started) {
			t.Error("flows are not the youngest first")
		}
	}
	if n := len(p.Exit.Flows(1000)); n != 20 {
		t.Errorf("the exit lists %d flows, want 20", n)
	}
	if s := p.Entry.Stats(); s.Active != 20 {
		t.Errorf("%d flows active, want 20", s.Active)
	}
	for _, c := range list {
		c.Close()
	}
	waitUntil(t, "the flows to end", func() bool { return len(p.Entry.Flows(1000)) == 0 && len(p.Exit.Flows(1000)) == 0 })
}

func TestPing(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{})
	cfg := &tunnel.Config{Hops: map[string]tunnel.HopConfig{"exit": {Address: tunneltest.ExitListen}, "dead": {Address: "10.0.0.9:1"}}}
	id, rtt, err := p.Entry.Ping(testContext(t), cfg, "exit")
	if err != nil || id.ServiceAccount() != "exit" || rtt <= 0 {
		t.Errorf("Ping = %v, %v, %v, want the exit's identity and a time", id, rtt, err)
	}
	if _, _, err := p.Entry.Ping(testContext(t), cfg, "dead"); !errors.Is(err, syscall.ECONNREFUSED) || !strings.Contains(err.Error(), "dead") {
		t.Errorf("Ping of a dead hop = %v, want ECONNREFUSED and its name", err)
	}
}

// A SOCKS5 client hears of success when the tunnel stands, and of a refusal in its own words.
func TestSOCKS5(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{})
	p.Echo(t, "10.0.0.2:80")
	for _, tt := range []struct {
		name  string
		addr  [4]byte
		port  byte
		reply byte // RFC 1928, section 6
	}{
		{"success", [4]byte{10, 0, 0, 2}, 80, 0},
		{"connection refused", [4]byte{10, 0, 0, 2}, 82, 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			nc, err := p.Net.From(netip.MustParseAddr("127.0.0.1"))(testContext(t), netip.MustParseAddrPort("127.0.0.1:1080"))
			if err != nil {
				t.Fatal(err)
			}
			c := nc.(*memnet.Conn)
			defer c.Close()
			// A client that sends its payload without waiting.
			c.Write(append([]byte{5, 1, 0, 5, 1, 0, 1, tt.addr[0], tt.addr[1], tt.addr[2], tt.addr[3], 0, tt.port}, "early "...))
			got := make([]byte, 2+10)
			if _, err := io.ReadFull(c, got); err != nil || got[3] != tt.reply {
				t.Fatalf("replies % x, %v, want reply %d", got, err, tt.reply)
			}
			if tt.reply == 0 {
				c.Write([]byte("late"))
				c.CloseWrite()
				if b, err := io.ReadAll(c); string(b) != "early late" || err != nil {
					t.Errorf("read %q, %v, want early late", b, err)
				}
			}
		})
	}
	nc, err := p.Net.From(netip.MustParseAddr("127.0.0.1"))(testContext(t), netip.MustParseAddrPort("127.0.0.1:1080"))
	if err != nil {
		t.Fatal(err)
	}
	nc.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
	io.ReadAll(nc)
	nc.Close()
	waitUntil(t, "the count", func() bool { return p.Entry.Stats().CaptureFailed == 1 })
}

// brokenListener returns errors before it accepts.
type brokenListener struct {
	net.Listener
	errs atomic.Int64
}

func (l *brokenListener) Accept() (net.Conn, error) {
	if l.errs.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return l.Listener.Accept()
}

// Without files accepting pauses, and goes on when there are some again.
func TestAcceptBacksOff(t *testing.T) {
	var broken brokenListener
	broken.errs.Store(8)
	start := time.Now()
	p := tunneltest.NewPair(t, tunneltest.Options{ExitEnv: func(e *tunnel.Env) {
		listen := e.Listen
		e.Listen = func(ctx context.Context, s tunnel.Socket) (net.Listener, error) {
			l, err := listen(ctx, s)
			broken.Listener = l
			return &broken, err
		}
	}})
	p.Echo(t, "10.0.0.2:80")
	c, err := p.Dial(testContext(t), "10.0.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	wantEcho(t, c, "x")
	// Each pause is double the last, from 5 ms; each error is followed by an attempt to shed.
	if s := p.Exit.Stats(); s.AcceptErrors < 3 || s.AcceptErrors > 8 || time.Since(start) < 30*time.Millisecond {
		t.Errorf("%d errors in %v, want a few with growing pauses", s.AcceptErrors, time.Since(start))
	}
	if n := strings.Count(p.Log.String(), "accepting pauses"); n != 1 {
		t.Errorf("%d lines about it, want 1", n)
	}
}

func TestMaxConnections(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{Entry: func(c *tunnel.Config) {
		c.Listeners[0].MaxConnections = 2
	}})
	dial := func() net.Conn {
		t.Helper()
		c, err := p.Net.From(netip.MustParseAddr("127.0.0.1"))(testContext(t), netip.MustParseAddrPort("127.0.0.1:1080"))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	a, b := dial(), dial()
	waitUntil(t, "both connections", func() bool { return p.Entry.Stats().Connections == 2 })
	c := dial()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the third read %v, want ECONNRESET", err)
	}
	if got := p.Entry.Stats().Shed; got != 1 {
		t.Errorf("%d shed, want 1", got)
	}
	a.Close()
	b.Close()
	waitUntil(t, "both to be over", func() bool { return p.Entry.Stats().Connections == 0 })
	d := dial()
	d.Write([]byte{5, 1, 0})
	if _, err := io.ReadFull(d, make([]byte, 2)); err != nil {
		t.Errorf("a connection after the others were over: %v", err)
	}
	d.Close()
}

// A peer that begins a handshake and stops does not stay.
func TestSlowHandshakeEnds(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{Exit: func(c *tunnel.Config) { c.Timeouts.Handshake = 20 * time.Millisecond }})
	c, err := p.Net.From(netip.MustParseAddr("10.0.0.1"))(testContext(t), netip.MustParseAddrPort(tunneltest.ExitListen))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write([]byte{0x16})
	if _, err := io.ReadAll(c); err != nil {
		t.Errorf("read %v, want the end", err)
	}
	waitUntil(t, "the count", func() bool { return p.Exit.Stats().TLSRefused == 1 })
}

// Kinds of listeners can come from elsewhere.
func TestOtherWays(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{
		EntryEnv: func(e *tunnel.Env) {
			e.Ways = map[string]func(*tunnel.ListenerConfig) (capture.Way, error){
				"magic": func(*tunnel.ListenerConfig) (capture.Way, error) { return capture.NewForward("10.0.0.2:80") },
			}
		},
		Entry: func(c *tunnel.Config) {
			c.Listeners = append(c.Listeners, tunnel.ListenerConfig{Name: "m", Kind: "magic", Address: "127.0.0.1:9"})
			c.Routes[0].Listeners = nil
		},
	})
	p.Echo(t, "10.0.0.2:80")
	c, err := p.Net.From(netip.MustParseAddr("127.0.0.1"))(testContext(t), netip.MustParseAddrPort("127.0.0.1:9"))
	if err != nil {
		t.Fatal(err)
	}
	wantEcho(t, c.(*memnet.Conn), "x")
}

// A listener keeps its socket when a reload gives it another name or kind.
func TestReloadChangesAListener(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{})
	p.Echo(t, "10.0.0.2:80")
	next := &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "renamed", Kind: tunnel.KindForward, Address: "127.0.0.1:1080", To: "10.0.0.2:80"}},
		Routes:    []tunnel.RouteConfig{{Listeners: []string{"renamed"}, Via: []string{tunneltest.ExitListen}}},
	}
	if err := p.Entry.Reload(testContext(t), next); err != nil {
		t.Fatal(err)
	}
	c, err := p.Net.From(netip.MustParseAddr("127.0.0.1"))(testContext(t), netip.MustParseAddrPort("127.0.0.1:1080"))
	if err != nil {
		t.Fatal(err)
	}
	wantEcho(t, c.(*memnet.Conn), "forwarded now")
	if p.Entry.Addr("renamed") == nil || p.Entry.Addr("apps") != nil {
		t.Errorf("Addr of the new name %v, of the old one %v", p.Entry.Addr("renamed"), p.Entry.Addr("apps"))
	}
}

// A mesh listener that a reload takes away says goodbye to its peers, whose flows live on.
func TestReloadRemovesAMeshListener(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{})
	p.Echo(t, "10.0.0.2:80")
	peer := mustPeer(t, p.Net, p.CA.Issue(t, "cluster.local", "default", "client"), tunneltest.ExitListen)
	s, _ := peer.connect("10.0.0.2:80")
	next := &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "mesh", Kind: tunnel.KindHBONE, Address: "10.0.0.2:15009"}},
		Routes:    []tunnel.RouteConfig{{Destinations: []string{"local"}}},
	}
	if err := p.Exit.Reload(testContext(t), next); err != nil {
		t.Fatal(err)
	}
	<-peer.conn.Retired()
	s.Write([]byte("x"))
	s.CloseWrite()
	if got, err := io.ReadAll(s); string(got) != "x" || err != nil {
		t.Errorf("a live flow read %q, %v, want it to live on", got, err)
	}
	s.Close()
	<-peer.conn.Done()
	if status, _ := mustPeer(t, p.Net, p.CA.Issue(t, "cluster.local", "default", "client"), "10.0.0.2:15009").status("10.0.0.2:80"); status != 200 {
		t.Errorf("the new address answers %d, want 200", status)
	}
}

func TestStartTwiceAndReloadBefore(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{})
	if err := p.Entry.Start(testContext(t)); err == nil {
		t.Error("Start of a gateway that runs succeeded")
	}
	p.Entry.Close()
	p.Entry.Close()
	if err := p.Entry.Reload(testContext(t), &tunnel.Config{}); tunnel.CauseOf(err) != tunnel.CauseDraining {
		t.Errorf("Reload after Close = %v, want draining", err)
	}
	if err := p.Refusal(testContext(t), "10.0.0.2:80"); tunnel.CauseOf(err) != tunnel.CauseDraining {
		t.Errorf("dial after Close = %v, want draining", err)
	}
}

// Close ends flows in every phase: while they are opened, while they run, half-closed, stalled.
func TestCloseInEveryPhase(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{})
	p.Echo(t, "10.0.0.2:80")
	tunneltest.Serve(t, p.Net, "10.0.0.2:83", func(c *memnet.Conn) { io.ReadFull(c, make([]byte, 1)) }) // then stalls until it is closed
	p.Net.Silence(netip.MustParseAddrPort("10.0.0.2:81"))
	var wg sync.WaitGroup
	var apps []*memnet.Conn
	for range 5 {
		wg.Go(func() { p.Refusal(testContext(t), "10.0.0.2:81") })
		running, err := p.Dial(testContext(t), "10.0.0.2:80")
		if err != nil {
			t.Fatal(err)
		}
		half, err := p.Dial(testContext(t), "10.0.0.2:83")
		if err != nil {
			t.Fatal(err)
		}
		half.CloseWrite()
		stalled, err := p.Dial(testContext(t), "10.0.0.2:83")
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() { stalled.Write(make([]byte, 10<<20)) })
		apps = append(apps, running, half, stalled)
	}
	waitUntil(t, "the dials", func() bool { return p.Net.Dials(netip.MustParseAddrPort("10.0.0.2:81")) == 5 })
	p.Entry.Close()
	p.Exit.Close()
	wg.Wait()
	for _, g := range []*tunnel.Gateway{p.Entry, p.Exit} {
		if s := g.Stats(); s.Active != 0 || s.Connections != 0 || s.Transports != 0 {
			t.Errorf("%d flows, %d connections, %d transports after Close, want none", s.Active, s.Connections, s.Transports)
		}
	}
	for _, c := range apps {
		c.Close()
	}
}

// An app that goes away while its tunnel is asked for costs the hop a reset, but not more of them than hops
// allow; beyond that the answer is waited for.
func TestWithdrawnRequests(t *testing.T) {
	answer := make(chan struct{})
	p := tunneltest.NewPair(t, tunneltest.Options{Entry: func(c *tunnel.Config) {
		c.Hops["exit"] = tunnel.HopConfig{Address: "10.0.0.3:15008", Connections: 1}
	}})
	var resets, waited atomic.Int64
	newFakeHop(t, p.Net, p.CA.Issue(t, "cluster.local", "default", "far"), "10.0.0.3:15008", func(s *h2.Stream) {
		defer s.Close()
		select {
		case <-s.Done():
			resets.Add(1)
		case <-answer:
			waited.Add(1)
			s.Respond(&h2.Header{Status: 200}, false)
		}
	})
	const flows = 80
	var wg sync.WaitGroup
	for range flows {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(testContext(t), 200*time.Millisecond)
			defer cancel()
			if err := p.Refusal(ctx, "192.0.2.1:80"); tunnel.CauseOf(err) != tunnel.CauseSourceGone {
				t.Errorf("dial = %v, want that the app is gone", err)
			}
		})
	}
	wg.Wait()
	abandoned := p.Entry.Stats().Abandoned
	if abandoned < 20 || abandoned > 30 {
		t.Errorf("%d of %d requests were left to be answered, want about 30: 50 resets are allowed at once", abandoned, flows)
	}
	waitUntil(t, "the resets to come", func() bool { return resets.Load() == flows-abandoned })
	close(answer)
	waitUntil(t, "the rest to be answered", func() bool { return resets.Load()+waited.Load() == flows })
	if waited.Load() != abandoned {
		t.Errorf("%d answered, %d reset; want %d answered", waited.Load(), resets.Load(), abandoned)
	}
}

// The record of a refused flow names the rule that refused it.
func TestRecordNamesTheRule(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{Exit: func(c *tunnel.Config) { c.Routes = []tunnel.RouteConfig{{}} }})
	p.Refusal(testContext(t), "169.254.169.254:80")
	p.Refusal(testContext(t), "10.9.9.9:80")
	p.Entry.Close()
	p.Exit.Close()
	for _, want := range []string{"rule=guard/metadata reason=prohibited", "rule=guard/private reason=prohibited", "listener=mesh", "way=connect",
		"src=10.0.0.1:", "peer=spiffe://cluster.local/ns/default/sa/entry", "dst=169.254.169.254:80", "bytes_in=0", "dur="} {
		if !strings.Contains(p.Log.String(), want) {
			t.Errorf("no record has %q:\n%s", want, p.Log)
		}
	}
}

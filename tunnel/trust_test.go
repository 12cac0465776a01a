package tunnel_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"culvert/pki/spiffe"
	"culvert/tunnel"
	"culvert/tunnel/h2"
	"culvert/tunnel/tunneltest"
	"culvert/tunnel/tunneltest/memnet"
)

// doubter is an Env.Doubt that doubts the peers that a test names.
type doubter struct{ name atomic.Pointer[string] }

func (d *doubter) doubt(account string) { d.name.Store(&account) }

func (d *doubter) ask(certs []*x509.Certificate, _ bool) error {
	if name := d.name.Load(); name != nil && strings.HasSuffix(certs[0].URIs[0].Path, "/sa/"+*name) {
		return errors.New("revoked by a test")
	}
	return nil
}

// dialed opens a flow and has one byte go there and back.
func dialed(t *testing.T, g *tunnel.Gateway, listener, target string) *memnet.Conn {
	t.Helper()
	app, err := tunneltest.Dial(testContext(t), g, listener, target)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := app.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(app, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return app
}

// When the identity of a peer is revoked its live flows end, with the reason, and it starts no new ones; those of others
// live on.
func TestRecheckEndsFlowsOfRevokedPeer(t *testing.T) {
	var d doubter
	p := tunneltest.NewPair(t, tunneltest.Options{ExitEnv: func(e *tunnel.Env) { e.Doubt = d.ask }})
	p.Echo(t, "10.0.0.2:80")
	other := tunneltest.NewGateway(t, p.Net, "10.0.0.7", p.CA.Issue(t, "cluster.local", "default", "other"), &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "apps", Kind: tunnel.KindSOCKS5, Address: "127.0.0.1:1081"}},
		Hops:      map[string]tunnel.HopConfig{"exit": {Address: tunneltest.ExitListen}},
		Routes:    []tunnel.RouteConfig{{Via: []string{"exit"}}},
	}, nil, nil, slog.NewTextHandler(p.Log, nil))
	revoked := dialed(t, p.Entry, "apps", "10.0.0.2:80")
	lives := dialed(t, other, "apps", "10.0.0.2:80")
	p.Exit.Recheck()
	wantEcho(t, dialed(t, p.Entry, "apps", "10.0.0.2:80"), "nobody is doubted yet")

	d.doubt("entry")
	p.Exit.Recheck()
	if _, err := revoked.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the flow of the revoked peer reads %v, want ECONNRESET", err)
	}
	wantEcho(t, lives, "the other lives on")
	waitUntil(t, "the record", func() bool { return p.Exit.Stats().Ended["revoked"] >= 1 }) // 2 where the one before was not over yet
	if log := p.Log.String(); !strings.Contains(log, "reason=revoked") || !strings.Contains(log, "revoked by a test") {
		t.Errorf("the log does not say why:\n%s", log)
	}
}

// When the identity of a hop is revoked the flows through it end.
func TestRecheckEndsFlowsThroughRevokedHop(t *testing.T) {
	var d doubter
	p := tunneltest.NewPair(t, tunneltest.Options{EntryEnv: func(e *tunnel.Env) { e.Doubt = d.ask }})
	p.Echo(t, "10.0.0.2:80")
	app := dialed(t, p.Entry, "apps", "10.0.0.2:80")
	d.doubt("exit")
	p.Entry.Recheck()
	if _, err := app.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the flow through the revoked hop reads %v, want ECONNRESET", err)
	}
	waitUntil(t, "the record", func() bool { return p.Entry.Stats().Ended["revoked"] == 1 })
}

// When a peer's certificate expires it starts no new flow on the connection that it was shown on; live ones run on, or
// end where the configuration wants that.
func TestExpiry(t *testing.T) {
	for _, tt := range []struct {
		expiry string
		ends   bool
	}{{"", false}, {"drain", false}, {"end", true}} {
		t.Run("expiry="+tt.expiry, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca := tunneltest.NewCA(t)
				p := tunneltest.NewPair(t, tunneltest.Options{
					EntryID: ca.IssueUntil(t, "cluster.local", "default", "entry", time.Now().Add(time.Hour)),
					ExitID:  ca.Issue(t, "cluster.local", "default", "exit"),
					Exit:    func(c *tunnel.Config) { c.Expiry = tt.expiry },
				})
				p.Echo(t, "10.0.0.2:80")
				app := dialed(t, p.Entry, "apps", "10.0.0.2:80")
				time.Sleep(time.Hour - time.Second)
				synctest.Wait()
				wantEcho(t, dialed(t, p.Entry, "apps", "10.0.0.2:80"), "the last second counts")
				time.Sleep(3 * time.Second)
				synctest.Wait()
				if err := p.Refusal(testContext(t), "10.0.0.2:80"); err == nil {
					t.Error("a new flow was let in with an expired certificate")
				}
				if !tt.ends {
					wantEcho(t, app, "it runs on")
					return
				}
				if _, err := app.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("the live flow reads %v, want ECONNRESET", err)
				}
			})
		})
	}
}

// A flow of a peer whose certificate has expired since the last look is refused with the reason.
func TestExpiryBeforeTheNextLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := tunneltest.NewCA(t)
		p := tunneltest.NewPair(t, tunneltest.Options{
			EntryID: ca.IssueUntil(t, "cluster.local", "default", "entry", time.Now().Add(time.Hour+300*time.Millisecond)),
			ExitID:  ca.Issue(t, "cluster.local", "default", "exit"),
		})
		p.Echo(t, "10.0.0.2:80")
		live := dialed(t, p.Entry, "apps", "10.0.0.2:80")
		time.Sleep(time.Hour + 400*time.Millisecond)
		if err := p.Refusal(testContext(t), "10.0.0.2:80"); err == nil {
			t.Error("a flow with an expired certificate was let in")
		}
		if log := p.Log.String(); !strings.Contains(log, "reason=expired") {
			t.Errorf("the log does not say why:\n%s", log)
		}
		wantEcho(t, live, "it runs on")
	})
}

// Who a peer is may be told by the program.
func TestIdentify(t *testing.T) {
	key := spiffe.KeyID([32]byte{7})
	p := tunneltest.NewPair(t, tunneltest.Options{ExitEnv: func(e *tunnel.Env) {
		e.Identify = func(cs *tls.ConnectionState, at netip.Addr) (spiffe.ID, error) {
			if at != netip.MustParseAddr(tunneltest.EntryAddr) {
				return spiffe.ID{}, errors.New("from elsewhere")
			}
			return key, nil
		}
	}, Exit: func(c *tunnel.Config) { c.Policy.Allow = []string{key.String()} }})
	p.Echo(t, "10.0.0.2:80")
	wantEcho(t, dialed(t, p.Entry, "apps", "10.0.0.2:80"), "hello")
	waitUntil(t, "the record", func() bool { return strings.Contains(p.Log.String(), "peer="+key.String()) })
}

// A flow lives on when its hop takes no new ones on the connection, and still ends when the hop is revoked.
func TestRecheckEndsFlowsThroughRevokedHopThatLeaves(t *testing.T) {
	var d doubter
	p := tunneltest.NewPair(t, tunneltest.Options{EntryEnv: func(e *tunnel.Env) { e.Doubt = d.ask }})
	p.Echo(t, "10.0.0.2:80")
	app := dialed(t, p.Entry, "apps", "10.0.0.2:80")
	ctx, stop := context.WithCancel(testContext(t))
	drained := make(chan error, 1)
	go func() { drained <- p.Exit.Drain(ctx) }() // ends with the flow, or with stop; waited for below
	waitUntil(t, "the entry to hear that the exit leaves", func() bool {
		return p.Refusal(testContext(t), "10.0.0.2:80") != nil
	})
	d.doubt("exit")
	p.Entry.Recheck()
	_ = app.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := app.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the flow through the revoked hop reads %v, want ECONNRESET", err)
	}
	stop()
	<-drained
	waitUntil(t, "the record", func() bool { return p.Entry.Stats().Ended["revoked"] > 0 }) // one, or more that came before the goodbye
}

// A hop that is revoked while the handshake with it is under way is looked at again.
func TestRecheckDuringTheHandshakeWithAHop(t *testing.T) {
	var d doubter
	var entry atomic.Pointer[tunnel.Gateway]
	p := tunneltest.NewPair(t, tunneltest.Options{EntryEnv: func(e *tunnel.Env) {
		e.Doubt = d.ask
		identify := e.Identify
		e.Identify = func(cs *tls.ConnectionState, at netip.Addr) (spiffe.ID, error) { // after the hop's certificate was verified
			if g := entry.Load(); g != nil {
				d.doubt("exit")
				g.Recheck()
			}
			if identify != nil {
				return identify(cs, at)
			}
			return spiffe.FromCertificate(cs.PeerCertificates[0])
		}
	}})
	entry.Store(p.Entry)
	p.Echo(t, "10.0.0.2:80")
	app, err := tunneltest.Dial(testContext(t), p.Entry, "apps", "10.0.0.2:80")
	if err != nil {
		return // it was refused at once
	}
	_ = app.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := app.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a flow through a hop that was revoked during its handshake reads %v, want ECONNRESET", err)
	}
}

// Whoever is not believed any more is cut although its certificate has ended as well: what a self-made key shows ends each
// day, and its flows go on.
func TestRecheckAfterExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d doubter
		ca := tunneltest.NewCA(t)
		p := tunneltest.NewPair(t, tunneltest.Options{
			EntryID: ca.IssueUntil(t, "cluster.local", "default", "entry", time.Now().Add(time.Hour)),
			ExitID:  ca.Issue(t, "cluster.local", "default", "exit"),
			ExitEnv: func(e *tunnel.Env) { e.Doubt = d.ask },
		})
		p.Echo(t, "10.0.0.2:80")
		app := dialed(t, p.Entry, "apps", "10.0.0.2:80")
		time.Sleep(time.Hour + 3*time.Second)
		synctest.Wait()
		p.Exit.Recheck()
		if _, err := app.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(app, make([]byte, 1)); err != nil {
			t.Fatalf("a flow whose peer is not doubted reads %v", err)
		}
		d.doubt("entry")
		p.Exit.Recheck()
		_ = app.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := app.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the flow reads %v, want ECONNRESET", err)
		}
	})
}

// A hop that says that a certificate has expired says nothing about the peer that has asked here: that is answered, and its
// connection goes on.
func TestHopThatSaysExpired(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{Exit: func(c *tunnel.Config) {
		c.Hops = map[string]tunnel.HopConfig{"far": {Address: "10.0.0.3:15008"}}
		c.Routes = []tunnel.RouteConfig{{Via: []string{"far"}}}
	}})
	newFakeHop(t, p.Net, p.CA.Issue(t, "cluster.local", "default", "far"), "10.0.0.3:15008", func(s *h2.Stream) {
		defer s.Close()
		_ = s.Respond(&h2.Header{Status: 401, Fields: []h2.Field{{Name: "proxy-status", Value: `far; error=http_request_denied; details="certificate expired"`}}}, true)
	})
	peer := mustPeer(t, p.Net, p.CA.Issue(t, "cluster.local", "default", "entry"), tunneltest.ExitListen)
	// Once: a second flow would have another connection made beside, which may come while the hop's end waits for its own.
	if got, status := peer.status("192.0.2.1:80"); got != 401 {
		t.Fatalf("status %d (%s), want 401", got, status)
	}
	if peer.conn.Draining() {
		t.Error("the connection of the peer takes no more streams")
	}
}

// Looks at peers, reloads, new flows and the end of the gateway may come together in any order.
func TestRecheckAmongEverything(t *testing.T) {
	var doubts atomic.Int64
	odd := func([]*x509.Certificate, bool) error {
		if doubts.Add(1)%7 == 0 {
			return errors.New("doubted by a test")
		}
		return nil
	}
	cfg := &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "apps", Kind: tunnel.KindSOCKS5, Address: "127.0.0.1:1081"}},
		Hops:      map[string]tunnel.HopConfig{"exit": {Address: tunneltest.ExitListen}},
		Routes:    []tunnel.RouteConfig{{Via: []string{"exit"}}},
	}
	p := tunneltest.NewPair(t, tunneltest.Options{ExitEnv: func(e *tunnel.Env) { e.Doubt = odd }})
	p.Echo(t, "10.0.0.2:80")
	entry := tunneltest.NewGateway(t, p.Net, "10.0.0.7", p.CA.Issue(t, "cluster.local", "default", "other"), cfg, nil,
		func(e *tunnel.Env) { e.Doubt = odd }, slog.NewTextHandler(io.Discard, nil))
	ctx := testContext(t)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 50 {
				c, err := tunneltest.Dial(ctx, entry, "apps", "10.0.0.2:80")
				if err != nil {
					continue // doubted, or closed
				}
				_, _ = c.Write([]byte("x"))
				_, _ = c.Read(make([]byte, 1))
				_ = c.Close()
			}
		})
	}
	for range 2 {
		all.Go(func() {
			for range 50 {
				entry.Recheck()
				p.Exit.Recheck()
			}
		})
	}
	all.Go(func() {
		for range 20 {
			_ = entry.Reload(ctx, cfg)
		}
		entry.Close()
	})
	all.Wait()
	entry.Recheck() // of one that is closed
	waitUntil(t, "the last records", func() bool { return entry.Stats().Active == 0 })
}

package tunnel_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"culvert/tunnel"
	"culvert/tunnel/h2"
	"culvert/tunnel/tunneltest"
	"culvert/tunnel/tunneltest/memnet"
)

// slowReader is a connection that delivers nothing while it is held.
type slowReader struct {
	net.Conn
	mu   sync.Mutex
	free *sync.Cond
	held bool // guarded by mu
}

func newSlowReader(nc net.Conn) *slowReader {
	r := &slowReader{Conn: nc}
	r.free = sync.NewCond(&r.mu)
	return r
}

func (r *slowReader) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.held {
		r.free.Wait()
	}
	return n, err
}

func (r *slowReader) hold(held bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held = held
	r.free.Broadcast()
}

// startDrain drains g and returns when its listener on address accepts no more.
func startDrain(t *testing.T, ctx context.Context, n *memnet.Net, g *tunnel.Gateway, address string) (drained chan error) {
	t.Helper()
	drained = make(chan error, 1)
	go func() { drained <- g.Drain(ctx) }() // ends with what was accepted, or ctx; the caller receives
	waitUntil(t, "the listener to close", func() bool {
		nc, err := n.From(netip.MustParseAddr("10.0.0.9"))(ctx, netip.MustParseAddrPort(address))
		if err == nil {
			nc.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	return drained
}

// A peer that has not heard of the drain asks for a tunnel: it is served. So is one whose connection was accepted
// before, and whose TLS handshake comes after.
func TestDrainServesPeersThatDoNotKnow(t *testing.T) {
	for _, tt := range []struct {
		name string
		late bool // the handshake
	}{{"a stream", false}, {"a connection", true}} {
		t.Run(tt.name, func(t *testing.T) {
			p := tunneltest.NewPair(t, tunneltest.Options{})
			p.Echo(t, "10.0.0.2:80")
			nc, err := p.Net.From(netip.MustParseAddr(tunneltest.EntryAddr))(testContext(t), netip.MustParseAddrPort(tunneltest.ExitListen))
			if err != nil {
				t.Fatal(err)
			}
			slow := newSlowReader(nc)
			tc := tls.Client(slow, p.CA.Issue(t, "cluster.local", "default", "client").AnyTLS())
			var conn *h2.Conn
			handshake := func() {
				t.Helper()
				if err := tc.HandshakeContext(testContext(t)); err != nil {
					t.Fatal(err)
				}
				slow.hold(tt.late)
				if conn, err = h2.NewClient(tc, nil); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					slow.hold(false)
					conn.Close()
				})
			}
			if !tt.late {
				handshake()
				if err := conn.WaitSettings(testContext(t)); err != nil {
					t.Fatal(err)
				}
				slow.hold(true)
			}
			waitUntil(t, "the connection", func() bool { return p.Exit.Stats().Connections == 1 })
			drained := startDrain(t, testContext(t), p.Net, p.Exit, tunneltest.ExitListen)
			if tt.late {
				handshake()
			}
			s, err := conn.Open(testContext(t), &h2.Header{Method: "CONNECT", Authority: "10.0.0.2:80"}, false)
			if err != nil {
				t.Fatal(err)
			}
			waitUntil(t, "the flow", func() bool { return p.Exit.Stats().Flows == 1 })
			slow.hold(false)
			if resp, err := s.Response(testContext(t)); err != nil || resp.Status != 200 {
				t.Fatalf("Response() = %+v, %v, want 200", resp, err)
			}
			wantEcho(t, s, "served")
			if err := <-drained; err != nil {
				t.Errorf("Drain = %v, want nil", err)
			}
		})
	}
}

// A program that was accepted, and had not said what it wants when the drain began, is served.
func TestDrainServesAcceptedPrograms(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{})
	p.Echo(t, "10.0.0.2:80")
	app := dialApp(t, p)
	waitUntil(t, "the connection", func() bool { return p.Entry.Stats().Connections == 1 })
	drained := startDrain(t, testContext(t), p.Net, p.Entry, "127.0.0.1:1080")
	app.Write([]byte{5, 1, 0, 5, 1, 0, 1, 10, 0, 0, 2, 0, 80})
	reply := make([]byte, 2+10)
	if _, err := io.ReadFull(app, reply); err != nil || reply[3] != 0 {
		t.Fatalf("replies % x, %v, want success", reply, err)
	}
	wantEcho(t, app, "served")
	if err := <-drained; err != nil {
		t.Errorf("Drain = %v, want nil", err)
	}
}

// A program that never says what it wants keeps a drain no longer than its time.
func TestDrainDeadlineEndsHandshakes(t *testing.T) {
	p := tunneltest.NewPair(t, tunneltest.Options{})
	app := dialApp(t, p)
	waitUntil(t, "the connection", func() bool { return p.Entry.Stats().Connections == 1 })
	ctx, cancel := context.WithTimeout(testContext(t), 50*time.Millisecond)
	defer cancel()
	if err := p.Entry.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Drain = %v, want its deadline", err)
	}
	if n, err := app.Read(make([]byte, 1)); err == nil {
		t.Errorf("the program read %d bytes after the gateway's end", n)
	}
}

// dialApp connects to the entry's SOCKS5 listener as a program of its host.
func dialApp(t *testing.T, p *tunneltest.Pair) *memnet.Conn {
	t.Helper()
	nc, err := p.Net.From(netip.MustParseAddr("127.0.0.1"))(testContext(t), netip.MustParseAddrPort("127.0.0.1:1080"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return nc.(*memnet.Conn)
}

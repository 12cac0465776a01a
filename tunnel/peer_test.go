package tunnel_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"culvert/tunnel"
	"culvert/tunnel/h2"
	"culvert/tunnel/tunneltest"
	"culvert/tunnel/tunneltest/memnet"
)

// testContext ends with the test, or when it takes too long.
func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// waitUntil polls for what has no event to wait for.
func waitUntil(t *testing.T, what string, ready func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ready(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still waiting for %s", what)
		}
	}
}

// peer is a connection to a gateway's hbone listener that a test drives itself.
type peer struct {
	t    *testing.T
	conn *h2.Conn
}

// newPeer connects to address of n as id.
func newPeer(t *testing.T, n *memnet.Net, id *tunneltest.Identity, from, address string) (*peer, error) {
	t.Helper()
	ctx := testContext(t)
	nc, err := n.From(netip.MustParseAddr(from))(ctx, netip.MustParseAddrPort(address))
	if err != nil {
		t.Fatal(err)
	}
	tc := tls.Client(nc, id.AnyTLS())
	if err := tc.HandshakeContext(ctx); err != nil {
		nc.Close()
		return nil, err
	}
	return peerOver(t, tc), nil
}

// peerOver speaks HTTP/2 over a connection to a gateway.
func peerOver(t *testing.T, tc *tls.Conn) *peer {
	t.Helper()
	c, err := h2.NewClient(tc, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &peer{t: t, conn: c}
}

// resolveTo is tunnel.Env.Resolve where every name has one address.
func resolveTo(addr string) func(context.Context, string) ([]netip.Addr, error) {
	return func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr(addr)}, nil
	}
}

// mustPeer is newPeer where the gateway takes the peer.
func mustPeer(t *testing.T, n *memnet.Net, id *tunneltest.Identity, address string) *peer {
	t.Helper()
	p, err := newPeer(t, n, id, tunneltest.EntryAddr, address)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// ask sends a request and returns the stream and the answer.
func (p *peer) ask(h *h2.Header) (*h2.Stream, *h2.Header) {
	p.t.Helper()
	ctx := testContext(p.t)
	s, err := p.conn.Open(ctx, h, false)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { s.Close() })
	resp, err := s.Response(ctx)
	if err != nil {
		p.t.Fatalf("Response() = %v", err)
	}
	return s, resp
}

// connect asks for a tunnel to authority.
func (p *peer) connect(authority string, fields ...h2.Field) (*h2.Stream, *h2.Header) {
	p.t.Helper()
	return p.ask(&h2.Header{Method: "CONNECT", Authority: authority, Fields: fields})
}

// status asks for a tunnel and returns the status and the proxy-status of the answer.
func (p *peer) status(authority string, fields ...h2.Field) (int, string) {
	p.t.Helper()
	s, resp := p.connect(authority, fields...)
	s.Close()
	return resp.Status, resp.Get("proxy-status")
}

// fakeHop is an hbone listener that is no gateway: it answers every request as the test wants and keeps
// what was asked.
type fakeHop struct {
	asked chan *h2.Header
}

// newFakeHop listens on address of n as id; handle answers.
func newFakeHop(t *testing.T, n *memnet.Net, id *tunneltest.Identity, address string, handle func(*h2.Stream)) *fakeHop {
	t.Helper()
	return newFakeHopOf(t, n, id, address, h2.Config{}, handle)
}

// newFakeHopOf is newFakeHop with a configuration of its connections.
func newFakeHopOf(t *testing.T, n *memnet.Net, id *tunneltest.Identity, address string, cfg h2.Config, handle func(*h2.Stream)) *fakeHop {
	t.Helper()
	hop := &fakeHop{asked: make(chan *h2.Header, 100)}
	tunneltest.Serve(t, n, address, func(nc *memnet.Conn) {
		tc := tls.Server(nc, id.AnyTLS())
		if tc.Handshake() != nil {
			nc.Close()
			return
		}
		cfg := cfg
		cfg.Handler = func(s *h2.Stream) {
			hop.asked <- s.Request()
			handle(s)
		}
		c, err := h2.NewServer(tc, &cfg)
		if err != nil {
			return
		}
		<-c.Done()
		c.Close()
	})
	return hop
}

// echo answers 200 and returns what comes.
func echo(s *h2.Stream) {
	defer s.Close()
	if s.Respond(&h2.Header{Status: 200}, false) == nil {
		io.Copy(s, s)
	}
}

// wantEcho sends text over c, half-closes, and wants it back.
func wantEcho(t *testing.T, c interface {
	net.Conn
	CloseWrite() error
}, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatalf("Write = %v", err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatalf("CloseWrite = %v", err)
	}
	got, err := io.ReadAll(c)
	if string(got) != text || err != nil {
		t.Fatalf("read %q, %v, want %q and the end", got, err, text)
	}
	c.Close()
}

// meshRoute is a route of the exit's listener.
func meshRoute(r tunnel.RouteConfig) tunnel.RouteConfig {
	r.Listeners = []string{"mesh"}
	return r
}

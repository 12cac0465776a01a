package tunnel_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"culvert/policy"
	"culvert/tunnel"
	"culvert/tunnel/h2"
	"culvert/tunnel/tunneltest"
	"culvert/tunnel/tunneltest/memnet"
)

// dialProxy connects to the exit of p as a proxy does.
func (p *outerPair) dialProxy(t *testing.T) net.Conn {
	t.Helper()
	nc, err := p.net.From(netip.MustParseAddr("10.0.0.7"))(testContext(t), netip.MustParseAddrPort(tunListen))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return nc
}

// proxy is dialProxy with HTTP/2.
func (p *outerPair) proxy(t *testing.T) *peer {
	t.Helper()
	c, err := h2.NewClient(p.dialProxy(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &peer{t: t, conn: c}
}

// post is a request with x-tun, of more fields.
func post(fields ...h2.Field) *h2.Header {
	return &h2.Header{Method: "POST", Scheme: "https", Authority: "lb.example", Path: "/x-tun", Fields: fields}
}

var (
	good   = h2.Field{Name: "authorization", Value: "Bearer " + goodToken}
	toEcho = h2.Field{Name: "x-tun", Value: "10.0.0.2:80"}
)

func TestXTunRequestsFromStrangers(t *testing.T) {
	token := func(value string) h2.Field { return h2.Field{Name: "authorization", Value: value} }
	to := func(value string) h2.Field { return h2.Field{Name: "x-tun", Value: value} }
	get := post(good, toEcho)
	get.Method = "GET"
	udp := &h2.Header{Method: "CONNECT", Protocol: "connect-udp", Scheme: "https", Authority: "lb.example", Path: "/", Fields: []h2.Field{good, toEcho}}
	for _, tt := range []struct {
		name      string
		head      *h2.Header
		status    int
		challenge string
	}{
		{"no token", post(toEcho), 401, `Bearer realm="x-tun"`},
		{"two tokens", post(good, good, toEcho), 401, `error_description="malformed"`},
		{"no Bearer", post(token("Basic eDp5"), toEcho), 401, `error_description="malformed"`},
		{"empty", post(token("Bearer"), toEcho), 401, `error_description="malformed"`},
		{"expired", post(token("Bearer expired"), toEcho), 401, `error_description="expired"`},
		{"of another issuer", post(token("bearer unknown-issuer"), toEcho), 401, `error_description="unknown-issuer"`},
		{"no token, and a wrong destination", post(to("0x7f.1:80")), 401, `Bearer realm="x-tun"`},
		{"no x-tun", post(good), 400, ""},
		{"two x-tun", post(good, toEcho, toEcho), 400, ""},
		{"two x-tun that differ", post(good, toEcho, to("10.0.0.2:81")), 400, ""},
		{"a list", post(good, to("10.0.0.2:80, 10.0.0.2:81")), 400, ""},
		{"empty x-tun", post(good, to("")), 400, ""},
		{"no port", post(good, to("10.0.0.2")), 400, ""},
		{"hexadecimal", post(good, to("0xa9.0xfe.0xa9.0xfe:80")), 400, ""},
		{"one number", post(good, to("2852039166:80")), 400, ""},
		{"octal", post(good, to("0251.0376.0251.0376:80")), 400, ""},
		{"mapped", post(good, to("[::ffff:169.254.169.254]:80")), 400, ""},
		{"with a zone", post(good, to("[fe80::1%eth0]:80")), 400, ""},
		{"with a name and password", post(good, to("a:b@10.0.0.2:80")), 400, ""},
		{"a port that wraps", post(good, to("10.0.0.2:4294967376")), 400, ""},
		{"a unix socket", post(good, to("unix:/run/x.sock")), 400, ""},
		{"our own listener", post(good, to(tunListen)), 503, ""},
		{"the admin address", post(good, to("10.0.0.2:15000")), 503, ""},
		{"GET", get, 400, ""},
		{"CONNECT-UDP", udp, 400, ""},
		{"a length", post(good, toEcho, h2.Field{Name: "content-length", Value: "5"}), 400, ""},
		{"health", &h2.Header{Method: "GET", Scheme: "http", Authority: "lb", Path: "/healthz"}, 200, ""},
		{"health of somewhere else", &h2.Header{Method: "GET", Scheme: "http", Authority: "lb", Path: "/healthz/x"}, 400, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newOuterPair(t, "POST", outerOptions{exit: func(c *tunnel.Config) {
				c.Reserved = []netip.AddrPort{netip.MustParseAddrPort("10.0.0.2:15000")}
			}})
			s, resp := p.proxy(t).ask(tt.head)
			s.Close()
			if got := resp.Get("www-authenticate"); resp.Status != tt.status || !strings.Contains(got, tt.challenge) || tt.challenge == "" && got != "" {
				t.Errorf("answer %d, %q, want %d with %q\n%s", resp.Status, got, tt.status, tt.challenge, p.log)
			}
			if n := p.net.Dials(netip.MustParseAddrPort("10.0.0.2:80")); n > 0 {
				t.Errorf("the destination was dialled %d times", n)
			}
		})
	}
}

// An issuer or an audience that the listener does not want lets nobody in, whoever else believes it.
func TestXTunListenerWantsIssuerAndAudience(t *testing.T) {
	for _, tt := range []struct {
		name   string
		x      tunnel.XTunConfig
		status int
	}{
		{"as it is", tunnel.XTunConfig{Issuers: []string{"https://idp.example"}, Audiences: []string{"x", "gw"}}, 200},
		{"another issuer", tunnel.XTunConfig{Issuers: []string{"https://other.example"}}, 401},
		{"another audience", tunnel.XTunConfig{Audiences: []string{"gw2"}}, 401},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newOuterPair(t, "POST", outerOptions{exit: func(c *tunnel.Config) { c.Listeners[0].XTun = &tt.x }})
			if _, resp := p.proxy(t).ask(post(good, toEcho)); resp.Status != tt.status {
				t.Errorf("answer %d, want %d", resp.Status, tt.status)
			}
		})
	}
}

// inside asks for a tunnel to x-tun as a proxy does, and speaks TLS and HTTP/2 as id in it.
func (p *outerPair) inside(t *testing.T, to string, conf *tls.Config) (*peer, error) {
	t.Helper()
	s, resp := p.proxy(t).ask(post(good, h2.Field{Name: "x-tun", Value: to}))
	if resp.Status != 200 {
		t.Fatalf("answer %d", resp.Status)
	}
	tc := tls.Client(s, conf)
	if err := tc.HandshakeContext(testContext(t)); err != nil {
		return nil, err
	}
	return peerOver(t, tc), nil
}

// What is asked for inside is what x-tun names outside, and nothing else.
func TestXTunDeputy(t *testing.T) {
	p := newOuterPair(t, "POST", outerOptions{exit: func(c *tunnel.Config) {
		c.Routes = []tunnel.RouteConfig{{Listeners: []string{"tun"}, Destinations: []string{"local"}}, {Listeners: []string{"tun"}}}
		c.Policy = policy.Config{}
	}})
	for _, addr := range []string{"10.0.0.2:80", "10.0.0.2:81", "169.254.169.254:80"} {
		tunneltest.Echo(t, p.net, addr)
	}
	for _, tt := range []struct {
		name, outside, inside string
		fields                []h2.Field
		status                int
	}{
		{"the same", "10.0.0.2:80", "10.0.0.2:80", nil, 200},
		{"another port", "10.0.0.2:80", "10.0.0.2:81", nil, 400},
		{"another address", "10.0.0.2:80", "169.254.169.254:80", nil, 400},
		{"guarded in both", "169.254.169.254:80", "169.254.169.254:80", nil, 401},
		{"a name for its address", "10.0.0.2:80", "a.example:80", nil, 400},
		{"another spelling", "10.0.0.2:80", "10.0.0.2.:80", nil, 400},
		{"x-tun inside as well", "10.0.0.2:80", "10.0.0.2:80", []h2.Field{toEcho}, 400},
		{"x-tun inside that names another", "10.0.0.2:80", "10.0.0.2:80", []h2.Field{{Name: "x-tun", Value: "10.0.0.2:81"}}, 400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := p.net.Dials(netip.MustParseAddrPort("169.254.169.254:80")) + p.net.Dials(netip.MustParseAddrPort("10.0.0.2:81"))
			in, err := p.inside(t, tt.outside, p.ca.Issue(t, "cluster.local", "default", "entry").AnyTLS())
			if err != nil {
				t.Fatal(err)
			}
			if status, proxy := in.status(tt.inside, tt.fields...); status != tt.status {
				t.Errorf("answer %d, %s, want %d", status, proxy, tt.status)
			}
			if n := p.net.Dials(netip.MustParseAddrPort("169.254.169.254:80")) + p.net.Dials(netip.MustParseAddrPort("10.0.0.2:81")); n != before {
				t.Error("what was not asked for in both places was dialled")
			}
		})
	}
	t.Run("no CONNECT inside", func(t *testing.T) {
		in, err := p.inside(t, "10.0.0.2:80", p.ca.Issue(t, "cluster.local", "default", "entry").AnyTLS())
		if err != nil {
			t.Fatal(err)
		}
		if _, resp := in.ask(post(good, toEcho)); resp.Status != 400 {
			t.Errorf("a request with x-tun inside of another: %d, want 400", resp.Status)
		}
	})
}

// A good token is nobody: the certificate inside says who it is, and policy whether that may.
func TestXTunIdentityIsInside(t *testing.T) {
	p := newOuterPair(t, "POST", outerOptions{})
	tunneltest.Echo(t, p.net, "10.0.0.2:80")
	none := p.ca.Issue(t, "cluster.local", "default", "x").AnyTLS()
	none.Certificates = nil
	for _, tt := range []struct {
		name   string
		conf   *tls.Config
		status int // 0: TLS refuses
	}{
		{"a neighbour", p.ca.Issue(t, "cluster.local", "default", "x").AnyTLS(), 200},
		{"of another namespace", p.ca.Issue(t, "cluster.local", "other", "x").AnyTLS(), 401},
		{"of another trust domain", p.ca.Issue(t, "other.local", "default", "x").AnyTLS(), 0},
		{"of another CA", tunneltest.NewCA(t).Issue(t, "cluster.local", "default", "x").AnyTLS(), 0},
		{"no certificate", none, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.conf.VerifyConnection = nil // who the exit is, is not the question
			in, err := p.inside(t, "10.0.0.2:80", tt.conf)
			if err != nil {
				t.Fatal(err)
			}
			s, err := in.conn.Open(testContext(t), &h2.Header{Method: "CONNECT", Authority: "10.0.0.2:80"}, false)
			var resp *h2.Header
			if err == nil {
				resp, err = s.Response(testContext(t))
			}
			if tt.status == 0 && err == nil || tt.status != 0 && (err != nil || resp.Status != tt.status) {
				t.Errorf("answer %v, %v, want %d", resp, err, tt.status)
			}
		})
	}
}

// A listener that was not told to take x-tun refuses it, also beside a good CONNECT.
func TestXTunWhereItIsNotTaken(t *testing.T) {
	for name, x := range map[string]*tunnel.XTunConfig{"without xTun": nil, "with xTun": {}} {
		t.Run(name, func(t *testing.T) {
			p := tunneltest.NewPair(t, tunneltest.Options{
				Exit:    func(c *tunnel.Config) { c.Listeners[0].XTun = x },
				ExitEnv: func(e *tunnel.Env) { e.VerifyToken = verifyText },
			})
			p.Echo(t, "10.0.0.2:80")
			peer := mustPeer(t, p.Net, p.CA.Issue(t, "cluster.local", "default", "client"), tunneltest.ExitListen)
			if status, _ := peer.status("10.0.0.2:80"); status != 200 {
				t.Errorf("CONNECT: %d, want 200", status)
			}
			want := map[bool]int{true: 400, false: 401}[x == nil]
			if status, proxy := peer.status("10.0.0.2:80", toEcho); status != want {
				t.Errorf("CONNECT with x-tun: %d, %s, want %d", status, proxy, want)
			}
			_, resp := peer.ask(post(good, toEcho))
			if want := map[bool]int{true: 400, false: 200}[x == nil]; resp.Status != want {
				t.Errorf("POST with x-tun: %d, want %d", resp.Status, want)
			}
		})
	}
}

// A handshake that stalls ends in time, is told of, and there are only so many of one subject.
func TestXTunStalledHandshakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newOuterPair(t, "POST", outerOptions{})
		c, err := h2.NewClient(p.dialProxy(t), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		var stalled []*h2.Stream
		for i := range 40 {
			s, err := c.Open(t.Context(), post(good, toEcho), false)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := s.Response(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if want := map[bool]int{true: 200, false: 503}[i < 32]; resp.Status != want {
				t.Errorf("request %d: %d, want %d", i, resp.Status, want)
			}
			stalled = append(stalled, s)
		}
		_, _ = stalled[0].Write([]byte("\x16\x03\x01"))
		time.Sleep(6 * time.Second)
		synctest.Wait()
		for _, s := range stalled[:32] {
			_ = s.SetReadDeadline(time.Now())
			if _, err := io.ReadAll(s); errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("a stalled handshake lives on: %v", err)
			}
		}
		if n := p.exit.Stats().Connections; n != 1 {
			t.Errorf("%d connections, want the proxy's", n)
		}
		if log := p.log.String(); !strings.Contains(log, "the request came, and not a byte on it: a proxy on the way buffers requests") {
			t.Errorf("nobody says that nothing came: %s", log)
		}
		s, err := c.Open(t.Context(), post(good, toEcho), false)
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := s.Response(t.Context()); err != nil || resp.Status != 200 {
			t.Errorf("after that: %v, %v, want 200", resp, err)
		}
	})
}

// Garbage in the place of TLS ends its request and nothing else.
func TestXTunGarbageInside(t *testing.T) {
	p := newOuterPair(t, "POST", outerOptions{})
	tunneltest.Echo(t, p.net, "10.0.0.2:80")
	proxy := p.proxy(t)
	for _, garbage := range []string{"GET / HTTP/1.1\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", strings.Repeat("\x00", 100_000), "\x16\x03\x01\xff\xff" + strings.Repeat("x", 70_000)} {
		s, resp := proxy.ask(post(good, toEcho))
		if resp.Status != 200 {
			t.Fatalf("answer %d", resp.Status)
		}
		_, _ = s.Write([]byte(garbage)) // the answer may come before
		_ = s.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.ReadAll(s); errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("garbage is listened to: %v", err)
		}
		s.Close()
	}
	if c, err := p.dial(t, "10.0.0.2:80"); err != nil {
		t.Error(err)
	} else {
		wantEcho(t, c, "others live")
	}
}

// A token that is withdrawn ends what it has let in; one that has ended lets no new flow in.
func TestXTunTokenEnds(t *testing.T) {
	var withdrawn atomic.Bool
	until := time.Now().Add(time.Hour)
	p := newOuterPair(t, "POST", outerOptions{exitEnv: func(e *tunnel.Env) {
		e.VerifyToken = func(ctx context.Context, text string) (*tunnel.Token, error) {
			token, err := verifyText(ctx, text)
			if token != nil {
				token.Until, token.Valid = until, func() bool { return !withdrawn.Load() }
			}
			return token, err
		}
	}})
	tunneltest.Echo(t, p.net, "10.0.0.2:80")
	c, err := p.dial(t, "10.0.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	p.exit.Recheck()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatalf("a flow whose token counts: %v", err)
	}
	withdrawn.Store(true)
	p.exit.Recheck()
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a flow whose token was withdrawn: %v, want a reset", err)
	}
	waitUntil(t, "the record", func() bool { return p.exit.Stats().Ended["revoked"] == 1 })
}

func TestXTunHTTP1FromStrangers(t *testing.T) {
	const auth = "Authorization: Bearer good\r\n"
	const chunked = "Transfer-Encoding: chunked\r\n"
	const upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
	for _, tt := range []struct{ name, request, want string }{
		{"POST", "POST / HTTP/1.1\r\nHost: lb\r\n" + auth + chunked + "X-Tun: 10.0.0.2:80\r\n\r\n", "HTTP/1.1 200 "},
		{"CONNECT", "CONNECT lb:443 HTTP/1.1\r\nHost: lb\r\n" + auth + "X-Tun: 10.0.0.2:80\r\n\r\n", "HTTP/1.1 200 "},
		{"WebSocket", "GET / HTTP/1.1\r\nHost: lb\r\n" + auth + upgrade + "X-Tun: 10.0.0.2:80\r\n\r\n", "HTTP/1.1 101 "},
		{"health", "GET /healthz HTTP/1.1\r\nHost: lb\r\n\r\n", "HTTP/1.1 200 "},
		{"GET", "GET / HTTP/1.1\r\nHost: lb\r\n" + auth + "X-Tun: 10.0.0.2:80\r\n\r\n", "HTTP/1.1 400 "},
		{"garbage", strings.Repeat("\x00\x01\x02", 10) + "\r\n\r\n", "HTTP/1.1 400 "},
		{"an endless head", "POST / HTTP/1.1\r\nHost: lb\r\n" + strings.Repeat("X-A: "+strings.Repeat("a", 1000)+"\r\n", 70), "HTTP/1.1 400 "},
		{"no token", "POST / HTTP/1.1\r\nHost: lb\r\n" + chunked + "X-Tun: 10.0.0.2:80\r\n\r\n", "HTTP/1.1 401 "},
		{"two x-tun", "POST / HTTP/1.1\r\nHost: lb\r\n" + auth + chunked + "X-Tun: 10.0.0.2:80\r\nx-tun: 10.0.0.2:80\r\n\r\n", "HTTP/1.1 400 "},
		{"a list", "POST / HTTP/1.1\r\nHost: lb\r\n" + auth + chunked + "X-Tun: 10.0.0.2:80,10.0.0.2:81\r\n\r\n", "HTTP/1.1 400 "},
		{"folded", "POST / HTTP/1.1\r\nHost: lb\r\n" + auth + chunked + "X-Tun: 10.0.0.2:80\r\n 81\r\n\r\n", "HTTP/1.1 400 "},
		{"a length", "POST / HTTP/1.1\r\nHost: lb\r\n" + auth + "Content-Length: 5\r\nX-Tun: 10.0.0.2:80\r\n\r\nabcde", "HTTP/1.1 400 "},
		{"no length", "POST / HTTP/1.1\r\nHost: lb\r\n" + auth + "X-Tun: 10.0.0.2:80\r\n\r\n", "HTTP/1.1 400 "},
		{"a length and chunks", "POST / HTTP/1.1\r\nHost: lb\r\n" + auth + chunked + "Content-Length: 5\r\nX-Tun: 10.0.0.2:80\r\n\r\n0\r\n\r\n", "HTTP/1.1 "},
		{"gRPC", "POST / HTTP/1.1\r\nHost: lb\r\n" + auth + chunked + "Content-Type: application/grpc\r\nX-Tun: 10.0.0.2:80\r\n\r\n", "HTTP/1.1 400 "},
		{"upgrade to h2c", "GET / HTTP/1.1\r\nHost: lb\r\n" + auth + "Connection: upgrade\r\nUpgrade: h2c\r\nX-Tun: 10.0.0.2:80\r\n\r\n", "HTTP/1.1 400 "},
		{"WebSocket with POST", "POST / HTTP/1.1\r\nHost: lb\r\n" + auth + upgrade + "X-Tun: 10.0.0.2:80\r\n\r\n", "HTTP/1.1 400 "},
		{"WebSocket without Connection", "GET / HTTP/1.1\r\nHost: lb\r\n" + auth + strings.Replace(upgrade, "Connection: upgrade\r\n", "", 1) + "X-Tun: 10.0.0.2:80\r\n\r\n", "HTTP/1.1 400 "},
		{"WebSocket of another version", "GET / HTTP/1.1\r\nHost: lb\r\n" + auth + strings.Replace(upgrade, "13", "8", 1) + "X-Tun: 10.0.0.2:80\r\n\r\n", "HTTP/1.1 400 "},
		{"WebSocket with half a key", "GET / HTTP/1.1\r\nHost: lb\r\n" + auth + strings.Replace(upgrade, "AAAA", "", 1) + "X-Tun: 10.0.0.2:80\r\n\r\n", "HTTP/1.1 400 "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newOuterPair(t, "POST", outerOptions{})
			nc := p.dialProxy(t)
			_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
			go func() { // ends with the connection, which the clean-up closes
				_, _ = io.WriteString(nc, tt.request)
			}()
			got := make([]byte, len(tt.want))
			if _, err := io.ReadFull(nc, got); err != nil || string(got) != tt.want {
				t.Errorf("answer %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

// balancerAddr is where serveProxy listens.
const balancerAddr = "10.0.0.8:443"

// serveProxy listens where the entry of an outerPair looks for its proxy, in the place of an exit.
func serveProxy(t *testing.T, n *memnet.Net, handle func(nc *memnet.Conn)) {
	t.Helper()
	tunneltest.Serve(t, n, balancerAddr, func(nc *memnet.Conn) {
		defer nc.Close()
		handle(nc)
	})
}

// What a proxy answers that is no gateway's yes is no tunnel, and is told of.
func TestXTunHostileProxy(t *testing.T) {
	status := func(code int, fields ...h2.Field) func(*h2.Stream) {
		return func(s *h2.Stream) {
			_ = s.Respond(&h2.Header{Status: code, Fields: fields}, false)
			_, _ = io.WriteString(s, "<html>no</html>")
			_, _ = io.Copy(io.Discard, s) // until the gateway has had enough
		}
	}
	kind := func(value string) h2.Field { return h2.Field{Name: "content-type", Value: value} }
	inHTTP2 := []string{"POST", "CONNECT", "GRPC"} // without TLS a WebSocket is in HTTP/1.1: TestXTunHostileUpgrade
	bytesYes := []h2.Field{kind("application/octet-stream")}
	for _, tt := range []struct {
		name  string
		forms []string
		do    func(*h2.Stream)
		cause tunnel.Cause
		says  string
	}{
		{"200 with a page", []string{"POST", "GRPC"}, status(200, kind("text/html")), tunnel.CauseHopProtocol, `"text/html"`},
		{"200 of no type", []string{"POST", "GRPC"}, status(200), tunnel.CauseHopProtocol, "of no type"},
		{"200 and garbage", []string{"POST", "CONNECT"}, status(200, bytesYes...), tunnel.CauseHopProtocol, ""},
		{"200 of gRPC and garbage", []string{"GRPC"}, status(200, kind("application/grpc+proto")), tunnel.CauseHopTLS, "gRPC"},
		{"a status of gRPC", []string{"GRPC"}, status(200, kind("application/grpc"), h2.Field{Name: "grpc-status", Value: "14"}), tunnel.CauseUnavailable, `"14"`},
		{"204", inHTTP2, status(204, bytesYes...), tunnel.CauseHopProtocol, "204"},
		{"302", inHTTP2, status(302, h2.Field{Name: "location", Value: "https://login.example/"}), tunnel.CauseHopProtocol, "302"},
		{"401", inHTTP2, status(401), tunnel.CauseDenied, "401"},
		{"403", inHTTP2, status(403), tunnel.CauseDenied, "403"},
		{"502", inHTTP2, status(502), tunnel.CauseUnavailable, "502"},
		{"reset", inHTTP2, func(s *h2.Stream) { s.Reset(h2.InternalError) }, tunnel.CauseUnavailable, ""},
		{"200 and the end", []string{"POST", "CONNECT"}, func(s *h2.Stream) {
			_ = s.Respond(&h2.Header{Status: 200, Fields: bytesYes}, false)
		}, tunnel.CauseUnavailable, "not a byte came back"},
	} {
		for _, form := range tt.forms {
			t.Run(tt.name+", "+form, func(t *testing.T) {
				p := newOuterPair(t, form, outerOptions{hop: func(h *tunnel.HopConfig) { h.Address = balancerAddr }})
				serveProxy(t, p.net, func(nc *memnet.Conn) {
					c, err := h2.NewServer(nc, &h2.Config{EnableConnectProtocol: true, Handler: func(s *h2.Stream) {
						defer s.Close()
						tt.do(s)
					}})
					if err == nil {
						<-c.Done()
						c.Close()
					}
				})
				_, err := p.dial(t, "10.0.0.2:80")
				if err == nil || tunnel.CauseOf(err) != tt.cause || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("dial = %v (%v), want %v that says %q", err, tunnel.CauseOf(err), tt.cause, tt.says)
				}
			})
		}
	}
}

func TestXTunHostileUpgrade(t *testing.T) {
	for _, tt := range []struct {
		name, answer string
		cause        tunnel.Cause
		says         string
	}{
		{"nothing", "", tunnel.CauseUnavailable, ""},
		{"garbage", "SSH-2.0-OpenSSH_9.2\r\n", tunnel.CauseHopProtocol, "none of HTTP/1.1"},
		{"200", "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi", tunnel.CauseHopProtocol, "200"},
		{"302", "HTTP/1.1 302 Found\r\nLocation: https://login.example/\r\n\r\n", tunnel.CauseHopProtocol, "302"},
		{"403", "HTTP/1.1 403 Forbidden\r\n\r\n", tunnel.CauseDenied, "403"},
		{"101 without an accept", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", tunnel.CauseHopProtocol, "something else"},
		{"101 of another key", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n", tunnel.CauseHopProtocol, "something else"},
		{"101 to h2c", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", tunnel.CauseHopProtocol, "something else"},
		{"an endless head", "HTTP/1.1 101 Switching Protocols\r\n" + strings.Repeat("X-A: "+strings.Repeat("a", 1000)+"\r\n", 80), tunnel.CauseHopProtocol, "64 KiB"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newOuterPair(t, "WEBSOCKET", outerOptions{hop: func(h *tunnel.HopConfig) { h.Address = balancerAddr }})
			serveProxy(t, p.net, func(nc *memnet.Conn) {
				_, _ = nc.Read(make([]byte, 4096))
				_, _ = io.WriteString(nc, tt.answer)
			})
			_, err := p.dial(t, "10.0.0.2:80")
			if err == nil || tunnel.CauseOf(err) != tt.cause || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("dial = %v (%v), want %v that says %q", err, tunnel.CauseOf(err), tt.cause, tt.says)
			}
		})
	}
}

// A proxy that takes the request and never answers, or answers and passes nothing on, is told of in time.
func TestXTunProxyHoldsBack(t *testing.T) {
	for name, handle := range map[string]func(*h2.Stream){
		"the request": func(s *h2.Stream) { <-s.Done() },
		"the answer's bytes": func(s *h2.Stream) {
			_ = s.Respond(&h2.Header{Status: 200, Fields: []h2.Field{{Name: "content-type", Value: "application/octet-stream"}}}, false)
			<-s.Done()
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newOuterPair(t, "POST", outerOptions{hop: func(h *tunnel.HopConfig) { h.Address = balancerAddr }})
				serveProxy(t, p.net, func(nc *memnet.Conn) {
					c, err := h2.NewServer(nc, &h2.Config{Handler: func(s *h2.Stream) {
						defer s.Close()
						handle(s)
					}})
					if err == nil {
						<-c.Done()
						c.Close()
					}
				})
				started := time.Now()
				_, err := p.dial(t, "10.0.0.2:80")
				if took := time.Since(started); err == nil || tunnel.CauseOf(err) != tunnel.CauseTimeout || took > 21*time.Second ||
					!strings.Contains(err.Error(), "a proxy on the way buffers requests or answers; turn that off there, or use tun: WEBSOCKET or GRPC") {
					t.Errorf("dial = %v (%v) after %v", err, tunnel.CauseOf(err), took)
				}
				p.entry.Close()
				p.exit.Close()
			})
		})
	}
}

// Every form ends well when both gateways do, with flows that live.
func TestXTunDrain(t *testing.T) {
	for _, form := range forms {
		t.Run(form, func(t *testing.T) {
			p := newOuterPair(t, form, outerOptions{})
			tunneltest.Echo(t, p.net, "10.0.0.2:80")
			c, err := p.dial(t, "10.0.0.2:80")
			if err != nil {
				t.Fatal(err)
			}
			drained := make(chan error, 2)
			for _, g := range []*tunnel.Gateway{p.exit, p.entry} {
				go func() { drained <- g.Drain(testContext(t)) }() // ends with the flow, which ends below
			}
			wantEcho(t, c, strings.Repeat("still ", 1000))
			for range 2 {
				if err := <-drained; err != nil {
					t.Errorf("Drain = %v", err)
				}
			}
		})
	}
}

// What a stranger sends with a request is not taken before it is known whether the token is one: a balancer's windows are wide, and
// nobody reads what comes meanwhile.
func TestXTunStrangerSendsMuch(t *testing.T) {
	verified := make(chan struct{})
	p := newOuterPair(t, "POST", outerOptions{exitEnv: func(e *tunnel.Env) {
		e.VerifyToken = func(ctx context.Context, text string) (*tunnel.Token, error) {
			<-verified
			return verifyText(ctx, text)
		}
	}})
	const most = 128 << 10
	s, err := p.proxy(t).conn.Open(testContext(t), post(good, toEcho), false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := s.Write(make([]byte, 4<<20)); n > most || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d bytes of a stranger were taken, %v; want at most %d", n, err, most)
	}
	close(verified)
	if resp, err := s.Response(testContext(t)); err != nil || resp.Status != 200 {
		t.Fatalf("answer %v, %v", resp, err)
	}
}

package ingress_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"culvert/pki/spiffe"
	"culvert/tunnel"
	"culvert/tunnel/h2"
	"culvert/tunnel/ingress"
	"culvert/tunnel/tunneltest"
	"culvert/tunnel/tunneltest/memnet"
)

const (
	edgeAddr   = "10.0.0.1"
	edgeListen = "10.0.0.1:80"
	appListen  = "10.0.0.9:8080"
	clientAddr = "192.0.2.7"
)

// edge is a gateway with an ingress listener on a network in memory.
type edge struct {
	net *memnet.Net
	ca  *tunneltest.CA
	gw  *tunnel.Gateway
	log *tunneltest.Log
}

// edgeConfig is what an edge has by default.
func edgeConfig() *tunnel.Config {
	return &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "edge", Kind: tunnel.KindIngress, Address: edgeListen}},
		Routes:    []tunnel.RouteConfig{{Listeners: []string{"edge"}, From: "any", To: appListen}},
	}
}

// newEdge starts a gateway whose listener "edge" is as mend leaves it; by default every request goes to appListen.
func newEdge(t testing.TB, mend func(*tunnel.Config)) *edge { return newEdgeWith(t, nil, mend) }

func newEdgeWith(t testing.TB, issuer ingress.Issuer, mend func(*tunnel.Config)) *edge {
	t.Helper()
	return newEdgeEnv(t, issuer, mend, func(*tunnel.Env) {})
}

func newEdgeEnv(t testing.TB, issuer ingress.Issuer, mend func(*tunnel.Config), mendEnv func(*tunnel.Env)) *edge {
	t.Helper()
	e := &edge{net: memnet.New(), ca: tunneltest.NewCA(t), log: new(tunneltest.Log)}
	cfg := edgeConfig()
	id := e.ca.Issue(t, "cluster.local", "default", "edge")
	e.gw = tunneltest.NewGateway(t, e.net, edgeAddr, id, cfg, mend, func(env *tunnel.Env) {
		mendEnv(env)
		env.Servers = map[string]func(*tunnel.Gateway, *tunnel.ListenerConfig) (tunnel.Server, error){
			tunnel.KindIngress: ingress.New(ingress.Env{MeshTLS: env.ServerTLS, Identify: identify, Issuer: issuer, H2: h2.Config{PingInterval: -1}}),
		}
	}, slog.NewTextHandler(e.log, nil))
	return e
}

// serve has h answer requests at address until the test ends.
func (e *edge) serve(t testing.TB, address string, h http.HandlerFunc) {
	t.Helper()
	l, err := e.net.Listen(address)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h, Protocols: new(http.Protocols), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	go func() { // ends with the server, which the clean-up closes and waits for
		defer close(done)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-done
	})
}

// dial connects to the listener as a client.
func (e *edge) dial(t testing.TB) net.Conn {
	t.Helper()
	c, err := e.net.From(netip.MustParseAddr(clientAddr))(t.Context(), netip.MustParseAddrPort(edgeListen))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// client is an HTTP client whose connections all lead to the listener.
func (e *edge) client(t testing.TB, protocols func(*http.Protocols)) *http.Client {
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return e.net.From(netip.MustParseAddr(clientAddr))(ctx, netip.MustParseAddrPort(edgeListen))
	}, Protocols: new(http.Protocols), DisableCompression: true}
	protocols(tr.Protocols)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func http1(p *http.Protocols) { p.SetHTTP1(true) }
func http2(p *http.Protocols) { p.SetUnencryptedHTTP2(true) }

// say sends text on a connection of its own and returns the first answer, with its body.
func (e *edge) say(t testing.TB, text string) (*http.Response, string) {
	t.Helper()
	c := e.dial(t)
	go func() { // ends with the connection, which the clean-up closes
		_, _ = io.WriteString(c, text)
	}()
	return answerOn(t, c)
}

func answerOn(t testing.TB, c net.Conn) (*http.Response, string) {
	t.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("answer %d breaks off: %v", resp.StatusCode, err)
	}
	return resp, string(body)
}

// echo answers with what it was asked.
func echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	w.Header().Set("App-Saw", r.Host)
	fmt.Fprintf(w, "%s %s %s %s\n%s", r.Proto, r.Method, r.RequestURI, r.Host, body)
	names := make([]string, 0, len(r.Header))
	for name, values := range r.Header {
		names = append(names, name+"="+strings.Join(values, "|"))
	}
	w.Header().Set("Trailer", "") // none
	fmt.Fprintf(w, "\n%s\n", strings.Join(names, "\n"))
}

func TestRequests(t *testing.T) {
	e := newEdge(t, nil)
	e.serve(t, appListen, echo)
	for name, protocols := range map[string]func(*http.Protocols){"HTTP/1.1": http1, "HTTP/2": http2} {
		t.Run(name, func(t *testing.T) {
			c := e.client(t, protocols)
			for _, body := range []string{"", "hello", strings.Repeat("hello ", 100_000)} {
				resp, err := c.Post("http://shop.example/a/b?q=1", "text/plain", strings.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(resp.Body)
				if err != nil || resp.StatusCode != 200 || !strings.Contains(string(got), "HTTP/1.1 POST /a/b?q=1 shop.example\n"+body+"\n") {
					t.Fatalf("answer %d, %v: %.300s", resp.StatusCode, err, got)
				}
				_ = resp.Body.Close()
			}
		})
	}
	e.gw.Close()
	if s := e.gw.Stats(); s.Flows != 6 || s.Ended["ok"] != 6 || s.Active != 0 || s.Connections != 0 {
		t.Errorf("%d flows, %d ended well, %d active, %d connections; want 6, 6, 0, 0\n%s", s.Flows, s.Ended["ok"], s.Active, s.Connections, e.log)
	}
	if log := e.log.String(); !strings.Contains(log, "path=/a/b") || !strings.Contains(log, "status=200") || !strings.Contains(log, "asked=shop.example:80") {
		t.Errorf("the records lack something:\n%s", log)
	}
}

func identify(cs *tls.ConnectionState, _ netip.Addr) (spiffe.ID, error) {
	return spiffe.FromCertificate(cs.PeerCertificates[0])
}

// dialled returns c to who dials.
func dialled(c net.Conn) func(context.Context, string, string) (net.Conn, error) {
	return func(context.Context, string, string) (net.Conn, error) { return c, nil }
}

func tcpAddr(text string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(text)) }

func mustAddr(text string) netip.AddrPort { return netip.MustParseAddrPort(text) }

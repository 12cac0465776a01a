package main_test

import (
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	pb "google.golang.org/grpc/interop/grpc_testing"

	"culvert/tunnel/framing"
)

// edge starts a gateway by a file, whose listener is of kind ingress. routes are YAML.
func (m *mesh) edge(t *testing.T, routes string) *gateway {
	t.Helper()
	m.issue(t, "edge", &x509.Certificate{DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	return m.configured(t, "client", `
listeners:
- {name: edge, kind: ingress, address: "$ADDR", ingress: {certificates: [{cert: edge.pem, key: edge.key}]}}
routes:
`+routes)
}

// TestForeignIngress has curl, nghttp and h2load before an ingress listener, in the clear and in TLS, and a web server behind it:
// beside it, and behind a tunnel to another gateway.
func TestForeignIngress(t *testing.T) {
	m := newMesh(t)
	web := newWeb(t)
	exit := m.exit(t, "--egress", web.addr)
	for name, via := range map[string]string{"beside": "", "behind a tunnel": ", via: [" + `"` + exit.addr + `"` + "]"} {
		t.Run(name, func(t *testing.T) {
			edge := m.edge(t, fmt.Sprintf("- {hosts: [localhost], from: any, to: %q%s}\n- {destinations: [127.0.0.1], from: any, to: %q%s}\n", web.addr, via, web.addr, via))
			_, port, _ := net.SplitHostPort(edge.addr)
			for _, how := range []struct {
				scheme string
				args   []string
			}{
				{"http", []string{"--http1.1"}}, {"http", []string{"--http2-prior-knowledge"}}, {"http", []string{"--http2"}}, // which asks for h2c, and goes on without
				{"https", []string{"--http1.1"}}, {"https", []string{"--http2"}}, {"https", []string{"--http1.1", "--tls-max", "1.2"}},
			} {
				t.Run(how.scheme+" "+strings.Join(how.args, " "), func(t *testing.T) {
					web.curlFetches(t, how.scheme+"://localhost:"+port, append(how.args, "--connect-to", "localhost:"+port+":127.0.0.1:"+port, "--cacert", m.path("root.pem"))...)
				})
			}
			if got := run(t, "nghttp", "http://"+edge.addr+"/"); got != pageText {
				t.Errorf("nghttp = %q", got)
			}
			for _, args := range [][]string{{"-m", "20"}, {"--h1"}} {
				out := run(t, "h2load", append(append([]string{"-n", "2000", "-c", "8"}, args...), "http://"+edge.addr+"/")...)
				if !strings.Contains(out, "2000 succeeded, 0 failed, 0 errored") {
					t.Errorf("h2load %v:\n%s", args, out)
				}
			}
			edge.idle(t)
		})
	}
}

// TestForeignIngressWebSocket has Chromium open a WebSocket on the connection of HTTP/2 that it has fetched the page on (RFC 8441), and
// on one of HTTP/1.1, where it may have no other. The application knows those of HTTP/1.1 only.
func TestForeignIngressWebSocket(t *testing.T) {
	m := newMesh(t)
	told := make(chan struct{}, 2)
	app := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/":
			w.Header().Set("Content-Type", "text/html")
			_, _ = io.WriteString(w, `<body><script>
const s = new WebSocket("wss://" + location.host + "/chat")
s.onmessage = e => { document.body.append("the socket says " + e.data); s.send("thanks") }
</script><img src="/after"></body>`)
		case "/after": // the page is complete when the socket has spoken
			select {
			case <-told:
			case <-r.Context().Done():
			}
		case "/chat":
			c, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			_, _ = fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n\r\n\x81\x05hello",
				framing.WebSocketAccept(r.Header.Get("Sec-Websocket-Key")))
			if _, err := io.ReadFull(rw, make([]byte, 2+4+6)); err != nil { // a frame with its mask
				t.Error(err)
			}
			told <- struct{}{}
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	})
	edge := m.edge(t, fmt.Sprintf("- {from: any, to: %q}\n", app))
	_, port, _ := net.SplitHostPort(edge.addr)
	for way, args := range map[string][]string{"h2": nil, "http/1.1": {"--disable-http2"}} {
		got := run(t, "chromium", append(append([]string{"--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--user-data-dir=" + t.TempDir(),
			"--ignore-certificate-errors", "--timeout=20000", "--dump-dom"}, args...), "https://localhost:"+port+"/")...)
		if !strings.Contains(got, "the socket says hello") {
			t.Errorf("%s: the page shows: %s", way, got)
		}
		edge.says(t, "msg=flow", "way="+way, "method=GET", "path=/chat")
	}
}

// TestForeignIngressGRPC has an unmodified grpc-go client before an ingress listener and an unmodified grpc-go server behind it.
func TestForeignIngressGRPC(t *testing.T) {
	m := newMesh(t)
	ln := loopback(t)
	service := echoService{started: make(chan struct{}, 1), cancelled: make(chan error, 1)}
	srv := grpc.NewServer()
	pb.RegisterTestServiceServer(srv, service)
	var serving sync.WaitGroup
	serving.Go(func() { // ends with Stop; Wait in the cleanup
		if err := srv.Serve(ln); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		srv.Stop()
		serving.Wait()
	})
	edge := m.edge(t, fmt.Sprintf("- {from: any, to: %q, http: {prefix: /grpc.testing.TestService}}\n", ln.Addr()))
	for name, creds := range map[string]credentials.TransportCredentials{"plain": insecure.NewCredentials(), "TLS": credentials.NewClientTLSFromCert(m.roots, "localhost")} {
		t.Run(name, func(t *testing.T) {
			grpcCalls(t, service, edge.addr, grpc.WithTransportCredentials(creds), grpc.WithAuthority("localhost"))
			edge.idle(t)
		})
	}
}

// What net/http's own proxy adds and takes away, as far as an application sees it, ours does too.
func TestIngressIsAsReverseProxy(t *testing.T) {
	m := newMesh(t)
	app := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		names := []string{r.Method, r.RequestURI, r.Host}
		for _, name := range []string{"Accept", "User-Agent", "Te", "Connection", "Keep-Alive", "X-Custom", "Cookie", "Accept-Encoding"} {
			names = append(names, name+"="+strings.Join(r.Header[name], "|"))
		}
		w.Header().Add("Set-Cookie", "a=1")
		w.Header().Add("Set-Cookie", "b=2")
		w.Header().Set("Keep-Alive", "timeout=1")
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, strings.Join(names, "\n"))
	})
	to, err := url.Parse("http://" + app)
	if err != nil {
		t.Fatal(err)
	}
	plain := &http.Transport{DisableCompression: true}
	t.Cleanup(plain.CloseIdleConnections)
	bare := serveHTTP(t, (&httputil.ReverseProxy{Transport: plain, Rewrite: func(p *httputil.ProxyRequest) { p.SetURL(to); p.Out.Host = p.In.Host }}).ServeHTTP)
	edge := m.edge(t, fmt.Sprintf("- {from: any, to: %q}\n", app))
	ask := func(addr string) string {
		return run(t, "curl", "-q", "-sS", "-i", "-m", "20", "-H", "Host: shop.example", "-H", "Connection: X-Custom", "-H", "X-Custom: 1", "-H", "Cookie: a=b",
			"-H", "TE: trailers", "-H", "Date;", "http://"+addr+"/a%2Fb//c?x=1&y=%20")
	}
	strip := func(text string) (lines []string) {
		for line := range strings.Lines(text) {
			if !strings.HasPrefix(line, "Date:") {
				lines = append(lines, strings.TrimSpace(line))
			}
		}
		return lines
	}
	if got, want := strip(ask(edge.addr)), strip(ask(bare)); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("by the gateway:\n%s\nby httputil.ReverseProxy:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// serveHTTP answers requests until the test ends.
func serveHTTP(t *testing.T, h http.HandlerFunc) (addr string) {
	t.Helper()
	ln := loopback(t)
	srv := &http.Server{Handler: h}
	var serving sync.WaitGroup
	serving.Go(func() { _ = srv.Serve(ln) }) // ends with Close; Wait in the cleanup
	t.Cleanup(func() {
		_ = srv.Close()
		serving.Wait()
	})
	return ln.Addr().String()
}

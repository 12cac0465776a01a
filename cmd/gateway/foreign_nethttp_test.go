package main_test

//lint:file-ignore SA1019 x/net/http2 is a peer here: net/http is made of a copy of it, and programs that are not built anew have it.

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/proxy"
)

// getsEverything uses a web server by an HTTP client, some requests at the same time.
func (w *web) getsEverything(t *testing.T, client *http.Client, base string) {
	t.Helper()
	post := func(path string, body []byte) ([]byte, error) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+path, bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		res, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		defer res.Body.Close()
		return io.ReadAll(res.Body)
	}
	if got, err := post("/up", w.bulk); string(got) != digest(w.bulk) {
		t.Errorf("digest of %d bytes sent up = %q, %v, want %s", len(w.bulk), got, err, digest(w.bulk))
	}
	if got, err := post("/down", nil); !bytes.Equal(got, w.bulk) {
		t.Errorf("/down = %d bytes, %v, want %d", len(got), err, len(w.bulk))
	}
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			body := random(100 << 10)
			if got, err := post("/echo", body); !bytes.Equal(got, body) {
				t.Errorf("/echo = %d bytes, %v, want the %d that were sent", len(got), err, len(body))
			}
		})
	}
	all.Wait()
}

// TestForeignNetHTTP has net/http's client in front of our entry and its server behind our exit, with a SOCKS5 client of
// x/net.
func TestForeignNetHTTP(t *testing.T) {
	m := newMesh(t)
	plain, secure := newWeb(t), startWeb(t, m.webTLS(t))
	exit := m.exit(t)
	entry := m.socks(t, exit.addr)
	socks, err := proxy.SOCKS5("tcp", entry.addr, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	dialContext := socks.(proxy.ContextDialer).DialContext
	proxyURL := http.ProxyURL(&url.URL{Scheme: "socks5h", Host: entry.addr})
	trust := &tls.Config{RootCAs: m.roots}
	for _, tt := range []struct {
		name, base string
		transport  *http.Transport
		web        *web
	}{
		{"HTTP/1.1 by DialContext", "http://" + plain.addr, &http.Transport{DialContext: dialContext}, plain},
		{"HTTP/1.1 by Proxy", "http://" + plain.addr, &http.Transport{Proxy: proxyURL}, plain},
		{"HTTPS", "https://" + secure.addr, &http.Transport{DialContext: dialContext, TLSClientConfig: trust}, secure},
		{"HTTP/2", "https://" + secure.addr, &http.Transport{DialContext: dialContext, TLSClientConfig: trust.Clone(), ForceAttemptHTTP2: true}, secure},
	} {
		t.Run(tt.name, func(t *testing.T) {
			defer tt.transport.CloseIdleConnections()
			tt.web.getsEverything(t, &http.Client{Transport: tt.transport}, tt.base)
		})
	}
	entry.idle(t)
	exit.idle(t)
}

// connectByNetHTTP asks the exit for a tunnel with x/net/http2's client. w is what goes into it.
func connectByNetHTTP(t *testing.T, tr *http2.Transport, exit, target string) (res *http.Response, w *io.PipeWriter) {
	t.Helper()
	r, w := io.Pipe()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	t.Cleanup(cancel)
	req := (&http.Request{
		Method: http.MethodConnect, URL: &url.URL{Scheme: "https", Host: exit}, Host: target, Header: http.Header{}, Body: r, ContentLength: -1,
	}).WithContext(ctx)
	res, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatalf("CONNECT %s: %v", target, err)
	}
	t.Cleanup(func() { _ = res.Body.Close() })
	return res, w
}

// TestForeignNetHTTPConnect has x/net/http2's client as the CONNECT client of our exit.
func TestForeignNetHTTPConnect(t *testing.T) {
	m := newMesh(t)
	exit := m.exit(t)
	target := serve(t, echo)
	tr := &http2.Transport{TLSClientConfig: m.clientTLS(t, "client", serverID)}
	defer tr.CloseIdleConnections()
	var all sync.WaitGroup
	for range 10 {
		res, w := connectByNetHTTP(t, tr, exit.addr, target)
		if res.StatusCode != http.StatusOK {
			t.Fatalf("CONNECT %s = %s, want 200", target, res.Status)
		}
		body := random(1 << 20)
		all.Go(func() {
			_, err := w.Write(body)
			_ = w.CloseWithError(err) // half-close
		})
		all.Go(func() {
			if got, err := io.ReadAll(res.Body); !bytes.Equal(got, body) || err != nil {
				t.Errorf("echo = %d bytes, %v, want the %d that were sent", len(got), err, len(body))
			}
		})
	}
	all.Wait()
	res, _ := connectByNetHTTP(t, tr, exit.addr, freeAddr(t))
	if res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(res.Header.Get("Proxy-Status"), "connection_refused") {
		t.Errorf("CONNECT to a closed port = %s, %q, want 503 and connection_refused", res.Status, res.Header.Get("Proxy-Status"))
	}
	stranger := &http2.Transport{TLSClientConfig: m.clientTLS(t, "otherns", serverID)}
	defer stranger.CloseIdleConnections()
	if res, _ := connectByNetHTTP(t, stranger, exit.addr, target); res.StatusCode != http.StatusUnauthorized {
		t.Errorf("CONNECT from another namespace = %s, want 401", res.Status)
	}
	exit.says(t, "peer="+othernsID, "reason=denied")
	exit.idle(t)
}

// serveConnect is a CONNECT exit made of net/http: x/net/http2 as the server, io.Copy as the relay. refuse maps
// destinations to the status they get.
func (m *mesh) serveConnect(t *testing.T, refuse map[string]int) (addr string) {
	t.Helper()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if status := refuse[r.Host]; status != 0 || r.Method != http.MethodConnect {
			w.WriteHeader(max(status, http.StatusBadRequest))
			return
		}
		nc, err := net.DialTimeout("tcp", r.Host, patience)
		if err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		defer nc.Close()
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		done := make(chan struct{})
		go func() { // ends with the request's body; the handler waits for it
			defer close(done)
			if _, err := io.Copy(nc, r.Body); err == nil {
				_ = nc.(*net.TCPConn).CloseWrite()
			}
		}()
		if _, err := io.Copy(flushed{w}, nc); err != nil {
			panic(http.ErrAbortHandler) // RST_STREAM
		}
		<-done
	}))
	srv.TLS = m.serverTLS(t, "server")
	if err := http2.ConfigureServer(srv.Config, &http2.Server{}); err != nil {
		t.Fatal(err)
	}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

// flushed sends every Write at once.
type flushed struct{ w http.ResponseWriter }

func (f flushed) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	return n, errors.Join(err, http.NewResponseController(f.w).Flush())
}

// TestForeignNetHTTPExit has x/net/http2's server as the CONNECT exit of our entry.
func TestForeignNetHTTPExit(t *testing.T) {
	m := newMesh(t)
	plain, denied, broken := newWeb(t), newWeb(t), newWeb(t)
	exit := m.serveConnect(t, map[string]int{denied.addr: http.StatusForbidden, broken.addr: http.StatusBadGateway})
	entry := m.socks(t, exit)
	plain.curlFetches(t, "http://"+plain.addr, "-x", "socks5h://"+entry.addr)
	for _, tt := range []struct{ name, addr, reply, reason string }{
		{"403", denied.addr, "(2)", "reason=denied"},
		{"502", broken.addr, "(4)", "reason=unavailable"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, stderr, err := try(t, "curl", "-q", "-sS", "-m", "60", "-x", "socks5h://"+entry.addr, "http://"+tt.addr+"/")
			if err == nil || !strings.Contains(stderr, tt.reply) {
				t.Errorf("curl = %v, %q, want the SOCKS reply %s", err, stderr, tt.reply)
			}
			entry.says(t, "dst="+tt.addr, tt.reason, "answered "+tt.name)
		})
	}
	entry.idle(t)

	forward := m.forward(t, exit, serve(t, echo))
	echoHalfClosed(t, forward.addr, 1<<20)
	forward.idle(t)
}

package h2_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"testing"
	"time"

	"culvert/tunnel/h2"
)

// httpTLS is a server's and a client's TLS configuration that trust each other, for 127.0.0.1.
type httpTLS struct{ server, client *tls.Config }

// newHTTPTLS makes a certificate for the time of the tests.
var newHTTPTLS = sync.OnceValue(func() httpTLS {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		DNSNames: []string{"push.example"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	return httpTLS{
		server: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, NextProtos: []string{"h2"}},
		client: &tls.Config{RootCAs: roots, ServerName: "127.0.0.1", NextProtos: []string{"h2"}},
	}
})

// noGoroutines makes the test fail when goroutines of package h2 are left at its end. It must be called
// before what is cleaned up.
func noGoroutines(t testing.TB) {
	t.Cleanup(func() {
		buf := make([]byte, 1<<20)
		for end := time.Now().Add(5 * time.Second); ; runtime.Gosched() {
			all := buf[:runtime.Stack(buf, true)]
			if !bytes.Contains(all, []byte("culvert/tunnel/h2.")) {
				return
			}
			if time.Now().After(end) {
				t.Errorf("goroutines are left:\n%s", all)
				return
			}
		}
	})
}

// httpListen serves every connection to its address with our stack until the test ends.
func httpListen(t testing.TB, cfg *h2.Config, withTLS bool) (addr string) {
	t.Helper()
	noGoroutines(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []*h2.Conn
	closed := false
	serve := func(nc net.Conn) {
		if withTLS {
			tc := tls.Server(nc, newHTTPTLS().server)
			if tc.Handshake() != nil {
				nc.Close()
				return
			}
			nc = tc
		}
		c, err := h2.NewServer(nc, cfg)
		if err != nil {
			nc.Close()
			return
		}
		mu.Lock()
		conns = append(conns, c)
		late := closed
		mu.Unlock()
		if late {
			c.Close()
		}
	}
	wg.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serve(nc) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		closed = true
		mine := conns
		mu.Unlock()
		for _, c := range mine {
			c.Close()
		}
		wg.Wait()
	})
	return ln.Addr().String()
}

// httpDial connects our client to addr until the test ends.
func httpDial(t testing.TB, cfg *h2.Config, addr string, withTLS bool) *h2.Conn {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	if withTLS {
		tc := tls.Client(nc, newHTTPTLS().client)
		if err := tc.Handshake(); err != nil {
			t.Fatal(err)
		}
		nc = tc
	}
	c, err := h2.NewClient(nc, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// httpGoServer serves with net/http until the test ends.
func httpGoServer(t testing.TB, h http.Handler, withTLS bool) (addr string) {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.Protocols = new(http.Protocols)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	if withTLS {
		s.Config.Protocols.SetHTTP2(true)
		s.TLS = newHTTPTLS().server.Clone()
		s.EnableHTTP2 = true
		s.StartTLS()
	} else {
		s.Config.Protocols.SetUnencryptedHTTP2(true)
		s.Start()
	}
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// httpGoTransport is net/http's client.
func httpGoTransport(t testing.TB, withTLS bool) *http.Transport {
	tr := &http.Transport{Protocols: new(http.Protocols), DisableCompression: true, ExpectContinueTimeout: 5 * time.Second}
	if withTLS {
		tr.Protocols.SetHTTP2(true)
		tr.TLSClientConfig = newHTTPTLS().client.Clone()
	} else {
		tr.Protocols.SetUnencryptedHTTP2(true)
	}
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

// httpPair is a client and the URL of a server.
type httpPair struct {
	client *http.Client
	url    string
	own    *h2.Conn // the client's connection where the client is ours
	goes   bool     // the server is net/http's
}

// eachHTTPPair runs f against every combination of our client and server and net/http's, without and
// with TLS; the pair of two net/http ends shows that f asks for what net/http does.
func eachHTTPPair(t *testing.T, h http.Handler, f func(t *testing.T, p httpPair)) {
	t.Helper()
	for _, k := range []struct {
		name               string
		goServer, goClient bool
	}{{"ours to ours", false, false}, {"net http to ours", false, true}, {"ours to net http", true, false}, {"net http to net http", true, true}} {
		for _, withTLS := range []bool{false, true} {
			name, scheme := k.name+" h2c", "http://"
			if withTLS {
				name, scheme = k.name+" tls", "https://"
			}
			t.Run(name, func(t *testing.T) {
				p := httpPair{client: &http.Client{}, goes: k.goServer}
				var addr string
				if k.goServer {
					noGoroutines(t)
					addr = httpGoServer(t, h, withTLS)
				} else {
					addr = httpListen(t, &h2.Config{Handler: h2.HTTPHandler(h), EnableConnectProtocol: true}, withTLS)
				}
				p.url = scheme + addr
				if k.goClient {
					p.client.Transport = httpGoTransport(t, withTLS)
				} else {
					p.own = httpDial(t, nil, addr, withTLS)
					p.client.Transport = p.own
				}
				f(t, p)
				if p.own != nil {
					wantNoStreams(t, p.own)
				}
			})
		}
	}
}

// wantNoStreams waits until every stream of the connection was let go.
func wantNoStreams(t testing.TB, c *h2.Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for c.NumStreams() > 0 {
		// A round trip lets the other end's last frames arrive.
		if _, err := c.Ping(ctx); err != nil {
			t.Fatalf("NumStreams() = %d at the end; Ping = %v", c.NumStreams(), err)
		}
	}
}

// do sends a request and reads the whole answer.
func (p *httpPair) do(t testing.TB, method, path string, body io.Reader, header http.Header) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, p.url+path, body)
	if err != nil {
		t.Fatal(err)
	}
	if header != nil {
		req.Header = header
	}
	resp, err := p.client.Do(req)
	if err != nil {
		t.Fatalf("%s %s = %v", method, path, err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: body = %v", method, path, err)
	}
	resp.Body.Close()
	return resp, string(b)
}

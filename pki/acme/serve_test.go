package acme

import (
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert/tunnel/tunneltest/memnet"

	xacme "golang.org/x/crypto/acme"
)

func TestHandshakesWithoutACertificate(t *testing.T) {
	inWorld(t, func(w *world) {
		w.ca.down = true
		m := w.open()
		defer m.Close()
		sleep(30 * time.Second)
		for _, tc := range []struct {
			name   string
			server string
			protos []string
			reason Reason
			says   string
		}{
			{"no name", "", nil, NoName, "no server name"},
			{"unknown name", "other.example", nil, UnknownName, `"other.example" is not one of the names`},
			{"name below", "a." + alpha, nil, UnknownName, "not one"},
			{"long name", strings.Repeat("a", 60_000), nil, UnknownName, "aaa"},
			{"odd name", "\x1b[31m\n", nil, UnknownName, `\x1b[31m\n`},
			{"not issued", "ALPHA.example", []string{"h2", "http/1.1"}, NotIssued, "down for maintenance"},
			{"validation that nobody asked for", alpha, []string{ALPNProto}, NoChallenge, "no validation"},
			{"validation of an unknown name", "other.example", []string{ALPNProto}, NoChallenge, "no validation"},
			{"validation among others", alpha, []string{ALPNProto, "h2"}, NotIssued, "no certificate"},
		} {
			cert, err := m.GetCertificate(&tls.ClientHelloInfo{ServerName: tc.server, SupportedProtos: tc.protos})
			ne, ok := err.(*NameError)
			if cert != nil || !ok || ne.Reason != tc.reason || !strings.Contains(ne.Error(), tc.says) || len(ne.Error()) > 1024 {
				t.Errorf("%s: GetCertificate = %v, %v, want a short *NameError with reason %s that says %q", tc.name, cert, err, tc.reason, tc.says)
			}
		}
		if n := w.ca.count("order"); n != 0 {
			t.Errorf("handshakes made %d orders", n)
		}
	})
}

// handshake is one of a client with a listener that has the Manager's hooks.
func handshake(m *Manager, client *tls.Config) (tls.ConnectionState, error) {
	near, far := memnet.Pipe(netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.99:443"))
	defer near.Close()
	defer far.Close()
	var served sync.WaitGroup
	defer served.Wait()
	served.Go(func() { // ends with the handshake, or when far closes
		server := tls.Server(far, &tls.Config{GetCertificate: m.GetCertificate, GetConfigForClient: m.GetConfigForClient,
			NextProtos: []string{"h2", "http/1.1"}, ClientAuth: tls.RequestClientCert})
		if server.Handshake() == nil {
			_, _ = io.WriteString(server, "x")
		}
		_ = far.Close()
	})
	tc := tls.Client(near, client)
	err := tc.Handshake()
	return tc.ConnectionState(), err
}

func TestHandshakes(t *testing.T) {
	inWorld(t, func(w *world) {
		m := w.open()
		defer m.Close()
		sleep(10 * time.Second)
		leaf := mustCert(t, m, alpha)
		roots, err := readRoots(w.cfg.Roots)
		if err != nil {
			t.Fatal(err)
		}
		state, err := handshake(m, &tls.Config{ServerName: alpha, RootCAs: roots, NextProtos: []string{"h2"}})
		if err != nil || !state.PeerCertificates[0].Equal(leaf) || state.NegotiatedProtocol != "h2" {
			t.Errorf("handshake = %v with %q, want the certificate and h2", err, state.NegotiatedProtocol)
		}
		if _, err := handshake(m, &tls.Config{ServerName: beta, RootCAs: roots}); err == nil {
			t.Error("a handshake for an unknown name succeeds")
		}
		if _, err := handshake(m, &tls.Config{ServerName: alpha, RootCAs: roots, NextProtos: []string{ALPNProto}}); err == nil {
			t.Error("a validation that nobody asked for succeeds")
		}
		if _, err := handshake(m, &tls.Config{ServerName: alpha, RootCAs: roots, NextProtos: []string{ALPNProto, "h2"}}); err != nil {
			t.Errorf("a client that offers acme-tls/1 beside h2 gets %v, want h2", err)
		}
		if !m.Has("Alpha.EXAMPLE") || m.Has(beta) || m.Has("") {
			t.Error("Has is wrong about the names")
		}
	})
}

// A renewal replaces the certificate under live handshakes and connections.
func TestRenewalDropsNothing(t *testing.T) {
	inWorld(t, func(w *world) {
		w.ca.life = 6 * time.Hour
		w.cfg.OrdersPerHour = 100
		m := w.open()
		defer m.Close()
		sleep(10 * time.Second)
		roots, err := readRoots(w.cfg.Roots)
		if err != nil {
			t.Fatal(err)
		}
		serials := map[string]bool{}
		for range 48 * 6 {
			state, err := handshake(m, &tls.Config{ServerName: alpha, RootCAs: roots, NextProtos: []string{"h2"}})
			if err != nil {
				t.Fatalf("handshake = %v, with %d certificates before", err, len(serials))
			}
			serials[state.PeerCertificates[0].SerialNumber.String()] = true
			sleep(10 * time.Minute)
		}
		if len(serials) < 10 {
			t.Errorf("%d certificates in 48 hours, want one every four", len(serials))
		}
	})
}

func challengeOf(typ, token string) *xacme.Challenge {
	return &xacme.Challenge{Type: typ, Token: token}
}

const testToken = "0123456789abcdefghijklmnop"

func TestHTTPHandler(t *testing.T) {
	m := &Manager{answers: answers{http: map[string]string{testToken: "the answer"}}}
	next := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusTeapot) })
	for _, tc := range []struct {
		name, method, target string
		code                 int // with a next handler; 404 without one where this is 418
		body                 string
	}{
		{"the token", "GET", challengePath + testToken, 200, "the answer"},
		{"its head", "HEAD", challengePath + testToken, 200, ""},
		{"at another host", "GET", "http://other.example:8080" + challengePath + testToken, 200, "the answer"},
		{"with a query", "GET", challengePath + testToken + "?x=y", 200, "the answer"},
		{"another token", "GET", challengePath + "another", 418, ""},
		{"no token", "GET", challengePath, 418, ""},
		{"below the token", "GET", challengePath + testToken + "/x", 418, ""},
		{"in other words", "GET", challengePath + "x/../" + testToken, 418, ""},
		{"token elsewhere", "GET", "/" + testToken, 418, ""},
		{"a long token", "GET", challengePath + strings.Repeat("a", 100_000), 418, ""},
		{"another method", "POST", challengePath + testToken, 418, ""},
		{"another path", "GET", "/", 418, ""},
		{"no path", "OPTIONS", "*", 418, ""},
	} {
		for _, with := range []http.Handler{next, nil} {
			w := httptest.NewRecorder()
			m.HTTPHandler(with).ServeHTTP(w, httptest.NewRequest(tc.method, tc.target, nil))
			code := tc.code
			if with == nil && code == http.StatusTeapot {
				code = http.StatusNotFound
			}
			if w.Code != code || tc.body != "" && w.Body.String() != tc.body {
				t.Errorf("%s: %d %q, want %d %q", tc.name, w.Code, w.Body, code, tc.body)
			}
		}
	}
}

func TestAnswersAreTakenBack(t *testing.T) {
	a := answers{http: map[string]string{}, alpn: map[string]*tls.Certificate{}}
	c := &xacme.Client{Key: newKey(t)}
	for _, typ := range []string{HTTP01, TLSALPN01} {
		remove, err := a.put(c, alpha, challengeOf(typ, testToken))
		if err != nil {
			t.Fatal(err)
		}
		text, ok := a.text(testToken)
		if (typ == HTTP01) != ok || ok && !strings.HasPrefix(text, testToken+".") {
			t.Errorf("%s: text = %q, %v", typ, text, ok)
		}
		if cert := a.certificate(alpha); (typ == TLSALPN01) != (cert != nil) {
			t.Errorf("%s: certificate = %v", typ, cert)
		}
		remove()
		if len(a.http)+len(a.alpn) != 0 {
			t.Errorf("%s: an answer is left", typ)
		}
	}
}

// A handshake costs a look in a map.
func TestGetCertificateAllocs(t *testing.T) {
	key := newKey(t)
	k := &kept{cert: &tls.Certificate{PrivateKey: key}, notAfter: time.Now().Add(time.Hour)}
	e := &entry{name: alpha}
	e.cert.Store(k)
	m := &Manager{byName: map[string]*entry{alpha: e}}
	hello := &tls.ClientHelloInfo{ServerName: alpha, SupportedProtos: []string{"h2"}}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := m.GetCertificate(hello); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("GetCertificate makes %v allocations, want none", n)
	}
}

func BenchmarkGetCertificate(b *testing.B) {
	e := &entry{name: alpha}
	e.cert.Store(&kept{cert: &tls.Certificate{}, notAfter: time.Now().Add(time.Hour)})
	m := &Manager{byName: map[string]*entry{alpha: e}}
	hello := &tls.ClientHelloInfo{ServerName: alpha, SupportedProtos: []string{"h2"}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := m.GetCertificate(hello); err != nil {
			b.Fatal(err)
		}
	}
}

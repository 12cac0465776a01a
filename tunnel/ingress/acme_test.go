package ingress_test

import (
	"crypto/tls"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"culvert/tunnel"
)

// fakeIssuer has one certificate and one answer to a challenge.
type fakeIssuer struct{ cert tls.Certificate }

func (i *fakeIssuer) Has(name string) bool { return name == "acme.example" }

func (i *fakeIssuer) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return &i.cert, nil
}

func (i *fakeIssuer) GetConfigForClient(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	if hello.SupportedProtos[0] != "acme-tls/1" {
		return nil, nil
	}
	return &tls.Config{Certificates: []tls.Certificate{i.cert}, NextProtos: []string{"acme-tls/1"}}, nil
}

func (i *fakeIssuer) HTTPHandler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/known") {
			_, _ = io.WriteString(w, "answer")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// A listener with acme answers the challenges of the CA, and shows the certificates.
func TestACME(t *testing.T) {
	ca := newWebCA(t)
	cert, err := tls.LoadX509KeyPair(both(ca.issue(t, filepath.Join(t.TempDir(), "acme.pem"), "acme.example")))
	if err != nil {
		t.Fatal(err)
	}
	e := newEdgeWith(t, &fakeIssuer{cert}, func(c *tunnel.Config) { c.Listeners[0].Ingress.ACME = true })
	e.serve(t, appListen, echo)
	c := e.client(t, http1)
	for path, want := range map[string]string{"/known": "answer", "/unknown": "HTTP/1.1 GET /.well-known/acme-challenge/unknown"} {
		resp, err := c.Get("http://acme.example/.well-known/acme-challenge" + path)
		if err != nil {
			t.Fatal(err)
		}
		if body, _ := io.ReadAll(resp.Body); !strings.HasPrefix(string(body), want) {
			t.Errorf("%s: %q, want %q", path, body, want)
		}
	}
	for _, alpn := range []string{"acme-tls/1", "h2"} {
		c, err := e.handshake(t, &tls.Config{ServerName: "acme.example", RootCAs: ca.pool, NextProtos: []string{alpn}})
		if err != nil || c.ConnectionState().NegotiatedProtocol != alpn {
			t.Errorf("%s: %v", alpn, err)
		}
	}
}

package ingress_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert/tunnel"
	"culvert/tunnel/tunneltest/memnet"
)

// webCA signs certificates for names.
type webCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newWebCA(t testing.TB) *webCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "web CA"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	ca := &webCA{key: key, pool: x509.NewCertPool()}
	if ca.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	ca.pool.AddCert(ca.cert)
	return ca
}

// issue writes a certificate with its key into one file.
func (ca *webCA) issue(t testing.TB, file string, names ...string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<60))
	tmpl := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: names[0]}, DNSNames: names, NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	_ = pem.Encode(&b, &pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// newTLSEdge is newEdge with certificates for shop.example, *.shop.example and other.example.
func newTLSEdge(t testing.TB, mend func(*tunnel.Config, *webCA)) (*edge, *webCA) {
	ca, dir := newWebCA(t), t.TempDir()
	e := newEdge(t, func(c *tunnel.Config) {
		i := &c.Listeners[0].Ingress
		i.Certificates = []tunnel.CertificateConfig{
			{Cert: ca.issue(t, filepath.Join(dir, "shop.pem"), "shop.example", "*.shop.example")},
			{Cert: ca.issue(t, filepath.Join(dir, "other.pem"), "other.example")},
		}
		if mend != nil {
			mend(c, ca)
		}
	})
	return e, ca
}

// handshake speaks TLS with the listener.
func (e *edge) handshake(t testing.TB, conf *tls.Config) (*tls.Conn, error) {
	t.Helper()
	c := tls.Client(e.dial(t), conf)
	return c, c.HandshakeContext(t.Context())
}

func TestTLSEnded(t *testing.T) {
	e, ca := newTLSEdge(t, nil)
	e.serve(t, appListen, echo)
	for _, alpn := range []string{"h2", "http/1.1", ""} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			conf := &tls.Config{ServerName: "www.shop.example", RootCAs: ca.pool, MaxVersion: version}
			if alpn != "" {
				conf.NextProtos = []string{alpn}
			}
			c, err := e.handshake(t, conf)
			if err != nil {
				t.Fatalf("%s, %x: %v", alpn, version, err)
			}
			tr := &http.Transport{DialTLSContext: dialled(c), ForceAttemptHTTP2: alpn == "h2"}
			resp, err := (&http.Client{Transport: tr}).Get("https://www.shop.example/a")
			if err != nil {
				t.Fatalf("%s, %x: %v", alpn, version, err)
			}
			body, err := io.ReadAll(resp.Body)
			if want := map[string]string{"h2": "HTTP/2.0"}[alpn]; err != nil || want != "" && resp.Proto != want || !strings.Contains(string(body), "X-Forwarded-Proto=https") {
				t.Errorf("%s, %x: %s %q, %v", alpn, version, resp.Proto, body, err)
			}
			tr.CloseIdleConnections()
		}
	}
	if log := e.log.String(); !strings.Contains(log, "sni=www.shop.example") || !strings.Contains(log, "asked=www.shop.example:443") {
		t.Errorf("the records lack something:\n%s", log)
	}
}

// What TLS refuses: an unknown name, no name, another ALPN, an old version, ciphers that are not AEAD.
func TestTLSRefused(t *testing.T) {
	e, ca := newTLSEdge(t, nil)
	for name, tt := range map[string]struct {
		conf  *tls.Config
		alert string
	}{
		"an unknown name": {&tls.Config{ServerName: "unknown.example"}, "unrecognized name"},
		"no name":         {&tls.Config{InsecureSkipVerify: true}, "unrecognized name"},
		"another ALPN":    {&tls.Config{ServerName: "shop.example", NextProtos: []string{"smtp"}}, "no application protocol"},
		"TLS 1.1":         {&tls.Config{ServerName: "shop.example", MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, "protocol version"},
		"CBC": {&tls.Config{ServerName: "shop.example", MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}},
			"handshake failure"},
	} {
		t.Run(name, func(t *testing.T) {
			tt.conf.RootCAs = ca.pool
			if _, err := e.handshake(t, tt.conf); err == nil || !strings.Contains(err.Error(), tt.alert) {
				t.Errorf("handshake: %v, want alert %q", err, tt.alert)
			}
		})
	}
	e.gw.Close()
	if log := e.log.String(); !strings.Contains(log, `reason=misdirected err="not served on this connection: there is no certificate for server name \"unknown.example\"; add one`) {
		t.Errorf("the record does not say what is missing:\n%s", log)
	}
	if s := e.gw.Stats(); s.Flows != 5 || s.Connections != 0 {
		t.Errorf("%d records and %d connections, want 5 and 0\n%s", s.Flows, s.Connections, e.log)
	}
}

// On a connection for one name no other name is served whose certificate it is not (421), and after http/1.1 no HTTP/2.
func TestFronting(t *testing.T) {
	e, ca := newTLSEdge(t, nil)
	e.serve(t, appListen, echo)
	c, err := e.handshake(t, &tls.Config{ServerName: "shop.example", RootCAs: ca.pool, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{DialTLSContext: dialled(c)}
	defer tr.CloseIdleConnections()
	for host, want := range map[string]int{"shop.example": 200, "a.shop.example": 200, "other.example": 421, "a.b.shop.example": 421, "10.0.0.1": 421} {
		r, err := http.NewRequest("GET", "https://shop.example/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		resp, err := tr.RoundTrip(r)
		if err != nil || resp.StatusCode != want {
			t.Errorf("%s on a connection for shop.example: %v, %v, want %d", host, resp, err, want)
		}
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
		}
	}
	c, err = e.handshake(t, &tls.Config{ServerName: "shop.example", RootCAs: ca.pool, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	if resp, _ := answerOn(t, c); resp.StatusCode != 400 {
		t.Errorf("HTTP/2 after http/1.1: %d, want 400", resp.StatusCode)
	}
}

// A session is not resumed with another certificate than it was made with.
func TestSessionsEndWithTheCertificate(t *testing.T) {
	var file string
	var ca *webCA
	e, ca := newTLSEdge(t, func(c *tunnel.Config, _ *webCA) { file = c.Listeners[0].Ingress.Certificates[0].Cert })
	e.serve(t, appListen, echo)
	sessions := tls.NewLRUClientSessionCache(8)
	visit := func() (resumed bool, serial string) {
		c, err := e.handshake(t, &tls.Config{ServerName: "shop.example", RootCAs: ca.pool, ClientSessionCache: sessions, NextProtos: []string{"http/1.1"}})
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n")
		_, _ = io.ReadAll(c) // the ticket is in it
		cs := c.ConnectionState()
		return cs.DidResume, cs.PeerCertificates[0].SerialNumber.String()
	}
	if resumed, _ := visit(); resumed {
		t.Error("the first visit resumes")
	}
	resumed, before := visit()
	if !resumed {
		t.Error("the second visit does not resume")
	}
	ca.issue(t, file, "shop.example")
	past := time.Now().Add(-time.Hour)
	_ = os.Chtimes(file, past, past) // so that it differs whatever the clock does
	deadline := time.Now().Add(20 * time.Second)
	for {
		resumed, now := visit()
		if now != before {
			if resumed {
				t.Error("a session was resumed with another certificate")
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the certificate is not read again")
		}
	}
}

func TestTLSPassedOn(t *testing.T) {
	e, ca := newTLSEdge(t, func(c *tunnel.Config, _ *webCA) {
		c.Listeners[0].Ingress.Pass = []string{"db.example", "*.db.example"}
		c.Routes = append([]tunnel.RouteConfig{{Hosts: []string{"*.db.example"}, From: "any", To: "10.0.0.8:5432"}}, c.Routes...)
	})
	cert, err := tls.LoadX509KeyPair(both(ca.issue(t, filepath.Join(t.TempDir(), "db.pem"), "a.db.example")))
	if err != nil {
		t.Fatal(err)
	}
	l, err := e.net.Listen("10.0.0.8:5432")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go l.Serve(func(nc *memnet.Conn) {
		c := tls.Server(nc, &tls.Config{Certificates: []tls.Certificate{cert}})
		_, _ = io.Copy(c, c)
		_ = c.Close()
	})
	c, err := e.handshake(t, &tls.Config{ServerName: "a.db.example", RootCAs: ca.pool, NextProtos: []string{"postgresql"}})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(c, "hello")
	_ = c.CloseWrite()
	if all, err := io.ReadAll(c); string(all) != "hello" || err != nil {
		t.Errorf("%q, %v", all, err)
	}
	e.gw.Close()
	if log := e.log.String(); !strings.Contains(log, "way=tls") || !strings.Contains(log, "sni=a.db.example") {
		t.Errorf("no record of it:\n%s", log)
	}
}

func both(file string) (string, string) { return file, file }

// Clients' certificates: those of the mesh make the client the peer of the flow, those of a CA in a file only let it in.
func TestClientCertificates(t *testing.T) {
	t.Run("mesh", func(t *testing.T) {
		e, ca := newTLSEdge(t, func(c *tunnel.Config, _ *webCA) {
			c.Listeners[0].Ingress.Clients = tunnel.ClientsRequest
			c.Routes[0].From = ""
		})
		e.serve(t, appListen, echo)
		me := e.ca.Issue(t, "cluster.local", "default", "client")
		for name, tt := range map[string]struct {
			certs []tls.Certificate
			want  int
		}{"with": {me.AnyTLS().Certificates, 200}, "without": {nil, 403}} {
			conf := &tls.Config{ServerName: "shop.example", RootCAs: ca.pool, NextProtos: []string{"http/1.1"}, Certificates: tt.certs}
			if tt.certs != nil && len(tt.certs) == 0 {
				conf.GetClientCertificate = me.AnyTLS().GetClientCertificate
			}
			c, err := e.handshake(t, conf)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n")
			if resp, _ := answerOn(t, c); resp.StatusCode != tt.want {
				t.Errorf("%s a certificate: %d, want %d", name, resp.StatusCode, tt.want)
			}
		}
		e.gw.Close()
		if !strings.Contains(e.log.String(), "peer=spiffe://cluster.local/ns/default/sa/client") {
			t.Errorf("the client is not the peer:\n%s", e.log)
		}
	})
	t.Run("file", func(t *testing.T) {
		var mine tls.Certificate
		e, ca := newTLSEdge(t, func(c *tunnel.Config, ca *webCA) {
			i := &c.Listeners[0].Ingress
			i.Clients, i.ClientRoots = tunnel.ClientsRequire, filepath.Join(t.TempDir(), "roots.pem")
			if err := os.WriteFile(i.ClientRoots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}), 0o600); err != nil {
				t.Fatal(err)
			}
			var err error
			if mine, err = tls.LoadX509KeyPair(both(ca.issue(t, filepath.Join(t.TempDir(), "me.pem"), "me"))); err != nil {
				t.Fatal(err)
			}
		})
		e.serve(t, appListen, echo)
		c, err := e.handshake(t, &tls.Config{ServerName: "shop.example", RootCAs: ca.pool, Certificates: []tls.Certificate{mine}})
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n")
		if resp, _ := answerOn(t, c); resp.StatusCode != 200 {
			t.Errorf("with a certificate: %d, want 200", resp.StatusCode)
		}
		c, err = e.handshake(t, &tls.Config{ServerName: "shop.example", RootCAs: ca.pool})
		if err == nil {
			_, err = c.Read(make([]byte, 1)) // in TLS 1.3 the alert comes after
		}
		if err == nil || errors.Is(err, io.EOF) {
			t.Errorf("without a certificate: %v, want an alert", err)
		}
	})
}

package tunnel_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"culvert/pki/bearer"
	"culvert/tunnel"
	"culvert/tunnel/tunneltest"
)

// webCertificate makes a certificate for localhost, as a web server has one, and returns its files.
func webCertificate(tb testing.TB) (cert, key string) {
	tb.Helper()
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"localhost"}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &signer.PublicKey, signer)
	if err != nil {
		tb.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		tb.Fatal(err)
	}
	cert, key = filepath.Join(tb.TempDir(), "web.pem"), filepath.Join(tb.TempDir(), "web.key")
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	return cert, key
}

// newOuterTCPPair is newTCPPair whose gateways are joined by requests with x-tun; secure has them speak TLS around those.
func newOuterTCPPair(tb testing.TB, form string, secure bool) *tcpPair {
	tb.Helper()
	dest, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { dest.Close() })
	ca := tunneltest.NewCA(tb)
	start := func(name string, cfg *tunnel.Config) *tunnel.Gateway {
		id := ca.Issue(tb, "cluster.local", "default", name)
		env := tunnel.Env{Self: id.Self, ServerTLS: id.ServerTLS, ClientTLS: id.ClientTLS, Log: slog.New(slog.DiscardHandler), VerifyToken: verifyText}
		env.OriginTLS = func(c *tunnel.TLSConfig) (conf *tls.Config, err error) {
			conf = new(tls.Config)
			if c.Roots != "" {
				text, err := os.ReadFile(c.Roots)
				conf.RootCAs = x509.NewCertPool()
				conf.RootCAs.AppendCertsFromPEM(text)
				return conf, err
			}
			conf.Certificates = make([]tls.Certificate, 1)
			conf.Certificates[0], err = tls.LoadX509KeyPair(c.Cert, c.Key)
			return conf, err
		}
		env.Bearer.Sign = func(string) (string, time.Time, error) { return goodToken, time.Now().Add(time.Hour), nil }
		g, err := tunnel.New(cfg, env)
		if err == nil {
			err = g.Start(context.Background())
		}
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(g.Close)
		return g
	}
	p := &tcpPair{dest: dest.(*net.TCPListener)}
	x, conf := &tunnel.XTunConfig{}, tunnel.HopTLSConfig{None: true}
	if secure {
		x.Cert, x.Key = webCertificate(tb)
		conf = tunnel.HopTLSConfig{Roots: x.Cert}
	}
	p.exit = start("exit", &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "tun", Kind: tunnel.KindXTun, Address: "127.0.0.1:0", XTun: x}},
		Routes:    []tunnel.RouteConfig{{Destinations: []string{"local"}}},
	})
	p.entry = start("entry", &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "plain", Kind: tunnel.KindForward, Address: "127.0.0.1:0", To: dest.Addr().String()}},
		Hops: map[string]tunnel.HopConfig{"lb": {Address: p.exit.Addr("tun").String(), Authority: "localhost", Tun: form, TLS: conf,
			Token: bearer.Config{Sign: true}}},
		Routes: []tunnel.RouteConfig{{Via: []string{"lb"}}},
	})
	return p
}

// A listener that ends TLS itself takes every form; WebSockets are in HTTP/2 then.
func TestXTunWithTLS(t *testing.T) {
	for _, form := range forms {
		t.Run(form, func(t *testing.T) {
			p := newOuterTCPPair(t, form, true)
			for range 2 {
				app, server := p.open(t)
				go func() { // ends with the connection
					_, _ = io.Copy(server, server)
					_ = server.CloseWrite()
				}()
				wantEcho(t, app, "secure")
			}
			if n := p.entry.Stats().TransportDials; n != 2 {
				t.Errorf("%d connections for two flows, want one to the proxy and one inside", n)
			}
		})
	}
}

package extauthz

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"culvert/pki/spiffe"
)

// certificate makes one that has signed itself, for a DNS name or a SPIFFE ID, and returns its PEM as well.
func certificate(tb testing.TB, name string) (tls.Certificate, []byte) {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"test"}}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	if strings.HasPrefix(name, "spiffe://") {
		u, err := url.Parse(name)
		if err != nil {
			tb.Fatal(err)
		}
		tmpl.URIs = []*url.URL{u}
	} else {
		tmpl.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		tb.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func allows(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	return &authv3.CheckResponse{HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{}}}, nil
}

func TestTLS(t *testing.T) {
	cert, text := certificate(t, "authz.example")
	_, other := certificate(t, "authz.example")
	write := func(text []byte) string {
		file := filepath.Join(t.TempDir(), "roots.pem")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	a := serve(t, listen(t, "127.0.0.1:0"), allows, grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}})))
	for _, tt := range []struct {
		name string
		tls  TLSConfig
		want string // in the refusal
	}{
		{"right", TLSConfig{Mode: "tls", Roots: write(text), ServerName: "authz.example"}, ""},
		{"other name", TLSConfig{Mode: "tls", Roots: write(text), ServerName: "other.example"}, "not other.example"},
		{"name of the address", TLSConfig{Mode: "tls", Roots: write(text)}, "127.0.0.1"},
		{"other roots", TLSConfig{Mode: "tls", Roots: write(other), ServerName: "authz.example"}, "unknown authority"},
		{"roots of the system", TLSConfig{Mode: "tls", ServerName: "authz.example"}, "unknown authority"},
		{"none", TLSConfig{Mode: "none"}, "cannot be reached"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newTestClient(t, Config{Address: a.addr, Timeout: long, TLS: tt.tls}, Env{})
			if d := ask(t, c); d.Allow != (tt.want == "") || !strings.Contains(d.Reason, tt.want) {
				t.Errorf("Ask = %+v, want %q", d, tt.want)
			}
		})
	}
	for name, text := range map[string]string{"no certificate": "hello", "too long": strings.Repeat("a", maxRootBytes+1)} {
		if c, err := New(&Config{Name: "opa", Address: a.addr, TLS: TLSConfig{Mode: "tls", Roots: write([]byte(text))}}, Env{}); err == nil {
			c.Close()
			t.Errorf("%s: New takes it", name)
		}
	}
}

// With mtls both ends show an identity: the server knows who asks, and is asked only if it is who it should be.
func TestMutualTLS(t *testing.T) {
	const authz, gw = "spiffe://cluster.local/ns/sys/sa/authz", "spiffe://cluster.local/ns/mesh/sa/gw"
	cert, _ := certificate(t, authz)
	own, _ := certificate(t, gw)
	a := serve(t, listen(t, "127.0.0.1:0"), allows, grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS13,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if peer, err := spiffe.FromCertificate(cs.PeerCertificates[0]); err != nil || peer.String() != gw || cs.ServerName != "" {
				return errors.New("who?")
			}
			return nil
		},
	})))
	env := Env{ClientTLS: func(want spiffe.ID) *tls.Config {
		return &tls.Config{
			NextProtos: []string{"h2"}, InsecureSkipVerify: true, Certificates: []tls.Certificate{own},
			VerifyConnection: func(cs tls.ConnectionState) error {
				if peer, err := spiffe.FromCertificate(cs.PeerCertificates[0]); err != nil || peer != want {
					return errors.New("not who it should be")
				}
				return nil
			},
		}
	}}
	for _, tt := range []struct{ identity, want string }{{authz, ""}, {"spiffe://cluster.local/ns/sys/sa/other", "not who it should be"}} {
		c := newTestClient(t, Config{Address: a.addr, Timeout: long, TLS: TLSConfig{Mode: "mtls", Identity: tt.identity}}, env)
		if d := ask(t, c); d.Allow != (tt.want == "") || !strings.Contains(d.Reason, tt.want) {
			t.Errorf("Ask of %s = %+v, want %q", tt.identity, d, tt.want)
		}
	}
	if c, err := New(&Config{Name: "a", Address: a.addr, TLS: TLSConfig{Mode: "mtls"}}, Env{}); err == nil {
		c.Close()
		t.Error("New takes mtls without an identity")
	}
}

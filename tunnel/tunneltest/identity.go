package tunneltest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"testing"
	"time"

	"culvert/pki/spiffe"
	"culvert/tunnel"
)

// CA signs identities.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Identity is a certificate with a SPIFFE ID, and the CA that peers must have.
type Identity struct {
	// ID is who it is.
	ID   spiffe.ID
	cert tls.Certificate
	ca   *CA
}

// NewCA makes a CA that every trust domain of a test may share.
func NewCA(tb testing.TB) *CA {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	tmpl := template(big.NewInt(1))
	tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return &CA{cert: cert, key: key}
}

// template is valid from long ago until long after, so that it serves in synthetic time.
func template(serial *big.Int) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{Organization: []string{"test"}},
		NotBefore: time.Date(1990, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
	}
}

// Issue makes the identity spiffe://TRUSTDOMAIN/ns/NAMESPACE/sa/ACCOUNT.
func (ca *CA) Issue(tb testing.TB, trustDomain, namespace, account string) *Identity {
	tb.Helper()
	return ca.IssueUntil(tb, trustDomain, namespace, account, template(nil).NotAfter)
}

// IssueUntil is Issue with the end of the certificate's validity.
func (ca *CA) IssueUntil(tb testing.TB, trustDomain, namespace, account string, notAfter time.Time) *Identity {
	tb.Helper()
	id, err := spiffe.New(trustDomain, namespace, account)
	if err != nil {
		tb.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	uri, err := url.Parse(id.String())
	if err != nil {
		tb.Fatal(err)
	}
	tmpl := template(big.NewInt(2))
	tmpl.NotAfter = notAfter
	tmpl.URIs, tmpl.KeyUsage = []*url.URL{uri}, x509.KeyUsageDigitalSignature
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		tb.Fatal(err)
	}
	return &Identity{ID: id, cert: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, ca: ca}
}

// Self is tunnel.Env.Self.
func (i *Identity) Self() spiffe.ID { return i.ID }

// ServerTLS is tunnel.Env.ServerTLS: peers must have the same trust domain.
func (i *Identity) ServerTLS(string) *tls.Config {
	return i.config(func(peer spiffe.ID) error {
		if peer.TrustDomain() != i.ID.TrustDomain() {
			return fmt.Errorf("peer %s is of another trust domain", peer)
		}
		return nil
	})
}

// ClientTLS is tunnel.Env.ClientTLS: the hop must have its identity, or the trust domain and namespace of
// this one.
func (i *Identity) ClientTLS(hop *tunnel.Hop) *tls.Config {
	return i.config(func(peer spiffe.ID) error {
		if slices.Contains(hop.Identities, peer) || len(hop.Identities) == 0 && peer.TrustDomain() == i.ID.TrustDomain() && peer.Namespace() == i.ID.Namespace() {
			return nil
		}
		return fmt.Errorf("hop %s is %s", hop.Name, peer)
	})
}

// AnyTLS is the configuration of a client or server that takes everybody whom the same CA has signed.
func (i *Identity) AnyTLS() *tls.Config {
	return i.config(func(spiffe.ID) error { return nil })
}

func (i *Identity) config(verify func(spiffe.ID) error) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{i.cert}, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		ClientAuth: tls.RequireAnyClientCert, InsecureSkipVerify: true,
		SessionTicketsDisabled: true, DynamicRecordSizingDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return errors.New("no certificate")
			}
			roots := x509.NewCertPool()
			roots.AddCert(i.ca.cert)
			leaf := cs.PeerCertificates[0]
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
				return err
			}
			id, err := spiffe.FromCertificate(leaf)
			if err != nil {
				return err
			}
			return verify(id)
		},
	}
}

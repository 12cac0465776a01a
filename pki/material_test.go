package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParseKeyForms(t *testing.T) {
	ca := mustCA(t, testTD)
	ec := newECKey(t, elliptic.P256()).(*ecdsa.PrivateKey)
	rsaKey := newRSAKey(t, 2048).(*rsa.PrivateKey)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p521 := newECKey(t, elliptic.P521())
	sec1, err := x509.MarshalECPrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	ecCert, _ := leaf(t, ca, func(s *leafSpec) { s.key = ec })
	rsaCert, _ := leaf(t, ca, func(s *leafSpec) { s.key = rsaKey })
	edCert, _ := leaf(t, ca, func(s *leafSpec) { s.key = ed })
	p521Cert, _ := leaf(t, ca, func(s *leafSpec) { s.key = p521 })
	_, ecPKCS8 := pemOf(t, ecCert)
	_, rsaPKCS8 := pemOf(t, rsaCert)
	_, edPKCS8 := pemOf(t, edCert)
	_, p521PKCS8 := pemOf(t, p521Cert)
	ecCertPEM, _ := pemOf(t, ecCert)
	for _, tc := range []struct {
		name string
		cert tls.Certificate
		key  []byte
	}{
		{"PKCS8 EC", ecCert, ecPKCS8},
		{"SEC1 EC", ecCert, pemBlock("EC PRIVATE KEY", sec1)},
		{"SEC1 EC behind parameters, as openssl ecparam writes", ecCert, slices.Concat(pemBlock("EC PARAMETERS", []byte{6, 1, 1}), pemBlock("EC PRIVATE KEY", sec1))},
		{"SEC1 EC labelled as PKCS8", ecCert, pemBlock("PRIVATE KEY", sec1)},
		{"key behind its certificate in one file", ecCert, slices.Concat(ecCertPEM, ecPKCS8)},
		{"text around the block", ecCert, slices.Concat([]byte("Bag Attributes\n  x: y\n"), ecPKCS8, []byte("\ntail\n"))},
		{"PKCS8 RSA", rsaCert, rsaPKCS8},
		{"PKCS1 RSA", rsaCert, pemBlock("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey))},
		{"PKCS8 Ed25519", edCert, edPKCS8},
		{"PKCS8 P-521", p521Cert, p521PKCS8},
	} {
		t.Run(tc.name, func(t *testing.T) {
			certPEM, _ := pemOf(t, tc.cert)
			m, err := Parse(certPEM, tc.key, ca.PEM())
			if err != nil {
				t.Fatalf("Parse = %v", err)
			}
			if m.ID != webID(t) || m.Certificate.Leaf == nil || len(m.warnings) != 0 {
				t.Errorf("Parse = %v, warnings %q", m, m.warnings)
			}
			src := Fixed(m)
			if p := handshake(t, src.ServerTLS(nil), src.ClientTLS(nil)); p.clientErr != nil || p.serverErr != nil {
				t.Errorf("handshake with it: client %v, server %v", p.clientErr, p.serverErr)
			}
		})
	}
}

// refusal is a set of texts that Parse must refuse, and why.
type refusal struct {
	name             string
	cert, key, roots []byte
	want             []string // "field reason", in order
	mend             string   // a word of the advice
}

func TestParseRefuses(t *testing.T) {
	ca := mustCA(t, testTD)
	good, _ := leaf(t, ca, nil)
	cert, key := pemOf(t, good)
	_, otherKey := pemOf(t, first(leaf(t, ca, nil)))
	leafWith := func(change func(*leafSpec)) (certPEM, keyPEM []byte) { return pemOf(t, first(leaf(t, ca, change))) }
	add := func(list []refusal, name, mend string, roots []byte, change func(*leafSpec), want ...string) []refusal {
		c, k := leafWith(change)
		return append(list, refusal{name, c, k, roots, want, mend})
	}
	cases := []refusal{
		{"all empty", nil, nil, nil, []string{"cert bad-format", "key bad-format", "roots bad-format"}, "PEM"},
		{"garbage", []byte("x"), []byte{0, 1, 2}, []byte("-----BEGIN"), []string{"cert bad-format", "key bad-format", "roots bad-format"}, "PEM"},
		{"cert and key swapped", key, cert, ca.PEM(), []string{"cert bad-format", "key bad-format"}, "changed places"},
		{"key of another certificate", cert, otherKey, ca.PEM(), []string{"key mismatch"}, "issued for"},
		{"intermediate first", slices.Concat(ca.PEM(), cert), key, ca.PEM(), []string{"cert not-leaf", "cert no-identity", "key mismatch"}, "first in the file"},
		{"damaged certificate", pemBlock("CERTIFICATE", []byte{0x30, 1}), key, ca.PEM(), []string{"cert bad-format"}, "anew"},
		{"damaged key", cert, pemBlock("PRIVATE KEY", []byte{0x30, 1}), ca.PEM(), []string{"key bad-format"}, "PKCS #8"},
		{"encrypted PKCS8", cert, pemBlock("ENCRYPTED PRIVATE KEY", []byte{0x30, 1}), ca.PEM(), []string{"key bad-format"}, "openssl pkey"},
		{"encrypted, old style", cert, []byte("-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nMAAA\n-----END EC PRIVATE KEY-----\n"),
			ca.PEM(), []string{"key bad-format"}, "openssl pkey"},
		{"two keys", cert, slices.Concat(key, otherKey), ca.PEM(), []string{"key bad-format"}, "only the key"},
		{"too many certificates", bytes.Repeat(cert, maxChain+1), key, ca.PEM(), []string{"cert too-many"}, "remove"},
		{"too many roots", cert, key, bytes.Repeat(ca.PEM(), maxRoots+1), []string{"roots too-many"}, "remove"},
		{"leaf as root", cert, key, slices.Concat(ca.PEM(), cert), []string{"roots no-authority"}, "the CA"},
		{"every problem at once", slices.Concat(ca.PEM(), cert), pemBlock("PRIVATE KEY", nil), cert,
			[]string{"cert not-leaf", "cert no-identity", "key bad-format", "roots no-authority"}, ""},
	}
	cases = add(cases, "expired", "clock", ca.PEM(), func(s *leafSpec) { s.template.NotAfter = time.Now().Add(-time.Second) }, "cert expired")
	cases = add(cases, "not yet valid", "clock", ca.PEM(), func(s *leafSpec) { s.template.NotBefore = time.Now().Add(time.Minute) }, "cert not-yet-valid")
	cases = add(cases, "CA:TRUE leaf", "leaf", ca.PEM(), func(s *leafSpec) { s.template.IsCA = true }, "cert not-leaf")
	cases = add(cases, "leaf that signs certificates", "leaf", ca.PEM(), func(s *leafSpec) { s.template.KeyUsage |= x509.KeyUsageCertSign }, "cert not-leaf")
	cases = add(cases, "no digitalSignature", "leaf", ca.PEM(), func(s *leafSpec) { s.template.KeyUsage = x509.KeyUsageKeyEncipherment }, "cert bad-usage")
	cases = add(cases, "no key usage", "leaf", ca.PEM(), func(s *leafSpec) { s.template.KeyUsage = 0 }, "cert bad-usage")
	cases = add(cases, "no URI", "one SPIFFE ID", ca.PEM(), func(s *leafSpec) { s.uris, s.dns = nil, []string{"web"} }, "cert no-identity")
	cases = add(cases, "two URIs", "one SPIFFE ID", ca.PEM(), func(s *leafSpec) { s.uris = append(s.uris, "spiffe://cluster.local/x") }, "cert no-identity")
	cases = add(cases, "short RSA key", "P-256", ca.PEM(), func(s *leafSpec) { s.key = newRSAKey(t, 1024) }, "cert weak-key")
	cases = add(cases, "P-224 key", "P-256", ca.PEM(), func(s *leafSpec) { s.key = newECKey(t, elliptic.P224()) }, "cert weak-key")
	old := longRoot(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	cases = append(cases, refusal{"only an expired root", cert, key, old.PEM(), []string{"roots expired"}, "new one"})
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			m, err := Parse(tc.cert, tc.key, tc.roots)
			if got := reasons(err); m != nil || !slices.Equal(got, tc.want) {
				t.Fatalf("Parse = %v, %q (%v), want %q", m, got, err, tc.want)
			}
			if !strings.Contains(err.Error(), tc.mend) {
				t.Errorf("Parse: %q gives no advice with %q", err, tc.mend)
			}
		})
	}
}

func first[A, B any](a A, _ B) A { return a }

func TestParseWarnings(t *testing.T) {
	ca, other := mustCA(t, testTD), mustCA(t, testTD)
	old := longRoot(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	plain := first(leaf(t, ca, nil))
	serverOnly := first(leaf(t, ca, func(s *leafSpec) { s.template.ExtKeyUsage = s.template.ExtKeyUsage[:1] }))
	clientOnly := first(leaf(t, ca, func(s *leafSpec) { s.template.ExtKeyUsage = s.template.ExtKeyUsage[1:] }))
	for _, tc := range []struct {
		name  string
		cert  tls.Certificate
		roots []byte
		want  string // "" = no warning
	}{
		{"none", plain, ca.PEM(), ""},
		{"several roots", plain, slices.Concat(other.PEM(), ca.PEM()), ""},
		{"own CA is not among the roots", plain, other.PEM(), "does not lead to our own roots"},
		{"one of two roots expired", plain, slices.Concat(old.PEM(), ca.PEM()), "expired"},
		{"for servers only", serverOnly, ca.PEM(), "clientAuth"},
		{"for clients only", clientOnly, ca.PEM(), "serverAuth"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cert, key := pemOf(t, tc.cert)
			m, err := Parse(cert, key, tc.roots)
			if err != nil {
				t.Fatalf("Parse = %v", err)
			}
			if got := strings.Join(m.warnings, "\n"); tc.want == "" && got != "" || !strings.Contains(got, tc.want) {
				t.Errorf("warnings %q, want %q", got, tc.want)
			}
		})
	}
}

// The key must not leave by way of a log or an error message.
func TestKeysAreNotPrinted(t *testing.T) {
	ca := mustCA(t, testTD)
	cert, keyPEM := pemOf(t, first(leaf(t, ca, nil)))
	m, err := Parse(cert, keyPEM, ca.PEM())
	if err != nil {
		t.Fatal(err)
	}
	key := m.Certificate.PrivateKey.(*ecdsa.PrivateKey)
	secret, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	caKey := ca.key.(*ecdsa.PrivateKey)
	caSecret, err := caKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	src := Fixed(m)
	l, log := newLogs()
	log.Info("text", "m", m, "value", *m, "ca", ca, "src", src)
	slog.New(slog.NewJSONHandler(l, nil)).Info("json", "m", m, "nested", map[string]any{"m": m, "v": *m}, "ca", ca, "src", src)
	var all strings.Builder
	all.WriteString(l.String())
	for _, v := range []any{m, *m, ca, src} {
		fmt.Fprintf(&all, "%v %+v %#v %s\n", v, v, v, v)
		text, err := json.Marshal(v)
		if err != nil && !errors.As(err, new(*json.UnsupportedTypeError)) {
			t.Fatal(err)
		}
		all.Write(text)
	}
	block, _ := pem.Decode(keyPEM)
	for _, s := range [][]byte{secret, caSecret, block.Bytes} {
		for _, form := range []string{string(s), fmt.Sprintf("%x", s), fmt.Sprintf("%d", s), new(big.Int).SetBytes(s).String(), base64.StdEncoding.EncodeToString(s)} {
			if strings.Contains(all.String(), form) {
				t.Fatalf("a key is printed as %q", form)
			}
		}
	}
	if !strings.Contains(all.String(), webID(t).String()) {
		t.Errorf("the identity is not printed: %s", all.String())
	}
}

func FuzzParsePEM(f *testing.F) {
	ca, err := NewCA(testTD)
	if err != nil {
		f.Fatal(err)
	}
	cert, key, err := ca.Issue(webID(f), time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(cert, key, ca.PEM())
	f.Add(slices.Concat(cert, ca.PEM()), slices.Concat(cert, key), slices.Concat(ca.PEM(), ca.PEM()))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), []byte("-----BEGIN PRIVATE KEY-----\nMA==\n-----END PRIVATE KEY-----\n"), []byte{})
	f.Add(key, cert, []byte("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----"))
	f.Fuzz(func(t *testing.T, cert, key, roots []byte) {
		m, err := Parse(cert, key, roots)
		if (m == nil) != (err != nil) {
			t.Fatalf("Parse = %v, %v", m, err)
		}
		if err != nil && slices.ContainsFunc(reasons(err), func(s string) bool { return strings.HasPrefix(s, "other: ") }) {
			t.Fatalf("Parse: %v is not made of ConfigErrors", err)
		}
		found, _ := Describe(slices.Concat(cert, key, roots))
		for _, d := range found {
			if strings.ContainsFunc(d.String(), func(r rune) bool { return r < ' ' && r != '\n' || r > '~' }) {
				t.Fatalf("Describe: %q is not fit for a terminal", d.String())
			}
		}
	})
}

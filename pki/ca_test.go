package pki

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"culvert/pki/spiffe"
)

func parseOne(t *testing.T, certPEM []byte) *x509.Certificate {
	t.Helper()
	block, rest := pem.Decode(certPEM)
	if block == nil || len(rest) > 0 {
		t.Fatalf("%q is not one PEM block", certPEM)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCreateAndLoadCA(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "ca")
	made, err := CreateCA(dir, "example.org")
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := LoadCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	if loaded.TrustDomain() != "example.org" || !loaded.cert.Equal(made.cert) || string(loaded.PEM()) != string(made.PEM()) {
		t.Errorf("LoadCA = %v, want what CreateCA made, %v", loaded, made)
	}
	c := parseOne(t, loaded.PEM())
	// X509-SVID, sections 3.2 and 4.3, and RFC 5280, section 4.2.1.9.
	if !c.IsCA || c.MaxPathLen != 1 || c.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign ||
		len(c.URIs) != 1 || c.URIs[0].String() != "spiffe://example.org" || c.Subject.String() == "" {
		t.Errorf("the CA is %+v", c)
	}
	if years := time.Until(loaded.NotAfter()).Hours() / 24 / 365; years < 9.9 || years > 10.1 {
		t.Errorf("the CA is valid for %.1f years, want 10", years)
	}
	if runtime.GOOS != "windows" {
		for path, want := range map[string]os.FileMode{dir: 0o700 | os.ModeDir, filepath.Join(dir, caCertFile): 0o600, filepath.Join(dir, caKeyFile): 0o600} {
			if info, err := os.Stat(path); err != nil || info.Mode() != want {
				t.Errorf("%s has mode %v, %v, want %v", path, info.Mode(), err, want)
			}
		}
	}
	if _, err := CreateCA(dir, "example.org"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("CreateCA over a CA: %v, want fs.ErrExist", err)
	}
	if again, err := LoadCA(dir); err != nil || !again.cert.Equal(made.cert) {
		t.Errorf("the CA changed: %v", err)
	}
	if _, err := CreateCA(t.TempDir(), "Example.org"); err == nil {
		t.Error("CreateCA for an upper-case trust domain = nil error")
	}
}

func TestLoadCARefuses(t *testing.T) {
	ca := mustCA(t, testTD)
	caKey, err := encodeKey(ca.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, key := pemOf(t, first(leaf(t, ca, nil)))
	old := longRoot(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	oldKey, err := encodeKey(old.key)
	if err != nil {
		t.Fatal(err)
	}
	odd := longRoot(t, func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "spiffe", Host: "a", Path: "/b"}} })
	oddKey, err := encodeKey(odd.key)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name      string
		cert, key []byte
		keyMode   os.FileMode
		want      []string
	}{
		{"nothing", nil, nil, 0, []string{"ca.pem unreadable", "ca.key unreadable"}},
		{"no key", ca.PEM(), nil, 0, []string{"ca.key unreadable"}},
		{"no certificate, damaged key", nil, []byte("x"), 0o600, []string{"ca.pem unreadable", "ca.key bad-format"}},
		{"open key", ca.PEM(), caKey, 0o644, []string{"ca.key open-key"}},
		{"key of another", ca.PEM(), key, 0o600, []string{"ca.key mismatch"}},
		{"a leaf", cert, key, 0o600, []string{"ca.pem no-authority"}},
		{"expired", old.PEM(), oldKey, 0o600, []string{"ca.pem expired"}},
		{"no root of the key", slices.Concat(old.PEM(), odd.PEM()), caKey, 0o600, []string{"ca.key mismatch", "ca.pem expired"}},
		{"named like a workload", odd.PEM(), oddKey, 0o600, []string{"ca.pem no-identity"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			if tc.cert != nil {
				put(t, dir, caCertFile, tc.cert, 0o600)
			}
			if tc.key != nil {
				put(t, dir, caKeyFile, tc.key, tc.keyMode)
			}
			loaded, err := LoadCA(dir)
			if got := reasons(err); !slices.Equal(got, tc.want) && runtime.GOOS != "windows" || loaded != nil && err != nil {
				t.Errorf("LoadCA = %v, %q (%v), want %q", loaded, got, err, tc.want)
			}
		})
	}
}

// A CA that was made by something else names no trust domain and signs for all.
func TestForeignCA(t *testing.T) {
	dir := t.TempDir()
	root := longRoot(t, nil)
	if err := root.write(dir); err != nil {
		t.Fatal(err)
	}
	ca, err := LoadCA(dir)
	if err != nil || ca.TrustDomain() != "" {
		t.Fatalf("LoadCA = %v, %v", ca, err)
	}
	cert, key, err := ca.Issue(mustID(t, "spiffe://any.example/x"), 48*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if m, err := Parse(cert, key, ca.PEM()); err != nil || m.NotAfter.After(ca.NotAfter()) || m.NotBefore.Before(ca.cert.NotBefore) {
		t.Errorf("Parse = %v, %v, want it to end with the CA at %v", m, err, ca.NotAfter())
	}
}

func TestIssue(t *testing.T) {
	ca := mustCA(t, testTD)
	certPEM, keyPEM, err := ca.Issue(webID(t), 2*time.Hour, "web.default.svc", "*.web.example", "127.0.0.1", "::1")
	if err != nil {
		t.Fatal(err)
	}
	c := parseOne(t, certPEM)
	if block, _ := pem.Decode(keyPEM); block == nil || block.Type != "PRIVATE KEY" {
		t.Errorf("the key is %q, want PKCS #8", block.Type)
	}
	if id, err := spiffe.FromCertificate(c); err != nil || id != webID(t) {
		t.Errorf("it names %q, %v", id, err)
	}
	if !slices.Equal(c.DNSNames, []string{"web.default.svc", "*.web.example"}) || len(c.IPAddresses) != 2 {
		t.Errorf("names %q %v", c.DNSNames, c.IPAddresses)
	}
	if c.IsCA || !c.BasicConstraintsValid || c.KeyUsage != x509.KeyUsageDigitalSignature || len(c.ExtKeyUsage) != 2 || c.SerialNumber.BitLen() < 64 {
		t.Errorf("CA %v, usage %v %v, serial %x", c.IsCA, c.KeyUsage, c.ExtKeyUsage, c.SerialNumber)
	}
	if d := time.Until(c.NotAfter); d > 2*time.Hour || d < 2*time.Hour-time.Minute || time.Since(c.NotBefore) < leafBackdate {
		t.Errorf("valid from %v to %v", c.NotBefore, c.NotAfter)
	}
	// RFC 5280, section 4.1.2.6: "If subject naming information is present only in the subjectAltName extension …,
	// then the subject name MUST be an empty sequence and the subjectAltName extension MUST be critical."
	for _, ext := range c.Extensions {
		if ext.Id.Equal([]int{2, 5, 29, 17}) && (!ext.Critical || c.Subject.String() != "") {
			t.Errorf("subject %q, names critical %v", c.Subject, ext.Critical)
		}
	}
	// What we issue, others accept: a client that verifies host names by crypto/x509.
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	if _, err := c.Verify(x509.VerifyOptions{Roots: roots, DNSName: "x.web.example"}); err != nil {
		t.Errorf("crypto/x509: %v", err)
	}
	if short, _, err := ca.Issue(webID(t), 0); err != nil || time.Until(parseOne(t, short).NotAfter) > DefaultTTL {
		t.Errorf("Issue with the default validity: %v", err)
	}
}

func TestIssueRefuses(t *testing.T) {
	ca := mustCA(t, testTD)
	old := longRoot(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	many := make([]string, maxIssuedNames+1)
	for i := range many {
		many[i] = fmt.Sprintf("h%d", i)
	}
	for _, tc := range []struct {
		name  string
		ca    *CA
		id    spiffe.ID
		ttl   time.Duration
		names []string
		want  string
	}{
		{"nobody", ca, spiffe.ID{}, 0, nil, "empty"},
		{"other trust domain", ca, mustID(t, evilText), 0, nil, testTD},
		{"negative validity", ca, webID(t), -1, nil, "past"},
		{"expired CA", old, webID(t), 0, nil, "expired"},
		{"too many names", ca, webID(t), 0, many, "too many"},
		{"empty name", ca, webID(t), 0, []string{""}, "neither"},
		{"upper-case name", ca, webID(t), 0, []string{"Web"}, "neither"},
		{"name with NUL", ca, webID(t), 0, []string{"web\x00.evil"}, "neither"},
		{"name with a last dot", ca, webID(t), 0, []string{"web."}, "neither"},
		{"name with an empty label", ca, webID(t), 0, []string{"a..b"}, "neither"},
		{"name with a leading hyphen", ca, webID(t), 0, []string{"-a"}, "neither"},
		{"wildcard alone", ca, webID(t), 0, []string{"*"}, "neither"},
		{"wildcard in the middle", ca, webID(t), 0, []string{"a.*.b"}, "neither"},
		{"long label", ca, webID(t), 0, []string{strings.Repeat("a", 64)}, "neither"},
		{"long name", ca, webID(t), 0, []string{strings.Repeat("a.", 127) + "a"}, "neither"},
		{"address with zone", ca, webID(t), 0, []string{"fe80::1%eth0"}, "neither"},
		{"URL", ca, webID(t), 0, []string{"https://web"}, "neither"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cert, key, err := tc.ca.Issue(tc.id, tc.ttl, tc.names...)
			if err == nil || cert != nil || key != nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Issue = %d and %d bytes, %v, want an error with %q", len(cert), len(key), err, tc.want)
			}
		})
	}
}

func TestDescribeCRL(t *testing.T) {
	ca := mustCA(t, testTD)
	gone := spiffeLeaf(t, ca, webText)
	found, err := Describe(crlPEM(crl(t, ca, time.Now().Add(time.Hour), gone), crl(t, ca, time.Now().Add(-time.Minute))))
	if err != nil || len(found) != 2 {
		t.Fatalf("Describe = %v, %v, want two", found, err)
	}
	text := found[0].String()
	for _, want := range []string{"CRL", ca.String(), gone.SerialNumber.Text(16), stamp(found[0].NotAfter)} {
		if !strings.Contains(text, want) {
			t.Errorf("the text lacks %q:\n%s", want, text)
		}
	}
	if len(found[0].Problems) != 0 || len(found[1].Problems) != 1 || len(found[1].Revoked) != 0 {
		t.Errorf("problems: %q, %q of %+v", found[0].Problems, found[1].Problems, found[1])
	}
	if _, err := Describe(pemBlock("X509 CRL", []byte("junk"))); err == nil {
		t.Error("Describe takes a damaged CRL")
	}
}

func TestDescribe(t *testing.T) {
	ca := mustCA(t, testTD)
	cert, key, err := ca.Issue(webID(t), time.Hour, "web.default.svc", "10.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	bad := first(leaf(t, ca, func(s *leafSpec) {
		s.template.Subject.CommonName = "\x1b[31mred\x07\nnext " + strings.Repeat("x", 300)
		s.template.NotAfter = time.Now().Add(-time.Minute)
		s.template.KeyUsage = x509.KeyUsageKeyAgreement
		s.uris, s.key = nil, newRSAKey(t, 1024)
	}))
	badCert, _ := pemOf(t, bad)
	found, err := Describe(slices.Concat(cert, key, ca.PEM(), badCert, pemBlock("EC PARAMETERS", []byte{6, 1, 1})))
	if err != nil || len(found) != 5 {
		t.Fatalf("Describe = %v, %v, want 5 descriptions", found, err)
	}
	kinds := []string{"certificate", "private key", "CA certificate", "certificate", "EC PARAMETERS"}
	for i, want := range kinds {
		if found[i].Kind != want {
			t.Errorf("block %d is a %q, want %q", i+1, found[i].Kind, want)
		}
	}
	d := found[0]
	if d.ID != webID(t) || d.Key != "ECDSA P-256" || len(d.Problems) != 0 || len(d.Fingerprint) != 64 || d.Issuer != ca.String() {
		t.Errorf("the leaf is %+v", d)
	}
	text := d.String()
	for _, want := range []string{webText, "DNS:web.default.svc", "IP:10.0.0.1", "serverAuth", "clientAuth", "digitalSignature", d.Serial, stamp(d.NotAfter)} {
		if !strings.Contains(text, want) {
			t.Errorf("the text lacks %q:\n%s", want, text)
		}
	}
	if found[1].Key != "ECDSA P-256" || strings.Contains(found[1].String(), "\n\n") {
		t.Errorf("the key is %+v", found[1])
	}
	if got := len(found[3].Problems); got != 4 {
		t.Errorf("the bad certificate has %d problems, want 4 (no ID, usage, key, time): %q", got, found[3].Problems)
	}
	if s := found[3].String(); strings.ContainsAny(s, "\x1b\x07") || len(found[3].Subject) > 2*maxShownName {
		t.Errorf("the text is not fit for a terminal: %q", s)
	}
	for _, data := range []string{"", "hello", "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n", "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n"} {
		if found, err := Describe([]byte(data)); err == nil || len(found) != 0 {
			t.Errorf("Describe(%q) = %v, %v, want an error", data, found, err)
		}
	}
}

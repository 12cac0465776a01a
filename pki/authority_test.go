package pki

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"culvert/pki/istioca"
	"culvert/pki/spiffe"
)

// testAuthority is an Authority of a test, which serves if serve was called.
type testAuthority struct {
	*Authority
	t    testing.TB
	dir  string
	logs *logs
	addr string
	end  func() // ends serving; may be called twice
}

func newAuthority(t testing.TB, cfg AuthorityConfig) *testAuthority {
	t.Helper()
	return openAuthority(t, t.TempDir(), cfg)
}

func openAuthority(t testing.TB, dir string, cfg AuthorityConfig) *testAuthority {
	t.Helper()
	l, log := newLogs()
	a, err := OpenAuthority(dir, cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
	return &testAuthority{Authority: a, t: t, dir: dir, logs: l}
}

// serve serves on addr, "" for any port of loopback.
func (a *testAuthority) serve(addr string) {
	a.t.Helper()
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		a.t.Fatal(err)
	}
	a.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Serve(ctx, ln) }() // ends with ctx; the cleanup waits
	ended := false
	a.end = func() {
		if ended {
			return
		}
		ended = true
		cancel()
		if err := <-done; err != nil {
			a.t.Errorf("Serve = %v", err)
		}
	}
	a.t.Cleanup(a.end)
}

// joinConfig is that of a host that joins with a new token for id.
func (a *testAuthority) joinConfig(id spiffe.ID) JoinConfig {
	a.t.Helper()
	token, err := a.NewToken(id, 0)
	if err != nil {
		a.t.Fatal(err)
	}
	return JoinConfig{Dir: filepath.Join(a.t.TempDir(), "state"), Address: a.addr, Pin: a.Pin(), Token: token}
}

// join has a new host join.
func (a *testAuthority) join(id spiffe.ID) (dir string) {
	a.t.Helper()
	cfg := a.joinConfig(id)
	if m, err := Join(a.t.Context(), cfg); err != nil || m.ID != id {
		a.t.Fatalf("Join = %v, %v", m, err)
	}
	return cfg.Dir
}

// csrOf makes a CSR, after change had its way with it.
func csrOf(t testing.TB, key crypto.Signer, change func(*x509.CertificateRequest)) string {
	t.Helper()
	template := new(x509.CertificateRequest)
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pemBlock("CERTIFICATE REQUEST", der))
}

func mustURL(t testing.TB, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// verifyIssued checks a chain by crypto/x509 alone, and returns the leaf.
func verifyIssued(t testing.TB, chain []string, roots []byte) *x509.Certificate {
	t.Helper()
	pool, inters := x509.NewCertPool(), x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	block, _ := pem.Decode([]byte(chain[0]))
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range chain[1 : len(chain)-1] {
		inters.AppendCertsFromPEM([]byte(c))
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, Intermediates: inters, CurrentTime: time.Now(), KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			t.Fatalf("the chain is not valid: %v", err)
		}
	}
	return leaf
}

func TestSignCSR(t *testing.T) {
	a := newAuthority(t, AuthorityConfig{})
	root, err := os.ReadFile(filepath.Join(a.dir, caCertFile))
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		key  crypto.Signer
		ttl  time.Duration
		want time.Duration
	}{
		{"P-256", newECKey(t, elliptic.P256()), 0, time.Hour},
		{"P-384, for ten minutes", newECKey(t, elliptic.P384()), 10 * time.Minute, 10 * time.Minute},
		{"Ed25519, for a year", ed, 365 * 24 * time.Hour, 24 * time.Hour},
		{"RSA 2048, for ever", newRSAKey(t, 2048), 1<<63 - 1, 24 * time.Hour},
	} {
		t.Run(tc.name, func(t *testing.T) {
			csr := csrOf(t, tc.key, func(r *x509.CertificateRequest) {
				r.Subject = pkix.Name{CommonName: "I am root"}
				r.URIs = []*url.URL{mustURL(t, webID(t).String())}
			})
			chain, err := a.SignCSR(csr, Grant{ID: webID(t), Names: []string{"web.example", "10.0.0.1"}}, tc.ttl)
			if err != nil {
				t.Fatal(err)
			}
			if len(chain) != 3 || chain[2] != string(root) {
				t.Fatalf("a chain of %d, want leaf, intermediate and the root", len(chain))
			}
			c := verifyIssued(t, chain, root)
			if !samePublic(tc.key.Public(), c.PublicKey) {
				t.Error("the key is another")
			}
			if id, err := spiffe.FromCertificate(c); err != nil || id != webID(t) {
				t.Errorf("the identity is %v, %v", id, err)
			}
			if life := time.Until(c.NotAfter); life > tc.want || life < tc.want-time.Minute {
				t.Errorf("valid for %v, want %v", life, tc.want)
			}
			if c.Subject.String() != "" || c.IsCA || !c.BasicConstraintsValid || c.KeyUsage != x509.KeyUsageDigitalSignature || c.SerialNumber.BitLen() < 64 ||
				!slices.Equal(c.DNSNames, []string{"web.example"}) || len(c.IPAddresses) != 1 {
				t.Errorf("the certificate is %+v", c)
			}
			san := slices.IndexFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17}) })
			if san < 0 || !c.Extensions[san].Critical {
				t.Error("the names are not critical") // RFC 5280, section 4.1.2.6, for an empty subject
			}
		})
	}
}

// hostileCSRs are those that no identity gets a certificate for.
func hostileCSRs(t testing.TB) map[string]struct {
	csr  string
	code istioca.Code
	text string
} {
	key := newECKey(t, elliptic.P256())
	good := csrOf(t, key, nil)
	block, _ := pem.Decode([]byte(good))
	bent := slices.Clone(block.Bytes)
	bent[len(bent)-1] ^= 1
	weak := csrOf(t, newRSAKey1024(t), nil)
	ca := func(der []byte) string {
		return csrOf(t, key, func(r *x509.CertificateRequest) {
			r.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: der}}
		})
	}
	uris := func(names ...string) string {
		return csrOf(t, key, func(r *x509.CertificateRequest) {
			for _, name := range names {
				r.URIs = append(r.URIs, mustURL(t, name))
			}
		})
	}
	const invalid, denied = istioca.InvalidArgument, istioca.PermissionDenied
	return map[string]struct {
		csr  string
		code istioca.Code
		text string
	}{
		"nothing":                 {"", invalid, "one PEM block"},
		"garbage":                 {"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", invalid, "damaged"},
		"no PEM":                  {strings.Repeat("\x00\xff", 100), invalid, "one PEM block"},
		"a certificate":           {string(mustCA(t, testTD).PEM()), invalid, "one PEM block"},
		"two":                     {good + good, invalid, "one PEM block"},
		"something after it":      {good + "x", invalid, "one PEM block"},
		"1 MiB":                   {good + strings.Repeat("\n", 1<<20), invalid, "bytes"},
		"bad signature":           {string(pemBlock("CERTIFICATE REQUEST", bent)), invalid, "signature"},
		"RSA 1024":                {weak, invalid, "1024 bits"},
		"RSA 512":                 {rsa512CSR, invalid, "512 bits"},
		"RSA 4104":                {rsa4104CSR, invalid, "4104 bits"},
		"P-521":                   {csrOf(t, newECKey(t, elliptic.P521()), nil), invalid, "P-521"},
		"P-224":                   {csrOf(t, newECKey(t, elliptic.P224()), nil), invalid, "P-224"},
		"CA:TRUE":                 {ca([]byte{0x30, 0x03, 0x01, 0x01, 0xff}), invalid, "CA certificate"},
		"CA:TRUE, pathlen":        {ca([]byte{0x30, 0x06, 0x01, 0x01, 0xff, 0x02, 0x01, 0x05}), invalid, "CA certificate"},
		"damaged constraints":     {ca([]byte{0x30, 0x7f}), invalid, "CA certificate"},
		"another's name":          {uris("spiffe://cluster.local/ns/default/sa/admin"), denied, "you are spiffe://"},
		"two names":               {uris(webID(t).String(), "spiffe://cluster.local/ns/default/sa/admin"), denied, "2 URIs"},
		"another domain's name":   {uris("spiffe://other.example/ns/default/sa/web"), denied, "you are spiffe://"},
		"a name that only begins": {uris(webID(t).String() + "/x"), denied, "you are spiffe://"},
		"a DNS name":              {csrOf(t, key, func(r *x509.CertificateRequest) { r.DNSNames = []string{"ca.example"} }), denied, "ca.example"},
		"an address":              {csrOf(t, key, func(r *x509.CertificateRequest) { r.IPAddresses = []net.IP{{10, 0, 0, 1}} }), denied, "10.0.0.1"},
		"a mail address":          {csrOf(t, key, func(r *x509.CertificateRequest) { r.EmailAddresses = []string{"a@b.example"} }), denied, "mail"},
	}
}

func TestHostileCSRs(t *testing.T) {
	a := newAuthority(t, AuthorityConfig{})
	for name, tc := range hostileCSRs(t) {
		t.Run(name, func(t *testing.T) {
			chain, err := a.SignCSR(tc.csr, Grant{ID: webID(t)}, 0)
			told, ok := errors.AsType[*istioca.Error](err)
			if chain != nil || !ok || told.Code != tc.code || !strings.Contains(told.Detail, tc.text) {
				t.Errorf("SignCSR = %d certificates, %v, want %d and %q", len(chain), err, tc.code, tc.text)
			}
		})
	}
	if issued, err := a.issued(time.Now()); err != nil || issued.live != 0 {
		t.Errorf("the record has %d certificates, %v, want none", issued.live, err)
	}
}

// What only the CA may be, and what is not this CA's, is granted to nobody.
func TestGrantsThatAreNone(t *testing.T) {
	a := newAuthority(t, AuthorityConfig{})
	csr := csrOf(t, newECKey(t, elliptic.P256()), nil)
	for name, grant := range map[string]Grant{
		"nobody": {}, "the CA itself": {ID: a.ID()}, "another domain": {ID: mustID(t, "spiffe://other.example/ns/a/sa/b")},
		"a key": {ID: spiffe.KeyID([32]byte{1})}, "a bad name": {ID: webID(t), Names: []string{"Not A Name"}},
		"too many names": {ID: webID(t), Names: slices.Repeat([]string{"a.example"}, maxIssuedNames+1)},
	} {
		if chain, err := a.SignCSR(csr, grant, 0); err == nil {
			t.Errorf("%s: a certificate %q", name, chain)
		}
		if token, err := a.NewToken(grant.ID, 0, grant.Names...); err == nil {
			t.Errorf("%s: a token %q", name, token)
		}
	}
	if _, err := a.SignCSR(csr, Grant{ID: webID(t)}, -time.Second); err == nil {
		t.Error("a certificate for the past")
	}
}

// A root that a gateway of an older version made may not sign intermediates: it signs leaves by itself.
func TestRootForLeavesOnly(t *testing.T) {
	dir := t.TempDir()
	root := longRoot(t, func(c *x509.Certificate) {
		c.URIs, c.MaxPathLenZero, c.KeyUsage = []*url.URL{{Scheme: "spiffe", Host: testTD}}, true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	})
	if err := root.write(dir); err != nil {
		t.Fatal(err)
	}
	a := openAuthority(t, dir, AuthorityConfig{})
	chain, err := a.SignCSR(csrOf(t, newECKey(t, elliptic.P256()), nil), Grant{ID: webID(t)}, 0)
	if err != nil || len(chain) != 2 {
		t.Fatalf("SignCSR = %d certificates, %v, want leaf and root", len(chain), err)
	}
	verifyIssued(t, chain, root.PEM())
}

// With --name-constraints the intermediate is good for its trust domain only, as Go's verifier sees it.
func TestNameConstraints(t *testing.T) {
	a := newAuthority(t, AuthorityConfig{NameConstraints: new(true)})
	d := a.data.Load()
	for id, good := range map[string]bool{"spiffe://cluster.local/ns/a/sa/b": true, "spiffe://other.example/ns/a/sa/b": false} {
		der, err := d.inter.certify(mustID(t, id), time.Hour, nil, newECKey(t, elliptic.P256()).Public(), nil)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AddCert(d.root.cert)
		_, err = leaf.Verify(verifyOptions([]*x509.Certificate{leaf, d.inter.cert}, roots, x509.ExtKeyUsageClientAuth, time.Now()))
		if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); good && err != nil || !good && (!ok || invalid.Reason != x509.CANotAuthorizedForThisName) {
			t.Errorf("%s: Verify = %v, want it to be good: %v", id, err, good)
		}
	}
	// The option changes the intermediate, not its key.
	if again, err := OpenAuthority(a.dir, AuthorityConfig{}, a.log); err != nil || !again.data.Load().inter.cert.Equal(d.inter.cert) {
		t.Errorf("a command that says nothing of it has changed it: %v", err)
	}
	again, err := OpenAuthority(a.dir, AuthorityConfig{NameConstraints: new(false)}, a.log)
	if err != nil {
		t.Fatal(err)
	}
	if inter := again.data.Load().inter; constrained(inter.cert) || !samePublic(inter.key.Public(), d.inter.cert.PublicKey) {
		t.Error("without the option there are constraints still, or another key")
	}
}

// The root's key may be kept elsewhere; then the intermediate signs while it lives, and is renewed at half its life when
// the key is there.
func TestOfflineRoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t, AuthorityConfig{})
		csr := csrOf(t, newECKey(t, elliptic.P256()), nil)
		first := a.data.Load().inter.cert
		time.Sleep(interTTL/2 + time.Hour)
		if err := a.refresh(time.Now()); err != nil {
			t.Fatal(err)
		}
		second := a.data.Load().inter.cert
		if first.Equal(second) || !samePublic(first.PublicKey, second.PublicKey) {
			t.Error("after half its life the intermediate is the same, or its key is another")
		}
		key := filepath.Join(a.dir, caKeyFile)
		if err := os.Rename(key, key+".away"); err != nil {
			t.Fatal(err)
		}
		if err := a.refresh(time.Now()); err != nil {
			t.Fatal(err)
		}
		if _, err := a.SignCSR(csr, Grant{ID: webID(t)}, 0); err != nil {
			t.Errorf("without the root's key: %v", err)
		}
		if _, _, err := a.Rotate(false, false); err == nil {
			t.Error("a rotation without the root's key")
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(interTTL + time.Hour)
		if _, err := OpenAuthority(a.dir, AuthorityConfig{}, a.log); err == nil || !strings.Contains(err.Error(), "expired") {
			t.Errorf("OpenAuthority with an expired intermediate = %v", err)
		}
		if err := os.Rename(key+".away", key); err != nil {
			t.Fatal(err)
		}
		b := openAuthority(t, a.dir, AuthorityConfig{})
		if _, err := b.SignCSR(csr, Grant{ID: webID(t)}, 0); err != nil {
			t.Errorf("with the root's key again: %v", err)
		}
	})
}

func TestOpenAuthorityRefuses(t *testing.T) {
	joined := t.TempDir()
	put(t, joined, caCertFile, mustCA(t, testTD).PEM(), 0o600)
	foreign := t.TempDir()
	if err := longRoot(t, nil).write(foreign); err != nil {
		t.Fatal(err)
	}
	open := newAuthority(t, AuthorityConfig{})
	put(t, open.dir, filepath.Join(authorityDir, stateFile), []byte("{"), 0o600)
	for _, tc := range []struct {
		name, dir string
		cfg       AuthorityConfig
		want      string
	}{
		{"a host that joined", joined, AuthorityConfig{}, "a host that joined it has none"},
		{"a root without a trust domain", foreign, AuthorityConfig{}, "names no trust domain"},
		{"no CA", t.TempDir(), AuthorityConfig{MustExist: true}, "there is no CA here"},
		{"no folder", filepath.Join(t.TempDir(), "none"), AuthorityConfig{MustExist: true}, "there is no CA here"},
		{"a damaged state", open.dir, AuthorityConfig{}, "state.json"},
		{"certificates for seconds", t.TempDir(), AuthorityConfig{TTL: time.Second}, "not issued"},
		{"certificates for a year", t.TempDir(), AuthorityConfig{TTL: 365 * 24 * time.Hour}, "not issued"},
		{"a bad trust domain", t.TempDir(), AuthorityConfig{TrustDomain: "A"}, "lower case"},
		{"a bad name", t.TempDir(), AuthorityConfig{Names: []string{"a b"}}, "neither a DNS name"},
	} {
		l, log := newLogs()
		if _, err := OpenAuthority(tc.dir, tc.cfg, log); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: OpenAuthority = %v, want %q (log %s)", tc.name, err, tc.want, l)
		}
	}
	if exists(filepath.Join(joined, authorityDir)) {
		t.Error("a host that joined has the folder of an authority now")
	}
}

// The gateway of the first host and its CA share a folder.
func TestAuthorityBesideGateway(t *testing.T) {
	dir := t.TempDir()
	src, _ := openState(t, dir, "one")
	a := openAuthority(t, dir, AuthorityConfig{})
	a.serve("")
	other := a.join(webID(t))
	l, log := newLogs()
	joined, err := OpenState(other, "two", log)
	if err != nil {
		t.Fatalf("the gateway of the second host: %v, %s", err, l)
	}
	defer joined.Close()
	p := handshake(t, src.ServerTLS(nil), joined.ClientTLS(SameNamespace(joined.ID)))
	p.echo(t)
	p = handshake(t, joined.ServerTLS(nil), src.ClientTLS(Exactly(webID(t))))
	p.echo(t)
	if joined.Current().warnings != nil {
		t.Errorf("warnings %q", joined.Current().warnings)
	}
}

// Only one process signs, as the record has one writer.
func TestOneSigner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t, AuthorityConfig{})
		csr := csrOf(t, newECKey(t, elliptic.P256()), nil)
		if _, err := a.SignCSR(csr, Grant{ID: webID(t)}, 0); err != nil {
			t.Fatal(err)
		}
		b := openAuthority(t, a.dir, AuthorityConfig{})
		if _, err := b.SignCSR(csr, Grant{ID: webID(t)}, 0); err == nil || !strings.Contains(err.Error(), "another process signs") {
			t.Fatalf("a second signer: %v", err)
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := a.SignCSR(csr, Grant{ID: webID(t)}, 0); !errors.Is(err, errClosed) {
			t.Errorf("SignCSR after Close = %v", err)
		}
		if _, err := b.SignCSR(csr, Grant{ID: webID(t)}, 0); err != nil {
			t.Errorf("after the first has ended: %v", err)
		}
		if l, err := readLedger(a.path(ledgerFile), time.Now()); err != nil || l.live != 2 {
			t.Errorf("the record has %d certificates, %v, want 2", l.live, err)
		}
	})
}

// clientTLS verifies a CA by its root and the host name, as ztunnel does.
func (a *testAuthority) clientTLS() *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(a.data.Load().anchor())
	return &tls.Config{RootCAs: roots, ServerName: "localhost", NextProtos: []string{alpnH2}}
}

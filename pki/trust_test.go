package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"culvert/pki/spiffe"
	"culvert/pki/sshkeys"
)

// openTrusting opens an identity of ca that trusts as trust says, and looks at its files often.
func openTrusting(t testing.TB, ca *CA, trust TrustConfig) *Source {
	t.Helper()
	cfg := identityFiles(t, t.TempDir(), ca, "spiffe://"+testTD+"/ns/default/sa/gw")
	cfg.Poll, cfg.Trust, cfg.State = minPoll, trust, t.TempDir()
	_, log := newLogs()
	s, err := Open(t.Context(), cfg, "host", log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// doubted is the reason for which s does not believe a client with that certificate, "" if it does.
func doubted(t testing.TB, s *Source, certs ...*x509.Certificate) Reason {
	t.Helper()
	err := s.Doubt(certs, false)
	if err == nil {
		return ""
	}
	var refused *PeerError
	if !errors.As(err, &refused) {
		t.Fatalf("Doubt = %v, want a *PeerError", err)
	}
	return refused.Reason
}

func spiffeLeaf(t testing.TB, ca *CA, id string) *x509.Certificate {
	t.Helper()
	_, c := leaf(t, ca, func(l *leafSpec) {
		l.uris = []string{id}
		l.template.SerialNumber = randomSerial(t)
	})
	return c
}

func randomSerial(t testing.TB) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// crl makes a list of ca of certificates; next is when the following one is due.
func crl(t testing.TB, ca *CA, next time.Time, revoked ...*x509.Certificate) []byte {
	t.Helper()
	template := &x509.RevocationList{Number: big.NewInt(time.Now().UnixNano()), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: next}
	for _, c := range revoked {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, ca.cert, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func crlPEM(lists ...[]byte) (text []byte) {
	for _, der := range lists {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})...)
	}
	return text
}

func bundleJSON(t testing.TB, td string, sequence uint64, cas ...*CA) []byte {
	t.Helper()
	b := spiffebundle.New(spiffeid.RequireTrustDomainFromString(td))
	b.SetSequenceNumber(sequence)
	for _, ca := range cas {
		b.AddX509Authority(ca.cert)
	}
	text, err := b.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestTrustDomains(t *testing.T) {
	own, partner, third, old := mustCA(t, testTD), mustCA(t, "partner.example"), mustCA(t, "third.example"), mustCA(t, "old.example")
	dir := t.TempDir()
	s := openTrusting(t, own, TrustConfig{
		Domains: []DomainConfig{
			{Name: "partner.example", Bundle: put(t, dir, "partner.pem", partner.PEM(), 0o600)},
			{Name: "third.example", Bundle: put(t, dir, "third.json", bundleJSON(t, "third.example", 1, third), 0o600)},
		},
		Aliases: []string{"old.example"},
	})
	for _, tt := range []struct {
		name string
		ca   *CA
		id   string
		want Reason
	}{
		{"own", own, "spiffe://cluster.local/ns/a/sa/b", ""},
		{"other, of PEM", partner, "spiffe://partner.example/ns/a/sa/b", ""},
		{"other, of a SPIFFE bundle", third, "spiffe://third.example/ns/a/sa/b", ""},
		{"other CA says it is ours", partner, "spiffe://cluster.local/ns/a/sa/b", Untrusted},
		{"our CA says it is another", own, "spiffe://partner.example/ns/a/sa/b", Untrusted},
		{"one other says it is a second", partner, "spiffe://third.example/ns/a/sa/b", Untrusted},
		{"alias, by our roots", own, "spiffe://old.example/ns/a/sa/b", ""},
		{"alias, by another CA", old, "spiffe://old.example/ns/a/sa/b", Untrusted},
		{"unknown", old, "spiffe://unknown.example/ns/a/sa/b", OtherDomain},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := doubted(t, s, spiffeLeaf(t, tt.ca, tt.id)); got != tt.want {
				t.Errorf("the peer is refused as %q, want %q", got, tt.want)
			}
		})
	}
	t.Run("in a handshake", func(t *testing.T) {
		cert, key, err := partner.Issue(mustID(t, "spiffe://partner.example/ns/a/sa/b"), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		p := handshake(t, s.ServerTLS(nil), &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		if p.serverErr != nil || p.clientErr != nil {
			t.Fatalf("handshake = %v, %v", p.serverErr, p.clientErr)
		}
		p.echo(t)
	})
}

func TestTrustOfTheOwnDomainIsWarnedOf(t *testing.T) {
	own := mustCA(t, testTD)
	dir := t.TempDir()
	cfg := identityFiles(t, dir, own, webText)
	cfg.Trust.Domains = []DomainConfig{{Name: testTD, Bundle: put(t, dir, "own.pem", own.PEM(), 0o600)}}
	out, log := newLogs()
	if _, err := Load(cfg, log); err != nil || !strings.Contains(out.String(), "our own trust domain") {
		t.Errorf("Load = %v, and logs %q", err, out)
	}
}

func TestTrustConfigValidate(t *testing.T) {
	many := make([]string, maxTrustFiles+1)
	for _, tt := range []struct {
		name string
		cfg  TrustConfig
		want []string
	}{
		{"nothing", TrustConfig{}, nil},
		{"right", TrustConfig{Domains: []DomainConfig{{Name: "a.example", Bundle: "https://a.example/bundle"}}, StaleCRL: "refuse"}, nil},
		{"name", TrustConfig{Domains: []DomainConfig{{Name: "A.example", Bundle: "x"}}}, []string{"trust.domains[0].name bad-value"}},
		{"no bundle", TrustConfig{Domains: []DomainConfig{{Name: "a.example"}}}, []string{"trust.domains[0].bundle bad-value"}},
		{"plain http", TrustConfig{Domains: []DomainConfig{{Name: "a.example", Bundle: "http://a.example/"}}}, []string{"trust.domains[0].bundle bad-value"}},
		{"roots of a file", TrustConfig{Domains: []DomainConfig{{Name: "a.example", Bundle: "a.pem", Roots: "r.pem"}}}, []string{"trust.domains[0].roots bad-value"}},
		{"twice", TrustConfig{Domains: []DomainConfig{{Name: "a.example", Bundle: "x"}}, Aliases: []string{"a.example"}}, []string{"trust.aliases[0] bad-value"}},
		{"stale", TrustConfig{StaleCRL: "ignore"}, []string{"trust.staleCRL bad-value"}},
		{"too many", TrustConfig{CRLs: many}, []string{"trust.crls bad-value"}},
	} {
		if got := reasons(tt.cfg.Validate()); !slices.Equal(got, tt.want) {
			t.Errorf("%s: Validate = %v, want %v", tt.name, got, tt.want)
		}
	}
}

// Everything that is wrong with the files is reported at once, and a gateway does not start with it.
func TestTrustFilesThatCannotBeUsed(t *testing.T) {
	ca := mustCA(t, testTD)
	dir := t.TempDir()
	file := func(name, text string) string { return put(t, dir, name, []byte(text), 0o600) }
	cfg := identityFiles(t, t.TempDir(), ca, "spiffe://"+testTD+"/ns/default/sa/gw")
	cfg.Trust = TrustConfig{
		Domains: []DomainConfig{
			{Name: "a.example", Bundle: file("a", "{\"keys\": 7}")}, {Name: "b.example", Bundle: file("b", `{"keys":[]}`)},
			{Name: "c.example", Bundle: file("c", "text")}, {Name: "d.example", Bundle: dir + "/none"},
		},
		CRLs: []string{file("e", "text"), file("f", string(ca.PEM())), file("g", string(crlPEM([]byte("no list"))))},
		Keys: []string{file("h", "key:abc\n"), file("i", "key:"+strings.Repeat("A", 52)+"\n")},
	}
	_, log := newLogs()
	_, err := Load(cfg, log)
	want := []string{
		"trust.domains[0].bundle bad-format", "trust.domains[1].bundle bad-format", "trust.domains[2].bundle bad-format", "trust.domains[3].bundle unreadable",
		"trust.crls[0] bad-format", "trust.crls[1] bad-format", "trust.crls[2] bad-format", "trust.keys[0] bad-format", "trust.keys[1] bad-format",
	}
	if got := reasons(err); !slices.Equal(got, want) {
		t.Errorf("Load = %v\nwant %v", got, want)
	}
}

func TestRevocation(t *testing.T) {
	root := longRoot(t, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign })
	sub := intermediate(t, root, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign; c.SerialNumber = randomSerial(t) })
	// Another CA that has taken the name of the first.
	forger := longRoot(t, func(c *x509.Certificate) { c.Subject = root.cert.Subject; c.KeyUsage |= x509.KeyUsageCRLSign })
	peer, other := spiffeLeaf(t, root, "spiffe://cluster.local/ns/a/sa/b"), spiffeLeaf(t, root, "spiffe://cluster.local/ns/a/sa/c")
	below := spiffeLeaf(t, sub, "spiffe://cluster.local/ns/a/sa/d")
	soon, past := time.Now().Add(time.Hour), time.Now().Add(-time.Minute)
	for _, tt := range []struct {
		name  string
		lists []byte
		stale string
		certs []*x509.Certificate
		want  Reason
	}{
		{"in the list", crlPEM(crl(t, root, soon, peer)), "", []*x509.Certificate{peer}, Revoked},
		{"in the list, DER", crl(t, root, soon, peer), "", []*x509.Certificate{peer}, Revoked},
		{"not in the list", crlPEM(crl(t, root, soon, peer)), "", []*x509.Certificate{other}, ""},
		{"second list of the file", crlPEM(crl(t, sub, soon), crl(t, root, soon, peer)), "", []*x509.Certificate{peer}, Revoked},
		{"list forged by a namesake", crlPEM(crl(t, forger, soon, peer)), "", []*x509.Certificate{peer}, ""},
		{"leaf below an intermediate, by the intermediate", crlPEM(crl(t, sub, soon, below)), "", []*x509.Certificate{below, sub.cert}, Revoked},
		{"the root's list has the serial of a leaf that is not its own", crlPEM(crl(t, root, soon, below)), "", []*x509.Certificate{below, sub.cert}, ""},
		{"the intermediate is revoked", crlPEM(crl(t, root, soon, sub.cert)), "", []*x509.Certificate{below, sub.cert}, Revoked},
		{"overdue, served by default", crlPEM(crl(t, root, past, peer)), "", []*x509.Certificate{other}, ""},
		{"overdue, and still right", crlPEM(crl(t, root, past, peer)), "serve", []*x509.Certificate{peer}, Revoked},
		{"overdue, refused", crlPEM(crl(t, root, past)), "refuse", []*x509.Certificate{other}, StaleCRL},
		{"overdue list of another CA", crlPEM(crl(t, sub, past)), "refuse", []*x509.Certificate{other}, ""},
		{"no list of the CA is no overdue list", crlPEM(crl(t, forger, past)), "refuse", []*x509.Certificate{other}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := openTrusting(t, root, TrustConfig{CRLs: []string{put(t, t.TempDir(), "crl", tt.lists, 0o600)}, StaleCRL: tt.stale})
			for range 2 { // the second time from what is known of the signature
				if got := doubted(t, s, tt.certs...); got != tt.want {
					t.Errorf("the peer is refused as %q, want %q", got, tt.want)
				}
			}
		})
	}
}

// A list that changes counts at once, without a restart; one that is damaged leaves the old one in force.
func TestRevocationIsFollowed(t *testing.T) {
	ca := mustCA(t, testTD)
	peer := spiffeLeaf(t, ca, "spiffe://cluster.local/ns/a/sa/b")
	file := put(t, t.TempDir(), "ca.crl", crlPEM(crl(t, ca, time.Now().Add(time.Hour))), 0o600)
	s := openTrusting(t, ca, TrustConfig{CRLs: []string{file}})
	if got := doubted(t, s, peer); got != "" {
		t.Fatalf("the peer is refused as %q before it was revoked", got)
	}
	changed := s.Changed()
	if err := writeFile(file, crlPEM(crl(t, ca, time.Now().Add(time.Hour), peer))); err != nil {
		t.Fatal(err)
	}
	wait(t, changed)
	if got := doubted(t, s, peer); got != Revoked {
		t.Fatalf("the peer is refused as %q after it was revoked", got)
	}
	if err := writeFile(file, []byte("damaged")); err != nil {
		t.Fatal(err)
	}
	if err := s.Reload(); err == nil {
		t.Error("a damaged list was taken")
	}
	if got := doubted(t, s, peer); got != Revoked {
		t.Errorf("the peer is refused as %q after the list was damaged", got)
	}
}

func wait(t testing.TB, changed <-chan struct{}) {
	t.Helper()
	select {
	case <-changed:
	case <-time.After(20 * time.Second):
		t.Fatal("still waiting for the change")
	}
}

// selfMadeSource opens an identity of a key of its own.
func selfMadeSource(t testing.TB, dir string, trust TrustConfig) *Source {
	t.Helper()
	_, log := newLogs()
	s, err := Open(t.Context(), Config{SelfMade: true, State: dir, Poll: minPoll, Trust: trust}, "host", log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestSelfMadeKeys(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	client := selfMadeSource(t, dir, TrustConfig{})
	id := client.ID()
	if !id.IsKey() {
		t.Fatalf("the identity is %v, want the name of a key", id)
	}
	if again := selfMadeSource(t, dir, TrustConfig{}).ID(); again != id {
		t.Errorf("opened again the identity is %v, want %v", again, id)
	}
	ca := mustCA(t, testTD)
	keys := put(t, t.TempDir(), "keys", fmt.Appendf(nil, "# laptops\n\n%s lea\n", id), 0o600)
	trusting := openTrusting(t, ca, TrustConfig{Keys: []string{keys}})
	strict := openTrusting(t, ca, TrustConfig{})
	expect := func(want spiffe.ID) func(spiffe.ID) error { return Exactly(want) }
	for _, tt := range []struct {
		name   string
		server *tls.Config
		client *tls.Config
		want   Reason // of the server
	}{
		{"pinned client", trusting.ServerTLS(nil), client.ClientTLS(func(spiffe.ID) error { return nil }), ""},
		{"unknown client", strict.ServerTLS(nil), client.ClientTLS(func(spiffe.ID) error { return nil }), UnknownKey},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.client.VerifyConnection = nil // the server's certificate is not what is tested
			p := handshake(t, tt.server, tt.client)
			var refused *PeerError
			if errors.As(p.serverErr, &refused) != (tt.want != "") || refused != nil && refused.Reason != tt.want {
				t.Errorf("the server says %v, want %q", p.serverErr, tt.want)
			}
			if tt.want == "" {
				got, err := trusting.Identify(new(p.server.ConnectionState()), netip.MustParseAddr("10.0.0.1"))
				if err != nil || got != id {
					t.Errorf("Identify = %v, %v, want %v", got, err, id)
				}
			}
		})
	}
	t.Run("server that is expected", func(t *testing.T) {
		p := handshake(t, selfMadeServer(client), trusting.ClientTLS(expect(id)))
		if p.clientErr != nil {
			t.Errorf("the client says %v", p.clientErr)
		}
	})
	t.Run("server that is expected is another", func(t *testing.T) {
		p := handshake(t, selfMadeServer(client), trusting.ClientTLS(expect(spiffe.KeyID([32]byte{1}))))
		if p.clientErr == nil {
			t.Error("the client takes another key than the expected one")
		}
	})
	t.Run("a key is no neighbour", func(t *testing.T) {
		p := handshake(t, selfMadeServer(client), trusting.ClientTLS(SameNamespace(trusting.ID)))
		if p.clientErr == nil {
			t.Error("the client takes a key for one of its namespace")
		}
	})
}

// selfMadeServer takes every client.
func selfMadeServer(s *Source) *tls.Config {
	cfg := s.ServerTLS(nil)
	cfg.VerifyConnection = nil
	return cfg
}

// A bundle is fetched, kept, fetched again, and never replaced by an older or a damaged one.
func TestBundleIsFetched(t *testing.T) {
	partner, next := mustCA(t, "partner.example"), mustCA(t, "partner.example")
	var answer func(w http.ResponseWriter)
	asked := make(chan struct{})
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked <- struct{}{}
		answer(w)
	}))
	t.Cleanup(server.Close)
	roots := put(t, t.TempDir(), "roots.pem", encodeCert(server.Certificate().Raw), 0o600)
	d := DomainConfig{Name: "partner.example", Bundle: server.URL + "/bundle", Roots: roots}
	dir := t.TempDir()
	logs, log := newLogs()
	_ = logs
	f := newFetches(&TrustConfig{Domains: []DomainConfig{d}}, dir, log)[0]
	fetch := func(with func(http.ResponseWriter)) (time.Duration, error) {
		answer = with
		done := make(chan struct{})
		go func() { // ends when the server was asked, or below
			defer close(done)
			select {
			case <-asked:
			case <-f.ctx.Done():
			}
		}()
		wait, err := f.fetch()
		if err == nil {
			<-done
		}
		return wait, err
	}
	send := func(text []byte) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) { _, _ = w.Write(text) }
	}
	first := bundleJSON(t, "partner.example", 5, partner)
	if wait, err := fetch(send(first)); err != nil || wait != refreshDefault {
		t.Fatalf("fetch = %v, %v, want %v", wait, err, refreshDefault)
	}
	for _, bad := range []struct {
		name string
		with func(http.ResponseWriter)
	}{
		{"older", send(bundleJSON(t, "partner.example", 4, next))},
		{"no CA", send(bundleJSON(t, "partner.example", 6))},
		{"damaged", send(first[:50])},
		{"huge", send([]byte(strings.Repeat(" ", maxFileBytes+1)))},
		{"not found", func(w http.ResponseWriter) { w.WriteHeader(http.StatusNotFound) }},
		{"a redirect", func(w http.ResponseWriter) {
			w.Header().Set("Location", "https://elsewhere.example/")
			w.WriteHeader(http.StatusFound)
		}},
	} {
		if _, err := fetch(bad.with); err == nil {
			t.Errorf("%s: the bundle was taken", bad.name)
		}
	}
	if kept, err := os.ReadFile(filepath.Join(dir, bundlesDir, "partner.example.json")); err != nil || string(kept) != string(first) {
		t.Errorf("kept = %q, %v, want the first one", kept, err)
	}
	newer := bundleJSON(t, "partner.example", 6, partner, next)
	if _, err := fetch(send(newer)); err != nil {
		t.Errorf("a newer one = %v", err)
	}
	f.end()
	cfg := &TrustConfig{Domains: []DomainConfig{d}}
	got, err := loadTrust(cfg, dir, time.Now())
	if err != nil || got.domains["partner.example"] == nil {
		t.Fatalf("loadTrust = %v", err)
	}
	if _, err := next.cert.Verify(x509.VerifyOptions{Roots: got.domains["partner.example"]}); err != nil {
		t.Errorf("the new CA is not trusted: %v", err)
	}
}

// Until a bundle has come for the first time nobody of its trust domain is believed, and the gateway runs.
func TestBundleThatCannotBeFetched(t *testing.T) {
	partner := mustCA(t, "partner.example")
	s := openTrusting(t, mustCA(t, testTD), TrustConfig{Domains: []DomainConfig{{Name: "partner.example", Bundle: "https://127.0.0.1:1/bundle"}}})
	if got := doubted(t, s, spiffeLeaf(t, partner, "spiffe://partner.example/ns/a/sa/b")); got != Untrusted {
		t.Errorf("the peer is refused as %q, want %q", got, Untrusted)
	}
}

// Keys agreed on are safe from a recording that is decrypted with a quantum computer, and records are of AES-GCM.
func TestTLSParameters(t *testing.T) {
	ca := mustCA(t, testTD)
	a, b := fixedSource(t, ca, "spiffe://cluster.local/ns/default/sa/a"), fixedSource(t, ca, "spiffe://cluster.local/ns/default/sa/b")
	for _, cfg := range []*tls.Config{a.ServerTLS(nil), b.ClientTLS(nil)} {
		if cfg.KeyLogWriter != nil {
			t.Error("keys are logged")
		}
	}
	t.Setenv("SSLKEYLOGFILE", filepath.Join(t.TempDir(), "keys"))
	p := handshake(t, a.ServerTLS(nil), b.ClientTLS(nil))
	if p.clientErr != nil {
		t.Fatal(p.clientErr)
	}
	cs := p.client.ConnectionState()
	if cs.CurveID != tls.X25519MLKEM768 {
		t.Errorf("keys were agreed on with %v, want X25519MLKEM768", cs.CurveID)
	}
	if cs.Version != tls.VersionTLS13 || cs.CipherSuite != tls.TLS_AES_128_GCM_SHA256 && cs.CipherSuite != tls.TLS_AES_256_GCM_SHA384 {
		t.Errorf("version %x with %s", cs.Version, tls.CipherSuiteName(cs.CipherSuite))
	}
	if _, err := os.Stat(os.Getenv("SSLKEYLOGFILE")); err == nil {
		t.Error("SSLKEYLOGFILE was written")
	}
}

func TestExpiredIntermediate(t *testing.T) {
	root := longRoot(t, nil)
	s := openTrusting(t, root, TrustConfig{})
	valid := intermediate(t, root, nil)
	spent := intermediate(t, root, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) })
	if got := doubted(t, s, spiffeLeaf(t, valid, webText), valid.cert); got != "" {
		t.Errorf("below a valid intermediate the peer is refused as %q", got)
	}
	if got := doubted(t, s, spiffeLeaf(t, spent, webText), spent.cert); got != Untrusted {
		t.Errorf("below an expired intermediate the peer is refused as %q, want %q", got, Untrusted)
	}
}

// The lines of authorized_keys pin keys too, with where they may come from and until when.
func TestPinnedBySSH(t *testing.T) {
	key := newECKey(t, elliptic.P256())
	m, err := selfMade(key, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	line, err := sshkeys.AppendAuthorizedKey(nil, key.Public(), "lea")
	if err != nil {
		t.Fatal(err)
	}
	ca := mustCA(t, testTD)
	here := netip.MustParseAddr("10.0.0.1")
	for _, tt := range []struct {
		name, file string
		want       Reason // of the handshake
		from       bool   // whether it may come from here
	}{
		{"plain", string(line), "", true},
		{"from here", `from="10.0.0.0/8" ` + string(line), "", true},
		{"from elsewhere", `from="192.0.2.0/24" ` + string(line), "", false},
		{"until tomorrow", `expiry-time="20991231" ` + string(line), "", true},
		{"until yesterday", `expiry-time="20010101" ` + string(line), UnknownKey, false},
		{"two lines, of which one counts", `expiry-time="20010101" ` + string(line) + `from="10.0.0.1" ` + string(line), "", true},
		{"beside a name", m.ID.String() + " lea\n" + `from="192.0.2.0/24" ` + string(line), "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := openTrusting(t, ca, TrustConfig{Keys: []string{put(t, t.TempDir(), "keys", []byte(tt.file), 0o600)}})
			if got := doubted(t, s, m.Certificate.Leaf); got != tt.want {
				t.Fatalf("the peer is refused as %q, want %q", got, tt.want)
			}
			_, err := s.Identify(&tls.ConnectionState{HandshakeComplete: true, PeerCertificates: []*x509.Certificate{m.Certificate.Leaf}}, here)
			if (err == nil) != tt.from {
				t.Errorf("Identify = %v, want that it may come from here: %v", err, tt.from)
			}
			pub, _ := key.Public().(*ecdsa.PublicKey)
			if got := s.PinnedKey(m.ID.String()); tt.want == "" && (got == nil || !pub.Equal(got)) || tt.want != "" && got != nil {
				t.Errorf("PinnedKey = %v", got)
			}
		})
	}
	for _, option := range []string{`permitopen="db:5432"`, "restrict", "no-port-forwarding", `permitlisten="80"`, "no-such-option"} {
		cfg := identityFiles(t, t.TempDir(), ca, webText)
		cfg.Trust.Keys = []string{put(t, t.TempDir(), "keys", []byte(option+" "+string(line)), 0o600)}
		_, log := newLogs()
		if _, err := Load(cfg, log); err == nil {
			t.Errorf("a line with %s was taken, and the option is not kept to", option)
		}
	}
}

// Nobody has to change a file for an entry of a key to end, or for a list to be overdue: who waits is told.
func TestTimeIsAChange(t *testing.T) {
	ca := mustCA(t, testTD)
	soon := time.Now().Add(1500 * time.Millisecond).Truncate(time.Second).Add(time.Second) // lists have whole seconds
	list := put(t, t.TempDir(), "crl", crl(t, ca, soon), 0o600)
	t.Run("list", func(t *testing.T) {
		s := openTrusting(t, ca, TrustConfig{CRLs: []string{list}, StaleCRL: staleRefuse})
		peer := spiffeLeaf(t, ca, "spiffe://"+testTD+"/ns/default/sa/a")
		changed := s.Changed()
		if got := doubted(t, s, peer); got != "" {
			t.Fatalf("before: doubted for %q", got)
		}
		select {
		case <-changed:
		case <-time.After(time.Until(soon) + 5*time.Second):
			t.Fatal("nobody was told")
		}
		if got := doubted(t, s, peer); got != StaleCRL {
			t.Errorf("doubted for %q, want %q", got, StaleCRL)
		}
	})
	t.Run("list that serves on", func(t *testing.T) {
		s := openTrusting(t, ca, TrustConfig{CRLs: []string{list}})
		if s.Current().trust.turned(soon, soon.Add(1)) {
			t.Error("what is due is told although nothing comes of it")
		}
	})
	t.Run("entry of a key", func(t *testing.T) {
		in := &trust{keys: map[spiffe.ID][]pinnedKey{{}: {{ssh: &sshkeys.Entry{Expires: soon}}, {}, {ssh: &sshkeys.Entry{}}}}, revoked: newRevocations(false)}
		in.noteTurns()
		if !in.turned(soon, soon.Add(1)) || in.turned(soon.Add(-time.Hour), soon) || in.turned(soon.Add(1), soon.Add(time.Hour)) {
			t.Error("the end of an entry is no turn, or not at its moment")
		}
	})
}

// What is known against a peer counts for its flows when its certificate has ended, too; that alone is no doubt, and that
// its CA has gone since is none either.
func TestDoubtAfterTheEnd(t *testing.T) {
	ca, other := mustCA(t, testTD), mustCA(t, "partner.example")
	ended := func(ca *CA, id string) *x509.Certificate {
		_, c := leaf(t, ca, func(l *leafSpec) {
			l.uris = []string{id}
			l.template.SerialNumber = randomSerial(t)
			l.template.NotBefore, l.template.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(-time.Second)
		})
		return c
	}
	good, bad := ended(ca, "spiffe://"+testTD+"/ns/default/sa/good"), ended(ca, "spiffe://"+testTD+"/ns/default/sa/bad")
	partner := ended(other, "spiffe://partner.example/ns/default/sa/a")
	list := put(t, t.TempDir(), "crl", crl(t, ca, time.Now().Add(time.Hour), bad), 0o600)
	bundle := put(t, t.TempDir(), "bundle", other.PEM(), 0o600)
	key := func(m *Material, _ error) *x509.Certificate { return m.Certificate.Leaf }
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	made := key(selfMade(signer, time.Now().Add(-2*selfMadeTTL)))
	id, err := keyID(signer.Public())
	if err != nil {
		t.Fatal(err)
	}
	keys := put(t, t.TempDir(), "keys", []byte(id.String()), 0o600)
	before := openTrusting(t, ca, TrustConfig{Domains: []DomainConfig{{Name: "partner.example", Bundle: bundle}}, Keys: []string{keys}})
	after := openTrusting(t, ca, TrustConfig{CRLs: []string{list}})
	rotated := openTrusting(t, mustCA(t, testTD), TrustConfig{})
	for _, tt := range []struct {
		name string
		s    *Source
		cert *x509.Certificate
		want Reason
	}{
		{"nothing is known", before, good, ""},
		{"not revoked", after, good, ""},
		{"revoked", after, bad, Revoked},
		{"the CA was replaced", rotated, good, ""},
		{"trust domain", before, partner, ""},
		{"trust domain is believed no more", after, partner, OtherDomain},
		{"self-made key", before, made, ""},
		{"self-made key is listed no more", after, made, UnknownKey},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := doubted(t, tt.s, tt.cert); got != tt.want {
				t.Errorf("doubted for %q, want %q", got, tt.want)
			}
		})
	}
}

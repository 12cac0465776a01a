package pki

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"culvert/pki/spiffe"
)

// hostilePeer is a certificate that must not be taken, by a server from a client nor by a client from a server.
type hostilePeer struct {
	name   string
	cert   tls.Certificate
	reason Reason // "" = crypto/x509 itself cannot read it, so there is no PeerError
	id     string // the identity to be recorded, "" if none can be read
}

const (
	webText  = "spiffe://cluster.local/ns/default/sa/web"
	evilText = "spiffe://evil.example/ns/default/sa/web"
)

func hostileUsage(t *testing.T, ca *CA) []hostilePeer {
	with := func(change func(*leafSpec)) tls.Certificate { return first(leaf(t, ca, change)) }
	long := with(nil)
	for range maxChain {
		long.Certificate = append(long.Certificate, ca.cert.Raw)
	}
	twenty := with(nil)
	for range 19 {
		twenty.Certificate = append(twenty.Certificate, ca.cert.Raw)
	}
	inCN := with(func(s *leafSpec) {
		s.uris, s.dns = nil, []string{"web.example"}
		s.template.Subject = pkix.Name{CommonName: webText}
	})
	many := make([]string, spiffe.MaxNames)
	for i := range many {
		many[i] = fmt.Sprintf("h%d.example", i)
	}
	other, namesake := mustCA(t, testTD), longRoot(t, func(c *x509.Certificate) { c.Subject = ca.cert.Subject })
	return []hostilePeer{
		{"CA:TRUE leaf", with(func(s *leafSpec) { s.template.IsCA = true }), NotLeaf, webText},
		{"the CA itself", tls.Certificate{Certificate: [][]byte{ca.cert.Raw}, PrivateKey: ca.key}, NoIdentity, ""},
		{"may sign certificates", with(func(s *leafSpec) { s.template.KeyUsage |= x509.KeyUsageCertSign }), NotLeaf, webText},
		{"may sign revocation lists", with(func(s *leafSpec) { s.template.KeyUsage |= x509.KeyUsageCRLSign }), NotLeaf, webText},
		{"no digitalSignature", with(func(s *leafSpec) { s.template.KeyUsage = x509.KeyUsageKeyAgreement }), BadUsage, webText},
		{"no key usage", with(func(s *leafSpec) { s.template.KeyUsage = 0 }), BadUsage, webText},
		{"for code signing", with(func(s *leafSpec) { s.template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }), BadUsage, webText},
		{"short RSA key", with(func(s *leafSpec) { s.key = newRSAKey(t, 1024) }), WeakKey, webText},
		{"expired", with(func(s *leafSpec) { s.template.NotAfter = time.Now().Add(-time.Second) }), Expired, webText},
		{"not yet valid", with(func(s *leafSpec) { s.template.NotBefore = time.Now().Add(time.Minute) }), NotYetValid, webText},
		{"six certificates", long, TooMany, webText},
		{"chain of 20", twenty, TooMany, webText},
		{"SPIFFE ID in the common name", inCN, NoIdentity, ""},
		{"101 names", with(func(s *leafSpec) { s.dns = many }), NoIdentity, ""},
		{"unknown CA", first(leaf(t, other, nil)), Untrusted, webText},
		{"CA of the same name", first(leaf(t, namesake, nil)), Untrusted, webText},
		{"signed by a leaf", first(leaf(t, caOfLeaf(t, ca), nil)), Untrusted, webText},
		{"below two CAs, of which the root allows one", belowTwo(t, ca), Untrusted, webText},
		{"other trust domain, signed by our CA", with(func(s *leafSpec) { s.uris = []string{evilText} }), OtherDomain, evilText},
		{"other trust domain, signed by another CA", first(leaf(t, other, func(s *leafSpec) { s.uris = []string{evilText} })), OtherDomain, evilText},
		{"trust domain that begins like ours", with(func(s *leafSpec) { s.uris = []string{"spiffe://cluster.local.evil/ns/default/sa/web"} }),
			OtherDomain, "spiffe://cluster.local.evil/ns/default/sa/web"},
		{"unknown critical extension", with(func(s *leafSpec) {
			ext := sanExtension(t, nil, []string{"x"})
			ext.Id = []int{1, 2, 3, 4}
			s.template.ExtraExtensions = append(s.template.ExtraExtensions, ext)
		}), Untrusted, webText},
	}
}

// caOfLeaf is a leaf of ca that pretends to be a CA.
func caOfLeaf(t *testing.T, ca *CA) *CA {
	cert, parsed := leaf(t, ca, nil)
	fake := *parsed
	fake.BasicConstraintsValid, fake.IsCA, fake.KeyUsage = true, true, x509.KeyUsageCertSign
	return &CA{cert: &fake, key: cert.PrivateKey.(crypto.Signer)}
}

// belowTwo is a leaf of an intermediate CA of an intermediate CA.
func belowTwo(t *testing.T, ca *CA) tls.Certificate {
	upper := intermediate(t, ca, nil)
	cert := withChain(t, intermediate(t, upper, nil))
	cert.Certificate = append(cert.Certificate, upper.cert.Raw)
	return cert
}

// withChain is a leaf of an intermediate CA, with that CA's certificate behind it.
func withChain(t *testing.T, inter *CA) tls.Certificate {
	cert := first(leaf(t, inter, nil))
	cert.Certificate = append(cert.Certificate, inter.cert.Raw)
	return cert
}

// hostileNames has one certificate per odd identity; our own CA signs them all.
func hostileNames(t *testing.T, ca *CA) []hostilePeer {
	var peers []hostilePeer
	for _, tc := range []struct {
		name   string
		uris   []string
		reason Reason
	}{
		{"no URI", nil, NoIdentity},
		{"two URIs", []string{webText, "spiffe://cluster.local/ns/default/sa/admin"}, NoIdentity},
		{"the same URI twice", []string{webText, webText}, NoIdentity},
		{"a second URI of another scheme", []string{webText, "https://example.com/"}, NoIdentity},
		{"other scheme", []string{"https://cluster.local/ns/default/sa/web"}, NoIdentity},
		{"upper-case scheme", []string{"SPIFFE://cluster.local/ns/default/sa/web"}, NoIdentity},
		{"no path", []string{"spiffe://cluster.local"}, NoIdentity},
		{"root path", []string{"spiffe://cluster.local/"}, NoIdentity},
		{"trailing slash", []string{webText + "/"}, NoIdentity},
		{"empty segment", []string{"spiffe://cluster.local/ns//sa/web"}, NoIdentity},
		{"dot segment", []string{"spiffe://cluster.local/ns/./sa/web"}, NoIdentity},
		{"dot-dot segment", []string{"spiffe://cluster.local/ns/x/../default/sa/web"}, NoIdentity},
		{"percent in path", []string{"spiffe://cluster.local/ns/def%61ult/sa/web"}, NoIdentity},
		{"percent slash", []string{"spiffe://cluster.local/ns%2fdefault/sa/web"}, NoIdentity},
		{"percent in trust domain", []string{"spiffe://cluster%2elocal/ns/default/sa/web"}, ""},
		{"query", []string{webText + "?x=y"}, NoIdentity},
		{"fragment", []string{webText + "#x"}, NoIdentity},
		{"port", []string{"spiffe://cluster.local:15008/ns/default/sa/web"}, NoIdentity},
		{"user", []string{"spiffe://root@cluster.local/ns/default/sa/web"}, NoIdentity},
		{"upper-case trust domain", []string{"spiffe://CLUSTER.local/ns/default/sa/web"}, NoIdentity},
		{"trust domain with a last dot", []string{"spiffe://cluster.local./ns/default/sa/web"}, ""},
		{"empty trust domain", []string{"spiffe:///ns/default/sa/web"}, NoIdentity},
		{"wildcard in trust domain", []string{"spiffe://*.local/ns/default/sa/web"}, NoIdentity},
		{"wildcard in path", []string{"spiffe://cluster.local/ns/default/sa/*"}, NoIdentity},
		{"NUL in path", []string{webText + "\x00.evil"}, ""},
		{"newline in path", []string{webText + "\nx"}, ""},
		{"letter outside ASCII", []string{webText + "é"}, ""},
		{"backslash", []string{`spiffe://cluster.local/ns\default/sa/web`}, NoIdentity},
		{"2049 bytes", []string{"spiffe://cluster.local/" + strings.Repeat("x", 2049-len("spiffe://cluster.local/"))}, NoIdentity},
		{"empty URI", []string{""}, NoIdentity},
	} {
		cert := first(leaf(t, ca, func(s *leafSpec) { s.uris, s.dns = tc.uris, []string{"web.default.svc.cluster.local"} }))
		peers = append(peers, hostilePeer{tc.name, cert, tc.reason, ""})
	}
	return peers
}

func TestHostilePeersAreRefused(t *testing.T) {
	ca := mustCA(t, testTD)
	self := fixedSource(t, ca, "spiffe://cluster.local/ns/default/sa/gw")
	neverAsked := func(id spiffe.ID) error {
		t.Errorf("verify was asked about %s, whose certificate is not valid", id)
		return nil
	}
	for _, tc := range slices.Concat(hostileUsage(t, ca), hostileNames(t, ca)) {
		t.Run("client/"+tc.name, func(t *testing.T) {
			p := handshake(t, self.ServerTLS(neverAsked), hostileTLS(tc.cert))
			checkRefusal(t, tc, p.serverErr, p.clientErr)
		})
		t.Run("server/"+tc.name, func(t *testing.T) {
			p := handshake(t, hostileTLS(tc.cert), self.ClientTLS(neverAsked))
			checkRefusal(t, tc, p.clientErr, p.serverErr)
		})
	}
}

// hostileTLS presents cert whatever the other side says, and takes everybody.
func hostileTLS(cert tls.Certificate) *tls.Config {
	return &tls.Config{
		InsecureSkipVerify: true, NextProtos: []string{alpnH2}, ClientAuth: tls.RequireAnyClientCert,
		GetCertificate:       func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil },
	}
}

// checkRefusal checks what the side that refuses reports, and that the other one gets an alert.
func checkRefusal(t *testing.T, tc hostilePeer, err, peerErr error) {
	t.Helper()
	if err == nil {
		t.Fatal("it was let in")
	}
	number, ok := Alert(peerErr)
	if !ok {
		t.Errorf("the peer got %v, want a TLS alert", peerErr)
	}
	if tc.reason == "" {
		return
	}
	pe, isPeer := errors.AsType[*PeerError](err)
	if !isPeer {
		t.Fatalf("refused with %T %v, want *PeerError", err, err)
	}
	if pe.Reason != tc.reason || pe.ID.String() != tc.id {
		t.Errorf("refused with %q %q (%v), want %q %q", pe.Reason, pe.ID, err, tc.reason, tc.id)
	}
	if number != 42 {
		t.Errorf("the peer got alert %d, want bad_certificate (42)", number)
	}
	if len(err.Error()) > 2000 || strings.ContainsAny(err.Error(), "\x00\r\n") {
		t.Errorf("the error %q is not fit for a log line", err)
	}
}

func TestGoodPeersAreTaken(t *testing.T) {
	root := longRoot(t, nil)
	other := mustCA(t, testTD)
	deep := root
	var chain [][]byte
	for range maxChain - 1 {
		deep = intermediate(t, deep, nil)
		chain = append([][]byte{deep.cert.Raw}, chain...)
	}
	fiveDeep := first(leaf(t, deep, nil))
	fiveDeep.Certificate = append(fiveDeep.Certificate, chain...)
	dns := make([]string, spiffe.MaxNames-1)
	for i := range dns {
		dns[i] = fmt.Sprintf("h%d.example", i)
	}
	withRoot := first(leaf(t, root, nil))
	withRoot.Certificate = append(withRoot.Certificate, root.cert.Raw)
	rsaKey := newRSAKey(t, 2048)
	for _, tc := range []struct {
		name string
		cert tls.Certificate
	}{
		{"plain", first(leaf(t, root, nil))},
		{"DNS name beside the URI", first(leaf(t, root, func(s *leafSpec) { s.dns = []string{"web.default.svc"} }))},
		{"100 names", first(leaf(t, root, func(s *leafSpec) { s.dns = dns }))},
		{"no extended key usage", first(leaf(t, root, func(s *leafSpec) { s.template.ExtKeyUsage = nil }))},
		{"any extended key usage", first(leaf(t, root, func(s *leafSpec) { s.template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }))},
		{"RSA 2048", first(leaf(t, root, func(s *leafSpec) { s.key = rsaKey }))},
		{"keyEncipherment as well", first(leaf(t, root, func(s *leafSpec) { s.template.KeyUsage |= x509.KeyUsageKeyEncipherment }))},
		{"intermediate", withChain(t, intermediate(t, root, nil))},
		{"root sent along", withRoot},
		{"five certificates", fiveDeep},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cert, key := pemOf(t, first(leaf(t, root, nil)))
			m, err := Parse(cert, key, slices.Concat(other.PEM(), root.PEM()))
			if err != nil {
				t.Fatal(err)
			}
			var asked []spiffe.ID
			p := handshake(t, Fixed(m).ServerTLS(func(id spiffe.ID) error { asked = append(asked, id); return nil }), hostileTLS(tc.cert))
			if p.clientErr != nil || p.serverErr != nil || len(asked) != 1 || asked[0] != webID(t) {
				t.Fatalf("as a client: client %v, server %v, asked about %v", p.clientErr, p.serverErr, asked)
			}
			if id, err := PeerID(p.server.ConnectionState()); err != nil || id != webID(t) {
				t.Errorf("PeerID = %q, %v", id, err)
			}
			p = handshake(t, hostileTLS(tc.cert), Fixed(m).ClientTLS(Exactly(webID(t))))
			if p.clientErr != nil || p.serverErr != nil {
				t.Fatalf("as a server: client %v, server %v", p.clientErr, p.serverErr)
			}
		})
	}
}

// RFC 5280, section 4.2.1.10: "The name constraints extension … indicates a name space within which all
// subject names in subsequent certificates in a certification path MUST be located."
func TestNameConstraintsAreEnforced(t *testing.T) {
	for _, tc := range []struct {
		name      string
		constrain func(*x509.Certificate)
		uri       string
		ok        bool
	}{
		{"inside", func(c *x509.Certificate) { c.PermittedURIDomains = []string{"cluster.local"} }, webText, true},
		{"outside", func(c *x509.Certificate) { c.PermittedURIDomains = []string{"other.example"} }, webText, false},
		{"only subdomains permitted", func(c *x509.Certificate) { c.PermittedURIDomains = []string{".cluster.local"} }, webText, false},
		{"excluded", func(c *x509.Certificate) { c.ExcludedURIDomains = []string{"cluster.local"} }, webText, false},
		{"another one excluded", func(c *x509.Certificate) { c.ExcludedURIDomains = []string{"other.example"} }, webText, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := longRoot(t, nil)
			bound := intermediate(t, root, func(c *x509.Certificate) {
				tc.constrain(c)
				c.PermittedDNSDomainsCritical = true
			})
			self, key := pemOf(t, first(leaf(t, root, nil)))
			m, err := Parse(self, key, root.PEM())
			if err != nil {
				t.Fatal(err)
			}
			peer := first(leaf(t, bound, func(s *leafSpec) { s.uris = []string{tc.uri} }))
			peer.Certificate = append(peer.Certificate, bound.cert.Raw)
			p := handshake(t, Fixed(m).ServerTLS(nil), hostileTLS(peer))
			pe, refused := errors.AsType[*PeerError](p.serverErr)
			if refused == tc.ok || refused && pe.Reason != Untrusted || tc.ok && p.serverErr != nil {
				t.Errorf("server: %v, want accepted %v", p.serverErr, tc.ok)
			}
		})
	}
}

func TestSameNamespaceAndExactly(t *testing.T) {
	id := func(s string) func() spiffe.ID { return func() spiffe.ID { return mustID(t, s) } }
	gw := "spiffe://cluster.local/ns/default/sa/gw"
	for _, tc := range []struct {
		name   string
		verify func(spiffe.ID) error
		peer   spiffe.ID
		ok     bool
	}{
		{"same namespace", SameNamespace(id(gw)), webID(t), true},
		{"other namespace", SameNamespace(id(gw)), mustID(t, "spiffe://cluster.local/ns/other/sa/web"), false},
		{"other trust domain", SameNamespace(id(gw)), mustID(t, "spiffe://evil.example/ns/default/sa/web"), false},
		{"peer in no namespace", SameNamespace(id(gw)), mustID(t, "spiffe://cluster.local/web"), false},
		{"both in no namespace", SameNamespace(id("spiffe://cluster.local/gw")), mustID(t, "spiffe://cluster.local/web"), false},
		{"nobody, own identity empty", SameNamespace(func() spiffe.ID { return spiffe.ID{} }), spiffe.ID{}, false},
		{"expected", Exactly(mustID(t, gw), webID(t)), webID(t), true},
		{"not expected", Exactly(mustID(t, gw)), webID(t), false},
		{"nobody expected", Exactly(), webID(t), false},
		{"zero is never expected", Exactly(spiffe.ID{}), spiffe.ID{}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := tc.verify(tc.peer); (err == nil) != tc.ok {
				t.Errorf("verify(%q) = %v, want allowed %v", tc.peer, err, tc.ok)
			}
		})
	}
}

// Whatever stands in a certificate, verifyPeer answers with a PeerError, and never takes a certificate that was
// altered.
func FuzzVerifyPeer(f *testing.F) {
	ca, err := NewCA(testTD)
	if err != nil {
		f.Fatal(err)
	}
	cert, key, err := ca.Issue(webID(f), time.Hour, "web")
	if err != nil {
		f.Fatal(err)
	}
	m, err := Parse(cert, key, ca.PEM())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(m.chain[0].Raw, ca.cert.Raw)
	f.Add(ca.cert.Raw, m.chain[0].Raw)
	f.Fuzz(func(t *testing.T, leafDER, interDER []byte) {
		leaf, err := x509.ParseCertificate(leafDER)
		if err != nil {
			return
		}
		certs := []*x509.Certificate{leaf}
		if inter, err := x509.ParseCertificate(interDER); err == nil {
			certs = append(certs, inter)
		}
		err = verifyPeer(m, certs, x509.ExtKeyUsageClientAuth, nil, time.Now())
		_, refused := errors.AsType[*PeerError](err)
		if err != nil && !refused || err == nil && !bytes.Equal(leaf.RawTBSCertificate, m.chain[0].RawTBSCertificate) {
			t.Fatalf("verifyPeer = %v", err)
		}
		_ = describeCertificate(leaf, time.Now()).String()
	})
}

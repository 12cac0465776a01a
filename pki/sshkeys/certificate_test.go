package sshkeys

import (
	"crypto/rand"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// signed makes a certificate of keyOf(key) by signerOf(ca), valid an hour before and after testNow, for the principal
// "alice" and allowed to forward ports. change may change it before it is signed.
func signed(t testing.TB, ca, key string, certType uint32, change func(*ssh.Certificate)) *ssh.Certificate {
	t.Helper()
	cert := &ssh.Certificate{
		Key: keyOf(t, key), CertType: certType, KeyId: "id", ValidPrincipals: []string{"alice"},
		ValidAfter: uint64(testNow().Add(-time.Hour).Unix()), ValidBefore: uint64(testNow().Add(time.Hour).Unix()),
	}
	if certType == ssh.UserCert {
		cert.Extensions = map[string]string{extensionForwarding: ""}
	}
	if change != nil {
		change(cert)
	}
	if err := cert.SignCert(rand.Reader, signerOf(t, ca)); err != nil {
		t.Fatal(err)
	}
	return cert
}

func options(pairs ...string) map[string]string {
	m := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return m
}

func TestCheckUserCertificates(t *testing.T) {
	lines := []string{
		`cert-authority,principals="alice,bob" ` + keyText(t, "ca"),
		`cert-authority ` + keyText(t, "spiffe ca"),
		`cert-authority,principals="alice",command="backup",restrict ` + keyText(t, "strict ca"),
		`cert-authority,principals="alice",from="192.0.2.0/24",expiry-time="20261122121500Z" ` + keyText(t, "near ca"),
		keyText(t, "plain"),
	}
	k := authorized(t, lines...)
	const id = "spiffe://cluster.local/ns/default/sa/web"
	for _, c := range []struct {
		name   string
		ca     string
		change func(*ssh.Certificate)
		from   string
		reason Reason // "" is admitted
		line   int
		want   string // what the error says, or the principal
	}{
		{"good", "ca", nil, "192.0.2.1", "", 1, "alice"},
		{"second principal", "ca", func(c *ssh.Certificate) { c.ValidPrincipals = []string{"x", "bob"} }, "192.0.2.1", "", 1, "bob"},
		{"wrong principal", "ca", func(c *ssh.Certificate) { c.ValidPrincipals = []string{"mallory"} }, "192.0.2.1", BadPrincipal, 1, `for "mallory", and the line takes "alice,bob"`},
		{"principal in other case", "ca", func(c *ssh.Certificate) { c.ValidPrincipals = []string{"Alice"} }, "192.0.2.1", BadPrincipal, 1, "Alice"},
		{"no principal", "ca", func(c *ssh.Certificate) { c.ValidPrincipals = nil }, "192.0.2.1", BadPrincipal, 1, "nobody"},
		{"300 principals", "ca", func(c *ssh.Certificate) {
			for i := range 300 {
				c.ValidPrincipals = append(c.ValidPrincipals, fmt.Sprint("u", i))
			}
		}, "192.0.2.1", BadPrincipal, 1, "301 principals"},
		{"expired", "ca", func(c *ssh.Certificate) { c.ValidBefore = uint64(testNow().Unix()) }, "192.0.2.1", Expired, 1, "expired at 2026-11-22T12:00:00Z"},
		{"last second", "ca", func(c *ssh.Certificate) { c.ValidBefore = uint64(testNow().Unix() + 1) }, "192.0.2.1", "", 1, "alice"},
		{"not yet valid", "ca", func(c *ssh.Certificate) { c.ValidAfter = uint64(testNow().Unix() + 1) }, "192.0.2.1", NotYetValid, 1, "not valid before 2026-11-22T12:00:01Z"},
		{"first second", "ca", func(c *ssh.Certificate) { c.ValidAfter = uint64(testNow().Unix()) }, "192.0.2.1", "", 1, "alice"},
		{"valid for ever", "ca", func(c *ssh.Certificate) { c.ValidAfter, c.ValidBefore = 0, ssh.CertTimeInfinity }, "192.0.2.1", "", 1, "alice"},
		{"beginning out of range", "ca", func(c *ssh.Certificate) { c.ValidAfter = math.MaxInt64 + 1 }, "192.0.2.1", NotYetValid, 1, "end of time"},
		{"end out of range", "ca", func(c *ssh.Certificate) { c.ValidBefore = math.MaxInt64 + 1 }, "192.0.2.1", BadSignature, 1, "expired"},
		{"host's", "ca", func(c *ssh.Certificate) { c.CertType = ssh.HostCert }, "192.0.2.1", BadType, 1, "for a host and not for a user"},
		{"of type 7", "ca", func(c *ssh.Certificate) { c.CertType = 7 }, "192.0.2.1", BadType, 1, "type 7"},
		{"unknown critical option", "ca", func(c *ssh.Certificate) { c.CriticalOptions = options("verify-required", "") }, "192.0.2.1", BadOption, 1, `"verify-required"`},
		{"unknown extension", "ca", func(c *ssh.Certificate) { c.Extensions["x@example.com"] = "y" }, "192.0.2.1", "", 1, "alice"},
		{"source", "ca", func(c *ssh.Certificate) {
			c.CriticalOptions = options("source-address", "198.51.100.1,192.0.2.0/24")
		}, "192.0.2.1", "", 1, "alice"},
		{"other source", "ca", func(c *ssh.Certificate) { c.CriticalOptions = options("source-address", "192.0.2.0/24") }, "192.0.3.1", BadSource, 1, "may not be used by 192.0.3.1"},
		{"empty source", "ca", func(c *ssh.Certificate) { c.CriticalOptions = options("source-address", "") }, "192.0.2.1", BadOption, 1, "source-address"},
		{"source with wildcard", "ca", func(c *ssh.Certificate) { c.CriticalOptions = options("source-address", "*") }, "192.0.2.1", BadOption, 1, "source-address"},
		{"source with negation", "ca", func(c *ssh.Certificate) {
			c.CriticalOptions = options("source-address", "0.0.0.0/0,!192.0.2.7")
		}, "192.0.2.1", BadOption, 1, "source-address"},
		{"SPIFFE ID", "spiffe ca", func(c *ssh.Certificate) { c.ValidPrincipals = []string{"web", id} }, "192.0.2.1", "", 2, id},
		{"no SPIFFE ID", "spiffe ca", nil, "192.0.2.1", BadPrincipal, 2, "0 principals that begin with spiffe://"},
		{"two SPIFFE IDs", "spiffe ca", func(c *ssh.Certificate) { c.ValidPrincipals = []string{id, id + "2"} }, "192.0.2.1", BadPrincipal, 2, "2 principals"},
		{"same command", "strict ca", func(c *ssh.Certificate) { c.CriticalOptions = options("force-command", "backup") }, "192.0.2.1", "", 3, "alice"},
		{"other command", "strict ca", func(c *ssh.Certificate) { c.CriticalOptions = options("force-command", "restore") }, "192.0.2.1", BadOption, 3, "force-command"},
		{"limits of the line", "near ca", nil, "192.0.3.1", BadSource, 4, "only from"},
		{"unknown CA", "nobody", nil, "192.0.2.1", UnknownCA, 0, "no cert-authority line"},
		{"signed by a plain key", "plain", nil, "192.0.2.1", UnknownCA, 0, "no cert-authority line"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cert := reread(t, signed(t, c.ca, "user", ssh.UserCert, c.change))
			e, err := k.Check(cert, addr(c.from), testNow())
			if c.reason != "" {
				wantRefused(t, err, c.reason, c.line, c.want)
				return
			}
			if err != nil || e.Line != c.line || e.Principal != c.want || e.Certificate != cert {
				t.Errorf("Check = %+v, %v, want line %d, principal %s", e, err, c.line, c.want)
			}
		})
	}
	// What it added is not in the file's entries.
	for _, e := range k.Entries() {
		if e.Certificate != nil || e.Principal != "" {
			t.Errorf("line %d keeps a certificate", e.Line)
		}
	}
}

// reread is the certificate as it comes over the wire.
func reread(t testing.TB, cert *ssh.Certificate) *ssh.Certificate {
	t.Helper()
	key, err := ssh.ParsePublicKey(cert.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	return key.(*ssh.Certificate)
}

// TestCertificateLimits checks that of the line and the certificate the stricter counts.
func TestCertificateLimits(t *testing.T) {
	check := func(options string, change func(*ssh.Certificate)) Entry {
		t.Helper()
		k := authorized(t, `cert-authority,principals="alice"`+options+" "+keyText(t, "ca"))
		e, err := k.Check(signed(t, "ca", "user", ssh.UserCert, change), addr("192.0.2.1"), testNow())
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	if e := check("", nil); !e.PortForwarding || e.Role != "" || !e.Expires.Equal(testNow().Add(time.Hour)) {
		t.Errorf("nothing stricter: %+v", e)
	}
	if e := check("", func(c *ssh.Certificate) { c.Extensions = nil }); e.PortForwarding {
		t.Error("ports without permit-port-forwarding")
	}
	if e := check(",restrict", nil); e.PortForwarding {
		t.Error("ports in spite of restrict")
	}
	if e := check("", func(c *ssh.Certificate) { c.CriticalOptions = options("force-command", "backup") }); e.Role != "backup" {
		t.Errorf("role %q, want the certificate's", e.Role)
	}
	if e := check(`,command="dump"`, nil); e.Role != "dump" {
		t.Errorf("role %q, want the line's", e.Role)
	}
	if e := check(`,expiry-time="20261122123000Z"`, nil); !e.Expires.Equal(testNow().Add(30 * time.Minute)) {
		t.Errorf("expires %v, want the line's", e.Expires)
	}
	if e := check("", func(c *ssh.Certificate) { c.ValidBefore = ssh.CertTimeInfinity }); !e.Expires.IsZero() {
		t.Errorf("expires %v, want never", e.Expires)
	}
}

// TestSeveralLinesOfACA checks that a line which refuses a certificate does not hide one that takes it, however many.
func TestSeveralLinesOfACA(t *testing.T) {
	var lines []string
	for i := range 20 {
		lines = append(lines, fmt.Sprintf(`cert-authority,principals="u%d",command="role%d" %s`, i, i, keyText(t, "ca")))
	}
	k := authorized(t, lines...)
	cert := signed(t, "ca", "user", ssh.UserCert, func(c *ssh.Certificate) { c.ValidPrincipals = []string{"u17"} })
	if e, err := k.Check(cert, netip.Addr{}, testNow()); err != nil || e.Role != "role17" {
		t.Errorf("Check = %+v, %v, want role17", e, err)
	}
}

// TestForgedCertificates changes each field of a good certificate after it was signed.
func TestForgedCertificates(t *testing.T) {
	k := authorized(t, `cert-authority,principals="alice,root" `+keyText(t, "ca"))
	for name, change := range map[string]func(*ssh.Certificate){
		"principals": func(c *ssh.Certificate) { c.ValidPrincipals = []string{"root"} },
		"key":        func(c *ssh.Certificate) { c.Key = keyOf(t, "other") },
		"end":        func(c *ssh.Certificate) { c.ValidBefore++ },
		"beginning":  func(c *ssh.Certificate) { c.ValidAfter-- },
		"serial":     func(c *ssh.Certificate) { c.Serial++ },
		"options":    func(c *ssh.Certificate) { c.CriticalOptions = nil },
		"signature":  func(c *ssh.Certificate) { c.Signature.Blob[10] ^= 1 },
		"format":     func(c *ssh.Certificate) { c.Signature.Format = ssh.KeyAlgoECDSA256 },
		"no signing": func(c *ssh.Certificate) { c.Signature = nil },
	} {
		t.Run(name, func(t *testing.T) {
			cert := signed(t, "ca", "user", ssh.UserCert, func(c *ssh.Certificate) { c.CriticalOptions = options("source-address", "192.0.2.1") })
			if _, err := k.Check(cert, addr("192.0.2.1"), testNow()); err != nil {
				t.Fatal(err)
			}
			change(cert)
			_, err := k.Check(cert, addr("192.0.2.1"), testNow())
			wantRefused(t, err, BadSignature, 1, "")
		})
	}
}

// TestWeakCertificates has certificates whose keys or signatures are too weak, though the CA signed them.
func TestWeakCertificates(t *testing.T) {
	k := authorized(t, `cert-authority,principals="alice" `+keyText(t, "ca"))
	weak := signed(t, "ca", "user", ssh.UserCert, func(c *ssh.Certificate) { c.Key = sshKey(t, &newRSA(t, 1024).PublicKey) })
	_, err := k.Check(weak, addr("192.0.2.1"), testNow())
	wantRefused(t, err, WeakKey, 1, "less than 2048 bits")

	ca, err := ssh.NewSignerFromKey(newRSA(t, 2048))
	if err != nil {
		t.Fatal(err)
	}
	k = authorized(t, `cert-authority,principals="alice" `+textOf(ca.PublicKey()))
	for algorithm, reason := range map[string]Reason{ssh.KeyAlgoRSA: WeakKey, ssh.KeyAlgoRSASHA256: "", ssh.KeyAlgoRSASHA512: ""} {
		one, err := ssh.NewSignerWithAlgorithms(ca.(ssh.AlgorithmSigner), []string{algorithm})
		if err != nil {
			t.Fatal(err)
		}
		cert := signed(t, "ca", "user", ssh.UserCert, nil)
		if err := cert.SignCert(rand.Reader, one); err != nil {
			t.Fatal(err)
		}
		_, err = k.Check(cert, addr("192.0.2.1"), testNow())
		if reason == "" && err != nil {
			t.Errorf("%s: %v", algorithm, err)
		} else if reason != "" {
			wantRefused(t, err, reason, 1, "SHA-1")
		}
	}
}

func TestSPIFFEPrincipal(t *testing.T) {
	const id = "spiffe://cluster.local/ns/default/sa/web"
	for _, c := range []struct {
		name  string
		names []string
		want  string
	}{
		{"only one", []string{id}, id},
		{"among others", []string{"web", id, "web.example", "https://x"}, id},
		{"in other case", []string{"SPIFFE://cluster.local/ns/default/sa/web"}, "SPIFFE://cluster.local/ns/default/sa/web"}, // for the strict parser to refuse
		{"two", []string{id, "spiffe://other/x"}, ""},
		{"two in two cases", []string{id, "Spiffe://other/x"}, ""},
		{"the same twice", []string{id, id}, ""},
		{"none", []string{"web"}, ""},
		{"no name", nil, ""},
		{"something like it", []string{"xspiffe://a/b", " spiffe://a/b", "spiffe:/a"}, ""},
		{"257", append(strings.Split(strings.Repeat("a,", 256), ",")[:256], id), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := SPIFFEPrincipal(&ssh.Certificate{ValidPrincipals: c.names})
			if c.want == "" {
				wantRefused(t, err, BadPrincipal, 0, "certificate")
			} else if err != nil || got != c.want {
				t.Errorf("SPIFFEPrincipal = %q, %v, want %q", got, err, c.want)
			}
		})
	}
}

func TestTemplate(t *testing.T) {
	const id = "spiffe://cluster.local/ns/default/sa/web"
	good := func() *Template {
		return &Template{ID: id, Principals: []string{"web.example"}, NotBefore: testNow().Add(-time.Minute), NotAfter: testNow().Add(time.Hour), Serial: 7}
	}
	ca, key := signerOf(t, "ca"), keyOf(t, "web")
	cert, err := good().Sign(ca, key)
	if err != nil {
		t.Fatal(err)
	}
	cert = reread(t, cert)
	if got, err := SPIFFEPrincipal(cert); err != nil || got != id || cert.KeyId != id || cert.Serial != 7 {
		t.Errorf("certificate %+v names %q, %v", cert, got, err)
	}
	k := authorized(t, "cert-authority "+keyText(t, "ca"))
	if e, err := k.Check(cert, netip.Addr{}, testNow()); err != nil || e.Principal != id || !e.PortForwarding {
		t.Errorf("Check = %+v, %v", e, err)
	}
	host := good()
	host.Host, host.KeyID = true, "web-1"
	cert, err = host.Sign(ca, key)
	if err != nil || cert.CertType != ssh.HostCert || cert.KeyId != "web-1" || len(cert.Extensions) != 0 {
		t.Errorf("host's certificate %+v, %v", cert, err)
	}
	hosts := known(t, "@cert-authority *.example "+keyText(t, "ca"), "@cert-authority spiffe://cluster.local/* "+keyText(t, "ca"))
	for _, name := range []string{"web.example", id} {
		if err := hosts.Check(name, 15022, netip.Addr{}, cert, testNow()); err != nil {
			t.Errorf("Check(%q): %v", name, err)
		}
	}
	sha1CA, err := ssh.NewSignerFromKey(newRSA(t, 2048))
	if err != nil {
		t.Fatal(err)
	}
	sha1CA, err = ssh.NewSignerWithAlgorithms(sha1CA.(ssh.AlgorithmSigner), []string{ssh.KeyAlgoRSA})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(*Template)
		ca     ssh.Signer
		key    ssh.PublicKey
		want   string
	}{
		{"no ID", func(t *Template) { t.ID = "" }, ca, key, "does not begin"},
		{"other scheme", func(t *Template) { t.ID = "https://x" }, ca, key, "does not begin"},
		{"scheme in other case", func(t *Template) { t.ID = "SPIFFE://a/b" }, ca, key, "does not begin"},
		{"long ID", func(t *Template) { t.ID += strings.Repeat("x", 2048) }, ca, key, "1 to 2048 bytes"},
		{"ID with a comma", func(t *Template) { t.ID += ",root" }, ca, key, "comma"},
		{"ID with a line", func(t *Template) { t.ID += "\nroot" }, ca, key, "printable"},
		{"second ID", func(t *Template) { t.Principals = []string{"Spiffe://a/b"} }, ca, key, "second SPIFFE ID"},
		{"empty principal", func(t *Template) { t.Principals = []string{""} }, ca, key, "1 to 2048 bytes"},
		{"many principals", func(t *Template) { t.Principals = make([]string, 256) }, ca, key, "257 principals"},
		{"key ID with a line", func(t *Template) { t.KeyID = "a\nb" }, ca, key, "key ID"},
		{"no time", func(t *Template) { t.NotBefore, t.NotAfter = time.Time{}, time.Time{} }, ca, key, "valid from"},
		{"no end", func(t *Template) { t.NotAfter = time.Time{} }, ca, key, "valid from"},
		{"end before beginning", func(t *Template) { t.NotAfter = t.NotBefore }, ca, key, "valid from"},
		{"no CA", func(*Template) {}, nil, key, "missing"},
		{"no key", func(*Template) {}, ca, nil, "missing"},
		{"certificate as key", func(*Template) {}, ca, cert, "not taken"},
		{"short key", func(*Template) {}, ca, sshKey(t, &newRSA(t, 1024).PublicKey), "2048 bits"},
		{"CA with SHA-1", func(*Template) {}, sha1CA, key, "SHA-1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			template := good()
			c.change(template)
			if cert, err := template.Sign(c.ca, c.key); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Sign = %v, %v, want an error that says %q", cert, err, c.want)
			}
		})
	}
}

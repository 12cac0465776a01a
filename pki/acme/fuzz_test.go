package acme

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"
)

// FuzzCheckName: what is let pass is a name that a certificate can be for and that is safe in a file's name.
func FuzzCheckName(f *testing.F) {
	for _, s := range []string{alpha, "a", "*.a", "1.2.3.4", "a..b", "xn--bcher-kva.example", "-a", "a-", "\u212a", "../x", "a\x00b", strings.Repeat("a.", 130)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		detail, mend := checkName(s)
		if (detail == "") != (mend == "") {
			t.Errorf("checkName(%q) = %q, %q", s, detail, mend)
		}
		if detail != "" {
			return
		}
		if strings.ContainsAny(s, "/\\:\x00 *") || strings.HasPrefix(s, ".") || strings.HasSuffix(s, ".") || len(s) > maxNameBytes || s != strings.ToLower(s) {
			t.Errorf("checkName lets %q pass", s)
		}
		if lowerASCII(strings.ToUpper(s)) != s {
			t.Errorf("%q is not found in upper case", s)
		}
		c := x509.Certificate{DNSNames: []string{s}}
		if err := c.VerifyHostname(s); err != nil {
			t.Errorf("no certificate can be for %q: %v", s, err)
		}
	})
}

// FuzzDecodePair: whatever is in a kept file, what comes out can be served.
func FuzzDecodePair(f *testing.F) {
	key := newKey(f)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: alpha}, DNSNames: []string{alpha},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<31, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		f.Fatal(err)
	}
	good, err := encodePair(key, [][]byte{der, der})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:300])
	f.Add([]byte(nil))
	f.Add(append([]byte("junk\n"), good...))
	f.Add(append(good, pem.EncodeToMemory(&pem.Block{Type: "X", Bytes: der})...))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := decodePair(data, alpha)
		if err != nil {
			return
		}
		if c.Leaf == nil || c.PrivateKey == nil || len(c.Certificate) == 0 || len(c.Certificate) > maxChain || c.Leaf.VerifyHostname(alpha) != nil {
			t.Errorf("decodePair = %v, want something that can be served", c)
		}
	})
}

// FuzzCheckChain: nothing that a CA can send is taken for another name or key.
func FuzzCheckChain(f *testing.F) {
	key := newKey(f)
	now := time.Unix(1<<30, 0)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{alpha}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der, []byte(nil), true)
	f.Add(der, der, true)
	f.Add(der, der, false)
	f.Fuzz(func(t *testing.T, leaf, parent []byte, alone bool) {
		chain := [][]byte{leaf, parent}
		if alone {
			chain = chain[:1]
		}
		c, err := checkChain(chain, alpha, key.Public(), now)
		if err == nil && (c.VerifyHostname(alpha) != nil || !key.PublicKey.Equal(c.PublicKey)) {
			t.Errorf("checkChain lets %v pass", c)
		}
	})
}

// FuzzHello: whatever a client says, GetCertificate answers with a certificate for that name or a *NameError.
func FuzzHello(f *testing.F) {
	e := &entry{name: alpha}
	e.cert.Store(&kept{cert: &tls.Certificate{Leaf: &x509.Certificate{DNSNames: []string{alpha}}}, notAfter: time.Now().Add(24 * time.Hour)})
	m := &Manager{byName: map[string]*entry{alpha: e}, answers: answers{alpn: map[string]*tls.Certificate{}}}
	f.Add(alpha, "h2")
	f.Add("ALPHA.EXAMPLE", "")
	f.Add("", ALPNProto)
	f.Add(alpha, ALPNProto)
	f.Add(strings.Repeat("\xff", 300), "h2")
	f.Fuzz(func(t *testing.T, name, proto string) {
		hello := &tls.ClientHelloInfo{ServerName: name, SupportedProtos: []string{proto}}
		cert, err := m.GetCertificate(hello)
		if err == nil && cert.Leaf.VerifyHostname(name) != nil {
			t.Errorf("GetCertificate(%q) returns a certificate for %q", name, cert.Leaf.DNSNames)
		}
		if err != nil && len(err.Error()) > 1024 {
			t.Errorf("GetCertificate(%q) returns %d bytes of error", name, len(err.Error()))
		}
		if cfg, err := m.GetConfigForClient(hello); err != nil || (cfg != nil) != (proto == ALPNProto) {
			t.Errorf("GetConfigForClient(%q) = %v, %v", proto, cfg, err)
		}
	})
}

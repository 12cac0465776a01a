package sshkeys

import (
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

func FuzzAuthorizedKeys(f *testing.F) {
	key := keyText(f, "a")
	for _, seed := range []string{
		"", "# comment\n\n" + key + " me\r\n", `from="!192.0.2.7,192.0.2.*,2001:db8::/32",command="a \"b\"",restrict,port-forwarding ` + key,
		`expiry-time="20270101Z",permitopen="[::1]:*",permitlisten="8080",no-pty,environment="A=b,c" ` + key,
		`cert-authority,principals="alice,bob" ` + keyText(f, "ca"), `cert-authority ` + keyText(f, "ca") + "\n" + skKeyText,
		"ssh-ed25519 AAAA", `command="`, "a,,b=\"\\\"\" x", dsaKeyText, "\x00\x01",
	} {
		f.Add([]byte(seed))
	}
	cert := signed(f, "ca", "user", ssh.UserCert, nil)
	strange := signed(f, "stranger", "user", ssh.UserCert, nil)
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := ParseAuthorizedKeys("f", data)
		if err != nil {
			for _, e := range lineErrors(t, err) {
				if e.Reason == "" || strings.ContainsAny(e.Error(), "\x00\n\x7f") {
					t.Errorf("error %q of %q", e.Error(), e.Reason)
				}
			}
			return
		}
		for i, e := range k.Entries() {
			if weakness(e.Key) != "" || e.Principals != nil && !e.CertAuthority || i > 0 && e.Line <= k.Entries()[i-1].Line {
				t.Errorf("entry %+v", e)
			}
			got, err := k.Check(e.Key, addr("192.0.2.1"), testNow())
			if err == nil && (got.CertAuthority || keyBlob(got.Key) != keyBlob(e.Key) || !got.From.Allows(addr("192.0.2.1"))) {
				t.Errorf("Check of line %d admits by %+v", e.Line, got)
			}
			if own := e.Admits(addr("192.0.2.1"), testNow()); own == nil && !e.CertAuthority && err != nil {
				t.Errorf("line %d admits its key, and Check says %v", e.Line, err)
			}
			if e.From.Allows(netip.Addr{}) && !e.From.IsZero() {
				t.Errorf("line %d allows a client without an address", e.Line)
			}
			e.MayOpen("db", 1)
			e.MayListen("", 1)
		}
		if e, err := k.Check(cert, addr("192.0.2.1"), testNow()); err == nil && (!e.CertAuthority || e.Principal != "alice") {
			t.Errorf("the certificate is admitted by %+v", e)
		}
		if e, err := k.Check(strange, addr("192.0.2.1"), testNow()); err == nil && keyBlob(e.Key) != keyBlob(strange.SignatureKey) {
			t.Errorf("a stranger's certificate is admitted by %+v", e)
		}
		for _, pin := range k.Pins() {
			line, err := AppendAuthorizedKey(nil, pin.Public, "")
			if err != nil || strings.TrimSpace(string(line)) != textOf(pin.Key) {
				t.Errorf("the pin of line %d is written %q, %v", pin.Line, line, err)
			}
		}
	})
}

func FuzzKnownHosts(f *testing.F) {
	key := keyText(f, "a")
	for _, seed := range []string{
		"", "# comment\n\ngw.example,192.0.2.1 " + key + " me\r\n", "[gw.example]:15022,*.x,!y.x " + key, "@revoked * " + key,
		"@cert-authority *.example " + keyText(f, "ca") + "\nspiffe://a/* " + key,
		"|1|AAAAAAAAAAAAAAAAAAAAAAAAAAA=|AAAAAAAAAAAAAAAAAAAAAAAAAAA= " + key, "host:22 " + key, "[a]:x " + key, "@x a " + key, dsaKeyText,
	} {
		f.Add([]byte(seed), "gw.example", uint16(22))
	}
	f.Add([]byte("[*]:* "+key), "::1", uint16(15022))
	plain, ca := keyOf(f, "a"), keyOf(f, "ca")
	cert := signed(f, "ca", "user", ssh.HostCert, func(c *ssh.Certificate) { c.ValidPrincipals = []string{"gw.example"} })
	f.Fuzz(func(t *testing.T, data []byte, host string, port uint16) {
		k, err := ParseKnownHosts("f", data)
		if err != nil {
			for _, e := range lineErrors(t, err) {
				if e.Reason == "" || strings.ContainsAny(e.Error(), "\x00\n\x7f") {
					t.Errorf("error %q of %q", e.Error(), e.Reason)
				}
			}
			return
		}
		plainErr := k.Check(host, port, netip.Addr{}, plain, testNow())
		certErr := k.Check(host, port, netip.Addr{}, cert, testNow())
		if plainErr == nil && (k.revoked[keyBlob(plain)] != 0 || len(k.lines) == 0) {
			t.Error("a key is known that is revoked, or on no line")
		}
		if certErr == nil && (k.revoked[keyBlob(ca)] != 0 || !strings.EqualFold(host, "gw.example") && !strings.EqualFold(host, "[gw.example]") &&
			k.Check(host, port, netip.Addr{}, cert.Key, testNow()) != nil) {
			t.Errorf("a certificate for gw.example is taken for %q", host)
		}
	})
}

// FuzzGlobMatch compares with the definition: a '*' takes nothing or one byte more, a '?' one byte.
func FuzzGlobMatch(f *testing.F) {
	f.Add("*.example", "a.example")
	f.Add("a*b?c*", "aXXbYcZ")
	f.Fuzz(func(t *testing.T, pattern, text string) {
		if len(pattern) > 12 || len(text) > 16 {
			return // the definition takes exponential time
		}
		if got, want := globMatch(pattern, text), globDefined(pattern, text); got != want {
			t.Errorf("globMatch(%q, %q) = %v, want %v", pattern, text, got, want)
		}
	})
}

func globDefined(pattern, text string) bool {
	switch {
	case pattern == "":
		return text == ""
	case pattern[0] == '*':
		return globDefined(pattern[1:], text) || text != "" && globDefined(pattern, text[1:])
	case text == "":
		return false
	}
	return (pattern[0] == '?' || pattern[0] == text[0]) && globDefined(pattern[1:], text[1:])
}

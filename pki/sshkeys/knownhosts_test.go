package sshkeys

import (
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

func TestKnownHosts(t *testing.T) {
	k := known(t,
		"# hosts", // 1
		"gw.example,192.0.2.1 "+keyText(t, "gw")+" x",                               // 2
		"[gw.example]:15022 "+keyText(t, "gw15022"),                                 // 3
		"*.wild.example,!no.wild.example "+keyText(t, "wild"),                       // 4
		"[*.port.example]:* "+keyText(t, "port"),                                    // 5
		knownhosts.HashHostname("secret.example")+" "+keyText(t, "secret"),          // 6
		knownhosts.HashHostname("[secret.example]:2222")+" "+keyText(t, "secret22"), // 7
		"2001:db8::1,[2001:db8::2]:22022 "+keyText(t, "six"),                        // 8
		"two.example "+keyText(t, "two a"),                                          // 9
		"two.example "+keyText(t, "two b"),                                          // 10
		"@revoked * "+keyText(t, "stolen"),                                          // 11
		"stolen.example "+keyText(t, "stolen"),                                      // 12
		"Upper.Example "+keyText(t, "upper"),                                        // 13
		"@cert-authority *.ca.example "+keyText(t, "ca"),                            // 14
		"?.q.example "+keyText(t, "q"),                                              // 15
	)
	for _, c := range []struct {
		host   string
		port   uint16
		key    string
		reason Reason // "" is good
		line   int
		want   string
	}{
		{"gw.example", 22, "gw", "", 0, ""},
		{"GW.Example", 22, "gw", "", 0, ""},
		{"192.0.2.1", 22, "gw", "", 0, ""},
		{"::ffff:192.0.2.1", 22, "gw", "", 0, ""},
		{"gw.example", 22, "other", ChangedKey, 2, "known is ssh-ed25519 " + ssh.FingerprintSHA256(keyOf(t, "gw")) + " (line 2)"},
		{"gw.example", 15022, "gw15022", "", 0, ""},
		{"gw.example", 15022, "other", ChangedKey, 3, "[gw.example]:15022"},
		{"gw.example", 22, "gw15022", ChangedKey, 2, "has changed"},
		{"gw.example", 2222, "gw", "", 0, ""},                                                // as ssh: "found matching key w/out port"
		{"gw.example", 2222, "other", UnknownHost, 0, "line 2 has another key, for port 22"}, // and not "changed"
		{"xgw.example", 22, "gw", UnknownHost, 0, "no line has a key for it"},
		{"gw.example.", 22, "gw", UnknownHost, 0, "no line"},
		{"a.wild.example", 22, "wild", "", 0, ""},
		{"a.b.wild.example", 22, "wild", "", 0, ""},
		{"wild.example", 22, "wild", UnknownHost, 0, ""},
		{"no.wild.example", 22, "wild", UnknownHost, 0, ""},
		{"a.port.example", 9, "port", "", 0, ""},
		{"a.port.example", 22, "port", UnknownHost, 0, ""},
		{"secret.example", 22, "secret", "", 0, ""},
		{"SECRET.example", 22, "secret", "", 0, ""},
		{"secret.example", 22, "other", ChangedKey, 6, ""},
		{"secret.example", 2222, "secret22", "", 0, ""},
		{"secret.example", 2222, "other", ChangedKey, 7, ""},
		{"2001:db8::1", 22, "six", "", 0, ""},
		{"2001:DB8:0::1", 22, "six", "", 0, ""},
		{"[2001:db8::1]", 22, "six", "", 0, ""},
		{"2001:db8::2", 22022, "six", "", 0, ""},
		{"2001:db8::2", 22, "six", UnknownHost, 0, ""},
		{"two.example", 22, "two a", "", 0, ""},
		{"two.example", 22, "two b", "", 0, ""},
		{"two.example", 22, "two c", ChangedKey, 9, "(line 9), ssh-ed25519"},
		{"stolen.example", 22, "stolen", Revoked, 11, "is revoked"},
		{"unknown.example", 22, "stolen", Revoked, 11, "is revoked"},
		{"upper.example", 22, "upper", "", 0, ""},
		{"a.ca.example", 22, "ca", UnknownHost, 0, "line 14 asks for one"}, // a CA's key is no host's
		{"a.q.example", 22, "q", "", 0, ""},
		{"ab.q.example", 22, "q", UnknownHost, 0, ""},
		{"*.wild.example", 22, "other", ChangedKey, 4, ""},
		{"", 22, "gw", UnknownHost, 0, "no name"},
		{"[]", 22, "gw", UnknownHost, 0, "no name"},
		{strings.Repeat("x", 4096), 22, "gw", UnknownHost, 0, "no name"},
	} {
		err := k.Check(c.host, c.port, netip.Addr{}, keyOf(t, c.key), testNow())
		if c.reason == "" {
			if err != nil {
				t.Errorf("Check(%q, %d, %s): %v", c.host, c.port, c.key, err)
			}
			continue
		}
		wantRefused(t, err, c.reason, c.line, c.want)
	}
	// The address stands for the name only if there is none.
	if err := k.Check("", 22, addr("192.0.2.1"), keyOf(t, "gw"), testNow()); err != nil {
		t.Error(err)
	}
	wantRefused(t, k.Check("new.example", 22, addr("192.0.2.1"), keyOf(t, "gw"), testNow()), UnknownHost, 0, "new.example")
	wantRefused(t, k.Check("gw.example", 22, netip.Addr{}, nil, testNow()), UnknownHost, 0, "no key")
	wantRefused(t, k.Check("gw.example", 22, netip.Addr{}, &ssh.Certificate{}, testNow()), BadSignature, 0, "no key")
}

func TestHostCertificates(t *testing.T) {
	k := known(t,
		"@cert-authority *.example,!bad.example "+keyText(t, "ca"), // 1
		"@cert-authority * "+keyText(t, "stolen ca"),               // 2
		"@revoked * "+keyText(t, "stolen ca"),                      // 3
		"@revoked * "+keyText(t, "stolen"),                         // 4
		"pinned.other "+keyText(t, "host"),                         // 5
		"[ported.other]:7 "+keyText(t, "host"),                     // 6
	)
	for _, c := range []struct {
		name   string
		host   string
		port   uint16
		ca     string
		key    string
		change func(*ssh.Certificate)
		reason Reason
		line   int
		want   string
	}{
		{"good", "a.example", 22, "ca", "host", nil, "", 0, ""},
		{"other port", "a.example", 15022, "ca", "host", nil, "", 0, ""},
		{"name in other case", "A.Example", 22, "ca", "host", nil, "", 0, ""},
		{"wrong principal", "b.example", 22, "ca", "host", nil, BadPrincipal, 1, `not for "b.example" but for "a.example"`},
		{"no principal", "a.example", 22, "ca", "host", func(c *ssh.Certificate) { c.ValidPrincipals = nil }, BadPrincipal, 1, "nobody"},
		{"wildcard principal", "a.example", 22, "ca", "host", func(c *ssh.Certificate) { c.ValidPrincipals = []string{"*.example"} }, BadPrincipal, 1, "not for"},
		{"not a host's", "a.example", 22, "ca", "host", func(c *ssh.Certificate) { c.CertType = ssh.UserCert }, BadType, 1, "for a user and not for a host"},
		{"expired", "a.example", 22, "ca", "host", func(c *ssh.Certificate) { c.ValidBefore = uint64(testNow().Unix()) }, Expired, 1, "a.example: the certificate expired"},
		{"critical option", "a.example", 22, "ca", "host", func(c *ssh.Certificate) { c.CriticalOptions = options("source-address", "0.0.0.0/0") }, BadOption, 1, "source-address"},
		{"CA of other hosts", "bad.example", 22, "ca", "host", nil, UnknownHost, 0, "not of the CA of line 2"},
		{"unknown CA", "a.example", 22, "nobody", "host", nil, UnknownHost, 0, "not of the CA of line 1"},
		{"revoked CA", "a.example", 22, "stolen ca", "host", nil, Revoked, 3, "the CA"},
		{"revoked key", "a.example", 22, "ca", "stolen", nil, Revoked, 4, "the key"},
		{"CA unknown and key known", "pinned.other", 22, "nobody", "host", nil, "", 0, ""}, // as ssh does
		{"CA unknown and key other", "pinned.other", 22, "nobody", "other", nil, ChangedKey, 5, "has changed"},
		{"CA unknown and key known at a port", "ported.other", 7, "nobody", "host", nil, "", 0, ""},
		{"CA unknown and key known at another port", "ported.other", 8, "nobody", "host", nil, UnknownHost, 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			cert := reread(t, signed(t, c.ca, c.key, ssh.HostCert, func(cert *ssh.Certificate) {
				cert.ValidPrincipals = []string{"a.example"}
				if c.change != nil {
					c.change(cert)
				}
			}))
			err := k.Check(c.host, c.port, netip.Addr{}, cert, testNow())
			if c.reason != "" {
				wantRefused(t, err, c.reason, c.line, c.want)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	forged := signed(t, "ca", "host", ssh.HostCert, nil)
	forged.ValidPrincipals = []string{"a.example"}
	wantRefused(t, k.Check("a.example", 22, netip.Addr{}, forged, testNow()), BadSignature, 1, "does not verify")
}

// TestSPIFFEHosts looks hosts up by their identity: in its own case, and whatever the port.
func TestSPIFFEHosts(t *testing.T) {
	const id = "spiffe://cluster.local/ns/Default/sa/gw"
	k := known(t, "@cert-authority spiffe://cluster.local/* "+keyText(t, "ca"), id+" "+keyText(t, "plain"))
	cert := signed(t, "ca", "host", ssh.HostCert, func(c *ssh.Certificate) { c.ValidPrincipals = []string{id} })
	if err := k.Check(id, 15022, netip.Addr{}, cert, testNow()); err != nil {
		t.Error(err)
	}
	if err := k.Check(id, 15022, netip.Addr{}, keyOf(t, "plain"), testNow()); err != nil {
		t.Error(err)
	}
	wantRefused(t, k.Check(strings.ToLower(id), 22, netip.Addr{}, cert, testNow()), BadPrincipal, 1, "not for")
	wantRefused(t, k.Check(strings.ToLower(id), 22, netip.Addr{}, keyOf(t, "plain"), testNow()), UnknownHost, 0, "")
	wantRefused(t, k.Check("spiffe://other/ns/Default/sa/gw", 22, netip.Addr{}, cert, testNow()), UnknownHost, 0, "")
}

func TestBadHostLines(t *testing.T) {
	key := keyText(t, "a")
	for _, c := range []struct {
		name, line string
		reason     Reason
		want       string
	}{
		{"unknown marker", "@trusted host " + key, BadFormat, `"@trusted"`},
		{"marker in other case", "@Revoked host " + key, BadFormat, `"@Revoked"`},
		{"two markers", "@revoked @cert-authority host " + key, BadFormat, "second marker"},
		{"marker alone", "@revoked", BadFormat, "empty name"},
		{"one word", "host", BadFormat, "no key follows"},
		{"no host", key, BadFormat, "is not the type of a key"},
		{"host with a port", "host:2222 " + key, BadFormat, "[HOST]:PORT"},
		{"bracket without port", "[host] " + key, BadFormat, "[HOST]:PORT"},
		{"port 0", "[host]:0 " + key, BadFormat, "[HOST]:PORT"},
		{"port 65536", "[host]:65536 " + key, BadFormat, "[HOST]:PORT"},
		{"port with a zero before", "[host]:022 " + key, BadFormat, "[HOST]:PORT"},
		{"no port", "[host]: " + key, BadFormat, "[HOST]:PORT"},
		{"no name in brackets", "[]:22 " + key, BadFormat, "[HOST]:PORT"},
		{"bracket inside", "a[b]:22 " + key, BadFormat, "[HOST]:PORT"},
		{"empty name", "a,,b " + key, BadFormat, "empty name"},
		{"only a negation", "! " + key, BadFormat, "empty name"},
		{"two negations", "!!a " + key, BadFormat, "no name"},
		{"not ASCII", "höst " + key, BadFormat, "no name"},
		{"hash of another kind", "|2|AAAA|AAAA " + key, BadFormat, "|1|SALT|HASH"},
		{"hash and name", "|1|" + strings.Repeat("A", 27) + "=|" + strings.Repeat("A", 27) + "=,host " + key, BadFormat, "20 bytes"},
		{"name and hash", "host,|1|" + strings.Repeat("A", 27) + "=|" + strings.Repeat("A", 27) + "= " + key, BadFormat, "no name"},
		{"short hash", "|1|AAAA|AAAA " + key, BadFormat, "20 bytes"},
		{"options", `restrict host ` + key, BadFormat, "not the type"},
		{"certificate", "host " + textOf(signed(t, "ca", "a", ssh.HostCert, nil)), BadFormat, "its CA's key"},
		{"NUL", "host\x00 " + key, BadFormat, "control character"},
		{"revoked without a key", "@revoked host ssh-ed25519", BadFormat, "no key"},
	} {
		t.Run(c.name, func(t *testing.T) {
			k, err := ParseKnownHosts("hosts", []byte("a "+key+"\n"+c.line+"\nb "+key+"\n"))
			if err == nil || k != nil {
				t.Fatalf("ParseKnownHosts = %+v, %v", k, err)
			}
			list := lineErrors(t, err)
			if len(list) != 1 || list[0].Line != 2 || list[0].Reason != c.reason || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v (%s), want hosts:2, %s, saying %q", err, list[0].Reason, c.reason, c.want)
			}
		})
	}
}

func TestGlobMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, text string
		want          bool
	}{
		{"", "", true}, {"", "a", false}, {"a", "", false}, {"*", "", true}, {"**", "", true}, {"?", "", false}, {"*", "abc", true},
		{"a*c", "abbc", true}, {"a*c", "abbd", false}, {"*a*b", "xaxbxb", true}, {"*a?", "aab", true}, {"a?c", "abc", true},
		{"*.example", "a.example", true}, {"*.example", ".example", true}, {"*.example", "example", false}, {"abc", "abcd", false},
	} {
		if got := globMatch(c.pattern, c.text); got != c.want {
			t.Errorf("globMatch(%q, %q) = %v", c.pattern, c.text, got)
		}
	}
}

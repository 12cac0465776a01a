package sshkeys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

func TestOptions(t *testing.T) {
	key := keyText(t, "a")
	utc := func(y int, m time.Month, d, h, min, s int) time.Time {
		return time.Date(y, m, d, h, min, s, 0, time.UTC)
	}
	for _, c := range []struct {
		name, line string
		want       Entry // without File, Line and Key
	}{
		{"plain", key, Entry{PortForwarding: true}},
		{"comment", key + " \t me on my machine ", Entry{PortForwarding: true, Comment: "me on my machine"}},
		{"comment with quotes", key + ` say "hi`, Entry{PortForwarding: true, Comment: `say "hi`}},
		{"role", `command="backup \"all\" \n" ` + key, Entry{PortForwarding: true, Role: `backup "all" \n`}},
		{"names in any case", `Command="x",RESTRICT,Cert-Authority ` + key, Entry{Role: "x", CertAuthority: true}},
		{"date", `expiry-time="20270101Z" ` + key, Entry{PortForwarding: true, Expires: utc(2027, 1, 1, 0, 0, 0)}},
		{"minute", `expiry-time="202701012359Z" ` + key, Entry{PortForwarding: true, Expires: utc(2027, 1, 1, 23, 59, 0)}},
		{"second", `expiry-time="20270101235958Z" ` + key, Entry{PortForwarding: true, Expires: utc(2027, 1, 1, 23, 59, 58)}},
		{"local time", `expiry-time="20270101" ` + key, Entry{PortForwarding: true, Expires: time.Date(2027, 1, 1, 0, 0, 0, 0, time.Local)}},
		{"the earliest time", `expiry-time="20270102Z",expiry-time="20270101Z",expiry-time="20280101Z" ` + key,
			Entry{PortForwarding: true, Expires: utc(2027, 1, 1, 0, 0, 0)}},
		{"restrict", `restrict ` + key, Entry{}},
		{"no-port-forwarding", `no-port-forwarding ` + key, Entry{}},
		{"restrict and allow", `restrict,port-forwarding,permitopen="db:5432" ` + key,
			Entry{PortForwarding: true, PermitOpen: []Permit{{"db", 5432}}}},
		{"allow and restrict", `port-forwarding,restrict ` + key, Entry{}},
		{"permits", `permitopen="[2001:db8::1]:80",permitopen="*:443",permitopen="192.0.2.1:*",permitlisten="8080",permitlisten="*.x:1" ` + key,
			Entry{PortForwarding: true, PermitOpen: []Permit{{"2001:db8::1", 80}, {"*", 443}, {"192.0.2.1", 0}}, PermitListen: []Permit{{"*", 8080}, {"*.x", 1}}}},
		{"authority", `cert-authority,principals="alice,bob" ` + key,
			Entry{PortForwarding: true, CertAuthority: true, Principals: []string{"alice", "bob"}}},
		{"noted", `no-pty,environment="A=b",environment="C=d,e f",no-X11-forwarding,tunnel="0" ` + key,
			Entry{PortForwarding: true, Noted: []string{"no-pty", "environment", "environment", "no-x11-forwarding", "tunnel"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := authorized(t, "# a comment", "", "\t "+c.line+"\r")
			if len(k.Entries()) != 1 {
				t.Fatalf("%d entries, want 1", len(k.Entries()))
			}
			got := k.Entries()[0]
			if got.File != "keys" || got.Line != 3 || keyBlob(got.Key) != keyBlob(keyOf(t, "a")) {
				t.Errorf("entry of %s:%d with the key %v", got.File, got.Line, got.Key)
			}
			c.want.File, c.want.Line, c.want.Key = got.File, got.Line, got.Key
			if !got.Expires.Equal(c.want.Expires) {
				t.Errorf("expires %v, want %v", got.Expires, c.want.Expires)
			}
			got.Expires = c.want.Expires
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("entry = %+v\nwant    %+v", got, c.want)
			}
		})
	}
}

func TestBadLines(t *testing.T) {
	key := keyText(t, "a")
	kind, blob := cutField(key)
	p224 := "ecdsa-sha2-nistp224 AAAA"
	for _, c := range []struct {
		name, line string
		reason     Reason
		want       string // what the error says
	}{
		{"unknown option", `frobnicate ` + key, BadOption, `"frobnicate" is neither`},
		{"unknown option with a value", `permit-open="a:1" ` + key, BadOption, `"permit-open" is neither`},
		{"option of sshd_config", `PermitRootLogin="no" ` + key, BadOption, "neither"},
		{"unknown option after known ones", `restrict,no-foo,pty ` + key, BadOption, `"no-foo"`},
		{"an option's beginning", `restricted ` + key, BadOption, `"restricted"`},
		{"no for what has none", `no-restrict ` + key, BadOption, `"no-restrict"`},
		{"verify-required", `verify-required ` + key, BadOption, "cannot be kept"},
		{"no value", `command ` + key, BadOption, "needs a value"},
		{"a value too much", `restrict="x" ` + key, BadOption, "takes no value"},
		{"no quotes", `command=x ` + key, BadOption, "double quotes"},
		{"single quotes", `command='x' ` + key, BadOption, "double quotes"},
		{"open quote", `command="x ` + key, BadOption, "closing quote"},
		{"escaped end", `command="x\" ` + key, BadOption, "closing quote"},
		{"text after a quote", `command="x"y ` + key, BadOption, "after"},
		{"two commas", `restrict,,pty ` + key, BadOption, "expected"},
		{"comma at the end", `restrict, ` + key, BadOption, "expected"},
		{"comma at the start", `,restrict ` + key, BadOption, "expected"},
		{"space between options", `restrict , pty ` + key, BadFormat, `"," is not the type of a key`},
		{"empty role", `command="" ` + key, BadOption, "empty"},
		{"two roles", `command="a",command="b" ` + key, BadOption, "twice"},
		{"two lists of sources", `from="192.0.2.1",from="192.0.2.2" ` + key, BadOption, "twice"},
		{"principals without authority", `principals="a" ` + key, BadOption, "not cert-authority"},
		{"empty principal", `cert-authority,principals="a,,b" ` + key, BadOption, "single commas"},
		{"no principal", `cert-authority,principals="" ` + key, BadOption, "single commas"},
		{"day 30 of February", `expiry-time="20270230Z" ` + key, BadOption, "is no time"},
		{"time with dashes", `expiry-time="2027-01-01" ` + key, BadOption, "is no time"},
		{"time with a small z", `expiry-time="20270101z" ` + key, BadOption, "is no time"},
		{"hour 25", `expiry-time="202701012500" ` + key, BadOption, "is no time"},
		{"a sign in the time", `expiry-time="+2027101" ` + key, BadOption, "is no time"},
		{"only Z", `expiry-time="Z" ` + key, BadOption, "is no time"},
		{"name of a client", `from="*.example.com" ` + key, BadOption, "not looked up"},
		{"name that is not allowed", `from="*,!host.example" ` + key, BadOption, "not looked up"},
		{"network with host bits", `from="10.0.0.1/8" ` + key, BadOption, "did you mean 10.0.0.0/8"},
		{"mask too long", `from="10.0.0.0/33" ` + key, BadOption, "not a network"},
		{"empty source", `from="" ` + key, BadOption, "empty pattern"},
		{"empty source in a list", `from="10.0.0.1,,10.0.0.2" ` + key, BadOption, "empty pattern"},
		{"space in a list", `from="10.0.0.1, 10.0.0.2" ` + key, BadOption, "not an address"},
		{"two negations", `from="!!10.0.0.1" ` + key, BadOption, "not an address"},
		{"zone", `from="fe80::1%eth0" ` + key, BadOption, "not an address"},
		{"permitopen without port", `permitopen="db" ` + key, BadOption, "HOST:PORT"},
		{"permitopen with a pattern", `permitopen="*.db:1" ` + key, BadOption, "no patterns"},
		{"permitopen of port 0", `permitopen="db:0" ` + key, BadOption, "1 to 65535"},
		{"permitopen of port 65536", `permitopen="db:65536" ` + key, BadOption, "1 to 65535"},
		{"permitopen of port +1", `permitopen="db:+1" ` + key, BadOption, "1 to 65535"},
		{"permitopen of port 01", `permitopen="db:01" ` + key, BadOption, "1 to 65535"},
		{"permitopen without host", `permitopen=":1" ` + key, BadOption, "empty"},
		{"permitopen of bare IPv6", `permitopen="::1:80" ` + key, BadOption, "brackets"},
		{"permitopen with half a bracket", `permitopen="[::1:80" ` + key, BadOption, "[IPv6]:PORT"},
		{"permitopen of two", `permitopen="a:1,b:2" ` + key, BadOption, "one destination only"},
		{"no key", `restrict`, BadFormat, "no key"},
		{"options only", `restrict  `, BadFormat, "no key"},
		{"type only", kind, BadFormat, "no key follows"},
		{"no base64", kind + " !!!!", BadFormat, "not base64"},
		{"broken off", kind + " " + blob[:40], BadFormat, "cannot be read"},
		{"other type", "ssh-rsa " + blob, BadFormat, `the line says "ssh-rsa"`},
		{"option in the place of the type", "restrict restrict " + blob, BadFormat, `"restrict" is not the type`},
		{"the bare point", "ecdsa-sha2-nistp256 BCVxsr7N/eNgVRqvHtD0zTZsEc6+VV+JvLexhqUzORcxaOzi6+AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4=", BadFormat, "cannot be read"},
		{"other curve", p224, BadFormat, ""},
		{"certificate", textOf(signed(t, "ca", "a", ssh.UserCert, nil)), BadFormat, "its CA's key"},
		{"NUL", "restrict\x00 " + key, BadFormat, "control character"},
		{"NUL in a comment", key + " a\x00b", BadFormat, "control character"},
		{"carriage return inside", key + " a\rrestrict " + key, BadFormat, "control character"},
		{"escape", key + " \x1b[2J", BadFormat, "control character"},
		{"one byte too long", key + " " + strings.Repeat("x", MaxLineBytes-len(key)), TooBig, "longer than 8192"},
	} {
		t.Run(c.name, func(t *testing.T) {
			k, err := ParseAuthorizedKeys("keys", []byte("# first\n"+c.line+"\n"+key+"\n"))
			if err == nil {
				t.Fatalf("taken: %+v", k.Entries())
			}
			if k != nil {
				t.Error("a result besides the error")
			}
			list := lineErrors(t, err)
			if len(list) != 1 || list[0].Line != 2 || list[0].File != "keys" || list[0].Reason != c.reason ||
				!strings.Contains(list[0].Error(), c.want) || !strings.HasPrefix(list[0].Error(), "keys:2: ") {
				t.Errorf("%v (%s), want keys:2, %s, saying %q", err, list[0].Reason, c.reason, c.want)
			}
		})
	}
}

// TestProblemsAreReportedAtOnce has several bad lines, and one with several problems.
func TestProblemsAreReportedAtOnce(t *testing.T) {
	key := keyText(t, "a")
	text := strings.Join([]string{
		"nonsense " + key, key, `foo,from="x",permitopen="y" ` + key, "", "ssh-ed25519 AAAA", key,
	}, "\n")
	_, err := ParseAuthorizedKeys("keys", []byte(text))
	var lines []int
	for _, e := range lineErrors(t, err) {
		lines = append(lines, e.Line)
	}
	if want := []int{1, 3, 3, 3, 5}; !reflect.DeepEqual(lines, want) {
		t.Errorf("problems at lines %v, want %v: %v", lines, want, err)
	}
}

func TestFrom(t *testing.T) {
	for _, c := range []struct {
		list    string
		allowed []string
		refused []string
	}{
		{"192.0.2.1", []string{"192.0.2.1", "::ffff:192.0.2.1"}, []string{"192.0.2.2", "::1"}},
		{"10.0.0.0/8", []string{"10.0.0.0", "10.255.255.255", "::ffff:10.1.2.3"}, []string{"11.0.0.0", "::a00:1"}},
		{"::ffff:10.0.0.0/104", []string{"10.1.2.3"}, []string{"11.0.0.0", "::1"}},
		{"0.0.0.0/0", []string{"192.0.2.1"}, []string{"::1"}},
		{"::/0", []string{"::1", "2001:db8::1"}, []string{"192.0.2.1"}},
		{"2001:db8::/32", []string{"2001:db8::1", "2001:db8::1%eth0"}, []string{"2001:db9::1"}},
		{"2001:DB8::1", []string{"2001:db8::1"}, []string{"2001:db8::2"}},
		{"192.0.2.*", []string{"192.0.2.1", "192.0.2.255", "::ffff:192.0.2.1"}, []string{"192.0.20.1", "::1"}},
		{"192.0.2.?", []string{"192.0.2.1"}, []string{"192.0.2.10"}},
		{"2001:DB8:*", []string{"2001:db8::1"}, []string{"2001:db9::1"}},
		{"*", []string{"192.0.2.1", "::1"}, nil},
		{"!192.0.2.1,192.0.2.0/24", []string{"192.0.2.2"}, []string{"192.0.2.1", "::ffff:192.0.2.1", "198.51.100.1"}},
		{"192.0.2.0/24,!192.0.2.1", []string{"192.0.2.2"}, []string{"192.0.2.1"}},
		{"*,!fe80::/10", []string{"::1"}, []string{"fe80::1", "fe80::1%eth0"}},
		{"!192.0.2.1", nil, []string{"192.0.2.1", "192.0.2.2"}}, // "will never produce a positive result by itself"
		{"*,!*", nil, []string{"192.0.2.1"}},
	} {
		t.Run(c.list, func(t *testing.T) {
			k := authorized(t, `from="`+c.list+`" `+keyText(t, "a"))
			for _, from := range c.allowed {
				if _, err := k.Check(keyOf(t, "a"), addr(from), testNow()); err != nil {
					t.Errorf("Check from %s: %v", from, err)
				}
			}
			for _, from := range c.refused {
				_, err := k.Check(keyOf(t, "a"), addr(from), testNow())
				wantRefused(t, err, BadSource, 1, "may not be used by "+from)
			}
			_, err := k.Check(keyOf(t, "a"), netip.Addr{}, testNow())
			wantRefused(t, err, BadSource, 1, "without an IP address")
		})
	}
}

func TestCheckPlainKeys(t *testing.T) {
	k := authorized(t,
		keyText(t, "a")+" first",
		`expiry-time="20261122120000Z",command="soon" `+keyText(t, "b"),
		`from="192.0.2.1",command="near" `+keyText(t, "c"),
		`from="198.51.100.0/24",command="far" `+keyText(t, "c"),
		`cert-authority `+keyText(t, "ca"),
	)
	now, here := testNow(), addr("192.0.2.1")
	if e, err := k.Check(keyOf(t, "a"), netip.Addr{}, now); err != nil || e.Line != 1 || e.Comment != "first" {
		t.Errorf("Check = %+v, %v, want line 1", e, err)
	}
	if e, err := k.Check(keyOf(t, "b"), here, now); err != nil || e.Role != "soon" {
		t.Errorf("at the last moment: %+v, %v", e, err)
	}
	_, err := k.Check(keyOf(t, "b"), here, now.Add(time.Second))
	wantRefused(t, err, Expired, 2, "keys:2: the key expired at 2026-11-22T12:00:00Z")
	// The first line that admits the key counts.
	for from, role := range map[string]string{"192.0.2.1": "near", "198.51.100.7": "far"} {
		if e, err := k.Check(keyOf(t, "c"), addr(from), now); err != nil || e.Role != role {
			t.Errorf("from %s: %+v, %v, want %s", from, e, err, role)
		}
	}
	_, err = k.Check(keyOf(t, "c"), addr("203.0.113.1"), now)
	wantRefused(t, err, BadSource, 3, "keys:4: ") // both lines are named
	_, err = k.Check(keyOf(t, "d"), here, now)
	wantRefused(t, err, UnknownKey, 0, "no line has the key "+ssh.FingerprintSHA256(keyOf(t, "d")))
	// A CA's key opens nothing by itself.
	_, err = k.Check(keyOf(t, "ca"), here, now)
	wantRefused(t, err, UnknownKey, 0, "no line")
	_, err = k.Check(nil, here, now)
	wantRefused(t, err, UnknownKey, 0, "no key")
	_, err = k.Check(&ssh.Certificate{}, here, now)
	wantRefused(t, err, BadSignature, 0, "no key")
}

func TestForwardingLimits(t *testing.T) {
	k := authorized(t,
		keyText(t, "free"),
		"restrict "+keyText(t, "none"),
		`permitopen="DB.example:5432",permitopen="[2001:db8::1]:443",permitopen="192.0.2.1:*",permitlisten="localhost:8080",permitlisten="*.x:9" `+keyText(t, "some"),
		`permitopen="*:80" `+keyText(t, "port"),
	)
	entry := func(name string) *Entry {
		e, err := k.Check(keyOf(t, name), netip.Addr{}, testNow())
		if err != nil {
			t.Fatal(err)
		}
		return &e
	}
	for _, c := range []struct {
		key, host    string
		port         uint16
		open, listen bool
	}{
		{"free", "anything", 1, true, true},
		{"none", "anything", 1, false, false},
		{"some", "db.example", 5432, true, false},
		{"some", "db.example", 5433, false, false},
		{"some", "xdb.example", 5432, false, false},
		{"some", "2001:db8:0:0::1", 443, true, false},
		{"some", "::ffff:192.0.2.1", 7, true, false},
		{"some", "192.0.2.2", 7, false, false},
		{"some", "localhost", 8080, false, true},
		{"some", "a.X", 9, false, true},
		{"some", "", 8080, false, false},
		{"port", "whoever", 80, true, true},
		{"port", "whoever", 81, false, true},
	} {
		e := entry(c.key)
		if got := e.MayOpen(c.host, c.port); got != c.open {
			t.Errorf("%s: MayOpen(%q, %d) = %v", c.key, c.host, c.port, got)
		}
		if got := e.MayListen(c.host, c.port); got != c.listen {
			t.Errorf("%s: MayListen(%q, %d) = %v", c.key, c.host, c.port, got)
		}
	}
	if got, want := fmt.Sprint(entry("some").PermitOpen), "[DB.example:5432 [2001:db8::1]:443 192.0.2.1:*]"; got != want {
		t.Errorf("permits are written %s, want %s", got, want)
	}
}

func TestPins(t *testing.T) {
	p256 := newP256(t)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k := authorized(t,
		`command="admin",from="192.0.2.0/24",expiry-time="20270101Z" `+textOf(sshKey(t, &p256.PublicKey))+" laptop",
		`permitopen="db:5432" `+keyText(t, "a"),
		textOf(sshKey(t, &p384.PublicKey)),
		textOf(sshKey(t, &newRSA(t, 2048).PublicKey)),
		`cert-authority `+keyText(t, "ca"),
		skKeyText,
	)
	if len(k.Entries()) != 6 {
		t.Fatalf("%d entries, want 6", len(k.Entries()))
	}
	pins := k.Pins()
	if len(pins) != 2 {
		t.Fatalf("%d pins, want 2: %+v", len(pins), pins)
	}
	type equaler interface{ Equal(crypto.PublicKey) bool }
	if !pins[0].Public.(equaler).Equal(&p256.PublicKey) || pins[0].Role != "admin" || pins[0].Comment != "laptop" || pins[0].Line != 1 {
		t.Errorf("first pin = %+v", pins[0])
	}
	if err := pins[0].Admits(addr("192.0.2.9"), testNow()); err != nil {
		t.Error(err)
	}
	wantRefused(t, pins[0].Admits(addr("192.0.3.9"), testNow()), BadSource, 1, "only from")
	wantRefused(t, pins[0].Admits(addr("192.0.2.9"), testNow().AddDate(1, 0, 0)), Expired, 1, "expired")
	if !pins[1].Public.(equaler).Equal(keyOf(t, "a").(ssh.CryptoPublicKey).CryptoPublicKey()) || pins[1].MayOpen("other", 1) {
		t.Errorf("second pin = %+v", pins[1])
	}
}

// skKeyText is a key of a FIDO token in OpenSSH's form (PROTOCOL.u2f): type, key and application "ssh:".
const skKeyText = "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAINdamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1EaAAAABHNzaDo= token"

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "authorized_keys")
	if err := os.WriteFile(file, []byte(keyText(t, "a")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	k, err := LoadAuthorizedKeys(file)
	if err != nil || len(k.Entries()) != 1 || k.Entries()[0].File != file {
		t.Fatalf("LoadAuthorizedKeys = %+v, %v", k, err)
	}
	for _, load := range []func(string) error{
		func(file string) error { _, err := LoadAuthorizedKeys(file); return err },
		func(file string) error { _, err := LoadKnownHosts(file); return err },
	} {
		err = load(filepath.Join(dir, "nowhere"))
		if list := lineErrors(t, err); list[0].Reason != Unreadable || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("no such file: %v", err)
		}
		if list := lineErrors(t, load(dir)); list[0].Reason != Unreadable {
			t.Errorf("a folder: %v", list[0])
		}
	}
	if err := os.Chmod(file, 0o664); err != nil {
		t.Fatal(err)
	}
	_, err = LoadAuthorizedKeys(file)
	if list := lineErrors(t, err); list[0].Reason != OpenFile || !strings.Contains(err.Error(), "chmod go-w") {
		t.Errorf("a file that a group can write: %v", err)
	}
}

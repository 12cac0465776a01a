package sshkeys

//lint:file-ignore SA1019 keys as nobody should make them are what these tests are about

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"fmt"
	"math/big"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// dsaKeyText is a key that `ssh-keygen -t dsa` of OpenSSH 9.2 made.
const dsaKeyText = "ssh-dss AAAAB3NzaC1kc3MAAACBAM+DMZaVDyC6jB0/GFkPHS6KiP38hP4Nl8/y662f11LNahEBgwAWkCgAatQwqLkaIl/sOgHY9Gqw+vJjNQQvnx7thUci" +
	"vJxXmxMSZm2C77iD72cg7EHdJGtRPTPIrh5I3N5d1mLcYK5yefnUjK9rkeOh3uhOYbrK+VA54O//rnxNAAAAFQCOfn4GCQshKvwfQDZQipv8JTYtTwAAAIBA" +
	"hHqnhd3nM6o+IZSA2Revg6bHRvYHXYOjpX+uKL2jQtszNsIe0sWWO3UQsS89aK/FzDlQYpOFY7Sh5KQgfmys9j6ssDMi6cbi+FzBR8ciECCcI/zZAL4aZxzm" +
	"YNvembqCL3WtSyUK9MRafuiA8+nkw4ENYH8J6O1iNmnQtN9MSAAAAIBQi/3yjdswXvuOVYjktu2hLkkk6noVaUj83uqC3/eHkfUyYrM2KoGjPYoPH1HViKVE" +
	"wvRBYM8Y/Lt3GSkPBlkMdQYZ2yg3982ilORLivnLvxSqpPYN9ue0hbpg4+5Hsh0qvbhmOwZCw5cQ9IF1yMFpYuHAH6ScOBWKEod+BzUsQw== dsa"

// bothParsers are the parsers of this package, with what makes a line of a key one of the format.
func bothParsers() map[string]func(data string) error {
	return map[string]func(string) error{
		"authorized_keys": func(data string) error { _, err := ParseAuthorizedKeys("f", []byte(data)); return err },
		"known_hosts":     func(data string) error { _, err := ParseKnownHosts("f", []byte(data)); return err },
	}
}

func TestHostileFiles(t *testing.T) {
	mega := strings.Repeat("x", 1<<20)
	for name, parse := range bothParsers() {
		t.Run(name, func(t *testing.T) {
			for _, c := range []struct {
				name, data string
				count      int // of problems told
				first      LineError
			}{
				{"a line of a megabyte", "# \n" + mega + "\n", 1, LineError{Line: 2, Reason: TooBig}},
				{"a comment of a megabyte", "#" + mega, 1, LineError{Line: 1, Reason: TooBig}},
				{"more than the greatest file", strings.Repeat("#\n", MaxFileBytes/2) + "#", 1, LineError{Line: 0, Reason: TooBig}},
				{"100,000 empty lines", strings.Repeat("\n", 100_000), 1, LineError{Line: MaxLines + 1, Reason: TooMany}},
				{"100,000 bad lines", strings.Repeat("x\n", 100_000), maxProblems + 2, LineError{Line: 1, Reason: BadFormat}},
				{"NUL bytes", strings.Repeat("\x00", 1000), 1, LineError{Line: 1, Reason: BadFormat}},
				{"a binary file", "\x7fELF\x02\x01\x01\x00\n\xff\xfe\n", 2, LineError{Line: 1, Reason: BadFormat}},
				{"no UTF-8", "\xff\xfe\xfd", 1, LineError{Line: 1}},
			} {
				t.Run(c.name, func(t *testing.T) {
					list := lineErrors(t, parse(c.data))
					if len(list) != c.count {
						t.Fatalf("%d problems, want %d; the first is %v", len(list), c.count, list[0])
					}
					if got := list[0]; got.Line != c.first.Line || c.first.Reason != "" && got.Reason != c.first.Reason {
						t.Errorf("%v (%s), want line %d, %s", got, got.Reason, c.first.Line, c.first.Reason)
					}
					for _, e := range list {
						if text := e.Error(); len(text) > 1000 || strings.ContainsAny(text, "\x00\x7f\n") {
							t.Errorf("the error %q is not fit for a log line", text)
						}
					}
				})
			}
		})
	}
}

// TestFileOfTheGreatestSize has as many lines as a file may have, and the checks that cost most in it.
func TestFileOfTheGreatestSize(t *testing.T) {
	var keys, hosts strings.Builder
	key := keyText(t, "a")
	for i := range MaxLines {
		fmt.Fprintf(&keys, "command=\"role%d\",from=\"!10.0.0.0/8,*\" %s\n", i, key)
		fmt.Fprintf(&hosts, "!*a*b*c*d,*e*f*%d %s\n", i, key)
	}
	k := authorized(t, strings.TrimSuffix(keys.String(), "\n"))
	if len(k.Entries()) != MaxLines {
		t.Fatalf("%d entries, want %d", len(k.Entries()), MaxLines)
	}
	_, err := k.Check(keyOf(t, "a"), addr("10.1.2.3"), testNow())
	wantRefused(t, err, BadSource, 1, "f")
	if n := strings.Count(err.Error(), "\n") + 1; n != maxRefusals {
		t.Errorf("%d lines are named, want %d", n, maxRefusals)
	}
	h := known(t, strings.TrimSuffix(hosts.String(), "\n"))
	name := strings.Repeat("ef", 100) + "x"
	wantRefused(t, h.Check(name, 22, netip.Addr{}, keyOf(t, "b"), testNow()), UnknownHost, 0, "")
}

func TestWeakKeys(t *testing.T) {
	weak := map[string]string{
		"RSA 1024": textOf(sshKey(t, &newRSA(t, 1024).PublicKey)),
		"RSA 2047": textOf(sshKey(t, &newRSA(t, 2047).PublicKey)),
		"DSA":      dsaKeyText,
	}
	for name, text := range weak {
		t.Run(name, func(t *testing.T) {
			for file, parse := range bothParsers() {
				lines := []string{text, "cert-authority " + text}
				if file == "known_hosts" {
					lines = []string{"host " + text, "@cert-authority * " + text}
				}
				for _, line := range lines {
					list := lineErrors(t, parse(line))
					if len(list) != 1 || list[0].Reason != WeakKey || !strings.Contains(list[0].Error(), "Ed25519") {
						t.Errorf("%s: %v", file, list)
					}
				}
			}
			key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			// It can be revoked all the same.
			wantRefused(t, known(t, "@revoked * "+text).Check("host", 22, netip.Addr{}, key, testNow()), Revoked, 1, "revoked")
			_, err = authorized(t, keyText(t, "a")).Check(key, netip.Addr{}, testNow())
			wantRefused(t, err, UnknownKey, 0, "")
		})
	}
}

func TestAppendAuthorizedKeyRefuses(t *testing.T) {
	good := ed25519.PublicKey(make([]byte, 32))
	point := newP256(t).PublicKey
	for _, c := range []struct {
		name    string
		pub     any
		comment string
		want    string
	}{
		{"a second line", good, "a\nssh-ed25519 AAAA", "one line"},
		{"carriage return", good, "a\r", "one line"},
		{"NUL", good, "a\x00", "one line"},
		{"next line of Unicode", good, "a\u0085b", "one line"},
		{"no UTF-8", good, "\xff", "one line"},
		{"space before", good, " a", "white space"},
		{"long", good, strings.Repeat("x", MaxLineBytes), "longer than"},
		{"no key", nil, "", "is no key"},
		{"private key", ed25519.PrivateKey(make([]byte, 64)), "", "is no key"},
		{"short Ed25519", good[:31], "", "31"},
		{"nil ECDSA", (*ecdsa.PublicKey)(nil), "", "empty"},
		{"empty ECDSA", &ecdsa.PublicKey{}, "", "empty"},
		{"ECDSA without a point", &ecdsa.PublicKey{Curve: elliptic.P256()}, "", "empty"},
		{"off the curve", &ecdsa.PublicKey{Curve: elliptic.P256(), X: point.X, Y: new(big.Int).Add(point.Y, big.NewInt(1))}, "", "no point"},
		{"P-224", &ecdsa.PublicKey{Curve: elliptic.P224(), X: elliptic.P224().Params().Gx, Y: elliptic.P224().Params().Gy}, "", "P-256"},
		{"short RSA", &newRSA(t, 1024).PublicKey, "", "2048 bits"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, err := AppendAuthorizedKey([]byte("before"), c.pub, c.comment)
			if err == nil || !strings.Contains(err.Error(), c.want) || string(b) != "before" {
				t.Errorf("AppendAuthorizedKey = %q, %v, want an error that says %q", b, err, c.want)
			}
		})
	}
}

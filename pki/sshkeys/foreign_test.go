package sshkeys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// TestForeignKeygenKeys reads the .pub files of ssh-keygen with options in front, and finds each key.
func TestForeignKeygenKeys(t *testing.T) {
	o := newOpenSSH(t)
	var lines []string
	kinds := map[string][]string{
		"ed25519": {"-t", "ed25519"}, "p256": {"-t", "ecdsa", "-b", "256"}, "p384": {"-t", "ecdsa", "-b", "384"},
		"p521": {"-t", "ecdsa", "-b", "521"}, "rsa": {"-t", "rsa", "-b", "2048"},
	}
	for name, args := range kinds {
		lines = append(lines, `command="`+name+`",no-pty `+o.keygen(name, args...))
	}
	file := o.write("authorized_keys", strings.Join(lines, "\r\n")+"\r\n")
	k, err := LoadAuthorizedKeys(file)
	if err != nil {
		t.Fatal(err)
	}
	for name := range kinds {
		e, err := k.Check(o.key(name+".pub"), netip.Addr{}, testNow())
		if err != nil || e.Role != name || e.Comment != name+"@test" {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
	}
	if n := len(k.Pins()); n != 2 {
		t.Errorf("%d pins, want those of Ed25519 and P-256", n)
	}
}

// TestForeignKeygenRefuses has keys of ssh-keygen that are too weak.
func TestForeignKeygenRefuses(t *testing.T) {
	o := newOpenSSH(t)
	for name, args := range map[string][]string{"rsa1024": {"-t", "rsa", "-b", "1024"}, "rsa2040": {"-t", "rsa", "-b", "2040"}} {
		_, err := ParseAuthorizedKeys("f", []byte(o.keygen(name, args...)))
		if list := lineErrors(t, err); len(list) != 1 || list[0].Reason != WeakKey {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestForeignKeygenReadsOurLines has ssh-keygen -l read what AppendAuthorizedKey writes, and we it again.
func TestForeignKeygenReadsOurLines(t *testing.T) {
	o := newOpenSSH(t)
	var file []byte
	var want []string
	var pubs []crypto.PublicKey
	seed := ed25519.NewKeyFromSeed(make([]byte, 32))
	pubs = append(pubs, seed.Public(), &newP256(t).PublicKey, &newRSA(t, 3072).PublicKey)
	for _, curve := range []elliptic.Curve{elliptic.P384(), elliptic.P521()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		pubs = append(pubs, &key.PublicKey)
	}
	for i, pub := range pubs {
		comment := fmt.Sprintf("key %d, \"quoted\" # ümlaut", i)
		if i == 3 {
			comment = ""
		}
		var err error
		if file, err = AppendAuthorizedKey(file, pub, comment); err != nil {
			t.Fatal(err)
		}
		want = append(want, ssh.FingerprintSHA256(sshKey(t, pub)))
	}
	out := o.run("ssh-keygen", "-l", "-f", o.write("authorized_keys", string(file)))
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != len(want) {
		t.Fatalf("ssh-keygen -l tells %d keys, want %d:\n%s", len(lines), len(want), out)
	}
	for i, line := range lines {
		if !strings.Contains(line, " "+want[i]+" ") {
			t.Errorf("ssh-keygen -l says %q of key %d, want %s", line, i, want[i])
		}
	}
	k, err := ParseAuthorizedKeys("f", file)
	if err != nil || len(k.Entries()) != len(pubs) {
		t.Fatalf("what we wrote: %v", err)
	}
	for i, pub := range pubs {
		if e, err := k.Check(sshKey(t, pub), netip.Addr{}, testNow()); err != nil || e.Line != i+1 {
			t.Errorf("key %d: %+v, %v", i, e, err)
		}
	}
}

// TestForeignKeygenCertificates has ssh-keygen sign certificates of users, which a cert-authority line admits or not.
func TestForeignKeygenCertificates(t *testing.T) {
	const id = "spiffe://cluster.local/ns/default/sa/web"
	for ca, args := range map[string][]string{
		"ed25519": {"-t", "ed25519"}, "ecdsa": {"-t", "ecdsa", "-b", "256"}, "rsa": {"-t", "rsa", "-b", "2048"},
	} {
		t.Run(ca, func(t *testing.T) {
			o := newOpenSSH(t)
			k := authorized(t, "cert-authority "+o.keygen("ca", args...), `cert-authority,principals="alice" `+strings.TrimSpace(o.read("ca.pub")))
			o.keygen("user", "-t", "ed25519")
			from, now := addr("192.0.2.1"), time.Now()
			check := func(args ...string) (Entry, error) {
				t.Helper()
				return k.Check(o.sign("ca", "user", args...), from, now)
			}
			if e, err := check("-n", "web,"+id, "-V", "-1h:+1h"); err != nil || e.Principal != id || e.Line != 1 || !e.PortForwarding {
				t.Errorf("SPIFFE ID: %+v, %v", e, err)
			}
			if e, err := check("-n", "alice", "-V", "-1h:+1h", "-O", "clear"); err != nil || e.Principal != "alice" || e.Line != 2 || e.PortForwarding {
				t.Errorf("name: %+v, %v", e, err)
			}
			if e, err := check("-n", "alice", "-O", "force-command=backup all", "-O", "source-address=192.0.2.0/24"); err != nil || e.Role != "backup all" || !e.Expires.IsZero() {
				t.Errorf("options: %+v, %v", e, err)
			}
			_, err := check("-n", "mallory")
			wantRefused(t, err, BadPrincipal, 1, "keys:2: the certificate is for \"mallory\"")
			_, err = check("-n", id, "-V", "-2h:-1h")
			wantRefused(t, err, Expired, 1, "expired at")
			_, err = check("-n", id, "-V", "+1h:+2h")
			wantRefused(t, err, NotYetValid, 1, "not valid before")
			_, err = check("-n", id, "-O", "source-address=198.51.100.0/24")
			wantRefused(t, err, BadSource, 1, "only from")
			_, err = check("-n", id, "-O", "critical:x@example.com=1")
			wantRefused(t, err, BadOption, 1, "x@example.com")
			_, err = check("-n", id, "-O", "verify-required")
			wantRefused(t, err, BadOption, 1, "verify-required")
			_, err = check("-n", id, "-h")
			wantRefused(t, err, BadType, 1, "for a host")
			_, err = check()
			wantRefused(t, err, BadPrincipal, 1, "nobody")
			if ca == "rsa" {
				_, err = check("-n", id, "-t", "ssh-rsa")
				wantRefused(t, err, WeakKey, 1, "SHA-1")
			}
		})
	}
}

// TestForeignKeygenReadsOurCertificates has ssh-keygen -L tell what Template.Sign made.
func TestForeignKeygenReadsOurCertificates(t *testing.T) {
	o := newOpenSSH(t)
	const id = "spiffe://cluster.local/ns/default/sa/web"
	for name, args := range map[string][]string{"ed": {"-t", "ed25519"}, "ec": {"-t", "ecdsa"}, "rsa": {"-t", "rsa", "-b", "2048"}} {
		o.keygen(name, args...)
		for _, host := range []bool{false, true} {
			template := Template{ID: id, Host: host, Principals: []string{"web.example"}, Serial: 4711,
				NotBefore: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), NotAfter: time.Date(2036, 1, 2, 3, 4, 5, 0, time.UTC)}
			cert, err := template.Sign(o.signer(name), keyOf(t, "subject"))
			if err != nil {
				t.Fatal(err)
			}
			out := o.run("ssh-keygen", "-L", "-f", o.write("cert.pub", textOf(cert)+"\n"))
			want := []string{"Key ID: \"" + id + "\"", "Serial: 4711", id + "\n", "web.example\n", "from 2026-01-02T03:04:05 to 2036-01-02T03:04:05",
				ssh.FingerprintSHA256(o.signer(name).PublicKey()), "Critical Options: (none)"}
			if host {
				want = append(want, "host certificate", "Extensions: (none)")
			} else {
				want = append(want, "user certificate", "permit-port-forwarding\n")
			}
			for _, text := range want {
				if !strings.Contains(out, text) {
					t.Errorf("%s, host %v: ssh-keygen -L does not say %q:\n%s", name, host, text, out)
				}
			}
			if strings.Contains(out, "permit-pty") {
				t.Error("the certificate permits a terminal")
			}
		}
	}
}

// TestForeignKeygenHashedHosts has ssh-keygen -H hash the names of a file, and -F find them: it and we must agree.
func TestForeignKeygenHashedHosts(t *testing.T) {
	o := newOpenSSH(t)
	plain := strings.Join([]string{
		"gw.example,192.0.2.1 " + keyText(t, "gw"),
		"[gw.example]:15022 " + keyText(t, "port"),
		"2001:db8::1 " + keyText(t, "six"),
		"*.wild.example,!no.wild.example " + keyText(t, "wild"),
		"@revoked revoked.example " + keyText(t, "revoked"),
	}, "\n") + "\n"
	o.write("known_hosts", plain)
	o.run("ssh-keygen", "-q", "-H", "-f", "known_hosts")
	hashed := o.read("known_hosts")
	if strings.Contains(hashed, "gw.example") || !strings.Contains(hashed, "|1|") {
		t.Fatalf("ssh-keygen -H left the names as they are:\n%s", hashed)
	}
	k, err := LoadKnownHosts(o.dir + "/known_hosts")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		host string
		port uint16
		key  string
	}{
		{"gw.example", 22, "gw"}, {"GW.EXAMPLE", 22, "gw"}, {"192.0.2.1", 22, "gw"}, {"gw.example", 15022, "port"}, {"2001:db8::1", 22, "six"},
		{"a.wild.example", 22, "wild"}, {"no.wild.example", 22, ""}, {"wild.example", 22, ""}, {"other.example", 22, ""},
	} {
		query := strings.ToLower(c.host)
		if c.port != 22 {
			query = fmt.Sprintf("[%s]:%d", query, c.port)
		}
		out, found := o.try("ssh-keygen", "-F", query, "-f", "known_hosts")
		key := c.key
		if key == "" {
			key = "wild"
		}
		err := k.Check(c.host, c.port, netip.Addr{}, keyOf(t, key), testNow())
		if found != (c.key != "") || found && !strings.Contains(out, keyText(t, c.key)) {
			t.Errorf("ssh-keygen -F %s: %q, want the key %q", query, out, c.key)
		}
		if (err == nil) != found {
			t.Errorf("Check(%s, %d): %v; ssh-keygen found it: %v", c.host, c.port, err, found)
		}
	}
	wantRefused(t, k.Check("gw.example", 22, netip.Addr{}, keyOf(t, "revoked"), testNow()), Revoked, lineOf(hashed, "@revoked"), "revoked")
}

// lineOf is the number of the first line that begins with prefix.
func lineOf(text, prefix string) int {
	for i, line := range strings.Split(text, "\n") {
		if strings.HasPrefix(line, prefix) {
			return i + 1
		}
	}
	return 0
}

// sshServer accepts connections with a host key and answers every command with the exit status 0. It returns its port.
func sshServer(t *testing.T, hostKey ssh.Signer) uint16 {
	t.Helper()
	config := &ssh.ServerConfig{NoClientAuth: true}
	config.AddHostKey(hostKey)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { // ends when the listener is closed; the cleanup waits for it
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { // ends with the client's connection or after the deadline
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(time.Minute))
				serveSSH(c, config)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

// serveSSH serves one connection.
func serveSSH(c net.Conn, config *ssh.ServerConfig) {
	conn, channels, requests, err := ssh.NewServerConn(c, config)
	if err != nil {
		return
	}
	var rest sync.WaitGroup
	defer rest.Wait()
	defer conn.Close()
	rest.Go(func() { ssh.DiscardRequests(requests) }) // ends with the connection
	for channel := range channels {
		stream, requests, err := channel.Accept()
		if err != nil {
			return
		}
		for r := range requests {
			_ = r.Reply(true, nil)
			if r.Type == "exec" {
				_, _ = stream.SendRequest("exit-status", false, make([]byte, 4))
				break
			}
		}
		rest.Go(func() { ssh.DiscardRequests(requests) }) // ends with the channel
		_ = stream.Close()
	}
}

// TestForeignSSHAgrees connects with ssh(1) to hosts whose keys a file knows or not: ssh and Check must come to the
// same verdict, but where Check is stricter on purpose.
func TestForeignSSHAgrees(t *testing.T) {
	o := newOpenSSH(t)
	o.keygen("ca", "-t", "ed25519")
	o.keygen("host", "-t", "ed25519")
	hostKey := o.signer("host")
	hostText, other, caText := textOf(hostKey.PublicKey()), keyText(t, "other"), textOf(o.key("ca.pub"))
	certified := func(args ...string) ssh.Signer {
		signer, err := ssh.NewCertSigner(o.sign("ca", "host", append([]string{"-h"}, args...)...), hostKey)
		if err != nil {
			t.Fatal(err)
		}
		return signer
	}
	valid := certified("-n", "localhost,"+"spiffe://cluster.local/ns/default/sa/gw", "-V", "-1h:+1h")
	for _, c := range []struct {
		name   string
		server ssh.Signer
		lines  string // PORT is the server's port
		alias  string
		want   bool
		strict bool // Check refuses what ssh takes
	}{
		{name: "unknown", server: hostKey, lines: "other " + hostText},
		{name: "empty file", server: hostKey, lines: "#"},
		{name: "with port", server: hostKey, lines: "[localhost]:PORT " + hostText, want: true},
		{name: "with another port", server: hostKey, lines: "[localhost]:1 " + hostText},
		{name: "without port", server: hostKey, lines: "localhost " + hostText, want: true},
		{name: "another key without port", server: hostKey, lines: "localhost " + other},
		{name: "another key with port, this one without", server: hostKey, lines: "[localhost]:PORT " + other + "\nlocalhost " + hostText},
		{name: "one of two", server: hostKey, lines: "[localhost]:PORT " + other + "\n[localhost]:PORT " + hostText, want: true},
		{name: "changed", server: hostKey, lines: "[localhost]:PORT " + other},
		{name: "wildcard", server: hostKey, lines: "*host " + hostText, want: true},
		{name: "wildcard for everything", server: hostKey, lines: "* " + hostText, want: true},
		{name: "wildcard in the port", server: hostKey, lines: "[localhost]:* " + hostText, want: true},
		{name: "question mark", server: hostKey, lines: "?ocalhost " + hostText, want: true},
		{name: "negated", server: hostKey, lines: "*,!localhost,![localhost]:* " + hostText},
		{name: "negated without port only", server: hostKey, lines: "*,!localhost " + hostText, want: true},
		{name: "upper case", server: hostKey, lines: "LOCALHOST " + hostText, want: true},
		{name: "revoked", server: hostKey, lines: "@revoked * " + hostText + "\nlocalhost " + hostText},
		{name: "revoked elsewhere", server: hostKey, lines: "@revoked elsewhere " + hostText + "\nlocalhost " + hostText, want: true, strict: true},
		{name: "CA's key as a host's", server: o.signer("ca"), lines: "@cert-authority * " + caText},
		{name: "certificate", server: valid, lines: "@cert-authority localhost " + caText, want: true},
		{name: "certificate with port", server: valid, lines: "@cert-authority [localhost]:PORT " + caText, want: true},
		{name: "certificate of another host's CA", server: valid, lines: "@cert-authority elsewhere " + caText},
		{name: "certificate of an unknown CA, key known", server: valid, lines: "@cert-authority * " + other + "\nlocalhost " + hostText, want: true},
		{name: "certificate for another name", server: certified("-n", "elsewhere"), lines: "@cert-authority * " + caText},
		{name: "certificate for a pattern", server: certified("-n", "local*"), lines: "@cert-authority * " + caText},
		{name: "certificate expired", server: certified("-n", "localhost", "-V", "-2h:-1h"), lines: "@cert-authority * " + caText},
		{name: "certificate of a revoked CA", server: valid, lines: "@revoked * " + caText + "\n@cert-authority * " + caText},
		{name: "identity", server: valid, lines: "@cert-authority spiffe://cluster.local/* " + caText, alias: "spiffe://cluster.local/ns/default/sa/gw", want: true},
		{name: "other identity", server: valid, lines: "@cert-authority spiffe://cluster.local/* " + caText, alias: "spiffe://cluster.local/ns/default/sa/db"},
	} {
		t.Run(c.name, func(t *testing.T) {
			port := sshServer(t, c.server)
			lines := strings.ReplaceAll(c.lines, "PORT", strconv.Itoa(int(port)))
			file := o.write("known_hosts", lines+"\n")
			args := []string{"ssh", "-F", os.DevNull, "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "UserKnownHostsFile=" + file,
				"-o", "GlobalKnownHostsFile=" + os.DevNull, "-o", "AddressFamily=inet", "-p", strconv.Itoa(int(port))}
			host := "localhost"
			if c.alias != "" {
				host = c.alias
				args = append(args, "-o", "HostKeyAlias="+c.alias)
			}
			out, ok := o.try(append(args, "nobody@localhost", "true")...)
			if ok != c.want {
				t.Errorf("ssh took it: %v, want %v: %s", ok, c.want, out)
			}
			err := known(t, lines).Check(host, port, addr("127.0.0.1"), c.server.PublicKey(), time.Now())
			if got := err == nil; got != (c.want && !c.strict) {
				t.Errorf("Check: %v; ssh took it: %v", err, ok)
			}
		})
	}
}

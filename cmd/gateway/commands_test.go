package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"culvert/tunnel/tunneltest"
)

// TestBadStart starts gateways with one fault each: the exit code tells whose fault it is, and one line
// says what it is and what would be right.
func TestBadStart(t *testing.T) {
	m := newMesh(t)
	m.identity("other", "spiffe://cluster.local/ns/default/sa/other")
	m.write("open.key", must(os.ReadFile(m.path("exit.key"))))
	if err := os.Chmod(m.path("open.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	expired(t, m)
	m.write("garbage.pem", []byte("no PEM at all\n"))
	taken := listenLoopback(t)
	_, port, _ := net.SplitHostPort(taken.Addr().String())
	with := func(cert, key string, more ...string) []string {
		return append([]string{"--cert", m.path(cert), "--key", m.path(key), "--roots", m.path("roots.pem")}, more...)
	}
	tests := []struct {
		name string
		args []string
		code int
		want []string
	}{
		{"no certificate file", with("none.pem", "exit.key", "--hbone", "127.0.0.1:0"), 2, []string{"--cert: ", "none.pem", "no such file"}},
		{"no PEM", with("garbage.pem", "exit.key", "--hbone", "127.0.0.1:0"), 2, []string{"--cert: ", "garbage.pem", "PEM"}},
		{"key of another", with("exit.pem", "other.key", "--hbone", "127.0.0.1:0"), 2, []string{"--key: ", "other.key: is not the key of cert "}},
		{"key that others can read", with("exit.pem", "open.key", "--hbone", "127.0.0.1:0"), 2, []string{"--key: ", "chmod 600"}},
		{"expired", []string{"--cert", m.path("old.pem"), "--key", m.path("old.key"), "--roots", m.path("old-roots.pem"), "--hbone", "127.0.0.1:0"}, 2, []string{"--cert: ", "old.pem", "expired"}},
		{"certificate alone", []string{"--cert", m.path("exit.pem"), "--hbone", "127.0.0.1:0"}, 2, []string{"--key: is missing; ", "--roots: is missing; "}},
		{"port in use", with("exit.pem", "exit.key", "--hbone", taken.Addr().String()), 1, []string{"listen on 127.0.0.1:" + port + ": the port is in use by ", "choose another port"}},
		{"admin port in use", with("exit.pem", "exit.key", "--hbone", "127.0.0.1:0", "--admin", taken.Addr().String()), 1, []string{"admin address: listen on 127.0.0.1:" + port}},
		{"address of another host", with("exit.pem", "exit.key", "--hbone", "192.0.2.1:15008"), 1, []string{"listen on 192.0.2.1:15008: this host does not have that address"}},
		{"state is a file", []string{"--state", m.path("exit.pem"), "--hbone", "127.0.0.1:0"}, 2, []string{"--state: " + m.path("exit.pem")}},
		{"nothing to do", nil, 2, []string{"nothing to listen on", "gateway demo"}},
		{"unknown flag", []string{"--sock", "127.0.0.1:0"}, 2, []string{"unknown flag: --sock", "gateway run --help"}},
		{"unknown argument", []string{"now"}, 2, []string{"`gateway run` takes no argument, and got \"now\"; `gateway run --help`"}},
		{"SOCKS without a way out", []string{"--socks", "127.0.0.1:0"}, 2, []string{"--socks: leads nowhere; give --via HOP"}},
		{"SOCKS off loopback", []string{"--socks", "0.0.0.0:1080", "--via", "gw:15008"}, 2, []string{"--socks: SOCKS5 on 0.0.0.0:1080 is reachable from other hosts", "--open-proxy", "--proxy-users"}},
		{"admin off loopback", []string{"--hbone", ":15008", "--admin", ":15000"}, 2, []string{"--admin: the admin address :15000 is reachable from other hosts", "--open-admin"}},
		{"hop without port", []string{"--socks", "127.0.0.1:0", "--via", "gw.example"}, 2, []string{"--via: there is no hop \"gw.example\"; it should be host:port"}},
		{"forward without destination", []string{"--forward", "127.0.0.1:8080", "--via", "gw:1"}, 2, []string{`--forward: "127.0.0.1:8080" is not LISTEN=DEST`}},
		{"forward to no port", []string{"--forward", "127.0.0.1:8080=web", "--via", "gw:1"}, 2, []string{"--forward: ", `"web"`, "port"}},
		{"bad principal", []string{"--hbone", ":15008", "--allow", "https://x"}, 2, []string{"--allow: ", `"https://x"`}},
		{"bad egress", []string{"--hbone", ":15008", "--egress", "10.0.0.1/8"}, 2, []string{"--egress: ", `"10.0.0.1/8" has bits set`}},
		{"bad log level", []string{"--hbone", ":15008", "--log-level", "loud"}, 2, []string{`--log-level: "loud" is no log level`}},
		{"time without unit", []string{"--hbone", ":15008", "--drain", "5"}, 2, []string{`--drain: "5" is not a time with its unit, such as 30s`}},
		{"too little memory", []string{"--hbone", ":15008", "--memory", "5"}, 2, []string{"--memory: 5 is too little to run with"}},
		{"no users file", []string{"--socks", "127.0.0.1:0", "--via", "gw:1", "--proxy-users", m.path("none")}, 2, []string{"--proxy-users: stat " + m.path("none")}},
		{"no hop", []string{"--socks", "127.0.0.1:0", "--via", ""}, 2, []string{"--via: it names no hop; give the host:port"}},
		{"hop with a bad port", []string{"--socks", "127.0.0.1:0", "--via", "gw:x"}, 2, []string{`--via: "gw:x" is no address of a hop: the port is no number; it should be host:port`}},
		{"bad memory", []string{"--hbone", ":15008", "--memory", "lots"}, 2, []string{`--memory: "lots" is not a size such as 512MiB`}},
		{"two faults at once", []string{"--hbone", "x:y:z", "--allow", "a//b"}, 2, []string{"--hbone: ", "--allow: "}},
		{"file and flags", []string{"-c", m.path("none.yaml"), "--socks", "127.0.0.1:0"}, 2, []string{"none.yaml: cannot be read: no such file", "--socks: cannot be given together with -c"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := runGateway(t, append([]string{"run"}, tt.args...)...)
			if code != tt.code || stdout != "" {
				t.Errorf("exit code = %d, stdout %q, want %d and none", code, stdout, tt.code)
			}
			for _, want := range tt.want {
				if !strings.Contains(stderr, want) {
					t.Errorf("stderr = %q, want in it %q", stderr, want)
				}
			}
			if strings.Contains(stderr, "Usage:") || strings.Contains(stderr, "goroutine ") || strings.Count(stderr, "\n") > 3 {
				t.Errorf("stderr is not one clear line for each fault:\n%s", stderr)
			}
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// expired writes old.pem, old.key and old-roots.pem: an identity whose time is over.
func expired(t *testing.T, m *mesh) {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(time.Hour), Subject: pkix.Name{Organization: []string{"test"}},
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour),
		URIs:        []*url.URL{must(url.Parse("spiffe://cluster.local/ns/default/sa/old"))},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	write := func(name, kind string, der []byte) {
		m.write(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	write("old-roots.pem", "CERTIFICATE", must(x509.CreateCertificate(rand.Reader, root, root, key.Public(), key)))
	write("old.pem", "CERTIFICATE", must(x509.CreateCertificate(rand.Reader, leaf, root, key.Public(), key)))
	write("old.key", "PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(key)))
}

func TestCheck(t *testing.T) {
	m := newMesh(t)
	file := m.write("gw.yaml", []byte(right+m.yaml("exit")))
	code, stdout, stderr := runGateway(t, "check", "-c", file)
	if code != 0 || stdout != file+" is right: 3 listeners, 1 hop, 3 routes\n" {
		t.Errorf("check of a right file = %d, %q, %q", code, stdout, stderr)
	}
	file = m.write("gw.yaml", []byte(right+m.yaml("nobody")+"nonsense: 1\n"))
	code, _, stderr = runGateway(t, "check", "-c", file)
	for _, want := range []string{"nobody.pem: cannot be read", "nobody.key: cannot be read", `gw.yaml:14: unknown field "nonsense"`} {
		if code != exitUsage || !strings.Contains(stderr, want) {
			t.Errorf("check = %d, %q, want %d and %q", code, stderr, exitUsage, want)
		}
	}
	code, _, stderr = runGateway(t, "check", "--no-files", "-c", file)
	if code != exitUsage || strings.Count(stderr, "\n") != 1 {
		t.Errorf("check --no-files = %d, %q, want the unknown field alone", code, stderr)
	}
	if code, _, stderr = runGateway(t, "check"); code != exitUsage || !strings.Contains(stderr, "--config: no configuration is named; give -c FILE") {
		t.Errorf("check without a file = %d, %q", code, stderr)
	}
}

func TestUsersFileIsChecked(t *testing.T) {
	m := newMesh(t)
	m.write("users", []byte("no colon here\n"))
	text := strings.Replace(right, "address: 127.0.0.1:1080", "address: 127.0.0.1:1080, socks5: {usersFile: users}", 1)
	file := m.write("gw.yaml", []byte(text))
	code, _, stderr := runGateway(t, "check", "-c", file)
	if code != exitUsage || !strings.Contains(stderr, "gw.yaml:2: usersFile: ") {
		t.Errorf("check = %d, %q, want the users file's fault at its line", code, stderr)
	}
}

func TestCertMakesWhatRunTakes(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	steps := [][]string{
		{"cert", "ca", "ca", "--trust-domain", "example.org"},
		{"cert", "issue", "spiffe://example.org/ns/shop/sa/gw1", "--name", "gw1.example.org", "--ttl", "24h"},
		{"cert", "show", "gw1.pem", "gw1.key"},
	}
	var out tunneltest.Log
	for _, args := range steps {
		if code := execute(t.Context(), args, &out, &out); code != 0 {
			t.Fatalf("%v = %d: %s", args, code, out.String())
		}
	}
	for _, want := range []string{"made a CA for trust domain example.org", "issued spiffe://example.org/ns/shop/sa/gw1", "gw1.pem, block 1", "gw1.key, block 1"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("output = %s, want in it %q", out.String(), want)
		}
	}
	if key := must(os.ReadFile("gw1.key")); strings.Contains(out.String(), strings.Split(string(key), "\n")[1]) {
		t.Error("the key was printed")
	}
	for _, args := range [][]string{
		{"cert", "issue", "spiffe://example.org/ns/shop/sa/gw1"}, // it is there
		{"cert", "ca", "ca"}, // so is the CA
		{"cert", "issue", "--ca", "none", "spiffe://example.org/ns/a/sa/b"}, // no CA
		{"cert", "issue", "spiffe://elsewhere.org/ns/a/sa/b"},               // not this CA's trust domain
		{"cert", "show", "none.pem"},
	} {
		var fault tunneltest.Log
		if code := execute(t.Context(), args, &fault, &fault); code != exitFailure || strings.Count(fault.String(), "\n") > 2 {
			t.Errorf("%v = %d: %q, want %d and a line for each fault", args, code, fault.String(), exitFailure)
		}
	}
	if code := execute(t.Context(), []string{"cert", "issue", "gw1"}, &out, &out); code != exitUsage {
		t.Errorf("cert issue of no identity = %d, want %d", code, exitUsage)
	}
}

func TestPing(t *testing.T) {
	m := newMesh(t)
	exit := m.runReady("exit", "--hbone")
	m.identity("other", "spiffe://cluster.local/ns/other/sa/x")
	closed := freeAddress(t)
	silent := listenLoopback(t)
	file := m.write("gw.yaml", []byte(m.yaml("entry")+fmt.Sprintf(`listeners: [{name: apps, kind: socks5, address: "127.0.0.1:1"}]
routes: [{via: [exit]}]
hops:
  exit: {address: "%[1]s"}
  wrong: {address: "%[1]s", identity: spiffe://cluster.local/ns/default/sa/somebody}
  corp: {address: "%[2]s", proxy: http}
  down: {address: "%[3]s", proxy: socks5}
  lb: {address: "%[1]s", tun: GRPC}
  plain: {address: "%[2]s", tun: GRPC}
  clear: {address: "%[2]s", tun: GRPC, tls: {none: true}}
`, exit.address, exit.admin, closed)))
	tests := []struct {
		name string
		args []string
		code int
		want string
	}{
		{"address", append(m.flags("entry"), exit.address), 0, "identity   spiffe://cluster.local/ns/default/sa/exit"},
		{"hop of a file", []string{"-c", file, "exit"}, 0, "round trip "},
		{"wrong identity", []string{"-c", file, "wrong"}, 1, "sa/exit"},
		{"unknown hop", []string{"-c", file, "exti"}, 2, `did you mean "exit"?`},
		{"other namespace", append(m.flags("other"), exit.address), 1, "refused"},
		{"nothing listens", append(m.flags("entry"), closed), 1, "nothing listens on port"},
		{"says nothing", append(m.flags("entry"), "--timeout", "300ms", silent.Addr().String()), 1, "the hop does not answer in TLS"},
		{"speaks plain HTTP", append(m.flags("entry"), exit.admin), 1, "the hop does not speak TLS on this port"},
		{"a proxy", []string{"-c", file, "corp"}, 0, "a proxy of others (proxy: http)"},
		{"a proxy that is down", []string{"-c", file, "down"}, 1, "is the proxy running"},
		{"a balancer with another name", []string{"-c", file, "lb"}, 1, "in tls.serverName of the hop"},
		{"a balancer without TLS", []string{"-c", file, "plain"}, 1, "tls: {none: true}"},
		{"a balancer in the clear", []string{"-c", file, "clear"}, 0, "TCP, without TLS"},
		{"no such name", append(m.flags("entry"), "no-such-host.invalid:15008"), 1, "does not resolve"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out tunneltest.Log
			code := execute(t.Context(), append([]string{"ping"}, tt.args...), &out, &out)
			if code != tt.code || !strings.Contains(out.String(), tt.want) {
				t.Errorf("ping = %d, %q, want %d and %q", code, out.String(), tt.code, tt.want)
			}
		})
	}
}

func TestVersionHelpAndCompletion(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"version"}, "culvert gateway "},
		{nil, "gateway demo"},
		{[]string{"run", "--help"}, "--hbone ADDR"},
		{[]string{"completion", "bash"}, "bash completion V2 for gateway"},
		{[]string{"__complete", "run", "--log-level", ""}, "debug\ninfo\nwarn\nerror\n"},
	} {
		var out tunneltest.Log
		if code := execute(t.Context(), tt.args, &out, &out); code != 0 || !strings.Contains(out.String(), tt.want) {
			t.Errorf("%v = %d, %q, want %q", tt.args, code, out.String(), tt.want)
		}
	}
}

// TestUsageSaysTheNextStep tries command lines that lack something, or have it too much.
func TestUsageSaysTheNextStep(t *testing.T) {
	for _, tt := range []struct{ line, want string }{
		{"rum", `unknown command "rum"; did you mean "run"? ` + "`gateway --help` lists the commands"},
		{"nonsense", "unknown command \"nonsense\"; `gateway --help` lists the commands"},
		{"cert isue", `unknown command "isue"; did you mean "issue"?`},
		{"version now", "`gateway version` takes no argument, and got \"now\""},
		{"ping", "`gateway ping` takes one HOP, and got 0; it should be like `gateway ping exit.example:15008`"},
		{"ping a b", "and got 2"},
		{"ping x", `"x" is no hop; it should be host:port, or a name from the configuration (give it with -c FILE)`},
		{"ping -c none.yaml x", "none.yaml: cannot be read: "},
		{"ping --timeout 5 x:1", `--timeout: "5" is not a time with its unit`},
		{"cert ca", "it should be like `gateway cert ca ca`"},
		{"cert issue", "it should be like `gateway cert issue spiffe://"},
		{"cert show", "it should be like `gateway cert show gw1.pem`"},
		{"check", "give -c FILE"},
	} {
		var out tunneltest.Log
		code := execute(t.Context(), strings.Fields(tt.line), &out, &out)
		if text := out.String(); code != exitUsage || !strings.Contains(text, tt.want) || strings.Count(text, "\n") != 1 {
			t.Errorf("gateway %s = %d, %q, want %d and one line with %q", tt.line, code, text, exitUsage, tt.want)
		}
	}
}

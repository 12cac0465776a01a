package main_test

import (
	"bytes"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

// lbDocs has the configurations of load balancers that are tried here, word for word.
const lbDocs = "../../docs/load-balancers.md"

// documented returns the first example of what is under a heading of lbDocs.
func documented(t *testing.T, heading string) string {
	t.Helper()
	text, err := os.ReadFile(lbDocs)
	if err != nil {
		t.Fatal(err)
	}
	_, below, _ := strings.Cut(string(text), "\n## "+heading+"\n")
	_, block, _ := strings.Cut(below, "\n```")
	_, block, _ = strings.Cut(block, "\n")
	block, _, ok := strings.Cut(block, "\n```")
	if !ok {
		t.Fatalf("%s has no example under %q", lbDocs, heading)
	}
	return block + "\n"
}

// balancer is a load balancer of others.
type balancer struct {
	name    string
	version []string // a command that tells it
	start   func(t *testing.T, m *mesh, backend string, mend ...string) (addr string, p *process)
	mend    []string // in the documented configuration
	forms   map[string]passage
}

// passage is what becomes of a form of tunnel in a balancer, as the table of lbDocs has it.
type passage struct {
	hop   string // more about the hop
	fails string // what the record of the gateway in front says; "": it passes
	note  string // for the table
}

// balancers are those that are tried, with the versions that Debian 12 has, and Envoy's of .ci/envoy.txt.
var balancers = []balancer{
	{"nginx", []string{"nginx", "-v"}, startNginx, nil, map[string]passage{
		"POST":      {note: "by `grpc_pass`"},
		"CONNECT":   {fails: "hop lb answered 400", note: "400"},
		"WEBSOCKET": {hop: ", path: /ws", note: "HTTP/1.1"},
		"GRPC":      {},
	}},
	{"HAProxy", []string{"haproxy", "-v"}, startHAProxy, nil, everything},
	{"HAProxy with HTTP/1.1 to the gateway", []string{"haproxy", "-v"}, startHAProxy, []string{" proto h2", ""}, map[string]passage{
		"POST": {}, "CONNECT": {}, "WEBSOCKET": {note: "HTTP/2"}, "GRPC": {fails: "hop lb answered 400", note: "it needs HTTP/2"},
	}},
	{"nghttpx", []string{"nghttpx", "--version"}, startNghttpx, nil, everything},
	{"Envoy", []string{"envoy", "--version"}, startEnvoyLB, nil, everything},
	{"Envoy with HTTP/1.1 to the gateway", []string{"envoy", "--version"}, startEnvoyLB, []string{"{http2_protocol_options: {allow_connect: true}}\n    load", "{http_protocol_options: {}}\n    load"}, map[string]passage{
		"POST": {}, "CONNECT": {}, "WEBSOCKET": {note: "HTTP/2"}, "GRPC": {fails: "hop lb answered 400", note: "it needs HTTP/2"},
	}},
}

// everything passes.
var everything = map[string]passage{"POST": {}, "CONNECT": {}, "WEBSOCKET": {note: "HTTP/2"}, "GRPC": {}}

// tunForms are the forms, in the order of the table.
var tunForms = []string{"POST", "CONNECT", "WEBSOCKET", "GRPC"}

// fill puts what is here in the place of what the documentation has.
func (m *mesh) fill(config string, more ...string) string {
	return strings.NewReplacer(append(more, "/etc/ssl/lb.pem", m.path("lb.pem"), "/etc/ssl/lb.key", m.path("lb.key"))...).Replace(config)
}

// accepts waits until something listens on addr.
func accepts(t *testing.T, p *process, addr string) {
	t.Helper()
	within(t, "listener", func() error {
		if err := p.alive(); err != nil {
			t.Fatalf("%v\n%s", err, p.out.String())
		}
		nc, err := net.Dial("tcp", addr)
		if err == nil {
			_ = nc.Close()
		}
		return err
	})
}

func startNginx(t *testing.T, m *mesh, backend string, mend ...string) (string, *process) {
	t.Helper()
	addr := freeAddr(t)
	dir := t.TempDir()
	conf := m.fill(documented(t, "nginx"), append(mend, "listen 443", "listen "+addr, "127.0.0.1:8443", backend,
		"http {\n", "http {\n  access_log off;\n  client_body_temp_path "+dir+"/body;\n  proxy_temp_path "+dir+"/proxy;\n  fastcgi_temp_path "+dir+
			"/f;\n  uwsgi_temp_path "+dir+"/u;\n  scgi_temp_path "+dir+"/s;\n")...)
	file := m.write(t, "nginx.conf", []byte("daemon off;\nmaster_process off;\npid "+dir+"/pid;\nerror_log stderr warn;\n"+conf))
	p := start(t, exec.Command(program(t, "nginx"), "-c", file, "-p", dir, "-e", "stderr"))
	accepts(t, p, addr)
	return addr, p
}

func startHAProxy(t *testing.T, m *mesh, backend string, mend ...string) (string, *process) {
	t.Helper()
	addr := freeAddr(t)
	key, err := os.ReadFile(m.path("lb.key"))
	if err != nil {
		t.Fatal(err)
	}
	m.write(t, "lb.pem.key", key)
	conf := m.fill(documented(t, "HAProxy"), append(mend, "bind :443", "bind "+addr, "127.0.0.1:8443", backend)...)
	p := start(t, exec.Command(program(t, "haproxy"), "-db", "-f", m.write(t, "haproxy.cfg", []byte(conf))))
	accepts(t, p, addr)
	return addr, p
}

func startNghttpx(t *testing.T, m *mesh, backend string, mend ...string) (string, *process) {
	t.Helper()
	addr := freeAddr(t)
	conf := m.fill(documented(t, "nghttpx"), append(mend, "frontend=*,443", "frontend=127.0.0.1,"+port(addr), "127.0.0.1,8443", "127.0.0.1,"+port(backend))...)
	p := start(t, exec.Command(program(t, "nghttpx"), "--conf="+m.write(t, "nghttpx.conf", []byte(conf)), "--workers=1"))
	accepts(t, p, addr)
	return addr, p
}

func startEnvoyLB(t *testing.T, m *mesh, backend string, mend ...string) (string, *process) {
	t.Helper()
	conf := "admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}\n" + m.fill(documented(t, "Envoy"),
		append(mend, "address: 0.0.0.0, port_value: 443", "address: 127.0.0.1, port_value: 0", "port_value: 8443", "port_value: "+port(backend))...)
	e := startEnvoy(t, conf)
	return e.addr, e.process
}

// tunListener starts a gateway that takes tunnels from balancers, with a token that client has signed for localhost.
func (m *mesh) tunListener(t *testing.T) *gateway {
	t.Helper()
	return m.configured(t, "server", `
listeners: [{name: tun, kind: x-tun, address: "$ADDR"}]
routes: [{listeners: [tun], destinations: [local]}]
tokens: {issuers: [{issuer: "`+clientID+`", audiences: [localhost], keys: [{file: client.pem}]}]}
`)
}

// tunEntry starts a gateway whose forwarded port leads to a destination through a balancer. more is about the hop.
func (m *mesh) tunEntry(t *testing.T, lb, form, to, more string) *gateway {
	t.Helper()
	if !strings.Contains(more, "token:") {
		more += ", token: {sign: true}"
	}
	return m.configured(t, "client", `
listeners: [{name: app, kind: forward, address: "$ADDR", to: "`+to+`"}]
hops: {lb: {address: "`+lb+`", authority: localhost, tun: `+form+`, tls: {roots: root.pem}`+more+`}}
routes: [{via: [lb]}]
timeouts: {dial: 5s}
`)
}

// webCertificate makes what a balancer shows.
func (m *mesh) webCertificate(t *testing.T) {
	t.Helper()
	m.issue(t, "lb", &x509.Certificate{DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
}

// TestForeignLoadBalancers tries every form of a tunnel through every balancer, and writes down what passes what.
func TestForeignLoadBalancers(t *testing.T) {
	var rows []string
	for _, b := range balancers {
		t.Run(b.name, func(t *testing.T) {
			program(t, b.version[0]) // or nothing here makes sense
			m := newMesh(t)
			m.webCertificate(t)
			exit := m.tunListener(t)
			lb, p := b.start(t, m, exit.addr, b.mend...)
			name, how, _ := strings.Cut(b.name, " ")
			row := "| " + strings.TrimSpace(name+" "+b.versionOf(t)+" "+how)
			for _, form := range tunForms {
				pass := b.forms[form]
				t.Run(form, func(t *testing.T) { b.try(t, m, lb, form, pass) })
				mark := "✓ " + pass.note
				if pass.fails != "" {
					mark = "no: " + pass.note
				}
				row += " | " + strings.TrimSpace(mark)
			}
			rows = append(rows, row+" |")
			exit.idle(t)
			if err := p.alive(); err != nil {
				t.Error(err)
			}
		})
	}
	if !t.Failed() && len(rows) == len(balancers) {
		checkTable(t, "| | "+strings.Join(tunForms, " | ")+" |\n|---|---|---|---|---|\n"+strings.Join(rows, "\n")+"\n")
	}
}

// versionOf is the version that a balancer tells of itself.
func (b *balancer) versionOf(t *testing.T) string {
	t.Helper()
	stdout, stderr, err := try(t, b.version[0], b.version[1:]...)
	found := regexp.MustCompile(`\d+\.\d+\.\d+`).FindString(stdout + stderr)
	if err != nil || found == "" {
		t.Errorf("%v: %v, %s%s", b.version, err, stdout, stderr)
	}
	return found
}

// checkTable compares the table in lbDocs with what was found, or rewrites it.
func checkTable(t *testing.T, table string) {
	t.Helper()
	text, err := os.ReadFile(lbDocs)
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "-update -->\n", "<!-- end of table -->"
	before, rest, ok := strings.Cut(string(text), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", lbDocs)
	}
	want := before + begin + table + end + after
	if flag.Lookup("update").Value.String() == "true" {
		err = os.WriteFile(lbDocs, []byte(want), 0o644)
	} else if version := regexp.MustCompile(`\d+\.\d+\.\d+`); version.ReplaceAllString(want, "") != version.ReplaceAllString(string(text), "") {
		err = fmt.Errorf("%s is not current; run: go test ./cmd/gateway -run TestForeignLoadBalancers -update\n%s", lbDocs, table)
	}
	if err != nil {
		t.Error(err)
	}
}

// try sends everything through one form, or wants it to fail as it is known to.
func (b *balancer) try(t *testing.T, m *mesh, lb, form string, pass passage) {
	entry := m.tunEntry(t, lb, form, serve(t, echo), pass.hop)
	if pass.fails != "" {
		if err := tryEcho(entry.addr, 1); err == nil {
			t.Errorf("it passes, and the table says that it does not")
		}
		entry.says(t, "msg=flow", pass.fails)
		return
	}
	for _, n := range []int{0, 1, 1 << 20} {
		echoHalfClosed(t, entry.addr, n)
	}
	entry.idle(t)
	entry = m.tunEntry(t, lb, form, serve(t, speakFirst), pass.hop)
	hearFirst(t, entry.addr)
	entry.idle(t)
	entry = m.tunEntry(t, lb, form, freeAddr(t), pass.hop)
	_ = tryEcho(entry.addr, 1)
	entry.says(t, "msg=flow", "reason=refused", "connection refused")
	entry = m.tunEntry(t, lb, form, freeAddr(t), pass.hop+", token: {sign: true, audience: another.example}")
	_ = tryEcho(entry.addr, 1)
	entry.says(t, "msg=flow", "reason=token", "answered 401", "bad-audience")
}

// greeting is what a server says that speaks first.
const greeting = "220 ready\r\n"

// speakFirst is a server that speaks first: it ends after 1 MiB, and sends what it was told then only where that is all of it.
func speakFirst(nc *net.TCPConn) {
	body := bytes.Repeat([]byte{7}, 1<<20)
	_, err := nc.Write(append([]byte(greeting), body...))
	err = errors.Join(err, nc.CloseWrite())
	if got, readErr := io.ReadAll(nc); err != nil || readErr != nil || !bytes.Equal(got, body) {
		_ = nc.SetLinger(0) // the client sees a reset
	}
}

// hearFirst is the client of speakFirst: it sends after the server has ended.
func hearFirst(t *testing.T, addr string) {
	t.Helper()
	nc := dial(t, addr)
	got, err := io.ReadAll(nc)
	if len(got) != len(greeting)+1<<20 || !bytes.HasPrefix(got, []byte(greeting)) || err != nil {
		t.Errorf("heard %d bytes, %v, want the greeting, 1 MiB and the end", len(got), err)
		return
	}
	if _, err := nc.Write(got[len(greeting):]); err != nil {
		t.Errorf("sent after the server's end: %v", err)
	}
	if err := nc.CloseWrite(); err != nil {
		t.Error(err)
	}
}

// tryEcho sends n bytes to an echo server and wants them back.
func tryEcho(addr string, n int) error {
	nc, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return err
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(patience))
	body := random(n)
	if _, err := nc.Write(body); err != nil {
		return err
	}
	_, err = io.ReadFull(nc, body)
	return err
}

// TestForeignBufferingProxies has proxies that hold back the bytes of a request or of its answer: both gateways say so.
func TestForeignBufferingProxies(t *testing.T) {
	for _, tt := range []struct {
		name, form, hop string
		start           func(t *testing.T, m *mesh, backend string, mend ...string) (string, *process)
		mend            []string
		says            string
	}{
		{"nginx, proxy_pass as it is by default", "POST", ", path: /ws", startNginx, nil, "a proxy on the way buffers requests or answers"},
		{"HAProxy that waits for the body", "POST", "", startHAProxy, []string{"default_backend", "option http-buffer-request\n  default_backend"},
			"a proxy on the way buffers requests or answers"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMesh(t)
			m.webCertificate(t)
			exit := m.tunListener(t)
			lb, _ := tt.start(t, m, exit.addr, tt.mend...)
			entry := m.tunEntry(t, lb, tt.form, serve(t, echo), tt.hop)
			if err := tryEcho(entry.addr, 1); err == nil {
				t.Error("it passes, and this proxy was to hold something back")
			}
			entry.says(t, "msg=flow", tt.says)
		})
	}
}

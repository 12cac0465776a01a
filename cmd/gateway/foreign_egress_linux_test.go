package main_test

import (
	"bytes"
	"crypto/x509"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"
)

// opensslServer runs a web server of OpenSSL for api.example, which wants a certificate of its clients.
func (m *mesh) opensslServer(t *testing.T, more ...string) (port string) {
	t.Helper()
	m.issue(t, "api", &x509.Certificate{DNSNames: []string{"api.example"}})
	m.issue(t, "customer", &x509.Certificate{DNSNames: []string{"customer.example"}})
	addr := freeAddr(t)
	cmd := exec.Command(program(t, "openssl"), append([]string{
		"s_server", "-accept", addr, "-cert", m.path("api.pem"), "-key", m.path("api.key"),
		"-CAfile", m.path("root.pem"), "-Verify", "1", "-verify_return_error", "-quiet",
	}, more...)...)
	cmd.Dir = m.dir
	p := start(t, cmd)
	p.listens(t, addr)
	_, port, _ = net.SplitHostPort(addr)
	return port
}

// An app speaks plain HTTP, and the gateway TLS with OpenSSL: verified, with a certificate of its own.
func TestForeignTLSServer(t *testing.T) {
	m := newMesh(t)
	resolver, _ := nameServer(t)
	m.write(t, "page", []byte("a page over TLS\n"))
	for _, tt := range []struct {
		name, tls string
		ok        bool
		say       string // in the record of a refusal
	}{
		{"sound", "{roots: root.pem, cert: customer.pem, key: customer.key, alpn: [http/1.1], minVersion: '1.3'}", true, ""},
		{"without a certificate", "{roots: root.pem}", false, "certificate required"},
		{"of the system's CAs", "{cert: customer.pem, key: customer.key}", false, "tls.roots"},
		{"by another name", "{roots: root.pem, serverName: other.example}", false, "not for other.example"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			port := m.opensslServer(t, "-WWW", "-alpn", "http/1.1")
			g := m.configured(t, "client", `
resolver: {upstream: ["`+resolver+`"]}
listeners: [{name: apps, kind: forward, address: "$ADDR", to: "api.example:`+port+`"}]
routes: [{hosts: [api.example], tls: `+tt.tls+`}]
policy: {egress: ["127.0.0.0/8"]}
`)
			out, errs, err := try(t, "curl", "-sS", "--http1.0", "http://"+g.addr+"/page")
			if !tt.ok {
				if err == nil {
					t.Errorf("curl brings %q, want a refusal", out)
				}
				g.says(t, "msg=flow", tt.say)
				return
			}
			if err != nil || !strings.Contains(out, "a page over TLS") {
				t.Errorf("curl brings %q, %v %s", out, err, errs)
			}
		})
	}
}

// listens waits until something listens at addr.
func (p *process) listens(t *testing.T, addr string) {
	t.Helper()
	within(t, "listening", func() error {
		if err := p.alive(); err != nil {
			t.Fatal(err)
		}
		nc, err := net.Dial("tcp", addr)
		if err == nil {
			_ = nc.Close()
		}
		return err
	})
}

// tinyproxy runs an HTTP proxy where bob logs in.
func (m *mesh) tinyproxy(t *testing.T) (addr string) {
	t.Helper()
	addr = freeAddr(t)
	host, port, _ := net.SplitHostPort(addr)
	conf := m.write(t, "tinyproxy.conf", []byte("Port "+port+"\nListen "+host+"\nTimeout 60\nMaxClients 20\nLogLevel Info\nBasicAuth bob secret\n"))
	start(t, exec.Command(program(t, "tinyproxy"), "-d", "-c", conf)).listens(t, addr)
	return addr
}

// microsocks runs a SOCKS5 proxy where bob logs in.
func (m *mesh) microsocks(t *testing.T) (addr string) {
	t.Helper()
	addr = freeAddr(t)
	host, port, _ := net.SplitHostPort(addr)
	start(t, exec.Command(program(t, "microsocks"), "-i", host, "-p", port, "-u", "bob", "-P", "secret")).listens(t, addr)
	return addr
}

// Flows go by proxies that are none of ours, alone, one through the other, and before a gateway.
func TestForeignUpstreamProxy(t *testing.T) {
	m := newMesh(t)
	page, exit := newWeb(t), m.exit(t)
	web, socks := m.tinyproxy(t), m.microsocks(t)
	m.write(t, "bob", []byte("bob:secret\n"))
	m.write(t, "eve", []byte("eve:secret\n"))
	for _, tt := range []struct {
		name, via, say string // say: in the record of a refusal
	}{
		{"HTTP", "[web]", ""},
		{"SOCKS5", "[socks]", ""},
		{"SOCKS5 through HTTP", "[web, socks]", ""},
		{"HTTP before a gateway", "[web, exit]", ""},
		{"SOCKS5 before a gateway", "[socks, exit]", ""},
		{"SOCKS5 behind a gateway", "[exit, socks]", ""},
		{"no login at HTTP", "[anonymous]", "wants a login (Basic)"},
		{"the wrong one at HTTP", "[eve]", "does not take the user"},
		{"no login at SOCKS5", "[anonymousSocks]", "wants a login"},
		{"the wrong one at SOCKS5", "[eveSocks]", "does not take the user"},
		{"SOCKS5 at HTTP", "[mistaken]", "before its answer"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := m.configured(t, "client", `
listeners: [{name: apps, kind: forward, address: "$ADDR", to: "`+page.addr+`"}]
hops:
  exit: {address: "`+exit.addr+`", identity: "`+serverID+`"}
  web: {proxy: http, address: "`+web+`", login: bob}
  socks: {proxy: socks5, address: "`+socks+`", login: bob}
  anonymous: {proxy: http, address: "`+web+`"}
  eve: {proxy: http, address: "`+web+`", login: eve}
  anonymousSocks: {proxy: socks5, address: "`+socks+`"}
  eveSocks: {proxy: socks5, address: "`+socks+`", login: eve}
  mistaken: {proxy: http, address: "`+socks+`", login: bob}
routes: [{via: `+tt.via+`}]
`)
			out, errs, err := try(t, "curl", "-sS", "http://"+g.addr+"/")
			if tt.say != "" {
				if err == nil {
					t.Errorf("curl brings %q, want a refusal", out)
				}
				g.says(t, "msg=flow", tt.say)
				return
			}
			if err != nil || out != pageText {
				t.Errorf("curl brings %q, %v %s", out, err, errs)
			}
			out, _, err = try(t, "curl", "-sS", "http://"+g.addr+"/down")
			if err != nil || digest([]byte(out)) != digest(page.bulk) {
				t.Errorf("curl brings %d bytes, %v, want the %d of the server", len(out), err, len(page.bulk))
			}
		})
	}
}

// What OpenSSL sends after the app has ended arrives.
func TestForeignTLSHalfClose(t *testing.T) {
	m := newMesh(t)
	resolver, _ := nameServer(t)
	port := m.opensslServer(t, "-rev")
	g := m.configured(t, "client", `
resolver: {upstream: ["`+resolver+`"]}
listeners: [{name: apps, kind: forward, address: "$ADDR", to: "api.example:`+port+`"}]
routes: [{hosts: [api.example], tls: {roots: root.pem, cert: customer.pem, key: customer.key}}]
policy: {egress: ["127.0.0.0/8"]}
`)
	nc, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_ = nc.SetDeadline(deadline())
	said := bytes.Repeat([]byte("0123456789\n"), 1000)
	if _, err := nc.Write(said); err != nil {
		t.Fatal(err)
	}
	if err := nc.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(nc)
	if want := bytes.Repeat([]byte("9876543210\n"), 1000); !bytes.Equal(got, want) {
		t.Errorf("read %d bytes, %v, want all %d lines turned round", len(got), err, 1000)
	}
}

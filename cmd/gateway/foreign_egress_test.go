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
	within(t, "openssl ready", func() error {
		if err := p.alive(); err != nil {
			t.Fatal(err)
		}
		nc, err := net.Dial("tcp", addr)
		if err == nil {
			_ = nc.Close()
		}
		return err
	})
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

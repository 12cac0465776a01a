package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"culvert/pki"
	"culvert/tunnel/h2"
)

// connectAs opens an HTTP/2 connection to an exit with one of the mesh's identities.
func (m *mesh) connectAs(name, address string) (*h2.Conn, error) {
	m.t.Helper()
	material, err := pki.Parse(must(os.ReadFile(m.path(name+".pem"))), must(os.ReadFile(m.path(name+".key"))), must(os.ReadFile(m.path("roots.pem"))))
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	defer cancel()
	nc, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = nc.Close() })
	conf := pki.Fixed(material).ClientTLS(nil)
	// A foreign client need not mind who the gateway is.
	conf.VerifyConnection = nil
	tc := tls.Client(nc, conf)
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	conn, err := h2.NewClient(tc, &h2.Config{})
	if err != nil {
		return nil, err
	}
	m.t.Cleanup(func() { _ = conn.Close() })
	if _, err := conn.Ping(ctx); err != nil {
		return nil, errors.Join(err, conn.Err())
	}
	return conn, nil
}

// askStatus sends one request and returns the status and proxy-status of the answer.
func askStatus(t *testing.T, conn *h2.Conn, h *h2.Header) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := conn.Open(ctx, h, false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	res, err := s.Response(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return res.Status, res.Get("proxy-status")
}

func TestExitAnswersBadRequests(t *testing.T) {
	m := newMesh(t)
	exit := m.runReady("exit", "--hbone")
	conn, err := m.connectAs("entry", exit.address)
	if err != nil {
		t.Fatal(err)
	}
	closed := freeAddress(t)
	tests := []struct {
		name, method, authority string
		status                  int
		says                    string
	}{
		{"no port", "CONNECT", "127.0.0.1", 400, "http_request_error"},
		{"port 0", "CONNECT", "127.0.0.1:0", 400, "http_request_error"},
		{"port 99999", "CONNECT", "127.0.0.1:99999", 400, "http_request_error"},
		{"port with a sign", "CONNECT", "127.0.0.1:+80", 400, "http_request_error"},
		{"user", "CONNECT", "user@127.0.0.1:80", 400, "http_request_error"},
		{"zone", "CONNECT", "[fe80::1%25eth0]:80", 400, "http_request_error"},
		{"short IPv4", "CONNECT", "127.1:80", 400, "http_request_error"},
		{"IPv4 as a number", "CONNECT", "2130706433:80", 400, "http_request_error"},
		{"hexadecimal IPv4", "CONNECT", "0x7f.1:80", 400, "http_request_error"},
		{"mapped IPv4", "CONNECT", "[::ffff:127.0.0.1]:80", 400, "http_request_error"},
		{"long form of IPv6", "CONNECT", "[0:0:0:0:0:0:0:1]:80", 400, "http_request_error"},
		{"not CONNECT", "GET", "127.0.0.1:80", 400, "http_request_error"},
		{"another host's address", "CONNECT", "10.1.2.3:80", 400, "http_request_error"},
		{"nothing listens", "CONNECT", closed, 503, "connection_refused"},
		{"a name", "CONNECT", "web.example:80", 503, "destination_not_found"},
		{"the gateway itself", "CONNECT", exit.address, 503, "proxy_loop_detected"},
		{"the admin address", "CONNECT", exit.admin, 503, "proxy_loop_detected"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := &h2.Header{Method: tt.method, Authority: tt.authority}
			if tt.method != "CONNECT" {
				h.Scheme, h.Path = "https", "/"
			}
			status, says := askStatus(t, conn, h)
			if status != tt.status || !strings.Contains(says, tt.says) {
				t.Errorf("%s %s = %d, %q, want %d, %s", tt.method, tt.authority, status, says, tt.status, tt.says)
			}
		})
	}
	status, _ := askStatus(t, conn, &h2.Header{Method: "CONNECT", Authority: echoServer(t)})
	if status != 200 {
		t.Errorf("a right request after all these = %d, want 200", status)
	}
}

func TestEgressByFlags(t *testing.T) {
	m := newMesh(t)
	target := echoServer(t)
	_, port, _ := net.SplitHostPort(target)
	exit := m.runReady("exit", "--hbone", "--egress", "localhost:"+port, "--egress", "10.0.0.0/8:9")
	conn, err := m.connectAs("entry", exit.address)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, authority string
		status          int
	}{
		{"the name that is listed", "localhost:" + port, 200},
		{"another port of it", "localhost:1", 401},
		{"another name", "example.test:80", 401},
		{"metadata service", "169.254.169.254:80", 401},
		{"private address", "192.168.0.1:80", 401},
		{"another port of a range", "10.0.0.1:22", 401},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if status, says := askStatus(t, conn, &h2.Header{Method: "CONNECT", Authority: tt.authority}); status != tt.status {
				t.Errorf("CONNECT %s = %d (%s), want %d", tt.authority, status, says, tt.status)
			}
		})
	}
}

func TestPeersThatAreRefusedInTLS(t *testing.T) {
	m := newMesh(t)
	exit := m.runReady("exit", "--hbone")
	other := &mesh{t: t, dir: t.TempDir(), ca: must(pki.NewCA("evil.example"))}
	other.write("roots.pem", other.ca.PEM())
	other.identity("stranger", "spiffe://evil.example/ns/default/sa/entry")
	if _, err := other.connectAs("stranger", exit.address); err == nil {
		t.Error("a peer of another trust domain gets through TLS")
	}
	bare, err := tls.Dial("tcp", exit.address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err == nil {
		_ = bare.SetReadDeadline(time.Now().Add(patience))
		_, err = bare.Read(make([]byte, 1))
		_ = bare.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("a peer without certificate = %v, want the alert certificate_required", err)
	}
	exit.metric("culvert_tls_refused_total 2")
	if log := exit.stderr.String(); !strings.Contains(log, "spiffe://evil.example/ns/default/sa/entry") {
		t.Errorf("the refused peer's identity is not in the log:\n%s", log)
	}
}

func TestSocksBadInput(t *testing.T) {
	m := newMesh(t)
	users := m.write("users", []byte("ada:lovelace\n"))
	entry := m.runReady("entry", "--socks", "--via", freeAddress(t), "--proxy-users", users)
	tests := []struct {
		name        string
		send, reply []byte
	}{
		{"HTTP", []byte("GET / HTTP/1.1\r\n\r\n"), []byte{5, 0xFF}},
		{"SOCKS4", []byte{4, 1, 0, 80, 127, 0, 0, 1, 0}, []byte{0, 0x5B, 0, 0, 0, 0, 0, 0}},
		{"no login offered", []byte{5, 1, 0}, []byte{5, 0xFF}},
		{"wrong password", append([]byte{5, 1, 2, 1, 3}, "ada\x05byron"...), []byte{5, 2, 1, 1}},
		{"BIND", append(append([]byte{5, 1, 2, 1, 3}, "ada\x08lovelace"...), 5, 2, 0, 1, 127, 0, 0, 1, 0, 80), []byte{5, 2, 1, 0, 5, 7, 0, 1, 0, 0, 0, 0, 0, 0}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			nc, err := net.Dial("tcp", entry.address)
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			_ = nc.SetDeadline(time.Now().Add(patience))
			if _, err := nc.Write(tt.send); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(nc) // after the reply a reset is an end too
			if string(got) != string(tt.reply) {
				t.Errorf("reply = %v, %v, want %v and the end", got, err, tt.reply)
			}
		})
	}
	entry.metric(fmt.Sprintf("culvert_capture_failed_total %d", len(tests)))
}

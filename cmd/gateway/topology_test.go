package main_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert/tunnel/tunneltest"
)

// The tests of this package see the gateway from outside: as a process with flags, sockets, an admin address and a
// log. Certificates are made with crypto/x509 and not with pki, as a foreign CA would make them.

// asGateway is the variable that makes the test binary be the gateway, see TestMain. What runs is what was just
// compiled, race detector included.
const asGateway = "CULVERT_TEST_AS_GATEWAY"

// patience bounds every wait; nothing waits that long on a machine that works.
const patience = 30 * time.Second

// shownBytes is how much of a program's output a failed test shows.
const shownBytes = 8 << 10

// The identities of a mesh, by the names of their files.
const (
	clientID  = "spiffe://cluster.local/ns/default/sa/client"
	serverID  = "spiffe://cluster.local/ns/default/sa/server"
	othernsID = "spiffe://cluster.local/ns/other/sa/client"
)

// within calls look until it returns nil.
func within(t *testing.T, what string, look func() error) {
	t.Helper()
	for end := time.Now().Add(patience); ; {
		err := look()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(5 * time.Millisecond) // between two looks
	}
}

// program returns the path of a foreign program.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is not installed: run `make setup`", name)
	}
	return path
}

// process is a program that runs until the test ends.
type process struct {
	cmd  *exec.Cmd
	out  tunneltest.Log
	done chan struct{} // closed when it has ended
}

// start starts cmd. Its output fails the test if the program did what no program should.
func start(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.out, &p.out
	endWithTests(cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range cmd.ExtraFiles {
		_ = f.Close() // the process has its own
	}
	go func() { // ends with the process, which the cleanup ends and waits for
		_ = cmd.Wait() // killed, mostly
		close(p.done)
	}()
	t.Cleanup(func() {
		p.kill()
		text := p.out.String()
		for _, bad := range []string{"WARNING: DATA RACE", "panic: ", "fatal error: ", "BUG: "} {
			if i := strings.Index(text, bad); i >= 0 {
				t.Errorf("%s: %s", cmd.Args[0], text[i:min(len(text), i+shownBytes)])
			}
		}
		if t.Failed() {
			t.Logf("%s\n…%s", strings.Join(cmd.Args, " "), text[max(0, len(text)-shownBytes):])
		}
	})
	return p
}

// kill ends the process at once, as a crash would, and waits for its end.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended already
	<-p.done
}

// alive returns an error once the process has ended.
func (p *process) alive() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s has ended: %s", p.cmd.Args[0], p.cmd.ProcessState)
	default:
		return nil
	}
}

// says waits for one line of the output that holds all of words, and returns it.
func (p *process) says(t *testing.T, words ...string) (line string) {
	t.Helper()
	within(t, "output", func() error {
		ended := p.alive()
		for line = range strings.Lines(p.out.String()) {
			missing := false
			for _, w := range words {
				missing = missing || !strings.Contains(line, w)
			}
			if !missing {
				return nil
			}
		}
		if ended != nil {
			t.Fatalf("no line with %q: %v", words, ended)
		}
		return fmt.Errorf("no line of %s with %q", p.cmd.Args[0], words)
	})
	return line
}

// run runs a foreign program to its end and returns its standard output.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, stderr, err := try(t, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, stderr)
	}
	return out
}

// try is run for programs that may fail.
func try(t *testing.T, name string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program(t, name), args...)
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"} { // those of this host are not meant
		cmd.Env = append(cmd.Environ(), name+"=", strings.ToLower(name)+"=")
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	endWithTests(cmd)
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// mesh is a CA and a folder with the files of its identities: root.pem, and of each identity a .pem and a .key.
type mesh struct {
	dir   string
	root  *x509.Certificate
	key   *ecdsa.PrivateKey
	roots *x509.CertPool
}

func newMesh(t *testing.T) *mesh {
	t.Helper()
	m := &mesh{dir: t.TempDir(), roots: x509.NewCertPool()}
	m.key = newKey(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"cluster.local"}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &m.key.PublicKey, m.key)
	if err != nil {
		t.Fatal(err)
	}
	if m.root, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	m.roots.AddCert(m.root)
	m.write(t, "root.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	for name, id := range map[string]string{"client": clientID, "server": serverID, "otherns": othernsID} {
		u, err := url.Parse(id)
		if err != nil {
			t.Fatal(err)
		}
		m.issue(t, name, &x509.Certificate{URIs: []*url.URL{u}})
	}
	return m
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (m *mesh) path(name string) string { return filepath.Join(m.dir, name) }

func (m *mesh) write(t *testing.T, name string, text []byte) string {
	t.Helper()
	if err := os.WriteFile(m.path(name), text, 0o600); err != nil {
		t.Fatal(err)
	}
	return m.path(name)
}

// issue makes name.pem and name.key with the names that tmpl holds.
func (m *mesh) issue(t *testing.T, name string, tmpl *x509.Certificate) {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	tmpl.SerialNumber, tmpl.NotBefore, tmpl.NotAfter = serial, time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	tmpl.KeyUsage, tmpl.BasicConstraintsValid = x509.KeyUsageDigitalSignature, true
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	key := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, m.root, &key.PublicKey, m.key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	m.write(t, name+".pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	m.write(t, name+".key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
}

func (m *mesh) certificate(t *testing.T, name string) tls.Certificate {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(m.path(name+".pem"), m.path(name+".key"))
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// clientTLS is how a foreign client dials a gateway that should be wantID.
func (m *mesh) clientTLS(t *testing.T, name, wantID string) *tls.Config {
	t.Helper()
	return &tls.Config{
		Certificates: []tls.Certificate{m.certificate(t, name)}, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		InsecureSkipVerify: true, // no host names; VerifyConnection does it
		VerifyConnection: func(cs tls.ConnectionState) error {
			leaf := cs.PeerCertificates[0]
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: m.roots}); err != nil {
				return err
			}
			if len(leaf.URIs) != 1 || leaf.URIs[0].String() != wantID {
				return fmt.Errorf("the gateway is %v, want %s", leaf.URIs, wantID)
			}
			return nil
		},
	}
}

// serverTLS is how a foreign exit takes gateways.
func (m *mesh) serverTLS(t *testing.T, name string) *tls.Config {
	t.Helper()
	return &tls.Config{
		Certificates: []tls.Certificate{m.certificate(t, name)}, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: m.roots,
	}
}

// gateway is a gateway that is ready.
type gateway struct {
	*process
	addr  string // of its one listener
	admin string
	dials func(ctx context.Context, network, addr string) (net.Conn, error) // how admin is reached; nil: from here
}

// gateway starts one with the identity name. flag is that of its listener, of which $ADDR becomes the address.
func (m *mesh) gateway(t *testing.T, name string, flag ...string) *gateway {
	t.Helper()
	g, cmd := m.command(t, name, flag...)
	g.process = start(t, cmd)
	g.ready(t)
	return g
}

// ready waits until the gateway takes flows.
func (g *gateway) ready(t *testing.T) {
	t.Helper()
	within(t, "gateway ready", func() error {
		if err := g.alive(); err != nil {
			t.Fatal(err)
		}
		_, err := g.get("/readyz")
		return err
	})
}

// command is how gateway starts one.
func (m *mesh) command(t *testing.T, name string, flag ...string) (*gateway, *exec.Cmd) {
	t.Helper()
	if os.Getenv(asGateway) != "" {
		t.Fatal("this is the gateway, and TestMain did not notice")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ln, admin := loopback(t), loopback(t)
	g := &gateway{addr: ln.Addr().String(), admin: admin.Addr().String()}
	args := []string{
		"run", "--state", t.TempDir(), "--admin", g.admin,
		"--cert", m.path(name + ".pem"), "--key", m.path(name + ".key"), "--roots", m.path("root.pem"),
	}
	for _, f := range flag {
		args = append(args, strings.ReplaceAll(f, "$ADDR", g.addr))
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), asGateway+"=1", "LISTEN_FDS=2")
	for _, l := range []*net.TCPListener{ln, admin} { // as from a service manager: nobody can take the port in between
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	return g, cmd
}

func (m *mesh) exit(t *testing.T, more ...string) *gateway {
	t.Helper()
	return m.gateway(t, "server", append([]string{"--hbone", "$ADDR"}, more...)...)
}

func (m *mesh) socks(t *testing.T, via string) *gateway {
	t.Helper()
	return m.gateway(t, "client", "--socks", "$ADDR", "--via", via)
}

func (m *mesh) forward(t *testing.T, via, to string) *gateway {
	t.Helper()
	return m.gateway(t, "client", "--forward", "$ADDR="+to, "--via", via)
}

// get reads a page of the admin address.
func (g *gateway) get(path string) (string, error) {
	tr := &http.Transport{DisableKeepAlives: true}
	if g.dials != nil {
		tr.DialContext = g.dials
	}
	client := &http.Client{Transport: tr, Timeout: patience}
	res, err := client.Get("http://" + g.admin + path)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, body)
	}
	return string(body), err
}

// idle waits until the gateway carries no flow.
func (g *gateway) idle(t *testing.T) {
	t.Helper()
	within(t, "no flow", func() error {
		text, err := g.get("/flows")
		if err == nil && strings.TrimSpace(text) != "[]" {
			err = errors.New("live flows: " + text)
		}
		return err
	})
}

func loopback(t *testing.T) *net.TCPListener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln.(*net.TCPListener)
}

// freeAddr is a loopback address that nothing listens on.
func freeAddr(t *testing.T) string {
	t.Helper()
	ln := loopback(t)
	defer ln.Close()
	return ln.Addr().String()
}

// serve runs handle for every connection. The connections are closed after handle, and with the test.
func serve(t *testing.T, handle func(*net.TCPConn)) (addr string) {
	t.Helper()
	ln := loopback(t)
	var mu sync.Mutex
	open := map[*net.TCPConn]bool{}
	var running sync.WaitGroup
	running.Go(func() { // ends when ln is closed; the cleanup waits for it
		for {
			nc, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			mu.Lock()
			open[nc] = true
			mu.Unlock()
			running.Go(func() { // ends with the connection; the cleanup waits for it
				handle(nc)
				_ = nc.Close()
				mu.Lock()
				delete(open, nc)
				mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		mu.Lock()
		for nc := range open {
			_ = nc.Close()
		}
		mu.Unlock()
		running.Wait()
	})
	return ln.Addr().String()
}

// echo is for serve: it sends back what comes, and ends when the client has ended.
func echo(nc *net.TCPConn) {
	_, _ = io.Copy(nc, nc) // the client sees what became of it
}

// dial connects to a gateway's listener. Reads and writes end at patience.
func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	nc, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(patience))
	return nc.(*net.TCPConn)
}

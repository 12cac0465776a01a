package acme

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"culvert/tunnel/tunneltest/memnet"
)

// TestMain checks that no test left a goroutine.
func TestMain(m *testing.M) {
	before := runtime.NumGoroutine()
	code := m.Run()
	if code == 0 && flag.Lookup("test.fuzz").Value.String() == "" {
		code = leaked(before)
	}
	os.Exit(code)
}

// leaked waits until there are no more goroutines than before, as those of ended tests may still be on their way out.
func leaked(before int) int {
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<16)
			fmt.Fprintf(os.Stderr, "goroutines left: %s\n", stacks[:runtime.Stack(stacks, true)])
			return 1
		}
	}
	return 0
}

// logs keeps what was logged.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logs) count(what string) int { return strings.Count(l.String(), what) }

func newLogs() (*logs, *slog.Logger) {
	l := &logs{}
	return l, slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

const (
	alpha = "alpha.example"
	beta  = "beta.example"
)

// world is a CA and the folder and settings of a gateway, in synthetic time.
type world struct {
	t    *testing.T
	ca   *fakeCA
	net  *memnet.Net
	dir  string
	cfg  Config
	logs *logs
	log  *slog.Logger
}

// inWorld runs f in synthetic time, with a CA for the names of cfg.
func inWorld(t *testing.T, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, net: memnet.New(), dir: t.TempDir()}
		w.logs, w.log = newLogs()
		w.ca = newFakeCA(t, w.net)
		defer w.ca.close()
		roots := filepath.Join(t.TempDir(), "roots.pem")
		writeTestFile(t, roots, w.ca.rootPEM())
		w.cfg = Config{Directory: w.ca.url + "/dir", Names: []string{alpha}, AgreeTOS: true, Roots: roots}
		f(w)
	})
}

func writeTestFile(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// env is the environment of a gateway in this world.
func (w *world) env() Env {
	return Env{Dir: w.dir, Log: w.log, DialContext: w.dial}
}

func (w *world) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if host != w.ca.host {
		return nil, fmt.Errorf("the test's network has no %s", addr)
	}
	to := netip.MustParseAddrPort(w.ca.addr.Addr().String() + ":" + port)
	return w.net.From(netip.MustParseAddr("192.0.2.99"))(ctx, to)
}

// open opens a Manager to which the CA's validations go.
func (w *world) open() *Manager {
	w.t.Helper()
	m, err := Open(w.cfg, w.env())
	if err != nil {
		w.t.Fatal(err)
	}
	w.ca.validates(m)
	return m
}

// store is the folder below w.dir in which everything is.
func (w *world) store() store {
	w.t.Helper()
	s, err := openStore(w.dir, w.cfg.directory())
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// sleep lets synthetic time pass and everything that is due be done.
func sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// certFor asks m as a handshake for name does.
func certFor(m *Manager, name string) (*x509.Certificate, error) {
	c, err := m.GetCertificate(&tls.ClientHelloInfo{ServerName: name, SupportedProtos: []string{"h2"}})
	if err != nil {
		return nil, err
	}
	return c.Leaf, nil
}

// mustCert is certFor where there has to be one.
func mustCert(t testing.TB, m *Manager, name string) *x509.Certificate {
	t.Helper()
	leaf, err := certFor(m, name)
	if err != nil {
		t.Fatalf("GetCertificate(%s) = %v, want a certificate", name, err)
	}
	if err := leaf.VerifyHostname(name); err != nil {
		t.Fatal(err)
	}
	return leaf
}

// status is that of one name.
func status(t testing.TB, m *Manager, name string) Status {
	t.Helper()
	for _, s := range m.Status() {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("Status has no %s", name)
	return Status{}
}

// wantFault checks the error of the last order for a name.
func wantFault(t testing.TB, m *Manager, name string, step Step, words ...string) *IssueError {
	t.Helper()
	fault, ok := errors.AsType[*IssueError](status(t, m, name).LastError)
	if !ok {
		t.Fatalf("LastError of %s = %v, want an *IssueError", name, status(t, m, name).LastError)
	}
	if fault.Step != step {
		t.Errorf("LastError of %s = %v, want step %s", name, fault, step)
	}
	for _, word := range words {
		if !strings.Contains(fault.Error(), word) {
			t.Errorf("LastError of %s = %v, want it to say %q", name, fault, word)
		}
	}
	return fault
}

// wantNoCert checks that a handshake for a name fails for a reason.
func wantNoCert(t testing.TB, m *Manager, name string, reason Reason) {
	t.Helper()
	_, err := certFor(m, name)
	if ne, ok := errors.AsType[*NameError](err); !ok || ne.Reason != reason {
		t.Errorf("GetCertificate(%.50q) = %v, want a *NameError with reason %s", name, err, reason)
	}
}

// checkModes checks that every file in the folder is its owner's alone, and that nothing half-written is left.
func checkModes(t testing.TB, s store) {
	t.Helper()
	files, err := os.ReadDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		info, err := f.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 || strings.HasPrefix(f.Name(), ".") {
			t.Errorf("%s has mode %v, want 0600 and no file of a write that was not finished", f.Name(), info.Mode())
		}
	}
}

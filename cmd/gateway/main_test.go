package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"culvert/pki"
	"culvert/pki/spiffe"
	"culvert/tunnel/tunneltest"
)

// asGateway makes the test binary be the gateway, so that what the tests start is what was just compiled,
// race detector included.
const asGateway = "CULVERT_TEST_AS_GATEWAY"

// whileStdin is a value of asGateway: the gateway ends with its standard input, and so does every process that
// takes its place.
const whileStdin = "while stdin"

func TestMain(m *testing.M) {
	if as := os.Getenv(asGateway); as != "" {
		if as == whileStdin {
			go func() { // ends the process, or with it
				_, _ = io.Copy(io.Discard, os.Stdin)
				os.Exit(exitFailure)
			}()
		}
		main() // exits
	}
	os.Exit(m.Run())
}

// patience bounds every wait; nothing waits that long on a machine that works.
const patience = 30 * time.Second

// eventually polls until ok returns nil.
func eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(5 * time.Millisecond) // between two looks
	}
}

// process is a gateway in a process of its own.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdout tunneltest.Log
	stderr tunneltest.Log
	done   chan struct{}
	err    error // of Wait, after done
}

// gatewayProcess makes a process with args; start starts it.
func gatewayProcess(t *testing.T, args ...string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, cmd: exec.Command(self, args...), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), asGateway+"=1", "NO_PROXY=", "no_proxy=")
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	return p
}

// inherit hands listening sockets to the process, as a service manager does.
func (p *process) inherit(listeners ...net.Listener) *process {
	for _, ln := range listeners {
		f, err := ln.(*net.TCPListener).File()
		if err != nil {
			p.t.Fatal(err)
		}
		_ = ln.Close()
		p.t.Cleanup(func() { _ = f.Close() })
		p.cmd.ExtraFiles = append(p.cmd.ExtraFiles, f)
	}
	p.cmd.Env = append(p.cmd.Env, "LISTEN_FDS="+strconv.Itoa(len(listeners)))
	return p
}

func (p *process) start() *process {
	p.t.Helper()
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	for _, f := range p.cmd.ExtraFiles {
		_ = f.Close() // or the port stays open after the process has closed it
	}
	go func() { // ends with the process, which the cleanup ends and waits for
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	p.t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
		if p.t.Failed() {
			p.t.Logf("%s\n%s%s", strings.Join(p.cmd.Args[1:], " "), p.stdout.String(), p.stderr.String())
		}
	})
	return p
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// wait returns the exit code.
func (p *process) wait() int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatal("the gateway does not end")
	}
	return p.cmd.ProcessState.ExitCode()
}

// run runs one command to its end.
func runGateway(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	p := gatewayProcess(t, args...).start()
	code = p.wait()
	return code, p.stdout.String(), p.stderr.String()
}

// mesh is what a test's gateways share: a CA, a folder, and free ports.
type mesh struct {
	t   *testing.T
	dir string
	ca  *pki.CA
}

func newMesh(t *testing.T) *mesh {
	t.Helper()
	m := &mesh{t: t, dir: t.TempDir()}
	var err error
	if m.ca, err = pki.NewCA("cluster.local"); err != nil {
		t.Fatal(err)
	}
	m.write("roots.pem", m.ca.PEM())
	for _, name := range []string{"entry", "exit"} {
		m.identity(name, "spiffe://cluster.local/ns/default/sa/"+name)
	}
	return m
}

func (m *mesh) path(name string) string { return filepath.Join(m.dir, name) }

func (m *mesh) write(name string, text []byte) string {
	m.t.Helper()
	if err := os.WriteFile(m.path(name), text, 0o600); err != nil {
		m.t.Fatal(err)
	}
	return m.path(name)
}

// identity issues id as name.pem and name.key.
func (m *mesh) identity(name, id string) {
	m.t.Helper()
	parsed, err := spiffe.Parse(id)
	if err != nil {
		m.t.Fatal(err)
	}
	cert, key, err := m.ca.Issue(parsed, time.Hour)
	if err != nil {
		m.t.Fatal(err)
	}
	m.write(name+".pem", cert)
	m.write(name+".key", key)
}

// flags are those of an identity.
func (m *mesh) flags(name string) []string {
	return []string{"--cert", m.path(name + ".pem"), "--key", m.path(name + ".key"), "--roots", m.path("roots.pem")}
}

// yaml is the identity section of a configuration.
func (m *mesh) yaml(name string) string {
	return fmt.Sprintf("identity: {cert: %s.pem, key: %s.key, roots: roots.pem}\n", name, name)
}

func listenLoopback(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln
}

// running is a gateway that is ready.
type running struct {
	*process
	address string // of its one listener
	admin   string
}

// runReady runs a gateway with one listener of the given flag, and an admin address.
func (m *mesh) runReady(name, flag string, more ...string) *running {
	m.t.Helper()
	ln, adm := listenLoopback(m.t), listenLoopback(m.t)
	args := append([]string{"run", "--admin", adm.Addr().String(), flag, ln.Addr().String()}, m.flags(name)...)
	r := &running{address: ln.Addr().String(), admin: adm.Addr().String()}
	r.process = gatewayProcess(m.t, append(args, more...)...).inherit(ln, adm).start()
	r.ready()
	return r
}

func (r *running) ready() {
	r.t.Helper()
	eventually(r.t, "readyz", func() error {
		select {
		case <-r.done:
			r.t.Fatalf("the gateway ended: %v\n%s", r.err, r.stderr.String())
		default:
		}
		_, err := r.get("/readyz")
		return err
	})
}

// get reads a page of the admin address.
func (r *running) get(path string) (string, error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	res, err := client.Get("http://" + r.admin + path)
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

// metric waits until a line of /metrics is there.
func (r *running) metric(line string) {
	r.t.Helper()
	eventually(r.t, "metric "+line, func() error {
		text, err := r.get("/metrics")
		if err == nil && !strings.Contains("\n"+text, "\n"+line+"\n") {
			err = errors.New("not there")
		}
		return err
	})
}

// echoServer sends back what it gets, and ends when the client does.
func echoServer(t *testing.T) string {
	t.Helper()
	ln := listenLoopback(t)
	var conns sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	done := make(chan struct{})
	go func() { // ends when ln is closed; the cleanup waits for it
		defer close(done)
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[nc] = true
			mu.Unlock()
			conns.Go(func() { // ends with the connection; the cleanup waits for it
				_, _ = io.Copy(nc, nc)
				_ = nc.Close()
			})
		}
	}()
	t.Cleanup(func() {
		_ = ln.Close()
		<-done
		mu.Lock()
		for nc := range open {
			_ = nc.Close()
		}
		mu.Unlock()
		conns.Wait()
	})
	return ln.Addr().String()
}

// dialSOCKS connects through a SOCKS5 listener; the error is what it refused with.
func dialSOCKS(t *testing.T, proxy, target string) (net.Conn, error) {
	t.Helper()
	nc, err := new(net.Dialer).DialContext(context.Background(), "tcp", proxy)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = nc.Close() })
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	_ = nc.SetDeadline(time.Now().Add(patience))
	request := append([]byte{5, 1, 0, 5, 1, 0, 3, byte(len(host))}, host...)
	if ip := net.ParseIP(host).To4(); ip != nil {
		request = append([]byte{5, 1, 0, 5, 1, 0, 1}, ip...)
	}
	if _, err := nc.Write(append(request, byte(n>>8), byte(n))); err != nil {
		return nil, err
	}
	reply := make([]byte, 2+10)
	if _, err := io.ReadFull(nc, reply); err != nil {
		return nil, fmt.Errorf("SOCKS reply: %w", err)
	}
	if reply[3] != 0 {
		return nil, fmt.Errorf("SOCKS reply %d", reply[3])
	}
	return nc, nil
}

// echo sends text and wants it back.
func echo(nc net.Conn, text string) error {
	_ = nc.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(nc, text); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(nc, got); err != nil {
		return err
	}
	if string(got) != text {
		return fmt.Errorf("echo = %q, want %q", got, text)
	}
	return nil
}

// gone reports whether nothing listens on address any more.
func gone(address string) error {
	nc, err := net.Dial("tcp", address)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil
	}
	if err == nil {
		_ = nc.Close()
		return errors.New(address + " still accepts")
	}
	return err
}

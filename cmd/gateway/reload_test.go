package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// reloadable is an entry gateway with a configuration file, and an exit for it.
type reloadable struct {
	*running
	m      *mesh
	exit   *running
	file   string
	target string
	count  map[string]int // reloads, by result
}

// config is the file; routes stand at its end.
func (r *reloadable) config(socks, admin, routes string) string {
	return r.m.yaml("entry") + fmt.Sprintf(`admin: {address: "%s"}
listeners:
- {name: apps, kind: socks5, address: "%s"}
hops:
  exit: {address: "%s"}
routes:
%s`, admin, socks, r.exit.address, routes)
}

const (
	routeAll  = "- {listeners: [apps], via: [exit]}\n"
	routeNone = "- {listeners: [apps], hosts: [nothing.example], via: [exit]}\n"
)

func newReloadable(t *testing.T) *reloadable {
	t.Helper()
	m := newMesh(t)
	r := &reloadable{m: m, exit: m.runReady("exit", "--hbone"), target: echoServer(t), count: map[string]int{}}
	ln, adm := listenLoopback(t), listenLoopback(t)
	r.running = &running{address: ln.Addr().String(), admin: adm.Addr().String()}
	r.file = m.write("gw.yaml", []byte(r.config(r.address, r.admin, routeAll)))
	r.process = gatewayProcess(t, "run", "-c", r.file).inherit(ln, adm).start()
	r.ready()
	return r
}

// change replaces the file in one step and waits until it was taken, or refused.
func (r *reloadable) change(text, result string) {
	r.t.Helper()
	next := r.m.write("next.yaml", []byte(text))
	if err := os.Rename(next, r.file); err != nil {
		r.t.Fatal(err)
	}
	r.reloaded(result)
}

func (r *reloadable) reloaded(result string) {
	r.t.Helper()
	r.count[result]++
	r.metric(fmt.Sprintf(`culvert_reloads_total{result="%s"} %d`, result, r.count[result]))
}

func TestReloadKeepsFlows(t *testing.T) {
	r := newReloadable(t)
	flow, err := dialSOCKS(t, r.address, r.target)
	if err != nil {
		t.Fatal(err)
	}
	lives := func(when string) {
		t.Helper()
		if err := echo(flow, when); err != nil {
			t.Fatalf("flow after %s: %v", when, err)
		}
	}
	lives("start")
	r.change(r.config(r.address, r.admin, routeNone), "ok")
	lives("a reload without its route")
	if _, err := dialSOCKS(t, r.address, r.target); err == nil {
		t.Error("a new flow passes although its route is gone")
	}
	r.change(r.config(r.address, r.admin, routeAll+"- {via: [nowhere]}\n"), "failed")
	lives("a reload that failed")
	if log := r.stderr.String(); !strings.Contains(log, "/gw.yaml:9") || !strings.Contains(log, "there is no hop") || !strings.Contains(log, "old configuration goes on") {
		t.Errorf("the log does not say place and fault:\n%s", log)
	}
	r.change(r.config(r.address, r.admin, routeAll), "ok")
	if _, err := dialSOCKS(t, r.address, r.target); err != nil {
		t.Errorf("a new flow after the route is back: %v", err)
	}
	r.signal(syscall.SIGHUP)
	r.reloaded("ok")
	lives("SIGHUP")
}

func TestReloadRenamesAndMovesListeners(t *testing.T) {
	r := newReloadable(t)
	text := r.config(r.address, r.admin, routeAll)
	r.change(strings.ReplaceAll(text, "apps", "programs"), "ok")
	if _, err := dialSOCKS(t, r.address, r.target); err != nil {
		t.Errorf("a listener with a new name and its old address: %v", err)
	}
	free := listenLoopback(t)
	_ = free.Close()
	r.change(r.config(free.Addr().String(), r.admin, routeAll), "ok")
	if _, err := dialSOCKS(t, free.Addr().String(), r.target); err != nil {
		t.Errorf("a listener with a new address: %v", err)
	}
	eventually(t, "old address", func() error { return gone(r.address) })
	taken := listenLoopback(t)
	r.change(r.config(taken.Addr().String(), r.admin, routeAll), "failed")
	if log := r.stderr.String(); !strings.Contains(log, "the port is in use by ") {
		t.Errorf("the log does not say who has the port:\n%s", log)
	}
	if _, err := dialSOCKS(t, free.Addr().String(), r.target); err != nil {
		t.Errorf("the listener after a reload that failed: %v", err)
	}
}

func TestReloadMovesAdmin(t *testing.T) {
	r := newReloadable(t)
	free := listenLoopback(t)
	_ = free.Close()
	old := r.admin
	next := r.m.write("next.yaml", []byte(r.config(r.address, free.Addr().String(), routeAll)))
	if err := os.Rename(next, r.file); err != nil {
		t.Fatal(err)
	}
	r.admin = free.Addr().String()
	r.ready()
	eventually(t, "old admin address", func() error { return gone(old) })
}

func TestReloadTakesAnotherIdentity(t *testing.T) {
	r := newReloadable(t)
	flow, err := dialSOCKS(t, r.address, r.target)
	if err != nil {
		t.Fatal(err)
	}
	r.m.identity("second", "spiffe://cluster.local/ns/default/sa/second")
	r.change(strings.Replace(r.config(r.address, r.admin, routeAll), r.m.yaml("entry"), r.m.yaml("second"), 1), "ok")
	if err := echo(flow, "old identity"); err != nil {
		t.Errorf("flow of before: %v", err)
	}
	if err := os.Remove(r.m.path("second.key")); err != nil {
		t.Fatal(err)
	}
	r.signal(syscall.SIGHUP)
	r.reloaded("failed")
	if err := echo(flow, "still"); err != nil {
		t.Errorf("flow after a reload that failed: %v", err)
	}
	if log := r.stderr.String(); !strings.Contains(log, "second.key") {
		t.Errorf("the log does not name the file that is missing:\n%s", log)
	}
}

func TestFileWatch(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	path := write("a", "one")
	w := newFileWatch(path)
	if w.changed() {
		t.Error("a file that nobody touched has changed")
	}
	write("a", "two")
	if !w.changed() || w.changed() {
		t.Error("other content of the same size, in the same moment: want one change")
	}
	write("a", "two")
	if w.changed() {
		t.Error("the same content written again is a change")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if w.changed() {
		t.Error("a file that is gone has changed")
	}
	write("b", "three")
	if err := os.Symlink("b", path); err != nil {
		t.Fatal(err)
	}
	if !w.changed() {
		t.Error("a link to another file is no change")
	}
}

func TestSecondHandleOfASocket(t *testing.T) {
	s := new(sockets)
	first, err := s.listen(tcpSocket("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	address := first.Addr().String()
	s.open[tcpSocket(address)] = first.(opened)
	second, err := s.listen(tcpSocket(address))
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	nc, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatalf("the second handle does not keep the socket: %v", err)
	}
	_ = nc.Close()
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := duplicate(second.(opened)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("duplicate of a closed socket = %v, want net.ErrClosed", err)
	}
}

// A file of policies is read again when it changes: flows that it denies end, and one that is wrong, or whose tests fail,
// changes nothing.
func TestReloadOfPolicies(t *testing.T) {
	r := newReloadable(t)
	const allow, deny = "rules:\n- {name: all}\n", "rules:\n- {name: closed, action: deny}\n"
	file := r.m.write("policy.yaml", []byte(allow))
	r.change(r.config(r.address, r.admin, routeAll)+"policy: {files: [policy.yaml]}\n", "ok")
	flow, err := dialSOCKS(t, r.address, r.target)
	if err != nil {
		t.Fatal(err)
	}
	become := func(text, result string) {
		t.Helper()
		if err := os.Rename(r.m.write("next-policy.yaml", []byte(text)), file); err != nil {
			t.Fatal(err)
		}
		r.reloaded(result)
	}
	become("rules:\n- {name: closed, action: denny}\n", "failed")
	become(deny+"tests:\n- {dst: \"10.0.0.9:80\", want: allow}\n", "failed")
	if err := echo(flow, "two files that are refused"); err != nil {
		t.Fatal(err)
	}
	if log := r.stderr.String(); !strings.Contains(log, "/policy.yaml:2") || !strings.Contains(log, "wants allow, and gets: deny by closed") {
		t.Errorf("the log does not say what is wrong:\n%s", log)
	}
	become(deny, "ok")
	if err := echo(flow, "a policy that denies it"); err == nil {
		t.Error("a flow that is denied now lives on")
	}
	if _, err := dialSOCKS(t, r.address, r.target); err == nil {
		t.Error("a new flow passes that is denied")
	}
	become(allow, "ok")
	if _, err := dialSOCKS(t, r.address, r.target); err != nil {
		t.Errorf("a new flow that is allowed again: %v", err)
	}
}

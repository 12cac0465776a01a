package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestEntryAndExit(t *testing.T) {
	m := newMesh(t)
	exit := m.runReady("exit", "--hbone")
	entry := m.runReady("entry", "--socks", "--via", exit.address)
	target := echoServer(t)
	nc, err := dialSOCKS(t, entry.address, target)
	if err != nil {
		t.Fatal(err)
	}
	if err := echo(nc, "through two gateways"); err != nil {
		t.Fatal(err)
	}

	var flows []struct{ Peer, Target, Way string }
	text, err := exit.get("/flows")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(text), &flows); err != nil {
		t.Fatal(err)
	}
	if len(flows) != 1 || flows[0].Peer != "spiffe://cluster.local/ns/default/sa/entry" || flows[0].Target != target {
		t.Errorf("/flows of the exit = %s, want one flow of the entry to %s", text, target)
	}
	if err := nc.Close(); err != nil {
		t.Fatal(err)
	}
	exit.metric(`culvert_flows_ended_total{cause="ok"} 1`)
	entry.metric("culvert_in_bytes_total 20")
	entry.metric("culvert_active_flows 0")
	for _, path := range []string{"/healthz", "/", "/debug/pprof/goroutine?debug=1"} {
		if _, err := entry.get(path); err != nil {
			t.Errorf("GET %s: %v", path, err)
		}
	}
	if text, err := entry.get("/flows"); strings.TrimSpace(text) != "[]" || err != nil {
		t.Errorf("/flows = %q, %v, want an empty list", text, err)
	}
}

func TestSocksRefusals(t *testing.T) {
	m := newMesh(t)
	exit := m.runReady("exit", "--hbone")
	entry := m.runReady("entry", "--socks", "--via", exit.address)
	closed := listenLoopback(t)
	_ = closed.Close()
	tests := []struct{ name, target, want string }{
		{"not this host's address", "127.0.0.2:80", "SOCKS reply"},
		{"nothing listens", closed.Addr().String(), "SOCKS reply 5"},
		{"a name without a route", "example.test:80", "SOCKS reply 4"},
		{"the gateway itself", exit.address, "SOCKS reply"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := dialSOCKS(t, entry.address, tt.target)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("connect to %s = %v, want %s", tt.target, err, tt.want)
			}
		})
	}
}

func TestForwardAndDirect(t *testing.T) {
	m := newMesh(t)
	target := echoServer(t)
	ln, adm := listenLoopback(t), listenLoopback(t)
	p := gatewayProcess(t, append(m.flags("entry"), "run", "--admin", adm.Addr().String(), "--forward", ln.Addr().String()+"="+target)...).inherit(ln, adm).start()
	r := &running{process: p, address: ln.Addr().String(), admin: adm.Addr().String()}
	r.ready()
	nc, err := net.Dial("tcp", r.address)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if err := echo(nc, "forwarded"); err != nil {
		t.Error(err)
	}
}

func TestOtherNamespaceIsRefusedUnlessAllowed(t *testing.T) {
	m := newMesh(t)
	m.identity("stranger", "spiffe://cluster.local/ns/other/sa/stranger")
	target := echoServer(t)
	for _, tt := range []struct {
		name string
		more []string
		want string
	}{
		{"refused", nil, "SOCKS reply 2"},
		{"allowed", []string{"--allow", "cluster.local/ns/other/*"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			exit := m.runReady("exit", "--hbone", tt.more...)
			dir := t.TempDir()
			ln, adm := listenLoopback(t), listenLoopback(t)
			text := fmt.Sprintf(`identity: {cert: %[1]s/stranger.pem, key: %[1]s/stranger.key, roots: %[1]s/roots.pem}
listeners: [{name: apps, kind: socks5, address: "%[2]s"}]
hops: {exit: {address: "%[3]s", identity: spiffe://cluster.local/ns/default/sa/exit}}
routes: [{via: [exit]}]
admin: {address: "%[4]s"}
`, m.dir, ln.Addr(), exit.address, adm.Addr())
			file := filepath.Join(dir, "gw.yaml")
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			entry := &running{address: ln.Addr().String(), admin: adm.Addr().String()}
			entry.process = gatewayProcess(t, "run", "-c", file).inherit(ln, adm).start()
			entry.ready()
			_, err := dialSOCKS(t, entry.address, target)
			if got := fmt.Sprint(err); tt.want == "" && err != nil || !strings.Contains(got, tt.want) {
				t.Errorf("connect = %v, want %q", err, tt.want)
			}
			if tt.want != "" {
				eventually(t, "record", func() error {
					if log := exit.stderr.String(); !strings.Contains(log, "peer=spiffe://cluster.local/ns/other/sa/stranger") {
						return fmt.Errorf("no record with the peer's identity: %s", log)
					}
					return nil
				})
			}
		})
	}
}

func TestTermDrains(t *testing.T) {
	m := newMesh(t)
	exit := m.runReady("exit", "--hbone")
	entry := m.runReady("entry", "--socks", "--via", exit.address)
	nc, err := dialSOCKS(t, entry.address, echoServer(t))
	if err != nil {
		t.Fatal(err)
	}
	entry.signal(syscall.SIGTERM)
	eventually(t, "listener closed", func() error { return gone(entry.address) })
	if text, err := entry.get("/readyz"); err == nil {
		t.Errorf("readyz while draining = %q, want 503", text)
	}
	if err := echo(nc, "still alive"); err != nil {
		t.Errorf("a flow while draining: %v", err)
	}
	exit.signal(syscall.SIGTERM)
	eventually(t, "exit's listener closed", func() error { return gone(exit.address) })
	if err := echo(nc, "both drain"); err != nil {
		t.Errorf("a flow while both drain: %v", err)
	}
	_ = nc.Close()
	for name, p := range map[string]*running{"entry": entry, "exit": exit} {
		if code := p.wait(); code != 0 {
			t.Errorf("exit code of the %s = %d, want 0", name, code)
		}
	}
}

func TestSecondSignalEndsAtOnce(t *testing.T) {
	m := newMesh(t)
	exit := m.runReady("exit", "--hbone")
	entry := m.runReady("entry", "--socks", "--via", exit.address)
	nc, err := dialSOCKS(t, entry.address, echoServer(t))
	if err != nil {
		t.Fatal(err)
	}
	entry.signal(syscall.SIGTERM)
	eventually(t, "listener closed", func() error { return gone(entry.address) })
	if err := echo(nc, "x"); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	entry.signal(syscall.SIGINT)
	if code := entry.wait(); code != exitFailure {
		t.Errorf("exit code = %d, want %d", code, exitFailure)
	}
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("it took %v, want at once", d)
	}
	if !strings.Contains(entry.stderr.String(), "ended at once by a second signal (interrupt); 1 flows were cut") {
		t.Errorf("it does not say why it ended:\n%s", entry.stderr.String())
	}
	if log := entry.stderr.String(); !strings.Contains(log, `reason=cut err="cut: ended at once by a second signal"`) || strings.Contains(log, "time for draining") {
		t.Errorf("the record of the flow does not say that a second signal has cut it:\n%s", log)
	}
}

func TestDrainDeadlineCutsFlows(t *testing.T) {
	m := newMesh(t)
	exit := m.runReady("exit", "--hbone", "--drain", "50ms")
	entry := m.runReady("entry", "--socks", "--via", exit.address)
	nc, err := dialSOCKS(t, entry.address, echoServer(t))
	if err != nil {
		t.Fatal(err)
	}
	exit.signal(syscall.SIGTERM)
	if code := exit.wait(); code != 0 {
		t.Errorf("exit code = %d, want 0", code)
	}
	_ = nc.SetReadDeadline(time.Now().Add(patience))
	if n, err := nc.Read(make([]byte, 1)); n > 0 || !strings.Contains(fmt.Sprint(err), "reset") {
		t.Errorf("the cut flow reads %d, %v; want a reset, not a clean end", n, err)
	}
}

func TestOwnIdentityIsMadeOnFirstStart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	ln, adm := listenLoopback(t), listenLoopback(t)
	r := &running{address: ln.Addr().String(), admin: adm.Addr().String()}
	r.process = gatewayProcess(t, "run", "--state", dir, "--hbone", r.address, "--admin", r.admin).inherit(ln, adm).start()
	r.ready()
	code, stdout, stderr := runGateway(t, "ping", "--state", dir, r.address)
	if code != 0 || !strings.Contains(stdout, "identity   spiffe://cluster.local/ns/default/sa/") || !strings.Contains(stdout, "TLS 1.3") {
		t.Errorf("ping = %d %s%s, want the identity and TLS 1.3", code, stdout, stderr)
	}
	info, err := os.Stat(filepath.Join(dir, "identity.key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key = %v, %v, want mode 0600", info, err)
	}
}

func TestServiceManagerIsNotified(t *testing.T) {
	m := newMesh(t)
	path := filepath.Join(m.dir, "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	ln, adm := listenLoopback(t), listenLoopback(t)
	r := &running{address: ln.Addr().String(), admin: adm.Addr().String()}
	r.process = gatewayProcess(t, append(m.flags("exit"), "run", "--hbone", r.address, "--admin", r.admin)...).inherit(ln, adm)
	r.cmd.Env = append(r.cmd.Env, "NOTIFY_SOCKET="+path, "WATCHDOG_USEC=20000")
	r.start()
	wants := func(want string) {
		t.Helper()
		for {
			_ = socket.SetReadDeadline(time.Now().Add(patience))
			buf := make([]byte, 256)
			n, err := socket.Read(buf)
			if err != nil {
				t.Fatalf("waiting for %s: %v", want, err)
			}
			if strings.HasPrefix(string(buf[:n]), want) {
				return
			}
		}
	}
	wants("READY=1")
	wants("WATCHDOG=1")
	r.signal(syscall.SIGHUP)
	wants("RELOADING=1\nMONOTONIC_USEC=")
	wants("READY=1")
	r.signal(syscall.SIGTERM)
	wants("STOPPING=1")
	if code := r.wait(); code != 0 {
		t.Errorf("exit code = %d, want 0", code)
	}
}

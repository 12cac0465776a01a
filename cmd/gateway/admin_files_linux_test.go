package main

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestAdminAnswersWithoutFiles uses up the files of a gateway, by apps that connect and say nothing, and looks
// at it then; it must go on as before when they have gone.
func TestAdminAnswersWithoutFiles(t *testing.T) {
	m := newMesh(t)
	ln, adm := listenLoopback(t), listenLoopback(t)
	file := m.write("gw.yaml", fmt.Appendf(nil, `%slisteners: [{name: apps, kind: socks5, address: "%s", socks5: {timeout: -1s}}]
routes: [{via: ["127.0.0.1:1"]}]
admin: {address: "%s"}
`, m.yaml("entry"), ln.Addr(), adm.Addr()))
	r := &running{address: ln.Addr().String(), admin: adm.Addr().String()}
	r.process = gatewayProcess(t, "run", "-c", file).inherit(ln, adm).start()
	r.ready()
	const files = 80
	pid := r.cmd.Process.Pid
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: files, Max: files}, nil); err != nil {
		t.Fatal(err)
	}
	var apps []net.Conn
	for range 2 * files {
		nc, err := net.Dial("tcp", r.address)
		if err != nil {
			continue // it was shed, as there is no room
		}
		defer nc.Close()
		apps = append(apps, nc)
	}
	eventually(t, "no file left", func() error {
		if list := must(os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))); len(list) < files {
			return fmt.Errorf("%d files are open, want %d", len(list), files)
		}
		return nil
	})
	for range 20 {
		for _, tt := range []struct{ path, want string }{
			{"/healthz", "ok"},
			{"/readyz", "ready"},
			{"/flows", "["}, {"/agents", "["}, {"/endpoints", "["},
			{"/metrics", "\nculvert_accept_errors_total "},
		} {
			if text, err := r.get(tt.path); err != nil || !strings.Contains(text, tt.want) {
				t.Fatalf("GET %s without files = %v, %.2000s; want in it %q", tt.path, err, text, tt.want)
			}
		}
	}
	for _, nc := range apps {
		_ = nc.Close()
	}
	r.metric("culvert_connections 0")
}

package main_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// freePorts finds n free ports that follow each other.
func freePorts(t *testing.T, n int) int {
	t.Helper()
	for range 100 {
		first := loopback(t)
		port := first.Addr().(*net.TCPAddr).Port
		_ = first.Close()
		free := true
		for i := range n {
			ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+i))
			if err != nil {
				free = false
				break
			}
			_ = ln.Close()
		}
		if free {
			return port
		}
	}
	t.Fatal("no free ports")
	return 0
}

// serveUDP echoes datagrams, and returns its address.
func serveUDP(t *testing.T) string {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pc.Close() })
	go func() { // ends with pc
		buf := make([]byte, 64<<10)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(buf[:n], from)
		}
	}()
	return pc.LocalAddr().String()
}

// TestForwardUDP carries datagrams of several apps through a pair, and through one gateway.
func TestForwardUDP(t *testing.T) {
	m := newMesh(t)
	server := serveUDP(t)
	exit := m.exit(t)
	for name, flags := range map[string][]string{"pair": {"--via", exit.addr}, "direct": nil} {
		t.Run(name, func(t *testing.T) {
			listen := freeAddr(t)
			entry := m.gateway(t, "client", append([]string{"--forward", "udp:" + listen + "=" + server, "--forward", "$ADDR=" + server}, flags...)...)
			var apps []net.Conn
			for i := range 5 {
				nc, err := net.Dial("udp", listen)
				if err != nil {
					t.Fatal(err)
				}
				defer nc.Close()
				apps = append(apps, nc)
				for _, text := range []string{fmt.Sprint("app ", i), strings.Repeat("x", 1200), strings.Repeat("y", 60_000)} {
					if got, err := asksUDP(nc, text); err != nil || got != text {
						t.Errorf("app %d: %d bytes come back as %d, %v", i, len(text), len(got), err)
					}
				}
			}
			for i, nc := range apps { // each has its own
				text := fmt.Sprint("again ", i)
				if got, err := asksUDP(nc, text); err != nil || got != text {
					t.Errorf("app %d: %q, %v, want %q", i, got, err, text)
				}
			}
			page, err := entry.get("/flows")
			if err != nil || strings.Count(page, `"udp"`) != len(apps) {
				t.Errorf("/flows: %s, %v, want %d flows", page, err, len(apps))
			}
		})
	}
}

// TestForwardUDPRefused says in the record why nothing comes back, and does not decide about every datagram.
func TestForwardUDPRefused(t *testing.T) {
	m := newMesh(t)
	exit := m.exit(t)
	listen := freeAddr(t)
	entry := m.gateway(t, "client", "--forward", "udp:"+listen+"=192.0.2.1:53", "--forward", "$ADDR=192.0.2.1:53", "--via", exit.addr)
	nc, err := net.Dial("udp", listen)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	for range 20 {
		if _, err := nc.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
	}
	entry.says(t, "msg=flow", "network=udp", "dst=192.0.2.1:53", "by=server")
	if n := strings.Count(entry.out.String(), "msg=flow"); n > 2 {
		t.Errorf("there are %d records for 20 datagrams", n)
	}
}

// TestForwardUnix listens on a socket of the file system, and connects to one.
func TestForwardUnix(t *testing.T) {
	m := newMesh(t)
	dir := t.TempDir()
	at, to := filepath.Join(dir, "in.sock"), filepath.Join(dir, "out.sock")
	server, err := net.Listen("unix", to)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() { // ends with server
		for {
			nc, err := server.Accept()
			if err != nil {
				return
			}
			go func() { // ends with its connection
				defer nc.Close()
				_, _ = io.Copy(nc, nc)
			}()
		}
	}()
	exit := m.exit(t)
	g := m.gateway(t, "client", "--forward", "unix:"+at+"="+serve(t, echo), "--forward", "$ADDR=unix:"+to, "--via", exit.addr)
	for network, addr := range map[string]string{"unix": at, "tcp": g.addr} {
		nc, err := net.Dial(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		echoes(t, nc, "by "+network)
		if err := nc.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if rest, err := io.ReadAll(nc); len(rest) > 0 || err != nil {
			t.Errorf("%s: the end is %q, %v", network, rest, err)
		}
	}
	g.says(t, "msg=flow", "dst=unix:"+to)
	if err := g.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	within(t, "gateway ended", func() error {
		if g.alive() == nil {
			return fmt.Errorf("it runs")
		}
		return nil
	})
	if _, err := os.Stat(at); !os.IsNotExist(err) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

// TestInheritedSockets takes over what a service manager has opened: for datagrams, and in the file system.
func TestInheritedSockets(t *testing.T) {
	m := newMesh(t)
	exit := m.exit(t)
	path := filepath.Join(t.TempDir(), "in.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var files []*os.File
	for _, c := range []interface{ File() (*os.File, error) }{ln.(*net.UnixListener), pc.(*net.UDPConn)} {
		f, err := c.File()
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	at := pc.LocalAddr().String()
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	_, _ = ln.Close(), pc.Close()
	g, cmd := m.command(t, "client", "--forward", "unix:"+path+"="+serve(t, echo), "--forward", "udp:"+at+"="+serveUDP(t), "--forward", "$ADDR=127.0.0.1:9", "--via", exit.addr)
	cmd.ExtraFiles = append(cmd.ExtraFiles, files...)
	cmd.Env = append(cmd.Env, "LISTEN_FDS=4")
	g.process = start(t, cmd)
	g.ready(t)
	if text := g.out.String(); strings.Contains(text, "was closed") {
		t.Errorf("a socket was not taken:\n%s", text)
	}
	nc, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	echoes(t, nc, "hello")
	app, err := net.Dial("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	if got, err := asksUDP(app, "hello"); got != "hello" || err != nil {
		t.Errorf("datagrams come back as %q, %v", got, err)
	}
}

// TestForwardRange leads each port of a range to its own.
func TestForwardRange(t *testing.T) {
	m := newMesh(t)
	to, from := freePorts(t, 3), freePorts(t, 3)
	for i := range 3 {
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", to+i))
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		go func() { // ends with ln
			for {
				nc, err := ln.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(nc, i)
				_ = nc.Close()
			}
		}()
	}
	exit := m.exit(t)
	m.gateway(t, "client", "--forward", fmt.Sprintf("127.0.0.1:%d-%d=127.0.0.1:%d-%d", from, from+2, to, to+2), "--forward", "$ADDR=127.0.0.1:9", "--via", exit.addr)
	for i := range 3 {
		nc := dial(t, fmt.Sprintf("127.0.0.1:%d", from+i))
		if got, err := io.ReadAll(nc); string(got) != fmt.Sprint(i) || err != nil {
			t.Errorf("port %d leads to %q, %v", i, got, err)
		}
	}
}

// TestConnect carries standard input and output through a tunnel, and says why it cannot.
func TestConnect(t *testing.T) {
	m := newMesh(t)
	exit := m.exit(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	connect := func(to string) (string, string, error) {
		cmd := exec.Command(self, "connect", "--state", t.TempDir(), "--cert", m.path("client.pem"), "--key", m.path("client.key"),
			"--roots", m.path("root.pem"), "--via", exit.addr, to)
		cmd.Env = append(os.Environ(), asGateway+"=1")
		cmd.Stdin = strings.NewReader(strings.Repeat("hello ", 100_000))
		var out, errs strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &errs
		endWithTests(cmd)
		err := cmd.Run()
		return out.String(), errs.String(), err
	}
	if out, errs, err := connect(serve(t, echo)); err != nil || out != strings.Repeat("hello ", 100_000) {
		t.Errorf("%d bytes come back, %v: %s", len(out), err, errs)
	}
	if _, errs, err := connect("192.0.2.1:80"); err == nil || strings.Count(errs, "\n") != 1 || !strings.Contains(errs, "not this host") {
		t.Errorf("connect to what is not allowed: %v, %s", err, errs)
	}
	if _, errs, err := connect("nowhere"); err == nil || !strings.Contains(errs, "it should be like db.internal:22") {
		t.Errorf("connect to no address: %v, %s", err, errs)
	}
}

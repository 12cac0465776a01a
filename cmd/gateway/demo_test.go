package main

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"culvert/tunnel/tunneltest"
)

// startDemo starts a demo on a free port, with a temporary folder of its own, as a service would: without
// input, and with its output in a file.
func startDemo(t *testing.T, socks string) (p *process, temp string) {
	t.Helper()
	temp = t.TempDir()
	p = gatewayProcess(t, "demo", "--socks", socks)
	p.cmd.Env = append(p.cmd.Env, "TMPDIR="+temp)
	p.start()
	eventually(t, "the commands to try", func() error {
		select {
		case <-p.done:
			t.Fatalf("the demo ended: %v", p.err)
		default:
		}
		if !strings.Contains(p.stdout.String(), "Ctrl-C") {
			return errors.New("not printed")
		}
		return nil
	})
	return p, temp
}

var curlLine = regexp.MustCompile(`(?m)^curl .*$`)

func freeAddress(t *testing.T) string {
	t.Helper()
	ln := listenLoopback(t)
	defer ln.Close()
	return ln.Addr().String()
}

func TestForeignCurlFollowsTheDemo(t *testing.T) {
	p, temp := startDemo(t, freeAddress(t))
	lines := curlLine.FindAllString(p.stdout.String(), -1)
	if len(lines) != 3 {
		t.Fatalf("%d lines to try, want 3:\n%s", len(lines), p.stdout.String())
	}
	for _, line := range lines {
		args := strings.Fields(line)[1:]
		out, err := exec.Command("curl", append([]string{"-sS", "-f", "-m", "20"}, args...)...).CombinedOutput()
		if err != nil || len(out) == 0 {
			t.Errorf("%s: %v: %s", line, err, out)
		}
	}
	p.signal(syscall.SIGTERM)
	if code := p.wait(); code != 0 {
		t.Errorf("exit code = %d, want 0", code)
	}
	left, err := os.ReadDir(temp)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v, want nothing", left, err)
	}
}

func TestDemoTakesTheNextFreePort(t *testing.T) {
	taken := listenLoopback(t)
	p, _ := startDemo(t, taken.Addr().String())
	if strings.Contains(p.stdout.String(), "socks5h://"+taken.Addr().String()+" ") {
		t.Errorf("the demo prints the port of another program:\n%s", p.stdout.String())
	}
	if log := p.stderr.String(); !strings.Contains(log, "listen on "+taken.Addr().String()+": the port is in use") || !strings.Contains(log, "; taking 127.0.0.1:") {
		t.Errorf("the demo does not say that the port is in use:\n%s", log)
	}
	p.signal(syscall.SIGHUP) // the terminal was closed
	if code := p.wait(); code != 0 {
		t.Errorf("exit code = %d, want 0", code)
	}
}

func TestDemoStaysOnLoopback(t *testing.T) {
	code, _, stderr := runGateway(t, "demo", "--socks", "0.0.0.0:1080")
	if code != exitUsage || !strings.Contains(stderr, "the demo stays on loopback") {
		t.Errorf("demo = %d, %q, want %d and why", code, stderr, exitUsage)
	}
}

func TestPrefixWriter(t *testing.T) {
	var out tunneltest.Log
	cs := newChildren(&out)
	w := &prefixWriter{prefix: "exit | ", to: cs.log, mu: &cs.logMu}
	for _, part := range []string{"on", "e\ntwo\nth", "ree", "\n"} {
		if n, err := w.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatalf("Write(%q) = %d, %v", part, n, err)
		}
	}
	if want := "exit | one\nexit | two\nexit | three\n"; out.String() != want {
		t.Errorf("output = %q, want %q", out.String(), want)
	}
}

func TestListenNear(t *testing.T) {
	var log tunneltest.Log
	if _, err := listenNear(&log, "192.0.2.1:1080"); err == nil || !strings.Contains(err.Error(), "this host does not have that address") {
		t.Errorf("listenNear = %v, want that the address is not ours", err)
	}
	ln, err := listenNear(&log, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if port := ln.Addr().(*net.TCPAddr).Port; port == 0 {
		t.Error("no port")
	}
}

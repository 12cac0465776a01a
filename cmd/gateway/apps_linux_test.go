package main_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// sshServer starts an SSH server on the host, and returns the arguments with which a client gets in.
func (h *host) sshServer(t *testing.T) (client []string) {
	t.Helper()
	dir := t.TempDir()
	for _, key := range []string{"host", "user"} {
		run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, key))
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // where it locks itself in
		t.Fatal(err)
	}
	start(t, exec.Command(program(t, "ip"), "netns", "exec", h.name, program(t, "sshd"), "-D", "-e", "-f", "/dev/null", "-h", filepath.Join(dir, "host"),
		"-o", "AuthorizedKeysFile="+filepath.Join(dir, "user.pub"), "-o", "StrictModes=no", "-o", "UsePAM=no", "-o", "PidFile=none", "-o", "PermitRootLogin=yes"))
	within(t, "sshd", func() error {
		nc, err := h.dial(t.Context(), "tcp", "127.0.0.1:22")
		if err == nil {
			_ = nc.Close()
		}
		return err
	})
	return []string{"-F", "none", "-i", filepath.Join(dir, "user"), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "BatchMode=yes"}
}

// TestNetnsApps has unmodified programs captured: ssh, iperf3 over TCP and UDP, and a browser.
func TestNetnsApps(t *testing.T) {
	h := newHosts(t)
	h.far.nameServer(net.JoinHostPort(farAddr, "53"), map[string]string{"web.mesh.": farAddr})
	for _, one := range []*host{h.app, h.mid} {
		one.resolvers(farAddr)
	}
	ssh := h.far.sshServer(t)
	h.gatewayOn(t, h.mid, "server", append(outOf, "--egress", "web.mesh:80", "--egress", farAddr+":22")...)

	// Not captured, but told.
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	connect := fmt.Sprintf("env %s=1 %s connect --state %s --cert %s --key %s --roots %s --via %s %%h:%%p", asGateway, self, t.TempDir(),
		h.path("client.pem"), h.path("client.key"), h.path("root.pem"), midHop)
	who := []string{"root@" + farAddr, `echo "$SSH_CLIENT"`}
	if got := h.app.run("ssh", append(append(ssh, "-o", "ProxyCommand="+connect), who...)...); !strings.HasPrefix(got, outAddr+" ") {
		t.Errorf("ssh by ProxyCommand comes from %q", got)
	}

	g := h.gatewayOn(t, h.app, "client", "--capture", "--mesh-names", "*.mesh", "--via", midHop, "--socks", "127.0.0.1:1080", "--http-proxy", "127.0.0.1:1080")
	browse := func(args ...string) string {
		return h.app.run("chromium", append([]string{"--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--user-data-dir=" + t.TempDir(),
			"--timeout=20000", "--dump-dom"}, append(args, "http://web.mesh/page")...)...)
	}
	for name, proxy := range map[string]string{"SOCKS": "--proxy-server=socks5://127.0.0.1:1080", "PAC": "--proxy-pac-url=http://127.0.0.1:1080/proxy.pac"} {
		if got := browse(proxy); !strings.Contains(got, outAddr+" asked for web.mesh/page") {
			t.Errorf("the browser shows through %s: %s", name, got)
		}
	}
	g.says(t, "msg=flow", "way=socks5", "host=web.mesh:80")
	g.says(t, "msg=flow", "way=http-proxy", "host=web.mesh:80")

	h.app.gateway("capture", "install", "--udp-ports", "5201")
	h.app.captured()
	if got := h.app.run("ssh", append(ssh, who...)...); !strings.HasPrefix(got, outAddr+" ") {
		t.Errorf("captured ssh comes from %q", got)
	}
	if got := browse(); !strings.Contains(got, outAddr+" asked for web.mesh/page") {
		t.Errorf("the captured browser shows: %s", got)
	}
	g.says(t, "msg=flow", "way=tproxy", "host=web.mesh:80")

	server := start(t, exec.Command(program(t, "ip"), "netns", "exec", h.far.name, program(t, "iperf3"), "-s", "--forceflush"))
	server.says(t, "Server listening")
	for _, args := range [][]string{{"-n", "64M"}, {"-n", "64M", "-R"}, {"-u", "-b", "50M", "-n", "4M"}, {"-u", "-b", "50M", "-n", "4M", "-R"}} {
		var result struct {
			Error string
			End   struct {
				SumReceived struct{ Bytes float64 } `json:"sum_received"`
				Sum         struct {
					Bytes, Packets float64
					Lost           float64 `json:"lost_percent"`
				}
			}
		}
		within(t, "iperf3", func() error { // it serves one at a time, and may end with 0 for all that
			out, _, err := h.app.try("iperf3", append([]string{"-J", "-c", farAddr}, args...)...)
			if err != nil {
				return err
			}
			result.Error = ""
			if err := json.Unmarshal([]byte(out), &result); err != nil {
				return err
			}
			if result.Error != "" {
				return errors.New(result.Error)
			}
			return nil
		})
		// Its end of a test overtakes what sockets and windows still hold.
		if e := result.End; e.SumReceived.Bytes < 48<<20 && (e.Sum.Packets == 0 || e.Sum.Lost > 5) {
			t.Errorf("iperf3 %v: %+v", args, e)
		}
	}
	if page, err := g.get("/flows"); err != nil || !strings.Contains(page, `"udp"`) || !strings.Contains(page, net.JoinHostPort(farAddr, "5201")) {
		t.Errorf("/flows: %s, %v", page, err) // UDP does not tell when it is over
	}
}

package main_test

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// on makes a command of the gateway on a host, with a state folder of its own, as a user there would type it.
func (h *host) on(state string, args ...string) *exec.Cmd {
	h.t.Helper()
	self, err := os.Executable()
	if err != nil {
		h.t.Fatal(err)
	}
	cmd := exec.Command(program(h.t, "ip"), append([]string{"netns", "exec", h.name, self}, args...)...)
	cmd.Env = append(os.Environ(), asGateway+"=1", "STATE_DIRECTORY="+state)
	return cmd
}

// types runs a command line that a gateway printed, and returns what it prints.
func (h *host) types(state, line string) string {
	h.t.Helper()
	words := strings.Fields(line)
	if len(words) < 2 || words[0] != "gateway" {
		h.t.Fatalf("%q is no command line of a gateway", line)
	}
	out, err := h.on(state, words[1:]...).CombinedOutput()
	if err != nil {
		h.t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

// TestNetnsJoin joins a second host, and a third, to the mesh of the first, each with the one command that the first one
// prints, and carries flows between them, both ways.
func TestNetnsJoin(t *testing.T) {
	h := newHosts(t)
	h.mid.whoServer(midAddr + ":7")
	states := map[*host]string{h.app: t.TempDir(), h.mid: t.TempDir(), h.far: t.TempDir()}
	gateway := func(at *host, args ...string) *gateway {
		g := &gateway{admin: "127.0.0.1:15000", dials: at.dial}
		g.process = start(t, at.on(states[at], append([]string{"run", "--admin", g.admin, "--hbone", ":15008"}, args...)...))
		g.ready(t)
		return g
	}
	gateway(h.mid, "--forward", "127.0.0.1:9001="+app4, "--via", appAddr+":15008")
	ca := start(t, h.mid.on(states[h.mid], "ca", "serve", "--address", midAddr+":15012"))
	ca.says(t, "CA serves", midAddr+":15012")

	// The second host, by the first one's name for it and one of its addresses.
	second, err := h.mid.on(states[h.mid], "ca", "token", "spiffe://cluster.local/ns/default/sa/second").Output()
	if err != nil || strings.Count(string(second), "\n") != 1 {
		t.Fatalf("ca token: %v, %q, want one line", err, second)
	}
	if says := h.app.types(states[h.app], string(second)); !strings.Contains(says, "joined as spiffe://cluster.local/ns/default/sa/second") ||
		!strings.Contains(says, "gateway run --hbone :15008") {
		t.Errorf("join says %s", says)
	}
	// The third is behind the second network, and reaches the first by another address of it.
	third, err := h.mid.on(states[h.mid], "ca", "token", "spiffe://cluster.local/ns/default/sa/third", "--ca", outAddr+":15012").Output()
	if err != nil {
		t.Fatal(err)
	}
	h.far.types(states[h.far], string(third))

	gateway(h.app, "--forward", "127.0.0.1:9001="+midAddr+":7", "--via", midHop, "--forward", "127.0.0.1:9002="+far4)
	gateway(h.far, "--forward", "127.0.0.1:9001="+app4, "--via", appAddr+":15008")
	h.app.wantFrom("127.0.0.1:9001", midAddr) // from the second host to the first
	h.mid.wantFrom("127.0.0.1:9001", appAddr) // and from the first to the second
	h.far.wantFrom("127.0.0.1:9001", appAddr) // and between the two that joined

	// A token is good once.
	out, err := h.far.on(t.TempDir(), strings.Fields(string(second))[1:]...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "used already") {
		t.Errorf("the first command again: %v, %s", err, out)
	}
	// Who was revoked is told so when it renews, and its token is in no log. The second host hears of it from the CA, and the
	// live flow of the third ends there.
	live := h.far.opens("127.0.0.1:9001", appAddr)
	revoked := time.Now()
	if says := h.mid.types(states[h.mid], "gateway ca revoke spiffe://cluster.local/ns/default/sa/third"); !strings.Contains(says, "1 certificate more") {
		t.Errorf("revoke says %s", says)
	}
	_ = live.SetReadDeadline(deadline())
	if _, err := io.Copy(io.Discard, live); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the live flow of the host that was revoked reads %v, want that it is cut", err)
	}
	t.Logf("it ended %v after the command began", time.Since(revoked))
	if says := h.mid.types(states[h.mid], "gateway ca show --members"); !strings.Contains(says, "2 live certificates of 2 identities") ||
		!strings.Contains(says, "member:      spiffe://cluster.local/ns/default/sa/second, 1 certificate, until ") || !strings.Contains(says, "sa/third") {
		t.Errorf("show says %s", says)
	}
	token := strings.Fields(string(second))[len(strings.Fields(string(second)))-1]
	if strings.Contains(ca.out.String(), token) {
		t.Error("the log of the CA has a token")
	}
	// SIGTERM ends the CA at once, and a new one takes its place.
	if err := ca.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	within(t, "the CA ends", func() error {
		if ca.alive() == nil {
			return errors.New("it runs")
		}
		return nil
	})
	if code := ca.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("the CA ended with %d", code)
	}
	ca = start(t, h.mid.on(states[h.mid], "ca", "serve", "--address", midAddr+":15012"))
	ca.says(t, "CA serves")
}

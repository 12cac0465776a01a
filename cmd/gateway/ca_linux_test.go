package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"culvert/pki"
	"culvert/tunnel/tunneltest"
)

// What the commands say when they cannot do what they are asked for.
func TestCACommandsRefuse(t *testing.T) {
	dir, empty := t.TempDir(), t.TempDir()
	for _, name := range []string{"state", "own"} {
		if _, err := pki.CreateCA(filepath.Join(dir, name), "cluster.local"); err != nil {
			t.Fatal(err)
		}
	}
	state := "--state=" + filepath.Join(dir, "state")
	pin := "sha256:" + strings.Repeat("0", 64)
	for _, tc := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"ca", "show", "--state=" + empty}, exitFailure, "there is no CA here"},
		{[]string{"ca", "show", "--state=" + filepath.Join(dir, "none")}, exitFailure, "make the CA with gateway ca serve"},
		{[]string{"join", "--ca=127.0.0.1:1", "--pin=" + pin, "--token=t", "--state=" + empty}, exitFailure, "see whether one runs there"},
		{[]string{"ca", "token", "two", state}, exitUsage, "it should be like spiffe://"},
		{[]string{"ca", "token", state}, exitUsage, "takes one SPIFFE-ID"},
		{[]string{"ca", "token", "spiffe://cluster.local/ns/default/sa/two", state}, exitFailure, "--ca HOST:PORT"},
		{[]string{"ca", "token", "spiffe://other.example/a", "--ca=h:1", state}, exitFailure, "trust domain"},
		{[]string{"ca", "token", "spiffe://cluster.local/a", "--ca=h:1", "--ttl=1000h", state}, exitFailure, "at most"},
		{[]string{"ca", "token", "spiffe://cluster.local/a", "--ca=h:1", "--ttl=soon", state}, exitUsage, "soon"},
		{[]string{"ca", "revoke", "12", state}, exitFailure, "no live certificate"},
		{[]string{"ca", "revoke", "me", state}, exitFailure, "neither a serial number"},
		{[]string{"ca", "serve", "--workload=uid=1=x", state}, exitUsage, "--workload"},
		{[]string{"ca", "serve", "--workload=uid=1=spiffe://a/b", state}, exitUsage, "--workload-api PATH"},
		{[]string{"ca", "serve", "--workload-api=/x", "--workload=uid=1=spiffe://A/b", state}, exitUsage, "lower case"},
		{[]string{"ca", "serve", "--address=here", state}, exitUsage, "--address"},
		{[]string{"ca", "serve", "--log-level=loud", state}, exitUsage, "--log-level"},
		{[]string{"ca", "serve", "--listen=nowhere:x", state}, exitUsage, "--listen: "},
		{[]string{"ca", "serve", "--listen=127.0.0.1:0", "--max-ttl=100000h", state}, exitUsage, "not issued"},
		{[]string{"ca", "serve", "--listen=127.0.0.1:0", "--workload-api=relative", state}, exitFailure, "must be absolute"},
		{[]string{"ca", "nonsense"}, exitUsage, "unknown command"},
		{[]string{"join"}, exitUsage, "required"},
		{[]string{"join", "--ca=h:1", "--pin=x", "--token=t", "--state=" + empty}, exitUsage, "sha256:"},
		{[]string{"join", "--ca=h", "--pin=" + pin, "--token=t", "--state=" + empty}, exitUsage, "no address of a CA"},
		{[]string{"join", "--ca=127.0.0.1:1", "--pin=" + pin, "--token=t", state}, exitFailure, "CA that issues to others"},
		{[]string{"join", "--ca=127.0.0.1:1", "--pin=" + pin, "--token=t", "--state=" + filepath.Join(dir, "own")}, exitFailure, "--replace"},
	} {
		var out tunneltest.Log
		if code := execute(t.Context(), tc.args, &out, &out); code != tc.code || !strings.Contains(out.String(), tc.want) {
			t.Errorf("%v = %d: %s, want %d and %q", tc.args, code, out.String(), tc.code, tc.want)
		}
	}
}

// The commands and the server share a folder; SIGTERM ends the server.
func TestCACommands(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds; make test has it")
	}
	dir := t.TempDir()
	state := "--state=" + dir
	api := filepath.Join(dir, "api")
	ca := gatewayProcess(t, "ca", "serve", state, "--listen=127.0.0.1:0", "--trust-domain=example.org", "--workload-api="+api,
		"--workload=uid=0=spiffe://example.org/ns/a/sa/b").start()
	eventually(t, "the CA serves", func() error { _, err := os.Stat(api); return err })
	for _, step := range []struct{ args, want string }{
		{"ca token spiffe://example.org/ns/a/sa/b --ttl 1m", "gateway join --ca 127.0.0.1:"},
		{"ca show", "tokens:      1 wait"},
		{"ca rotate --auto", "a new root is announced, the old one signs; the next step may follow at"},
		{"ca rotate --now", "the new root signs"},
		{"ca show", "rotation:    the new root signs"},
		{"ca revoke spiffe://example.org/ns/a/sa/b", "see whether that is who you mean"},
		{"ca show", "barred:      spiffe://example.org/ns/a/sa/b"},
	} {
		args := append(strings.Fields(step.args), state)
		if code, stdout, stderr := runGateway(t, args...); code != exitOK || !strings.Contains(stdout, step.want) {
			t.Errorf("%s = %d: %s%s, want %q", step.args, code, stdout, stderr, step.want)
		}
	}
	// A second server changes nothing, the address in the commands included.
	address := func() string {
		_, stdout, _ := runGateway(t, "ca", "show", state)
		_, after, _ := strings.Cut(stdout, "address:")
		line, _, _ := strings.Cut(after, "\n")
		return line
	}
	before := address()
	if code, _, stderr := runGateway(t, "ca", "serve", state, "--listen=127.0.0.1:0"); code != exitFailure || !strings.Contains(stderr, "end that one first") {
		t.Errorf("a second ca serve = %d: %s", code, stderr)
	}
	if after := address(); after != before {
		t.Errorf("a second ca serve has made the address %s of%s", after, before)
	}
	ca.signal(syscall.SIGTERM)
	if code := ca.wait(); code != exitOK || !strings.Contains(ca.stderr.String(), "CA ended") {
		t.Errorf("SIGTERM: %d, %s", code, ca.stderr.String())
	}
	if _, err := os.Stat(api); err == nil {
		t.Error("the socket of the Workload API is left")
	}
}

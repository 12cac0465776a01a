package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestReady(t *testing.T) {
	m := newMesh(t)
	exit := m.runReady("exit", "--hbone")
	file := func(admin string) string {
		return m.write("gw.yaml", []byte(m.yaml("exit")+"listeners: [{name: mesh, kind: hbone, address: \"127.0.0.1:1\"}]\n"+admin))
	}
	_, port, _ := strings.Cut(exit.admin, ":")
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(w, "draining", strings.Repeat("x", 10_000))
	}))
	t.Cleanup(other.Close)
	silent := listenLoopback(t)
	tests := []struct {
		name string
		args []string
		code int
		want string
	}{
		{"address", []string{exit.admin}, 0, "ready"},
		{"all addresses of this host", []string{":" + port}, 0, "ready"},
		{"of a file", []string{"-c", file(fmt.Sprintf("admin: {address: %q}\n", exit.admin))}, 0, "ready"},
		{"status", []string{strings.TrimPrefix(other.URL, "http://")}, exitFailure, `not ready: "draining xxx`},
		{"nobody", []string{freeAddress(t)}, exitFailure, "connection refused"},
		{"silence", []string{"--timeout", "50ms", silent.Addr().String()}, exitFailure, "deadline exceeded"},
		{"file without admin", []string{"-c", m.write("none.yaml", []byte("listeners: []\n"))}, exitUsage, "admin.address is missing"},
		{"no file", []string{"-c", m.path("absent.yaml")}, exitUsage, "cannot be read"},
		{"nothing", nil, exitUsage, "no address"},
		{"both", []string{"-c", "x", exit.admin}, exitUsage, "two addresses"},
		{"no address", []string{"http://localhost/"}, exitUsage, "is not an IP address"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := runGateway(t, append([]string{"ready"}, tt.args...)...)
			if code != tt.code || !strings.Contains(stdout+stderr, tt.want) || len(stdout+stderr) > 1000 {
				t.Errorf("ready = %d, %q, %q, want %d and %q", code, stdout, stderr, tt.code, tt.want)
			}
		})
	}
}

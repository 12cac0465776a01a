package main

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// startAdmin serves an admin address and returns it with its URL.
func startAdmin(t *testing.T) (*admin, string) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	list := func(limit int) any { return make([]int, limit) }
	a := newAdmin(prometheus.NewRegistry(), list, list, list, log)
	ln := listenLoopback(t)
	a.serve(ln, log)
	t.Cleanup(func() { a.close(t.Context()) })
	return a, "http://" + ln.Addr().String()
}

// ask sends one request, for another host's name if there is one.
func ask(t *testing.T, method, url, host string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if host != "" {
		req.Host = host
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

func TestAdmin(t *testing.T) {
	a, base := startAdmin(t)
	a.ready.Store(true)
	tests := []struct {
		name, method, path, host string
		status                   int
		body                     string
	}{
		{"health", "GET", "/healthz", "", 200, "ok"},
		{"ready", "GET", "/readyz", "", 200, "ready"},
		{"index", "GET", "/", "", 200, "/metrics"},
		{"metrics", "GET", "/metrics", "", 200, ""},
		{"flows", "GET", "/flows?limit=2", "", 200, "[\n  0,\n  0\n]"},
		{"agents", "GET", "/agents?limit=2", "", 200, "[\n  0,\n  0\n]"},
		{"flows without a sensible limit", "GET", "/flows?limit=-1", "", 400, "not a number from 1 to"},
		{"profile", "GET", "/debug/pprof/goroutine?debug=1", "", 200, "goroutine profile"},
		{"unknown page", "GET", "/etc/passwd", "", 404, ""},
		{"other method", "POST", "/flows", "", 405, ""},
		{"localhost", "GET", "/healthz", "localhost:15000", 200, "ok"},
		{"IPv6 loopback", "GET", "/healthz", "[::1]", 200, "ok"},
		{"a name that a stranger points here", "GET", "/flows", "evil.example", 421, "loopback"},
		{"a name that looks like loopback", "GET", "/flows", "127.0.0.1.evil.example", 421, "loopback"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			status, body := ask(t, tt.method, base+tt.path, tt.host)
			if status != tt.status || !strings.Contains(body, tt.body) {
				t.Errorf("%s %s = %d, %q, want %d, %q", tt.method, tt.path, status, body, tt.status, tt.body)
			}
		})
	}
}

func TestReadyz(t *testing.T) {
	a, base := startAdmin(t)
	steps := []struct {
		name   string
		step   func()
		status int
		body   string
	}{
		{"starting", func() {}, 503, "starting"},
		{"ready", func() { a.ready.Store(true) }, 200, "ready"},
		{"draining", func() { a.draining.Store(true) }, 503, "draining"},
	}
	for _, s := range steps {
		s.step()
		if status, body := ask(t, "GET", base+"/readyz", ""); status != s.status || !strings.Contains(body, s.body) {
			t.Errorf("%s: readyz = %d, %q, want %d, %q", s.name, status, body, s.status, s.body)
		}
	}
}

// TestReadyExpired checks that a gateway whose certificate has expired says that it is not ready, and why.
func TestReadyExpired(t *testing.T) {
	a := &admin{expired: func() bool { return true }}
	a.ready.Store(true)
	w := httptest.NewRecorder()
	a.readyz(w, httptest.NewRequest(http.MethodGet, "/readyz", nil))
	if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "expired") {
		t.Errorf("/readyz = %d %q, want 503 and that the identity has expired", w.Code, w.Body)
	}
}

package deploy

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// freeAddress is a loopback address that nobody listened on just now.
func freeAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// get reads a page of the admin address.
func get(t *testing.T, url string) (string, error) {
	t.Helper()
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return string(text), err
}

// running starts a gateway with a configuration, which gets an admin address, until the test ends.
func running(t *testing.T, config string) (admin string) {
	t.Helper()
	admin, _ = runningSaying(t, config)
	return admin
}

// runningSaying is running, and said what the gateway says.
func runningSaying(t *testing.T, config string) (admin string, said func() string) {
	t.Helper()
	admin = freeAddress(t)
	dir := t.TempDir()
	file := write(t, filepath.Join(dir, "gateway.yaml"), config+"\nadmin: {address: \""+admin+"\"}\nstate: "+dir+"\n", 0o600)
	cmd := exec.Command(built(t), "run", "-c", file)
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stderr = log
	said = func() string { return read(t, log.Name()) }
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }() // ends with the process, which the cleanup ends; that waits
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Process.Signal(syscall.SIGINT) // at once
		<-ended
		if t.Failed() {
			t.Logf("the gateway says:\n%s", said())
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for ctx.Err() == nil {
		if _, err := try(t, built(t), "ready", admin); err == nil {
			return admin, said
		}
		select {
		case <-ended:
			t.Fatal("the gateway has ended")
		case <-time.After(20 * time.Millisecond):
		}
	}
	t.Fatal("the gateway is not ready")
	return "", nil
}

// metricTypes are the metrics of a running gateway, and those of ours that it shows once there is something to count, by type.
func metricTypes(t *testing.T) map[string]string {
	t.Helper()
	admin := running(t, "listeners: [{name: mesh, kind: hbone, address: \"127.0.0.1:0\"}]\nroutes: [{destinations: [local]}]\n"+
		"policy: {authorizers: [{name: opa, address: \"127.0.0.1:1\"}]}")
	page, err := get(t, "http://"+admin+"/metrics")
	if err != nil {
		t.Fatal(err)
	}
	types := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\w+) (\w+)$`).FindAllStringSubmatch(page, -1) {
		types[m[1]] = m[2]
	}
	for _, m := range regexp.MustCompile(`describe\("(\w+)"`).FindAllStringSubmatch(read(t, "../cmd/gateway/metrics.go"), -1) {
		name := "culvert_" + m[1]
		if types[name] == "" {
			types[name] = "gauge"
			if m[1] == "open_seconds" {
				types[name] = "histogram"
			}
			if strings.HasSuffix(name, "_total") {
				types[name] = "counter"
			}
		}
	}
	if len(types) < 60 || types["culvert_active_flows"] != "gauge" || types["process_open_fds"] != "gauge" {
		t.Fatalf("%d metrics: %v", len(types), types)
	}
	return types
}

// promQL finds the metrics in a query, and the function that a range of each is given to.
var promQL = regexp.MustCompile(`(?:(\w+)\()?\b((?:culvert|process|go)_\w+)`)

// checkQuery says what is wrong with the metrics of a query.
func checkQuery(t *testing.T, where, query string, types map[string]string, used map[string]bool) {
	t.Helper()
	for _, m := range promQL.FindAllStringSubmatch(query, -1) {
		f, name := m[1], m[2]
		for _, part := range []string{"_sum", "_count", "_bucket"} {
			if whole := strings.TrimSuffix(name, part); types[name] == "" && (types[whole] == "summary" || types[whole] == "histogram") {
				name = whole
			}
		}
		used[name] = true
		switch kind := types[name]; {
		case kind == "":
			t.Errorf("%s: there is no metric %s in %s", where, name, query)
		case (f == "rate" || f == "increase") != (kind == "counter" || kind == "summary" || kind == "histogram"):
			t.Errorf("%s: %s is a %s, in %s", where, name, kind, query)
		}
	}
}

func TestDashboardShowsWhatThereIs(t *testing.T) {
	types, used := metricTypes(t), map[string]bool{}
	var dashboard struct {
		Panels []struct {
			ID      int
			Title   string
			Type    string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(read(t, "grafana/culvert.json")), &dashboard); err != nil {
		t.Fatal(err)
	}
	ids := map[int]bool{}
	for _, p := range dashboard.Panels {
		if ids[p.ID] || p.GridPos.X+p.GridPos.W > 24 || p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q: its id is another's, it has no place, or shows nothing", p.Title)
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			checkQuery(t, p.Title, target.Expr, types, used)
		}
	}
	for name := range types {
		if strings.HasPrefix(name, "culvert_") && !used[name] {
			t.Logf("no panel shows %s", name) // it may say little without one
		}
	}
}

func TestForeignAlertsAreRight(t *testing.T) {
	types, used := metricTypes(t), map[string]bool{}
	var rules struct {
		Groups []struct {
			Rules []struct{ Alert, Expr string }
		}
	}
	if err := yaml.Unmarshal([]byte(read(t, "prometheus/alerts.yaml")), &rules); err != nil {
		t.Fatal(err)
	}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			checkQuery(t, r.Alert, r.Expr, types, used)
		}
	}
	run(t, program(t, "promtool"), "check", "rules", "prometheus/alerts.yaml")
	run(t, program(t, "promtool"), "test", "rules", "prometheus/alerts.test.yaml")
}

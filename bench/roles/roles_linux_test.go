package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert/bench/proc"
)

// TestMain lets this binary be the processes that the command starts of itself.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "proxy" {
		fmt.Fprintln(os.Stderr, serveProxy(os.Args[2:]))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// tiny is the least that still takes every measure.
func tiny() size {
	return size{
		warm: 10 * time.Millisecond, bulk: 50 * time.Millisecond, requests: 200 * time.Millisecond, routes: 100,
		agents: 3, settled: 10 * time.Millisecond, gap: 5 * time.Second,
	}
}

// measureTiny takes the parts so named, once, and wants values for all that they promise, what is written to be complete,
// and nothing left running.
func measureTiny(t *testing.T, names string) {
	t.Helper()
	gateway := filepath.Join(t.TempDir(), "gateway")
	build := exec.Command("go", "build", "-trimpath", "-o", gateway, "../../cmd/gateway")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	s, err := newSite(gateway)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	s.mirror = 1<<20 + 17
	chosen, err := choose(names)
	if err != nil {
		t.Fatal(err)
	}
	var progress bytes.Buffer
	r := &run{options: &options{rounds: 1, parts: chosen, size: tiny()}, site: s, progress: &progress}
	if err := r.all(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", &progress)
	for part, fault := range r.results.Faults {
		t.Errorf("%s: %s", part, fault)
	}
	dir := t.TempDir()
	if err := r.results.write(dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "ROLES.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range promised {
		row := "\n| " + g.what + " |"
		if _, after, found := strings.Cut(string(text), row); !found {
			t.Errorf("no row %q in\n%s", row, text)
		} else if line, _, _ := strings.Cut(after, "\n"); strings.Contains(","+names+",", ","+g.part+",") && !hasValue(&r.results, &g) {
			t.Errorf("%s:%s, want values of %q, %q", row, line, g.of, g.over)
		}
	}
	if left := proc.Left(); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// hasValue reports whether all that makes a goal was measured. The clock of processors may not tick in so short a time, so
// that there is no ratio.
func hasValue(r *results, g *goal) bool {
	for _, name := range append(g.of, g.over...) {
		if len(r.list(name, "")) == 0 {
			return false
		}
	}
	return true
}

// TestRoles measures what needs no other program and no network namespace.
func TestRoles(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds; make test has it")
	}
	measureTiny(t, "chain,xtun,agents")
}

// TestForeignRoles measures requests, which h2load asks for, also of HAProxy.
func TestForeignRoles(t *testing.T) {
	if why := missingHAProxy(nil); why != "" {
		t.Fatal(why)
	}
	measureTiny(t, "ingress,routes")
}

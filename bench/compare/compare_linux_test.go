package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert/bench/load"
	"culvert/bench/proc"
)

// tools is where make puts Envoy, as seen from this folder.
const tools = "../../.build/bin"

// TestMain lets this binary be the proxies of the pairs written in Go, as the command is.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "pair" {
		fmt.Fprintln(os.Stderr, servePair(os.Args[2:]))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// buildGateway makes the binary to measure just as `make build` does.
func buildGateway(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "gateway")
	build := exec.Command("go", "build", "-trimpath", "-o", file, "../../cmd/gateway")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return file
}

// tiny is the least that still takes every measure.
func tiny() size {
	return size{
		warm: 10 * time.Millisecond, bulk: 50 * time.Millisecond, ping: 10 * time.Millisecond, beside: 50 * time.Millisecond,
		opens: 50 * time.Millisecond, idle: 20, settled: 10 * time.Millisecond,
		farWarm: 10 * time.Millisecond, far: 300 * time.Millisecond, rest: time.Millisecond,
	}
}

// measureTiny takes every measure of the pairs so named, once, wants what is written to be complete, and nothing left
// running.
func measureTiny(t *testing.T, gateway string, names ...string) {
	t.Helper()
	s, err := newSite(gateway, tools)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	s.mirror = 1<<20 + 17
	list, err := choose(pairs, strings.Join(names, ","), func(p *pair) string { return p.name })
	if err != nil {
		t.Fatal(err)
	}
	var progress bytes.Buffer
	one := &run{site: s, options: &options{rounds: 1, pairs: list, measures: measures, size: tiny()}, progress: &progress}
	if err := one.all(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", &progress)
	dir := t.TempDir()
	if err := one.results.write(dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "results.json"))
	if err != nil {
		t.Fatal(err)
	}
	r := new(results)
	if err := json.Unmarshal(text, r); err != nil {
		t.Fatal(err)
	}
	table, err := os.ReadFile(filepath.Join(dir, "RESULTS.md"))
	if err != nil {
		t.Fatal(err)
	}
	if plot, err := os.ReadFile(filepath.Join(dir, "results.svg")); err != nil || !bytes.Contains(plot, []byte("<svg")) {
		t.Errorf("results.svg = %d bytes, %v, want a plot", len(plot), err)
	}
	for _, name := range names {
		wantComplete(t, r, string(table), name)
	}
	wantNoneLeft(t)
}

// wantNoneLeft checks that what was started has ended.
func wantNoneLeft(t *testing.T) {
	t.Helper()
	if left := proc.Left(); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// wantComplete checks that a pair has a value for every measure, and a row of the table.
func wantComplete(t *testing.T, r *results, markdown, name string) {
	t.Helper()
	for _, one := range r.Rounds {
		if one.Pair == name && len(one.Faults) > 0 {
			t.Errorf("%s: faults %v, want none", name, one.Faults)
		}
	}
	for _, c := range tableColumns {
		noProxies := name == directName && (c.column == colCPU || c.column == colOpenCPU || c.column == colIdle)
		x, ok := r.median(name, c.column)
		// In so short a time the processors' clock may not tick.
		if !noProxies && (!ok || x <= 0 && c.column != colCPU && c.column != colOpenCPU && c.column != colIdle) {
			t.Errorf("%s: %s = %v, %v, want a value", name, c.column, x, ok)
		}
	}
	if !strings.Contains(markdown, "\n| "+name+" |") {
		t.Errorf("no row of %s in\n%s", name, markdown)
	}
}

// TestCompare measures every pair that needs no other program. Each has to bring back random bytes unchanged before
// anything is measured, beside its target and far from it.
func TestCompare(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds; make test has it")
	}
	measureTiny(t, buildGateway(t), culvertName, tlsRelayName, netHTTP2Name, grpcName, directName)
}

// TestForeignCompare measures Envoy, and OpenSSH where it is installed.
func TestForeignCompare(t *testing.T) {
	names := []string{envoyName}
	s := &site{tools: tools}
	if why := missingEnvoy(s); why != "" {
		t.Fatal(why)
	}
	if why := missingOpenSSH(s); why == "" {
		names = append(names, sshName)
	}
	measureTiny(t, "", names...)
}

// TestPairThatDoesNotCarry has pairs that start and do not work: begin says so, and leaves nothing running.
func TestPairThatDoesNotCarry(t *testing.T) {
	s, err := newSite("", tools)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	ends := &pair{name: "ends", start: func(s *site, r *running, _ func(string) (string, error)) error {
		r.entry = "127.0.0.1:1"
		return r.add(s, "ends", "sh", "-c", "echo the reason; exit 3")
	}}
	if _, err := s.begin(t.Context(), ends, false); err == nil || !strings.Contains(fmt.Sprint(err), "the reason") {
		t.Errorf("begin of a pair that ends = %v, want its output", err)
	}
	liar, err := load.NewTarget()
	if err != nil {
		t.Fatal(err)
	}
	defer liar.Close()
	if err := load.Mirror(liar.Addr(), 1000); err != nil {
		t.Errorf("mirror = %v, want none", err)
	}
	changes := changed(t)
	wrong := &pair{name: "wrong", start: func(s *site, r *running, _ func(string) (string, error)) error {
		r.entry = changes
		return r.add(s, "wrong", "sleep", "1000")
	}}
	if _, err := s.begin(t.Context(), wrong, false); err == nil || !strings.Contains(fmt.Sprint(err), "not the") {
		t.Errorf("begin of a pair that changes bytes = %v, want a fault", err)
	}
	wantNoneLeft(t)
}

// changed is a server that sends everything back but the first byte, and the 1000th changed.
func changed(t *testing.T) string {
	t.Helper()
	ln := listen(t)
	var served []chan struct{}
	done := make(chan struct{})
	// Ends with the listener; the cleanup waits.
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			end := make(chan struct{})
			served = append(served, end)
			// Ends with the connection; the cleanup waits.
			go func() {
				defer close(end)
				defer c.Close()
				all, err := io.ReadAll(c)
				if err != nil || len(all) == 0 {
					return
				}
				if len(all) > 1000 {
					all[1000]++
				}
				_, _ = c.Write(all[1:])
			}()
		}
	}()
	t.Cleanup(func() {
		_ = ln.Close()
		<-done
		for _, end := range served {
			<-end
		}
	})
	return ln.Addr().String()
}

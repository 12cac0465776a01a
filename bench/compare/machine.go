package main

import (
	"context"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"culvert/bench/proc"
)

// machine is where and with what was measured.
type machine struct {
	System    string            `json:"system"`
	Kernel    string            `json:"kernel"`
	CPU       string            `json:"cpu"`
	Cores     int               `json:"cores"`
	MemoryMiB int64             `json:"memory_mib"`
	OpenFiles uint64            `json:"open_files"`
	Load      string            `json:"load_before"` // of one, five and fifteen minutes
	Go        string            `json:"go"`
	Programs  map[string]string `json:"programs"` // pair → version
}

// thisMachine reads what it can; what it cannot stays empty.
func thisMachine(ctx context.Context, s *site) machine {
	m := machine{
		System: runtime.GOOS + "/" + runtime.GOARCH, Cores: runtime.NumCPU(), Go: runtime.Version(),
		Kernel: proc.Line("/proc/sys/kernel/osrelease"), OpenFiles: openFiles(),
		CPU: proc.Processor(), Programs: make(map[string]string),
	}
	if load := strings.Fields(proc.Line("/proc/loadavg")); len(load) > 2 {
		m.Load = strings.Join(load[:3], " ")
	}
	if n, err := proc.MemoryBytes(); err == nil {
		m.MemoryMiB = n >> 20
	}
	for _, p := range []struct {
		pair, tool string
		args       []string
	}{{envoyName, "envoy", []string{"--version"}}, {sshName, "ssh", []string{"-V"}}} {
		if path, err := s.tool(p.tool); err == nil {
			m.Programs[p.pair] = firstLine(ctx, path, p.args...)
		}
	}
	m.Programs[culvertName] = firstLine(ctx, "git", "describe", "--always", "--dirty")
	for module, pair := range map[string]string{"golang.org/x/net": netHTTP2Name, "google.golang.org/grpc": grpcName} {
		m.Programs[pair] = moduleVersion(module)
	}
	return m
}

// busyShare is the load for each core from which on other work spoils the figures.
const busyShare = 0.3

// busy reports whether something else ran when the run began.
func (m *machine) busy() bool {
	last, _, _ := strings.Cut(m.Load, " ")
	load, err := strconv.ParseFloat(last, 64)
	return err == nil && load > busyShare*float64(m.Cores)
}

// versionPatience bounds a program that says its version.
const versionPatience = 10 * time.Second

// firstLine is the first line with text of a program's output.
func firstLine(ctx context.Context, program string, args ...string) string {
	ctx, cancel := context.WithTimeout(ctx, versionPatience)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	_, after, found := strings.Cut(line, "version: ") // Envoy says its path first
	if found {
		return after
	}
	return line
}

// moduleVersion is the version of a module this program is made with.
func moduleVersion(path string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, m := range info.Deps {
		if m.Path == path {
			return path + " " + m.Version
		}
	}
	return ""
}

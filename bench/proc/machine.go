package proc

import (
	"context"
	"fmt"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// Machine is where and with what was measured.
type Machine struct {
	System    string            `json:"system"`
	Kernel    string            `json:"kernel"`
	CPU       string            `json:"cpu"`
	Cores     int               `json:"cores"`
	MemoryMiB int64             `json:"memory_mib"`
	OpenFiles uint64            `json:"open_files"`
	Load      string            `json:"load_before"` // of one, five and fifteen minutes
	Go        string            `json:"go"`
	Programs  map[string]string `json:"programs"` // by the name that the results have for it
}

// ThisMachine reads what it can; what it cannot stays empty. Programs is for the caller to fill.
func ThisMachine() Machine {
	m := Machine{
		System: runtime.GOOS + "/" + runtime.GOARCH, Cores: runtime.NumCPU(), Go: runtime.Version(),
		Kernel: Line("/proc/sys/kernel/osrelease"), OpenFiles: openFiles(),
		CPU: Processor(), Programs: make(map[string]string),
	}
	if load := strings.Fields(Line("/proc/loadavg")); len(load) > 2 {
		m.Load = strings.Join(load[:3], " ")
	}
	if n, err := MemoryBytes(); err == nil {
		m.MemoryMiB = n >> 20
	}
	return m
}

// String is the machine in a sentence.
func (m *Machine) String() string {
	return fmt.Sprintf("%d cores of %s, %d MiB of memory, %s, kernel %s, %d open files; load before: %s. %s.",
		m.Cores, m.CPU, m.MemoryMiB, m.System, m.Kernel, m.OpenFiles, m.Load, m.Go)
}

// busyShare is the load for each core from which on other work spoils the figures.
const busyShare = 0.3

// BusyWarning stands above figures that are not to be trusted.
const BusyWarning = "**Other work ran on this machine meanwhile (see the load below): do not rely on these figures.**\n\n"

// Busy reports whether something else ran when the run began.
func (m *Machine) Busy() bool {
	last, _, _ := strings.Cut(m.Load, " ")
	load, err := strconv.ParseFloat(last, 64)
	return err == nil && load > busyShare*float64(m.Cores)
}

// versionPatience bounds a program that says its version.
const versionPatience = 10 * time.Second

// FirstLine is the first line with text of a program's output.
func FirstLine(ctx context.Context, program string, args ...string) string {
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

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// monotonicMicros is CLOCK_MONOTONIC, the clock systemd compares with.
func monotonicMicros() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0
	}
	return t.Nano() / 1000
}

// openFilesLimit is the number of files this process may have open. The Go runtime has raised the
// soft limit to the hard one before main.
func openFilesLimit() uint64 {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return 0
	}
	return r.Cur
}

// noCoreDumps keeps private keys out of core files.
func noCoreDumps() error {
	return unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
}

// endWithParent makes the kernel kill the child when this process ends, however it ends. The child
// gets a process group of its own, so that a Ctrl-C at the terminal reaches only the parent, which
// then ends its children in order. The signal is tied to the thread that starts the child: the caller
// holds runtime.LockOSThread for as long as the child shall live.
func endWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}

// availableMemory is what this process could use at most: the machine's memory or the least limit of
// its control groups. 0 means unknown.
func availableMemory() int64 {
	var info unix.Sysinfo_t
	least := int64(0)
	if err := unix.Sysinfo(&info); err == nil {
		least = int64(info.Totalram) * int64(info.Unit)
	}
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return least
	}
	for _, file := range memoryLimitFiles(string(text)) {
		limit, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if n, err := strconv.ParseInt(strings.TrimSpace(string(limit)), 10, 64); err == nil && n > 0 && (least == 0 || n < least) {
			least = n
		}
	}
	return least
}

// memoryLimitFiles lists where the limits of the control groups in text (/proc/self/cgroup) stand:
// those of the group and of every group around it.
func memoryLimitFiles(text string) []string {
	var files []string
	for line := range strings.Lines(text) {
		part := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(part) != 3 {
			continue
		}
		root, name := "", ""
		switch {
		case part[0] == "0" && part[1] == "":
			root, name = "/sys/fs/cgroup", "memory.max"
		case strings.Contains(","+part[1]+",", ",memory,"):
			root, name = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
		default:
			continue
		}
		for dir := filepath.Clean("/" + part[2]); ; dir = filepath.Dir(dir) {
			files = append(files, filepath.Join(root, dir, name))
			if dir == "/" {
				break
			}
		}
	}
	return files
}

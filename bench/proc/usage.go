package proc

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// clockTick is the unit of times in /proc: USER_HZ, which is 100 on every Linux that Go runs on.
const clockTick = 10 * time.Millisecond

// procStat is what /proc says of a process.
type procStat struct {
	pid, parent int
	start       uint64        // when it started, so that a number used again is not taken for it
	cpu         time.Duration // its own, and that of its children it has waited for
}

// readStat reads /proc/PID/stat.
func readStat(pid int) (procStat, error) {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return procStat{}, err
	}
	// The name in parentheses may hold anything, so fields are counted from the last parenthesis; the first one after
	// it is field 3, state (proc_pid_stat(5)).
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 20 {
		return procStat{}, fmt.Errorf("stat of process %d has %d fields", pid, len(fields))
	}
	number := func(field int) uint64 {
		n, err := strconv.ParseUint(fields[field-3], 10, 64)
		if err != nil {
			return 0 // cutime and cstime are signed on paper only
		}
		return n
	}
	ticks := number(14) + number(15) + number(16) + number(17)
	return procStat{pid: pid, parent: int(number(4)), start: number(22), cpu: time.Duration(ticks) * clockTick}, nil
}

// descendants lists the processes below pid, not pid itself.
func descendants(pid int) []procStat {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	children := make(map[int][]procStat)
	for _, dir := range dirs {
		n, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		if st, err := readStat(n); err == nil { // else it has ended meanwhile
			children[st.parent] = append(children[st.parent], st)
		}
	}
	var found []procStat
	for next := []int{pid}; len(next) > 0; next = next[1:] {
		for _, st := range children[next[0]] {
			found = append(found, st)
			next = append(next, st.pid)
		}
	}
	return found
}

// end waits a moment for a descendant of a process that has ended, and then kills it.
func (st procStat) end() {
	gone := func() bool {
		now, err := readStat(st.pid)
		return err != nil || now.start != st.start
	}
	for deadline := time.Now().Add(endPatience); !gone(); time.Sleep(Poll) {
		if time.Now().After(deadline) {
			_ = syscall.Kill(st.pid, syscall.SIGKILL)
			deadline = deadline.Add(endPatience)
		}
	}
}

// Usage is what processes have used and hold.
type Usage struct {
	CPU           time.Duration // user and system time
	ResidentBytes int64
}

// Usage is that of a process and all below it.
func (p *Process) Usage() (Usage, error) {
	var u Usage
	own, err := readStat(p.PID())
	if err != nil {
		return u, fmt.Errorf("the %s: %w: %s", p.Name, err, p.Tail())
	}
	for _, st := range append(descendants(own.pid), own) {
		u.CPU += st.cpu
		resident, err := ResidentBytes(st.pid)
		if err != nil && st.pid == own.pid {
			return u, err
		}
		u.ResidentBytes += resident
	}
	return u, nil
}

// Left lists the processes that this one, or one below it, has started and that run.
func Left() (pids []int) {
	for _, st := range descendants(os.Getpid()) {
		pids = append(pids, st.pid)
	}
	return pids
}

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestDemoGatewaysEndWithTheDemo(t *testing.T) {
	p, _ := startDemo(t, freeAddress(t))
	addresses := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindAllString(p.stdout.String(), -1)
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		eventually(t, "end of the gateways", func() error { return gone(a) })
	}
}

func TestDemoEndsWhenAGatewayDoes(t *testing.T) {
	p, temp := startDemo(t, freeAddress(t))
	pids := childrenOf(t, p.cmd.Process.Pid)
	if len(pids) != 2 {
		t.Fatalf("gateways = %v, want two", pids)
	}
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code := p.wait(); code != exitFailure {
		t.Errorf("exit code = %d, want %d", code, exitFailure)
	}
	if !strings.Contains(p.stderr.String(), "gateway ended: signal: killed") {
		t.Errorf("it does not say why:\n%s", p.stderr.String())
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v, want nothing", left, err)
	}
}

// childrenOf returns the processes that pid has started.
func childrenOf(t *testing.T, pid int) []int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, file := range stats {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		// proc(5): pid (name) state ppid; the name may hold anything.
		fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(pid) {
			n, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, n)
		}
	}
	return pids
}

func TestMemoryLimitFiles(t *testing.T) {
	text := "12:cpu:/x\n4:memory:/pod/box\n0::/user.slice/a.scope\n"
	want := []string{
		"/sys/fs/cgroup/memory/pod/box/memory.limit_in_bytes", "/sys/fs/cgroup/memory/pod/memory.limit_in_bytes",
		"/sys/fs/cgroup/memory/memory.limit_in_bytes",
		"/sys/fs/cgroup/user.slice/a.scope/memory.max", "/sys/fs/cgroup/user.slice/memory.max", "/sys/fs/cgroup/memory.max",
	}
	if got := memoryLimitFiles(text); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("memoryLimitFiles = %v, want %v", got, want)
	}
	if n := availableMemory(); n < 1<<20 {
		t.Errorf("availableMemory = %d, want what this machine has", n)
	}
}

func TestListenInodes(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0438 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0000000000000000 100 0 0 10 0
   1: 0100007F:0438 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0000000000000000 100 0 0 10 0
   2: 0100007F:0439 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0000000000000000 100 0 0 10 0
`
	got := map[string]bool{}
	listenInodes(table, 1080, got)
	if len(got) != 1 || !got["socket:[4711]"] {
		t.Errorf("listenInodes = %v, want the socket that listens on port 1080", got)
	}
}

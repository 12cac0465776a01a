package rules

import (
	"context"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// isolated calls f in a thread that is in a network namespace of its own, which has lo alone: so are the programs that f
// runs. The thread goes back afterwards and lives on.
func isolated(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces take root")
	}
	here, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(here)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setns(here, unix.CLONE_NEWNET); err != nil {
			panic("a thread is lost in a namespace of a test")
		}
	}()
	system(t, "ip", "link", "set", "lo", "up")
	f()
}

// system runs a program and returns what it prints.
func system(t *testing.T, args ...string) string {
	t.Helper()
	out, err := run(context.Background(), Command{Args: args})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// everything is all of the packet filter and of the routes.
func everything(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, args := range [][]string{
		{"nft", "list", "ruleset"}, {"ipset", "list"}, {"ip", "rule"}, {"ip", "-6", "rule"}, {"ip", "route", "show", "table", "all"}, {"ip", "-6", "route", "show", "table", "all"},
	} {
		for line := range strings.Lines(system(t, args...)) {
			if !strings.Contains(line, "initval") { // of a hash, and random
				b.WriteString(line)
			}
		}
	}
	return b.String()
}

// withoutIPv6 switches IPv6 off in a namespace of a test.
func withoutIPv6(t *testing.T) {
	t.Helper()
	disableIPv6(t, "1")
}

// disableIPv6 has IPv6 off, "1", or on, "0".
func disableIPv6(t *testing.T, value string) {
	t.Helper()
	for _, dev := range []string{"all", "default", "lo"} {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+dev+"/disable_ipv6", []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
}

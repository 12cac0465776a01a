package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// portOwner names the program that listens on a TCP port of this host, such as `sshd (pid 812)`. It is
// empty when that can not be seen, which for a foreign user's program is usual.
func portOwner(port string) string {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return ""
	}
	inodes := map[string]bool{}
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		if text, err := os.ReadFile(table); err == nil {
			listenInodes(string(text), uint16(n), inodes)
		}
	}
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil || len(inodes) == 0 {
		return ""
	}
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil || !inodes[target] {
			continue
		}
		pid := strings.Split(link, "/")[2]
		name, err := os.ReadFile("/proc/" + pid + "/comm")
		if err != nil {
			continue
		}
		return fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(name)), pid)
	}
	return ""
}

// listenInodes adds the sockets of a /proc/net/tcp table that listen on port, as /proc/PID/fd shows them.
func listenInodes(table string, port uint16, to map[string]bool) {
	const listening = "0A"
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) < 10 || f[3] != listening || !strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) {
			continue
		}
		to["socket:["+f[9]+"]"] = true
	}
}

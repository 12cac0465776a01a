package rules

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// namespace names the network namespace of this process.
func namespace() (string, error) {
	link, err := os.Readlink("/proc/self/ns/net") // "net:[4026531840]"
	if err != nil {
		return "", fmt.Errorf("which network namespace this is cannot be seen: %w", err)
	}
	return strings.Trim(strings.TrimPrefix(link, "net:"), "[]"), nil
}

// privileged says what is missing to change the network.
func privileged() error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return nil // the commands will tell
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return errors.New("not permitted: rules of the packet filter take root (sudo gateway capture …) or the capability CAP_NET_ADMIN")
	}
	return nil
}

// ipv6 reports whether the system has IPv6, on lo at least.
func ipv6() bool {
	text, err := os.ReadFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
	return err == nil && strings.TrimSpace(string(text)) == "0"
}

// lock lets one process at a time change the rules of this namespace.
func (h Host) lock() (unlock func(), err error) {
	path, err := h.path()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("keep what is installed: %w; it should be a folder that root can write", err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX); err != nil {
		_ = dir.Close()
		return nil, fmt.Errorf("lock %s: %w", dir.Name(), err)
	}
	return func() { _ = dir.Close() }, nil
}

package rules

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// namespace names the network namespace of this thread, which is the one that commands run in. The name is given again
// when the namespace is no more.
func namespace() (string, error) {
	link, err := os.Readlink("/proc/thread-self/ns/net") // "net:[4026531840]"
	if err != nil {
		return "", fmt.Errorf("which network namespace this is cannot be seen: %w", err)
	}
	return strings.Trim(strings.TrimPrefix(link, "net:"), "[]"), nil
}

// identity names the network namespace of this thread as no other one is named, not even after a boot; "" where the
// system does not tell (before Linux 5.14).
func identity() string {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return ""
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%s/%d", strings.TrimSpace(string(boot)), cookie)
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

// lockPause is how long is waited between two looks at a lock that somebody has.
const lockPause = 50 * time.Millisecond

// lock lets one process at a time change rules. It waits for the others until ctx ends. Only who may write the file can
// lock it: anybody could lock the folder, or the record, and keep root from removing what is installed.
func (h Host) lock(ctx context.Context) (unlock func(), err error) {
	const hint = "it should be a folder that root can write"
	if err := os.MkdirAll(h.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("keep what is installed: %w; %s", err, hint)
	}
	path := filepath.Join(h.Dir, "capture.lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, fmt.Errorf("keep what is installed: %w; %s", err, hint)
	}
	tick := time.NewTicker(lockPause)
	defer tick.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("wait for another `gateway capture`, which has locked %s: %w", path, ctx.Err())
		}
	}
}

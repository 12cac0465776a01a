//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package pki

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// lockWait is how long a process waits for another one that has the state folder locked, which takes it milliseconds.
const lockWait = 10 * time.Second

// lockDir locks a folder against other holders, in this process or another, and returns how to unlock it. The
// system unlocks it when the process ends, however it ends. It blocks for lockWait at most.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(lockWait); ; time.Sleep(5 * time.Millisecond) {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) || time.Now().After(deadline) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
	}
}

//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package acme

import (
	"errors"
	"os"
	"syscall"
)

// tryLock locks a file against other holders, in this process or another, without waiting. held says that there is
// one. The system unlocks it when the process ends, however it ends.
func tryLock(path string) (unlock func(), held bool, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, false, err
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return func() { _ = f.Close() }, false, nil
		case errors.Is(err, syscall.EINTR):
			continue
		}
		return nil, errors.Is(err, syscall.EWOULDBLOCK), errors.Join(err, f.Close())
	}
}

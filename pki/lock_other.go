//go:build !(linux || darwin || freebsd || netbsd || openbsd || dragonfly)

package pki

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// lockWait is how long a process waits for another one that has the state folder locked, which takes it milliseconds.
const lockWait = 10 * time.Second

// lockDir locks a folder with a file in it, as this system has no flock, and returns how to unlock it. A
// file that a crash left behind has to be removed by hand. It blocks for lockWait at most.
func lockDir(dir string) (unlock func(), err error) {
	path := filepath.Join(dir, ".lock")
	for deadline := time.Now().Add(lockWait); ; time.Sleep(5 * time.Millisecond) {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err == nil {
			return func() { f.Close(); os.Remove(path) }, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("lock %s: another process has it; if there is none, remove %s", dir, path)
		}
	}
}

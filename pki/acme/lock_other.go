//go:build !(linux || darwin || freebsd || netbsd || openbsd || dragonfly)

package acme

import (
	"errors"
	"io/fs"
	"os"
)

// tryLock makes a file that must not be there, as this system has no flock. held says that it is there; one that a
// crash left behind has to be removed by hand.
func tryLock(path string) (unlock func(), held bool, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, errors.Is(err, fs.ErrExist), err
	}
	return func() { _ = errors.Join(f.Close(), os.Remove(path)) }, false, nil
}

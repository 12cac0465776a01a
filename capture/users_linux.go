package capture

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// checkExposure says who besides the gateway can read the open file f: an error if that is a mistake,
// a warning if it is how the system hands out secrets.
func checkExposure(f *os.File) (warning string, err error) {
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	e := exposure{mode: info.Mode()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		e.ownedByRoot = st.Uid == 0 && os.Geteuid() != 0
	}
	var mount unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &mount); err != nil {
		return "", fmt.Errorf("statfs %s: %w", f.Name(), err)
	}
	e.mounted = int64(mount.Type) == unix.TMPFS_MAGIC || mount.Flags&unix.ST_RDONLY != 0
	return e.judge(f.Name())
}

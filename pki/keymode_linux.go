package pki

import (
	"io/fs"
	"os"
	"syscall"
)

// From statfs(2).
const (
	tmpfsMagic   = 0x01021994
	ramfsMagic   = 0x858458f6
	flagReadOnly = 0x1
)

// openKeyExcuse returns why a key that others can use is tolerated where f is, "" if it is not: a tmpfs or a
// read-only mount, where the modes are often not the user's to set (Kubernetes mounts secrets so), or a file of
// root that a gateway which is not root can only read through its group or as others.
func openKeyExcuse(f *os.File, info fs.FileInfo) string {
	var fsType, flags int64
	var st syscall.Statfs_t
	if err := syscall.Fstatfs(int(f.Fd()), &st); err == nil {
		fsType, flags = int64(st.Type), int64(st.Flags)
	}
	owner := -1
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		owner = int(sys.Uid)
	}
	return excuse(fsType, flags, owner, os.Geteuid())
}

// excuse is openKeyExcuse as a pure function; owner is -1 if it is not known.
func excuse(fsType, flags int64, owner, self int) string {
	switch {
	case uint32(fsType) == tmpfsMagic || uint32(fsType) == ramfsMagic:
		return "it lies on a tmpfs"
	case flags&flagReadOnly != 0:
		return "it lies on a read-only mount"
	case owner == 0 && self != 0:
		return "it belongs to root and the gateway does not run as root"
	}
	return ""
}

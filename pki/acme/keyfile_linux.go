package acme

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

// openKeyExcuse returns why a key that others can use is tolerated at path, "" if it is not. The cases are those of
// package pki: places where modes are not the operator's to set, as where Kubernetes mounts secrets.
func openKeyExcuse(path string, info fs.FileInfo) string {
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err == nil {
		switch {
		case uint32(st.Type) == tmpfsMagic || uint32(st.Type) == ramfsMagic:
			return "it lies on a tmpfs"
		case st.Flags&flagReadOnly != 0:
			return "it lies on a read-only mount"
		}
	}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok && sys.Uid == 0 && os.Geteuid() != 0 {
		return "it belongs to root and the gateway does not run as root"
	}
	return ""
}

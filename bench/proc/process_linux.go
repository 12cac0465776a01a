package proc

import (
	"os/exec"
	"syscall"
)

// endWithParent makes the kernel kill the child when this process ends, however it ends, and keeps a Ctrl-C at the
// terminal from it. The signal is tied to the thread that starts the child; no thread of this process ends before it
// does, because the only goroutine that locks one is that of main.
func endWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}

// RaiseOpenFiles lifts the limit of open files to the highest allowed, for this process and, because it is set by
// syscall.Setrlimit, for those it starts.
func RaiseOpenFiles() error {
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil {
		return err
	}
	r.Cur = r.Max
	return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &r)
}

// openFiles is the limit of open files; 0 if unknown.
func openFiles() uint64 {
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil {
		return 0
	}
	return r.Cur
}

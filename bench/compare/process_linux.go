package main

import (
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// endWithParent makes the kernel kill the child when this process ends, however it ends, and keeps a Ctrl-C at the
// terminal from it. The signal is tied to the thread that starts the child; no thread of this process ends before it
// does, because the only goroutine that locks one is that of main.
func endWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}

// raiseOpenFiles lifts the limit of open files to the highest allowed, for this process and, because it is set by
// syscall.Setrlimit, for those it starts.
func raiseOpenFiles() error {
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil {
		return err
	}
	r.Cur = r.Max
	return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &r)
}

// lateBind is a net.Dialer's Control: with it the kernel picks the port of a bound address when it knows the other
// end too, so that ports run out per pair of addresses and not per address.
func lateBind(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	})
	if err != nil {
		return err
	}
	return failed
}

// manySources says that all of 127.0.0.0/8 is loopback.
const manySources = true

// openFiles is the limit of open files; 0 if unknown.
func openFiles() uint64 {
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil {
		return 0
	}
	return r.Cur
}

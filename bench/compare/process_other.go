//go:build !linux

package main

import (
	"os/exec"
	"syscall"
)

// Elsewhere than on Linux the command builds, but there is no /proc to measure by.

func endWithParent(*exec.Cmd) {}

func raiseOpenFiles() error { return nil }

func lateBind(_, _ string, _ syscall.RawConn) error { return nil }

const manySources = false

func openFiles() uint64 { return 0 }

//go:build !linux

package load

import "syscall"

func lateBind(_, _ string, _ syscall.RawConn) error { return nil }

const manySources = false

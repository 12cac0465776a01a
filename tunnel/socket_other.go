//go:build !linux

package tunnel

import (
	"errors"
	"fmt"
	"net"
	"syscall"
)

// limitUnsent is not possible on this system.
func limitUnsent(*net.TCPConn) {}

// makeTransparent is not possible on this system.
func makeTransparent(syscall.RawConn) error {
	return fmt.Errorf("flows are captured on Linux only: %w", errors.ErrUnsupported)
}

// markOwn is not possible on this system, and there is nothing that it would be needed for.
func markOwn(syscall.RawConn, int) {}

// portLater is not possible on this system, where a socket has its port as soon as it has an address.
func portLater(syscall.RawConn) {}

// sharePort is not possible on this system.
func sharePort(syscall.RawConn) error {
	return fmt.Errorf("datagrams are captured on Linux only: %w", errors.ErrUnsupported)
}

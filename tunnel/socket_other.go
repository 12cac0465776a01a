//go:build !linux

package tunnel

import "net"

// limitUnsent is not possible on this system.
func limitUnsent(*net.TCPConn) {}

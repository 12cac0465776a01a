//go:build !linux

package tunnel

import "net"

// writeWouldFail is not known on this system: a reset that a write has swallowed is taken for an end.
func writeWouldFail(net.Conn) bool { return false }

// limitUnsent is not possible on this system.
func limitUnsent(*net.TCPConn) {}

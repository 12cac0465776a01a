//go:build !unix

package capture

import "net"

// peek is not possible on this system.
func peek(net.Conn, []byte, func([]byte) bool) bool { return false }

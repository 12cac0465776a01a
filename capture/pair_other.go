//go:build !unix

package capture

import (
	"errors"
	"fmt"
	"net"
)

// Pair is not possible on this system: a pipe in memory cannot be half-closed.
func Pair(bool) (a, b net.Conn, err error) {
	return nil, nil, fmt.Errorf("a connection within the process: %w", errors.ErrUnsupported)
}

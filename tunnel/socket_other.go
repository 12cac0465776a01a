//go:build !linux

package tunnel

import "net"

// writeWouldFail is not known on this system: a reset that a write has swallowed is taken for an end.
func writeWouldFail(net.Conn) bool { return false }

// reader reads a connection; a buffer waits in its Read.
type reader struct{ nc net.Conn }

func newReader(nc net.Conn) *reader { return &reader{nc: nc} }

// read returns a buffer from copyBuffers with n bytes, which the caller puts back where it is not nil.
func (r *reader) read() (buf *[]byte, n int, err error) { return readBlocking(r.nc) }

// limitUnsent is not possible on this system.
func limitUnsent(*net.TCPConn) {}

//go:build !linux

package capture

import (
	"errors"
	"net"
)

var (
	_ PacketWay = TProxy{}
	_ PacketWay = (*Forward)(nil)
	_ PacketWay = Local{}
)

// ServePackets works on Linux only.
func (TProxy) ServePackets(*net.UDPConn, func(*Conn, error)) error { return errors.ErrUnsupported }

// ServePackets works on Linux only.
func (f *Forward) ServePackets(*net.UDPConn, func(*Conn, error)) error { return errors.ErrUnsupported }

// ServePackets works on Linux only.
func (Local) ServePackets(*net.UDPConn, func(*Conn, error)) error { return errors.ErrUnsupported }

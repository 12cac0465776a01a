//go:build !linux || plainudp

package datagram

import "net"

// ioOf returns how the datagrams of nc are read and written: one by one.
func ioOf(nc net.Conn) socketIO { return &plainIO{nc: nc} }

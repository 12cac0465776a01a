package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// originalDestination asks conntrack where a connection was meant to go; its own address where it was not
// rewritten.
func originalDestination(nc net.Conn) (netip.AddrPort, error) {
	at := addrPortOf(nc.LocalAddr())
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return at, fmt.Errorf("%T is no socket", nc)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return at, err
	}
	var dst netip.AddrPort
	if cerr := raw.Control(func(fd uintptr) { dst, err = original(int(fd), at.Addr().Is4()) }); cerr != nil {
		return at, cerr
	}
	if errors.Is(err, syscall.ENOENT) {
		return at, nil
	}
	return dst, err
}

// original reads SO_ORIGINAL_DST, of IPv4 and of IPv6 (linux/netfilter_ipv4.h and netfilter_ipv6/ip6_tables.h: both are
// option 80 of their level). The structures of other options of the same size stand in for the socket addresses.
func original(fd int, v4 bool) (netip.AddrPort, error) {
	if v4 {
		m, err := unix.GetsockoptIPv6Mreq(fd, unix.SOL_IP, unix.SO_ORIGINAL_DST)
		if err != nil {
			return netip.AddrPort{}, err
		}
		b := m.Multiaddr // struct sockaddr_in: family, port, address
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:4])), nil
	}
	m, err := unix.GetsockoptIPv6MTUInfo(fd, unix.SOL_IPV6, unix.SO_ORIGINAL_DST)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return plain(netip.AddrPortFrom(netip.AddrFrom16(m.Addr.Addr), networkOrder(m.Addr.Port))), nil
}

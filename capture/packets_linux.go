package capture

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

var (
	_ PacketWay = TProxy{}
	_ PacketWay = (*Forward)(nil)
	_ PacketWay = Local{}
)

// ServePackets serves a listener that the system leads datagrams to with TPROXY. pc must have been opened with
// IP_TRANSPARENT, which the sockets of its flows take as well: they have the address that the app has sent to.
func (TProxy) ServePackets(pc *net.UDPConn, carry func(*Conn, error)) error {
	s := &packetServer{transparent: true, carry: carry, flow: func(to netip.AddrPort) *Conn {
		return &Conn{Way: WayTProxy, Addr: to.Addr(), Port: to.Port()}
	}}
	return s.serve(pc)
}

// ServePackets serves a port whose destination is fixed.
func (f *Forward) ServePackets(pc *net.UDPConn, carry func(*Conn, error)) error {
	s := &packetServer{carry: carry, flow: func(to netip.AddrPort) *Conn { return f.conn(to.Port()) }}
	return s.serve(pc)
}

// ServePackets serves a port of the gateway itself.
func (Local) ServePackets(pc *net.UDPConn, carry func(*Conn, error)) error {
	s := &packetServer{carry: carry, flow: func(to netip.AddrPort) *Conn {
		return &Conn{Way: WayLocal, Addr: to.Addr(), Port: to.Port()}
	}}
	return s.serve(pc)
}

// packetServer makes flows of the datagrams that arrive at a socket. Each gets a socket of its own, bound to where the
// datagrams were sent and connected to where they come from: the system leads those that follow there, so that a flow
// waits for no other one and has a buffer of its own.
type packetServer struct {
	transparent bool
	flow        func(to netip.AddrPort) *Conn // makes a flow of where its datagrams were sent
	carry       func(*Conn, error)
	table       packetTable

	pc   *net.UDPConn
	raw  syscall.RawConn
	at   netip.AddrPort // of pc
	buf  []byte
	oob  []byte
	left []datagram // read and not yet looked at
}

func (s *packetServer) serve(pc *net.UDPConn) (err error) {
	s.pc, s.at = pc, addrPortOf(pc.LocalAddr())
	s.buf, s.oob = make([]byte, maxDatagramBytes), make([]byte, 256)
	if s.raw, err = pc.SyscallConn(); err != nil {
		return err
	}
	if err := s.tellDestinations(); err != nil {
		return err
	}
	for {
		d, err := s.next()
		if err != nil {
			return err
		}
		if err := s.begin(d); err != nil && !errors.Is(err, net.ErrClosed) {
			s.carry(nil, err)
		}
	}
}

// tellDestinations has the system tell where each datagram was sent.
func (s *packetServer) tellDestinations() error {
	var err error
	cerr := s.raw.Control(func(fd uintptr) {
		four, six := unix.IP_PKTINFO, unix.IPV6_RECVPKTINFO
		if s.transparent {
			four, six = unix.IP_RECVORIGDSTADDR, unix.IPV6_RECVORIGDSTADDR
		}
		err = unix.SetsockoptInt(int(fd), unix.SOL_IP, four, 1)
		if !s.at.Addr().Is4() {
			err = errors.Join(err, unix.SetsockoptInt(int(fd), unix.SOL_IPV6, six, 1))
		}
	})
	return errors.Join(cerr, os.NewSyscallError("setsockopt", err))
}

// next returns the next datagram, and waits for it.
func (s *packetServer) next() (datagram, error) {
	if len(s.left) > 0 {
		d := s.left[0]
		s.left = s.left[1:]
		return d, nil
	}
	s.left = nil
	return s.receive(s.raw, netip.AddrPort{}, true)
}

// errNone is returned where nothing has come.
var errNone = errors.New("no datagram")

// receive reads a datagram that was sent to the address to, where that is valid, or else to where the system tells. Its
// payload is a copy.
func (s *packetServer) receive(raw syscall.RawConn, to netip.AddrPort, wait bool) (d datagram, err error) {
	for {
		var n, oobn int
		var from unix.Sockaddr
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			n, oobn, _, from, rerr = unix.Recvmsg(int(fd), s.buf, s.oob, unix.MSG_DONTWAIT)
			return !wait || !errors.Is(rerr, unix.EAGAIN)
		})
		switch {
		case err != nil:
			return datagram{}, err
		case errors.Is(rerr, unix.EAGAIN):
			return datagram{}, errNone
		case rerr != nil: // what a router has answered to an earlier one; the socket works
			if !wait {
				return datagram{}, errNone
			}
			continue
		}
		d.from, d.to = sockaddr(from), to
		if !to.IsValid() {
			d.to = s.destination(s.oob[:oobn])
		}
		if d.from.IsValid() && d.to.IsValid() {
			d.payload = append([]byte(nil), s.buf[:n]...)
			return d, nil
		}
		if !wait {
			return datagram{}, errNone
		}
	}
}

// begin makes a flow of a datagram, and of those that follow it already.
func (s *packetServer) begin(d datagram) error {
	if !s.table.enter(d.packetFlow) {
		return nil // it was on its way when the flow's socket was made; UDP may lose it
	}
	nc, err := s.dial(d.packetFlow)
	if err != nil {
		s.table.leave(d.packetFlow)
		if s.transparent && errors.Is(err, unix.EADDRINUSE) {
			err = fmt.Errorf("%w: a program of this host has port %d for itself, so that nobody can answer from there; leave the port out of --udp-ports, or the program alone with --exclude-uid", err, d.to.Port())
		}
		return err
	}
	first := append([][]byte{d.payload}, s.following(d.packetFlow, nc)...)
	c := s.flow(d.to)
	c.Conn, c.Packets, c.rare = &packetConn{UDPConn: nc, table: &s.table, flow: d.packetFlow}, true, &rare{first: first}
	s.carry(c, nil)
	return nil
}

// following returns the datagrams of a flow that came before its socket nc was connected, and takes those of others out
// of that. What is for other flows is left for next.
func (s *packetServer) following(f packetFlow, nc *net.UDPConn) (list [][]byte) {
	// Those that are here already will not reach the flow's socket.
	for len(s.left) < maxAtOnce {
		d, err := s.receive(s.raw, netip.AddrPort{}, false)
		if err != nil {
			break
		}
		s.left = append(s.left, d)
	}
	s.left = slices.DeleteFunc(s.left, func(d datagram) bool {
		if d.packetFlow == f {
			list = append(list, d.payload)
		}
		return d.packetFlow == f
	})
	// And those of other flows that came while that was bound and not yet connected are in its queue. All of them must
	// leave it, for whoever reads there takes them for its source's.
	raw, err := nc.SyscallConn()
	if err != nil {
		return list
	}
	for range queueLength(raw) {
		d, err := s.receive(raw, f.to, false) // it was bound to that
		switch {
		case err != nil:
			return list
		case d.packetFlow == f:
			list = append(list, d.payload)
		case len(s.left) < maxAstray:
			s.left = append(s.left, d)
		}
	}
	return list
}

// queueLength is more datagrams than a socket's buffer has room for. In it each costs more than smallest, however short
// it is.
func queueLength(raw syscall.RawConn) (n int) {
	const smallest, fallback = 256, 4096
	n = fallback
	_ = raw.Control(func(fd uintptr) {
		if size, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF); err == nil {
			n = size / smallest
		}
	})
	return n
}

// dial makes the socket of a flow.
func (s *packetServer) dial(f packetFlow) (*net.UDPConn, error) {
	d := net.Dialer{
		LocalAddr: net.UDPAddrFromAddrPort(f.to),
		Control: func(_, _ string, raw syscall.RawConn) error {
			var err error
			cerr := raw.Control(func(fd uintptr) { err = s.share(int(fd), f.to.Addr().Is4()) })
			return errors.Join(cerr, err)
		},
	}
	nc, err := d.DialContext(context.Background(), "udp", f.from.String()) // nothing is waited for
	if err != nil {
		return nil, err
	}
	return nc.(*net.UDPConn), nil
}

// share lets a socket be bound where others are: beside other flows to the same foreign address, or, where only
// processes of this user may be, at the listener's own.
func (s *packetServer) share(fd int, v4 bool) error {
	if !s.transparent {
		return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	}
	level, option := unix.SOL_IP, unix.IP_TRANSPARENT
	if !v4 {
		level, option = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	return os.NewSyscallError("setsockopt", errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1), unix.SetsockoptInt(fd, level, option, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, MarkOwn)))
}

// destination finds where a datagram was sent in what the system tells of it.
func (s *packetServer) destination(oob []byte) netip.AddrPort {
	list, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.AddrPort{}
	}
	for i := range list {
		h, data := list[i].Header, list[i].Data
		switch {
		case h.Level == unix.SOL_IP && h.Type == unix.IP_ORIGDSTADDR && len(data) >= unix.SizeofSockaddrInet4:
			a := (*unix.RawSockaddrInet4)(unsafe.Pointer(unsafe.SliceData(data)))
			return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), networkOrder(a.Port))
		case h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_ORIGDSTADDR && len(data) >= unix.SizeofSockaddrInet6:
			a := (*unix.RawSockaddrInet6)(unsafe.Pointer(unsafe.SliceData(data)))
			return plain(netip.AddrPortFrom(netip.AddrFrom16(a.Addr), networkOrder(a.Port)))
		case h.Level == unix.SOL_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			a := (*unix.Inet4Pktinfo)(unsafe.Pointer(unsafe.SliceData(data)))
			addr := netip.AddrFrom4(a.Spec_dst)
			if addr.IsUnspecified() { // it came before the system was asked to tell; see tellDestinations
				addr = netip.AddrFrom4(a.Addr)
			}
			if addr.IsUnspecified() || addr.IsMulticast() || addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
				return netip.AddrPort{}
			}
			return netip.AddrPortFrom(addr, s.at.Port())
		case h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			a := (*unix.Inet6Pktinfo)(unsafe.Pointer(unsafe.SliceData(data)))
			return plain(netip.AddrPortFrom(netip.AddrFrom16(a.Addr), s.at.Port()))
		}
	}
	if !s.transparent && s.at.Addr().IsValid() && !s.at.Addr().IsUnspecified() {
		return s.at
	}
	return netip.AddrPort{}
}

// networkOrder reads a port as it lies in a socket address.
func networkOrder(port uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], port)
	return binary.BigEndian.Uint16(b[:])
}

// sockaddr returns the address of a socket address of the system.
func sockaddr(sa unix.Sockaddr) netip.AddrPort {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return plain(netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port)))
	}
	return netip.AddrPort{}
}

//go:build !plainudp

package datagram

import (
	"net"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"culvert/tunnel/nowait"
)

const (
	// maxSegments is how many datagrams of one length the system splits a write into (UDP_MAX_SEGMENTS of Linux 5; later
	// ones have 128), and maxTrain how long such a write may be.
	maxSegments = 64
	maxTrain    = MaxPayload
	// maxMessages is how many writes go into one call.
	maxMessages = 64
	// queueBytes is how much may wait in a socket, while others have the processor: some ten milliseconds of a gigabit
	// a second. What a flow does not take is lost, as it is on any slow road.
	queueBytes = 1 << 20
)

// ioOf returns how the datagrams of nc are read and written.
func ioOf(nc net.Conn) socketIO {
	inner := nc
	if w, ok := nc.(interface{ NetConn() net.Conn }); ok {
		inner = w.NetConn()
	}
	u, ok := inner.(*net.UDPConn)
	if !ok {
		return &plainIO{nc: nc}
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return &plainIO{nc: nc}
	}
	s := &udpIO{raw: raw}
	_ = raw.Control(func(fd uintptr) {
		// Systems before Linux 5.0 join nothing.
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1)
		// With less privilege it is what net.core.rmem_max allows.
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, queueBytes) != nil {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, queueBytes)
		}
	})
	s.tryAwait, s.tryRead = nowait.Readable, s.receive
	return s
}

// udpIO reads and writes a UDP socket with recvmmsg, sendmmsg, UDP_GRO and UDP_SEGMENT (udp(7)).
type udpIO struct {
	raw syscall.RawConn

	// owned by the reader; the functions are made once
	tryAwait, tryRead func(fd uintptr) bool
	batch             *batch
	rerr              error

	// owned by the writer
	noSegments bool // the system, or the path, does not split
}

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [4]byte
}

// await waits until the socket has a datagram, or an error.
func (s *udpIO) await() error { return s.raw.Read(s.tryAwait) }

// messages are the headers of one call.
type messages struct {
	hdrs    [maxMessages]mmsghdr
	iovs    []unix.Iovec
	control [maxMessages][controlBytes]byte
}

// controlBytes has room for one control message with an int.
const controlBytes = unix.SizeofCmsghdr + 8

// allMessages holds *messages.
var allMessages = sync.Pool{New: func() any { return &messages{iovs: make([]unix.Iovec, 0, 512)} }}

// read takes what has come with one call. It waits if nothing has.
func (s *udpIO) read(b *batch) error {
	s.batch, s.rerr = b, nil
	err := s.raw.Read(s.tryRead)
	s.batch = nil
	if err != nil {
		return err // closed, or the deadline has passed
	}
	return s.rerr
}

func (s *udpIO) receive(fd uintptr) bool {
	m := allMessages.Get().(*messages)
	defer allMessages.Put(m)
	m.iovs = m.iovs[:batchSlots]
	for i := range batchSlots {
		slot := s.batch.slot(i)
		m.iovs[i].Base = unsafe.SliceData(slot)
		m.iovs[i].SetLen(len(slot))
		h := &m.hdrs[i].hdr
		*h = unix.Msghdr{Iov: &m.iovs[i], Control: &m.control[i][0]}
		h.SetIovlen(1)
		h.SetControllen(controlBytes)
	}
	for {
		n, _, errno := syscall.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&m.hdrs[0])), batchSlots, unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			for i := range int(n) {
				h := &m.hdrs[i]
				s.batch.add(i, int(h.n), segment(m.control[i][:h.hdr.Controllen], int(h.n)))
			}
			return true
		case syscall.EINTR:
		case syscall.EAGAIN:
			return false
		default:
			s.rerr = errno
			return true
		}
	}
}

// segment returns the length of the datagrams that the system has joined to n bytes, 0 where it is one.
func segment(control []byte, n int) int {
	if len(control) < unix.SizeofCmsghdr+4 {
		return 0
	}
	h := (*unix.Cmsghdr)(unsafe.Pointer(unsafe.SliceData(control)))
	if h.Level != unix.IPPROTO_UDP || h.Type != unix.UDP_GRO {
		return 0
	}
	size := int(*(*int32)(unsafe.Pointer(&control[unix.CmsgLen(0)])))
	if size <= 0 || size >= n {
		return 0
	}
	return size
}

// write sends payloads, those of one length that follow each other in one write where the system splits it.
func (s *udpIO) write(payloads [][]byte, wait bool) (n int, dropped loss, err error) {
	m := allMessages.Get().(*messages)
	defer allMessages.Put(m)
	var cerr error
	try := func(fd uintptr) bool {
		for n < len(payloads) {
			var taken int
			var refused bool
			taken, refused, cerr = s.send(fd, m, payloads[n:])
			if refused {
				dropped.add(payloads[n : n+taken]...)
			}
			n += taken
			if cerr == syscall.EAGAIN {
				cerr = nil
				return !wait
			}
			if cerr != nil {
				return true
			}
		}
		return true
	}
	if err := s.raw.Write(try); err != nil {
		return n, dropped, err // closed, or the deadline has passed
	}
	return n, dropped, cerr
}

// send makes one call, and returns how many payloads it has done with, and whether these were refused.
func (s *udpIO) send(fd uintptr, m *messages, payloads [][]byte) (n int, refused bool, err error) {
	var counts [maxMessages]int // payloads in each message
	count, at := 0, 0
	m.iovs = m.iovs[:0]
	for at < len(payloads) && count < maxMessages {
		k := s.train(payloads[at:])
		if len(m.iovs)+k > cap(m.iovs) {
			break
		}
		first := len(m.iovs)
		for _, payload := range payloads[at : at+k] {
			v := unix.Iovec{Base: unsafe.SliceData(payload)}
			v.SetLen(len(payload))
			m.iovs = append(m.iovs, v)
		}
		h := &m.hdrs[count].hdr
		*h = unix.Msghdr{Iov: &m.iovs[first]}
		h.SetIovlen(k)
		if k > 1 {
			c := (*unix.Cmsghdr)(unsafe.Pointer(&m.control[count][0]))
			c.Level, c.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
			c.SetLen(unix.CmsgLen(2))
			*(*uint16)(unsafe.Pointer(&m.control[count][unix.CmsgLen(0)])) = uint16(len(payloads[at]))
			h.Control = &m.control[count][0]
			h.SetControllen(unix.CmsgSpace(2))
		}
		counts[count] = k
		count, at = count+1, at+k
	}
	r, _, errno := syscall.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&m.hdrs[0])), uintptr(count), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	if errno == 0 {
		for _, k := range counts[:r] {
			n += k
		}
		return n, false, nil
	}
	switch { // the first message was not sent
	case errno == syscall.EINTR:
		return 0, false, nil
	case errno == syscall.EAGAIN:
		return 0, false, errno
	case counts[0] > 1 && (errno == syscall.EIO || errno == syscall.EINVAL || errno == syscall.EMSGSIZE):
		s.noSegments = true // a device that computes no checksums, or datagrams that are longer than a packet
		return 0, false, nil
	case passing(errno):
		if errno == syscall.ECONNREFUSED {
			return 0, false, nil // it was about an earlier one, and is told once
		}
		return counts[0], true, nil
	}
	return 0, false, errno
}

// train is how many payloads at the beginning can go in one write: all of one length, and maybe a shorter one.
func (s *udpIO) train(payloads [][]byte) int {
	size := len(payloads[0])
	if s.noSegments || size == 0 {
		return 1
	}
	total, k := size, 1
	for k < len(payloads) && k < maxSegments && total+len(payloads[k]) <= maxTrain && len(payloads[k]) <= size && len(payloads[k]) > 0 {
		total += len(payloads[k])
		k++
		if len(payloads[k-1]) < size {
			break
		}
	}
	return k
}

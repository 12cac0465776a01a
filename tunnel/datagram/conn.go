package datagram

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"culvert/tunnel/nowait"
)

// Conn is a socket of datagrams as a stream of capsules. Read and Write may run at the same time; each by one goroutine.
type Conn struct {
	// immutable after New
	nc net.Conn
	io socketIO

	ended  atomic.Bool // nothing more is read
	closed atomic.Bool

	// owned by the reader
	first   [][]byte // datagrams that were read before
	batch   *batch   // read and not yet served; nil: nothing
	pending []byte   // the rest of a capsule that had no room

	// owned by the writer
	dec  decoder
	list [][]byte // payloads of one write

	share Share       // not changed
	long  atomic.Bool // something was taken of it

	stats Stats
}

// Stats counts what went through the socket of a Conn. Fields are read and written with atomic operations.
type Stats struct {
	// Received and Sent are datagrams, ReceivedBytes and SentBytes their payloads.
	Received, ReceivedBytes, Sent, SentBytes atomic.Int64
	// Dropped are datagrams that the system did not take: too long for the path, or with nobody at the other end.
	Dropped atomic.Int64
}

// socketIO reads and writes the datagrams of a connected socket, many at a time.
type socketIO interface {
	// await returns when something can be read. It holds no memory meanwhile.
	await() error
	// read fills b with what has come; it may wait only where await does not.
	read(b *batch) error
	// write sends payloads and returns how many the socket took; those that it refused for good count, too, and are in
	// dropped. With wait it waits for room.
	write(payloads [][]byte, wait bool) (n int, dropped loss, err error)
}

// loss is datagrams that were not sent.
type loss struct{ n, bytes int }

func (l *loss) add(payloads ...[]byte) {
	for _, payload := range payloads {
		l.n, l.bytes = l.n+1, l.bytes+len(payload)
	}
}

// New makes a Conn of nc, a connected socket whose Read and Write are a datagram each, such as a *net.UDPConn. first are
// datagrams that were read from it before. It owns nc. A net.Conn that waits for datagrams without a buffer has a
// method Await() error, which returns when Read would not wait; one that writes without waiting has TryWrite([]byte)
// error, which returns syscall.EAGAIN where there is no room.
//
// share is what who writes to the Conn may have of the gateway's Room.
func New(nc net.Conn, first [][]byte, share Share) *Conn {
	return newConn(nc, ioOf(nc), first, share)
}

// NewPlain is New without batches of system calls, for comparison.
func NewPlain(nc net.Conn, first [][]byte, share Share) *Conn {
	return newConn(nc, &plainIO{nc: nc}, first, share)
}

func newConn(nc net.Conn, io socketIO, first [][]byte, share Share) *Conn {
	c := &Conn{nc: nc, io: io, first: first, share: share}
	c.dec.room = c.takeLong
	return c
}

// Await blocks until Read would not, or would fail.
func (c *Conn) Await() error {
	if len(c.pending) > 0 || c.batch != nil || len(c.first) > 0 || c.ended.Load() {
		return nil
	}
	err := c.io.await()
	if err != nil && c.ended.Load() {
		return nil
	}
	return err
}

// Read fills p with capsules of what the socket has received. It returns io.EOF after CloseWrite, and 0 without an error
// where only an answer to an earlier datagram was there: the caller need not hold p until more has come, see Await.
func (c *Conn) Read(p []byte) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	if n = c.serve(p); n > 0 {
		return n, nil
	}
	if c.ended.Load() {
		return 0, io.EOF
	}
	b := batches.Get().(*batch)
	err = c.io.read(b)
	if err == nil {
		c.batch = b
		return c.serve(p), nil
	}
	b.reset()
	batches.Put(b)
	switch {
	case c.ended.Load():
		return 0, io.EOF
	case passing(err):
		return 0, nil
	}
	return 0, err
}

// serve fills p with what was received, as far as it has room.
func (c *Conn) serve(p []byte) (n int) {
	n = copy(p, c.pending)
	c.pending = c.pending[n:]
	put := func(payload []byte) bool {
		need := headerLen(len(payload)) + len(payload)
		if len(p)-n < need && n > 0 {
			return false
		}
		c.stats.Received.Add(1)
		c.stats.ReceivedBytes.Add(int64(len(payload)))
		if len(p) >= need {
			n = len(append(appendHeader(p[:n], len(payload)), payload...))
			return true
		}
		whole := append(appendHeader(make([]byte, 0, need), len(payload)), payload...)
		n = copy(p, whole)
		c.pending = whole[n:]
		return false
	}
	for len(c.pending) == 0 && len(c.first) > 0 {
		payload := c.first[0]
		if len(p)-n < headerLen(len(payload))+len(payload) && n > 0 {
			return n
		}
		c.first = c.first[1:]
		put(payload)
	}
	for len(c.pending) == 0 && c.batch != nil {
		payload, ok := c.batch.peek()
		if !ok {
			c.batch.reset()
			batches.Put(c.batch)
			c.batch = nil
			break
		}
		if len(p)-n < headerLen(len(payload))+len(payload) && n > 0 {
			break
		}
		c.batch.pop()
		put(payload)
	}
	return n
}

// Write sends the datagrams whose capsules are complete with p. It waits for room in the socket, until the write
// deadline.
func (c *Conn) Write(p []byte) (int, error) { return c.write(p, true) }

// TryWrite is Write that takes as much of p as there is room for, and does not wait.
func (c *Conn) TryWrite(p []byte) (int, error) { return c.write(p, false) }

// maxList is how many datagrams are collected for one write.
const maxList = 256

// keptPart is the largest buffer that is kept for the next capsule whose end comes later: that of a datagram of a usual
// path.
const keptPart = 2 << 10

// maxLongParts is of how many capsules that are longer the beginnings may be kept at once, by all Conns that share a Room:
// 16 MiB. partsShare is the part of them, one in so many, that one owner may have.
const (
	maxLongParts = 256
	partsShare   = 8
)

// Room bounds what the Conns that share it keep of long capsules whose end has not come: a peer can begin one on each
// stream and never end it. Datagrams so long are rare, and UDP may lose them.
type Room struct {
	mu    sync.Mutex
	taken int            // guarded by mu
	by    map[string]int // by whom; guarded by mu
}

// Share is what one owner may have of a Room.
type Share struct {
	room  *Room
	owner string
}

// For returns the share of an owner: the peer, or the hop, whose capsules are kept.
func (r *Room) For(owner string) Share { return Share{room: r, owner: owner} }

func (s Share) take() bool {
	s.room.mu.Lock()
	defer s.room.mu.Unlock()
	if s.room.taken >= maxLongParts || s.room.by[s.owner] >= maxLongParts/partsShare {
		return false
	}
	if s.room.by == nil {
		s.room.by = make(map[string]int)
	}
	s.room.taken++
	s.room.by[s.owner]++
	return true
}

func (s Share) leave() {
	s.room.mu.Lock()
	defer s.room.mu.Unlock()
	s.room.taken--
	if s.room.by[s.owner]--; s.room.by[s.owner] == 0 {
		delete(s.room.by, s.owner)
	}
}

// takeLong has the beginning of a long capsule kept, until dropLong, if there is room.
func (c *Conn) takeLong() bool {
	if c.long.Load() {
		return true
	}
	if !c.share.take() {
		return false
	}
	c.long.Store(true)
	return true
}

func (c *Conn) dropLong() {
	if c.long.Load() && c.long.Swap(false) {
		c.share.leave()
	}
}

func (c *Conn) write(p []byte, wait bool) (n int, err error) {
	defer c.forget()
	for n < len(p) {
		taken, err := c.writeList(p[n:], wait)
		n += taken
		if err != nil || taken == 0 {
			return n, err
		}
	}
	return n, nil
}

// forget lets go of what a write has looked at: a flow that falls silent holds no more than a little.
func (c *Conn) forget() {
	clear(c.list)
	c.list = c.list[:0]
	if len(c.dec.part) == 0 && cap(c.dec.part) > keptPart {
		c.dec.part = nil
	}
	if len(c.dec.part) == 0 || c.closed.Load() {
		c.dropLong()
	}
	if c.dec.lost > 0 {
		c.stats.Dropped.Add(int64(c.dec.lost))
		c.dec.lost = 0
	}
}

// writeList writes up to maxList datagrams of p, and returns how much of p is done with: less than all of it where there
// is no room.
func (c *Conn) writeList(p []byte, wait bool) (n int, err error) {
	clear(c.list)
	c.list = c.list[:0]
	var ends [maxList]int // of each datagram's capsule, in p
	skip, lost, split := c.dec.skip, c.dec.lost, len(c.dec.part) > 0
	rest := p
	for len(c.list) < maxList {
		payload, behind, ok := c.dec.next(rest)
		rest = behind
		if !ok {
			break
		}
		ends[len(c.list)] = len(p) - len(rest)
		c.list = append(c.list, payload)
		if split {
			break // it lies in the decoder, where the next one may
		}
	}
	for sent := 0; sent < len(c.list); {
		m, dropped, err := c.io.write(c.list[sent:], wait)
		if m == 0 && err == nil && split {
			m = 1 // a part of it is taken already, and cannot be left for later
			dropped.add(c.list[sent])
		}
		c.count(c.list[sent:sent+m], dropped)
		sent += m
		switch {
		case err != nil:
			return len(p) - len(rest), err
		case m > 0:
		case sent == 0:
			c.dec.part, c.dec.skip, c.dec.lost = c.dec.part[:0], skip, lost // as it was
			return 0, nil
		default:
			c.dec.part, c.dec.skip, c.dec.lost = c.dec.part[:0], 0, lost // as after a whole capsule
			return ends[sent-1], nil
		}
	}
	return len(p) - len(rest), nil
}

func (c *Conn) count(payloads [][]byte, dropped loss) {
	var all loss
	all.add(payloads...)
	c.stats.Sent.Add(int64(all.n - dropped.n))
	c.stats.SentBytes.Add(int64(all.bytes - dropped.bytes))
	c.stats.Dropped.Add(int64(dropped.n))
}

// CloseWrite tells that no more datagrams will be written. A socket cannot tell its other end; who reads this one gets
// io.EOF, as a flow of datagrams ends with either of its directions (RFC 9298, section 3.1).
func (c *Conn) CloseWrite() error {
	err := c.dec.ended()
	c.End()
	return err
}

// End makes Read return io.EOF. It may be called at any time.
func (c *Conn) End() {
	c.ended.Store(true)
	_ = c.nc.SetReadDeadline(time.Unix(1, 0)) // a closed socket needs no deadline
}

// Close closes the socket. It may be called again.
func (c *Conn) Close() (err error) {
	if c.closed.Swap(true) {
		return nil
	}
	c.ended.Store(true)
	err = c.nc.Close()
	c.dropLong()
	return err
}

// LocalAddr returns the socket's address.
func (c *Conn) LocalAddr() net.Addr { return c.nc.LocalAddr() }

// RemoteAddr returns the address of its other end.
func (c *Conn) RemoteAddr() net.Addr { return c.nc.RemoteAddr() }

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error { return c.nc.SetDeadline(t) }

// SetReadDeadline sets the deadline of Read. After End it has no effect.
func (c *Conn) SetReadDeadline(t time.Time) error {
	if c.ended.Load() {
		return nil
	}
	return c.nc.SetReadDeadline(t)
}

// SetWriteDeadline sets the deadline of Write.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.nc.SetWriteDeadline(t) }

// Stats returns what went through the socket.
func (c *Conn) Stats() *Stats { return &c.stats }

// passing reports whether an error of a socket concerns one datagram, and not those to come: what the other end, or a
// router, has answered by ICMP to an earlier one, or a datagram that does not fit the path.
func passing(err error) bool {
	for _, e := range []error{syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EMSGSIZE, syscall.EPERM, syscall.ENOBUFS, syscall.EACCES} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// plainIO reads and writes one datagram at a time.
type plainIO struct{ nc net.Conn }

func (s *plainIO) await() error {
	if w, ok := s.nc.(interface{ Await() error }); ok {
		return w.Await()
	}
	if sc, ok := s.nc.(syscall.Conn); ok && nowait.Supported {
		if raw, err := sc.SyscallConn(); err == nil {
			return raw.Read(nowait.Readable)
		}
	}
	return nil
}

func (s *plainIO) read(b *batch) error {
	n, err := s.nc.Read(b.slot(0))
	if err == nil {
		b.add(0, n, 0)
	}
	return err
}

func (s *plainIO) write(payloads [][]byte, wait bool) (n int, dropped loss, err error) {
	try, ok := s.nc.(interface{ TryWrite(p []byte) error })
	for _, payload := range payloads {
		var err error
		if wait || !ok {
			_, err = s.nc.Write(payload)
		} else if err = try.TryWrite(payload); errors.Is(err, syscall.EAGAIN) {
			return n, dropped, nil
		}
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) || !passing(err) {
				return n, dropped, err
			}
			dropped.add(payload)
		}
		n++
	}
	return n, dropped, nil
}

const (
	// batchSlots is how many reads a batch has room for, and slotBytes how much each may bring: with GRO as much as one
	// datagram can.
	batchSlots = 8
	slotBytes  = 64 << 10
)

// batch is what was read from a socket at once.
type batch struct {
	buf   []byte
	reads [batchSlots]received
	n     int // reads that are filled
	at    int // the read that is served
	off   int // in it
}

// received is what one read has brought.
type received struct {
	slot, n int
	segment int // length of each datagram but the last; 0: there is one
}

// batches holds *batch.
var batches = sync.Pool{New: func() any { return &batch{buf: make([]byte, batchSlots*slotBytes)} }}

func (b *batch) slot(i int) []byte { return b.buf[i*slotBytes : (i+1)*slotBytes : (i+1)*slotBytes] }

func (b *batch) add(slot, n, segment int) {
	b.reads[b.n] = received{slot, n, segment}
	b.n++
}

func (b *batch) reset() { b.n, b.at, b.off = 0, 0, 0 }

// peek returns the next datagram. It is valid until reset.
func (b *batch) peek() (payload []byte, ok bool) {
	if b.at == b.n {
		return nil, false
	}
	r := &b.reads[b.at]
	end := r.n
	if r.segment > 0 {
		end = min(r.n, b.off+r.segment)
	}
	return b.slot(r.slot)[b.off:end], true
}

// pop takes the datagram off that peek has returned.
func (b *batch) pop() {
	r := &b.reads[b.at]
	if r.segment > 0 && b.off+r.segment < r.n {
		b.off += r.segment
		return
	}
	b.at, b.off = b.at+1, 0
}

package tunnel

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/time/rate"

	"culvert/policy"
	"culvert/tunnel/nowait"
)

const (
	// pieceBytes is how much of a flow goes on at once where bytes are counted: the flows of an identity take turns with it.
	// A TLS record holds as much.
	pieceBytes = 16 << 10
	// firstPiece is how much a source is let read before anybody knows how much it brings.
	firstPiece = 4 << 10
	leastPiece = 1 << 10 // which a source is always let read, that small frames do not become many
)

// errSpent ends a direction whose quota is used up. The flow has been cut for it.
var errSpent = errors.New("the quota is used up")

// quitter tells when waiting for a limit makes no sense any more.
type quitter interface {
	// quit is closed then; nil: never.
	quit() <-chan struct{}
}

// quit is closed when the destination is a stream that is reset.
func (d *direction) quit() <-chan struct{} {
	if s, ok := d.dst.(Stream); ok {
		return s.Done()
	}
	return nil
}

// pass waits until some of n bytes may go on, pieceBytes at most, and returns how many. Of 0 bytes it waits until those
// that have gone on already are settled. ok is false where it has not waited to the end, as the flow is over or q has quit;
// who carries the flow goes on then, and finds its ends broken. errSpent is that the quota is used up, and the flow cut.
//
// Who waits holds no buffer of its own and no lock. The flows of an identity take turns, each with one piece, so that what
// is reserved ahead is never more than that.
func (f *Flow) pass(n int, q quitter) (m int, ok bool, err error) {
	n = min(n, pieceBytes)
	for {
		l := f.limits.Load()
		if l == nil || !l.paced {
			return n, true, nil
		}
		select {
		case <-l.stop:
			if f.limits.Load() == l {
				return n, false, nil
			}
			continue
		default:
		}
		m, spent := l.spend(n)
		if spent != nil {
			f.cutLimited(limited(spent, &due{who: l.who}, "the quota is used up"))
			return 0, false, errSpent
		}
		if l.wait(m, &f.g.stats, q) {
			return m, true, nil
		}
		for _, e := range l.entries {
			e.unspend(m)
		}
		if f.limits.Load() == l {
			return m, false, nil
		}
	}
}

// owe counts n bytes that have gone on already.
func (f *Flow) owe(n int) {
	if l := f.limits.Load(); l != nil && l.paced {
		now := time.Now()
		for _, e := range l.entries {
			e.owe(n, now)
		}
	}
}

// giveBack returns n bytes that were let pass, and did not come.
func (f *Flow) giveBack(n int) {
	if l := f.limits.Load(); l != nil && l.paced {
		for _, e := range l.entries {
			e.unspend(n)
			e.unrate(n)
		}
	}
}

// spend takes up to n bytes of every quota and returns how many may go on, or the limit whose quota is used up.
func (l *flowLimits) spend(n int) (int, *policy.Limit) {
	now := time.Now()
	for i, e := range l.entries {
		m, spent := e.spend(n, now)
		for _, before := range l.entries[:i] {
			before.unspend(n - m)
		}
		if spent != nil {
			return 0, spent
		}
		n = m
	}
	return n, nil
}

// wait waits until n bytes may go on by every rate; false: it was ended before, and nothing was taken.
func (l *flowLimits) wait(n int, st *stats, q quitter) bool {
	for i, e := range l.entries {
		if e.takeNow(n) {
			continue
		}
		st.limitWaits.add(1)
		st.limitWaiting.add(1)
		ok := e.take(n, l.stop, q.quit())
		st.limitWaiting.add(-1)
		if !ok {
			for _, before := range l.entries[:i] {
				before.unrate(n)
			}
			return false
		}
	}
	return true
}

// takeNow takes n bytes if they may go on now and nobody has waited longer.
func (e *limitEntry) takeNow(n int) bool {
	e.shard.mu.Lock()
	defer e.shard.mu.Unlock()
	switch {
	case e.bytes == nil:
		return true
	case e.waiting > 0:
		return false
	case e.spare > 0 && n <= e.spare:
		e.spare -= n
		return true
	case e.bytes.AllowN(time.Now(), n-e.spare):
		e.spare = 0
		return true
	}
	return false
}

// take waits for n bytes: first for its turn, then for the rate.
func (e *limitEntry) take(n int, stop, quit <-chan struct{}) bool {
	turn := e.queue()
	defer e.unqueue()
	select { // Go serves those that wait at a channel in the order in which they came
	case turn <- struct{}{}:
	case <-stop:
		return false
	case <-quit:
		return false
	}
	defer func() { <-turn }()
	rate, n := e.takeSpare(n)
	for rate != nil {
		now := time.Now()
		part := min(n, rate.Burst())
		r := rate.ReserveN(now, part)
		if !r.OK() {
			continue // the burst has just become smaller
		}
		if !sleep(r.DelayFrom(now), stop, quit) {
			r.CancelAt(time.Now())
			return false
		}
		if n -= part; n == 0 {
			break
		}
	}
	return true
}

// sleep returns false if stop or quit is closed before d is over.
func sleep(d time.Duration, stop, quit <-chan struct{}) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-stop:
	case <-quit:
	}
	return false
}

func (e *limitEntry) queue() (turn chan struct{}) {
	e.shard.mu.Lock()
	defer e.shard.mu.Unlock()
	if e.turn == nil {
		e.turn = make(chan struct{}, 1)
	}
	e.waiting++
	return e.turn
}

func (e *limitEntry) unqueue() {
	e.shard.mu.Lock()
	defer e.shard.mu.Unlock()
	e.waiting--
}

// takeSpare takes what it can of n bytes that others were let pass in vain, and returns the limiter for the rest.
func (e *limitEntry) takeSpare(n int) (*rate.Limiter, int) {
	e.shard.mu.Lock()
	defer e.shard.mu.Unlock()
	spare := min(n, e.spare)
	e.spare -= spare
	return e.bytes, n - spare
}

// spend takes up to n bytes of the quota and returns how many it got, or the limit if the quota is used up.
func (e *limitEntry) spend(n int, now time.Time) (int, *policy.Limit) {
	e.shard.mu.Lock()
	defer e.shard.mu.Unlock()
	if e.spent(now) {
		return 0, e.limit
	}
	if e.limit.Quota > 0 {
		n = int(min(int64(n), e.limit.Quota-e.used))
		e.used += int64(n)
	}
	return n, nil
}

// unspend returns n bytes to the quota.
func (e *limitEntry) unspend(n int) {
	e.shard.mu.Lock()
	defer e.shard.mu.Unlock()
	e.used = max(0, e.used-int64(n))
}

// unrate returns n bytes to the rate.
func (e *limitEntry) unrate(n int) {
	e.shard.mu.Lock()
	defer e.shard.mu.Unlock()
	if e.bytes != nil {
		e.spare = min(e.spare+n, e.bytes.Burst())
	}
}

// owe counts n bytes that have passed already: who comes next waits for it.
func (e *limitEntry) owe(n int, now time.Time) {
	e.shard.mu.Lock()
	defer e.shard.mu.Unlock()
	if e.limit.Quota > 0 {
		_ = e.spent(now) // begins a period
		e.used += int64(n)
	}
	for e.bytes != nil && n > 0 {
		part := min(n, e.bytes.Burst())
		e.bytes.ReserveN(now, part)
		n -= part
	}
}

// pacedSource is the source of a direction whose bytes are counted. It is read as any other, but what it brings has been
// let pass by then: who waits for that holds no buffer.
type pacedSource struct {
	net.Conn // of the direction's source, below a socket
	d        *direction
	raw      syscall.RawConn // nil: not a socket
	wait     interface{ Await() error }
	size     int  // how much the next read will bring, by what the last one has
	may      int  // how much was let pass and not read
	ended    bool // the source has nothing more to tell than its end, which nobody waits for
	peek     *nowait.Op
	read     *nowait.Op
}

func newPacedSource(d *direction) *pacedSource {
	s := &pacedSource{Conn: below(d.src), d: d, size: firstPiece}
	if s.raw = nowait.Raw(s.Conn); s.raw != nil {
		s.peek, s.read = nowait.NewOp(nowait.Peek), nowait.NewOp(nowait.Read)
		return s
	}
	s.wait, _ = s.Conn.(interface{ Await() error })
	return s
}

// blind reports whether nobody knows before a read whether there is anything to be had. Then nothing is let pass ahead: what
// comes is counted, and settled before the next read.
func (s *pacedSource) blind() bool { return s.raw == nil && s.wait == nil }

// Await waits until there is something to read, and until it may go on.
func (s *pacedSource) Await() (err error) {
	if s.may > 0 || s.ended {
		return nil
	}
	size := s.size
	switch {
	case s.raw != nil:
		var probe [1]byte
		n, err := s.peek.Do(s.raw.Read, probe[:], true)
		if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
			return err
		}
		if n == 0 {
			s.ended = true // or an error, which reading will tell
			return nil
		}
	case s.wait != nil:
		if err := s.wait.Await(); err != nil {
			return err
		}
	default:
		size = 0
	}
	s.may, _, err = s.d.flow.pass(size, s.d)
	return err
}

// Read reads what may go on.
func (s *pacedSource) Read(p []byte) (n int, err error) {
	if err := s.Await(); err != nil {
		return 0, err
	}
	most := s.may
	if s.ended || s.blind() {
		most = pieceBytes
	}
	p = p[:min(len(p), most)]
	if s.raw != nil {
		if n, err = s.read.Do(s.raw.Read, p, true); n == 0 && err == nil && len(p) > 0 {
			err = io.EOF
		}
	} else {
		n, err = s.Conn.Read(p)
	}
	s.count(n, most)
	return n, err
}

// count settles what was let pass with the n bytes that came, of most that could.
func (s *pacedSource) count(n, most int) {
	switch over := n - s.may; {
	case over > 0:
		s.d.flow.owe(over)
	case over < 0:
		s.d.flow.giveBack(-over)
	}
	s.may, s.ended = 0, false
	if n == most {
		s.size = min(2*s.size, pieceBytes)
	} else if n < s.size/2 {
		s.size = max(n, leastPiece)
	}
}

// source is what the direction reads, of which a stream reads a socket's descriptor without a stop between, unless its
// bytes are counted.
func (d *direction) source() net.Conn {
	if d.flow.paced() {
		return newPacedSource(d)
	}
	return below(d.src)
}

// writePaced passes p on in pieces, as the flow's limits let it.
func (d *direction) writePaced(p []byte) (total int, err error) {
	for len(p) > 0 {
		n, _, err := d.flow.pass(len(p), d)
		if err != nil {
			return total, err
		}
		m, err := d.put(p[:n])
		total += m
		if err != nil {
			return total, err
		}
		p = p[n:]
	}
	return total, nil
}

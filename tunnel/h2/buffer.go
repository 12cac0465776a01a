package h2

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Sizes of pooled buffers. A large one holds a frame of four whole TLS records, header included.
const (
	smallBuffer  = 4 << 10
	mediumBuffer = 16 << 10
	largeBuffer  = 64 << 10
)

// pools hold buffers by size; nothing in them is charged to a budget.
var pools = [3]sync.Pool{
	{New: func() any { return &buffer{b: make([]byte, smallBuffer)} }},
	{New: func() any { return &buffer{b: make([]byte, mediumBuffer)} }},
	{New: func() any { return &buffer{b: make([]byte, largeBuffer)} }},
}

// buffer is a pooled piece of memory with a count of who refers to it. Its bytes are charged to a
// budget from getBuffer to the last release.
type buffer struct {
	refs   atomic.Int32
	b      []byte
	budget *Budget
}

// getBuffer returns a buffer of at least n bytes, or of largeBuffer where n is greater, held once.
func getBuffer(n int, budget *Budget) *buffer {
	b := pools[poolOf(n)].Get().(*buffer)
	b.refs.Store(1)
	b.budget = budget
	budget.charge(int64(len(b.b)))
	return b
}

func poolOf(n int) int {
	switch {
	case n <= smallBuffer:
		return 0
	case n <= mediumBuffer:
		return 1
	}
	return 2
}

func (b *buffer) hold() { b.refs.Add(1) }

// release gives the buffer back when nobody else holds it.
func (b *buffer) release() {
	switch n := b.refs.Add(-1); {
	case n == 0:
		b.budget.charge(-int64(len(b.b)))
		b.budget = nil
		pools[poolOf(len(b.b))].Put(b)
	case n < 0:
		panic("BUG: buffer released twice")
	}
}

// alone reports whether the caller's is the only reference.
func (b *buffer) alone() bool { return b.refs.Load() == 1 }

// Budget bounds the buffers of all connections that share it. A connection that would go over it is
// not slowed: windows stop growing, Full tells others to refuse new flows, and the streams whose
// readers have stalled longest are reset with ENHANCE_YOUR_CALM. Safe for concurrent use; a nil
// *Budget bounds nothing.
type Budget struct {
	limit  int64
	used   atomic.Int64
	resets atomic.Int64

	relieving atomic.Bool // one goroutine at a time looks for victims

	mu    sync.Mutex
	conns map[*Conn]struct{} // guarded by mu
}

// NewBudget returns a budget of limitBytes for received and waiting bytes. Zero or less: no bound, but
// Used counts.
func NewBudget(limitBytes int64) *Budget {
	return &Budget{limit: limitBytes, conns: make(map[*Conn]struct{})}
}

// Used returns the bytes of buffers in use now.
func (b *Budget) Used() int64 {
	if b == nil {
		return 0
	}
	return b.used.Load()
}

// Limit returns the bound in bytes; zero: none.
func (b *Budget) Limit() int64 {
	if b == nil || b.limit < 0 {
		return 0
	}
	return b.limit
}

// Resets returns how many stalled streams were reset to get below the limit.
func (b *Budget) Resets() int64 {
	if b == nil {
		return 0
	}
	return b.resets.Load()
}

// Full reports whether the limit is reached: no new flow should be taken.
func (b *Budget) Full() bool {
	return b != nil && b.limit > 0 && b.used.Load() >= b.limit
}

// roomy reports whether windows may grow: less than three quarters are in use.
func (b *Budget) roomy() bool {
	return b == nil || b.limit <= 0 || b.used.Load() < b.limit/4*3
}

func (b *Budget) charge(n int64) {
	if b == nil {
		return
	}
	used := b.used.Add(n)
	if n < 0 && b.limit > 0 && used < b.limit && used-n >= b.limit {
		time.AfterFunc(0, b.refundAll) // not here: the caller may hold locks
	}
}

// refundAll gives connections the credit that was held back while the budget was full.
func (b *Budget) refundAll() {
	for _, c := range b.Conns() {
		c.refundOwed()
	}
}

// Conns returns the connections that share the budget, in no order; of those that have ended, the ones with bytes
// that nobody has read.
func (b *Budget) Conns() []*Conn {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Collect(maps.Keys(b.conns))
}

func (b *Budget) join(c *Conn) {
	if b != nil {
		b.mu.Lock()
		b.conns[c] = struct{}{}
		b.mu.Unlock()
	}
}

func (b *Budget) leave(c *Conn) {
	if b != nil {
		b.mu.Lock()
		delete(b.conns, c)
		b.mu.Unlock()
	}
}

// stallAge is how long bytes must lie unread before their stream may be reset for the memory of others.
const stallAge = 100 * time.Millisecond

// relieve resets the streams that have stalled longest, until the budget is below its limit. It is called
// without locks by a reader that found the budget full. While that lasts and no stream has stalled for
// long enough, it looks again.
func (b *Budget) relieve() {
	if b.Full() && b.relieving.CompareAndSwap(false, true) {
		b.relieveNow()
	}
}

func (b *Budget) relieveNow() {
	for b.Full() {
		before := time.Now().Add(-stallAge).UnixNano()
		var victim *Stream
		var since int64
		for _, c := range b.Conns() {
			if s, t := c.longestStalled(before); s != nil && (victim == nil || t < since) {
				victim, since = s, t
			}
		}
		if victim == nil {
			time.AfterFunc(stallAge, b.relieveNow)
			return
		}
		b.resets.Add(1)
		victim.resetFor(streamError(victim.id, EnhanceYourCalm, "its reader stalled while the memory budget was used up"))
	}
	b.relieving.Store(false)
}

package h2

import "testing"

func TestBufferBudget(t *testing.T) {
	b := NewBudget(100 << 10)
	x, y := getBuffer(1, b), getBuffer(largeBuffer, b)
	if got, want := b.Used(), int64(smallBuffer+largeBuffer); got != want {
		t.Errorf("Used = %d, want %d", got, want)
	}
	if b.Full() {
		t.Error("full below the limit")
	}
	z := getBuffer(largeBuffer, b)
	if !b.Full() {
		t.Error("not full above the limit")
	}
	x.hold()
	for _, buf := range []*buffer{x, y, z} {
		buf.release()
	}
	if got := b.Used(); got != smallBuffer {
		t.Errorf("Used = %d while one buffer is held, want %d", got, smallBuffer)
	}
	x.release()
	if b.Used() != 0 {
		t.Errorf("Used = %d after all were released", b.Used())
	}
	defer func() {
		if recover() == nil {
			t.Error("a second release went unnoticed")
		}
	}()
	x.release()
}

// TestRecvQueuePins checks that small pieces do not keep large buffers alive and that pieces of a frame
// that lie side by side become one.
func TestRecvQueuePins(t *testing.T) {
	b := NewBudget(0)
	buf := getBuffer(largeBuffer, b)
	var q recvQueue
	for i := range 100 {
		q.add(buf, i*20, i*20+10, b)
	}
	if !buf.alone() {
		t.Error("pieces of 10 bytes hold a buffer of 64 KiB")
	}
	if got := b.Used() - largeBuffer; got != smallBuffer {
		t.Errorf("1000 bytes use %d bytes of buffers, want %d", got, smallBuffer)
	}
	q.add(buf, 10000, 26000, b)
	q.add(buf, 26000, 42000, b)
	if n := len(q.segs); n != 2 {
		t.Errorf("%d segments, want 2", n)
	}
	if n := q.drop(); n != 1000+32000 {
		t.Errorf("drop = %d bytes, want 33000", n)
	}
	buf.release()
	if b.Used() != 0 {
		t.Errorf("Used = %d after drop", b.Used())
	}
}

func TestPoolOf(t *testing.T) {
	for _, c := range []struct{ n, size int }{{0, smallBuffer}, {smallBuffer, smallBuffer}, {smallBuffer + 1, mediumBuffer}, {largeBuffer, largeBuffer}} {
		b := getBuffer(c.n, nil)
		if len(b.b) != c.size {
			t.Errorf("getBuffer(%d) has %d bytes, want %d", c.n, len(b.b), c.size)
		}
		b.release()
	}
}

// TestRecvQueueStaysSmall reads a queue that never runs empty: it must not grow with what it has carried.
func TestRecvQueueStaysSmall(t *testing.T) {
	buf := getBuffer(largeBuffer, nil)
	defer buf.release()
	var q recvQueue
	for i := range 10_000 {
		q.add(buf, i%2*32<<10, (i%2+1)*32<<10, nil)
		if i > 0 {
			q.read(make([]byte, 32<<10))
		}
	}
	if n := cap(q.segs); n > 64 {
		t.Errorf("room for %d segments after one was unread at a time", n)
	}
	q.drop()
}

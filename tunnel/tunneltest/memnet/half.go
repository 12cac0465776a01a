package memnet

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// half is one direction.
type half struct {
	other *half // the opposite direction; not changed

	mu            sync.Mutex
	changed       *sync.Cond
	line          line
	queue         []piece // on its way, or arrived and not read
	size          int     // bytes in queue
	written       int64
	arrive        *time.Timer // wakes a reader for the first of queue
	ended         bool        // the writer has sent its FIN
	endAt         time.Time   // when that arrives
	broken        bool        // reset by either end
	resetting     bool        // by the writer, and the reader is to learn of it
	writerClosed  bool        // by Close of the writer
	readerClosed  bool        // by Close of the reader
	readerGone    bool        // and the writer knows
	readDeadline  deadline
	writeDeadline deadline
}

// piece is some bytes that travel together.
type piece struct {
	b  []byte
	at time.Time // when they arrive; zero: at once
}

type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func newHalf(l Link) *half {
	h := &half{line: newLine(l)}
	h.changed = sync.NewCond(&h.mu)
	return h
}

// due reports whether what arrives at t is there.
func due(t time.Time) bool { return t.IsZero() || !time.Now().Before(t) }

func (h *half) read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.readerClosed:
			return 0, net.ErrClosed
		case h.readDeadline.passed():
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, nil
		case len(h.queue) > 0 && due(h.queue[0].at):
			n := h.take(p)
			h.changed.Broadcast()
			return n, nil
		case len(h.queue) == 0 && h.ended && due(h.endAt):
			return 0, io.EOF
		case len(h.queue) == 0 && h.broken && !h.ended:
			return 0, &net.OpError{Op: "read", Net: "mem", Err: syscall.ECONNRESET}
		case len(h.queue) > 0:
			h.wakeAt(h.queue[0].at)
		case h.ended:
			h.wakeAt(h.endAt)
		}
		h.changed.Wait()
	}
}

// take moves what has arrived to p.
func (h *half) take(p []byte) (n int) {
	p = p[:h.line.portion(len(p))]
	for n < len(p) && len(h.queue) > 0 && due(h.queue[0].at) {
		first := &h.queue[0]
		k := copy(p[n:], first.b)
		n += k
		if first.b = first.b[k:]; len(first.b) == 0 {
			h.queue[0] = piece{}
			h.queue = h.queue[1:]
		}
	}
	if h.size -= n; h.size == 0 {
		h.queue = nil
	}
	return n
}

// wakeAt wakes the reader at t.
func (h *half) wakeAt(t time.Time) {
	wait := time.Until(t)
	if h.arrive == nil {
		h.arrive = time.AfterFunc(wait, h.wake)
	} else {
		h.arrive.Reset(wait)
	}
}

func (h *half) wake() {
	h.mu.Lock()
	h.changed.Broadcast()
	h.mu.Unlock()
}

func (h *half) write(p []byte) (n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.writerClosed:
			return n, net.ErrClosed
		case h.broken:
			return n, &net.OpError{Op: "write", Net: "mem", Err: syscall.ECONNRESET}
		case h.ended, h.readerGone:
			return n, &net.OpError{Op: "write", Net: "mem", Err: syscall.EPIPE}
		case h.writeDeadline.passed():
			return n, os.ErrDeadlineExceeded
		}
		if room := h.line.BufferBytes - h.size; room > 0 && n < len(p) {
			part := p[n:min(len(p), n+room)]
			limit := h.line.CutAfterBytes
			if limit > 0 {
				part = part[:min(int64(len(part)), limit-h.written)]
			}
			h.put(part)
			n += len(part)
			h.changed.Broadcast()
			if limit > 0 && h.written >= limit {
				h.mu.Unlock()
				h.cut()
				h.other.cut()
				h.mu.Lock()
				continue
			}
		}
		if n == len(p) {
			return n, nil
		}
		h.changed.Wait()
	}
}

// put sends p on its way, in pieces. What comes after the reader has closed goes nowhere.
func (h *half) put(p []byte) {
	h.written += int64(len(p))
	if h.readerClosed {
		return
	}
	h.size += len(p)
	for len(p) > 0 {
		n := h.line.piece(len(p))
		at := h.line.arrival(n)
		if k := len(h.queue); k > 0 && h.queue[k-1].at.Equal(at) {
			h.queue[k-1].b = append(h.queue[k-1].b, p[:n]...)
		} else {
			h.queue = append(h.queue, piece{append([]byte(nil), p[:n]...), at})
		}
		p = p[n:]
	}
}

func (h *half) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sendEnd()
}

// sendEnd sends the FIN.
func (h *half) sendEnd() {
	if !h.ended && !h.broken && !h.resetting {
		h.ended, h.endAt = true, h.line.arrival(0)
	}
	h.changed.Broadcast()
}

func (h *half) closeWriter() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.writerClosed = true
	h.sendEnd()
	h.writeDeadline.stop()
}

// later calls f with mu held when the news of what this end did has reached the other one.
func (h *half) later(f func()) {
	if h.line.Delay == 0 {
		f()
		h.changed.Broadcast()
		return
	}
	time.AfterFunc(h.line.Delay, func() {
		h.mu.Lock()
		f()
		h.mu.Unlock()
		h.changed.Broadcast()
	})
}

// closeReader reports whether there were bytes that nobody has read. A writer learns that nobody will.
func (h *half) closeReader() (unread bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	unread = h.size > 0
	h.readerClosed, h.queue, h.size = true, nil, 0
	h.readDeadline.stop()
	if h.arrive != nil {
		h.arrive.Stop()
	}
	h.later(func() {
		h.readerGone = true
		if !h.ended {
			h.broken = unread
		}
	})
	h.changed.Broadcast()
	return unread
}

// reset breaks the direction. After a FIN all bytes have arrived and can still be read, as on Linux; before
// it they may be lost, and are.
func (h *half) reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.writerClosed, h.resetting = true, true
	ended := h.ended
	h.later(func() {
		h.broken = true
		if !ended {
			h.queue, h.size = nil, 0
		}
	})
}

// cut breaks the direction for both ends at once: what has arrived stays.
func (h *half) cut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	arrived := 0
	for arrived < len(h.queue) && due(h.queue[arrived].at) {
		arrived++
	}
	for _, lost := range h.queue[arrived:] {
		h.size -= len(lost.b)
	}
	h.queue = h.queue[:arrived]
	if h.ended && !due(h.endAt) {
		h.ended = false
	}
	h.broken = true
	h.changed.Broadcast()
}

func (h *half) setDeadline(d *deadline, t time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	d.stop()
	d.at = t
	if wait := time.Until(t); !t.IsZero() && wait > 0 {
		d.timer = time.AfterFunc(wait, h.wake)
	}
	h.changed.Broadcast()
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

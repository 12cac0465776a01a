package h2

import "time"

// sendFlow is the credit that the peer has given (RFC 9113, section 6.9). It may be negative after
// SETTINGS_INITIAL_WINDOW_SIZE shrank (section 6.9.2).
type sendFlow struct {
	window int64
	most   int64 // greatest that window has been
}

func (f *sendFlow) take(n int) { f.window -= int64(n) }

// grant adds credit and reports whether it stays within 2^31-1 (section 6.9.1).
func (f *sendFlow) grant(n int64) bool {
	f.window += n
	f.most = max(f.most, f.window)
	return f.window <= maxWindow
}

// tiny reports whether the window would cut off less than tinyFrame of n bytes although it has been larger: the
// peer opens it slowly, and a frame for each bit of it would cost more than it carries (CVE-2019-9511). A
// window that never was larger, such as one of 100 bytes, is used by halves, as senders in TCP do
// (RFC 1122, section 4.2.3.4).
func (f *sendFlow) tiny(n int) bool {
	return f.window < int64(min(n, tinyFrame)) && 2*f.window < f.most
}

// recvFlow is the credit that we have given, and what of it is to be given back.
//
//	window  = what the peer may still send
//	pending = bytes consumed and not yet granted again
//	size    = the window that is aimed at; window + pending + unread bytes = size
type recvFlow struct {
	window, pending, size int32
}

// receive takes n bytes of the window and reports whether the peer had them. The window may be negative after our
// SETTINGS made it smaller; a frame without data needs none.
func (f *recvFlow) receive(n uint32) bool {
	if n > 0 && int64(n) > int64(f.window) {
		return false
	}
	f.window -= int32(n)
	return true
}

// consume notes that n bytes were taken and returns the credit to grant now: nothing until a quarter of the
// window is due, so that a WINDOW_UPDATE pays for itself. What is due and not granted cannot be sent: with a
// half, a grant of a little more than that leaves less than a half, which is not granted before the next bytes
// come, and the sender has half a window for each round trip.
func (f *recvFlow) consume(n int) (grant uint32) {
	f.pending += int32(n)
	if f.pending < f.size/4 || f.pending <= 0 {
		return 0
	}
	grant = uint32(f.pending)
	f.window += f.pending
	f.pending = 0
	return grant
}

// bdp estimates the bandwidth-delay product of what arrives on a connection: the bytes received during
// one PING round trip. While the estimate grows and the bandwidth with it, windows may grow; when more
// window brings no more bandwidth, the rest would only stand in queues. Owned by readLoop, except for
// what it publishes through Conn.
type bdp struct {
	estimate int64         // bytes that a stream's window should hold
	best     float64       // greatest bandwidth seen of late, bytes per second
	sample   int64         // bytes since the PING was sent
	sentAt   time.Time     // zero: no sample runs
	next     time.Time     // no sample starts before
	pause    time.Duration // between samples that bring nothing
}

const (
	bdpGain     = 2                      // window over measured product
	bdpMinPause = 10 * time.Millisecond  // between two samples that brought growth
	bdpMaxPause = 500 * time.Millisecond // and between two that did not
	bdpProgress = 1.1                    // bandwidth that counts as more
	bdpForget   = 31. / 32               // of the greatest bandwidth is kept: it may have been a burst
	bdpUnproven = 1 << 20                // up to here windows grow without it: bursts need more than the mean
)

// received counts n bytes and reports whether a PING should start a sample.
func (b *bdp) received(n int, now func() time.Time) (ping bool) {
	if !b.sentAt.IsZero() {
		b.sample += int64(n)
		return false
	}
	if n < 1024 {
		return false
	}
	t := now()
	if t.Before(b.next) {
		return false
	}
	b.sentAt, b.sample = t, int64(n)
	return true
}

// finish ends the sample that the acknowledged PING started and reports whether the estimate grew.
func (b *bdp) finish(now time.Time) (grew bool) {
	rtt := now.Sub(b.sentAt)
	b.sentAt = time.Time{}
	if rtt <= 0 {
		rtt = time.Microsecond
	}
	bandwidth := float64(b.sample) / rtt.Seconds()
	if b.sample*2 >= b.estimate && (b.estimate < bdpUnproven || bandwidth > b.best*bdpProgress) {
		b.estimate = max(b.estimate, bdpGain*b.sample)
		grew = true
	}
	b.best = max(bandwidth, b.best*bdpForget)
	if grew {
		b.pause = bdpMinPause
	} else {
		b.pause = min(max(2*b.pause, bdpMinPause), bdpMaxPause)
	}
	b.next = now.Add(b.pause)
	return grew
}

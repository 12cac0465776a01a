package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"culvert/tunnel/h2"
)

const (
	// earlyBytes is how much an app may send before its flow stands. It is kept until then.
	earlyBytes = 16 << 10
	// earlySilence is how long a connection may have been silent that early bytes are sent on. One that is
	// dead without anybody knowing, as a firewall has forgotten it, is replaced by another at the first
	// request; with bytes sent along nobody could know whether they were carried.
	earlySilence = 30 * time.Second
)

// Early is what an app sends before its flow stands: an app that was captured without a handshake does not know
// that there is anything to wait for. It goes to the hop with the request and behind it, so that a flow costs no
// round trip of its own. A hop that refuses throws it away. Used by one try at a time; nil carries nothing.
type Early struct {
	app  net.Conn
	r    *reader
	b    []byte // what the app has sent
	sent int    // how much of it this try has handed to the stream
	err  error  // of the app's connection, which is told once only

	mu   sync.Mutex
	over bool // no try is under way; guarded by mu
}

// earlyOf returns what goes ahead of the flow that a has accepted, nil where nothing may.
func earlyOf(f *Flow, a Accepted) *Early {
	e, ok := a.(interface{ Early() net.Conn })
	if !ok || f.UDP || f.via == nil || f.via.direct() || f.paced() { // bytes that are counted wait for the flow to stand
		return nil
	}
	app := e.Early()
	if app == nil {
		return nil
	}
	r := newReader(app)
	r.limit = earlyBytes
	return &Early{app: app, r: r}
}

// carry sends the head of the request that is held on s, and what the app sends, until the hop answers or ctx
// ends. An error is that of the app's connection, and then nobody waits for an answer.
func (e *Early) carry(ctx context.Context, s *h2.Stream) error {
	e.sent = 0
	e.mu.Lock()
	e.over = false
	e.mu.Unlock()
	halt := func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if !e.over {
			_ = e.app.SetReadDeadline(wakeNow) // what is closed needs no deadline
			_ = s.SetWriteDeadline(wakeNow)
		}
	}
	defer context.AfterFunc(ctx, halt)()
	if len(e.b) == 0 {
		e.take(e.r.readNow)
	}
	if len(e.b) == 0 {
		s.Flush()
	}
	s.OnResponse(halt)
	for e.send(s) && len(e.b) < earlyBytes && e.take(e.r.read) {
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.over = true
	_ = e.app.SetReadDeadline(time.Time{}) // who relays finds it as it was
	_ = s.SetWriteDeadline(time.Time{})
	return e.err
}

// take reads what the app sends and reports whether there was something.
func (e *Early) take(read func() (*[]byte, int, error)) bool {
	if e.err != nil {
		return false
	}
	buf, n, err := read()
	if n > 0 {
		e.b = append(e.b, (*buf)[:n]...)
	}
	if buf != nil {
		copyBuffers.Put(buf)
	}
	if err != nil && err != io.EOF && !errors.Is(err, os.ErrDeadlineExceeded) { // the end will be read again
		e.err = err
	}
	return n > 0
}

// send hands to s what it has not yet got, and reports whether it took it all.
func (e *Early) send(s *h2.Stream) bool {
	n, err := s.Write(e.b[e.sent:])
	e.sent += n
	return err == nil
}

// again reports whether a request may be sent again that has failed with err: the bytes sent with it must not be
// carried twice. Nothing of them has gone out then, whether the next try carries them or leaves them alone.
func (e *Early) again(err error) bool {
	if e == nil {
		return true
	}
	var unprocessed *UnprocessedError
	if e.err != nil || len(e.b) > 0 && !errors.As(err, &unprocessed) {
		return false
	}
	e.sent = 0
	return true
}

// carried is how many bytes have gone out.
func (e *Early) carried() int64 {
	if e == nil {
		return 0
	}
	return int64(e.sent)
}

// left is what was taken from the app and not sent.
func (e *Early) left() []byte {
	if e == nil {
		return nil
	}
	return e.b[e.sent:]
}

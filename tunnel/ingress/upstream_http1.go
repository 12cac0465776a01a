package ingress

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"time"

	"culvert/tunnel"
)

const (
	// maxAnswerHead bounds the head of an answer.
	maxAnswerHead = 256 << 10
	// maxInform bounds the 1xx answers to a request.
	maxInform = 16
	// expectFor is how long a destination may take to ask for a body that waits to be asked for. RFC 9110, section 10.1.1: a client
	// "SHOULD NOT wait for an indefinite period".
	expectFor = time.Second
)

// trip is a request on a carrier of HTTP/1.1.
type trip struct {
	q    *exchange
	c    *carrier1
	r    *http.Request
	stop func() bool // of what ends the trip with the context

	sent chan error    // of the goroutine that sends the body; nil: there is none
	ask  chan struct{} // closed when the body may be sent; nil: at once
	quit chan struct{} // closed when it is not to be sent any more
	done error         // of sent, once it was taken
	came bool          // something of an answer
}

// try1 sends the request on a carrier that was kept, or on a new one.
func (q *exchange) try1(r *http.Request) (*http.Response, error) {
	c, err := q.carrier1()
	if err != nil {
		return nil, err
	}
	q.obliged(r)
	t := &trip{q: q, c: c, r: r}
	t.stop = context.AfterFunc(r.Context(), func() { c.Break(context.Cause(r.Context())) })
	resp, err := t.exchange()
	if err != nil {
		t.fail(err)
		return nil, t.verdict(err)
	}
	return resp, nil
}

// carrier1 returns a carrier that was kept, or a new one.
func (q *exchange) carrier1() (c *carrier1, err error) {
	pool := q.c.s.pool
	take := func(key tunnel.CarrierKey) *tunnel.Carrier {
		if c = pool.take(key); c == nil {
			return nil
		}
		return c.Carrier
	}
	if !q.x.Picks() {
		if c = pool.take(q.x.Key()); c != nil && q.x.Reuse(c.Carrier) == nil {
			return c, nil
		}
		if c != nil { // not this address; perhaps the name has others now
			pool.keep(c)
		}
		take = nil
	}
	open, err := q.open(take)
	switch {
	case err != nil:
		return nil, err
	case take != nil && c != nil && c.Carrier == open:
		return c, nil
	}
	return newCarrier1(open, q.x.Key()), nil
}

// exchange sends the request and reads the head of the answer.
func (t *trip) exchange() (*http.Response, error) {
	if err := t.send(); err != nil {
		return nil, err
	}
	resp, err := t.receive()
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		resp.Body = &switched{Reader: http.NoBody, t: t}
		return resp, nil
	}
	resp.Body = &answerBody{t: t, body: resp.Body, keep: !resp.Close}
	return resp, nil
}

// send sends the request; its body in a goroutine of its own.
func (t *trip) send() error {
	r := t.r
	if r.Body == nil || r.Body == http.NoBody {
		if err := r.Write(t.c.w); err != nil {
			return err
		}
		return t.c.w.Flush()
	}
	if r.Header.Get("Expect") != "" {
		t.ask, t.quit = make(chan struct{}), make(chan struct{})
		out := *r
		out.Body = &askedBody{ReadCloser: r.Body, t: t}
		r = &out
	}
	t.sent = make(chan error, 1)
	go func() { // ends with the body, which requestBody.finish ends, or with the carrier; finishSending waits for it
		err := r.Write(t.c.w)
		if err == nil {
			err = t.c.w.Flush()
		}
		if err != nil && t.q.body.err() != nil {
			// The destination must not take what came for the whole body, and is not to be waited for.
			t.c.Break(t.q.body.err())
		}
		t.sent <- err
	}()
	return nil
}

// askedBody is a body that is sent when the destination asks for it, or after a while.
type askedBody struct {
	io.ReadCloser
	t    *trip
	told bool
}

// Read waits, then reads.
func (b *askedBody) Read(p []byte) (int, error) {
	if !b.told {
		b.told = true
		if err := b.t.c.w.Flush(); err != nil { // the head
			return 0, err
		}
		timer := time.NewTimer(expectFor)
		defer timer.Stop()
		select {
		case <-b.t.ask:
		case <-timer.C:
		case <-b.t.quit:
			return 0, http.ErrBodyReadAfterClose
		case <-b.t.r.Context().Done():
			return 0, context.Cause(b.t.r.Context())
		}
	}
	return b.ReadCloser.Read(p)
}

// receive reads the head of the answer, and passes on those before it that are none yet (1xx).
func (t *trip) receive() (*http.Response, error) {
	trace := httptrace.ContextClientTrace(t.r.Context())
	t.c.bound.left = maxAnswerHead
	defer func() {
		t.came = t.c.bound.left < maxAnswerHead
		t.c.bound.left = -1
	}()
	for n := 0; ; n++ {
		resp, err := http.ReadResponse(t.c.r, t.r)
		if err != nil {
			return nil, err
		}
		switch {
		case resp.StatusCode == http.StatusSwitchingProtocols && t.q.switching, resp.StatusCode >= 200:
			return resp, nil
		case resp.StatusCode < 100 || resp.StatusCode == http.StatusSwitchingProtocols || n == maxInform:
			return nil, &tunnel.Error{Cause: tunnel.CauseHopProtocol, Reason: "the destination's answer is not one to the request"}
		}
		if resp.StatusCode == http.StatusContinue && t.ask != nil {
			t.goAhead()
			continue // the client was told when its body was read
		}
		if trace != nil && trace.Got1xxResponse != nil && t.q.r.ProtoAtLeast(1, 1) {
			if err := trace.Got1xxResponse(resp.StatusCode, textproto.MIMEHeader(resp.Header)); err != nil {
				return nil, err
			}
		}
	}
}

func (t *trip) goAhead() {
	select {
	case <-t.ask:
	default:
		close(t.ask)
	}
}

// finishSending waits for the end of sending and reports whether all of the body was sent. What is still to come is given up.
func (t *trip) finishSending() bool {
	if t.sent == nil {
		return true
	}
	select {
	case t.done = <-t.sent:
	default:
		t.c.Break(nil)
		t.giveUpSending()
		t.done = <-t.sent
		t.sent = nil
		return false
	}
	t.sent = nil
	return t.done == nil
}

// fail ends a trip that has brought no answer.
func (t *trip) fail(err error) {
	t.stop()
	t.c.Reset(err)
	if t.sent != nil {
		t.giveUpSending()
		t.done = <-t.sent
		t.sent = nil
	}
}

// giveUpSending has the goroutine that sends the body end.
func (t *trip) giveUpSending() {
	if t.quit != nil {
		close(t.quit)
	}
	if t.q.body.begun.Load() {
		t.q.body.finish()
	}
}

// verdict is what follows from err for the request.
func (t *trip) verdict(err error) error {
	if why := t.q.body.err(); why != nil {
		return why
	}
	if !t.came && !t.q.body.begun.Load() && t.q.replayable() {
		return &againError{err: unanswered(err), stale: t.c.used}
	}
	return unanswered(err)
}

// unanswered is why there was no answer.
func unanswered(err error) error {
	switch tunnel.CauseOf(err) {
	case tunnel.CauseInternal: // what net/http cannot read
		return &tunnel.Error{Cause: tunnel.CauseHopProtocol, Reason: "the destination's answer cannot be read", Err: err}
	case tunnel.CauseUnavailable:
		return &tunnel.Error{Cause: tunnel.CauseUnavailable, Reason: "the destination has closed the connection before it answered", Err: err}
	}
	return err
}

// answerBody is the body of an answer. When it has come to its end the carrier is free for others.
type answerBody struct {
	t     *trip
	body  io.ReadCloser
	keep  bool // the destination keeps the connection open
	ended bool
}

// Read reads the body.
func (b *answerBody) Read(p []byte) (int, error) {
	if b.ended {
		return 0, io.EOF
	}
	n, err := b.body.Read(p)
	if n > 0 {
		if why := b.t.q.x.Received(n); why != nil && err == nil {
			err = why
		}
	}
	switch {
	case err == nil:
	case isEOF(err):
		b.end()
	default:
		b.t.q.err = broken(err)
	}
	return n, err
}

// end frees the carrier.
func (b *answerBody) end() {
	b.ended = true
	t := b.t
	whole := t.finishSending()
	if t.stop() && whole && b.keep && t.c.r.Buffered() == 0 {
		t.q.c.s.pool.keep(t.c)
		return
	}
	_ = t.c.Close() // it has brought all of the answer
}

// Close ends an answer that was not read to its end.
func (b *answerBody) Close() error {
	if b.ended {
		return nil
	}
	b.ended = true
	b.t.stop()
	b.t.c.Reset(nil)
	b.t.finishSending()
	return nil
}

// broken is why an answer breaks off.
func broken(err error) error {
	if tunnel.CauseOf(err) == tunnel.CauseLimited {
		return err
	}
	return &tunnel.Error{Cause: tunnel.CauseDestinationBroke, Reason: "the answer breaks off", Err: err}
}

// switched is the body of an answer after which another protocol is spoken.
type switched struct {
	io.Reader
	t *trip
}

// Close does nothing.
func (s *switched) Close() error { return nil }

// rest is what is left of what a carrier has brought.
func (c *carrier1) rest() []byte { return buffered(c.r) }

func buffered(r *bufio.Reader) []byte {
	b, _ := r.Peek(r.Buffered()) // it has as many
	return b
}

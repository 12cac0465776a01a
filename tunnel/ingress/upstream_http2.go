package ingress

import (
	"context"
	"io"
	"net/http"

	"culvert/tunnel"
	"culvert/tunnel/h2"
)

// try2 sends the request on a carrier of HTTP/2.
func (q *exchange) try2(r *http.Request) (*http.Response, error) {
	pool := q.c.s.pool
	var c *carrier2
	var open *tunnel.Carrier
	if !q.x.Picks() {
		c = pool.shared(q.x.Key(), func(c *tunnel.Carrier) bool { return q.x.Reuse(c) == nil })
	}
	if c == nil {
		var err error
		if open, err = q.open(func(key tunnel.CarrierKey) *tunnel.Carrier {
			if c = pool.shared(key, func(*tunnel.Carrier) bool { return true }); c == nil {
				return nil
			}
			return c.Carrier
		}); err != nil {
			return nil, err
		}
	}
	fresh := c == nil || open != nil && c.Carrier != open
	if fresh {
		cfg := q.c.s.env.H2
		cfg.Handler, cfg.Budget = nil, q.c.s.env.Budget
		conn, err := h2.NewClient(open, &cfg)
		if err != nil {
			_ = open.Close() // nothing was sent
			return nil, unanswered(err)
		}
		c = &carrier2{Carrier: open, conn: conn}
		pool.share(q.x.Key(), c)
	}
	q.obliged(r)
	var body *triedBody
	if q.body.q != nil {
		body = &triedBody{b: &q.body}
		out := *r // who closes its body may come late
		out.Body = body
		r = &out
	}
	resp, err := c.conn.RoundTrip(r)
	if err != nil {
		if why := q.body.err(); why != nil {
			return nil, why
		}
		if body.unread() && (h2.Unprocessed(err) || q.replayable()) {
			return nil, &againError{err: unanswered(err), stale: !fresh && c.conn.Slots() == 0} // one that takes requests and refuses them has been tried
		}
		return nil, unanswered(err)
	}
	resp.Body = &answerBody2{q: q, body: resp.Body}
	return resp, nil
}

// triedBody is the body of a request for one try, which may close it and leave it to the next.
type triedBody struct {
	b    *requestBody
	over bool // guarded by b.mu
}

// Read reads the body.
func (t *triedBody) Read(p []byte) (int, error) {
	t.b.mu.Lock()
	defer t.b.mu.Unlock()
	if t.over {
		return 0, http.ErrBodyReadAfterClose
	}
	return t.b.read(p)
}

// Close ends nothing.
func (t *triedBody) Close() error { return nil }

// unread ends the try and reports whether nothing of the body was read, and nothing will be by whoever sent it in this try. nil is
// the body of a request that has none.
func (t *triedBody) unread() bool {
	if t == nil {
		return true
	}
	if !t.b.mu.TryLock() {
		return false // somebody reads
	}
	defer t.b.mu.Unlock()
	t.over = true
	return !t.b.begun.Load()
}

// answerBody2 is the body of an answer of HTTP/2.
type answerBody2 struct {
	q    *exchange
	body io.ReadCloser
}

// Read reads the body.
func (b *answerBody2) Read(p []byte) (int, error) {
	n, err := b.body.Read(p)
	if n > 0 {
		if why := b.q.x.Received(n); why != nil && err == nil {
			err = why
		}
	}
	if err != nil && !isEOF(err) {
		b.q.err = broken(err)
	}
	return n, err
}

// Close ends the answer.
func (b *answerBody2) Close() error { return b.body.Close() }

// drained is closed when a connection has ended, with the requests that are under way.
func drained(c *h2.Conn) <-chan struct{} {
	_ = c.Drain(context.Background()) // whatever became of it, the connection is over
	return c.Done()
}

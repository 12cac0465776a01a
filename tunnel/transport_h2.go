package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"culvert/pki/spiffe"
	"culvert/tunnel/h2"
)

// statusOK is the only success of a CONNECT between gateways (HBONE.md, "Response").
const statusOK = 200

// A hop ends a connection that resets too many requests before their answers (CVE-2023-44487), and the
// connection is shared: what one app withdraws must not cost the others theirs. So many withdrawals are
// told to the hop at once, and so many more each second; the others wait for the answer and are closed
// then, which no hop counts. Culvert and nghttp2 allow 33 a second, others less.
const (
	withdrawBurst  = 50
	withdrawRate   = 10
	abandonTimeout = 30 * time.Second // after which an answer is not waited for
)

// h2Transport opens tunnels on an HTTP/2 connection in the client role.
type h2Transport struct {
	conn  *h2.Conn
	hop   string
	proof *proof
	stats *stats

	abandoned sync.WaitGroup // streams whose answers nobody wants

	mu       sync.Mutex // guards the group below
	withdraw float64    // level of the bucket
	drained  time.Time  // when the level was right
	closed   bool
}

// newH2Transport makes a transport of nc, a connection to hop: TLS, then HTTP/2. It waits for the TLS
// handshake, until ctx ends, and owns nc. Identity is proven by conf, whose verification must leave no
// peer without a SPIFFE ID.
func newH2Transport(ctx context.Context, nc net.Conn, hop *Hop, conf *tls.Config, cfg *h2.Config, g *Gateway) (*h2Transport, error) {
	tc, proof, err := g.meetHop(ctx, nc, hop, conf, "h2")
	if err != nil {
		return nil, err
	}
	conn, err := h2.NewClient(tc, cfg)
	if err != nil {
		_ = tc.Close()
		return nil, &Error{Cause: CauseHopProtocol, Hop: hop.Name, Err: err}
	}
	return &h2Transport{conn: conn, hop: hop.Name, proof: proof, stats: &g.stats}, nil
}

// meetHop does the TLS handshake with a hop, by which protocol is agreed on, and returns who it is.
func (g *Gateway) meetHop(ctx context.Context, nc net.Conn, hop *Hop, conf *tls.Config, protocol string) (*tls.Conn, *proof, error) {
	conf, unverified := noteVerification(conf)
	conf, until := noteShown(conf)
	tc := tls.Client(h2.NewGate(nc), conf)
	if err := tc.HandshakeContext(ctx); err != nil {
		_ = nc.Close()
		return nil, nil, throughProxy(nc, handshakeError(hop.Name, err, unverified()))
	}
	cs := tc.ConnectionState()
	proof, err := g.identify(&cs, addrPort(nc.RemoteAddr()).Addr())
	if err != nil {
		_ = tc.Close()
		return nil, nil, &Error{Cause: CauseHopIdentity, Hop: hop.Name, Err: err}
	}
	proof.until = until()
	if cs.NegotiatedProtocol != protocol {
		_ = tc.Close()
		return nil, nil, &Error{Cause: CauseHopProtocol, Hop: hop.Name, Reason: fmt.Sprintf("the hop agreed on protocol %q, not %s", cs.NegotiatedProtocol, protocol)}
	}
	return tc, proof, nil
}

// Connect asks the hop for a tunnel; see Transport.
func (t *h2Transport) Connect(ctx context.Context, req *ConnectRequest) (Stream, *ConnectResponse, error) {
	head := connectHeader(req)
	if req.UDP {
		udpHeader(head, req.Target, t.hop)
	}
	s, err := t.conn.OpenHeld(ctx, head)
	if err != nil {
		if errors.Is(err, h2.ErrNoConnectProtocol) {
			return nil, nil, &Error{Cause: CauseHopProtocol, Hop: t.hop, Reason: "the hop carries no UDP (RFC 9298)", Err: err}
		}
		if ctx.Err() == nil {
			err = &UnprocessedError{Err: err} // nothing was sent
		}
		return nil, nil, fmt.Errorf("hop %s: %w", t.hop, err)
	}
	if req.Early != nil && t.conn.Silence() < earlySilence {
		if err := req.Early.carry(ctx, s); err != nil {
			t.withdrawRequest(s)
			return nil, nil, &Error{Cause: CauseSourceGone, Err: err}
		}
	} else {
		s.Flush()
	}
	resp, err := s.Response(ctx)
	if err != nil {
		if ctx.Err() != nil && s.Err() == nil {
			t.withdrawRequest(s)
			return nil, nil, fmt.Errorf("hop %s: no answer: %w", t.hop, ctx.Err())
		}
		_ = s.Close()
		return nil, nil, fmt.Errorf("hop %s: %w", t.hop, unanswered(err))
	}
	if resp.Status != statusOK {
		_ = s.Close()
		return nil, nil, &RefusedError{Status: resp.Status, Hop: t.hop, Statuses: parseProxyStatus(resp.Values(fieldProxyStatus))}
	}
	// A content-length here means nothing (RFC 9110, section 9.3.6), and h2 has not counted by it.
	answer := &ConnectResponse{Baggage: resp.Get(fieldBaggage)}
	if len(answer.Baggage) > maxTrustedLen {
		answer.Baggage = ""
	}
	s.DropHeads()
	return &h2Stream{s}, answer, nil
}

// connectHeader is the head of the request, its fields in ztunnel's order. Those that differ from flow to
// flow are marked sensitive to keep them out of the compression table, which they would only wear out.
func connectHeader(req *ConnectRequest) *h2.Header {
	h := &h2.Header{Method: "CONNECT", Authority: req.Target.String(), Fields: make([]h2.Field, 0, 5)}
	for _, f := range [...]h2.Field{
		{Name: fieldBaggage, Value: req.Baggage},
		{Name: fieldForwarded, Value: req.Forwarded, Sensitive: true},
		{Name: fieldTraceparent, Value: req.Traceparent, Sensitive: true},
		{Name: fieldTracestate, Value: req.Tracestate, Sensitive: true},
		{Name: fieldNetwork, Value: req.Network},
		{Name: fieldSource, Value: req.SentBy},
		{Name: fieldVia, Value: req.Via},
	} {
		if f.Value != "" {
			h.Fields = append(h.Fields, f)
		}
	}
	return h
}

// unanswered tells apart what a hop has not processed and what it may have.
func unanswered(err error) error {
	var stream *h2.StreamError
	if errors.As(err, &stream) && stream.By == h2.Peer && stream.Code == h2.RefusedStream {
		return &UnprocessedError{Err: err}
	}
	return err
}

// withdrawRequest gives up a request that was not answered: with a reset as long as the hop allows for
// them, otherwise by waiting for the answer.
func (t *h2Transport) withdrawRequest(s *h2.Stream) {
	if !t.mustAbandon() {
		s.Reset(h2.Cancel)
		_ = s.Close() // it was reset
		return
	}
	t.stats.abandoned.add(1)
	go func() { // ends with the answer, the connection or after abandonTimeout; Close waits for it
		defer t.abandoned.Done()
		ctx, cancel := context.WithTimeout(context.Background(), abandonTimeout)
		defer cancel()
		s.Flush()              // who gave up may have held it; what is not sent is not answered
		_, _ = s.Response(ctx) // nobody wants it
		_ = s.Close()
	}()
}

// mustAbandon reports whether a reset more is beyond what hops allow. Then the caller counts as one of
// abandoned.
func (t *h2Transport) mustAbandon() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if !t.drained.IsZero() {
		t.withdraw = max(0, t.withdraw-now.Sub(t.drained).Seconds()*withdrawRate)
	}
	t.drained = now
	if t.withdraw < withdrawBurst || t.closed {
		t.withdraw++
		return false
	}
	t.abandoned.Add(1)
	return true
}

// Slots returns how many more streams the hop allows now.
func (t *h2Transport) Slots() int { return t.conn.Slots() }

// limit returns how many streams the hop allows, 0 until it has said so.
func (t *h2Transport) limit() int { return t.conn.PeerMaxStreams() }

// Ping measures a round trip with a PING frame.
func (t *h2Transport) Ping(ctx context.Context) (time.Duration, error) { return t.conn.Ping(ctx) }

// Peer returns the hop's identity.
func (t *h2Transport) Peer() spiffe.ID { return t.proof.id }

// proven is what the hop has shown of itself.
func (t *h2Transport) proven() *proof { return t.proof }

// Draining is closed when the hop has sent GOAWAY.
func (t *h2Transport) Draining() <-chan struct{} { return t.conn.Retired() }

// Drain sends GOAWAY and waits for the streams, until ctx ends; then it closes.
func (t *h2Transport) Drain(ctx context.Context) error {
	err := t.conn.Drain(ctx)
	_ = t.Close()
	return err
}

// Close ends the connection and its streams.
func (t *h2Transport) Close() error {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	err := t.conn.Close()
	t.abandoned.Wait()
	return err
}

// Done is closed when the connection has ended.
func (t *h2Transport) Done() <-chan struct{} { return t.conn.Done() }

// Err returns why the connection has ended.
func (t *h2Transport) Err() error { return t.conn.Err() }

// h2Stream is a tunnel's end on an HTTP/2 connection of either role.
type h2Stream struct{ *h2.Stream }

// Reset resets the stream with the code that the table in status.go has for cause, and closes it.
func (s *h2Stream) Reset(cause error) {
	s.Stream.Reset(resetCode(cause))
	_ = s.Stream.Close() // it was reset
}

// noteVerification returns conf so that it is seen whether its own verification has refused the peer, which
// may give any error.
func noteVerification(conf *tls.Config) (_ *tls.Config, refused func() bool) {
	verify, failed := conf.VerifyConnection, false
	if verify == nil {
		return conf, func() bool { return false }
	}
	conf = conf.Clone()
	conf.VerifyConnection = func(cs tls.ConnectionState) error {
		err := verify(cs)
		failed = err != nil
		return err
	}
	return conf, func() bool { return failed }
}

// handshakeError says what went wrong in the TLS handshake with a hop; unverified: it is not who it should be.
func handshakeError(hop string, err error, unverified bool) error {
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var refused *RefusedError
	var own *Error
	if errors.As(err, &refused) || errors.As(err, &own) { // of what is below TLS
		return fmt.Errorf("TLS handshake with %s: %w", hop, err)
	}
	e := &Error{Cause: networkCause(err), Hop: hop, Reason: "TLS handshake", Err: err}
	switch {
	case unverified || errors.As(err, &certificate):
		e.Cause = CauseHopIdentity
	case errors.As(err, &record) && record.Conn != nil: // the first that came is no record of TLS
		e.Cause, e.Reason = CauseHopProtocol, "the hop does not speak TLS on this port; is it the port of its hbone listener?"
	case e.Cause == CauseInternal:
		e.Cause = CauseHopTLS
	}
	return e
}

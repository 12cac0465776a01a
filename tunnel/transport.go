package tunnel

import (
	"context"
	"io"
	"time"

	"culvert/pki/spiffe"
	"culvert/tunnel/endpoint"
	"culvert/tunnel/h2"
)

// Transport is a connection to a hop that opens streams: H2 here, others elsewhere. Methods may be used
// concurrently. A Transport that is idle for long ends by itself.
type Transport interface {
	// Connect asks the hop for a tunnel to req.Target and waits for its answer. A refusal is a
	// *RefusedError; an *UnprocessedError means that the hop has not touched the request. Connect ends
	// with ctx. The Stream must be closed.
	Connect(ctx context.Context, req *ConnectRequest) (Stream, *ConnectResponse, error)

	// Slots is how many more streams may be opened now, 0 on a transport that is draining or has ended.
	Slots() int

	// Ping measures a round trip to the hop.
	Ping(ctx context.Context) (time.Duration, error)

	// Peer is the authenticated identity of the hop.
	Peer() spiffe.ID

	// Draining is closed when the hop takes no new streams; those that are open live on.
	Draining() <-chan struct{}

	// Drain takes no new streams, waits for the last one to end, and closes. When ctx ends first it
	// closes at once.
	Drain(ctx context.Context) error

	// Close ends the transport and its streams.
	Close() error

	// Done is closed when the transport has ended; Err then says why.
	Done() <-chan struct{}
	Err() error
}

// Stream is a tunnel's end on a transport. Besides what every Conn has, it copies without a goroutine,
// or a buffer, that waits for bytes to come.
type Stream interface {
	Conn

	// ReadFrom sends what r delivers until io.EOF, and does not end the direction. An error of r is a
	// *SourceError, every other is the stream's.
	io.ReaderFrom

	// Pipe writes what the stream receives to dst and returns at once. done is called once from a
	// goroutine that may block: with nil after the peer's end, else with why the stream broke; an error of
	// dst is a *SinkError. The stream must not be read otherwise.
	Pipe(dst io.Writer, done func(n int64, err error))

	// Done is closed when the stream is reset by either side or its transport fails, not when it ends well.
	Done() <-chan struct{}

	// Sent is how many bytes the stream has taken for sending so far, also while ReadFrom runs.
	Sent() int64
}

// ConnectRequest is what a hop is asked and told when a tunnel is opened (HBONE.md, "Request").
type ConnectRequest struct {
	// Target is the destination, or the next hop of a chain.
	Target Target
	// UDP asks for a tunnel of datagrams (RFC 9298); what it carries are capsules (RFC 9297).
	UDP bool
	// Baggage describes the workload where the flow began (W3C Baggage, not percent-encoded).
	Baggage string
	// Forwarded tells where the flow came from (RFC 7239).
	Forwarded string
	// Traceparent and Tracestate tie the flow to a trace (W3C Trace Context).
	Traceparent, Tracestate string
	// Early is what may go out before the answer; nil: nothing. A transport may leave it alone.
	Early *Early
	// Network is the network where the flow comes from, where it has left that (x-forwarded-network).
	Network string
	// SentBy is what this gateway is for the hop (x-istio-source).
	SentBy string
	// Via is the gateways that have passed the flow on, this one included (RFC 9110, section 7.6.3); "" where it began, at
	// one that it cannot come back to.
	Via string

	times *timing         // of the flow; nil: nobody wants to know
	lease *endpoint.Lease // of the endpoint that was asked last; nil: the hop has one address
}

// ConnectResponse is what a hop says with its yes.
type ConnectResponse struct {
	// Baggage describes the workload at the far end; it is told, not proven.
	Baggage string
}

// SourceError is returned by Stream.ReadFrom when what it reads from failed, as opposed to the stream.
type SourceError = h2.SourceError

// SinkError is given to the done function of Stream.Pipe when what it writes to failed, as opposed to
// the stream.
type SinkError = h2.SinkError

// UnprocessedError is returned by Transport.Connect when the hop has not touched the request, so that it
// may be sent again, there or elsewhere (RFC 9113, section 8.7).
type UnprocessedError struct{ Err error }

// Error is the text of the cause.
func (e *UnprocessedError) Error() string { return "not processed: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *UnprocessedError) Unwrap() error { return e.Err }

// TransportH2 is the name of the transport that is there without being added: CONNECT over TLS and HTTP/2.
const TransportH2 = "h2"

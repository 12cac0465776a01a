package tunnel

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"culvert/pki/spiffe"
	"culvert/policy"
	"culvert/tunnel/endpoint"
)

// Flow is one accepted connection with its destination and its peer, from acceptance to record. The
// exported fields are set by who accepts it and do not change once it is carried. There may be many idle
// ones, so it is kept small.
type Flow struct {
	// Listener is the name of the listener that accepted it.
	Listener string
	// Way is how it came: "connect", "socks5", "forward".
	Way string
	// Source is where its connection came from; not valid where that has no address.
	Source netip.AddrPort
	// Peer is the authenticated other end; zero: none.
	Peer spiffe.ID
	// Target is the destination.
	Target Target
	// Request is what else came with it, nil if nothing did. It is dropped when the flow stands.
	Request *Request
	// Ended is called when the flow is over and recorded; nil: nobody wants to know.
	Ended func()
	// UDP tells that the flow is of datagrams. Its ends carry them as capsules (RFC 9297).
	UDP bool
	// Taken tells that a listener of this gateway has accepted it: it is served also while the gateway drains.
	Taken bool

	lean bool // nothing has happened since its goroutine was renewed; guarded as prev is, and here as there is room

	// owned by the goroutine that carries the flow; not changed once it stands
	named   bool        // the route that took it names its destination
	local   bool        // the destination is this host's own
	asked   asked       // what policy has said of it
	from    *serverConn // the connection of the peer that asked for it, which hears of its end; nil: it came otherwise
	g       *Gateway
	id      uint64
	started time.Time
	plan    *plan
	via     *route          // the route that took the flow
	passed  *passed         // the gateways before this one; nil: none
	shown   *shown          // what policy is told of it besides; nil: nothing
	self    spiffe.ID       // who this gateway was then
	rule    string          // what let it pass, or refused it
	trace   traceID         // of the request that it came with or, guarded by mu as that is set late, that it went on with
	times   timing          // where the time went until then
	lease   *endpoint.Lease // of the endpoint that it goes to; nil: it was not one of several
	entered []addrPair      // in the books of loops; nil unless this gateway captures

	limits atomic.Pointer[flowLimits] // changed with mu held; nil: none

	in, out direction    // towards the destination, and back
	left    atomic.Int32 // directions that have not ended
	marks   atomic.Uint32
	first   atomic.Uint32 // microseconds from started until the first byte came back, where its end cannot tell; 0: none has

	mu     sync.Mutex         // guards the group below
	cancel context.CancelFunc // ends the opening; nil while the flow is not being opened
	why    error              // the first reason why the flow ends before its time
	over   chan struct{}      // closed when both directions have ended; nil where nobody waits

	// owned by the table of flows, guarded by its shard's lock
	prev, next *Flow
	seenBytes  int64         // at the last look
	seenAt     time.Duration // from started, when that number changed
}

// The marks of a flow.
const (
	markAudit    = 1 << iota // a rule watches it
	markRecorded             // it counts in no limit any more; set with mu held
	markReported             // what rules in report would do was told
	markAnswered             // it is an exchange whose answer has begun
	markHungUp               // the endpoint has ended its direction before the app has
)

// marked reports whether the flow has a mark.
func (f *Flow) marked(mark uint32) bool { return f.marks.Load()&mark != 0 }

// Request is what came with a flow besides its destination.
type Request struct {
	// Fault is why what was asked for is no flow, such as an *AuthorityError; then it is refused.
	Fault error
	// Dialled is the address that a peer's connection was made to, for the meaning of "local"; not valid
	// where the connection was captured, unless on its way to this host.
	Dialled netip.Addr
	// Baggage, Forwarded, Traceparent and Tracestate are fields of the request that may be believed.
	Baggage, Forwarded, Traceparent, Tracestate string
	// Network is the network that the flow comes from, where it has left that, and SentBy what the peer is that has sent it on
	// ("waypoint", "gateway", "sidecar"), as it says and may be believed.
	Network, SentBy string

	// HTTP is the request that the flow is, where it is one; nil: it is none.
	HTTP *policy.HTTP
	// SNI is the server name that the client has asked TLS for.
	SNI string
	// Remote is the client's address, as a proxy that is trusted has told.
	Remote netip.Addr

	fields interface{ Values(name string) []string } // of the request, where a token may be; nil: none
	due    *due                                      // what policy asks for before the flow begins
	asks   *asks                                     // who has to allow it besides
	x      *Exchange                                 // that the flow is; nil: it is none
}

// direction is one way of a flow: what is read from src is written to dst. It is an io.Writer so that a
// stream can pipe into it.
type direction struct {
	flow     *Flow
	src, dst Conn // set under flow.mu when the flow stands, and not changed after
	bytes    counter

	// guarded by flow.mu
	lost       error       // why dst did not take everything, or will not
	watch      *time.Timer // looks after a half-closed stream; see watchStream
	broke      Cause       // of the flow, when src breaks; not changed
	delivered  bool        // src has ended, and dst was told after the last byte
	left       bool        // dst was given every byte, but had closed its socket when src ended
	ended      bool        // no more bytes will go this way
	discarding bool        // dst takes nothing more, and src is read for the sake of its other direction
	renewing   bool        // the goroutine that reads src shall be replaced by a new one
}

// other is the opposite direction.
func (d *direction) other() *direction {
	if d == &d.flow.in {
		return &d.flow.out
	}
	return &d.flow.in
}

// prepare makes a flow of the fields that were set.
func (f *Flow) prepare(g *Gateway, id uint64, p *plan) {
	f.g, f.id, f.plan, f.started = g, id, p, time.Now()
	if f.Request == nil {
		f.Request = new(Request)
	}
	f.in.flow, f.in.broke = f, CauseSourceBroke
	f.out.flow, f.out.broke = f, CauseDestinationBroke
}

// stand sets both ends. It reports false when the flow was cut before: then the ends are reset.
func (f *Flow) stand(accepted, opened Conn) bool {
	f.Request = nil
	f.mu.Lock()
	f.in.src, f.in.dst = accepted, opened
	f.out.src, f.out.dst = opened, accepted
	why := f.why
	f.mu.Unlock()
	if why == nil {
		return true
	}
	accepted.Reset(why)
	opened.Reset(why)
	return false
}

// traced notes the trace in which the flow goes on. What its peer has sent it with is kept: by that the peer's
// record has it, and a trace that is not believed ends here. It reports whether the flow's trace is id then.
func (f *Flow) traced(id traceID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.trace == (traceID{}) {
		f.trace = id
	}
	return f.trace == id
}

// stands reports whether the flow was answered with yes.
func (f *Flow) stands() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.in.dst != nil || f.marked(markAnswered)
}

// fail notes why the flow ends before its time; the first reason counts. It returns that reason.
func (f *Flow) fail(err error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.why == nil {
		f.why = err
	}
	return f.why
}

// cut ends the flow from outside: while it is opened by cancelling that, later by resetting both ends.
// It may be called by anybody at any time.
func (f *Flow) cut(why error) {
	f.mu.Lock()
	if f.why == nil {
		f.why = why
	}
	cancel, accepted, opened := f.cancel, f.in.src, f.in.dst
	f.mu.Unlock()
	defer f.endWaits() // when they find their ends broken
	if cancel != nil {
		cancel()
	}
	if accepted != nil {
		accepted.Reset(why)
		opened.Reset(why)
	}
}

// reason is why the flow ended before its time, nil if it did not.
func (f *Flow) reason() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.why
}

// watchAfter is how long opening may take before somebody looks after the accepted end. Most flows stand
// before, and cost no goroutine for it.
const watchAfter = 10 * time.Millisecond

// opening returns the context in which the flow is opened. It ends after the time that the
// configuration gives, when the flow is cut, or when the accepted end is gone. stop must be called.
func (f *Flow) opening(base context.Context, gone func() <-chan struct{}) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithTimeout(base, f.plan.timeouts.Open)
	f.mu.Lock()
	before := f.cancel // of an exchange
	f.cancel = cancel
	cut := f.why != nil
	f.mu.Unlock()
	if cut {
		cancel()
	}
	watch := time.AfterFunc(watchAfter, func() {
		select { // ended by stop at the latest
		case <-gone():
			cancel()
		case <-ctx.Done():
		}
	})
	return ctx, func() {
		watch.Stop()
		f.mu.Lock()
		f.cancel = before
		f.mu.Unlock()
		cancel()
	}
}

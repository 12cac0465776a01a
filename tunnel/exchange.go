package tunnel

import (
	"cmp"
	"context"
	"errors"
	"net/http"

	"culvert/policy"
	"culvert/tunnel/endpoint"
)

// Exchanged is the accepted side of a flow that is one request of HTTP and its answer.
type Exchanged interface {
	// Forward sends the request on over what x opens, answers the client, and returns when both are over. Its error is why the
	// exchange did not end well; where no answer has begun, Refuse answers.
	Forward(x *Exchange) error
	// Refuse says no in the words of the way.
	Refuse(f *Flow, err error)
}

// Exchange is a flow that is one request and its answer, while it is forwarded. Its methods are for one goroutine, where they
// do not say otherwise.
type Exchange struct {
	f       *Flow
	ctx     context.Context
	gone    func() <-chan struct{}
	waits   contextQuit
	opened  bool // a carrier was open
	tried   []*endpoint.Lease
	take    func(CarrierKey) *Carrier // while it is opened
	relayed bool
}

// CarryExchange takes one request from acceptance to record, as Carry takes a connection: decide, then open and answer by what
// a.Forward does with x, record. ctx ends when the client has gone. It returns when the exchange is over.
func (g *Gateway) CarryExchange(ctx context.Context, f *Flow, a Exchanged) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.Taken, f.cancel = true, cancel // so that it can be cut
	x := &Exchange{f: f, ctx: ctx, gone: ctx.Done, waits: contextQuit{ctx}}
	f.Request.x = x
	err := g.enter(f, x.gone)
	if err == nil {
		err = a.Forward(x)
	}
	if !x.opened && err != nil {
		f.opened(err)
	}
	if x.relayed {
		return // who ends the last direction records it
	}
	if why := f.reason(); why != nil && err != nil {
		err = why
	}
	if err != nil && !f.marked(markAnswered) {
		a.Refuse(f, err)
	}
	g.record(f, err)
}

// introduce takes over what came with the flow for policy.
func (f *Flow) introduce() {
	r := f.Request
	if r.HTTP == nil && r.SNI == "" && !r.Remote.IsValid() {
		return
	}
	s := f.show()
	s.http, s.sni, s.remote = r.HTTP, r.SNI, r.Remote
}

// UseHeader lets the flow's token and the gateways that it has passed be looked for among the fields of its request. It is called
// before CarryExchange; trusted tells that the words in via are believed.
func (g *Gateway) UseHeader(f *Flow, h http.Header, trusted bool) {
	if g.env.VerifyToken != nil {
		f.Request.fields = h
	}
	if via := h["Via"]; len(via) > 0 {
		f.passed = readVia(joinFields(via), g.via, trusted)
	}
	f.trace = traceOf(h.Get(fieldTraceparent))
}

func joinFields(values []string) string {
	if len(values) == 1 {
		return values[0]
	}
	all := values[0]
	for _, v := range values[1:] {
		all += "," + v
	}
	return all
}

// Context ends when the client has gone, or when the flow is cut; not before the exchange is over.
func (x *Exchange) Context() context.Context { return x.ctx }

// Flow is the flow.
func (x *Exchange) Flow() *Flow { return x.f }

// Route is what the route of the flow says of requests, nil for nothing. It is not changed.
func (x *Exchange) Route() *RouteHTTPConfig {
	if x.f.via.http == nil {
		return nil
	}
	return x.f.via.http.conf
}

// Headers are fields that policy wants the request to have when it goes on. They are known when a carrier is open.
func (x *Exchange) Headers() []policy.Header { return x.f.shown.headers }

// Via is the via field that the request goes on with.
func (x *Exchange) Via() string { return viaOf(x.f.passed, x.f.g.via) }

// Traceparent returns the traceparent that the request goes on with. parent is the one that it came with, "" where that is not
// believed.
func (x *Exchange) Traceparent(parent string) string {
	if !validTraceparent(parent) {
		parent = ""
	}
	next := nextTraceparent(parent)
	x.f.traced(traceOf(next))
	return next
}

// Answer notes that the answer begins, with its status: from now on the flow stands.
func (x *Exchange) Answer(status int) {
	x.f.shown.status = status
	x.f.marks.Or(markAnswered)
	x.f.lookAgain()
}

// Sent counts n bytes of the request's body; where policy limits the flow's bytes it waits. It may be called by the goroutine
// that sends the body.
func (x *Exchange) Sent(n int) error { return x.count(&x.f.in, n) }

// Received is Sent for the answer's body.
func (x *Exchange) Received(n int) error { return x.count(&x.f.out, n) }

func (x *Exchange) count(d *direction, n int) error {
	d.moved(n)
	if !x.f.paced() {
		return nil
	}
	x.f.owe(n)
	_, ok, err := x.f.pass(0, x.waits)
	switch {
	case err != nil:
		return x.f.reason()
	case !ok:
		return context.Cause(x.ctx)
	}
	return nil
}

// contextQuit ends a wait with a context.
type contextQuit struct{ ctx context.Context }

func (q contextQuit) quit() <-chan struct{} { return q.ctx.Done() }

// Relay makes a byte stream of the exchange, after both sides have agreed to switch protocols: accepted is the client's end, ahead
// what came from it already, and back what came from the destination. It returns when the stream is over. CarryExchange's caller
// has nothing to answer then.
func (x *Exchange) Relay(accepted Conn, ahead []byte, c *Carrier, back []byte) {
	f := x.f
	over := make(chan struct{})
	ended := f.Ended
	f.Ended = func() {
		if ended != nil {
			ended()
		}
		close(over)
	}
	f.mu.Lock()
	f.cancel = nil
	f.mu.Unlock()
	f.entered, c.entered = c.entered, nil
	x.relayed = true
	if len(back) > 0 {
		if !f.stand(accepted, c.Conn) {
			f.g.record(f, f.reason())
			<-over
			return
		}
		n, err := accepted.Write(back)
		f.out.bytes.add(int64(n))
		if err != nil {
			c.Reset(err)
			accepted.Reset(err)
			f.g.record(f, f.fail(relayCause(err, CauseSourceBroke)))
			<-over
			return
		}
	}
	f.relay(accepted, ahead, c.Conn)
	<-over
}

// RequestStatus is the status of HTTP by which a client is told that a request was refused for err, and what Proxy-Status says
// (RFC 9209).
func (g *Gateway) RequestStatus(err error) (status int, proxy string) {
	var own *Error
	status = cmp.Or(requestStatuses[CauseOf(err)], http.StatusBadGateway)
	if errors.As(err, &own) && own.BadToken {
		status = http.StatusUnauthorized // RFC 6750, section 3.1
	}
	return status, proxyStatus(g.plan.Load().name, err)
}

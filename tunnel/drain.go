package tunnel

import (
	"context"
	"errors"
	"sync"
)

// errDraining refuses flows while the gateway stops.
var errDraining = &Error{Cause: CauseDraining, Reason: "the gateway is stopping"}

// errCutByClose is why flows end that live when the gateway is closed.
var errCutByClose = &Error{Cause: CauseCut, Reason: "the gateway was closed"}

// cutByDrain is why flows end that outlive a drain: its time is over, or somebody has ended it before.
func cutByDrain(ctx context.Context) error {
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, context.DeadlineExceeded):
		return &Error{Cause: CauseCut, Reason: "the time for draining is over"}
	case errors.Is(cause, context.Canceled):
		return &Error{Cause: CauseCut, Reason: "the drain was ended before its time"}
	default:
		return &Error{Cause: CauseCut, Err: cause}
	}
}

// Drain takes no new flows, waits for those that live until ctx ends, and cuts the rest: their ends are
// reset, so that nobody takes them for complete. It closes the listeners; connections of peers get
// GOAWAY, and flows that they still ask for are refused with 503. Then it closes the gateway. It returns
// nil if no flow had to be cut, else ctx's error; the cause of ctx is in the records of those. Called again while it runs, it makes the first call end at
// once.
func (g *Gateway) Drain(ctx context.Context) error {
	g.mu.Lock()
	if g.state >= stateDraining {
		g.mu.Unlock()
		g.end() // the first call sees it
		g.Close()
		return context.Canceled
	}
	g.state = stateDraining
	g.draining.Store(true)
	g.idle = make(chan struct{})
	for _, l := range g.listeners {
		l.close()
	}
	var servers []*serverConn
	for s := range g.servers {
		servers = append(servers, s)
	}
	idle := g.idle
	g.mu.Unlock()
	g.flowEnded() // there may be none

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(g.base, cancel)() // a second call
	// Connections are closed when their streams have ended, or when all flows were cut: a flow that is cut shows
	// as RST_STREAM, not as a lost connection.
	streams, closeNow := context.WithCancel(context.Background())
	defer closeNow()
	var draining sync.WaitGroup
	for _, s := range servers {
		draining.Go(func() { s.drain(streams) }) // ends with the connection's streams or closeNow; waited for below
	}
	var err error
	select {
	case <-idle:
		err = g.base.Err() // a second call has cut the flows
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		cancel()
		g.cutAll(cutByDrain(ctx))
		<-idle
	}
	g.pool.drain(ctx)
	defer context.AfterFunc(ctx, closeNow)() // requests that are no flows have no more time than these
	draining.Wait()
	g.Close()
	return err
}

// Close ends everything at once: flows that live are cut. It waits until everything that the gateway has
// started or carries is over, and may be called again, but not by what carries a flow.
func (g *Gateway) Close() {
	g.mu.Lock()
	g.state = stateClosed
	g.draining.Store(true)
	if g.idle == nil {
		g.idle = make(chan struct{})
	}
	idle := g.idle
	for _, l := range g.listeners {
		l.close()
	}
	var servers []*serverConn
	for s := range g.servers {
		servers = append(servers, s)
	}
	g.mu.Unlock()
	g.flowEnded() // there may be none
	g.end()
	g.cutAll(errCutByClose)
	for _, s := range servers {
		s.close()
	}
	<-idle
	g.pool.close()
	g.work.Wait()
}

// cutAll cuts every flow that lives.
func (g *Gateway) cutAll(why error) {
	var list []*Flow
	g.flows.each(func(f *Flow) bool {
		list = append(list, f)
		return true
	})
	for _, f := range list {
		f.cut(why)
	}
}

// flowEnded tells a drain that no flow is left.
func (g *Gateway) flowEnded() {
	if g.stats.active.load() > 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.idle == nil {
		return
	}
	select {
	case <-g.idle:
	default:
		close(g.idle)
	}
}

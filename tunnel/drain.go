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

// Drain accepts no more, serves what was accepted, waits for the flows until ctx ends, and cuts the rest: their
// ends are reset, so that nobody takes them for complete. It closes the listeners. Connections of peers get
// GOAWAY, twice: what a peer asks for before it can know is served, and what it asks for later is not
// processed and may be sent elsewhere (RFC 9113, section 6.8). Then it closes the gateway. It returns nil if
// no flow had to be cut, else ctx's error; the cause of ctx is in the records of those. Flows that others hand
// to Carry are refused meanwhile, but for those that are Flow.Taken. Called again while it runs, it makes the
// first call end at once.
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
	for _, l := range g.listeners {
		l.close()
	}
	g.mu.Unlock()
	g.accepting.Wait() // what they have accepted counts as a connection now
	if g.inspector != nil {
		g.inspector.Close()
	}

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(g.base, cancel)() // a second call
	idle, servers := g.waitIdle()
	var draining sync.WaitGroup
	for _, s := range servers {
		draining.Go(func() { s.drain(g.grace) }) // ends with the connection's streams or with the grace; waited for below
	}
	g.noteIdle() // there may be nothing
	var err error
	select {
	case <-idle:
		err = g.base.Err() // a second call has cut the flows
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		cancel()
		// First the flows, then what carries them: a flow that is cut shows as RST_STREAM, not as a lost connection.
		g.cutting.Store(true)
		g.cutAll(cutByDrain(ctx))
		g.over()
		<-idle
	}
	draining.Wait()
	g.pool.drain(ctx) // flows needed it until now
	g.Close()
	return err
}

// waitIdle returns what is closed when no flow is left and no connection that may bring one, and the
// connections of peers.
func (g *Gateway) waitIdle() (idle chan struct{}, servers []*serverConn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.idle == nil {
		g.idle = make(chan struct{})
	}
	for s := range g.servers {
		servers = append(servers, s)
	}
	return g.idle, servers
}

// Close ends everything at once: flows that live are cut. It waits until everything that the gateway has
// started or carries is over, and may be called again, but not by what carries a flow.
func (g *Gateway) Close() {
	g.mu.Lock()
	g.state = stateClosed
	g.draining.Store(true)
	g.cutting.Store(true)
	for _, l := range g.listeners {
		l.close()
	}
	g.mu.Unlock()
	if g.inspector != nil {
		g.inspector.Close()
	}
	idle, servers := g.waitIdle()
	g.end()
	g.cutAll(errCutByClose)
	for _, s := range servers {
		s.close()
	}
	g.accepting.Wait()
	g.noteIdle() // there may be nothing
	<-idle
	g.closeSets()
	g.pool.close()
	g.work.Wait()
	g.parking.close()
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

// noteIdle tells a drain that no flow is left, and no connection that may bring one.
func (g *Gateway) noteIdle() {
	if g.stats.active.load() > 0 || g.stats.connections.load() > 0 {
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

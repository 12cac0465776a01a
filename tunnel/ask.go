package tunnel

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"culvert/policy"
)

// asks are the authorizers that have to allow a flow, each asked once about it.
type asks struct {
	names []string
	about policy.Request
}

// toAsk notes whom a decision wants to be asked before the flow begins.
func (f *Flow) toAsk(r *policy.Request, d *policy.Decision) {
	f.Request.asks = f.Request.asks.with(r, d)
}

// with adds whom a decision wants to be asked. What they are asked is what the first one was decided by.
func (q *asks) with(r *policy.Request, d *policy.Decision) *asks {
	if d.Obligations == nil {
		return q
	}
	for _, name := range d.Obligations.Ask {
		if q == nil {
			q = &asks{about: *r}
		}
		if !slices.Contains(q.names, name) {
			q.names = append(q.names, name)
		}
	}
	return q
}

// askBefore asks the authorizers that have to allow a flow which is not being opened yet.
func (g *Gateway) askBefore(f *Flow, gone func() <-chan struct{}) error {
	if f.Request.asks == nil {
		return nil
	}
	ctx, stop := f.opening(g.base, gone)
	defer stop()
	err := g.askNow(ctx, f)
	if why := f.reason(); err != nil && why != nil {
		return why // cut meanwhile
	}
	return err
}

// askNow asks the authorizers that have to allow a flow, one after the other. It ends with ctx.
func (g *Gateway) askNow(ctx context.Context, f *Flow) error {
	q := f.Request.asks
	if q == nil {
		return nil
	}
	f.Request.asks = nil
	began := time.Now()
	d := g.askAll(ctx, q)
	f.times.since(phaseAsk, began)
	switch {
	case d.Allow:
		return nil
	case ctx.Err() != nil:
		return timedOut(ctx, &Error{Cause: CauseSourceGone, Err: context.Cause(ctx)})
	}
	return denied(&d)
}

// askAll asks every authorizer, until one refuses.
func (g *Gateway) askAll(ctx context.Context, q *asks) (d policy.Decision) {
	for _, name := range q.names {
		if g.env.Ask == nil {
			return policy.Decision{Policy: "ask", Rule: "ask/" + name, Reason: "authorizer " + name + " has to allow the flow, and this gateway knows none (Env.Ask)"}
		}
		if d = g.env.Ask(ctx, name, &q.about); !d.Allow {
			break
		}
	}
	return d
}

// askedAgain is a live flow that authorizers have to allow again.
type askedAgain struct {
	flow *Flow
	asks *asks
}

// askAgainAtOnce is how many live flows are asked about at a time after a reload: new flows, which wait for their answers, have to
// get most of what an authorizer can do.
const askAgainAtOnce = 8

// askAgain asks about live flows, in the background, and ends those that are not allowed any more. What a reload before has
// not asked yet is not asked any more: the flows are in list, or policy wants nobody to be asked about them.
func (g *Gateway) askAgain(list []askedAgain) {
	ctx, cancel := context.WithCancel(g.base)
	if before := g.asking.Swap(&cancel); before != nil {
		(*before)()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state == stateClosed {
		return // there are no live flows
	}
	next := new(atomic.Int64)
	for range min(askAgainAtOnce, len(list)) {
		g.work.Go(func() { // ends with the list, the next reload or the gateway; Close waits for it
			for i := next.Add(1); i <= int64(len(list)) && ctx.Err() == nil; i = next.Add(1) {
				list[i-1].flow.askAgain(ctx, list[i-1].asks)
			}
		})
	}
}

// askAgain asks about a live flow, and ends it if it is not allowed any more.
func (f *Flow) askAgain(ctx context.Context, q *asks) {
	if f.marked(markRecorded) || f.reason() != nil {
		return // it has ended meanwhile, or will
	}
	if d := f.g.askAll(ctx, q); !d.Allow && ctx.Err() == nil {
		f.cut(denied(&d))
	}
}

package tunnel

import (
	"context"
	"errors"
)

// open opens the side of the flow that leads to its destination: a connection of this gateway's own, or
// a tunnel at the next hop. It ends when the accepted end is gone, when the flow is cut, or after the time
// that the configuration gives.
func (g *Gateway) open(f *Flow, gone func() <-chan struct{}, early *Early) (Conn, error) {
	ctx, stop := f.opening(g.base, gone)
	defer stop()
	var end Conn
	var err error
	switch {
	case f.via.proxy != 0 && f.UDP:
		err = &Error{Cause: CauseConfiguration, Reason: "a route with proxyProtocol carries no datagrams; they need a route of their own before it"}
	case f.via.tls != nil && f.UDP:
		err = &Error{Cause: CauseConfiguration, Reason: "a route with tls carries no datagrams; they need a route of their own before it"}
	case !f.via.direct() && f.Target.Socket != "":
		err = &Error{Cause: CauseConfiguration, Reason: "a unix socket is on this host; its listener needs a route without via and agents"}
	case f.via.agents:
		end, err = g.openReverse(ctx, f, early)
	case f.via.chain != nil && f.via.chain.last.upstream != nil:
		end, err = g.openProxy(ctx, f)
	case f.via.chain != nil:
		end, err = g.openConnect(ctx, f, early)
	case f.appTunnel().IsValid():
		end, err = g.openAppTunnel(ctx, f)
	default:
		end, err = g.openDirect(ctx, f)
	}
	if c, ok := end.(*Carrier); ok && err == nil {
		return c, nil // it was opened before
	}
	if err == nil && f.via.proxy != 0 {
		end, err = f.tellProxy(ctx, end)
	}
	if err == nil && f.via.tls != nil {
		end, err = g.addTLS(ctx, f, end)
	}
	if err == nil {
		return end, nil
	}
	if why := f.reason(); why != nil {
		return nil, why // cut while it was being opened
	}
	return nil, timedOut(ctx, err)
}

// timedOut makes an error that a deadline has caused say so: what was cancelled by it often does not.
func timedOut(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) && CauseOf(err) == CauseSourceGone {
		return &Error{Cause: CauseTimeout, Err: err}
	}
	return err
}

package tunnel

import (
	"net"
	"net/netip"

	"culvert/pki/spiffe"
	"culvert/policy"
)

// Inspector serves flows that are looked into: it finds requests in them and hands these to Gateway.CarryExchange.
type Inspector interface {
	// Inspect serves a flow and closes its connection. It returns at once or when all is over; done is called once, when nothing that
	// belongs to the flow is under way any more.
	Inspect(in *Inspected, done func())
	// Close ends flows in which nothing is under way, and the others when that is over. It returns at once.
	Close()
}

// Inspected is a flow that is looked into.
type Inspected struct {
	// Conn is the accepted end.
	Conn net.Conn
	// Listener, Source, Peer, Target and Dialled are those of the flow, and of the requests in it.
	Listener string
	Source   netip.AddrPort
	Peer     spiffe.ID
	Target   Target
	Dialled  netip.Addr
	// Trusted tells that fields of the requests are believed which tell of others (Config.TrustHeaders).
	Trusted bool
}

// inspects reports whether the flow is looked into.
func (f *Flow) inspects() bool {
	return f.via != nil && f.via.inspect && f.Request.HTTP == nil && !f.UDP
}

// inspect has the requests in a flow served. The flow itself leads nowhere: it is answered with yes and recorded when the last of it
// is over.
func (g *Gateway) inspect(f *Flow, a Accepted) {
	if g.inspector == nil {
		err := &Error{Cause: CauseConfiguration, Reason: "route " + f.via.name + " has its flows looked into, and nobody does that here (Env.Inspector)"}
		a.Refuse(f, err)
		g.record(f, err)
		return
	}
	in := &Inspected{
		Listener: f.Listener, Source: f.Source, Peer: f.Peer, Target: f.Target, Dialled: f.Request.Dialled,
		Trusted: f.plan.trusted.Decide(&policy.Request{Peer: f.Peer}).Allow,
	}
	end, ahead, err := a.Accept(f)
	if err != nil {
		g.record(f, relayCause(err, CauseSourceGone))
		return
	}
	f.opened(nil)
	f.mu.Lock()
	why := f.why
	f.cancel = func() { end.Reset(errCutByClose) } // the reason is in the record
	f.mu.Unlock()
	if why != nil {
		end.Reset(why)
		g.record(f, why)
		return
	}
	in.Conn = &inspectedConn{Conn: end, f: f, ahead: ahead}
	g.inspector.Inspect(in, func() { g.record(f, f.reason()) })
}

// inspectedConn is the accepted end of a flow that is looked into. It counts the flow's bytes.
type inspectedConn struct {
	Conn
	f     *Flow
	ahead []byte // owned by who reads
}

// Read returns what came with the flow, then what comes.
func (c *inspectedConn) Read(p []byte) (n int, err error) {
	if len(c.ahead) > 0 {
		n = copy(p, c.ahead)
		c.ahead = c.ahead[n:]
	} else {
		n, err = c.Conn.Read(p)
	}
	c.f.in.moved(n)
	return n, err
}

// Write counts what goes back.
func (c *inspectedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.f.out.moved(n)
	return n, err
}

// SetLinger with 0 breaks the connection, which is what who calls it wants (see socket.Reset).
func (c *inspectedConn) SetLinger(sec int) error {
	if sec == 0 {
		c.Conn.Reset(&Error{Cause: CauseDestinationBroke})
	}
	return nil
}

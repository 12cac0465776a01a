package tunnel

import (
	"context"
	"net"
	"sync"
	"time"

	"culvert/pki/spiffe"
	"culvert/policy"
)

// Listener is a net.Listener for a Go program that peers reach through tunnels, without a gateway in front
// of it: each CONNECT that policy lets pass is one connection. The peer gets its 200 when Accept takes it.
type Listener struct {
	g     *Gateway
	addr  net.Addr
	conns chan *PeerConn

	once  sync.Once
	done  chan struct{} // closed by Close
	end   context.CancelFunc
	ended sync.WaitGroup // the drain that Close has started
}

// listenerName is how the records of a Listener call it.
const listenerName = "listener"

// Listen serves tunnels on address, "host:port". Of env it needs Self and ServerTLS. rules say which peers
// may connect; the zero value lets in those of this program's own trust domain and namespace.
func Listen(ctx context.Context, address string, env Env, rules policy.Config) (*Listener, error) {
	cfg := &Config{
		Listeners: []ListenerConfig{{Name: listenerName, Kind: KindHBONE, Address: address}},
		Routes:    []RouteConfig{{Listeners: []string{listenerName}}},
		Policy:    rules,
	}
	return listen(ctx, cfg, env)
}

// listen starts a gateway of cfg whose one listener hands its flows to Accept.
func listen(ctx context.Context, cfg *Config, env Env) (*Listener, error) {
	g, err := New(cfg, env)
	if err != nil {
		return nil, err
	}
	l := &Listener{g: g, conns: make(chan *PeerConn), done: make(chan struct{})}
	g.carry = l.deliver
	if err := g.Start(ctx); err != nil {
		g.Close()
		return nil, err
	}
	l.addr = g.Addr(listenerName)
	return l, nil
}

// Accept waits for the next tunnel. Its connections are *PeerConn. After Close it returns net.ErrClosed.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		select {
		case c := <-l.conns:
			end, _, err := c.answer.Accept(c.flow)
			if err != nil { // the peer has gone
				l.g.record(c.flow, relayCause(err, CauseSourceGone))
				continue
			}
			c.Conn = end
			if c.flow.stand(c, c) { // else it was cut, and is reset and recorded
				return c, nil
			}
		case <-l.done:
			return nil, &net.OpError{Op: "accept", Net: "tunnel", Addr: l.addr, Err: net.ErrClosed}
		}
	}
}

// deliver takes the place of relaying: the program itself is the destination. It waits for an Accept as long
// as opening may take.
func (l *Listener) deliver(f *Flow, a Accepted) {
	l.g.begin(f)
	err := l.g.decide(f)
	if err == nil {
		err = l.g.oblige(f) // of a name, which nobody resolves here, it is still due
	}
	if err == nil {
		err = l.g.askBefore(f, a.Gone)
	}
	if err == nil {
		t := time.NewTimer(f.plan.timeouts.Open)
		defer t.Stop()
		select {
		case l.conns <- &PeerConn{l: l, flow: f, answer: a}:
			return // Accept and PeerConn.Close do the rest
		case <-a.Gone():
			err = &Error{Cause: CauseSourceGone}
		case <-t.C:
			err = &Error{Cause: CauseTimeout, Reason: "the program accepts no connection"}
		case <-l.done:
			err = errDraining
		}
	}
	a.Refuse(f, err)
	l.g.record(f, err)
}

// Addr returns the address of the socket.
func (l *Listener) Addr() net.Addr { return l.addr }

// Close ends the listener. Connections that Accept has returned live on; when the last one of a peer ends,
// the connection to the peer is closed. It may be called again.
func (l *Listener) Close() error {
	l.once.Do(func() {
		ctx, end := context.WithCancel(context.Background())
		l.end = end
		close(l.done)
		l.ended.Add(1)
		go func() { // ends with the last connection, or when Cut is called, which waits for it
			defer l.ended.Done()
			_ = l.g.Drain(ctx) // an error says only that Cut was called
		}()
	})
	return nil
}

// Cut ends the listener and every connection, and waits until all of it is over.
func (l *Listener) Cut() {
	_ = l.Close()
	l.end()
	l.ended.Wait()
}

// PeerConn is a tunnel that a peer has opened to this program.
type PeerConn struct {
	Conn
	l      *Listener
	flow   *Flow
	answer Accepted
	once   sync.Once

	reads, writes patience // with limits of policy
}

// Peer is the peer's identity, proven by its certificate.
func (c *PeerConn) Peer() spiffe.ID { return c.flow.Peer }

// Target is the destination that the peer asked for.
func (c *PeerConn) Target() Target { return c.flow.Target }

// Close ends the connection. What was written before is delivered.
func (c *PeerConn) Close() error {
	err := c.Conn.Close()
	c.flow.endWaits()
	c.once.Do(func() { c.l.g.record(c.flow, c.flow.reason()) })
	return err
}

// Reset ends the connection so that the peer sees it broken. It is also what cuts the connection when the
// Listener is.
func (c *PeerConn) Reset(cause error) {
	c.Conn.Reset(cause)
	c.flow.endWaits()
	c.once.Do(func() { c.l.g.record(c.flow, relayCause(cause, CauseDestinationBroke)) })
}

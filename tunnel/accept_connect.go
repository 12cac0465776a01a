package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"culvert/pki/spiffe"
	"culvert/policy"
	"culvert/tunnel/h2"
)

// WayConnect is Flow.Way of a flow that a peer asked for with CONNECT.
const WayConnect = "connect"

// serverConn is a connection of a peer, on which it asks for flows.
type serverConn struct {
	// immutable once the connection is served
	g       *Gateway
	l       *listener
	conn    *h2.Conn
	proof   *proof        // nil: of a proxy of others, on which requests with x-tun come
	inside  *outerRequest // the request inside of which it is; nil: it is a connection by itself
	source  netip.AddrPort
	dialled netip.Addr
	checked uint64 // Gateway.rechecks before its handshake

	trust    atomic.Pointer[trust] // as the plan that was current last has it
	agent    *agentConn            // set before streams are served; nil: flows do not go to the peer
	hop      *registration         // set before streams are served; nil: the peer has dialled, and not this gateway
	disowned atomic.Pointer[Error] // why its peer is not believed any more; nil: it is
	retiring atomic.Bool           // its peer's certificate has expired

	passed atomic.Pointer[passed] // of the last request that had some

	pending atomic.Int64 // handshakes under way inside of requests on it

	mu    sync.Mutex
	ended int64 // streams that are over; guarded by mu
	one   sync.Cond
}

// trust is whether a plan trusts a peer with header fields.
type trust struct {
	plan    *plan
	trusted bool
}

// meet authenticates a peer, by until, and begins to serve the streams of its connection, which may be inside of a request;
// nil where there is none.
func (l *listener) meet(nc net.Conn, conf *listenerConf, inside *outerRequest, until time.Time) *serverConn {
	g := l.g
	checked := g.rechecks.Load()
	tc, proof, err := l.authenticate(nc, conf, until)
	if err != nil {
		g.stats.tlsRefused.add(1)
		l.logRefused(nc, conf, err)
		g.farewell(nc)
		return nil
	}
	tuneTransport(nc)
	return l.serveH2(tc, &serverConn{proof: proof, checked: checked, inside: inside}, proof.id)
}

// serveH2 begins to serve the streams of a connection of a peer; nil where that cannot be.
func (l *listener) serveH2(nc net.Conn, s *serverConn, peer spiffe.ID) *serverConn {
	g := l.g
	s.g, s.l, s.source, s.dialled = g, l, addrPort(nc.RemoteAddr()), addrPort(nc.LocalAddr()).Addr()
	s.one.L = &s.mu
	cfg := s.h2Config(peer)
	if s.proof == nil {
		widen(cfg)
		cfg.StreamWindow = 0 // as for others, until it is known who asks; see serveInner
	}
	tc, _ := nc.(*tls.Conn)
	if tc == nil || s.proof == nil || tc.ConnectionState().NegotiatedProtocol != agentALPN {
		cfg.Handler = s.serveStream
	} else {
		forAgents(cfg)
		ready := make(chan struct{})
		defer close(ready)
		cfg.Handler = func(st *h2.Stream) {
			<-ready // the agent of the connection, which takes no longer
			s.serveStream(st)
		}
	}
	var err error
	if s.conn, err = h2.NewServer(nc, cfg); err != nil {
		_ = nc.Close()
		return nil
	}
	if cfg.Bidirectional {
		s.agent = newAgentConn(s)
	}
	return s
}

// h2Config is what is common to all connections on which peers ask for flows.
func (s *serverConn) h2Config(peer spiffe.ID) *h2.Config {
	g := s.g
	cfg := g.env.H2
	cfg.Budget, cfg.EnableConnectProtocol = g.env.Budget, true
	cfg.OnOffence = func(c *h2.Conn, err *h2.ConnError) { g.Offended(c, peer, err) }
	return &cfg
}

// attend enters the connection into the books, and sees to it that it leaves them with its end; then it calls connEnded,
// and over. No goroutine waits for that, as there may be thousands of connections of agents on which nothing happens.
func (s *serverConn) attend(over func()) {
	if !s.g.addServer(s) {
		go s.drain(s.g.grace) // ends with the connection, or with the gateway's time for that
	}
	if s.g.rechecks.Load() != s.checked {
		s.recheck() // that did not see it
	}
	s.conn.AfterDone(func() {
		s.close()
		s.g.removeServer(s)
		s.l.connEnded()
		over()
	})
}

// authenticate does the TLS handshake with a peer and returns who it is. ALPN is h2, or nothing at all, as
// ztunnel accepts.
func (l *listener) authenticate(nc net.Conn, conf *listenerConf, until time.Time) (*tls.Conn, *proof, error) {
	ctx, cancel := context.WithDeadline(l.g.grace, until)
	defer cancel()
	tc := tls.Server(h2.NewGate(nc), l.forAgents(l.g.env.ServerTLS(conf.name)))
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, nil, fmt.Errorf("TLS handshake: %w", throughProxy(nc, err))
	}
	cs := tc.ConnectionState()
	if p := cs.NegotiatedProtocol; p != "h2" && p != "" && p != agentALPN {
		return nil, nil, fmt.Errorf("the peer speaks %q in TLS, want h2", p)
	}
	proof, err := l.g.identify(&cs, addrPort(nc.RemoteAddr()).Addr())
	return tc, proof, err
}

// How long, and for how many bytes, a connection is read on whose peer was refused in TLS.
const (
	farewellTimeout = time.Second
	farewellBytes   = 16 << 10
)

// farewell closes the connection of a peer that was refused. In TLS 1.3 the peer has already sent its first
// requests, and a socket that is closed with unread bytes is reset, so that the alert which says why would
// be lost.
func (g *Gateway) farewell(nc net.Conn) {
	defer g.closeWithGateway(nc)()
	s := newSocket(nc)
	_ = s.SetDeadline(time.Now().Add(farewellTimeout)) // the end of a WebSocket waits for the peer; what is closed waits for nothing
	if s.CloseWrite() == nil {
		_, _ = io.CopyN(io.Discard, s, farewellBytes) // whatever ends it
	}
	_ = s.Close()
}

// Offended notes that a connection was ended for what the peer at its other end did. A hostile one can make any
// number of these, so after the first of them only some are logged.
func (g *Gateway) Offended(c *h2.Conn, peer spiffe.ID, err *h2.ConnError) {
	g.stats.offences.add(1)
	if n := g.stats.offences.load(); n > refusedLogEvery && n%refusedLogEvery != 0 {
		return
	}
	g.env.Log.LogAttrs(g.base, slog.LevelWarn, "connection ended for what the peer did",
		slog.String("peer", peer.String()), slog.String("src", c.NetConn().RemoteAddr().String()), slog.String("reason", err.Error()))
}

// refusedLogEvery is how many refused peers share a line in the log; the metric counts all.
const refusedLogEvery = 100

// logRefused tells of a peer that did not get through TLS. A stranger can make any number of these, so
// after the first of them only some are logged.
func (l *listener) logRefused(nc net.Conn, conf *listenerConf, err error) {
	n := l.g.stats.tlsRefused.load()
	if n > refusedLogEvery && n%refusedLogEvery != 0 {
		return
	}
	l.g.env.Log.LogAttrs(l.g.base, slog.LevelInfo, "peer refused",
		slog.String("listener", conf.name), slog.String("src", nc.RemoteAddr().String()), slog.String("err", err.Error()+refusedHint(err)))
}

// refusedHint is what a peer that did not get through TLS most likely is, or wants, where the error does not say so.
func refusedHint(err error) string {
	var record tls.RecordHeaderError
	if networkCause(err) == CauseHopAlert {
		return "; it is the peer that refuses this gateway: the identity of its hop, or its roots, do not fit; its record or gateway ping there says which"
	}
	if errors.As(err, &record) {
		return "; only gateways speak to this port: an app does not, nor does a flow that a gateway has passed on by inner: pass and that had no inner tunnel in it (inner of the hop, where it began)"
	}
	return ""
}

// serveStream carries one stream that the peer has opened. It runs in a goroutine of its own.
func (s *serverConn) serveStream(st *h2.Stream) {
	head, conf := st.Request(), s.l.conf.Load()
	if s.isRegistration(head) {
		s.agent.register(st)
		return
	}
	if s.proof == nil || s.inside == nil && conf.xTun != nil && head.Get(fieldTun) != "" {
		s.serveOuter(st, conf)
		return
	}
	if conf.requests != nil && !isConnect(head) {
		conf.requests(st)
		s.streamEnded()
		return
	}
	s.g.carry(s.newFlow(head, conf), &connected{s: &h2Stream{st}})
}

// newFlow makes a flow of a request, or one that is refused where it is no CONNECT to a destination.
func (s *serverConn) newFlow(head *h2.Header, conf *listenerConf) *Flow {
	r := &Request{
		Dialled: s.dialled, Baggage: strings.Join(head.Values(fieldBaggage), ","), Forwarded: strings.Join(head.Values(fieldForwarded), ", "),
		Traceparent: head.Get(fieldTraceparent), Tracestate: strings.Join(head.Values(fieldTracestate), ","),
		Network: head.Get(fieldNetwork), SentBy: head.Get(fieldSource),
	}
	if s.g.env.VerifyToken != nil {
		r.fields = head
	}
	r.believe(s.trusted())
	f := &Flow{Listener: conf.name, Way: WayConnect, Source: s.source, Peer: s.proof.id, Request: r, Taken: true, from: s}
	f.passed = s.passedOf(head.Values(fieldVia))
	if from := forwardedFor(r.Forwarded); from.IsValid() {
		f.show().remote = from
	}
	if r.Network != "" {
		f.show().network = r.Network
	}
	f.trace = traceOf(head.Get(fieldTraceparent)) // to be shown, so whether it is believed does not matter
	switch why := s.disowned.Load(); {
	case why != nil:
		r.Fault = why
	case s.proof.expired(time.Now()):
		r.Fault = errExpired
	case s.tokenEnded(time.Now()):
		r.Fault = errTokenEnded
	case !s.tokenTaken(conf):
		r.Fault = errTokenOther
	case len(head.Values(fieldTun)) > 0:
		r.Fault = &Error{Cause: CauseMalformed, Reason: "the request has x-tun, and this listener takes none (xTun)"}
	case !isConnect(head):
		r.Fault = &Error{Cause: CauseNotConnect, Reason: "the request is " + strings.TrimSpace(head.Method+" "+head.Protocol)}
	case head.Protocol == protocolUDP:
		f.UDP = true
		f.Target, r.Fault = parseUDPPath(head.Path)
	default:
		f.Target, r.Fault = ParseAuthority(head.Authority)
	}
	if r.Fault == nil {
		r.Fault = s.mayAsk(f.Target)
	}
	f.Target = conf.agent.offered(f.Target)
	return f
}

// isConnect reports whether a request asks for a tunnel, of bytes or of datagrams.
func isConnect(head *h2.Header) bool {
	return head.Method == http.MethodConnect && (head.Protocol == "" || head.Protocol == protocolUDP)
}

// trusted reports whether the peer's header fields are believed. It is asked with no identity of our own, so
// that nobody is trusted for being a neighbour.
func (s *serverConn) trusted() bool {
	p := s.g.plan.Load()
	t := s.trust.Load()
	if t == nil || t.plan != p {
		t = &trust{plan: p, trusted: p.trusted.Decide(&policy.Request{Peer: s.proof.id}).Allow}
		s.trust.Store(t)
	}
	return t.trusted
}

func (s *serverConn) streamEnded() {
	s.mu.Lock()
	s.ended++
	s.mu.Unlock()
	s.one.Broadcast()
}

// unregister ends a registration on the connection: no new flows come by it.
func (s *serverConn) unregister() {
	switch {
	case s.agent != nil:
		s.agent.leave()
	case s.hop != nil:
		s.hop.end()
	}
}

// drain takes no more streams, waits for those that live until ctx ends, and closes.
func (s *serverConn) drain(ctx context.Context) {
	s.unregister()
	_ = s.conn.Drain(ctx) // whatever became of it, the connection is over
	_ = s.conn.Close()
}

// close ends the connection and waits for everything that ran on it.
func (s *serverConn) close() {
	_ = s.conn.Close() // waits for the reader, which starts the handlers
	s.unregister()
	accepted := s.conn.Stats().Accepted
	s.mu.Lock()
	for s.ended < accepted {
		s.one.Wait()
	}
	s.mu.Unlock()
	if s.agent != nil {
		_ = s.agent.Close() // requests that were withdrawn
	}
}

// addServer enters a connection into the books; false: the gateway takes no new flows.
func (g *Gateway) addServer(s *serverConn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.servers[s] = struct{}{}
	return g.state == stateRunning
}

func (g *Gateway) removeServer(s *serverConn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.servers, s)
}

// closeWithGateway closes nc when the gateway closes, or when its time for draining is over, until stop is called.
func (g *Gateway) closeWithGateway(nc net.Conn) (stop func() bool) {
	return context.AfterFunc(g.grace, func() { _ = nc.Close() })
}

// connected answers a CONNECT.
type connected struct{ s *h2Stream }

// Accept answers 200, after the tunnel stands (HBONE.md, "Response").
func (a *connected) Accept(f *Flow) (Conn, []byte, error) {
	h := &h2.Header{Status: statusOK}
	if baggage := f.localBaggage(); baggage != "" {
		h.Fields = []h2.Field{{Name: fieldBaggage, Value: baggage}}
	}
	if f.UDP {
		h.Fields = append(h.Fields, h2.Field{Name: fieldCapsule, Value: capsuleTrue})
	}
	if err := a.s.Respond(h, false); err != nil {
		_ = a.s.Close() // the peer has reset it
		return nil, nil, err
	}
	a.s.DropHeads()
	return a.s, nil, nil
}

// localBaggage describes the workload at this end: the destination, where it is one of ours, else this
// gateway.
func (f *Flow) localBaggage() string {
	if w := f.plan.workloads[f.Target.Addr]; w != nil {
		return w.baggage
	}
	return f.plan.baggage
}

// Refuse answers with the status and the Proxy-Status of err, and no body.
func (a *connected) Refuse(f *Flow, err error) {
	if errors.Is(err, errExpired) || errors.Is(err, errTokenEnded) || errors.Is(err, errTokenOther) { // of this peer: a hop may say what it likes
		// Nothing was done, so that the peer may ask again on a connection with a new certificate (RFC 9113, section 8.7).
		f.from.leave()
		a.s.Stream.Reset(h2.RefusedStream)
		_ = a.s.Close()
		return
	}
	h := &h2.Header{Status: verdicts[CauseOf(err)].status}
	h.Fields = []h2.Field{{Name: fieldProxyStatus, Value: proxyStatus(f.plan.name, err)}}
	_ = a.s.Respond(h, true) // a peer that has reset the stream wants no answer
	_ = a.s.Close()
}

// Gone is closed when the peer has reset the stream.
func (a *connected) Gone() <-chan struct{} { return a.s.Done() }

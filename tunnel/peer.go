package tunnel

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	"culvert/pki/spiffe"
)

// proof is what the peer of a connection has shown of itself in TLS. It does not change.
type proof struct {
	id    spiffe.ID
	certs []*x509.Certificate // its own first
	until time.Time           // when the certificate ends that we have shown to it; zero: not known
}

// overdue reports whether a hop will soon take no new flows on the connection, as our certificate is about to end there. We
// leave before: a flow that came between that end and the hop's goodbye would be sent twice.
func (p *proof) overdue(now time.Time) bool {
	return !p.until.IsZero() && now.After(p.until.Add(-leaveBefore))
}

// leaveBefore is more than two looks of the sweeper.
const leaveBefore = 2*sweepInterval + sweepInterval/2

// noteShown returns conf so that it is seen when the certificate ends that is shown to the server.
func noteShown(conf *tls.Config) (_ *tls.Config, until func() time.Time) {
	choose, end := conf.GetClientCertificate, time.Time{}
	if choose == nil {
		return conf, func() time.Time { return end }
	}
	conf = conf.Clone()
	conf.GetClientCertificate = func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		cert, err := choose(info)
		if err == nil && cert.Leaf != nil {
			end = cert.Leaf.NotAfter
		}
		return cert, err
	}
	return conf, func() time.Time { return end }
}

// expired reports whether its certificate's time is over. RFC 5280, section 4.1.2.5: the end itself counts as valid.
func (p *proof) expired(now time.Time) bool { return now.After(p.certs[0].NotAfter) }

// errExpired is why a peer starts no new flow on a connection that was made in time.
var errExpired = &Error{Cause: CauseExpired, Reason: "the certificate that the peer has shown on this connection has expired; it should connect again with a new one"}

// goodbye is how long a connection whose peer is not believed any more may take to hear of it.
const goodbye = time.Second

// identify returns who the peer of a finished handshake is.
func (g *Gateway) identify(cs *tls.ConnectionState, from netip.Addr) (*proof, error) {
	if len(cs.PeerCertificates) == 0 {
		return nil, errors.New("the peer showed no certificate")
	}
	p := &proof{certs: cs.PeerCertificates}
	var err error
	if g.env.Identify != nil {
		p.id, err = g.env.Identify(cs, from)
	} else {
		p.id, err = spiffe.FromCertificate(cs.PeerCertificates[0])
	}
	return p, err
}

// Recheck asks Env.Doubt about every peer whose connection stands, and ends the connections, with their flows, of those
// that are not believed any more, and the flows whose tokens are not. It is for when roots, revocation lists or keys of
// issuers have changed. It returns when the flows are cut.
func (g *Gateway) Recheck() {
	if g.env.VerifyToken != nil {
		g.recheckTokens(time.Now())
	}
	if g.env.Doubt == nil && g.env.VerifyToken == nil {
		return
	}
	g.rechecks.Add(1)
	for _, s := range g.serverConns() {
		s.recheck()
	}
	for _, t := range g.pool.transports() {
		g.recheckHop(t)
	}
}

// recheckHop ends the transport if its hop is not believed any more.
func (g *Gateway) recheckHop(t *pooled) {
	p := t.proof()
	if p == nil || g.env.Doubt == nil {
		return
	}
	if err := g.env.Doubt(p.certs, true); err != nil {
		g.disown(t, &Error{Cause: CauseRevoked, Hop: t.group.chain.last.Name, Err: err})
	}
}

func (g *Gateway) serverConns() []*serverConn {
	g.mu.Lock()
	defer g.mu.Unlock()
	list := make([]*serverConn, 0, len(g.servers))
	for s := range g.servers {
		list = append(list, s)
	}
	return list
}

// recheck ends the connection if its peer is not believed any more.
func (s *serverConn) recheck() {
	if s.tokenWithdrawn() {
		s.disown(&Error{Cause: CauseRevoked, Reason: "the token of the request around it is not valid any more: its key was withdrawn"})
		return
	}
	if s.g.env.Doubt == nil || s.proof == nil {
		return
	}
	if err := s.g.env.Doubt(s.proof.certs, s.hop != nil); err != nil {
		s.disown(&Error{Cause: CauseRevoked, Err: err})
	}
}

// disown cuts all flows of the connection and ends it. It starts no new ones from now on.
func (s *serverConn) disown(why *Error) {
	if !s.disowned.CompareAndSwap(nil, why) {
		return
	}
	s.unregister()
	s.g.logDisowned(s.proof.id, s.source, why)
	s.g.cutFlows(func(f *Flow) bool { return f.from == s || s.agent != nil && f.agent() == s.agent }, why)
	s.retire(goodbye)
}

// leave has the connection take no new streams and end with those that live.
func (s *serverConn) leave() {
	if s.retiring.CompareAndSwap(false, true) {
		s.retire(0)
	}
}

// retire has the connection take no new streams and end with those that live, or after a time; 0: none.
func (s *serverConn) retire(after time.Duration) {
	g := s.g
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, lives := g.servers[s]; !lives || g.state == stateClosed {
		return // it ends by itself
	}
	g.work.Go(func() { // ends with the streams, the time or the gateway; Close waits for it
		ctx := g.grace
		if after > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, after)
			defer cancel()
		}
		s.drain(ctx)
	})
}

// disown cuts all flows that go on by a transport and ends it.
func (g *Gateway) disown(t *pooled, why *Error) {
	t.group.mu.Lock()
	t.group.remove(t)
	t.group.mu.Unlock()
	g.logDisowned(t.Peer(), netip.AddrPort{}, why)
	g.cutFlows(func(f *Flow) bool { return f.goesBy(t) }, why)
	_ = t.Close() // its end is seen by watch
}

func (g *Gateway) logDisowned(peer spiffe.ID, from netip.AddrPort, why *Error) {
	attrs := []any{"peer", peer.String(), "err", why.Error()}
	if from.IsValid() {
		attrs = append(attrs, "src", from.String())
	} else {
		attrs = append(attrs, "hop", why.Hop)
	}
	g.env.Log.Warn("peer is not believed any more, its flows end", attrs...)
}

// cutFlows cuts the flows that are meant.
func (g *Gateway) cutFlows(meant func(*Flow) bool, why error) {
	var list []*Flow
	g.flows.each(func(f *Flow) bool {
		if meant(f) {
			list = append(list, f)
		}
		return true
	})
	for _, f := range list {
		f.cut(why)
	}
}

// goesBy reports whether the flow stands on a stream of t.
func (f *Flow) goesBy(t *pooled) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.in.dst.(*pooledStream)
	return ok && s.from == t
}

// expire looks for connections whose peers' certificates have expired: they get no new flows, and those that live run on,
// or are cut where the configuration wants that.
func (g *Gateway) expire(now time.Time) {
	end := g.plan.Load().expiryEnds
	if end && g.env.VerifyToken != nil {
		g.recheckTokens(now)
	}
	for _, s := range g.serverConns() {
		why := errExpired
		switch {
		case s.proof == nil:
			continue
		case s.proof.expired(now):
		case s.tokenEnded(now):
			why = errTokenEnded
		default:
			if s.hop != nil && s.proof.overdue(now) {
				s.hop.move()
			}
			continue
		}
		if end {
			s.disown(why)
		} else {
			s.leave()
		}
	}
	for _, t := range g.pool.transports() {
		p := t.proof()
		if p == nil || !p.expired(now) && !p.overdue(now) {
			continue
		}
		if end && p.expired(now) {
			g.disown(t, &Error{Cause: CauseExpired, Hop: t.group.chain.last.Name, Reason: "the hop's certificate has expired"})
		} else {
			t.group.expire(t)
		}
	}
}

// proof is what the hop has shown, nil where the transport does not tell.
func (t *pooled) proof() *proof {
	if p, ok := t.Transport.(interface{ proven() *proof }); ok {
		return p.proven()
	}
	return nil
}

// transports are all that have not ended: also those that get no new streams carry flows.
func (p *pool) transports() (list []*pooled) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, g := range p.groups {
		g.mu.Lock()
		list = slices.AppendSeq(list, maps.Keys(g.live))
		g.mu.Unlock()
	}
	return list
}

// expire gives t no new streams; those that live run on.
func (g *group) expire(t *pooled) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed || !g.remove(t) {
		return
	}
	g.pool.loops.Add(1)
	go g.retire(t) // ends with its streams, or with the pool; close waits for it
}

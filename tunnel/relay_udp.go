package tunnel

import (
	"time"

	"culvert/tunnel/datagram"
)

// defaultUDPIdle ends a flow of datagrams that has carried none for so long. RFC 4787, section 4.3, asks NATs for two
// minutes at least.
const defaultUDPIdle = 2 * time.Minute

// unansweredIdle ends one so early that came from a socket and has not carried datagrams both ways: whoever makes up source
// addresses, or looks for open ports, does not hold what others need. Linux tracks connections so, too
// (nf_conntrack_udp_timeout). Peers have an identity, and "SHOULD NOT use a period lower than two minutes" (RFC 9298,
// section 3.1) holds for them.
const unansweredIdle = 30 * time.Second

// packetEnd is an end of a flow of datagrams that is a socket. To the relay it is a stream of capsules like that on a
// transport, so that both ends are joined as those of any other flow, and a gateway between two others sees nothing of
// it.
type packetEnd struct{ *datagram.Conn }

// Reset closes the socket: there is nobody to be told.
func (p *packetEnd) Reset(error) { _ = p.Close() }

// fromAccepted is whose capsules come to the opened end, and fromOpened to the accepted one: of a peer or a source, and of
// a hop.
func (f *Flow) fromAccepted() string {
	if f.Peer.IsZero() {
		return f.Source.Addr().String()
	}
	return f.Peer.String()
}

func (f *Flow) fromOpened() string {
	if f.via == nil || f.via.direct() {
		return f.Target.String()
	}
	return f.via.leadsTo()
}

// expiryPatience is how long the end of a flow of datagrams may take: a peer that does not answer it, or that takes
// nothing, must not keep the flow.
const expiryPatience = 5 * time.Second

// idleLimit is how long the flow may carry nothing; 0: for ever. Between two gateways the ends of a flow of datagrams
// know better when it is over.
func (f *Flow) idleLimit() time.Duration {
	if f.UDP {
		accepted, opened := f.packetEnds()
		switch limit := f.plan.timeouts.UDPIdle; {
		case accepted != nil && (accepted.Stats().Received.Load() == 0 || accepted.Stats().Sent.Load() == 0):
			return min(limit, unansweredIdle)
		case accepted != nil || opened != nil:
			return limit
		}
	}
	return f.plan.timeouts.Idle
}

// packetEnds are the ends of the flow as far as they are sockets for datagrams, nil where one is not.
func (f *Flow) packetEnds() (accepted, opened *packetEnd) {
	f.mu.Lock()
	defer f.mu.Unlock()
	accepted, _ = f.in.src.(*packetEnd)
	opened, _ = f.out.src.(*packetEnd)
	return accepted, opened
}

// expire ends a flow of datagrams that nobody needs any more, in peace: that is how all of them end. It reports whether
// it could, which is so where an end is a socket. idle is how long nothing was carried.
func (f *Flow) expire(idle time.Duration) (ended bool) {
	if !f.UDP || idle >= f.idleLimit()+expiryPatience {
		return false
	}
	accepted, opened := f.packetEnds()
	for _, p := range [2]*packetEnd{accepted, opened} {
		if p != nil {
			p.End()
			ended = true
		}
	}
	return ended
}

// payload is how many bytes of payload the socket of a flow of datagrams has had in the direction d; false where no end
// is one, and d counts capsules.
func (d *direction) payload(src, dst Conn) (n int64, ok bool) {
	if p, is := src.(*packetEnd); is {
		return p.Stats().ReceivedBytes.Load(), true
	}
	if p, is := dst.(*packetEnd); is {
		return p.Stats().SentBytes.Load(), true
	}
	return 0, false
}

// packets are the datagrams that a flow's sockets have carried in both directions, and those that were lost for a reason
// that is known.
func (f *Flow) packets() (in, out, lost int64, ok bool) {
	accepted, opened := f.packetEnds()
	if opened != nil {
		s := opened.Stats()
		in, out, lost, ok = s.Sent.Load(), s.Received.Load(), s.Dropped.Load(), true
	}
	if accepted != nil {
		s := accepted.Stats()
		in, out, ok = s.Received.Load(), s.Sent.Load(), true
		lost += s.Dropped.Load()
	}
	return in, out, lost, ok
}

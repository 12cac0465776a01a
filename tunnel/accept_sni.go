package tunnel

import (
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"culvert/capture"
)

// WaySNI is Flow.Way of TLS that an hbone listener passes on unopened, to where its server name says.
const WaySNI = "sni"

// tlsPort is the port that a server name stands for which has none.
const tlsPort = 443

// istioSNI is how the server name of Istio begins that has a port: "outbound_.PORT_.SUBSET_.HOST".
const istioSNI = "outbound_."

// passTLS carries a connection on as it is if its server name leads somewhere, and reports whether it did. Else the
// connection is as it was: bytes that were read ahead, where they could not be looked at in the socket, are in the one
// returned. until is when the handshake has to be over.
func (l *listener) passTLS(nc net.Conn, conf *listenerConf, until time.Time) (_ net.Conn, passed bool) {
	c := &capture.Conn{Conn: nc, Way: WaySNI}
	stop := l.g.closeWithGateway(nc)
	hello, ok := capture.PeekHello(c, time.Until(until))
	stop()
	if !ok || hello.ServerName == "" {
		return c.NetConn(), false
	}
	p := l.g.plan.Load()
	t, explicit, err := targetOfSNI(hello.ServerName)
	if lp := p.listeners[conf.name]; !explicit && (lp == nil || !lp.passes(t)) {
		return c.NetConn(), false // HBONE goes by identities; what name a peer writes does not matter there
	}
	f := &Flow{
		Listener: conf.name, Way: WaySNI, Source: addrPort(nc.RemoteAddr()), Target: t, Taken: true, Ended: l.connEnded,
		Request: &Request{Dialled: addrPort(nc.LocalAddr()).Addr(), Fault: err},
	}
	f.show().sni = hello.ServerName
	if f.Request.Fault == nil {
		if l.g.hellos.enter(hello.Random) {
			f.Ended = func() {
				l.g.hellos.leave(hello.Random)
				l.connEnded()
			}
		} else {
			f.Request.Fault = &Error{Cause: CauseLoop, Reason: "the TLS connection passes this gateway already, and has come back; the routes of the gateways between lead in a circle"}
		}
	}
	l.g.Carry(f, &captured{c: c})
	return nil, true
}

// passes reports whether the first route that takes t names it and is for peers without an identity.
func (l *listenerPlan) passes(t Target) bool {
	for _, r := range l.routes {
		if m := r.match(t, false); m != nil && r.fits("") {
			return m.namesHost() && r.fromAny
		}
	}
	return false
}

// targetOfSNI returns where a server name leads. explicit tells that it has Istio's form, which means nothing else. The subset
// is not looked at.
func targetOfSNI(name string) (t Target, explicit bool, err error) {
	rest, explicit := strings.CutPrefix(name, istioSNI)
	if !explicit {
		t, err = TargetOf(name, netip.Addr{}, tlsPort)
		return t, false, err
	}
	port, rest, ok := strings.Cut(rest, "_.")
	if ok {
		_, rest, ok = strings.Cut(rest, "_.") // the subset
	}
	if !ok {
		return Target{}, true, authorityError(name, "it should be outbound_.PORT_.SUBSET_.HOST")
	}
	n, problem := parsePort(port)
	if problem != "" {
		return Target{}, true, authorityError(name, problem)
	}
	t, err = TargetOf(rest, netip.Addr{}, n)
	return t, true, err
}

// hellos are the TLS connections that are passed on now, by the random bytes of their clients. One that comes a second time has
// been sent back here: nothing else in it says where it has been.
type hellos struct {
	mu   sync.Mutex
	live map[[32]byte]struct{} // guarded by mu
}

// enter reports whether the connection was not there.
func (h *hellos) enter(random [32]byte) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, again := h.live[random]; again {
		return false
	}
	if h.live == nil {
		h.live = make(map[[32]byte]struct{})
	}
	h.live[random] = struct{}{}
	return true
}

func (h *hellos) leave(random [32]byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.live, random)
}

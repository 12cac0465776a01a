package tunnel

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"

	"culvert/capture"
)

// catch makes a flow of one captured connection, from which the way learns the destination; nil where that
// fails.
func (l *listener) catch(nc net.Conn, conf *listenerConf) (*Flow, *captured) {
	c := l.catchOne(nc, conf)
	if c == nil {
		return nil, nil
	}
	return l.newFlow(c, nc, conf)
}

// catchOne lets the way learn where a connection is meant to go; nil where that fails.
func (l *listener) catchOne(nc net.Conn, conf *listenerConf) *capture.Conn {
	stop := l.g.closeWithGateway(nc)
	c, err := conf.way.Catch(nc)
	stop()
	if err != nil {
		l.noteFailedCapture(nc, conf, err)
		return nil
	}
	return c
}

// serveApp has a service of this gateway answer what was caught.
func (l *listener) serveApp(c *capture.Conn, conf *listenerConf) {
	if l.isHere(netip.AddrPortFrom(c.Addr, c.Port)) {
		c.Addr, c.Port = netip.Addr{}, 0
	}
	stop := l.g.closeWithGateway(c)
	defer stop()
	conf.service.Serve(l.g.grace, c)
}

// isHere reports whether the listener itself is at dst.
func (l *listener) isHere(dst netip.AddrPort) bool {
	at := addrPort(l.addr())
	return dst == at || dst.Port() == at.Port() && at.Addr().IsUnspecified() && l.g.host.isHost(dst.Addr())
}

// catchMany makes flows of what an app asks for on one connection. Each counts as a connection, besides the one on
// which it was asked for, until that is over.
func (l *listener) catchMany(nc net.Conn, conf *listenerConf) {
	stop := l.g.closeWithGateway(nc)
	err := conf.server.Serve(nc, func(c *capture.Conn) {
		if c.Packets && conf.maxConnections > 0 && l.open.Load() >= conf.maxConnections {
			_ = c.Close() // an app has at most one other flow at a time on nc
			l.lostPackets(conf, "maxConnections", nil)
			return
		}
		l.connBegun()
		if f, a := l.newFlow(c, nc, conf); f.UDP {
			go l.g.Carry(f, a) // ends with the flow or before; Close ends it and waits for connEnded
		} else {
			l.g.Carry(f, a)
		}
	}, func() {
		stop()
		l.connEnded()
	})
	if err != nil {
		l.noteFailedCapture(nc, conf, err)
	}
}

// newFlow makes a flow of what was caught on nc.
func (l *listener) newFlow(c *capture.Conn, nc net.Conn, conf *listenerConf) (*Flow, *captured) {
	if c.Packets {
		nc = c // which has an address of its own
	}
	f := &Flow{Listener: conf.name, Way: c.Way, Source: addrPort(nc.RemoteAddr()), UDP: c.Packets, Request: new(Request), Ended: l.connEnded, Taken: true}
	if id, mapped := conf.identities[c.User]; mapped && c.User != "" {
		f.Peer = id
	} else if conf.ours(c, f, &l.g.host) {
		f.Peer = l.g.env.Self()
	}
	if f.Target.Socket = c.Socket; c.Socket == "" {
		f.Target, f.Request.Fault = TargetOf(c.Host, c.Addr, c.Port)
	}
	if conf.capture && f.Request.Fault == nil {
		f.Request.Fault = l.comesBack(f)
		if l.g.host.isHost(f.Target.Addr) {
			f.Request.Dialled = f.Target.Addr // an inbound flow, which leads to this host
		}
	}
	if f.Request.Fault == nil && f.Target.Addr.IsValid() && l.g.env.NameOf != nil {
		f.Request.Fault = l.g.devirtualize(f)
	}
	if f.Request.Fault == nil && !f.Target.IsName() && conf.sniff > 0 && !f.UDP {
		l.findName(f, c, conf)
	}
	return f, &captured{c: c}
}

// devirtualize leads a flow to a virtual address to the name that it stands for.
func (g *Gateway) devirtualize(f *Flow) error {
	name, virtual := g.env.NameOf(f.Target.Addr)
	if !virtual {
		return nil
	}
	if name == "" {
		return &Error{Cause: CauseUnknownHost, Reason: f.Target.Addr.String() + " is a virtual address that no name has, or none since this gateway was started; the app should look the name up again"}
	}
	var err error
	f.Target, err = TargetOf(name, netip.Addr{}, f.Target.Port)
	return err
}

// speaksFirst are the ports on which servers speak first: FTP, SSH, SMTP, POP3, IMAP, submission, MySQL, VNC.
var speaksFirst = []uint16{21, 22, 25, 110, 143, 587, 3306, 5900}

// findName looks for the name of a flow that was captured with an address. Where a route names it, the flow goes to the
// name: what an app says of a connection is no reason to let it pass to somewhere else.
func (l *listener) findName(f *Flow, c *capture.Conn, conf *listenerConf) {
	plan := l.g.plan.Load()
	p := plan.listeners[conf.name]
	if p == nil || !p.names || slices.Contains(speaksFirst, f.Target.Port) {
		return
	}
	host, isTLS := capture.Sniff(c, conf.sniff)
	if isTLS {
		f.show().sni = host
	}
	if named, err := TargetOf(host, netip.Addr{}, f.Target.Port); host != "" && err == nil && p.takesName(named, f.Target, plan.isLocal(f.Target, f.Request.Dialled)) {
		f.Target = named
	}
}

// comesBack says why a flow that the system has led here must not go on, nil if it may: it was made to a listener of
// this gateway, or by this gateway itself.
func (l *listener) comesBack(f *Flow) error {
	g, dst := l.g, f.Target.AddrPort()
	if own := &g.plan.Load().own; own.listensOn(dst) || l.isHere(dst) {
		return &Error{Cause: CauseLoop, Reason: fmt.Sprintf("it was made to %s, where this gateway itself listens; "+
			"the listener is for flows that `gateway capture install` leads here", dst)}
	}
	pair := addrPair{from: f.Source, to: dst, udp: f.UDP}
	if g.loops.enter(pair, false) {
		return errCaughtAgain(pair)
	}
	f.entered = append(f.entered, pair)
	return nil
}

// ours reports whether a captured flow carries this gateway's identity: it comes from a program on this
// host, or one that has shown a password, or through a proxy listener that the operator has opened to all
// who reach it. What comes to a plain port from elsewhere has no identity, nor has what this host routes for others.
func (conf *listenerConf) ours(c *capture.Conn, f *Flow, host *neighbours) bool {
	if conf.proxy || c.User != "" || !f.Source.IsValid() {
		return true
	}
	if conf.capture {
		return host.isHost(f.Source.Addr())
	}
	local := addrPort(c.LocalAddr())
	return f.Source.Addr().IsLoopback() || f.Source.Addr() == local.Addr()
}

// noteFailedCapture counts and tells of an app that did not get through the handshake. Port scans and health checks are
// no news.
func (l *listener) noteFailedCapture(nc net.Conn, conf *listenerConf, err error) {
	l.g.stats.captureFailed.add(1)
	level := slog.LevelInfo
	var failed *capture.HandshakeError
	if errors.As(err, &failed) && failed.Cause == capture.CauseClosed {
		level = slog.LevelDebug
	}
	l.g.env.Log.Log(l.g.base, level, "capture failed", "listener", conf.name, "src", nc.RemoteAddr().String(), "err", err)
}

// captured answers a captured connection in the words of its way.
type captured struct{ c *capture.Conn }

// Accept tells the app that its connection stands.
func (a *captured) Accept(f *Flow) (Conn, []byte, error) {
	if a.c.Packets {
		return f.g.packetsOf(f, a.c), nil, nil
	}
	if err := a.c.Accepted(); err != nil {
		_ = a.c.Close() // the app is gone
		return nil, nil, err
	}
	ahead := a.c.TakeAhead()
	return newSocket(a.c.NetConn()), ahead, nil
}

// Early returns the app's connection where the app waits for no answer before it sends, else nil.
func (a *captured) Early() net.Conn {
	if a.c.Awaited() {
		return nil
	}
	return a.c.NetConn()
}

// Refuse tells the app why it is not, as far as its protocol has words for it.
func (a *captured) Refuse(f *Flow, err error) {
	if a.c.Packets {
		f.g.refusePackets(a.c)
		return
	}
	_ = a.c.Refused(verdicts[CauseOf(err)].refusal) // the app may be gone
	_ = a.c.Close()
}

// Gone is not known of a captured connection: an app that has ended its side may still want the answer.
func (a *captured) Gone() <-chan struct{} { return nil }

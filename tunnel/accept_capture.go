package tunnel

import (
	"errors"
	"log/slog"
	"net"

	"culvert/capture"
)

// catch makes a flow of one captured connection, from which the way learns the destination; nil where that
// fails.
func (l *listener) catch(nc net.Conn, conf *listenerConf) (*Flow, *captured) {
	stop := l.g.closeWithGateway(nc)
	c, err := conf.way.Catch(nc)
	stop()
	if err != nil {
		l.g.stats.captureFailed.add(1)
		l.logFailedCapture(nc, conf, err)
		return nil, nil
	}
	f := &Flow{Listener: conf.name, Way: c.Way, Source: addrPort(nc.RemoteAddr()), Request: new(Request), Ended: l.connEnded, taken: true}
	if conf.ours(c, f) {
		f.Peer = l.g.env.Self()
	}
	f.Target, f.Request.Fault = TargetOf(c.Host, c.Addr, c.Port)
	return f, &captured{c: c}
}

// ours reports whether a captured flow carries this gateway's identity: it comes from a program on this
// host, or one that has shown a password, or through a SOCKS5 listener that the operator has opened to all
// who reach it. What comes to a plain port from elsewhere has no identity.
func (conf *listenerConf) ours(c *capture.Conn, f *Flow) bool {
	if conf.kind == KindSOCKS5 || c.User != "" || !f.Source.IsValid() {
		return true
	}
	local := addrPort(c.LocalAddr())
	return f.Source.Addr().IsLoopback() || f.Source.Addr() == local.Addr()
}

// logFailedCapture tells of an app that did not get through the handshake. Port scans and health checks are
// no news.
func (l *listener) logFailedCapture(nc net.Conn, conf *listenerConf, err error) {
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
func (a *captured) Accept(*Flow) (Conn, []byte, error) {
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
func (a *captured) Refuse(_ *Flow, err error) {
	_ = a.c.Refused(verdicts[CauseOf(err)].refusal) // the app may be gone
	_ = a.c.Close()
}

// Gone is not known of a captured connection: an app that has ended its side may still want the answer.
func (a *captured) Gone() <-chan struct{} { return nil }

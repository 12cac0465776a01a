package tunnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"culvert/capture"
	"culvert/tunnel/h2"
)

// How long the accept loop waits after an error: the first time, and at most. Files and memory come back
// when flows end, which takes as long as flows do; nothing spins meanwhile.
const (
	acceptPauseFirst = 5 * time.Millisecond
	acceptPauseMost  = time.Second
)

// listener is a socket that accepts connections. All kinds share its loop; what is done with a connection
// is in conf, which a reload replaces.
type listener struct {
	g    *Gateway
	ln   net.Listener
	conf atomic.Pointer[listenerConf]

	open   atomic.Int64 // connections
	closed atomic.Bool
	spare  *spareFile // owned by acceptLoop
}

// listenerConf is what a configuration says of a listener. It does not change.
type listenerConf struct {
	name           string
	kind           string
	way            capture.Way      // nil: hbone
	requests       func(*h2.Stream) // serves what is no CONNECT; nil: that is refused
	maxConnections int64            // 0: no limit
}

// listenerKey says which listeners of two configurations are the same socket.
func listenerKey(c *ListenerConfig) string {
	if strings.HasSuffix(c.Address, ":0") {
		return c.Address + " " + c.Name // each has a port of its own
	}
	return c.Address
}

// newConf makes what a listener does with its connections.
func (g *Gateway) newConf(c *ListenerConfig) (*listenerConf, error) {
	way, err := g.newWay(c)
	if err != nil {
		return nil, err
	}
	conf := &listenerConf{name: c.Name, kind: c.Kind, way: way, maxConnections: int64(c.MaxConnections)}
	switch {
	case c.MaxConnections == 0:
		conf.maxConnections = defaultMaxConnections
	case c.MaxConnections < 0:
		conf.maxConnections = 0
	}
	if way == nil && g.env.Requests != nil {
		if h := g.env.Requests(c.Name); h != nil {
			conf.requests = h2.HTTPHandler(h)
		}
	}
	return conf, nil
}

// newWay makes what catches the connections of a listener; nil for hbone.
func (g *Gateway) newWay(c *ListenerConfig) (capture.Way, error) {
	switch c.Kind {
	case KindHBONE:
		return nil, nil
	case KindSOCKS5:
		way, err := capture.NewSocks5(c.SOCKS5)
		if err != nil {
			return nil, err
		}
		for _, w := range way.Warnings() {
			g.env.Log.Warn("listener", "listener", c.Name, "reason", w)
		}
		return way, nil
	case KindForward:
		return capture.NewForward(c.To)
	}
	if made := g.env.Ways[c.Kind]; made != nil {
		return made(c)
	}
	return nil, fmt.Errorf("no way of kind %q", c.Kind)
}

// close ends the accepting. Connections live on.
func (l *listener) close() {
	l.closed.Store(true)
	_ = l.ln.Close() // closing a socket that is closed is no fault
}

// acceptLoop accepts until the listener is closed. When the system has no more files or memory it pauses,
// longer each time, and sheds what waits: who is closed at once can go elsewhere, who waits cannot.
func (l *listener) acceptLoop() {
	defer l.g.work.Done()
	defer l.g.accepting.Done()
	defer func() { l.spare.close() }()
	var pause time.Duration
	for {
		nc, err := l.ln.Accept()
		if err == nil {
			pause = 0
			l.serve(nc)
			continue
		}
		if l.closed.Load() || errors.Is(err, net.ErrClosed) {
			return
		}
		l.g.stats.acceptErrors.add(1)
		if errors.Is(err, syscall.ECONNABORTED) {
			continue // the peer has gone between its handshake and now: one error for each such peer
		}
		if pause == 0 {
			l.g.env.Log.Warn("accepting pauses", "listener", l.conf.Load().name, "err", err, "reason", cmp.Or(shortage(err), "the socket does not accept"))
		}
		pause = min(max(2*pause, acceptPauseFirst), acceptPauseMost)
		l.shedWaiting(err)
		l.sleep(pause)
	}
}

// shortage says what the system lacks, and where to get it, if err is about that.
func shortage(err error) string {
	switch {
	case errors.Is(err, syscall.EMFILE):
		return "the process has no more files; raise its limit (LimitNOFILE=, ulimit -n)"
	case errors.Is(err, syscall.ENFILE):
		return "the system has no more files (fs.file-max)"
	case errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.ENOBUFS):
		return "the system has no more memory"
	case errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.EADDRINUSE):
		return "no local port is free for that destination (net.ipv4.ip_local_port_range)"
	}
	return ""
}

// sleep waits for d or until the gateway closes. A Drain waits no longer than acceptPauseMost.
func (l *listener) sleep(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-l.g.base.Done():
	}
}

// serve hands an accepted connection to a goroutine of its own, or closes it where there is no room.
func (l *listener) serve(nc net.Conn) {
	conf := l.conf.Load()
	if conf.maxConnections > 0 && l.open.Load() >= conf.maxConnections {
		l.shed(nc, "maxConnections")
		return
	}
	l.open.Add(1)
	l.g.stats.connections.add(1)
	l.g.work.Add(1)
	go l.serveConn(nc, conf) // ends with the connection or before, see Carry; Close ends it and waits for connEnded
}

// serveConn serves one connection.
func (l *listener) serveConn(nc net.Conn, conf *listenerConf) {
	if conf.way == nil {
		if s := l.meet(nc, conf); s != nil {
			go s.attend() // ends with the connection, and calls connEnded
			return
		}
	} else if f, a := l.catch(nc, conf); f != nil {
		l.g.Carry(f, a)
		return // connEnded is called by the flow's end
	}
	l.connEnded()
}

// connEnded notes that an accepted connection is over.
func (l *listener) connEnded() {
	l.open.Add(-1)
	l.g.stats.connections.add(-1)
	l.g.noteIdle()
	l.g.work.Done()
}

// shed closes a connection that there is no room for, so that its peer knows at once.
func (l *listener) shed(nc net.Conn, reason string) {
	newSocket(nc).Reset(nil)
	if l.g.stats.shed.n.Add(1)%shedLogEvery == 1 {
		l.g.env.Log.LogAttrs(context.Background(), slog.LevelWarn, "connection shed",
			slog.String("listener", l.conf.Load().name), slog.String("src", nc.RemoteAddr().String()), slog.String("reason", reason))
	}
}

// shedLogEvery is how many shed connections share a line in the log; the metric counts all.
const shedLogEvery = 1000

// shedWaiting sheds the connections that wait although there is no file for them: the file that is kept
// for this is given up for as long.
func (l *listener) shedWaiting(err error) {
	if !errors.Is(err, syscall.EMFILE) || !l.spare.close() {
		return
	}
	defer func() { l.spare = openSpare() }()
	if d, ok := l.ln.(interface{ SetDeadline(time.Time) error }); ok {
		_ = d.SetDeadline(time.Now().Add(acceptPauseFirst)) // without it Accept would only wait longer
		defer func() { _ = d.SetDeadline(time.Time{}) }()
	}
	for range shedAtOnce {
		nc, err := l.ln.Accept()
		if err != nil {
			return // nobody waits any more, or the file has gone to somebody else
		}
		l.shed(nc, "no file")
	}
}

// shedAtOnce bounds how many waiting connections are shed before the loop looks for files again.
const shedAtOnce = 256

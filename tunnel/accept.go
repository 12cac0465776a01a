package tunnel

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"culvert/capture"
	"culvert/pki/spiffe"
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
	ln   net.Listener // nil: pc
	pc   *net.UDPConn // nil: ln
	runs *agentRuns   // of a listener that dials, and has neither; nil: it has
	conf atomic.Pointer[listenerConf]

	open    atomic.Int64 // connections
	sources sources      // of flows of datagrams from other hosts
	closed  atomic.Bool
	spare   *spareFile // owned by acceptLoop

	agentTLS atomic.Pointer[agentTLS] // the last one; nil: none yet

	retired []Server // of configurations before, with connections; guarded by g.mu
}

// listenerConf is what a configuration says of a listener. It does not change.
type listenerConf struct {
	name           string
	kind           string
	agent          *agentConf                  // nil: it does not dial
	agents         bool                        // peers may register
	capture        bool                        // the system leads flows here that were meant for other places
	proxy          bool                        // apps ask for flows, which carry this gateway's identity
	way            capture.Way                 // of one flow on each connection; nil: server, or hbone
	server         capture.Server              // of several; nil: way, or hbone
	serves         Server                      // finds flows on connections by itself; nil: it does not
	packets        capture.PacketWay           // of datagrams; nil: none are caught
	service        Service                     // answers what is caught; nil: it is carried
	requests       func(*h2.Stream)            // serves what is no CONNECT; nil: that is refused
	xTun           *xTun                       // takes requests with x-tun; nil: none
	proxyTLS       func() (*tls.Config, error) // for connections of proxies of others; nil: they are plain
	identities     map[string]spiffe.ID        // of users
	passTLS        bool                        // TLS whose server name leads somewhere is passed on
	sniff          time.Duration               // how long a name is looked for; 0: not at all
	maxConnections int64                       // 0: no limit
}

// newConf makes what a listener does with its connections.
func (g *Gateway) newConf(c *ListenerConfig) (*listenerConf, error) {
	conf := &listenerConf{name: c.Name, kind: c.Kind, agents: len(c.Agents) > 0, capture: c.isCapture(), proxy: c.isProxy(), passTLS: c.SNIPassthrough, maxConnections: int64(c.MaxConnections)}
	if err := g.addWay(conf, c); err != nil {
		return nil, err
	}
	for user, text := range c.Identities {
		id, err := spiffe.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("identity of %s: %w", user, err)
		}
		if conf.identities == nil {
			conf.identities = make(map[string]spiffe.ID)
		}
		conf.identities[user] = id
	}
	if conf.capture {
		conf.sniff = max(cmp.Or(c.Sniff, capture.SniffTimeout), 0)
	}
	switch {
	case c.MaxConnections == 0:
		conf.maxConnections = defaultMaxConnections
	case c.MaxConnections < 0:
		conf.maxConnections = 0
	}
	if x := c.XTun; x != nil || c.Kind == KindXTun {
		g.addXTun(conf, x)
	}
	if c.Kind == KindHBONE && g.env.Requests != nil {
		if h := g.env.Requests(c.Name); h != nil {
			conf.requests = h2.HTTPHandler(h)
		}
	}
	return conf, nil
}

// addWay makes what catches the connections of a listener; nothing for hbone.
func (g *Gateway) addWay(conf *listenerConf, c *ListenerConfig) (err error) {
	var warnings []string
	switch c.Kind {
	case KindHBONE, KindXTun, KindAgent:
	case KindSOCKS5:
		var way *capture.Socks5
		if way, err = capture.NewSocks5(c.SOCKS5); err == nil {
			conf.way, warnings = way, way.Warnings()
			if c.SOCKS5.UDP {
				conf.way, conf.server = nil, way
			}
		}
	case KindHTTPProxy:
		var way *capture.HTTPProxy
		if way, err = capture.NewHTTPProxy(c.HTTP); err == nil {
			conf.server, warnings = way, way.Warnings()
		}
	case KindProxy:
		var way *capture.Mixed
		if way, err = newMixed(c); err == nil {
			conf.server, warnings = way, way.Warnings()
		}
	case KindForward:
		var way *capture.Forward
		if way, err = newForward(c); err == nil {
			conf.way, conf.packets = way, way
		}
	case KindTProxy:
		conf.way, conf.packets = capture.TProxy{}, capture.TProxy{}
	case KindRedirect:
		conf.way = capture.Redirect{}
	case KindDNS:
		if g.env.DNS == nil {
			return errors.New("a dns listener and nobody who answers (Env.DNS)")
		}
		conf.way, conf.packets, conf.service = capture.Way(capture.Local{}), capture.PacketWay(capture.Local{}), g.env.DNS(c.Name)
		if c.Captured {
			conf.way, conf.packets = capture.Redirect{}, capture.TProxy{} // Redirect finds what TPROXY has led here, too
		}
	default:
		if make := g.env.Servers[c.Kind]; make != nil {
			conf.serves, err = make(g, c)
			break
		}
		made := g.env.Ways[c.Kind]
		if made == nil {
			return fmt.Errorf("no way of kind %q", c.Kind)
		}
		conf.way, err = made(c)
	}
	for _, w := range warnings {
		g.env.Log.Warn("listener", "listener", c.Name, "reason", w)
	}
	return err
}

// newForward makes the way of a listener whose destination is fixed.
func newForward(c *ListenerConfig) (*capture.Forward, error) {
	if _, first, n, ok := portRange(c.Address); ok {
		return capture.NewForwardRange(first, n, c.To)
	}
	return capture.NewForward(c.To)
}

// newMixed makes the way of a listener for SOCKS and HTTP: who may use the one may use the other.
func newMixed(c *ListenerConfig) (*capture.Mixed, error) {
	socks, web := c.SOCKS5, c.HTTP
	if web.Users == nil && web.UsersFile == "" {
		web.Users, web.UsersFile = socks.Users, socks.UsersFile
	}
	if !socks.RequiresLogin() {
		socks.Users, socks.UsersFile = web.Users, web.UsersFile
	}
	s, err := capture.NewSocks5(socks)
	if err != nil {
		return nil, err
	}
	h, err := capture.NewHTTPProxy(web)
	if err != nil {
		return nil, err
	}
	return capture.NewMixed(s, h), nil
}

// close ends the accepting. Connections live on.
func (l *listener) close() {
	l.closed.Store(true)
	switch {
	case l.runs != nil:
		l.runs.stop()
	case l.pc != nil:
		_ = l.pc.Close() // closing a socket that is closed is no fault
	default:
		_ = l.ln.Close() // as above
	}
	if conf := l.conf.Load(); conf != nil {
		conf.close()
	}
	for _, s := range l.retired {
		s.Close()
	}
	l.retired = nil
}

// reconfigure has the listener do what conf says from now on. Called with g.mu held.
func (l *listener) reconfigure(conf *listenerConf) {
	before := l.conf.Swap(conf)
	if before.serves == nil {
		before.close()
	} else {
		before.serves.Retire()
		l.retired = append(slices.DeleteFunc(l.retired, Server.Over), before.serves)
	}
	if l.runs != nil {
		l.runs.follow(l, conf)
	}
	if l.pc != nil {
		_ = l.pc.SetReadDeadline(wakeNow) // packetLoop goes on with conf; a closed socket has no use for it
	}
}

// addr is where the listener is open.
func (l *listener) addr() net.Addr {
	if l.runs != nil {
		return agentAddr(l.conf.Load().agent.chain.name)
	}
	if l.pc != nil {
		return l.pc.LocalAddr()
	}
	return l.ln.Addr()
}

// close ends connections on which nothing is under way.
func (conf *listenerConf) close() {
	if conf.server != nil {
		conf.server.Close()
	}
	if conf.serves != nil {
		conf.serves.Close()
	}
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
	l.connBegun()
	go l.serveConn(nc, conf) // ends with the connection or before, see Carry; Close ends it and waits for connEnded
}

// serveConn serves one connection.
func (l *listener) serveConn(nc net.Conn, conf *listenerConf) {
	switch {
	case conf.server != nil:
		l.catchMany(nc, conf)
		return
	case conf.serves != nil:
		stop := l.g.closeWithGateway(nc)
		conf.serves.Serve(nc, func() {
			stop()
			l.connEnded()
		})
		return
	case conf.service != nil:
		if c := l.catchOne(nc, conf); c != nil {
			l.serveApp(c, conf)
		}
	case conf.kind == KindXTun:
		l.meetProxy(nc, conf)
		return
	case conf.way == nil:
		until := time.Now().Add(l.g.plan.Load().timeouts.Handshake)
		if conf.passTLS {
			var passed bool
			if nc, passed = l.passTLS(nc, conf, until); passed {
				return // connEnded is called by the flow's end
			}
		}
		if s := l.meet(nc, conf, nil, until); s != nil {
			s.attend(func() {})
			return // connEnded is called when the connection has ended
		}
	default:
		if f, a := l.catch(nc, conf); f != nil {
			l.g.Carry(f, a)
			return // connEnded is called by the flow's end
		}
	}
	l.connEnded()
}

// connBegun notes that a connection is accepted. Each is followed by one connEnded.
func (l *listener) connBegun() {
	l.open.Add(1)
	l.g.stats.connections.add(1)
	l.g.work.Add(1)
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

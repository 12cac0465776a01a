package tunnel

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"culvert/capture"
	"culvert/tunnel/datagram"
)

const (
	// maxPacketFlows is how many flows of datagrams may live on a listener at once: each holds a file, and a source
	// address is easily made up.
	maxPacketFlows = 16 << 10
	// packetShare is the part of them, one in so many, that a source other than this host may have.
	packetShare = 4
	// hostNetwork is the length of the IPv6 networks that count as one source.
	hostNetwork = 64
	// refusedSilence is how long what follows a refused flow's first datagram is thrown away before it may be a new flow:
	// who is refused tries again, and each try would be a decision and a line in the log.
	refusedSilence = time.Second
	// maxSilenced is for how many flows that is done at once.
	maxSilenced = 1 << 10
)

// packetLoop makes flows of what arrives at a listener's socket for datagrams.
func (l *listener) packetLoop() {
	defer l.g.work.Done()
	defer l.g.accepting.Done()
	for {
		err := l.conf.Load().packets.ServePackets(l.pc, l.catchPackets)
		if l.closed.Load() || errors.Is(err, net.ErrClosed) {
			return
		}
		if errors.Is(err, os.ErrDeadlineExceeded) { // by reconfigure
			_ = l.pc.SetReadDeadline(time.Time{}) // before conf is read: the next one ends the next wait
			continue
		}
		l.g.stats.acceptErrors.add(1)
		l.g.env.Log.Warn("accepting pauses", "listener", l.conf.Load().name, "err", err)
		l.sleep(acceptPauseMost)
	}
}

// catchPackets makes a flow of datagrams, which runs in a goroutine of its own.
func (l *listener) catchPackets(c *capture.Conn, err error) {
	conf := l.conf.Load()
	if err != nil {
		l.lostPackets(conf, "no socket", err)
		return
	}
	most := int64(maxPacketFlows)
	if conf.maxConnections > 0 {
		most = min(most, conf.maxConnections)
	}
	source := addrPort(c.RemoteAddr()).Addr()
	foreign := !l.g.host.isHost(source)
	if source.Is6() { // a host has all of its network
		network, _ := source.Prefix(hostNetwork) // it is long enough
		source = network.Addr()
	}
	switch {
	case l.open.Load() >= most:
		_ = c.Close()
		l.lostPackets(conf, "maxConnections", nil)
		return
	case foreign && !l.sources.enter(source, max(most/packetShare, 1)):
		_ = c.Close()
		l.lostPackets(conf, "the source's share of maxConnections", nil)
		return
	}
	l.connBegun()
	ended := l.connEnded
	if foreign {
		ended = func() {
			l.sources.leave(source)
			l.connEnded()
		}
	}
	if conf.service != nil {
		go func() { // ends with the app's silence, or the gateway; Close waits for connEnded
			l.serveApp(c, conf)
			ended()
		}()
		return
	}
	f, a := l.newFlow(c, c.Conn, conf)
	f.Ended = ended
	go l.g.Carry(f, a) // ends with the flow or before; Close ends it and waits for connEnded
}

// sources counts the flows of each source.
type sources struct {
	mu   sync.Mutex
	open map[netip.Addr]int64 // guarded by mu
}

// enter counts a flow of source, unless it has most already.
func (s *sources) enter(source netip.Addr, most int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[source] >= most {
		return false
	}
	if s.open == nil {
		s.open = make(map[netip.Addr]int64)
	}
	s.open[source]++
	return true
}

// leave takes back an enter.
func (s *sources) leave(source netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[source]--; s.open[source] <= 0 {
		delete(s.open, source)
	}
}

// lostPackets notes a flow of datagrams that there is no room for.
func (l *listener) lostPackets(conf *listenerConf, reason string, err error) {
	if l.g.stats.shed.n.Add(1)%shedLogEvery != 1 {
		return
	}
	attrs := []any{"listener", conf.name, "reason", reason}
	if err != nil {
		attrs = append(attrs, "err", err)
	}
	l.g.env.Log.Log(l.g.base, slog.LevelWarn, "datagrams dropped", attrs...)
}

// packetsOf makes the end of a flow of a captured socket.
func (g *Gateway) packetsOf(f *Flow, c *capture.Conn) Conn {
	return &packetEnd{datagram.New(c.Conn, c.TakeFirst(), g.longCapsules.For(f.fromOpened()))}
}

// refusePackets ends a flow of datagrams that is not to be. There is nobody to be told.
func (g *Gateway) refusePackets(c *capture.Conn) {
	if g.silenced.Add(1) > maxSilenced {
		g.silenced.Add(-1)
		_ = c.Close()
		return
	}
	stop := g.closeWithGateway(c)
	time.AfterFunc(refusedSilence, func() {
		stop()
		_ = c.Close() // by now it may be
		g.silenced.Add(-1)
	})
}

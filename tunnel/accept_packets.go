package tunnel

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"time"

	"culvert/capture"
	"culvert/tunnel/datagram"
)

const (
	// maxPacketFlows is how many flows of datagrams may live on a listener at once: each holds a file, and a source
	// address is easily made up.
	maxPacketFlows = 16 << 10
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
	if n := l.open.Load(); n >= maxPacketFlows || conf.maxConnections > 0 && n >= conf.maxConnections {
		_ = c.Close()
		l.lostPackets(conf, "maxConnections", nil)
		return
	}
	l.connBegun()
	if conf.service != nil {
		go func() { // ends with the app's silence, or the gateway; Close waits for connEnded
			l.serveApp(c, conf)
			l.connEnded()
		}()
		return
	}
	f, a := l.newFlow(c, c.Conn, conf)
	go l.g.Carry(f, a) // ends with the flow or before; Close ends it and waits for connEnded
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
func packetsOf(c *capture.Conn) Conn {
	return &packetEnd{datagram.New(c.Conn, c.TakeFirst())}
}

// refusePackets ends a flow of datagrams that is not to be. There is nobody to be told.
func (g *Gateway) refusePackets(c *capture.Conn) {
	if g.silenced.Add(1) > maxSilenced {
		g.silenced.Add(-1)
		_ = c.Close()
		return
	}
	time.AfterFunc(refusedSilence, func() {
		_ = c.Close()
		g.silenced.Add(-1)
	})
}

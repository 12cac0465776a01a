package tunnel

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"culvert/policy"
)

// ownAddrs are the places where this process listens, and the addresses of this host, as they were when
// the plan was made. Flows must not lead there: they would come back.
type ownAddrs struct {
	listen []netip.AddrPort // an unspecified address stands for all of this host
	addrs  []netip.Addr     // of the interfaces
}

func collectOwn(c *Config) ownAddrs {
	own := ownAddrs{listen: slices.Clone(c.Reserved), addrs: hostAddrs()}
	for i := range c.Listeners {
		for _, s := range c.Listeners[i].sockets() {
			own.listen = append(own.listen, s.places()...)
		}
	}
	return own
}

// places are the addresses at which a socket is reached; none where the system chooses its port.
func (s Socket) places() []netip.AddrPort {
	host, port, err := net.SplitHostPort(s.Address)
	n, problem := parsePort(port)
	if err != nil || problem != "" {
		return nil
	}
	switch addr, err := netip.ParseAddr(host); {
	case host == "":
		return []netip.AddrPort{netip.AddrPortFrom(netip.IPv6Unspecified(), n)}
	case host == "localhost":
		return []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), n), netip.AddrPortFrom(netip.IPv6Loopback(), n)}
	case err == nil:
		return []netip.AddrPort{netip.AddrPortFrom(addr.Unmap(), n)}
	}
	return nil
}

// hostAddrs are the addresses of this host's interfaces as they are now, none where they cannot be known.
func hostAddrs() (addrs []netip.Addr) {
	list, _ := net.InterfaceAddrs()
	for _, a := range list {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil {
			addrs = append(addrs, prefix.Addr().Unmap().WithZone(""))
		}
	}
	return addrs
}

func (o *ownAddrs) forPolicy() policy.Own {
	own := policy.Own{Addrs: o.addrs}
	for _, a := range o.listen {
		if !slices.Contains(own.Ports, a.Port()) {
			own.Ports = append(own.Ports, a.Port())
		}
	}
	return own
}

// listensOn reports whether a connection to dst would come back to this process.
func (o *ownAddrs) listensOn(dst netip.AddrPort) bool {
	return slices.ContainsFunc(o.listen, func(a netip.AddrPort) bool {
		if a.Port() != dst.Port() {
			return false
		}
		return a.Addr() == dst.Addr() || dst.Addr().IsUnspecified() && a.Addr().IsLoopback() ||
			a.Addr().IsUnspecified() && (dst.Addr().IsLoopback() || dst.Addr().IsUnspecified() || slices.Contains(o.addrs, dst.Addr()))
	})
}

// neighbours tells programs of this host from others, by their addresses. These change while a gateway runs.
type neighbours struct {
	mu    sync.Mutex
	addrs []netip.Addr // guarded by mu
	at    time.Time    // when they were read; guarded by mu
}

// readAgain is how old the list of addresses may be when one is not on it.
const readAgain = time.Second

// isHost reports whether addr is one of this host's.
func (n *neighbours) isHost(addr netip.Addr) bool {
	if addr.IsLoopback() {
		return true
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if slices.Contains(n.addrs, addr) {
		return true
	}
	if time.Since(n.at) < readAgain {
		return false
	}
	n.addrs, n.at = hostAddrs(), time.Now()
	return slices.Contains(n.addrs, addr)
}

// loops finds flows that come back to the gateway that has sent them on: the packet filter catches what the gateway's
// own sockets send, as it does where the gateway may not mark them. A connection is known by both of its addresses,
// as the dialler sees them, which are also those of the captured flow. Who enters the second of the two knows.
type loops struct {
	mu    sync.Mutex
	conns map[addrPair]bool // true: dialled here, false: captured here; guarded by mu
}

// addrPair are the addresses of a connection. TCP and UDP have ports of their own.
type addrPair struct {
	from, to netip.AddrPort
	udp      bool
}

// enter notes a connection and reports whether the same one was noted from its other side. It must be left with
// leave, unless it was.
func (l *loops) enter(p addrPair, dialled bool) (loop bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if other, there := l.conns[p]; there && other != dialled {
		return true
	}
	if l.conns == nil {
		l.conns = make(map[addrPair]bool)
	}
	l.conns[p] = dialled
	return false
}

func (l *loops) leave(p addrPair) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, p)
}

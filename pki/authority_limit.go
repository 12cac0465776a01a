package pki

import (
	"net"
	"net/netip"
	"sync"
)

// limitListener closes connections beyond what all, or one host, may have at once. Hosts of IPv6 count by their
// network of 64 bits.
type limitListener struct {
	net.Listener
	most, mostPerHost int // immutable

	mu    sync.Mutex
	open  int                  // guarded by mu
	hosts map[netip.Prefix]int // guarded by mu
	idle  sync.Cond            // of mu: open has become 0
}

func newLimitListener(ln net.Listener, most, mostPerHost int) *limitListener {
	l := &limitListener{Listener: ln, most: most, mostPerHost: mostPerHost, hosts: make(map[netip.Prefix]int)}
	l.idle.L = &l.mu
	return l
}

// Accept returns the next connection that is within the limits.
func (l *limitListener) Accept() (net.Conn, error) {
	for {
		nc, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if host := guessSource(nc.RemoteAddr().String()); l.take(host) {
			return &limitedConn{Conn: nc, list: l, host: host}, nil
		}
		_ = nc.Close() // it was never ours
	}
}

func (l *limitListener) take(host netip.Prefix) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open >= l.most || l.hosts[host] >= l.mostPerHost {
		return false
	}
	l.open++
	l.hosts[host]++
	return true
}

func (l *limitListener) give(host netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.hosts[host]--; l.hosts[host] == 0 {
		delete(l.hosts, host)
	}
	if l.open == 0 {
		l.idle.Broadcast()
	}
}

// wait blocks until every connection is closed.
func (l *limitListener) wait() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.open > 0 {
		l.idle.Wait()
	}
}

// limitedConn gives its place back when it is closed.
type limitedConn struct {
	net.Conn
	list *limitListener
	host netip.Prefix
	once sync.Once
}

// Close closes the connection.
func (c *limitedConn) Close() error {
	defer c.once.Do(func() { c.list.give(c.host) })
	return c.Conn.Close()
}

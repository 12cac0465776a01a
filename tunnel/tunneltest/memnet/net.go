package memnet

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// backlog is how many connections wait for Accept before Dial does.
const backlog = 128

// Net is a network of hosts. All methods may be used concurrently.
type Net struct {
	mu        sync.Mutex
	listeners map[netip.AddrPort]*Listener
	names     map[string][]netip.Addr
	silent    map[netip.AddrPort]bool
	dials     map[netip.AddrPort]int
	open      map[*Conn]struct{}
	links     func(from netip.Addr, to netip.AddrPort) (out, back Link)
	nextPort  uint16
}

// New returns an empty network.
func New() *Net {
	return &Net{
		listeners: make(map[netip.AddrPort]*Listener), names: make(map[string][]netip.Addr),
		silent: make(map[netip.AddrPort]bool), dials: make(map[netip.AddrPort]int),
		open: make(map[*Conn]struct{}), nextPort: 40000,
	}
}

// Listen opens a listener on address, "ADDR:PORT"; port 0 is one that is free.
func (n *Net) Listen(address string) (*Listener, error) {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if ap.Port() == 0 {
		n.nextPort++
		ap = netip.AddrPortFrom(ap.Addr(), n.nextPort)
	}
	if n.listeners[ap] != nil {
		return nil, &net.OpError{Op: "listen", Net: "mem", Err: syscall.EADDRINUSE}
	}
	l := &Listener{n: n, addr: ap, conns: make(chan *Conn, backlog), done: make(chan struct{})}
	n.listeners[ap] = l
	return l, nil
}

// Name makes Resolve return addrs for host.
func (n *Net) Name(host string, addrs ...netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.names[host] = addrs
}

// Silence makes connections to addr wait until their context ends, as a firewall that drops packets does.
func (n *Net) Silence(addr netip.AddrPort) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.silent[addr] = true
}

// Dials is how often addr was dialled.
func (n *Net) Dials(addr netip.AddrPort) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dials[addr]
}

// Over makes connections that are dialled from now on go over the links that of returns: out from who dials, and
// back. of is called for each of them, and not for two at once.
func (n *Net) Over(of func(from netip.Addr, to netip.AddrPort) (out, back Link)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.links = of
}

// PipeOver is the function PipeOver, and keeps both ends in the books of n.
func (n *Net) PipeOver(a, b netip.AddrPort, ab, ba Link) (*Conn, *Conn) {
	x, y := PipeOver(a, b, ab, ba)
	n.remember(x, y)
	return x, y
}

// Cut breaks all connections that were made to addr, for both ends; see Conn.Cut.
func (n *Net) Cut(addr netip.AddrPort) {
	for _, c := range n.Open() {
		if c.remote == addr {
			c.Cut()
		}
	}
}

// Open returns the ends of connections that are not closed, of those that were dialled or made with n.PipeOver.
func (n *Net) Open() []*Conn {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Collect(maps.Keys(n.open))
}

func (n *Net) remember(conns ...*Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range conns {
		c.net, n.open[c] = n, struct{}{}
	}
}

// forget takes an end that is closed off the books; n may be nil.
func (n *Net) forget(c *Conn) {
	if n != nil {
		n.mu.Lock()
		delete(n.open, c)
		n.mu.Unlock()
	}
}

// Resolve returns the addresses of a name.
func (n *Net) Resolve(_ context.Context, host string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if addrs, ok := n.names[host]; ok {
		return append([]netip.Addr(nil), addrs...), nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

// From returns what dials from the host with address local, for tunnel.Env.Dial.
func (n *Net) From(local netip.Addr) func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	return func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
		c, err := n.dial(ctx, local, to)
		if err != nil {
			return nil, &net.OpError{Op: "dial", Net: "mem", Addr: net.TCPAddrFromAddrPort(to), Err: err}
		}
		return c, nil
	}
}

func (n *Net) dial(ctx context.Context, local netip.Addr, to netip.AddrPort) (*Conn, error) {
	n.mu.Lock()
	l, silent := n.listeners[to], n.silent[to]
	n.dials[to]++
	n.nextPort++
	from := netip.AddrPortFrom(local, n.nextPort)
	var out, back Link
	if n.links != nil {
		out, back = n.links(local, to)
	}
	n.mu.Unlock()
	if silent {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if err := sleep(ctx, out.Connect+out.Delay+back.Delay); err != nil {
		return nil, err
	}
	if l == nil {
		return nil, os.NewSyscallError("connect", syscall.ECONNREFUSED)
	}
	ours, theirs := n.PipeOver(from, to, out, back)
	err := l.offer(ctx, theirs)
	if err != nil {
		_ = ours.Close()
		_ = theirs.Close()
		return nil, err
	}
	return ours, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Listener accepts connections of a Net.
type Listener struct {
	n     *Net
	addr  netip.AddrPort
	conns chan *Conn
	done  chan struct{}
	once  sync.Once
}

// Accept waits for a connection until Close.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// offer puts c into the backlog.
func (l *Listener) offer(ctx context.Context, c *Conn) error {
	select {
	case l.conns <- c:
	case <-l.done:
		return os.NewSyscallError("connect", syscall.ECONNREFUSED)
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-l.done: // Close may have emptied the backlog before
		l.refuseWaiting()
	default:
	}
	return nil
}

// Close ends the listener and resets the connections that wait.
func (l *Listener) Close() error {
	l.once.Do(func() {
		l.n.mu.Lock()
		delete(l.n.listeners, l.addr)
		l.n.mu.Unlock()
		close(l.done)
	})
	l.refuseWaiting()
	return nil
}

func (l *Listener) refuseWaiting() {
	for {
		select {
		case c := <-l.conns:
			_ = c.SetLinger(0)
			_ = c.Close()
		default:
			return
		}
	}
}

// Addr returns the *net.TCPAddr of the listener.
func (l *Listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.addr) }

// AddrPort returns the address of the listener.
func (l *Listener) AddrPort() netip.AddrPort { return l.addr }

// String names the listener in messages of tests.
func (l *Listener) String() string { return fmt.Sprintf("mem:%s", l.addr) }

// Serve calls handle for every connection, each in a goroutine, until the listener is closed, and waits for
// them.
func (l *Listener) Serve(handle func(*Conn)) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		nc, err := l.Accept()
		if err != nil {
			return
		}
		wg.Go(func() { handle(nc.(*Conn)) })
	}
}

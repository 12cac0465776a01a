package capture

import (
	"cmp"
	"encoding/binary"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"
)

const (
	// maxAssociated is how many flows one association may have at once: more destinations than a resolver or a game
	// speaks to, and few enough that an app cannot use up files that others need.
	maxAssociated = 256
	// maxQueued is how many datagrams wait for a flow that is being opened, or is slower than the app.
	maxQueued = 64
	// maxQueuedBytes bounds what waits in one association, in all of its flows together: some times what the system holds
	// for a socket.
	maxQueuedBytes = 2 << 20
	// controlKeepAlive is after which silence the connection of an association is looked after: an app whose host is gone
	// does not close it.
	controlKeepAlive = time.Minute
	// maxControlBytes is how much an app may say on the connection of its association, where it should say nothing.
	maxControlBytes = 64 << 10
)

var _ Server = (*Socks5)(nil)

// Serve catches what an app asks for on nc, as Catch does, and also UDP ASSOCIATE (RFC 1928, section 7): then it runs
// until the app closes nc, and each destination that the app sends to is a flow of its own.
func (s *Socks5) Serve(nc net.Conn, carry func(*Conn), over func()) error {
	defer over()
	c, err := s.Catch(nc)
	switch {
	case err != nil:
		return err
	case c.rare == nil || !c.rare.associate:
		carry(c)
		return nil
	}
	defer nc.Close()
	return s.associate(c, carry)
}

// Close ends each association that has had no flow for as long as a handshake may take, now and from now on: an app that
// has just been told where to send is waited for.
func (s *Socks5) Close() {
	s.mu.Lock()
	s.closed = true
	list := slices.Collect(maps.Keys(s.associations))
	s.mu.Unlock()
	for _, a := range list {
		a.wane(cmp.Or(s.timeout, defaultSocksTimeout))
	}
}

// enter notes an association, and leave that it is over.
func (s *Socks5) enter(a *association) {
	s.mu.Lock()
	if s.associations == nil {
		s.associations = make(map[*association]struct{})
	}
	s.associations[a] = struct{}{}
	closed := s.closed
	s.mu.Unlock()
	if closed {
		a.wane(cmp.Or(s.timeout, defaultSocksTimeout))
	}
}

func (s *Socks5) leave(a *association) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.associations, a)
}

// association is the datagrams of an app.
type association struct {
	pc     *net.UDPConn
	client netip.AddrPort // where the app sends from; port 0: not known yet
	user   string
	carry  func(*Conn)

	mu     sync.Mutex
	peer   netip.AddrPort             // client, with its port; guarded by mu
	flows  map[string]*associatedConn // by destination, as it stands in the header; guarded by mu
	queued int                        // bytes that wait in queues; guarded by mu
	ended  bool                       // guarded by mu
	quiet  time.Duration              // after which it ends without a flow; 0: never; guarded by mu
	timer  *time.Timer                // runs while it has none and quiet counts; guarded by mu
}

// associate serves an association, whose app has been told nothing yet.
func (s *Socks5) associate(c *Conn, carry func(*Conn)) error {
	local, remote := addrPortOf(c.LocalAddr()), addrPortOf(c.RemoteAddr())
	pc, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(local.Addr(), 0)))
	if err != nil {
		_ = writeReply(c.Conn, replyGeneral) // the connection is closed next
		return lost(c.Conn, WaySocks5, err)
	}
	defer pc.Close()
	if err := writeBound(c.Conn, addrPortOf(pc.LocalAddr())); err != nil {
		return nil // the app is gone
	}
	if k, ok := c.Conn.(interface {
		SetKeepAliveConfig(net.KeepAliveConfig) error
	}); ok {
		_ = k.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: controlKeepAlive, Interval: controlKeepAlive})
	}
	a := &association{
		pc: pc, client: netip.AddrPortFrom(remote.Addr(), c.Port), user: c.User, carry: carry, flows: make(map[string]*associatedConn),
	}
	s.enter(a)
	defer s.leave(a)
	done := make(chan struct{})
	go func() { // ends when the app closes its connection, or says too much; waited for below
		defer close(done)
		_, _ = io.CopyN(io.Discard, c, maxControlBytes)
		_ = pc.Close()
	}()
	a.readLoop()
	_ = c.Conn.SetReadDeadline(time.Unix(1, 0)) // a closed connection needs none
	<-done
	a.end()
	return nil
}

// readLoop takes datagrams from the app until the socket is closed.
func (a *association) readLoop() {
	buf := make([]byte, maxDatagramBytes)
	for {
		n, from, err := a.pc.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		from = plain(from)
		head, host, addr, port, ok := parseUDPHeader(buf[:n])
		if ok && a.admits(from) {
			payload := make([]byte, n-len(head)) // not nil, which is none: it may be empty
			copy(payload, buf[len(head):n])
			a.deliver("\x00\x00"+string(head[2:]), host, addr, port, payload) // "RSV  Reserved X'0000'" in answers, whatever was sent
		}
	}
}

// admits reports whether datagrams from that address are the app's. "If the client is not in possession of the
// information at the time of the UDP ASSOCIATE, the client MUST use a port number and address of all zeros" (RFC 1928,
// section 7): then the port is the one that it sends from first. The address is that of its connection.
func (a *association) admits(from netip.AddrPort) bool {
	if from.Addr() != a.client.Addr() || a.client.Port() != 0 && from.Port() != a.client.Port() {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.peer.IsValid() {
		a.peer = from
	}
	return a.peer == from
}

// deliver hands a datagram to the flow for its destination, which it begins where there is none.
func (a *association) deliver(head, host string, addr netip.Addr, port uint16, payload []byte) {
	a.mu.Lock()
	c := a.flows[head]
	begin := c == nil && !a.ended && len(a.flows) < maxAssociated
	if begin {
		c = &associatedConn{a: a, head: head, queue: make(chan []byte, maxQueued), woken: make(chan struct{}), closed: make(chan struct{})}
		a.flows[head] = c
		a.rest()
	}
	if c != nil && a.queued+len(payload) <= maxQueuedBytes {
		select {
		case c.queue <- payload:
			a.queued += len(payload)
		default: // UDP may lose it
		}
	}
	a.mu.Unlock()
	if begin {
		a.carry(&Conn{Conn: c, Way: WaySocks5, Host: host, Addr: addr, Port: port, User: a.user, Packets: true})
	}
}

// wane has the association end when it has no flow for that long.
func (a *association) wane(quiet time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.quiet = quiet
	a.rest()
}

// rest begins the time after which an association without flows ends, and stops it where there is one. Called with mu
// held, whenever flows has changed.
func (a *association) rest() {
	if a.timer != nil {
		a.timer.Stop()
		a.timer = nil
	}
	if a.quiet == 0 || a.ended || len(a.flows) > 0 {
		return
	}
	a.timer = time.AfterFunc(a.quiet, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if len(a.flows) == 0 { // one may have begun just now
			_ = a.pc.Close() // readLoop ends, and associate goes on
		}
	})
}

// end ends all flows: "A UDP association terminates when the TCP connection that the UDP ASSOCIATE request arrived on
// terminates."
func (a *association) end() {
	a.mu.Lock()
	a.ended = true
	a.rest()
	var list []*associatedConn
	for _, c := range a.flows {
		list = append(list, c)
	}
	a.mu.Unlock()
	for _, c := range list {
		_ = c.Close()
	}
}

// parseUDPHeader reads RSV FRAG ATYP DST.ADDR DST.PORT. A fragment is none of ours: "an implementation that does not
// support fragmentation MUST drop any datagram whose FRAG field is other than X'00'".
func parseUDPHeader(b []byte) (head []byte, host string, addr netip.Addr, port uint16, ok bool) {
	const fixed = 4
	if len(b) < fixed || b[2] != 0 {
		return nil, "", netip.Addr{}, 0, false
	}
	rest, size := b[fixed:], 0
	switch b[3] {
	case addrTypeIPv4:
		size = 4
	case addrTypeIPv6:
		size = 16
	case addrTypeName:
		if len(rest) < 1 {
			return nil, "", netip.Addr{}, 0, false
		}
		size = 1 + int(rest[0])
	}
	if size == 0 || len(rest) < size+2 {
		return nil, "", netip.Addr{}, 0, false
	}
	port = binary.BigEndian.Uint16(rest[size:])
	if b[3] == addrTypeName {
		var err error
		if host, addr, err = parseHost(string(rest[1:size])); err != nil {
			return nil, "", netip.Addr{}, 0, false
		}
	} else {
		addr, _ = netip.AddrFromSlice(rest[:size])
		addr = addr.Unmap()
	}
	return b[:fixed+size+2], host, addr, port, port != 0
}

// writeBound sends the reply with the address that the app is to send to.
func writeBound(nc net.Conn, at netip.AddrPort) error {
	b := []byte{socksVersion, replySucceeded, 0, addrTypeIPv4}
	if at.Addr().Is6() {
		b[3] = addrTypeIPv6
	}
	b = append(b, at.Addr().AsSlice()...)
	_, err := nc.Write(binary.BigEndian.AppendUint16(b, at.Port()))
	return err
}

// associatedConn is the flow of an association to one destination: a connection of datagrams.
type associatedConn struct {
	a     *association
	head  string // what stands before each datagram, both ways
	queue chan []byte

	once   sync.Once
	closed chan struct{}

	mu       sync.Mutex
	next     []byte        // taken off the queue by Await; guarded by mu
	woken    chan struct{} // closed when the read deadline has passed; guarded by mu
	deadline int           // how many there were; guarded by mu
	timer    *time.Timer   // of the read deadline; guarded by mu
}

// Await waits for a datagram.
func (c *associatedConn) Await() error {
	c.mu.Lock()
	there, woken := c.next != nil, c.woken
	c.mu.Unlock()
	select {
	case <-c.closed:
		return net.ErrClosed
	default:
	}
	select {
	case <-woken:
		return os.ErrDeadlineExceeded
	default:
	}
	if there {
		return nil
	}
	select {
	case payload := <-c.queue:
		c.a.taken(len(payload))
		c.mu.Lock()
		c.next = payload
		c.mu.Unlock()
		return nil
	case <-woken:
		return os.ErrDeadlineExceeded
	case <-c.closed:
		return net.ErrClosed
	}
}

// taken notes that bytes wait no more.
func (a *association) taken(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.queued -= n
}

// Read reads one datagram.
func (c *associatedConn) Read(p []byte) (int, error) {
	if err := c.Await(); err != nil {
		return 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n := copy(p, c.next)
	c.next = nil
	return n, nil
}

// Write sends one datagram to the app.
func (c *associatedConn) Write(p []byte) (int, error) {
	select {
	case <-c.closed:
		return 0, net.ErrClosed
	default:
	}
	c.a.mu.Lock()
	peer := c.a.peer
	c.a.mu.Unlock()
	b := make([]byte, 0, len(c.head)+len(p))
	if _, err := c.a.pc.WriteToUDPAddrPort(append(append(b, c.head...), p...), peer); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close ends the flow.
func (c *associatedConn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		c.a.mu.Lock()
		delete(c.a.flows, c.head)
		c.a.rest()
		for len(c.queue) > 0 { // nothing comes to it any more, and Await may be quicker
			select {
			case payload := <-c.queue:
				c.a.queued -= len(payload)
			default:
			}
		}
		c.a.mu.Unlock()
		_ = c.SetReadDeadline(time.Time{}) // no timer is left
	})
	return nil
}

// LocalAddr returns where the app sends to.
func (c *associatedConn) LocalAddr() net.Addr { return c.a.pc.LocalAddr() }

// RemoteAddr returns where the app sends from.
func (c *associatedConn) RemoteAddr() net.Addr {
	c.a.mu.Lock()
	defer c.a.mu.Unlock()
	return net.UDPAddrFromAddrPort(c.a.peer)
}

// SetDeadline is SetReadDeadline: nothing waits to be written.
func (c *associatedConn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetWriteDeadline does nothing.
func (c *associatedConn) SetWriteDeadline(time.Time) error { return nil }

// SetReadDeadline ends a wait for a datagram when t is over, also one that has begun; zero: never.
func (c *associatedConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline++ // a timer that runs already counts for nothing
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	select {
	case <-c.closed:
		return net.ErrClosed
	default:
	}
	select {
	case <-c.woken:
		c.woken = make(chan struct{})
	default:
	}
	if t.IsZero() {
		return nil
	}
	wait := time.Until(t)
	if wait <= 0 {
		close(c.woken)
		return nil
	}
	deadline := c.deadline
	c.timer = time.AfterFunc(wait, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.deadline == deadline {
			close(c.woken)
		}
	})
	return nil
}

package capture

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// packets is a listener that a way serves.
type packets struct {
	t     *testing.T
	pc    *net.UDPConn
	port  uint16
	flows chan *Conn
}

// shared opens a socket as a listener for datagrams does.
func shared(t *testing.T, network, addr string) *net.UDPConn {
	t.Helper()
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
		return errors.Join(cerr, err)
	}}
	pc, err := lc.ListenPacket(t.Context(), network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	return pc.(*net.UDPConn)
}

func newPackets(t *testing.T, network, addr string) *packets {
	t.Helper()
	pc := shared(t, network, addr)
	return &packets{t: t, pc: pc, port: addrPortOf(pc.LocalAddr()).Port(), flows: make(chan *Conn, 1024)}
}

// serve has way serve the listener until the test ends.
func (p *packets) serve(way PacketWay) {
	p.t.Helper()
	result := make(chan error, 1)
	// Ends when the listener is closed; the cleanup waits for the result.
	go func() {
		result <- way.ServePackets(p.pc, func(c *Conn, err error) {
			if err != nil {
				p.t.Errorf("a flow is lost: %v", err)
				return
			}
			p.flows <- c
		})
	}()
	p.t.Cleanup(func() {
		p.pc.Close()
		if err := <-result; !errors.Is(err, net.ErrClosed) {
			p.t.Errorf("ServePackets = %v, want %v", err, net.ErrClosed)
		}
		for close(p.flows); ; {
			c, ok := <-p.flows
			if !ok {
				return
			}
			c.Close()
		}
	})
}

// dial makes a socket that hears only where it speaks to.
func (p *packets) dial(addr string) *net.UDPConn {
	p.t.Helper()
	c, err := net.Dial("udp", net.JoinHostPort(addr, fmt.Sprint(p.port)))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		p.t.Fatal(err)
	}
	return c.(*net.UDPConn)
}

func (p *packets) send(c net.Conn, texts ...string) {
	p.t.Helper()
	for _, text := range texts {
		if _, err := c.Write([]byte(text)); err != nil {
			p.t.Fatal(err)
		}
	}
}

func (p *packets) reads(c net.Conn, want string) {
	p.t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		p.t.Fatal(err)
	}
	b := make([]byte, maxDatagramBytes)
	if n, err := c.Read(b); err != nil || string(b[:n]) != want {
		p.t.Fatalf("Read = %q, %v, want %q", b[:n], err, want)
	}
}

// begun returns the next flow and checks that it is from a socket, and what it began with.
func (p *packets) begun(from net.Conn, first ...string) *Conn {
	p.t.Helper()
	select {
	case c := <-p.flows:
		p.t.Cleanup(func() { c.Close() })
		var got []string
		for _, d := range c.TakeFirst() {
			got = append(got, string(d))
		}
		if !c.Packets || c.RemoteAddr().String() != from.LocalAddr().String() || c.LocalAddr().String() != from.RemoteAddr().String() || !slices.Equal(got, first) {
			p.t.Errorf("a flow of %v to %v with %q, want %v to %v with %q", c.RemoteAddr(), c.LocalAddr(), got, from.LocalAddr(), from.RemoteAddr(), first)
		}
		if again := c.TakeFirst(); again != nil {
			p.t.Errorf("TakeFirst again = %q, want nil", again)
		}
		return c
	case <-time.After(patience):
		p.t.Fatal("no flow begins")
		return nil
	}
}

// Two sources are two flows, and each gets its own answers.
func TestForwardPackets(t *testing.T) {
	for _, tt := range []struct{ name, network, listen, addr string }{
		{"address", "udp4", "127.0.0.1:0", "127.0.0.1"},
		{"every address", "udp4", "0.0.0.0:0", "127.0.0.3"},
		{"IPv6", "udp6", "[::1]:0", "::1"},
		{"both families, IPv4", "udp", "[::]:0", "127.0.0.3"},
		{"both families, IPv6", "udp", "[::]:0", "::1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			way, err := NewForward("orders.shop.svc:53")
			if err != nil {
				t.Fatal(err)
			}
			p := newPackets(t, tt.network, tt.listen)
			p.serve(way)
			one, two := p.dial(tt.addr), p.dial(tt.addr)
			p.send(one, "one")
			c1 := p.begun(one, "one")
			p.send(two, "two")
			c2 := p.begun(two, "two")
			for _, c := range []*Conn{c1, c2} {
				if c.Way != WayForward || c.Host != "orders.shop.svc" || c.Port != 53 {
					t.Errorf("the flow is of way %q to %s:%d", c.Way, c.Host, c.Port)
				}
			}
			p.send(c2, "to two")
			p.send(c1, "to one") // a connected socket hears only the address that it has asked
			p.reads(one, "to one")
			p.reads(two, "to two")
			p.send(one, "one again", "")
			p.send(two, "two again")
			p.reads(c1, "one again")
			p.reads(c1, "")
			p.reads(c2, "two again")

			c1.Close()
			c1.Close()
			p.send(one, "anew")
			p.begun(one, "anew")
			p.send(two, "as before")
			p.reads(c2, "as before")
			if len(p.flows) > 0 {
				t.Error("there is another flow")
			}
		})
	}
}

// Datagrams of a flow that came before its socket was made are handed over in order, and those of another one in between
// are its own.
func TestPacketsFirst(t *testing.T) {
	p := newPackets(t, "udp", "[::]:0")
	one, two := p.dial("127.0.0.1"), p.dial("::1")
	p.send(one, "1")
	p.send(two, "a")
	p.send(one, "", "2")
	p.send(two, "b")
	p.send(one, "3")
	p.serve(Local{})
	c1, c2 := p.begun(one, "1", "", "2", "3"), p.begun(two, "a", "b")
	if c1.Way != WayLocal || c1.Addr != netip.MustParseAddr("127.0.0.1") || c1.Port != p.port || c2.Addr != netip.IPv6Loopback() {
		t.Errorf("the flows are of way %q to %v:%d and %v", c1.Way, c1.Addr, c1.Port, c2.Addr)
	}
	p.send(one, "4")
	p.reads(c1, "4")
	if c1.NetConn() == net.Conn(p.pc) {
		t.Error("the flow has the listener's socket")
	}
}

// What came before the listener was served is answered from the address that was asked, too.
func TestPacketsBeforeServing(t *testing.T) {
	for _, listen := range []string{"0.0.0.0:0", "[::]:0"} {
		p := newPackets(t, map[bool]string{true: "udp4", false: "udp"}[listen[0] == '0'], listen)
		one := p.dial("127.0.0.3")
		p.send(one, "early")
		p.serve(Local{})
		c := p.begun(one, "early")
		p.send(c, "answer")
		p.reads(one, "answer")
	}
}

func TestForwardPacketsOfARange(t *testing.T) {
	p := newPackets(t, "udp4", "127.0.0.1:0")
	way, err := NewForwardRange(p.port-2, 5, "192.0.2.1:8000-8004")
	if err != nil {
		t.Fatal(err)
	}
	p.serve(way)
	one := p.dial("127.0.0.1")
	p.send(one, "x")
	if c := p.begun(one, "x"); c.Addr != netip.MustParseAddr("192.0.2.1") || c.Port != 8002 {
		t.Errorf("the flow is to %v:%d, want 192.0.2.1:8002", c.Addr, c.Port)
	}
}

// Many sources begin at once: no datagram gets into the flow of another one, and each source has its answer.
func TestPacketsOfManySources(t *testing.T) {
	for _, listen := range []string{"127.0.0.1:0", "0.0.0.0:0"} {
		t.Run(listen, func(t *testing.T) {
			p := newPackets(t, "udp4", listen)
			var echoing sync.WaitGroup
			// Ends with the channel, which the cleanup of serve closes; waited for by the cleanup that runs after it.
			t.Cleanup(echoing.Wait)
			flows := make(chan *Conn, cap(p.flows))
			p.serve(handedTo{Local{}, flows})
			const sources = 64
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			var asking sync.WaitGroup
			for range sources {
				c := p.dial("127.0.0.1")
				asking.Go(func() { ask(t, c) }) // ends with its answer, or the deadline; waited for below
			}
			answered := make(chan struct{})
			go func() { // ends when all have their answers; waited for below
				defer close(answered)
				asking.Wait()
			}()
			var live []*Conn
			for done := false; !done; {
				select {
				case c := <-flows:
					live = append(live, c)
					echoing.Go(func() { echo(t, c) }) // ends when the flow is closed; the cleanup waits
				case <-answered:
					done = true
				case <-ctx.Done():
					t.Error("not all sources have an answer")
					<-answered
					done = true
				}
			}
			for _, c := range live {
				c.Close()
			}
		})
	}
}

// handedTo gives flows to a channel.
type handedTo struct {
	PacketWay
	flows chan *Conn
}

func (h handedTo) ServePackets(pc *net.UDPConn, carry func(*Conn, error)) error {
	return h.PacketWay.ServePackets(pc, func(c *Conn, err error) {
		if err != nil {
			carry(c, err)
			return
		}
		h.flows <- c
	})
}

// ask says its own address until it hears it. What is lost it says again.
func ask(t *testing.T, c *net.UDPConn) {
	b := make([]byte, 64)
	end := time.Now().Add(patience)
	for me := c.LocalAddr().String(); time.Now().Before(end); {
		for range 3 {
			if _, err := c.Write([]byte(me)); err != nil {
				t.Errorf("Write = %v", err)
				return
			}
		}
		_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		n, err := c.Read(b)
		if err == nil {
			if string(b[:n]) != me {
				t.Errorf("%s hears %q", me, b[:n])
			}
			return
		}
	}
	t.Errorf("%v has no answer", c.LocalAddr())
}

// echo says what it hears, which should be the address of its source.
func echo(t *testing.T, c *Conn) {
	say := func(d []byte) {
		if string(d) != c.RemoteAddr().String() {
			t.Errorf("the flow of %v has a datagram of %s", c.RemoteAddr(), d)
		}
		_, _ = c.Write(d) // who has heard it is gone
	}
	for _, d := range c.TakeFirst() {
		say(d)
	}
	b := make([]byte, 64)
	for {
		n, err := c.Read(b)
		switch {
		case err == nil:
			say(b[:n])
		case !errors.Is(err, syscall.ECONNREFUSED):
			return
		}
	}
}

// astray makes what a flow's socket looks like when many others have sent to it before it was connected, and its server.
func astray(t *testing.T, listen string, others, each int) (s *packetServer, f packetFlow, nc *net.UDPConn, mine net.Conn) {
	t.Helper()
	pc := shared(t, "udp4", listen)
	s = &packetServer{pc: pc, at: addrPortOf(pc.LocalAddr()), buf: make([]byte, maxDatagramBytes), oob: make([]byte, 256)}
	var err error
	if s.raw, err = pc.SyscallConn(); err != nil {
		t.Fatal(err)
	}
	if err := s.tellDestinations(); err != nil {
		t.Fatal(err)
	}
	nc = shared(t, "udp4", "127.0.0.9:0")
	if err := nc.SetReadBuffer(4 << 20); err != nil {
		t.Fatal(err)
	}
	f.to = addrPortOf(nc.LocalAddr())
	p := &packets{t: t, port: f.to.Port()}
	mine = p.dial("127.0.0.9")
	f.from = addrPortOf(mine.LocalAddr())
	p.send(mine, "1")
	for range others {
		p.send(p.dial("127.0.0.9"), slices.Repeat([]string{"other"}, each)...)
	}
	p.send(mine, "2")
	raw, err := nc.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	cerr := raw.Control(func(fd uintptr) {
		err = unix.Connect(int(fd), &unix.SockaddrInet4{Port: int(f.from.Port()), Addr: f.from.Addr().As4()})
	})
	if err := errors.Join(cerr, err); err != nil {
		t.Fatal(err)
	}
	p.send(mine, "3")
	return s, f, nc, mine
}

// What others sent while a flow's socket was bound and not yet connected is theirs, on a listener for every address too.
func TestPacketsAstray(t *testing.T) {
	for _, tt := range []struct {
		name, listen string
		others, each int
		held         int
	}{
		{"none", "127.0.0.9:0", 0, 0, 0},
		{"some", "127.0.0.9:0", 10, 2, 20},
		{"some at every address", "0.0.0.0:0", 10, 2, 20},
		{"more than are looked through at once", "0.0.0.0:0", 10, 2 * maxAtOnce / 10, 10 * (2 * maxAtOnce / 10)},
		{"more than are held", "0.0.0.0:0", 10, 2 * maxAstray / 10, maxAstray},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, f, nc, mine := astray(t, tt.listen, tt.others, tt.each)
			got := s.following(f, nc)
			if text := strings.Join(texts(got), " "); text != "1 2 3" {
				t.Errorf("the flow begins with %q, want 1 2 3", text)
			}
			if len(s.left) != tt.held {
				t.Errorf("%d datagrams of others are held, want %d", len(s.left), tt.held)
			}
			for _, d := range s.left {
				if d.from == f.from || d.to != f.to || string(d.payload) != "other" {
					t.Errorf("what is left is %q from %v to %v", d.payload, d.from, d.to)
				}
			}
			p := &packets{t: t}
			p.send(mine, "4")
			p.reads(nc, "4")
		})
	}
}

func texts(list [][]byte) (out []string) {
	for _, b := range list {
		out = append(out, string(b))
	}
	return out
}

// Beside the system's own buffer the server holds a bounded number of datagrams, however many sources there are.
func TestPacketsHoldsFew(t *testing.T) {
	p := newPackets(t, "udp4", "127.0.0.1:0")
	var list []*net.UDPConn
	for range 2 * maxAtOnce {
		list = append(list, p.dial("127.0.0.1"))
		p.send(list[len(list)-1], "x")
	}
	s := &packetServer{pc: p.pc, at: addrPortOf(p.pc.LocalAddr()), buf: make([]byte, maxDatagramBytes), oob: make([]byte, 256), flow: func(netip.AddrPort) *Conn { return new(Conn) }}
	s.carry = func(c *Conn, err error) {
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		if len(s.left) > maxAtOnce {
			t.Fatalf("%d datagrams are held, want at most %d", len(s.left), maxAtOnce)
		}
	}
	var err error
	if s.raw, err = p.pc.SyscallConn(); err != nil {
		t.Fatal(err)
	}
	if err := s.tellDestinations(); err != nil {
		t.Fatal(err)
	}
	for _, c := range list { // in their order
		d, err := s.next()
		if err != nil || d.from != addrPortOf(c.LocalAddr()) {
			t.Fatalf("next = %v, %v, want the datagram of %v", d.from, err, c.LocalAddr())
		}
		if err := s.begin(d); err != nil {
			t.Fatal(err)
		}
		p.send(list[0], "more") // so that there is always something
	}
}

// The listener is at an address that is not the datagram's: what the system does not tell is dropped.
func TestPacketsWithoutDestination(t *testing.T) {
	for _, tt := range []struct {
		at          string
		transparent bool
		want        netip.AddrPort
	}{
		{"127.0.0.1:7", false, netip.MustParseAddrPort("127.0.0.1:7")},
		{"0.0.0.0:7", false, netip.AddrPort{}},
		{"127.0.0.1:7", true, netip.AddrPort{}},
	} {
		s := &packetServer{at: netip.MustParseAddrPort(tt.at), transparent: tt.transparent}
		if got := s.destination(nil); got != tt.want {
			t.Errorf("destination at %s = %v, want %v", tt.at, got, tt.want)
		}
		if got := s.destination(make([]byte, 64)); got.IsValid() {
			t.Errorf("destination of zeros = %v, want none", got)
		}
	}
}

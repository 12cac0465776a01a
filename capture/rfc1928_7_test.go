package capture

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const (
	associateAny = "\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00" // the app does not know yet where it sends from
	to4          = "\x00\x00\x00\x01\xc0\x00\x02\x01\x00\x35" // 192.0.2.1:53
	to6          = "\x00\x00\x00\x04\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x35"
	toMapped     = "\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xc0\x00\x02\x01\x00\x35"
	toName       = "\x00\x00\x00\x03\x0fOrders.shop.svc\x00\x35"
)

// relay is an association with its app.
type relay struct {
	t       *testing.T
	control net.Conn     // of the app
	udp     *net.UDPConn // of the app, connected to the relay
	way     *Socks5
	flows   chan *Conn // that the app has begun
	served  chan error // what Serve has returned
	over    chan struct{}
}

// associated makes an association over TCP of the host, with the given request.
func associated(t *testing.T, cfg Socks5Config, greeting, chosen, request string) *relay {
	t.Helper()
	client, server := tcpPair(t)
	cfg.UDP = true
	way := newSocks5(t, cfg)
	r := &relay{t: t, way: way, control: client, flows: make(chan *Conn, 2*maxAssociated), served: make(chan error, 1), over: make(chan struct{})}
	// Ends with the association, which the cleanup ends; waited for there.
	go func() { r.served <- way.Serve(server, func(c *Conn) { r.flows <- c }, func() { close(r.over) }) }()
	t.Cleanup(func() {
		client.Close()
		<-r.over
	})
	a := &app{t: t, conn: client}
	wait := a.say(greeting + request)
	a.hears(chosen)
	a.hears("\x05\x00\x00\x01\x7f\x00\x00\x01")
	port := make([]byte, 2)
	if _, err := io.ReadFull(client, port); err != nil {
		t.Fatal(err)
	}
	wait()
	r.udp = r.socket("127.0.0.1:0", net.JoinHostPort("127.0.0.1", fmt.Sprint(binary.BigEndian.Uint16(port))))
	return r
}

// socket makes one of an app that speaks to the relay.
func (r *relay) socket(from, to string) *net.UDPConn {
	r.t.Helper()
	c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(from)), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to)))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		r.t.Fatal(err)
	}
	return c
}

func (r *relay) send(c *net.UDPConn, text string) {
	r.t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		r.t.Fatal(err)
	}
}

// begun returns the next flow.
func (r *relay) begun() *Conn {
	r.t.Helper()
	select {
	case c := <-r.flows:
		r.t.Cleanup(func() { c.Close() })
		if c.Way != WaySocks5 || !c.Packets {
			r.t.Errorf("a flow of way %q, packets %v", c.Way, c.Packets)
		}
		return c
	case <-time.After(patience):
		r.t.Fatal("no flow begins")
		return nil
	}
}

// reads expects a datagram of a flow.
func (r *relay) reads(c net.Conn, want string) {
	r.t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		r.t.Fatal(err)
	}
	b := make([]byte, maxDatagramBytes)
	n, err := c.Read(b)
	if err != nil || string(b[:n]) != want {
		r.t.Fatalf("Read = %q, %v, want %q", b[:n], err, want)
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		r.t.Fatal(err)
	}
}

func TestRFC1928Section7Destinations(t *testing.T) {
	r := associated(t, Socks5Config{}, greetNone, choseNone, associateAny)
	for _, tt := range []struct{ name, head, host, addr string }{
		{"IPv4", to4, "", "192.0.2.1"},
		{"IPv6", to6, "", "2001:db8::1"},
		{"IPv4 in IPv6", toMapped, "", "192.0.2.1"},
		{"name", toName, "orders.shop.svc", ""},
		{"address for a name", "\x00\x00\x00\x03\x09192.0.2.1\x00\x35", "", "192.0.2.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r.t = t
			r.send(r.udp, tt.head+"question")
			c := r.begun()
			want := netip.Addr{}
			if tt.addr != "" {
				want = netip.MustParseAddr(tt.addr)
			}
			if c.Host != tt.host || c.Addr != want || c.Port != 53 || c.User != "" {
				t.Errorf("the flow is to host %q, addr %v, port %d, user %q", c.Host, c.Addr, c.Port, c.User)
			}
			if c.RemoteAddr().String() != r.udp.LocalAddr().String() || c.LocalAddr().String() != r.udp.RemoteAddr().String() {
				t.Errorf("the flow is from %v at %v", c.RemoteAddr(), c.LocalAddr())
			}
			r.reads(c, "question")
			// "the relay server MUST encapsulate that datagram using the above UDP request header".
			for _, answer := range []string{"answer", ""} {
				if n, err := c.Write([]byte(answer)); n != len(answer) || err != nil {
					t.Errorf("Write = %d, %v, want %d, nil", n, err, len(answer))
				}
				r.reads(r.udp, tt.head+answer)
			}
			r.send(r.udp, tt.head+"again")
			r.reads(c, "again")
			r.send(r.udp, tt.head) // a datagram may be empty
			r.reads(c, "")
			big := strings.Repeat("x", 60000)
			r.send(r.udp, tt.head+big)
			r.reads(c, big)
		})
	}
}

// "RSV  Reserved X'0000'": what an app sends there makes no other flow and does not come back.
func TestRFC1928Section7Reserved(t *testing.T) {
	r := associated(t, Socks5Config{}, greetNone, choseNone, associateAny)
	r.send(r.udp, "\xab\xcd"+to4[2:]+"a")
	c := r.begun()
	r.send(r.udp, to4+"b")
	r.reads(c, "a")
	r.reads(c, "b")
	if _, err := c.Write([]byte("c")); err != nil {
		t.Fatal(err)
	}
	r.reads(r.udp, to4+"c")
}

// "an implementation that does not support fragmentation MUST drop any datagram whose FRAG field is other than X'00'";
// so are datagrams that have no whole header, or lead nowhere.
func TestRFC1928Section7Dropped(t *testing.T) {
	r := associated(t, Socks5Config{}, greetNone, choseNone, associateAny)
	for _, text := range []string{
		"", "\x00", "\x00\x00\x00", "\x00\x00\x00\x01", to4[:9], to6[:21], toName[:len(toName)-1], toName[:5], "\x00\x00\x00\x03",
		"\x00\x00\x01" + to4[3:] + "fragment", "\x00\x00\x80" + to4[3:] + "last fragment", "\x00\x00\xff" + toName[3:] + "x",
		"\x00\x00\x00\x00" + to4[4:], "\x00\x00\x00\x02" + to4[4:], "\x00\x00\x00\x05" + to6[4:], "\x00\x00\x00\xff" + to6[4:],
		to4[:8] + "\x00\x00port 0", "\x00\x00\x00\x03\x00\x00\x35", "\x00\x00\x00\x03\x06" + "0x7f.1\x00\x35", "\x00\x00\x00\x03\x03a\x00b\x00\x35", "\x00\x00\x00\x03\x03::1%\x00\x35"[:8],
	} {
		r.send(r.udp, text)
	}
	r.send(r.udp, to4+"whole")
	c := r.begun()
	r.reads(c, "whole")
	if len(r.flows) > 0 {
		t.Errorf("a flow has begun to %q %v", c.Host, c.Addr)
	}
}

// "The server MAY use this information to limit access to the association": the app's address is that of its connection,
// its port the one that it names, or sends from first.
func TestRFC1928Section7Source(t *testing.T) {
	known, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	named := addrPortOf(known.LocalAddr())
	known.Close()
	for _, tt := range []struct {
		name, request string
		from          string // where the app sends from
	}{
		{"unknown", associateAny, "127.0.0.1:0"},
		{"port", "\x05\x03\x00\x01\x00\x00\x00\x00" + string(binary.BigEndian.AppendUint16(nil, named.Port())), named.String()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := associated(t, Socks5Config{}, greetNone, choseNone, tt.request)
			at := r.udp.RemoteAddr().String()
			r.send(r.socket("127.0.0.2:0", at), to4+"wrong address")
			if tt.name == "port" {
				r.send(r.udp, to4+"wrong port")
			}
			mine := r.socket(tt.from, at)
			r.send(mine, to4+"mine")
			c := r.begun()
			r.reads(c, "mine")
			r.send(r.socket("127.0.0.1:0", at), to6+"another port")
			r.send(r.socket("127.0.0.2:0", at), to4+"another address")
			r.send(mine, to4+"mine again")
			r.reads(c, "mine again")
			if len(r.flows) > 0 {
				t.Error("somebody else has begun a flow")
			}
			if _, err := c.Write([]byte("answer")); err != nil {
				t.Fatal(err)
			}
			r.reads(mine, to4+"answer")
		})
	}
}

func TestRFC1928Section7Login(t *testing.T) {
	r := associated(t, Socks5Config{Users: bob}, greetLogin+loginBob, choseLogin+loginGood, associateAny)
	r.send(r.udp, to4+"a")
	if c := r.begun(); c.User != "bob" {
		t.Errorf("user = %q, want bob", c.User)
	}
}

// "A UDP association terminates when the TCP connection that the UDP ASSOCIATE request arrived on terminates."
func TestRFC1928Section7Terminates(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(*relay)
	}{
		{"closed", func(r *relay) { r.control.Close() }},
		{"half closed", func(r *relay) { _ = r.control.(*net.TCPConn).CloseWrite() }},
		{"reset", func(r *relay) { _ = reset(r.control) }},
		{"too much is said", func(r *relay) { _, _ = r.control.Write(make([]byte, maxControlBytes)) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := associated(t, Socks5Config{}, greetNone, choseNone, associateAny)
			r.send(r.udp, to4+"a")
			c := r.begun()
			r.reads(c, "a")
			tt.end(r)
			if err := <-r.served; err != nil {
				t.Errorf("Serve = %v, want nil", err)
			}
			<-r.over
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Read = %v, want %v", err, net.ErrClosed)
			}
			if _, err := c.Write([]byte("b")); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Write = %v, want %v", err, net.ErrClosed)
			}
			if err := c.SetReadDeadline(time.Now().Add(time.Hour)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("SetReadDeadline = %v, want %v", err, net.ErrClosed)
			}
			if err := c.Close(); err != nil {
				t.Errorf("Close = %v, want nil", err)
			}
		})
	}
}

// What an app says with its request, or after it, ends nothing.
func TestRFC1928Section7Talk(t *testing.T) {
	r := associated(t, Socks5Config{}, greetNone, choseNone, associateAny+"what is said ahead")
	if _, err := r.control.Write([]byte("and later")); err != nil {
		t.Fatal(err)
	}
	r.send(r.udp, to4+"a")
	r.reads(r.begun(), "a")
}

// Serve carries what else an app asks for as Catch does.
func TestSocks5ServeConnect(t *testing.T) {
	client, server := tcpPair(t)
	a := &app{t: t, conn: client}
	wait := a.say(greetNone + connectName)
	var got *Conn
	over := false
	err := newSocks5(t, Socks5Config{UDP: true}).Serve(server, func(c *Conn) { got = c }, func() { over = true })
	wait()
	if err != nil || !over || got == nil || got.Packets || got.Host != "orders.shop.svc" || got.Port != 443 {
		t.Errorf("Serve = %v, over %v, and carries %+v", err, over, got)
	}
}

// A way that is closed ends associations that have no flow for some time, and no others.
func TestCloseEndsQuietAssociations(t *testing.T) {
	const quiet = 50 * time.Millisecond
	for _, when := range []string{"before a flow", "while one lives", "after one"} {
		t.Run(when, func(t *testing.T) {
			r := associated(t, Socks5Config{Timeout: quiet}, greetNone, choseNone, associateAny)
			if when != "before a flow" {
				r.send(r.udp, "\x00\x00\x00\x01\x0a\x00\x00\x01\x00\x35hello")
				c := r.begun()
				if when == "after one" {
					c.Close()
				} else {
					r.way.Close()
					select {
					case <-r.over:
						t.Fatal("the association ends with a flow that lives")
					case <-time.After(3 * quiet):
					}
					r.reads(c, "hello")
					c.Close()
				}
			}
			r.way.Close()
			select {
			case <-r.over:
			case <-time.After(patience):
				t.Fatal("the association does not end")
			}
		})
	}
}

// Beyond the bound, destinations wait for another flow's end; those that there are go on.
func TestAssociationBoundsFlows(t *testing.T) {
	r := associated(t, Socks5Config{}, greetNone, choseNone, associateAny)
	to := func(i int) string { return to4[:8] + string(binary.BigEndian.AppendUint16(nil, uint16(i+1))) }
	var flows []*Conn
	for i := range maxAssociated {
		r.send(r.udp, to(i)+"a")
		flows = append(flows, r.begun())
	}
	r.reads(flows[0], "a")
	r.send(r.udp, to(maxAssociated)+"too many")
	r.send(r.udp, to(0)+"b")
	r.reads(flows[0], "b")
	if len(r.flows) > 0 {
		t.Fatal("there are more flows than may be")
	}
	flows[1].Close()
	r.send(r.udp, to(maxAssociated)+"room")
	c := r.begun()
	r.reads(c, "room")
	if c.Port != maxAssociated+1 {
		t.Errorf("the flow is to port %d", c.Port)
	}
}

// idle makes an association without sockets, whose flows nobody reads.
func idle() (a *association, flows map[uint16]*Conn) {
	flows = make(map[uint16]*Conn)
	return &association{flows: make(map[string]*associatedConn), carry: func(c *Conn) { flows[c.Port] = c }}, flows
}

func (a *association) give(port uint16, payload []byte) {
	a.deliver(fmt.Sprint(port), "", netip.MustParseAddr("192.0.2.1"), port, payload)
}

// An app that sends to flows that nobody reads makes us hold no more than the bound, and what is read or closed makes
// room.
func TestAssociationBoundsBytes(t *testing.T) {
	a, flows := idle()
	payload := make([]byte, 60000)
	for range maxQueued + 1 {
		for port := range uint16(maxAssociated) {
			a.give(port+1, payload)
		}
	}
	if len(flows) != maxAssociated || a.queued > maxQueuedBytes || a.queued < maxQueuedBytes-len(payload) {
		t.Fatalf("%d flows hold %d bytes, want %d and just below %d", len(flows), a.queued, maxAssociated, maxQueuedBytes)
	}
	before := a.queued
	if _, err := flows[1].Read(make([]byte, len(payload))); err != nil || a.queued != before-len(payload) {
		t.Errorf("after Read (%v) flows hold %d bytes, want %d", err, a.queued, before-len(payload))
	}
	for _, c := range flows {
		c.Close()
	}
	if a.queued != 0 || len(a.flows) != 0 {
		t.Errorf("after Close %d flows hold %d bytes", len(a.flows), a.queued)
	}
	a, flows = idle()
	for range 2 * maxQueued {
		a.give(1, nil)
	}
	if n := len(flows[1].Conn.(*associatedConn).queue); n != maxQueued {
		t.Errorf("%d datagrams wait, want %d", n, maxQueued)
	}
	a.end()
	a.give(2, nil)
	if len(flows) != 1 {
		t.Error("a flow has begun after the end")
	}
}

// Await takes nothing, and what it promises holds, for an empty datagram too.
func TestAssociatedConnAwait(t *testing.T) {
	a, flows := idle()
	for _, text := range []string{"one", "", "three"} {
		a.give(1, []byte(text))
	}
	c := flows[1].Conn.(*associatedConn)
	for _, want := range []string{"one", "", "three"} {
		for range 2 {
			if err := c.Await(); err != nil {
				t.Fatalf("Await = %v, want nil", err)
			}
		}
		b := make([]byte, 8)
		if n, err := c.Read(b); err != nil || string(b[:n]) != want {
			t.Errorf("Read = %q, %v, want %q", b[:n], err, want)
		}
	}
	a.give(1, []byte("too long"))
	a.give(1, []byte("next"))
	b := make([]byte, 3)
	if n, err := c.Read(b); err != nil || string(b[:n]) != "too" {
		t.Errorf("Read = %q, %v, want what there is room for", b[:n], err)
	}
	b = make([]byte, 8)
	if n, err := c.Read(b); err != nil || string(b[:n]) != "next" {
		t.Errorf("Read = %q, %v, want the next datagram", b[:n], err)
	}
	a.give(1, []byte("left"))
	if err := c.Await(); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := c.Await(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Await after Close = %v, want %v", err, net.ErrClosed)
	}
}

// awaiting runs Await.
func awaiting(c *associatedConn) <-chan error {
	result := make(chan error, 1)
	go func() { result <- c.Await() }() // ends with its wait; the test takes the result
	return result
}

func TestAssociatedConnDeadline(t *testing.T) {
	for _, tt := range []struct {
		name string
		set  []time.Duration // deadlines, one after the other; 0: none
		want time.Duration   // when the wait is over; 0: with the datagram after an hour
	}{
		{"none", nil, 0},
		{"ahead", []time.Duration{time.Second}, time.Second},
		{"past", []time.Duration{-time.Second}, 0},
		{"taken back", []time.Duration{time.Second, 0}, 0},
		{"later", []time.Duration{time.Second, time.Minute}, time.Minute},
		{"earlier", []time.Duration{time.Minute, time.Second}, time.Second},
		{"past and ahead", []time.Duration{-1, time.Second}, time.Second},
		{"past and none", []time.Duration{-1, 0}, 0},
	} {
		for _, early := range []bool{false, true} { // whether Await waits already
			t.Run(fmt.Sprint(tt.name, early), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a, flows := idle()
					a.give(1, []byte("first"))
					c := flows[1].Conn.(*associatedConn)
					if _, err := c.Read(make([]byte, 8)); err != nil {
						t.Fatal(err)
					}
					start := time.Now()
					past := tt.set != nil && tt.set[len(tt.set)-1] < 0
					if early && tt.set != nil && tt.set[0] < 0 {
						return // it is over at once
					}
					var result <-chan error
					if early {
						result = awaiting(c)
						synctest.Wait()
					}
					for _, d := range tt.set {
						at := time.Time{}
						if d != 0 {
							at = start.Add(d)
						}
						if err := c.SetDeadline(at); err != nil {
							t.Fatal(err)
						}
					}
					if !early {
						result = awaiting(c)
					}
					timer := time.AfterFunc(time.Hour, func() { a.give(1, []byte("x")) })
					err, took := <-result, time.Since(start)
					timer.Stop()
					switch {
					case past || tt.want > 0:
						if !errors.Is(err, os.ErrDeadlineExceeded) || took != tt.want {
							t.Errorf("Await = %v after %v, want a deadline after %v", err, took, tt.want)
						}
					case err != nil || took != time.Hour:
						t.Errorf("Await = %v after %v, want nil after an hour", err, took)
					}
					c.Close()
				})
			})
		}
	}
}

func TestAssociatedConnCloseWakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, flows := idle()
		a.give(1, []byte("first"))
		c := flows[1].Conn.(*associatedConn)
		if _, err := c.Read(make([]byte, 8)); err != nil {
			t.Fatal(err)
		}
		result := awaiting(c)
		synctest.Wait()
		a.end()
		if err := <-result; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Await = %v, want %v", err, net.ErrClosed)
		}
	})
}

func FuzzParseUDPHeader(f *testing.F) {
	for _, text := range []string{to4 + "payload", to6, toMapped, toName + "x", "\x00\x00\x01" + to4[3:], to4[:9], "\x00\x00\x00\x03\xffa", "\x00\x00\x00\x03\x060x7f.1\x00\x35", ""} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		head, host, addr, port, ok := parseUDPHeader(b)
		if !ok {
			return
		}
		checkDestination(t, host, addr)
		if port == 0 || b[2] != 0 || !bytes.HasPrefix(b, head) {
			t.Fatalf("parseUDPHeader(% x) = % x, port %d", b, head, port)
		}
		again, host2, addr2, port2, ok := parseUDPHeader(bytes.Clone(head)) // which goes before answers
		if !ok || !bytes.Equal(again, head) || host2 != host || addr2 != addr || port2 != port {
			t.Errorf("parseUDPHeader(% x) = % x, %q, %v, %d, %v, want the same", head, again, host2, addr2, port2, ok)
		}
		for n := range head {
			if _, _, _, _, ok := parseUDPHeader(head[:n]); ok {
				t.Errorf("parseUDPHeader takes %d bytes of a header of %d", n, len(head))
			}
		}
	})
}

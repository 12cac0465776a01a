package datagram

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
	"time"
)

const patience = 10 * time.Second

// udpPair returns two UDP sockets that are connected to each other.
func udpPair(t testing.TB) (a, b *net.UDPConn) {
	t.Helper()
	first, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	b, err = net.DialUDP("udp", nil, first.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	at := first.LocalAddr().(*net.UDPAddr)
	first.Close()
	a, err = net.DialUDP("udp", at, b.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*net.UDPConn{a, b} {
		t.Cleanup(func() { c.Close() })
		_ = c.SetReadBuffer(4 << 20)
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
	}
	return a, b
}

// kinds are the ways to make a Conn.
var kinds = map[string]func(net.Conn, [][]byte, Share) *Conn{"batched": New, "plain": NewPlain}

// payloads are datagrams of all kinds of lengths.
func payloads() (list [][]byte) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 300 {
		n := []int{0, 1, 63, 64, 1200, 1200, 1200, 1200, 1472, 9000}[r.IntN(10)]
		if i%100 == 99 {
			n = MaxPayload
		}
		b := make([]byte, n)
		for j := range b {
			b[j] = byte(i + j)
		}
		list = append(list, b)
	}
	return list
}

// TestConn carries datagrams from one socket through a stream to another.
func TestConn(t *testing.T) {
	for name, make := range kinds {
		t.Run(name, func(t *testing.T) {
			for _, size := range []int{20, 1000, 4096, 64 << 10} {
				t.Run(fmt.Sprint(size), func(t *testing.T) {
					app, accepted := udpPair(t)
					opened, server := udpPair(t)
					in, out := make(accepted, nil, new(Room).For("peer")), make(opened, nil, new(Room).For("peer"))
					done := goCopy(out, in, size)
					want := payloads()
					buf := make2(MaxPayload)
					for i, p := range want {
						if _, err := app.Write(p); err != nil {
							t.Fatal(err)
						}
						if i%10 != 9 { // some at a time
							continue
						}
						for j := i - 9; j <= i; j++ {
							n, err := server.Read(buf)
							if err != nil || !bytes.Equal(buf[:n], want[j]) {
								t.Fatalf("datagram %d has %d bytes, %v, want %d", j, n, err, len(want[j]))
							}
						}
					}
					in.End()
					if err := <-done; err != nil {
						t.Error(err)
					}
					if s := in.Stats(); s.Received.Load() != int64(len(want)) || out.Stats().Sent.Load() != int64(len(want)) || out.Stats().Dropped.Load() != 0 {
						t.Errorf("received %d, sent %d, dropped %d, want %d", s.Received.Load(), out.Stats().Sent.Load(), out.Stats().Dropped.Load(), len(want))
					}
				})
			}
		})
	}
}

func make2(n int) []byte { return make([]byte, n) }

// goCopy carries a stream with reads of at most size bytes.
func goCopy(dst io.Writer, src *Conn, size int) <-chan error {
	done := make(chan error, 1)
	go func() { // ends with src; its result is waited for
		buf := make([]byte, size)
		for {
			if err := src.Await(); err != nil {
				done <- err
				return
			}
			n, err := src.Read(buf)
			if _, werr := dst.Write(buf[:n]); werr != nil {
				err = werr
			}
			if err == io.EOF {
				err = nil
				done <- err
				return
			}
			if err != nil {
				done <- err
				return
			}
		}
	}()
	return done
}

// What was read before comes first.
func TestFirst(t *testing.T) {
	app, accepted := udpPair(t)
	c := New(accepted, [][]byte{[]byte("one"), []byte("two")}, new(Room).For("peer"))
	app.Write([]byte("three"))
	var got []string
	var d decoder
	buf := make([]byte, 6)
	for len(got) < 3 {
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, decodeAll(&d, buf[:n])...)
	}
	if !slices.Equal(got, []string{"one", "two", "three"}) {
		t.Errorf("the datagrams are %q", got)
	}
}

// A socket whose other end is gone loses datagrams, and lives on.
func TestNobodyThere(t *testing.T) {
	for name, make := range kinds {
		t.Run(name, func(t *testing.T) {
			a, b := udpPair(t)
			at := b.LocalAddr().(*net.UDPAddr)
			b.Close()
			c := make(a, nil, new(Room).For("peer"))
			var stream []byte
			for range 20 {
				stream = append(stream, capsule("hello")...)
			}
			if n, err := c.Write(stream); n != len(stream) || err != nil {
				t.Fatalf("Write = %d, %v, want all", n, err)
			}
			again, err := net.DialUDP("udp", at, a.LocalAddr().(*net.UDPAddr))
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			again.SetDeadline(time.Now().Add(patience))
			for range 3 { // the first may meet an error that is still to be told
				if _, err := c.Write(capsule("back")); err != nil {
					t.Fatal(err)
				}
			}
			buf := make2(10)
			if n, err := again.Read(buf); string(buf[:n]) != "back" {
				t.Errorf("Read = %q, %v", buf[:n], err)
			}
		})
	}
}

// An error that the other end's system tells, and that passes, does not make a Read wait with its buffers.
func TestNobodyThereHoldsNoBuffer(t *testing.T) {
	for name, make := range kinds {
		t.Run(name, func(t *testing.T) {
			a, b := udpPair(t)
			b.Close()
			c := make(a, nil, new(Room).For("peer"))
			if _, err := a.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			if err := c.Await(); err != nil {
				t.Fatalf("Await = %v, want nil", err)
			}
			if n, err := c.Read(make2(100)); n != 0 || err != nil {
				t.Errorf("Read = %d, %v, want 0 and no error", n, err)
			}
		})
	}
}

// A Conn that has written keeps neither what it was given nor the room that a long capsule took.
func TestWriteHoldsNoBuffer(t *testing.T) {
	a, _ := udpPair(t)
	c := New(a, nil, new(Room).For("peer"))
	long := append(capsule(string(make2(60_000))), capsule("short")...)
	for _, p := range [][]byte{long[:100], long[100:]} {
		if _, err := c.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	if cap(c.dec.part) > keptPart {
		t.Errorf("%d bytes are kept of a capsule that is complete, want at most %d", cap(c.dec.part), keptPart)
	}
	for _, payload := range c.list[:cap(c.list)] {
		if payload != nil {
			t.Errorf("a payload of %d bytes is kept, want none", len(payload))
		}
	}
}

// Beginnings of long capsules are kept of so many Conns only, and of so many of one owner; the datagrams of others are lost, and those that are short
// are not. Who has ended, or is closed, makes room.
func TestLongParts(t *testing.T) {
	long := capsule(string(make2(60_000)))
	room := new(Room)
	begin := func(owner string) *Conn {
		c := newConn(&net.UDPConn{}, &slowIO{room: 1 << 20}, nil, room.For(owner))
		if n, err := c.Write(long[:30_000]); n != 30_000 || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
		return c
	}
	var list []*Conn
	for i := range partsShare {
		for range maxLongParts / partsShare {
			list = append(list, begin(fmt.Sprint(i)))
		}
		if i == 0 { // who has all of its share leaves the others theirs
			if greedy := begin("0"); greedy.long.Load() {
				t.Error("an owner has more than its share")
			}
		}
	}
	defer func() {
		for _, c := range list {
			c.Close()
		}
		if room.taken != 0 || len(room.by) != 0 {
			t.Errorf("%d beginnings are kept of Conns that are closed, by %v, want none", room.taken, room.by)
		}
	}()
	late := begin("late")
	if _, err := late.Write(append(long[30_000:len(long):len(long)], capsule("short")...)); err != nil {
		t.Fatal(err)
	}
	if got, dropped := late.io.(*slowIO).got, late.stats.Dropped.Load(); len(got) != 1 || got[0] != "short" || dropped != 1 || cap(late.dec.part) > keptPart {
		t.Errorf("%d datagrams came, %d are dropped, %d bytes are kept, want the short one, one and next to none", len(got), dropped, cap(late.dec.part))
	}
	if _, err := list[0].Write(long[30_000:]); err != nil || len(list[0].io.(*slowIO).got) != 1 {
		t.Errorf("who came in time has written %d datagrams, %v, want one", len(list[0].io.(*slowIO).got), err)
	}
	list[1].Close()
	list = append(list, begin("0"), begin("0"))
	for _, c := range list[len(list)-2:] {
		if !c.long.Load() {
			t.Error("no room is left by who has ended")
		}
	}
}

// End makes a Read under way return the end, and so does CloseWrite; Close an error.
func TestEnd(t *testing.T) {
	for name, end := range map[string]func(*Conn){
		"End": (*Conn).End, "CloseWrite": func(c *Conn) { _ = c.CloseWrite() },
	} {
		t.Run(name, func(t *testing.T) {
			_, b := udpPair(t)
			c := New(b, nil, new(Room).For("peer"))
			time.AfterFunc(5*time.Millisecond, func() { end(c) })
			if n, err := c.Read(make([]byte, 100)); n != 0 || err != io.EOF {
				t.Errorf("Read = %d, %v, want io.EOF", n, err)
			}
			if err := c.Await(); err != nil {
				t.Errorf("Await = %v, want nil", err)
			}
		})
	}
	_, b := udpPair(t)
	c := New(b, nil, new(Room).For("peer"))
	time.AfterFunc(5*time.Millisecond, func() { c.Close() })
	if err := c.Await(); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Errorf("Await = %v", err)
	}
}

// TryWrite that finds no room takes whole capsules only, and the rest is taken later.
func TestTryWriteWithoutRoom(t *testing.T) {
	io := &slowIO{}
	c := &Conn{io: io}
	var stream []byte
	for i := range 500 {
		stream = append(stream, capsule(fmt.Sprint("datagram ", i))...)
		if i%7 == 0 {
			stream = append(stream, "\x21\x02xy"...) // of another type
		}
	}
	r := rand.New(rand.NewPCG(3, 4))
	for len(stream) > 0 {
		io.room = r.IntN(20)
		n, err := c.TryWrite(stream[:min(len(stream), 1+r.IntN(300))])
		if err != nil {
			t.Fatal(err)
		}
		stream = stream[n:]
	}
	dropped := int(c.stats.Dropped.Load())
	if len(io.got)+dropped != 500 || dropped > 100 {
		t.Fatalf("%d datagrams were written and %d dropped, want 500", len(io.got), dropped)
	}
	last := -1
	for _, text := range io.got {
		var i int
		if _, err := fmt.Sscanf(text, "datagram %d", &i); err != nil || i <= last {
			t.Fatalf("%q after datagram %d", text, last)
		}
		last = i
	}
}

// slowIO is a socket that has room for some datagrams.
type slowIO struct {
	room int
	got  []string
}

func (s *slowIO) await() error      { return nil }
func (s *slowIO) read(*batch) error { return io.EOF }

func (s *slowIO) write(payloads [][]byte, _ bool) (n int, dropped loss, err error) {
	n = min(s.room, len(payloads))
	s.room -= n
	for _, p := range payloads[:n] {
		s.got = append(s.got, string(p))
	}
	return n, dropped, nil
}

// BenchmarkCarry carries datagrams of 1,200 bytes from socket to socket.
func BenchmarkCarry(b *testing.B) {
	for name, make := range kinds {
		b.Run(name, func(b *testing.B) {
			app, accepted := udpPair(b)
			opened, server := udpPair(b)
			in, out := make(accepted, nil, new(Room).For("peer")), make(opened, nil, new(Room).For("peer"))
			for _, c := range []*net.UDPConn{app, accepted, opened, server} {
				_ = c.SetDeadline(time.Time{})
			}
			done := goCopy(out, in, 64<<10)
			sender := ioOf(app)
			burst := slices.Repeat([][]byte{make2(1200)}, 40)
			go io.Copy(io.Discard, server) // ends with server
			b.SetBytes(1200 * int64(len(burst)))
			for b.Loop() {
				if _, _, err := sender.write(burst, true); err != nil {
					b.Fatal(err)
				}
				for want := in.stats.Received.Load(); out.stats.Sent.Load() < want; {
					time.Sleep(time.Microsecond)
				}
			}
			in.End()
			<-done
			b.ReportMetric(float64(out.stats.Sent.Load())/b.Elapsed().Seconds(), "datagrams/s")
			server.Close()
		})
	}
}

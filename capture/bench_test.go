package capture

import (
	"io"
	"net"
	"testing"
	"time"
)

// loopConn is an in-memory connection whose client always says the same and never waits.
type loopConn struct {
	says []byte // every message is one Read
	cuts []int
	next int
}

func (c *loopConn) Read(p []byte) (int, error) {
	start := 0
	if c.next > 0 {
		start = c.cuts[c.next-1]
	}
	n := copy(p, c.says[start:c.cuts[c.next]])
	c.next++
	return n, nil
}

func (c *loopConn) Write(p []byte) (int, error)      { return len(p), nil }
func (c *loopConn) Close() error                     { return nil }
func (c *loopConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *loopConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *loopConn) SetDeadline(time.Time) error      { return nil }
func (c *loopConn) SetReadDeadline(time.Time) error  { return nil }
func (c *loopConn) SetWriteDeadline(time.Time) error { return nil }

// newLoopConn makes one of messages.
func newLoopConn(messages ...string) *loopConn {
	c := new(loopConn)
	for _, m := range messages {
		c.says = append(c.says, m...)
		c.cuts = append(c.cuts, len(c.says))
	}
	return c
}

// handshakeKinds are what a client may say, with the most that catching it may allocate.
var handshakeKinds = []struct {
	name      string
	users     map[string]Password
	says      []string
	maxAllocs float64
}{
	{"address", nil, []string{greetNone, connectAddr}, 9},
	{"name", nil, []string{greetNone, connectName}, 10},
	{"login", bob, []string{greetBoth, loginBob, connectName}, 20},
}

// BenchmarkSocks5 measures one handshake without a socket under it: what this package costs by itself.
func BenchmarkSocks5(b *testing.B) {
	for _, kind := range handshakeKinds {
		b.Run(kind.name, func(b *testing.B) {
			way := newSocks5(b, Socks5Config{Users: kind.users})
			nc := newLoopConn(kind.says...)
			b.ReportAllocs()
			for b.Loop() {
				nc.next = 0
				c, err := way.Catch(nc)
				if err != nil {
					b.Fatal(err)
				}
				if err := c.Accepted(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSocks5Loopback measures connect, handshake and close over a real socket, the client's half
// included; direct is the same without a handshake.
func BenchmarkSocks5Loopback(b *testing.B) {
	ln := listen(b)
	request := []byte(connectName)
	reply := make([]byte, 10)
	dial := func(b *testing.B) net.Conn {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		return c
	}
	b.Run("direct", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			c := dial(b)
			nc, err := ln.Accept()
			if err != nil {
				b.Fatal(err)
			}
			nc.Close()
			c.Close()
		}
	})
	b.Run("socks5", func(b *testing.B) {
		way := newSocks5(b, Socks5Config{})
		b.ReportAllocs()
		for b.Loop() {
			client := dial(b)
			nc, err := ln.Accept()
			if err != nil {
				b.Fatal(err)
			}
			done := make(chan error, 1)
			// Ends with the handshake; waited for on done.
			go func() {
				c, err := way.Catch(nc)
				if err == nil {
					err = c.Accepted()
				}
				done <- err
			}()
			for _, step := range []struct {
				say  []byte
				hear int
			}{{[]byte(greetNone), 2}, {request, 10}} {
				if _, err := client.Write(step.say); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(client, reply[:step.hear]); err != nil {
					b.Fatal(err)
				}
			}
			if err := <-done; err != nil {
				b.Fatal(err)
			}
			nc.Close()
			client.Close()
		}
	})
}

func TestHandshakeAllocations(t *testing.T) {
	for _, kind := range handshakeKinds {
		t.Run(kind.name, func(t *testing.T) {
			way := newSocks5(t, Socks5Config{Users: kind.users})
			nc := newLoopConn(kind.says...)
			got := testing.AllocsPerRun(200, func() {
				nc.next = 0
				if _, err := way.Catch(nc); err != nil {
					t.Fatal(err)
				}
			})
			if got > kind.maxAllocs {
				t.Errorf("Catch allocates %v times, want at most %v", got, kind.maxAllocs)
			}
		})
	}
}

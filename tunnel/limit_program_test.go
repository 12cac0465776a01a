package tunnel_test

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"culvert/policy"
	"culvert/tunnel"
)

// The connections of a program keep to the limits, and to their deadlines meanwhile.
func TestListenerLimited(t *testing.T) {
	p := newProgram(t)
	env := p.env(t, "default", "orders", "10.0.0.2")
	oblige(map[uint16]*policy.Obligations{
		80: limits(policy.Limit{Name: "slow", BytesPerSecond: 1}), 81: limits(policy.Limit{Name: "little", Quota: 1000, Flows: 1}),
	})(&env)
	l, err := tunnel.Listen(testContext(t), "10.0.0.2:15008", env, policy.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Cut)
	d := p.dialer(t, "default")
	open := func(address string) (c, s net.Conn) {
		t.Helper()
		accepted := make(chan net.Conn, 1)
		go func() { // ends with its Accept; received below
			s, err := l.Accept()
			if err != nil {
				t.Error(err)
			}
			accepted <- s
		}()
		c, err := d.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		return c, <-accepted
	}
	c, s := open("orders:80")
	defer c.Close()
	defer s.Close()
	buf := make([]byte, 64<<10)
	_ = s.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := s.Write(buf); !errors.Is(err, os.ErrDeadlineExceeded) || n > 4<<10 {
		t.Errorf("Write = %d, %v, want the deadline", n, err)
	}
	if _, err := c.Write(buf); err != nil {
		t.Fatal(err)
	}
	waits := make(chan error, 1)
	go func() { // ends with the deadline that is set below
		_, err := io.Copy(io.Discard, s)
		waits <- err
	}()
	waitUntil(t, "a read that waits", func() bool { return tunnel.ListenerStats(l).LimitWaiting == 1 })
	_ = s.SetReadDeadline(time.Unix(1, 0))
	if err := <-waits; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Read = %v, want the deadline", err)
	}
	_ = s.SetDeadline(time.Time{})
	go func() { // ends with Close below
		_, err := s.Write(buf)
		waits <- err
	}()
	waitUntil(t, "a write that waits", func() bool { return tunnel.ListenerStats(l).LimitWaiting == 1 })
	_ = s.Close()
	if err := <-waits; err == nil {
		t.Error("Write after Close succeeded")
	}

	c, s = open("orders:81")
	defer c.Close()
	if _, err := d.Dial("tcp", "orders:81"); tunnel.CauseOf(err) != tunnel.CauseLimited {
		t.Errorf("a second connection = %v, want that it is limited", err)
	}
	if n, err := s.Write(buf); n != 1000 || tunnel.CauseOf(err) != tunnel.CauseLimited {
		t.Errorf("Write beyond the quota = %d, %v, want 1000 and that it is limited", n, err)
	}
	if n, err := io.Copy(io.Discard, c); n > 1000 || err == nil {
		t.Errorf("the peer read %d bytes, %v, want a reset", n, err)
	}
	_ = s.Close()
}

package memnet

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/net/nettest"
)

func TestConnIsANetConn(t *testing.T) {
	nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		a, b := Pipe(netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2"))
		return a, b, func() { a.Close(); b.Close() }, nil
	})
}

func TestConnEndsAsTCP(t *testing.T) {
	pipe := func() (*Conn, *Conn) {
		return Pipe(netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2"))
	}
	read := func(c *Conn) (string, error) {
		b, err := io.ReadAll(c)
		return string(b), err
	}
	t.Run("half-close", func(t *testing.T) {
		a, b := pipe()
		a.Write([]byte("x"))
		a.CloseWrite()
		if got, err := read(b); got != "x" || err != nil {
			t.Errorf("read %q, %v, want x and the end", got, err)
		}
		b.Write([]byte("y"))
		b.Close()
		if got, err := read(a); got != "y" || err != nil {
			t.Errorf("read %q, %v, want y and the end", got, err)
		}
	})
	t.Run("reset", func(t *testing.T) {
		a, b := pipe()
		a.Write([]byte("x"))
		a.SetLinger(0)
		a.Close()
		if _, err := read(b); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read %v, want ECONNRESET", err)
		}
		if _, err := b.Write([]byte("y")); err == nil {
			t.Error("write after a reset succeeded")
		}
	})
	t.Run("close with unread bytes resets", func(t *testing.T) {
		a, b := pipe()
		b.Write([]byte("unread"))
		a.Write([]byte("tail"))
		a.Close()
		if _, err := read(b); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read %v, want ECONNRESET", err)
		}
	})
	t.Run("write to who has closed", func(t *testing.T) {
		a, b := pipe()
		a.Close()
		if _, err := b.Write([]byte("y")); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("write %v, want EPIPE", err)
		}
	})
}

func TestNet(t *testing.T) {
	n := New()
	l, err := n.Listen("10.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	dial := n.From(netip.MustParseAddr("10.0.0.1"))
	c, err := dial(context.Background(), l.AddrPort())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if got := s.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); got.Unmap() != netip.MustParseAddr("10.0.0.1") {
		t.Errorf("remote address %v, want 10.0.0.1", got)
	}
	l.Close()
	if _, err := dial(context.Background(), l.AddrPort()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial a closed listener: %v, want ECONNREFUSED", err)
	}
	if _, err := n.Resolve(context.Background(), "nobody"); err == nil {
		t.Error("Resolve of an unknown name succeeded")
	}
}

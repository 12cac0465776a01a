package tunnel

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"
)

// tcpPair returns the two ends of a connection on loopback.
func tcpPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dialled, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialled.Close(); accepted.Close() })
	return dialled.(*net.TCPConn), accepted.(*net.TCPConn)
}

// writeUntilError writes until the connection takes no more.
func writeUntilError(t *testing.T, s *socket) error {
	t.Helper()
	s.SetWriteDeadline(time.Now().Add(10 * time.Second))
	for {
		if _, err := s.Write([]byte("x")); err != nil {
			return err
		}
	}
}

// readToEOF reads what is there and wants a clean end, as far as the system tells.
func readToEOF(t *testing.T, s *socket) string {
	t.Helper()
	got, err := io.ReadAll(s.Conn)
	if err != nil {
		t.Fatalf("Read = %v, want io.EOF: the case that cut is there for", err)
	}
	return string(got)
}

// saidEnd is TLS whose peer has said that it ends, and whose connection has broken after that.
type saidEnd struct{ net.Conn }

func (saidEnd) Read([]byte) (int, error)  { return 0, io.EOF }
func (saidEnd) Write([]byte) (int, error) { return 0, syscall.ECONNRESET }

func TestSaidEndIsNotCut(t *testing.T) {
	s := newSocket(saidEnd{})
	if _, err := s.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("Write = %v", err)
	}
	if readToEOF(t, s); s.cut() {
		t.Error("an end that the peer has said is taken for a cut")
	}
}

func TestSocketCut(t *testing.T) {
	t.Run("peer sends FIN", func(t *testing.T) {
		a, b := tcpPair(t)
		s := newSocket(a)
		b.Write([]byte("all"))
		b.CloseWrite()
		if got := readToEOF(t, s); got != "all" || s.cut() {
			t.Errorf("read %q, cut() = %v, want all, false", got, s.cut())
		}
		s.CloseWrite()
		if s.cut() {
			t.Error("cut() after our own CloseWrite = true, want false")
		}
	})
	t.Run("peer resets, a write takes the error", func(t *testing.T) {
		a, b := tcpPair(t)
		s := newSocket(a)
		b.SetLinger(0)
		b.Close()
		if err := writeUntilError(t, s); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("Write = %v, want ECONNRESET", err)
		}
		if readToEOF(t, s); !s.cut() {
			t.Error("cut() = false, want true: the peer has not ended its side")
		}
	})
	t.Run("peer answers, closes and resets what comes after", func(t *testing.T) {
		a, b := tcpPair(t)
		s := newSocket(a)
		b.Write([]byte("all"))
		b.Close() // FIN; what we write from now on is answered with RST
		if err := writeUntilError(t, s); !errors.Is(err, syscall.EPIPE) {
			t.Fatalf("Write = %v, want EPIPE", err)
		}
		if got := readToEOF(t, s); got != "all" || s.cut() {
			t.Errorf("read %q, cut() = %v, want all, false: everything was sent before the FIN", got, s.cut())
		}
	})
	t.Run("a write waits for room", func(t *testing.T) {
		a, b := tcpPair(t)
		s := newSocket(a)
		done := make(chan struct{})
		go func() { // ends with the connection; waited for below
			defer close(done)
			s.Write(make([]byte, 64<<20))
		}()
		b.CloseWrite()
		if readToEOF(t, s); s.cut() {
			t.Error("cut() = true, want false")
		}
		s.Close()
		<-done
	})
}

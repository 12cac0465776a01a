package h2test

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/nettest"
)

func TestPipeIsNetConn(t *testing.T) {
	for _, tt := range []struct {
		name       string
		limitBytes int
	}{{"roomy", pipeBytes}, {"narrow", 256}} {
		t.Run(tt.name, func(t *testing.T) {
			nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
				a, b := PipeSize(tt.limitBytes)
				return a, b, func() { a.Close(); b.Close() }, nil
			})
		})
	}
}

func TestPipeEnds(t *testing.T) {
	tests := []struct {
		name                 string
		end                  func(a, b *Conn)
		wantReadA, wantReadB error // after what was written before the end
		wantWriteA           error
		wantWriteB           error
		wantLeft             string // what b still reads
	}{
		{"other end closes", func(a, b *Conn) { a.Close() }, net.ErrClosed, io.EOF, net.ErrClosed, io.ErrClosedPipe, "tail"},
		{"both close", func(a, b *Conn) { a.Close(); b.Close() }, net.ErrClosed, net.ErrClosed, net.ErrClosed, net.ErrClosed, ""},
		{"broken", func(a, b *Conn) { a.Break() }, ErrBroken, ErrBroken, ErrBroken, ErrBroken, ""},
		{"closed twice", func(a, b *Conn) { a.Close(); a.Close() }, net.ErrClosed, io.EOF, net.ErrClosed, io.ErrClosedPipe, "tail"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, b := Pipe()
			if _, err := a.Write([]byte("tail")); err != nil {
				t.Fatal(err)
			}
			tt.end(a, b)
			left, err := io.ReadAll(b)
			if err == nil {
				err = io.EOF
			}
			if string(left) != tt.wantLeft || !errors.Is(err, tt.wantReadB) {
				t.Errorf("b reads %q, %v; want %q, %v", left, err, tt.wantLeft, tt.wantReadB)
			}
			if _, err := a.Read(make([]byte, 1)); !errors.Is(err, tt.wantReadA) {
				t.Errorf("a.Read = %v, want %v", err, tt.wantReadA)
			}
			if _, err := a.Write([]byte("x")); !errors.Is(err, tt.wantWriteA) {
				t.Errorf("a.Write = %v, want %v", err, tt.wantWriteA)
			}
			if _, err := b.Write([]byte("x")); !errors.Is(err, tt.wantWriteB) {
				t.Errorf("b.Write = %v, want %v", err, tt.wantWriteB)
			}
		})
	}
}

func TestPipeWaitsInSyntheticTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := PipeSize(4)
		defer a.Close()
		defer b.Close()
		start := time.Now()
		a.SetWriteDeadline(start.Add(time.Hour))
		if n, err := a.Write([]byte("sixsix")); n != 4 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Write to a full pipe = %d, %v; want 4, %v", n, err, os.ErrDeadlineExceeded)
		}
		if waited := time.Since(start); waited != time.Hour {
			t.Errorf("Write waited %v, want 1h", waited)
		}
		if got := b.Buffered(); got != 4 {
			t.Errorf("Buffered = %d, want 4", got)
		}
		unblocked := make(chan error)
		// Ends when the deadline below passes; the receive waits for it.
		go func() {
			_, err := a.Read(make([]byte, 1))
			unblocked <- err
		}()
		synctest.Wait()
		a.SetReadDeadline(time.Now().Add(-time.Second))
		if err := <-unblocked; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read after the deadline was moved = %v, want %v", err, os.ErrDeadlineExceeded)
		}
		a.SetReadDeadline(time.Time{})
		if _, err := b.Write([]byte("x")); err != nil {
			t.Error(err)
		}
		if n, err := a.Read(make([]byte, 8)); n != 1 || err != nil {
			t.Errorf("Read after the deadline was lifted = %d, %v; want 1, nil", n, err)
		}
	})
}

package h2_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"culvert/tunnel/h2"
)

// TestResetAfterEndIsNotClean resets streams whose peer has ended its side while bytes are unread: they are
// dropped, so what the reader sees must not look like the end.
func TestResetAfterEndIsNotClean(t *testing.T) {
	ended := func(t *testing.T) *h2.Stream {
		nc1, nc2 := loopback(t)
		client, _, accepted := connPair(t, nc1, nc2, h2.Config{}, h2.Config{})
		c, s := tunnelPair(t, client, accepted)
		t.Cleanup(func() { c.Close(); s.Close() })
		if _, err := c.Write(make([]byte, 50_000)); err != nil {
			t.Fatal(err)
		}
		c.CloseWrite()
		if _, err := io.ReadFull(s, make([]byte, 49_000)); err != nil { // the rest is there, or on its way
			t.Fatal(err)
		}
		if _, err := client.Ping(context.Background()); err != nil { // now it is there
			t.Fatal(err)
		}
		return s
	}
	var e *h2.StreamError
	t.Run("Read", func(t *testing.T) {
		s := ended(t)
		s.Reset(h2.Cancel)
		if n, err := s.Read(make([]byte, 1)); n != 0 || !errors.As(err, &e) {
			t.Errorf("Read after Reset = %d, %v, want a *StreamError", n, err)
		}
	})
	t.Run("Pipe", func(t *testing.T) {
		s := ended(t)
		s.Reset(h2.Cancel)
		if end := <-pipeTo(s, io.Discard); !errors.As(end.err, &e) {
			t.Errorf("Pipe after Reset ended with %v, want a *StreamError", end.err)
		}
	})
}

// TestReadFromTLS checks that a TLS connection is read through TLS, although a socket is below it.
func TestReadFromTLS(t *testing.T) {
	conf, _, _ := selfSigned(t, t.TempDir())
	near, far := loopback(t)
	app := tls.Client(near, &tls.Config{InsecureSkipVerify: true})
	src := tls.Server(far, conf)
	nc1, nc2 := loopback(t)
	client, _, accepted := connPair(t, nc1, nc2, h2.Config{}, h2.Config{})
	c, s := tunnelPair(t, client, accepted)
	go func() { // ends with app
		io.WriteString(app, "plaintext")
		app.Close()
	}()
	go func() { // ends with src
		c.ReadFrom(src)
		c.CloseWrite()
	}()
	if got, err := io.ReadAll(s); string(got) != "plaintext" || err != nil {
		t.Errorf("the stream carried %q, %v", got, err)
	}
	c.Close()
	s.Close()
	src.Close()
}

// TestResetDuringWrite resets many streams in the middle of a Write, from either side: nothing more of
// them is sent, which would be the offence that ends connections, and another tunnel lives on.
func TestResetDuringWrite(t *testing.T) {
	nc1, nc2 := loopback(t)
	generous := h2.Rate{Burst: -1} // the resets themselves are not what is tested
	client, server, accepted := connPair(t, nc1, nc2, h2.Config{}, h2.Config{PeerResets: generous, StreamWindow: 1 << 20})
	if err := client.WaitSettings(context.Background()); err != nil {
		t.Fatal(err)
	}
	other, echo := tunnelPair(t, client, accepted)
	for i := range 300 {
		c, s := tunnelPair(t, client, accepted)
		done := make(chan error, 1)
		go func() {
			_, err := c.Write(make([]byte, 4<<20))
			done <- err
		}()
		if _, err := s.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			c.Reset(h2.Cancel)
		} else {
			s.Reset(h2.Cancel)
		}
		within(t, "Write of a reset stream", func() {
			if err := <-done; err == nil {
				t.Error("Write of a reset stream succeeded")
			}
		})
		c.Close()
		s.Close()
	}
	go io.WriteString(other, "alive") // ends at once
	if _, err := io.ReadFull(echo, make([]byte, 5)); err != nil {
		t.Errorf("another tunnel: %v; connection: %v", err, server.Err())
	}
	other.Close()
	echo.Close()
}

// TestWriteDeadlineBesideBulk checks that a Write without window leaves at its deadline although others
// keep the connection busy: whoever writes for them must not be kept.
func TestWriteDeadlineBesideBulk(t *testing.T) {
	nc1, nc2 := loopback(t)
	client, _, accepted := connPair(t, nc1, nc2, h2.Config{}, h2.Config{})
	stuck, unread := tunnelPair(t, client, accepted)
	bulk, s := tunnelPair(t, client, accepted)
	stop := make(chan struct{})
	go func() { // ends with stop
		p := make([]byte, 1<<20)
		for {
			select {
			case <-stop:
				bulk.Reset(h2.Cancel)
				return
			default:
				bulk.Write(p)
			}
		}
	}()
	go io.Copy(io.Discard, s) // ends with the reset
	for range 5 {
		stuck.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
		within(t, "Write at its deadline", func() {
			if _, err := stuck.Write(make([]byte, 1<<20)); err == nil {
				t.Error("Write without window succeeded")
			}
		})
	}
	close(stop)
	for _, x := range []*h2.Stream{stuck, unread, bulk, s} {
		x.Close()
	}
}

// TestOpenTooLargeGivesSlotBack has a request that the peer's header list does not allow wait for a slot:
// when it gets one and cannot use it, the next in line must.
func TestOpenTooLargeGivesSlotBack(t *testing.T) {
	nc1, nc2 := loopback(t)
	client, _, accepted := connPair(t, nc1, nc2, h2.Config{}, h2.Config{MaxStreams: 1, MaxHeaderListBytes: 1000})
	ctx := context.Background()
	if err := client.WaitSettings(ctx); err != nil {
		t.Fatal(err)
	}
	c, s := tunnelPair(t, client, accepted)
	large := &h2.Header{Method: "CONNECT", Authority: "a:1", Fields: []h2.Field{{Name: "x", Value: strings.Repeat("x", 2000)}}}
	results := make(chan error, 20)
	for i := range cap(results) {
		h := large
		if i%4 == 3 {
			h = &h2.Header{Method: "CONNECT", Authority: "a:1"}
		}
		go func() { // ends with its Open and the stream of it
			x, err := client.Open(ctx, h, false)
			if err == nil {
				x.Close()
			}
			results <- err
		}()
	}
	go func() { // ends with the test
		for {
			select {
			case s := <-accepted:
				s.Close()
			case <-t.Context().Done():
				return
			}
		}
	}()
	c.Close()
	s.Close()
	for range cap(results) {
		within(t, "every Open", func() { <-results })
	}
}

// TestInterruptedPipe resets a stream whose sink takes nothing: Pipe's done is called all the same.
func TestInterruptedPipe(t *testing.T) {
	nc1, nc2 := loopback(t)
	client, _, accepted := connPair(t, nc1, nc2, h2.Config{}, h2.Config{})
	c, s := tunnelPair(t, client, accepted)
	sink, never := net.Pipe()
	defer never.Close()
	end := pipeTo(s, interruptible{sink})
	if _, err := c.Write(make([]byte, 10_000)); err != nil {
		t.Fatal(err)
	}
	c.Reset(h2.Cancel)
	within(t, "Pipe", func() {
		var e *h2.StreamError
		if got := <-end; !errors.As(got.err, &e) || e.By != h2.Peer {
			t.Errorf("Pipe ended with %v, want the peer's reset", got.err)
		}
	})
	c.Close()
	s.Close()
}

type interruptible struct{ net.Conn }

func (i interruptible) Interrupt() { i.Conn.SetWriteDeadline(time.Unix(1, 0)) }

// TestWriteFails has the peer send its last bytes and close before it has read ours: what it has sent is
// still delivered, with its clean end.
func TestWriteFails(t *testing.T) {
	nc1, nc2 := loopback(t)
	client, _, accepted := connPair(t, nc1, &brokenWrites{Conn: nc2}, h2.Config{}, h2.Config{})
	c, s := tunnelPair(t, client, accepted)
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	s.Conn().NetConn().(*brokenWrites).broken.Store(true)
	go func() { // ends with the connection
		s.Conn().Ping(context.Background()) // it cannot be written
	}()
	within(t, "opening on a connection that cannot be written", func() {
		for !s.Conn().NetConn().(*brokenWrites).failed.Load() {
			time.Sleep(time.Millisecond)
		}
	})
	if _, err := c.Write([]byte("the rest")); err != nil {
		t.Fatal(err)
	}
	c.CloseWrite()
	within(t, "reading what was sent", func() {
		if got, err := io.ReadAll(s); string(got) != "the rest" || err != nil {
			t.Errorf("read %q, %v after a write has failed, want the rest and its end", got, err)
		}
	})
	within(t, "the end of the connection", func() {
		<-s.Conn().Done()
		var e *h2.ConnError
		if err := s.Conn().Err(); !errors.As(err, &e) || e.By != h2.Network || e.Reason != "write" {
			t.Errorf("the connection ended with %v, want the write's error", err)
		}
	})
	c.Close()
	s.Close()
}

// brokenWrites is a connection whose writes fail from some moment on, while it can still be read.
type brokenWrites struct {
	net.Conn
	broken, failed atomic.Bool
}

func (b *brokenWrites) Write(p []byte) (int, error) {
	if b.broken.Load() {
		b.failed.Store(true)
		return 0, syscall.EPIPE
	}
	return b.Conn.Write(p)
}

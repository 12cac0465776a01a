package h2_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"culvert/tunnel/h2"
)

// within fails the test when f takes longer than any loaded machine should need.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		buf := make([]byte, 1<<20)
		t.Fatalf("%s did not end\n%s", what, buf[:runtime.Stack(buf, true)])
	}
}

// pipeEnd waits for the done function of Pipe.
type pipeEnd struct {
	n   int64
	err error
}

func pipeTo(s *h2.Stream, w io.Writer) <-chan pipeEnd {
	ch := make(chan pipeEnd, 2)
	s.Pipe(w, func(n int64, err error) { ch <- pipeEnd{n, err} })
	return ch
}

// TestPipeAndReadFrom carries 16 MiB from a socket through two streams to a socket, byte-exact, and
// ends with END_STREAM.
func TestPipeAndReadFrom(t *testing.T) {
	nc1, nc2 := loopback(t)
	client, _, accepted := connPair(t, nc1, nc2, h2.Config{}, h2.Config{})
	c, s := tunnelPair(t, client, accepted)
	srcApp, src := loopback(t)
	dst, dstApp := loopback(t)
	want := make([]byte, 16<<20)
	rand.Read(want)
	end := pipeTo(s, dst)
	go func() {
		srcApp.Write(want)
		srcApp.(*net.TCPConn).CloseWrite()
	}()
	go func() {
		if n, err := c.ReadFrom(src); n != int64(len(want)) || err != nil {
			t.Errorf("ReadFrom = %d, %v", n, err)
		}
		c.CloseWrite()
	}()
	go func() {
		if e := <-end; e.n != int64(len(want)) || e.err != nil {
			t.Errorf("Pipe ended with %d, %v", e.n, e.err)
		}
		dst.(*net.TCPConn).CloseWrite()
	}()
	within(t, "the transfer", func() {
		if got, err := io.ReadAll(dstApp); err != nil || !bytes.Equal(got, want) {
			t.Errorf("received %d bytes, %v; want %d", len(got), err, len(want))
		}
	})
	c.Close()
	s.Close()
	for _, x := range []net.Conn{srcApp, src, dst, dstApp} {
		x.Close()
	}
}

// TestPipeEnds checks that done is called once, and with what.
func TestPipeEnds(t *testing.T) {
	boom := errors.New("boom")
	for name, c := range map[string]struct {
		sink io.Writer
		act  func(peer, own *h2.Stream)
		want func(error) bool
	}{
		"end of stream": {io.Discard, func(p, _ *h2.Stream) { p.CloseWrite() }, func(err error) bool { return err == nil }},
		"peer resets": {io.Discard, func(p, _ *h2.Stream) { p.Reset(h2.ConnectError) }, func(err error) bool {
			var e *h2.StreamError
			return errors.As(err, &e) && e.By == h2.Peer && e.Code == h2.ConnectError
		}},
		"we reset": {io.Discard, func(_, o *h2.Stream) { o.Reset(h2.Cancel) }, func(err error) bool {
			var e *h2.StreamError
			return errors.As(err, &e) && e.By == h2.Local
		}},
		"we close": {io.Discard, func(_, o *h2.Stream) { o.Close() }, func(err error) bool { return err != nil }},
		"sink fails": {failingWriter{boom}, func(p, _ *h2.Stream) { p.Write([]byte("x")) }, func(err error) bool {
			var e *h2.SinkError
			return errors.As(err, &e) && errors.Is(err, boom)
		}},
		"connection is closed": {io.Discard, func(p, _ *h2.Stream) { p.Conn().Close() }, func(err error) bool {
			var e *h2.StreamError
			return errors.As(err, &e) && e.By == h2.Peer && e.Code == h2.ConnectError
		}},
		"connection is lost": {io.Discard, func(p, _ *h2.Stream) { p.Conn().NetConn().Close() }, func(err error) bool {
			var e *h2.ConnError
			return errors.As(err, &e) && e.By == h2.Network
		}},
	} {
		t.Run(name, func(t *testing.T) {
			nc1, nc2 := loopback(t)
			client, _, accepted := connPair(t, nc1, nc2, h2.Config{}, h2.Config{})
			p, o := tunnelPair(t, client, accepted)
			end := pipeTo(o, c.sink)
			c.act(p, o)
			within(t, "Pipe", func() {
				if e := <-end; !c.want(e.err) {
					t.Errorf("Pipe ended with %v", e.err)
				}
			})
			p.Close()
			o.Close()
			client.Close()
			select {
			case e := <-end:
				t.Errorf("done was called again, with %v", e.err)
			default:
			}
		})
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

// TestStalledStreamsStopNobody lets 150 streams that nobody reads fill their windows and checks that
// another one on the same connection passes 32 MiB.
func TestStalledStreamsStopNobody(t *testing.T) {
	nc1, nc2 := loopback(t)
	budget := h2.NewBudget(64 << 20)
	client, _, accepted := connPair(t, nc1, nc2, h2.Config{}, h2.Config{Budget: budget})
	var wg sync.WaitGroup
	for range 90 {
		c, s := tunnelPair(t, client, accepted)
		wg.Add(1)
		go func() {
			defer wg.Done()
			c.Write(make([]byte, 1<<20)) // more than its window
		}()
		defer s.Close()
		defer c.Close()
	}
	c, s := tunnelPair(t, client, accepted)
	within(t, "the transfer beside stalled streams", func() {
		go func() { c.Write(make([]byte, 32<<20)); c.CloseWrite() }()
		if n, err := io.Copy(io.Discard, s); n != 32<<20 || err != nil {
			t.Errorf("received %d bytes, %v", n, err)
		}
	})
	c.Close()
	s.Close()
	client.Close()
	wg.Wait()
}

// TestBudgetResetsLongestStalled fills a small budget with stalled streams: they are reset with
// ENHANCE_YOUR_CALM, longest stalled first, and one that reads goes on.
func TestBudgetResetsLongestStalled(t *testing.T) {
	nc1, nc2 := loopback(t)
	budget := h2.NewBudget(1 << 20)
	client, _, accepted := connPair(t, nc1, nc2, h2.Config{}, h2.Config{Budget: budget})
	ends := make(chan error, 64)
	for range 64 {
		c, s := tunnelPair(t, client, accepted)
		go func() {
			_, err := c.Write(make([]byte, 1<<20))
			ends <- err
		}()
		defer s.Close()
		defer c.Close()
	}
	live, s := tunnelPair(t, client, accepted)
	within(t, "the transfer under a full budget", func() {
		go func() { live.Write(make([]byte, 8<<20)); live.CloseWrite() }()
		if n, err := io.Copy(io.Discard, s); n != 8<<20 || err != nil {
			t.Errorf("received %d bytes, %v", n, err)
		}
	})
	within(t, "the first reset", func() {
		var e *h2.StreamError
		if err := <-ends; !errors.As(err, &e) || e.Code != h2.EnhanceYourCalm || e.By != h2.Peer {
			t.Errorf("a stalled stream ended with %v", err)
		}
	})
	if budget.Resets() == 0 {
		t.Error("Budget.Resets = 0")
	}
	within(t, "the relief", func() {
		for budget.Used() > budget.Limit() {
			time.Sleep(time.Millisecond)
		}
	})
	live.Close()
	s.Close()
}

// TestSlotHeldUntilClose checks that a stream that the peer resets keeps its slot until the work behind
// it has ended.
func TestSlotHeldUntilClose(t *testing.T) {
	nc1, nc2 := loopback(t)
	client, server, accepted := connPair(t, nc1, nc2, h2.Config{}, h2.Config{MaxStreams: 1})
	ctx := context.Background()
	if err := client.WaitSettings(ctx); err != nil {
		t.Fatal(err)
	}
	c, s := tunnelPair(t, client, accepted)
	c.Reset(h2.Cancel)
	<-s.Done()
	c.Close()
	again, err := client.Open(ctx, &h2.Header{Method: "CONNECT", Authority: "10.0.0.1:80"}, false)
	if err != nil {
		t.Fatal(err)
	}
	_, err = again.Response(ctx)
	var e *h2.StreamError
	if !errors.As(err, &e) || e.Code != h2.RefusedStream {
		t.Errorf("a stream beside one whose handler works was answered with %v, want REFUSED_STREAM", err)
	}
	again.Close()
	s.Close()
	if n := server.NumStreams(); n != 0 {
		t.Errorf("NumStreams = %d, want 0", n)
	}
	third, s3 := tunnelPair(t, client, accepted)
	third.Close()
	s3.Close()
}

// TestWriteDeadlineInQueue checks that a Write that waits for window returns at its deadline and that
// the stream can be used again.
func TestWriteDeadlineInQueue(t *testing.T) {
	nc1, nc2 := loopback(t)
	client, _, accepted := connPair(t, nc1, nc2, h2.Config{}, h2.Config{})
	c, s := tunnelPair(t, client, accepted)
	c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	n, err := c.Write(make([]byte, 1<<20))
	var ne net.Error
	if !errors.As(err, &ne) || !ne.Timeout() || n == 0 || n == 1<<20 {
		t.Fatalf("Write = %d, %v; want a part and a timeout", n, err)
	}
	c.SetWriteDeadline(time.Time{})
	go func() { c.Write([]byte("rest")); c.CloseWrite() }()
	got, err := io.ReadAll(s)
	if err != nil || len(got) != n+4 {
		t.Errorf("peer read %d bytes, %v; want %d", len(got), err, n+4)
	}
	c.Close()
	s.Close()
}

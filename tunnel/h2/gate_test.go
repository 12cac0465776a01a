package h2_test

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"culvert/tunnel/h2"
	"culvert/tunnel/h2/h2test"
)

// gated returns both ends of a TLS connection over TCP, each with a gate below.
func gated(t testing.TB) (client, server net.Conn) {
	t.Helper()
	cfg, _, _ := selfSigned(t, t.TempDir())
	cfg.InsecureSkipVerify = true
	nc1, nc2 := loopback(t)
	c, s := tls.Client(h2.NewGate(nc1), cfg), tls.Server(h2.NewGate(nc2), cfg)
	done := make(chan error, 1)
	go func() { done <- s.Handshake() }() // ends with the handshake
	if err := errors.Join(c.Handshake(), <-done); err != nil {
		t.Fatal(err)
	}
	return c, s
}

// moody is a sink that takes now everything, now a part and now nothing without waiting.
type moody struct {
	net.Conn
	mu    sync.Mutex
	tries int
}

func (m *moody) TryWrite(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tries++
	switch m.tries % 4 {
	case 0:
		return 0, nil
	case 1:
		p = p[:len(p)/2]
	}
	return m.Conn.Write(p)
}

// TestGate carries 16 MiB each way at once over TLS, byte-exact, with everything in play: records that
// arrive together, writes with more to follow, answers written by the reader, and sinks of all moods.
func TestGate(t *testing.T) {
	nc1, nc2 := gated(t)
	client, server, accepted := connPair(t, nc1, nc2, h2.Config{}, h2.Config{})
	c, s := tunnelPair(t, client, accepted)
	want := make([]byte, 16<<20)
	rand.Read(want)
	var all sync.WaitGroup
	for _, way := range []struct{ from, to *h2.Stream }{{c, s}, {s, c}} {
		app, src := loopback(t)
		dst, reader := loopback(t)
		sink := &moody{Conn: dst}
		end := pipeTo(way.to, sink)
		all.Go(func() {
			app.Write(want)
			app.Close()
		})
		all.Go(func() {
			if n, err := way.from.ReadFrom(src); n != int64(len(want)) || err != nil {
				t.Errorf("ReadFrom = %d, %v", n, err)
			}
			way.from.CloseWrite()
			src.Close()
		})
		all.Go(func() {
			if e := <-end; e.n != int64(len(want)) || e.err != nil {
				t.Errorf("Pipe ended with %d, %v", e.n, e.err)
			}
			dst.Close()
		})
		all.Go(func() {
			if got, err := io.ReadAll(reader); err != nil || !bytes.Equal(got, want) {
				t.Errorf("received %d bytes, %v; want %d", len(got), err, len(want))
			}
			reader.Close()
			if sink.tries < 8 {
				t.Errorf("the sink was tried %d times", sink.tries)
			}
		})
	}
	within(t, "the transfer", all.Wait)
	c.Close()
	s.Close()
	client.Close()
	server.Close()
}

// TestGateBrokenConnection has the TCP connection end below TLS, in each way a connection can.
func TestGateBrokenConnection(t *testing.T) {
	for name, end := range map[string]func(nc *net.TCPConn){
		"closed": func(nc *net.TCPConn) { nc.Close() },
		"reset":  func(nc *net.TCPConn) { nc.SetLinger(0); nc.Close() },
		"halved": func(nc *net.TCPConn) { nc.CloseWrite() },
	} {
		t.Run(name, func(t *testing.T) {
			nc1, nc2 := gated(t)
			client, server, accepted := connPair(t, nc1, nc2, h2.Config{}, h2.Config{})
			c, s := tunnelPair(t, client, accepted)
			sink := &bytes.Buffer{}
			ended := pipeTo(s, sink)
			c.Write([]byte("before the end"))
			end(nc1.(*tls.Conn).NetConn().(*h2.Gate).Conn.(*net.TCPConn))
			within(t, "the pipe", func() {
				var e *h2.ConnError
				if got := <-ended; !errors.As(got.err, &e) || e.By != h2.Network {
					t.Errorf("the pipe ended with %v, want an error of the network", got.err)
				}
			})
			if name != "reset" && sink.String() != "before the end" {
				t.Errorf("the pipe carried %q", sink)
			}
			within(t, "closing", func() { c.Close(); s.Close(); client.Close(); server.Close() })
		})
	}
}

// tryFunc is a sink that is only tried.
type tryFunc func(p []byte) (int, error)

func (f tryFunc) TryWrite(p []byte) (int, error) { return f(p) }
func (f tryFunc) Write(p []byte) (int, error)    { return len(p), nil }

// TestPipeTryWriterEnds ends a pipe while the reader of the connection is in its sink.
func TestPipeTryWriterEnds(t *testing.T) {
	for name, tt := range map[string]struct {
		try  func(peer, own *h2.Stream) (int, error)
		want func(error) bool
	}{
		"the sink fails": {func(_, _ *h2.Stream) (int, error) { return 2, syscall.EPIPE }, func(err error) bool {
			var e *h2.SinkError
			return errors.As(err, &e) && errors.Is(err, syscall.EPIPE)
		}},
		"we reset": {func(_, own *h2.Stream) (int, error) { own.Reset(h2.Cancel); return 1, nil }, func(err error) bool {
			var e *h2.StreamError
			return errors.As(err, &e) && e.By == h2.Local && e.Code == h2.Cancel
		}},
		"we close": {func(_, own *h2.Stream) (int, error) { own.Close(); return 1, nil }, func(err error) bool {
			return errors.Is(err, net.ErrClosed)
		}},
		"the peer ends": {func(peer, _ *h2.Stream) (int, error) { peer.CloseWrite(); return 0, nil }, func(err error) bool {
			return err == nil
		}},
	} {
		t.Run(name, func(t *testing.T) {
			nc1, nc2 := loopback(t)
			client, server, accepted := connPair(t, nc1, nc2, h2.Config{}, h2.Config{})
			peer, own := tunnelPair(t, client, accepted)
			end := pipeTo(own, tryFunc(func([]byte) (int, error) { return tt.try(peer, own) }))
			peer.Write([]byte("four"))
			within(t, "the pipe", func() {
				if e := <-end; !tt.want(e.err) {
					t.Errorf("the pipe ended with %d, %v", e.n, e.err)
				}
			})
			within(t, "closing", func() { peer.Close(); own.Close(); client.Close(); server.Close() })
			select {
			case e := <-end:
				t.Errorf("done was called again, with %v", e.err)
			default:
			}
		})
	}
}

// TestGateTellsRecordsApart has bytes in TLS records of their own arrive together, as they do on a busy machine:
// none is a splinter, however many there are. The same bytes in one record are.
func TestGateTellsRecordsApart(t *testing.T) {
	limit := h2.Config{Splinters: h2.Rate{Burst: 50, PerSecond: 1e-9}}
	for name, records := range map[string]bool{"a record each": true, "one record": false} {
		t.Run(name, func(t *testing.T) {
			nc1, nc2 := gated(t)
			accepted := make(chan *h2.Stream, 1)
			limit := limit
			limit.Handler = func(s *h2.Stream) { accepted <- s }
			conn, err := h2.NewServer(nc2, &limit)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			p := h2test.NewClient(t, nc1)
			p.Handshake()
			p.WriteHeaders(1, false, h2test.Fields(":method", "CONNECT", ":authority", "a:1")...)
			s := <-accepted
			defer s.Close()
			const frames = 500
			var raw []byte
			for range frames {
				frame := h2test.AppendFrame(nil, h2test.Data, 0, 1, []byte("k"))
				if raw = append(raw, frame...); records {
					nc1.(*tls.Conn).Write(frame)
				}
			}
			if !records {
				nc1.(*tls.Conn).Write(raw)
			}
			s.SetReadDeadline(time.Now().Add(20 * time.Second))
			_, err = io.ReadFull(s, make([]byte, frames))
			var ended *h2.ConnError
			switch {
			case records && err != nil:
				t.Errorf("reading what came in records of its own: %v", err)
			case !records && (!errors.As(err, &ended) || ended.Code != h2.EnhanceYourCalm):
				t.Errorf("reading what came in one record: %v, want ENHANCE_YOUR_CALM", err)
			}
		})
	}
}

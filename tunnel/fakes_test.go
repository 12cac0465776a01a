package tunnel

import (
	"context"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"culvert/pki/spiffe"
	"culvert/tunnel/tunneltest/memnet"
)

// fakeStream is a Stream over a connection in memory: what a transport offers, without one.
type fakeStream struct {
	*memnet.Conn
	mu     sync.Mutex
	causes []error // of every Reset
	closed bool
	sent   int64
	done   chan struct{}
	once   sync.Once
}

func newFakeStream(c *memnet.Conn) *fakeStream {
	return &fakeStream{Conn: c, done: make(chan struct{})}
}

func (s *fakeStream) Write(p []byte) (int, error) {
	n, err := s.Conn.Write(p)
	s.mu.Lock()
	s.sent += int64(n)
	s.mu.Unlock()
	return n, err
}

func (s *fakeStream) Sent() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent
}

func (s *fakeStream) ReadFrom(r io.Reader) (total int64, err error) {
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			m, werr := s.Write(buf[:n])
			total += int64(m)
			if werr != nil {
				return total, werr
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, &SourceError{Err: err}
		}
	}
}

// Pipe reads in a goroutine that ends with the stream.
func (s *fakeStream) Pipe(dst io.Writer, done func(int64, error)) {
	go func() {
		var total int64
		buf := make([]byte, 4096)
		for {
			n, err := s.Read(buf)
			if n > 0 {
				m, werr := dst.Write(buf[:n])
				if total += int64(m); werr != nil {
					done(total, &SinkError{Err: werr})
					return
				}
			}
			if err == io.EOF {
				done(total, nil)
				return
			}
			if err != nil {
				s.end()
				done(total, err)
				return
			}
		}
	}()
}

func (s *fakeStream) Done() <-chan struct{} { return s.done }

// end is the stream reset by either side.
func (s *fakeStream) end() { s.once.Do(func() { close(s.done) }) }

func (s *fakeStream) Reset(cause error) {
	s.mu.Lock()
	s.causes = append(s.causes, cause)
	s.mu.Unlock()
	_ = s.Conn.SetLinger(0)
	_ = s.Close()
	s.end()
}

func (s *fakeStream) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	return s.Conn.Close()
}

// wasReset returns the cause of the first Reset, nil if there was none.
func (s *fakeStream) wasReset() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.causes) == 0 {
		return nil
	}
	return s.causes[0]
}

// fakeTransport is a Transport that a test scripts.
type fakeTransport struct {
	connect func(ctx context.Context, req *ConnectRequest) (Stream, error)

	mu       sync.Mutex
	slots    int
	closed   bool
	drained  bool
	err      error
	draining chan struct{}
	done     chan struct{}
	once     sync.Once
}

func newFakeTransport(slots int) *fakeTransport {
	t := &fakeTransport{slots: slots, draining: make(chan struct{}), done: make(chan struct{})}
	t.connect = func(context.Context, *ConnectRequest) (Stream, error) {
		a, _ := memnet.Pipe(netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2"))
		return newFakeStream(a), nil
	}
	return t
}

func (t *fakeTransport) Connect(ctx context.Context, req *ConnectRequest) (Stream, *ConnectResponse, error) {
	s, err := t.connect(ctx, req)
	if err != nil {
		return nil, nil, err
	}
	return s, &ConnectResponse{}, nil
}

func (t *fakeTransport) Slots() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.slots
}

func (t *fakeTransport) setSlots(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.slots = n
}

func (t *fakeTransport) Ping(context.Context) (time.Duration, error) { return time.Millisecond, nil }
func (t *fakeTransport) Peer() spiffe.ID                             { return spiffe.ID{} }
func (t *fakeTransport) Draining() <-chan struct{}                   { return t.draining }

func (t *fakeTransport) Drain(ctx context.Context) error {
	t.mu.Lock()
	t.drained = true
	t.mu.Unlock()
	select {
	case <-ctx.Done():
		_ = t.Close()
		return ctx.Err()
	case <-t.done:
		return nil
	}
}

func (t *fakeTransport) Close() error {
	t.mu.Lock()
	t.closed, t.slots = true, 0
	t.mu.Unlock()
	t.once.Do(func() { close(t.done) })
	return nil
}

func (t *fakeTransport) Done() <-chan struct{} { return t.done }
func (t *fakeTransport) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

// fail ends the transport with err.
func (t *fakeTransport) fail(err error) {
	t.mu.Lock()
	t.err = err
	t.mu.Unlock()
	_ = t.Close()
}

// testGateway is one that can record a flow and do nothing else.
func testGateway() *Gateway { return &Gateway{env: Env{Log: slog.New(slog.DiscardHandler)}} }

// testPlan is a plan that decides nothing.
func testPlan(t TimeoutConfig) *plan { return &plan{timeouts: t.withDefaults()} }

package load

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"culvert/bench/proc"
)

// What a client asks the target for with the first byte it sends.
const (
	AskSource = 's' // send without end
	AskSink   = 'k' // read and drop everything
	AskEcho   = 'e' // send small messages back, each as it comes
	AskMirror = 'm' // send everything back, and end when the client has ended
)

const (
	// bulkBytes is what source, sink and clients move at once: large, so that what is measured is the proxies.
	bulkBytes = 256 << 10
	// MessageBytes is a message of the round-trip measures, a keystroke or a small request.
	MessageBytes = 64
)

// Target is the server behind every pair. It runs in the process that measures.
type Target struct {
	ln       net.Listener
	received atomic.Int64 // bytes that sinks have read
	active   atomic.Int64 // connections that are served
	served   sync.WaitGroup
	source   []byte
}

// NewTarget starts one.
func NewTarget() (*Target, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	t := &Target{ln: ln, source: make([]byte, bulkBytes)}
	for i := range t.source {
		t.source[i] = byte(i * 7)
	}
	t.served.Go(func() { // until the listener is closed; Close waits
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			t.served.Go(func() { t.serve(c) }) // until the client or its proxy ends; Close waits
		}
	})
	return t, nil
}

// Close ends the target when everybody has left it.
func (t *Target) Close() {
	_ = t.ln.Close()
	t.served.Wait()
}

// Quiet waits until nobody is connected: what a pair still had to bring of the streams before is there then. It gives
// up after quietPatience, for a pair that leaves connections open.
func (t *Target) Quiet(ctx context.Context) error {
	for deadline := time.Now().Add(quietPatience); t.active.Load() > 0 && time.Now().Before(deadline); {
		if err := Pause(ctx, proc.Poll); err != nil {
			return err
		}
	}
	return nil
}

// quietPatience bounds Quiet.
const quietPatience = 10 * time.Second

// Addr is where it listens.
func (t *Target) Addr() string { return t.ln.Addr().String() }

// serve does what the client asks for. Faults are the client's to notice.
func (t *Target) serve(c net.Conn) {
	t.active.Add(1)
	defer t.active.Add(-1)
	defer c.Close()
	var ask [1]byte
	if _, err := io.ReadFull(c, ask[:]); err != nil {
		return
	}
	switch ask[0] {
	case AskSource:
		for {
			if _, err := c.Write(t.source); err != nil {
				return
			}
		}
	case AskSink:
		buf := make([]byte, bulkBytes)
		for {
			n, err := c.Read(buf)
			t.received.Add(int64(n))
			if err != nil {
				return
			}
		}
	case AskEcho:
		echo(c, make([]byte, MessageBytes))
	case AskMirror:
		echo(c, make([]byte, bulkBytes))
	}
}

func echo(c net.Conn, buf []byte) {
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}

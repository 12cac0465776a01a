package h2_test

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"culvert/tunnel/h2"
	"culvert/tunnel/h2/h2test"
)

// TestDrainedConnectionDeliversItsTail ends the drain of a connection whose last bytes the peer has not received yet, while the
// peer still sends: a socket that is closed then is reset by the system, and the bytes would be lost.
func TestDrainedConnectionDeliversItsTail(t *testing.T) {
	const tail = 160 << 10
	nc, served := loopback(t)
	if err := errors.Join(nc.(*net.TCPConn).SetReadBuffer(16<<10), served.(*net.TCPConn).SetWriteBuffer(4*tail)); err != nil {
		t.Fatal(err)
	}
	sent := make(chan error, 1)
	conn, err := h2.NewServer(served, &h2.Config{Handler: func(s *h2.Stream) {
		err := s.Respond(&h2.Header{Status: 200}, false)
		_, err2 := s.Write(make([]byte, tail))
		sent <- errors.Join(err, err2, s.CloseWrite(), s.Close())
	}})
	if err != nil {
		t.Fatal(err)
	}
	p := h2test.NewClient(t, nc)
	p.Handshake(h2test.Setting{ID: h2test.InitialWindowSize, Value: 1 << 20})
	p.WriteWindowUpdate(0, 1<<20)
	p.WriteHeaders(1, true, h2test.Request("GET", "/")...)
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	drained := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()    // the drain has no time left, so it does not wait until the peer has read
	go func() { // ends when the peer has closed, below
		if err := conn.Drain(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Drain = %v, want Canceled", err)
		}
		drained <- conn.Close()
	}()
	<-conn.Done()
	got, buf := 0, make([]byte, 1<<10)
	_ = nc.SetDeadline(time.Now().Add(30 * time.Second))
	for {
		n, err := nc.Read(buf)
		got += n
		if err != nil {
			if !errors.Is(err, io.EOF) {
				t.Errorf("after %d bytes: %v, want the end", got, err)
			}
			break
		}
		p.WritePing(false, [8]byte{})
	}
	if got < tail {
		t.Errorf("%d bytes came, want the %d of the stream", got, tail)
	}
	p.Close()
	if err := <-drained; err != nil {
		t.Errorf("Close = %v, want nil", err)
	}
}

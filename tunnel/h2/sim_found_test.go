package h2

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"culvert/tunnel/tunneltest/memnet"
)

// The tests of this file are what TestSim has found, each by itself.

// simPair joins a client and a server over a link that is the same both ways.
func simPair(t *testing.T, l memnet.Link, ccfg, scfg *Config) (client, server *Conn, accepted chan *Stream) {
	t.Helper()
	a, b := memnet.PipeOver(netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2"), l, l)
	accepted = make(chan *Stream, 1000)
	if scfg.Handler == nil {
		scfg.Handler = func(s *Stream) { accepted <- s }
	}
	var err error
	if server, err = NewServer(b, scfg); err != nil {
		t.Fatal(err)
	}
	if client, err = NewClient(a, ccfg); err != nil {
		t.Fatal(err)
	}
	return client, server, accepted
}

func openTunnel(t *testing.T, c *Conn) *Stream {
	t.Helper()
	s, err := c.Open(context.Background(), &Header{Method: "CONNECT", Authority: "a.test:80"}, false)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A client drains when its streams have ended, on its side: what it has sent may still be on its way, and was lost
// when the socket was closed while the peer was writing.
func TestDrainLosesNoTail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, accepted := simPair(t, memnet.Link{Delay: 50 * time.Millisecond, BytesPerSecond: 1 << 20}, &Config{}, &Config{})
		c := openTunnel(t, client)
		s := <-accepted
		s.Respond(&Header{Status: 200}, false)
		s.CloseWrite()
		want := bytes.Repeat([]byte("tail"), 1<<18)
		go func() { // ends with the drain
			c.Write(want)
			c.CloseWrite()
			io.Copy(io.Discard, c)
			c.Close()
			if err := client.Drain(context.Background()); err != nil {
				t.Errorf("Drain: %v", err)
			}
		}()
		if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, want) {
			t.Errorf("read %d bytes, %v, want %d and the end", len(got), err, len(want))
		}
		s.Close()
		server.Close()
		<-client.Done()
		synctest.Wait()
	})
}

// A request that was parsed after a write had failed made a stream, and started a handler, that nobody ended.
func TestRequestAfterTheEndIsIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, accepted := simPair(t, memnet.Link{}, &Config{}, &Config{})
		synctest.Wait()
		server.fail(&ConnError{By: Network, Reason: "write", Err: io.ErrClosedPipe})
		b := openBlock{kind: frameHeaders, id: 1}
		for _, f := range []Field{{Name: ":method", Value: "CONNECT"}, {Name: ":authority", Value: "a.test:80"}} {
			b.add(f)
		}
		if err := server.requested(&b); err != nil {
			t.Errorf("a request after the end = %v, want it ignored", err)
		}
		synctest.Wait()
		if n := server.NumStreams(); n != 0 || len(accepted) != 0 {
			t.Errorf("%d streams and %d handlers on a connection that has ended", n, len(accepted))
		}
		client.Close()
		server.Close()
	})
}

// A client that has not read the server's limit yet was taken for one that ignores it.
func TestOpeningBeforeSettingsIsNoOffence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, accepted := simPair(t, memnet.Link{Delay: 50 * time.Millisecond}, &Config{}, &Config{MaxStreams: 3})
		var refused atomic.Int64
		for range 60 {
			s := openTunnel(t, client)
			defer s.Close()
			go func() { // ends with the answer, or the connection
				var reset *StreamError
				if _, err := s.Response(context.Background()); errors.As(err, &reset) && reset.Code == RefusedStream {
					refused.Add(1)
				}
			}()
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if refused.Load() != 57 || len(accepted) != 3 || server.Err() != nil {
			t.Errorf("%d streams refused and %d taken, the connection: %v; want 57, 3 and no error", refused.Load(), len(accepted), server.Err())
		}
		for range 3 {
			(<-accepted).Close()
		}
		client.Close()
		server.Close()
	})
}

// A stream that began before the peer knew our SETTINGS kept the window of 64 KiB in our books after the peer's had
// shrunk, so a peer could send more than it was given.
func TestEarlyStreamsGetTheSmallWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, accepted := simPair(t, memnet.Link{Delay: 50 * time.Millisecond}, &Config{StreamWindow: 2000}, &Config{StreamWindow: 1000})
		c := openTunnel(t, client)
		sent := make(chan int, 1)
		go func() { // ends when the stream is closed
			n, _ := c.Write(make([]byte, 100_000)) // cut short by Close
			sent <- n
		}()
		s := <-accepted
		s.Respond(&Header{Status: 200}, false)
		time.Sleep(time.Second)
		for _, tt := range []struct {
			name     string
			from, to *Stream
			size     int64
		}{{"client to server", c, s, 1000}, {"server to client", s, c, 2000}} {
			tt.from.c.mu.Lock()
			may := tt.from.send.window
			tt.from.c.mu.Unlock()
			tt.to.mu.Lock()
			expects, unread := int64(tt.to.flow.window), tt.to.queue.bytes()
			tt.to.mu.Unlock()
			if may != expects || expects+unread != tt.size {
				t.Errorf("%s: the sender may send %d bytes, the receiver expects %d, %d are unread, want %d in all", tt.name, may, expects, unread, tt.size)
			}
		}
		if n, err := io.ReadFull(s, make([]byte, 90_000)); err != nil {
			t.Errorf("read %d bytes: %v", n, err)
		}
		c.Close()
		<-sent
		s.Close()
		client.Close()
		server.Close()
	})
}

// A peer that had sent everything and closed lost its tail when we wrote, such as a WINDOW_UPDATE, before we had
// read all.
func TestFailedWriteLosesNothingReceived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, accepted := simPair(t, memnet.Link{Delay: 50 * time.Millisecond, BytesPerSecond: 1 << 20, BufferBytes: 1 << 20},
			&Config{StreamWindow: 1 << 20}, &Config{})
		c := openTunnel(t, client)
		s := <-accepted
		time.Sleep(time.Second) // SETTINGS are acknowledged
		s.Respond(&Header{Status: 200}, false)
		want := bytes.Repeat([]byte("tail"), 1<<16)
		if n, err := s.Write(want); err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
		s.CloseWrite()
		server.NetConn().Close()
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
			t.Errorf("read %d bytes, %v, want %d and the end", len(got), err, len(want))
		}
		<-client.Done()
		if _, err := c.Write([]byte("x")); err == nil {
			t.Error("Write on a connection that has ended succeeded")
		}
		c.Close()
		s.Close()
		client.Close()
		server.Close()
	})
}

// A write that fails ends the connection also where nothing comes from the peer any more.
func TestFailedWriteEndsASilentConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, accepted := simPair(t, memnet.Link{}, &Config{}, &Config{})
		c := openTunnel(t, client)
		s := <-accepted
		client.NetConn().(*memnet.Conn).CloseWrite() // our own writes fail, and the peer ends nothing
		start := time.Now()
		if _, err := c.Write(make([]byte, 200_000)); err == nil {
			t.Error("Write after the socket's end succeeded")
		}
		<-client.Done()
		var gone *ConnError
		if took := time.Since(start); !errors.As(client.Err(), &gone) || gone.By != Network || took > 2*writeStall {
			t.Errorf("the connection ended after %v with %v, want an error of the network soon", took, client.Err())
		}
		c.Close()
		s.Close()
		client.Close()
		server.Close()
	})
}

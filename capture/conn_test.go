package capture

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"
)

// caughtTCP returns a client and the flow that was caught from it by SOCKS5, not yet answered.
func caughtTCP(t *testing.T, request string) (*app, *Conn) {
	t.Helper()
	conn, server := tcpPair(t)
	a := &app{t: t, conn: conn}
	defer a.say(greetNone + request)()
	result := catchLater(newSocks5(t, Socks5Config{}), server)
	a.hears(choseNone)
	got := <-result
	if got.err != nil {
		t.Fatalf("Catch = %v, want nil", got.err)
	}
	return a, got.conn
}

// RFC 1928, section 6: "REP Reply field".
func TestRFC1928Section6Replies(t *testing.T) {
	for _, tt := range []struct {
		refusal Refusal
		text    string
		reply   byte
	}{
		{General, "general failure", 1},
		{NotAllowed, "not allowed", 2},
		{NetworkUnreachable, "network unreachable", 3},
		{HostUnreachable, "host unreachable", 4},
		{ConnectionRefused, "connection refused", 5},
		{TimedOut, "timed out", 6},
		{NameNotFound, "name not found", 4},
		{Unavailable, "unavailable", 1},
		{Refusal(99), "refusal 99", 1},
	} {
		t.Run(tt.text, func(t *testing.T) {
			if got := tt.refusal.String(); got != tt.text {
				t.Errorf("String = %q, want %q", got, tt.text)
			}
			a, c := caughtTCP(t, connectName)
			if err := c.Refused(tt.refusal); err != nil {
				t.Errorf("Refused = %v, want nil", err)
			}
			a.hears(said(tt.reply))
			c.Close()
			if n, err := a.conn.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("client then reads %d, %v, want 0, EOF", n, err)
			}
		})
	}
}

func TestConnIsAnsweredOnce(t *testing.T) {
	t.Run("accepted twice", func(t *testing.T) {
		a, c := caughtTCP(t, connectName)
		if err := c.Accepted(); err != nil {
			t.Errorf("Accepted = %v, want nil", err)
		}
		if err := c.Accepted(); !errors.Is(err, errAnswered) {
			t.Errorf("second Accepted = %v, want %v", err, errAnswered)
		}
		c.Close()
		a.hearsLast(said(0))
	})
	t.Run("refused twice", func(t *testing.T) {
		a, c := caughtTCP(t, connectName)
		if err := c.Refused(NotAllowed); err != nil {
			t.Errorf("Refused = %v, want nil", err)
		}
		if err := c.Refused(General); !errors.Is(err, errAnswered) {
			t.Errorf("second Refused = %v, want %v", err, errAnswered)
		}
		if err := c.Accepted(); !errors.Is(err, errAnswered) {
			t.Errorf("Accepted after Refused = %v, want %v", err, errAnswered)
		}
		c.Close()
		a.hearsLast(said(2))
	})
	t.Run("accepted, then refused: reset", func(t *testing.T) {
		a, c := caughtTCP(t, connectName)
		if err := c.Accepted(); err != nil {
			t.Errorf("Accepted = %v, want nil", err)
		}
		a.hears(said(0))
		if err := c.Refused(General); err != nil {
			t.Errorf("Refused = %v, want nil", err)
		}
		wantReset(t, a.conn)
	})
}

// wantReset expects that the client reads a reset and not a clean end.
func wantReset(t *testing.T, conn net.Conn) {
	t.Helper()
	if n, err := conn.Read(make([]byte, 1)); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("client reads %d, %v, want 0 and a reset", n, err)
	}
}

func TestConnAnswerOnClosedConnection(t *testing.T) {
	for name, answer := range map[string]func(*Conn) error{
		"accepted": func(c *Conn) error { return c.Accepted() },
		"refused":  func(c *Conn) error { return c.Refused(NotAllowed) },
	} {
		t.Run(name, func(t *testing.T) {
			_, c := caughtTCP(t, connectName)
			c.Close()
			if err := answer(c); !errors.Is(err, net.ErrClosed) {
				t.Errorf("answer = %v, want %v", err, net.ErrClosed)
			}
		})
	}
}

func TestConnServesWhatWasReadAhead(t *testing.T) {
	newConn := func(t *testing.T) (client, server net.Conn, c *Conn) {
		client, server = tcpPair(t)
		return client, server, &Conn{Conn: server, ahead: []byte("ahead")}
	}
	t.Run("in pieces, then the socket", func(t *testing.T) {
		client, server, c := newConn(t)
		if _, err := client.Write([]byte("later")); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 3)
		for _, want := range []string{"ahe", "ad", "lat", "er"} {
			if c.NetConn() == server != (c.ahead == nil) {
				t.Errorf("NetConn = %T with %q left", c.NetConn(), c.ahead)
			}
			n, err := c.Read(p)
			if err != nil || string(p[:n]) != want {
				t.Fatalf("Read = %q, %v, want %q", p[:n], err, want)
			}
		}
		if n, err := c.Read(nil); n != 0 || err != nil {
			t.Errorf("Read(0 bytes) = %d, %v, want 0, nil", n, err)
		}
	})
	t.Run("to who takes it", func(t *testing.T) {
		_, server, c := newConn(t)
		if got := c.NetConn(); got != net.Conn(c) {
			t.Errorf("NetConn = %T, want the Conn itself", got)
		}
		if got := c.TakeAhead(); !bytes.Equal(got, []byte("ahead")) {
			t.Errorf("TakeAhead = %q, want %q", got, "ahead")
		}
		if got := c.TakeAhead(); got != nil {
			t.Errorf("second TakeAhead = %q, want nil", got)
		}
		raw, ok := c.NetConn().(syscall.Conn)
		if !ok || c.NetConn() != server {
			t.Fatalf("NetConn = %T, want the accepted connection", c.NetConn())
		}
		if _, err := raw.SyscallConn(); err != nil {
			t.Errorf("SyscallConn = %v, want nil", err)
		}
	})
}

func TestConnCloseWrite(t *testing.T) {
	a, c := caughtTCP(t, connectName)
	if err := c.CloseWrite(); err != nil {
		t.Fatalf("CloseWrite = %v, want nil", err)
	}
	a.hearsLast("")
	wait := a.say("still heard")
	(&app{t: t, conn: c}).hears("still heard")
	wait()
}

func TestConnPassesOnLinger(t *testing.T) {
	a, c := caughtTCP(t, connectName)
	if err := c.SetLinger(0); err != nil {
		t.Fatalf("SetLinger = %v, want nil", err)
	}
	c.Close()
	wantReset(t, a.conn)
}

func TestConnWithoutTCP(t *testing.T) {
	_, server := pipePair(t)
	c := &Conn{Conn: server}
	if err := c.CloseWrite(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("CloseWrite = %v, want %v", err, errors.ErrUnsupported)
	}
	if err := c.SetLinger(0); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("SetLinger = %v, want %v", err, errors.ErrUnsupported)
	}
}

// Every flow that is being opened has a Conn; it should stay in the size class of 176 bytes.
func TestConnSize(t *testing.T) {
	if got := unsafe.Sizeof(Conn{}); got > 176 {
		t.Errorf("a Conn has %d bytes, want at most 176", got)
	}
}

// halfPipe is an in-memory connection that can be half-closed, so that there is something to linger for.
type halfPipe struct {
	net.Conn
	halfClosed *bool
}

func (h halfPipe) CloseWrite() error {
	*h.halfClosed = true
	return nil
}

// A refused client that neither reads nor closes is not waited for longer than said.
func TestRefusalIsBounded(t *testing.T) {
	t.Run("reply not read", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			client, server := net.Pipe()
			defer client.Close()
			c := &Conn{Conn: server, answer: socksAnswer{}}
			start := time.Now()
			err := c.Refused(NotAllowed)
			if took := time.Since(start); !errors.Is(err, os.ErrDeadlineExceeded) || took != replyTimeout {
				t.Errorf("Refused = %v after %v, want a timeout after %v", err, took, replyTimeout)
			}
		})
	})
	t.Run("more said after the request, connection kept", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			client, server := net.Pipe()
			defer client.Close()
			a := &app{t: t, conn: client}
			var halfClosed bool
			c := &Conn{Conn: halfPipe{server, &halfClosed}, answer: socksAnswer{}, ahead: []byte("ahead")}
			refused := make(chan time.Duration, 1)
			// Ends after lingerTimeout; waited for on refused.
			go func() {
				start := time.Now()
				if err := c.Refused(NotAllowed); err != nil {
					t.Errorf("Refused = %v, want nil", err)
				}
				refused <- time.Since(start)
			}()
			a.hears(said(2))
			a.say("more")()
			if took := <-refused; took != lingerTimeout || !halfClosed {
				t.Errorf("Refused took %v, half-closed: %v; want %v, true", took, halfClosed, lingerTimeout)
			}
		})
	})
	t.Run("failed handshake, connection kept", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			client, server := net.Pipe()
			defer client.Close()
			a := &app{t: t, conn: client}
			var halfClosed bool
			wait := a.say(greetLogin)
			result := catchLater(newSocks5(t, Socks5Config{}), halfPipe{server, &halfClosed})
			start := time.Now()
			a.hearsLast(choseNo)
			wantFailure(t, <-result, CauseAuth)
			wait()
			if took := time.Since(start); took != lingerTimeout || !halfClosed {
				t.Errorf("Catch took %v, half-closed: %v; want %v, true", took, halfClosed, lingerTimeout)
			}
		})
	})
}

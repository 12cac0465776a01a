package capture

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// timedCatch runs Catch in synthetic time and returns what came of it and how long it took.
func timedCatch(way Way, nc net.Conn) (caught, time.Duration) {
	start := time.Now()
	got := <-catchLater(way, nc)
	return got, time.Since(start)
}

func TestSocks5Timeout(t *testing.T) {
	for _, tt := range []struct {
		name  string
		cfg   Socks5Config
		says  []string
		stage string
		after time.Duration
	}{
		{"nothing is said", Socks5Config{}, nil, "greeting", 10 * time.Second},
		{"half a greeting", Socks5Config{}, []string{"\x05\x02\x00"}, "greeting", 10 * time.Second},
		{"no request", Socks5Config{}, []string{greetNone}, "request", 10 * time.Second},
		{"half a request", Socks5Config{}, []string{greetNone, "\x05\x01\x00\x03\xffabc"}, "request", 10 * time.Second},
		{"no login", Socks5Config{Users: bob}, []string{greetLogin}, "login", 10 * time.Second},
		{"half a login", Socks5Config{Users: bob}, []string{greetLogin, "\x01\x03bob\xff"}, "login", 10 * time.Second},
		{"own timeout", Socks5Config{Timeout: time.Minute}, []string{greetNone}, "request", time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, server := net.Pipe()
				defer client.Close()
				// Ends when all is said, or client is closed; synctest waits for it.
				go func() {
					for _, say := range tt.says {
						_, _ = client.Write([]byte(say))
					}
				}()
				// Reads the replies and ends when Catch closes server; synctest waits for it.
				go func() { _, _ = io.Copy(io.Discard, client) }()
				got, took := timedCatch(newSocks5(t, tt.cfg), server)
				wantFailure(t, got, CauseTimeout, "the "+tt.stage+" was not complete after "+tt.after.String())
				if !errors.Is(got.err, os.ErrDeadlineExceeded) || took != tt.after {
					t.Errorf("Catch = %v after %v, want a timeout after %v", got.err, took, tt.after)
				}
				if _, err := server.Write([]byte{0}); !errors.Is(err, io.ErrClosedPipe) {
					t.Errorf("the connection is not closed: Write = %v", err)
				}
			})
		})
	}
}

// A byte now and then does not move the deadline.
func TestSocks5TimeoutIsForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		defer client.Close()
		said := make(chan struct{})
		// Ends when Catch has closed server; waited for on said.
		go func() {
			defer close(said)
			for _, b := range []byte("\x05\xff" + string(make([]byte, 255))) {
				if _, err := client.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(3 * time.Second)
			}
		}()
		got, took := timedCatch(newSocks5(t, Socks5Config{}), server)
		wantFailure(t, got, CauseTimeout, "the greeting was not complete after 10s (4 bytes came)")
		if took != 10*time.Second {
			t.Errorf("Catch took %v, want 10s", took)
		}
		<-said
	})
}

// A client that does not read its reply does not hold the handshake either.
func TestSocks5TimeoutOfWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		defer client.Close()
		// Ends when the greeting is read; synctest waits for it.
		go func() { _, _ = client.Write([]byte(greetNone)) }()
		got, took := timedCatch(newSocks5(t, Socks5Config{}), server)
		wantFailure(t, got, CauseTimeout, "login")
		if took != 10*time.Second {
			t.Errorf("Catch took %v, want 10s", took)
		}
	})
}

func TestSocks5WithoutTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		result := catchLater(newSocks5(t, Socks5Config{Timeout: -1}), server)
		time.Sleep(24 * time.Hour)
		client.Close()
		wantFailure(t, <-result, CauseClosed)
	})
}

// After the handshake no deadline is left, and the app is answered whenever the flow stands.
func TestSocks5DeadlineIsCleared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		defer client.Close()
		a := &app{t: t, conn: client}
		result := catchLater(newSocks5(t, Socks5Config{}), server)
		a.say(greetNone)()
		a.hears(choseNone)
		a.say(connectName)()
		got := <-result
		if got.err != nil {
			t.Fatalf("Catch = %v, want nil", got.err)
		}
		defer got.conn.Close()
		time.Sleep(time.Hour)
		stands := make(chan error, 1)
		// Ends when the client has read the reply; waited for on stands.
		go func() { stands <- got.conn.Accepted() }()
		a.hears(said(0))
		if err := <-stands; err != nil {
			t.Errorf("Accepted = %v, want nil", err)
		}
		time.Sleep(time.Hour)
		wait := a.say("payload")
		(&app{t: t, conn: got.conn}).hears("payload")
		wait()
	})
}

func TestSocks5ClientHangsUp(t *testing.T) {
	for _, tt := range []struct {
		name  string
		users map[string]Password
		says  string
		stage string
	}{
		{"at once", nil, "", "greeting, after 0 bytes"},
		{"in its greeting", nil, "\x05\x03\x00", "greeting, after 3 bytes"},
		{"in its login", bob, greetLogin + "\x01\x03b", "login, after 6 bytes"},
		{"before its request", nil, greetNone, "request, after 3 bytes"},
		{"in its request", nil, greetNone + "\x05\x01\x00\x01\x7f", "request, after 8 bytes"},
		{"in a name", nil, greetNone + "\x05\x01\x00\x03\xffabc", "request, after 11 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client, server := tcpPair(t)
			if _, err := client.Write([]byte(tt.says)); err != nil {
				t.Fatal(err)
			}
			if err := client.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			got := <-catchLater(newSocks5(t, Socks5Config{Users: tt.users}), server)
			wantFailure(t, got, CauseClosed, "the client hung up in its "+tt.stage)
			if _, err := server.Write([]byte{0}); !errors.Is(err, net.ErrClosed) {
				t.Errorf("the connection is not closed: Write = %v", err)
			}
		})
	}
	t.Run("by a reset", func(t *testing.T) {
		client, server := tcpPair(t)
		if err := reset(client); err != nil {
			t.Fatal(err)
		}
		wantFailure(t, <-catchLater(newSocks5(t, Socks5Config{}), server), CauseClosed)
	})
	t.Run("our end is closed", func(t *testing.T) {
		_, server := tcpPair(t)
		server.Close()
		got := <-catchLater(newSocks5(t, Socks5Config{}), server)
		wantFailure(t, got, CauseNetwork)
		if !errors.Is(got.err, net.ErrClosed) {
			t.Errorf("Catch = %v, want %v", got.err, net.ErrClosed)
		}
	})
	t.Run("our end is closed meanwhile", func(t *testing.T) {
		client, server := tcpPair(t)
		a := &app{t: t, conn: client}
		result := catchLater(newSocks5(t, Socks5Config{}), server)
		a.say(greetNone)()
		a.hears(choseNone)
		server.Close()
		wantFailure(t, <-result, CauseNetwork)
	})
	t.Run("nothing and no error, for ever", func(t *testing.T) {
		_, server := pipePair(t)
		got := <-catchLater(newSocks5(t, Socks5Config{}), emptyReads{server})
		wantFailure(t, got, CauseNetwork)
		if !errors.Is(got.err, io.ErrNoProgress) {
			t.Errorf("Catch = %v, want %v", got.err, io.ErrNoProgress)
		}
	})
}

// emptyReads is a broken connection.
type emptyReads struct{ net.Conn }

func (emptyReads) Read([]byte) (int, error) { return 0, nil }

// One Socks5 serves many connections at a time, which share its memory one after the other.
func TestSocks5Concurrently(t *testing.T) {
	way := newSocks5(t, Socks5Config{Users: bob})
	const clients, rounds = 8, 50
	errs := make(chan error, clients)
	for range clients {
		// Ends after its rounds; waited for on errs.
		go func() {
			for range rounds {
				c, err := way.Catch(newLoopConn(greetBoth, loginBob, connectName+"payload"))
				if err == nil && (c.Host != "orders.shop.svc" || c.User != "bob" || string(c.TakeAhead()) != "payload") {
					err = errors.New("another client's destination")
				}
				if err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range clients {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

package capture

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// Messages of a SOCKS5 client and the replies to them.
const (
	greetNone   = "\x05\x01\x00"     // offers: no login
	greetLogin  = "\x05\x01\x02"     // offers: user and password
	greetBoth   = "\x05\x02\x00\x02" // offers both, prefers none
	loginBob    = "\x01\x03bob\x06secret"
	connectAddr = "\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x50"           // 192.0.2.1:80
	connectName = "\x05\x01\x00\x03\x0forders.shop.svc\x01\xbb"        // orders.shop.svc:443
	connectV6   = "\x05\x01\x00\x04\x20\x01\x0d\xb8\x00\x00\x00\x00" + // [2001:db8::1]:80
		"\x00\x00\x00\x00\x00\x00\x00\x01\x00\x50"

	choseNone  = "\x05\x00"
	choseLogin = "\x05\x02"
	choseNo    = "\x05\xff"
	loginGood  = "\x01\x00"
	loginBad   = "\x01\x01"
)

// bob is the one user of most tests.
var bob = map[string]Password{"bob": "secret"}

// said returns the reply with the given code, byte by byte as RFC 1928, section 6 has it.
func said(code byte) string {
	return "\x05" + string([]byte{code}) + "\x00\x01\x00\x00\x00\x00\x00\x00"
}

// patience is how long a test waits for what should come at once.
const patience = 10 * time.Second

func newSocks5(t testing.TB, cfg Socks5Config) *Socks5 {
	t.Helper()
	way, err := NewSocks5(cfg)
	if err != nil {
		t.Fatalf("NewSocks5 = %v, want nil", err)
	}
	return way
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// tcpPair returns both ends of a loopback connection.
func tcpPair(t testing.TB) (client, server net.Conn) {
	t.Helper()
	ln := listen(t)
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if err := client.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	server, err = ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}

// pipePair returns both ends of a connection in memory.
func pipePair(t testing.TB) (client, server net.Conn) {
	t.Helper()
	client, server = net.Pipe()
	t.Cleanup(func() { client.Close(); server.Close() })
	if err := client.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return client, server
}

// caught is what Catch returned.
type caught struct {
	conn *Conn
	err  error
}

// catchLater runs Catch.
func catchLater(way Way, nc net.Conn) <-chan caught {
	result := make(chan caught, 1)
	// Ends when Catch does; the test waits for the result.
	go func() {
		c, err := way.Catch(nc)
		result <- caught{c, err}
	}()
	return result
}

// app is the client's end of a connection in a test.
type app struct {
	t    testing.TB
	conn net.Conn
	slow bool // says every byte with a Write of its own
}

// say writes text while the test goes on; the returned function waits for its end.
func (a *app) say(text string) (wait func()) {
	done := make(chan struct{})
	// Ends when all is written, or the connection closed; waited for by the returned function.
	go func() {
		defer close(done)
		step := len(text)
		if a.slow {
			step = 1
		}
		for b := []byte(text); len(b) > 0; b = b[step:] {
			if _, err := a.conn.Write(b[:step]); err != nil {
				return // the other side said no; the test sees it in what it hears
			}
		}
	}()
	return func() { <-done }
}

// hears expects exactly want next.
func (a *app) hears(want string) {
	a.t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(a.conn, got)
	if err != nil || string(got) != want {
		a.t.Fatalf("client hears % x (%v), want % x", got[:n], err, want)
	}
}

// hearsLast expects want and then the end of the connection, clean or not.
func (a *app) hearsLast(want string) {
	a.t.Helper()
	got, err := io.ReadAll(a.conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		a.t.Fatalf("the connection is still open after % x", got)
	}
	if !bytes.Equal(got, []byte(want)) {
		a.t.Fatalf("client hears % x (then %v), want % x and the end", got, err, want)
	}
}

// wantFailure checks the error of a failed handshake.
func wantFailure(t testing.TB, got caught, cause Cause, parts ...string) {
	t.Helper()
	var failed *HandshakeError
	if got.conn != nil || !errors.As(got.err, &failed) {
		t.Fatalf("Catch = %v, %v, want nil and a *HandshakeError", got.conn, got.err)
	}
	if failed.Cause != cause {
		t.Errorf("cause = %q, want %q (%v)", failed.Cause, cause, failed)
	}
	for _, part := range parts {
		if !strings.Contains(failed.Error(), part) {
			t.Errorf("error = %q, want it to contain %q", failed, part)
		}
	}
}

package capture

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

// tape is a client whose bytes come in pieces of a given size, and which remembers what it was told.
type tape struct {
	loopConn
	left     []byte
	piece    int
	told     bytes.Buffer
	closed   bool
	deadline time.Time
}

func (c *tape) Read(p []byte) (int, error) {
	if c.closed {
		return 0, net.ErrClosed
	}
	if len(c.left) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.piece)], c.left)
	c.left = c.left[n:]
	return n, nil
}

func (c *tape) Write(p []byte) (int, error) {
	if c.closed {
		return 0, net.ErrClosed
	}
	return c.told.Write(p)
}

func (c *tape) Close() error { c.closed = true; return nil }

func (c *tape) SetDeadline(d time.Time) error { c.deadline = d; return nil }

func FuzzSocks5Catch(f *testing.F) {
	for _, says := range []string{
		greetNone + connectAddr, greetNone + connectName + "payload", greetNone + connectV6, greetBoth + loginBob + connectName + "payload",
		greetLogin + "\x01\x03bob\x00", greetNone + "\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00", greetNone + named("0x7f.1", 80), greetNone + named("::1", 80),
		greetNone + named("Example.COM.", 80), "\x04\x01\x00\x50\xc0\x00\x02\x01\x00payload", "\x04\x01\x01\xbb\x00\x00\x00\x01fred\x00Orders.svc\x00", "GET / HTTP/1.1\r\n\r\n", "\x05\xff", "",
	} {
		for _, piece := range []uint8{1, 255} {
			f.Add([]byte(says), piece, true)
			f.Add([]byte(says), piece, false)
		}
	}
	ways := map[bool]*Socks5{false: newSocks5(f, Socks5Config{}), true: newSocks5(f, Socks5Config{Users: bob})}
	f.Fuzz(func(t *testing.T, says []byte, piece uint8, login bool) {
		nc := &tape{left: bytes.Clone(says), piece: max(1, int(piece))}
		c, err := ways[login].Catch(nc)
		if err != nil {
			checkFailedCatch(t, nc, c, err)
			return
		}
		if nc.closed || !nc.deadline.IsZero() {
			t.Errorf("closed: %v, deadline: %v, want false and none", nc.closed, nc.deadline)
		}
		want := choseNone
		if says[0] == socks4Version {
			want = "" // it was not asked for a method
		}
		if login {
			want = choseLogin + loginGood
			if c.User != "bob" || !bytes.Contains(says, []byte("\x01\x03bob\x06secret")) {
				t.Errorf("user %q logged in with % x", c.User, says)
			}
		}
		if nc.told.String() != want {
			t.Errorf("client was told % x, want % x", nc.told.Bytes(), want)
		}
		checkDestination(t, c.Host, c.Addr)
		if c.Port == 0 {
			t.Error("port 0")
		}
		rest, err := io.ReadAll(c)
		if err != nil || !bytes.HasSuffix(says, rest) || c.NetConn() != net.Conn(nc) {
			t.Errorf("payload = % x, %v of % x", rest, err, says)
		}
		// What is payload is told by the length of what came before: parse it again, byte by byte.
		again := &tape{left: bytes.Clone(says[:len(says)-len(rest)]), piece: 1}
		if _, err := ways[login].Catch(again); err != nil || len(again.left) != 0 {
			t.Errorf("the handshake by itself: %v with %d bytes left", err, len(again.left))
		}
	})
}

func checkFailedCatch(t *testing.T, nc *tape, c *Conn, err error) {
	t.Helper()
	var failed *HandshakeError
	if c != nil || !errors.As(err, &failed) || failed.Cause == "" || failed.Came == "" || !nc.closed {
		t.Fatalf("Catch = %v, %v, closed: %v", c, err, nc.closed)
	}
	if len(err.Error()) > 700 || strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' || r == 0x7F }) {
		t.Errorf("error = %q, want a short printable one", err)
	}
	told := nc.told.String()
	if (failed.Cause == CauseClosed) != (failed.Err != nil) {
		t.Errorf("cause %q with error %v", failed.Cause, failed.Err)
	}
	if failed.Err != nil {
		return
	}
	// A client that did something wrong is always told so, and told last.
	no := strings.HasSuffix(told, choseNo) || strings.HasSuffix(told, loginBad) || told == "\x00\x5b\x00\x00\x00\x00\x00\x00"
	for code := byte(1); code <= 8; code++ {
		no = no || strings.HasSuffix(told, said(code))
	}
	if !no {
		t.Errorf("client was told % x for %v", told, err)
	}
}

// checkDestination checks that a destination is a canonical address or a name that no resolver takes for
// an address.
func checkDestination(t *testing.T, host string, addr netip.Addr) {
	t.Helper()
	if (host == "") != addr.IsValid() || addr.Is4In6() || addr.Zone() != "" {
		t.Fatalf("host %q, addr %v, want exactly one of them", host, addr)
	}
	if host == "" {
		return
	}
	if _, err := netip.ParseAddr(host); err == nil {
		t.Errorf("host %q is an address", host)
	}
	if len(host) > 253 || host != strings.ToLower(host) || strings.HasSuffix(host, ".") || strings.ContainsAny(host, " /\\:@%\x00") {
		t.Errorf("host %q is not a DNS name", host)
	}
	if again, _, err := parseHost(host); again != host || err != nil {
		t.Errorf("parseHost(%q) = %q, %v, want the same", host, again, err)
	}
}

// FuzzHTTPProxy has an app say anything on one connection: each flow that comes of it has a destination, a login where one
// is asked for, and of a request in absolute form one request that a server understands, without what was for the proxy.
func FuzzHTTPProxy(f *testing.F) {
	login := "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("bob:secret")) + "\r\n"
	for _, says := range []string{
		"CONNECT a.example:443 HTTP/1.1\r\nHost: b\r\n" + login + "\r\npayload", "CONNECT [::1]:1 HTTP/1.0\r\n\r\n", "CONNECT a:70000 HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET http://a.example/b?c HTTP/1.1\r\nHost: other\r\n" + login + "Connection: close, x\r\nX: y\r\n\r\nGET http://b.example/ HTTP/1.1\r\nHost: b.example\r\n\r\n",
		"POST http://0x7f.1:8080/ HTTP/1.1\r\nHost: a\r\n" + login + "Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
		"POST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi", "GET /proxy.pac HTTP/1.1\r\nHost: \";x\r\n\r\n", "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", "\x05\x01\x00", "",
	} {
		f.Add([]byte(says), uint8(255), false)
		f.Add([]byte(says), uint8(7), true)
	}
	const quiet = 10 * time.Millisecond // after which nothing more will be said
	ways := map[bool]*HTTPProxy{false: newHTTPProxy(f, HTTPConfig{Timeout: quiet}), true: newHTTPProxy(f, HTTPConfig{Timeout: quiet, Users: bob})}
	f.Fuzz(func(t *testing.T, says []byte, piece uint8, login bool) {
		app, nc := net.Pipe()
		over := make(chan struct{})
		var flows sync.WaitGroup
		err := ways[login].Serve(nc, func(c *Conn) {
			flows.Add(1)
			defer flows.Done()
			defer c.Close()
			checkDestination(t, c.Host, c.Addr)
			if c.Port == 0 || c.Way != WayHTTP || (c.User == "bob") != login {
				t.Errorf("a flow of %s by %q to port %d", c.Way, c.User, c.Port)
			}
			if err := c.Accepted(); err != nil {
				return
			}
			if _, paired := c.Conn.(*pairedConn); paired {
				checkForwarded(t, c)
			}
		}, func() { close(over) })
		if err != nil {
			t.Fatal(err)
		}
		go func() { // ends with app
			for rest := says; len(rest) > 0; {
				n := min(len(rest), 1+int(piece))
				if _, err := app.Write(rest[:n]); err != nil {
					return
				}
				rest = rest[n:]
			}
		}()
		var told []byte
		for buf := make([]byte, 4<<10); ; {
			_ = app.SetReadDeadline(time.Now().Add(2 * quiet))
			n, err := app.Read(buf)
			if told = append(told, buf[:n]...); err != nil {
				break
			}
		}
		app.Close()
		<-over
		flows.Wait()
		if len(told) > 0 && !bytes.HasPrefix(told, []byte("HTTP/1.")) {
			t.Errorf("the app was told %q", told)
		}
	})
}

// checkForwarded answers the request of a flow as its server.
func checkForwarded(t *testing.T, c *Conn) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(patience))
	b := bufio.NewReader(c)
	r, err := http.ReadRequest(b)
	if err != nil {
		return // the app is gone
	}
	for name := range r.Header {
		if name == "Proxy-Authorization" || name == "Proxy-Connection" || name == "Proxy-Authenticate" || name == "Keep-Alive" || name == "Te" && r.Header.Get(name) != "trailers" {
			t.Errorf("%s is passed on", name)
		}
	}
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return // as above
	}
	_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
	if n, _ := io.Copy(io.Discard, b); n > 0 {
		t.Errorf("%d bytes follow the request", n)
	}
}

func FuzzNewForward(f *testing.F) {
	for _, to := range []string{"a.example:80", "192.0.2.1:80", "[2001:db8::1]:80", "[::ffff:1.2.3.4]:1", "0x7f.1:80", ":80", "[]:80", "a:+80", "a:4294967376", "::1:80", "unix:/run/app.sock", "unix:@", "unix:a"} {
		f.Add(to)
	}
	f.Fuzz(func(t *testing.T, to string) {
		way, err := NewForward(to)
		if err != nil {
			return
		}
		if way.socket != "" {
			if to != unixPrefix+way.socket || way.host != "" || way.addr.IsValid() || way.port != 0 || CheckUnixPath(way.socket) != nil {
				t.Errorf("NewForward(%q) leads to %+v", to, way)
			}
			return
		}
		checkDestination(t, way.host, way.addr)
		if way.port == 0 {
			t.Error("port 0")
		}
		host := way.host
		if way.addr.IsValid() {
			if !strings.Contains(to, way.addr.String()) {
				t.Errorf("NewForward(%q) leads to %v", to, way.addr)
			}
			return
		}
		if !strings.HasPrefix(strings.ToLower(to), host) {
			t.Errorf("NewForward(%q) leads to %q", to, host)
		}
	})
}

func FuzzUsersFile(f *testing.F) {
	f.Add([]byte("# comment\nbob:secret\r\n\nann:a:b\n"))
	f.Add([]byte("no colon\n:x\nx:\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		u := newUsers()
		_, faults := addLines(text, "user:password", u.add)
		if lines := bytes.Count(text, []byte("\n")) + 1; len(faults)+len(u.digests) > lines {
			t.Errorf("%d faults and %d users in %d lines", len(faults), len(u.digests), lines)
		}
		for name := range u.digests {
			if name == "" || len(name) > 255 || u.valid(name, "") {
				t.Errorf("user %q", name)
			}
		}
	})
}

package capture

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// server is as little around a Server as apps need: it leads every flow to one address.
type server struct {
	t       *testing.T
	way     Server
	target  string    // where every flow is led; "" refuses
	refusal Refusal   // why
	flows   chan Conn // what was caught, as far as it can be copied
	running sync.WaitGroup
}

// start listens and returns the address; everything ends with the test.
func (s *server) start() string {
	ln := listen(s.t)
	s.flows = make(chan Conn, 16)
	s.running.Go(func() { // ends with ln
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			s.running.Add(1)
			_ = s.way.Serve(nc, s.carry, s.running.Done) // some tests want an error
		}
	})
	s.t.Cleanup(func() {
		ln.Close()
		s.way.Close()
		s.running.Wait()
	})
	return ln.Addr().String()
}

func (s *server) carry(c *Conn) {
	s.running.Add(1)
	defer s.running.Done()
	defer c.Close()
	s.flows <- Conn{Way: c.Way, Host: c.Host, Addr: c.Addr, Port: c.Port, User: c.User}
	if s.target == "" {
		if err := c.Refused(s.refusal); err != nil {
			s.t.Errorf("Refused = %v, want nil", err)
		}
		return
	}
	up, err := net.Dial("tcp", s.target)
	if err != nil {
		s.t.Error(err)
		return
	}
	defer up.Close()
	if err := c.Accepted(); err != nil {
		return // the app has gone
	}
	carryBoth(c, up)
}

func newHTTPProxy(t testing.TB, cfg HTTPConfig) *HTTPProxy {
	t.Helper()
	p, err := NewHTTPProxy(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// exchangeHTTP sends text on a connection of its own and returns the first answer, with its content.
func exchangeHTTP(t *testing.T, addr, text string) (*http.Response, string) {
	t.Helper()
	nc := dialTest(t, addr)
	if _, err := io.WriteString(nc, text); err != nil {
		t.Fatal(err)
	}
	return readResponse(t, bufio.NewReader(nc), strings.Fields(text + " x")[0])
}

func dialTest(t *testing.T, addr string) net.Conn {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	if err := nc.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return nc
}

func readResponse(t *testing.T, br *bufio.Reader, method string) (*http.Response, string) {
	t.Helper()
	res, err := http.ReadResponse(br, &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	if method == http.MethodConnect && res.StatusCode == http.StatusOK {
		return res, ""
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(body)
}

// page is a server that tells what it was asked.
func page(t *testing.T) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s %q", r.Method, r.Host, r.RequestURI, body)
		for _, name := range []string{"Proxy-Authorization", "Proxy-Connection", "X-Forwarded-For", "Via", "Forwarded"} {
			if v := r.Header.Get(name); v != "" {
				fmt.Fprintf(w, " %s: %s", name, v)
			}
		}
	}))
	t.Cleanup(srv.Close)
	return srv
}

func TestHTTPConnect(t *testing.T) {
	echo := listen(t)
	go func() { // ends with echo, which the cleanup of listen closes
		for {
			nc, err := echo.Accept()
			if err != nil {
				return
			}
			go func() { // ends with its connection
				defer nc.Close()
				_, _ = io.Copy(nc, nc)
			}()
		}
	}()
	for _, tt := range []struct{ name, target, host, addr string }{
		{"a name", "Orders.Shop.svc.:8443", "orders.shop.svc", "invalid IP"},
		{"IPv4", "192.0.2.1:8443", "", "192.0.2.1"},
		{"IPv6", "[2001:db8::1]:8443", "", "2001:db8::1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &server{t: t, way: newHTTPProxy(t, HTTPConfig{}), target: echo.Addr().String()}
			nc := dialTest(t, s.start())
			// What an app sends ahead of the answer is payload.
			fmt.Fprintf(nc, "CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\n\r\nahead", tt.target)
			br := bufio.NewReader(nc)
			res, _ := readResponse(t, br, http.MethodConnect)
			if res.StatusCode != http.StatusOK {
				t.Fatalf("the answer is %s", res.Status)
			}
			if c := <-s.flows; c.Way != WayHTTP || c.Host != tt.host || c.Addr.String() != tt.addr || c.Port != 8443 {
				t.Errorf("caught %s %q %v %d", c.Way, c.Host, c.Addr, c.Port)
			}
			io.WriteString(nc, " and more")
			nc.(*net.TCPConn).CloseWrite()
			if got, err := io.ReadAll(br); string(got) != "ahead and more" || err != nil {
				t.Errorf("the echo is %q, %v", got, err)
			}
		})
	}
}

// Each request in absolute form is a flow, also on one connection.
func TestHTTPAbsoluteForm(t *testing.T) {
	srv := page(t)
	s := &server{t: t, way: newHTTPProxy(t, HTTPConfig{}), target: srv.Listener.Addr().String()}
	nc := dialTest(t, s.start())
	br := bufio.NewReader(nc)
	for i, tt := range []struct{ request, want, host string }{
		{"GET http://one.example/a?b HTTP/1.1\r\nHost: other.example\r\nProxy-Connection: keep-alive\r\n\r\n", `GET one.example /a?b ""`, "one.example"},
		{"POST http://two.example:8080/ HTTP/1.1\r\nHost: two.example:8080\r\nContent-Length: 5\r\n\r\nhello", `POST two.example:8080 / "hello"`, "two.example"},
		{"POST http://two.example:8080/ HTTP/1.1\r\nHost: two.example:8080\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", `POST two.example:8080 / "hello"`, "two.example"},
		{"GET http://three.example/ HTTP/1.1\r\nHost: three.example\r\nX-Forwarded-For: 192.0.2.9\r\n\r\n", `GET three.example / "" X-Forwarded-For: 192.0.2.9`, "three.example"},
	} {
		if _, err := io.WriteString(nc, tt.request); err != nil {
			t.Fatal(err)
		}
		res, body := readResponse(t, br, "GET")
		if res.StatusCode != http.StatusOK || body != tt.want {
			t.Errorf("request %d: %s %q, want %q", i, res.Status, body, tt.want)
		}
		if c := <-s.flows; c.Host != tt.host || c.Way != WayHTTP {
			t.Errorf("request %d is a flow to %q by %s, want %q", i, c.Host, c.Way, tt.host)
		}
	}
}

// A server's answer arrives while it is still being made, and an upgraded connection carries both ways.
func TestHTTPStreams(t *testing.T) {
	more := make(chan string)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			nc, brw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer nc.Close()
			io.WriteString(nc, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
			io.Copy(nc, brw)
			return
		}
		for text := range more {
			io.WriteString(w, text)
			http.NewResponseController(w).Flush()
		}
	}))
	t.Cleanup(srv.Close)
	s := &server{t: t, way: newHTTPProxy(t, HTTPConfig{}), target: srv.Listener.Addr().String()}
	addr := s.start()

	nc := dialTest(t, addr)
	io.WriteString(nc, "GET http://events.example/ HTTP/1.1\r\nHost: x\r\n\r\n")
	br := bufio.NewReader(nc)
	more <- "one"
	res, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"one", "two"} {
		got := make([]byte, 3)
		if _, err := io.ReadFull(res.Body, got); err != nil || string(got) != want {
			t.Fatalf("the event is %q, %v, want %q", got, err, want)
		}
		if want == "one" {
			more <- "two"
		}
	}
	close(more)

	nc = dialTest(t, addr)
	io.WriteString(nc, "GET http://socket.example/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	br = bufio.NewReader(nc)
	if res, err := http.ReadResponse(br, nil); err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("the upgrade is answered %v, %v", res, err)
	}
	io.WriteString(nc, "hello")
	got := make([]byte, 5)
	if _, err := io.ReadFull(br, got); err != nil || string(got) != "hello" {
		t.Errorf("the echo is %q, %v", got, err)
	}
}

func TestHTTPRefused(t *testing.T) {
	for _, tt := range []struct {
		refusal Refusal
		status  int
	}{
		{General, 502}, {NotAllowed, 403}, {NetworkUnreachable, 502}, {HostUnreachable, 502},
		{ConnectionRefused, 502}, {TimedOut, 504}, {NameNotFound, 502}, {Unavailable, 503},
	} {
		t.Run(tt.refusal.String(), func(t *testing.T) {
			s := &server{t: t, way: newHTTPProxy(t, HTTPConfig{}), refusal: tt.refusal}
			addr := s.start()
			for _, request := range []string{"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n", "GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n"} {
				res, body := exchangeHTTP(t, addr, request)
				if res.StatusCode != tt.status || !strings.Contains(body, tt.refusal.String()) {
					t.Errorf("%.7s is answered %s %q, want %d", request, res.Status, body, tt.status)
				}
			}
		})
	}
}

func TestHTTPLogin(t *testing.T) {
	dir := t.TempDir()
	tokens := filepath.Join(dir, "tokens")
	const token = "0123456789abcdef0123"
	if err := os.WriteFile(tokens, []byte("robot:"+token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	srv := page(t)
	s := &server{t: t, way: newHTTPProxy(t, HTTPConfig{Users: bob, TokensFile: tokens}), target: srv.Listener.Addr().String()}
	addr := s.start()
	basic := func(text string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(text)) }
	for _, tt := range []struct{ name, header, user string }{
		{"nothing", "", ""},
		{"the right password", basic("bob:secret"), "bob"},
		{"lower case", "basic" + basic("bob:secret")[5:], "bob"},
		{"a wrong password", basic("bob:hunter2"), ""},
		{"an empty password", basic("bob:"), ""},
		{"no password", basic("bob"), ""},
		{"another user", basic("eve:secret"), ""},
		{"no base64", "Basic bob:secret", ""},
		{"a huge password", basic("bob:" + strings.Repeat("x", 4000)), ""},
		{"the right token", "Bearer " + token, "robot"},
		{"a wrong token", "Bearer " + token + "4", ""},
		{"no token", "Bearer", ""},
		{"another scheme", "Negotiate " + token, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, request := range []string{"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n", "GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n"} {
				if tt.header != "" {
					request += "Proxy-Authorization: " + tt.header + "\r\n"
				}
				res, body := exchangeHTTP(t, addr, request+"\r\n")
				if tt.user == "" {
					if res.StatusCode != http.StatusProxyAuthRequired || len(res.Header.Values("Proxy-Authenticate")) != 2 {
						t.Errorf("%.7s is answered %s, %q", request, res.Status, res.Header)
					}
					continue
				}
				if res.StatusCode != http.StatusOK || strings.Contains(body, "Proxy-Authorization") {
					t.Errorf("%.7s is answered %s %q", request, res.Status, body)
				}
				if c := <-s.flows; c.User != tt.user {
					t.Errorf("%.7s is of %q, want %q", request, c.User, tt.user)
				}
			}
		})
	}
	if len(s.flows) > 0 {
		t.Errorf("there are %d flows that nobody logged in for", len(s.flows))
	}
}

// What is no request of a proxy's client is answered, and is no flow.
func TestHTTPBadRequests(t *testing.T) {
	s := &server{t: t, way: newHTTPProxy(t, HTTPConfig{})}
	addr := s.start()
	long := strings.Repeat("x", maxHTTPHeadBytes+8<<10)
	for _, tt := range []struct {
		name, request string
		status        int
	}{
		{"origin form", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"asterisk form", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"another scheme", "GET https://a.example/ HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"no host", "GET http:///x HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"CONNECT without port", "CONNECT a.example HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"CONNECT to port 0", "CONNECT a.example:0 HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"CONNECT to an odd port", "CONNECT a.example:0443 HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"CONNECT to a number", "CONNECT 2130706433:80 HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"CONNECT with content", "CONNECT a.example:443 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", 400},
		{"CONNECT with chunks", "CONNECT a.example:443 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"two lengths", "POST http://a.example/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400},
		{"an absolute form to a number", "GET http://0x7f.1/ HTTP/1.1\r\nHost: x\r\n\r\n", 502},
		{"a long head", "GET http://a.example/ HTTP/1.1\r\nHost: x\r\nA: " + long + "\r\n\r\n", 431},
		{"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400},
		{"garbage", "\x00\x01\x02\r\n\r\n", 400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			nc := dialTest(t, addr)
			go io.WriteString(nc, tt.request) // ends with nc at the latest, which the cleanup closes
			if res, body := readResponse(t, bufio.NewReader(nc), "GET"); res.StatusCode != tt.status {
				t.Errorf("it is answered %s %q, want %d", res.Status, body, tt.status)
			}
		})
	}
	if len(s.flows) > 0 {
		t.Errorf("there is a flow to %q", (<-s.flows).Host)
	}
}

func TestProxyPAC(t *testing.T) {
	for _, tt := range []struct {
		name string
		way  Server
		want string
	}{
		{"HTTP", newHTTPProxy(t, HTTPConfig{Users: bob}), `return "PROXY proxy.example:3128";`},
		{"both", NewMixed(newSocks5(t, Socks5Config{}), newHTTPProxy(t, HTTPConfig{})), `return "PROXY proxy.example:3128; SOCKS5 proxy.example:3128";`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &server{t: t, way: tt.way}
			addr := s.start()
			res, body := exchangeHTTP(t, addr, "GET /proxy.pac HTTP/1.1\r\nHost: proxy.example:3128\r\n\r\n")
			if res.StatusCode != http.StatusOK || res.Header.Get("Content-Type") != "application/x-ns-proxy-autoconfig" || !strings.Contains(body, tt.want) {
				t.Errorf("%s %q\n%s", res.Status, res.Header.Get("Content-Type"), body)
			}
			// What an app says of itself is not written into a script.
			if _, body := exchangeHTTP(t, addr, "GET /proxy.pac HTTP/1.1\r\nHost: a\";alert(1)//:80\r\n\r\n"); strings.Contains(body, "alert") {
				t.Errorf("the script is\n%s", body)
			}
		})
	}
}

// An app that says nothing, or only begins to, is not waited for.
func TestHTTPTimeout(t *testing.T) {
	for name, text := range map[string]string{"nothing": "", "half a head": "CONNECT a.example:443 HT"} {
		for way, s := range map[string]*server{
			"HTTP": {t: t, way: newHTTPProxy(t, HTTPConfig{Timeout: 20 * time.Millisecond})},
			"both": {t: t, way: NewMixed(newSocks5(t, Socks5Config{Timeout: 20 * time.Millisecond}), newHTTPProxy(t, HTTPConfig{Timeout: 20 * time.Millisecond}))},
		} {
			t.Run(way+" "+name, func(t *testing.T) {
				s.t = t
				nc := dialTest(t, s.start())
				io.WriteString(nc, text)
				if _, err := io.ReadAll(nc); err != nil {
					t.Errorf("the connection ends with %v", err)
				}
			})
		}
	}
}

func TestMixed(t *testing.T) {
	srv := page(t)
	s := &server{t: t, way: NewMixed(newSocks5(t, Socks5Config{}), newHTTPProxy(t, HTTPConfig{})), target: srv.Listener.Addr().String()}
	addr := s.start()
	for proxy, way := range map[string]string{
		"socks5h://" + addr: WaySocks5, "socks4a://" + addr: WaySocks5, "http://" + addr: WayHTTP,
	} {
		out, code := curl(t, "-x", proxy, "http://shop.example:8080/page")
		if code != 0 || out != `GET shop.example:8080 /page ""` {
			t.Errorf("curl through %s prints %q and ends with %d", proxy, out, code)
		}
		if c := <-s.flows; c.Way != way || c.Host != "shop.example" || c.Port != 8080 {
			t.Errorf("through %s: caught %s %q %d", proxy, c.Way, c.Host, c.Port)
		}
	}
	out, code := curl(t, "-p", "-x", "http://"+addr, "http://shop.example:8080/tunnel") // with CONNECT
	if code != 0 || out != `GET shop.example:8080 /tunnel ""` {
		t.Errorf("curl through a tunnel prints %q and ends with %d", out, code)
	}
}

// Close ends the connections that are kept for another request.
func TestHTTPClose(t *testing.T) {
	srv := page(t)
	p := newHTTPProxy(t, HTTPConfig{})
	s := &server{t: t, way: p, target: srv.Listener.Addr().String()}
	nc := dialTest(t, s.start())
	br := bufio.NewReader(nc)
	io.WriteString(nc, "GET http://a.example/ HTTP/1.1\r\nHost: x\r\n\r\n")
	readResponse(t, br, "GET")
	p.Close()
	if _, err := br.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("the kept connection ends with %v, want EOF", err)
	}
}

// What was accepted before Close has a request answered, and no second one: a reload closes the way of connections that
// have not said yet what they speak.
func TestMixedFirstByteAfterClose(t *testing.T) {
	srv := page(t)
	way := NewMixed(newSocks5(t, Socks5Config{}), newHTTPProxy(t, HTTPConfig{}))
	s := &server{t: t, way: way, target: srv.Listener.Addr().String()}
	nc := dialTest(t, s.start())
	way.Close()
	io.WriteString(nc, "GET http://a.example/page HTTP/1.1\r\nHost: x\r\n\r\n")
	br := bufio.NewReader(nc)
	if res, _ := readResponse(t, br, "GET"); res.StatusCode != 200 || !res.Close {
		t.Errorf("the answer is %s, the last one %t; want 200, true", res.Status, res.Close)
	}
	if _, err := br.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("the connection ends with %v, want EOF", err)
	}
}

// A connection is not over while a flow is being made that it has asked for, and asks for none after: who keeps account
// of flows may wait for them then.
func TestHTTPFlowAfterItsConnection(t *testing.T) {
	client, raw := tcpPair(t)
	var over, carried atomic.Int32
	entered, leave := make(chan struct{}), make(chan struct{})
	nc := &httpConn{Conn: raw, raw: raw, done: func() { over.Add(1) }, carry: func(c *Conn) {
		carried.Add(1)
		close(entered)
		<-leave
		_ = c.Refused(NotAllowed)
		_ = c.Close()
	}}
	ctx := context.WithValue(t.Context(), flowKey{}, &httpFlow{conn: nc})
	answered := make(chan error)
	go func() { // ends with its flow
		_, err := dialFlow(ctx, "tcp", "a.example:80")
		answered <- err
	}()
	<-entered
	client.Close()
	nc.over()
	if n := over.Load(); n != 0 {
		t.Errorf("the connection is over %d times while a flow is made", n)
	}
	close(leave)
	if err := <-answered; err == nil {
		t.Error("dialFlow = nil, want the refusal")
	}
	for deadline := time.Now().Add(patience); over.Load() == 0 && time.Now().Before(deadline); {
		runtime.Gosched()
	}
	nc.over()
	if _, err := dialFlow(ctx, "tcp", "a.example:80"); err == nil || over.Load() != 1 || carried.Load() != 1 {
		t.Errorf("after the end dialFlow = %v, %d flows, over %d times; want an error, 1 and 1", err, carried.Load(), over.Load())
	}
}

func TestTokensFile(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"short", "robot:0123456789\n", "at least 16"},
		{"a space", "robot:0123456789 123456\n", "visible ASCII"},
		{"twice", "a:0123456789abcdef\nb:0123456789abcdef\n", "twice"},
		{"nobody", ":0123456789abcdef\n", "the name"},
		{"empty", "\n# none\n", "user:token"},
		{"no colon", "0123456789abcdef\n", "user:token"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "tokens")
			if err := os.WriteFile(file, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			cfg := HTTPConfig{TokensFile: file}
			if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "0123456789") {
				t.Errorf("Validate = %v, want it to say %q, and no token", err, tt.want)
			}
		})
	}
}

package ingress_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"culvert/tunnel"
)

// Requests that two readers could read in two ways, or that nobody can: each is answered with a status, recorded with a reason, and
// nothing of it reaches the application (RFC 9112, sections 2.2, 3.2, 5 and 6).
func TestRequestsThatAreRefused(t *testing.T) {
	const after = "GET /smuggled HTTP/1.1\r\nHost: shop.example\r\n\r\n"
	for _, tt := range []struct {
		name, text string
		status     int
	}{
		{"CL.TE", "POST / HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG", 400},
		{"TE.CL", "POST / HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n1\r\nA\r\n0\r\n\r\n", 400},
		{"TE of two", "POST / HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400},
		{"TE twice", "POST / HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", 400},
		{"TE with an odd word", "POST / HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400},
		{"TE in quotes", "POST / HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", 400},
		{"TE behind a vertical tab", "POST / HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: \vchunked\r\n\r\n0\r\n\r\n", 400},
		{"TE folded", "POST / HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400},
		{"TE with a space before the colon", "POST / HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400},
		{"TE in HTTP/1.0", "POST / HTTP/1.0\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"two content-lengths", "POST / HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400},
		{"two of the same", "POST / HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na", 400},
		{"a list of content-lengths", "POST / HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 1, 1\r\n\r\na", 400},
		{"content-length with a sign", "POST / HTTP/1.1\r\nHost: shop.example\r\nContent-Length: +1\r\n\r\na", 400},
		{"content-length in hex", "POST / HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 0x1\r\n\r\na", 400},
		{"content-length beyond numbers", "POST / HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 99999999999999999999\r\n\r\na", 400},
		{"content-length of nothing", "POST / HTTP/1.1\r\nHost: shop.example\r\nContent-Length:\r\n\r\n", 400},
		{"obs-fold", "GET / HTTP/1.1\r\nHost: shop.example\r\nX-A: a\r\n b\r\n\r\n", 400},
		{"obs-fold at the first field", "GET / HTTP/1.1\r\n Host: shop.example\r\n\r\n", 400},
		{"bare LF", "GET / HTTP/1.1\nHost: shop.example\n\r\n\r\n", 400},
		{"bare LF in a field", "GET / HTTP/1.1\r\nHost: shop.example\r\nX-A: a\nX-B: b\r\n\r\n", 400},
		{"bare CR in a field", "GET / HTTP/1.1\r\nHost: shop.example\r\nX-A: a\rX-B: b\r\n\r\n", 400},
		{"NUL", "GET / HTTP/1.1\r\nHost: shop.example\r\nX-A: a\x00b\r\n\r\n", 400},
		{"absolute form against Host", "GET http://other.example/ HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400},
		{"user information", "GET http://shop.example@other.example/ HTTP/1.1\r\nHost: shop.example@other.example\r\n\r\n", 400},
		{"Host twice", "GET / HTTP/1.1\r\nHost: shop.example\r\nHost: other.example\r\n\r\n", 400},
		{"Host with a space before the colon", "GET / HTTP/1.1\r\nHost : shop.example\r\n\r\n", 400},
		{"no Host", "GET / HTTP/1.1\r\nX-A: a\r\n\r\n", 400},
		{"an empty Host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", 400},
		{"a Host that is a list", "GET / HTTP/1.1\r\nHost: shop.example, other.example\r\n\r\n", 400},
		{"a Host with a path", "GET / HTTP/1.1\r\nHost: shop.example/x\r\n\r\n", 400},
		{"a Host with a port too many", "GET / HTTP/1.1\r\nHost: shop.example:80:81\r\n\r\n", 400},
		{"a number as Host", "GET / HTTP/1.1\r\nHost: 2130706433\r\n\r\n", 400},
		{"two spaces in the first line", "GET  / HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400},
		{"a space in the target", "GET /a b HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400},
		{"another version", "GET / HTTP/1.2\r\nHost: shop.example\r\n\r\n", 400},
		{"the preface of HTTP/2 late", "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", 400},
		{"HTTP/0.9", "GET /\r\n\r\n", 400},
		{"a fragment", "GET /#a HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400},
		{"dots", "GET /a/../admin HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400},
		{"dots encoded", "GET /a/%2e%2E/admin HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400},
		{"dots behind an encoded slash", "GET /a%2f..%2fadmin HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400},
		{"a backslash", "GET /a\\..\\admin HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400},
		{"a backslash encoded", "GET /a%5c..%5cadmin HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400},
		{"NUL encoded", "GET /a%00 HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400},
		{"CONNECT", "CONNECT other.example:443 HTTP/1.1\r\nHost: other.example:443\r\n\r\n", 400},
		{"an upgrade with a body", "POST / HTTP/1.1\r\nHost: shop.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\nabc", 400},
		{"a method that is none", "G\x7fT / HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400},
		{"an expectation", "POST / HTTP/1.1\r\nHost: shop.example\r\nExpect: 200-ok\r\nContent-Length: 1\r\n\r\na", 400},
		{"many fields", "GET / HTTP/1.1\r\nHost: shop.example\r\n" + strings.Repeat("X-A: a\r\n", 200) + "\r\n", 431},
		{"a long field", "GET / HTTP/1.1\r\nHost: shop.example\r\nX-A: " + strings.Repeat("a", 70_000) + "\r\n\r\n", 431},
		{"an endless head", "GET / HTTP/1.1\r\nHost: shop.example\r\nX-A: " + strings.Repeat("a", 200_000), 431},
		{"a chunk without a size", chunked("\r\nhello\r\n0\r\n\r\n"), 400},
		{"a chunk size with a sign", chunked("+5\r\nhello\r\n0\r\n\r\n"), 400},
		{"a chunk size behind a space", chunked(" 5\r\nhello\r\n0\r\n\r\n"), 400},
		{"a chunk size too long", chunked("0000000000000005\r\nhello\r\n0\r\n\r\n"), 400},
		{"a chunk size beyond numbers", chunked("FFFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n"), 400},
		{"a chunk with a bare LF", chunked("5\nhello\r\n0\r\n\r\n"), 400},
		{"a chunk longer than its size", chunked("4\r\nhello\r\n0\r\n\r\n"), 400},
		{"a chunk that ends in CR CR", chunked("5\r\nhello\r\r0\r\n\r\n"), 400},
		{"huge chunk extensions", chunked("5;" + strings.Repeat("a=b;", 1000) + "\r\nhello\r\n0\r\n\r\n"), 400},
		{"a bare LF in an extension", chunked("5;a\nb\r\nhello\r\n0\r\n\r\n"), 400},
		{"trailers that are folded", chunked("0\r\nX-A: a\r\n b\r\n\r\n"), 400},
		{"endless trailers", chunked("0\r\n" + strings.Repeat("X-A: a\r\n", 5000)), 400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEdge(t, nil)
			var smuggled atomic.Bool
			e.serve(t, appListen, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/smuggled" {
					smuggled.Store(true)
				}
				if _, err := io.ReadAll(r.Body); err == nil {
					smuggled.Store(true)
				}
			})
			resp, body := e.say(t, tt.text+after)
			if resp.StatusCode != tt.status || !strings.Contains(resp.Header.Get("Proxy-Status"), "error=http_request_error") {
				t.Errorf("answer %d %v %q, want %d with a reason", resp.StatusCode, resp.Header, body, tt.status)
			}
			e.gw.Close()
			if smuggled.Load() {
				t.Error("the application has got a whole request")
			}
			s := e.gw.Stats()
			if s.Flows != 1 || s.Active != 0 || s.Connections != 0 {
				t.Errorf("%d flows, %d active, %d connections; want 1, 0, 0", s.Flows, s.Active, s.Connections)
			}
			if log := e.log.String(); !strings.Contains(log, "msg=flow ") || !strings.Contains(log, "err=") {
				t.Errorf("no record with a reason:\n%s", log)
			}
		})
	}
}

func chunked(body string) string {
	return "POST / HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\n\r\n" + body
}

// Odd requests that are as they should be.
func TestRequestsThatAreTaken(t *testing.T) {
	for name, text := range map[string]string{
		"empty lines before":     "\r\n\r\nGET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n",
		"absolute form":          "GET http://Shop.example/a HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n",
		"HTTP/1.0":               "GET / HTTP/1.0\r\nHost: shop.example\r\n\r\n",
		"an address as host":     "GET / HTTP/1.1\r\nHost: [2001:db8::1]:8080\r\nConnection: close\r\n\r\n",
		"chunks with extensions": "POST / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\nTransfer-Encoding: Chunked\r\n\r\n5;a=b\r\nhello\r\nA\r\n0123456789\r\n0\r\nX-T: t\r\n\r\n",
		"h2c is ignored":         "GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
		"slashes":                "GET //a///b HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n",
		"OPTIONS":                "OPTIONS * HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			e := newEdge(t, nil)
			e.serve(t, appListen, echo)
			if resp, body := e.say(t, text); resp.StatusCode != 200 && name != "OPTIONS" {
				t.Errorf("answer %d %q, want 200\n%s", resp.StatusCode, body, e.log)
			}
		})
	}
}

// Clients that take their time get 408, with a record, and nothing stays behind.
func TestSlowClients(t *testing.T) {
	for name, tt := range map[string]struct {
		first string
		drip  string
		want  string
	}{
		"half a head":     {"GET / HTTP/1.1\r\nHost: shop", "", "408"},
		"a dripping head": {"GET / HTTP/1.1\r\nHost: shop.example\r\nX-A: ", "a", "408"},
		"half a body":     {"POST / HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 10\r\n\r\nabc", "", "408"},
		"half a chunk":    {chunked("5\r\nhe"), "", "408"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := newEdge(t, nil)
				e.serve(t, appListen, echo)
				c := e.dial(t)
				done := make(chan struct{})
				go func() { // ends with the connection; waited for below
					defer close(done)
					_, _ = io.WriteString(c, tt.first)
					for tt.drip != "" {
						time.Sleep(time.Second)
						if _, err := io.WriteString(c, tt.drip); err != nil {
							return
						}
					}
				}()
				resp, _ := answerOn(t, c)
				if got := fmt.Sprint(resp.StatusCode); got != tt.want {
					t.Errorf("answer %s, want %s", got, tt.want)
				}
				_ = c.Close()
				<-done
				e.gw.Close()
				if !strings.Contains(e.log.String(), "reason=slow") {
					t.Errorf("no record of it:\n%s", e.log)
				}
				if s := e.gw.Stats(); s.Active != 0 || s.Connections != 0 {
					t.Errorf("%d flows and %d connections are left", s.Active, s.Connections)
				}
			})
		})
	}
}

// An upstream that dies in the middle: the client sees a broken answer, never a clean end.
func TestUpstreamDies(t *testing.T) {
	for name, answer := range map[string]string{
		"a body of a known length": "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello",
		"a body in chunks":         "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
		"in a chunk":               "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe",
	} {
		for _, protocols := range []func(*http.Protocols){http1, http2} {
			t.Run(name, func(t *testing.T) {
				e := newEdge(t, nil)
				e.app(t, answer)
				resp, err := e.client(t, protocols).Get("http://shop.example/")
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(resp.Body)
				if err == nil || err == io.EOF {
					t.Errorf("%s: the answer %q ended well, want it broken", resp.Proto, body)
				}
				e.gw.Close()
				if !strings.Contains(e.log.String(), "reason=destination-broke") {
					t.Errorf("no record of it:\n%s", e.log)
				}
			})
		}
	}
}

// Answers that are none: 502 or 503, with a record.
func TestAnswersThatAreRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		answer string
		status int
	}{
		"nothing":               {"", 503},
		"no HTTP":               {"SSH-2.0-x\r\n", 502},
		"half a head":           {"HTTP/1.1 200 OK\r\nX-A: ", 503},
		"an endless head":       {"HTTP/1.1 200 OK\r\n" + strings.Repeat("X-A: "+strings.Repeat("a", 1000)+"\r\n", 1000), 502},
		"endless 1xx":           {strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", 100), 502},
		"101 that nobody wants": {"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", 502},
		"two lengths":           {"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 502},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEdge(t, nil)
			e.app(t, tt.answer)
			resp, err := e.client(t, http1).Post("http://shop.example/", "text/plain", strings.NewReader("x"))
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != tt.status || resp.Header.Get("Proxy-Status") == "" {
				t.Errorf("answer %d %v, want %d", resp.StatusCode, resp.Header, tt.status)
			}
		})
	}
	t.Run("nobody there", func(t *testing.T) {
		e := newEdge(t, nil)
		resp, err := e.client(t, http1).Get("http://shop.example/")
		if err != nil || resp.StatusCode != 502 || !strings.Contains(resp.Header.Get("Proxy-Status"), "connection_refused") {
			t.Errorf("answer %v, %v, want 502", resp, err)
		}
	})
}

// What strangers say of others does not go on; what a trusted proxy says is added to.
func TestForwardedFields(t *testing.T) {
	const forged = "GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close, X-Forwarded-For\r\nX-Forwarded-For: 203.0.113.1, 192.0.2.200\r\nX-Forwarded-Proto: https\r\n" +
		"X-Forwarded-Client-Cert: admin\r\nX-Real-IP: 203.0.113.1\r\nForwarded: for=203.0.113.1\r\nBaggage: user=admin\r\n" +
		"Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n"
	kept := strings.Replace(forged, "close, X-Forwarded-For", "close", 1)
	for name, tt := range map[string]struct {
		text    string
		trusted []string
		has     []string
		lacks   []string
	}{
		"a stranger": {forged, nil,
			[]string{"X-Forwarded-For=192.0.2.7\n", "X-Forwarded-Proto=http\n", "X-Forwarded-Host=shop.example\n", `Forwarded=for="192.0.2.7:`, "Via=2 culvert-"},
			[]string{"203.0.113.1", "admin", "0af7651916cd43dd"}},
		"a trusted proxy": {kept, []string{"192.0.2.0/24"},
			[]string{"X-Forwarded-For=203.0.113.1, 192.0.2.200, 192.0.2.7\n", "X-Forwarded-Proto=https\n", "Forwarded=for=203.0.113.1, for=", "Baggage=user=admin\n", "0af7651916cd43dd"},
			nil},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEdge(t, func(c *tunnel.Config) { c.Listeners[0].Ingress.TrustForwarded = tt.trusted })
			e.serve(t, appListen, echo)
			_, body := e.say(t, tt.text)
			for _, want := range tt.has {
				if !strings.Contains(body, want) {
					t.Errorf("the application does not see %q:\n%s", want, body)
				}
			}
			for _, lack := range tt.lacks {
				if strings.Contains(body, lack) {
					t.Errorf("the application sees %q:\n%s", lack, body)
				}
			}
			e.gw.Close()
			if remote := strings.Contains(e.log.String(), "remote=203.0.113.1"); remote != (tt.trusted != nil) {
				t.Errorf("the client's address is told to policy: %t\n%s", remote, e.log)
			}
		})
	}
}

// app answers every connection with text once it has a request, and breaks the connection.
func (e *edge) app(t testing.TB, text string) {
	t.Helper()
	l, err := e.net.Listen(appListen)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { // ends with the listener, which the clean-up closes and waits for
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil { // else it is answered all the same
				_, _ = io.Copy(io.Discard, r.Body)
			}
			_, err = io.WriteString(c, text)
			if err != nil && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
				t.Error(err)
			}
			_ = c.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
}

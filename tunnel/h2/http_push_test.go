package h2_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"culvert/tunnel/h2"
	"culvert/tunnel/h2/h2test"
)

// TestHTTPPush promises requests through http.Pusher and receives them through Do (RFC 9113, section 8.4).
func TestHTTPPush(t *testing.T) {
	release := make(chan struct{})
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/" {
			for i := range 5 {
				err := w.(http.Pusher).Push(fmt.Sprintf("/pushed/%d?q=1", i), &http.PushOptions{Header: http.Header{"Link": {"</s>; rel=push"}}})
				if err != nil {
					t.Errorf("Push = %v", err)
				}
			}
			if err := w.(http.Pusher).Push("/pushed/head", &http.PushOptions{Method: "HEAD"}); err != nil {
				t.Errorf("Push of HEAD = %v", err)
			}
			io.WriteString(w, "parent")
			w.(http.Flusher).Flush()
			<-release // promises come before the end of the parent
			return
		}
		if err := w.(http.Pusher).Push("/again", nil); err == nil {
			t.Error("Push on a pushed request = nil")
		}
		w.Header().Set("X-Host", r.Host)
		fmt.Fprint(w, r.Method, " ", r.RequestURI, " ", r.Body == http.NoBody, " ", r.Header.Get("Link"))
		w.Write(make([]byte, 100<<10))
	})
	for _, withTLS := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls=%v", withTLS), func(t *testing.T) {
			release = make(chan struct{})
			addr := httpListen(t, &h2.Config{Handler: h2.HTTPHandler(h)}, withTLS)
			c := httpDial(t, &h2.Config{EnablePush: true}, addr, withTLS)
			url := "http://" + addr + "/"
			if withTLS {
				url = "https://" + addr + "/"
			}
			req, _ := http.NewRequest("GET", url, nil)
			var mu sync.Mutex
			var got []string
			all := make(chan struct{})
			resp, err := c.Do(t.Context(), req, func(req *http.Request, resp *http.Response) {
				b, err := io.ReadAll(resp.Body)
				if want := 100 << 10; err != nil || len(b) < want && req.Method == "GET" {
					t.Errorf("%s: %d bytes, %v", req.URL, len(b), err)
				}
				text, _, _ := bytes.Cut(b, []byte{0})
				mu.Lock()
				defer mu.Unlock()
				got = append(got, fmt.Sprint(req.Method, " ", req.URL.Path, " ", req.URL.String() == url[:len(url)-1]+req.URL.RequestURI(), " ",
					resp.StatusCode, " ", resp.Header.Get("X-Host") == addr, " [", string(text), "]"))
				if len(got) == 6 {
					close(all)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			<-all
			close(release)
			if b, err := io.ReadAll(resp.Body); string(b) != "parent" || err != nil {
				t.Errorf("parent = %q, %v", b, err)
			}
			resp.Body.Close()
			slices.Sort(got)
			for i, g := range got {
				want := fmt.Sprintf("GET /pushed/%d true 200 true [GET /pushed/%d?q=1 true </s>; rel=push]", i, i)
				if i == 5 {
					want = "HEAD /pushed/head true 200 true []"
				}
				if g != want {
					t.Errorf("pushed %q, want %q", g, want)
				}
			}
			wantNoStreams(t, c)
		})
	}
}

// TestHTTPPushNotSupported pushes to clients that do not take promises.
func TestHTTPPushNotSupported(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, errors.Is(w.(http.Pusher).Push("/x", nil), http.ErrNotSupported))
	})
	eachHTTPPair(t, h, func(t *testing.T, p httpPair) {
		if _, got := p.do(t, "GET", "/", nil, nil); got != "true" {
			t.Errorf("Push is http.ErrNotSupported = %s, want true", got)
		}
	})
}

// TestHTTPPushBad asks for promises that cannot be made.
func TestHTTPPushBad(t *testing.T) {
	var got []string
	cases := []struct {
		target string
		opts   *http.PushOptions
	}{
		{"relative", nil},
		{"ftp://a/b", nil},
		{"https://a/b", nil},
		{"http:///b", nil},
		{"/\x00", nil},
		{"/x", &http.PushOptions{Method: "POST"}},
		{"/x", &http.PushOptions{Header: http.Header{":path": {"/y"}}}},
		{"/x", &http.PushOptions{Header: http.Header{"Content-Length": {"1"}}}},
		{"/x", &http.PushOptions{Header: http.Header{"Host": {"b"}}}},
		{"/x", &http.PushOptions{Header: http.Header{"Connection": {"close"}}}},
	}
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, c := range cases {
			if err := w.(http.Pusher).Push(c.target, c.opts); err == nil {
				got = append(got, fmt.Sprintf("%q %v", c.target, c.opts))
			}
		}
	})
	addr := httpListen(t, &h2.Config{Handler: h2.HTTPHandler(h)}, false)
	c := httpDial(t, &h2.Config{EnablePush: true}, addr, false)
	req, _ := http.NewRequest("GET", "http://"+addr, nil)
	resp, err := c.Do(t.Context(), req, func(r *http.Request, _ *http.Response) { t.Errorf("promise of %v", r.URL) })
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	for _, g := range got {
		t.Errorf("promised %s", g)
	}
}

// TestHTTPPromiseAuthority checks that a server may promise only what it may answer, and that a promise
// without a taker is cancelled.
func TestHTTPPromiseAuthority(t *testing.T) {
	for _, c := range []struct {
		name      string
		push      bool
		authority string
		scheme    string
		want      h2test.ErrCode
	}{
		{"other host", true, "other.example", "http", h2test.ProtocolError},
		{"other scheme", true, "a.example", "https", h2test.ProtocolError},
		{"nobody asked", false, "a.example", "http", h2test.Cancel},
		{"same host", true, "A.example", "http", h2test.NoError},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := client(t, &h2.Config{EnablePush: true})
				ctx, cancel := context.WithCancel(t.Context())
				var onPush func(*http.Request, *http.Response)
				got := make(chan string, 1)
				if c.push {
					onPush = func(req *http.Request, resp *http.Response) { got <- req.URL.String() + " " + resp.Status }
				}
				done := make(chan struct{})
				go func() {
					defer close(done)
					req, _ := http.NewRequest("GET", "http://a.example/", nil)
					if _, err := p.conn.Do(ctx, req, onPush); !errors.Is(err, context.Canceled) {
						t.Errorf("Do = %v", err)
					}
				}()
				p.WantFrame(h2test.Headers, 1, "the request")
				p.WritePushPromise(1, 2, h2test.Fields(":method", "GET", ":scheme", c.scheme, ":authority", c.authority, ":path", "/x")...)
				if c.want == h2test.NoError {
					p.WriteHeaders(2, true, h2test.Response("204")...)
					if g := <-got; !strings.EqualFold(g, "http://a.example/x 204 No Content") {
						t.Errorf("promise = %q", g)
					}
				} else {
					p.WantRST(2, "the promise is refused", c.want)
				}
				cancel()
				p.WantRST(1, "the request was cancelled", h2test.Cancel)
				<-done
			})
		})
	}
}

// TestHTTPConnect opens tunnels through the handler (RFC 9113, section 8.5; RFC 8441).
func TestHTTPConnect(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host == "refuse.example:1" {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		w.Header().Set("X-Seen", fmt.Sprintf("%s|%s|%s|%s|%s|%s|%d", r.Method, r.Host, r.RequestURI, r.URL.Host, r.URL.Path, r.Header.Get(":protocol"), r.ContentLength))
		w.Header().Set("Content-Length", "3") // means nothing on a tunnel
		w.Header().Set("Trailer", "X-Never")
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		w.Header().Set("X-Never", "1")
		b := make([]byte, 1000)
		for {
			n, err := r.Body.Read(b)
			w.Write(b[:n])
			w.(http.Flusher).Flush()
			if err != nil {
				return
			}
		}
	})
	addr := httpListen(t, &h2.Config{Handler: h2.HTTPHandler(h), EnableConnectProtocol: true}, false)
	c := httpDial(t, nil, addr, false)
	for _, k := range []struct{ name, url, host, protocol, want string }{
		{"connect", "http://x/", "dest.example:443", "", "CONNECT|dest.example:443|dest.example:443|dest.example:443|||-1"},
		{"extended", "http://dest.example/chat?x", "", "websocket", "CONNECT|dest.example|/chat?x||/chat|websocket|-1"},
	} {
		t.Run(k.name, func(t *testing.T) {
			pr, pw := io.Pipe()
			req, _ := http.NewRequest("CONNECT", k.url, pr)
			if k.host != "" {
				req.Host = k.host
			}
			if k.protocol != "" {
				req.Header[":protocol"] = []string{k.protocol}
			}
			resp, err := c.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			if got := resp.Header.Get("X-Seen"); got != k.want || resp.ContentLength != -1 || resp.Header.Get("Content-Length") != "" || resp.Header.Get("Content-Type") != "" {
				t.Errorf("handler saw %q, want %q; length %d, header %v", got, k.want, resp.ContentLength, resp.Header)
			}
			for range 3 {
				io.WriteString(pw, "through")
				b := make([]byte, 7)
				if _, err := io.ReadFull(resp.Body, b); string(b) != "through" || err != nil {
					t.Errorf("tunnel = %q, %v", b, err)
				}
			}
			pw.Close()
			if b, err := io.ReadAll(resp.Body); len(b) > 0 || err != nil {
				t.Errorf("end = %q, %v", b, err)
			}
			resp.Body.Close()
			if v := resp.Trailer.Get("X-Never"); v != "" {
				t.Errorf("a tunnel with trailer %q", v)
			}
			wantNoStreams(t, c)
		})
	}
	t.Run("refused", func(t *testing.T) {
		req, _ := http.NewRequest("CONNECT", "http://x/", nil)
		req.Host = "refuse.example:1"
		resp, err := c.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 403 || string(b) != "no\n" {
			t.Errorf("answer = %d %q", resp.StatusCode, b)
		}
	})
}

// TestHTTPConnectNotAllowed sends an extended CONNECT to a server that has not enabled it.
func TestHTTPConnectNotAllowed(t *testing.T) {
	c := httpDial(t, nil, httpListen(t, &h2.Config{Handler: h2.HTTPHandler(http.NotFoundHandler())}, false), false)
	req, _ := http.NewRequest("CONNECT", "http://a/", nil)
	req.Header[":protocol"] = []string{"websocket"}
	if _, err := c.RoundTrip(req); !errors.Is(err, h2.ErrNoConnectProtocol) {
		t.Errorf("RoundTrip = %v, want ErrNoConnectProtocol", err)
	}
}

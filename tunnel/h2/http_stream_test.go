package h2_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert/tunnel/h2"
)

// TestHTTPFullDuplex lets the handler answer each piece before the next is sent.
func TestHTTPFullDuplex(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		b := make([]byte, 100)
		for {
			n, err := r.Body.Read(b)
			if n > 0 {
				w.Write(bytes.ToUpper(b[:n]))
				w.(http.Flusher).Flush()
			}
			if err != nil {
				return
			}
		}
	})
	eachHTTPPair(t, h, func(t *testing.T, p httpPair) {
		pr, pw := io.Pipe()
		req, _ := http.NewRequest("POST", p.url, pr)
		resp, err := p.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 200 {
			want := strings.Repeat(string(rune('a'+i%26)), 1+i%90)
			io.WriteString(pw, want)
			got := make([]byte, len(want))
			if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != strings.ToUpper(want) {
				t.Fatalf("piece %d: %q %v, want %q", i, got, err, strings.ToUpper(want))
			}
		}
		pw.Close()
		if b, err := io.ReadAll(resp.Body); len(b) > 0 || err != nil {
			t.Errorf("end = %q, %v", b, err)
		}
		resp.Body.Close()
	})
}

// TestHTTPLargeBodies sends much both ways at once.
func TestHTTPLargeBodies(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/echo" {
			io.Copy(w, r.Body)
			return
		}
		sum := sha256.New()
		if r.URL.Path == "/read" {
			io.Copy(sum, struct{ io.Reader }{r.Body})
		} else {
			io.Copy(sum, r.Body)
		}
		fmt.Fprintf(w, "%x", sum.Sum(nil))
	})
	data := make([]byte, 2<<20+123)
	rand.NewChaCha8([32]byte{}).Read(data)
	want := fmt.Sprintf("%x", sha256.Sum256(data))
	eachHTTPPair(t, h, func(t *testing.T, p httpPair) {
		var wg sync.WaitGroup
		for i := range 6 {
			wg.Go(func() {
				path := [...]string{"/echo", "/read", "/copy"}[i%3]
				var body io.Reader = bytes.NewReader(data)
				if i >= 3 {
					body = struct{ io.Reader }{body} // length not known
				}
				resp, err := p.client.Post(p.url+path, "a/b", body)
				if err != nil {
					t.Errorf("%s = %v", path, err)
					return
				}
				defer resp.Body.Close()
				b, err := io.ReadAll(resp.Body)
				if path == "/echo" {
					b = fmt.Appendf(nil, "%x", sha256.Sum256(b))
				}
				if err != nil || string(b) != want {
					t.Errorf("%s: sum %s, %v; want %s", path, b, err, want)
				}
			})
		}
		wg.Wait()
	})
}

// TestHTTPContinue checks 100 (Continue) (RFC 9110, section 10.1.1).
func TestHTTPContinue(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/refuse" {
			w.WriteHeader(http.StatusExpectationFailed)
			return
		}
		if e := r.Header.Get("Expect"); e != "" {
			t.Errorf("handler sees Expect %q", e)
		}
		b, err := io.ReadAll(r.Body)
		fmt.Fprint(w, len(b), err)
	})
	eachHTTPPair(t, h, func(t *testing.T, p httpPair) {
		for _, c := range []struct {
			path, body string
			status     int
		}{{"/", "5 <nil>", 200}, {"/refuse", "", 417}} {
			asked := make(chan struct{})
			body := &askedBody{Reader: strings.NewReader("12345"), asked: asked, closed: make(chan struct{})}
			req, _ := http.NewRequest("PUT", p.url+c.path, body)
			req.ContentLength = 5
			req.Header.Set("Expect", "100-continue")
			resp, err := p.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != c.status || string(b) != c.body {
				t.Errorf("%s = %d %q %v, want %d %q", c.path, resp.StatusCode, b, err, c.status, c.body)
			}
			<-body.closed
			select {
			case <-asked:
				if c.status != 200 {
					t.Errorf("%s: content was read although it was refused", c.path)
				}
			default:
				if c.status == 200 {
					t.Errorf("%s: content was not read", c.path)
				}
			}
		}
	})
}

// askedBody notes whether it was read and that it was closed.
type askedBody struct {
	io.Reader
	asked, closed chan struct{}
	once, twice   sync.Once
}

func (b *askedBody) Read(p []byte) (int, error) {
	b.once.Do(func() { close(b.asked) })
	return b.Reader.Read(p)
}

func (b *askedBody) Close() error {
	b.twice.Do(func() { close(b.closed) })
	return nil
}

// TestHTTPCancel ends requests early and looks at both ends.
func TestHTTPCancel(t *testing.T) {
	seen := make(chan error, 1)
	begun := make(chan struct{}, 1) // a handler runs; a request that is reset before gets none
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		if r.URL.Path == "/answered" {
			w.WriteHeader(200)
			w.(http.Flusher).Flush()
		}
		if r.URL.Path == "/read" {
			io.Copy(io.Discard, r.Body)
		}
		<-r.Context().Done()
		_, err := w.Write(make([]byte, 1<<20))
		seen <- err
	})
	eachHTTPPair(t, h, func(t *testing.T, p httpPair) {
		for _, path := range []string{"/", "/answered", "/read"} {
			ctx, cancel := context.WithCancel(t.Context())
			body, filler := io.Pipe()
			req, _ := http.NewRequestWithContext(ctx, "POST", p.url+path, body)
			if p.own == nil { // net/http's client resets when a Read of the body returns
				filler.Close()
			}
			if path == "/answered" {
				resp, err := p.client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				<-begun
				cancel()
				if _, err := io.ReadAll(resp.Body); !errors.Is(err, context.Canceled) {
					t.Errorf("%s: body = %v, want context.Canceled", path, err)
				}
				resp.Body.Close()
			} else {
				go func() { // ends with the handler's begin
					<-begun
					cancel()
				}()
				if _, err := p.client.Do(req); !errors.Is(err, context.Canceled) {
					t.Errorf("%s = %v, want context.Canceled", path, err)
				}
			}
			if err := <-seen; err == nil {
				t.Errorf("%s: handler could write after the reset", path)
			}
			if p.own == nil {
				continue
			}
			// Whoever fills the body is let go.
			if _, err := filler.Write([]byte("x")); err == nil {
				if _, err = filler.Write([]byte("x")); err == nil {
					t.Errorf("%s: the body is still read", path)
				}
			}
		}
	})
}

// TestHTTPContextEnds checks that a handler's context ends with its stream and with its connection, also
// when the end comes before the handler looks.
func TestHTTPContextEnds(t *testing.T) {
	started, over := make(chan struct{}), make(chan error)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(started)
		if r.URL.Path == "/late" {
			for w.(interface{ FlushError() error }).FlushError() == nil {
				runtime.Gosched()
			}
		}
		<-r.Context().Done()
		over <- r.Context().Err()
	})
	for _, path := range []string{"/conn", "/late", "/close"} {
		t.Run(path[1:], func(t *testing.T) {
			started, over = make(chan struct{}), make(chan error)
			addr := httpListen(t, &h2.Config{Handler: h2.HTTPHandler(h)}, false)
			c := httpDial(t, nil, addr, false)
			st, err := c.Open(t.Context(), &h2.Header{Method: "GET", Scheme: "http", Authority: "a", Path: path}, true)
			if err != nil {
				t.Fatal(err)
			}
			<-started
			switch path {
			case "/conn":
				c.NetConn().Close()
			case "/late":
				st.Reset(h2.Cancel)
			case "/close":
				st.Close()
			}
			if err := <-over; !errors.Is(err, context.Canceled) {
				t.Errorf("Context().Err() = %v, want context.Canceled", err)
			}
			st.Close()
		})
	}
}

// TestHTTPPanic lets handlers end in ways other than returning.
func TestHTTPPanic(t *testing.T) {
	var buf syncBuffer
	logger := slog.New(slog.NewTextHandler(&buf, &slog.HandlerOptions{Level: slog.LevelInfo}))
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("early") {
			io.WriteString(w, "some")
			w.(http.Flusher).Flush()
		}
		switch r.URL.Path {
		case "/abort":
			panic(http.ErrAbortHandler)
		case "/panic":
			panic("the handler's reason")
		case "/goexit":
			runtime.Goexit()
		case "/short":
			w.Header().Set("Content-Length", "10")
			io.WriteString(w, "nine byte")
		}
	})
	addr := httpListen(t, &h2.Config{Handler: h2.HTTPHandler(h), Logger: logger}, false)
	c := httpDial(t, nil, addr, false)
	for _, path := range []string{"/abort", "/panic", "/goexit", "/short", "/abort?early", "/panic?early", "/goexit?early"} {
		t.Run(path[1:], func(t *testing.T) {
			buf.Reset()
			req, _ := http.NewRequest("GET", "http://"+addr+path, nil)
			resp, err := c.RoundTrip(req)
			if strings.HasSuffix(path, "early") {
				if err != nil {
					t.Fatal(err)
				}
				_, err = io.ReadAll(resp.Body)
				resp.Body.Close()
			}
			var se *h2.StreamError
			if !errors.As(err, &se) || se.Code != h2.InternalError || se.By != h2.Peer {
				t.Errorf("client sees %v, want the peer's INTERNAL_ERROR", err)
			}
			wantNoStreams(t, c)
			want := 0
			if strings.HasPrefix(path, "/panic") {
				want = 1
			}
			for strings.Count(buf.String(), "the handler's reason") < want {
				runtime.Gosched() // the log is written after the reset
			}
			if log := buf.String(); strings.Count(log, "level=ERROR") != want || want > 0 && !strings.Contains(log, "http_stream_test.go") {
				t.Errorf("log = %q, want %d panics with a stack", log, want)
			}
		})
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *syncBuffer) Reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.b.Reset()
}

// TestHTTPDeadlines sets deadlines through http.ResponseController.
func TestHTTPDeadlines(t *testing.T) {
	result := make(chan error, 1)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		soon := time.Now().Add(20 * time.Millisecond)
		switch r.URL.Path {
		case "/read":
			if err := rc.SetReadDeadline(soon); err != nil {
				t.Error(err)
			}
			_, err := io.ReadAll(r.Body)
			rc.SetReadDeadline(time.Time{})
			if _, again := r.Body.Read(make([]byte, 1)); again == nil {
				t.Error("Read after the deadline = nil")
			}
			result <- err
			io.WriteString(w, "late")
		case "/write":
			if err := rc.SetWriteDeadline(soon); err != nil {
				t.Error(err)
			}
			var err error
			for err == nil {
				_, err = w.Write(make([]byte, 64<<10))
			}
			rc.SetWriteDeadline(time.Time{})
			if _, again := w.Write([]byte("x")); again == nil {
				t.Error("Write after the deadline = nil")
			}
			result <- err
		case "/hijack":
			_, _, err := rc.Hijack()
			result <- err
		}
	})
	addr := httpListen(t, &h2.Config{Handler: h2.HTTPHandler(h)}, true)
	c := httpDial(t, nil, addr, true)
	get := func(path string, body io.Reader) (*http.Response, error) {
		req, _ := http.NewRequest("POST", "https://"+addr+path, body)
		return c.RoundTrip(req)
	}
	pr, pw := io.Pipe()
	resp, err := get("/read", pr)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(resp.Body); string(b) != "late" || err != nil {
		t.Errorf("/read: body %q, %v", b, err)
	}
	resp.Body.Close()
	pw.Close()
	if err := <-result; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("body after the read deadline = %v, want os.ErrDeadlineExceeded", err)
	}
	resp, err = get("/write", nil) // nobody reads: the windows fill up
	if err != nil {
		t.Fatal(err)
	}
	if err := <-result; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("write after the deadline = %v, want os.ErrDeadlineExceeded", err)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	var se *h2.StreamError
	if !errors.As(err, &se) || se.Code != h2.InternalError {
		t.Errorf("body of a cut response = %v, want INTERNAL_ERROR", err)
	}
	resp.Body.Close()
	if resp, err = get("/hijack", nil); err == nil {
		resp.Body.Close()
	}
	if err := <-result; !errors.Is(err, http.ErrNotSupported) {
		t.Errorf("Hijack = %v, want http.ErrNotSupported", err)
	}
}

// A handler takes the stream of a CONNECT over when it has answered that, once, and not before.
func TestHijack(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		if _, _, err := rc.Hijack(); !errors.Is(err, http.ErrNotSupported) {
			t.Errorf("Hijack before the answer = %v", err)
		}
		w.Header().Set("X-Said", "yes")
		w.WriteHeader(http.StatusOK)
		c, rw, err := rc.Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		if _, _, err := rc.Hijack(); !errors.Is(err, http.ErrNotSupported) {
			t.Errorf("Hijack again = %v", err)
		}
		if _, err := io.WriteString(w, "not this way"); err == nil {
			t.Error("the ResponseWriter still writes")
		}
		if _, err := io.Copy(c, rw); err != nil {
			t.Error(err)
		}
		if err := c.(*h2.Stream).CloseWrite(); err != nil {
			t.Error(err)
		}
	})
	addr := httpListen(t, &h2.Config{Handler: h2.HTTPHandler(h), EnableConnectProtocol: true}, true)
	c := httpDial(t, nil, addr, true)
	if _, err := c.Ping(t.Context()); err != nil { // the SETTINGS have come
		t.Fatal(err)
	}
	for _, head := range []*h2.Header{{Method: "CONNECT", Authority: "a:1"}, {Method: "CONNECT", Protocol: "websocket", Scheme: "https", Authority: "a", Path: "/"}} {
		st, err := c.Open(t.Context(), head, false)
		if err != nil {
			t.Fatal(err)
		}
		if answer, err := st.Response(t.Context()); err != nil || answer.Status != 200 || answer.Get("x-said") != "yes" {
			t.Fatalf("%v, %v", answer, err)
		}
		if _, err := io.WriteString(st, "there and back"); err != nil {
			t.Fatal(err)
		}
		if err := st.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if all, err := io.ReadAll(st); err != nil || string(all) != "there and back" {
			t.Errorf("%q, %v", all, err)
		}
	}
}

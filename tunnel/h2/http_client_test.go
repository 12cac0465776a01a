package h2_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert/tunnel/h2"
	"culvert/tunnel/h2/h2test"
)

// TestRoundTripHead checks what goes on the wire for a request.
func TestRoundTripHead(t *testing.T) {
	for _, c := range []struct {
		name   string
		req    func(r *http.Request)
		method string
		body   io.Reader
		want   map[string]string // "" means absent
		end    bool
	}{
		{"plain", func(r *http.Request) {}, "GET", nil, map[string]string{":method": "GET", ":scheme": "http", ":authority": "a.example", ":path": "/p?q",
			"user-agent": "", "accept-encoding": "", "content-length": ""}, true},
		{"no method", func(r *http.Request) { r.Method = "" }, "GET", nil, map[string]string{":method": "GET"}, true},
		{"empty post", func(r *http.Request) {}, "POST", nil, map[string]string{"content-length": "0"}, true},
		{"post", func(r *http.Request) {}, "POST", strings.NewReader("abc"), map[string]string{"content-length": "3"}, false},
		{"host", func(r *http.Request) { r.Host = "b.example:1"; r.Header.Set("Host", "c") }, "GET", nil, map[string]string{":authority": "b.example:1", "host": ""}, true},
		{"hop by hop", func(r *http.Request) {
			r.Header = http.Header{"Connection": {"keep-alive"}, "Keep-Alive": {"1"}, "Proxy-Connection": {"x"}, "Transfer-Encoding": {"chunked"},
				"Upgrade": {""}, "Te": {"gzip"}, "X-Kept": {" v "}}
		}, "GET", nil, map[string]string{"connection": "", "keep-alive": "", "proxy-connection": "", "transfer-encoding": "", "upgrade": "", "te": "", "x-kept": "v"}, true},
		{"te", func(r *http.Request) { r.Header.Set("Te", "trailers") }, "GET", nil, map[string]string{"te": "trailers"}, true},
		{"declared by header", func(r *http.Request) { r.Header.Set("Content-Length", "7") }, "POST", strings.NewReader("abc"), map[string]string{"content-length": "3"}, false},
		{"trailers", func(r *http.Request) { r.Trailer = http.Header{"X-B": nil, "X-A": nil} }, "POST", nil, map[string]string{"trailer": "X-A, X-B"}, false},
		{"opaque", func(r *http.Request) {
			r.URL = &url.URL{Scheme: "http", Host: "a.example", Opaque: "//a.example/op%61que"}
		}, "GET", nil,
			map[string]string{":path": "/op%61que"}, true},
		{"asterisk", func(r *http.Request) { r.URL.Path, r.URL.RawQuery, r.URL.Opaque = "*", "", "" }, "OPTIONS", nil, map[string]string{":path": "*"}, true},
		{"connect", func(r *http.Request) { r.Host = "d:1" }, "CONNECT", nil, map[string]string{":authority": "d:1", ":path": "", ":scheme": ""}, true},
		{"useless expect", func(r *http.Request) { r.Header.Set("Expect", "100-continue") }, "GET", nil, map[string]string{"expect": ""}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := client(t, nil)
				req, _ := http.NewRequest(c.method, "http://a.example/p?q", c.body)
				c.req(req)
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() {
					defer close(done)
					p.conn.RoundTrip(req.WithContext(ctx))
				}()
				f := p.WantFrame(h2test.Headers, 1, "the request")
				for name, want := range c.want {
					if got := f.Value(name); got != want {
						t.Errorf("%s = %q, want %q", name, got, want)
					}
				}
				if f.EndStream() != c.end {
					t.Errorf("END_STREAM = %v, want %v", f.EndStream(), c.end)
				}
				cancel()
				<-done
			})
		})
	}
}

// TestRoundTripRefuses checks that what cannot be sent is not, and that its body is closed.
func TestRoundTripRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		req  func(r *http.Request)
	}{
		{"no url", func(r *http.Request) { r.URL = nil }},
		{"bad name", func(r *http.Request) { r.Header["A b"] = []string{"x"} }},
		{"name with colon", func(r *http.Request) { r.Header[":path"] = []string{"/"} }},
		{"value with newline", func(r *http.Request) { r.Header["A"] = []string{"x\r\nB: c"} }},
		{"bad host", func(r *http.Request) { r.Host = "a b" }},
		{"userinfo in host", func(r *http.Request) { r.Host = "a@b" }},
		{"idn host", func(r *http.Request) { r.Host = "bücher.example" }},
		{"upgrade", func(r *http.Request) { r.Header.Set("Upgrade", "websocket") }},
		{"transfer-encoding", func(r *http.Request) { r.Header.Set("Transfer-Encoding", "gzip") }},
		{"trailer that frames", func(r *http.Request) { r.Trailer = http.Header{"Content-Length": nil} }},
		{"bad method", func(r *http.Request) { r.Method = "G T" }},
		{"bad scheme", func(r *http.Request) { r.URL.Scheme = "" }},
		{"protocol without connect", func(r *http.Request) { r.Header[":protocol"] = []string{"x"} }},
		{"huge header", func(r *http.Request) { r.Header.Set("A", strings.Repeat("x", 70<<10)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			addr := httpListen(t, &h2.Config{Handler: h2.HTTPHandler(http.NotFoundHandler())}, false)
			conn := httpDial(t, nil, addr, false)
			if err := conn.WaitSettings(t.Context()); err != nil {
				t.Fatal(err)
			}
			body := &askedBody{Reader: strings.NewReader("x"), asked: make(chan struct{}), closed: make(chan struct{})}
			req, _ := http.NewRequest("POST", "http://"+addr, body)
			c.req(req)
			resp, err := conn.RoundTrip(req)
			if err == nil {
				t.Errorf("RoundTrip = %v, want an error", resp.Status)
			}
			<-body.closed
		})
	}
}

// TestRoundTripBodyFails checks requests whose body cannot be sent as announced.
func TestRoundTripBodyFails(t *testing.T) {
	broken := errors.New("the disk is gone")
	for _, c := range []struct {
		name   string
		body   io.Reader
		length int64
		want   error
	}{
		{"read error", io.MultiReader(strings.NewReader("abc"), readerFunc(func([]byte) (int, error) { return 0, broken })), -1, broken},
		{"too short", struct{ io.Reader }{strings.NewReader("abc")}, 4, io.ErrUnexpectedEOF},
		{"too long", struct{ io.Reader }{strings.NewReader("abc")}, 2, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := client(t, nil)
				done := make(chan error)
				go func() {
					req, _ := http.NewRequest("POST", "http://a/", c.body)
					req.ContentLength = c.length
					_, err := p.conn.RoundTrip(req)
					done <- err
				}()
				p.Ignore(h2test.Data)
				p.WantFrame(h2test.Headers, 1, "the request")
				p.WantRST(1, "what was sent is not the whole", h2test.Cancel)
				if err := <-done; err == nil || c.want != nil && !errors.Is(err, c.want) {
					t.Errorf("RoundTrip = %v, want %v", err, c.want)
				}
			})
		})
	}
}

// TestRoundTripScripts plays servers of all kinds.
func TestRoundTripScripts(t *testing.T) {
	type outcome struct {
		resp *http.Response
		body string
		err  error // of RoundTrip
		berr error // of the body
	}
	streamErr := func(err error, code h2.ErrCode) bool {
		var se *h2.StreamError
		return errors.As(err, &se) && se.Code == code
	}
	for _, c := range []struct {
		name   string
		method string
		body   io.Reader
		script func(p *specPeer)
		check  func(o outcome) bool
	}{
		{"204 with late end", "GET", nil, func(p *specPeer) {
			p.WriteHeaders(1, false, h2test.Response("204")...)
			p.WriteData(1, true, nil)
		}, func(o outcome) bool { return o.err == nil && o.resp.StatusCode == 204 && o.berr == nil && o.body == "" }},
		{"longer than declared", "GET", nil, func(p *specPeer) {
			p.WriteHeaders(1, false, h2test.Response("200", "content-length", "2")...)
			p.WriteData(1, false, []byte("abc"))
			p.WantRST(1, "malformed", h2test.ProtocolError)
		}, func(o outcome) bool { return streamErr(o.berr, h2.ProtocolError) }},
		{"shorter than declared", "GET", nil, func(p *specPeer) {
			p.WriteHeaders(1, false, h2test.Response("200", "content-length", "4")...)
			p.WriteData(1, true, []byte("abc"))
			p.WantRST(1, "malformed", h2test.ProtocolError)
		}, func(o outcome) bool { return streamErr(o.berr, h2.ProtocolError) }},
		{"declared but nothing", "GET", nil, func(p *specPeer) {
			p.WriteHeaders(1, true, h2test.Response("200", "content-length", "4")...)
		}, func(o outcome) bool { return streamErr(o.err, h2.ProtocolError) || streamErr(o.berr, h2.ProtocolError) }},
		{"head with length", "HEAD", nil, func(p *specPeer) {
			p.WriteHeaders(1, true, h2test.Response("200", "content-length", "4")...)
		}, func(o outcome) bool { return o.err == nil && o.resp.ContentLength == 4 && o.resp.Body == http.NoBody }},
		{"head with content", "HEAD", nil, func(p *specPeer) {
			p.WriteHeaders(1, false, h2test.Response("200")...)
			p.WriteData(1, true, []byte("abc"))
		}, func(o outcome) bool { return o.err == nil && o.body == "" && o.berr != nil }},
		{"cut", "GET", nil, func(p *specPeer) {
			p.WriteHeaders(1, false, h2test.Response("200")...)
			p.WriteData(1, false, []byte("abc"))
			p.WriteRST(1, h2test.InternalError)
		}, func(o outcome) bool {
			return o.body == "abc" && streamErr(o.berr, h2.InternalError) && !h2.Unprocessed(o.berr)
		}},
		{"refused", "POST", strings.NewReader("x"), func(p *specPeer) {
			p.WriteRST(1, h2test.RefusedStream)
		}, func(o outcome) bool { return streamErr(o.err, h2.RefusedStream) && h2.Unprocessed(o.err) }},
		{"goaway before it", "GET", nil, func(p *specPeer) {
			p.WriteGoAway(0, h2test.NoError, "")
		}, func(o outcome) bool { return o.err != nil && h2.Unprocessed(o.err) }},
		{"goaway after it", "GET", nil, func(p *specPeer) {
			p.WriteGoAway(1, h2test.NoError, "")
			p.WriteHeaders(1, true, h2test.Response("200")...)
		}, func(o outcome) bool { return o.err == nil && o.resp.StatusCode == 200 }},
		{"connection lost", "GET", nil, func(p *specPeer) { p.Close() }, func(o outcome) bool { return o.err != nil && !h2.Unprocessed(o.err) }},
		{"trailers nobody announced", "GET", nil, func(p *specPeer) {
			p.WriteHeaders(1, false, h2test.Response("200")...)
			p.WriteData(1, false, []byte("abc"))
			p.WriteHeaders(1, true, h2test.Fields("x-sum", "1", "content-length", "9", "x-sum", "2")...)
		}, func(o outcome) bool {
			return o.body == "abc" && o.berr == nil && fmt.Sprint(o.resp.Trailer) == "map[X-Sum:[1 2]]"
		}},
		{"complete answer and NO_ERROR while the body is sent", "POST", endlessReader{}, func(p *specPeer) {
			p.WriteHeaders(1, false, h2test.Response("200")...)
			p.WriteData(1, true, []byte("enough"))
			p.WriteRST(1, h2test.NoError)
		}, func(o outcome) bool { return o.body == "enough" && o.berr == nil }},
		{"error while the body is sent", "POST", endlessReader{}, func(p *specPeer) {
			p.WriteHeaders(1, false, h2test.Response("413")...)
			p.WriteData(1, true, []byte("too much"))
			p.WantRST(1, "nothing more comes", h2test.Cancel)
		}, func(o outcome) bool { return o.body == "too much" && o.berr == nil && o.resp.StatusCode == 413 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := client(t, nil)
				body := &askedBody{Reader: c.body, asked: make(chan struct{}), closed: make(chan struct{})}
				done := make(chan outcome)
				go func() {
					var o outcome
					req, _ := http.NewRequest(c.method, "http://a/", nil)
					if c.body != nil {
						req.Body = body
					}
					if o.resp, o.err = p.conn.RoundTrip(req); o.err == nil {
						b, err := io.ReadAll(o.resp.Body)
						o.body, o.berr = string(b), err
						o.resp.Body.Close()
					}
					done <- o
				}()
				p.Ignore(h2test.Data)
				p.WantFrame(h2test.Headers, 1, "the request")
				c.script(p)
				if o := <-done; !c.check(o) {
					t.Errorf("RoundTrip = %+v", o)
				}
				if c.body != nil {
					<-body.closed
				}
			})
		})
	}
}

// endlessReader reads zeros for ever.
type endlessReader struct{}

func (endlessReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestRoundTripTrace checks the hooks of httptrace.
func TestRoundTripTrace(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := client(t, nil)
		var log bytes.Buffer
		stop := errors.New("stop")
		trace := &httptrace.ClientTrace{
			GotConn:              func(i httptrace.GotConnInfo) { fmt.Fprint(&log, "conn ", i.Conn == p.conn.NetConn(), "|") },
			WroteHeaders:         func() { fmt.Fprint(&log, "headers|") },
			Wait100Continue:      func() { fmt.Fprint(&log, "wait|") },
			Got100Continue:       func() { fmt.Fprint(&log, "100|") },
			GotFirstResponseByte: func() { fmt.Fprint(&log, "byte|") },
		}
		ctx := httptrace.WithClientTrace(t.Context(), trace)
		done := make(chan error)
		send := func() {
			req, _ := http.NewRequestWithContext(ctx, "POST", "http://a/", strings.NewReader("abc"))
			req.Header.Set("Expect", "100-continue")
			resp, err := p.conn.RoundTrip(req)
			if err == nil {
				resp.Body.Close()
			}
			done <- err
		}
		go send()
		p.WantFrame(h2test.Headers, 1, "the request")
		p.WantIdle("the content waits")
		p.WriteHeaders(1, false, h2test.Response("100")...)
		p.WantData(1, []byte("abc"), true, "the content")
		p.WriteHeaders(1, true, h2test.Response("200")...)
		if err := <-done; err != nil || log.String() != "conn true|headers|wait|100|byte|" {
			t.Errorf("RoundTrip = %v, trace %s", err, &log)
		}

		// Nobody says 100: the content is sent after a second.
		start := time.Now()
		go send()
		p.WantFrame(h2test.Headers, 3, "the request")
		p.WantData(3, []byte("abc"), true, "the content")
		if d := time.Since(start); d != time.Second {
			t.Errorf("content sent after %v, want 1s", d)
		}
		p.WriteHeaders(3, true, h2test.Response("200")...)
		if err := <-done; err != nil {
			t.Errorf("RoundTrip = %v", err)
		}

		// An error of Got1xxResponse ends the request.
		trace.Got1xxResponse = nil
		ctx = httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
			Got1xxResponse: func(int, textproto.MIMEHeader) error { return stop },
		})
		go send()
		p.WantFrame(h2test.Headers, 5, "the request")
		p.WriteHeaders(5, false, h2test.Response("103", "link", "x")...)
		p.WantRST(5, "the caller does not go on", h2test.Cancel)
		if err := <-done; !errors.Is(err, stop) {
			t.Errorf("RoundTrip = %v, want the hook's error", err)
		}
	})
}

// TestRoundTripCloseEarly closes a response that goes on.
func TestRoundTripCloseEarly(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, endlessReader{}) })
	addr := httpListen(t, &h2.Config{Handler: h2.HTTPHandler(h)}, false)
	c := httpDial(t, nil, addr, false)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			req, _ := http.NewRequest("GET", "http://"+addr, nil)
			resp, err := c.RoundTrip(req)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := io.CopyN(io.Discard, resp.Body, 100<<10); err != nil {
				t.Error(err)
			}
			resp.Body.Close()
			resp.Body.Close()
			if _, err := resp.Body.Read(make([]byte, 1)); err == nil || err == io.EOF {
				t.Errorf("Read after Close = %v", err)
			}
		})
	}
	wg.Wait()
	wantNoStreams(t, c)
}

// TestRoundTripMany sends many requests at once over one connection.
func TestRoundTripMany(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Echo", r.URL.Path)
		w.Write(b)
	})
	eachHTTPPair(t, h, func(t *testing.T, p httpPair) {
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				for j := range 30 {
					path := fmt.Sprintf("/%d/%d", i, j)
					resp, err := p.client.Post(p.url+path, "a/b", strings.NewReader(strings.Repeat(path, i*j)))
					if err != nil {
						t.Error(err)
						return
					}
					b, err := io.ReadAll(resp.Body)
					resp.Body.Close()
					if err != nil || string(b) != strings.Repeat(path, i*j) || resp.Header.Get("X-Echo") != path {
						t.Errorf("%s: %d bytes, %v", path, len(b), err)
						return
					}
				}
			})
		}
		wg.Wait()
	})
}

// TestRoundTripSmallBody sends a small body from memory in one frame, and by pieces where there is no
// window for it.
func TestRoundTripSmallBody(t *testing.T) {
	for _, c := range []struct {
		name   string
		window uint32
		length int64 // declared; 5 are sent
		want   string
	}{{"one frame", 1000, 5, ""}, {"no window", 0, 5, ""}, {"small window", 3, 5, ""}, {"too short", 1000, 6, "unexpected EOF"}, {"too long", 1000, 4, "longer"}} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := client(t, nil, h2test.Setting{ID: h2test.InitialWindowSize, Value: c.window})
				if err := p.conn.WaitSettings(t.Context()); err != nil {
					t.Fatal(err)
				}
				done := make(chan error)
				go func() {
					req, _ := http.NewRequest("POST", "http://a/", strings.NewReader("12345"))
					req.ContentLength = c.length
					resp, err := p.conn.RoundTrip(req)
					if err == nil {
						resp.Body.Close()
					}
					done <- err
				}()
				if c.want != "" {
					if err := <-done; err == nil || !strings.Contains(err.Error(), c.want) {
						t.Errorf("RoundTrip = %v, want an error with %q", err, c.want)
					}
					p.WantIdle("nothing was sent")
					return
				}
				p.WantFrame(h2test.Headers, 1, "the request")
				got := ""
				for end := false; !end; {
					if c.window < 5 && len(got) < 5 {
						p.WriteWindowUpdate(1, 2)
					}
					f := p.WantFrame(h2test.Data, 1, "content")
					got += string(f.Data())
					end = f.EndStream()
				}
				if got != "12345" {
					t.Errorf("content = %q", got)
				}
				p.WriteHeaders(1, true, h2test.Response("200")...)
				if err := <-done; err != nil {
					t.Errorf("RoundTrip = %v", err)
				}
			})
		})
	}
}

package h2_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"culvert/tunnel/h2"
	"culvert/tunnel/h2/h2test"
)

// httpServer starts a handler with a scripted client that has shaken hands.
func httpServer(t *testing.T, h http.HandlerFunc, settings ...h2test.Setting) *specPeer {
	t.Helper()
	return server(t, &h2.Config{Handler: h2.HTTPHandler(h), EnableConnectProtocol: true}, settings...)
}

// TestHTTPBadRequests sends requests that are well-formed HTTP/2 and no good as HTTP.
func TestHTTPBadRequests(t *testing.T) {
	h := func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, "host ", r.Host)
	}
	fields := func(authority, path string, more ...string) []h2test.Field {
		f := h2test.Fields(":method", "GET", ":scheme", "http", ":authority", authority, ":path", path)
		return append(f, h2test.Fields(more...)...)
	}
	for _, c := range []struct {
		name   string
		fields []h2test.Field
		status string // "" means reset
		body   string
	}{
		{"space in the path", fields("a", "/a b"), "400", ""},
		{"bad escape", fields("a", "/%zz"), "400", ""},
		{"host with slash", fields("a/b", "/"), "400", ""},
		{"host with space", fields("a b", "/"), "400", ""},
		{"host with 8 bit", fields("b\xfccher", "/"), "400", ""},
		{"host field alone", h2test.Fields(":method", "GET", ":scheme", "http", ":path", "/", "host", "h.example"), "200", "host h.example"},
		{"host field alone, bad", h2test.Fields(":method", "GET", ":scheme", "http", ":path", "/", "host", "h/x"), "400", ""},
		{"no host", h2test.Fields(":method", "GET", ":scheme", "http", ":path", "/"), "200", "host "},
		{"same host twice", fields("a", "/", "host", "a", "host", "a"), "400", ""},
		{"host agrees", fields("a", "/", "host", "A"), "200", "host a"},
		{"two slashes", fields("a", "//b/c"), "200", "host a"},
		{"asterisk", h2test.Fields(":method", "OPTIONS", ":scheme", "http", ":authority", "a", ":path", "*"), "200", "host a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := httpServer(t, h)
				p.WriteHeaders(1, true, c.fields...)
				f := p.WantFrame(h2test.Headers, 1, "an answer")
				if f.Value(":status") != c.status {
					t.Errorf("status = %s, want %s", f.Value(":status"), c.status)
				}
				d := p.WantFrame(h2test.Data, 1, "its content")
				if c.body != "" && string(d.Data()) != c.body {
					t.Errorf("content = %q, want %q", d.Data(), c.body)
				}
				// The connection lives on.
				p.WriteHeaders(3, true, fields("a", "/")...)
				p.WantHeaders(3, "the next request is served", map[string]string{":status": "200"})
			})
		})
	}
}

// TestHTTPBodyLength sends content that is not as long as announced (RFC 9113, section 8.1.1), to
// handlers that read it and to one that does not.
func TestHTTPBodyLength(t *testing.T) {
	for _, c := range []struct {
		name, path string
		data       []string
	}{
		{"too long", "/read", []string{"abcd"}},
		{"too long in pieces", "/read", []string{"ab", "cd"}},
		{"too short", "/read", []string{"ab"}},
		{"too long, copied", "/copy", []string{"abcd"}},
		{"too short, copied", "/copy", []string{"ab"}},
		{"too long, unread", "/wait", []string{"abcd"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				started, got := make(chan struct{}), make(chan error, 1)
				p := httpServer(t, func(w http.ResponseWriter, r *http.Request) {
					close(started)
					var err error
					switch r.URL.Path {
					case "/read":
						_, err = io.Copy(io.Discard, struct{ io.Reader }{r.Body})
					case "/copy":
						_, err = io.Copy(io.Discard, r.Body)
					case "/wait":
						<-r.Context().Done()
						err = r.Context().Err()
					}
					got <- err
				})
				p.WriteHeaders(1, false, h2test.Request("POST", c.path, "content-length", "3")...)
				<-started // a stream that was reset before gets no handler
				for i, d := range c.data {
					p.WriteData(1, i == len(c.data)-1, []byte(d))
				}
				p.WantRST(1, "malformed", h2test.ProtocolError)
				if err := <-got; err == nil {
					t.Error("handler saw no error")
				}
			})
		})
	}
}

// TestHTTPUnreadBody answers without having read the request (RFC 9113, section 8.1).
func TestHTTPUnreadBody(t *testing.T) {
	t.Run("the rest comes at once", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := httpServer(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(413) })
			p.WriteHeaders(1, false, h2test.Request("POST", "/")...)
			p.WantHeaders(1, "the answer", map[string]string{":status": "413"})
			p.WriteData(1, false, make([]byte, 1000))
			p.WriteData(1, true, make([]byte, 1000))
			p.WantIdle("both sides have ended: nobody needs to be told")
		})
	})
	t.Run("the rest does not come", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := httpServer(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "no") })
			p.WriteHeaders(1, false, h2test.Request("POST", "/")...)
			p.WantHeaders(1, "the answer", map[string]string{":status": "200"})
			p.WantData(1, []byte("no"), true, "all of it")
			p.WantRST(1, "nobody reads the rest", h2test.NoError)
		})
	})
	t.Run("the rest is long", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			start := time.Now()
			p := httpServer(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(413) })
			p.Ignore(h2test.WindowUpdate)
			p.WriteHeaders(1, false, h2test.Request("POST", "/")...)
			p.WantHeaders(1, "the answer", map[string]string{":status": "413"})
			p.WriteAllData(1, false, make([]byte, 65000), "within the bound")
			p.WriteAllData(1, false, make([]byte, 8000), "beyond it")
			p.WantRST(1, "nobody reads the rest", h2test.NoError)
			if d := time.Since(start); d > 10*time.Millisecond {
				t.Errorf("reset after %v, want at once", d)
			}
		})
	})
	t.Run("100 was never sent", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			start := time.Now()
			p := httpServer(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(417) })
			p.WriteHeaders(1, false, h2test.Request("POST", "/", "expect", "100-continue", "content-length", "5")...)
			p.WantHeaders(1, "the answer", map[string]string{":status": "417"})
			p.WantRST(1, "the content is not waited for", h2test.NoError)
			if d := time.Since(start); d != 0 {
				t.Errorf("reset after %v, want at once", d)
			}
		})
	})
	t.Run("100 by the handler", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := httpServer(t, func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(100)
				b, _ := io.ReadAll(r.Body)
				w.Write(b)
			})
			p.WriteHeaders(1, false, h2test.Request("POST", "/", "expect", "100-continue", "content-length", "5")...)
			p.WantHeaders(1, "asked once", map[string]string{":status": "100"})
			p.WriteData(1, true, []byte("12345"))
			p.WantHeaders(1, "the answer", map[string]string{":status": "200"})
			p.WantData(1, []byte("12345"), true, "the content")
		})
	})
	t.Run("closed body", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := httpServer(t, func(w http.ResponseWriter, r *http.Request) {
				readErr := make(chan error)
				go func() {
					_, err := io.ReadAll(r.Body)
					readErr <- err
				}()
				time.Sleep(time.Second) // synthetic: the reader waits by now
				r.Body.Close()
				err := <-readErr
				_, again := r.Body.Read(make([]byte, 1))
				fmt.Fprint(w, errors.Is(err, http.ErrBodyReadAfterClose), strings.Contains(err.Error(), "body closed by handler"),
					errors.Is(again, http.ErrBodyReadAfterClose))
			})
			p.WriteHeaders(1, false, h2test.Request("POST", "/")...)
			p.WantHeaders(1, "the answer", nil)
			p.WantData(1, []byte("true true true"), true, "what the reader saw")
			p.WantRST(1, "nobody reads the rest", h2test.NoError)
		})
	})
}

// TestHTTPFrames checks which frames a response is.
func TestHTTPFrames(t *testing.T) {
	for _, c := range []struct {
		name    string
		method  string
		handler http.HandlerFunc
		want    string
	}{
		{"nothing", "GET", func(w http.ResponseWriter, r *http.Request) {}, "HEADERS end"},
		{"little", "GET", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "abc") }, "HEADERS, DATA 3 end"},
		{"head", "HEAD", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "abc") }, "HEADERS end"},
		{"head flushed", "HEAD", func(w http.ResponseWriter, r *http.Request) { w.(http.Flusher).Flush(); io.WriteString(w, "abc") }, "HEADERS end"},
		{"204 flushed", "GET", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204); w.(http.Flusher).Flush() }, "HEADERS end"},
		{"204 with trailers", "GET", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Trailer", "X-T")
			w.WriteHeader(204)
			w.(http.Flusher).Flush()
			w.Header().Set("X-T", "1")
		}, "HEADERS, HEADERS end"},
		{"trailers alone", "GET", func(w http.ResponseWriter, r *http.Request) { w.Header().Set(http.TrailerPrefix+"X-T", "1") }, "HEADERS, HEADERS end"},
		{"trailers announced, none set", "GET", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Trailer", "X-T")
			io.WriteString(w, "abc")
		}, "HEADERS, DATA 3 end"},
		{"flushed twice", "GET", func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			io.WriteString(w, "abc")
			w.(http.Flusher).Flush()
			w.(http.Flusher).Flush()
		}, "HEADERS, DATA 3, DATA 0 end"},
		{"trailers", "GET", func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "abc")
			w.Header().Set(http.TrailerPrefix+"X-T", "1")
		}, "HEADERS, DATA 3, HEADERS end"},
		{"forbidden trailers", "GET", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Trailer", "Content-Length, Host, Transfer-Encoding, X Y")
			io.WriteString(w, "abc")
			w.Header().Set(http.TrailerPrefix+"Content-Length", "1")
			w.Header().Set(http.TrailerPrefix+"If-Match", "1")
			w.Header().Set(http.TrailerPrefix+"Connection", "1")
			w.Header().Set(http.TrailerPrefix+"X Y", "1")
		}, "HEADERS, DATA 3 end"},
		{"101 is ignored", "GET", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(101); w.WriteHeader(200) }, "HEADERS end"},
		{"999 is 500", "GET", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(999) }, "HEADERS end"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := httpServer(t, c.handler)
				p.WriteHeaders(1, true, h2test.Request(c.method, "/")...)
				var got []string
				for {
					f := p.WantAny(1, "the response")
					s := f.Type.String()
					if f.Type == h2test.Data {
						s = fmt.Sprint(s, " ", len(f.Data()))
					}
					if f.EndStream() {
						got = append(got, s+" end")
						break
					}
					got = append(got, s)
				}
				if g := strings.Join(got, ", "); g != c.want {
					t.Errorf("frames = %s, want %s", g, c.want)
				}
				p.WantIdle("nothing follows")
			})
		})
	}
}

// TestHTTPAfterReturn uses a ResponseWriter and a body after their handler has returned.
func TestHTTPAfterReturn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var kept http.ResponseWriter
		var req *http.Request
		p := httpServer(t, func(w http.ResponseWriter, r *http.Request) { kept, req = w, r })
		p.WriteHeaders(1, true, h2test.Request("GET", "/")...)
		p.WantFrame(h2test.Headers, 1, "the response")
		p.WantIdle("nothing follows")
		if _, err := kept.Write([]byte("x")); err == nil {
			t.Error("Write after the handler's return = nil")
		}
		kept.WriteHeader(500)
		if err := http.NewResponseController(kept).Flush(); err == nil {
			t.Error("Flush after the handler's return = nil")
		}
		if _, err := io.Copy(kept, bytes.NewReader(make([]byte, 1<<20))); err == nil {
			t.Error("copy after the handler's return = nil")
		}
		if req.Context().Err() == nil {
			t.Error("context lives on")
		}
		p.WantIdle("nothing was sent")
	})
}

// TestHTTPSlowWindow has a header go out although there is no window for the content.
func TestHTTPSlowWindow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := httpServer(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "abc") },
			h2test.Setting{ID: h2test.InitialWindowSize, Value: 0})
		p.WriteHeaders(1, true, h2test.Request("GET", "/")...)
		p.WantHeaders(1, "the header needs no window", map[string]string{":status": "200", "content-length": "3"})
		p.WantIdle("the content does")
		p.WriteWindowUpdate(1, 2)
		p.WantData(1, []byte("ab"), false, "as much as there is window")
		p.WriteWindowUpdate(1, 2)
		p.WantData(1, []byte("c"), true, "the rest")
	})
}

// TestHTTPInvalidStatus panics as net/http does.
func TestHTTPInvalidStatus(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := httpServer(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(42) })
		p.WriteHeaders(1, true, h2test.Request("GET", "/")...)
		p.WantRST(1, "the handler has panicked", h2test.InternalError)
	})
}

// foreignError has the shape of x/net/http2's StreamError.
type foreignError struct {
	StreamID uint32
	Code     foreignCode
	Cause    error
}

type foreignCode uint32

func (foreignError) Error() string { return "foreign" }

// otherError only looks like it.
type otherError struct {
	StreamID uint32
	Code     string
	Cause    error
}

func (otherError) Error() string { return "other" }

// TestStreamErrorAs gives errors.As a StreamError of the shape that x/net/http2 has.
func TestStreamErrorAs(t *testing.T) {
	err := fmt.Errorf("read: %w", &h2.StreamError{StreamID: 7, Code: h2.Cancel, Err: io.ErrUnexpectedEOF})
	var f foreignError
	if !errors.As(err, &f) || f != (foreignError{7, 8, io.ErrUnexpectedEOF}) {
		t.Errorf("errors.As = %+v", f)
	}
	var o otherError
	if errors.As(err, &o) {
		t.Errorf("errors.As filled %+v", o)
	}
}

// TestHTTPResetBeforeStart resets a stream before its handler has started, which then is not called.
func TestHTTPResetBeforeStart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		reset := make(chan struct{})
		h := h2.HTTPHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/reset" {
				t.Error("the handler of a stream that was reset was called")
			}
		}))
		p := server(t, &h2.Config{Handler: func(st *h2.Stream) {
			if st.Request().Path == "/reset" {
				<-st.Done()
				close(reset)
			}
			h(st)
		}})
		p.WriteHeaders(1, true, h2test.Request("GET", "/reset")...)
		synctest.Wait() // the stream has been handed over
		p.WriteRST(1, h2test.Cancel)
		<-reset
		p.WriteHeaders(3, true, h2test.Request("GET", "/")...)
		p.WantHeaders(3, "the next one is", map[string]string{":status": "200"})
	})
}

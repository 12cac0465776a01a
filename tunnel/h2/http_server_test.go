package h2_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestHTTPRequest checks what a handler sees of a request.
func TestHTTPRequest(t *testing.T) {
	type seen struct {
		r      *http.Request
		body   string
		local  bool
		server bool
	}
	ch := make(chan seen, 1)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		ch <- seen{r, string(b), r.Context().Value(http.LocalAddrContextKey) != nil, r.Context().Value(http.ServerContextKey) != nil}
	})
	eachHTTPPair(t, h, func(t *testing.T, p httpPair) {
		req, _ := http.NewRequest("PUT", p.url+"/a%2Fb/c?q=1;2&x=%20", strings.NewReader("hello"))
		req.Host = "Example.COM:8080"
		req.Header = http.Header{"X-Multi": {"1", "2"}, "Cookie": {"a=1; b=2; c=3"}, "Content-Type": {"text/x"},
			"X-Odd.Name_1": {"v"}, "Te": {"trailers"}, "Keep-Alive": {"300"}, "Proxy-Connection": {"close"}, "X-Empty": {""},
			"User-Agent": {"test"}}
		resp, err := p.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		s := <-ch
		r := s.r
		if got := fmt.Sprint(r.Method, r.Proto, r.ProtoMajor, r.ProtoMinor, r.Host, r.RequestURI, r.URL.Path, r.URL.RawPath, r.URL.RawQuery, r.URL.Host, r.ContentLength); got !=
			"PUTHTTP/2.02 0Example.COM:8080/a%2Fb/c?q=1;2&x=%20/a/b/c/a%2Fb/cq=1;2&x=%205" {
			t.Errorf("request = %s", got)
		}
		want := http.Header{"X-Multi": {"1", "2"}, "Cookie": {"a=1; b=2; c=3"}, "Content-Type": {"text/x"}, "X-Odd.name_1": {"v"},
			"Te": {"trailers"}, "Content-Length": {"5"}, "X-Empty": {""}, "User-Agent": {"test"}}
		if got := fmt.Sprint(r.Header); got != fmt.Sprint(want) {
			t.Errorf("header = %v, want %v", got, want)
		}
		if s.body != "hello" || !s.local || !s.server || r.RemoteAddr == "" || (r.TLS != nil) != strings.HasPrefix(p.url, "https") {
			t.Errorf("body %q, local address %v, server %v, RemoteAddr %q, TLS %v", s.body, s.local, s.server, r.RemoteAddr, r.TLS != nil)
		}
		if r.TLS != nil && r.TLS.NegotiatedProtocol != "h2" {
			t.Errorf("TLS.NegotiatedProtocol = %q", r.TLS.NegotiatedProtocol)
		}
		if r.Context().Err() == nil {
			t.Errorf("context lives on after the handler has returned")
		}
	})
}

// TestHTTPRequestLength checks ContentLength and NoBody as the handler sees them.
func TestHTTPRequestLength(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		none := r.Body == http.NoBody
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, r.ContentLength, none, n, err)
	})
	eachHTTPPair(t, h, func(t *testing.T, p httpPair) {
		for _, c := range []struct {
			name, method string
			body         io.Reader
			want         string
		}{
			{"get", "GET", nil, "0 true 0 <nil>"},
			{"empty post", "POST", http.NoBody, "0 true 0 <nil>"},
			{"known", "POST", strings.NewReader("abc"), "3 false 3 <nil>"},
			{"unknown", "POST", struct{ io.Reader }{strings.NewReader("abc")}, "-1 false 3 <nil>"},
			{"get with body", "GET", strings.NewReader("abc"), "3 false 3 <nil>"},
			{"large", "POST", bytes.NewReader(make([]byte, 1<<20)), "1048576 false 1048576 <nil>"},
		} {
			t.Run(c.name, func(t *testing.T) {
				if p.goes { // net/http's server has NoBody only in HTTP/1
					c.want = strings.Replace(c.want, "true", "false", 1)
				}
				if _, got := p.do(t, c.method, "/", c.body, nil); got != c.want {
					t.Errorf("handler saw %q, want %q", got, c.want)
				}
			})
		}
	})
}

// fileTime is when the served file was changed.
var fileTime = time.Date(2022, 1, 1, 0, 0, 0, 0, time.UTC)

type httpResponseCase struct {
	name    string
	method  string // GET where empty
	handler func(w http.ResponseWriter, r *http.Request)
	status  int    // 200 where zero
	header  string // "Name: value" pairs that must be there, by "|"; "-Name" must not
	length  int64
	body    string
	ours    bool // net/http's server does something else
}

func httpResponseCases() []httpResponseCase {
	big := strings.Repeat("x", 100<<10)
	return []httpResponseCase{
		{name: "nothing", handler: func(w http.ResponseWriter, r *http.Request) {}, header: "Content-Length: 0|-Content-Type"},
		{name: "small", handler: func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<html>hi") },
			header: "Content-Length: 8|Content-Type: text/html; charset=utf-8", length: 8, body: "<html>hi"},
		{name: "many small writes", handler: func(w http.ResponseWriter, r *http.Request) {
			for range 1000 {
				w.Write([]byte("x"))
			}
		}, header: "Content-Length: 1000", length: 1000, body: big[:1000]},
		{name: "large", handler: func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, big) },
			header: "-Content-Length|Content-Type: text/plain; charset=utf-8", length: -1, body: big},
		{name: "large in one write of bytes", handler: func(w http.ResponseWriter, r *http.Request) { w.Write([]byte(big)) }, length: -1, body: big},
		{name: "small then large", handler: func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("ab")); w.Write([]byte(big)) },
			length: -1, body: "ab" + big},
		{name: "copied", handler: func(w http.ResponseWriter, r *http.Request) {
			if n, err := io.Copy(w, strings.NewReader(big)); n != int64(len(big)) || err != nil {
				io.WriteString(w, fmt.Sprint("copy = ", n, err))
			}
		}, length: -1, body: big},
		{name: "copied and declared", handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(big)))
			if n, err := io.CopyN(w, strings.NewReader(big), int64(len(big))); n != int64(len(big)) || err != nil {
				panic(fmt.Sprint("copy = ", n, err))
			}
		}, length: int64(len(big)), body: big},
		{name: "served file", handler: func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "a.css", fileTime, strings.NewReader(big))
		}, header: "Last-Modified: Sat, 01 Jan 2022 00:00:00 GMT|Accept-Ranges: bytes", length: int64(len(big)), body: big},
		{name: "flushed", handler: func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "a")
			w.(http.Flusher).Flush()
			io.WriteString(w, "b")
		}, header: "-Content-Length|Content-Type: text/plain; charset=utf-8", length: -1, body: "ab"},
		{name: "declared", handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "2")
			w.(http.Flusher).Flush()
			io.WriteString(w, "ab")
			if _, err := io.WriteString(w, "c"); err == nil {
				panic("more than declared was taken")
			}
		}, length: 2, body: "ab"},
		{name: "declared badly", handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "two")
			io.WriteString(w, "ab")
		}, header: "Content-Length: 2", length: 2, body: "ab"},
		{name: "204", status: 204, handler: func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(204)
			if _, err := w.Write([]byte("x")); !errors.Is(err, http.ErrBodyNotAllowed) {
				panic(fmt.Sprint("Write = ", err))
			}
		}, header: "-Content-Type|-Content-Length"},
		{name: "304", status: 304, handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Etag", `"x"`)
			w.WriteHeader(304)
		}, header: `Etag: "x"|-Content-Type`},
		{name: "head of little", method: "HEAD", handler: func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "abc") },
			header: "Content-Length: 3|Content-Type: text/plain; charset=utf-8", length: 3},
		{name: "head of much", method: "HEAD", handler: func(w http.ResponseWriter, r *http.Request) {
			if n, err := io.Copy(w, strings.NewReader(big)); err != nil || n != int64(len(big)) {
				panic(fmt.Sprint("copy = ", n, err))
			}
		}, header: "-Content-Length", length: -1},
		{name: "head of nothing", method: "HEAD", handler: func(w http.ResponseWriter, r *http.Request) {}, length: -1},
		{name: "head declared", method: "HEAD", handler: func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Content-Length", "77") },
			header: "Content-Length: 77", length: 77},
		{name: "error", status: 404, handler: http.NotFound, header: "X-Content-Type-Options: nosniff", length: 19, body: "404 page not found\n"},
		{name: "odd status", status: 299, handler: func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(299) }},
		{name: "hop by hop", handler: func(w http.ResponseWriter, r *http.Request) {
			h := w.Header()
			h.Set("Connection", "keep-alive")
			h.Set("Keep-Alive", "5")
			h.Set("Proxy-Connection", "x")
			h.Set("Transfer-Encoding", "identity")
			h.Set("Upgrade", "websocket")
			h.Set("Te", "gzip")
			h.Set("X-Stays", "1")
		}, header: "-Connection|-Keep-Alive|-Proxy-Connection|-Transfer-Encoding|-Upgrade|-Te|X-Stays: 1", ours: true},
		{name: "bad fields", handler: func(w http.ResponseWriter, r *http.Request) {
			h := w.Header()
			h["X Bad"] = []string{"v"}
			h["X-Ünicode"] = []string{"v"}
			h["X-Lf"] = []string{"a\nInjected: b"}
			h["X-Nul"] = []string{"a\x00"}
			h["X-Space"] = []string{"ok"}
			h["lower-case"] = []string{"v"}
		}, header: "-X Bad|-X-Lf|-X-Nul|X-Space: ok|Lower-Case: v|-Injected"},
		{name: "no date, no type", handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header()["Date"] = nil
			w.Header()["Content-Type"] = nil
			io.WriteString(w, "x")
		}, header: "-Date|-Content-Type", length: 1, body: "x"},
		{name: "encoded", handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "br")
			io.WriteString(w, "x")
		}, header: "-Content-Type|Content-Encoding: br", length: 1, body: "x"},
		{name: "late header", status: 201, handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Early", "1")
			w.WriteHeader(201)
			w.Header().Set("X-Late", "1")
			w.WriteHeader(500)
		}, header: "X-Early: 1|-X-Late"},
		{name: "set-cookie twice", handler: func(w http.ResponseWriter, r *http.Request) {
			http.SetCookie(w, &http.Cookie{Name: "a", Value: "1"})
			http.SetCookie(w, &http.Cookie{Name: "b", Value: "2"})
		}, header: "Set-Cookie: a=1,b=2"},
	}
}

// TestHTTPResponse checks what a client sees of what a handler writes.
func TestHTTPResponse(t *testing.T) {
	cases := httpResponseCases()
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i := slices.IndexFunc(cases, func(c httpResponseCase) bool { return c.name == r.URL.Query().Get("case") })
		cases[i].handler(w, r)
	})
	eachHTTPPair(t, h, func(t *testing.T, p httpPair) {
		for _, c := range cases {
			if c.ours && p.goes {
				continue
			}
			t.Run(c.name, func(t *testing.T) {
				if c.method == "" {
					c.method = "GET"
				}
				if c.status == 0 {
					c.status = 200
				}
				resp, body := p.do(t, c.method, "/?case="+strings.ReplaceAll(c.name, " ", "+"), nil, nil)
				if resp.StatusCode != c.status || resp.ProtoMajor != 2 || resp.ContentLength != c.length || body != c.body {
					t.Errorf("status %d, length %d, %d bytes of body; want %d, %d, %d", resp.StatusCode, resp.ContentLength, len(body), c.status, c.length, len(c.body))
				}
				if resp.Header.Get("Date") == "" && !strings.Contains(c.header, "-Date") {
					t.Errorf("no Date")
				}
				for _, want := range strings.Split(c.header, "|") {
					if name, absent := strings.CutPrefix(want, "-"); absent {
						if v, there := resp.Header[name]; there {
							t.Errorf("%s = %q, want none", name, v)
						}
					} else if name, value, ok := strings.Cut(want, ": "); ok && strings.Join(resp.Header.Values(name), ",") != value {
						t.Errorf("%s = %q, want %q", name, resp.Header.Values(name), value)
					}
				}
			})
		}
	})
}

// TestHTTPTrailers sends trailers both ways (RFC 9110, section 6.5).
func TestHTTPTrailers(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		before := fmt.Sprint(r.Trailer)
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Trailer", "X-Announced, X-Unset,Content-Length")
		w.Header().Add("Trailer", "X-Second")
		io.WriteString(w, before+" "+fmt.Sprint(r.Trailer))
		if r.URL.Path == "/flushed" {
			w.(http.Flusher).Flush()
		}
		w.Header().Set("X-Announced", "1")
		w.Header().Set("X-Second", "2")
		w.Header().Set("X-Not-Announced", "3")
		w.Header().Set(http.TrailerPrefix+"X-Prefixed", "4")
		w.Header().Add(http.TrailerPrefix+"X-Prefixed", "5")
	})
	eachHTTPPair(t, h, func(t *testing.T, p httpPair) {
		for _, path := range []string{"/", "/flushed"} {
			req, _ := http.NewRequest("POST", p.url+path, io.MultiReader(strings.NewReader("body")))
			req.Trailer = http.Header{"X-Sum": nil, "X-Never": nil}
			req.Body = struct {
				io.Reader
				io.Closer
			}{io.MultiReader(req.Body, readerFunc(func([]byte) (int, error) {
				req.Trailer.Set("X-Sum", "42")
				return 0, io.EOF
			})), req.Body}
			resp, err := p.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := resp.Trailer["X-Announced"]; !ok || resp.Trailer.Get("X-Announced") != "" {
				t.Errorf("announced trailers = %v", resp.Trailer)
			}
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if want := "map[X-Never:[] X-Sum:[]] map[X-Never:[] X-Sum:[42]]"; string(body) != want {
				t.Errorf("handler saw trailers %q, want %q", body, want)
			}
			got := fmt.Sprint(resp.Trailer.Get("X-Announced"), resp.Trailer.Get("X-Second"), resp.Trailer.Get("X-Not-Announced"), resp.Trailer["X-Prefixed"])
			if got != "12[4 5]" {
				t.Errorf("trailers = %v", resp.Trailer)
			}
		}
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestHTTPInform sends 1xx answers (RFC 9110, section 15.2).
func TestHTTPInform(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.Header().Set("Content-Length", "4")
		w.WriteHeader(103)
		w.Header().Add("Link", "</script.js>; rel=preload")
		w.WriteHeader(103)
		w.WriteHeader(199)
		w.WriteHeader(202)
		w.WriteHeader(103)
		io.WriteString(w, "done")
	})
	eachHTTPPair(t, h, func(t *testing.T, p httpPair) {
		var got []string
		trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			got = append(got, fmt.Sprint(code, len(h["Link"]), h["Content-Length"]))
			return nil
		}}
		req, _ := http.NewRequest("GET", p.url, nil)
		resp, err := p.client.Do(req.WithContext(httptrace.WithClientTrace(req.Context(), trace)))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if want := "[103 1 [] 103 2 [] 199 2 []]"; fmt.Sprint(got) != want {
			t.Errorf("interim answers = %v, want %v", got, want)
		}
		if resp.StatusCode != 202 || string(b) != "done" || len(resp.Header["Link"]) != 2 {
			t.Errorf("final answer = %v %q %v", resp.StatusCode, b, resp.Header)
		}
	})
}

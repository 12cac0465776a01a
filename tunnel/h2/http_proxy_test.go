package h2_test

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"strings"
	"testing"
	"time"

	"culvert/tunnel/h2"
)

// TestHTTPReverseProxy puts net/http's reverse proxy between our server and our client, with net/http at
// both ends: what one half receives the other sends.
func TestHTTPReverseProxy(t *testing.T) {
	step := make(chan struct{})
	backend := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/stream":
			w.Header().Set("Trailer", "X-Sum")
			w.Header().Set("Link", "</a>; rel=preload")
			w.WriteHeader(103)
			for i := range 3 {
				fmt.Fprint(w, "part ", i)
				w.(http.Flusher).Flush()
				<-step
			}
			w.Header().Set("X-Sum", "3")
		case "/echo":
			w.Header().Set("X-Forwarded", r.Header.Get("X-Forwarded-For"))
			io.Copy(w, r.Body)
		case "/cut":
			w.Write(make([]byte, 100<<10))
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
	})
	proxy := &httputil.ReverseProxy{FlushInterval: -1, ErrorLog: log.New(io.Discard, "", 0)}
	front := httpListen(t, &h2.Config{Handler: h2.HTTPHandler(proxy)}, true)
	addr := httpGoServer(t, backend, false)
	up := httpDial(t, nil, addr, false)
	proxy.Transport = up
	proxy.Rewrite = func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: addr})
		r.SetXForwarded()
	}
	p := httpPair{client: &http.Client{Transport: httpGoTransport(t, true)}, url: "https://" + front}

	t.Run("stream", func(t *testing.T) {
		hints := 0
		trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			if code == 103 && h.Get("Link") != "" {
				hints++
			}
			return nil
		}}
		req, _ := http.NewRequest("GET", p.url+"/stream", nil)
		resp, err := p.client.Do(req.WithContext(httptrace.WithClientTrace(t.Context(), trace)))
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			b := make([]byte, 6)
			if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != fmt.Sprint("part ", i) {
				t.Fatalf("part %d = %q, %v", i, b, err)
			}
			step <- struct{}{}
		}
		if b, err := io.ReadAll(resp.Body); len(b) > 0 || err != nil || resp.Trailer.Get("X-Sum") != "3" || hints != 1 {
			t.Errorf("end = %q, %v, trailer %v, %d early hints", b, err, resp.Trailer, hints)
		}
		resp.Body.Close()
	})
	t.Run("echo", func(t *testing.T) {
		want := strings.Repeat("0123456789", 50000)
		resp, got := p.do(t, "POST", "/echo", strings.NewReader(want), nil)
		if got != want || resp.Header.Get("X-Forwarded") != "127.0.0.1" {
			t.Errorf("%d bytes, X-Forwarded-For %q", len(got), resp.Header.Get("X-Forwarded"))
		}
	})
	t.Run("cut", func(t *testing.T) {
		resp, err := p.client.Get(p.url + "/cut")
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, resp.Body); err == nil {
			t.Errorf("a response that was cut ended cleanly after %d bytes", n)
		}
		resp.Body.Close()
	})
	wantNoStreams(t, up)
}

// TestHTTPTimeoutHandler runs net/http's own wrappers on our ResponseWriter.
func TestHTTPTimeoutHandler(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /quick/{name}", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.PathValue("name")) })
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	mux.HandleFunc("POST /limited", func(w http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 10))
		var tooLarge *http.MaxBytesError
		fmt.Fprint(w, errors.As(err, &tooLarge))
	})
	eachHTTPPair(t, http.TimeoutHandler(mux, 50*time.Millisecond, "too slow"), func(t *testing.T, p httpPair) {
		if _, got := p.do(t, "GET", "/quick/x", nil, nil); got != "x" {
			t.Errorf("quick = %q", got)
		}
		if resp, got := p.do(t, "GET", "/slow", nil, nil); got != "too slow" || resp.StatusCode != 503 {
			t.Errorf("slow = %d %q", resp.StatusCode, got)
		}
		if _, got := p.do(t, "POST", "/limited", strings.NewReader(strings.Repeat("x", 5000)), nil); got != "true" {
			t.Errorf("limited = %q", got)
		}
		if resp, _ := p.do(t, "GET", "/limited", nil, nil); resp.StatusCode != 405 {
			t.Errorf("wrong method = %d", resp.StatusCode)
		}
	})
}

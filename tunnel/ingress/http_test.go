package ingress_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"

	"culvert/policy"
	"culvert/tunnel"
	"culvert/tunnel/framing"
	"culvert/tunnel/h2"
	"culvert/tunnel/h2/h2test"
	"culvert/tunnel/tunneltest/memnet"
)

func TestRouting(t *testing.T) {
	e := newEdge(t, func(c *tunnel.Config) {
		route := func(host string, h *tunnel.RouteHTTPConfig) tunnel.RouteConfig {
			return tunnel.RouteConfig{Hosts: []string{host}, From: "any", To: appListen, HTTP: h}
		}
		tag := func(h tunnel.RouteHTTPConfig, tag string) *tunnel.RouteHTTPConfig {
			h.RequestHeaders.Set = map[string]string{"X-Route": tag}
			return &h
		}
		c.Routes = []tunnel.RouteConfig{
			route("shop.example", tag(tunnel.RouteHTTPConfig{Path: "/exact"}, "exact")),
			route("shop.example", tag(tunnel.RouteHTTPConfig{Prefix: "/api/v2", Methods: []string{"POST"}}, "post")),
			route("shop.example", tag(tunnel.RouteHTTPConfig{Prefix: "/api", Headers: map[string]string{"x-version": "v2*"}}, "header")),
			route("shop.example", tag(tunnel.RouteHTTPConfig{Prefix: "/api", Rewrite: tunnel.RewriteConfig{Prefix: "/", Host: "inner.example"}}, "api")),
			route("shop.example", tag(tunnel.RouteHTTPConfig{Regex: "/v[0-9]+/.*"}, "regex")),
			route("*.shop.example", tag(tunnel.RouteHTTPConfig{}, "below")),
			route("old.example", &tunnel.RouteHTTPConfig{Prefix: "/a", Redirect: &tunnel.RedirectConfig{Scheme: "https", Host: "new.example", Prefix: "/b", Status: 308}}),
			route("shop.example", &tunnel.RouteHTTPConfig{Prefix: "/small", MaxBodyBytes: 4, MaxHeadBytes: 500}),
		}
	})
	e.serve(t, appListen, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%s %s %s", r.Header.Get("X-Route"), r.Host, r.RequestURI)
	})
	for _, tt := range []struct {
		method, url, body string
		field             string
		status            int
		want              string
	}{
		{"GET", "http://shop.example/exact?q", "", "", 200, "exact shop.example /exact?q"},
		{"GET", "http://shop.example/exact/more", "", "", 404, ""},
		{"POST", "http://shop.example/api/v2/x", "", "", 200, "post shop.example /api/v2/x"},
		{"GET", "http://shop.example/api/v2/x", "", "", 200, "api inner.example /v2/x"},
		{"GET", "http://shop.example/api/v2/x", "", "v2.1", 200, "header shop.example /api/v2/x"},
		{"GET", "http://shop.example/api", "", "", 200, "api inner.example /"},
		{"GET", "http://shop.example//api//x%2Fy", "", "", 200, "api inner.example //x%2Fy"},
		{"GET", "http://shop.example/apis", "", "", 404, ""},
		{"GET", "http://shop.example/v12/a", "", "", 200, "regex shop.example /v12/a"},
		{"GET", "http://shop.example/v12", "", "", 404, ""},
		{"GET", "http://www.SHOP.example:8080/", "", "", 200, "below www.SHOP.example:8080 /"},
		{"GET", "http://other.example/", "", "", 404, ""},
		{"GET", "http://old.example/a/x?q=1", "", "", 308, ""},
		{"POST", "http://shop.example/small", "1234", "", 200, " shop.example /small"},
		{"POST", "http://shop.example/small", "12345", "", 413, ""},
		{"GET", "http://shop.example/small?" + strings.Repeat("a", 500), "", "", 431, ""},
	} {
		for name, protocols := range map[string]func(*http.Protocols){"1": http1, "2": http2} {
			t.Run(tt.method+" "+tt.url[:min(len(tt.url), 60)]+" "+name, func(t *testing.T) {
				r, err := http.NewRequest(tt.method, tt.url, strings.NewReader(tt.body))
				if err != nil {
					t.Fatal(err)
				}
				if tt.field != "" {
					r.Header.Set("X-Version", tt.field)
				}
				resp, err := e.client(t, protocols).Do(r)
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(resp.Body)
				if resp.StatusCode != tt.status || tt.status == 200 && string(body) != tt.want {
					t.Errorf("%d %q, want %d %q", resp.StatusCode, body, tt.status, tt.want)
				}
				if l := resp.Header.Get("Location"); tt.status == 308 && l != "https://new.example/b/x?q=1" {
					t.Errorf("redirected to %s", l)
				}
			})
		}
	}
}

// Policy decides about each request on a connection, by its path and fields, and may add fields to it.
func TestPolicyOfRequests(t *testing.T) {
	e := newEdge(t, func(c *tunnel.Config) {
		c.Policy.Rules = []policy.Rules{
			{Name: "no-admin", Action: policy.ActionDeny, Rules: []policy.Rule{{To: []policy.Operation{{Paths: []string{"/admin", "/admin/*"}}}}}},
			{Name: "team", Rules: []policy.Rule{{To: []policy.Operation{{Methods: []string{"GET"}}}}}, Headers: []policy.Header{{Name: "X-Team", Value: "edge"}}},
		}
	})
	e.serve(t, appListen, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.Path, r.Header.Get("X-Team")) })
	c := e.client(t, http1)
	for _, tt := range []struct {
		method, path string
		status       int
		body         string
	}{
		{"GET", "/", 200, "/edge"}, {"GET", "/admin", 403, ""}, {"GET", "//admin", 403, ""}, {"GET", "/%61dmin/x", 403, ""},
		{"GET", "/administrator", 200, "/administratoredge"}, {"DELETE", "/", 403, ""},
		{"GET", "/x/..;/admin", 400, ""}, {"GET", "/;/admin", 400, ""}, {"GET", "/.;v=1/admin", 400, ""}, {"GET", "/a;v=1/b..;", 200, "/a;v=1/b..;edge"},
	} {
		r, err := http.NewRequest(tt.method, "http://shop.example"+tt.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != tt.status || tt.status == 200 && string(body) != tt.body {
			t.Errorf("%s %s: %d %q, want %d %q", tt.method, tt.path, resp.StatusCode, body, tt.status, tt.body)
		}
		if tt.status == 403 && !strings.Contains(resp.Header.Get("Proxy-Status"), "http_request_denied") {
			t.Errorf("%s %s: no reason: %v", tt.method, tt.path, resp.Header)
		}
	}
	if n := e.net.Dials(netip.MustParseAddrPort(appListen)); n != 1 {
		t.Errorf("%d connections to the application, want 1 for all requests", n)
	}
}

// A request is sent again when its connection fails, and only where that does no harm.
func TestRetries(t *testing.T) {
	for _, tt := range []struct {
		name, method, body string
		status             int
	}{
		{"GET", "GET", "", 200}, {"DELETE", "DELETE", "", 200}, {"POST", "POST", "", 503}, {"PUT with a body", "PUT", "x", 503},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEdge(t, nil)
			l, err := e.net.Listen(appListen)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() { // ends with the listener
				for n := 0; ; n++ {
					c, err := l.Accept()
					if err != nil {
						return
					}
					r, err := http.ReadRequest(bufio.NewReader(c))
					if err != nil {
						t.Error(err)
						return
					}
					_, _ = io.Copy(io.Discard, r.Body)
					if n > 0 {
						_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
					}
					_ = c.Close()
				}
			}()
			r, err := http.NewRequest(tt.method, "http://shop.example/", strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := e.client(t, http1).Do(r)
			if err != nil || resp.StatusCode != tt.status {
				t.Errorf("%v, %v, want %d", resp, err, tt.status)
			}
		})
	}
}

// A connection that was kept and has been closed meanwhile fails no request, whatever its method.
func TestStaleCarriers(t *testing.T) {
	e := newEdge(t, nil)
	accepted := make(chan *memnet.Conn, 10)
	l, err := e.net.Listen(appListen)
	if err != nil {
		t.Fatal(err)
	}
	go l.Serve(func(c *memnet.Conn) {
		accepted <- c
		br := bufio.NewReader(c)
		for {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	defer l.Close()
	c := e.client(t, http1)
	for range 3 {
		resp, err := c.Get("http://shop.example/")
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%v, %v", resp, err)
		}
		_, _ = io.ReadAll(resp.Body)
		_ = (<-accepted).Close()
	}
}

// WebSocket: both sides agree, then bytes pass both ways, and each direction ends by itself.
func TestUpgrade(t *testing.T) {
	e := newEdge(t, nil)
	l, err := e.net.Listen(appListen)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go l.Serve(func(c *memnet.Conn) {
		br := bufio.NewReader(c)
		r, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		if r.URL.Path == "/no" {
			_, _ = io.WriteString(c, "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno")
			return
		}
		if r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Connection") != "Upgrade" || r.Header.Get("Sec-Websocket-Key") == "" {
			t.Errorf("the application sees %v", r.Header)
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nfirst ")
		all, _ := io.ReadAll(br)
		_, _ = c.Write(all)
		_ = c.Close()
	})
	const ask = "GET %s HTTP/1.1\r\nHost: shop.example\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
	t.Run("agreed", func(t *testing.T) {
		c := e.dial(t).(*memnet.Conn)
		fmt.Fprintf(c, ask+"ahead ", "/chat") // frames that come early are kept
		br := bufio.NewReader(c)
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "websocket" {
			t.Fatalf("%v, %v", resp, err)
		}
		fmt.Fprint(c, "GET / HTTP/9.9\n\n")
		_ = c.CloseWrite()
		all, err := io.ReadAll(br)
		if string(all) != "first ahead GET / HTTP/9.9\n\n" || err != nil {
			t.Errorf("%q, %v", all, err)
		}
	})
	t.Run("refused", func(t *testing.T) {
		c := e.dial(t)
		fmt.Fprintf(c, ask+"GET /smuggled HTTP/1.1\r\nHost: shop.example\r\n\r\n", "/no")
		all, _ := io.ReadAll(c)
		if text := string(all); !strings.HasPrefix(text, "HTTP/1.1 426 ") || strings.Count(text, "HTTP/1.1") != 1 || !strings.Contains(text, "Connection: close") {
			t.Errorf("%q, want one answer and the end", all)
		}
	})
	e.gw.Close()
	if s := e.gw.Stats(); s.Active != 0 || s.Connections != 0 || s.Flows != 2 {
		t.Errorf("%d flows, %d active, %d connections", s.Flows, s.Active, s.Connections)
	}
	if log := e.log.String(); !strings.Contains(log, "status=101") {
		t.Errorf("no record of it:\n%s", log)
	}
}

// WebSocket asked for in HTTP/2 (RFC 8441): to policy, to routes and to the application it is the one of HTTP/1.1.
func TestWebSocketInHTTP2(t *testing.T) {
	e := newEdge(t, func(c *tunnel.Config) {
		c.Policy.Rules = []policy.Rules{
			{Name: "no-post", Action: policy.ActionDeny, Rules: []policy.Rule{{To: []policy.Operation{{NotMethods: []string{"GET"}}}}}},
			{Name: "no-admin", Action: policy.ActionDeny, Rules: []policy.Rule{{To: []policy.Operation{{Paths: []string{"/admin"}}}}}},
			{Name: "rest", Rules: []policy.Rule{{}}},
		}
	})
	e.serve(t, appListen, func(w http.ResponseWriter, r *http.Request) {
		key := r.Header.Get("Sec-Websocket-Key")
		if r.Method != "GET" || r.ProtoMajor != 1 || r.Header.Get("Upgrade") != "websocket" || key == "" || r.Header.Get("Sec-Websocket-Version") != "13" || r.ContentLength != 0 {
			t.Errorf("the application sees %s %s, %d bytes, %v", r.Method, r.Proto, r.ContentLength, r.Header)
		}
		accept := framing.WebSocketAccept(key)
		switch r.URL.Path {
		case "/no":
			w.WriteHeader(http.StatusUpgradeRequired)
			return
		case "/ok":
			fmt.Fprint(w, "not a WebSocket")
			return
		case "/liar":
			accept = framing.WebSocketAccept("another")
		}
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\nSec-WebSocket-Protocol: chat\r\n\r\nfirst ", accept)
		_, _ = io.Copy(c, rw)
	})
	hc, err := h2.NewClient(e.dial(t), &h2.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer hc.Close()
	if _, err := hc.Ping(t.Context()); err != nil { // its SETTINGS have come
		t.Fatal(err)
	}
	ask := func(protocol, path string) (*h2.Stream, *h2.Header) {
		t.Helper()
		h := &h2.Header{Method: "CONNECT", Protocol: protocol, Scheme: "http", Authority: "shop.example", Path: path}
		h.Add("sec-websocket-version", "13")
		st, err := hc.Open(t.Context(), h, false)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := st.Response(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return st, answer
	}
	for path, status := range map[string]int{"/no": 426, "/ok": 502, "/liar": 502, "/admin": 403} {
		if _, answer := ask("websocket", path); answer.Status != status {
			t.Errorf("%s: %d, want %d", path, answer.Status, status)
		}
	}
	if _, answer := ask("connect-udp", "/chat"); answer.Status < 400 {
		t.Errorf("another protocol: %d", answer.Status)
	}
	st, answer := ask("WebSocket", "/chat")
	if answer.Status != 200 || answer.Get("sec-websocket-protocol") != "chat" || len(answer.Values("sec-websocket-accept")) > 0 {
		t.Fatalf("%d %v", answer.Status, answer.Fields)
	}
	if _, err := io.WriteString(st, "and more"); err != nil {
		t.Fatal(err)
	}
	if err := st.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if all, err := io.ReadAll(st); err != nil || string(all) != "first and more" {
		t.Errorf("%q, %v", all, err)
	}
	_ = hc.Close()
	e.gw.Close()
	if s := e.gw.Stats(); s.Active != 0 || s.Connections != 0 || s.Flows != 6 {
		t.Errorf("%d flows, %d active, %d connections", s.Flows, s.Active, s.Connections)
	}
	if log := e.log.String(); !strings.Contains(log, "status=200") || !strings.Contains(log, "method=GET path=/chat") {
		t.Errorf("no record of it:\n%s", log)
	}
}

// A WebSocket is cut by a reload, although its client takes not a byte of what the application has sent with its consent.
func TestWebSocketThatIsNotReadIsCut(t *testing.T) {
	e := newEdge(t, nil)
	over := make(chan struct{})
	e.serve(t, appListen, func(w http.ResponseWriter, r *http.Request) {
		defer close(over)
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade, X-Hop\r\nX-Hop: 1\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n\r\nfirst ",
			framing.WebSocketAccept(r.Header.Get("Sec-Websocket-Key")))
		_, _ = io.Copy(io.Discard, rw)
	})
	p := h2test.NewClient(t, e.dial(t))
	defer p.Close()
	p.Handshake(h2test.Setting{ID: h2test.InitialWindowSize, Value: 0})
	p.WriteHeaders(1, false, h2test.Fields(":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":authority", "shop.example", ":path", "/chat")...)
	for _, f := range p.WantHeaders(1, "the answer", map[string]string{":status": "200"}).Fields {
		if f.Name == "x-hop" || f.Name == "connection" {
			t.Errorf("the client gets %s, which is of the application's connection", f.Name)
		}
	}
	less := edgeConfig()
	less.Policy.Rules = []policy.Rules{{Name: "closed", Action: policy.ActionDeny, Rules: []policy.Rule{{To: []policy.Operation{{Paths: []string{"/chat"}}}}}}}
	if err := e.gw.Reload(t.Context(), less); err != nil {
		t.Fatal(err)
	}
	<-over
}

// A request with a body that the application has refused unread, as HTTP/2 lets it, goes there again, whole.
func TestRetriesOfBodies(t *testing.T) {
	e := newEdge(t, func(c *tunnel.Config) { c.Routes[0].HTTP = &tunnel.RouteHTTPConfig{Upstream: "http2"} })
	l, err := e.net.Listen(appListen)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var asked, whole atomic.Int64
	go l.Serve(func(c *memnet.Conn) {
		s, err := h2.NewServer(c, &h2.Config{Handler: func(st *h2.Stream) {
			defer st.Close()
			if asked.Add(1)%2 == 1 {
				st.Reset(h2.RefusedStream)
				return
			}
			if all, err := io.ReadAll(st); err != nil || string(all) != "hello" {
				t.Errorf("the application reads %q, %v", all, err)
			}
			whole.Add(1)
			_ = st.Respond(&h2.Header{Status: 200}, true)
		}})
		if err != nil {
			t.Error(err)
			return
		}
		<-s.Done()
	})
	const n = 3
	ok := 0
	c := e.client(t, http1)
	for range n {
		r, err := http.NewRequest("POST", "http://shop.example/", strings.NewReader("hello"))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Expect", "100-continue") // nothing is read of a body that waits to be asked for
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		switch resp.StatusCode {
		case 200:
			ok++
		case 503: // reading had begun
		default:
			t.Errorf("answered %d", resp.StatusCode)
		}
	}
	if ok == 0 || int64(ok) != whole.Load() {
		t.Errorf("%d of %d are answered well, and %d had arrived whole", ok, n, whole.Load())
	}
}

// gRPC: HTTP/2 all the way, with trailers, a stream that goes both ways, and an answer that is trailers only.
func TestGRPCShape(t *testing.T) {
	e := newEdge(t, nil)
	e.serve(t, appListen, func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 || r.Header.Get("Te") != "trailers" {
			t.Errorf("the application sees %s %v", r.Proto, r.Header)
		}
		w.Header().Set("Trailer", "Grpc-Status")
		w.Header().Set("Content-Type", "application/grpc")
		w.WriteHeader(200)
		_ = http.NewResponseController(w).Flush()
		buf := make([]byte, 16)
		for {
			n, err := r.Body.Read(buf)
			_, _ = w.Write(buf[:n])
			_ = http.NewResponseController(w).Flush()
			if err != nil {
				break
			}
		}
		w.Header().Set("Grpc-Status", "0")
	})
	pr, pw := io.Pipe()
	r, err := http.NewRequest("POST", "http://shop.example/pkg.Service/Call", pr)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/grpc+proto")
	r.Header.Set("Te", "trailers")
	resp, err := e.client(t, http2).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"one", "two"} {
		if _, err := io.WriteString(pw, word); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 3)
		if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != word {
			t.Fatalf("%q, %v", got, err)
		}
	}
	_ = pw.Close()
	rest, err := io.ReadAll(resp.Body)
	if err != nil || len(rest) != 0 || resp.Trailer.Get("Grpc-Status") != "0" {
		t.Errorf("the end: %q, %v, trailers %v", rest, err, resp.Trailer)
	}
}

// An answer that is its head ends with that, every time: to gRPC a status in the head is one only then.
func TestBodilessAnswers(t *testing.T) {
	e := newEdge(t, nil)
	e.serve(t, appListen, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Grpc-Status", "15")
		w.Header()["Content-Length"] = nil // none: what the client knows of it, it knows from the end of the stream
	})
	c := e.client(t, http2)
	ask := func() error {
		r, err := http.NewRequest("POST", "http://shop.example/pkg.Service/Call", strings.NewReader("asked"))
		if err != nil {
			return err
		}
		r.Header.Set("Te", "trailers")
		r.Header.Set("Content-Type", "application/grpc") // asked by HTTP/2
		resp, err := c.Do(r)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return err
		}
		if resp.ContentLength != 0 || resp.Header.Get("Grpc-Status") != "15" {
			return fmt.Errorf("the head does not end the answer: %v", resp.Header)
		}
		return nil
	}
	var all errgroup.Group
	for range 8 { // one after another they hardly ever went wrong
		all.Go(func() error {
			for range 250 {
				if err := ask(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		t.Error(err)
	}
}

// What is neither TLS nor HTTP, and a client that waits for the server to speak.
func TestTCP(t *testing.T) {
	e := newEdge(t, func(c *tunnel.Config) { c.Listeners[0].Ingress.Protocols = []string{"http", "tcp"} })
	l, err := e.net.Listen(appListen)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go l.Serve(func(c *memnet.Conn) {
		_, _ = io.WriteString(c, "220 hello\r\n")
		_, _ = io.Copy(c, c)
		_ = c.Close()
	})
	for _, first := range []string{"", "\x00\x01binary"} {
		c := e.dial(t)
		_, _ = io.WriteString(c, first)
		br := bufio.NewReader(c)
		if line, err := br.ReadString('\n'); err != nil || line != "220 hello\r\n" {
			t.Fatalf("%q, %v", line, err)
		}
		_, _ = io.WriteString(c, "more")
		_ = c.(interface{ CloseWrite() error }).CloseWrite()
		if rest, err := io.ReadAll(br); string(rest) != first+"more" || err != nil {
			t.Errorf("%q, %v", rest, err)
		}
	}
}

package h2_test

import (
	"io"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"

	"culvert/tunnel/h2"
	"culvert/tunnel/h2/h2test"
)

// specPeer is a scripted peer and the connection of ours that it talks to.
type specPeer struct {
	*h2test.Peer
	conn *h2.Conn
	t    testing.TB

	mu   sync.Mutex
	seen []*h2.Header // requests that reached the handler; guarded by mu
}

// bubble runs f in synthetic time. All goroutines that f started must have ended when its cleanups have.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

// specCase is one named case of a table whose script is all that differs.
type specCase struct {
	name   string
	script func(t *testing.T)
}

func runCases(t *testing.T, cases []specCase) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { bubble(t, c.script) })
	}
}

// rawServer starts the server role with a scripted client that has not said anything. The handler is
// cfg's, or specPeer.handle.
func rawServer(t testing.TB, cfg *h2.Config) *specPeer {
	t.Helper()
	a, b := h2test.Pipe()
	p := &specPeer{t: t}
	own := h2.Config{}
	if cfg != nil {
		own = *cfg
	}
	if own.Handler == nil {
		own.Handler = p.handle
	}
	conn, err := h2.NewServer(b, &own)
	if err != nil {
		t.Fatalf("NewServer = %v", err)
	}
	p.conn = conn
	t.Cleanup(func() {
		conn.Close()
		synctest.Wait() // for the handlers
	})
	p.Peer = h2test.NewClient(t, a)
	return p
}

// server starts the server role with a scripted client that has shaken hands.
func server(t testing.TB, cfg *h2.Config, settings ...h2test.Setting) *specPeer {
	t.Helper()
	p := rawServer(t, cfg)
	p.Handshake(settings...)
	return p
}

// rawClient starts the client role with a scripted server that has not said anything.
func rawClient(t testing.TB, cfg *h2.Config) *specPeer {
	t.Helper()
	a, b := h2test.Pipe()
	conn, err := h2.NewClient(b, cfg)
	if err != nil {
		t.Fatalf("NewClient = %v", err)
	}
	t.Cleanup(func() { conn.Close() })
	return &specPeer{Peer: h2test.NewServer(t, a), conn: conn, t: t}
}

// client starts the client role with a scripted server that has shaken hands.
func client(t testing.TB, cfg *h2.Config, settings ...h2test.Setting) *specPeer {
	t.Helper()
	p := rawClient(t, cfg)
	p.Handshake(settings...)
	return p
}

// handle is a small server: CONNECT echoes, "/read" answers when it has read the request, "/hang" never
// answers, "/bytes/N" sends N bytes, "/bytes/N/hold" keeps the request open before it does, all else is
// 200 without content.
func (p *specPeer) handle(s *h2.Stream) {
	defer s.Close()
	req := s.Request()
	p.mu.Lock()
	p.seen = append(p.seen, req)
	p.mu.Unlock()
	switch path := req.Path; {
	case req.Method == "CONNECT":
		if s.Respond(&h2.Header{Status: 200}, false) != nil {
			return
		}
		if _, err := io.Copy(s, s); err == nil {
			s.CloseWrite()
		}
	case path == "/hang":
		select {
		case <-s.Done():
		case <-s.Conn().Done():
		}
	case path == "/read":
		p.answerRead(s)
	case len(path) > 7 && path[:7] == "/bytes/":
		n, _ := strconv.Atoi(path[7:])
		if s.Respond(&h2.Header{Status: 200}, false) != nil {
			return
		}
		if _, err := s.Write(make([]byte, n)); err == nil {
			s.CloseWrite()
		}
	default:
		s.Respond(&h2.Header{Status: 200}, true)
	}
}

// answerRead reads the request to its end and says in the answer how much there was.
func (p *specPeer) answerRead(s *h2.Stream) {
	n, err := io.Copy(io.Discard, s)
	if err != nil {
		return
	}
	h := &h2.Header{Status: 200}
	h.Add("x-read", strconv.FormatInt(n, 10))
	for _, f := range s.Trailers() {
		h.Add("x-trailer", f.Name+"="+f.Value)
	}
	s.Respond(h, true)
}

// handled says how many requests have reached the handler by now.
func (p *specPeer) handled() int {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.seen)
}

// tunnel opens a CONNECT tunnel on the stream; it echoes.
func (p *specPeer) tunnel(id uint32) {
	p.t.Helper()
	p.WriteHeaders(id, false, h2test.Connect("echo.example:7")...)
	p.WantHeaders(id, "CONNECT is answered", map[string]string{":status": "200"})
}

// wantEcho checks that the tunnel on the stream still works.
func (p *specPeer) wantEcho(id uint32, why string) {
	p.t.Helper()
	p.WriteData(id, false, []byte("still here"))
	p.WantData(id, []byte("still here"), false, "tunnel on stream "+strconv.Itoa(int(id))+" lives on: "+why)
}

// wantServes checks that the connection takes a new request on the stream.
func (p *specPeer) wantServes(id uint32, why string) {
	p.t.Helper()
	p.WriteHeaders(id, true, h2test.Request("GET", "/")...)
	f := p.WantHeaders(id, "the connection serves on: "+why, map[string]string{":status": "200"})
	if !f.EndStream() {
		p.WantData(id, nil, true, "the connection serves on: "+why)
	}
}

// wantMalformed checks that a request on the stream is refused as a malformed message: "Malformed requests
// or responses that are detected MUST be treated as a stream error (Section 5.4.2) of type PROTOCOL_ERROR.
// For malformed requests, a server MAY send an HTTP response prior to closing or resetting the stream"
// (section 8.1.1).
func (p *specPeer) wantMalformed(id uint32, why string) {
	p.t.Helper()
	f := p.WantAny(id, why)
	if f.Type == h2test.Headers && f.Value(":status") == "400" {
		for !f.EndStream() && f.Type != h2test.RSTStream {
			f = p.WantAny(id, why)
		}
		if f.Type != h2test.RSTStream {
			f = p.WantFrame(h2test.RSTStream, id, why)
		}
	}
	if f.Type != h2test.RSTStream || f.ErrCode() != h2test.ProtocolError {
		p.t.Fatalf("%s: got %v, want RST_STREAM with PROTOCOL_ERROR", why, f)
	}
}

// wantStreamOrConnError wants RST_STREAM or GOAWAY with one of the codes, where the RFC leaves the choice:
// "an endpoint MAY choose to treat a stream error as a connection error" (section 5.4.1).
func (p *specPeer) wantStreamOrConnError(id uint32, why string, codes ...h2test.ErrCode) {
	p.t.Helper()
	for _, f := range p.Take() {
		if f.Type != h2test.GoAway && (f.Type != h2test.RSTStream || f.StreamID != id) {
			continue
		}
		for _, code := range codes {
			if f.ErrCode() == code {
				return
			}
		}
		p.t.Fatalf("%s: got %v, want code %v", why, f, codes)
	}
	p.t.Fatalf("%s: got neither RST_STREAM on stream %d nor GOAWAY, want code %v", why, id, codes)
}

// get is an ordinary request for our client role.
func get(path string) *h2.Header {
	return &h2.Header{Method: "GET", Scheme: "https", Authority: "test.example", Path: path}
}

// post is an ordinary request with content for our client role.
func post(path string) *h2.Header {
	h := get(path)
	h.Method = "POST"
	return h
}

// connectTo is a CONNECT request for our client role.
func connectTo(authority string) *h2.Header {
	return &h2.Header{Method: "CONNECT", Authority: authority}
}

// open opens a stream with our client role; the stream is closed when the test ends. The scripted server
// has the request read.
func (p *specPeer) open(h *h2.Header, endStream bool) *h2.Stream {
	p.t.Helper()
	s, err := p.conn.Open(p.t.Context(), h, endStream)
	if err != nil {
		p.t.Fatalf("Open(%s %s) = %v", h.Method, h.Path, err)
	}
	p.t.Cleanup(func() { s.Close() })
	p.WantHeaders(s.ID(), "Open sends HEADERS", map[string]string{":method": h.Method})
	return s
}

// wantStatus wants the final response of the stream in our client role.
func wantStatus(t testing.TB, s *h2.Stream, want int) *h2.Header {
	t.Helper()
	h, err := s.Response(t.Context())
	if err != nil {
		t.Fatalf("Response of stream %d = %v, want status %d", s.ID(), err, want)
	}
	if h.Status != want {
		t.Fatalf("Response of stream %d has status %d, want %d", s.ID(), h.Status, want)
	}
	return h
}

// wantWorks checks in our client role that the connection carries another request.
func (p *specPeer) wantWorks(why string) {
	p.t.Helper()
	s := p.open(get("/works"), true)
	p.WriteHeaders(s.ID(), true, h2test.Response("200")...)
	wantStatus(p.t, s, 200)
	if err := p.conn.Err(); err != nil {
		p.t.Fatalf("Err = %v, want nil: %s", err, why)
	}
}

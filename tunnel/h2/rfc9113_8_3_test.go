package h2_test

import (
	"errors"
	"io"
	"testing"

	"culvert/tunnel/h2"
	"culvert/tunnel/h2/h2test"
)

// "All HTTP/2 requests MUST include exactly one valid value for the ':method', ':scheme', and ':path'
// pseudo-header fields, unless they are CONNECT requests" (section 8.3.1). "Endpoints MUST treat a request
// or response that contains undefined or invalid pseudo-header fields as malformed. … Any request or response
// that contains a pseudo-header field that appears in a field block after a regular field line MUST be
// treated as malformed. … A field block … that contains a repeated pseudo-header field name MUST be treated
// as malformed" (section 8.3).
func TestRFC9113_8_3_PseudoHeaderFields(t *testing.T) {
	m, s, a, p := h2test.Field{Name: ":method", Value: "GET"}, h2test.Field{Name: ":scheme", Value: "https"},
		h2test.Field{Name: ":authority", Value: "test.example"}, h2test.Field{Name: ":path", Value: "/"}
	f := func(name, value string) h2test.Field { return h2test.Field{Name: name, Value: value} }
	malformedTable(t, map[string][]h2test.Field{
		"empty section":              {},
		"no :method":                 {s, a, p},
		"no :scheme":                 {m, a, p},
		"no :path":                   {m, s, a},
		"only regular fields":        {f("x-a", "1")},
		":method twice":              {m, m, s, a, p},
		":method twice, different":   {m, s, a, p, f(":method", "POST")},
		":scheme twice":              {m, s, s, a, p},
		":path twice":                {m, s, a, p, p},
		":authority twice":           {m, s, a, a, p},
		"late :method":               {s, a, p, f("x-a", "1"), m},
		"late :scheme":               {m, a, p, f("x-a", "1"), s},
		"late :path":                 {m, s, a, f("x-a", "1"), p},
		"late :authority":            {m, s, p, f("x-a", "1"), a},
		"unknown":                    {m, s, a, p, f(":x", "1")},
		"colon alone":                {m, s, a, p, f(":", "1")},
		":status":                    {m, s, a, p, f(":status", "200")},
		":protocol without CONNECT":  {m, s, a, p, f(":protocol", "websocket")},
		":Method in upper case":      {f(":Method", "GET"), s, a, p},
		":method empty":              {f(":method", ""), s, a, p},
		":method no token":           {f(":method", "GET /"), s, a, p},
		":scheme empty":              {m, f(":scheme", ""), a, p},
		":path empty":                {m, s, a, f(":path", "")},
		":path without slash":        {m, s, a, f(":path", "x")},
		":path * without OPTIONS":    {m, s, a, f(":path", "*")},
		":authority with userinfo":   {m, s, f(":authority", "user@test.example"), p},
		":authority with user:pass":  {m, s, f(":authority", "user:pass@test.example"), p},
		"host differs":               {m, s, a, p, f("host", "other.example")},
		"host differs in port":       {m, s, a, p, f("host", "test.example:8443")},
		"host twice, different":      {m, s, p, f("host", "a.example"), f("host", "b.example")},
		"host twice, one different":  {m, s, a, p, f("host", "test.example"), f("host", "b.example")},
		"host that is empty differs": {m, s, a, p, f("host", "")},
	})
}

func TestRFC9113_8_3_RequestsThatAreValid(t *testing.T) {
	f := h2test.Fields
	tests := []struct {
		name   string
		fields []h2test.Field
		want   h2.Header
	}{
		{"any order", f(":path", "/", ":authority", "a", ":scheme", "https", ":method", "GET"),
			h2.Header{Method: "GET", Scheme: "https", Authority: "a", Path: "/"}},
		{"host agrees", f(":method", "GET", ":scheme", "https", ":authority", "a", ":path", "/", "host", "a"),
			h2.Header{Method: "GET", Scheme: "https", Authority: "a", Path: "/"}},
		{"host alone", f(":method", "GET", ":scheme", "https", ":path", "/", "host", "a"),
			h2.Header{Method: "GET", Scheme: "https", Path: "/"}},
		{"OPTIONS *", f(":method", "OPTIONS", ":scheme", "http", ":authority", "a", ":path", "*"),
			h2.Header{Method: "OPTIONS", Scheme: "http", Authority: "a", Path: "*"}},
		{"other scheme", f(":method", "GET", ":scheme", "coap", ":authority", "a", ":path", "/x?y"),
			h2.Header{Method: "GET", Scheme: "coap", Authority: "a", Path: "/x?y"}},
		{"extension method", f(":method", "M-SEARCH", ":scheme", "https", ":authority", "a", ":path", "/"),
			h2.Header{Method: "M-SEARCH", Scheme: "https", Authority: "a", Path: "/"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := server(t, nil)
				p.WriteHeaders(1, true, tt.fields...)
				p.WantHeaders(1, "a valid request", map[string]string{":status": "200"})
				got := *p.seen[p.handled()-1]
				if tt.want.Authority == "" { // the host field may stand in for it
					got.Authority = ""
				}
				if got.Method != tt.want.Method || got.Scheme != tt.want.Scheme || got.Path != tt.want.Path ||
					got.Authority != tt.want.Authority {
					t.Errorf("request %+v, want %+v", got, tt.want)
				}
			})
		})
	}
}

// "The ':scheme' and ':path' pseudo-header fields MUST be omitted. The ':authority' pseudo-header field
// contains the host and port to connect to. A CONNECT request that does not conform to these restrictions is
// malformed (Section 8.1.1)" (section 8.5).
func TestRFC9113_8_5_MalformedConnect(t *testing.T) {
	f := h2test.Fields
	malformedTable(t, map[string][]h2test.Field{
		"with :scheme":         f(":method", "CONNECT", ":scheme", "https", ":authority", "a:1"),
		"with :path":           f(":method", "CONNECT", ":path", "/", ":authority", "a:1"),
		"with both":            f(":method", "CONNECT", ":scheme", "https", ":path", "/", ":authority", "a:1"),
		"with empty :path":     f(":method", "CONNECT", ":path", "", ":authority", "a:1"),
		"with empty :scheme":   f(":method", "CONNECT", ":scheme", "", ":authority", "a:1"),
		"without :authority":   f(":method", "CONNECT"),
		"with host only":       f(":method", "CONNECT", "host", "a:1"),
		"empty :authority":     f(":method", "CONNECT", ":authority", ""),
		"host differs":         f(":method", "CONNECT", ":authority", "a:1", "host", "b:1"),
		"bad content-length":   f(":method", "CONNECT", ":authority", "a:1", "content-length", "x"),
		"two content-lengths":  f(":method", "CONNECT", ":authority", "a:1", "content-length", "1", "content-length", "2"),
		":authority twice":     f(":method", "CONNECT", ":authority", "a:1", ":authority", "a:1"),
		"with :status":         f(":method", "CONNECT", ":authority", "a:1", ":status", "200"),
		"in lower case":        f(":method", "connect", ":authority", "a:1"),
		":authority with CRLF": f(":method", "CONNECT", ":authority", "a:1\r\nx: y"),
	})
}

// "Frame types other than DATA or stream management frames (RST_STREAM, WINDOW_UPDATE, and PRIORITY) MUST
// NOT be sent on a connected stream and MUST be treated as a stream error (Section 5.4.2) if received"
// (section 8.5).
func TestRFC9113_8_5_OnATunnel(t *testing.T) {
	runCases(t, []specCase{
		{"trailers from the client", func(t *testing.T) {
			p := server(t, nil)
			p.tunnel(1)
			p.tunnel(3)
			p.WriteHeaders(3, true, h2test.Fields("x-t", "1")...)
			p.WantRST(3, "HEADERS on a connected stream", h2test.ProtocolError)
			p.wantEcho(1, "a stream error")
			p.wantServes(5, "a stream error")
		}},
		{"HEADERS without END_STREAM from the client", func(t *testing.T) {
			p := server(t, nil)
			p.tunnel(3)
			p.WriteHeaders(3, false, h2test.Fields("x-t", "1")...)
			p.WantRST(3, "HEADERS on a connected stream", h2test.ProtocolError)
			p.wantServes(5, "a stream error")
		}},
		{"trailers from the server", func(t *testing.T) {
			p := client(t, nil)
			s := p.open(connectTo("a:1"), false)
			p.WriteHeaders(1, false, h2test.Response("200")...)
			wantStatus(t, s, 200)
			p.WriteHeaders(1, true, h2test.Fields("x-t", "1")...)
			p.WantRST(1, "HEADERS on a connected stream", h2test.ProtocolError)
			if _, err := s.Read(make([]byte, 1)); err == nil || err == io.EOF {
				t.Errorf("Read = %v, want a *StreamError", err)
			}
			p.wantWorks("a stream error")
		}},
		{"PUSH_PROMISE from the server", func(t *testing.T) {
			p, promises := pushClient(t, h2.Config{})
			s := p.open(connectTo("a:1"), false) // stream 3
			p.WriteHeaders(3, false, h2test.Response("200")...)
			wantStatus(t, s, 200)
			p.WritePushPromise(3, 2, h2test.Request("GET", "/")...)
			p.wantStreamOrConnError(3, "PUSH_PROMISE on a connected stream", h2test.ProtocolError)
			if n := len(promises); n != 0 {
				t.Errorf("%d promises were taken on a tunnel, want none", n)
			}
		}},
		{"we send no trailers", func(t *testing.T) {
			p := server(t, &h2.Config{Handler: func(s *h2.Stream) {
				defer s.Close()
				s.Respond(&h2.Header{Status: 200}, false)
				if err := s.SendTrailers(h2test.Fields("x-t", "1")); err == nil {
					t.Error("SendTrailers on a tunnel = nil, want an error")
				}
				s.CloseWrite()
			}})
			p.WriteHeaders(1, false, h2test.Connect("a:1")...)
			p.WantHeaders(1, "the tunnel", map[string]string{":status": "200"})
			p.WantData(1, nil, true, "its end by DATA")
		}},
	})
}

func TestRFC9113_8_5_Tunnel(t *testing.T) {
	runCases(t, []specCase{
		{"END_STREAM is a half-close", func(t *testing.T) {
			// "The END_STREAM flag on a DATA frame is treated as being equivalent to the TCP FIN bit."
			p := client(t, nil)
			s := p.open(connectTo("a:1"), false)
			p.WriteHeaders(1, false, h2test.Response("200")...)
			wantStatus(t, s, 200)
			if err := s.CloseWrite(); err != nil {
				t.Fatalf("CloseWrite = %v", err)
			}
			p.WantData(1, nil, true, "CloseWrite sends END_STREAM")
			p.WriteData(1, false, []byte("still "))
			p.WriteData(1, true, []byte("coming"))
			if b, err := io.ReadAll(s); string(b) != "still coming" || err != nil {
				t.Errorf("ReadAll = %q, %v; want all that came after our END_STREAM", b, err)
			}
			s.Close()
			p.WantIdle("a complete exchange ends without RST_STREAM")
		}},
		{"the other way", func(t *testing.T) {
			p := client(t, nil)
			s := p.open(connectTo("a:1"), false)
			p.WriteHeaders(1, false, h2test.Response("200")...)
			p.WriteData(1, true, []byte("first"))
			if b, err := io.ReadAll(s); string(b) != "first" || err != nil {
				t.Errorf("ReadAll = %q, %v", b, err)
			}
			if _, err := s.Write([]byte("still coming")); err != nil {
				t.Errorf("Write after the peer's END_STREAM = %v", err)
			}
			s.CloseWrite()
			p.WantData(1, []byte("still coming"), true, "our direction lives on")
		}},
		{"Close before the end resets", func(t *testing.T) {
			p := client(t, nil)
			s := p.open(connectTo("a:1"), false)
			p.WriteHeaders(1, false, h2test.Response("200")...)
			wantStatus(t, s, 200)
			s.Close()
			// Close is the end of both directions: ours may end clean first, as that of a closed TCP connection does.
			f := p.WantAny(1, "Close before END_STREAM both ways")
			if f.Type == h2test.Data && f.EndStream() && len(f.Data()) == 0 {
				f = p.WantAny(1, "Close before END_STREAM both ways")
			}
			if f.Type != h2test.RSTStream || f.ErrCode() != h2test.Cancel {
				t.Errorf("Close sends %v, want RST_STREAM with CANCEL", f)
			}
		}},
		{"an error of the target's connection", func(t *testing.T) {
			// "A proxy treats any error in the TCP connection … as a stream error (Section 5.4.2) of type CONNECT_ERROR."
			p := server(t, &h2.Config{Handler: func(s *h2.Stream) {
				defer s.Close()
				s.Respond(&h2.Header{Status: 200}, false)
				s.Reset(h2.ConnectError)
			}})
			p.WriteHeaders(1, false, h2test.Connect("a:1")...)
			p.WantHeaders(1, "the tunnel", map[string]string{":status": "200"})
			p.WantRST(1, "Reset", h2test.ConnectError)
			p.WantIdle("RST_STREAM is the last frame")
		}},
	})
}

func TestRFC9113_8_5_TunnelAnswers(t *testing.T) {
	runCases(t, []specCase{
		{"refusal", func(t *testing.T) {
			p := client(t, nil)
			s := p.open(connectTo("a:1"), false)
			p.WriteHeaders(1, false, h2test.Response("503", "content-length", "4")...)
			p.WriteData(1, true, []byte("busy"))
			p.WriteRST(1, h2test.NoError)
			wantStatus(t, s, 503)
			if b, err := io.ReadAll(s); string(b) != "busy" || err != nil {
				t.Errorf("ReadAll = %q, %v; want the reason of the refusal", b, err)
			}
		}},
		{"content-length of a 2xx is ignored", func(t *testing.T) {
			// RFC 9110, section 9.3.6: "A client MUST ignore any Content-Length or Transfer-Encoding header fields
			// received in a successful response to CONNECT." SECURITY.md, "What is bounded".
			p := client(t, nil)
			s := p.open(connectTo("a:1"), false)
			p.WriteHeaders(1, false, h2test.Response("200", "content-length", "3")...)
			p.WriteData(1, true, []byte("more than three"))
			wantStatus(t, s, 200)
			if b, err := io.ReadAll(s); string(b) != "more than three" || err != nil {
				t.Errorf("ReadAll = %q, %v; want all 15 bytes", b, err)
			}
		}},
		{"content-length of CONNECT is ignored", func(t *testing.T) {
			p := server(t, nil)
			p.WriteHeaders(1, false, h2test.Connect("a:1", "content-length", "3")...)
			p.WantHeaders(1, "the tunnel", map[string]string{":status": "200"})
			p.wantEcho(1, "10 bytes")
		}},
		{"data before the answer", func(t *testing.T) {
			p := server(t, nil)
			p.WriteHeaders(1, false, h2test.Connect("a:1")...)
			p.WriteData(1, true, []byte("early"))
			p.WantHeaders(1, "the tunnel", map[string]string{":status": "200"})
			p.WantData(1, []byte("early"), true, "what came before the answer is not lost")
		}},
		{"reset by the server", func(t *testing.T) {
			p := client(t, nil)
			s := p.open(connectTo("a:1"), false)
			p.WriteHeaders(1, false, h2test.Response("200")...)
			wantStatus(t, s, 200)
			p.WriteRST(1, h2test.ConnectError)
			<-s.Done()
			var se *h2.StreamError
			if _, err := s.Read(make([]byte, 1)); !errors.As(err, &se) || se.Code != h2.ConnectError || se.By != h2.Peer {
				t.Errorf("Read = %v, want a *StreamError by the peer with CONNECT_ERROR", err)
			}
		}},
	})
}

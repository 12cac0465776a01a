package h2_test

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"

	"culvert/tunnel/h2"
	"culvert/tunnel/h2/h2test"
)

func TestRFC9113_8_1_Requests(t *testing.T) {
	post := h2test.Request("POST", "/read")
	runCases(t, []specCase{
		{"content and trailers", func(t *testing.T) {
			p := server(t, nil)
			p.WriteHeaders(1, false, post...)
			p.WriteData(1, false, []byte("12345"))
			p.WriteData(1, false, nil)
			p.WriteData(1, false, []byte("678"))
			p.WriteHeaders(1, true, h2test.Fields("x-sum", "8")...)
			p.WantHeaders(1, "a complete request", map[string]string{":status": "200", "x-read": "8", "x-trailer": "x-sum=8"})
		}},
		{"trailers without content", func(t *testing.T) {
			p := server(t, nil)
			p.WriteHeaders(1, false, post...)
			p.WriteHeaders(1, true, h2test.Fields("x-sum", "0")...)
			p.WantHeaders(1, "a complete request", map[string]string{"x-read": "0", "x-trailer": "x-sum=0"})
		}},
		{"trailers in fragments", func(t *testing.T) {
			p := server(t, nil)
			p.WriteHeaders(1, false, post...)
			block := p.Encode(h2test.Fields("x-sum", "0")...)
			p.WriteFrame(h2test.Headers, h2test.EndStream, 1, block[:1])
			p.WriteContinuation(1, true, block[1:])
			p.WantHeaders(1, "a complete request", map[string]string{"x-trailer": "x-sum=0"})
		}},
		{"response before the request's end", func(t *testing.T) {
			// "a server MAY request that the client abort transmission of a request without error by sending a
			// RST_STREAM with an error code of NO_ERROR after sending a complete response."
			p := server(t, nil)
			p.WriteHeaders(1, false, h2test.Request("POST", "/early")...)
			f := p.WantHeaders(1, "the response does not wait", map[string]string{":status": "200"})
			if !f.EndStream() {
				p.WantData(1, nil, true, "the end of the response")
			}
			p.WantRST(1, "the request is not wanted", h2test.NoError)
			p.WriteData(1, true, []byte("was on its way"))
			p.wantServes(3, "data for a stream that was reset")
		}},
		{"cookie crumbs", func(t *testing.T) {
			p := server(t, nil)
			p.WriteHeaders(1, true, h2test.Request("GET", "/", "cookie", "a=b", "cookie", "c=d")...)
			p.WantHeaders(1, "more than one cookie field is allowed", map[string]string{":status": "200"})
		}},
	})
}

// Malformed requests are stream errors of type PROTOCOL_ERROR (section 8.1.1).
func TestRFC9113_8_1_MalformedRequests(t *testing.T) {
	tests := []struct {
		name  string
		write func(p *specPeer)
	}{
		{"trailers without END_STREAM", func(p *specPeer) {
			// "An endpoint that receives a HEADERS frame without the END_STREAM flag set after receiving the HEADERS
			// frame that opens a request … MUST treat the corresponding request or response as malformed."
			p.WriteHeaders(3, false, h2test.Fields("x-t", "1")...)
		}},
		{"second request section", func(p *specPeer) { p.WriteHeaders(3, false, h2test.Request("POST", "/read")...) }},
		{"pseudo-header field in trailers", func(p *specPeer) {
			// "An endpoint that receives pseudo-header fields in trailers MUST treat the request or response as malformed."
			p.WriteHeaders(3, true, h2test.Fields("x-t", "1", ":path", "/")...)
		}},
		{"pseudo-header field alone in trailers", func(p *specPeer) { p.WriteHeaders(3, true, h2test.Fields(":method", "GET")...) }},
		{"unknown pseudo-header field in trailers", func(p *specPeer) { p.WriteHeaders(3, true, h2test.Fields(":x", "1")...) }},
		{"upper case in trailers", func(p *specPeer) { p.WriteHeaders(3, true, h2test.Fields("X-T", "1")...) }},
		{"LF in trailers", func(p *specPeer) { p.WriteHeaders(3, true, h2test.Fields("x-t", "1\nx: 2")...) }},
		{"connection field in trailers", func(p *specPeer) { p.WriteHeaders(3, true, h2test.Fields("connection", "close")...) }},
		{"trailers after DATA without END_STREAM", func(p *specPeer) {
			p.WriteData(3, false, []byte("x"))
			p.WriteHeaders(3, false, h2test.Fields("x-t", "1")...)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := server(t, nil)
				p.tunnel(1)
				p.WriteHeaders(3, false, h2test.Request("POST", "/read")...)
				tt.write(p)
				p.wantMalformed(3, "a malformed request")
				p.wantEcho(1, "a stream error")
				p.wantServes(5, "a stream error")
			})
		})
	}
}

// "A request or response is also malformed if the value of a content-length header field does not equal the
// sum of the DATA frame payload lengths that form the content" (section 8.1.1); the syntax is 1*DIGIT (RFC
// 9110, section 8.6; SECURITY.md, "What is bounded").
func TestRFC9113_8_1_1_RequestContentLength(t *testing.T) {
	tests := []struct {
		name   string
		fields []string
		data   string
		end    bool // END_STREAM on HEADERS
		good   bool
	}{
		{"equal", []string{"content-length", "5"}, "12345", false, true},
		{"zero", []string{"content-length", "0"}, "", false, true},
		{"zero on HEADERS", []string{"content-length", "0"}, "", true, true},
		{"equal twice", []string{"content-length", "5", "content-length", "5"}, "12345", false, true},
		{"less data", []string{"content-length", "6"}, "12345", false, false},
		{"more data", []string{"content-length", "4"}, "12345", false, false},
		{"more data than zero", []string{"content-length", "0"}, "1", false, false},
		{"no data", []string{"content-length", "1"}, "", true, false},
		{"two that differ", []string{"content-length", "5", "content-length", "6"}, "12345", false, false},
		{"sign", []string{"content-length", "+5"}, "12345", false, false},
		{"negative", []string{"content-length", "-5"}, "12345", false, false},
		{"list", []string{"content-length", "5, 5"}, "12345", false, false},
		{"hexadecimal", []string{"content-length", "0x5"}, "12345", false, false},
		{"fraction", []string{"content-length", "5.0"}, "12345", false, false},
		{"empty", []string{"content-length", ""}, "12345", false, false},
		{"word", []string{"content-length", "five"}, "12345", false, false},
		{"overflow", []string{"content-length", "18446744073709551621"}, "12345", false, false}, // 2^64+5
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := server(t, nil)
				p.tunnel(1)
				p.WriteHeaders(3, tt.end, h2test.Request("POST", "/read", tt.fields...)...)
				if !tt.end {
					p.WriteData(3, true, []byte(tt.data))
				}
				if tt.good {
					p.WantHeaders(3, "a good request", map[string]string{":status": "200"})
				} else {
					p.wantMalformed(3, "content-length")
				}
				p.wantEcho(1, "stream 3 only")
				p.wantServes(5, "stream 3 only")
			})
		})
	}
	t.Run("trailers before all data", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := server(t, nil)
			p.WriteHeaders(1, false, h2test.Request("POST", "/read", "content-length", "9")...)
			p.WriteData(1, false, []byte("12345"))
			p.WriteHeaders(1, true, h2test.Fields("x-t", "1")...)
			p.wantMalformed(1, "the sum of the DATA frame payload lengths is 5")
		})
	})
	t.Run("padding does not count", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := server(t, nil)
			p.WriteHeaders(1, false, h2test.Request("POST", "/read", "content-length", "5")...)
			p.WritePaddedData(1, false, []byte("123"), 100)
			p.WritePaddedData(1, true, []byte("45"), 0)
			p.WantHeaders(1, "5 octets of content", map[string]string{":status": "200", "x-read": "5"})
		})
	})
}

func TestRFC9113_8_1_Responses(t *testing.T) {
	runCases(t, []specCase{
		{"interim responses, content, trailers", func(t *testing.T) {
			var informed []int
			p := client(t, &h2.Config{OnInform: func(_ *h2.Stream, h *h2.Header) { informed = append(informed, h.Status) }})
			s := p.open(get("/"), true)
			p.WriteHeaders(1, false, h2test.Response("100")...)
			p.WriteHeaders(1, false, h2test.Response("103", "link", "</a>")...)
			p.WriteHeaders(1, false, h2test.Response("200", "x-a", "1")...)
			p.WriteData(1, false, []byte("content"))
			p.WriteHeaders(1, true, h2test.Fields("x-t", "2")...)
			if h := wantStatus(t, s, 200); h.Get("x-a") != "1" {
				t.Errorf("response %v, want x-a: 1", h)
			}
			if b, err := io.ReadAll(s); string(b) != "content" || err != nil {
				t.Errorf("content %q, %v", b, err)
			}
			if tr := s.Trailers(); len(tr) != 1 || tr[0].Name != "x-t" || tr[0].Value != "2" {
				t.Errorf("Trailers = %v, want x-t: 2", tr)
			}
			if len(informed) != 2 || informed[0] != 100 || informed[1] != 103 {
				t.Errorf("OnInform saw %v, want [100 103]", informed)
			}
		}},
		{"RST_STREAM(NO_ERROR) after a complete response", func(t *testing.T) {
			// "Clients MUST NOT discard responses as a result of receiving such a RST_STREAM."
			p := client(t, nil)
			s := p.open(post("/"), false)
			p.WriteHeaders(1, false, h2test.Response("200")...)
			p.WriteData(1, true, []byte("complete"))
			p.WriteRST(1, h2test.NoError)
			synctest.Wait()
			wantStatus(t, s, 200)
			if b, err := io.ReadAll(s); string(b) != "complete" || err != nil {
				t.Errorf("content %q, %v; want it complete and no error", b, err)
			}
			if _, err := s.Write([]byte("more")); err == nil {
				t.Error("Write = nil after RST_STREAM, want an error")
			}
		}},
	})
}

func TestRFC9113_8_1_ResponsesEnd(t *testing.T) {
	runCases(t, []specCase{
		{"RST_STREAM(NO_ERROR) before the end", func(t *testing.T) {
			// SECURITY.md, "What is promised": a cut upstream never shows as a clean END_STREAM.
			p := client(t, nil)
			s := p.open(get("/"), true)
			p.WriteHeaders(1, false, h2test.Response("200")...)
			p.WriteData(1, false, []byte("part"))
			p.WriteRST(1, h2test.NoError)
			synctest.Wait()
			_, err := io.ReadAll(s)
			var se *h2.StreamError
			if !errors.As(err, &se) || se.Code != h2.NoError || se.By != h2.Peer {
				t.Errorf("ReadAll = %v, want a *StreamError by the peer with NO_ERROR", err)
			}
		}},
		{"empty DATA with END_STREAM", func(t *testing.T) {
			p := client(t, nil)
			s := p.open(get("/"), true)
			p.WriteHeaders(1, false, h2test.Response("200")...)
			p.WriteData(1, true, nil)
			wantStatus(t, s, 200)
			if b, err := io.ReadAll(s); len(b) != 0 || err != nil {
				t.Errorf("content %q, %v; want none", b, err)
			}
		}},
	})
}

func TestRFC9113_8_1_NothingIsResetAfterTheEnd(t *testing.T) {
	runCases(t, []specCase{
		{"Close after a response that was complete at once", func(t *testing.T) {
			// Who has the response has its end as well: nothing is left to be reset.
			p := client(t, nil)
			for range 3000 {
				s := p.open(get("/"), true)
				closed := make(chan error)
				// Ends with the response; the receive below waits for it.
				go func() {
					_, err := s.Response(t.Context())
					s.Close()
					closed <- err
				}()
				synctest.Wait()
				p.WriteHeaders(s.ID(), true, h2test.Response("200")...)
				if err := <-closed; err != nil {
					t.Fatalf("Response = %v", err)
				}
			}
			for _, f := range p.Take() {
				if f.Type == h2test.RSTStream {
					t.Fatalf("a complete exchange ends with %v", f)
				}
			}
		}},
		{"own interim responses", func(t *testing.T) {
			p := server(t, &h2.Config{Handler: func(s *h2.Stream) {
				defer s.Close()
				s.Inform(&h2.Header{Status: 103, Fields: h2test.Fields("link", "</a>")})
				if err := s.Inform(&h2.Header{Status: 101}); err == nil {
					t.Error("Inform(101) = nil, want an error")
				}
				s.Respond(&h2.Header{Status: 200}, false)
				if err := s.Inform(&h2.Header{Status: 103}); err == nil {
					t.Error("Inform after the final response = nil, want an error")
				}
				s.SendTrailers(h2test.Fields("x-t", "1"))
			}})
			p.WriteHeaders(1, true, h2test.Request("GET", "/")...)
			if f := p.WantHeaders(1, "interim", map[string]string{":status": "103", "link": "</a>"}); f.EndStream() {
				t.Errorf("interim response with END_STREAM: %v", f)
			}
			p.WantHeaders(1, "final", map[string]string{":status": "200"})
			if f := p.WantHeaders(1, "trailers", map[string]string{"x-t": "1", ":status": ""}); !f.EndStream() {
				t.Errorf("trailers without END_STREAM: %v", f)
			}
		}},
	})
}

// "Clients MUST NOT accept a malformed response" (section 8.1.1): a stream error of type PROTOCOL_ERROR.
func TestRFC9113_8_1_MalformedResponses(t *testing.T) {
	section := func(end bool, fields ...string) func(p *specPeer) {
		return func(p *specPeer) { p.WriteHeaders(1, end, h2test.Fields(fields...)...) }
	}
	after := func(first func(p *specPeer), then func(p *specPeer)) func(p *specPeer) {
		return func(p *specPeer) { first(p); then(p) }
	}
	ok := section(false, ":status", "200")
	data := func(end bool, s string) func(p *specPeer) {
		return func(p *specPeer) { p.WriteData(1, end, []byte(s)) }
	}
	tests := []struct {
		name  string
		write func(p *specPeer)
	}{
		{"no status", section(true, "x-a", "1")},
		{"empty section", section(true)},
		{"status twice", section(true, ":status", "200", ":status", "200")},
		{"late status", section(true, "x-a", "1", ":status", "200")},
		{"status 99", section(true, ":status", "099")},
		{"status of two digits", section(true, ":status", "20")},
		{"status of four digits", section(true, ":status", "2000")},
		{"status no number", section(true, ":status", "abc")},
		{"status with sign", section(true, ":status", "+20")},
		{"status empty", section(true, ":status", "")},
		{"request pseudo-header field", section(true, ":status", "200", ":path", "/")},
		{"unknown pseudo-header field", section(true, ":status", "200", ":x", "1")},
		{"upper case", section(true, ":status", "200", "X-A", "1")},
		{"NUL in a value", section(true, ":status", "200", "x-a", "\x00")},
		{"CR in a value", section(true, ":status", "200", "x-a", "a\rb")},
		{"leading space", section(true, ":status", "200", "x-a", " a")},
		{"transfer-encoding", section(true, ":status", "200", "transfer-encoding", "chunked")},
		// "A HEADERS frame with the END_STREAM flag set that carries an informational status code is malformed."
		{"interim with END_STREAM", section(true, ":status", "100")},
		// "HTTP/2 does not support the 101 (Switching Protocols) informational status code" (section 8.6).
		{"101", section(false, ":status", "101")},
		{"second final section", after(ok, ok)},
		{"trailers without END_STREAM", after(ok, section(false, "x-t", "1"))},
		{"pseudo-header field in trailers", after(ok, section(true, ":status", "200"))},
		{"interim after final", after(ok, section(false, ":status", "103"))},
		{"DATA before the final section", data(false, "x")},
		{"END_STREAM before the final section", data(true, "")},
		{"DATA after an interim section", after(section(false, ":status", "100"), data(false, "x"))},
		{"content-length and less", after(section(false, ":status", "200", "content-length", "5"), data(true, "1234"))},
		{"content-length and more", after(section(false, ":status", "200", "content-length", "5"), data(false, "123456"))},
		{"content-length and nothing", section(true, ":status", "200", "content-length", "5")},
		{"content-length no number", section(true, ":status", "200", "content-length", "x")},
		{"two content-lengths", section(true, ":status", "200", "content-length", "0", "content-length", "5")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := client(t, nil)
				s := p.open(get("/"), true)
				tt.write(p)
				p.WantRST(1, "a malformed response", h2test.ProtocolError)
				_, err := s.Response(t.Context())
				if err == nil {
					_, err = io.ReadAll(s)
				}
				var se *h2.StreamError
				if !errors.As(err, &se) || se.Code != h2.ProtocolError {
					t.Errorf("the response gives %v, want a *StreamError with PROTOCOL_ERROR", err)
				}
				p.wantWorks("a malformed response")
			})
		})
	}
}

// "A response that is defined to have no content … MAY have a non-zero content-length header field, even
// though no content is included in DATA frames" (section 8.1.1).
func TestRFC9113_8_1_1_ResponsesWithoutContent(t *testing.T) {
	tests := []struct{ name, method, status string }{
		{"HEAD", "HEAD", "200"}, {"204", "GET", "204"}, {"304", "GET", "304"},
	}
	for _, tt := range tests {
		for _, withData := range []bool{false, true} {
			t.Run(tt.name+map[bool]string{true: "/empty DATA", false: "/END_STREAM"}[withData], func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					p := client(t, nil)
					h := get("/")
					h.Method = tt.method
					s := p.open(h, true)
					p.WriteHeaders(1, !withData, h2test.Response(tt.status, "content-length", "500")...)
					if withData {
						p.WriteData(1, true, nil)
					}
					if h, err := s.Response(t.Context()); err != nil || h.Get("content-length") != "500" {
						t.Errorf("Response = %v, %v; want content-length 500", h, err)
					}
					if b, err := io.ReadAll(s); len(b) != 0 || err != nil {
						t.Errorf("content %q, %v; want none", b, err)
					}
				})
			})
		}
	}
}

// What we are told to send is checked before it is sent: a malformed message never leaves.
func TestRFC9113_8_1_WeSendNoMalformedRequests(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := client(t, nil)
		bad := map[string]*h2.Header{
			"no method":         {Scheme: "https", Authority: "a", Path: "/"},
			"method no token":   {Method: "G T", Scheme: "https", Authority: "a", Path: "/"},
			"no path":           {Method: "GET", Scheme: "https", Authority: "a"},
			"no scheme":         {Method: "GET", Authority: "a", Path: "/"},
			"status":            {Method: "GET", Scheme: "https", Authority: "a", Path: "/", Status: 200},
			"CONNECT with path": {Method: "CONNECT", Authority: "a:1", Path: "/"},
			"path with LF":      {Method: "GET", Scheme: "https", Authority: "a", Path: "/\n"},
		}
		for name, value := range map[string]string{"Upper": "1", "": "1", "sp ace": "1", "co:lon": "1", ":path": "/x",
			"x-crlf": "a\r\nb: c", "x-nul": "\x00", "x-space": " a", "x-tab": "a\t", "connection": "close",
			"upgrade": "h2c", "keep-alive": "1", "proxy-connection": "1", "transfer-encoding": "chunked", "te": "gzip"} {
			h := get("/")
			h.Add(name, value)
			bad["field "+name] = h
		}
		for name, h := range bad {
			if s, err := p.conn.Open(t.Context(), h, true); err == nil {
				s.Close()
				t.Errorf("Open with %s = nil, want an error", name)
			}
		}
		p.WantIdle("nothing malformed is sent")
		p.wantWorks("refused requests cost no stream")
	})
}

func TestRFC9113_8_1_WeSendNoMalformedResponses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := server(t, &h2.Config{Handler: func(s *h2.Stream) {
			defer s.Close()
			for _, f := range []h2.Field{{Name: "Upper", Value: "1"}, {Name: "x", Value: "a\nb"}, {Name: ":path", Value: "/"},
				{Name: "transfer-encoding", Value: "chunked"}, {Name: "x", Value: " a"}} {
				if err := s.Respond(&h2.Header{Status: 200, Fields: []h2.Field{f}}, false); err == nil {
					t.Errorf("Respond with field %q = nil, want an error", f.Name)
				}
			}
			for _, status := range []int{0, 99, 101, 150, 600, 1000, -1} {
				if err := s.Respond(&h2.Header{Status: status}, false); err == nil {
					t.Errorf("Respond with status %d = nil, want an error", status)
				}
			}
			s.Respond(&h2.Header{Status: 200}, false)
			if err := s.Respond(&h2.Header{Status: 200}, false); err == nil {
				t.Error("second Respond = nil, want an error")
			}
			if err := s.SendTrailers([]h2.Field{{Name: ":status", Value: "200"}}); err == nil {
				t.Error("SendTrailers with a pseudo-header field = nil, want an error")
			}
			s.CloseWrite()
		}})
		p.WriteHeaders(1, true, h2test.Request("GET", "/")...)
		p.WantHeaders(1, "only the good response is sent", map[string]string{":status": "200"})
		p.WantData(1, nil, true, "its end")
	})
}

// Section 6.5.2, SETTINGS_MAX_HEADER_LIST_SIZE of the peer.
func TestRFC9113_6_5_2_WeKeepToThePeersHeaderList(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := client(t, nil, h2test.Setting{ID: h2test.MaxHeaderListSize, Value: 1000})
		h := get("/")
		h.Add("x-long", strings.Repeat("v", 1000))
		if s, err := p.conn.Open(t.Context(), h, true); err == nil {
			s.Close()
			t.Error("Open with a header list above SETTINGS_MAX_HEADER_LIST_SIZE = nil, want an error")
		}
		p.wantWorks("a refused request")
	})
}

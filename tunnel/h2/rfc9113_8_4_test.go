package h2_test

import (
	"errors"
	"testing"
	"testing/synctest"

	"culvert/tunnel/h2"
	"culvert/tunnel/h2/h2test"
)

// "A client cannot push. Thus, servers MUST treat the receipt of a PUSH_PROMISE frame as a connection error
// (Section 5.4.1) of type PROTOCOL_ERROR" (section 8.4).
func TestRFC9113_8_4_PromiseToServer(t *testing.T) {
	for _, promised := range []uint32{2, 3, 0} {
		bubble(t, func(t *testing.T) {
			p := server(t, nil)
			p.tunnel(1)
			p.WritePushPromise(1, promised, h2test.Request("GET", "/")...)
			p.WantConnError("a client cannot push", h2test.ProtocolError)
		})
	}
}

// pushClient is our client role with stream 1 open; promises reach the channel.
func pushClient(t *testing.T, cfg h2.Config) (*specPeer, <-chan *h2.Stream) {
	promises := make(chan *h2.Stream, 100)
	cfg.EnablePush = true
	cfg.OnPush = func(parent *h2.Stream, promise *h2.Header, s *h2.Stream) {
		if parent.ID() != 1 || promise.Path == "" {
			t.Errorf("OnPush(stream %d, %v), want stream 1 and a path", parent.ID(), promise)
		}
		t.Cleanup(func() { s.Close() })
		promises <- s
	}
	p := client(t, &cfg)
	p.open(post("/"), false)
	return p, promises
}

func promise(id, promised uint32, fields ...h2test.Field) func(p *specPeer) {
	return func(p *specPeer) { p.WritePushPromise(id, promised, fields...) }
}

func TestRFC9113_6_6_PromiseReceived(t *testing.T) {
	good := h2test.Request("GET", "/pushed")
	runPromises(t, []promiseCase{
		// "If the Stream Identifier field specifies the value 0x00, a recipient MUST respond with a connection error."
		{"on stream 0", promise(0, 2, good...), true},
		{"on an idle stream", promise(9, 2, good...), true},
		{"on a promised stream", func(p *specPeer) {
			p.WritePushPromise(1, 2, good...)
			p.WritePushPromise(2, 4, good...)
		}, true},
		// "A receiver MUST treat the receipt of a PUSH_PROMISE on a stream that is neither 'open' nor 'half-closed
		// (local)' as a connection error."
		{"after END_STREAM", func(p *specPeer) {
			p.WriteHeaders(1, true, h2test.Response("200")...)
			p.WritePushPromise(1, 2, good...)
		}, true},
		// "A receiver MUST treat the receipt of a PUSH_PROMISE that promises an illegal stream identifier (Section
		// 5.1.1) as a connection error (Section 5.4.1) of type PROTOCOL_ERROR."
		{"of stream 0", promise(1, 0, good...), true},
		{"of an odd stream", promise(1, 3, good...), true},
		{"of the stream itself", promise(1, 1, good...), true},
		{"twice of a stream", func(p *specPeer) {
			p.WritePushPromise(1, 2, good...)
			p.WritePushPromise(1, 2, good...)
		}, true},
		{"of a lower stream", func(p *specPeer) {
			p.WritePushPromise(1, 8, good...)
			p.WritePushPromise(1, 6, good...)
		}, true},
		// "the padding is the length of the frame payload or greater … connection error"
		{"padding too long", func(p *specPeer) {
			p.WriteFrame(h2test.PushPromise, h2test.EndHeaders|h2test.Padded, 1, []byte{5, 0, 0, 0, 2})
		}, true},
	})
}

func TestRFC9113_8_4_MalformedPromises(t *testing.T) {
	good := h2test.Request("GET", "/pushed")
	runPromises(t, []promiseCase{
		// "If a client receives a PUSH_PROMISE that does not include a complete and valid set of header fields or the
		// ':method' pseudo-header field identifies a method that is not safe, it MUST respond on the promised stream
		// with a stream error (Section 5.4.2) of type PROTOCOL_ERROR" (section 8.4.1).
		{"of POST", promise(1, 2, h2test.Request("POST", "/")...), false},
		{"of CONNECT", promise(1, 2, h2test.Connect("a:1")...), false},
		{"of DELETE", promise(1, 2, h2test.Request("DELETE", "/")...), false},
		{"without path", promise(1, 2, h2test.Fields(":method", "GET", ":scheme", "https", ":authority", "a")...), false},
		{"without method", promise(1, 2, h2test.Fields(":scheme", "https", ":authority", "a", ":path", "/")...), false},
		{"without authority", promise(1, 2, h2test.Fields(":method", "GET", ":scheme", "https", ":path", "/")...), false},
		{"with status", promise(1, 2, append(h2test.Fields(":status", "200"), good...)...), false},
		{"with upper case", promise(1, 2, append(good[:4:4], h2test.Fields("X-A", "1")...)...), false},
		// "or that indicates the presence of request content MUST reset the promised stream with a stream error
		// (Section 5.4.2) of type PROTOCOL_ERROR" (section 8.4).
		{"with content-length", promise(1, 2, append(good[:4:4], h2test.Fields("content-length", "5")...)...), false},
	})
}

// promiseCase is an illegal promise: a connection error, or a stream error on stream 2, of type PROTOCOL_ERROR.
type promiseCase struct {
	name  string
	write func(p *specPeer)
	conn  bool
}

func runPromises(t *testing.T, tests []promiseCase) {
	t.Helper()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p, promises := pushClient(t, h2.Config{})
				tt.write(p)
				if tt.conn {
					p.WantConnError("an illegal promise", h2test.ProtocolError)
					return
				}
				p.WantRST(2, "a promise that is malformed", h2test.ProtocolError)
				if n := len(promises); n != 0 {
					t.Errorf("OnPush was called %d times, want none", n)
				}
				p.wantWorks("a stream error")
			})
		})
	}
}

func TestRFC9113_6_6_PromiseTooShort(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p, _ := pushClient(t, h2.Config{})
		p.WriteFrame(h2test.PushPromise, h2test.EndHeaders, 1, []byte{0, 0, 0})
		p.WantConnError("too small to contain mandatory frame data", h2test.FrameSizeError)
	})
}

func TestRFC9113_8_4_Pushed(t *testing.T) {
	runCases(t, []specCase{
		{"promise and response", func(t *testing.T) {
			p, promises := pushClient(t, h2.Config{})
			p.WritePushPromise(1, 2, h2test.Request("GET", "/pushed", "x-a", "1")...)
			s := <-promises
			if r := s.Request(); s.ID() != 2 || r.Path != "/pushed" || r.Get("x-a") != "1" {
				t.Errorf("promised stream %d has request %v", s.ID(), r)
			}
			p.WriteHeaders(1, true, h2test.Response("200")...) // the parent may end first
			p.WriteHeaders(2, false, h2test.Response("200", "x-b", "2")...)
			p.WriteData(2, true, []byte("pushed content"))
			if h := wantStatus(t, s, 200); h.Get("x-b") != "2" {
				t.Errorf("response %v, want x-b: 2", h)
			}
			buf := make([]byte, 100)
			if n, err := s.Read(buf); string(buf[:n]) != "pushed content" {
				t.Errorf("Read = %q, %v", buf[:n], err)
			}
		}},
		{"promise in fragments", func(t *testing.T) {
			p, promises := pushClient(t, h2.Config{})
			block := p.Encode(h2test.Request("GET", "/pushed")...)
			p.WriteFrame(h2test.PushPromise, h2test.Padded, 1, append(append([]byte{2, 0, 0, 0, 2}, block[:2]...), 0, 0))
			p.WriteContinuation(1, true, block[2:])
			if s := <-promises; s.ID() != 2 {
				t.Errorf("promised stream %d, want 2", s.ID())
			}
		}},
		{"reset by the server", func(t *testing.T) {
			p, promises := pushClient(t, h2.Config{})
			p.WritePushPromise(1, 2, h2test.Request("GET", "/pushed")...)
			p.WriteRST(2, h2test.InternalError)
			var se *h2.StreamError
			if _, err := (<-promises).Response(t.Context()); !errors.As(err, &se) || se.Code != h2.InternalError {
				t.Errorf("Response = %v, want INTERNAL_ERROR", err)
			}
			p.wantWorks("a promise was withdrawn")
		}},
		{"refused by Close", func(t *testing.T) {
			p, promises := pushClient(t, h2.Config{})
			p.WritePushPromise(1, 2, h2test.Request("GET", "/pushed")...)
			(<-promises).Close()
			p.WantRST(2, "a promise is rejected by RST_STREAM", h2test.Cancel, h2test.RefusedStream)
			p.WriteHeaders(2, true, h2test.Response("200")...) // was on its way
			p.wantWorks("a promise was refused")
		}},
		{"nobody takes promises", func(t *testing.T) {
			p := client(t, &h2.Config{EnablePush: true})
			p.open(get("/"), true)
			p.WritePushPromise(1, 2, h2test.Request("GET", "/pushed")...)
			p.WantRST(2, "promises that nobody takes are rejected", h2test.Cancel, h2test.RefusedStream)
			p.wantWorks("a promise was refused")
		}},
		{"more than we allow", func(t *testing.T) {
			p, promises := pushClient(t, h2.Config{MaxStreams: 2})
			for id := uint32(2); id <= 6; id += 2 {
				p.WritePushPromise(1, id, h2test.Request("GET", "/pushed")...)
			}
			p.WantRST(6, "the third of two", h2test.RefusedStream, h2test.Cancel)
			if n := len(promises); n != 2 {
				t.Errorf("%d promises were taken, want 2", n)
			}
		}},
	})
}

// "A client that has both set this parameter to 0 and had it acknowledged MUST treat the receipt of a
// PUSH_PROMISE frame as a connection error (Section 5.4.1) of type PROTOCOL_ERROR" (section 6.5.2).
func TestRFC9113_8_4_PushIsOff(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := client(t, nil)
		p.open(get("/"), true)
		p.WritePushPromise(1, 2, h2test.Request("GET", "/pushed")...)
		p.WantConnError("promises are off", h2test.ProtocolError)
	})
}

// pushServer is our server role whose handler promises /a and /b and answers the promises when told.
func pushServer(t *testing.T, settings ...h2test.Setting) (p *specPeer, results <-chan error, answer chan<- int) {
	res, ans := make(chan error, 10), make(chan int, 10)
	p = server(t, &h2.Config{Handler: func(s *h2.Stream) {
		defer s.Close()
		var pushed []*h2.Stream
		for _, path := range []string{"/a", "/b"} {
			ps, err := s.Push(get(path))
			res <- err
			if err == nil {
				pushed = append(pushed, ps)
				defer ps.Close()
			}
		}
		s.Respond(&h2.Header{Status: 200}, true)
		for status := range ans {
			for _, ps := range pushed {
				ps.Respond(&h2.Header{Status: status}, false)
				ps.Write([]byte("pushed " + ps.Request().Path))
				ps.CloseWrite()
			}
		}
	}}, settings...)
	t.Cleanup(func() { close(ans) })
	return p, res, ans
}

func TestRFC9113_8_4_WePush(t *testing.T) {
	push := h2test.Setting{ID: h2test.EnablePush, Value: 1}
	runCases(t, []specCase{
		{"promises precede the answers", func(t *testing.T) {
			p, results, answer := pushServer(t, push)
			p.WriteHeaders(1, true, h2test.Request("GET", "/")...)
			for i, path := range []string{"/a", "/b"} {
				f := p.WantFrame(h2test.PushPromise, 1, "promises are sent on the request's stream")
				if f.Promised() != uint32(2+2*i) || f.Value(":path") != path || f.Value(":method") != "GET" ||
					f.Value(":scheme") != "https" || f.Value(":authority") != "test.example" {
					t.Errorf("promise %v of stream %d, want stream %d and a complete request for %s", f, f.Promised(), 2+2*i, path)
				}
				if err := <-results; err != nil {
					t.Errorf("Push(%s) = %v", path, err)
				}
			}
			p.WantHeaders(1, "the response", map[string]string{":status": "200"})
			answer <- 201
			for id, content := range map[uint32]string{2: "pushed /a", 4: "pushed /b"} {
				p.WantHeaders(id, "the pushed response", map[string]string{":status": "201"})
				p.WantData(id, []byte(content), true, "the pushed content")
			}
		}},
		{"the client cancels one", func(t *testing.T) {
			p, _, answer := pushServer(t, push)
			p.WriteHeaders(1, true, h2test.Request("GET", "/")...)
			p.WantFrame(h2test.PushPromise, 1, "first promise")
			p.WantFrame(h2test.PushPromise, 1, "second promise")
			p.WantHeaders(1, "the response", nil)
			p.WriteRST(2, h2test.Cancel)
			synctest.Wait()
			answer <- 200
			p.WantHeaders(4, "the other promise", map[string]string{":status": "200"})
			p.WantData(4, []byte("pushed /b"), true, "the other promise")
			p.WantIdle("nothing on the stream that was cancelled")
		}},
	})
}

func TestRFC9113_8_4_WeDoNotPush(t *testing.T) {
	push := h2test.Setting{ID: h2test.EnablePush, Value: 1}
	runCases(t, []specCase{
		{"ENABLE_PUSH 0", func(t *testing.T) {
			// "PUSH_PROMISE MUST NOT be sent if the SETTINGS_ENABLE_PUSH setting of the peer endpoint is set to 0."
			p, results, _ := pushServer(t, h2test.Setting{ID: h2test.EnablePush, Value: 0})
			p.WriteHeaders(1, true, h2test.Request("GET", "/")...)
			p.WantHeaders(1, "no promise, only the response", map[string]string{":status": "200"})
			if err := <-results; !errors.Is(err, h2.ErrPushDisabled) {
				t.Errorf("Push = %v, want %v", err, h2.ErrPushDisabled)
			}
		}},
		{"no more than MAX_CONCURRENT_STREAMS", func(t *testing.T) {
			// SECURITY.md, "What is bounded".
			p, results, _ := pushServer(t, push, h2test.Setting{ID: h2test.MaxConcurrentStreams, Value: 1})
			p.WriteHeaders(1, true, h2test.Request("GET", "/")...)
			p.WantFrame(h2test.PushPromise, 1, "first promise")
			p.WantHeaders(1, "no second promise, only the response", nil)
			<-results
			if err := <-results; err == nil {
				t.Error("second Push = nil, want an error")
			}
		}},
		{"what cannot be promised", func(t *testing.T) {
			errs := make(chan error, 10)
			p := server(t, &h2.Config{Handler: func(s *h2.Stream) {
				defer s.Close()
				for _, h := range []*h2.Header{post("/"), connectTo("a:1"), {Method: "GET", Scheme: "https", Authority: "a"},
					{Method: "GET", Scheme: "https", Path: "/"}} {
					_, err := s.Push(h)
					errs <- err
				}
				s.Respond(&h2.Header{Status: 200}, true)
				_, err := s.Push(get("/"))
				errs <- err
			}}, push)
			p.WriteHeaders(1, true, h2test.Request("GET", "/")...)
			p.WantHeaders(1, "no promise, only the response", nil)
			for i := range 5 {
				if err := <-errs; err == nil {
					t.Errorf("Push number %d = nil, want an error", i)
				}
			}
			p.WantIdle("no promise")
		}},
	})
}

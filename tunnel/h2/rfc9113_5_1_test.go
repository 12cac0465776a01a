package h2_test

import (
	"testing"
	"testing/synctest"

	"culvert/tunnel/h2"
	"culvert/tunnel/h2/h2test"
)

// stateFrames are the frames that a script sends into a stream state.
func stateFrames(id uint32) map[string]func(p *specPeer) {
	return map[string]func(p *specPeer){
		"DATA":            func(p *specPeer) { p.WriteData(id, false, []byte("x")) },
		"DATA empty":      func(p *specPeer) { p.WriteData(id, true, nil) },
		"HEADERS":         func(p *specPeer) { p.WriteHeaders(id, true, h2test.Request("GET", "/")...) },
		"trailers":        func(p *specPeer) { p.WriteHeaders(id, true, h2test.Fields("x-t", "1")...) },
		"final response":  func(p *specPeer) { p.WriteHeaders(id, true, h2test.Response("200")...) },
		"PRIORITY":        func(p *specPeer) { p.WritePriority(id, 0, 1) },
		"RST_STREAM":      func(p *specPeer) { p.WriteRST(id, h2test.Cancel) },
		"WINDOW_UPDATE":   func(p *specPeer) { p.WriteWindowUpdate(id, 1) },
		"CONTINUATION":    func(p *specPeer) { p.WriteContinuation(id, true, nil) },
		"unknown type":    func(p *specPeer) { p.WriteFrame(0x42, 0, id, nil) },
		"PUSH_PROMISE 10": func(p *specPeer) { p.WritePushPromise(id, 10, h2test.Request("GET", "/")...) },
	}
}

// outcome is what a frame in a state leads to.
type outcome struct {
	frame  string
	fine   bool             // nothing happens, the connection lives
	stream bool             // a stream error or a connection error
	only   bool             // with stream: not a connection error
	codes  []h2test.ErrCode // of the error
}

func protocolError(frame string) outcome {
	return outcome{frame: frame, codes: []h2test.ErrCode{h2test.ProtocolError}}
}

func fine(frame string) outcome { return outcome{frame: frame, fine: true} }

// stateTable sends each frame into the state that enter makes, and wants the outcome. Stream 1 is open
// where p is a client, and must live on where no connection error is due.
func stateTable(t *testing.T, id uint32, enter func(t *testing.T) *specPeer, alive func(p *specPeer), outcomes []outcome) {
	for _, o := range outcomes {
		t.Run(o.frame, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := enter(t)
				stateFrames(id)[o.frame](p)
				switch {
				case o.fine:
					p.WantIdle("the frame is allowed or ignored")
					alive(p)
				case o.only:
					p.WantRST(id, "a stream error", o.codes...)
					alive(p)
				case o.stream:
					p.wantStreamOrConnError(id, "an error", o.codes...)
				default:
					p.WantConnError("a connection error", o.codes...)
				}
			})
		})
	}
}

// streamClosed and streamReused are what RFC 9113 allows on a closed stream: "of type STREAM_CLOSED" (section
// 5.1), or a HEADERS frame is "an unexpected stream identifier" of type PROTOCOL_ERROR (section 5.1.1).
func streamClosed() []h2test.ErrCode { return []h2test.ErrCode{h2test.StreamClosed} }

func streamReused() []h2test.ErrCode {
	return []h2test.ErrCode{h2test.StreamClosed, h2test.ProtocolError}
}

// enterServer is our server role with a tunnel on stream 1, and what script does to it.
func enterServer(script func(p *specPeer)) func(t *testing.T) *specPeer {
	return func(t *testing.T) *specPeer {
		p := server(t, nil, h2test.Setting{ID: h2test.EnablePush, Value: 1})
		p.tunnel(1)
		script(p)
		return p
	}
}

func aliveServer(p *specPeer) {
	p.wantEcho(1, "other streams are not concerned")
	p.wantServes(7, "the connection is not concerned")
}

func TestRFC9113_5_1_ServerIdle(t *testing.T) {
	// "Receiving any frame other than HEADERS or PRIORITY on a stream in this state MUST be treated as a
	// connection error (Section 5.4.1) of type PROTOCOL_ERROR."
	stateTable(t, 5, enterServer(func(p *specPeer) {}), aliveServer, []outcome{
		protocolError("DATA"), protocolError("DATA empty"), protocolError("RST_STREAM"),
		protocolError("WINDOW_UPDATE"), protocolError("CONTINUATION"), protocolError("PUSH_PROMISE 10"),
		fine("PRIORITY"), fine("unknown type"),
	})
}

func TestRFC9113_5_1_ServerOwnIdle(t *testing.T) {
	// "If this stream is initiated by the server … then receiving a HEADERS frame MUST also be treated as
	// a connection error (Section 5.4.1) of type PROTOCOL_ERROR."
	stateTable(t, 4, enterServer(func(p *specPeer) {}), aliveServer, []outcome{
		protocolError("HEADERS"), protocolError("DATA"), protocolError("RST_STREAM"),
		protocolError("WINDOW_UPDATE"), protocolError("CONTINUATION"), fine("PRIORITY"), fine("unknown type"),
	})
}

func TestRFC9113_5_1_ServerOpen(t *testing.T) {
	stateTable(t, 3, enterServer(func(p *specPeer) {
		p.WriteHeaders(3, false, h2test.Request("POST", "/hang")...)
	}), aliveServer, []outcome{
		fine("DATA"), fine("DATA empty"), fine("trailers"), fine("PRIORITY"), fine("RST_STREAM"), fine("WINDOW_UPDATE"),
		fine("unknown type"), protocolError("CONTINUATION"), protocolError("PUSH_PROMISE 10"),
	})
}

func TestRFC9113_5_1_ServerHalfClosedRemote(t *testing.T) {
	// "If an endpoint receives additional frames, other than WINDOW_UPDATE, PRIORITY, or RST_STREAM, for a
	// stream that is in this state, it MUST respond with a stream error (Section 5.4.2) of type STREAM_CLOSED."
	stateTable(t, 3, enterServer(func(p *specPeer) {
		p.WriteHeaders(3, true, h2test.Request("GET", "/hang")...)
		p.handled()
	}), aliveServer, []outcome{
		{frame: "DATA", only: true, codes: streamClosed()}, {frame: "DATA empty", only: true, codes: streamClosed()},
		{frame: "HEADERS", only: true, codes: streamClosed()}, {frame: "trailers", only: true, codes: streamClosed()},
		fine("WINDOW_UPDATE"), fine("PRIORITY"), fine("RST_STREAM"), fine("unknown type"), protocolError("CONTINUATION"),
	})
}

func TestRFC9113_5_1_ServerClosed(t *testing.T) {
	// "An endpoint MAY treat receipt of any other type of frame on a closed stream as a connection error of
	// type STREAM_CLOSED, except …": WINDOW_UPDATE and RST_STREAM may have been on their way.
	stateTable(t, 3, enterServer(func(p *specPeer) { p.wantServes(3, "to be closed") }), aliveServer, []outcome{
		{frame: "DATA", stream: true, codes: streamClosed()}, {frame: "HEADERS", stream: true, codes: streamReused()},
		fine("WINDOW_UPDATE"), fine("PRIORITY"), fine("RST_STREAM"), fine("unknown type"), protocolError("CONTINUATION"),
	})
}

func TestRFC9113_5_1_ServerClosedByPeersReset(t *testing.T) {
	stateTable(t, 3, enterServer(func(p *specPeer) {
		p.WriteHeaders(3, false, h2test.Request("POST", "/hang")...)
		p.WriteRST(3, h2test.Cancel)
		p.handled()
	}), aliveServer, []outcome{
		{frame: "DATA", stream: true, codes: streamClosed()}, {frame: "HEADERS", stream: true, codes: streamReused()},
		fine("PRIORITY"), fine("unknown type"), protocolError("CONTINUATION"),
	})
}

func TestRFC9113_5_1_ServerClosedByOurReset(t *testing.T) {
	// "The peer might have sent or enqueued for sending these frames before processing the RST_STREAM frame. An
	// endpoint MUST minimally process and then discard any frames it receives in this state."
	stateTable(t, 3, enterServer(func(p *specPeer) {
		p.WriteHeaders(3, false, h2test.Fields(":method", "POST")...)
		p.wantMalformed(3, "no path")
	}), aliveServer, []outcome{
		fine("DATA"), fine("DATA empty"), fine("trailers"), fine("WINDOW_UPDATE"), fine("PRIORITY"),
		fine("RST_STREAM"), fine("unknown type"), protocolError("CONTINUATION"),
	})
}

func TestRFC9113_5_1_ServerClosedByAHigherIdentifier(t *testing.T) {
	stateTable(t, 3, enterServer(func(p *specPeer) { p.wantServes(5, "skips stream 3") }), aliveServer, []outcome{
		{frame: "HEADERS", codes: []h2test.ErrCode{h2test.ProtocolError, h2test.StreamClosed}},
		{frame: "DATA", stream: true, codes: streamReused()}, fine("PRIORITY"), fine("unknown type"),
	})
}

func TestRFC9113_5_1_ReservedLocal(t *testing.T) {
	// "Receiving any type of frame other than RST_STREAM, PRIORITY, or WINDOW_UPDATE on a stream in this state
	// MUST be treated as a connection error (Section 5.4.1) of type PROTOCOL_ERROR."
	enter := func(t *testing.T) *specPeer {
		p := server(t, &h2.Config{Handler: func(s *h2.Stream) {
			defer s.Close()
			if s.Request().Path != "/push" {
				s.Respond(&h2.Header{Status: 200}, true)
				return
			}
			pushed, err := s.Push(get("/pushed"))
			if err != nil {
				return
			}
			defer pushed.Close()
			<-s.Done()
		}}, h2test.Setting{ID: h2test.EnablePush, Value: 1})
		p.WriteHeaders(1, false, h2test.Request("GET", "/push")...)
		f := p.WantFrame(h2test.PushPromise, 1, "Push sends PUSH_PROMISE")
		if f.Promised() != 2 {
			t.Fatalf("promised stream %d, want 2", f.Promised())
		}
		return p
	}
	alive := func(p *specPeer) { p.wantServes(3, "the connection lives on") }
	stateTable(t, 2, enter, alive, []outcome{
		protocolError("HEADERS"), protocolError("trailers"), protocolError("DATA"), protocolError("CONTINUATION"),
		fine("PRIORITY"), fine("WINDOW_UPDATE"), fine("RST_STREAM"), fine("unknown type"),
	})
}

// enterClient is our client role with a tunnel on stream 1, and what script does to it.
func enterClient(script func(p *specPeer)) func(t *testing.T) *specPeer {
	return func(t *testing.T) *specPeer {
		p := client(t, &h2.Config{EnablePush: true, OnPush: func(_ *h2.Stream, _ *h2.Header, s *h2.Stream) {
			t.Cleanup(func() { s.Close() })
		}})
		p.open(post("/"), false) // stream 1
		p.WriteHeaders(1, false, h2test.Response("200")...)
		script(p)
		return p
	}
}

func aliveClient(p *specPeer) { p.wantWorks("the connection lives on") }

func TestRFC9113_5_1_ClientOwnIdle(t *testing.T) {
	stateTable(t, 9, enterClient(func(p *specPeer) {}), aliveClient, []outcome{
		protocolError("final response"), protocolError("DATA"), protocolError("RST_STREAM"), protocolError("WINDOW_UPDATE"),
		protocolError("CONTINUATION"), protocolError("PUSH_PROMISE 10"), fine("PRIORITY"), fine("unknown type"),
	})
}

func TestRFC9113_5_1_ClientIdle(t *testing.T) {
	stateTable(t, 8, enterClient(func(p *specPeer) {}), aliveClient, []outcome{
		protocolError("final response"), protocolError("DATA"), protocolError("RST_STREAM"), protocolError("WINDOW_UPDATE"),
		protocolError("CONTINUATION"), fine("PRIORITY"), fine("unknown type"),
	})
}

func TestRFC9113_5_1_ClientHalfClosedLocal(t *testing.T) {
	stateTable(t, 3, enterClient(func(p *specPeer) {
		p.open(get("/"), true)
		p.WriteHeaders(3, false, h2test.Response("200")...)
	}), aliveClient, []outcome{
		fine("DATA"), fine("DATA empty"), fine("trailers"), fine("WINDOW_UPDATE"), fine("PRIORITY"), fine("RST_STREAM"),
		fine("PUSH_PROMISE 10"), fine("unknown type"), protocolError("CONTINUATION"),
	})
}

func TestRFC9113_5_1_ClientHalfClosedRemote(t *testing.T) {
	stateTable(t, 3, enterClient(func(p *specPeer) {
		p.open(post("/"), false)
		p.WriteHeaders(3, true, h2test.Response("200")...)
	}), aliveClient, []outcome{
		{frame: "DATA", only: true, codes: streamClosed()}, {frame: "trailers", only: true, codes: streamClosed()},
		fine("WINDOW_UPDATE"), fine("PRIORITY"), fine("RST_STREAM"), fine("unknown type"), protocolError("PUSH_PROMISE 10"),
	})
}

func TestRFC9113_5_1_ClientClosed(t *testing.T) {
	stateTable(t, 3, enterClient(func(p *specPeer) {
		s := p.open(get("/"), true)
		p.WriteHeaders(3, true, h2test.Response("200")...)
		wantStatus(p.t, s, 200)
		synctest.Wait()
		s.Close()
	}), aliveClient, []outcome{
		{frame: "DATA", stream: true, codes: streamClosed()}, {frame: "final response", stream: true, codes: streamClosed()},
		fine("WINDOW_UPDATE"), fine("PRIORITY"), fine("RST_STREAM"), fine("unknown type"), protocolError("PUSH_PROMISE 10"),
	})
}

func TestRFC9113_5_1_ClientClosedByOurReset(t *testing.T) {
	// "However, an endpoint that has sent RST_STREAM on the associated stream MUST handle PUSH_PROMISE frames
	// that might have been created before the RST_STREAM frame is received and processed" (section 6.6).
	stateTable(t, 3, enterClient(func(p *specPeer) {
		p.open(get("/"), true).Close()
		p.WantRST(3, "Close before the end resets", h2test.Cancel)
		p.Ignore(h2test.RSTStream) // of promises on it
	}), aliveClient, []outcome{
		fine("DATA"), fine("final response"), fine("trailers"), fine("WINDOW_UPDATE"), fine("PRIORITY"), fine("RST_STREAM"),
		fine("PUSH_PROMISE 10"), fine("unknown type"),
	})
}

func TestRFC9113_5_1_ClientReservedRemote(t *testing.T) {
	// "Receiving any type of frame other than HEADERS, RST_STREAM, or PRIORITY on a stream in this state MUST
	// be treated as a connection error (Section 5.4.1) of type PROTOCOL_ERROR."
	stateTable(t, 2, enterClient(func(p *specPeer) {
		p.WritePushPromise(1, 2, h2test.Request("GET", "/pushed")...)
		p.WantIdle("the promise is taken")
	}), aliveClient, []outcome{
		protocolError("DATA"), protocolError("WINDOW_UPDATE"), protocolError("CONTINUATION"),
		fine("final response"), fine("RST_STREAM"), fine("PRIORITY"), fine("unknown type"),
	})
}

package h2_test

import (
	"bytes"
	"fmt"
	"testing"

	"culvert/tunnel/h2"
	"culvert/tunnel/h2/h2test"
)

func initialWindow(n uint32) h2test.Setting {
	return h2test.Setting{ID: h2test.InitialWindowSize, Value: n}
}

// "The sender MUST NOT send a flow-controlled frame with a length that exceeds the space available in
// either of the flow-control windows advertised by the receiver. Frames with zero length with the END_STREAM
// flag set … MAY be sent if there is no available space in either flow-control window" (section 6.9.1). The
// peer's audit watches the windows; here is checked that all of them is used.
func TestRFC9113_6_9_1_SendWindows(t *testing.T) {
	runCases(t, []specCase{
		{"stream window by and by", func(t *testing.T) {
			p := server(t, nil, initialWindow(10))
			p.WriteHeaders(1, true, h2test.Request("GET", "/bytes/33")...)
			p.WantHeaders(1, "the response", nil)
			p.WantData(1, make([]byte, 10), false, "the stream's first window")
			p.WantIdle("the window is spent")
			for range 3 {
				p.WriteWindowUpdate(1, 7)
				p.WantData(1, make([]byte, 7), false, "7 octets more of window")
				p.WantIdle("the window is spent")
			}
			p.WriteWindowUpdate(1, 1)
			p.WantData(1, make([]byte, 1), false, "1 octet more of window")
			p.WriteWindowUpdate(1, 1000)
			p.WantData(1, make([]byte, 1), true, "the rest")
		}},
		{"empty stream window lets an end pass", func(t *testing.T) {
			p := server(t, nil, initialWindow(0))
			p.WriteHeaders(1, true, h2test.Request("GET", "/bytes/0")...)
			p.WantHeaders(1, "the response", nil)
			p.WantData(1, nil, true, "END_STREAM needs no window")
			p.WriteHeaders(3, true, h2test.Request("GET", "/bytes/5")...)
			p.WantHeaders(3, "field sections need no window", nil)
			p.WantIdle("DATA needs one")
		}},
		{"empty connection window lets an end pass", func(t *testing.T) {
			p := server(t, nil, initialWindow(1<<20))
			p.WriteHeaders(1, true, h2test.Request("GET", "/bytes/100000")...)
			p.WantHeaders(1, "the response", nil)
			p.WantData(1, make([]byte, 65535), false, "the connection's window")
			p.WriteHeaders(3, true, h2test.Request("GET", "/bytes/0")...)
			p.WantHeaders(3, "the second response", nil)
			p.WantData(3, nil, true, "END_STREAM needs no window")
			p.WriteHeaders(5, true, h2test.Request("GET", "/bytes/1")...)
			p.WantHeaders(5, "the third response", nil)
			p.WantIdle("the connection's window is spent")
			p.WriteWindowUpdate(0, 1<<20)
			p.WantData(1, make([]byte, 100000-65535), true, "the rest of the first")
			p.WantData(5, make([]byte, 1), true, "the third")
		}},
		{"a stalled stream does not hold the others", func(t *testing.T) {
			p := server(t, nil, initialWindow(100))
			for id := uint32(1); id < 40; id += 2 {
				p.WriteHeaders(id, true, h2test.Request("GET", "/bytes/200")...)
				p.WantHeaders(id, "the response", nil)
				p.WantData(id, make([]byte, 100), false, "the stream's window")
			}
			p.WriteWindowUpdate(39, 100)
			p.WantData(39, make([]byte, 100), true, "only stream 39 has window")
			p.WantIdle("the others have none")
		}},
	})
}

func TestRFC9113_6_9_1_ClientSendWindow(t *testing.T) {
	runCases(t, []specCase{
		{"our client role", func(t *testing.T) {
			p := client(t, nil, initialWindow(5))
			s := p.open(post("/"), false)
			wrote := make(chan error, 1)
			// Ends when the window lets it; the receive below waits for it.
			go func() {
				_, err := s.Write([]byte("twelve bytes"))
				wrote <- err
			}()
			p.WantData(1, []byte("twelv"), false, "5 octets of window")
			p.WantIdle("the window is spent")
			p.WriteWindowUpdate(1, 100)
			p.WantData(1, []byte("e bytes"), false, "the rest")
			if err := <-wrote; err != nil {
				t.Errorf("Write = %v", err)
			}
		}},
	})
}

// "When the value of SETTINGS_INITIAL_WINDOW_SIZE changes, a receiver MUST adjust the size of all stream
// flow-control windows that it maintains by the difference between the new value and the old value. … A
// sender MUST track the negative flow-control window and MUST NOT send new flow-controlled frames until it
// receives WINDOW_UPDATE frames that cause the flow-control window to become positive" (section 6.9.2).
func TestRFC9113_6_9_2_InitialWindowChanges(t *testing.T) {
	runCases(t, []specCase{
		{"raised", func(t *testing.T) {
			p := server(t, nil, initialWindow(10))
			for _, id := range []uint32{1, 3} {
				p.WriteHeaders(id, true, h2test.Request("GET", "/bytes/30")...)
				p.WantHeaders(id, "the response", nil)
				p.WantData(id, make([]byte, 10), false, "the first window")
			}
			p.WriteSettings(initialWindow(15))
			for _, id := range []uint32{1, 3} {
				p.WantData(id, make([]byte, 5), false, "the difference")
			}
			p.WantIdle("the windows are spent")
			p.WriteHeaders(5, true, h2test.Request("GET", "/bytes/30")...)
			p.WantHeaders(5, "a new stream", nil)
			p.WantData(5, make([]byte, 15), false, "starts with the new value")
			p.WriteSettings(initialWindow(30))
			for _, id := range []uint32{1, 3, 5} {
				p.WantData(id, make([]byte, 15), true, "the rest")
			}
		}},
		{"negative", func(t *testing.T) {
			p := server(t, nil, initialWindow(20))
			p.WriteHeaders(1, true, h2test.Request("GET", "/bytes/40")...)
			p.WantHeaders(1, "the response", nil)
			p.WantData(1, make([]byte, 20), false, "the first window")
			p.WriteSettings(initialWindow(5)) // -15
			p.WantSettingsAck("the lowered window")
			p.WriteWindowUpdate(1, 14) // -1
			p.WantIdle("the window is negative")
			p.WriteWindowUpdate(1, 1) // 0
			p.WantIdle("the window is empty")
			p.WriteWindowUpdate(1, 3)
			p.WantData(1, make([]byte, 3), false, "3 octets are left")
			p.WriteSettings(initialWindow(0)) // -5
			p.WantSettingsAck("the lowered window")
			p.WriteSettings(initialWindow(6)) // 1
			p.WantData(1, make([]byte, 1), false, "1 octet is left")
			p.WantIdle("the window is empty")
			p.WriteWindowUpdate(1, 1000)
			p.WantData(1, make([]byte, 16), true, "the rest")
		}},
		{"connection window is not touched", func(t *testing.T) {
			p := server(t, nil)
			p.WriteSettings(initialWindow(1 << 20))
			p.WriteHeaders(1, true, h2test.Request("GET", "/bytes/70000")...)
			p.WantHeaders(1, "the response", nil)
			p.WantData(1, make([]byte, 65535), false, "a SETTINGS frame cannot alter the connection flow-control window")
			p.WantIdle("the connection's window is spent")
		}},
		{"overflow", func(t *testing.T) {
			// "An endpoint MUST treat a change to SETTINGS_INITIAL_WINDOW_SIZE that causes any flow-control window to
			// exceed the maximum size as a connection error (Section 5.4.1) of type FLOW_CONTROL_ERROR."
			p := server(t, nil)
			p.tunnel(1)
			p.WriteWindowUpdate(1, 1000)
			p.WriteSettings(initialWindow(1<<31 - 1))
			p.WantConnError("stream 1 has more than 2^31-1 of window now", h2test.FlowControlError)
		}},
		{"greatest value without streams", func(t *testing.T) {
			p := server(t, nil, initialWindow(1<<31-1))
			p.tunnel(1)
			p.wantEcho(1, "2^31-1 is allowed")
		}},
	})
}

// "A receiver MUST treat the receipt of a WINDOW_UPDATE frame with a flow-control window increment of 0 as a
// stream error (Section 5.4.2) of type PROTOCOL_ERROR; errors on the connection flow-control window MUST be
// treated as a connection error" and "A WINDOW_UPDATE frame with a length other than 4 octets MUST be
// treated as a connection error (Section 5.4.1) of type FRAME_SIZE_ERROR" (section 6.9).
func TestRFC9113_6_9_WindowUpdate(t *testing.T) {
	runCases(t, []specCase{
		{"increment 0 on a stream", func(t *testing.T) {
			p := server(t, nil)
			p.tunnel(1)
			p.tunnel(3)
			p.WriteWindowUpdate(3, 0)
			p.WantRST(3, "increment 0", h2test.ProtocolError)
			p.wantEcho(1, "a stream error")
			p.wantServes(5, "a stream error")
		}},
		{"increment 0 on the connection", func(t *testing.T) {
			p := server(t, nil)
			p.tunnel(1)
			p.WriteWindowUpdate(0, 0)
			p.WantConnError("increment 0", h2test.ProtocolError)
		}},
		{"overflow of a stream", func(t *testing.T) {
			p := server(t, nil)
			p.tunnel(1)
			p.tunnel(3)
			p.WriteWindowUpdate(3, 1<<31-1)
			p.WantRST(3, "a flow-control window MUST NOT exceed 2^31-1", h2test.FlowControlError)
			p.wantEcho(1, "a stream error")
			p.wantServes(5, "a stream error")
		}},
		{"overflow of a stream by many", func(t *testing.T) {
			p := server(t, nil)
			p.tunnel(1)
			p.tunnel(3)
			p.WriteWindowUpdate(3, 1<<30)
			p.WriteWindowUpdate(3, 1<<30-65536)
			p.wantEcho(3, "2^31-1 exactly")
			for range 3 { // the echo took 10
				p.WriteWindowUpdate(3, 10)
			}
			p.WantRST(3, "20 above 2^31-1", h2test.FlowControlError)
			p.wantEcho(1, "a stream error")
		}},
		{"overflow of the connection", func(t *testing.T) {
			p := server(t, nil)
			p.tunnel(1)
			p.WriteWindowUpdate(0, 1<<31-1)
			p.WantConnError("a flow-control window MUST NOT exceed 2^31-1", h2test.FlowControlError)
		}},
		{"greatest window", func(t *testing.T) {
			p := server(t, nil)
			p.tunnel(1)
			p.WriteWindowUpdate(0, 1<<31-1-65535)
			p.WriteWindowUpdate(1, 1<<31-1-65535)
			p.wantEcho(1, "2^31-1 exactly")
		}},
	})
}

func TestRFC9113_6_9_WindowUpdateStatesAndLengths(t *testing.T) {
	runCases(t, []specCase{
		{"half-closed and closed streams", func(t *testing.T) {
			// "A receiver MUST NOT treat this as an error (see Section 5.1)."
			p := server(t, nil)
			p.WriteHeaders(1, true, h2test.Request("GET", "/hang")...)
			p.WriteWindowUpdate(1, 1)
			p.wantServes(3, "half-closed")
			p.WriteWindowUpdate(3, 1)
			p.WriteWindowUpdate(1, 1)
			p.WantIdle("no error")
			p.wantServes(5, "closed")
		}},
		{"length 3", func(t *testing.T) { wrongLength(t, h2test.WindowUpdate, 0, 3) }},
		{"length 5", func(t *testing.T) { wrongLength(t, h2test.WindowUpdate, 0, 5) }},
		{"length 0 on a stream", func(t *testing.T) { wrongLength(t, h2test.WindowUpdate, 1, 0) }},
		{"length 3 on a stream", func(t *testing.T) { wrongLength(t, h2test.WindowUpdate, 1, 3) }},
		{"length 8 on a stream", func(t *testing.T) { wrongLength(t, h2test.WindowUpdate, 1, 8) }},
	})
}

// wrongLength sends a frame of that length and wants a connection error of type FRAME_SIZE_ERROR.
func wrongLength(t *testing.T, ft h2test.FrameType, id uint32, length int) {
	t.Helper()
	p := server(t, nil)
	p.tunnel(1)
	p.WriteFrame(ft, 0, id, make([]byte, length))
	p.WantConnError(fmt.Sprintf("%v of length %d", ft, length), h2test.FrameSizeError)
}

// "A sender MUST respect flow-control limits imposed by a receiver" (section 5.2.1): one that does not gets
// FLOW_CONTROL_ERROR.
func TestRFC9113_5_2_PeerExceedsOurWindows(t *testing.T) {
	cfg := &h2.Config{StreamWindow: 1000, MaxStreamWindow: 1000, ConnWindow: 70000}
	runCases(t, []specCase{
		{"stream window", func(t *testing.T) {
			p := server(t, cfg)
			p.tunnel(1)
			p.WriteHeaders(3, false, h2test.Request("POST", "/hang")...)
			p.WriteData(3, false, make([]byte, 1000))
			p.WantIdle("exactly the window")
			p.WriteData(3, false, make([]byte, 1))
			p.WantRST(3, "1 octet too much", h2test.FlowControlError)
			p.wantEcho(1, "a stream error")
		}},
		{"padding counts", func(t *testing.T) {
			// "The entire DATA frame payload is included in flow control, including the Pad Length and Padding
			// fields if present" (section 6.1).
			p := server(t, cfg)
			p.WriteHeaders(3, false, h2test.Request("POST", "/hang")...)
			p.WritePaddedData(3, false, make([]byte, 900), 100) // 1001
			p.WantRST(3, "1 octet too much", h2test.FlowControlError)
		}},
		{"empty frame at an empty window", func(t *testing.T) {
			p := server(t, cfg)
			p.WriteHeaders(3, false, h2test.Request("POST", "/hang")...)
			p.WriteData(3, false, make([]byte, 1000))
			p.WriteData(3, true, nil)
			p.WantIdle("an end needs no window")
			p.wantServes(5, "an end needs no window")
		}},
		{"connection window", func(t *testing.T) {
			budget := h2.NewBudget(1) // so that nothing is given back for what is not read
			p := server(t, &h2.Config{StreamWindow: 1 << 20, ConnWindow: 65535, Budget: budget})
			p.WriteHeaders(3, false, h2test.Request("POST", "/hang")...)
			for range 20 {
				p.WriteData(3, false, make([]byte, 16384))
			}
			p.Ignore(h2test.RSTStream)
			p.WantConnError("more than the connection's window", h2test.FlowControlError)
		}},
		{"our client role", func(t *testing.T) {
			p := client(t, cfg)
			s := p.open(get("/"), true)
			p.WriteHeaders(1, false, h2test.Response("200")...)
			p.WriteData(1, false, make([]byte, 1001))
			p.WantRST(1, "1 octet too much", h2test.FlowControlError)
			if _, err := s.Read(make([]byte, 1)); err == nil {
				t.Error("Read = nil after the stream was reset, want an error")
			}
			p.wantWorks("a stream error")
		}},
	})
}

// hangThirty opens thirty streams that are never answered.
func hangThirty(p *specPeer) {
	for id := uint32(1); id < 60; id += 2 {
		p.WriteHeaders(id, true, h2test.Request("GET", "/hang")...)
	}
}

// "A receiver that receives a flow-controlled frame MUST always account for its contribution against the
// connection flow-control window … even if the frame is in error" (section 6.9): in every path the
// connection's window is given back, or it is lost for good. SECURITY.md, "What is bounded".
func TestRFC9113_6_9_ConnectionWindowIsConserved(t *testing.T) {
	const connWindow, frame = 65535, 10_000
	post := func(path string) func(p *specPeer) {
		return func(p *specPeer) { p.WriteHeaders(1, false, h2test.Request("POST", path)...) }
	}
	nothing := func(p *specPeer) {}
	onOne := func(p *specPeer, _ uint32) { p.WriteData(1, false, make([]byte, frame)) }
	ways := []struct {
		name   string
		frames uint32                      // how many are sent: above the window
		start  func(p *specPeer)           // before the data
		send   func(p *specPeer, i uint32) // one frame of data
	}{
		{"read", 20, post("/read"), onOne},
		{"padded", 20, post("/read"), func(p *specPeer, _ uint32) {
			p.WritePaddedData(1, false, make([]byte, frame-256), 255)
		}},
		{"only padding", 90, post("/read"), func(p *specPeer, _ uint32) {
			for range 10 { // 2,560 octets
				p.WritePaddedData(1, false, nil, 255)
			}
			p.WriteData(1, false, make([]byte, 1000)) // or they were too many empty frames
		}},
		{"stream that we have reset", 20, func(p *specPeer) {
			p.WriteHeaders(1, false, h2test.Fields(":method", "POST")...)
		}, onOne},
		{"refused streams", 20, hangThirty, func(p *specPeer, i uint32) {
			p.WriteHeaders(61+2*i, false, h2test.Request("POST", "/read")...)
			p.WriteData(61+2*i, true, make([]byte, frame))
		}},
		{"stream reset in the middle", 20, nothing, func(p *specPeer, i uint32) {
			p.WriteHeaders(1+2*i, false, h2test.Request("POST", "/hang")...)
			p.WriteData(1+2*i, false, make([]byte, frame))
			p.WriteRST(1+2*i, h2test.Cancel)
			p.handled()
		}},
		{"never read and answered", 20, nothing, func(p *specPeer, i uint32) {
			p.WriteHeaders(1+2*i, false, h2test.Request("POST", "/")...)
			p.WriteData(1+2*i, true, make([]byte, frame))
			p.handled()
		}},
		// Each counts as ten oddities where a handler has the stream already, and 75 are too many.
		{"more than content-length", 7, nothing, func(p *specPeer, i uint32) {
			p.WriteHeaders(1+2*i, false, h2test.Request("POST", "/read", "content-length", "1")...)
			p.WriteData(1+2*i, false, make([]byte, frame))
			p.handled()
		}},
		{"stalled streams", 20, nothing, func(p *specPeer, i uint32) {
			p.WriteHeaders(1+2*i, false, h2test.Request("POST", "/hang")...)
			p.WriteData(1+2*i, false, make([]byte, frame))
		}},
	}
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := server(t, &h2.Config{ConnWindow: connWindow, MaxStreams: 30, MaxFrameBytes: 16384})
				p.Ignore(h2test.RSTStream, h2test.Headers)
				way.start(p)
				for i := range way.frames {
					way.send(p, i)
					p.WantIdle("RST_STREAM and answers apart")
					if w := p.SendWindow(0); w < connWindow/2 {
						t.Fatalf("connection window is %d after frame %d, want at least %d", w, i, connWindow/2)
					}
				}
			})
		})
	}
}

// Section 5.2.1: stream credit follows what the reader takes, so that a reader that stops stops the sender.
func TestRFC9113_5_2_StreamCreditFollowsTheReader(t *testing.T) {
	bubble(t, func(t *testing.T) {
		read := make(chan int)
		p := server(t, &h2.Config{StreamWindow: 10_000, MaxStreamWindow: 10_000, Handler: func(s *h2.Stream) {
			defer s.Close()
			for n := range read {
				if _, err := s.Read(make([]byte, n)); err != nil {
					return
				}
			}
		}})
		defer close(read)
		p.WriteHeaders(1, false, h2test.Request("POST", "/")...)
		p.WriteData(1, false, bytes.Repeat([]byte("x"), 10_000))
		p.WantIdle("nothing is read")
		if w := p.SendWindow(1); w != 0 {
			t.Errorf("stream window = %d although nothing was read, want 0", w)
		}
		read <- 4000
		p.WantIdle("less than half of the window is read")
		read <- 4000
		p.WantIdle("more than half of the window is read")
		if w := p.SendWindow(1); w < 5000 || w > 8000 {
			t.Errorf("stream window = %d after 8000 of 10000 bytes were read, want 5000 to 8000", w)
		}
	})
}

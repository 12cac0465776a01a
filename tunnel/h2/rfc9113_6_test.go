package h2_test

import (
	"testing"
	"testing/synctest"
	"time"

	"culvert/tunnel/h2"
	"culvert/tunnel/h2/h2test"
)

func TestRFC9113_6_1_Data(t *testing.T) {
	runCases(t, []specCase{
		{"padding", func(t *testing.T) {
			p := server(t, nil)
			p.tunnel(1)
			for _, pad := range []uint8{0, 1, 7, 255} {
				p.WritePaddedData(1, false, []byte("padded"), pad)
				p.WantData(1, []byte("padded"), false, "padding has no application semantic value")
			}
			p.WritePaddedData(1, false, nil, 10)
			p.WantIdle("nothing but padding")
			p.WritePaddedData(1, true, []byte("end"), 10)
			p.WantData(1, []byte("end"), true, "padding and END_STREAM")
		}},
		{"padding in pieces", func(t *testing.T) {
			p := server(t, nil)
			p.tunnel(1)
			payload := append(append([]byte{9}, "padded"...), make([]byte, 9)...)
			p.NoAudit = true // DATA goes out by WriteRaw
			for _, b := range h2test.AppendFrame(nil, h2test.Data, h2test.Padded, 1, payload) {
				p.WriteRaw([]byte{b})
				synctest.Wait()
			}
			p.WantData(1, []byte("padded"), false, "a padded frame octet by octet")
			p.wantEcho(1, "a padded frame octet by octet")
		}},
		{"padding as long as the payload", func(t *testing.T) {
			// "If the length of the padding is the length of the frame payload or greater, the recipient MUST treat
			// this as a connection error (Section 5.4.1) of type PROTOCOL_ERROR."
			p := server(t, nil)
			p.tunnel(1)
			p.WriteFrame(h2test.Data, h2test.Padded, 1, []byte{4, 0, 0, 0})
			p.WantConnError("4 octets of padding in a payload of 4", h2test.ProtocolError)
		}},
		{"padding longer than the payload", func(t *testing.T) {
			p := server(t, nil)
			p.tunnel(1)
			p.WriteFrame(h2test.Data, h2test.Padded, 1, []byte{255, 0, 0, 0})
			p.WantConnError("255 octets of padding in a payload of 4", h2test.ProtocolError)
		}},
		{"PADDED without pad length", func(t *testing.T) {
			p := server(t, nil)
			p.tunnel(1)
			p.WriteFrame(h2test.Data, h2test.Padded, 1, nil)
			p.WantConnError("too small to contain mandatory frame data", h2test.FrameSizeError, h2test.ProtocolError)
		}},
		{"on stream 0", func(t *testing.T) {
			// "DATA frames MUST be associated with a stream. If a DATA frame is received whose Stream Identifier field
			// is 0x00, the recipient MUST respond with a connection error (Section 5.4.1) of type PROTOCOL_ERROR."
			p := server(t, nil)
			p.WriteData(0, false, []byte("x"))
			p.WantConnError("DATA on stream 0", h2test.ProtocolError)
		}},
	})
}

func TestRFC9113_6_2_Headers(t *testing.T) {
	padded := func(pad byte, present int) func(t *testing.T) {
		return func(t *testing.T) {
			p := server(t, nil)
			payload := append([]byte{pad}, p.Encode(h2test.Request("GET", "/")...)...)
			p.WriteFrame(h2test.Headers, h2test.EndHeaders|h2test.EndStream|h2test.Padded, 1,
				append(payload, make([]byte, present)...))
			if int(pad) == present {
				p.WantHeaders(1, "padding is taken away", map[string]string{":status": "200"})
				return
			}
			p.WantConnError("padding longer than the payload", h2test.ProtocolError)
		}
	}
	runCases(t, []specCase{
		{"on stream 0", func(t *testing.T) {
			// "If a HEADERS frame is received whose Stream Identifier field is 0x00, the recipient MUST respond with a
			// connection error (Section 5.4.1) of type PROTOCOL_ERROR."
			p := server(t, nil)
			p.WriteHeaders(0, true, h2test.Request("GET", "/")...)
			p.WantConnError("HEADERS on stream 0", h2test.ProtocolError)
		}},
		{"padding 0", padded(0, 0)},
		{"padding 100", padded(100, 100)},
		{"padding too long", padded(200, 0)},
		{"END_STREAM with CONTINUATION", func(t *testing.T) {
			// "a HEADERS frame with the END_STREAM flag set can be followed by CONTINUATION frames on the same stream."
			p := server(t, nil)
			block := p.Encode(h2test.Request("POST", "/read")...)
			p.WriteFrame(h2test.Headers, h2test.EndStream, 1, block[:3])
			p.WriteContinuation(1, true, block[3:])
			p.WantHeaders(1, "the request has ended", map[string]string{":status": "200", "x-read": "0"})
		}},
	})
}

func TestRFC9113_6_4_RSTStream(t *testing.T) {
	runCases(t, []specCase{
		{"on stream 0", func(t *testing.T) {
			// "If a RST_STREAM frame is received with a stream identifier of 0x00, the recipient MUST treat this as a
			// connection error (Section 5.4.1) of type PROTOCOL_ERROR."
			p := server(t, nil)
			p.WriteRST(0, h2test.Cancel)
			p.WantConnError("RST_STREAM on stream 0", h2test.ProtocolError)
		}},
		{"on an idle stream", func(t *testing.T) {
			// "If a RST_STREAM frame identifying an idle stream is received, the recipient MUST treat this as a
			// connection error (Section 5.4.1) of type PROTOCOL_ERROR."
			p := server(t, nil)
			p.WriteRST(1, h2test.Cancel)
			p.WantConnError("RST_STREAM on an idle stream", h2test.ProtocolError)
		}},
		// "A RST_STREAM frame with a length other than 4 octets MUST be treated as a connection error (Section
		// 5.4.1) of type FRAME_SIZE_ERROR."
		{"length 3", func(t *testing.T) { wrongLength(t, h2test.RSTStream, 1, 3) }},
		{"length 5", func(t *testing.T) { wrongLength(t, h2test.RSTStream, 1, 5) }},
		{"length 0", func(t *testing.T) { wrongLength(t, h2test.RSTStream, 1, 0) }},
		{"length 1000", func(t *testing.T) { wrongLength(t, h2test.RSTStream, 1, 1000) }},
	})
}

func TestRFC9113_6_4_ResetIsTold(t *testing.T) {
	runCases(t, []specCase{
		{"reaches the handler", func(t *testing.T) {
			got := make(chan error, 1)
			p := server(t, &h2.Config{Handler: func(s *h2.Stream) {
				defer s.Close()
				<-s.Done()
				got <- s.Err()
			}})
			p.WriteHeaders(1, false, h2test.Request("POST", "/")...)
			synctest.Wait() // a stream that is reset in the same breath reaches no handler
			p.WriteRST(1, h2test.ConnectError)
			if err, ok := (<-got).(*h2.StreamError); !ok || err.Code != h2.ConnectError || err.By != h2.Peer {
				t.Errorf("Err = %v, want a *StreamError by the peer with CONNECT_ERROR", err)
			}
			// "After receiving a RST_STREAM on a stream, the receiver MUST NOT send additional frames for that stream."
			p.WantIdle("the handler's Close sends nothing")
		}},
		{"reaches a handler that asks later", func(t *testing.T) {
			for _, end := range []bool{false, true} {
				reset := make(chan struct{})
				ended := make(chan bool, 1)
				p := server(t, &h2.Config{Handler: func(s *h2.Stream) {
					defer s.Close()
					<-reset
					select {
					case <-s.Done():
						ended <- s.Err() != nil
					case <-time.After(time.Second):
						ended <- false
					}
				}})
				p.WriteHeaders(1, end, h2test.Request("POST", "/")...)
				synctest.Wait()
				p.WriteRST(1, h2test.Cancel)
				synctest.Wait()
				close(reset)
				if !<-ended {
					t.Errorf("Done is not closed after the reset of a stream that the peer had ended: %v", end)
				}
			}
		}},
		{"what came before is read", func(t *testing.T) {
			p := client(t, nil)
			s := p.open(get("/"), true)
			p.WriteHeaders(1, false, h2test.Response("200")...)
			p.WriteData(1, true, []byte("whole answer"))
			p.WriteRST(1, h2test.NoError)
			p.WantIdle("the exchange was complete")
			buf := make([]byte, 100)
			n, err := s.Read(buf)
			if string(buf[:n]) != "whole answer" {
				t.Errorf("Read = %q, %v; want the answer", buf[:n], err)
			}
		}},
	})
}

func TestRFC9113_6_5_Settings(t *testing.T) {
	runCases(t, []specCase{
		{"ACK with a payload", func(t *testing.T) {
			// "Receipt of a SETTINGS frame with the ACK flag set and a length field value other than 0 MUST be treated
			// as a connection error (Section 5.4.1) of type FRAME_SIZE_ERROR."
			p := server(t, nil)
			p.WriteFrame(h2test.Settings, h2test.Ack, 0, make([]byte, 6))
			p.WantConnError("SETTINGS ACK with a payload", h2test.FrameSizeError)
		}},
		{"on a stream", func(t *testing.T) {
			// "If an endpoint receives a SETTINGS frame whose Stream Identifier field is anything other than 0x00, the
			// endpoint MUST respond with a connection error (Section 5.4.1) of type PROTOCOL_ERROR."
			p := server(t, nil)
			p.WriteFrame(h2test.Settings, 0, 1, nil)
			p.NoAudit = true
			p.WantConnError("SETTINGS on stream 1", h2test.ProtocolError)
		}},
		{"ACK on a stream", func(t *testing.T) {
			p := server(t, nil)
			p.WriteFrame(h2test.Settings, h2test.Ack, 1, nil)
			p.WantConnError("SETTINGS ACK on stream 1", h2test.ProtocolError)
		}},
		// "A SETTINGS frame with a length other than a multiple of 6 octets MUST be treated as a connection error
		// (Section 5.4.1) of type FRAME_SIZE_ERROR."
		{"length 1", func(t *testing.T) { wrongLength(t, h2test.Settings, 0, 1) }},
		{"length 5", func(t *testing.T) { wrongLength(t, h2test.Settings, 0, 5) }},
		{"length 13", func(t *testing.T) { wrongLength(t, h2test.Settings, 0, 13) }},
		{"unknown setting", func(t *testing.T) {
			// "An endpoint that receives a SETTINGS frame with any unknown or unsupported identifier MUST ignore that
			// setting."
			p := server(t, nil, h2test.Setting{ID: 0x7777, Value: 1<<32 - 1}, h2test.Setting{ID: 0, Value: 5})
			p.wantServes(1, "unknown settings")
		}},
		{"last value counts", func(t *testing.T) {
			// "the value of a SETTINGS parameter is the last value that is seen by a receiver."
			p := server(t, nil, initialWindow(5), initialWindow(9))
			p.WriteHeaders(1, true, h2test.Request("GET", "/bytes/20")...)
			p.WantHeaders(1, "the response", nil)
			p.WantData(1, make([]byte, 9), false, "9 octets of window")
			p.WantIdle("the window is spent")
		}},
		{"each is acknowledged", func(t *testing.T) {
			p := server(t, nil)
			for range 20 {
				p.WriteSettings()
			}
			for range 20 {
				p.WantSettingsAck("the recipient MUST immediately emit a SETTINGS frame with the ACK flag set")
			}
			for _, f := range p.Take() {
				if f.Type == h2test.Settings {
					t.Errorf("one acknowledgement too many: %v", f)
				}
			}
		}},
		{"ACK is not acknowledged", func(t *testing.T) {
			p := server(t, nil)
			p.WriteSettingsAck()
			for _, f := range p.Take() {
				if f.Type == h2test.Settings && f.IsAck() {
					t.Errorf("an ACK is not answered: %v", f)
				}
			}
		}},
	})
}

// Section 6.5.2, each value's bounds.
func TestRFC9113_6_5_2_Values(t *testing.T) {
	tests := []struct {
		name    string
		setting h2test.Setting
		client  bool             // the peer is a server
		code    []h2test.ErrCode // none: allowed
	}{
		{"ENABLE_PUSH 0", h2test.Setting{ID: h2test.EnablePush, Value: 0}, false, nil},
		{"ENABLE_PUSH 1", h2test.Setting{ID: h2test.EnablePush, Value: 1}, false, nil},
		{"ENABLE_PUSH 2", h2test.Setting{ID: h2test.EnablePush, Value: 2}, false, []h2test.ErrCode{h2test.ProtocolError}},
		{"ENABLE_PUSH 0 by a server", h2test.Setting{ID: h2test.EnablePush, Value: 0}, true, nil},
		// "A client MUST treat receipt of a SETTINGS frame with SETTINGS_ENABLE_PUSH set to 1 as a connection error."
		{"ENABLE_PUSH 1 by a server", h2test.Setting{ID: h2test.EnablePush, Value: 1}, true, []h2test.ErrCode{h2test.ProtocolError}},
		{"INITIAL_WINDOW_SIZE 0", initialWindow(0), false, nil},
		{"INITIAL_WINDOW_SIZE 2^31-1", initialWindow(1<<31 - 1), false, nil},
		{"INITIAL_WINDOW_SIZE 2^31", initialWindow(1 << 31), false, []h2test.ErrCode{h2test.FlowControlError}},
		{"INITIAL_WINDOW_SIZE 2^32-1", initialWindow(1<<32 - 1), true, []h2test.ErrCode{h2test.FlowControlError}},
		{"MAX_FRAME_SIZE 16383", h2test.Setting{ID: h2test.MaxFrameSize, Value: 16383}, false, []h2test.ErrCode{h2test.ProtocolError}},
		{"MAX_FRAME_SIZE 0", h2test.Setting{ID: h2test.MaxFrameSize, Value: 0}, true, []h2test.ErrCode{h2test.ProtocolError}},
		{"MAX_FRAME_SIZE 16384", h2test.Setting{ID: h2test.MaxFrameSize, Value: 16384}, false, nil},
		{"MAX_FRAME_SIZE 2^24-1", h2test.Setting{ID: h2test.MaxFrameSize, Value: 1<<24 - 1}, false, nil},
		{"MAX_FRAME_SIZE 2^24", h2test.Setting{ID: h2test.MaxFrameSize, Value: 1 << 24}, false, []h2test.ErrCode{h2test.ProtocolError}},
		{"HEADER_TABLE_SIZE 0", h2test.Setting{ID: h2test.HeaderTableSize, Value: 0}, false, nil},
		{"HEADER_TABLE_SIZE 2^32-1", h2test.Setting{ID: h2test.HeaderTableSize, Value: 1<<32 - 1}, false, nil},
		{"MAX_CONCURRENT_STREAMS 0", h2test.Setting{ID: h2test.MaxConcurrentStreams, Value: 0}, false, nil},
		{"MAX_CONCURRENT_STREAMS 2^32-1", h2test.Setting{ID: h2test.MaxConcurrentStreams, Value: 1<<32 - 1}, true, nil},
		{"MAX_HEADER_LIST_SIZE 0", h2test.Setting{ID: h2test.MaxHeaderListSize, Value: 0}, false, nil},
		{"MAX_HEADER_LIST_SIZE 2^32-1", h2test.Setting{ID: h2test.MaxHeaderListSize, Value: 1<<32 - 1}, true, nil},
		{"ENABLE_CONNECT_PROTOCOL 0", h2test.Setting{ID: h2test.EnableConnectProtocol, Value: 0}, true, nil},
		{"ENABLE_CONNECT_PROTOCOL 1", h2test.Setting{ID: h2test.EnableConnectProtocol, Value: 1}, true, nil},
		// RFC 8441, section 3: "the value of the parameter MUST be 0 or 1."
		{"ENABLE_CONNECT_PROTOCOL 2", h2test.Setting{ID: h2test.EnableConnectProtocol, Value: 2}, true, []h2test.ErrCode{h2test.ProtocolError}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				start := server
				if tt.client {
					start = client
				}
				p := start(t, nil)
				p.WriteSettings(tt.setting)
				if tt.code != nil {
					p.WantConnError("a value out of bounds", tt.code...)
					return
				}
				p.WantSettingsAck("a value within bounds")
				p.WantIdle("a value within bounds")
			})
		})
	}
}

func TestRFC9113_6_7_Ping(t *testing.T) {
	runCases(t, []specCase{
		{"answered", func(t *testing.T) {
			// "Receivers of a PING frame that does not include an ACK flag MUST send a PING frame with the ACK flag set
			// in response, with an identical frame payload."
			p := server(t, nil)
			for i := range byte(50) {
				p.WritePing(false, [8]byte{i, 1, 2, 3, 4, 5, 6, 255 - i})
			}
			for i := range byte(50) {
				p.WantPingAck([8]byte{i, 1, 2, 3, 4, 5, 6, 255 - i}, "every PING is answered")
			}
		}},
		{"answered while DATA waits for windows", func(t *testing.T) {
			p := server(t, nil, initialWindow(1<<20))
			p.WriteHeaders(1, true, h2test.Request("GET", "/bytes/100000")...)
			p.WantHeaders(1, "the response", nil)
			p.WantData(1, make([]byte, 65535), false, "the connection's window")
			p.WritePing(false, [8]byte{7})
			p.WantPingAck([8]byte{7}, "PING is not flow-controlled")
		}},
		{"ACK is not answered", func(t *testing.T) {
			// "An endpoint MUST NOT respond to PING frames containing this flag."
			p := server(t, nil)
			p.WritePing(true, [8]byte{9})
			for _, f := range p.Take() {
				if f.Type == h2test.Ping {
					t.Errorf("an ACK is not answered: %v", f)
				}
			}
			p.wantServes(1, "a PING ACK that answers nothing")
		}},
		{"on a stream", func(t *testing.T) {
			// "If a PING frame is received with a Stream Identifier field value other than 0x00, the recipient MUST
			// respond with a connection error (Section 5.4.1) of type PROTOCOL_ERROR."
			p := server(t, nil)
			p.tunnel(1)
			p.WriteFrame(h2test.Ping, 0, 1, make([]byte, 8))
			p.WantConnError("PING on stream 1", h2test.ProtocolError)
		}},
		// "Receipt of a PING frame with a length field value other than 8 MUST be treated as a connection error
		// (Section 5.4.1) of type FRAME_SIZE_ERROR."
		{"length 7", func(t *testing.T) { wrongLength(t, h2test.Ping, 0, 7) }},
		{"length 9", func(t *testing.T) { wrongLength(t, h2test.Ping, 0, 9) }},
		{"length 0", func(t *testing.T) { wrongLength(t, h2test.Ping, 0, 0) }},
		{"length 4000", func(t *testing.T) { wrongLength(t, h2test.Ping, 0, 4000) }},
	})
}

// "If the END_HEADERS flag is not set, this frame MUST be followed by another CONTINUATION frame" and "A
// CONTINUATION frame MUST be preceded by a HEADERS, PUSH_PROMISE or CONTINUATION frame without the
// END_HEADERS flag set. A recipient that observes violation of this rule MUST respond with a connection
// error (Section 5.4.1) of type PROTOCOL_ERROR" (section 6.10). Interleaved frames: section 4.3.
func TestRFC9113_6_10_Continuation(t *testing.T) {
	runCases(t, []specCase{
		{"on stream 0", func(t *testing.T) {
			p := server(t, nil)
			p.WriteContinuation(0, true, nil)
			p.WantConnError("CONTINUATION on stream 0", h2test.ProtocolError)
		}},
		{"first", func(t *testing.T) {
			p := server(t, nil)
			p.WriteContinuation(1, true, p.Encode(h2test.Request("GET", "/")...))
			p.WantConnError("CONTINUATION without HEADERS", h2test.ProtocolError)
		}},
		{"after END_HEADERS", func(t *testing.T) {
			p := server(t, nil)
			p.WriteHeaders(1, false, h2test.Request("POST", "/hang")...)
			p.WriteContinuation(1, true, nil)
			p.WantConnError("CONTINUATION after END_HEADERS", h2test.ProtocolError)
		}},
		{"after DATA", func(t *testing.T) {
			p := server(t, nil)
			p.WriteHeaders(1, false, h2test.Request("POST", "/hang")...)
			p.WriteData(1, false, []byte("x"))
			p.WriteContinuation(1, true, nil)
			p.WantConnError("CONTINUATION after DATA", h2test.ProtocolError)
		}},
		{"after END_HEADERS in CONTINUATION", func(t *testing.T) {
			p := server(t, nil)
			p.WriteFrame(h2test.Headers, 0, 1, p.Encode(h2test.Request("POST", "/hang")...))
			p.WriteContinuation(1, true, nil)
			p.WriteContinuation(1, true, nil)
			p.WantConnError("CONTINUATION after END_HEADERS", h2test.ProtocolError)
		}},
		{"eight, some of them empty", func(t *testing.T) {
			// "Any number of CONTINUATION frames can be sent"; ours is up to eight (SECURITY.md, "What is bounded").
			p := server(t, nil)
			block := p.Encode(h2test.Request("GET", "/", "x-a", "value")...)
			p.WriteFrame(h2test.Headers, h2test.EndStream, 1, nil)
			for _, part := range [][]byte{nil, block[:1], block[1:2], nil, nil, block[2:5], nil} {
				p.WriteContinuation(1, false, part)
			}
			p.WriteContinuation(1, true, block[5:])
			p.WantHeaders(1, "a block of nine fragments", map[string]string{":status": "200"})
		}},
	})
}

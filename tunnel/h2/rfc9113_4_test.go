package h2_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"culvert/tunnel/h2"
	"culvert/tunnel/h2/h2test"
)

// "Implementations MUST ignore and discard frames of unknown types. … Unused flags MUST be ignored on
// receipt … the bit MUST … be ignored when receiving" (section 4.1).
func TestRFC9113_4_1_FrameFormat(t *testing.T) {
	runCases(t, []specCase{
		{"unknown type", func(t *testing.T) {
			p := server(t, nil)
			p.tunnel(1)
			for _, id := range []uint32{0, 1, 3, 2} {
				p.WriteFrame(0x42, 0xff, id, []byte("unknown"))
				p.WriteFrame(0xff, 0, id, nil)
			}
			p.WantIdle("unknown types are discarded")
			p.wantEcho(1, "unknown types")
			p.wantServes(3, "unknown types on an idle stream do not open it")
		}},
		{"unused flags", func(t *testing.T) {
			p := server(t, nil)
			p.WritePing(false, [8]byte{1})
			p.WriteFrame(h2test.Ping, 0xfe, 0, []byte{2, 0, 0, 0, 0, 0, 0, 0})
			p.WantPingAck([8]byte{2}, "unused flags of PING")
			p.WriteFrame(h2test.Headers, h2test.EndHeaders|0xd2&^h2test.WithPriority, 1,
				p.Encode(h2test.Connect("echo.example:7")...))
			p.WantHeaders(1, "unused flags of HEADERS", map[string]string{":status": "200"})
			p.WriteFrame(h2test.Data, 0xf6, 1, []byte("data"))
			p.WantData(1, []byte("data"), false, "unused flags of DATA")
			p.WriteFrame(h2test.WindowUpdate, 0xff, 1, []byte{0, 0, 0, 1})
			p.WriteFrame(h2test.Priority, 0xff, 1, []byte{0, 0, 0, 0, 1})
			p.WriteFrame(h2test.Settings, 0xfe, 0, nil)
			p.WantSettingsAck("unused flags of SETTINGS")
			p.WriteFrame(h2test.RSTStream, 0xff, 1, []byte{0, 0, 0, 8})
			p.wantServes(3, "unused flags")
		}},
		{"reserved bit", func(t *testing.T) {
			p := server(t, nil)
			p.tunnel(1)
			p.WriteRaw(h2test.AppendFrame(nil, h2test.Data, 0, 1<<31|1, []byte("data")))
			p.WantData(1, []byte("data"), false, "the reserved bit of the stream identifier")
			p.WriteRaw(h2test.AppendFrame(nil, h2test.Ping, 0, 1<<31, make([]byte, 8)))
			p.WriteFrame(h2test.WindowUpdate, 0, 0, []byte{0x80, 0, 0, 1})
			p.WriteFrame(h2test.WindowUpdate, 0, 1, []byte{0x80, 0, 0, 1})
			p.NoAudit = true // the PING was not counted
			p.WantPingAck([8]byte{}, "the reserved bit of PING")
			p.wantEcho(1, "reserved bits")
		}},
		{"frames in pieces", func(t *testing.T) {
			p := server(t, nil)
			raw := h2test.AppendFrame(nil, h2test.Headers, h2test.EndHeaders, 1, p.Encode(h2test.Connect("echo.example:7")...))
			raw = h2test.AppendFrame(raw, h2test.Data, h2test.EndStream, 1, []byte("piecemeal"))
			for i := range raw {
				p.WriteRaw(raw[i : i+1])
			}
			p.NoAudit = true // the request went out by WriteRaw
			p.WantHeaders(1, "a request octet by octet", map[string]string{":status": "200"})
			p.WantData(1, []byte("piecemeal"), true, "data octet by octet")
		}},
	})
}

// "All implementations MUST be capable of receiving and minimally processing frames up to 2^14 octets in
// length" and "An endpoint MUST send an error code of FRAME_SIZE_ERROR if a frame exceeds the size defined
// in SETTINGS_MAX_FRAME_SIZE … or is too small to contain mandatory frame data" (section 4.2).
func TestRFC9113_4_2_FrameSizeAccepted(t *testing.T) {
	for _, maxFrame := range []uint32{0, 16384, 20000} {
		t.Run(fmt.Sprintf("MaxFrameBytes %d", maxFrame), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := server(t, &h2.Config{MaxFrameBytes: maxFrame, StreamWindow: 4 << 20})
				limit := max(p.Theirs[h2test.MaxFrameSize], 16384)
				if maxFrame != 0 && limit != maxFrame {
					t.Errorf("SETTINGS_MAX_FRAME_SIZE = %d, want %d", limit, maxFrame)
				}
				p.WriteWindowUpdate(0, 4<<20)
				p.tunnel(1)
				p.WriteWindowUpdate(1, 4<<20)
				data := bytes.Repeat([]byte{'d'}, int(limit))
				p.WriteData(1, false, data)
				p.WantData(1, data, false, "a DATA frame of the announced size")
				block := p.Encode(h2test.Request("GET", "/", "x-long", strings.Repeat("v", 40_000))...)
				p.WriteFrame(h2test.Headers, h2test.EndStream, 3, block[:16384])
				p.WriteContinuation(3, false, block[16384:32768])
				p.WriteContinuation(3, true, block[32768:])
				p.WantHeaders(3, "field block fragments of 2^14 octets", map[string]string{":status": "200"})
				p.WriteFrame(0x42, 0, 0, make([]byte, limit))
				p.wantEcho(1, "an unknown frame of the announced size")
			})
		})
	}
}

func TestRFC9113_4_2_FrameSizeExceeded(t *testing.T) {
	tests := []struct {
		name   string
		stream bool // may be a stream error
		t      h2test.FrameType
		id     uint32
	}{
		{"DATA", true, h2test.Data, 1},
		{"HEADERS", false, h2test.Headers, 3},
		{"CONTINUATION", false, h2test.Continuation, 3},
		{"SETTINGS", false, h2test.Settings, 0},
		{"PING", false, h2test.Ping, 0},
		{"GOAWAY", false, h2test.GoAway, 0},
		{"unknown type on stream 0", false, 0x42, 0},
	}
	for _, tt := range tests {
		for _, whole := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/whole frame %v", tt.name, whole), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					p := server(t, &h2.Config{MaxFrameBytes: 16384})
					p.tunnel(1)
					if tt.t == h2test.Continuation {
						p.WriteFrame(h2test.Headers, 0, 3, p.Encode(h2test.Request("GET", "/")...))
					}
					raw := h2test.AppendFrame(nil, tt.t, 0, tt.id, make([]byte, 16386)) // a multiple of 6
					if !whole {
						raw = raw[:9] // the length alone tells
					}
					p.WriteRaw(raw)
					if tt.stream {
						p.wantStreamOrConnError(tt.id, "frame above SETTINGS_MAX_FRAME_SIZE", h2test.FrameSizeError)
						return
					}
					p.WantConnError("frame above SETTINGS_MAX_FRAME_SIZE", h2test.FrameSizeError)
				})
			})
		}
	}
}

func TestRFC9113_4_2_FrameTooSmall(t *testing.T) {
	tests := []struct {
		name  string
		write func(p *specPeer)
	}{
		{"HEADERS with PRIORITY flag", func(p *specPeer) {
			p.WriteFrame(h2test.Headers, h2test.EndHeaders|h2test.WithPriority, 3, make([]byte, 4))
		}},
		{"HEADERS with PADDED flag", func(p *specPeer) {
			p.WriteFrame(h2test.Headers, h2test.EndHeaders|h2test.Padded, 3, nil)
		}},
		{"GOAWAY", func(p *specPeer) { p.WriteFrame(h2test.GoAway, 0, 0, make([]byte, 7)) }},
		{"GOAWAY empty", func(p *specPeer) { p.WriteFrame(h2test.GoAway, 0, 0, nil) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := server(t, nil)
				p.tunnel(1)
				tt.write(p)
				p.WantConnError("too small to contain mandatory frame data", h2test.FrameSizeError)
			})
		})
	}
}

// "Values greater than 2^14 (16,384) MUST NOT be sent unless the receiver has set a larger value for
// SETTINGS_MAX_FRAME_SIZE" (section 4.1). The peer's audit watches the size of every frame here.
func TestRFC9113_4_2_OwnFrames(t *testing.T) {
	for _, maxFrame := range []uint32{16384, 16385, 1 << 20, 1<<24 - 1} {
		t.Run(fmt.Sprint(maxFrame), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := server(t, nil, h2test.Setting{ID: h2test.MaxFrameSize, Value: maxFrame},
					h2test.Setting{ID: h2test.InitialWindowSize, Value: 4 << 20})
				p.WriteWindowUpdate(0, 4<<20)
				p.WriteHeaders(1, true, h2test.Request("GET", "/bytes/3000000")...)
				p.WantHeaders(1, "the response", map[string]string{":status": "200"})
				p.WantData(1, make([]byte, 3_000_000), true, "3 MB of content")
			})
		})
	}
	t.Run("own field block above the size goes on in CONTINUATION", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := client(t, nil)
			h := get("/")
			h.Add("x-long", strings.Repeat("\x7e", 50_000)) // no Huffman code is shorter
			s, err := p.conn.Open(t.Context(), h, true)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			f := p.WantHeaders(1, "the request", map[string]string{"x-long": strings.Repeat("\x7e", 50_000)})
			if f.Continuations == 0 {
				t.Errorf("no CONTINUATION for a block of %d octets", len(f.Block))
			}
		})
	})
}

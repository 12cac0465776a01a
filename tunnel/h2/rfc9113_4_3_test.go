package h2_test

import (
	"fmt"
	"testing"

	"culvert/tunnel/h2"
	"culvert/tunnel/h2/h2test"
)

// "A decoding error in a field block MUST be treated as a connection error (Section 5.4.1) of type
// COMPRESSION_ERROR" (section 4.3). The errors are those of RFC 7541.
func TestRFC9113_4_3_DecodingErrors(t *testing.T) {
	good := []byte{0x82, 0x84, 0x87, 0x41, 0x01, 'a'} // GET / https a
	blocks := []struct {
		name  string
		block []byte
	}{
		{"index 0", append(good[:6:6], 0x80)},
		{"index beyond the tables", append(good[:6:6], 0xff, 0xff, 0x7f)},
		{"integer overflow", append(good[:6:6], 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f)},
		{"literal cut off", append(good[:6:6], 0x40, 0x01)},
		{"string longer than the block", append(good[:6:6], 0x40, 0x01, 'x', 0x7e, 'y')},
		{"Huffman padding of a whole octet", append(good[:6:6], 0x40, 0x01, 'x', 0x82, 0x07, 0xff)},
		{"Huffman padding with zeros", append(good[:6:6], 0x40, 0x01, 'x', 0x81, 0x18)},
		{"Huffman EOS", append(good[:6:6], 0x40, 0x01, 'x', 0x84, 0xff, 0xff, 0xff, 0xff)},
		{"table size update above the setting", append([]byte{0x3f, 0xe2, 0x1f}, good...)},
		{"table size update at the end", append(good[:6:6], 0x20)},
	}
	for _, b := range blocks {
		t.Run("request/"+b.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := server(t, nil)
				p.WriteFrame(h2test.Headers, h2test.EndHeaders|h2test.EndStream, 1, b.block)
				p.WantConnError("a decoding error ends the connection", h2test.CompressionError)
			})
		})
		t.Run("trailers/"+b.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := server(t, nil)
				p.WriteHeaders(1, false, h2test.Request("POST", "/read")...)
				p.WriteFrame(h2test.Headers, h2test.EndHeaders|h2test.EndStream, 1, b.block)
				p.WantConnError("a decoding error in trailers ends the connection", h2test.CompressionError)
			})
		})
		t.Run("response/"+b.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := client(t, nil)
				s := p.open(get("/"), true)
				p.WriteFrame(h2test.Headers, h2test.EndHeaders|h2test.EndStream, s.ID(), b.block)
				p.WantConnError("a decoding error in a response ends the connection", h2test.CompressionError)
				if h, err := s.Response(t.Context()); err == nil {
					t.Errorf("Response = %v, want an error", h)
				}
			})
		})
	}
}

// "Field blocks MUST be transmitted as a contiguous sequence of frames, with no interleaved frames of any
// other type or from any other stream" (section 4.3); "A receiver MUST treat the receipt of any other type
// of frame or a frame on a different stream as a connection error (Section 5.4.1) of type PROTOCOL_ERROR"
// (sections 6.2 and 6.10); "extension frames that appear in the middle of a field block (Section 4.3) are
// not permitted" (section 5.5).
func TestRFC9113_4_3_Interleaved(t *testing.T) {
	intruders := []struct {
		name string
		t    h2test.FrameType
		id   uint32
		data []byte
	}{
		{"DATA on the stream", h2test.Data, 3, []byte("x")},
		{"DATA on another stream", h2test.Data, 1, []byte("x")},
		{"HEADERS on the stream", h2test.Headers, 3, []byte{0x82}},
		{"HEADERS on another stream", h2test.Headers, 5, []byte{0x82}},
		{"CONTINUATION on another stream", h2test.Continuation, 1, nil},
		{"PRIORITY", h2test.Priority, 3, make([]byte, 5)},
		{"RST_STREAM", h2test.RSTStream, 3, make([]byte, 4)},
		{"SETTINGS", h2test.Settings, 0, nil},
		{"PING", h2test.Ping, 0, make([]byte, 8)},
		{"GOAWAY", h2test.GoAway, 0, make([]byte, 8)},
		{"WINDOW_UPDATE", h2test.WindowUpdate, 0, []byte{0, 0, 0, 1}},
		{"unknown type", 0x42, 3, nil},
	}
	for _, in := range intruders {
		for _, after := range []string{"HEADERS", "CONTINUATION"} {
			t.Run(in.name+"/after "+after, func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					p := server(t, nil)
					p.tunnel(1)
					block := p.Encode(h2test.Request("GET", "/")...)
					p.WriteFrame(h2test.Headers, h2test.EndStream, 3, block[:1])
					if after == "CONTINUATION" {
						p.WriteContinuation(3, false, block[1:2])
					}
					p.WriteFrame(in.t, 0, in.id, in.data)
					p.NoAudit = in.t == h2test.Ping || in.t == h2test.Settings
					p.WantConnError("a frame amid a field block", h2test.ProtocolError)
				})
			})
		}
	}
	t.Run("client role", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := client(t, nil)
			s := p.open(get("/"), true)
			p.WriteFrame(h2test.Headers, 0, s.ID(), p.Encode(h2test.Response("200")...))
			p.WriteData(s.ID(), true, []byte("x"))
			p.WantConnError("a frame amid a field block", h2test.ProtocolError)
		})
	})
}

func TestRFC9113_4_3_Fragments(t *testing.T) {
	block := func(p *specPeer) []byte { return p.Encode(h2test.Request("GET", "/", "x-a", "value of a")...) }
	var n int
	bubble(t, func(t *testing.T) { n = len(block(server(t, nil))) })
	for cut := 0; cut <= n; cut++ {
		t.Run(fmt.Sprintf("cut at octet %d", cut), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := server(t, nil)
				b := block(p)
				p.WriteFrame(h2test.Headers, h2test.EndStream, 1, b[:cut])
				p.WriteContinuation(1, true, b[cut:])
				f := p.WantHeaders(1, "a field block in two fragments", map[string]string{":status": "200"})
				if !f.EndStream() {
					p.WantData(1, nil, true, "the end")
				}
				if got := p.seen[0].Get("x-a"); got != "value of a" {
					t.Errorf("field x-a = %q, want %q", got, "value of a")
				}
			})
		})
	}
}

// "An endpoint receiving HEADERS, PUSH_PROMISE, or CONTINUATION frames needs to reassemble field blocks and
// perform decompression even if the frames are to be discarded" (section 4.3).
func TestRFC9113_4_3_DiscardedBlocksKeepTheTable(t *testing.T) {
	// The second request must decode by means of the entry that the discarded block has added.
	entry := h2test.Fields("x-entry", "of the dynamic table")
	wantEntry := func(t *testing.T, p *specPeer, id uint32) {
		t.Helper()
		p.WriteHeaders(id, true, append(h2test.Request("GET", "/"), entry...)...)
		p.WantHeaders(id, "a request that refers to a discarded block", map[string]string{":status": "200"})
		last := p.seen[p.handled()-1]
		if got := last.Get("x-entry"); got != entry[0].Value {
			t.Errorf("field x-entry = %q, want %q", got, entry[0].Value)
		}
	}
	runCases(t, []specCase{
		{"malformed request", func(t *testing.T) {
			p := server(t, nil)
			p.WriteHeaders(1, true, append(h2test.Fields(":method", "GET"), entry...)...)
			p.wantMalformed(1, "no path")
			wantEntry(t, p, 3)
		}},
		{"malformed before the entry", func(t *testing.T) {
			p := server(t, nil)
			p.WriteHeaders(1, true, append(h2test.Request("GET", "/", "UPPER", "case"), entry...)...)
			p.wantMalformed(1, "upper case")
			wantEntry(t, p, 3)
		}},
		{"refused stream", func(t *testing.T) {
			p := server(t, &h2.Config{MaxStreams: 1})
			p.tunnel(1)
			p.WriteHeaders(3, true, append(h2test.Request("GET", "/"), entry...)...)
			p.WantRST(3, "one stream is all", h2test.RefusedStream)
			p.WriteRST(1, h2test.Cancel)
			p.handled()
			wantEntry(t, p, 5)
		}},
		{"trailers for a stream that we have reset", func(t *testing.T) {
			p := server(t, nil)
			p.WriteHeaders(1, false, h2test.Fields(":method", "POST")...)
			p.wantMalformed(1, "no path")
			p.WriteHeaders(1, true, entry...)
			p.WantIdle("frames for a stream that was reset are discarded")
			wantEntry(t, p, 3)
		}},
		{"too large a header list", func(t *testing.T) {
			p := server(t, nil)
			p.WriteHeaders(1, true, append(h2test.Request("GET", "/", manyFields(200)...), entry...)...)
			p.WantHeaders(1, "above 128 fields", map[string]string{":status": "431"})
			wantEntry(t, p, 3)
		}},
	})
}

// manyFields are n names and values.
func manyFields(n int) []string {
	var kv []string
	for i := range n {
		kv = append(kv, fmt.Sprintf("x-%d", i), "v")
	}
	return kv
}

// "Once an endpoint acknowledges a change to SETTINGS_HEADER_TABLE_SIZE that reduces the maximum below the
// current size of the dynamic table, its HPACK encoder MUST start the next field block with a Dynamic Table
// Size Update instruction that sets the dynamic table to a size that is less than or equal to the reduced
// maximum" (section 4.3.1).
func TestRFC9113_4_3_1_TableSizeReduced(t *testing.T) {
	tests := []struct {
		name  string
		sizes []uint32
		want  byte // first octet of the next block, 0x20 and the size
	}{
		{"to 0", []uint32{0}, 0x20},
		{"to 16", []uint32{16}, 0x30},
		{"to 0 and up again", []uint32{0, 4096}, 0x20},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := server(t, nil)
				p.wantServes(1, "first block")
				for _, size := range tt.sizes {
					p.WriteSettings(h2test.Setting{ID: h2test.HeaderTableSize, Value: size})
					p.WantSettingsAck("the new table size")
				}
				p.WriteHeaders(3, true, h2test.Request("GET", "/")...)
				f := p.WantHeaders(3, "the next block", map[string]string{":status": "200"})
				if len(f.Block) == 0 || f.Block[0] != tt.want {
					t.Errorf("next field block begins %#x, want a table size update %#x", f.Block, tt.want)
				}
				p.wantServes(5, "the block after")
			})
		})
	}
	t.Run("in the preface", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := server(t, nil, h2test.Setting{ID: h2test.HeaderTableSize, Value: 0})
			p.WriteHeaders(1, true, h2test.Request("GET", "/")...)
			f := p.WantHeaders(1, "the first block", map[string]string{":status": "200"})
			if len(f.Block) == 0 || f.Block[0] != 0x20 {
				t.Errorf("first field block begins %#x, want a table size update to 0", f.Block)
			}
			p.wantServes(3, "table size 0")
		})
	})
}

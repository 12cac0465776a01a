package h2_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"culvert/tunnel/h2"
	"culvert/tunnel/h2/h2test"
)

// The tests of this file play the attacks of SECURITY.md, "What is bounded", against the default limits.

// flood writes frames until limit of them are written or the connection has gone, and wants it ended.
func flood(t *testing.T, p *specPeer, limit int, write func(i uint32)) {
	t.Helper()
	for i := 0; i < limit && !p.Broken(); i++ {
		write(uint32(i))
	}
	wantFloodEnd(t, p, fmt.Sprintf("a flood of %d", limit), h2test.EnhanceYourCalm)
}

// wantFloodEnd wants GOAWAY with one of the codes among whatever else was sent, such as the one that asks a
// peer to leave, and then the end.
func wantFloodEnd(t *testing.T, p *specPeer, why string, codes ...h2test.ErrCode) {
	t.Helper()
	p.Ignore(h2test.RSTStream, h2test.Headers, h2test.Data)
	if f := p.WantGoAway(why, append(codes, h2test.NoError)...); f.ErrCode() == h2test.NoError {
		p.WantGoAway(why, codes...)
	}
	p.WantClosed(why)
	if err := p.conn.Err(); err == nil {
		t.Errorf("Err = nil after %s", why)
	}
}

// settle lets the stack come to rest and forgets what it has sent.
func settle(p *specPeer) []h2test.Frame {
	synctest.Wait()
	return p.Take()
}

// Row 1: "end within 500 resets (a leaking bucket, 33/s; counted: a peer's reset before our answer)".
func TestLimits_RapidReset(t *testing.T) {
	openAndReset := func(p *specPeer, id uint32) {
		p.WriteHeaders(id, false, h2test.Request("POST", "/hang")...)
		p.WriteRST(id, h2test.Cancel)
	}
	runCases(t, []specCase{
		{"ends at full speed", func(t *testing.T) {
			p := server(t, nil)
			flood(t, p, 501, func(i uint32) { openAndReset(p, 1+2*i) })
			if n := p.handled(); n > 100 {
				t.Errorf("%d requests reached the handler, want at most 100 (section 3, goal 2)", n)
			}
		}},
		{"ends within 500 one by one", func(t *testing.T) {
			p := server(t, nil)
			flood(t, p, 510, func(i uint32) {
				openAndReset(p, 1+2*i)
				synctest.Wait()
			})
			if n := p.handled(); n > 100 {
				t.Errorf("%d requests reached the handler, want at most 100 (section 3, goal 2)", n)
			}
		}},
		{"in one breath reaches no handler", func(t *testing.T) {
			p := server(t, nil)
			raw := []byte(nil)
			for i := range uint32(400) {
				raw = h2test.AppendFrame(raw, h2test.Headers, h2test.EndHeaders, 1+2*i, p.Encode(h2test.Request("POST", "/hang")...))
				raw = h2test.AppendFrame(raw, h2test.RSTStream, 0, 1+2*i, []byte{0, 0, 0, 8})
			}
			p.WriteRaw(raw)
			if n := p.handled(); n > 2 { // where the bytes were read in pieces
				t.Errorf("%d requests reached the handler, want those between two reads at most", n)
			}
			if n := p.conn.NumStreams(); n != 0 {
				t.Errorf("NumStreams = %d, want 0", n)
			}
			p.NoAudit = true // it has not seen these streams
			p.wantServes(1001, "400 resets")
		}},
		{"later streams start a moment later", func(t *testing.T) {
			p := server(t, nil)
			for i := range uint32(60) {
				openAndReset(p, 1+2*i)
				settle(p)
			}
			before, start := p.handled(), time.Now()
			p.WriteHeaders(1001, true, h2test.Request("GET", "/")...)
			if n := p.handled(); n != before {
				t.Errorf("%d requests reached the handler, want %d for now", n, before)
			}
			p.WantHeaders(1001, "it was not reset", map[string]string{":status": "200"})
			if d := time.Since(start); d > time.Second {
				t.Errorf("answered after %v", d)
			}
		}},
		{"lives with 450", func(t *testing.T) {
			p := server(t, nil)
			for i := range uint32(450) {
				openAndReset(p, 1+2*i)
				synctest.Wait()
			}
			p.wantServes(1001, "450 resets")
		}},
		{"lives with 30 a second", func(t *testing.T) {
			p := server(t, nil)
			for i := range uint32(1800) {
				openAndReset(p, 1+2*i)
				settle(p)
				time.Sleep(time.Second / 30)
			}
			p.wantServes(10001, "1800 resets in a minute")
		}},
		{"resets after the answer do not count", func(t *testing.T) {
			p := server(t, nil)
			for i := range uint32(1500) {
				p.tunnel(1 + 2*i)
				p.WriteRST(1+2*i, h2test.Cancel)
				settle(p)
			}
			p.wantServes(10001, "1500 tunnels that were cut")
		}},
	})
}

// Row 11: "the slot is freed only when the backend work has ended" (row 2).
func TestLimits_SlotIsHeldByTheWork(t *testing.T) {
	bubble(t, func(t *testing.T) {
		work := make(chan struct{})
		p := server(t, &h2.Config{MaxStreams: 2, Handler: func(s *h2.Stream) {
			defer s.Close()
			if s.Request().Path == "/" {
				s.Respond(&h2.Header{Status: 200}, true)
				return
			}
			<-work // a dial that does not heed the reset
		}})
		for id := uint32(1); id <= 3; id += 2 {
			p.WriteHeaders(id, true, h2test.Request("GET", "/work")...)
			synctest.Wait() // it has begun
			p.WriteRST(id, h2test.Cancel)
		}
		p.WriteHeaders(5, true, h2test.Request("GET", "/")...)
		p.WantRST(5, "the work of two reset streams goes on", h2test.RefusedStream)
		close(work)
		synctest.Wait()
		p.wantServes(7, "the work has ended")
	})
}

// Row 2: "own resets for a peer's protocol errors: <=100 (bucket, 10/s), one with a dial behind it costs 10",
// and section 3, goal 2: at most 10 dials a connection.
func TestLimits_MadeYouReset(t *testing.T) {
	violations := map[string]func(p *specPeer, id uint32){
		"WINDOW_UPDATE 0":      func(p *specPeer, id uint32) { p.WriteWindowUpdate(id, 0) },
		"window overflow":      func(p *specPeer, id uint32) { p.WriteWindowUpdate(id, 1<<31-1) },
		"PRIORITY length":      func(p *specPeer, id uint32) { p.WriteFrame(h2test.Priority, 0, id, make([]byte, 4)) },
		"PRIORITY on itself":   func(p *specPeer, id uint32) { p.WritePriority(id, id, 1) },
		"DATA after the end":   func(p *specPeer, id uint32) { p.WriteData(id, true, nil); p.WriteData(id, false, []byte("x")) },
		"HEADERS after end":    func(p *specPeer, id uint32) { p.WriteData(id, true, nil); p.WriteHeaders(id, true) },
		"bad trailers":         func(p *specPeer, id uint32) { p.WriteHeaders(id, true, h2test.Fields("Upper", "1")...) },
		"stream window":        func(p *specPeer, id uint32) { p.WriteData(id, false, make([]byte, 70_000)) },
		"second HEADERS":       func(p *specPeer, id uint32) { p.WriteHeaders(id, false, h2test.Request("GET", "/")...) },
		"content-length above": func(p *specPeer, id uint32) { p.WriteData(id, false, []byte("123456")) },
	}
	for name, violate := range violations {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := server(t, nil)
				for i := uint32(0); i < 12 && !p.Broken(); i++ {
					p.WriteHeaders(1+2*i, false, h2test.Request("POST", "/hang", "content-length", "5")...)
					synctest.Wait() // the handler has begun
					violate(p, 1+2*i)
					time.Sleep(time.Millisecond)
				}
				wantFloodEnd(t, p, "resets that we are made to send", h2test.EnhanceYourCalm)
				if n := p.handled(); n > 10 {
					t.Errorf("%d requests reached the handler, want at most 10", n)
				}
			})
		})
	}
	t.Run("malformed requests end within 100", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := server(t, nil)
			flood(t, p, 100, func(i uint32) { p.WriteHeaders(1+2*i, true, h2test.Fields(":method", "GET")...) })
		})
	})
	t.Run("lives with 90 malformed requests", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := server(t, nil)
			for i := range uint32(90) {
				p.WriteHeaders(1+2*i, true, h2test.Fields(":method", "GET")...)
				p.wantMalformed(1+2*i, "no path")
			}
			p.wantServes(1001, "90 malformed requests")
		})
	})
	t.Run("lives with 9 malformed requests a second", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := server(t, nil)
			for i := range uint32(540) {
				p.WriteHeaders(1+2*i, true, h2test.Fields(":method", "GET")...)
				p.wantMalformed(1+2*i, "no path")
				time.Sleep(time.Second / 9)
			}
			p.wantServes(10001, "a minute of malformed requests")
		})
	})
	t.Run("NO_ERROR after a complete answer does not count", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			p := server(t, nil)
			for i := range uint32(500) {
				p.WriteHeaders(1+2*i, false, h2test.Request("POST", "/early")...)
				settle(p)
			}
			p.wantServes(10001, "500 early answers")
		})
	})
}

// Row 3: "<=8 frames and <=64 KiB per block, empty ones counted".
func TestLimits_Continuation(t *testing.T) {
	runCases(t, []specCase{
		{"nine", func(t *testing.T) {
			p := server(t, nil)
			block := p.Encode(h2test.Request("GET", "/")...)
			p.WriteFrame(h2test.Headers, h2test.EndStream, 1, block[:1])
			for range 8 {
				p.WriteContinuation(1, false, nil)
			}
			p.WriteContinuation(1, true, block[1:])
			wantFloodEnd(t, p, "nine CONTINUATION frames", h2test.EnhanceYourCalm)
		}},
		{"empty ones without end", func(t *testing.T) {
			p := server(t, nil)
			p.WriteFrame(h2test.Headers, h2test.EndStream, 1, nil)
			flood(t, p, 20, func(uint32) { p.WriteContinuation(1, false, nil) })
		}},
		{"nine in a promise", func(t *testing.T) {
			p, _ := pushClient(t, h2.Config{})
			p.WriteFrame(h2test.PushPromise, 0, 1, []byte{0, 0, 0, 2})
			for range 9 {
				p.WriteContinuation(1, false, nil)
			}
			wantFloodEnd(t, p, "nine CONTINUATION frames", h2test.EnhanceYourCalm)
		}},
		{"nine in a response", func(t *testing.T) {
			p := client(t, nil)
			p.open(get("/"), true)
			p.WriteFrame(h2test.Headers, 0, 1, nil)
			for range 9 {
				p.WriteContinuation(1, false, nil)
			}
			wantFloodEnd(t, p, "nine CONTINUATION frames", h2test.EnhanceYourCalm)
		}},
		{"64 KiB encoded", func(t *testing.T) {
			p := server(t, nil)
			p.WriteHeaders(1, true, h2test.Request("GET", "/")...) // enters test.example into the table
			settle(p)
			block := blockOf(p, 64<<10)
			writeFragments(p, 3, block, 16384)
			p.WantHeaders(3, "64 KiB encoded are more than 64 KiB decoded", map[string]string{":status": "431"})
			p.wantServes(5, "a block of 64 KiB")
		}},
		{"1 more", func(t *testing.T) {
			p := server(t, nil)
			p.WriteHeaders(1, true, h2test.Request("GET", "/")...)
			settle(p)
			writeFragments(p, 3, blockOf(p, 64<<10+1), 16384)
			wantFloodEnd(t, p, "a block of 64 KiB and 1", h2test.EnhanceYourCalm)
		}},
		{"1 more in one frame", func(t *testing.T) {
			p := server(t, nil)
			p.WriteHeaders(1, true, h2test.Request("GET", "/")...)
			settle(p)
			writeFragments(p, 3, blockOf(p, 64<<10+1), 1<<20)
			wantFloodEnd(t, p, "a block of 64 KiB and 1", h2test.EnhanceYourCalm)
		}},
	})
}

// blockOf is the field block of a request that takes n octets, by a field that enters no table.
func blockOf(p *specPeer, n int) []byte {
	block := p.Encode(h2test.Request("GET", "/")...)
	// Literal without indexing, name "x", value of m octets without Huffman code, m above 16,510: three octets.
	m := n - len(block) - 3 - 4
	block = append(block, 0x00, 0x01, 'x')
	rest := m - 127
	block = append(block, 0x7f, byte(rest)|0x80, byte(rest>>7)|0x80, byte(rest>>14))
	block = append(block, bytes.Repeat([]byte{'v'}, m)...)
	if len(block) != n {
		panic(fmt.Sprintf("BUG: block of %d octets, want %d", len(block), n))
	}
	return block
}

func writeFragments(p *specPeer, id uint32, block []byte, size int) {
	n := min(len(block), size)
	if n == len(block) {
		p.WriteFrame(h2test.Headers, h2test.EndStream|h2test.EndHeaders, id, block)
		return
	}
	p.WriteFrame(h2test.Headers, h2test.EndStream, id, block[:n])
	for block = block[n:]; len(block) > 0; block = block[n:] {
		n = min(len(block), size)
		p.WriteContinuation(id, n == len(block), block[:n])
	}
}

// Row 8: "SETTINGS_MAX_HEADER_LIST_SIZE 64 KiB (HBONE), 128 fields. Over that: decode on (HPACK stays in
// step), keep nothing, 431, connection lives. … 256 KiB decoded: connection ends, ENHANCE_YOUR_CALM."
func TestLimits_HeaderList(t *testing.T) {
	// listOf is a request whose header list has n octets as section 6.5.2 counts them.
	listOf := func(n int) []h2test.Field {
		fields := h2test.Request("GET", "/")
		for _, f := range fields {
			n -= int(f.Size())
		}
		return append(fields, h2test.Field{Name: "x", Value: strings.Repeat("v", n-33)})
	}
	// bomb refers again and again to an entry of 3,000 octets.
	bomb := func(p *specPeer, references int) []byte {
		block := p.Encode(append(h2test.Request("GET", "/"), h2test.Field{Name: "x", Value: strings.Repeat("v", 3000)})...)
		return append(block, bytes.Repeat([]byte{0xbe}, references)...) // the newest entry
	}
	tests := []struct {
		name  string
		write func(p *specPeer)
		want  string // status; "": the connection ends
	}{
		{"128 fields", func(p *specPeer) { p.WriteHeaders(3, true, h2test.Request("GET", "/", manyFields(124)...)...) }, "200"},
		{"133 fields", func(p *specPeer) { p.WriteHeaders(3, true, h2test.Request("GET", "/", manyFields(129)...)...) }, "431"},
		{"1000 fields", func(p *specPeer) { p.WriteHeaders(3, true, h2test.Request("GET", "/", manyFields(996)...)...) }, "431"},
		{"list of 64 KiB", func(p *specPeer) { p.WriteHeaders(3, true, listOf(64<<10)...) }, "200"},
		{"1 more", func(p *specPeer) { p.WriteHeaders(3, true, listOf(64<<10+1)...) }, "431"},
		{"request without END_STREAM", func(p *specPeer) { p.WriteHeaders(3, false, listOf(64<<10+1)...) }, "431"},
		{"60 references", func(p *specPeer) {
			p.WriteFrame(h2test.Headers, h2test.EndHeaders|h2test.EndStream, 3, bomb(p, 60))
		}, "431"},
		{"90 references", func(p *specPeer) {
			p.WriteFrame(h2test.Headers, h2test.EndHeaders|h2test.EndStream, 3, bomb(p, 90))
		}, ""},
		{"16,000 references", func(p *specPeer) {
			p.WriteFrame(h2test.Headers, h2test.EndHeaders|h2test.EndStream, 3, bomb(p, 16_000)[:16384])
		}, ""},
		{"64 KiB of empty fields", func(p *specPeer) { // CVE-2019-9516
			block := append(p.Encode(h2test.Request("GET", "/")...), bytes.Repeat([]byte{0x00, 0x01, 'x', 0x00}, 9000)...)
			writeFragments(p, 3, block, 16384)
		}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := server(t, nil)
				if v := p.Theirs[h2test.MaxHeaderListSize]; v != 64<<10 {
					t.Errorf("SETTINGS_MAX_HEADER_LIST_SIZE = %d, want 65536", v)
				}
				p.tunnel(1)
				tt.write(p)
				if tt.want == "" {
					wantFloodEnd(t, p, "more than 256 KiB decoded", h2test.EnhanceYourCalm)
				} else {
					p.WantHeaders(3, "the request's answer", map[string]string{":status": tt.want})
					p.wantEcho(1, "one request was too large")
					p.wantServes(5, "one request was too large")
				}
				if n := p.handled(); tt.want != "200" && n > 2 {
					t.Errorf("%d requests reached the handler: one that was too large did", n)
				}
			})
		})
	}
}

func TestLimits_HeaderListOfResponse(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := client(t, nil)
		s := p.open(get("/"), true)
		p.WriteHeaders(1, true, h2test.Response("200", manyFields(200)...)...)
		var se *h2.StreamError
		if _, err := s.Response(t.Context()); !errors.As(err, &se) {
			t.Errorf("Response with 200 fields = %v, want a *StreamError", err)
		}
		p.wantWorks("one response was too large")
	})
}

func TestLimits_HeaderListOfTrailers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := server(t, nil)
		p.WriteHeaders(1, false, h2test.Request("POST", "/read")...)
		p.WriteHeaders(1, true, h2test.Fields(manyFields(200)...)...)
		settle(p)
		p.wantServes(3, "trailers were too large")
	})
}

// Row 11: "REFUSED_STREAM below 2x, then end".
func TestLimits_ConcurrentStreams(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := server(t, &h2.Config{MaxStreams: 10})
		for i := range uint32(10) {
			p.WriteHeaders(1+2*i, false, h2test.Request("POST", "/hang")...)
		}
		for i := range uint32(9) {
			p.WriteHeaders(21+2*i, false, h2test.Request("POST", "/hang")...)
			p.WantRST(21+2*i, "above the limit, below twice the limit", h2test.RefusedStream)
		}
		if n := p.handled(); n != 10 {
			t.Errorf("%d requests reached the handler, want 10", n)
		}
		flood(t, p, 3, func(i uint32) { p.WriteHeaders(41+2*i, false, h2test.Request("POST", "/hang")...) })
	})
}

// Row 11: "drain and GOAWAY well before 2^31".
func TestLimits_StreamIdentifiersRunOut(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := server(t, nil)
		p.wantServes(1<<31-1001, "identifiers are running out")
		p.WantGoAway("500 identifiers before the end", h2test.NoError)
		p.wantServes(1<<31-999, "what was under way is served")
	})
}

// Row 20: "<=16 1xx per stream; 101 is an error".
func TestLimits_InterimResponses(t *testing.T) {
	for n, good := range map[int]bool{16: true, 17: false} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := client(t, nil)
				s := p.open(get("/"), true)
				for range n {
					p.WriteHeaders(1, false, h2test.Response("103")...)
				}
				p.WriteHeaders(1, true, h2test.Response("200")...)
				if good {
					wantStatus(t, s, 200)
				} else {
					p.WantRST(1, "17 interim responses", h2test.EnhanceYourCalm, h2test.ProtocolError)
					if _, err := s.Response(t.Context()); err == nil {
						t.Error("Response = nil, want a *StreamError")
					}
				}
				p.wantWorks("a stream error at most")
			})
		})
	}
}

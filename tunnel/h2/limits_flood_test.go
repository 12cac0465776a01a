package h2_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"culvert/tunnel/h2"
	"culvert/tunnel/h2/h2test"
)

// Rows 4 and 12: "500 queued; and a rate: burst 1000, 100/s, then ENHANCE_YOUR_CALM".
func TestLimits_ControlFrames(t *testing.T) {
	frames := map[string]func(p *specPeer, i uint32){
		"PING":            func(p *specPeer, i uint32) { p.WritePing(false, [8]byte{byte(i >> 8), byte(i)}) },
		"PING ACK":        func(p *specPeer, i uint32) { p.WritePing(true, [8]byte{9, byte(i >> 8), byte(i)}) },
		"SETTINGS":        func(p *specPeer, i uint32) { p.WriteSettings() },
		"SETTINGS change": func(p *specPeer, i uint32) { p.WriteSettings(initialWindow(i)) },
		"SETTINGS ACK":    func(p *specPeer, i uint32) { p.WriteSettingsAck() },
		"PRIORITY":        func(p *specPeer, i uint32) { p.WritePriority(1+2*i, 0, 1) },
		"PRIORITY_UPDATE": func(p *specPeer, i uint32) { p.WriteFrame(0x10, 0, 0, []byte("\x00\x00\x00\x01u=3")) },
		"unknown type":    func(p *specPeer, i uint32) { p.WriteFrame(0x42, 0, 0, []byte("x")) },
	}
	for name, write := range frames {
		t.Run(name, func(t *testing.T) {
			t.Run("burst of 1100 ends", func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					p := server(t, nil)
					p.NoSettingsAck = true
					// As long as the answers are read, only the rate counts.
					flood(t, p, 1100, func(i uint32) {
						write(p, i)
						if i%100 == 0 {
							synctest.Wait()
						}
					})
				})
			})
			t.Run("burst of 950 lives", func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					p := server(t, nil)
					for i := range uint32(950) {
						write(p, i)
						if i%100 == 0 {
							settle(p)
						}
					}
					p.wantServes(10001, "950 of 1000")
				})
			})
			t.Run("90 a second live", func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					p := server(t, nil)
					for i := range uint32(90 * 60) {
						write(p, i)
						if i%90 == 89 {
							settle(p)
							time.Sleep(time.Second)
						}
					}
					p.wantServes(20001, "90 a second for a minute")
				})
			})
		})
	}
}

// Row 4: a peer that does not read cannot make us queue more than 500 answers.
func TestLimits_QueuedControlFrames(t *testing.T) {
	frames := map[string]func(p *specPeer, i uint32){
		"PING":     func(p *specPeer, i uint32) { p.WritePing(false, [8]byte{byte(i >> 8), byte(i)}) },
		"SETTINGS": func(p *specPeer, i uint32) { p.WriteSettings() },
		"header list, 431": func(p *specPeer, i uint32) {
			p.WriteHeaders(1+2*i, true, h2test.Request("GET", "/", manyFields(200)...)...)
		},
		"malformed request": func(p *specPeer, i uint32) { p.WriteHeaders(1+2*i, true, h2test.Fields(":method", "GET")...) },
	}
	for name, write := range frames {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				a, b := h2test.PipeSize(1 << 10)
				p := &specPeer{t: t}
				conn, err := h2.NewServer(b, &h2.Config{Handler: p.handle})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { conn.Close() })
				p.Peer, p.conn = h2test.NewClient(t, a), conn
				p.Handshake()
				for i := uint32(0); i < 700 && !p.Broken(); i++ { // fewer than the rate allows
					write(p, i)
					synctest.Wait()
				}
				var ce *h2.ConnError
				if err := conn.Err(); !errors.As(err, &ce) || ce.Code != h2.EnhanceYourCalm {
					t.Errorf("Err after 700 answers that were not read = %v, want ENHANCE_YOUR_CALM", err)
				}
				p.WantClosed("a peer that does not read")
			})
		})
	}
}

// Row 6: "100 consecutive empties; byte-per-frame budget as Rust h2 (tunnels of keystrokes must survive)".
func TestLimits_TinyData(t *testing.T) {
	runCases(t, []specCase{
		{"100 empty frames live", func(t *testing.T) {
			p := server(t, nil)
			p.tunnel(1)
			for range 20 {
				for range 100 {
					p.WriteData(1, false, nil)
				}
				p.wantEcho(1, "100 empty frames between data")
			}
		}},
		{"101 empty frames end", func(t *testing.T) {
			p := server(t, nil)
			p.tunnel(1)
			flood(t, p, 101, func(uint32) { p.WriteData(1, false, nil) })
		}},
		{"padding alone is empty", func(t *testing.T) {
			p := server(t, nil)
			p.tunnel(1)
			flood(t, p, 101, func(uint32) { p.WritePaddedData(1, false, nil, 10) })
		}},
		{"across streams", func(t *testing.T) {
			p := server(t, nil)
			p.tunnel(1)
			p.tunnel(3)
			flood(t, p, 101, func(i uint32) { p.WriteData(1+2*(i%2), false, nil) })
		}},
	})
}

func TestLimits_TinyDataOfTunnels(t *testing.T) {
	runCases(t, []specCase{
		{"ends are not empty", func(t *testing.T) {
			p := server(t, nil)
			for i := range uint32(300) {
				p.WriteHeaders(1+2*i, false, h2test.Request("POST", "/read")...)
				p.WriteData(1+2*i, true, nil)
				p.WantHeaders(1+2*i, "an empty request", map[string]string{":status": "200"})
			}
		}},
		{"keystrokes live", func(t *testing.T) {
			p := server(t, nil)
			p.tunnel(1)
			for range 5000 {
				p.WriteData(1, false, []byte("k"))
				p.WantData(1, []byte("k"), false, "the echo of a keystroke")
			}
		}},
		{"keystrokes of many tunnels live", func(t *testing.T) {
			p := server(t, nil)
			for i := range uint32(50) {
				p.tunnel(1 + 2*i)
			}
			for range 50 {
				for i := range uint32(50) {
					p.WriteData(1+2*i, false, []byte("k"))
				}
				for i := range uint32(50) {
					p.WantData(1+2*i, []byte("k"), false, "the echo of a keystroke")
				}
			}
		}},
		{"tiny frames of many tunnels in one record live", func(t *testing.T) {
			p := server(t, nil)
			for i := range uint32(100) {
				p.tunnel(1 + 2*i)
			}
			p.Ignore(h2test.Data)
			for range 500 { // 50,000 frames, twice the burst
				var raw []byte
				for i := range uint32(100) {
					raw = h2test.AppendFrame(raw, h2test.Data, 0, 1+2*i, []byte("k"))
				}
				p.WriteRaw(raw)
				settle(p)
			}
			p.NoAudit = true // it has not seen these frames
			p.wantServes(1001, "100 busy tunnels")
		}},
		{"splinters end", func(t *testing.T) {
			p := server(t, nil)
			p.WriteHeaders(1, false, h2test.Request("POST", "/read")...)
			var raw []byte
			for range 60_000 {
				raw = h2test.AppendFrame(raw, h2test.Data, 0, 1, []byte("x"))
			}
			p.WriteRaw(raw)
			wantFloodEnd(t, p, "60,000 frames of one octet at once", h2test.EnhanceYourCalm)
		}},
	})
}

// Section 3, goal 1: "every abusive flood ended". Each of these frames is allowed or ignored once.
func TestLimits_FloodsEnd(t *testing.T) {
	resetStream := func(p *specPeer) {
		p.WriteHeaders(1, false, h2test.Fields(":method", "POST")...)
		p.wantMalformed(1, "no path")
	}
	answered := func(p *specPeer) { p.wantServes(1, "to be closed") }
	tests := []struct {
		name  string
		enter func(p *specPeer)
		write func(p *specPeer, i uint32)
	}{
		{"WINDOW_UPDATE of the connection", answered, func(p *specPeer, i uint32) { p.WriteWindowUpdate(0, 1) }},
		{"WINDOW_UPDATE of a stream", func(p *specPeer) { p.tunnel(1) }, func(p *specPeer, i uint32) { p.WriteWindowUpdate(1, 1) }},
		{"WINDOW_UPDATE of a closed stream", answered, func(p *specPeer, i uint32) { p.WriteWindowUpdate(1, 1) }},
		{"RST_STREAM of a closed stream", answered, func(p *specPeer, i uint32) { p.WriteRST(1, h2test.Cancel) }},
		{"HEADERS for a stream that we have reset", resetStream, func(p *specPeer, i uint32) {
			p.WriteHeaders(1, true, h2test.Fields("x-t", "1")...)
		}},
		{"DATA for a stream that we have reset", resetStream, func(p *specPeer, i uint32) { p.WriteData(1, false, []byte("x")) }},
		{"empty DATA for a stream that we have reset", resetStream, func(p *specPeer, i uint32) { p.WriteData(1, false, nil) }},
		{"PING on top of tunnels", func(p *specPeer) { p.tunnel(1) }, func(p *specPeer, i uint32) {
			p.WritePing(false, [8]byte{})
			p.WriteData(1, false, []byte("x"))
		}},
		{"requests with too many fields", answered, func(p *specPeer, i uint32) {
			p.WriteHeaders(3+2*i, true, h2test.Request("GET", "/", manyFields(200)...)...)
		}},
		{"GOAWAY", answered, func(p *specPeer, i uint32) { p.WriteGoAway(0, h2test.NoError, "") }},
		{"refused streams", func(p *specPeer) {
			for i := range uint32(200) {
				p.WriteHeaders(1+2*i, false, h2test.Request("POST", "/hang")...)
			}
		}, func(p *specPeer, i uint32) { p.WriteHeaders(401+2*i, false, h2test.Request("POST", "/hang")...) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := server(t, nil)
				tt.enter(p)
				n := uint32(5000)
				if tt.name == "DATA for a stream that we have reset" {
					n = 30_000 // one-octet frames have a budget of their own
				}
				for i := uint32(0); i < n && !p.Broken(); i++ {
					tt.write(p, i)
				}
				wantFloodEnd(t, p, "thousands of frames at once", h2test.EnhanceYourCalm, h2test.StreamClosed)
			})
		})
	}
}

// Row 7: credit that answers what we send is no flood, however small its pieces are.
func TestLimits_WindowInSmallPieces(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const piece, pieces = 100, 5000
		p := server(t, nil, initialWindow(piece))
		p.WriteHeaders(1, true, h2test.Request("GET", "/bytes/500000")...)
		p.WantHeaders(1, "the response", nil)
		for i := range pieces {
			p.WantData(1, make([]byte, piece), i == pieces-1, "a piece of window")
			if i < pieces-1 {
				p.WriteWindowUpdate(0, piece)
				p.WriteWindowUpdate(1, piece)
			}
		}
		p.wantServes(3, "5000 small windows")
	})
}

// A hostile server against our client role.
func TestLimits_HostileServer(t *testing.T) {
	tests := []struct {
		name  string
		write func(p *specPeer, i uint32)
	}{
		{"promises that are refused", func(p *specPeer, i uint32) {
			p.WritePushPromise(1, 2+2*i, h2test.Request("GET", "/")...)
		}},
		{"promises that are malformed", func(p *specPeer, i uint32) {
			p.WritePushPromise(1, 2+2*i, h2test.Request("POST", "/")...)
		}},
		{"promises that are withdrawn", func(p *specPeer, i uint32) {
			p.WritePushPromise(1, 2+2*i, h2test.Request("GET", "/")...)
			p.WriteRST(2+2*i, h2test.Cancel)
		}},
		{"PING", func(p *specPeer, i uint32) { p.WritePing(false, [8]byte{}) }},
		{"SETTINGS", func(p *specPeer, i uint32) { p.WriteSettings() }},
		{"GOAWAY", func(p *specPeer, i uint32) { p.WriteGoAway(1, h2test.NoError, "") }},
		{"empty DATA", func(p *specPeer, i uint32) { p.WriteData(1, false, nil) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := client(t, &h2.Config{EnablePush: true})
				s := p.open(connectTo("a:1"), false)
				p.WriteHeaders(1, false, h2test.Response("200")...)
				wantStatus(t, s, 200)
				for i := uint32(0); i < 5000 && !p.Broken(); i++ {
					tt.write(p, i)
				}
				wantFloodEnd(t, p, "5000 frames at once", h2test.EnhanceYourCalm)
				if _, err := s.Read(make([]byte, 1)); err == nil {
					t.Error("Read = nil on a connection that ended, want an error")
				}
			})
		})
	}
}

package h2_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"culvert/tunnel/h2"
	"culvert/tunnel/h2/h2test"
)

// wantEndAfter wants that the connection lives for about d from now on, answered PINGs apart, and then ends.
func wantEndAfter(t *testing.T, p *specPeer, d, slack time.Duration, why string) {
	t.Helper()
	start := time.Now()
	p.WantIdleFor(d-time.Millisecond, why+": not yet")
	p.Timeout = slack + 2*time.Second // the socket may be held for a second
	p.Ignore(h2test.GoAway, h2test.RSTStream)
	p.WantClosed(why)
	t.Logf("%s: closed after %v", why, time.Since(start))
}

// Row 22: "preface+SETTINGS+ACK 10 s".
func TestLimits_HandshakeTimeout(t *testing.T) {
	runCases(t, []specCase{
		{"server: nothing comes", func(t *testing.T) {
			p := rawServer(t, nil)
			p.NoSettingsAck = true
			wantEndAfter(t, p, 10*time.Second, time.Second, "no preface")
		}},
		{"server: half a preface", func(t *testing.T) {
			p := rawServer(t, nil)
			p.NoSettingsAck = true
			p.WriteRaw([]byte(h2test.Preface[:12]))
			wantEndAfter(t, p, 10*time.Second, time.Second, "half a preface")
		}},
		{"server: octets dribble in", func(t *testing.T) {
			p := rawServer(t, nil)
			p.NoSettingsAck = true
			start := time.Now()
			for i := 0; i < 24 && !p.Broken(); i++ {
				p.WriteRaw([]byte{h2test.Preface[i]})
				time.Sleep(time.Second)
			}
			p.WantClosed("a preface that takes 24 s")
			if d := time.Since(start); d > 25*time.Second {
				t.Errorf("closed after %v", d)
			}
		}},
		{"server: no SETTINGS", func(t *testing.T) {
			p := rawServer(t, nil)
			p.NoSettingsAck = true
			p.WriteRaw([]byte(h2test.Preface))
			wantEndAfter(t, p, 10*time.Second, time.Second, "no SETTINGS")
		}},
		{"server: no acknowledgement", func(t *testing.T) {
			p := rawServer(t, nil)
			p.NoSettingsAck = true
			p.WritePreface()
			wantEndAfter(t, p, 10*time.Second, time.Second, "SETTINGS are not acknowledged")
		}},
		{"server: no acknowledgement, with requests", func(t *testing.T) {
			p := rawServer(t, nil)
			p.NoSettingsAck = true
			p.WritePreface()
			p.tunnel(1)
			p.WantIdleFor(9*time.Second, "not yet")
			p.wantEcho(1, "not yet")
			p.Ignore(h2test.RSTStream)
			f := p.WantConnError("SETTINGS are not acknowledged", h2test.SettingsTimeout)
			t.Log(f)
		}},
	})
}

func TestLimits_HandshakeTimeoutOfClient(t *testing.T) {
	runCases(t, []specCase{
		{"client: nothing comes", func(t *testing.T) {
			p := rawClient(t, nil)
			p.NoSettingsAck = true
			p.WantPreface()
			wantEndAfter(t, p, 10*time.Second, time.Second, "no server preface")
		}},
		{"client: no acknowledgement", func(t *testing.T) {
			p := rawClient(t, nil)
			p.NoSettingsAck = true
			p.WantPreface()
			p.WriteSettings()
			wantEndAfter(t, p, 10*time.Second, time.Second, "SETTINGS are not acknowledged")
		}},
		{"a handshake in time", func(t *testing.T) {
			p := rawServer(t, nil)
			p.NoSettingsAck = true
			time.Sleep(5 * time.Second)
			p.WritePreface()
			time.Sleep(4 * time.Second)
			p.WriteSettingsAck()
			p.WantIdleFor(time.Minute, "the handshake was in time")
			p.wantServes(1, "the handshake was in time")
		}},
	})
}

// Row 22: "header block 10 s".
func TestLimits_HeaderTimeout(t *testing.T) {
	runCases(t, []specCase{
		{"half a block", func(t *testing.T) {
			p := server(t, nil)
			p.NoPingAck = true // it would interrupt the block
			p.tunnel(1)
			p.WriteFrame(h2test.Headers, h2test.EndStream, 3, p.Encode(h2test.Request("GET", "/")...))
			wantEndAfter(t, p, 10*time.Second, time.Second, "a block without end")
			var ce *h2.ConnError
			if err := p.conn.Err(); !errors.As(err, &ce) || ce.Code != h2.EnhanceYourCalm {
				t.Errorf("Err = %v, want ENHANCE_YOUR_CALM", err)
			}
		}},
		{"CONTINUATION frames do not give more time", func(t *testing.T) {
			p := server(t, nil)
			p.WriteFrame(h2test.Headers, h2test.EndStream, 1, p.Encode(h2test.Request("GET", "/")...))
			for range 4 {
				time.Sleep(3 * time.Second)
				p.WriteContinuation(1, false, nil)
			}
			p.Ignore(h2test.GoAway)
			p.WantClosed("a block that takes 12 s")
		}},
		{"half a frame of a block", func(t *testing.T) {
			p := server(t, nil)
			p.NoPingAck = true // it would become a part of the frame
			p.tunnel(1)
			raw := h2test.AppendFrame(nil, h2test.Headers, h2test.EndStream|h2test.EndHeaders, 3, p.Encode(h2test.Request("GET", "/")...))
			p.WriteRaw(raw[:len(raw)-2])
			wantEndAfter(t, p, 10*time.Second, time.Second, "a HEADERS frame without end")
		}},
		{"block in time", func(t *testing.T) {
			p := server(t, nil)
			p.tunnel(1)
			block := p.Encode(h2test.Request("GET", "/")...)
			p.WriteFrame(h2test.Headers, h2test.EndStream, 3, block[:3])
			time.Sleep(9 * time.Second)
			p.WriteContinuation(3, true, block[3:])
			p.WantHeaders(3, "a block that took 9 s", map[string]string{":status": "200"})
			p.WantIdleFor(time.Minute, "the timer has gone with the block")
			p.wantEcho(1, "the timer has gone with the block")
		}},
	})
}

// Row 22: "no-stream idle 5 min".
func TestLimits_IdleTimeout(t *testing.T) {
	const idle = 5 * time.Minute
	runCases(t, []specCase{
		{"server without any stream", func(t *testing.T) {
			p := server(t, nil)
			wantEndAfter(t, p, idle, time.Minute, "no stream")
		}},
		{"GOAWAY tells", func(t *testing.T) {
			p := server(t, nil)
			p.WantIdleFor(idle-time.Second, "not yet")
			p.Timeout = time.Minute
			p.WantConnError("no stream for 5 min", h2test.NoError)
		}},
		{"after the last stream", func(t *testing.T) {
			p := server(t, nil)
			p.WantIdleFor(idle-time.Minute, "not yet")
			p.wantServes(1, "not yet")
			wantEndAfter(t, p, idle, time.Minute, "no stream since")
		}},
		{"not with a stream", func(t *testing.T) {
			p := server(t, nil)
			p.tunnel(1)
			p.WantIdleFor(3*idle, "an idle tunnel is not an idle connection")
			p.wantEcho(1, "15 min later")
		}},
		{"client", func(t *testing.T) {
			p := client(t, nil)
			wantEndAfter(t, p, idle, time.Minute, "no stream")
		}},
		{"off", func(t *testing.T) {
			p := server(t, &h2.Config{IdleTimeout: -1})
			p.WantIdleFor(3*idle, "no timeout")
			p.wantServes(1, "no timeout")
		}},
	})
}

// HBONE.md: "PING every 10 s, dead after 20 s, both sides".
func TestLimits_KeepAlive(t *testing.T) {
	roles := map[string]func(t *testing.T) *specPeer{
		"server": func(t *testing.T) *specPeer { p := server(t, nil); p.tunnel(1); return p },
		"client": func(t *testing.T) *specPeer {
			p := client(t, nil)
			p.open(connectTo("a:1"), false)
			p.WriteHeaders(1, false, h2test.Response("200")...)
			return p
		},
	}
	for role, start := range roles {
		t.Run(role, func(t *testing.T) {
			runCases(t, []specCase{
				{"asked every 10 s", func(t *testing.T) {
					p := start(t)
					settle(p)
					for range 6 {
						begin := time.Now()
						p.Timeout = 15 * time.Second
						p.WantPing("a silent peer is asked")
						if d := time.Since(begin); d < 9*time.Second || d > 11*time.Second {
							t.Errorf("PING after %v of silence, want 10 s", d)
						}
					}
				}},
				{"dead after 20 s", func(t *testing.T) {
					p := start(t)
					settle(p)
					p.NoPingAck = true
					begin := time.Now()
					p.WantIdleFor(19*time.Second, "not yet")
					p.Ignore(h2test.GoAway, h2test.RSTStream)
					p.Timeout = time.Minute
					p.WantClosed("the peer is dead")
					if d := time.Since(begin); d > 32*time.Second {
						t.Errorf("closed after %v of silence, want 20 s after the PING at 10 s", d)
					}
					if err := p.conn.Err(); err == nil {
						t.Error("Err = nil")
					}
				}},
				{"an answer in time", func(t *testing.T) {
					p := start(t)
					settle(p)
					p.NoPingAck = true
					p.Timeout = 15 * time.Second
					f := p.WantPing("a silent peer is asked")
					time.Sleep(18 * time.Second)
					p.WritePing(true, [8]byte(f.Payload))
					p.NoPingAck = false
					p.WantIdleFor(5*time.Minute, "the peer is alive")
				}},
			})
		})
	}
}

func TestLimits_PeerThatDoesNotRead(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := h2test.PipeSize(4 << 10)
		p := &specPeer{t: t}
		conn, err := h2.NewServer(b, &h2.Config{Handler: p.handle})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		p.Peer, p.conn = h2test.NewClient(t, a), conn
		p.Handshake(initialWindow(1 << 20))
		p.WriteHeaders(1, true, h2test.Request("GET", "/bytes/60000")...)
		start := time.Now()
		select {
		case <-conn.Done():
		case <-time.After(2 * time.Minute):
			t.Fatal("the connection lives on after 2 min in which nothing was read")
		}
		t.Logf("dead after %v", time.Since(start))
		time.Sleep(5 * time.Second) // a last attempt to tell the peer
		synctest.Wait()
		if n := conn.NumStreams(); n != 0 {
			t.Errorf("NumStreams = %d, want 0: the handler's Write must have ended", n)
		}
	})
}

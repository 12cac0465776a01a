package h2_test

import (
	"testing"

	"culvert/tunnel/h2"
	"culvert/tunnel/h2/h2test"
)

// "Clients and servers MUST treat an invalid connection preface as a connection error (Section 5.4.1) of
// type PROTOCOL_ERROR. A GOAWAY frame (Section 6.8) MAY be omitted in this case" (section 3.4).
func TestRFC9113_3_4_InvalidClientPreface(t *testing.T) {
	tests := []struct {
		name string
		raw  []byte
	}{
		{"HTTP/1.1 request", []byte("GET / HTTP/1.1\r\nHost: test.example\r\n\r\n")},
		{"last octet wrong", []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r")},
		{"TLS hello", []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 0123456789012345")},
		{"HEADERS instead of SETTINGS", h2test.AppendFrame([]byte(h2test.Preface), h2test.Headers,
			h2test.EndHeaders|h2test.EndStream, 1, []byte{0x82, 0x84, 0x87})},
		{"PING instead of SETTINGS", h2test.AppendFrame([]byte(h2test.Preface), h2test.Ping, 0, 0, make([]byte, 8))},
		{"SETTINGS ACK instead of SETTINGS", h2test.AppendFrame([]byte(h2test.Preface), h2test.Settings, h2test.Ack, 0, nil)},
		{"unknown type instead of SETTINGS", h2test.AppendFrame([]byte(h2test.Preface), 0x42, 0, 0, nil)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := rawServer(t, nil)
				p.WriteRaw(tt.raw)
				p.WantClosed("an invalid preface ends the connection")
				for _, f := range p.Take() {
					if f.Type == h2test.GoAway && f.ErrCode() != h2test.ProtocolError {
						t.Errorf("got %v, want PROTOCOL_ERROR", f)
					}
				}
				if n := p.handled(); n != 0 {
					t.Errorf("%d requests reached the handler, want none", n)
				}
			})
		})
	}
}

func TestRFC9113_3_4_ClientPreface(t *testing.T) {
	runCases(t, []specCase{
		{"empty SETTINGS", func(t *testing.T) {
			p := server(t, nil)
			p.wantServes(1, "the SETTINGS frame MAY be empty")
		}},
		{"one octet at a time", func(t *testing.T) {
			p := rawServer(t, nil)
			p.NoAudit = true // SETTINGS go out by WriteRaw
			raw := h2test.AppendFrame([]byte(h2test.Preface), h2test.Settings, 0, 0, []byte{0, 4, 0, 1, 0, 0})
			for i := range raw {
				p.WriteRaw(raw[i : i+1])
			}
			p.WantSettings("the server preface")
			p.WantSettingsAck("the SETTINGS frames of the preface MUST be acknowledged")
			p.wantServes(1, "a preface in pieces")
		}},
		{"request without waiting for the server", func(t *testing.T) {
			p := rawServer(t, nil)
			p.WritePreface()
			p.wantServes(1, "clients are permitted to send additional frames without waiting to receive the server preface")
		}},
	})
}

// "The server connection preface consists of a potentially empty SETTINGS frame (Section 6.5) that MUST be
// the first frame the server sends in the HTTP/2 connection" (section 3.4). That ours does is audited.
func TestRFC9113_3_4_InvalidServerPreface(t *testing.T) {
	tests := []struct {
		name  string
		write func(p *specPeer)
		codes []h2test.ErrCode
	}{
		{"PING first", func(p *specPeer) { p.WritePing(false, [8]byte{}) }, nil},
		{"SETTINGS ACK first", func(p *specPeer) { p.WriteSettingsAck() }, nil},
		{"WINDOW_UPDATE first", func(p *specPeer) { p.WriteWindowUpdate(0, 1) }, nil},
		{"unknown type first", func(p *specPeer) { p.WriteFrame(0x42, 0, 0, nil) }, nil},
		{"GOAWAY first", func(p *specPeer) { p.WriteGoAway(0, h2test.NoError, "") }, nil},
		{"HTTP/1.1 answer", func(p *specPeer) { p.WriteRaw([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) },
			[]h2test.ErrCode{h2test.ProtocolError, h2test.FrameSizeError}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := rawClient(t, nil)
				if tt.codes == nil {
					tt.codes = []h2test.ErrCode{h2test.ProtocolError}
				}
				p.NoSettingsAck = true
				p.WantPreface()
				tt.write(p)
				p.WantConnError("an invalid server preface is a connection error", tt.codes...)
				if p.conn.Err() == nil {
					t.Error("Err = nil, want a *ConnError")
				}
			})
		})
	}
}

func TestRFC9113_3_4_OwnClientPreface(t *testing.T) {
	runCases(t, []specCase{
		{"promises are off unless asked for", func(t *testing.T) {
			p := client(t, nil)
			if v, ok := p.Theirs[h2test.EnablePush]; !ok || v != 0 {
				t.Errorf("SETTINGS_ENABLE_PUSH = %d (sent: %v), want 0", v, ok)
			}
		}},
		{"promises asked for", func(t *testing.T) {
			p := client(t, &h2.Config{EnablePush: true})
			if v, ok := p.Theirs[h2test.EnablePush]; ok && v != 1 {
				t.Errorf("SETTINGS_ENABLE_PUSH = %d, want 1", v)
			}
		}},
		{"a request does not wait for the server's SETTINGS", func(t *testing.T) {
			p := rawClient(t, nil)
			s, err := p.conn.Open(t.Context(), get("/early"), true)
			if err != nil {
				t.Fatalf("Open before the server's SETTINGS = %v", err)
			}
			defer s.Close()
			p.Handshake()
			p.WantHeaders(1, "the early request", map[string]string{":path": "/early"})
			p.WriteHeaders(1, true, h2test.Response("200")...)
			wantStatus(t, s, 200)
		}},
		{"data before the server's SETTINGS keeps to the initial window", func(t *testing.T) {
			p := rawClient(t, nil)
			s, err := p.conn.Open(t.Context(), post("/early"), false)
			if err != nil {
				t.Fatalf("Open before the server's SETTINGS = %v", err)
			}
			defer s.Close()
			wrote := make(chan error, 1)
			// Ends when the stream is closed; the receive below waits for it.
			go func() {
				_, err := s.Write(make([]byte, 100_000))
				wrote <- err
			}()
			p.Handshake(h2test.Setting{ID: h2test.InitialWindowSize, Value: 1 << 20})
			p.WantHeaders(1, "the early request", nil)
			p.WantData(1, make([]byte, 65535), false, "an endpoint can only use the default initial window size")
			p.WantIdle("the connection's window is spent")
			p.WriteWindowUpdate(0, 1<<20)
			p.WantData(1, make([]byte, 100_000-65535), false, "the rest follows")
			if err := <-wrote; err != nil {
				t.Errorf("Write = %v, want nil", err)
			}
		}},
	})
}

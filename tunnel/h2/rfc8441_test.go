package h2_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"culvert/tunnel/h2"
	"culvert/tunnel/h2/h2test"
)

// extendedConnect is the header section of RFC 8441, section 4, followed by more names and values.
func extendedConnect(protocol, path string, more ...string) []h2test.Field {
	return append(h2test.Fields(":method", "CONNECT", ":protocol", protocol, ":scheme", "https", ":path", path,
		":authority", "test.example"), h2test.Fields(more...)...)
}

func TestRFC8441_3_Setting(t *testing.T) {
	connectProtocol := func(v uint32) h2test.Setting { return h2test.Setting{ID: h2test.EnableConnectProtocol, Value: v} }
	websocket := &h2.Header{Method: "CONNECT", Protocol: "websocket", Scheme: "https", Authority: "test.example", Path: "/chat"}
	runCases(t, []specCase{
		{"sent where it is enabled", func(t *testing.T) {
			p := server(t, &h2.Config{EnableConnectProtocol: true})
			if v := p.Theirs[h2test.EnableConnectProtocol]; v != 1 {
				t.Errorf("SETTINGS_ENABLE_CONNECT_PROTOCOL = %d, want 1", v)
			}
		}},
		{"not sent elsewhere", func(t *testing.T) {
			p := server(t, nil)
			if v := p.Theirs[h2test.EnableConnectProtocol]; v != 0 {
				t.Errorf("SETTINGS_ENABLE_CONNECT_PROTOCOL = %d, want 0 or absent", v)
			}
		}},
		{"we use it only when it has come", func(t *testing.T) {
			// "If a client were to use the provisions of the extended CONNECT method defined in this document without
			// first receiving a SETTINGS_ENABLE_CONNECT_PROTOCOL parameter, a non-supporting peer would detect a
			// malformed request and generate a stream error."
			p := client(t, nil)
			if s, err := p.conn.Open(t.Context(), websocket, false); !errors.Is(err, h2.ErrNoConnectProtocol) {
				t.Errorf("Open = %v, %v; want %v", s, err, h2.ErrNoConnectProtocol)
			}
			if p.conn.PeerConnectProtocol() {
				t.Error("PeerConnectProtocol = true without the setting")
			}
			p.WantIdle("no request")
			p.WriteSettings(connectProtocol(1))
			p.WantSettingsAck("the setting")
			if !p.conn.PeerConnectProtocol() {
				t.Error("PeerConnectProtocol = false with the setting 1")
			}
			s := p.open(websocket, false)
			p.WriteHeaders(s.ID(), false, h2test.Response("200")...)
			wantStatus(t, s, 200)
		}},
		{"WaitSettings waits for it", func(t *testing.T) {
			p := rawClient(t, nil)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if err := p.conn.WaitSettings(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("WaitSettings before SETTINGS = %v, want %v", err, context.DeadlineExceeded)
			}
			p.Handshake(connectProtocol(1))
			if err := p.conn.WaitSettings(t.Context()); err != nil || !p.conn.PeerConnectProtocol() {
				t.Errorf("WaitSettings = %v, PeerConnectProtocol = %v; want nil, true", err, p.conn.PeerConnectProtocol())
			}
		}},
		{"taken back", func(t *testing.T) {
			// "A sender MUST NOT send a SETTINGS_ENABLE_CONNECT_PROTOCOL parameter with the value of 0 after previously
			// sending a value of 1."
			p := client(t, nil, connectProtocol(1))
			p.WriteSettings(connectProtocol(0))
			p.WantConnError("the setting cannot be taken back", h2test.ProtocolError)
		}},
	})
}

func TestRFC8441_4_ExtendedConnect(t *testing.T) {
	runCases(t, []specCase{
		{"request", func(t *testing.T) {
			p := server(t, &h2.Config{EnableConnectProtocol: true})
			p.WriteHeaders(1, false, extendedConnect("websocket", "/chat", "sec-websocket-version", "13")...)
			p.WantHeaders(1, "the tunnel", map[string]string{":status": "200"})
			p.wantEcho(1, "a WebSocket")
			want := h2.Header{Method: "CONNECT", Protocol: "websocket", Scheme: "https", Authority: "test.example", Path: "/chat"}
			got := p.seen[p.handled()-1]
			if got.Protocol != want.Protocol || got.Scheme != want.Scheme || got.Path != want.Path ||
				got.Authority != want.Authority || got.Get("sec-websocket-version") != "13" {
				t.Errorf("request %+v, want %+v", got, want)
			}
			p.WriteData(1, true, nil)
			p.WantData(1, nil, true, "END_STREAM is the orderly close")
		}},
		{"without the setting", func(t *testing.T) {
			p := server(t, nil)
			p.tunnel(1)
			p.WriteHeaders(3, false, extendedConnect("websocket", "/chat")...)
			p.wantMalformed(3, ":protocol was not allowed")
			p.wantEcho(1, "a stream error")
		}},
		{"ours", func(t *testing.T) {
			p := client(t, nil, h2test.Setting{ID: h2test.EnableConnectProtocol, Value: 1})
			s, err := p.conn.Open(t.Context(), &h2.Header{Method: "CONNECT", Protocol: "websocket", Scheme: "https",
				Authority: "test.example", Path: "/chat"}, false)
			if err != nil {
				t.Fatalf("Open = %v", err)
			}
			defer s.Close()
			p.WantHeaders(1, "all five pseudo-header fields", map[string]string{":method": "CONNECT", ":protocol": "websocket",
				":scheme": "https", ":authority": "test.example", ":path": "/chat"})
			p.WriteHeaders(1, false, h2test.Response("200", "content-length", "0")...)
			p.WriteData(1, true, []byte("content"))
			wantStatus(t, s, 200)
			if b, err := io.ReadAll(s); string(b) != "content" || err != nil {
				t.Errorf("ReadAll = %q, %v; content-length of a 2xx to CONNECT is ignored", b, err)
			}
		}},
	})
}

func TestRFC8441_4_Tunnel(t *testing.T) {
	runCases(t, []specCase{
		{"ordinary CONNECT beside it", func(t *testing.T) {
			p := server(t, &h2.Config{EnableConnectProtocol: true})
			p.tunnel(1)
			p.wantEcho(1, "CONNECT without :protocol keeps its rules")
			p.WriteHeaders(3, false, h2test.Fields(":method", "CONNECT", ":authority", "a:1", ":path", "/", ":scheme", "https")...)
			p.wantMalformed(3, "CONNECT with :path and without :protocol")
		}},
		{"trailers on it", func(t *testing.T) {
			// "Usage of the CONNECT method in HTTP/2 is defined by [RFC 9113, section 8.5]. This extension modifies the
			// method in the following ways": none of them allows other frames on the tunnel.
			p := server(t, &h2.Config{EnableConnectProtocol: true})
			p.WriteHeaders(1, false, extendedConnect("websocket", "/chat")...)
			p.WantHeaders(1, "the tunnel", map[string]string{":status": "200"})
			p.WriteHeaders(1, true, h2test.Fields("x-t", "1")...)
			p.WantRST(1, "HEADERS on a connected stream", h2test.ProtocolError)
		}},
		{"reset is TCP's RST", func(t *testing.T) {
			// Section 5: "RST exceptions are represented with the RST_STREAM frame."
			p := server(t, &h2.Config{EnableConnectProtocol: true})
			p.WriteHeaders(1, false, extendedConnect("websocket", "/hang")...)
			p.WantHeaders(1, "the tunnel", map[string]string{":status": "200"})
			p.WriteRST(1, h2test.Cancel)
			synctest.Wait()
			p.WantIdle("no answer to RST_STREAM")
			if n := p.conn.NumStreams(); n != 0 {
				t.Errorf("NumStreams = %d after the reset, want 0", n)
			}
		}},
	})
}

func TestRFC8441_4_Malformed(t *testing.T) {
	f := h2test.Fields
	sections := map[string][]h2test.Field{
		// "On requests that contain the :protocol pseudo-header field, the :scheme and :path pseudo-header fields of
		// the target URI MUST also be included."
		"without :scheme":    f(":method", "CONNECT", ":protocol", "websocket", ":path", "/", ":authority", "a"),
		"without :path":      f(":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":authority", "a"),
		"without :authority": f(":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":path", "/"),
		"empty :path":        f(":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":path", "", ":authority", "a"),
		"empty :protocol":    f(":method", "CONNECT", ":protocol", "", ":scheme", "https", ":path", "/", ":authority", "a"),
		":protocol twice": f(":method", "CONNECT", ":protocol", "websocket", ":protocol", "websocket", ":scheme", "https", ":path", "/",
			":authority", "a"),
		"with GET":         f(":method", "GET", ":protocol", "websocket", ":scheme", "https", ":path", "/", ":authority", "a"),
		"late :protocol":   f(":method", "CONNECT", ":scheme", "https", ":path", "/", ":authority", "a", "x-a", "1", ":protocol", "websocket"),
		"connection field": extendedConnect("websocket", "/", "connection", "upgrade"),
		"upgrade field":    extendedConnect("websocket", "/", "upgrade", "websocket"),
	}
	for name, fields := range sections {
		t.Run("malformed/"+name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := server(t, &h2.Config{EnableConnectProtocol: true})
				p.tunnel(1)
				p.WriteHeaders(3, false, fields...)
				p.wantMalformed(3, "a malformed extended CONNECT")
				p.wantEcho(1, "a stream error")
				p.wantServes(5, "a stream error")
			})
		})
	}
}

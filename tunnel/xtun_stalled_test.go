package tunnel_test

import (
	"testing"
	"testing/synctest"
	"time"

	"culvert/tunnel/h2"
)

// Who takes next to nothing of what it is sent holds a place for a handshake no longer than anybody: not before it, where
// something is sent in gRPC, and not after, where a WebSocket is closed.
func TestXTunStalledReader(t *testing.T) {
	grpc := post(good, toEcho, h2.Field{Name: "content-type", Value: "application/grpc"}, h2.Field{Name: "te", Value: "trailers"})
	web := post(good, toEcho, h2.Field{Name: "sec-websocket-version", Value: "13"})
	web.Method, web.Protocol = "CONNECT", "websocket"
	for _, tt := range []struct {
		name   string
		head   *h2.Header
		window int32
		send   []byte
	}{
		{"gRPC", grpc, 1, nil},
		{"WebSocket", web, 10, []byte("\x82\x89\x00\x00\x00\x00\x16\x03\x01\x00\x04abcd")}, // a record that is no handshake's
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newOuterPair(t, "POST", outerOptions{})
				c, err := h2.NewClient(p.dialProxy(t), &h2.Config{StreamWindow: tt.window, MaxStreamWindow: tt.window})
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if err := c.WaitSettings(t.Context()); err != nil {
					t.Fatal(err)
				}
				for i := range 33 {
					s, err := c.Open(t.Context(), tt.head, false)
					if err != nil {
						t.Fatal(err)
					}
					defer s.Close()
					if resp, err := s.Response(t.Context()); err != nil || resp.Status != map[bool]int{true: 200, false: 503}[i < 32] {
						t.Fatalf("request %d: %v, %v", i, resp, err)
					}
					if tt.send != nil && i < 32 {
						if _, err := s.Write(tt.send); err != nil {
							t.Fatal(err)
						}
					}
				}
				time.Sleep(time.Minute)
				s, err := c.Open(t.Context(), tt.head, false)
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				if resp, err := s.Response(t.Context()); err != nil || resp.Status != 200 {
					t.Errorf("after a minute: %v, %v, want 200", resp, err)
				}
				c.Close()
				p.exit.Close()
			})
		})
	}
}

// Nor is much taken of who has a token and has not shown who it is: here nobody reads on, as the answer to a ping cannot be sent.
func TestXTunStalledReaderSendsMuch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newOuterPair(t, "POST", outerOptions{})
		c, err := h2.NewClient(p.dialProxy(t), &h2.Config{StreamWindow: 1, MaxStreamWindow: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.WaitSettings(t.Context()); err != nil {
			t.Fatal(err)
		}
		web := post(good, toEcho, h2.Field{Name: "sec-websocket-version", Value: "13"})
		web.Method, web.Protocol = "CONNECT", "websocket"
		s, err := c.Open(t.Context(), web, false)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if resp, err := s.Response(t.Context()); err != nil || resp.Status != 200 {
			t.Fatalf("answer %v, %v", resp, err)
		}
		if _, err := s.Write([]byte("\x89\x80\x00\x00\x00\x00")); err != nil {
			t.Fatal(err)
		}
		const most = 128 << 10
		s.SetWriteDeadline(time.Now().Add(time.Second))
		if n, err := s.Write(make([]byte, 4<<20)); n > most {
			t.Errorf("%d bytes were taken, %v; want at most %d", n, err, most)
		}
		c.Close()
		p.exit.Close()
	})
}

package h2test

import (
	"bytes"
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// pair runs a client script and a server script against each other in a bubble.
func pair(t *testing.T, client, server func(p *Peer)) {
	synctest.Test(t, func(t *testing.T) {
		a, b := Pipe()
		done := make(chan struct{})
		// Ends when its script ends, at the latest by the Want timeouts; the receive waits for it.
		go func() {
			defer close(done)
			server(NewServer(t, b))
		}()
		client(NewClient(t, a))
		<-done
	})
}

func TestPeersExchange(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcdef"), 20_000) // above every initial window
	longValue := strings.Repeat("v", 40_000)
	pair(t, func(c *Peer) {
		c.Handshake(Setting{EnablePush, 1}, Setting{InitialWindowSize, 1 << 20})
		c.WriteWindowUpdate(0, 1<<20)
		c.WriteHeaders(1, false, Request("POST", "/", "x-long", longValue)...)
		c.WriteAllData(1, true, big, "the server opens the windows as it reads")
		c.WantHeaders(1, "the final response", map[string]string{":status": "200", "x-absent": ""})
		push := c.WantFrame(PushPromise, 1, "a promise on the request's stream")
		if push.Promised() != 2 || push.Value(":path") != "/pushed" {
			t.Errorf("promise = %v, want stream 2 and /pushed", push)
		}
		c.WantHeaders(2, "the pushed response", map[string]string{":status": "204"})
		c.WantData(1, big, true, "the echo")
		c.WritePing(false, [8]byte{1, 2, 3})
		c.WantPingAck([8]byte{1, 2, 3}, "PING is answered")
		c.WriteHeaders(3, true, Request("GET", "/refused")...)
		c.WantRST(3, "the refusal", RefusedStream)
		c.WriteFrame(0x42, 0xff, 0, []byte("unknown"))
		c.WriteGoAway(0, NoError, "bye")
		c.WantConnError("the answer to GOAWAY", NoError)
	}, func(s *Peer) {
		s.Handshake(Setting{MaxConcurrentStreams, 10})
		f := s.WantHeaders(1, "the request", map[string]string{":method": "POST", "x-long": longValue})
		if f.Continuations != 2 {
			t.Errorf("%d CONTINUATION frames, want 2", f.Continuations)
		}
		for got := 0; got < len(big); {
			n := len(s.WantFrame(Data, 1, "the body").Data())
			got += n
			s.WriteWindowUpdate(0, uint32(n))
			s.WriteWindowUpdate(1, uint32(n))
		}
		s.WriteHeaders(1, false, Response("200")...)
		s.WritePushPromise(1, 2, Request("GET", "/pushed")...)
		s.WriteHeaders(2, true, Response("204")...)
		s.WriteAllData(1, true, big, "the client announced a window of 1 MiB")
		s.WantHeaders(3, "the second request", nil)
		s.WriteRST(3, RefusedStream)
		s.WantGoAway("the client goes", NoError)
		s.WriteGoAway(3, NoError, "")
		s.Close()
	})
}

func TestWantIdle(t *testing.T) {
	pair(t, func(c *Peer) {
		c.Handshake()
		c.WantIdle("nothing was asked")
		start := time.Now()
		c.WantIdleFor(time.Hour, "the server pings and is silent otherwise")
		if d := time.Since(start); d != time.Hour {
			t.Errorf("WantIdleFor(1h) took %v", d)
		}
		c.WriteRST(1, Cancel)
	}, func(s *Peer) {
		s.Handshake()
		s.WritePing(false, [8]byte{})
		s.Timeout = 2 * time.Hour
		s.WantPingAck([8]byte{}, "WantIdleFor answers PING")
		s.WantRST(1, "the end", Cancel)
	})
}

// recorder is a testing.TB that keeps failures instead of failing.
type recorder struct {
	testing.TB
	said []string
}

type fatal struct{}

func (r *recorder) Helper() {}

func (r *recorder) Errorf(format string, args ...any) {
	r.said = append(r.said, fmt.Sprintf(format, args...))
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	panic(fatal{})
}

// record runs script with a client Peer whose other end writes raw, and returns what it complains of.
func record(t *testing.T, server bool, raw []byte, script func(p *Peer)) string {
	var said []string
	synctest.Test(t, func(t *testing.T) {
		a, b := Pipe()
		defer b.Close()
		r := &recorder{TB: t}
		p := newPeer(r, a, server)
		if _, err := b.Write(raw); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if v := recover(); v != nil && v != (fatal{}) {
				panic(v)
			}
			said = r.said
		}()
		script(p)
	})
	return strings.Join(said, "\n")
}

func TestWantFailures(t *testing.T) {
	start := AppendFrame(nil, Settings, 0, 0, nil)
	rst := AppendFrame(start, RSTStream, 0, 1, []byte{0, 0, 0, 8})
	tests := []struct {
		name   string
		raw    []byte
		script func(p *Peer)
		want   string
	}{
		{"other type", rst, func(p *Peer) { p.WriteHeaders(1, true); p.WantHeaders(1, "an answer", nil) },
			"an answer: want HEADERS on stream 1, got RST_STREAM stream 1"},
		{"other code", rst, func(p *Peer) { p.WriteHeaders(1, true); p.WantRST(1, "a refusal", RefusedStream) },
			"a refusal: RST_STREAM of stream 1 with CANCEL, want [REFUSED_STREAM]"},
		{"silence", start, func(p *Peer) { p.WantGoAway("an end", NoError) },
			"an end: want GOAWAY on stream 0: nothing came in 5s"},
		{"not idle", rst, func(p *Peer) { p.WriteHeaders(1, true); p.WantIdle("quiet") },
			"quiet: want nothing, got RST_STREAM"},
		{"still open", rst, func(p *Peer) { p.WriteHeaders(1, true); p.WantClosed("an end") },
			"an end: the connection is still open after 5s; not asked for: SETTINGS"},
		{"ignored types", rst, func(p *Peer) {
			p.Ignore(RSTStream)
			p.WriteHeaders(1, true)
			p.WantIdle("RST_STREAM is passed over")
		}, ""},
		{"half a frame is kept", rst[:len(rst)-2], func(p *Peer) { p.WriteHeaders(1, true); p.WantIdle("half a frame") }, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			said := record(t, false, tt.raw, tt.script)
			if (said == "") != (tt.want == "") || !strings.Contains(said, tt.want) {
				t.Errorf("the Peer says %q, want %q", said, tt.want)
			}
		})
	}
}

func TestAudit(t *testing.T) {
	settings := AppendFrame(nil, Settings, 0, 0, nil)
	block := func(fields ...string) []byte {
		return newPeer(&recorder{TB: t}, nopConn{}, true).Encode(Fields(fields...)...)
	}
	head := AppendFrame(settings, Headers, EndHeaders, 1, block(":status", "200"))
	with := func(start []byte, t FrameType, flags Flags, id uint32, payload []byte) []byte {
		return AppendFrame(bytes.Clone(start), t, flags, id, payload)
	}
	ended := with(head, Headers, EndHeaders|EndStream, 3, block(":status", "200"))
	pinged := with(settings, Ping, Ack, 0, make([]byte, 8))
	tests := []struct {
		name string
		raw  []byte
		want string
	}{
		{"good response", with(head, Data, EndStream|Padded, 1, []byte{1, 'x', 0}), ""},
		{"first frame", with(nil, Ping, 0, 0, make([]byte, 8)), "the first frame is SETTINGS"},
		{"frame size", with(head, Data, 0, 1, make([]byte, 16385)), "above SETTINGS_MAX_FRAME_SIZE 16384"},
		{"reserved bit", with(settings, WindowUpdate, 0, 1<<31, []byte{0, 0, 0, 1}), "reserved bit"},
		{"unused flag", with(settings, Ping, 0x80, 0, make([]byte, 8)), "unused flags"},
		{"interleaved block", with(with(settings, Headers, 0, 1, nil), Ping, 0, 0, make([]byte, 8)), "contiguous"},
		{"stray CONTINUATION", with(head, Continuation, EndHeaders, 1, nil), "contiguous"},
		{"RST_STREAM on 0", with(settings, RSTStream, 0, 0, make([]byte, 4)), "does not suit the type"},
		{"PING on 1", with(settings, Ping, 0, 1, make([]byte, 8)), "does not suit the type"},
		{"PING length", with(settings, Ping, 0, 0, make([]byte, 7)), "PING has 8 octets"},
		{"PING ACK unasked", with(pinged, Ping, Ack, 0, make([]byte, 8)), "PING ACK without PING"},
		{"SETTINGS ACK unasked", with(settings, Settings, Ack, 0, nil), "without SETTINGS to acknowledge"},
		{"server sets ENABLE_PUSH 1", with(nil, Settings, 0, 0, []byte{0, 2, 0, 0, 0, 1}), "setting 0x2 has the value 1"},
		{"GOAWAY rises", with(with(settings, GoAway, 0, 0, make([]byte, 8)), GoAway, 0, 0, []byte{0, 0, 0, 1, 0, 0, 0, 0}),
			"MUST NOT increase"},
		{"WINDOW_UPDATE 0", with(settings, WindowUpdate, 0, 0, make([]byte, 4)), "legal range"},
		{"window overflow", with(settings, WindowUpdate, 0, 0, []byte{0x7f, 0xff, 0xff, 0xff}), "window above"},
		{"connection window", with(with(with(with(with(head, Data, 0, 1, make([]byte, 16384)), Data, 0, 1, make([]byte, 16384)),
			Data, 0, 1, make([]byte, 16384)), Data, 0, 1, make([]byte, 16383)), Data, 0, 1, make([]byte, 1)),
			"1 octets more than the connection's window"},
		{"idle stream", with(settings, Headers, EndHeaders, 2, block(":status", "200")), "stream is idle"},
		{"after END_STREAM", with(with(head, Data, EndStream, 1, nil), Data, 0, 1, nil), "frame after END_STREAM"},
		{"after RST_STREAM", with(with(head, RSTStream, 0, 1, make([]byte, 4)), WindowUpdate, 0, 1, []byte{0, 0, 0, 1}),
			"on a closed stream"},
		{"WINDOW_UPDATE that may have crossed our END_STREAM", with(ended, WindowUpdate, 0, 3, []byte{0, 0, 0, 1}), ""},
		{"WINDOW_UPDATE after our END_STREAM was seen", with(with(ended, Ping, Ack, 0, make([]byte, 8)), WindowUpdate, 0, 3, []byte{0, 0, 0, 1}),
			"WINDOW_UPDATE on a closed stream"},
		{"DATA before HEADERS", with(settings, Data, 0, 1, nil), "DATA before a final header section"},
		{"second final section", with(head, Headers, EndHeaders, 1, block("x", "y")), "without END_STREAM"},
		{"pseudo in trailers", with(head, Headers, EndHeaders|EndStream, 1, block(":status", "200")), "pseudo-header field in trailers"},
		{"no status", with(settings, Headers, EndHeaders, 1, block("x", "y")), "without :status"},
		{"late status", with(settings, Headers, EndHeaders, 1, block("x", "y", ":status", "200")), "late or twice"},
		{"upper case", with(settings, Headers, EndHeaders, 1, block(":status", "200", "X", "y")), `field name "X"`},
		{"connection field", with(settings, Headers, EndHeaders, 1, block(":status", "200", "upgrade", "y")), "connection-specific"},
		{"space", with(settings, Headers, EndHeaders, 1, block(":status", "200", "x", "y ")), "field value"},
		{"padding", with(head, Data, Padded, 1, []byte{2, 0, 1}), "padding MUST be zero"},
		{"long padding", with(head, Data, Padded, 1, []byte{3, 0, 1}), "padding is longer"},
		{"promise on odd stream", with(head, PushPromise, EndHeaders, 1, append([]byte{0, 0, 0, 3}, block(":method", "GET")...)),
			"illegal promised stream 3"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			said := record(t, false, tt.raw, func(p *Peer) {
				p.WriteHeaders(1, false, Request("POST", "/")...)
				p.WriteHeaders(3, true, Request("GET", "/")...)
				p.WritePing(false, [8]byte{})
				p.Take()
			})
			if (said == "") != (tt.want == "") || !strings.Contains(said, tt.want) {
				t.Errorf("the audit says %q, want %q", said, tt.want)
			}
		})
	}
}

// nopConn is a connection for a Peer that only encodes.
type nopConn struct{ net.Conn }

func (nopConn) Close() error { return nil }

package h2_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"culvert/tunnel/h2"
	"culvert/tunnel/h2/h2test"
)

const maxStreamID = 1<<31 - 1

func TestRFC9113_6_8_GoAwayFrame(t *testing.T) {
	runCases(t, []specCase{
		{"on a stream", func(t *testing.T) {
			// "An endpoint MUST treat a GOAWAY frame with a stream identifier other than 0x00 as a connection error
			// (Section 5.4.1) of type PROTOCOL_ERROR."
			p := server(t, nil)
			p.tunnel(1)
			p.WriteFrame(h2test.GoAway, 0, 1, make([]byte, 8))
			p.WantConnError("GOAWAY on stream 1", h2test.ProtocolError)
		}},
		{"last stream identifier rises", func(t *testing.T) {
			// "Endpoints MUST NOT increase the value they send in the last stream identifier."
			p := client(t, nil)
			p.open(get("/"), true)
			p.WriteGoAway(1, h2test.NoError, "")
			p.WriteGoAway(3, h2test.NoError, "")
			p.WantConnError("the last stream identifier has risen", h2test.ProtocolError)
		}},
		{"from a client", func(t *testing.T) {
			// The streams that were opened still complete.
			p := server(t, nil)
			p.tunnel(1)
			p.WriteGoAway(0, h2test.NoError, "going")
			synctest.Wait()
			select {
			case <-p.conn.Retired():
			default:
				t.Error("PeerGoAway is not closed")
			}
			p.wantEcho(1, "GOAWAY of the client concerns pushed streams only")
			p.WriteData(1, true, nil)
			p.WantData(1, nil, true, "the tunnel ends")
		}},
		{"with an error code", func(t *testing.T) {
			p := client(t, nil)
			s := p.open(get("/"), true)
			p.WriteGoAway(1, h2test.EnhanceYourCalm, "calm down")
			p.Close()
			_, err := s.Response(t.Context())
			var ce *h2.ConnError
			if !errors.As(err, &ce) || ce.By != h2.Peer || ce.Code != h2.EnhanceYourCalm {
				t.Errorf("Response = %v, want a *ConnError by the peer with ENHANCE_YOUR_CALM", err)
			}
		}},
	})
}

// "Receivers of a GOAWAY frame MUST NOT open additional streams on the connection" and "those streams are
// not or will not be processed. The receiver of the GOAWAY frame can treat the streams as though they had
// never been created at all" (section 6.8).
func TestRFC9113_6_8_GoAwayReceived(t *testing.T) {
	runCases(t, []specCase{
		{"streams above it fail, the others go on", func(t *testing.T) {
			p := client(t, nil)
			s1, s3, s5 := p.open(get("/"), true), p.open(get("/"), true), p.open(get("/"), true)
			p.WriteGoAway(3, h2test.NoError, "")
			_, err := s5.Response(t.Context())
			var se *h2.StreamError
			if !errors.As(err, &se) || se.Code != h2.RefusedStream || se.By != h2.Peer {
				t.Errorf("Response of stream 5 = %v, want a *StreamError by the peer with REFUSED_STREAM", err)
			}
			p.WriteHeaders(3, true, h2test.Response("200")...)
			p.WriteHeaders(1, true, h2test.Response("200")...)
			wantStatus(t, s1, 200)
			wantStatus(t, s3, 200)
		}},
		{"no more streams", func(t *testing.T) {
			p := client(t, nil)
			p.open(get("/"), true)
			p.WriteGoAway(maxStreamID, h2test.NoError, "")
			synctest.Wait()
			if s, err := p.conn.Open(t.Context(), get("/"), true); err == nil {
				t.Errorf("Open = stream %d after GOAWAY, want an error", s.ID())
			}
			if n := p.conn.Slots(); n != 0 {
				t.Errorf("Slots = %d after GOAWAY, want 0", n)
			}
			p.WantIdle("no new stream")
		}},
		{"who waits for a slot is told", func(t *testing.T) {
			p := client(t, nil, h2test.Setting{ID: h2test.MaxConcurrentStreams, Value: 0})
			opened := openLater(t, p)
			synctest.Wait()
			p.WriteGoAway(0, h2test.NoError, "")
			if err := <-opened; err == nil {
				t.Error("Open = nil after GOAWAY, want an error")
			}
		}},
		{"two phases", func(t *testing.T) {
			p := client(t, nil)
			s1 := p.open(connectTo("a:1"), false)
			p.WriteHeaders(1, false, h2test.Response("200")...)
			s3 := p.open(get("/"), true)
			p.WriteGoAway(maxStreamID, h2test.NoError, "")
			p.WriteHeaders(3, true, h2test.Response("200")...)
			wantStatus(t, s3, 200)
			p.WriteGoAway(3, h2test.NoError, "")
			wantStatus(t, s1, 200)
			p.WriteData(1, true, []byte("tail"))
			buf := make([]byte, 10)
			if n, err := s1.Read(buf); string(buf[:n]) != "tail" {
				t.Errorf("Read = %q, %v; want the tail", buf[:n], err)
			}
		}},
		{"second one with less", func(t *testing.T) {
			p := client(t, nil)
			p.open(get("/"), true)
			s3 := p.open(get("/"), true)
			p.WriteGoAway(3, h2test.NoError, "")
			p.WriteGoAway(1, h2test.NoError, "")
			if _, err := s3.Response(t.Context()); err == nil {
				t.Error("Response of stream 3 = nil, want REFUSED_STREAM")
			}
		}},
	})
}

// startDrain drains the connection in the background and reads the first GOAWAY; the channel gets the result.
func startDrain(ctx context.Context, t *testing.T, p *specPeer) <-chan error {
	t.Helper()
	drained := make(chan error, 1)
	// Ends with the streams, with ctx or with the connection; the tests receive from the channel.
	go func() { drained <- p.conn.Drain(ctx) }()
	f := p.WantGoAway("the drain is announced", h2test.NoError)
	if f.LastStreamID() != maxStreamID {
		t.Errorf("first GOAWAY names stream %d, want 2^31-1", f.LastStreamID())
	}
	return drained
}

// "A server that is attempting to gracefully shut down a connection SHOULD send an initial GOAWAY frame with
// the last stream identifier set to 2^31-1 and a NO_ERROR code. … After allowing time for any in-flight
// stream creation (at least one round-trip time), the server MAY send another GOAWAY frame with an updated
// last stream identifier" (section 6.8). SECURITY.md, "What is promised".
func TestRFC9113_6_8_Drain(t *testing.T) {
	runCases(t, []specCase{
		{"streams under way complete", func(t *testing.T) {
			p := server(t, nil)
			p.tunnel(1)
			drained := startDrain(t.Context(), t, p)
			// In flight: sent before the client has seen GOAWAY. The Peer answers the PING as it reads.
			p.WriteHeaders(3, false, h2test.Connect("late.example:1")...)
			if f := p.WantGoAway("the second GOAWAY", h2test.NoError); f.LastStreamID() != 3 {
				t.Errorf("second GOAWAY names stream %d, want 3", f.LastStreamID())
			}
			p.WantHeaders(3, "what came before the second GOAWAY is served", map[string]string{":status": "200"})
			p.wantEcho(1, "draining")
			p.wantEcho(3, "draining")
			p.WriteData(1, true, nil)
			p.WantData(1, nil, true, "the first tunnel ends")
			p.WantIdle("one tunnel is left")
			p.WriteData(3, true, nil)
			p.WantData(3, nil, true, "the second tunnel ends")
			p.WantClosed("all streams have ended")
			if err := <-drained; err != nil {
				t.Errorf("Drain = %v, want nil", err)
			}
		}},
		{"later streams are ignored but decoded", func(t *testing.T) {
			// "HEADERS, PUSH_PROMISE, and CONTINUATION frames MUST be minimally processed to ensure that the state
			// maintained for field section compression is consistent (see Section 4.3); similarly, DATA frames MUST be
			// counted toward the connection flow-control window."
			p := server(t, &h2.Config{ConnWindow: 65535})
			p.tunnel(1)
			drained := startDrain(t.Context(), t, p)
			p.WantGoAway("the second GOAWAY", h2test.NoError)
			p.Ignore(h2test.RSTStream) // of the ignored stream
			for i := range uint32(10) {
				p.WriteHeaders(3+2*i, false, h2test.Request("POST", "/", "x-late", "of the dynamic table")...)
				p.WriteData(3+2*i, true, make([]byte, 10_000))
				p.WantIdle("streams above the last identifier are ignored")
			}
			if w := p.SendWindow(0); w < 30_000 {
				t.Errorf("connection window is %d, want it given back", w)
			}
			if n := p.handled(); n != 1 {
				t.Errorf("%d requests reached the handler, want 1", n)
			}
			p.wantEcho(1, "draining")
			p.WriteHeaders(1, true, h2test.Fields("x-late", "of the dynamic table")...) // trailers: PROTOCOL_ERROR
			p.WantClosed("the last stream has ended")
			if err := <-drained; err != nil {
				t.Errorf("Drain = %v, want nil", err)
			}
		}},
	})
}

func TestRFC9113_6_8_DrainEnds(t *testing.T) {
	runCases(t, []specCase{
		{"without streams", func(t *testing.T) {
			p := server(t, nil)
			drained := startDrain(t.Context(), t, p)
			p.WantClosed("there is no stream")
			if err := <-drained; err != nil {
				t.Errorf("Drain = %v, want nil", err)
			}
		}},
		{"peer does not answer the PING", func(t *testing.T) {
			p := server(t, nil)
			p.tunnel(1)
			p.NoPingAck = true
			startDrain(t.Context(), t, p)
			p.WantGoAway("the second GOAWAY comes anyway", h2test.NoError)
			p.Close()
		}},
		{"no streams are opened while draining", func(t *testing.T) {
			p := client(t, nil)
			p.open(get("/"), true)
			// Ends with the connection, at the end of the test; nobody waits for the result.
			go p.conn.Drain(t.Context())
			synctest.Wait()
			if s, err := p.conn.Open(t.Context(), get("/"), true); err == nil {
				t.Errorf("Open = stream %d while draining, want an error", s.ID())
			}
		}},
		{"forced end is told by RST_STREAM", func(t *testing.T) {
			// SECURITY.md, "What is promised": "forced end by RST_STREAM, not TCP RST".
			p := server(t, nil)
			p.tunnel(1)
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			drained := startDrain(ctx, t, p)
			if err := <-drained; !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Drain = %v, want %v", err, context.DeadlineExceeded)
			}
			p.conn.Close()
			reset := false
			for _, f := range p.Take() {
				reset = reset || f.Type == h2test.RSTStream && f.StreamID == 1
			}
			if !reset {
				t.Error("the tunnel ended without RST_STREAM")
			}
		}},
	})
}

// "Endpoints SHOULD always send a GOAWAY frame before closing a connection" (section 6.8).
func TestRFC9113_6_8_Close(t *testing.T) {
	runCases(t, []specCase{
		{"server", func(t *testing.T) {
			p := server(t, nil)
			p.wantServes(1, "first")
			p.conn.Close()
			if f := p.WantConnError("Close", h2test.NoError); f.LastStreamID() != 1 {
				t.Errorf("GOAWAY names stream %d, want 1", f.LastStreamID())
			}
		}},
		{"client", func(t *testing.T) {
			p := client(t, nil)
			s := p.open(get("/"), true)
			p.conn.Close()
			p.Ignore(h2test.RSTStream)
			p.WantConnError("Close", h2test.NoError)
			var ce *h2.ConnError
			if _, err := s.Response(t.Context()); !errors.As(err, &ce) {
				t.Errorf("Response = %v, want a *ConnError", err)
			}
			if err := p.conn.Close(); err != nil {
				t.Errorf("second Close = %v", err)
			}
		}},
	})
}

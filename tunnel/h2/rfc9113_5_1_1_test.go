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

// "The identifier of a newly established stream MUST be numerically greater than all streams that the
// initiating endpoint has opened or reserved. … An endpoint that receives an unexpected stream identifier
// MUST respond with a connection error (Section 5.4.1) of type PROTOCOL_ERROR" (section 5.1.1).
func TestRFC9113_5_1_1_StreamIdentifiers(t *testing.T) {
	runCases(t, []specCase{
		{"even from a client", func(t *testing.T) {
			p := server(t, nil)
			p.WriteHeaders(2, true, h2test.Request("GET", "/")...)
			p.WantConnError("streams initiated by a client MUST use odd-numbered stream identifiers", h2test.ProtocolError)
		}},
		{"zero", func(t *testing.T) {
			p := server(t, nil)
			p.WriteHeaders(0, true, h2test.Request("GET", "/")...)
			p.WantConnError("stream 0 cannot be used to establish a new stream", h2test.ProtocolError)
		}},
		{"lower than before", func(t *testing.T) {
			p := server(t, nil)
			p.wantServes(5, "first")
			p.WriteHeaders(3, true, h2test.Request("GET", "/")...)
			p.WantConnError("a lower identifier", h2test.ProtocolError, h2test.StreamClosed)
		}},
		{"lower than a refused one", func(t *testing.T) {
			p := server(t, nil)
			p.WriteHeaders(5, true, h2test.Fields(":method", "GET")...)
			p.wantMalformed(5, "no path")
			p.WriteHeaders(3, true, h2test.Request("GET", "/")...)
			p.WantConnError("a lower identifier", h2test.ProtocolError, h2test.StreamClosed)
		}},
		{"skipping", func(t *testing.T) {
			p := server(t, nil)
			p.wantServes(1, "first")
			p.wantServes(101, "an endpoint may skip a stream identifier")
		}},
		{"the greatest", func(t *testing.T) {
			p := server(t, nil)
			p.wantServes(1<<31-1, "the last identifier there is")
		}},
		{"ours rise and are odd", func(t *testing.T) {
			p := client(t, nil)
			for want := uint32(1); want < 20; want += 2 {
				if s := p.open(get("/"), true); s.ID() != want {
					t.Errorf("stream %d, want %d", s.ID(), want)
				}
			}
		}},
	})
}

// "Endpoints MUST NOT exceed the limit set by their peer. An endpoint that receives a HEADERS frame that
// causes its advertised concurrent stream limit to be exceeded MUST treat this as a stream error (Section
// 5.4.2) of type PROTOCOL_ERROR or REFUSED_STREAM" (section 5.1.2). Ours is REFUSED_STREAM.
func TestRFC9113_5_1_2_PeerExceeds(t *testing.T) {
	runCases(t, []specCase{
		{"one more", func(t *testing.T) {
			p := server(t, &h2.Config{MaxStreams: 3})
			if got := p.Theirs[h2test.MaxConcurrentStreams]; got != 3 {
				t.Fatalf("SETTINGS_MAX_CONCURRENT_STREAMS = %d, want 3", got)
			}
			for id := uint32(1); id <= 5; id += 2 {
				p.tunnel(id)
			}
			p.WriteHeaders(7, false, h2test.Connect("echo.example:7")...)
			p.WantRST(7, "the fourth of three", h2test.RefusedStream)
			if n := p.handled(); n != 3 {
				t.Errorf("%d requests reached the handler, want 3", n)
			}
			for id := uint32(1); id <= 5; id += 2 {
				p.wantEcho(id, "a refusal elsewhere")
			}
		}},
		{"half-closed streams count", func(t *testing.T) {
			p := server(t, &h2.Config{MaxStreams: 1})
			p.WriteHeaders(1, true, h2test.Request("GET", "/hang")...)
			p.WriteHeaders(3, true, h2test.Request("GET", "/")...)
			p.WantRST(3, "stream 1 is half-closed and counts", h2test.RefusedStream)
		}},
		{"an ended stream makes room", func(t *testing.T) {
			p := server(t, &h2.Config{MaxStreams: 1})
			for id := uint32(1); id < 20; id += 2 {
				p.wantServes(id, "the one before has ended")
				p.handled()
			}
		}},
		{"default", func(t *testing.T) {
			p := server(t, nil)
			if got := p.Theirs[h2test.MaxConcurrentStreams]; got != 200 {
				t.Errorf("SETTINGS_MAX_CONCURRENT_STREAMS = %d, want 200", got)
			}
		}},
	})
}

func maxConcurrent(n uint32) h2test.Setting {
	return h2test.Setting{ID: h2test.MaxConcurrentStreams, Value: n}
}

func TestRFC9113_5_1_2_WeKeepToThePeersLimit(t *testing.T) {
	runCases(t, []specCase{
		{"Open waits for a slot", func(t *testing.T) {
			p := client(t, nil, maxConcurrent(2))
			p.open(get("/"), true)
			p.open(get("/"), true)
			if n := p.conn.Slots(); n != 0 {
				t.Errorf("Slots = %d, want 0", n)
			}
			opened := openLater(t, p)
			p.WantIdle("two of two streams are open")
			p.WriteHeaders(1, true, h2test.Response("200")...)
			p.WantHeaders(5, "stream 1 has ended", map[string]string{":path": "/later"})
			if err := <-opened; err != nil {
				t.Errorf("Open = %v, want nil", err)
			}
		}},
		{"RST_STREAM frees the slot", func(t *testing.T) {
			p := client(t, nil, maxConcurrent(1))
			p.open(get("/"), true)
			opened := openLater(t, p)
			p.WantIdle("one of one stream is open")
			p.WriteRST(1, h2test.Cancel)
			p.WantHeaders(3, "stream 1 has ended", map[string]string{":path": "/later"})
			if err := <-opened; err != nil {
				t.Errorf("Open = %v, want nil", err)
			}
		}},
		{"a raised limit", func(t *testing.T) {
			p := client(t, nil, maxConcurrent(1))
			p.open(get("/"), true)
			opened := openLater(t, p)
			p.WantIdle("one of one stream is open")
			p.WriteSettings(maxConcurrent(2))
			p.WantHeaders(3, "the limit is 2 now", map[string]string{":path": "/later"})
			if err := <-opened; err != nil {
				t.Errorf("Open = %v, want nil", err)
			}
		}},
		{"a lowered limit", func(t *testing.T) {
			p := client(t, nil, maxConcurrent(3))
			p.open(get("/"), true)
			p.open(get("/"), true)
			p.WriteSettings(maxConcurrent(1))
			p.WantSettingsAck("the lower limit")
			opened := openLater(t, p)
			p.WriteHeaders(1, true, h2test.Response("200")...)
			p.WantIdle("one of one stream is still open")
			p.WriteHeaders(3, true, h2test.Response("200")...)
			p.WantHeaders(5, "both have ended", map[string]string{":path": "/later"})
			if err := <-opened; err != nil {
				t.Errorf("Open = %v, want nil", err)
			}
		}},
	})
}

// A peer that allows no stream: Open waits until its context, or the connection, ends.
func TestRFC9113_5_1_2_PeerAllowsNone(t *testing.T) {
	runCases(t, []specCase{
		{"zero until the context ends", func(t *testing.T) {
			p := client(t, nil, maxConcurrent(0))
			if n := p.conn.Slots(); n != 0 {
				t.Errorf("Slots = %d, want 0", n)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			start := time.Now()
			_, err := p.conn.Open(ctx, get("/"), true)
			if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 3*time.Second {
				t.Errorf("Open = %v after %v, want %v after 3s", err, time.Since(start), context.DeadlineExceeded)
			}
			p.WantIdle("no stream was opened")
			p.WriteSettings(maxConcurrent(1))
			p.WantSettingsAck("the raised limit")
			p.wantWorks("the limit was raised")
		}},
		{"zero until the connection ends", func(t *testing.T) {
			p := client(t, nil, maxConcurrent(0))
			opened := openLater(t, p)
			synctest.Wait()
			p.Close()
			if err := <-opened; err == nil {
				t.Error("Open = nil on a connection that ended, want an error")
			}
		}},
	})
}

// openLater opens a stream for /later in the background; the channel gets the result.
func openLater(t *testing.T, p *specPeer) <-chan error {
	opened := make(chan error, 1)
	// Ends when Open returns, at the latest with the test's context or the connection; the bubble waits for it.
	go func() {
		s, err := p.conn.Open(t.Context(), get("/later"), true)
		if err == nil {
			t.Cleanup(func() { s.Close() })
		}
		opened <- err
	}()
	return opened
}

package h2_test

import (
	"errors"
	"testing"
	"testing/synctest"

	"culvert/tunnel/h2"
	"culvert/tunnel/h2/h2test"
)

func TestRFC9113_5_4_1_ConnectionErrors(t *testing.T) {
	runCases(t, []specCase{
		{"names the last stream", func(t *testing.T) {
			// "An endpoint that encounters a connection error SHOULD first send a GOAWAY frame (Section 6.8) with the
			// stream identifier of the last stream that it successfully received from its peer."
			p := server(t, nil)
			p.tunnel(1)
			p.wantServes(7, "the last stream")
			p.WriteContinuation(7, true, nil)
			if f := p.WantConnError("a stray CONTINUATION", h2test.ProtocolError); f.LastStreamID() != 7 {
				t.Errorf("last stream %d, want 7", f.LastStreamID())
			}
		}},
		{"ends the streams", func(t *testing.T) {
			failed := make(chan error, 1)
			p := server(t, &h2.Config{Handler: func(s *h2.Stream) {
				defer s.Close()
				_, err := s.Read(make([]byte, 1))
				failed <- err
			}})
			p.WriteHeaders(1, false, h2test.Request("POST", "/")...)
			synctest.Wait()
			p.WriteFrame(h2test.Ping, 0, 0, nil)
			p.WantConnError("PING of length 0", h2test.FrameSizeError)
			var ce *h2.ConnError
			if err := <-failed; !errors.As(err, &ce) || ce.Code != h2.FrameSizeError {
				t.Errorf("Read = %v, want a *ConnError with FRAME_SIZE_ERROR", err)
			}
			<-p.conn.Done()
			if err := p.conn.Err(); !errors.As(err, &ce) || ce.Code != h2.FrameSizeError {
				t.Errorf("Err = %v, want a *ConnError with FRAME_SIZE_ERROR", err)
			}
		}},
		{"nothing is served after GOAWAY", func(t *testing.T) {
			p := server(t, nil)
			p.WriteFrame(h2test.Ping, 0, 0, nil)
			p.WriteHeaders(1, true, h2test.Request("GET", "/")...)
			p.WantConnError("PING of length 0", h2test.FrameSizeError)
			if n := p.handled(); n != 0 {
				t.Errorf("%d requests reached the handler after the error, want none", n)
			}
		}},
	})
}

func TestRFC9113_5_4_2_StreamErrors(t *testing.T) {
	runCases(t, []specCase{
		{"no RST_STREAM for RST_STREAM", func(t *testing.T) {
			// "To avoid looping, an endpoint MUST NOT send a RST_STREAM in response to a RST_STREAM frame."
			p := server(t, nil)
			p.tunnel(1)
			p.WriteHeaders(3, false, h2test.Request("POST", "/hang")...)
			p.WriteRST(3, h2test.ProtocolError)
			p.WriteRST(3, h2test.ProtocolError)
			p.WantIdle("no answer to RST_STREAM")
			p.wantEcho(1, "stream 3 was reset")
		}},
		{"unknown code", func(t *testing.T) {
			// "Unknown or unsupported error codes MUST NOT trigger any special behavior" (section 7).
			p := client(t, nil)
			s := p.open(get("/"), true)
			p.WriteRST(1, 0xdeadbeef)
			_, err := s.Response(t.Context())
			var se *h2.StreamError
			if !errors.As(err, &se) || se.Code != 0xdeadbeef || se.By != h2.Peer || se.StreamID != 1 {
				t.Errorf("Response = %v, want a *StreamError by the peer with code 0xdeadbeef", err)
			}
			p.wantWorks("an unknown error code")
		}},
		{"who reset what is told", func(t *testing.T) {
			p := client(t, nil)
			s := p.open(post("/"), false)
			p.WriteRST(1, h2test.RefusedStream)
			<-s.Done()
			var se *h2.StreamError
			for name, call := range map[string]func() error{
				"Read":     func() error { _, err := s.Read(make([]byte, 1)); return err },
				"Write":    func() error { _, err := s.Write([]byte("x")); return err },
				"Response": func() error { _, err := s.Response(t.Context()); return err },
				"Err":      s.Err,
			} {
				if err := call(); !errors.As(err, &se) || se.Code != h2.RefusedStream || se.By != h2.Peer {
					t.Errorf("%s = %v, want a *StreamError by the peer with REFUSED_STREAM", name, err)
				}
			}
		}},
	})
}

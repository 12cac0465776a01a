package h2_test

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"

	"culvert/tunnel/h2"
	"culvert/tunnel/h2/h2test"
)

// bothPeer is a connection on which both ends open streams, in one of the roles, with its scripted other end.
type bothPeer struct {
	*specPeer
	first uint32 // identifier of the peer's first stream: 1 from a client, 2 from a server
}

// theirs is the identifier of the peer's stream number i, and ours that of our own.
func (p *bothPeer) theirs(i int) uint32 { return p.first + 2*uint32(i) }
func (p *bothPeer) ours(i int) uint32   { return 3 - p.first + 2*uint32(i) }

// runBoth runs a script for both roles.
func runBoth(t *testing.T, cfg h2.Config, script func(t *testing.T, p *bothPeer), settings ...h2test.Setting) {
	t.Helper()
	for _, role := range []string{"server", "client"} {
		t.Run(role, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				own := cfg
				own.Bidirectional = true
				p := &bothPeer{first: 1}
				if role == "server" {
					p.specPeer = rawServer(t, &own)
				} else {
					p.first = 2
					p.specPeer = &specPeer{t: t}
					if own.Handler == nil {
						own.Handler = func(s *h2.Stream) { p.handle(s) }
					}
					c := rawClient(t, &own)
					p.Peer, p.conn = c.Peer, c.conn
				}
				p.Bidirectional()
				p.Handshake(settings...)
				script(t, p)
			})
		})
	}
}

// Both ends open streams and answer those of the other, each with identifiers of its own kind (RFC 9113, section
// 5.1.1, in both directions).
func TestBidirectional(t *testing.T) {
	runBoth(t, h2.Config{EnableConnectProtocol: true}, func(t *testing.T, p *bothPeer) {
		if p.Theirs[h2test.MaxConcurrentStreams] != h2.DefaultMaxStreams || p.Theirs[h2test.EnableConnectProtocol] != 1 {
			t.Errorf("SETTINGS %v, want those of one who is asked, whatever the role", p.Theirs)
		}
		for i := range 10 {
			p.tunnel(p.theirs(i))
			s := p.open(connectTo("a:1"), false)
			if s.ID() != p.ours(i) {
				t.Errorf("stream %d, want %d", s.ID(), p.ours(i))
			}
			p.WriteHeaders(s.ID(), false, h2test.Response("200")...)
			wantStatus(t, s, 200)
			p.WriteData(s.ID(), true, []byte("one way"))
			buf := make([]byte, 100)
			if n, err := s.Read(buf); string(buf[:n]) != "one way" {
				t.Errorf("Read = %q, %v", buf[:n], err)
			}
			if err := s.Respond(&h2.Header{Status: 200}, true); err == nil {
				t.Error("Respond = nil on a stream of our own, want an error")
			}
		}
		for i := range 10 {
			p.wantEcho(p.theirs(i), "streams of both ends")
		}
		if st := p.conn.Stats(); st.Opened != 10 || st.Accepted != 10 || st.PeerStreams != 10 {
			t.Errorf("Stats = %+v, want 10 streams each way", st)
		}
	})
}

// Row 11 (see limits_test.go), for each direction: identifiers, their order, and their end.
func TestBidirectional_StreamIdentifiers(t *testing.T) {
	get := h2test.Request("GET", "/")
	for _, c := range []struct {
		name  string
		write func(p *bothPeer)
		codes []h2test.ErrCode
	}{
		{"of our kind", func(p *bothPeer) { p.WriteHeaders(p.ours(0), true, get...) }, []h2test.ErrCode{h2test.ProtocolError}},
		{"of our kind, higher", func(p *bothPeer) { p.WriteHeaders(p.ours(50), true, get...) }, []h2test.ErrCode{h2test.ProtocolError}},
		{"zero", func(p *bothPeer) { p.WriteHeaders(0, true, get...) }, []h2test.ErrCode{h2test.ProtocolError}},
		{"lower than before", func(p *bothPeer) {
			p.wantServes(p.theirs(5), "first")
			p.WriteHeaders(p.theirs(3), true, get...)
		}, []h2test.ErrCode{h2test.ProtocolError, h2test.StreamClosed}},
		{"DATA on a stream that we have not opened", func(p *bothPeer) { p.WriteData(p.ours(0), false, []byte("x")) }, []h2test.ErrCode{h2test.ProtocolError}},
		{"RST_STREAM on a stream that we have not opened", func(p *bothPeer) { p.WriteRST(p.ours(0), h2test.Cancel) }, []h2test.ErrCode{h2test.ProtocolError}},
		{"DATA on a stream that it has not opened", func(p *bothPeer) { p.WriteData(p.theirs(0), false, []byte("x")) }, []h2test.ErrCode{h2test.ProtocolError}},
	} {
		t.Run(c.name, func(t *testing.T) {
			runBoth(t, h2.Config{}, func(t *testing.T, p *bothPeer) {
				c.write(p)
				p.WantConnError(c.name, c.codes...)
			})
		})
	}
	t.Run("run out", func(t *testing.T) {
		runBoth(t, h2.Config{}, func(t *testing.T, p *bothPeer) {
			p.wantServes(1<<31-1001+p.first%2-1, "identifiers are running out")
			p.WantGoAway("500 identifiers before the end", h2test.NoError)
			p.wantServes(1<<31-999+p.first%2-1, "what was under way is served")
		})
	})
}

// Row 11: "REFUSED_STREAM below 2x, then end"; streams of ours count for nothing there.
func TestBidirectional_ConcurrentStreams(t *testing.T) {
	runBoth(t, h2.Config{MaxStreams: 10}, func(t *testing.T, p *bothPeer) {
		for range 30 {
			p.open(connectTo("a:1"), false)
		}
		for i := range 10 {
			p.WriteHeaders(p.theirs(i), false, h2test.Request("POST", "/hang")...)
		}
		for i := 10; i < 19; i++ {
			p.WriteHeaders(p.theirs(i), false, h2test.Request("POST", "/hang")...)
			p.WantRST(p.theirs(i), "above the limit, below twice the limit", h2test.RefusedStream)
		}
		if n := p.handled(); n != 10 {
			t.Errorf("%d requests reached the handler, want 10", n)
		}
		flood(t, p.specPeer, 3, func(i uint32) {
			p.WriteHeaders(p.theirs(19+int(i)), false, h2test.Request("POST", "/hang")...)
		})
	})
}

// The peer's limit holds for our streams, and those that the peer opens count for nothing there.
func TestBidirectional_WeKeepToThePeersLimit(t *testing.T) {
	runBoth(t, h2.Config{}, func(t *testing.T, p *bothPeer) {
		for i := range 5 {
			p.tunnel(p.theirs(i))
		}
		p.open(get("/"), true)
		p.open(get("/"), true)
		if n := p.conn.Slots(); n != 0 {
			t.Errorf("Slots = %d, want 0", n)
		}
		opened := openLater(t, p.specPeer)
		p.WantIdle("two of two streams are open")
		p.WriteHeaders(p.ours(0), true, h2test.Response("200")...)
		p.WantHeaders(p.ours(2), "one stream has ended", map[string]string{":path": "/later"})
		if err := <-opened; err != nil {
			t.Errorf("Open = %v, want nil", err)
		}
	}, maxConcurrent(2))
}

// Rows 1 and 2 (see limits_test.go), for the peer of either role.
func TestBidirectional_RapidReset(t *testing.T) {
	runBoth(t, h2.Config{}, func(t *testing.T, p *bothPeer) {
		flood(t, p.specPeer, 501, func(i uint32) {
			p.WriteHeaders(p.theirs(int(i)), false, h2test.Request("POST", "/hang")...)
			p.WriteRST(p.theirs(int(i)), h2test.Cancel)
		})
		if n := p.handled(); n > 100 {
			t.Errorf("%d requests reached the handler, want at most 100", n)
		}
	})
}

// A peer whose streams nobody takes, such as an agent before it has a handler, gets REFUSED_STREAM.
func TestBidirectional_NoHandler(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := rawClient(t, &h2.Config{Bidirectional: true})
		p.Bidirectional()
		p.Handshake()
		p.WriteHeaders(2, false, h2test.Connect("a:1")...)
		p.WantRST(2, "nobody takes streams", h2test.RefusedStream)
		p.wantWorks("a stream was refused")
	})
}

// Row 13 (see limits_test.go), for each direction: promises come only where they are taken, on streams that we have
// opened, with the peer's identifiers, which its streams share, and no more than MAX_CONCURRENT_STREAMS.
func TestBidirectional_Promises(t *testing.T) {
	pushed := h2test.Request("GET", "/pushed")
	promises := make(chan *h2.Stream, 100)
	cfg := h2.Config{EnablePush: true, MaxStreams: 3, OnPush: func(_ *h2.Stream, _ *h2.Header, s *h2.Stream) { promises <- s }}
	for _, c := range []struct {
		name   string
		script func(t *testing.T, p *bothPeer)
	}{
		{"taken and answered", func(t *testing.T, p *bothPeer) {
			p.wantServes(p.theirs(0), "a stream of the peer before")
			p.WritePushPromise(p.ours(0), p.theirs(1), pushed...)
			s := <-promises
			defer s.Close()
			p.WriteHeaders(p.theirs(1), false, h2test.Response("200")...)
			p.WriteData(p.theirs(1), true, []byte("content"))
			wantStatus(t, s, 200)
			p.wantServes(p.theirs(2), "a stream of the peer after")
		}},
		{"more than we allow", func(t *testing.T, p *bothPeer) {
			p.tunnel(p.theirs(0)) // counts with them
			for i := 1; i <= 3; i++ {
				p.WritePushPromise(p.ours(0), p.theirs(i), pushed...)
			}
			p.WantRST(p.theirs(3), "the fourth of three", h2test.RefusedStream)
			for range 2 {
				(<-promises).Close()
			}
		}},
		{"of our kind", func(t *testing.T, p *bothPeer) {
			p.WritePushPromise(p.ours(0), p.ours(1), pushed...)
			p.WantConnError("an identifier of our kind", h2test.ProtocolError)
		}},
		{"of stream 0", func(t *testing.T, p *bothPeer) {
			p.WritePushPromise(p.ours(0), 0, pushed...)
			p.WantConnError("stream 0", h2test.ProtocolError)
		}},
		{"of a stream that was opened", func(t *testing.T, p *bothPeer) {
			p.tunnel(p.theirs(4))
			p.WritePushPromise(p.ours(0), p.theirs(4), pushed...)
			p.WantConnError("the identifier is in use", h2test.ProtocolError)
		}},
		{"on a stream of its own", func(t *testing.T, p *bothPeer) {
			p.tunnel(p.theirs(0))
			p.WritePushPromise(p.theirs(0), p.theirs(1), pushed...)
			p.WantConnError("promises come on streams that we have opened", h2test.ProtocolError)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			runBoth(t, cfg, func(t *testing.T, p *bothPeer) {
				p.open(post("/"), false)
				c.script(t, p)
			})
		})
	}
	t.Run("not asked for", func(t *testing.T) {
		runBoth(t, h2.Config{}, func(t *testing.T, p *bothPeer) {
			if got, sent := p.Theirs[h2test.EnablePush]; !sent || got != 0 {
				t.Errorf("ENABLE_PUSH = %d, %v; want 0", got, sent)
			}
			p.open(get("/"), true)
			p.WritePushPromise(p.ours(0), p.theirs(0), pushed...)
			p.WantConnError("promises are off", h2test.ProtocolError)
		})
	})
}

// We promise in either role, with identifiers that our streams share, and only to a peer that takes promises.
func TestBidirectional_WePush(t *testing.T) {
	for _, on := range []uint32{0, 1} {
		results := make(chan error, 1)
		cfg := h2.Config{Handler: func(s *h2.Stream) {
			defer s.Close()
			ps, err := s.Push(get("/pushed"))
			results <- err
			s.Respond(&h2.Header{Status: 200}, true)
			if err == nil {
				defer ps.Close()
				ps.Respond(&h2.Header{Status: 201}, true)
			}
		}}
		runBoth(t, cfg, func(t *testing.T, p *bothPeer) {
			before := p.open(get("/"), true)
			if _, err := before.Push(get("/")); !errors.Is(err, h2.ErrPushDisabled) {
				t.Errorf("Push on a stream of our own = %v, want %v", err, h2.ErrPushDisabled)
			}
			p.WriteHeaders(p.theirs(0), true, h2test.Request("GET", "/")...)
			if on == 0 {
				p.WantHeaders(p.theirs(0), "no promise, only the response", map[string]string{":status": "200"})
				if err := <-results; !errors.Is(err, h2.ErrPushDisabled) {
					t.Errorf("Push = %v, want %v", err, h2.ErrPushDisabled)
				}
				return
			}
			if f := p.WantFrame(h2test.PushPromise, p.theirs(0), "the promise"); f.Promised() != p.ours(1) {
				t.Errorf("promise of stream %d, want %d", f.Promised(), p.ours(1))
			}
			if err := <-results; err != nil {
				t.Errorf("Push = %v", err)
			}
			p.WantHeaders(p.theirs(0), "the response", map[string]string{":status": "200"})
			p.WantHeaders(p.ours(1), "the pushed response", map[string]string{":status": "201"})
			if s := p.open(get("/"), true); s.ID() != p.ours(2) {
				t.Errorf("stream %d after the promise, want %d", s.ID(), p.ours(2))
			}
		}, h2test.Setting{ID: h2test.EnablePush, Value: on})
	}
}

// A drain of either role takes what the peer had opened before it knew, and ends when the streams of both ends have (RFC
// 9113, section 6.8).
func TestBidirectional_Drain(t *testing.T) {
	runBoth(t, h2.Config{}, func(t *testing.T, p *bothPeer) {
		p.tunnel(p.theirs(0))
		own := p.open(connectTo("a:1"), false)
		drained := make(chan error, 1)
		p.NoPingAck = true
		go func() { drained <- p.conn.Drain(t.Context()) }() // ends with the connection, below
		p.WantGoAway("the first of two", h2test.NoError)
		ping := p.WantFrame(h2test.Ping, 0, "a round trip")
		p.tunnel(p.theirs(1)) // was on its way
		p.NoPingAck = false
		p.WritePing(true, [8]byte(ping.Payload))
		if f := p.WantGoAway("the second", h2test.NoError); f.LastStreamID() != p.theirs(1) {
			t.Errorf("last stream %d, want %d", f.LastStreamID(), p.theirs(1))
		}
		if _, err := p.conn.Open(t.Context(), get("/"), true); !errors.Is(err, h2.ErrDraining) {
			t.Errorf("Open = %v, want %v", err, h2.ErrDraining)
		}
		p.WriteHeaders(own.ID(), true, h2test.Response("503")...)
		own.Close()
		for i := range 2 {
			p.wantEcho(p.theirs(i), "a drain")
			p.WriteData(p.theirs(i), true, nil)
			p.WantData(p.theirs(i), nil, true, "the end")
		}
		p.Ignore(h2test.RSTStream)
		p.WritePing(false, [8]byte{})
		for !p.Broken() {
			p.Take()
			p.WritePing(false, [8]byte{})
			time.Sleep(time.Second)
		}
		if err := <-drained; err != nil {
			t.Errorf("Drain = %v, want nil", err)
		}
	})
}

// What the peer has not processed before its GOAWAY may be sent again, in either role.
func TestBidirectional_GoAwayReceived(t *testing.T) {
	runBoth(t, h2.Config{}, func(t *testing.T, p *bothPeer) {
		first, second := p.open(post("/"), false), p.open(post("/"), false)
		p.tunnel(p.theirs(0))
		p.WriteGoAway(first.ID(), h2test.NoError, "")
		var se *h2.StreamError
		if _, err := second.Response(t.Context()); !errors.As(err, &se) || se.Code != h2.RefusedStream {
			t.Errorf("Response = %v, want REFUSED_STREAM", err)
		}
		p.WriteHeaders(first.ID(), true, h2test.Response("200")...)
		wantStatus(t, first, 200)
		p.wantEcho(p.theirs(0), "GOAWAY ends no stream of its sender")
	})
}

// Without the field nothing of this is there, whatever the peer does.
func TestBidirectional_Off(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := server(t, nil)
		if _, err := p.conn.Open(t.Context(), get("/"), true); err == nil || p.conn.Slots() != 0 {
			t.Errorf("Open of a server = %v, and it has %d slots; want an error and none", err, p.conn.Slots())
		}
		c := client(t, &h2.Config{Handler: func(s *h2.Stream) { t.Error("a client was asked"); s.Close() }})
		if _, sent := c.Theirs[h2test.MaxConcurrentStreams]; sent {
			t.Error("a client that takes no streams announced how many")
		}
		c.WriteHeaders(2, true, h2test.Request("GET", "/")...)
		c.WantConnError("a server opens no stream", h2test.ProtocolError)
	})
}

// A large transfer each way at the same time: neither direction's window is spent by the other.
func TestBidirectional_BothWays(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := h2test.Pipe()
		cfg := h2.Config{Bidirectional: true, Handler: new(specPeer).handle}
		server, err := h2.NewServer(b, &cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		client, err := h2.NewClient(a, &cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		body := bytes.Repeat([]byte("both ways "), 200_000)
		ended := make(chan error, 2)
		for _, c := range []*h2.Conn{client, server} {
			go func() { ended <- echoThrough(t, c, body) }() // ends with the echo; waited for below
		}
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
}

// echoThrough sends body through a tunnel of c and checks that it comes back.
func echoThrough(t *testing.T, c *h2.Conn, body []byte) error {
	s, err := c.Open(t.Context(), connectTo("a:1"), false)
	if err != nil {
		return err
	}
	defer s.Close()
	wrote := make(chan error, 1)
	go func() { // ends with the body; waited for below
		_, err := s.Write(body)
		wrote <- errors.Join(err, s.CloseWrite())
	}()
	got, err := io.ReadAll(s)
	if err == nil && !bytes.Equal(got, body) {
		err = errors.New("what came back differs from what was sent")
	}
	return errors.Join(err, <-wrote)
}

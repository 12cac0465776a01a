package h2_test

import (
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"culvert/tunnel/h2"
	"culvert/tunnel/h2/h2test"
)

// Row 7: "do not send DATA <1 KiB when more is queued and the window is opening slowly" (CVE-2019-9511).
func TestLimits_TinyWindows(t *testing.T) {
	// dribble opens a window by an octet each millisecond for a second and returns what came.
	dribble := func(p *specPeer, id uint32) (frames, bytes int) {
		settle(p)
		for range 1000 {
			p.WriteWindowUpdate(id, 1)
			time.Sleep(time.Millisecond)
			for _, f := range settle(p) {
				if f.Type == h2test.Data {
					frames++
					bytes += len(f.Payload)
				}
			}
		}
		return frames, bytes
	}
	runCases(t, []specCase{
		{"of a stream", func(t *testing.T) {
			p := server(t, nil)
			p.WriteHeaders(1, true, h2test.Request("GET", "/bytes/200000")...)
			p.WriteWindowUpdate(0, 1<<20)
			if frames, bytes := dribble(p, 1); frames > 11 || bytes < 800 {
				t.Errorf("%d octets in %d frames within a second, want them in about ten", bytes, frames)
			}
		}},
		{"of the connection", func(t *testing.T) {
			p := server(t, nil, initialWindow(1<<20))
			p.WriteHeaders(1, true, h2test.Request("GET", "/bytes/200000")...)
			if frames, bytes := dribble(p, 0); frames > 11 || bytes < 800 {
				t.Errorf("%d octets in %d frames within a second, want them in about ten", bytes, frames)
			}
		}},
		{"that are all there ever was", func(t *testing.T) {
			p := server(t, nil, initialWindow(3))
			start := time.Now()
			p.WriteHeaders(1, true, h2test.Request("GET", "/bytes/9")...)
			p.WantHeaders(1, "the response", nil)
			for i := range 3 {
				p.WantData(1, make([]byte, 3), i == 2, "the whole window")
				p.WriteWindowUpdate(1, 3)
			}
			if d := time.Since(start); d != 0 {
				t.Errorf("it took %v, want no wait", d)
			}
		}},
		{"the last of many bytes does not wait", func(t *testing.T) {
			p := server(t, nil)
			start := time.Now()
			p.WriteWindowUpdate(0, 1<<20)
			p.WriteHeaders(1, true, h2test.Request("GET", "/bytes/65535")...)
			p.WantHeaders(1, "the response", nil)
			for got := 0; got < 65535; {
				f := p.WantFrame(h2test.Data, 1, "the content")
				got += len(f.Payload)
			}
			if d := time.Since(start); d != 0 {
				t.Errorf("it took %v, want no wait", d)
			}
		}},
		{"a peer that wants it all before it opens the window", func(t *testing.T) {
			p := server(t, nil)
			p.WriteWindowUpdate(0, 1<<20)
			p.WriteHeaders(1, true, h2test.Request("GET", "/bytes/200000")...)
			synctest.Wait()
			p.Ignore(h2test.Headers)
			for got := 0; got < 65535; {
				f := p.WantFrame(h2test.Data, 1, "the whole window is used, though its rest is tiny")
				got += len(f.Payload)
			}
		}},
	})
}

// A tunnel's bytes come from a socket: what is read of it follows the window.
func TestLimits_TinyWindowsFromASocket(t *testing.T) {
	near, far := loopback(t)
	defer far.Close()
	nc1, nc2 := loopback(t)
	done := make(chan error, 1)
	conn, err := h2.NewServer(nc2, &h2.Config{Handler: func(s *h2.Stream) {
		defer s.Close()
		s.Respond(&h2.Header{Status: 200}, false)
		_, err := s.ReadFrom(near)
		done <- err
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	p := h2test.NewClient(t, nc1)
	p.Handshake(initialWindow(2000))
	p.WriteHeaders(1, false, h2test.Connect("a:1")...)
	p.WantHeaders(1, "CONNECT is answered", map[string]string{":status": "200"})
	writeAll(t, far, strings.Repeat("x", 1500))
	p.WantData(1, []byte(strings.Repeat("x", 1500)), false, "it fits")
	writeAll(t, far, strings.Repeat("y", 300))
	p.WantData(1, []byte(strings.Repeat("y", 300)), false, "it fits what is left, 500, and is not held")
	writeAll(t, far, strings.Repeat("z", 3000)) // 200 are left
	synced := p.WantFrame(h2test.Data, 1, "after a moment the tiny rest is used")
	if len(synced.Payload) != 200 {
		t.Errorf("DATA with %d octets, want the 200 of the window", len(synced.Payload))
	}
	p.WriteWindowUpdate(1, 4000)
	p.WantData(1, []byte(strings.Repeat("z", 2800)), false, "the rest")
	far.Close()
	if err := <-done; err != nil {
		t.Errorf("ReadFrom = %v", err)
	}
}

func writeAll(t *testing.T, nc net.Conn, text string) {
	t.Helper()
	if _, err := nc.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

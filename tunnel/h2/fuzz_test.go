package h2_test

import (
	"bytes"
	"io"
	"testing"
	"time"

	"culvert/tunnel/h2"
	"culvert/tunnel/h2/h2test"

	"golang.org/x/net/http2/hpack"
)

// drained reads and drops what a connection sends until it is closed.
func drained(nc io.Reader) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(io.Discard, nc)
	}()
	return done
}

// fuzzRole feeds bytes to one role: whatever they are, the connection must take them without a panic and
// be gone after Close, with every buffer given back.
func fuzzRole(t *testing.T, prefix string, wire []byte, client bool) {
	near, far := h2test.Pipe()
	budget := h2.NewBudget(0)
	cfg := &h2.Config{Budget: budget, EnableConnectProtocol: true, EnablePush: true, CloseDelay: -1,
		Handler: func(s *h2.Stream) {
			defer s.Close()
			if s.Respond(&h2.Header{Status: 200}, false) == nil {
				io.Copy(s, s)
			}
		},
		OnPush: func(_ *h2.Stream, _ *h2.Header, p *h2.Stream) { p.Pipe(io.Discard, func(int64, error) { p.Close() }) }}
	start := h2.NewServer
	if client {
		start = h2.NewClient
	}
	c, err := start(near, cfg)
	if err != nil {
		t.Fatal(err)
	}
	gone := drained(far)
	if client {
		if s, err := c.Open(t.Context(), &h2.Header{Method: "GET", Scheme: "http", Authority: "a", Path: "/"}, true); err == nil {
			s.Pipe(io.Discard, func(int64, error) { s.Close() })
		}
	}
	io.WriteString(far, prefix)
	far.Write(wire)
	far.Close()
	c.Close()
	<-gone
	for end := time.Now().Add(10 * time.Second); budget.Used() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d bytes of buffers are still held", budget.Used())
		}
	}
}

const emptySettings = "\x00\x00\x00\x04\x00\x00\x00\x00\x00"

func seedFrames(f *testing.F) {
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, x := range []hpack.HeaderField{{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":authority", Value: "a"}, {Name: ":path", Value: "/"}} {
		enc.WriteField(x)
	}
	b := h2test.AppendFrame(nil, h2test.Headers, 0x4, 1, block.Bytes())
	f.Add(b)
	b = h2test.AppendFrame(b, h2test.Data, 0x8, 1, []byte("\x03data\x00\x00\x00"))
	b = h2test.AppendFrame(b, h2test.WindowUpdate, 0, 1, []byte{0, 0, 1, 0})
	b = h2test.AppendFrame(b, h2test.Data, 0x1, 1, nil)
	f.Add(b)
	f.Add(h2test.AppendFrame(b, h2test.RSTStream, 0, 1, []byte{0, 0, 0, 8}))
	f.Add(h2test.AppendFrame(nil, h2test.Settings, 0, 0, []byte{0, 4, 0, 0, 0, 0}))
	f.Add(h2test.AppendFrame(nil, h2test.Headers, 0, 1, block.Bytes()[:2]))
	f.Add(h2test.AppendFrame(nil, h2test.GoAway, 0, 0, make([]byte, 8)))
	block.Reset()
	enc.WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
	f.Add(h2test.AppendFrame(nil, h2test.Headers, 0x4, 1, block.Bytes()))
	f.Add(h2test.AppendFrame(nil, h2test.PushPromise, 0x4, 1, append([]byte{0, 0, 0, 2}, block.Bytes()...)))
}

func FuzzServer(f *testing.F) {
	seedFrames(f)
	f.Fuzz(func(t *testing.T, wire []byte) {
		fuzzRole(t, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"+emptySettings, wire, false)
	})
}

func FuzzClient(f *testing.F) {
	seedFrames(f)
	f.Fuzz(func(t *testing.T, wire []byte) { fuzzRole(t, emptySettings, wire, true) })
}

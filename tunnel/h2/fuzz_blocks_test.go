package h2_test

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"culvert/tunnel/h2"
	"culvert/tunnel/h2/h2test"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// fuzzServer starts the server role with this handler on one end of a pipe, whose other end has sent preface and
// SETTINGS.
func fuzzServer(t *testing.T, handler func(*h2.Stream)) (c *h2.Conn, far *h2test.Conn) {
	t.Helper()
	near, far := h2test.Pipe()
	c, err := h2.NewServer(near, &h2.Config{Handler: handler, CloseDelay: -1})
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(far, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"+emptySettings)
	return c, far
}

// endOf writes wire in pieces of the given size, and returns how the connection ended: the code, and by whom.
func endOf(t *testing.T, wire []byte, size int) (h2.ErrCode, h2.Origin) {
	t.Helper()
	c, far := fuzzServer(t, func(s *h2.Stream) {
		<-s.Conn().Done() // a handler that did more would race with the frames
		s.Close()
	})
	gone := drained(far)
	for piece := range slices.Chunk(wire, size) {
		far.Write(piece)
	}
	far.CloseWrite()
	<-c.Done()
	err := c.Err()
	c.Close()
	<-gone
	far.Close()
	var end *h2.ConnError
	if !errors.As(err, &end) {
		t.Fatalf("Err = %v, want a *ConnError", err)
	}
	return end.Code, end.By
}

// FuzzFrames: what frames mean does not depend on the pieces in which they arrive.
func FuzzFrames(f *testing.F) {
	seedFrames(f)
	b := h2test.AppendFrame(nil, h2test.Ping, 0, 0, make([]byte, 8))
	b = h2test.AppendFrame(b, h2test.Priority, 0, 1, []byte{0, 0, 0, 3, 0})
	b = h2test.AppendFrame(b, 0x42, 0, 0, []byte("unknown"))
	f.Add(h2test.AppendFrame(b, h2test.Continuation, 0, 1, nil))
	f.Add(h2test.AppendFrame(b, h2test.Data, 0x8, 1, []byte{9, 1}))
	f.Add(h2test.AppendFrame(b, h2test.WindowUpdate, 0, 0, []byte{0x7f, 0xff, 0xff, 0xff}))
	f.Fuzz(func(t *testing.T, wire []byte) {
		if len(wire) > 4<<10 {
			return
		}
		code, by := endOf(t, wire, len(wire)+1)
		for _, size := range []int{1, 7, 10} {
			if c, b := endOf(t, wire, size); c != code || b != by {
				t.Errorf("in pieces of %d the connection ended with %v by %v, in one with %v by %v", size, c, b, code, by)
			}
		}
	})
}

// blockEnd is what became of a header block.
type blockEnd struct {
	conn   h2.ErrCode // of GOAWAY
	stream h2.ErrCode // of RST_STREAM
	status string     // answered without the handler
	head   *h2.Header // as the handler got it
}

// sendBlock sends a block as HEADERS and CONTINUATION frames of the given size and tells what became of it.
func sendBlock(t *testing.T, block []byte, size int) (end blockEnd) {
	t.Helper()
	got := make(chan *h2.Header, 1)
	c, far := fuzzServer(t, func(s *h2.Stream) {
		got <- s.Request()
		s.Respond(&h2.Header{Status: 299}, true)
		s.Close()
	})
	defer c.Close()
	defer far.Close()
	out := http2.NewFramer(far, nil)
	first := min(size, len(block))
	out.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:first], EndStream: true, EndHeaders: first == len(block)})
	for rest := block[first:]; len(rest) > 0; {
		n := min(size, len(rest))
		out.WriteContinuation(1, n == len(rest), rest[:n])
		rest = rest[n:]
	}
	in := http2.NewFramer(nil, far)
	dec := hpack.NewDecoder(4096, nil)
	for {
		fr, err := in.ReadFrame()
		if err != nil {
			t.Fatalf("the connection ended without a word: %v, %v", err, c.Err())
		}
		switch fr := fr.(type) {
		case *http2.GoAwayFrame:
			end.conn = h2.ErrCode(fr.ErrCode)
			return end
		case *http2.RSTStreamFrame:
			end.stream = h2.ErrCode(fr.ErrCode)
			return end
		case *http2.HeadersFrame:
			fields, err := dec.DecodeFull(fr.HeaderBlockFragment())
			if err != nil {
				t.Fatal(err)
			}
			if end.status = fields[0].Value; end.status == "299" {
				end.head = <-got
				return end
			} else if end.status == "431" {
				return end // END_STREAM was sent, so that no RST_STREAM follows
			}
		}
	}
}

// FuzzHPACK: a header block that arrives in pieces gives the list, or the error, that x/net's decoder gives of
// the whole, and a list that may pass reaches the handler as it is.
func FuzzHPACK(f *testing.F) {
	var buf bytes.Buffer
	enc := hpack.NewEncoder(&buf)
	add := func(size uint8, fields ...string) {
		buf.Reset()
		for i := 0; i < len(fields); i += 2 {
			enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
		}
		f.Add(bytes.Clone(buf.Bytes()), size)
	}
	add(255, ":method", "CONNECT", ":authority", "10.0.0.1:80")
	add(9, ":method", "GET", ":scheme", "https", ":authority", "a", ":path", "/", "x", "y", "cookie", strings.Repeat("c", 200))
	add(1, ":method", "CONNECT", ":authority", "a:1", "baggage", "k=v")
	add(20, ":method", "GET", "Upper", "x")
	f.Add([]byte{0x3f, 0xe1, 0x1f, 0x82, 0x20, 0xbe}, uint8(2)) // table size updates, one of them late
	f.Add([]byte{0x82, 0x87, 0x84, 0x41, 0x01, 'a', 0x40, 0x81, 0xff, 0x01}, uint8(3))
	f.Add(append([]byte{0x40, 0x01, 'x', 0x7f, 0x81, 0x01}, strings.Repeat("v", 256)+strings.Repeat("\xbe", 500)...), uint8(100))
	f.Fuzz(func(t *testing.T, block []byte, size uint8) {
		if len(block) > 2<<10 {
			return
		}
		pieces := max(int(size), len(block)/(h2.DefaultMaxContinuations+1)+1) // within the limit of frames
		want, wantErr := hpack.NewDecoder(4096, nil).DecodeFull(block)
		end := sendBlock(t, block, pieces)
		decoded := 0
		for _, x := range want {
			decoded += int(x.Size())
		}
		switch {
		case wantErr != nil:
			if end.conn != h2.CompressionError && end.conn != h2.EnhanceYourCalm { // it may be too long before it is wrong
				t.Errorf("x/net says %v, and the connection ended with %+v", wantErr, end)
			}
		case decoded > h2.DefaultMaxDecodedBytes:
			if end.conn != h2.EnhanceYourCalm {
				t.Errorf("%d decoded bytes ended with %+v, want ENHANCE_YOUR_CALM", decoded, end)
			}
		case decoded > h2.DefaultMaxHeaderListBytes || len(want) > h2.DefaultMaxHeaderFields:
			if end.status != "431" {
				t.Errorf("%d fields of %d bytes ended with %+v, want 431", len(want), decoded, end)
			}
		case end.head != nil:
			compareHead(t, end.head, want)
		case end.stream != h2.ProtocolError:
			t.Errorf("%v ended with %+v, want the handler or PROTOCOL_ERROR", want, end)
		}
	})
}

// compareHead wants the fields in their order; that pseudo-header fields come first is checked before.
func compareHead(t *testing.T, h *h2.Header, want []hpack.HeaderField) {
	t.Helper()
	pseudo := map[string]string{":method": h.Method, ":scheme": h.Scheme, ":authority": h.Authority, ":path": h.Path, ":protocol": h.Protocol}
	var regular []hpack.HeaderField
	for _, x := range want {
		if !strings.HasPrefix(x.Name, ":") {
			regular = append(regular, x)
		} else if v, ok := pseudo[x.Name]; !ok || v != x.Value {
			t.Errorf("%s = %q, want %q", x.Name, v, x.Value)
		}
	}
	if !slices.Equal(h.Fields, regular) {
		t.Errorf("fields = %v, want %v", h.Fields, regular)
	}
}

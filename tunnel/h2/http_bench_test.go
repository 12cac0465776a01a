package h2_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"culvert/tunnel/h2"
	"culvert/tunnel/h2/h2test"

	"golang.org/x/net/http2/hpack"
)

// wireClient sends the same request again and again with next to no work of its own.
type wireClient struct {
	nc    net.Conn
	r     *bufio.Reader
	block []byte
	id    uint32
	out   []byte
	head  [9]byte
}

func newWireClient(b testing.TB, addr string) *wireClient {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { nc.Close() })
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range h2test.Fields(":method", "GET", ":scheme", "http", ":authority", "bench.example", ":path", "/") {
		f.Sensitive = true // not indexed: the block stays valid
		enc.WriteField(f)
	}
	c := &wireClient{nc: nc, r: bufio.NewReader(nc), block: block.Bytes(), id: 1}
	hello := []byte(h2test.Preface)
	hello = h2test.AppendFrame(hello, h2test.Settings, 0, 0, nil)
	hello = h2test.AppendFrame(hello, h2test.Settings, h2test.Ack, 0, nil)
	hello = h2test.AppendFrame(hello, h2test.WindowUpdate, 0, 0, binary.BigEndian.AppendUint32(nil, 1<<31-1-65535))
	nc.Write(hello)
	return c
}

// get sends a request and reads until its answer has ended.
func (c *wireClient) get(b testing.TB) {
	c.out = h2test.AppendFrame(c.out[:0], h2test.Headers, h2test.EndHeaders|h2test.EndStream, c.id, c.block)
	if _, err := c.nc.Write(c.out); err != nil {
		b.Fatal(err)
	}
	for {
		if _, err := io.ReadFull(c.r, c.head[:]); err != nil {
			b.Fatal(err)
		}
		n := int(c.head[0])<<16 | int(c.head[1])<<8 | int(c.head[2])
		c.r.Discard(n)
		switch t := h2test.FrameType(c.head[3]); {
		case t == h2test.RSTStream:
			b.Fatal("reset")
		case (t == h2test.Headers || t == h2test.Data) && c.head[4]&1 != 0:
			c.id += 2
			return
		case t == h2test.Ping && c.head[4]&1 == 0:
			c.nc.Write(h2test.AppendFrame(nil, h2test.Ping, h2test.Ack, 0, make([]byte, 8)))
		}
	}
}

// maxServeAllocs is what serving a small GET may allocate, the connection and what the handler itself does included.
// It is 21 (Go 1.26, amd64); net/http's server needs 34. Under the race detector pools lose some of what they hold.
const maxServeAllocs = 28

func TestHTTPServeAllocs(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		io.WriteString(w, "hello")
	})
	c := newWireClient(t, httpListen(t, &h2.Config{Handler: h2.HTTPHandler(h)}, false))
	if n := testing.AllocsPerRun(500, func() { c.get(t) }); n > maxServeAllocs {
		t.Errorf("serving a small GET = %v allocations, want at most %v", n, maxServeAllocs)
	}
}

// BenchmarkHTTPServer serves a small GET over loopback TCP without TLS; net/http's server beside ours.
func BenchmarkHTTPServer(b *testing.B) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		io.WriteString(w, "hello")
	})
	for _, ours := range []bool{true, false} {
		name := "ours"
		if !ours {
			name = "net http"
		}
		b.Run(name, func(b *testing.B) {
			var addr string
			if ours {
				addr = httpListen(b, &h2.Config{Handler: h2.HTTPHandler(h)}, false)
			} else {
				addr = httpGoServer(b, h, false)
			}
			c := newWireClient(b, addr)
			b.ReportAllocs()
			for b.Loop() {
				c.get(b)
			}
		})
	}
}

// BenchmarkRoundTrip sends a small request from our client, and from net/http's, to our server.
func BenchmarkRoundTrip(b *testing.B) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/plain")
		io.WriteString(w, "hello")
	})
	for _, k := range []struct {
		name string
		ours bool
		body string
	}{{"get ours", true, ""}, {"get net http", false, ""}, {"post ours", true, "some content"}, {"post net http", false, "some content"}} {
		b.Run(k.name, func(b *testing.B) {
			addr := httpListen(b, &h2.Config{Handler: h2.HTTPHandler(h)}, false)
			var rt http.RoundTripper = httpGoTransport(b, false)
			if k.ours {
				rt = httpDial(b, nil, addr, false)
			}
			b.ReportAllocs()
			for b.Loop() {
				req, _ := http.NewRequest("GET", "http://"+addr, nil)
				if k.body != "" {
					req, _ = http.NewRequest("POST", "http://"+addr, strings.NewReader(k.body))
				}
				resp, err := rt.RoundTrip(req)
				if err != nil {
					b.Fatal(err)
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
}

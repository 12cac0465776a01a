package ingress

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"culvert/tunnel"
)

// arriving is a connection on which bytes arrive some at a time.
type arriving struct {
	net.Conn
	rest []byte
	some int
}

func (a *arriving) Read(p []byte) (int, error) {
	if len(a.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p, a.rest[:min(a.some, len(a.rest))])
	a.rest = a.rest[n:]
	return n, nil
}

func (a *arriving) SetReadDeadline(time.Time) error { return nil }

// FuzzGuard has net/http read what the guard lets through, and wants both to see the same messages: when net/http has read a head or
// a body to its end, nothing that the guard gave with it may be left, which would be the next request to one of them only.
func FuzzGuard(f *testing.F) {
	for _, text := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nTrailer: 1\r\n\r\n\r\nHEAD / HTTP/1.0\r\n\r\n",
		"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFF\r\n",
		"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x00",
		"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\nOPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
		"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
		"GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n",
		"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nTrailer: A\r\n\r\nGET / HTTP/1.1\n\n",
	} {
		f.Add([]byte(text), byte(7))
		f.Add([]byte(text), byte(255))
	}
	f.Fuzz(func(t *testing.T, data []byte, some byte) {
		g := &guard{Conn: &arriving{rest: data, some: int(some) + 1}, max: 1 << 10}
		br := bufio.NewReader(g)
		for n := int64(1); ; n++ {
			r, err := http.ReadRequest(br)
			if err != nil {
				return // net/http answers, and closes
			}
			if g.faultAt.Load() == n {
				if r.Host != "refused.invalid" || g.faultOf(n) == nil {
					t.Fatalf("in the place of a refused head net/http sees %q", r.Host)
				}
				if rest, err := io.ReadAll(br); len(rest) > 0 || err != nil {
					t.Fatalf("after a refusal net/http is given %q, %v", rest, err)
				}
				return
			}
			if g.heads != n || br.Buffered() > 0 {
				t.Fatalf("%d heads let through, net/http has read %d and has %d bytes more\n%q", g.heads, n, br.Buffered(), data)
			}
			if g.switchAt.Load() == n {
				if r.ContentLength != 0 {
					t.Fatalf("a request that switches protocols has a body of %d bytes to net/http", r.ContentLength)
				}
				return
			}
			if chunked := len(r.TransferEncoding) > 0; chunked != (g.state == guardChunked) || !chunked && g.state == guardLength && r.ContentLength != g.left || g.state == guardHead && r.ContentLength != 0 {
				t.Fatalf("net/http sees a body of %d bytes, %v; the guard has state %d and %d bytes left\n%q", r.ContentLength, r.TransferEncoding, g.state, g.left, data)
			}
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				return // it broke off, or is malformed
			}
			if g.body.Load() != nil {
				t.Fatalf("the guard refuses the body, %v, and net/http takes it\n%q", *g.body.Load(), data)
			}
			if br.Buffered() > 0 || g.state != guardHead {
				t.Fatalf("net/http has read a body, and has %d bytes more; the guard has state %d\n%q", br.Buffered(), g.state, data)
			}
		}
	})
}

// FuzzProtocolOf wants that more bytes never change what a connection was found to speak.
func FuzzProtocolOf(f *testing.F) {
	for _, text := range []string{preface, "PRI * HTTP/1.1\r\n", "GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x00\x05hello", "SSH-2.0-x\r\n", "\x00", "PRI"} {
		f.Add([]byte(text), byte(15))
	}
	all := []string{tunnel.IngressTCP, tunnel.IngressTLS, tunnel.IngressHTTP, tunnel.IngressH2C}
	f.Fuzz(func(t *testing.T, data []byte, which byte) {
		s := new(Server)
		for i, p := range all {
			if which>>i&1 != 0 {
				s.protocols = append(s.protocols, p)
			}
		}
		found := isMore
		for n := range len(data) + 1 {
			what := s.protocolOf(data[:n])
			if found != isMore && what != found {
				t.Fatalf("%q is %d, and %q is %d", data[:n-1], found, data[:n], what)
			}
			if found = what; found == isHTTP1 && s.speaks(tunnel.IngressH2C) && bytes.HasPrefix(data, []byte(preface)) {
				t.Fatalf("the preface of HTTP/2 is taken for HTTP/1.1 at %q", data[:n])
			}
			if what == isMore && n > len(preface) {
				t.Fatalf("%d bytes do not suffice", n)
			}
		}
	})
}

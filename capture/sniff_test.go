package capture

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// clientHello is what crypto/tls sends first.
func clientHello(t testing.TB, cfg *tls.Config) []byte {
	t.Helper()
	client, server := net.Pipe()
	go func() { // ends when server is closed below
		_ = tls.Client(client, cfg).Handshake()
		client.Close()
	}()
	head := make([]byte, 5)
	if _, err := io.ReadFull(server, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, binary.BigEndian.Uint16(head[3:]))
	if _, err := io.ReadFull(server, body); err != nil {
		t.Fatal(err)
	}
	server.Close()
	return append(head, body...)
}

// records splits a handshake message over TLS records of n bytes.
func records(hello []byte, n int) []byte {
	var out []byte
	for body := hello[5:]; len(body) > 0; body = body[min(n, len(body)):] {
		piece := body[:min(n, len(body))]
		out = append(out, hello[0], hello[1], hello[2], byte(len(piece)>>8), byte(len(piece)))
		out = append(out, piece...)
	}
	return out
}

// request2 is what a client of HTTP/2 with prior knowledge sends first.
func request2(t testing.TB, pieces int, fields ...string) []byte {
	t.Helper()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for i := 0; i < len(fields); i += 2 {
		if err := enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}); err != nil {
			t.Fatal(err)
		}
	}
	out := bytes.NewBufferString(http2.ClientPreface)
	fr := http2.NewFramer(out, nil)
	b := block.Bytes()
	first := len(b) / pieces
	for _, err := range []error{
		fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20}), fr.WriteWindowUpdate(0, 1<<20),
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:first], EndHeaders: pieces == 1, PadLength: 7,
			Priority: http2.PriorityParam{Weight: 3}}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := 1; i < pieces; i++ {
		piece := b[i*first : (i+1)*first]
		if i == pieces-1 {
			piece = b[i*first:]
		}
		if err := fr.WriteContinuation(1, i == pieces-1, piece); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

func TestNameIn(t *testing.T) {
	hello := clientHello(t, &tls.Config{ServerName: "Shop.example.com"})
	for _, tt := range []struct {
		name string
		b    []byte
		want string
		more bool
	}{
		{"TLS", hello, "shop.example.com", false},
		{"TLS in records of 100 bytes", records(hello, 100), "shop.example.com", false},
		{"TLS in records of 1 byte", records(hello, 1), "shop.example.com", false},
		{"TLS with data behind", append(bytes.Clone(hello), "\x14\x03\x03\x00\x01\x01"...), "shop.example.com", false},
		{"TLS without a name", clientHello(t, &tls.Config{InsecureSkipVerify: true}), "", false},
		{"TLS, half of it", hello[:len(hello)/2], "", true},
		{"TLS, its first byte", hello[:1], "", true},
		{"another message of TLS", []byte("\x16\x03\x03\x00\x04\x02\x00\x00\x00"), "", false},
		{"a record of another version", []byte("\x16\x02\x00\x00\x04\x01\x00\x00\x00"), "", false},
		{"an empty record", []byte("\x16\x03\x01\x00\x00"), "", false},
		{"a ClientHello that is too long", []byte("\x16\x03\x01\x40\x00\x01\xff\xff\xff"), "", false},
		{"a ClientHello cut short inside", []byte("\x16\x03\x01\x00\x06\x01\x00\x00\x02\x03\x03"), "", false},

		{"HTTP/1.1", []byte("GET / HTTP/1.1\r\nAccept: */*\r\nhOSt: Shop.example.com:8080\r\n\r\n"), "shop.example.com", false},
		{"HTTP/1.0 with a host", []byte("GET / HTTP/1.0\r\nHost: shop.example.com\r\n\r\n"), "shop.example.com", false},
		{"bare line feeds", []byte("GET / HTTP/1.1\nHost: shop.example.com\n\n"), "shop.example.com", false},
		{"absolute form", []byte("GET http://shop.example.com:80/x HTTP/1.1\r\nHost: other\r\n\r\n"), "shop.example.com", false},
		{"an extension method", []byte("M-SEARCH * HTTP/1.1\r\nHost: shop.example.com\r\n\r\n"), "shop.example.com", false},
		{"no host", []byte("GET / HTTP/1.0\r\n\r\n"), "", false},
		{"two hosts", []byte("GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n"), "", false},
		{"an address", []byte("GET / HTTP/1.1\r\nHost: 192.0.2.1:80\r\n\r\n"), "", false},
		{"an IPv6 address", []byte("GET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n"), "", false},
		{"a number", []byte("GET / HTTP/1.1\r\nHost: 2130706433\r\n\r\n"), "", false},
		{"a name that is none", []byte("GET / HTTP/1.1\r\nHost: a b\r\n\r\n"), "", false},
		{"half a head", []byte("GET / HTTP/1.1\r\nHost: shop.example.com\r\n"), "", true},
		{"half a request line", []byte("GET /very/long"), "", true},
		{"a field that is none", []byte("GET / HTTP/1.1\r\nno field\r\n\r\n"), "", false},

		{"HTTP/2", request2(t, 1, ":method", "GET", ":scheme", "http", ":authority", "Shop.example.com:8080", ":path", "/"), "shop.example.com", false},
		{"HTTP/2 with a host field", request2(t, 1, ":method", "GET", ":scheme", "http", ":path", "/", "host", "shop.example.com"), "shop.example.com", false},
		{"HTTP/2 with CONTINUATION", request2(t, 3, ":method", "GET", ":authority", "shop.example.com", ":path", "/", "cookie", "a=b"), "shop.example.com", false},
		{"HTTP/2 with nothing", request2(t, 1, ":method", "GET"), "", false},
		{"HTTP/2, half the preface", []byte(http2.ClientPreface[:10]), "", true},
		{"HTTP/2, only the preface", []byte(http2.ClientPreface), "", true},
		{"HTTP/2 with a huge frame", []byte(http2.ClientPreface + "\xff\xff\xff\x01\x04\x00\x00\x00\x01"), "", false},
		{"HTTP/2 with a broken block", []byte(http2.ClientPreface + "\x00\x00\x01\x01\x04\x00\x00\x00\x01\xff"), "", false},
		{"HTTP/2 with too much padding", []byte(http2.ClientPreface + "\x00\x00\x01\x01\x0c\x00\x00\x00\x01\x09"), "", false},
		{"HTTP/2 with a frame between", []byte(http2.ClientPreface + "\x00\x00\x01\x01\x00\x00\x00\x00\x01\x82\x00\x00\x00\x04\x00\x00\x00\x00\x00"), "", false},

		{"nothing", nil, "", true},
		{"SSH", []byte("SSH-2.0-OpenSSH_9.2\r\n"), "", false},
		{"SMTP", []byte("EHLO client.example\r\n"), "", false},
		{"PostgreSQL", []byte("\x00\x00\x00\x08\x04\xd2\x16\x2f"), "", false},
		{"64 KB of garbage", bytes.Repeat([]byte{0xa5}, 64<<10), "", false},
		{"64 KB of letters", bytes.Repeat([]byte("A"), 64<<10), "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got, more := nameIn(tt.b); got != tt.want || more != tt.more {
				t.Errorf("nameIn = %q, %v, want %q, %v", got, more, tt.want, tt.more)
			}
			if tt.want == "" {
				return
			}
			// However little has come, it is waited for.
			for n := range tt.b {
				got, more := nameIn(tt.b[:n])
				if got == "" && !more || got != "" && got != tt.want {
					t.Fatalf("nameIn of the first %d of %d bytes = %q, %v", n, len(tt.b), got, more)
				}
				if got != "" {
					break
				}
			}
		})
	}
}

// TestSniff leaves all bytes to the flow, and gives up in time.
func TestSniff(t *testing.T) {
	hello := string(clientHello(t, &tls.Config{ServerName: "shop.example.com"}))
	for _, tt := range []struct {
		name    string
		says    []string // in pieces, one after the other
		want    string
		timeout time.Duration
	}{
		{"at once", []string{hello}, "shop.example.com", patience},
		{"in segments", []string{hello[:3], hello[3:100], hello[100:]}, "shop.example.com", patience},
		{"and more", []string{"GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n", "body"}, "shop.example.com", patience},
		{"SSH", []string{"SSH-2.0-OpenSSH_9.2\r\n"}, "", patience},
		{"silence", nil, "", 10 * time.Millisecond},
		{"a beginning", []string{hello[:100]}, "", 10 * time.Millisecond},
		{"64 KB of garbage", []string{strings.Repeat("\xa5", 64<<10)}, "", patience},
		{"a head without end", []string{"GET / HTTP/1.1\r\n" + strings.Repeat("A: b\r\n", 10<<10)}, "", patience},
	} {
		for _, kind := range []struct {
			name  string
			pair  func(testing.TB) (client, server net.Conn)
			ahead int // bytes that the way had read
		}{{"socket", tcpPair, 0}, {"memory", pipePair, 0}, {"read ahead", tcpPair, 5}} {
			t.Run(tt.name+"/"+kind.name, func(t *testing.T) {
				client, srv := kind.pair(t)
				all := strings.Join(tt.says, "")
				c := &Conn{Conn: srv, Way: WayTProxy}
				if kind.ahead > 0 && len(all) >= kind.ahead {
					c.ahead = []byte(all[:kind.ahead])
				}
				skip := len(c.ahead)
				go func() { // ends when all is read, which it is below
					for _, piece := range tt.says {
						n := min(skip, len(piece))
						skip -= n
						_, _ = io.WriteString(client, piece[n:])
					}
					if w, ok := client.(interface{ CloseWrite() error }); ok {
						_ = w.CloseWrite()
					} else {
						_ = client.Close()
					}
				}()
				if got, isTLS := Sniff(c, tt.timeout); got != tt.want || isTLS != (got != "" && all[0] == 22) {
					t.Errorf("Sniff = %q, %v, want %q", got, isTLS, tt.want)
				}
				got, err := io.ReadAll(c)
				if string(got) != all || err != nil {
					t.Errorf("the flow has %d bytes, %v, want %d", len(got), err, len(all))
				}
			})
		}
	}
}

func FuzzNameIn(f *testing.F) {
	f.Add(clientHello(f, &tls.Config{ServerName: "shop.example.com"}))
	f.Add(records(clientHello(f, &tls.Config{ServerName: "shop.example.com"}), 7))
	f.Add([]byte("GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n"))
	f.Add([]byte("GET http://[::1]:80/ HTTP/1.1\r\n\r\n"))
	f.Add(request2(f, 1, ":authority", "shop.example.com"))
	f.Add(request2(f, 2, ":method", "GET", "host", "shop.example.com"))
	f.Fuzz(func(t *testing.T, b []byte) {
		name, more := nameIn(b)
		if name != "" {
			if again, err := parseName(name); more || err != nil || again != name {
				t.Errorf("nameIn = %q, %v", name, more)
			}
			return
		}
		if !more && len(b) > 0 { // what is given up is given up for good
			if name, more := nameIn(append(bytes.Clone(b), "\r\n\r\n"...)); name != "" || more {
				t.Errorf("more bytes make it %q, %v", name, more)
			}
		}
	})
}

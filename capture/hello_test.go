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
)

// withExtension adds an extension to a ClientHello in one record.
func withExtension(hello []byte, kind uint16, data []byte) []byte {
	const lengthAt = tlsRecordHeader + tlsMessageHeader + tlsVersionBytes + tlsRandomBytes
	b := bytes.Clone(hello)
	at := lengthAt + 1 + int(b[lengthAt])             // behind the session ID
	at += 2 + int(binary.BigEndian.Uint16(b[at:]))    // cipher suites
	at += 1 + int(b[at])                              // compression methods
	extensions := binary.BigEndian.Uint16(b[at:])     // their length
	extra := binary.BigEndian.AppendUint16(nil, kind) // at the end
	extra = binary.BigEndian.AppendUint16(extra, uint16(len(data)))
	extra = append(extra, data...)
	binary.BigEndian.PutUint16(b[at:], extensions+uint16(len(extra)))
	b = append(b, extra...)
	n := len(b) - tlsRecordHeader
	binary.BigEndian.PutUint16(b[3:], uint16(n))
	n -= tlsMessageHeader
	b[6], b[7], b[8] = byte(n>>16), byte(n>>8), byte(n)
	return b
}

func TestPeekHello(t *testing.T) {
	hello := clientHello(t, &tls.Config{ServerName: "Outbound_.80_._.shop.example.com"})
	const name = "outbound_.80_._.shop.example.com"
	named := func(s string) []byte { return clientHello(t, &tls.Config{ServerName: s, InsecureSkipVerify: true}) }
	for _, tt := range []struct {
		name    string
		says    []byte
		ok      bool
		want    string
		timeout time.Duration
	}{
		{"a name", hello, true, name, patience},
		{"in records of one byte", records(hello, 1), true, name, patience},
		{"with ECH GREASE", withExtension(hello, 0xfe0d, bytes.Repeat([]byte{0xa5}, 200)), true, name, patience},
		{"with an unknown extension", withExtension(hello, 0x1a1a, nil), true, name, patience},
		{"no name", named(""), true, "", patience},
		{"an address", withExtension(named(""), 0, []byte("\x00\x0c\x00\x00\x0910.0.0.10")), true, "", patience},
		{"no name at all", withExtension(named(""), 0, []byte("\x00\x0c\x00\x00\x09a b.c.d.e")), true, "", patience},
		{"a name cut short", withExtension(named(""), 0, []byte("\x00\x0c\x00\x00\xff")), true, "", patience},
		{"without extensions", []byte("\x16\x03\x01\x00\x2d\x01\x00\x00\x29\x03\x03" + strings.Repeat("r", 32) + "\x00\x00\x02\x13\x01\x01\x00"), true, "", patience},
		{"too short for a random", []byte("\x16\x03\x01\x00\x08\x01\x00\x00\x04\x03\x03ab"), false, "", patience},
		{"a beginning", hello[:100], false, "", 10 * time.Millisecond},
		{"silence", nil, false, "", 10 * time.Millisecond},
		{"endless", append([]byte("\x16\x03\x01\x40\x00\x01\x00\x3f\xfc"), make([]byte, 64<<10)...), false, "", patience},
		{"longer than is looked at", []byte("\x16\x03\x01\x40\x00\x01\x00\xff\xff\x03\x03"), false, "", patience},
		{"HTTP", []byte("GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n"), false, "", patience},
		{"an alert", []byte("\x15\x03\x01\x00\x02\x02\x28"), false, "", patience},
	} {
		for kind, pair := range map[string]func(testing.TB) (client, server net.Conn){"socket": tcpPair, "memory": pipePair} {
			t.Run(tt.name+"/"+kind, func(t *testing.T) {
				client, srv := pair(t)
				c := &Conn{Conn: srv, Way: WayTProxy}
				go func() { // ends when all is read, which it is below
					_, _ = client.Write(tt.says)
					if w, ok := client.(interface{ CloseWrite() error }); ok {
						_ = w.CloseWrite()
					} else {
						_ = client.Close()
					}
				}()
				got, ok := PeekHello(c, tt.timeout)
				if ok != tt.ok || got.ServerName != tt.want {
					t.Errorf("PeekHello = %q, %v, want %q, %v", got.ServerName, ok, tt.want, tt.ok)
				}
				if ok && !bytes.Contains(bytes.ReplaceAll(tt.says, []byte("\x16\x03\x01\x00\x01"), nil), got.Random[:]) {
					t.Errorf("random %x is not what was sent", got.Random)
				}
				if all, err := io.ReadAll(c); !bytes.Equal(all, tt.says) || err != nil {
					t.Errorf("the flow has %d bytes, %v, want %d", len(all), err, len(tt.says))
				}
			})
		}
	}
}

package capture

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2/hpack"
)

const (
	// SniffTimeout is how long the first bytes of an app are waited for by default: many times what an app on this host
	// takes, and little for one that waits for the server to speak first.
	SniffTimeout = 200 * time.Millisecond
	// maxSniffBytes is how much is looked at: a ClientHello with certificates of its time to come, or the head of a
	// request with many cookies.
	maxSniffBytes = 16 << 10
)

// Values of TLS (RFC 8446, sections 4 and 5; RFC 6066, section 3).
const (
	tlsHandshake     = 22
	tlsClientHello   = 1
	tlsRecordHeader  = 5
	tlsMessageHeader = 4
	tlsMaxRecord     = 1<<14 + 256
	tlsServerName    = 0
	tlsHostName      = 0
	tlsVersionBytes  = 2
	tlsRandomBytes   = 32
)

// Values of HTTP/2 (RFC 9113, sections 3.4, 4.1 and 6.2).
const (
	http2Preface      = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	http2FrameHeader  = 9
	http2Headers      = 1
	http2Continuation = 9
	http2EndHeaders   = 0x4
	http2Padded       = 0x8
	http2Priority     = 0x20
	http2Table        = 4096 // SETTINGS_HEADER_TABLE_SIZE before either side has said otherwise
)

// Sniff finds out what name the app on the other end of c wants to reach, from the first bytes that it sends: the server
// name of TLS (with ECH, the outer one), or the host of a request of HTTP/1 or of HTTP/2 with prior knowledge. The bytes
// stay where they are, in the socket if that can be looked into, else in c. It waits for at most timeout, and for no more
// than 16 KiB; apps that wait for their server to speak first cost that time. "" is returned where no name is found, and
// then whatever came is the flow's as it is; isTLS tells that the name is the server name of TLS. Not to be called at the
// same time as Read.
//
// What an app says is not what it does: a flow that was let pass because of a name must go to that name, and not to the
// address that it was caught with.
func Sniff(c *Conn, timeout time.Duration) (name string, isTLS bool) {
	c.lookAhead(timeout, func(b []byte) (more bool) {
		name, more = nameIn(b)
		isTLS = name != "" && b[0] == tlsHandshake
		return more
	})
	return name, isTLS
}

// Hello is what a TLS client says first, and in plain text (RFC 8446, section 4.1.2).
type Hello struct {
	// ServerName is the name that it wants, in lower case; "" where it says none, an address, or what is no name.
	ServerName string
	// Random is the client's, which tells one connection from every other.
	Random [tlsRandomBytes]byte
}

// PeekHello looks at the ClientHello on c, and leaves it there as Sniff does, within the same bounds. ok is false where none
// came in time, or something else.
func PeekHello(c *Conn, timeout time.Duration) (h Hello, ok bool) {
	c.lookAhead(timeout, func(b []byte) (more bool) {
		if len(b) == 0 {
			return true
		}
		body, more := helloIn(b)
		if body == nil {
			return more
		}
		if ok = len(body) >= tlsVersionBytes+tlsRandomBytes; ok {
			copy(h.Random[:], body[tlsVersionBytes:])
			h.ServerName = usable(serverName(body))
		}
		return false
	})
	return h, ok
}

// lookAhead calls look with the first bytes of c, again each time that more have come, until look wants no more, 16 KiB are
// there or the time is over. They stay where they are.
func (c *Conn) lookAhead(timeout time.Duration, look func([]byte) (more bool)) {
	if c.SetReadDeadline(time.Now().Add(timeout)) != nil {
		return // it is closed
	}
	defer c.SetReadDeadline(time.Time{})
	buf := sniffBuffers.Get().(*[]byte)
	defer sniffBuffers.Put(buf)
	bounded := func(b []byte) bool { return look(b) && len(b) < maxSniffBytes }
	if len(c.ahead) == 0 && peek(c.Conn, *buf, bounded) {
		return
	}
	b := append((*buf)[:0], c.ahead...)
	for len(b) < maxSniffBytes && bounded(b) {
		n, err := c.Conn.Read((*buf)[len(b):])
		b = (*buf)[:len(b)+n]
		if err != nil { // it will be told again
			_ = look(b)
			break
		}
	}
	c.ahead = bytes.Clone(b)
}

// sniffBuffers holds *[]byte of maxSniffBytes.
var sniffBuffers = sync.Pool{New: func() any { b := make([]byte, maxSniffBytes); return &b }}

// nameIn returns the name in the first bytes of a connection. more: there is none yet, and further bytes could have
// it.
func nameIn(b []byte) (name string, more bool) {
	switch {
	case len(b) == 0:
		return "", true
	case b[0] == tlsHandshake:
		name, more = nameInTLS(b)
	case len(b) < len(http2Preface) && strings.HasPrefix(http2Preface, string(b)):
		return "", true
	case bytes.HasPrefix(b, []byte(http2Preface)):
		name, more = nameInHTTP2(b[len(http2Preface):])
	default:
		name, more = nameInHTTP1(b)
	}
	if name == "" {
		return "", more
	}
	return usable(name), false
}

// usable returns what an app says is a name in the one spelling that names have here, "" where it is none. An address says
// nothing new.
func usable(name string) string {
	if _, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil || name == "" {
		return ""
	}
	host, err := parseName(name)
	if err != nil {
		return ""
	}
	return host
}

// nameInTLS returns the server name of a ClientHello.
func nameInTLS(b []byte) (name string, more bool) {
	body, more := helloIn(b)
	if body == nil {
		return "", more
	}
	return serverName(body), false
}

// helloIn returns the body of a ClientHello, which may be split over records; nil: it is none, or more of it has to come.
func helloIn(b []byte) (body []byte, more bool) {
	hello := make([]byte, 0, 2048)
	for {
		if len(b) < tlsRecordHeader {
			return nil, len(b) < 2 || b[0] == tlsHandshake && b[1] == 3
		}
		n := int(binary.BigEndian.Uint16(b[3:]))
		if b[0] != tlsHandshake || b[1] != 3 || n == 0 || n > tlsMaxRecord {
			return nil, false
		}
		b = b[tlsRecordHeader:]
		hello = append(hello, b[:min(n, len(b))]...)
		if len(hello) > 0 && hello[0] != tlsClientHello {
			return nil, false
		}
		if len(hello) >= tlsMessageHeader {
			size := int(hello[1])<<16 | int(hello[2])<<8 | int(hello[3])
			if size > maxSniffBytes {
				return nil, false
			}
			if body := hello[tlsMessageHeader:]; len(body) >= size {
				return body[:size], false
			}
		}
		if len(b) < n {
			return nil, true
		}
		b = b[n:]
	}
}

// field takes a vector off b whose length is in the given number of bytes.
func field(b []byte, sizeBytes int) (v, rest []byte, ok bool) {
	if len(b) < sizeBytes {
		return nil, nil, false
	}
	n := 0
	for _, c := range b[:sizeBytes] {
		n = n<<8 | int(c)
	}
	b = b[sizeBytes:]
	if len(b) < n {
		return nil, nil, false
	}
	return b[:n], b[n:], true
}

// serverName returns the server name in the body of a ClientHello, "" if it has none.
func serverName(b []byte) string {
	const fixed = tlsVersionBytes + tlsRandomBytes
	if len(b) < fixed {
		return ""
	}
	_, b, ok := field(b[fixed:], 1) // session ID
	if ok {
		_, b, ok = field(b, 2) // cipher suites
	}
	if ok {
		_, b, ok = field(b, 1) // compression methods
	}
	var extensions []byte
	if ok {
		extensions, _, ok = field(b, 2)
	}
	for ok && len(extensions) >= 2 {
		kind := binary.BigEndian.Uint16(extensions)
		var data []byte
		if data, extensions, ok = field(extensions[2:], 2); !ok || kind != tlsServerName {
			continue
		}
		list, _, _ := field(data, 2)
		if len(list) == 0 || list[0] != tlsHostName {
			return ""
		}
		name, _, _ := field(list[1:], 2)
		return string(name)
	}
	return ""
}

// nameInHTTP1 returns the host that a request of HTTP/1 is for (RFC 9112, section 3.2): that of a target in absolute
// form, else of the one Host field.
func nameInHTTP1(b []byte) (name string, more bool) {
	line, rest, complete := bytes.Cut(b, []byte("\n"))
	if !complete {
		return "", mayBeRequest(b)
	}
	parts := strings.Split(strings.TrimSuffix(string(line), "\r"), " ")
	if len(parts) != 3 || !isToken(parts[0]) || !strings.HasPrefix(parts[2], "HTTP/1.") {
		return "", false
	}
	if _, after, absolute := strings.Cut(parts[1], "://"); absolute {
		authority, _, _ := strings.Cut(after, "/")
		authority, _, _ = strings.Cut(authority, "?")
		return withoutPort(authority), false
	}
	for {
		line, rest, complete = bytes.Cut(rest, []byte("\n"))
		if !complete {
			return "", true // a second Host may come
		}
		text := strings.TrimSuffix(string(line), "\r")
		if text == "" {
			return name, false
		}
		key, value, ok := strings.Cut(text, ":")
		switch {
		case !ok || !isToken(key):
			return "", false
		case !strings.EqualFold(key, "host"):
		case name != "":
			return "", false
		default:
			name = withoutPort(strings.Trim(value, " \t"))
		}
	}
}

// mayBeRequest reports whether b may be the beginning of a request line.
func mayBeRequest(b []byte) bool {
	method, _, complete := bytes.Cut(b, []byte(" "))
	const longest = 32 // of the methods that there are, and some
	return len(method) <= longest && isToken(string(method)) || complete && isToken(string(method))
}

// isToken reports whether s is a token (RFC 9110, section 5.6.2).
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("!#$%&'*+-.^_`|~", r))
	})
}

// withoutPort takes the port off host:port.
func withoutPort(s string) string {
	if host, _, err := net.SplitHostPort(s); err == nil {
		return host
	}
	return s
}

// nameInHTTP2 returns the authority of the first request behind the preface.
func nameInHTTP2(b []byte) (name string, more bool) {
	var block []byte
	for {
		if len(b) < http2FrameHeader {
			return "", true
		}
		n := int(b[0])<<16 | int(b[1])<<8 | int(b[2])
		kind, flags := b[3], b[4]
		if n > maxSniffBytes {
			return "", false
		}
		if len(b) < http2FrameHeader+n {
			return "", true
		}
		payload := b[http2FrameHeader : http2FrameHeader+n]
		b = b[http2FrameHeader+n:]
		switch {
		case kind == http2Headers && block == nil:
			if block = headerFragment(payload, flags); block == nil {
				return "", false
			}
		case kind == http2Continuation && block != nil:
			block = append(block[:len(block):len(block)], payload...)
		case block != nil:
			return "", false // nothing comes between (RFC 9113, section 6.10)
		}
		if block != nil && flags&http2EndHeaders != 0 {
			return authorityIn(block), false
		}
	}
}

// headerFragment is the field block of a HEADERS frame without padding and priority; nil where the frame is broken.
func headerFragment(p []byte, flags byte) []byte {
	padding := 0
	if flags&http2Padded != 0 {
		if len(p) < 1 {
			return nil
		}
		padding, p = int(p[0]), p[1:]
	}
	if flags&http2Priority != 0 {
		const priorityBytes = 5
		if len(p) < priorityBytes {
			return nil
		}
		p = p[priorityBytes:]
	}
	if padding > len(p) {
		return nil
	}
	return p[: len(p)-padding : len(p)-padding]
}

// authorityIn returns :authority of a field block, or its host field (RFC 9113, section 8.3.1).
func authorityIn(block []byte) string {
	var authority, host string
	d := hpack.NewDecoder(http2Table, func(f hpack.HeaderField) {
		switch f.Name {
		case ":authority":
			authority = f.Value
		case "host":
			host = f.Value
		}
	})
	d.SetMaxStringLength(maxSniffBytes)
	if _, err := d.Write(block); err != nil || d.Close() != nil {
		return ""
	}
	if authority == "" {
		authority = host
	}
	return withoutPort(authority)
}

package attack

import (
	"strings"

	"golang.org/x/net/http2"
)

// Head is a request that must not pass. It ends its stream and nothing else: the connection, and the
// tunnels on it, live on.
type Head struct {
	Row    int
	Name   string
	Fields []string // names and values
	End    bool     // with END_STREAM
	Then   func(p *Peer, id uint32) error
	Status string // the answer that may come instead of, or before, RST_STREAM; "": none
	// Answered tells that the request is well formed, and that its answer is all the refusal there is.
	Answered bool
}

// Heads are requests that RFC 9113 calls malformed, or too large, and frames that a tunnel must not carry.
func Heads() []Head {
	connect := func(more ...string) []string {
		return append([]string{":method", "CONNECT", ":authority", "127.0.0.1:9"}, more...)
	}
	post := func(more ...string) []string {
		return append([]string{":method", "POST", ":scheme", "https", ":authority", "a", ":path", "/"}, more...)
	}
	list := []Head{
		{Row: 17, Name: "CONNECT with :scheme", Fields: connect(":scheme", "https")},
		{Row: 17, Name: "CONNECT with :path", Fields: connect(":path", "/")},
		{Row: 17, Name: "CONNECT with an empty :path", Fields: connect(":path", "")},
		{Row: 17, Name: "CONNECT without :authority", Fields: []string{":method", "CONNECT"}},
		{Row: 17, Name: "CONNECT to nowhere", Fields: []string{":method", "CONNECT", ":authority", ""}},
		{Row: 17, Name: "extended CONNECT", Fields: connect(":scheme", "https", ":path", "/", ":protocol", "websocket"), Status: "400", Answered: true},
		{Row: 18, Name: "no :method", Fields: []string{":authority", "127.0.0.1:9"}},
		{Row: 18, Name: ":status in a request", Fields: connect(":status", "200")},
		{Row: 18, Name: "two :authority", Fields: connect(":authority", "127.0.0.1:9")},
		{Row: 18, Name: "two :method", Fields: append([]string{":method", "GET"}, connect()...)},
		{Row: 18, Name: "unknown pseudo-header field", Fields: connect(":x", "y")},
		{Row: 18, Name: "pseudo-header field after others", Fields: []string{":method", "CONNECT", "x", "y", ":authority", "127.0.0.1:9"}},
		{Row: 18, Name: "host differs from :authority", Fields: connect("host", "127.0.0.1:10")},
		{Row: 18, Name: "two hosts", Fields: post("host", "a", "host", "b")},
		{Row: 18, Name: "no :path", Fields: []string{":method", "GET", ":scheme", "https", ":authority", "a"}},
		{Row: 18, Name: "te: gzip", Fields: connect("te", "gzip")},
		{Row: 21, Name: "trailers on a tunnel", Then: func(p *Peer, id uint32) error { return p.Headers(id, true, "x", "y") }},
		{Row: 21, Name: "a second head on a tunnel", Then: func(p *Peer, id uint32) error { return p.Headers(id, false, "x", "y") }},
		{Row: 10, Name: "window overflow of a tunnel", Then: func(p *Peer, id uint32) error { return p.fr.WriteWindowUpdate(id, 1<<31-1) }},
		{Row: 12, Name: "a tunnel that depends on itself", Then: func(p *Peer, id uint32) error {
			return p.fr.WritePriority(id, http2.PriorityParam{StreamDep: id})
		}},
		{Row: 8, Name: "66 KiB in a field", Fields: connect("x", strings.Repeat("a", 66<<10)), Status: "431"},
		{Row: 8, Name: "300 fields", Fields: connect(many(300)...), Status: "431"},
	}
	for _, name := range []string{"connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade"} {
		list = append(list, Head{Row: 18, Name: "field " + name, Fields: connect(name, "close")})
	}
	for what, name := range map[string]string{"capital": "Ab", "space": "a b", "colon": "a:b", "NUL": "a\x00", "8 bit": "a\xe4", "CR": "a\r", "nothing": ""} {
		list = append(list, Head{Row: 18, Name: what + " in a name", Fields: connect(name, "v")})
	}
	for what, value := range map[string]string{"CR": "a\rb", "LF": "a\nb", "NUL": "a\x00b", "DEL": "a\x7f", "leading space": " a", "trailing space": "a ", "leading tab": "\ta"} {
		list = append(list, Head{Row: 18, Name: what + " in a value", Fields: connect("x", value)},
			Head{Row: 18, Name: what + " in :authority", Fields: []string{":method", "CONNECT", ":authority", value}, Status: "400"})
	}
	for _, value := range []string{"", "+1", "-1", "0x1", "1 ", "1,1", "1.0", "ten", "99999999999999999999"} {
		list = append(list, Head{Row: 19, Name: "content-length " + value, Fields: post("content-length", value)},
			Head{Row: 19, Name: "CONNECT with content-length " + value, Fields: connect("content-length", value)})
	}
	return append(list,
		Head{Row: 19, Name: "two content-lengths", Fields: post("content-length", "1", "content-length", "2")},
		Head{Row: 19, Name: "an end before the content-length", Fields: post("content-length", "1"), End: true},
	)
}

func many(n int) (fields []string) {
	for range n {
		fields = append(fields, "x", "y")
	}
	return fields
}

package ingress

import (
	"bytes"
	"net/http"
	"strings"

	"culvert/tunnel"
)

// maxFields is how many fields a head may have.
const maxFields = 128

// lengths is what a head says of the message.
type lengths struct {
	length  int64 // of the body, where it has one
	chunked bool  // the body is in chunks
	upgrade bool  // the client asks for another protocol
}

// malformed is why a request is refused that could be read in more than one way, or in none.
func malformed(reason string) error {
	return &tunnel.Error{Cause: tunnel.CauseMalformed, Reason: reason}
}

// head is what is found in a head while it is checked.
type head struct {
	lengths
	target     []byte
	old        bool // HTTP/1.0
	host, size []byte
	hosts      int
	sizes      int
	codings    int
	connection bool // it has the option upgrade
	protocol   bool // it names one that may be switched to
}

// checkHead checks that the head of a request can be read in one way only (RFC 9112), and finds out where the message ends. b ends
// with the empty line.
func checkHead(b []byte) (lengths, error) {
	var h head
	line, rest, problem := cutLine(b)
	if problem == "" {
		problem = h.request(line)
	}
	for n := 0; problem == ""; n++ {
		if line, rest, problem = cutLine(rest); problem != "" || len(line) == 0 {
			break
		}
		if n == maxFields {
			return lengths{}, &tunnel.Error{Cause: tunnel.CauseHeadTooLong, Reason: "the request has too many fields"}
		}
		problem = h.field(line)
	}
	if problem == "" {
		problem = h.whole()
	}
	if problem != "" {
		return lengths{}, malformed(problem)
	}
	return h.lengths, nil
}

// cutLine cuts a line off b.
func cutLine(b []byte) (line, rest []byte, problem string) {
	i := bytes.IndexByte(b, '\n')
	if i <= 0 || b[i-1] != '\r' {
		return nil, nil, "a line of the head does not end in CRLF"
	}
	line, rest = b[:i-1], b[i+1:]
	for _, c := range line {
		if c < ' ' && c != '\t' || c == 0x7f {
			return nil, nil, "the head holds a control character"
		}
	}
	return line, rest, ""
}

// request checks the request line (RFC 9112, section 3).
func (h *head) request(line []byte) string {
	method, rest, ok := bytes.Cut(line, []byte(" "))
	target, version, ok2 := bytes.Cut(rest, []byte(" "))
	if !ok || !ok2 || len(method) == 0 || len(target) == 0 || bytes.IndexByte(line, '\t') >= 0 {
		return "the first line is not METHOD TARGET VERSION, with one space between"
	}
	for _, c := range method {
		if !isTokenByte(c) {
			return "the method is no token"
		}
	}
	if !isPlain(target) {
		return "the target of the request holds a character that has to be percent-encoded"
	}
	switch string(version) {
	case "HTTP/1.1":
	case "HTTP/1.0":
		h.old = true
	default:
		return "the version is neither HTTP/1.1 nor HTTP/1.0"
	}
	h.target = target
	options := string(method) == "OPTIONS" && string(target) == "*"
	connect := string(method) == "CONNECT"
	if target[0] != '/' && !options && !connect && h.authority() == nil {
		return "the target of the request is neither a path nor a URL"
	}
	return ""
}

// isPlain reports whether a target holds only what it may without being percent-encoded.
func isPlain(target []byte) bool {
	for _, c := range target {
		if c <= ' ' || c >= 0x7f || c == '#' {
			return false
		}
	}
	return true
}

// isTarget reports whether the path of a request of HTTP/2 can be the target of one of HTTP/1.1.
func isTarget(path []byte, method string) bool {
	return len(path) > 0 && isPlain(path) && (path[0] == '/' || string(path) == "*" && method == http.MethodOptions)
}

// authority is the host of a target in absolute form (RFC 9112, section 3.2.2), nil if it is in another.
func (h *head) authority() []byte {
	scheme, rest, ok := bytes.Cut(h.target, []byte("://"))
	if !ok || !strings.EqualFold(string(scheme), "http") && !strings.EqualFold(string(scheme), "https") {
		return nil
	}
	if i := bytes.IndexAny(rest, "/?"); i >= 0 {
		rest = rest[:i]
	}
	if len(rest) == 0 {
		return nil
	}
	return rest
}

// field checks a field (RFC 9112, section 5) and takes note of those that frame the message.
func (h *head) field(line []byte) string {
	name, value, ok := bytes.Cut(line, []byte(":"))
	switch {
	case line[0] == ' ' || line[0] == '\t':
		return "a field is folded over lines"
	case !ok || len(name) == 0:
		return "a line of the head is no field"
	}
	for _, c := range name {
		if !isTokenByte(c) {
			return "the name of a field is no token, or a space stands before its colon"
		}
	}
	value = bytes.Trim(value, " \t")
	switch len(name) {
	case len("host"):
		if is(name, "host") {
			h.hosts++
			h.host = value
		}
	case len("expect"):
		if is(name, "expect") && !is(value, "100-continue") {
			return "the client expects what is not known here"
		}
	case len("upgrade"):
		if is(name, "upgrade") {
			h.protocol = h.protocol || mayUpgrade(string(value))
		}
	case len("connection"):
		if is(name, "connection") {
			h.connection = h.connection || hasOption(string(value), "upgrade")
		}
	case len("content-length"):
		if is(name, "content-length") {
			h.sizes++
			h.size = value
		}
	case len("transfer-encoding"):
		if is(name, "transfer-encoding") {
			h.codings++
			if h.chunked = is(value, "chunked"); !h.chunked {
				return "the transfer coding is not chunked alone"
			}
		}
	}
	return ""
}

// isHost reports whether b holds nothing that a name or an address with a port cannot have. What it is the handler finds out.
func isHost(b []byte) bool {
	for _, c := range b {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || bytes.IndexByte([]byte("-._:[]"), c) >= 0) {
			return false
		}
	}
	return true
}

// is reports whether b is a word, in any case.
func is(b []byte, word string) bool { return len(b) == len(word) && strings.EqualFold(string(b), word) }

// hasOption reports whether a list has an option.
func hasOption(list, option string) bool {
	for one := range strings.SplitSeq(list, ",") {
		if strings.EqualFold(strings.Trim(one, " \t"), option) {
			return true
		}
	}
	return false
}

// mayUpgrade reports whether a protocol is one that a client may switch to: not another version of HTTP, and not TLS, which are
// agreed on otherwise; a server may ignore these (RFC 9110, section 7.8).
func mayUpgrade(protocol string) bool {
	if protocol == "" || strings.ContainsAny(protocol, ", ") {
		return false
	}
	lower := strings.ToLower(protocol)
	return lower != "h2c" && !strings.HasPrefix(lower, "http") && !strings.HasPrefix(lower, "tls")
}

// maxSizeDigits is how many digits a Content-Length may have: none is longer that fits.
const maxSizeDigits = 18

// whole checks what only the whole head shows.
func (h *head) whole() string {
	switch {
	case h.hosts > 1:
		return "the request has more than one host"
	case h.hosts == 0 && !h.old:
		return "the request has no host"
	case h.hosts > 0 && !isHost(h.host):
		return "the host holds what no name and no address has"
	case h.sizes > 1:
		return "the request has more than one content-length"
	case h.codings > 1:
		return "the request has more than one transfer-encoding"
	case h.codings > 0 && h.sizes > 0:
		return "the request has content-length and transfer-encoding"
	case h.codings > 0 && h.old:
		return "a request of HTTP/1.0 has no transfer-encoding"
	}
	if authority := h.authority(); authority != nil && (h.hosts == 0 || !bytes.EqualFold(authority, h.host)) {
		return "the target of the request names another host than the field does"
	}
	if h.sizes > 0 {
		if len(h.size) == 0 || len(h.size) > maxSizeDigits {
			return "the content-length is no number, or too large"
		}
		for _, c := range h.size {
			if c < '0' || c > '9' {
				return "the content-length is no number"
			}
			h.length = h.length*10 + int64(c-'0')
		}
	}
	h.upgrade = h.connection && h.protocol && !h.old
	if h.upgrade && (h.chunked || h.length > 0) {
		return "a request with a body cannot switch protocols"
	}
	return ""
}

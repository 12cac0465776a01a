package h2

import (
	"strconv"
	"strings"

	"golang.org/x/net/http2/hpack"
)

// Field is a header or trailer field. Names are lower case; Sensitive ones never enter the
// compression table (RFC 7541, section 7.1.3).
type Field = hpack.HeaderField

// Header is the head of a request, a promise or a response (RFC 9113, section 8.3). Of a request,
// Method is set; of a response, Status. Fields holds the regular fields in their order.
type Header struct {
	Method    string // :method
	Scheme    string // :scheme; empty for CONNECT
	Authority string // :authority
	Path      string // :path; empty for CONNECT
	Protocol  string // :protocol (RFC 8441); only with CONNECT
	Status    int    // :status, 100 to 599
	Fields    []Field
}

// Get returns the first value of the field called name, which must be lower case.
func (h *Header) Get(name string) string {
	for i := range h.Fields {
		if h.Fields[i].Name == name {
			return h.Fields[i].Value
		}
	}
	return ""
}

// Values returns all values of the field called name, in order.
func (h *Header) Values(name string) []string {
	var v []string
	for i := range h.Fields {
		if h.Fields[i].Name == name {
			v = append(v, h.Fields[i].Value)
		}
	}
	return v
}

// Add appends a field. The name must be lower case.
func (h *Header) Add(name, value string) {
	h.Fields = append(h.Fields, Field{Name: name, Value: value})
}

// Set replaces all fields called name by one.
func (h *Header) Set(name, value string) {
	h.Del(name)
	h.Add(name, value)
}

// Del removes all fields called name.
func (h *Header) Del(name string) {
	kept := h.Fields[:0]
	for _, f := range h.Fields {
		if f.Name != name {
			kept = append(kept, f)
		}
	}
	h.Fields = kept
}

// each calls f for every field in wire order, pseudo-header fields first (RFC 9113, section 8.3).
func (h *Header) each(f func(Field)) {
	if h.Status != 0 {
		f(Field{Name: ":status", Value: strconv.Itoa(h.Status)})
	}
	if h.Method != "" {
		f(Field{Name: ":method", Value: h.Method})
	}
	if h.Protocol != "" {
		f(Field{Name: ":protocol", Value: h.Protocol})
	}
	if h.Scheme != "" {
		f(Field{Name: ":scheme", Value: h.Scheme})
	}
	if h.Authority != "" {
		f(Field{Name: ":authority", Value: h.Authority})
	}
	if h.Path != "" {
		f(Field{Name: ":path", Value: h.Path})
	}
	for _, x := range h.Fields {
		f(x)
	}
}

// listBytes is the size of the header list (RFC 9113, section 6.5.2).
func (h *Header) listBytes() (n int) {
	h.each(func(f Field) { n += int(f.Size()) })
	return n
}

// check reports why the header must not be sent, "" where it may.
func (h *Header) check() string {
	b := headerBlock{judge: true}
	h.each(b.add)
	if b.malformed != "" {
		return b.malformed
	}
	if h.Status == 0 {
		return b.checkRequest()
	}
	return b.checkResponse()
}

// blockKind says what a header block may be.
type blockKind uint8

const (
	requestBlock blockKind = iota
	responseBlock
	trailerBlock
)

// headerBlock collects the fields of one block and judges them (RFC 9113, sections 8.2 and 8.3).
type headerBlock struct {
	h            Header
	seen         uint8  // pseudo-header fields that were there, a bit each
	regular      bool   // a regular field was there
	malformed    string // first reason why the message is malformed; "" so far
	length       int64  // content-length; -1: none
	hasLength    bool
	host         string
	hasHost      bool
	badAuthority bool // that is because of :authority
	judge        bool // the fields are judged and not kept
}

const (
	seenMethod = 1 << iota
	seenScheme
	seenAuthority
	seenPath
	seenProtocol
	seenStatus
)

// add takes the next field.
func (b *headerBlock) add(f Field) {
	if b.malformed != "" {
		return
	}
	if !validValue(f.Value) {
		b.malformed = "field value with forbidden octets or surrounding space"
		b.badAuthority = f.Name == ":authority"
		return
	}
	if strings.HasPrefix(f.Name, ":") {
		b.addPseudo(f)
		return
	}
	b.regular = true
	if !validName(f.Name) {
		b.malformed = "field name that is empty or not a lower-case token"
		return
	}
	switch f.Name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		b.malformed = "connection-specific field " + f.Name
		return
	case "te":
		if f.Value != "trailers" {
			b.malformed = "te other than trailers"
			return
		}
	case "content-length":
		b.addLength(f.Value)
	case "host":
		if b.hasHost && b.host != f.Value {
			b.malformed = "two different host fields"
			return
		}
		b.host, b.hasHost = f.Value, true
	}
	if !b.judge {
		b.h.Fields = append(b.h.Fields, f)
	}
}

// addLength wants 1*DIGIT and, where there are several, equal ones (RFC 9110, section 8.6).
func (b *headerBlock) addLength(v string) {
	n, ok := parseLength(v)
	if !ok || b.hasLength && b.length != n {
		b.malformed = "content-length that is no number or contradicts another"
		return
	}
	b.length, b.hasLength = n, true
}

func parseLength(v string) (int64, bool) {
	if v == "" || len(v) > 18 {
		return 0, false
	}
	for i := range len(v) {
		if v[i] < '0' || v[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(v, 10, 64)
	return n, err == nil
}

func (b *headerBlock) addPseudo(f Field) {
	var bit uint8
	switch f.Name {
	case ":method":
		bit, b.h.Method = seenMethod, f.Value
	case ":scheme":
		bit, b.h.Scheme = seenScheme, f.Value
	case ":authority":
		bit, b.h.Authority = seenAuthority, f.Value
	case ":path":
		bit, b.h.Path = seenPath, f.Value
	case ":protocol":
		bit, b.h.Protocol = seenProtocol, f.Value
	case ":status":
		bit = seenStatus
		n, ok := parseLength(f.Value)
		if !ok || len(f.Value) != 3 || n < 100 || n > 599 {
			b.malformed = ":status that is no status code"
			return
		}
		b.h.Status = int(n)
	default:
		b.malformed = "unknown pseudo-header field"
		return
	}
	switch {
	case b.regular:
		b.malformed = "pseudo-header field after a regular field"
	case b.seen&bit != 0:
		b.malformed = "pseudo-header field " + f.Name + " twice"
	}
	b.seen |= bit
}

// checkKind returns why the complete block is malformed as what it must be, or "".
func (b *headerBlock) checkKind(k blockKind) string {
	if b.malformed != "" {
		return b.malformed
	}
	switch k {
	case requestBlock:
		return b.checkRequest()
	case responseBlock:
		return b.checkResponse()
	}
	if b.seen != 0 {
		return "pseudo-header field in trailers"
	}
	return ""
}

func (b *headerBlock) checkResponse() string {
	if b.seen != seenStatus {
		return "response without :status, or with a request's pseudo-header field"
	}
	return ""
}

func (b *headerBlock) checkRequest() string {
	h := &b.h
	switch {
	case b.seen&seenStatus != 0:
		return ":status in a request"
	case b.seen&seenMethod == 0 || !validToken(h.Method):
		return "request without a valid :method"
	case b.hasHost && b.seen&seenAuthority != 0 && !strings.EqualFold(b.host, h.Authority):
		return ":authority and host differ" // RFC 9113, section 8.3.1
	case h.Method == "CONNECT" && b.seen&seenProtocol == 0:
		// RFC 9113, section 8.5: "The ':scheme' and ':path' pseudo-header fields MUST be omitted."
		if b.seen&(seenScheme|seenPath) != 0 {
			return "CONNECT with :scheme or :path"
		}
		if h.Authority == "" {
			return "CONNECT without :authority"
		}
		return ""
	case b.seen&seenProtocol != 0 && (h.Method != "CONNECT" || !validToken(h.Protocol)):
		return ":protocol that is no token, or without CONNECT"
	case b.seen&seenProtocol != 0 && h.Authority == "":
		return "extended CONNECT without :authority" // RFC 8441, section 4
	case b.seen&seenScheme == 0 || !validScheme(h.Scheme):
		return "request without a valid :scheme"
	case h.Path == "":
		return "request without :path"
	case h.Path[0] != '/' && !(h.Path == "*" && h.Method == "OPTIONS") && (h.Scheme == "http" || h.Scheme == "https"):
		return ":path that does not begin with a slash"
	case b.seen&seenAuthority != 0 && h.Authority == "" && (h.Scheme == "http" || h.Scheme == "https"):
		return "empty :authority"
	case strings.ContainsAny(h.Authority, "@"):
		return ":authority with userinfo" // RFC 9113, section 8.3.1
	}
	return ""
}

// validName reports whether s is a lower-case token (RFC 9113, section 8.2.1; RFC 9110, section 5.6.2).
func validName(s string) bool {
	if s == "" {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !isTokenByte(c) || 'A' <= c && c <= 'Z' {
			return false
		}
	}
	return true
}

func validToken(s string) bool {
	for i := range len(s) {
		if !isTokenByte(s[i]) {
			return false
		}
	}
	return s != ""
}

func isTokenByte(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	return strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

func validScheme(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || !('0' <= c && c <= '9' || c == '+' || c == '-' || c == '.')) {
			return false
		}
	}
	return s != ""
}

// validValue reports whether s may be a field value: no control octets besides tab, and no space or
// tab around it (RFC 9113, section 8.2.1; RFC 9110, section 5.5).
func validValue(s string) bool {
	if s == "" {
		return true
	}
	if first, last := s[0], s[len(s)-1]; first == ' ' || first == '\t' || last == ' ' || last == '\t' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

package h2

import (
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// protocolKey is how net/http names :protocol in Request.Header (since Go 1.24).
const protocolKey = ":protocol"

// canonicalNames holds the names that most messages use, as net/http spells them; others are converted
// each time, at the price of an allocation.
var canonicalNames = nameTable(
	"Accept", "Accept-Charset", "Accept-Encoding", "Accept-Language", "Accept-Ranges", "Access-Control-Allow-Origin",
	"Age", "Allow", "Authorization", "Baggage", "Cache-Control", "Connection", "Content-Disposition", "Content-Encoding",
	"Content-Language", "Content-Length", "Content-Location", "Content-Range", "Content-Type", "Cookie",
	"Crypto-Key", "Date", "Encryption", "Etag", "Expect", "Expires", "Forwarded", "From", "Grpc-Accept-Encoding",
	"Grpc-Encoding", "Grpc-Message", "Grpc-Status", "Grpc-Status-Details-Bin", "Grpc-Timeout", "Host", "If-Match",
	"If-Modified-Since", "If-None-Match", "If-Range", "If-Unmodified-Since", "Keep-Alive", "Last-Modified", "Link",
	"Location", "Max-Forwards", "Origin", "Prefer", "Priority", "Proxy-Authenticate", "Proxy-Authorization",
	"Proxy-Connection", "Proxy-Status", "Range", "Referer", "Refresh", "Retry-After", "Server", "Set-Cookie",
	"Strict-Transport-Security", "Te", "Topic", "Traceparent", "Tracestate", "Trailer", "Transfer-Encoding", "Ttl",
	"Upgrade", "Urgency", "User-Agent", "Vary", "Via", "Www-Authenticate", "X-Content-Type-Options",
	"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Frame-Options", "X-Powered-By",
	"X-Request-Id", "X-Xss-Protection")

// wireNames is canonicalNames the other way round.
var wireNames = invert(canonicalNames)

func nameTable(names ...string) map[string]string {
	m := make(map[string]string, len(names))
	for _, n := range names {
		m[strings.ToLower(n)] = n
	}
	return m
}

func invert(m map[string]string) map[string]string {
	r := make(map[string]string, len(m))
	for k, v := range m {
		r[v] = k
	}
	return r
}

// canonicalName spells a name from the wire as net/http does.
func canonicalName(name string) string {
	if c, ok := canonicalNames[name]; ok {
		return c
	}
	return textproto.CanonicalMIMEHeaderKey(name)
}

// wireName spells a name of net/http as it goes on the wire: in lower case (RFC 9113, section 8.2.1).
// ok is false where it is no field name.
func wireName(name string) (wire string, ok bool) {
	if w, ok := wireNames[name]; ok {
		return w, true
	}
	w := strings.ToLower(name)
	return w, validName(w)
}

// isHopByHop reports whether a field belongs to an HTTP/1.1 connection and must not be in HTTP/2
// (RFC 9113, section 8.2.2).
func isHopByHop(wire string) bool {
	switch wire {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		return true
	}
	return false
}

// isForbiddenTrailer reports whether a field may not be a trailer, because it frames, routes or
// authenticates the message (RFC 9110, section 6.5.1).
func isForbiddenTrailer(wire string) bool {
	switch wire {
	case "authorization", "cache-control", "content-encoding", "content-length", "content-range", "content-type",
		"expect", "host", "max-forwards", "pragma", "proxy-authenticate", "proxy-authorization", "range", "te",
		"trailer", "www-authenticate":
		return true
	}
	return isHopByHop(wire) || strings.HasPrefix(wire, "if-")
}

// isSensitive reports whether a field must not enter the compression table, where somebody who sends
// requests on the same connection could guess it byte by byte (RFC 7541, section 7.1.3). Cookies are
// guessable only when short.
func isSensitive(wire, value string) bool {
	switch wire {
	case "authorization", "proxy-authorization":
		return true
	case "cookie":
		return len(value) < 20
	}
	return false
}

// httpHeader converts received fields; room is how many more the caller will set.
func httpHeader(fields []Field, room int) http.Header {
	h := make(http.Header, len(fields)+room)
	values := make([]string, len(fields)) // one allocation for all single values
	for _, f := range fields {
		name := canonicalName(f.Name)
		if old, ok := h[name]; ok {
			h[name] = append(old, f.Value)
			continue
		}
		values[0] = f.Value
		h[name] = values[:1:1]
		values = values[1:]
	}
	return h
}

// appendValues appends a field for every value that may be sent and leaves out the others, without the
// space around them, as net/http does.
func appendValues(fields []Field, wire string, values []string) []Field {
	for _, v := range values {
		v = textproto.TrimString(v)
		if !validValue(v) || wire == "te" && v != "trailers" {
			continue
		}
		fields = append(fields, Field{Name: wire, Value: v, Sensitive: isSensitive(wire, v)})
	}
	return fields
}

// nominated returns the names that a Connection field makes hop-by-hop (RFC 9110, section 7.6.1), in
// lower case.
func nominated(h http.Header) []string {
	var names []string
	for _, v := range h["Connection"] {
		eachElement(v, func(e string) { names = append(names, strings.ToLower(e)) })
	}
	return names
}

// eachElement calls f for every element of a comma-separated list (RFC 9110, section 5.6.1).
func eachElement(list string, f func(string)) {
	for e := range strings.SplitSeq(list, ",") {
		if e = textproto.TrimString(e); e != "" {
			f(e)
		}
	}
}

// announced makes the Trailer map from what the Trailer fields announce, with nil values; nil where
// there is nothing.
func announced(values []string) http.Header {
	var t http.Header
	for _, v := range values {
		eachElement(v, func(e string) {
			if wire, ok := wireName(e); ok && !isForbiddenTrailer(wire) {
				if t == nil {
					t = make(http.Header)
				}
				t[canonicalName(wire)] = nil
			}
		})
	}
	return t
}

// heads pools heads that live only until they are encoded.
var heads = sync.Pool{New: func() any { return new(Header) }}

func getHead() *Header { return heads.Get().(*Header) }

// putHead takes a head back; nobody else may refer to it or to its fields.
func putHead(h *Header) {
	clear(h.Fields)
	*h = Header{Fields: h.Fields[:0]}
	heads.Put(h)
}

// checkAuthority returns why the authority of a request cannot be a host, "" where it can.
func checkAuthority(h *Header, hosts []string) string {
	authority := h.Authority
	switch {
	case len(hosts) > 1:
		return "more than one Host field"
	case authority == "" && len(hosts) == 1:
		authority = hosts[0]
	}
	if !validHost(authority) {
		return "authority with an octet that no host may have"
	}
	return ""
}

// validHost reports whether s consists of octets that may be in a host and port (RFC 3986, section
// 3.2.2). Userinfo may not be there (RFC 9113, section 8.3.1).
func validHost(s string) bool {
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case strings.IndexByte("-._~!$&'()*+,;=:[]%", c) >= 0:
		default:
			return false
		}
	}
	return true
}

// parseTarget makes URL and RequestURI of a request as net/http's server does: path and query only, or
// the authority for CONNECT.
func parseTarget(h *Header) (*url.URL, string, error) {
	if h.Method == http.MethodConnect && h.Protocol == "" {
		return &url.URL{Host: h.Authority}, h.Authority, nil
	}
	if strings.ContainsFunc(h.Path, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return nil, "", errors.New("control character or space") // url takes a space
	}
	u, err := url.ParseRequestURI(h.Path)
	return u, h.Path, err
}

// parsedRequest is a received request, and what is not kept in it.
type parsedRequest struct {
	http.Request
	expectContinue bool
}

// parseRequest makes a request of its head. Body, TLS, RemoteAddr and context are the caller's. A
// problem means 400; what RFC 9113 calls malformed never gets here.
func parseRequest(h *Header, hasBody bool) (p parsedRequest, problem string) {
	header := httpHeader(h.Fields, 1)
	if problem := checkAuthority(h, header["Host"]); problem != "" {
		return p, problem
	}
	if (h.Method != http.MethodConnect || h.Protocol != "") && h.Scheme != "http" && h.Scheme != "https" {
		return p, "scheme other than http and https" // whose path may be anything
	}
	u, uri, err := parseTarget(h)
	if err != nil {
		return p, "path that is no URI"
	}
	r := &p.Request
	r.Method, r.URL, r.RequestURI, r.Header = h.Method, u, uri, header
	r.Proto, r.ProtoMajor = "HTTP/2.0", 2
	r.Host = h.Authority
	if host := header["Host"]; host != nil {
		if r.Host == "" {
			r.Host = host[0]
		}
		delete(header, "Host")
	}
	if h.Protocol != "" {
		header[protocolKey] = []string{h.Protocol}
	}
	if crumbs := header["Cookie"]; len(crumbs) > 1 {
		header["Cookie"] = []string{strings.Join(crumbs, "; ")} // RFC 9113, section 8.2.3
	}
	if v := header["Trailer"]; v != nil {
		r.Trailer = announced(v)
		delete(header, "Trailer")
	}
	if v := header["Expect"]; v != nil && expectsContinue(v) {
		p.expectContinue = hasBody
		delete(header, "Expect")
	}
	if hasBody {
		r.ContentLength = contentLength(header)
	}
	return p, ""
}

// expectsContinue reports whether an Expect field holds 100-continue (RFC 9110, section 10.1.1).
func expectsContinue(values []string) (found bool) {
	for _, v := range values {
		eachElement(v, func(e string) { found = found || strings.EqualFold(e, "100-continue") })
	}
	return found
}

// contentLength returns the declared length, -1 where there is none.
func contentLength(h http.Header) int64 {
	if v := h["Content-Length"]; len(v) > 0 {
		if n, ok := parseLength(v[0]); ok {
			return n
		}
	}
	return -1
}

// requestHead makes the head of a request that is to be sent, and checks what the core does not know
// of. length is the content's: 0 none, -1 unknown.
func requestHead(r *http.Request, length int64) (*Header, error) {
	if r.URL == nil {
		return nil, errors.New("request without URL")
	}
	if err := checkRequestFields(r); err != nil {
		return nil, err
	}
	h := &Header{Method: r.Method, Scheme: r.URL.Scheme, Authority: r.Host}
	if h.Method == "" {
		h.Method = http.MethodGet
	}
	if h.Authority == "" {
		h.Authority = r.URL.Host
	}
	if !validHost(h.Authority) {
		return nil, fmt.Errorf("request host %q is not ASCII or has octets that no host may have", h.Authority)
	}
	if v := r.Header[protocolKey]; len(v) > 0 {
		h.Protocol = v[0]
	}
	if h.Method == http.MethodConnect && h.Protocol == "" {
		h.Scheme = "" // RFC 9113, section 8.5
	} else if h.Path = r.URL.RequestURI(); !strings.HasPrefix(h.Path, "/") && h.Path != "*" {
		// An opaque URL may be absolute: "//host/path" with the scheme in front.
		h.Path = strings.TrimPrefix(h.Path, r.URL.Scheme+"://"+h.Authority)
	}
	h.Fields = requestFields(r, length)
	return h, nil
}

// requestFields converts the fields of a request. User-Agent and Accept-Encoding are the caller's alone.
func requestFields(r *http.Request, length int64) []Field {
	fields := make([]Field, 0, len(r.Header)+2)
	for k, values := range r.Header {
		wire, ok := wireName(k)
		if !ok || isHopByHop(wire) {
			continue // protocolKey is no field name either
		}
		switch wire {
		case "host", "content-length", "trailer":
			continue // these say what Host, ContentLength and Trailer say
		case "expect":
			if length == 0 && expectsContinue(values) {
				continue // RFC 9110, section 10.1.1: not without content
			}
		}
		fields = appendValues(fields, wire, values)
	}
	if length > 0 || length == 0 && (r.Method == "POST" || r.Method == "PUT" || r.Method == "PATCH") {
		fields = append(fields, Field{Name: "content-length", Value: strconv.FormatInt(length, 10)})
	}
	if len(r.Trailer) > 0 {
		names := make([]string, 0, len(r.Trailer))
		for k := range r.Trailer {
			names = append(names, k)
		}
		slices.Sort(names)
		fields = append(fields, Field{Name: "trailer", Value: strings.Join(names, ", ")})
	}
	return fields
}

// checkRequestFields refuses what would otherwise be dropped in silence although it changes what the
// request means, as net/http does.
func checkRequestFields(r *http.Request) error {
	for k, values := range r.Header {
		if k == protocolKey {
			if r.Method != http.MethodConnect {
				return fmt.Errorf("request header %q without method CONNECT", k)
			}
			continue
		}
		if _, ok := wireName(k); !ok {
			return fmt.Errorf("request header name %q is no token", k)
		}
		for _, v := range values {
			if !validValue(textproto.TrimString(v)) {
				return fmt.Errorf("request header %q has a value with control characters", k) // the value may be secret
			}
		}
	}
	for k := range r.Trailer {
		if wire, ok := wireName(k); !ok || isForbiddenTrailer(wire) {
			return fmt.Errorf("request trailer %q may not be a trailer", k)
		}
	}
	if v := r.Header.Get("Upgrade"); v != "" {
		return fmt.Errorf("request header Upgrade %q: HTTP/2 has no upgrade, use extended CONNECT (RFC 8441)", v)
	}
	if v := r.Header.Get("Transfer-Encoding"); v != "" && v != "chunked" {
		return fmt.Errorf("request header Transfer-Encoding %q: HTTP/2 has none", v)
	}
	return nil
}

// appendTrailers converts the trailers that are to be sent; a key without values is not.
func appendTrailers(fields []Field, t http.Header) []Field {
	for k, values := range t {
		if wire, ok := wireName(k); ok && !isForbiddenTrailer(wire) {
			fields = appendValues(fields, wire, values)
		}
	}
	return fields
}

// parseResponse makes a response of its head. Body, Request and TLS are the caller's.
func parseResponse(h *Header) *http.Response {
	header := httpHeader(h.Fields, 0)
	r := &http.Response{
		Status:     statusText(h.Status),
		StatusCode: h.Status,
		Proto:      "HTTP/2.0",
		ProtoMajor: 2,
		Header:     header,
	}
	if v := header["Trailer"]; v != nil {
		r.Trailer = announced(v)
		delete(header, "Trailer")
	}
	r.ContentLength = contentLength(header)
	return r
}

// statusText is Response.Status as net/http has it.
func statusText(code int) string {
	if code == http.StatusOK {
		return "200 OK"
	}
	return strconv.Itoa(code) + " " + http.StatusText(code)
}

// bodyAllowed reports whether a response with this status may have content (RFC 9110, section 6.4.1).
func bodyAllowed(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}

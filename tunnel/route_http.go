package tunnel

import (
	"errors"
	"net/http"
	"net/textproto"
	"regexp"
	"slices"
	"strings"

	"culvert/policy"
)

// httpMatch is which requests a route takes, and what it says of them. It does not change.
type httpMatch struct {
	path, prefix string // at most one of them is set
	regex        *regexp.Regexp
	methods      []string
	headers      []headerMatch
	conf         *RouteHTTPConfig
}

// headerMatch is a field that a request has to have.
type headerMatch struct {
	name, value    string
	prefix, suffix bool // value is only a part; with both, of any value
}

// newHTTPMatch makes what a route takes of its configuration; nil for none.
func newHTTPMatch(c *RouteHTTPConfig) (*httpMatch, error) {
	if c == nil {
		return nil, nil
	}
	h := &httpMatch{path: c.Path, prefix: c.Prefix, methods: c.Methods, conf: c}
	if c.Regex != "" {
		var err error
		if h.regex, err = regexp.Compile(`^(?:` + c.Regex + `)$`); err != nil {
			return nil, err
		}
	}
	for name, value := range c.Headers {
		m := headerMatch{name: strings.ToLower(name)}
		m.value, m.prefix = strings.CutSuffix(value, "*")
		if !m.prefix {
			m.value, m.suffix = strings.CutPrefix(value, "*")
		}
		h.headers = append(h.headers, m)
	}
	slices.SortFunc(h.headers, func(a, b headerMatch) int { return strings.Compare(a.name, b.name) })
	return h, nil
}

// takesRequest reports whether r takes a request; nil is a flow that is none, of which only the requests in it matter where r has them
// looked for.
func (r *route) takesRequest(h *policy.HTTP) bool {
	return h == nil && r.inspect || r.http.takes(h)
}

// takes reports whether a request is one that h is about; the index has found the route by the path or the prefix, if it has
// one. r is nil for a flow that is no request.
func (h *httpMatch) takes(r *policy.HTTP) bool {
	switch {
	case h == nil:
		return true
	case r == nil:
		return false
	case len(h.methods) > 0 && !slices.Contains(h.methods, r.Method):
		return false
	case h.regex != nil && !h.regex.MatchString(r.Path):
		return false
	}
	for i := range h.headers {
		m := &h.headers[i]
		value, ok := r.Header(m.name)
		if !ok || !m.takes(value) {
			return false
		}
	}
	return true
}

func (m *headerMatch) takes(value string) bool {
	switch {
	case m.prefix:
		return strings.HasPrefix(value, m.value)
	case m.suffix:
		return strings.HasSuffix(value, m.value)
	}
	return value == m.value
}

// errPath is why a path is not taken.
var errPath = errors.New("the path has a segment . or .., one that only parameters are added to, a backslash or a control character")

// DecisionPath returns the path of a request in the one form that routes match and policy is asked about: decoded, as
// url.URL.Path has it, with one slash where several follow each other. One that an application might read as another path is
// an error: with a segment that is "." or "..", or that is one of these or empty before parameters ("..;x", which servlet
// containers take away before they look), a backslash or a control character.
func DecisionPath(decoded string) (string, error) {
	if decoded == "*" { // OPTIONS
		return decoded, nil
	}
	plain := true
	for i := range len(decoded) {
		switch c := decoded[i]; {
		case c < ' ' || c == 0x7f || c == '\\':
			return "", errPath
		case c == '/' && i+1 < len(decoded) && strings.IndexByte("./;", decoded[i+1]) >= 0:
			plain = false
		}
	}
	if plain && strings.HasPrefix(decoded, "/") {
		return decoded, nil
	}
	var b strings.Builder
	for segment := range strings.SplitSeq(decoded, "/") {
		name, _, more := strings.Cut(segment, ";")
		switch {
		case segment == "":
			continue
		case name == "." || name == ".." || name == "" && more:
			return "", errPath
		}
		b.WriteByte('/')
		b.WriteString(segment)
	}
	if strings.HasSuffix(decoded, "/") || b.Len() == 0 {
		b.WriteByte('/')
	}
	return b.String(), nil
}

// covers reports whether a route with c takes every request that one with o does, as far as that is easily seen.
func (c *RouteHTTPConfig) covers(o *RouteHTTPConfig) bool {
	switch {
	case c == nil:
		return true
	case o == nil || len(c.Headers) > 0 || c.Regex != "" || len(c.Methods) > 0:
		return false
	case c.Path != "":
		return o.Path == c.Path
	}
	prefix := strings.TrimSuffix(c.Prefix, "/")
	for _, path := range []string{o.Path, strings.TrimSuffix(o.Prefix, "/")} {
		if below, ok := strings.CutPrefix(path, prefix); ok && path != "" && (below == "" || below[0] == '/') {
			return true
		}
	}
	return prefix == ""
}

// checkHTTP notes what is wrong with what a route says of requests.
func (v *validator) checkHTTP(at string, r *RouteConfig) {
	if r.To != "" {
		if _, err := ParseAuthority(r.To); err != nil {
			v.note(at+".to", "%v", err)
		}
	}
	h := r.HTTP
	if h == nil {
		return
	}
	at += ".http"
	forms := 0
	for name, text := range map[string]string{"path": h.Path, "prefix": h.Prefix} {
		if text == "" {
			continue
		}
		forms++
		if clean, err := DecisionPath(text); err != nil || clean != text {
			v.note(at+"."+name, "%q is no path as requests have it; it should begin with a slash, without . and .. and with nothing percent-encoded", text)
		}
	}
	if h.Regex != "" {
		forms++
		if _, err := regexp.Compile(h.Regex); err != nil {
			v.note(at+".regex", "%v", err)
		}
	}
	if forms > 1 {
		v.note(at, "path, prefix and regex exclude each other; write one of them")
	}
	for i, m := range h.Methods {
		if !isToken(m) || m != strings.ToUpper(m) {
			v.note(at+".methods", "%q is no method (entry %d); it should be one such as GET", m, i)
		}
	}
	for name := range h.Headers {
		if !isToken(name) {
			v.note(at+".headers", "%q is no name of a field", name)
		}
	}
	v.checkChange(at+".requestHeaders", &h.RequestHeaders)
	v.checkChange(at+".responseHeaders", &h.ResponseHeaders)
	v.checkActions(at, h)
}

func (v *validator) checkActions(at string, h *RouteHTTPConfig) {
	if h.Timeout < 0 {
		v.note(at+".timeout", "the time is negative; it should be positive, or left out")
	}
	if h.MaxHeadBytes < 0 {
		v.note(at+".maxHeadBytes", "the number is negative; it should be positive, or left out")
	}
	if h.Upstream != "" && h.Upstream != UpstreamHTTP1 && h.Upstream != UpstreamHTTP2 {
		v.note(at+".upstream", "%q is neither; it should be http1 or http2", h.Upstream)
	}
	if h.Rewrite.Prefix != "" {
		if h.Prefix == "" {
			v.note(at+".rewrite.prefix", "there is no prefix to rewrite; add prefix to the route")
		}
		if !strings.HasPrefix(h.Rewrite.Prefix, "/") {
			v.note(at+".rewrite.prefix", "%q should begin with a slash", h.Rewrite.Prefix)
		}
	}
	if d := h.Redirect; d != nil {
		if d.Scheme != "" && d.Scheme != "http" && d.Scheme != "https" {
			v.note(at+".redirect.scheme", "%q is neither; it should be http or https", d.Scheme)
		}
		if d.Status != 0 && !slices.Contains([]int{301, 302, 303, 307, 308}, d.Status) {
			v.note(at+".redirect.status", "%d is no redirect; it should be 301, 302, 303, 307 or 308", d.Status)
		}
		if d.Path != "" && d.Prefix != "" {
			v.note(at+".redirect", "path and prefix exclude each other; write one of them")
		}
		if d.Prefix != "" && h.Prefix == "" {
			v.note(at+".redirect.prefix", "there is no prefix to rewrite; add prefix to the route")
		}
	}
}

// ofConnection are the fields that say where a message ends, or who gets it: a route may not change them.
var ofConnection = []string{"Connection", "Content-Length", "Host", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}

func (v *validator) checkChange(at string, c *HeaderChangeConfig) {
	check := func(place, name, value string) {
		switch {
		case !isToken(name):
			v.note(place, "%q is no name of a field", name)
		case slices.Contains(ofConnection, http.CanonicalHeaderKey(name)):
			v.note(place, "%s is of the connection, not of the request; it cannot be changed here", name)
		case strings.ContainsAny(value, "\r\n\x00") || textproto.TrimString(value) != value:
			v.note(place, "the value of %s has a line break or spaces around it", name)
		}
	}
	for name, value := range c.Set {
		check(at+".set", name, value)
	}
	for name, value := range c.Add {
		check(at+".add", name, value)
	}
	for _, name := range c.Remove {
		check(at+".remove", name, "")
	}
}

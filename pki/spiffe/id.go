package spiffe

import (
	"fmt"
	"strings"
)

const (
	// MaxLen is the longest ID that is read, in bytes, scheme included. SPIFFE-ID, section 2.3:
	// "implementations MUST support SPIFFE URIs up to 2048 bytes in length".
	MaxLen = 2048
	// MaxTrustDomainLen is the longest trust domain name, in bytes. SPIFFE-ID, section 2.3: "a maximum
	// length of a trust domain name is 255 bytes".
	MaxTrustDomainLen = 255

	scheme = "spiffe://"
)

// ID is the name of one workload: a SPIFFE ID with a path, or the name of a self-made key (see ParseKey). IDs
// are comparable with == and usable as map keys. The zero ID names nobody; it is what an unauthenticated peer has.
// An ID that is not zero has passed Parse or ParseKey, so its text holds only the letters that SPIFFE-ID, section 2
// allows and can be written to logs and headers as it is.
type ID struct {
	uri   string // whole text, "" in the zero ID
	tdLen int    // length of the trust domain; it follows from uri, so equal texts are equal IDs; 0: the name of a key
}

// ParseError says why a text is not a SPIFFE ID, or why a certificate has none.
type ParseError struct {
	// Text is what was parsed, cut to 128 bytes. It comes from a peer and may hold any byte: print it with %q.
	Text string
	// Problem says what is wrong and what would be right, in plain words.
	Problem string
}

// Error returns the problem and the quoted text.
func (e *ParseError) Error() string {
	if e.Text == "" {
		return e.Problem
	}
	return fmt.Sprintf("%q is not a SPIFFE ID: %s", e.Text, e.Problem)
}

// Parse reads a SPIFFE ID such as spiffe://cluster.local/ns/default/sa/web. It refuses everything that
// SPIFFE-ID, sections 2 to 2.3 do not allow, with a *ParseError: another scheme or case, a trust domain that is
// empty or not of [a-z0-9.-_] (so no port, user or escape), no path, an empty, "." or ".." segment, a
// trailing "/", a segment not of [a-zA-Z0-9.-_] (so no "%", query or fragment), and more than MaxLen bytes.
//
// The specification lets a signing authority have an ID without a path; such an ID names no
// workload (X509-SVID, section 3.1: "MUST have a non-root path component") and is refused here.
func Parse(s string) (ID, error) {
	if len(s) > MaxLen {
		return ID{}, parseErr(s, "it is longer than %d bytes", MaxLen)
	}
	rest, ok := strings.CutPrefix(s, scheme)
	if !ok {
		return ID{}, parseErr(s, "it does not begin with %s in lower case", scheme)
	}
	td, path, hasPath := strings.Cut(rest, "/")
	if problem := trustDomainProblem(td); problem != "" {
		return ID{}, parseErr(s, "%s", problem)
	}
	if !hasPath {
		return ID{}, parseErr(s, "it has no path; a workload's is like %s%s/ns/NAMESPACE/sa/ACCOUNT", scheme, td)
	}
	for seg := range strings.SplitSeq(path, "/") {
		if problem := segmentProblem(seg); problem != "" {
			return ID{}, parseErr(s, "%s", problem)
		}
	}
	return ID{uri: s, tdLen: len(td)}, nil
}

// New makes spiffe://TRUSTDOMAIN/ns/NAMESPACE/sa/SERVICEACCOUNT, the form that Istio uses. Each
// part must be valid by itself: a "/" in a part is refused with a *ParseError, as all is that Parse refuses.
func New(trustDomain, namespace, serviceAccount string) (ID, error) {
	if err := CheckTrustDomain(trustDomain); err != nil {
		return ID{}, err
	}
	for _, part := range []struct{ name, value string }{{"namespace", namespace}, {"service account", serviceAccount}} {
		if problem := segmentProblem(part.value); problem != "" {
			return ID{}, &ParseError{Problem: fmt.Sprintf("%s %q: %s", part.name, clip(part.value), problem)}
		}
	}
	return Parse(scheme + trustDomain + "/ns/" + namespace + "/sa/" + serviceAccount)
}

// CheckTrustDomain returns nil if td is a trust domain name by SPIFFE-ID, section 2.1, otherwise a *ParseError.
func CheckTrustDomain(td string) error {
	if problem := trustDomainProblem(td); problem != "" {
		return &ParseError{Problem: fmt.Sprintf("trust domain %q: %s", clip(td), problem)}
	}
	return nil
}

// String returns the whole ID, or "" for the zero ID. It does not allocate.
func (id ID) String() string { return id.uri }

// IsZero reports whether id names nobody.
func (id ID) IsZero() bool { return id.uri == "" }

// TrustDomain returns the trust domain name, such as cluster.local, or "" for the zero ID. A self-made key is a trust
// domain of its own: it is the whole name then, which no SPIFFE ID can have, as it holds a colon.
func (id ID) TrustDomain() string {
	if id.tdLen == 0 {
		return id.uri
	}
	return id.uri[len(scheme) : len(scheme)+id.tdLen]
}

// Path returns the path with its leading slash, or "" for the zero ID and for a self-made key.
func (id ID) Path() string {
	if id.tdLen == 0 {
		return ""
	}
	return id.uri[len(scheme)+id.tdLen:]
}

// Namespace returns NS of a path that is exactly /ns/NS/sa/SA, and "" for every other ID.
func (id ID) Namespace() string {
	ns, _ := id.istio()
	return ns
}

// ServiceAccount returns SA of a path that is exactly /ns/NS/sa/SA, and "" for every other ID.
func (id ID) ServiceAccount() string {
	_, sa := id.istio()
	return sa
}

// MarshalText returns the ID as String does.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.uri), nil }

// UnmarshalText reads an ID as ParseName does; an empty text is the zero ID.
func (id *ID) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*id = ID{}
		return nil
	}
	parsed, err := ParseName(string(text))
	if err != nil {
		return err
	}
	*id = parsed
	return nil
}

// istio cuts a path of exactly /ns/NS/sa/SA into its two names.
func (id ID) istio() (ns, sa string) {
	rest, ok := strings.CutPrefix(id.Path(), "/ns/")
	if !ok {
		return "", ""
	}
	ns, rest, _ = strings.Cut(rest, "/")
	sa, ok = strings.CutPrefix(rest, "sa/")
	if !ok || strings.Contains(sa, "/") {
		return "", ""
	}
	return ns, sa
}

// trustDomainProblem says why td is not a trust domain name, "" if it is one.
func trustDomainProblem(td string) string {
	if td == "" {
		return "the trust domain is empty"
	}
	if len(td) > MaxTrustDomainLen {
		return fmt.Sprintf("the trust domain is longer than %d bytes", MaxTrustDomainLen)
	}
	for i := range len(td) {
		c := td[i]
		switch {
		case isLower(c):
		case c >= 'A' && c <= 'Z':
			return "the trust domain must be in lower case"
		case c == ':':
			return "the trust domain must not have a port"
		case c == '@':
			return "the trust domain must not have user information"
		case c == '?' || c == '#':
			return "a query or fragment is not allowed"
		case c == '%':
			return "percent-encoding is not allowed"
		default:
			return fmt.Sprintf("the trust domain holds %q; only a-z, 0-9, '.', '-' and '_' are allowed", c)
		}
	}
	return ""
}

// segmentProblem says why seg is not a path segment, "" if it is one.
func segmentProblem(seg string) string {
	switch seg {
	case "":
		return "the path has an empty segment or a trailing slash"
	case ".", "..":
		return "the path has a relative segment (. or ..)"
	}
	for i := range len(seg) {
		c := seg[i]
		switch {
		case isLower(c) || c >= 'A' && c <= 'Z':
		case c == '?' || c == '#':
			return "a query or fragment is not allowed"
		case c == '%':
			return "percent-encoding is not allowed"
		default:
			return fmt.Sprintf("the path holds %q; only letters, digits, '.', '-' and '_' are allowed", c)
		}
	}
	return ""
}

// isLower reports whether c may stand in a trust domain name: [a-z0-9.-_].
func isLower(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '.' || c == '-' || c == '_'
}

// parseErr makes a ParseError about s.
func parseErr(s, format string, args ...any) error {
	if s == "" {
		return &ParseError{Problem: "a SPIFFE ID is empty; it is like spiffe://TRUSTDOMAIN/ns/NAMESPACE/sa/ACCOUNT"}
	}
	return &ParseError{Text: clip(s), Problem: fmt.Sprintf(format, args...)}
}

// clip cuts a text that a peer chose to a length fit for a log line.
func clip(s string) string {
	const maxShown = 128
	if len(s) > maxShown {
		return s[:maxShown]
	}
	return s
}

package vapid

import (
	"encoding/base64"
	"strings"
)

const (
	// Scheme is the name of the authentication scheme (RFC 8292, section 3), which is compared without regard to case.
	Scheme = "vapid"
	// KeyBytes is the length of a public key: an uncompressed point of P-256 (RFC 8292, section 3.2).
	KeyBytes = 65
	// maxHeaderBytes bounds the field: a token, a key and a little.
	maxHeaderBytes = maxTokenBytes + 1024
	// maxTokenBytes bounds the token. RFC 8292, section 2.3: "the size of additional claims SHOULD be kept as small as possible".
	maxTokenBytes = 4 << 10
	// maxParams bounds parameters, of which two count.
	maxParams = 16
)

// strictBase64 is that of RFC 7515, section 2, with no other spelling of the same bytes.
var strictBase64 = base64.RawURLEncoding.Strict()

// Credentials are what a sender shows, read and not yet verified.
type Credentials struct {
	// Token is the JWT (parameter t).
	Token string
	// Key is the public key that is said to have signed it (parameter k).
	Key [KeyBytes]byte
}

// String returns the name of the type: a token is not printed.
func (c Credentials) String() string { return "vapid.Credentials" }

// ParseAuthorization reads the value of an Authorization field: `vapid t=TOKEN, k=KEY`, the parameters in any order and
// as tokens or quoted strings, with others passed over (RFC 8292, section 3; RFC 9110, section 11.4). What it returns is an
// *Error, with the reason OtherScheme where the field is none of ours. It does not belong in Proxy-Authorization.
func ParseAuthorization(value string) (Credentials, error) {
	value = strings.Trim(value, " \t")
	scheme, rest, found := strings.Cut(value, " ")
	if !strings.EqualFold(scheme, Scheme) {
		return Credentials{}, refuse(OtherScheme, "the authentication scheme is not vapid")
	}
	if len(value) > maxHeaderBytes {
		return Credentials{}, refuse(TooLarge, "the field is too long")
	}
	if !found {
		return Credentials{}, refuse(Malformed, "the parameters t and k are missing")
	}
	params, err := parseParams(rest)
	if err != nil {
		return Credentials{}, err
	}
	token, key := params["t"], params["k"]
	if token == "" || key == "" {
		return Credentials{}, refuse(Malformed, "the parameters t and k are not both there")
	}
	c := Credentials{Token: token}
	if strings.ContainsAny(key, "\r\n") || base64.RawURLEncoding.DecodedLen(len(key)) != KeyBytes {
		return Credentials{}, refuse(BadKey, "k is not base64url of 65 bytes")
	}
	if n, err := strictBase64.Decode(c.Key[:], []byte(key)); err != nil || n != KeyBytes {
		return Credentials{}, refuse(BadKey, "k is not base64url of 65 bytes")
	}
	return c, nil
}

// parseParams reads a list of auth-param (RFC 9110, section 11.2). Names are in lower case afterwards; one that is there
// twice is refused ("parameter names MUST only occur once per challenge", and who reads the other one?).
func parseParams(rest string) (map[string]string, error) {
	params := make(map[string]string)
	for {
		// RFC 9110, section 5.6.1.2: a list may have empty elements.
		rest = strings.TrimLeft(rest, " \t,")
		if rest == "" {
			return params, nil
		}
		end := tokenEnd(rest)
		if end == 0 {
			return nil, refuse(Malformed, "a parameter has no name")
		}
		name := strings.ToLower(rest[:end])
		value, ok := strings.CutPrefix(strings.TrimLeft(rest[end:], " \t"), "=")
		if !ok {
			return nil, refuse(Malformed, "the parameter "+quote(name)+" has no value")
		}
		value, rest, ok = cutValue(strings.TrimLeft(value, " \t"))
		if !ok {
			return nil, refuse(Malformed, "the parameter "+quote(name)+" is not written as RFC 9110 says")
		}
		if rest = strings.TrimLeft(rest, " \t"); rest != "" && rest[0] != ',' {
			return nil, refuse(Malformed, "there is no comma after the parameter "+quote(name))
		}
		if _, twice := params[name]; twice {
			return nil, refuse(Malformed, "the parameter "+quote(name)+" is there twice")
		}
		if params[name] = value; len(params) > maxParams {
			return nil, refuse(TooLarge, "there are too many parameters")
		}
	}
}

// cutValue cuts a token or a quoted string off the front of s.
func cutValue(s string) (value, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		end := tokenEnd(s)
		return s[:end], s[end:], end > 0
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			return b.String(), s[i+1:], true
		case c == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case c < ' ' && c != '\t' || c == 0x7f:
			return "", "", false
		default:
			b.WriteByte(c)
		}
	}
	return "", "", false
}

// tokenEnd returns how many bytes at the front of s are tchar (RFC 9110, section 5.6.2).
func tokenEnd(s string) int {
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
		case strings.IndexByte("!#$%&'*+^`|~", c) < 0:
			return i
		}
	}
	return len(s)
}

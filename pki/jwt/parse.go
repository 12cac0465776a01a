package jwt

import (
	"encoding/base64"
	"errors"
	"slices"
	"strings"
)

// maxTokenBytes is what SECURITY.md sets for a token. Those of common issuers have one to three KiB.
const maxTokenBytes = 8 << 10

// strictBase64 is that of RFC 7515, section 2, with no other spelling of the same bytes.
var strictBase64 = base64.RawURLEncoding.Strict()

// parsed is a token that was read and not yet believed.
type parsed struct {
	alg    string
	kid    string // "" for none
	claims map[string]any
	bytes  int // length of the payload
}

// parseToken reads a compact JWS (RFC 7515, section 7.1) whose payload is a set of claims. What it returns is an
// *Error.
func parseToken(token string) (*parsed, error) {
	head, rest, ok := strings.Cut(token, ".")
	payload, signature, ok2 := strings.Cut(rest, ".")
	if !ok || !ok2 || strings.Contains(signature, ".") {
		return nil, refuse(Malformed, "is not three parts with dots between them; encrypted tokens are not taken")
	}
	// encoding/base64 passes over line ends, also when it is strict.
	if strings.ContainsAny(token, "\r\n") {
		return nil, refuse(Malformed, "has line ends in it")
	}
	header, err := decodePart(head)
	if err != nil {
		return nil, partError("header", err)
	}
	claims, err := decodePart(payload)
	if err != nil {
		return nil, partError("payload", err)
	}
	if _, err := strictBase64.DecodeString(signature); err != nil || signature == "" {
		return nil, refuse(Malformed, "has a signature that is not base64url")
	}
	p := &parsed{claims: claims, bytes: len(payload)}
	return p, p.readHeader(header)
}

func decodePart(part string) (map[string]any, error) {
	data, err := strictBase64.DecodeString(part)
	if err != nil {
		return nil, errors.New("is not base64url")
	}
	return decodeObject(data, maxValues)
}

func partError(part string, err error) error {
	if errors.Is(err, errTooMuch) {
		return refuse(TooLarge, part+" has "+err.Error())
	}
	return refuse(Malformed, part+" "+err.Error())
}

// readHeader reads the members that count. jku, jwk, x5u and x5c, which name a key (RFC 7515, sections 4.1.2 to 4.1.6),
// are passed over: some issuers write them, and a token is not asked whom to believe.
func (p *parsed) readHeader(header map[string]any) error {
	// RFC 7515, section 4.1.11: what crit names "MUST be understood and processed", and there is nothing that we do. RFC 7797,
	// section 6, wants b64 in it, so without it is a trick.
	for _, name := range []string{"crit", "b64"} {
		if _, there := header[name]; there {
			return refuse(BadHeader, "header has "+name+", which is not taken")
		}
	}
	if typ, there := header["typ"]; there {
		s, ok := typ.(string)
		// RFC 8725, section 3.11: a token of another type may mean something else with the same claims.
		if !ok || !slices.Contains([]string{"jwt", "jose", "at+jwt"}, strings.TrimPrefix(strings.ToLower(s), "application/")) {
			return refuse(BadHeader, "typ is not JWT or at+jwt")
		}
	}
	// RFC 7519, section 5.2: it says that a token is within the token.
	if _, there := header["cty"]; there {
		return refuse(BadHeader, "header has cty; a token within a token is not taken")
	}
	if kid, there := header["kid"]; there {
		s, ok := kid.(string)
		if !ok || s == "" || len(s) > maxKeyIDBytes || hasControl(s) {
			return refuse(BadHeader, "kid is no text, or too long")
		}
		p.kid = s
	}
	alg, ok := header["alg"].(string)
	if !ok || !slices.Contains(allAlgorithms, alg) {
		return refuse(BadAlgorithm, "alg is not one of a public key")
	}
	p.alg = alg
	return nil
}

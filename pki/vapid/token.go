package vapid

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"math/big"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	// maxLife is the longest that a token may still have (RFC 8292, section 2: the expiry "MUST NOT be more than 24 hours from the
	// time of the request").
	maxLife = 24 * time.Hour
	// maxMembers bounds the members of the header and of the claims.
	maxMembers = 64
	// maxAudiences bounds a list in aud. A sender of one message has one.
	maxAudiences = 16
	// maxSubjectBytes bounds sub, an address to write to.
	maxSubjectBytes = 1024
	// signatureBytes is r and s, 32 bytes each (RFC 7518, section 3.4).
	signatureBytes = 64
)

// claims are those that count.
type claims struct {
	audiences []string
	subject   string
	expires   time.Time
}

// checkToken reads a token and checks everything in it but its time and its audience. What it returns is an *Error.
func checkToken(c *Credentials) (*claims, error) {
	if len(c.Token) > maxTokenBytes {
		return nil, refuse(TooLarge, "the token is too long")
	}
	// encoding/base64 passes over line ends, also when it is strict.
	parts := strings.Split(c.Token, ".")
	if len(parts) != 3 || strings.ContainsAny(c.Token, "\r\n") {
		return nil, refuse(Malformed, "the token is not three parts with dots between them")
	}
	if err := checkHeader(parts[0]); err != nil {
		return nil, err
	}
	read, err := readClaims(parts[1])
	if err != nil {
		return nil, err
	}
	signature, err := strictBase64.DecodeString(parts[2])
	if err != nil {
		return nil, refuse(Malformed, "the signature is not base64url")
	}
	public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), c.Key[:])
	if err != nil {
		return nil, refuse(BadKey, "k is no point of P-256")
	}
	// RFC 7518, section 3.4: r and s one after the other. DER, which has other lengths, is another form.
	if len(signature) != signatureBytes {
		return nil, refuse(BadSignature, "the signature does not have the 64 bytes of ES256")
	}
	digest := sha256.Sum256([]byte(c.Token[:len(parts[0])+1+len(parts[1])]))
	r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
	if !ecdsa.Verify(public, digest[:], r, s) {
		return nil, refuse(BadSignature, "the signature is not one of the key")
	}
	return read, nil
}

// checkHeader takes ES256 and nothing else (RFC 8292, section 2).
func checkHeader(part string) error {
	members, err := decodeMembers(part)
	if err != nil {
		return refuse(Malformed, "the token's header "+err.Error())
	}
	var alg string
	if json.Unmarshal(members["alg"], &alg) != nil || alg != "ES256" {
		return refuse(BadAlgorithm, "alg is not ES256, which is the only one there is (RFC 8292, section 2)")
	}
	if typ, there := members["typ"]; there {
		var s string
		if json.Unmarshal(typ, &s) != nil || !strings.EqualFold(s, "JWT") {
			return refuse(Malformed, "typ is not JWT")
		}
	}
	// RFC 7515, section 4.1.11, and RFC 7797, section 6: there is nothing critical that we know.
	for _, name := range []string{"crit", "b64"} {
		if _, there := members[name]; there {
			return refuse(Malformed, "the token's header has "+name+", which is not taken")
		}
	}
	return nil
}

// readClaims reads aud, exp and sub; others are passed over (RFC 8292, section 2.3).
func readClaims(part string) (*claims, error) {
	members, err := decodeMembers(part)
	if err != nil {
		return nil, refuse(Malformed, "the token's payload "+err.Error())
	}
	c := &claims{}
	if c.audiences, err = readAudiences(members["aud"]); err != nil {
		return nil, err
	}
	var exp json.Number
	raw, there := members["exp"]
	if !there || raw[0] == '"' || json.Unmarshal(raw, &exp) != nil {
		return nil, refuse(BadClaim, "exp is missing, or no number")
	}
	seconds, err := exp.Float64()
	// The upper bound is the year 9999; beyond it times wrap round.
	if err != nil || !(seconds > 0 && seconds <= 253402300799) {
		return nil, refuse(BadClaim, "exp is no number of seconds since 1970")
	}
	c.expires = time.Unix(int64(seconds), 0)
	// RFC 8292, section 2.1: "a mailto: (email) or an https: URI", which a sender may leave out.
	if raw, there := members["sub"]; there {
		if json.Unmarshal(raw, &c.subject) != nil || !isContact(c.subject) {
			return nil, refuse(BadClaim, "sub is no mailto: or https: address")
		}
	}
	return c, nil
}

// readAudiences reads aud, a text or a list of texts (RFC 7519, section 4.1.3).
func readAudiences(raw json.RawMessage) ([]string, error) {
	if len(raw) == 0 {
		return nil, refuse(BadAudience, "aud is missing")
	}
	var one string
	if raw[0] == '"' && json.Unmarshal(raw, &one) == nil {
		return []string{one}, nil
	}
	var list []any
	if raw[0] != '[' || json.Unmarshal(raw, &list) != nil {
		return nil, refuse(BadAudience, "aud is no text and no list of texts")
	}
	if len(list) > maxAudiences {
		return nil, refuse(TooLarge, "aud has too many elements")
	}
	texts := make([]string, len(list))
	for i, v := range list {
		s, ok := v.(string)
		if !ok {
			return nil, refuse(BadAudience, "aud has something other than texts")
		}
		texts[i] = s
	}
	return texts, nil
}

// isContact reports whether s is an address to reach a sender.
func isContact(s string) bool {
	if len(s) > maxSubjectBytes {
		return false
	}
	u, err := url.Parse(s) // refuses control characters, too
	return err == nil && (u.Scheme == "mailto" && u.Opaque != "" || u.Scheme == "https" && u.Host != "")
}

// decodeMembers reads a part of a token: one JSON object, whose members are there once, with nothing after it. Values are
// not looked into.
func decodeMembers(part string) (map[string]json.RawMessage, error) {
	data, err := strictBase64.DecodeString(part)
	if err != nil {
		return nil, errors.New("is not base64url")
	}
	if !utf8.Valid(data) {
		return nil, errors.New("is not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return nil, errors.New("is no JSON object")
	}
	members := make(map[string]json.RawMessage)
	for dec.More() {
		tok, err := dec.Token()
		name, ok := tok.(string)
		var value json.RawMessage
		if err != nil || !ok || dec.Decode(&value) != nil {
			return nil, errors.New("is not JSON")
		}
		if _, twice := members[name]; twice {
			return nil, errors.New("has the member " + quote(name) + " twice")
		}
		if members[name] = value; len(members) > maxMembers {
			return nil, errors.New("has too many members")
		}
	}
	if _, err := dec.Token(); err != nil {
		return nil, errors.New("is not JSON")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("has something after its JSON object")
	}
	return members, nil
}

package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"culvert/pki/spiffe"
)

const (
	// jwtTTL is how long a JWT-SVID is valid: whoever has one is its bearer, so it is short.
	jwtTTL = 5 * time.Minute
	// jwtLeeway is how far clocks may be apart.
	jwtLeeway = 30 * time.Second
	// maxJWTBytes bounds a JWT-SVID that is validated.
	maxJWTBytes = 8 << 10
	// p256Bytes is the length of each half of an ES256 signature (RFC 7518, section 3.4).
	p256Bytes = 32
)

// jwtClaims are those of a JWT-SVID (JWT-SVID, section 3).
type jwtClaims struct {
	Subject  string   `json:"sub"`
	Audience audience `json:"aud"`
	Expires  int64    `json:"exp"`
	Issued   int64    `json:"iat"`
}

// audience is a list that may be written as one text (RFC 7519, section 4.1.3).
type audience []string

// UnmarshalJSON reads a text or a list of texts.
func (a *audience) UnmarshalJSON(data []byte) error {
	if bytes.HasPrefix(data, []byte{'"'}) {
		*a = make(audience, 1)
		return json.Unmarshal(data, &(*a)[0])
	}
	return json.Unmarshal(data, (*[]string)(a))
}

// IssueJWT signs a JWT-SVID for id and audiences, valid for five minutes.
func (a *Authority) IssueJWT(id spiffe.ID, audiences []string) (token string, err error) {
	if err := a.checkGrant(Grant{ID: id}); err != nil {
		return "", err
	}
	d := a.data.Load()
	if d.barred[id] {
		return "", errBarred
	}
	now := time.Now()
	header, err := json.Marshal(map[string]string{"alg": "ES256", "typ": "JWT", "kid": jwtKeyID(&d.jwtKey.PublicKey)})
	if err != nil {
		return "", err
	}
	claims, err := json.Marshal(jwtClaims{Subject: id.String(), Audience: audiences, Expires: now.Add(jwtTTL).Unix(), Issued: now.Unix()})
	if err != nil {
		return "", err
	}
	b64 := base64.RawURLEncoding
	signed := b64.EncodeToString(header) + "." + b64.EncodeToString(claims)
	sum := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, d.jwtKey, sum[:])
	if err != nil {
		return "", err
	}
	sig := append(r.FillBytes(make([]byte, p256Bytes)), s.FillBytes(make([]byte, p256Bytes))...)
	return signed + "." + b64.EncodeToString(sig), nil
}

// ValidateJWT checks a JWT-SVID of this CA for an audience and returns its identity and its claims, JSON. The error
// says what is wrong with it.
func (a *Authority) ValidateJWT(token, audience string) (id spiffe.ID, claims []byte, err error) {
	if len(token) > maxJWTBytes {
		return id, nil, fmt.Errorf("the token has %d bytes, more than %d", len(token), maxJWTBytes)
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return id, nil, errors.New("the token is not of three parts")
	}
	var raw [3][]byte
	for i, part := range parts {
		if raw[i], err = base64.RawURLEncoding.Strict().DecodeString(part); err != nil {
			return id, nil, fmt.Errorf("part %d of the token is not base64url", i+1)
		}
	}
	if err := a.checkJWTSignature(raw[0], raw[2], parts[0]+"."+parts[1]); err != nil {
		return id, nil, err
	}
	var c jwtClaims
	if err := json.Unmarshal(raw[1], &c); err != nil {
		return id, nil, fmt.Errorf("the claims of the token: %w", err)
	}
	now := time.Now()
	switch expires := time.Unix(c.Expires, 0); {
	case now.After(expires.Add(jwtLeeway)):
		return id, nil, fmt.Errorf("the token expired at %s", stamp(expires))
	case time.Unix(c.Issued, 0).After(now.Add(jwtLeeway)):
		return id, nil, errors.New("the token is from the future")
	case audience == "" || !slices.Contains(c.Audience, audience):
		return id, nil, errors.New("the token is for another audience")
	}
	if id, err = spiffe.Parse(c.Subject); err != nil {
		return spiffe.ID{}, nil, err
	}
	if err := a.checkGrant(Grant{ID: id}); err != nil {
		return spiffe.ID{}, nil, err
	}
	return id, raw[1], nil
}

// checkJWTSignature checks the signature of a token by the key that its header names. There is one algorithm, ES256,
// and no other member of the header is looked at.
func (a *Authority) checkJWTSignature(header, sig []byte, signed string) error {
	var h struct {
		Algorithm string `json:"alg"`
		KeyID     string `json:"kid"`
	}
	if err := json.Unmarshal(header, &h); err != nil {
		return fmt.Errorf("the header of the token: %w", err)
	}
	if h.Algorithm != "ES256" || len(sig) != 2*p256Bytes {
		return errors.New("the token is not signed with ES256")
	}
	d := a.data.Load()
	for _, key := range []*ecdsa.PrivateKey{d.jwtKey, d.jwtNext, d.jwtOld} {
		if key == nil || jwtKeyID(&key.PublicKey) != h.KeyID {
			continue
		}
		sum := sha256.Sum256([]byte(signed))
		if ecdsa.Verify(&key.PublicKey, sum[:], new(big.Int).SetBytes(sig[:p256Bytes]), new(big.Int).SetBytes(sig[p256Bytes:])) {
			return nil
		}
		return errors.New("the signature of the token is wrong")
	}
	return errors.New("the token is signed with a key that is not this CA's")
}

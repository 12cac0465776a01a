package vapid

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// tokenHeader is {"typ":"JWT","alg":"ES256"}, in base64url, with its members in the order of RFC 8292, section 2.4, which others
// rely on.
const tokenHeader = "eyJ0eXAiOiJKV1QiLCJhbGciOiJFUzI1NiJ9"

// Sign makes the value of an Authorization field for messages to push resources at origin (as Origin writes it), with
// sub as an address where the sender can be reached, mailto: or https:, or "". exp is when it ends, 24 h ahead at most; it is good for
// any number of messages until then. key must be on P-256, and not be one that also agrees on secrets (RFC 8292, section 3.2).
func Sign(key *ecdsa.PrivateKey, origin, sub string, exp time.Time) (string, error) {
	if key.Curve != elliptic.P256() {
		return "", errors.New("sign vapid: the key is not on P-256, and ES256 is the only algorithm")
	}
	if left := time.Until(exp); left <= 0 || left > maxLife {
		return "", fmt.Errorf("sign vapid: the end is %v from now; it should be up to 24h ahead", left.Round(time.Second))
	}
	if origin == "" || sub != "" && !isContact(sub) {
		return "", fmt.Errorf("sign vapid: the origin is missing, or %s is no mailto: or https: address", quote(sub))
	}
	input, err := signingInput(origin, sub, exp)
	if err != nil {
		return "", fmt.Errorf("sign vapid: %w", err)
	}
	digest := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		return "", fmt.Errorf("sign vapid: %w", err)
	}
	// RFC 7518, section 3.4: both numbers with all their zeros in front.
	var signature [signatureBytes]byte
	r.FillBytes(signature[:signatureBytes/2])
	s.FillBytes(signature[signatureBytes/2:])
	public, err := key.PublicKey.Bytes()
	if err != nil {
		return "", fmt.Errorf("sign vapid: %w", err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	token := input + "." + encode(signature[:])
	if len(token) > maxTokenBytes {
		return "", fmt.Errorf("sign vapid: the token would have more than %d bytes; shorten sub", maxTokenBytes)
	}
	return Scheme + " t=" + token + ", k=" + encode(public), nil
}

// signingInput is what is signed: header and claims, the claims in the order of RFC 8292, section 2.4.
func signingInput(origin, sub string, exp time.Time) (string, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // so that an address stays short and as it is
	err := enc.Encode(struct {
		Aud string `json:"aud"`
		Exp int64  `json:"exp"`
		Sub string `json:"sub,omitempty"`
	}{origin, exp.Unix(), sub})
	return tokenHeader + "." + base64.RawURLEncoding.EncodeToString(bytes.TrimSpace(b.Bytes())), err
}

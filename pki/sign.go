package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// SignJWT signs a token for an audience with the key of the identity, which is its issuer and its subject, and returns it with
// its end, five minutes from now. Whoever knows the key can verify it: a certificate, or the name of a self-made key.
func (s *Source) SignJWT(audience string) (token string, until time.Time, err error) {
	m := s.Current()
	signer, ok := m.Certificate.PrivateKey.(crypto.Signer)
	if !ok {
		return "", until, errors.New("the key of the identity cannot sign")
	}
	alg, err := jwtAlgorithm(signer.Public())
	if err != nil {
		return "", until, err
	}
	now := time.Now()
	until = now.Add(jwtTTL)
	head, err := json.Marshal(map[string]string{"alg": alg, "typ": "JWT"})
	if err != nil {
		return "", until, err
	}
	claims, err := json.Marshal(map[string]any{
		"iss": m.ID.String(), "sub": m.ID.String(), "aud": audience, "iat": now.Unix(), "exp": until.Unix(),
	})
	if err != nil {
		return "", until, err
	}
	b64 := base64.RawURLEncoding
	text := b64.EncodeToString(head) + "." + b64.EncodeToString(claims)
	sig, err := signJWS(signer, []byte(text))
	if err != nil {
		return "", until, err
	}
	return text + "." + b64.EncodeToString(sig), until, nil
}

// jwtAlgorithm is how a key signs (RFC 7518, section 3.1; RFC 8037, section 3.1).
func jwtAlgorithm(pub crypto.PublicKey) (string, error) {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k.Params().BitSize == 8*p256Bytes {
			return "ES256", nil
		}
		return "", fmt.Errorf("an identity with a key on %s signs no tokens here; one on P-256 does", k.Params().Name)
	case ed25519.PublicKey:
		return "EdDSA", nil
	case *rsa.PublicKey:
		return "RS256", nil
	}
	return "", fmt.Errorf("a key of type %T signs no tokens", pub)
}

// signJWS makes the signature of a token.
func signJWS(signer crypto.Signer, text []byte) ([]byte, error) {
	if key, ok := signer.(ed25519.PrivateKey); ok {
		return ed25519.Sign(key, text), nil
	}
	sum := sha256.Sum256(text)
	key, ok := signer.(*ecdsa.PrivateKey)
	if !ok {
		return signer.Sign(rand.Reader, sum[:], crypto.SHA256)
	}
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		return nil, err
	}
	return append(r.FillBytes(make([]byte, p256Bytes)), s.FillBytes(make([]byte, p256Bytes))...), nil // RFC 7518, section 3.4
}

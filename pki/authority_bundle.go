package pki

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// bundleRefresh is how often those that follow the bundle should look: often enough that a root which is announced is
// known everywhere long before it signs.
const bundleRefresh = 5 * time.Minute

// maxBundleBytes bounds a bundle that is fetched.
const maxBundleBytes = 1 << 20

// jwkSet is a SPIFFE bundle (SPIFFE Trust Domain and Bundle, section 4.1): a JWKS (RFC 7517) with two more members.
type jwkSet struct {
	Keys        []jwk  `json:"keys"`
	Sequence    uint64 `json:"spiffe_sequence,omitempty"`
	RefreshHint int    `json:"spiffe_refresh_hint,omitempty"` // seconds
}

// jwk is a key of it. X5C is base64 of DER, with padding (RFC 7517, section 4.7), the numbers are base64url without.
type jwk struct {
	Use     string   `json:"use"` // x509-svid or jwt-svid
	KeyType string   `json:"kty"`
	KeyID   string   `json:"kid,omitempty"`
	Curve   string   `json:"crv,omitempty"`
	X       string   `json:"x,omitempty"`
	Y       string   `json:"y,omitempty"`
	N       string   `json:"n,omitempty"`
	E       string   `json:"e,omitempty"`
	X5C     [][]byte `json:"x5c,omitempty"`
}

// Values of use (SPIFFE Trust Domain and Bundle, section 4.2.2).
const (
	useX509 = "x509-svid"
	useJWT  = "jwt-svid"
)

// encodeBundle writes the trust bundle of d. trustDomain is for errors.
func encodeBundle(trustDomain string, d *authorityData) ([]byte, error) {
	set := jwkSet{Sequence: d.state.Sequence, RefreshHint: int(bundleRefresh / time.Second)}
	for _, root := range d.roots {
		key, err := encodeJWK(root.PublicKey)
		if err != nil {
			return nil, fmt.Errorf("bundle of %s: root %s: %w", trustDomain, certName(root), err)
		}
		key.Use, key.X5C = useX509, [][]byte{root.Raw}
		set.Keys = append(set.Keys, key)
	}
	jwts, err := jwtKeys(d)
	if err != nil {
		return nil, err
	}
	set.Keys = append(set.Keys, jwts...)
	return json.Marshal(set)
}

// jwtKeys returns the keys that JWT-SVIDs of d's authority may be signed with.
func jwtKeys(d *authorityData) (keys []jwk, err error) {
	for _, key := range []*ecdsa.PrivateKey{d.jwtKey, d.jwtNext, d.jwtOld} {
		if key == nil {
			continue
		}
		j, err := encodeJWK(&key.PublicKey)
		if err != nil {
			return nil, err
		}
		j.Use, j.KeyID = useJWT, jwtKeyID(&key.PublicKey)
		keys = append(keys, j)
	}
	return keys, nil
}

// encodeJWK writes a public key (RFC 7518, section 6, and RFC 8037).
func encodeJWK(pub any) (j jwk, err error) {
	b64 := base64.RawURLEncoding.EncodeToString
	switch key := pub.(type) {
	case *ecdsa.PublicKey:
		point, err := key.Bytes() // 4, x, y
		if err != nil {
			return j, err
		}
		half := (len(point) - 1) / 2
		return jwk{KeyType: "EC", Curve: key.Curve.Params().Name, X: b64(point[1 : 1+half]), Y: b64(point[1+half:])}, nil
	case ed25519.PublicKey:
		return jwk{KeyType: "OKP", Curve: "Ed25519", X: b64(key)}, nil
	case *rsa.PublicKey:
		return jwk{KeyType: "RSA", N: b64(key.N.Bytes()), E: b64(big.NewInt(int64(key.E)).Bytes())}, nil
	}
	return j, fmt.Errorf("a key of kind %T has no form in a bundle", pub)
}

// jwtKeyID names a key of JWT-SVIDs: the first half of the SHA-256 of its point.
func jwtKeyID(key *ecdsa.PublicKey) string {
	point, err := key.Bytes()
	if err != nil {
		return "" // readJWTKeys lets P-256 in only
	}
	sum := sha256.Sum256(point)
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

// decodeRoots reads the roots of a bundle. Keys of other uses are passed over.
func decodeRoots(text []byte) ([]*x509.Certificate, error) {
	var set jwkSet
	if err := json.Unmarshal(text, &set); err != nil {
		return nil, fmt.Errorf("the bundle is not JSON: %w", err)
	}
	var roots []*x509.Certificate
	for i, key := range set.Keys {
		if key.Use != useX509 {
			continue
		}
		if len(key.X5C) != 1 || len(roots) == maxRoots { // section 4.2.2: exactly one certificate
			return nil, fmt.Errorf("key %d of the bundle has %d certificates, after %d roots", i+1, len(key.X5C), len(roots))
		}
		root, err := x509.ParseCertificate(key.X5C[0])
		if err != nil {
			return nil, fmt.Errorf("key %d of the bundle: %w", i+1, err)
		}
		if !root.BasicConstraintsValid || !root.IsCA {
			return nil, fmt.Errorf("key %d of the bundle: %s is not a CA", i+1, certName(root))
		}
		if problem := keyProblem(root); problem != "" {
			return nil, fmt.Errorf("key %d of the bundle: %s: %s", i+1, certName(root), problem)
		}
		roots = append(roots, root)
	}
	if len(roots) == 0 {
		return nil, errors.New("the bundle has no root")
	}
	return roots, nil
}

// Bundle returns the trust bundle in SPIFFE's format: the roots, and the keys of JWT-SVIDs.
func (a *Authority) Bundle() []byte { return a.data.Load().bundle }

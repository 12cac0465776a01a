package jwt

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync/atomic"
)

const (
	// keyScheme begins the name of a self-made key.
	keyScheme = "key:"
	// maxKeyIDBytes bounds a kid. They are names, numbers or hashes; it is only ever compared.
	maxKeyIDBytes = 256
	// minRSABits is what RFC 7518, section 3.3, asks for.
	minRSABits = 2048
	// maxRSABits keeps a check below a millisecond.
	maxRSABits = 8192
	// maxFileBytes is enough for a key set, a certificate with its chain, or the CAs of a system.
	maxFileBytes = 1 << 20
)

// verifyKey is a public key that signs tokens.
type verifyKey struct {
	// immutable
	id     string           // kid, "" if it has none
	public crypto.PublicKey // *ecdsa.PublicKey, *rsa.PublicKey or ed25519.PublicKey
	algs   []string         // the algorithms that it is for

	withdrawn atomic.Bool // it is no longer in its issuer's set, so what it signed is nothing any more
}

// algorithmsOf returns the algorithms of a key, by its kind and size (RFC 7518, sections 3.3 to 3.5; RFC 8037, section 3.1),
// and nil for one that is not taken. A token only chooses among them.
func algorithmsOf(public crypto.PublicKey) []string {
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		switch key.Curve {
		case elliptic.P256():
			return []string{"ES256"}
		case elliptic.P384():
			return []string{"ES384"}
		case elliptic.P521():
			return []string{"ES512"}
		}
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits >= minRSABits && bits <= maxRSABits {
			return []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
		}
	case ed25519.PublicKey:
		if len(key) == ed25519.PublicKeySize {
			return []string{"EdDSA"}
		}
	}
	return nil
}

// allAlgorithms are those of every kind of key.
var allAlgorithms = []string{"ES256", "ES384", "ES512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "EdDSA"}

// errWeakKey is the refusal of a key that no algorithm is for.
var errWeakKey = errors.New("is a key of a kind or size that is not taken; use ECDSA P-256, P-384 or P-521, Ed25519, or RSA of 2048 to 8192 bits")

// newKey makes the key with the name id.
func newKey(id string, public crypto.PublicKey) (*verifyKey, error) {
	algs := algorithmsOf(public)
	if algs == nil {
		return nil, errWeakKey
	}
	return &verifyKey{id: id, public: public, algs: algs}, nil
}

// same reports whether both are one key with one name and use.
func (k *verifyKey) same(other *verifyKey) bool {
	return k.id == other.id && slices.Equal(k.algs, other.algs) && equalKeys(k.public, other.public)
}

// equalKeys compares two keys of any kind.
func equalKeys(a, b crypto.PublicKey) bool {
	e, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && b != nil && e.Equal(b)
}

// readKey reads the key of a PEM file: a public key, or that of a certificate, whose dates do not matter.
func readKey(c KeyConfig) (*verifyKey, error) {
	data, err := readFile(c.File, maxFileBytes)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s: there is no PEM block (-----BEGIN …-----) in it", c.File)
	}
	var public crypto.PublicKey
	switch block.Type {
	case "PUBLIC KEY":
		public, err = x509.ParsePKIXPublicKey(block.Bytes)
	case "CERTIFICATE":
		var cert *x509.Certificate
		if cert, err = x509.ParseCertificate(block.Bytes); err == nil {
			public = cert.PublicKey
		}
	default:
		return nil, fmt.Errorf("%s: holds a %s; it should be a PUBLIC KEY or a CERTIFICATE", c.File, quote(block.Type))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.File, err)
	}
	key, err := newKey(c.ID, public)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.File, err)
	}
	return key, nil
}

// readFile reads a regular file of at most limit bytes.
func readFile(name string, limit int64) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	// Before Open, which would wait for the other end of a FIFO.
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: is not a regular file", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s: is bigger than %d bytes", name, limit)
	}
	return data, nil
}

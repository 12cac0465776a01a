package keyaddr

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base32"
	"encoding/base64"
	"fmt"
	"net/netip"
)

const (
	// minRSABits is the smallest RSA key that gets an address; TLS and SSH refuse smaller ones here too.
	minRSABits = 2048
	// maxRSABits keeps the work for a hostile key small; it is the largest that OpenSSH makes.
	maxRSABits = 16384
	// nodeIDBytes is the length of a node's ID, and of the host part of a V1 address.
	nodeIDBytes = 8
	// pointBytes is the length of an uncompressed P-256 point. What is longer is hashed by V1.
	pointBytes = 65
)

// KeyError says why a key has no name or address.
type KeyError struct {
	// Detail says what is wrong with the key and which keys would be right.
	Detail string
}

// Error returns the detail.
func (e *KeyError) Error() string { return e.Detail }

// Digest returns the 32 bytes that name pub (spiffe.KeyID): the SHA-256 of the 65 bytes of an uncompressed P-256 point,
// or the 32 bytes of an Ed25519 key as they are. pub is an *ecdsa.PublicKey or *ecdh.PublicKey on P-256, or an
// ed25519.PublicKey; a *KeyError comes back for every other kind, for a point that is not on its curve, and for an
// Ed25519 key that is not canonical or of low order: with such a key, signatures of anybody verify.
func Digest(pub crypto.PublicKey) ([32]byte, error) {
	if _, ok := pub.(*rsa.PublicKey); ok {
		return [32]byte{}, wrongKind(pub, "P-256 or Ed25519")
	}
	b, err := keyBytes(pub)
	if err != nil {
		return [32]byte{}, err
	}
	if len(b) == ed25519.PublicKeySize {
		return [32]byte(b), nil
	}
	return sha256.Sum256(b), nil
}

// V1 returns the IPv6 address that meshauth, ugate and webpush-gate give to pub (certs.Pub2VIP): fd00::/64 and the NodeID.
// Besides the keys of Digest it takes RSA of 2048 to 16384 bits. A *KeyError comes back as from Digest. The address is
// an index only, see the package.
func V1(pub crypto.PublicKey) (netip.Addr, error) {
	id, err := node(pub)
	if err != nil {
		return netip.Addr{}, err
	}
	addr := [16]byte{0: 0xfd}
	copy(addr[16-nodeIDBytes:], id[:])
	return netip.AddrFrom16(addr), nil
}

// V2 returns the IPv6 address of pub that cannot be aimed at: the byte 0xfd (RFC 4193, section 3.1: locally assigned) and
// the first 120 bits of the SHA-256 of the key's bytes, which are the 65 of an uncompressed P-256 point, the 32 of an
// Ed25519 key, or the DER of an RSA key. It takes the keys of V1 and returns its errors. Another key with the same address
// costs some 2^120 keys to find, two keys of one owner with the same address some 2^60: it is an index too.
func V2(pub crypto.PublicKey) (netip.Addr, error) {
	b, err := keyBytes(pub)
	if err != nil {
		return netip.Addr{}, err
	}
	sum := sha256.Sum256(b)
	addr := [16]byte{0: 0xfd}
	copy(addr[1:], sum[:])
	return netip.AddrFrom16(addr), nil
}

// NodeID returns the last 8 bytes of the key's bytes in base64url without padding, 11 letters. For RSA they are the last 8
// bytes of the SHA-1 of the DER, which is no use of SHA-1 that needs more of it than spreading. It takes the keys of V1
// and returns its errors.
func NodeID(pub crypto.PublicKey) (string, error) {
	id, err := node(pub)
	if err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(id[:]), nil
}

// Base32 returns the Digest in base32 (RFC 4648, section 6) without padding, 52 letters in upper case, as meshauth writes
// it (PublicKeyBase32SHA). In lower case it is the name after "key:" of spiffe.KeyID, and fits a DNS label. It takes the
// keys of Digest and returns its errors.
func Base32(pub crypto.PublicKey) (string, error) {
	digest, err := Digest(pub)
	if err != nil {
		return "", err
	}
	return base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(digest[:]), nil
}

// node returns the 8 bytes of NodeID and of V1's host part.
func node(pub crypto.PublicKey) (id [nodeIDBytes]byte, err error) {
	b, err := keyBytes(pub)
	if err != nil {
		return id, err
	}
	if len(b) > pointBytes {
		sum := sha1.Sum(b)
		b = sum[:]
	}
	copy(id[:], b[len(b)-nodeIDBytes:])
	return id, nil
}

// keyBytes returns the bytes of pub that the package comment lists, after checking that it is a sound key.
func keyBytes(pub crypto.PublicKey) ([]byte, error) {
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		if pub == nil || pub.Curve != elliptic.P256() {
			return nil, wrongKind(pub, "P-256, Ed25519 or RSA")
		}
		//lint:ignore SA1019 Bytes takes it for granted that there are coordinates, and panics
		if pub.X == nil || pub.Y == nil {
			return nil, &KeyError{Detail: "the P-256 key is empty; make a new key"}
		}
		b, err := pub.Bytes()
		if err != nil {
			return nil, &KeyError{Detail: "the P-256 key is no point of its curve; make a new key"}
		}
		return b, nil
	case *ecdh.PublicKey:
		if pub == nil || pub.Curve() != ecdh.P256() { // crypto/ecdh makes no key that is off its curve
			return nil, wrongKind(pub, "P-256, Ed25519 or RSA")
		}
		return pub.Bytes(), nil
	case ed25519.PublicKey:
		if problem := ed25519Problem(pub); problem != "" {
			return nil, &KeyError{Detail: problem}
		}
		return pub, nil
	case *rsa.PublicKey:
		if pub == nil || pub.N == nil || pub.N.Sign() <= 0 || pub.E < 3 {
			return nil, &KeyError{Detail: "the RSA key is no key; make a new one"}
		}
		if n := pub.N.BitLen(); n < minRSABits || n > maxRSABits {
			return nil, &KeyError{Detail: fmt.Sprintf("the RSA key has %d bits; it must have %d to %d", n, minRSABits, maxRSABits)}
		}
		return x509.MarshalPKCS1PublicKey(pub), nil
	}
	return nil, wrongKind(pub, "P-256, Ed25519 or RSA")
}

// wrongKind makes the error for a key of another kind than the right ones.
func wrongKind(pub crypto.PublicKey, right string) error {
	what := fmt.Sprintf("%T", pub)
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		if pub != nil && pub.Curve != nil {
			what = "ECDSA on " + pub.Curve.Params().Name
		}
	case *ecdh.PublicKey:
		if pub != nil {
			what = fmt.Sprintf("ECDH on %v", pub.Curve())
		}
	case *rsa.PublicKey:
		what = "RSA"
	case nil:
		what = "missing"
	}
	return &KeyError{Detail: fmt.Sprintf("the key is %s; it must be %s", what, right)}
}

package keyaddr

//lint:file-ignore SA1019 keys as nobody should make them are what these tests are about

import (
	"crypto"
	"crypto/dsa"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"math/big"
	"net/netip"
	"strings"
	"testing"
)

func TestUnsoundKeysAreRefused(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384h, err := p384.PublicKey.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	x25519, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := p256(t, keyUA)
	off := &ecdsa.PublicKey{Curve: elliptic.P256(), X: good.X, Y: new(big.Int).Add(good.Y, big.NewInt(1))}
	big16k := new(big.Int).Lsh(big.NewInt(1), 16384)
	cases := []struct {
		name string
		key  crypto.PublicKey
		want string // what the error says
	}{
		{"none", nil, "P-256"},
		{"private key", &ecdsa.PrivateKey{}, "P-256"},
		{"nil ECDSA", (*ecdsa.PublicKey)(nil), "P-256"},
		{"no curve", &ecdsa.PublicKey{}, "P-256"},
		{"no point", &ecdsa.PublicKey{Curve: elliptic.P256()}, "empty"},
		{"infinity", &ecdsa.PublicKey{Curve: elliptic.P256(), X: new(big.Int), Y: new(big.Int)}, "no point of its curve"},
		{"off the curve", off, "no point of its curve"},
		{"negative", &ecdsa.PublicKey{Curve: elliptic.P256(), X: new(big.Int).Neg(good.X), Y: good.Y}, "no point of its curve"},
		{"too long", &ecdsa.PublicKey{Curve: elliptic.P256(), X: big16k, Y: good.Y}, "no point of its curve"},
		{"P-384", &p384.PublicKey, "P-384"},
		{"P-384 ECDH", p384h, "P-384"},
		{"X25519", x25519.PublicKey(), "X25519"},
		{"nil ECDH", (*ecdh.PublicKey)(nil), "P-256"},
		{"DSA", &dsa.PublicKey{}, "P-256"},
		{"nil RSA", (*rsa.PublicKey)(nil), ""},
		{"RSA without modulus", &rsa.PublicKey{E: 65537}, ""},
		{"RSA 1024", &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 1023), E: 65537}, ""},
		{"RSA 16385", &rsa.PublicKey{N: big16k, E: 65537}, ""},
		{"RSA exponent", &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 2047), E: 1}, ""},
		{"Ed25519 of 31 bytes", ed25519.PublicKey(make([]byte, 31)), "31 bytes"},
		{"Ed25519 of no bytes", ed25519.PublicKey(nil), "0 bytes"},
		{"Ed25519 off the curve", ed(t, "02"+strings.Repeat("00", 31)), "no point of its curve"},
	}
	// The eight points of low order, and the encodings of them that are not canonical.
	for _, low := range []string{
		"0100000000000000000000000000000000000000000000000000000000000000",
		"0100000000000000000000000000000000000000000000000000000000000080",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0000000000000000000000000000000000000000000000000000000000000080",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
	} {
		cases = append(cases, struct {
			name string
			key  crypto.PublicKey
			want string
		}{"low order " + low[:8] + low[56:], ed(t, low), "low order"})
	}
	for _, twice := range []string{
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
		"ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	} {
		cases = append(cases, struct {
			name string
			key  crypto.PublicKey
			want string
		}{"not canonical " + twice[:8] + twice[56:], ed(t, twice), "not canonical"})
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			check := func(what string, err error) {
				t.Helper()
				if _, ok := errors.AsType[*KeyError](err); !ok || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%s: %v, want a *KeyError that says %q", what, err, c.want)
				}
			}
			_, err := Digest(c.key)
			if _, isRSA := c.key.(*rsa.PublicKey); isRSA {
				if err == nil || !strings.Contains(err.Error(), "must be P-256 or Ed25519") {
					t.Errorf("Digest of an RSA key: %v", err)
				}
			} else {
				check("Digest", err)
			}
			_, err = V1(c.key)
			check("V1", err)
			_, err = V2(c.key)
			check("V2", err)
			_, err = NodeID(c.key)
			check("NodeID", err)
			if _, err = Base32(c.key); err == nil {
				t.Error("Base32 takes it")
			}
		})
	}
}

// TestLowOrderKeysVerifyForgeries shows why keys of low order are refused: a signature that nobody made.
func TestLowOrderKeysVerifyForgeries(t *testing.T) {
	key := ed(t, "01"+strings.Repeat("00", 31))
	forged := append([]byte{1}, make([]byte, 63)...)
	if !ed25519.Verify(key, []byte("anything"), forged) {
		t.Fatal("crypto/ed25519 refuses the key by itself now; Digest need not")
	}
	if _, err := Digest(key); err == nil {
		t.Error("Digest takes a key with which a forged signature verifies")
	}
}

// TestKeysOfUsAreSound checks that no key that crypto/ed25519 makes is refused, and that what it cannot decode is.
func TestKeysOfUsAreSound(t *testing.T) {
	seed := sha256.Sum256([]byte("seed"))
	for range 200 {
		seed = sha256.Sum256(seed[:])
		pub := ed25519.NewKeyFromSeed(seed[:]).Public().(ed25519.PublicKey)
		if digest, err := Digest(pub); err != nil || string(digest[:]) != string(pub) {
			t.Fatalf("Digest(%x) = %x, %v, want the key", pub, digest, err)
		}
	}
}

// FuzzDigest compares with crypto: what has a digest is a key that crypto can use, and keeps its address.
func FuzzDigest(f *testing.F) {
	f.Add([]byte(ed(f, edTest1)))
	f.Add([]byte(ed(f, "01"+strings.Repeat("00", 31))))
	point, err := p256(f, keyUA).Bytes()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(point)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == pointBytes {
			x, y := new(big.Int).SetBytes(b[1:33]), new(big.Int).SetBytes(b[33:])
			_, want := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, b[1:]...))
			if _, err := Digest(&ecdsa.PublicKey{Curve: elliptic.P256(), X: x, Y: y}); (err == nil) != (want == nil) {
				t.Errorf("Digest of %x: %v, crypto/ecdsa: %v", b, err, want)
			}
			return
		}
		digest, err := Digest(ed25519.PublicKey(b))
		if err != nil {
			return
		}
		if string(digest[:]) != string(b) {
			t.Errorf("Digest(%x) = %x", b, digest)
		}
		if v1, err := V1(ed25519.PublicKey(b)); err != nil || !netip.MustParsePrefix("fd00::/64").Contains(v1) {
			t.Errorf("V1(%x) = %v, %v", b, v1, err)
		}
	})
}

package keyaddr

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"encoding/hex"
	"math/big"
	"net/netip"
	"testing"
)

// Public keys out of the RFCs, each the base64url of an uncompressed P-256 point.
const (
	keyVAPID  = "BA1Hxzyi1RUM1b5wjxsn7nGxAszw2u61m164i3MrAIxHF6YK5h4SDYic-dRuU_RCPCfA5aq9ojSwk5Y2EmClBPs" // RFC 8292, section 2.4: k
	keyUA     = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4" // RFC 8291, section 5: ua_public
	keySender = "BP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A8" // RFC 8291, section 5: as_public
)

// edTest1 is the public key of RFC 8032, section 7.1, TEST 1.
const edTest1 = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"

// rsaModulus is that of a key that `openssl genrsa 2048` made; its exponent is 65537.
const rsaModulus = "" +
	"ba3d84cf3d085518daa2ab7a01bdefd42ef98f28556fd3a352ce8ac1dfe15e678d8d1f52a6d49f27786527871c56a2e4" +
	"9448b50f2919c012020b9dc96662b94671c232f044de8a74dfd370c6ab4a37c27c3b64a7d79e49ca4bc67eb23be55165" +
	"39e5a43be545ae43c77f2ba2b99fbc06e8dfeed69c54583e9a2a914e2f26ae7c9b6e0ccdda98d94cd33cfd0c0c0c8b1b" +
	"f3564984d3c37ccc7f0c0435e02e4b8c39c13818d4113b06c6c172f99569583ba11f68af604fd38a94ae4eae472f90b4" +
	"37aafd6d7032e7982be89fe5cad3346e2c83d3d448e312285ab5bac8d9a5bcc362ae2707b5d0b8dbd90868e343971953" +
	"63815c4992b402c0b3cf03f919ac8e97"

func p256(t testing.TB, text string) *ecdsa.PublicKey {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), b)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func ed(t testing.TB, text string) ed25519.PublicKey {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestVectorsV1 has the addresses of interoperating implementations for the keys of RFC 8292 and RFC 8291.
func TestVectorsV1(t *testing.T) {
	for _, c := range []struct{ name, key, addr, node string }{
		{"RFC 8292 k", keyVAPID, "fd00::9396:3612:60a5:4fb", "k5Y2EmClBPs"},
		{"RFC 8291 ua_public", keyUA, "fd00::4699:db6:8200:8b0e", "RpkNtoIAiw4"},
		{"RFC 8291 as_public", keySender, "fd00::e8f0:6bbb:78e5:ec0f", "6PBru3jl7A8"},
	} {
		t.Run(c.name, func(t *testing.T) {
			key := p256(t, c.key)
			if got, err := V1(key); err != nil || got != netip.MustParseAddr(c.addr) {
				t.Errorf("V1 = %v, %v, want %s", got, err, c.addr)
			}
			if got, err := NodeID(key); err != nil || got != c.node {
				t.Errorf("NodeID = %q, %v, want %q", got, err, c.node)
			}
			other, err := key.ECDH()
			if err != nil {
				t.Fatal(err)
			}
			if got, err := V1(other); err != nil || got != netip.MustParseAddr(c.addr) {
				t.Errorf("V1 of the ECDH form = %v, %v, want %s", got, err, c.addr)
			}
		})
	}
}

// TestHashedBytes says which bytes are hashed: the wanted values were made with sha256sum, sha1sum and base32 of the
// decoded keys, and of `openssl rsa -RSAPublicKey_out -outform DER` for the RSA key.
func TestHashedBytes(t *testing.T) {
	n, _ := new(big.Int).SetString(rsaModulus, 16)
	for _, c := range []struct {
		name                   string
		key                    crypto.PublicKey
		digest, v1, v2, base32 string
	}{
		{
			"P-256", p256(t, keyVAPID), "55e2a4de94fa76f38efdbf68ab4e212fc64099a7aec4497941faef2e29164cbd", "fd00::9396:3612:60a5:4fb",
			"fd55:e2a4:de94:fa76:f38e:fdbf:68ab:4e21", "KXRKJXUU7J3PHDX5X5UKWTRBF7DEBGNHV3CES6KB7LXS4KIWJS6Q",
		},
		{
			"Ed25519", ed(t, edTest1), edTest1, "fd00::af02:1a68:f707:511a",
			"fd21:fe31:dfa1:54a2:6162:6bf8:5404:6fd2", "25NJQAMCWEFLPVKL73J4SZAHHIHOC4XT3KTCGJNPAINGR5YHKENA",
		},
		{
			"RSA", &rsa.PublicKey{N: n, E: 65537}, "", "fd00::63f0:7d71:d784:acf9",
			"fd0d:e315:aba9:fbd3:2306:a439:b86a:af47", "",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			digest, err := Digest(c.key)
			if got := hex.EncodeToString(digest[:]); c.digest != "" && (err != nil || got != c.digest) {
				t.Errorf("Digest = %s, %v, want %s", got, err, c.digest)
			}
			if got, err := V1(c.key); err != nil || got.String() != c.v1 {
				t.Errorf("V1 = %v, %v, want %s", got, err, c.v1)
			}
			if got, err := V2(c.key); err != nil || got.String() != c.v2 {
				t.Errorf("V2 = %v, %v, want %s", got, err, c.v2)
			}
			if got, err := Base32(c.key); c.base32 != "" && (err != nil || got != c.base32) {
				t.Errorf("Base32 = %s, %v, want %s", got, err, c.base32)
			}
			if c.digest == "" {
				if _, err := Base32(c.key); err == nil {
					t.Error("Base32 takes an RSA key")
				}
			}
		})
	}
}

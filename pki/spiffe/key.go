package spiffe

import (
	"encoding/base32"
	"fmt"
	"strings"
)

const (
	keyScheme = "key:"
	// keyNameLen is the length of 32 bytes in base32 without padding.
	keyNameLen = 52
	// keyAlphabet is that of RFC 4648, section 6, in lower case, so that a name can be a DNS label.
	keyAlphabet = "abcdefghijklmnopqrstuvwxyz234567"
)

// KeyID names a self-made key, which is an identity without a CA: "key:" and base32 (RFC 4648, section 6; lower case, no
// padding) of 32 bytes, which are the SHA-256 of an uncompressed P-256 point, or an Ed25519 public key as it is.
func KeyID(digest [32]byte) ID {
	return ID{uri: keyScheme + base32.NewEncoding(keyAlphabet).WithPadding(base32.NoPadding).EncodeToString(digest[:])}
}

// ParseKey reads the name that KeyID writes, and nothing else: a *ParseError for upper case, padding, another length, or
// bits after the last of the 32 bytes.
func ParseKey(s string) (ID, error) {
	text, ok := strings.CutPrefix(s, keyScheme)
	if !ok || len(text) != keyNameLen {
		return ID{}, &ParseError{Problem: fmt.Sprintf("%q is not the name of a key: that is %q and %d letters of a-z and 2-7", clip(s), keyScheme, keyNameLen)}
	}
	var digest [32]byte
	encoding := base32.NewEncoding(keyAlphabet).WithPadding(base32.NoPadding)
	if n, err := encoding.Decode(digest[:], []byte(text)); err != nil || n != len(digest) || KeyID(digest).uri != s {
		return ID{}, &ParseError{Problem: fmt.Sprintf("%q is not the name of a key: its letters are not base32 (a-z, 2-7) of 32 bytes", clip(s))}
	}
	return ID{uri: s}, nil
}

// ParseName reads a SPIFFE ID or the name of a key, for configurations: what a certificate names is read by Parse.
func ParseName(s string) (ID, error) {
	if strings.HasPrefix(s, keyScheme) {
		return ParseKey(s)
	}
	return Parse(s)
}

// IsKey reports whether id names a self-made key.
func (id ID) IsKey() bool { return id.uri != "" && id.tdLen == 0 }

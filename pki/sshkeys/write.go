package sshkeys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/ssh"
)

// AppendAuthorizedKey appends a line for authorized_keys, with its end, to b: the type, the key in base64 of its encoding
// of RFC 4253, section 6.6 (which sshd needs; the bare point of an ECDSA key it cannot read), and the comment, which may be
// empty. pub is an ed25519.PublicKey, an *ecdsa.PublicKey on P-256, P-384 or P-521, or an *rsa.PublicKey of 2048 bits and
// more. It fails for other keys, for a point that is not on its curve, for a comment of more than one line, and for a line
// longer than MaxLineBytes; b is returned unchanged then.
func AppendAuthorizedKey(b []byte, pub crypto.PublicKey, comment string) ([]byte, error) {
	fail := func(format string, args ...any) ([]byte, error) {
		return b, fmt.Errorf("authorized key %q: %s", clip(comment), fmt.Sprintf(format, args...))
	}
	if !utf8.ValidString(comment) || strings.ContainsFunc(comment, unicode.IsControl) || strings.TrimSpace(comment) != comment {
		return fail("the comment must be one line of text without white space around it")
	}
	key, err := publicKey(pub)
	if err != nil {
		return fail("%v", err)
	}
	line := ssh.MarshalAuthorizedKey(key)
	if comment != "" {
		line = append(line[:len(line)-1], ' ')
		line = append(append(line, comment...), '\n')
	}
	if len(line) > MaxLineBytes {
		return fail("the line would be longer than %d bytes", MaxLineBytes)
	}
	return append(b, line...), nil
}

// publicKey is pub as SSH has it, after a look at whether it is a key at all: ssh.NewPublicKey takes what crypto would
// panic about.
func publicKey(pub crypto.PublicKey) (ssh.PublicKey, error) {
	const right = "Ed25519, ECDSA on P-256, P-384 or P-521, or RSA"
	switch key := pub.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		//lint:ignore SA1019 Bytes takes it for granted that there are coordinates, and panics
		if key == nil || key.Curve == nil || key.X == nil || key.Y == nil {
			return nil, fmt.Errorf("the ECDSA key is empty")
		}
		if _, err := key.Bytes(); err != nil {
			return nil, fmt.Errorf("the ECDSA key is no point of its curve")
		}
	case *rsa.PublicKey:
		if key == nil || key.N == nil {
			return nil, fmt.Errorf("the RSA key is empty")
		}
	default:
		return nil, fmt.Errorf("%T is no key for SSH; it must be %s", pub, right)
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("%w; it must be %s", err, right)
	}
	if why := weakness(key); why != "" {
		return nil, fmt.Errorf("%s", why)
	}
	return key, nil
}

package pki

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"culvert/pki/keyaddr"
	"culvert/pki/spiffe"
)

// maxPinnedKeys bounds the self-made keys that are believed.
const maxPinnedKeys = 100_000

// pinnedKey is a self-made key that is believed, and how far.
type pinnedKey struct {
	file    string
	line    int
	expires time.Time                  // zero: never
	from    func(addr netip.Addr) bool // whether it may come from there; nil: from anywhere
}

// pin reads a file of self-made keys.
func (t *trust) pin(in *input) error {
	var rest [][]byte // what is not ours is of ssh
	n := 0
	for line := range bytes.SplitSeq(in.data, []byte("\n")) {
		n++
		text := string(bytes.TrimSpace(line))
		if !strings.HasPrefix(text, "key:") {
			rest = append(rest, line)
			continue
		}
		rest = append(rest, nil) // keeps the numbers of lines
		name, _, _ := strings.Cut(text, " ")
		id, err := spiffe.ParseKey(name)
		if err != nil {
			return in.fail(BadFormat, err, "write key:NAME, as `gateway cert show` prints it", "line %d is no key", n)
		}
		t.keys[id] = pinnedKey{file: in.file, line: n}
	}
	if err := t.pinSSH(in, bytes.Join(rest, []byte("\n"))); err != nil {
		return err
	}
	if len(t.keys) > maxPinnedKeys {
		return in.fail(TooMany, nil, "remove those that are not needed", "has the %d keys that may be believed at most, and more", maxPinnedKeys)
	}
	return nil
}

// problem says why a pinned key does not count now, "" if it does.
func (p *pinnedKey) problem(now time.Time) string {
	if !p.expires.IsZero() && now.After(p.expires) {
		return fmt.Sprintf("its entry (%s:%d) expired at %s", p.file, p.line, stamp(p.expires))
	}
	return ""
}

// keyID names the self-made key of a certificate.
func keyID(pub crypto.PublicKey) (spiffe.ID, error) {
	digest, err := keyaddr.Digest(pub)
	if err != nil {
		return spiffe.ID{}, err
	}
	return spiffe.KeyID(digest), nil
}

// isSelfMade reports whether certs are the certificate of a self-made key: one that names itself as its issuer, and no URI.
// Nothing in it is believed but the key.
func isSelfMade(certs []*x509.Certificate) bool {
	return len(certs) == 1 && len(certs[0].URIs) == 0 && !hasURIName(certs[0]) && bytes.Equal(certs[0].RawSubject, certs[0].RawIssuer)
}

// hasURIName reports whether there may be a URI in the names of c: crypto/x509 leaves out what it does not understand.
func hasURIName(c *x509.Certificate) bool {
	for _, ext := range c.Extensions {
		if ext.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17}) {
			return true
		}
	}
	return false
}

// identityOf returns who certificates that TLS has verified are of.
func identityOf(certs []*x509.Certificate) (spiffe.ID, error) {
	if isSelfMade(certs) {
		return keyID(certs[0].PublicKey)
	}
	return spiffe.FromCertificate(certs[0])
}

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
	"culvert/pki/sshkeys"
)

// maxPinnedKeys bounds the self-made keys that are believed.
const maxPinnedKeys = 100_000

// pinnedKey is an entry of a self-made key that is believed, and how far.
type pinnedKey struct {
	file string
	line int
	pub  crypto.PublicKey // nil where the entry has only its name
	ssh  *sshkeys.Entry   // with its limits; nil: without
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
		t.keys[id] = append(t.keys[id], pinnedKey{file: in.file, line: n})
	}
	if err := t.pinSSH(in, bytes.Join(rest, []byte("\n"))); err != nil {
		return err
	}
	if len(t.keys) > maxPinnedKeys {
		return in.fail(TooMany, nil, "remove those that are not needed", "has the %d keys that may be believed at most, and more", maxPinnedKeys)
	}
	return nil
}

// pinSSH reads the lines of a file that are of authorized_keys. What a line restricts that tunnels cannot keep to makes it
// an error: it was written for something else.
func (t *trust) pinSSH(in *input, text []byte) error {
	list, err := sshkeys.ParseAuthorizedKeys(in.file, text)
	if err != nil {
		return in.fail(BadFormat, err, "write key:NAME, as `gateway cert show` prints it, or a line of authorized_keys", "is no list of keys")
	}
	for _, pin := range list.Pins() {
		if e := &pin.Entry; !e.PortForwarding || len(e.PermitOpen) > 0 || len(e.PermitListen) > 0 {
			return in.fail(BadValue, nil, "take the option away and write a rule of policy about the key", "line %d has an option about forwarding, which is kept to for SSH only", e.Line)
		}
		id, err := keyID(pin.Public)
		if err != nil {
			return in.fail(WeakKey, err, "make a new key", "line %d cannot be an identity", pin.Line)
		}
		t.keys[id] = append(t.keys[id], pinnedKey{file: in.file, line: pin.Line, pub: pin.Public, ssh: &pin.Entry})
	}
	return nil
}

// pinned reports whether an entry of the key counts now, and for an address if that is valid. why is not "" where
// there is one and none counts.
func (t *trust) pinned(id spiffe.ID, at netip.Addr, now time.Time) (ok bool, why string) {
	if t == nil {
		return false, ""
	}
	for _, p := range t.keys[id] {
		switch {
		case p.ssh == nil:
			return true, ""
		case !p.ssh.Expires.IsZero() && now.After(p.ssh.Expires):
			why = fmt.Sprintf("its entry (%s:%d) expired at %s", p.file, p.line, stamp(p.ssh.Expires))
		case at.IsValid() && !p.ssh.From.Allows(at):
			why = fmt.Sprintf("its entry (%s:%d) does not let it come from %s", p.file, p.line, at)
		default:
			return true, ""
		}
	}
	return false, why
}

// PinnedKey returns a self-made key by its name, if a list has it in full and it counts now, else nil.
func (s *Source) PinnedKey(name string) crypto.PublicKey {
	id, err := spiffe.ParseKey(name)
	t := s.Current().trust
	if err != nil || t == nil {
		return nil
	}
	if ok, _ := t.pinned(id, netip.Addr{}, time.Now()); !ok {
		return nil
	}
	for _, p := range t.keys[id] {
		if p.pub != nil {
			return p.pub
		}
	}
	return nil
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

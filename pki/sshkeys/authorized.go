package sshkeys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"
)

// maxRefusals is how many lines with the same key are named when all of them refuse it.
const maxRefusals = 4

// AuthorizedKeys is what a file in the format of authorized_keys allows. It is not changed after it was parsed and may be
// used concurrently.
type AuthorizedKeys struct {
	file    string
	entries []Entry
	keys    map[string][]int // blob of a plain key → entries, in the order of the file
	cas     map[string][]int // blob of a CA's key → entries
}

// Entry is one line: a key, and what it may be used for. Check returns it with the limits of a certificate added. Whoever
// admits the key must also keep to PortForwarding, PermitOpen and PermitListen, by MayOpen and MayListen: they restrict the
// key however it comes in.
type Entry struct {
	File string // as the caller named it
	Line int    // counted from 1
	// Key is the key of the line; on a cert-authority line that of the CA.
	Key ssh.PublicKey
	// Comment is the text after the key. It proves nothing.
	Comment string
	// Role is what command= holds, or force-command of a certificate: what the key is for. "" is no role.
	Role string
	// Expires is the time after which the key is refused (expiry-time=, or the end of a certificate). Zero is never.
	Expires time.Time
	// From is the list of from=. Empty, every address may use the key.
	From AddrList
	// CertAuthority says that Key is a CA's, and Principals which names it may certify. Without principals= those are
	// SPIFFE IDs.
	CertAuthority bool
	Principals    []string
	// PortForwarding is false after restrict and no-port-forwarding, or if a certificate has no permit-port-forwarding.
	PortForwarding bool
	// PermitOpen and PermitListen limit what may be reached and listened on. Empty, nothing is limited.
	PermitOpen, PermitListen []Permit
	// Noted are options of sshd(8) that mean nothing here, in lower case: those about terminals, agents, X11, the
	// environment, tun devices and touching a token.
	Noted []string

	// Certificate is the certificate that Check admitted, nil for a plain key.
	Certificate *ssh.Certificate
	// Principal is the name in the certificate that made the line fit: the identity of the peer. "" for a plain key.
	Principal string
}

// LoadAuthorizedKeys reads a file as ParseAuthorizedKeys does. It must be a regular file that only its owner can write.
func LoadAuthorizedKeys(file string) (*AuthorizedKeys, error) {
	data, err := load(file)
	if err != nil {
		return nil, err
	}
	return ParseAuthorizedKeys(file, data)
}

// ParseAuthorizedKeys reads data in the format of authorized_keys (sshd(8)); file names it in errors. All problems are
// returned at once, joined, each a *LineError; there is no result then, since a line that is left out may be the one that
// was to restrict a key. Times of expiry-time= without a Z are in the zone time.Local.
func ParseAuthorizedKeys(file string, data []byte) (*AuthorizedKeys, error) {
	k := &AuthorizedKeys{file: file, keys: map[string][]int{}, cas: map[string][]int{}}
	err := eachLine(file, data, func(n int, line string) []*problem {
		e, problems := parseEntry(line)
		if len(problems) > 0 {
			return problems
		}
		e.File, e.Line = file, n
		index := k.keys
		if e.CertAuthority {
			index = k.cas
		}
		blob := keyBlob(e.Key)
		index[blob] = append(index[blob], len(k.entries))
		k.entries = append(k.entries, e)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return k, nil
}

// parseEntry reads one line.
func parseEntry(line string) (e Entry, problems []*problem) {
	e.PortForwarding = true
	if kind, _ := cutField(line); !isKeyType(kind) {
		list, rest, p := cutOptions(line)
		if p != nil {
			return e, []*problem{p}
		}
		problems, line = e.apply(list), rest
	}
	var p *problem
	if e.Key, e.Comment, p = parseKey(line); p != nil {
		return e, append(problems, p)
	}
	if _, ok := e.Key.(*ssh.Certificate); ok {
		return e, append(problems, badFormat("the line has a certificate; write its CA's key, after cert-authority"))
	}
	if why := weakness(e.Key); why != "" {
		problems = append(problems, &problem{reason: WeakKey, detail: why})
	}
	return e, problems
}

// Entries returns the lines in the order of the file. They are not to be changed.
func (k *AuthorizedKeys) Entries() []Entry { return k.entries }

// Check returns the first line that admits key, as presented by a client with the address from at the time now. A plain
// key must be that of a line. A certificate must be signed by the key of a cert-authority line and be valid: a user
// certificate, at its time, from its source-address, with no critical option but that and force-command, and for one of the
// line's principals or, if the line has none, for exactly one SPIFFE ID. (sshd compares with the account's name there; a
// gateway has no accounts. Whoever calls must judge Principal then, at least its trust domain.)
//
// Otherwise the error is a *RefusedError, or several joined if several lines have the key. That the client has the
// private key is not checked here: SSH does that after it has asked.
func (k *AuthorizedKeys) Check(key ssh.PublicKey, from netip.Addr, now time.Time) (Entry, error) {
	if key == nil {
		return Entry{}, &RefusedError{Reason: UnknownKey, File: k.file, Detail: "the client has shown no key"}
	}
	cert, isCert := key.(*ssh.Certificate)
	var lines []int
	switch {
	case !isCert:
		lines = k.keys[keyBlob(key)]
	case cert.Key == nil || cert.SignatureKey == nil:
		return Entry{}, &RefusedError{Reason: BadSignature, File: k.file, Detail: "the certificate has no key, or none that signed it"}
	default:
		lines = k.cas[keyBlob(cert.SignatureKey)]
	}
	var errs []error
	for _, i := range lines {
		e := k.entries[i]
		err := e.Admits(from, now)
		if err == nil && isCert {
			err = e.admitCertificate(cert, from, now)
		}
		if err == nil {
			return e, nil
		}
		if len(errs) < maxRefusals {
			errs = append(errs, err)
		}
		if refused, ok := errors.AsType[*RefusedError](err); ok && refused.Reason == BadSignature {
			break // no line can make that good, and each would cost a verification
		}
	}
	switch {
	case len(errs) > 0:
		return Entry{}, errors.Join(errs...)
	case isCert:
		return Entry{}, &RefusedError{Reason: UnknownCA, File: k.file,
			Detail: fmt.Sprintf("no cert-authority line has the key %s, which signed the certificate", ssh.FingerprintSHA256(cert.SignatureKey))}
	}
	return Entry{}, &RefusedError{Reason: UnknownKey, File: k.file,
		Detail: fmt.Sprintf("no line has the key %s", ssh.FingerprintSHA256(plainKey(key)))}
}

// Admits returns nil if the line's own limits, expiry-time= and from=, let a client with this address use the key now,
// otherwise a *RefusedError.
func (e *Entry) Admits(from netip.Addr, now time.Time) error {
	if !e.Expires.IsZero() && now.After(e.Expires) {
		return e.refuse(Expired, "the key expired at %s", e.Expires.UTC().Format(time.RFC3339))
	}
	if !e.From.Allows(from) {
		who := from.String()
		if !from.IsValid() {
			who = "a client without an IP address"
		}
		return e.refuse(BadSource, "the key may not be used by %s, only from %q", who, clip(e.From.String()))
	}
	return nil
}

// refuse makes the error of a line.
func (e *Entry) refuse(reason Reason, format string, args ...any) error {
	return &RefusedError{Reason: reason, File: e.File, Line: e.Line, Detail: fmt.Sprintf(format, args...)}
}

// MayOpen reports whether the key may reach the destination. host is a name or an address without brackets, as the
// client wrote it: "No pattern matching or name lookup is performed" (sshd(8)).
func (e *Entry) MayOpen(host string, port uint16) bool {
	return e.PortForwarding &&
		(len(e.PermitOpen) == 0 || slices.ContainsFunc(e.PermitOpen, func(p Permit) bool { return p.opens(host, port) }))
}

// MayListen reports whether the key may have the gateway listen for it. host is what the client asked for; ssh(1) sends
// "localhost" or "" if it was given none.
func (e *Entry) MayListen(host string, port uint16) bool {
	return e.PortForwarding &&
		(len(e.PermitListen) == 0 || slices.ContainsFunc(e.PermitListen, func(p Permit) bool { return p.listens(host, port) }))
}

// Pin is a plain key in the form that TLS certificates and JWTs have it in, with its line. Its limits are Admits, MayOpen
// and MayListen of the entry.
type Pin struct {
	Entry
	// Public is an *ecdsa.PublicKey on P-256 or an ed25519.PublicKey.
	Public crypto.PublicKey
}

// Pins returns the plain keys that can stand for an identity without a CA: ECDSA on P-256 and Ed25519, in the order of
// the file. Lines with another kind of key, FIDO tokens among them, and cert-authority lines are for SSH only and left
// out. A key may stand on several lines; it may be used if one of them admits it. An Ed25519 key of low order is not noticed
// here, as in sshd; keyaddr.Digest, which names keys, refuses it.
func (k *AuthorizedKeys) Pins() []Pin {
	var pins []Pin
	for _, e := range k.entries {
		if e.CertAuthority || e.Key.Type() != ssh.KeyAlgoED25519 && e.Key.Type() != ssh.KeyAlgoECDSA256 {
			continue
		}
		switch pub := e.Key.(ssh.CryptoPublicKey).CryptoPublicKey().(type) {
		case ed25519.PublicKey:
			pins = append(pins, Pin{Entry: e, Public: pub})
		case *ecdsa.PublicKey:
			if pub.Curve == elliptic.P256() {
				pins = append(pins, Pin{Entry: e, Public: pub})
			}
		}
	}
	return pins
}

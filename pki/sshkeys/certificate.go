package sshkeys

import (
	"crypto/rand"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	// MaxPrincipals is how many names of a certificate are read; OpenSSH takes no more (SSHKEY_CERT_MAX_PRINCIPALS).
	MaxPrincipals = 256
	// maxNameBytes is the longest principal that is written: a SPIFFE ID (SPIFFE-ID, section 2.3).
	maxNameBytes = 2048

	spiffeScheme = "spiffe://"

	// Options and extensions of PROTOCOL.certkeys.
	optionForceCommand  = "force-command"
	optionSourceAddress = "source-address"
	extensionForwarding = "permit-port-forwarding"
)

// SPIFFEPrincipal returns the SPIFFE ID that a user's or host's certificate names: its only principal that begins with
// spiffe://, in whatever case; names of other kinds may stand beside it, as with X.509 (X509-SVID, section 2). Otherwise
// the error is a *RefusedError. The text is returned as it is and must be parsed strictly (spiffe.Parse). Nothing
// else of the certificate is checked.
func SPIFFEPrincipal(cert *ssh.Certificate) (string, error) {
	id, detail := spiffePrincipal(cert)
	if detail != "" {
		return "", &RefusedError{Reason: BadPrincipal, File: "certificate", Detail: detail}
	}
	return id, nil
}

// spiffePrincipal is SPIFFEPrincipal with the error's detail only.
func spiffePrincipal(cert *ssh.Certificate) (id, detail string) {
	if n := len(cert.ValidPrincipals); n > MaxPrincipals {
		return "", fmt.Sprintf("the certificate has %d principals, more than %d", n, MaxPrincipals)
	}
	ids := 0
	for _, name := range cert.ValidPrincipals {
		if len(name) >= len(spiffeScheme) && strings.EqualFold(name[:len(spiffeScheme)], spiffeScheme) {
			ids++
			id = name
		}
	}
	if ids != 1 {
		return "", fmt.Sprintf("the certificate has %d principals that begin with %s; it must have exactly one", ids, spiffeScheme)
	}
	return id, ""
}

// certificateRules are what a certificate is checked against.
type certificateRules struct {
	certType  uint32 // ssh.UserCert or ssh.HostCert
	principal string // a name that it must have
	options   []string
	now       time.Time
}

// check says why cert, whose CA is trusted, does not hold; nil if it does.
func (r *certificateRules) check(cert *ssh.Certificate) *problem {
	bad := func(reason Reason, format string, args ...any) *problem {
		return &problem{reason: reason, detail: fmt.Sprintf(format, args...)}
	}
	switch {
	case cert.CertType != r.certType:
		return bad(BadType, "the certificate is for a %s and not for a %s", certTypeName(cert.CertType), certTypeName(r.certType))
	case weakness(cert.Key) != "":
		return bad(WeakKey, "the certified key: %s", weakness(cert.Key))
	case weakness(cert.SignatureKey) != "":
		return bad(WeakKey, "the CA's key: %s", weakness(cert.SignatureKey))
	case cert.Signature == nil:
		return bad(BadSignature, "the certificate is not signed")
	case cert.Signature.Format == ssh.KeyAlgoRSA: // OpenSSH takes none since 8.2
		return bad(WeakKey, "the certificate is signed with SHA-1; sign it with rsa-sha2-512")
	case !slices.Contains(cert.ValidPrincipals, r.principal):
		// A certificate without principals is for everybody by PROTOCOL.certkeys, and refused by newer OpenSSH.
		return bad(BadPrincipal, "the certificate is not for %q but for %s", clip(r.principal), principalList(cert))
	}
	now := r.now.Unix()
	switch {
	case now < 0 || cert.ValidAfter > uint64(now):
		return bad(NotYetValid, "the certificate is not valid before %s; renew it, or set the clocks right", certTime(cert.ValidAfter))
	case cert.ValidBefore <= uint64(now):
		return bad(Expired, "the certificate expired at %s; renew it, or set the clocks right", certTime(cert.ValidBefore))
	}
	for _, name := range sortedKeys(cert.CriticalOptions) {
		if !slices.Contains(r.options, name) {
			return bad(BadOption, "the certificate has the critical option %q, which is not known here and must be kept", clip(name))
		}
	}
	checker := ssh.CertChecker{SupportedCriticalOptions: r.options, Clock: func() time.Time { return r.now }}
	if err := checker.CheckCert(r.principal, cert); err != nil {
		return &problem{reason: BadSignature, detail: "the certificate does not hold", err: err}
	}
	return nil
}

// admitCertificate checks a certificate that the CA of the line has signed, and adds its limits to e: "the most restrictive
// union of the two is applied" (sshd(8), cert-authority).
func (e *Entry) admitCertificate(cert *ssh.Certificate, from netip.Addr, now time.Time) error {
	principal, detail := e.choosePrincipal(cert)
	if detail != "" {
		return e.refuse(BadPrincipal, "%s", detail)
	}
	rules := certificateRules{certType: ssh.UserCert, principal: principal, options: []string{optionForceCommand, optionSourceAddress}, now: now}
	if p := rules.check(cert); p != nil {
		return &RefusedError{Reason: p.reason, File: e.File, Line: e.Line, Detail: p.detail, Err: p.err}
	}
	if text, ok := cert.CriticalOptions[optionSourceAddress]; ok {
		list, p := parseAddrList(text)
		if p != nil || slices.ContainsFunc(list.items, func(i addrItem) bool { return i.negate || i.glob != "" }) {
			return e.refuse(BadOption, "the certificate's source-address %q is no list of addresses and networks", clip(text))
		}
		if !list.Allows(from) {
			return e.refuse(BadSource, "the certificate may not be used by %v, only from %q", from, clip(text))
		}
	}
	if role, ok := cert.CriticalOptions[optionForceCommand]; ok {
		if e.Role != "" && e.Role != role { // "accepted only if the two commands are identical"
			return e.refuse(BadOption, "the certificate has force-command %q and the line command %q", clip(role), clip(e.Role))
		}
		e.Role = role
	}
	if cert.ValidBefore <= math.MaxInt64 {
		if end := time.Unix(int64(cert.ValidBefore), 0); e.Expires.IsZero() || end.Before(e.Expires) {
			e.Expires = end
		}
	}
	_, forwarding := cert.Extensions[extensionForwarding]
	e.PortForwarding = e.PortForwarding && forwarding
	e.Certificate, e.Principal = cert, principal
	return nil
}

// choosePrincipal returns the name by which the line admits cert, or why there is none.
func (e *Entry) choosePrincipal(cert *ssh.Certificate) (name, detail string) {
	if e.Principals == nil {
		return spiffePrincipal(cert)
	}
	if n := len(cert.ValidPrincipals); n > MaxPrincipals {
		return "", fmt.Sprintf("the certificate has %d principals, more than %d", n, MaxPrincipals)
	}
	for _, name := range cert.ValidPrincipals {
		if slices.Contains(e.Principals, name) {
			return name, ""
		}
	}
	return "", fmt.Sprintf("the certificate is for %s, and the line takes %q", principalList(cert), clip(strings.Join(e.Principals, ",")))
}

// principalList is the names of a certificate for an error.
func principalList(cert *ssh.Certificate) string {
	if len(cert.ValidPrincipals) == 0 {
		return "nobody (it has no principals)"
	}
	const shown = 4
	return fmt.Sprintf("%q", clip(strings.Join(cert.ValidPrincipals[:min(shown, len(cert.ValidPrincipals))], ",")))
}

// certTypeName is the word for a type of certificate.
func certTypeName(certType uint32) string {
	switch certType {
	case ssh.UserCert:
		return "user"
	case ssh.HostCert:
		return "host"
	}
	return fmt.Sprintf("peer of type %d", certType)
}

// certTime is a certificate's time for an error. The greatest stands for never; a peer may write any other.
func certTime(seconds uint64) string {
	const year9999 = 253402300799
	if seconds > year9999 {
		return "the end of time"
	}
	return time.Unix(int64(seconds), 0).UTC().Format(time.RFC3339)
}

// sortedKeys returns the keys of a small map in order, so that the same certificate gives the same error.
func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// Template is a certificate to be signed that names a SPIFFE ID.
type Template struct {
	// ID is the SPIFFE ID, such as spiffe://cluster.local/ns/default/sa/web. It has passed spiffe.Parse; here only its
	// scheme and length (2048 bytes) are looked at.
	ID string
	// Host makes it a host's certificate instead of a user's.
	Host bool
	// KeyID is what sshd writes to its log. Default: ID.
	KeyID string
	// Principals are names beside the ID: the names of a host, or the accounts of a user.
	Principals []string
	// NotBefore and NotAfter are when it is valid, in whole seconds; NotAfter itself is not.
	NotBefore, NotAfter time.Time
	// Serial is the CA's number for it, by which it can be revoked. 0 is none.
	Serial uint64
}

// Sign returns a certificate for key, signed by ca. A user's has the extension permit-port-forwarding and no other, so that
// sshd gives no terminal. It fails if the template is incomplete, if key or the CA's key is too weak, or if either
// is itself a certificate.
func (t *Template) Sign(ca ssh.Signer, key ssh.PublicKey) (*ssh.Certificate, error) {
	names := append([]string{t.ID}, t.Principals...)
	if err := t.check(names, ca, key); err != nil {
		return nil, fmt.Errorf("certificate for %q: %w", clip(t.ID), err)
	}
	cert := &ssh.Certificate{
		Key: key, Serial: t.Serial, CertType: ssh.UserCert, KeyId: t.KeyID, ValidPrincipals: names,
		ValidAfter: uint64(t.NotBefore.Unix()), ValidBefore: uint64(t.NotAfter.Unix()),
	}
	if cert.KeyId == "" {
		cert.KeyId = t.ID
	}
	if t.Host {
		cert.CertType = ssh.HostCert
	} else {
		cert.Extensions = map[string]string{extensionForwarding: ""}
	}
	if err := cert.SignCert(rand.Reader, ca); err != nil {
		return nil, fmt.Errorf("sign the certificate for %q: %w", clip(t.ID), err)
	}
	if cert.Signature.Format == ssh.KeyAlgoRSA {
		return nil, fmt.Errorf("certificate for %q: the CA signs with SHA-1; it must offer rsa-sha2-512 or rsa-sha2-256", clip(t.ID))
	}
	return cert, nil
}

// check says what is wrong with the template.
func (t *Template) check(names []string, ca ssh.Signer, key ssh.PublicKey) error {
	if !strings.HasPrefix(t.ID, spiffeScheme) {
		return fmt.Errorf("the ID does not begin with %s", spiffeScheme)
	}
	if len(names) > MaxPrincipals {
		return fmt.Errorf("%d principals are more than %d", len(names), MaxPrincipals)
	}
	for i, name := range names {
		switch {
		case name == "" || len(name) > maxNameBytes:
			return fmt.Errorf("principal %q must have 1 to %d bytes", clip(name), maxNameBytes)
		case strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == ',' || r >= 0x7f }):
			return fmt.Errorf("principal %q holds a byte that is not printable ASCII, a space or a comma", clip(name))
		case i > 0 && len(name) >= len(spiffeScheme) && strings.EqualFold(name[:len(spiffeScheme)], spiffeScheme):
			return fmt.Errorf("principal %q is a second SPIFFE ID", clip(name))
		}
	}
	if strings.ContainsFunc(t.KeyID, func(r rune) bool { return r < ' ' || r == 0x7f }) || len(t.KeyID) > maxNameBytes {
		return fmt.Errorf("the key ID %q must be a text of at most %d bytes", clip(t.KeyID), maxNameBytes)
	}
	if t.NotBefore.Unix() < 0 || t.NotAfter.Unix() <= t.NotBefore.Unix() {
		return fmt.Errorf("it would be valid from %v to %v; the end must come after the beginning", t.NotBefore, t.NotAfter)
	}
	if ca == nil || key == nil {
		return fmt.Errorf("the CA's signer or the key is missing")
	}
	if why := weakness(key); why != "" {
		return fmt.Errorf("the key: %s", why)
	}
	if why := weakness(ca.PublicKey()); why != "" {
		return fmt.Errorf("the CA's key: %s", why)
	}
	return nil
}

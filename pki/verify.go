package pki

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"culvert/pki/spiffe"
)

// minRSABits is the shortest RSA key that is taken, ours or a peer's.
const minRSABits = 2048

// PeerID returns the identity of the peer of a finished handshake that ServerTLS or ClientTLS configured. It is
// an error if the handshake is not complete or the peer has no certificate: *PeerError or *spiffe.ParseError. It does
// not check the certificate again.
func PeerID(cs tls.ConnectionState) (spiffe.ID, error) {
	if !cs.HandshakeComplete || len(cs.PeerCertificates) == 0 {
		return spiffe.ID{}, &PeerError{Reason: NoCertificate, Detail: "it has not been authenticated"}
	}
	return identityOf(cs.PeerCertificates)
}

// Identify is PeerID for a peer at an address, which a list of self-made keys may have bound its key to; then the error is
// a *PeerError.
func (s *Source) Identify(cs *tls.ConnectionState, at netip.Addr) (spiffe.ID, error) {
	id, err := PeerID(*cs)
	if err != nil || !id.IsKey() {
		return id, err
	}
	if ok, why := s.Current().trust.pinned(id, at, time.Now()); !ok && why != "" {
		return id, &PeerError{Reason: UnknownKey, ID: id, Detail: why}
	}
	return id, nil
}

// Doubt returns why a peer whose connection stands is not believed any more, by the certificates that it has shown, nil
// while it is. server tells that it was connected to: then a self-made key needs no entry in a list. That its certificate
// has ended is no doubt, and neither is it then that its CA is gone, which has ended too or will; what else is known
// against it is. The error is a *PeerError.
func (s *Source) Doubt(certs []*x509.Certificate, server bool) error {
	m, now := s.Current(), time.Now()
	role, verify := x509.ExtKeyUsageClientAuth, (func(spiffe.ID) error)(nil)
	if server {
		role, verify = x509.ExtKeyUsageServerAuth, func(spiffe.ID) error { return nil }
	}
	if len(certs) == 0 || !now.After(certs[0].NotAfter) {
		return verifyPeer(m, certs, role, verify, now)
	}
	if id, err := identityOf(certs); err == nil && id.IsKey() { // of its certificate only the key counts
		return verifyKey(m, id, role, verify, now, refuseAs(id))
	}
	err := verifyPeer(m, certs, role, verify, certs[0].NotAfter)
	if refused, ok := errors.AsType[*PeerError](err); ok && refused.Reason == Untrusted {
		return nil
	}
	return err
}

// Neighbour allows servers of the own trust domain, under whichever of its names (trust.aliases), and namespace: it is for
// ClientTLS.
func (s *Source) Neighbour(peer spiffe.ID) error {
	m := s.Current()
	if t := m.trust; t != nil && t.aliases[peer.TrustDomain()] && peer.Namespace() != "" && peer.Namespace() == m.ID.Namespace() {
		return nil
	}
	return SameNamespace(s.ID)(peer)
}

// SameNamespace returns a function for ServerTLS and ClientTLS that allows peers of the trust domain and
// namespace of self, which is asked each time. If self is in no namespace, nobody is allowed.
func SameNamespace(self func() spiffe.ID) func(spiffe.ID) error {
	return func(peer spiffe.ID) error {
		own := self()
		switch {
		case own.Namespace() == "":
			return fmt.Errorf("our own identity %q is in no namespace (/ns/NAMESPACE/sa/ACCOUNT); name the one to expect, as `identity` of the hop (of what is behind it, `inner.identities`; for an agent, --hop-id)", own)
		case peer.TrustDomain() != own.TrustDomain():
			return fmt.Errorf("trust domain %q is not ours, %q", peer.TrustDomain(), own.TrustDomain())
		case peer.Namespace() != own.Namespace():
			return fmt.Errorf("namespace %q is not ours, %q; if this is right, name the one to expect, as `identity` of the hop (of what is behind it, `inner.identities`; for an agent, --hop-id)", peer.Namespace(), own.Namespace())
		}
		return nil
	}
}

// Exactly returns a function for ServerTLS and ClientTLS that allows the identities ids and no other.
func Exactly(ids ...spiffe.ID) func(spiffe.ID) error {
	ids = slices.Clone(ids)
	return func(peer spiffe.ID) error {
		if !peer.IsZero() && slices.Contains(ids, peer) {
			return nil
		}
		return fmt.Errorf("its identity is not the expected one, %v", ids)
	}
}

// verifyPeer checks the certificates that a peer sent for use in role (client or server authentication) and returns
// nil or a *PeerError. It runs inside the handshake, before the peer has proved that it has the key.
func verifyPeer(m *Material, certs []*x509.Certificate, role x509.ExtKeyUsage, verify func(spiffe.ID) error, now time.Time) error {
	if len(certs) == 0 {
		return &PeerError{Reason: NoCertificate, Detail: "it sent no certificate; set cert and key at the peer"}
	}
	leaf := certs[0]
	// First of all who it says it is, so that every refusal can be recorded with it.
	id, idErr := identityOf(certs)
	refuse := refuseAs(id)
	if idErr != nil {
		return refuse(NoIdentity, idErr, "its certificate names no workload")
	}
	roots := m.believes(id.TrustDomain())
	if roots == nil && !id.IsKey() {
		return refuse(OtherDomain, nil, "trust domain %q is not ours, %q; trust.domains may name it", id.TrustDomain(), m.ID.TrustDomain())
	}
	if err := certificatesProblem(certs, role, now, refuse); err != nil {
		return err
	}
	if id.IsKey() {
		return verifyKey(m, id, role, verify, now, refuse)
	}
	chains, err := leaf.Verify(verifyOptions(certs, roots, role, now))
	if err != nil {
		if _, unknown := errors.AsType[x509.UnknownAuthorityError](err); unknown {
			return refuse(Untrusted, err, "its certificate, issued by %s, does not lead to our roots; add its CA there if it is to be trusted",
				nameText(leaf.Issuer))
		}
		return refuse(Untrusted, err, "its certificate chain is not valid")
	}
	if m.trust != nil {
		if reason, detail := m.trust.revoked.problem(chains, now); reason != "" {
			return refuse(reason, nil, "%s", detail)
		}
	}
	if verify != nil {
		if err := verify(id); err != nil {
			return refuse(NotAllowed, err, "it is not allowed here")
		}
	}
	return nil
}

// verifyKey decides about a peer with a self-made key: a list has it, or this is the server that is expected to have it.
func verifyKey(m *Material, id spiffe.ID, role x509.ExtKeyUsage, verify func(spiffe.ID) error, now time.Time, refuse refuseFunc) error {
	known, why := m.trust.pinned(id, netip.Addr{}, now) // where it may come from is asked by Identify
	if known = known || id == m.ID; why != "" && !known {
		return refuse(UnknownKey, nil, "%s", why)
	}
	if !known && (role != x509.ExtKeyUsageServerAuth || verify == nil) {
		return refuse(UnknownKey, nil, "its key is self-made, and no file of trust.keys has it; add the line %s if it is to be trusted", id)
	}
	if verify != nil {
		if err := verify(id); err != nil {
			return refuse(NotAllowed, err, "it is not allowed here")
		}
	}
	return nil
}

// refuseFunc makes a *PeerError.
type refuseFunc func(reason Reason, err error, format string, args ...any) error

func refuseAs(id spiffe.ID) refuseFunc {
	return func(reason Reason, err error, format string, args ...any) error {
		return &PeerError{Reason: reason, ID: id, Detail: fmt.Sprintf(format, args...), Err: err}
	}
}

// certificatesProblem checks what can be seen of certificates without knowing who has signed them.
func certificatesProblem(certs []*x509.Certificate, role x509.ExtKeyUsage, now time.Time, refuse refuseFunc) error {
	leaf := certs[0]
	if len(certs) > maxChain {
		return refuse(TooMany, nil, "it sent %d certificates; at most %d are taken", len(certs), maxChain)
	}
	if reason, detail := leafProblem(leaf); reason != "" {
		return refuse(reason, nil, "%s", detail)
	}
	for _, c := range certs {
		if problem := keyProblem(c); problem != "" {
			return refuse(WeakKey, nil, "%s: %s", certName(c), problem)
		}
	}
	if reason, detail := timeProblem(leaf, now); reason != "" {
		return refuse(reason, nil, "%s; renew it, or set the clocks right", detail)
	}
	if !hasUsage(leaf, role) {
		return refuse(BadUsage, nil, "its certificate is not for TLS %s; issue it with serverAuth and clientAuth", roleName(role))
	}
	return nil
}

// verifyOptions returns the options of a chain check from chain[0] to roots by way of the rest of chain.
func verifyOptions(chain []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage, now time.Time) x509.VerifyOptions {
	opts := x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}, Intermediates: x509.NewCertPool()}
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c)
	}
	return opts
}

// leafProblem says why c is not the leaf that X509-SVID, section 5.2 asks for, "" if it is one. crypto/x509
// does not check this: it takes a CA as a leaf, and a leaf that may not sign.
func leafProblem(c *x509.Certificate) (Reason, string) {
	switch {
	case c.IsCA:
		// "the validator MUST ensure that the CA field in the basic constraints extension is set to false".
		return NotLeaf, "the certificate is a CA (CA:TRUE), not a leaf"
	case c.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		// "and that keyCertSign and cRLSign are not set in the key usage extension".
		return NotLeaf, "the certificate may sign certificates or revocation lists (keyCertSign, cRLSign), so it is not a leaf"
	case c.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		// Section 4.3: "Leaf SVIDs MUST set digitalSignature"; TLS 1.3 has no use for another one (RFC 8446,
		// section 4.4.2.2).
		return BadUsage, "the certificate may not be used for signatures (keyUsage lacks digitalSignature)"
	}
	return "", ""
}

// keyProblem says why the public key of c is not taken, "" if it is.
func keyProblem(c *x509.Certificate) string {
	switch key := c.PublicKey.(type) {
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < minRSABits {
			return fmt.Sprintf("its RSA key has %d bits; %d is the least", bits, minRSABits)
		}
	case *ecdsa.PublicKey:
		// RFC 8446, section 4.2.3 has signature schemes for these curves only.
		if key.Curve != elliptic.P256() && key.Curve != elliptic.P384() && key.Curve != elliptic.P521() {
			return fmt.Sprintf("TLS 1.3 has no signatures with curve %s; use P-256", key.Curve.Params().Name)
		}
	case ed25519.PublicKey:
	default:
		return fmt.Sprintf("a key of kind %s is not supported; use ECDSA P-256", c.PublicKeyAlgorithm)
	}
	return ""
}

// timeProblem says why now is outside the validity of c, "" if it is inside. RFC 5280, section 4.1.2.5: both ends
// count as valid.
func timeProblem(c *x509.Certificate, now time.Time) (Reason, string) {
	// The text holds no distance from now: it must be the same at the next look, so that it is logged once.
	switch {
	case now.After(c.NotAfter):
		return Expired, "the certificate expired at " + stamp(c.NotAfter)
	case now.Before(c.NotBefore):
		return NotYetValid, "the certificate is not valid before " + stamp(c.NotBefore)
	}
	return "", ""
}

// hasUsage reports whether c may be used for usage. RFC 5280, section 4.2.1.12: without the extension, for all.
func hasUsage(c *x509.Certificate, usage x509.ExtKeyUsage) bool {
	return len(c.ExtKeyUsage) == 0 && len(c.UnknownExtKeyUsage) == 0 ||
		slices.Contains(c.ExtKeyUsage, usage) || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny)
}

func roleName(role x509.ExtKeyUsage) string {
	if role == x509.ExtKeyUsageServerAuth {
		return "servers"
	}
	return "clients"
}

// stamp writes a time for people, in UTC.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

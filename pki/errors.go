package pki

import (
	"errors"
	"net"
	"reflect"
	"strings"

	"culvert/pki/spiffe"
)

// Reason is a short fixed word for why a file or a peer is refused, fit for a metric label and for
// comparing. Peers cannot choose its values.
type Reason string

// Reasons of a ConfigError.
const (
	Missing     Reason = "missing"      // a setting that the others need is empty
	BadValue    Reason = "bad-value"    // a setting is out of its range
	Unreadable  Reason = "unreadable"   // the file cannot be read, or is too big or no file
	BadFormat   Reason = "bad-format"   // the file is not the PEM that it should be
	Mismatch    Reason = "mismatch"     // certificate and key do not belong together
	OpenKey     Reason = "open-key"     // others may read or write the key
	NoAuthority Reason = "no-authority" // a root certificate is not a CA
)

// Reasons of a ConfigError or a PeerError.
const (
	Expired     Reason = "expired"       // the certificate's time is over
	NotYetValid Reason = "not-yet-valid" // the certificate's time has not begun
	NotLeaf     Reason = "not-leaf"      // the certificate is a CA, or may sign certificates
	BadUsage    Reason = "bad-usage"     // the certificate may not be used for TLS in this role
	WeakKey     Reason = "weak-key"      // RSA below 2048 bits, or a kind of key that TLS 1.3 does not take
	TooMany     Reason = "too-many"      // more certificates than a chain may have
	NoIdentity  Reason = "no-identity"   // not exactly one URI name, or it is not a SPIFFE ID
)

// Reasons of a PeerError.
const (
	NoCertificate Reason = "no-certificate" // the peer sent none
	Untrusted     Reason = "untrusted"      // the chain does not lead to one of our roots
	OtherDomain   Reason = "other-domain"   // the trust domain is not ours
	NotAllowed    Reason = "not-allowed"    // the caller's function refused the identity
	BadALPN       Reason = "bad-alpn"       // the server did not choose h2
	Revoked       Reason = "revoked"        // a revocation list has a certificate of the chain
	StaleCRL      Reason = "stale-crl"      // the revocation list of its CA is overdue, and trust.staleCRL is refuse
	UnknownKey    Reason = "unknown-key"    // a self-made key that no list has, or whose entry has expired
)

// ConfigError is a problem of a setting or of a file that it names. Its text says what is wrong and what to do.
type ConfigError struct {
	Field  string // the field of Config: cert, key, roots, poll; "trust." and one of TrustConfig; for a state folder the name of the file
	File   string // the file as it was named, "" if the setting itself is the problem
	Reason Reason
	Detail string // what is wrong, in plain words
	Mend   string // what to do about it
	Err    error  // the cause, or nil
}

// Error returns "FIELD FILE: DETAIL: CAUSE; MEND".
func (e *ConfigError) Error() string {
	var b strings.Builder
	b.WriteString(e.Field)
	if e.File != "" {
		b.WriteString(" " + e.File)
	}
	if b.Len() > 0 {
		b.WriteString(": ")
	}
	b.WriteString(e.Detail)
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	if e.Mend != "" {
		b.WriteString("; " + e.Mend)
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *ConfigError) Unwrap() error { return e.Err }

// maxCauseBytes is how much of the cause the text of a PeerError holds.
const maxCauseBytes = 512

// PeerError says why a peer was refused during the TLS handshake. tls.Conn.HandshakeContext returns it as it is,
// so errors.As finds it on both sides; the peer gets the alert bad_certificate (RFC 8446, section 6.2).
type PeerError struct {
	Reason Reason
	// ID is the identity that the peer's certificate names, zero if it names none. It is a claim: when
	// Reason is Untrusted, anybody may have written it, and in every case the handshake ended before
	// the peer proved that it has the key (RFC 8446, section 4.4.3). Record it, and decide nothing by it.
	ID     spiffe.ID
	Detail string // what is wrong and the likely mend, in plain words
	Err    error  // the cause, or nil
}

// Error returns "peer ID refused: DETAIL: CAUSE".
func (e *PeerError) Error() string {
	var b strings.Builder
	b.WriteString("peer ")
	if !e.ID.IsZero() {
		b.WriteString(e.ID.String() + " ")
	}
	b.WriteString("refused: " + e.Detail)
	if e.Err != nil {
		// crypto/x509 quotes names out of the peer's certificates, which may be long.
		cause := e.Err.Error()
		if len(cause) > maxCauseBytes {
			cause = cause[:maxCauseBytes] + "..."
		}
		b.WriteString(": " + cause)
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *PeerError) Unwrap() error { return e.Err }

// Alert returns the number of the TLS alert (RFC 8446, section 6) with which the peer ended the connection, if
// err carries one. In TLS 1.3 a client's handshake is over before the server has looked at its certificate, so
// the server's refusal comes with the client's first Read.
func Alert(err error) (number uint8, ok bool) {
	op, isOp := errors.AsType[*net.OpError](err)
	if !isOp || op.Op != "remote error" {
		return 0, false
	}
	// crypto/tls does not export the type of the alert that it wraps, a uint8.
	v := reflect.ValueOf(op.Err)
	if v.Kind() != reflect.Uint8 || v.Type().PkgPath() != "crypto/tls" {
		return 0, false
	}
	return uint8(v.Uint()), true
}

// AlertHint returns the likely cause, and what to do, for an alert that a peer of a mesh sends, and
// "" for the others.
func AlertHint(number uint8) string {
	switch number {
	case 40: // handshake_failure
		return "the peer accepts none of our TLS versions, cipher suites or key kinds"
	case 42, 46, 49: // bad_certificate, certificate_unknown, access_denied
		return "the peer refuses our certificate: its roots, its trust domain or its policy do not take our identity; its log has the reason"
	case 45: // certificate_expired
		return "the peer finds our certificate expired; renew it, or set the clocks right"
	case 48: // unknown_ca
		return "the peer does not know the CA of our certificate; add it to the peer's roots"
	case 70: // protocol_version
		return "the peer does not speak TLS 1.3"
	case 112: // unrecognized_name
		return "the peer wants a server name, and we send none; it may not be a gateway"
	case 116: // certificate_required
		return "the peer wants a client certificate and got none"
	case 120: // no_application_protocol
		return "the peer does not speak HTTP/2 (ALPN h2) on this port"
	default:
		return ""
	}
}

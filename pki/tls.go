package pki

import (
	"crypto/tls"
	"crypto/x509"
	"slices"
	"strings"
	"time"

	"culvert/pki/spiffe"
)

// alpnH2 is HTTP/2 over TLS (RFC 9113, section 3.2).
const alpnH2 = "h2"

// ServerTLS returns the TLS configuration of a listener for other gateways: mutual TLS 1.3, ALPN h2, no session
// tickets. It is usable for the life of the process: each handshake takes the certificate and the roots that are
// current then.
//
// A client must have a certificate, otherwise it gets the alert certificate_required. It is verified as the
// package says, and then by verify, which gets the identity and may be nil to allow all of our trust domain; a
// refusal is a *PeerError on this side and the alert bad_certificate on the other. verify is called inside the
// handshake, from many goroutines at once, before the client has proved that it has the key: it must be quick and
// must not count, log or change anything. To refuse later, with an answer in HTTP, it returns nil.
//
// A client that offers other protocols in ALPN and not h2 gets the alert no_application_protocol
// (RFC 7301, section 3.2); one that offers none at all is taken, as ztunnel does, and must then speak HTTP/2. A
// server name that the client sends is not looked at.
func (s *Source) ServerTLS(verify func(spiffe.ID) error) *tls.Config {
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{alpnH2},
		ClientAuth: tls.RequireAnyClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return s.certificate()
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			return verifyPeer(s.Current(), cs.PeerCertificates, x509.ExtKeyUsageClientAuth, verify, time.Now())
		},
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true,
	}
	// crypto/tls lets a client that offers http/1.1 and not h2 in as if it had offered nothing (golang/go#46310).
	// After http/1.1 nobody shall be served HTTP/2 here, so such clients meet a configuration whose only protocol
	// nobody can offer: a name in ALPN has 255 bytes at most (RFC 7301, section 3.1).
	none := cfg.Clone()
	none.NextProtos = []string{strings.Repeat("-", 256)}
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if len(hello.SupportedProtos) > 0 && !slices.Contains(hello.SupportedProtos, alpnH2) {
			return none, nil
		}
		return nil, nil
	}
	return cfg
}

// ClientTLS returns the TLS configuration for dialling another gateway with tls.Client (tls.Dial and net/http
// would add a server name): mutual TLS 1.3, ALPN h2, no server name, as ztunnel has it, and no resumption. It is
// usable for the life of the process, like that of ServerTLS. The server is verified by its SPIFFE ID instead of a
// host name and then by verify, for which the same holds as in ServerTLS; SameNamespace and Exactly make one. A
// refusal, or a server that does not choose h2, is a *PeerError. A server's refusal of us comes with the first
// Read: see Alert.
func (s *Source) ClientTLS(verify func(spiffe.ID) error) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{alpnH2},
		// Only the check of crypto/tls, which needs a host name, is switched off. VerifyConnection is always
		// called, as there is no resumption, and does all of it.
		InsecureSkipVerify: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return s.certificate()
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			err := verifyPeer(s.Current(), cs.PeerCertificates, x509.ExtKeyUsageServerAuth, verify, time.Now())
			if err == nil && cs.NegotiatedProtocol == "" { // TLS takes none that was not offered
				id, _ := spiffe.FromCertificate(cs.PeerCertificates[0])
				err = &PeerError{Reason: BadALPN, ID: id, Detail: "it did not choose HTTP/2 (ALPN h2); check the port"}
			}
			return err
		},
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true,
	}
}

// certificate returns the current certificate, or an error if it is past its time: a peer would refuse it anyway, and
// here the reason can be told.
func (s *Source) certificate() (*tls.Certificate, error) {
	m := s.Current()
	if reason, detail := timeProblem(m.Certificate.Leaf, time.Now()); reason != "" {
		return nil, &ConfigError{Field: "cert", File: s.certFile, Reason: reason, Detail: "our own identity " + m.ID.String() + ": " + detail,
			Mend: timeMend(reason)}
	}
	return &m.Certificate, nil
}

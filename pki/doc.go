// Package pki gives a gateway its identity and makes it refuse peers that have none, or the wrong one.
//
// A Source holds the current Material (certificate, key, roots) and hands out TLS configurations that
// read it anew at every handshake, so a renewed certificate needs no restart and drops no
// connection. OpenFiles takes the material from PEM files and follows their changes; OpenState makes
// a CA and an identity of its own on first start and renews it; Fixed never changes.
//
// A peer is authenticated by its SPIFFE ID, never by host name: the chain leads to one of our roots,
// the leaf is a proper X509-SVID (SPIFFE X509-SVID, section 5.2), its trust domain is ours, and a function
// of the caller agrees. Everything is TLS 1.3 (RFC 8446) with ALPN h2 and without resumption, because a
// resumed session would outlive the certificate that it was made with.
//
// What a person has to act on comes as a type: *ConfigError for a setting or a file, *PeerError for a
// peer that was refused. Private keys are never printed: the types that hold them have their own LogValue,
// String and MarshalJSON.
package pki

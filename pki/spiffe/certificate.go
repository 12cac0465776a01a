package spiffe

import (
	"crypto/x509"
	"encoding/asn1"
	"fmt"
)

// MaxNames is how many subject alternative names, of all kinds, FromCertificate reads. A workload
// needs a handful; the limit keeps the work for a hostile certificate small.
const MaxNames = 100

// tagURI is the tag of uniformResourceIdentifier in GeneralName (RFC 5280, section 4.2.1.6).
const tagURI = 6

// FromCertificate returns the ID in c, which must come from x509.ParseCertificate. It reads the bytes of the
// subject alternative name extension itself, because url.URL, which crypto/x509 offers, has already
// decoded and normalised them. A *ParseError is returned unless there is exactly one URI among
// at most MaxNames names and that URI passes Parse (X509-SVID, section 2: "An X.509 SVID MUST contain exactly one URI
// SAN", and names of other types, such as DNS names, MAY stand beside it). It says nothing about who
// signed c.
func FromCertificate(c *x509.Certificate) (ID, error) {
	uri, err := uriName(c)
	if err != nil {
		return ID{}, err
	}
	return Parse(uri)
}

// uriName returns the text of the only URI name of c.
func uriName(c *x509.Certificate) (string, error) {
	var uri string
	var uris, names int
	for _, ext := range c.Extensions {
		// 2.5.29.17 is subjectAltName. crypto/x509 refuses a certificate that has an extension twice.
		if !ext.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17}) {
			continue
		}
		var seq asn1.RawValue
		rest, err := asn1.Unmarshal(ext.Value, &seq)
		if err != nil || len(rest) > 0 || seq.Class != asn1.ClassUniversal || seq.Tag != asn1.TagSequence || !seq.IsCompound {
			return "", &ParseError{Problem: "the certificate's subject alternative names are malformed"}
		}
		for rest = seq.Bytes; len(rest) > 0; {
			var name asn1.RawValue
			if rest, err = asn1.Unmarshal(rest, &name); err != nil {
				return "", &ParseError{Problem: "the certificate's subject alternative names are malformed"}
			}
			if names++; names > MaxNames {
				return "", &ParseError{Problem: fmt.Sprintf("the certificate has more than %d subject alternative names", MaxNames)}
			}
			if name.Class != asn1.ClassContextSpecific || name.Tag != tagURI {
				continue
			}
			if name.IsCompound {
				return "", &ParseError{Problem: "the certificate's URI name is malformed"}
			}
			uris++
			uri = string(name.Bytes)
		}
	}
	switch uris {
	case 0:
		return "", &ParseError{Problem: "the certificate has no URI name; it needs one like spiffe://TRUSTDOMAIN/ns/NAMESPACE/sa/ACCOUNT"}
	case 1:
		return uri, nil
	default:
		return "", &ParseError{Problem: fmt.Sprintf("the certificate has %d URI names; exactly one is allowed", uris)}
	}
}

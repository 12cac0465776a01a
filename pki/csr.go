package pki

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"

	"culvert/pki/istioca"
	"culvert/pki/spiffe"
)

const (
	// maxCSRBytes bounds a CSR as PEM text. One with an RSA key of 4096 bits has 1.7 KiB.
	maxCSRBytes = 16 << 10
	// maxCSRRSABits bounds the work of checking a CSR's signature.
	maxCSRRSABits = 4096
)

// Grant is what somebody may have a certificate for.
type Grant struct {
	ID    spiffe.ID
	Names []string // DNS names and IP addresses to put beside it
}

// parseCSR reads a certificate signing request (RFC 2986) and checks that whoever made it has the key. The error is
// an *istioca.Error.
func parseCSR(text string) (*x509.CertificateRequest, error) {
	if len(text) > maxCSRBytes {
		return nil, badCSR(nil, "the CSR has %d bytes; at most %d are taken", len(text), maxCSRBytes)
	}
	block, rest := pem.Decode([]byte(text))
	// RFC 7468, section 7, and the name that older tools write.
	if block == nil || block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST" || strings.TrimSpace(string(rest)) != "" {
		return nil, badCSR(nil, "the CSR must be one PEM block, -----BEGIN CERTIFICATE REQUEST-----")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, badCSR(err, "the CSR is damaged")
	}
	// Before the signature, whose check an odd key makes dear.
	if problem := csrKeyProblem(csr); problem != "" {
		return nil, badCSR(nil, "%s", problem)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, badCSR(err, "the signature of the CSR is wrong")
	}
	if csrWantsCA(csr) {
		return nil, badCSR(nil, "the CSR asks for a CA certificate; only leaves are issued")
	}
	return csr, nil
}

// checkCSR refuses a CSR that asks for more than grant gives. What it does not ask for is given all the same.
func checkCSR(csr *x509.CertificateRequest, grant Grant) error {
	refuse := func(format string, args ...any) error {
		return &istioca.Error{Code: istioca.PermissionDenied, Detail: fmt.Sprintf(format, args...)}
	}
	if len(csr.URIs) > 1 {
		return refuse("the CSR names %d URIs; an identity is one", len(csr.URIs))
	}
	if len(csr.URIs) == 1 && csr.URIs[0].String() != grant.ID.String() {
		return refuse("the CSR is for %q, and you are %s", printable(csr.URIs[0].String()), grant.ID)
	}
	if len(csr.EmailAddresses) > 0 {
		return refuse("the CSR asks for mail addresses; none are given")
	}
	names := slices.Clone(csr.DNSNames)
	for _, ip := range csr.IPAddresses {
		names = append(names, ip.String())
	}
	for _, name := range names {
		if !slices.Contains(grant.Names, name) {
			return refuse("the CSR asks for the name %q, which %s may not have", printable(name), grant.ID)
		}
	}
	return nil
}

// csrKeyProblem says why a certificate for the key of a CSR is not given, "" if it is.
func csrKeyProblem(csr *x509.CertificateRequest) string {
	switch key := csr.PublicKey.(type) {
	case *ecdsa.PublicKey:
		if key.Curve == elliptic.P256() || key.Curve == elliptic.P384() {
			return ""
		}
		return fmt.Sprintf("the CSR has a key of curve %s; use P-256", key.Curve.Params().Name)
	case ed25519.PublicKey:
		return ""
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < minRSABits || bits > maxCSRRSABits {
			return fmt.Sprintf("the CSR has an RSA key of %d bits; %d to %d are taken", bits, minRSABits, maxCSRRSABits)
		}
		return ""
	}
	return fmt.Sprintf("the CSR has a key of kind %s; use ECDSA P-256", csr.PublicKeyAlgorithm)
}

// csrWantsCA reports whether a CSR asks for basic constraints with CA:TRUE, or for ones that cannot be read. They
// would not be given; but who asks for them should hear of it.
func csrWantsCA(csr *x509.CertificateRequest) bool {
	for _, ext := range csr.Extensions {
		if !ext.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 19}) {
			continue
		}
		var constraints struct {
			IsCA       bool `asn1:"optional"`
			MaxPathLen int  `asn1:"optional,default:-1"`
		}
		if rest, err := asn1.Unmarshal(ext.Value, &constraints); err != nil || len(rest) > 0 || constraints.IsCA {
			return true
		}
	}
	return false
}

func badCSR(err error, format string, args ...any) error {
	return &istioca.Error{Code: istioca.InvalidArgument, Detail: fmt.Sprintf(format, args...), Err: err}
}

package acme

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	// maxChain is the leaf and four CAs above it, as for identities. Public CAs send two or three.
	maxChain = 5
	// maxSkew is how far the CA's clock may be ahead of ours.
	maxSkew = 5 * time.Minute
)

// checkChain refuses what is not a certificate for our key and name that is usable now, followed by the certificates
// that sign it (RFC 8555, section 7.4.2). Where the chain ends is the clients' to judge: the roots of a private CA are
// not known here.
func checkChain(chain [][]byte, name string, key crypto.PublicKey, now time.Time) (*x509.Certificate, error) {
	certs, err := parseChain(chain)
	if err != nil {
		return nil, err
	}
	leaf := certs[0]
	if err := checkLeaf(leaf, name, key); err != nil {
		return nil, err
	}
	if leaf.NotBefore.After(now.Add(maxSkew)) {
		return nil, fmt.Errorf("it is valid from %s on; see whether the clocks are right", leaf.NotBefore.UTC().Format(time.RFC3339))
	}
	for i, c := range certs {
		if !now.Before(c.NotAfter) {
			return nil, fmt.Errorf("certificate %d of %d expired at %s", i+1, len(certs), c.NotAfter.UTC().Format(time.RFC3339))
		}
		if i+1 == len(certs) {
			break
		}
		if err := c.CheckSignatureFrom(certs[i+1]); err != nil {
			return nil, fmt.Errorf("certificate %d of %d does not sign the one before it: %w", i+2, len(certs), err)
		}
	}
	return leaf, nil
}

// parseChain parses the certificates of a chain.
func parseChain(chain [][]byte) ([]*x509.Certificate, error) {
	if len(chain) == 0 || len(chain) > maxChain {
		return nil, fmt.Errorf("it comes as %d certificates, and 1 to %d are right", len(chain), maxChain)
	}
	var certs []*x509.Certificate
	for i, der := range chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate %d of %d: %w", i+1, len(chain), err)
		}
		certs = append(certs, c)
	}
	return certs, nil
}

// checkLeaf refuses a certificate that is not for our key and name, or not for servers.
func checkLeaf(leaf *x509.Certificate, name string, key crypto.PublicKey) error {
	if pub, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(key) {
		return errors.New("it is for another key than the one that was sent")
	}
	if err := leaf.VerifyHostname(name); err != nil {
		return fmt.Errorf("it is not for the name: %w", err)
	}
	if leaf.IsCA {
		return errors.New("it is a CA's certificate")
	}
	if len(leaf.ExtKeyUsage) > 0 && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) &&
		!slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny) {
		return errors.New("it may not be used by servers")
	}
	return nil
}

// encodePair makes a PEM text of a key and its chain.
func encodePair(key *ecdsa.PrivateKey, chain [][]byte) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	for _, c := range chain {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})...)
	}
	return text, nil
}

// decodePair reads what encodePair has written, for name. An expired certificate is no error.
func decodePair(text []byte, name string) (*tls.Certificate, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("does not begin with a PRIVATE KEY in PEM")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("has a private key that cannot be read") // without the cause, which may quote it
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("has a private key that is not an ECDSA key")
	}
	var chain [][]byte
	for len(chain) <= maxChain {
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("has a %.100q where certificates are", block.Type)
		}
		chain = append(chain, block.Bytes)
	}
	certs, err := parseChain(chain)
	if err != nil {
		return nil, err
	}
	if err := checkLeaf(certs[0], name, key.Public()); err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: certs[0]}, nil
}

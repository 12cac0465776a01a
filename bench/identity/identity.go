package identity

import (
	"os"
	"path/filepath"
	"time"

	"culvert/pki"
	"culvert/pki/spiffe"
)

// The place of every identity, and its life.
const (
	trustDomain, namespace = "cluster.local", "default"
	lifetime               = 24 * time.Hour
)

// CA signs the identities of one run.
type CA struct {
	ca  *pki.CA
	dir string
}

// NewCA makes a CA and writes its certificate to roots.pem in dir.
func NewCA(dir string) (*CA, error) {
	ca, err := pki.NewCA(trustDomain)
	if err != nil {
		return nil, err
	}
	return &CA{ca: ca, dir: dir}, os.WriteFile(filepath.Join(dir, "roots.pem"), ca.PEM(), 0o600)
}

// Issue makes spiffe://cluster.local/ns/default/sa/NAME, with a P-256 key and these DNS names, and writes it to
// name.pem and name.key beside roots.pem. The source is the same, for the process that calls.
func (c *CA) Issue(name string, dnsNames ...string) (*pki.Source, error) {
	id, err := spiffe.New(trustDomain, namespace, name)
	if err != nil {
		return nil, err
	}
	cert, key, err := c.ca.Issue(id, lifetime, dnsNames...)
	if err != nil {
		return nil, err
	}
	at := filepath.Join(c.dir, name)
	if err := pki.WriteIdentity(at+".pem", at+".key", cert, key); err != nil {
		return nil, err
	}
	material, err := pki.Parse(cert, key, c.ca.PEM())
	if err != nil {
		return nil, err
	}
	return pki.Fixed(material), nil
}

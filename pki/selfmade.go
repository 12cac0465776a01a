package pki

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log/slog"
	"math/big"
	"path/filepath"
	"time"
)

// selfMadeTTL is how long the certificate around a self-made key is valid. It is made anew in memory at half of that: peers
// believe the key, and what is old in a recording is worth nothing.
const selfMadeTTL = 24 * time.Hour

// OpenSelfMade takes a key of one's own, which is made on first start and kept as identity.key in cfg.State, as the
// identity: without a CA, named key:NAME (see spiffe.KeyID), and believed by peers whose trust.keys has that line. Roots,
// if set, are the CAs of peers that do have one: cfg.Trust.Domains name their trust domains.
func OpenSelfMade(cfg Config, log *slog.Logger) (*Source, error) {
	unlock, err := openStateDir(cfg.State)
	if err != nil {
		return nil, err
	}
	defer unlock()
	in := &input{field: "selfMade", file: filepath.Join(cfg.State, identityKeyFile), secret: true}
	if !exists(in.file) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("make a key: %w", err)
		}
		text, err := encodeKey(key)
		if err != nil {
			return nil, err
		}
		if err := writeFile(in.file, text); err != nil {
			return nil, err
		}
		log.Info("key made", "file", in.file)
	}
	if _, err := in.read(); err != nil {
		return nil, err
	}
	key, err := parseKey(in)
	if err != nil {
		return nil, err
	}
	var made *Material // of now; load is called by one at a time
	s := newSource(log, &Config{Poll: cfg.Poll, Trust: cfg.Trust, State: cfg.State}, func() (m *Material, err error) {
		if made == nil || renewalDue(made, time.Now()) {
			if made, err = selfMade(key, time.Now()); err != nil {
				return nil, err
			}
		}
		m = new(Material)
		*m = *made // trust is put into it
		return m, nil
	})
	s.renew = func(context.Context) error { return s.Reload() }
	return s.start()
}

// selfMade makes a Material of a key.
func selfMade(key crypto.Signer, now time.Time) (*Material, error) {
	id, err := keyID(key.Public())
	if err != nil {
		return nil, &ConfigError{Field: "selfMade", Reason: WeakKey, Err: err, Detail: "the key cannot be an identity", Mend: "use ECDSA P-256 or Ed25519"}
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	name := pkix.Name{CommonName: id.String()}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: name, Issuer: name, NotBefore: now.Add(-leafBackdate), NotAfter: now.Add(selfMadeTTL),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make a certificate: %w", err)
	}
	m := &Material{
		Certificate: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, Roots: x509.NewCertPool(), ID: id,
		NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter, chain: []*x509.Certificate{leaf},
	}
	m.own = digest(der)
	m.digest = m.own
	return m, nil
}

package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"net/url"
	"time"
)

// interTTL is how long an intermediate is valid. It is renewed after half of that, so leaves, which live a day at most,
// are never cut short by it, and a root whose key is kept elsewhere is needed twice a month.
const interTTL = 30 * 24 * time.Hour

// ensureSigner makes, renews or replaces the intermediate, as far as the root's key is here to do it.
func (a *Authority) ensureSigner(d *authorityData, now time.Time) error {
	if d.root == nil {
		return a.checkOfflineSigner(d, now)
	}
	if d.root.cert.MaxPathLenZero {
		d.inter = nil // a root that was made for leaves only, by an older gateway
		return nil
	}
	constrain := d.inter != nil && constrained(d.inter.cert)
	if a.cfg.NameConstraints != nil {
		constrain = *a.cfg.NameConstraints
	}
	var key crypto.Signer
	if d.inter != nil {
		if d.inter.cert.CheckSignatureFrom(d.root.cert) == nil {
			if !renewDue(d.inter.cert, now) && constrained(d.inter.cert) == constrain {
				return nil
			}
			key = d.inter.key // the same key: CRLs of before and after are one
		} else if err := a.retireIntermediate(d); err != nil {
			return err
		}
	}
	if key == nil {
		var err error
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return err
		}
	}
	inter, err := issueIntermediate(d.root, key, a.trustDomain, constrain, now)
	if err != nil {
		return fmt.Errorf("issue the intermediate: %w", err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return err
	}
	if err := WriteIdentity(a.path(interCertFile), a.path(interKeyFile), inter.PEM(), keyPEM); err != nil {
		return err
	}
	d.inter, d.crlDirty = inter, true
	a.log.Info("intermediate CA issued", "ca", inter.String(), "not_after", inter.cert.NotAfter)
	return nil
}

// retireIntermediate keeps the intermediate of another root, for the CRLs of what it has signed.
func (a *Authority) retireIntermediate(d *authorityData) error {
	keyPEM, err := encodeKey(d.inter.key)
	if err != nil {
		return err
	}
	d.oldIn = d.inter
	return WriteIdentity(a.path(oldInterCert), a.path(oldInterKey), d.inter.PEM(), keyPEM)
}

// checkOfflineSigner sees whether the intermediate can sign by itself.
func (a *Authority) checkOfflineSigner(d *authorityData, now time.Time) error {
	fail := func(reason Reason, detail string) error {
		return &ConfigError{Field: interCertFile, File: a.path(interCertFile), Reason: reason, Detail: detail,
			Mend: "put ca.key back for as long as `gateway ca show` takes, and a new one is issued"}
	}
	if d.inter == nil {
		return errNoAuthority(a.dir)
	}
	if reason, detail := timeProblem(d.inter.cert, now); reason != "" {
		return fail(reason, detail)
	}
	for _, root := range d.roots {
		if d.inter.cert.CheckSignatureFrom(root) == nil {
			return nil
		}
	}
	return fail(Untrusted, "no root in ca.pem has signed it")
}

// errNoAuthority says that a folder has nothing to sign with.
func errNoAuthority(dir string) error {
	return &ConfigError{Field: caKeyFile, File: dir, Reason: Missing, Detail: "neither a root's key nor an intermediate CA is here",
		Mend: "name the folder of the host whose gateway made the CA; a host that joined it has none"}
}

// issueIntermediate signs an intermediate for leaves (pathlen 0). Its name follows from its key, as a root's does.
// constrain limits it to URIs of the trust domain, see CA.
func issueIntermediate(root *CA, key crypto.Signer, trustDomain string, constrain bool, now time.Time) (*CA, error) {
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(spki)
	template := &x509.Certificate{
		Subject:   pkix.Name{Organization: []string{trustDomain}, CommonName: "Culvert intermediate CA " + hex.EncodeToString(sum[:4])},
		NotBefore: now.Add(-caBackdate), NotAfter: now.Add(interTTL),
		URIs:     []*url.URL{{Scheme: "spiffe", Host: trustDomain}},
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	if constrain {
		template.PermittedURIDomains = []string{trustDomain}
		template.PermittedDNSDomainsCritical = true // of the extension as a whole (RFC 5280, section 4.2.1.10)
	}
	if template.NotBefore.Before(root.cert.NotBefore) {
		template.NotBefore = root.cert.NotBefore
	}
	if template.NotAfter.After(root.cert.NotAfter) {
		template.NotAfter = root.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, template, root.cert, key.Public(), root.key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &CA{cert: cert, key: key, trustDomain: trustDomain}, nil
}

// constrained reports whether a CA certificate has name constraints for URIs.
func constrained(c *x509.Certificate) bool { return len(c.PermittedURIDomains) > 0 }

// renewDue reports whether half of a certificate's life is over.
func renewDue(c *x509.Certificate, now time.Time) bool {
	return now.After(halfLife(c.NotBefore, c.NotAfter))
}

// halfLife is the middle of a validity.
func halfLife(notBefore, notAfter time.Time) time.Time {
	return notBefore.Add(notAfter.Sub(notBefore) / 2)
}

// id names the key of ca in the record.
func (ca *CA) id() (id signerID) {
	sum := sha256.Sum256(ca.cert.RawSubjectPublicKeyInfo)
	copy(id[:], sum[:])
	return id
}

package pki

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"path/filepath"
	"slices"
	"time"

	"culvert/pki/spiffe"
)

const (
	// crlTTL is how long a CRL may be relied on, and crlEvery how often a new one is made when nothing has changed.
	// Members fetch it over an authenticated connection far more often than that; the time is for those that a CA
	// which is down leaves alone.
	crlTTL   = 7 * 24 * time.Hour
	crlEvery = 24 * time.Hour
	// maxRevoked keeps the CRL, with 50 bytes each in PEM, within what a gateway reads (1 MiB).
	maxRevoked = 20_000
	// maxBarred bounds the identities that get no certificate any more.
	maxBarred = 20_000
)

// revokedCert is a certificate in the CRL.
type revokedCert struct {
	Serial serialNumber `json:"serial"`
	Signer signerID     `json:"signer"`
	ID     spiffe.ID    `json:"id"`
	At     time.Time    `json:"at"`
	Until  time.Time    `json:"until"` // when it expires; it is in the CRL until nobody can renew it any more
}

// Revoke puts certificates into the CRL: the one with that serial number (hexadecimal), or all of a SPIFFE ID, which gets
// none any more either until it joins with a new token. It returns how many certificates are new in the CRL.
// A running server of the same folder takes it over within a second or two, and revokes what it has signed for the
// identity in between. A single certificate is for one that is lost: who has its key may have renewed it already.
func (a *Authority) Revoke(what string) (n int, err error) {
	id, idErr := spiffe.Parse(what)
	serial, isSerial := parseSerial(what)
	if idErr != nil && !isSerial {
		return 0, fmt.Errorf("%q is neither a serial number in hexadecimal nor a SPIFFE ID: %w", printable(what), idErr)
	}
	return n, a.update(func(d *authorityData) error {
		now := time.Now()
		issued, err := a.issued(now)
		if err != nil {
			return err
		}
		known := make(map[serialNumber]bool)
		for _, r := range d.state.Revoked {
			known[r.Serial] = true
		}
		found := false
		for owner, certs := range issued.byID {
			for _, c := range certs {
				if isSerial && c.serial != serial || !isSerial && owner != id {
					continue
				}
				found = true
				if known[c.serial] {
					continue
				}
				d.state.Revoked = append(d.state.Revoked, c.revoked(owner, now))
				n++
			}
		}
		if len(d.state.Revoked) > maxRevoked {
			return fmt.Errorf("the CRL would have %d entries, more than %d; replace the root instead (gateway ca rotate)", len(d.state.Revoked), maxRevoked)
		}
		switch {
		case isSerial && !found:
			return fmt.Errorf("no live certificate with the serial number %s was issued here", serial)
		case !isSerial && id == a.id:
			return fmt.Errorf("%s is the CA itself; replace its root instead (gateway ca rotate)", id)
		case !isSerial && !slices.Contains(d.state.Barred, id):
			if len(d.state.Barred) >= maxBarred {
				return fmt.Errorf("%d identities are revoked already", maxBarred)
			}
			d.state.Barred = append(d.state.Barred, id)
		}
		d.crlDirty = true
		return nil
	})
}

// revokeBarred puts what this process has signed for a revoked identity into the CRL, if it is not there: it may have
// been signed after the command that revokes had read the record, and before this process heard of it.
func (a *Authority) revokeBarred(d *authorityData, now time.Time) {
	l := a.ledger.Load()
	if l == nil || len(d.state.Barred) == 0 {
		return
	}
	known := make(map[serialNumber]bool, len(d.state.Revoked))
	for _, r := range d.state.Revoked {
		known[r.Serial] = true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range d.state.Barred {
		for _, c := range l.byID[id] {
			if !known[c.serial] && now.Before(c.notAfter()) && len(d.state.Revoked) < maxRevoked {
				d.state.Revoked = append(d.state.Revoked, c.revoked(id, now))
				d.crlDirty = true
			}
		}
	}
}

// revoked makes the entry of a certificate.
func (c *issuedCert) revoked(id spiffe.ID, now time.Time) revokedCert {
	return revokedCert{Serial: c.serial, Signer: c.signer, ID: id, At: now.UTC().Truncate(time.Second), Until: c.notAfter().UTC()}
}

// issued returns the record: this process's, or what the file says.
func (a *Authority) issued(now time.Time) (*ledger, error) {
	if l := a.ledger.Load(); l != nil {
		return l.clone(), nil
	}
	return readLedger(a.path(ledgerFile), now)
}

// clone copies the record for reading.
func (l *ledger) clone() *ledger {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := &ledger{path: l.path, byID: make(map[spiffe.ID][]issuedCert, len(l.byID)), live: l.live}
	for id, certs := range l.byID {
		c.byID[id] = slices.Clone(certs)
	}
	return c
}

// ensureCRL makes a CRL if there is none, if what it says has changed, or if it is a day old.
func (a *Authority) ensureCRL(d *authorityData, now time.Time) error {
	if !d.crlDirty && d.crl != nil && now.Before(d.state.CRLNext) {
		return nil
	}
	d.state.CRLNumber++
	d.state.CRLNext = now.Add(crlEvery).UTC().Truncate(time.Second)
	var out []byte
	signers := []*CA{d.inter, d.oldIn, d.root}
	if d.old != nil { // the root before: its certificate is one of ca.pem still
		if cert := rootOf(d.roots, d.old); cert != nil {
			signers = append(signers, &CA{cert: cert, key: d.old})
		}
	}
	for _, ca := range signers {
		if ca == nil || ca.cert.KeyUsage != 0 && ca.cert.KeyUsage&x509.KeyUsageCRLSign == 0 {
			continue
		}
		der, err := signCRL(ca, d.state.Revoked, d.state.CRLNumber, now)
		if err != nil {
			return fmt.Errorf("sign the CRL of %s: %w", ca, err)
		}
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})...)
	}
	d.crl = out
	return writeFile(filepath.Join(a.dir, crlFile), out)
}

// signCRL makes the CRL of one signer (RFC 5280, section 5).
func signCRL(ca *CA, revoked []revokedCert, number uint64, now time.Time) ([]byte, error) {
	list := &x509.RevocationList{Number: new(big.Int).SetUint64(number), ThisUpdate: now.Add(-leafBackdate), NextUpdate: now.Add(crlTTL)}
	signer := ca.id()
	for _, r := range revoked {
		if r.Signer == signer {
			list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
				x509.RevocationListEntry{SerialNumber: r.Serial.int(), RevocationTime: r.At})
		}
	}
	return x509.CreateRevocationList(rand.Reader, list, ca.cert, ca.key)
}

// CRL returns the revocation lists, PEM, one for each key that signs or has signed certificates that live.
func (a *Authority) CRL() []byte { return a.data.Load().crl }

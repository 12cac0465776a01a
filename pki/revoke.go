package pki

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"sync"
	"time"
)

const (
	// maxCRLs bounds the lists of one file, and maxCRLEntries the certificates of one list. A list of 1 MiB, the bound of
	// files, has about 25,000.
	maxCRLs       = 100
	maxCRLEntries = 100_000
)

// revocations are lists of revoked certificates by the name of their CA, so that a certificate is looked for in the
// lists of its own CA only, however many there are.
type revocations struct {
	refuseStale bool
	byIssuer    map[string][]*revocationList // by the DER of the CA's name
}

// revocationList is one list. Whether a CA has signed it is found out when a certificate of that CA is looked for, once
// for each CA of the list's issuer name: that CA may be an intermediate, which is seen for the first time then.
type revocationList struct {
	list    *x509.RevocationList
	file    string
	serials map[string]struct{} // as big-endian bytes

	mu     sync.Mutex
	signed map[[sha256.Size]byte]bool // by the CA's certificate; guarded by mu. CAs lead to our roots, so they are few
}

func newRevocations(refuseStale bool) *revocations {
	return &revocations{refuseStale: refuseStale, byIssuer: make(map[string][]*revocationList)}
}

// add reads the lists of a file.
func (r *revocations) add(in *input) error {
	if !isPEM(in.data) {
		return r.addList(in, in.data, 1)
	}
	n := 0
	for block, rest := pem.Decode(in.data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "X509 CRL" {
			continue
		}
		if n++; n > maxCRLs {
			return in.fail(TooMany, nil, "split the file", "holds more than %d lists", maxCRLs)
		}
		if err := r.addList(in, block.Bytes, n); err != nil {
			return err
		}
	}
	if n == 0 {
		return in.fail(BadFormat, nil, "it must be PEM, with -----BEGIN X509 CRL-----, or DER", "holds no revocation list")
	}
	return nil
}

func (r *revocations) addList(in *input, der []byte, n int) error {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return in.fail(BadFormat, err, "write the file anew", "revocation list %d in it is damaged", n)
	}
	if len(list.RevokedCertificateEntries) > maxCRLEntries {
		return in.fail(TooMany, nil, "leave out certificates that have expired", "revocation list %d has more than %d certificates", n, maxCRLEntries)
	}
	l := &revocationList{list: list, file: in.file, serials: make(map[string]struct{}, len(list.RevokedCertificateEntries)), signed: make(map[[sha256.Size]byte]bool)}
	for _, entry := range list.RevokedCertificateEntries {
		l.serials[string(entry.SerialNumber.Bytes())] = struct{}{}
	}
	r.byIssuer[string(list.RawIssuer)] = append(r.byIssuer[string(list.RawIssuer)], l)
	return nil
}

// warnings says which lists are overdue.
func (r *revocations) warnings(now time.Time) (list []string) {
	for _, lists := range r.byIssuer {
		for _, l := range lists {
			if l.stale(now) {
				list = append(list, fmt.Sprintf("revocation list %s of %s: its next update was due at %s", l.file, nameText(l.list.Issuer), stamp(l.list.NextUpdate)))
			}
		}
	}
	return list
}

// stale reports whether there should be a newer list. Without nextUpdate, which RFC 5280, section 5.1.2.5 requires and
// some CAs leave out, a list never is.
func (l *revocationList) stale(now time.Time) bool {
	return !l.list.NextUpdate.IsZero() && now.After(l.list.NextUpdate)
}

// signedBy reports whether ca has signed the list.
func (l *revocationList) signedBy(ca *x509.Certificate) bool {
	key := sha256.Sum256(ca.Raw)
	l.mu.Lock()
	defer l.mu.Unlock()
	signed, known := l.signed[key]
	if !known {
		signed = l.list.CheckSignatureFrom(ca) == nil
		l.signed[key] = signed
	}
	return signed
}

// problem says why none of chains counts: in each some certificate is revoked, or nothing is known of it where that is
// refused. chains are from leaf to root, as x509.Certificate.Verify returns them.
func (r *revocations) problem(chains [][]*x509.Certificate, now time.Time) (reason Reason, detail string) {
	if r == nil || len(r.byIssuer) == 0 {
		return "", ""
	}
	for _, chain := range chains {
		if reason, detail = r.chainProblem(chain, now); reason == "" {
			return "", ""
		}
	}
	return reason, detail
}

func (r *revocations) chainProblem(chain []*x509.Certificate, now time.Time) (Reason, string) {
	for i, c := range chain[:len(chain)-1] {
		ca := chain[i+1]
		for _, l := range r.byIssuer[string(c.RawIssuer)] {
			if !l.signedBy(ca) {
				continue // of another CA of that name, or forged
			}
			if _, revoked := l.serials[string(c.SerialNumber.Bytes())]; revoked {
				return Revoked, fmt.Sprintf("%s (serial %s) was revoked by %s (%s)", certName(c), c.SerialNumber.Text(16), nameText(ca.Subject), l.file)
			}
			if r.refuseStale && l.stale(now) {
				return StaleCRL, fmt.Sprintf("the revocation list of %s (%s) was due at %s; fetch a new one, or set trust.staleCRL to serve", nameText(ca.Subject), l.file, stamp(l.list.NextUpdate))
			}
		}
	}
	return "", ""
}

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
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"culvert/pki/spiffe"
)

const (
	// DefaultTTL is how long an issued identity is valid if nothing else is said.
	DefaultTTL = 24 * time.Hour

	// caTTL is long, as a new root has to be carried to every peer by hand.
	caTTL = 10 * 365 * 24 * time.Hour
	// caBackdate and leafBackdate are how far validity begins before now, for peers whose clocks are behind; for a leaf a
	// tenth of its validity at most, so that half its life is over when half of its time is.
	caBackdate   = time.Hour
	leafBackdate = 5 * time.Minute
	// maxIssuedNames is how many names Issue puts beside the identity; peers take spiffe.MaxNames in all.
	maxIssuedNames = spiffe.MaxNames - 1

	caCertFile = "ca.pem"
	caKeyFile  = "ca.key"
)

// CA signs the identities of one trust domain. It is immutable and may be used concurrently.
//
// Its certificate is a root with its trust domain as SPIFFE ID (X509-SVID, section 3.2), good for leaves and for one
// intermediate above them (pathlen 1), which an Authority signs with. It has no name constraints: rustls, which ztunnel
// uses, refuses every chain that has one for URIs (RUSTSEC-2026-0098), and X509-SVID, section 4.2 urges caution with
// them for such reasons. Constraints of other CAs are enforced.
type CA struct {
	cert        *x509.Certificate
	key         crypto.Signer
	trustDomain string
}

// NewCA makes a CA with an ECDSA P-256 key, valid for ten years, and writes nothing. The error is a
// *spiffe.ParseError if trustDomain is none.
func NewCA(trustDomain string) (*CA, error) {
	if err := spiffe.CheckTrustDomain(trustDomain); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return rootFor(key, trustDomain)
}

// CreateCA makes a CA as NewCA does and keeps it in dir, which is made with mode 0700 if need be, as ca.pem and
// ca.key with mode 0600. If one of the two is there already, the error is a *ConfigError that wraps fs.ErrExist,
// and nothing is written.
func CreateCA(dir, trustDomain string) (*CA, error) {
	ca, err := NewCA(trustDomain)
	if err != nil {
		return nil, err
	}
	unlock, err := openStateDir(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	for _, name := range []string{caCertFile, caKeyFile} {
		if path := filepath.Join(dir, name); exists(path) {
			return nil, &ConfigError{Field: name, File: path, Reason: BadValue, Detail: "a CA is there", Err: fs.ErrExist,
				Mend: "name another folder, or move this CA away; identities that it issued are trusted as long as peers have it"}
		}
	}
	if err := ca.write(dir); err != nil {
		return nil, err
	}
	return ca, nil
}

// LoadCA reads ca.pem and ca.key in dir. The CA need not have been made here: every CA certificate with its key
// will do, and if it names no trust domain, it signs for all. Where ca.pem holds several roots, as it does while one
// takes the place of another, the CA is the one that ca.key belongs to. Problems are returned joined, each a
// *ConfigError.
func LoadCA(dir string) (*CA, error) {
	cert := input{field: caCertFile, file: filepath.Join(dir, caCertFile)}
	key := input{field: caKeyFile, file: filepath.Join(dir, caKeyFile), secret: true}
	_, certErr := cert.read()
	_, keyErr := key.read()
	ca, err := parseCA(&cert, &key, time.Now())
	if err = errors.Join(certErr, keyErr, err); err != nil {
		return nil, err
	}
	return ca, nil
}

// Issue makes an ECDSA P-256 key and a certificate for it that names id, valid for ttl from now on (0 =
// DefaultTTL) but not longer than the CA, for TLS servers and clients. names are DNS names or IP addresses to put
// beside id for clients that verify host names; at most 99. It returns certificate and key as PEM (PKCS #8). The
// certificate's subject is empty and its names are therefore critical (RFC 5280, section 4.1.2.6). Errors say
// which argument is wrong; nothing is returned then.
func (ca *CA) Issue(id spiffe.ID, ttl time.Duration, names ...string) (certPEM, keyPEM []byte, err error) {
	switch now := time.Now(); {
	case id.IsZero():
		return nil, nil, errors.New("issue a certificate: the identity is empty; it is like spiffe://TRUSTDOMAIN/ns/NAMESPACE/sa/ACCOUNT")
	case ca.trustDomain != "" && id.TrustDomain() != ca.trustDomain:
		return nil, nil, fmt.Errorf("issue %s: this CA signs for trust domain %q", id, ca.trustDomain)
	case ttl < 0:
		return nil, nil, fmt.Errorf("issue %s: a validity of %v is in the past", id, ttl)
	case now.After(ca.cert.NotAfter):
		return nil, nil, fmt.Errorf("issue %s: the CA expired at %s; make a new one", id, stamp(ca.cert.NotAfter))
	case len(names) > maxIssuedNames:
		return nil, nil, fmt.Errorf("issue %s: %d names are too many; at most %d fit beside it", id, len(names), maxIssuedNames)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("issue %s: %w", id, err)
	}
	der, err := ca.certify(id, ttl, names, key.Public(), nil)
	if err != nil {
		return nil, nil, fmt.Errorf("issue %s: %w", id, err)
	}
	keyPEM, err = encodeKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("issue %s: %w", id, err)
	}
	return encodeCert(der), keyPEM, nil
}

// PEM returns the certificate of the CA, which is what peers put in their roots file.
func (ca *CA) PEM() []byte { return encodeCert(ca.cert.Raw) }

// TrustDomain returns the trust domain that the CA signs for, "" for all.
func (ca *CA) TrustDomain() string { return ca.trustDomain }

// NotAfter returns the end of the CA's validity.
func (ca *CA) NotAfter() time.Time { return ca.cert.NotAfter }

// String returns the subject of the CA, without the key.
func (ca *CA) String() string { return nameText(ca.cert.Subject) }

// GoString returns the same as String, so that %#v does not print the key either.
func (ca *CA) GoString() string { return "pki.CA(" + ca.String() + ")" }

// LogValue returns the subject of the CA and its end.
func (ca *CA) LogValue() slog.Value {
	return slog.GroupValue(slog.String("ca", ca.String()), slog.Time("not_after", ca.cert.NotAfter))
}

// certify signs a leaf for a public key. serial is its number; nil: a random one.
func (ca *CA) certify(id spiffe.ID, ttl time.Duration, names []string, pub crypto.PublicKey, serial *big.Int) (der []byte, err error) {
	template, err := ca.leafTemplate(id, ttl, names)
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	return x509.CreateCertificate(rand.Reader, template, ca.cert, pub, ca.key)
}

// leafTemplate fills in the certificate to sign.
func (ca *CA) leafTemplate(id spiffe.ID, ttl time.Duration, names []string) (*x509.Certificate, error) {
	uri, err := url.Parse(id.String())
	if err != nil {
		return nil, err
	}
	if ttl == 0 {
		ttl = DefaultTTL
	}
	now := time.Now()
	template := &x509.Certificate{
		NotBefore: now.Add(-min(leafBackdate, ttl/10)), NotAfter: now.Add(ttl), URIs: []*url.URL{uri},
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if template.NotBefore.Before(ca.cert.NotBefore) {
		template.NotBefore = ca.cert.NotBefore
	}
	if template.NotAfter.After(ca.cert.NotAfter) {
		template.NotAfter = ca.cert.NotAfter
	}
	for _, name := range names {
		if addr, err := netip.ParseAddr(name); err == nil && addr.Zone() == "" {
			template.IPAddresses = append(template.IPAddresses, addr.AsSlice())
		} else if isHostName(name) {
			template.DNSNames = append(template.DNSNames, name)
		} else {
			return nil, fmt.Errorf("%q is neither a DNS name in lower case nor an IP address", printable(name))
		}
	}
	return template, nil
}

// isHostName reports whether name is a DNS name as it stands in certificates: labels of a-z, 0-9 and '-', the
// first of them maybe "*".
func isHostName(name string) bool {
	if len(name) == 0 || len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(strings.TrimPrefix(name, "*."), ".") {
		if len(label) == 0 || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			if c := label[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				return false
			}
		}
	}
	return true
}

// rootFor makes the root certificate of a key. Its name follows from the key, so a certificate that is lost can be
// made again and leaves that were issued under the old one lead to the new one too.
func rootFor(key crypto.Signer, trustDomain string) (*CA, error) {
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("make a CA: %w", err)
	}
	sum := sha256.Sum256(spki)
	now := time.Now()
	template := &x509.Certificate{
		Subject:   pkix.Name{Organization: []string{trustDomain}, CommonName: "Culvert CA " + hex.EncodeToString(sum[:4])},
		NotBefore: now.Add(-caBackdate), NotAfter: now.Add(caTTL),
		URIs:     []*url.URL{{Scheme: "spiffe", Host: trustDomain}},
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLen: 1,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make a CA: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make a CA: %w", err)
	}
	return &CA{cert: cert, key: key, trustDomain: trustDomain}, nil
}

// parseCA reads and checks a CA's certificate and key.
func parseCA(certIn, keyIn *input, now time.Time) (*CA, error) {
	key, keyErr := parseKey(keyIn)
	if certIn.unread {
		return nil, keyErr
	}
	certs, err := parseCertificates(certIn, maxRoots)
	if err != nil {
		return nil, errors.Join(err, keyErr)
	}
	cert := certs[0]
	errs := []error{keyErr}
	if key != nil {
		if i := slices.IndexFunc(certs, func(c *x509.Certificate) bool { return samePublic(key.Public(), c.PublicKey) }); i > 0 {
			cert = certs[i]
		}
		errs = append(errs, checkPair(certIn, keyIn, []*x509.Certificate{cert}, key))
	}
	if reason, detail := timeProblem(cert, now); reason != "" {
		errs = append(errs, certIn.fail(reason, nil, "set this host's clock right, or move the CA away and make a new one", "%s", detail))
	}
	if !cert.BasicConstraintsValid || !cert.IsCA || cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		errs = append(errs, certIn.fail(NoAuthority, nil, "name the certificate of a CA", "may not sign certificates"))
		return nil, errors.Join(errs...)
	}
	ca := &CA{cert: cert, key: key}
	for _, uri := range cert.URIs {
		if uri.Scheme != "spiffe" {
			continue
		}
		if err := spiffe.CheckTrustDomain(uri.Host); err != nil || uri.Path != "" || ca.trustDomain != "" {
			errs = append(errs, certIn.fail(NoIdentity, err, "make a new CA", "must name one trust domain (spiffe://TRUSTDOMAIN) or none"))
			break
		}
		ca.trustDomain = uri.Host
	}
	return ca, errors.Join(errs...)
}

// write keeps the CA in dir. The key comes first: a key without certificate can be completed, a certificate
// without key cannot.
func (ca *CA) write(dir string) error {
	keyPEM, err := encodeKey(ca.key)
	if err != nil {
		return err
	}
	return WriteIdentity(filepath.Join(dir, caCertFile), filepath.Join(dir, caKeyFile), ca.PEM(), keyPEM)
}

// samePublic reports whether two public keys are the same.
func samePublic(a, b crypto.PublicKey) bool {
	key, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(b)
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode the key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

package pki

import (
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"culvert/pki/spiffe"
)

const (
	// maxChain is how many certificates an identity may come with, leaf included, ours or a peer's. A mesh
	// needs two or three; every further one is work that a stranger makes us do.
	maxChain = 5
	// maxRoots bounds the roots file. Bundles of public CAs hold about 150.
	maxRoots = 500
	// maxFileBytes bounds each file, so that a wrong path (a disk image, a log) is not read into memory.
	maxFileBytes = 1 << 20
)

// Material is what a gateway authenticates itself and others with at one moment. It is immutable;
// a renewal makes a new one.
type Material struct {
	Certificate tls.Certificate // leaf and intermediates, the private key, and Leaf set
	Roots       *x509.CertPool  // the CAs that sign the identities of ID's trust domain
	ID          spiffe.ID       // who we are, from the leaf
	NotBefore   time.Time       // when the leaf begins to be valid
	NotAfter    time.Time       // when the leaf ends to be valid

	chain     []*x509.Certificate       // leaf and intermediates
	warnings  []string                  // what a person should know and that does not hinder: logged when the material comes into use
	digest    [sha256.Size]byte         // of everything it was made from
	own       [sha256.Size]byte         // of that without trust
	federated map[string]*x509.CertPool // CAs of other trust domains that came with it
	trust     *trust                    // whom it believes besides; nil: nobody
}

// String returns who it is and how long, without the key.
func (m Material) String() string {
	return fmt.Sprintf("%s until %s", m.ID, m.NotAfter.UTC().Format(time.RFC3339))
}

// GoString returns the same as String, so that %#v does not print the key either.
func (m Material) GoString() string { return "pki.Material(" + m.String() + ")" }

// MarshalJSON returns the text of String, so that the key does not end in a JSON log.
func (m Material) MarshalJSON() ([]byte, error) { return json.Marshal(m.String()) }

// LogValue returns the identity and its end.
func (m Material) LogValue() slog.Value {
	return slog.GroupValue(slog.String("id", m.ID.String()), slog.Time("not_after", m.NotAfter))
}

// input is the PEM text of one field of Config and where it came from.
type input struct {
	field, file string
	data        []byte
	secret      bool // a key: nobody else may use the file
	unread      bool // it could not be read, which is reported elsewhere
}

// fail makes the ConfigError of this input.
func (in *input) fail(reason Reason, err error, mend, format string, args ...any) error {
	return &ConfigError{Field: in.field, File: in.file, Reason: reason, Detail: fmt.Sprintf(format, args...), Mend: mend, Err: err}
}

// Parse makes a Material of PEM texts as Config describes them: certPEM has the leaf first, keyPEM its
// key, rootsPEM the CAs. It checks what a peer would check and the times against the clock; all
// problems are returned at once, joined, each a *ConfigError.
func Parse(certPEM, keyPEM, rootsPEM []byte) (*Material, error) {
	cert, key, roots := input{field: "cert", data: certPEM}, input{field: "key", data: keyPEM}, input{field: "roots", data: rootsPEM}
	return parse(&cert, &key, &roots, time.Now())
}

// parse is Parse for inputs that know their files, at a given time. Without an error from it, there is a
// Material if and only if all inputs were read.
func parse(cert, key, roots *input, now time.Time) (*Material, error) {
	chain, certErr := parseChain(cert, now)
	signer, keyErr := parseKey(key)
	pool, warnings, rootsErr := parseRoots(roots, now)
	var pairErr error
	if len(chain) > 0 && signer != nil {
		pairErr = checkPair(cert, key, chain, signer)
	}
	err := errors.Join(certErr, keyErr, pairErr, rootsErr)
	if err != nil || cert.unread || key.unread || roots.unread {
		return nil, err
	}
	leaf := chain[0]
	id, err := spiffe.FromCertificate(leaf)
	if err != nil {
		return nil, err // parseChain has read it already
	}
	m := &Material{
		Certificate: tls.Certificate{PrivateKey: signer, Leaf: leaf},
		Roots:       pool, ID: id, NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter,
		chain:    chain,
		warnings: append(warnings, chainWarnings(chain, pool, now)...),
		digest:   digest(cert.data, key.data, roots.data),
	}
	m.own = m.digest
	for _, c := range chain {
		m.Certificate.Certificate = append(m.Certificate.Certificate, c.Raw)
	}
	return m, nil
}

// parseChain reads and checks our own certificates. The chain is returned even when a check fails, if there is
// one, so that the key can be compared with it.
func parseChain(in *input, now time.Time) ([]*x509.Certificate, error) {
	if in.unread {
		return nil, nil
	}
	chain, err := parseCertificates(in, maxChain)
	if err != nil {
		return nil, err
	}
	var errs []error
	leaf := chain[0]
	if reason, detail := leafProblem(leaf); reason != "" {
		mend := "issue a leaf certificate for TLS (gateway cert issue makes one)"
		if reason == NotLeaf && len(chain) > 1 {
			mend = "put the gateway's own certificate first in the file, then its intermediates"
		}
		errs = append(errs, in.fail(reason, nil, mend, "%s", detail))
	}
	if _, err := spiffe.FromCertificate(leaf); err != nil {
		errs = append(errs, in.fail(NoIdentity, err, "issue a certificate with one SPIFFE ID (gateway cert issue makes one)", "names no workload"))
	}
	for _, c := range chain {
		if problem := keyProblem(c); problem != "" {
			errs = append(errs, in.fail(WeakKey, nil, "issue it anew with an ECDSA P-256 key", "%s: %s", certName(c), problem))
		}
	}
	if reason, detail := timeProblem(leaf, now); reason != "" {
		errs = append(errs, in.fail(reason, nil, timeMend(reason), "%s", detail))
	}
	return chain, errors.Join(errs...)
}

// timeMend says what to do about a certificate whose time is over or has not come.
func timeMend(reason Reason) string {
	if reason == NotYetValid {
		return "set this host's clock right, or wait"
	}
	return "issue a new one, or set this host's clock right"
}

// parseCertificates reads the CERTIFICATE blocks of a PEM text and skips all others: 1 to limit of them.
func parseCertificates(in *input, limit int) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	keys := 0
	for block, rest := pem.Decode(in.data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			if strings.HasSuffix(block.Type, "PRIVATE KEY") {
				keys++
			}
			continue
		}
		if len(certs) == limit {
			return nil, in.fail(TooMany, nil, "remove those that are not needed", "holds more than %d certificates", limit)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, in.fail(BadFormat, err, "write the file anew", "certificate %d in it is damaged", len(certs)+1)
		}
		certs = append(certs, c)
	}
	switch {
	case len(certs) > 0:
		return certs, nil
	case keys > 0:
		return nil, in.fail(BadFormat, nil, "cert and key may have changed places", "holds a private key and no certificate")
	default:
		return nil, in.fail(BadFormat, nil, "it must be PEM, with -----BEGIN CERTIFICATE-----", "holds no certificate")
	}
}

// parseKey reads the only private key of a PEM text, and skips blocks of other types such as EC PARAMETERS.
func parseKey(in *input) (crypto.Signer, error) {
	if in.unread {
		return nil, nil
	}
	var found *pem.Block
	certs := 0
	for block, rest := pem.Decode(in.data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			certs++
		}
		if !strings.HasSuffix(block.Type, "PRIVATE KEY") {
			continue
		}
		if found != nil {
			return nil, in.fail(BadFormat, nil, "leave only the key of the certificate", "holds more than one private key")
		}
		found = block
	}
	switch {
	case found == nil && certs > 0:
		return nil, in.fail(BadFormat, nil, "cert and key may have changed places", "holds a certificate and no private key")
	case found == nil:
		return nil, in.fail(BadFormat, nil, "it must be PEM, with -----BEGIN PRIVATE KEY-----", "holds no private key")
	case found.Type == "ENCRYPTED PRIVATE KEY" || found.Headers["DEK-Info"] != "":
		return nil, in.fail(BadFormat, nil, "decrypt it: openssl pkey -in OLD -out NEW", "is encrypted")
	}
	// The type of the block is not believed: tools disagree about it. The order is that of crypto/tls.
	if key, err := x509.ParsePKCS1PrivateKey(found.Bytes); err == nil {
		return key, nil
	}
	if key, err := x509.ParseECPrivateKey(found.Bytes); err == nil {
		return key, nil
	}
	key, err := x509.ParsePKCS8PrivateKey(found.Bytes)
	if err != nil {
		return nil, in.fail(BadFormat, nil, "it must be PKCS #8, SEC 1 or PKCS #1; write the file anew", "the private key in it is damaged")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, in.fail(WeakKey, nil, "use an ECDSA P-256 key", "a %T cannot sign", key)
	}
	return signer, nil
}

// checkPair returns an error unless signer is the key of the leaf.
func checkPair(cert, key *input, chain []*x509.Certificate, signer crypto.Signer) error {
	pub, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool })
	if ok && pub.Equal(chain[0].PublicKey) {
		return nil
	}
	mend := "use the key that this certificate was issued for"
	for _, c := range chain[1:] {
		if ok && pub.Equal(c.PublicKey) {
			mend = "put the gateway's own certificate first in the file, then its intermediates"
		}
	}
	of := "cert"
	if cert.file != "" {
		of += " " + cert.file
	}
	return key.fail(Mismatch, nil, mend, "is not the key of %s", of)
}

// parseRoots reads the CAs. One that is expired is only worth a warning while another is valid.
func parseRoots(in *input, now time.Time) (*x509.CertPool, []string, error) {
	if in.unread {
		return nil, nil, nil
	}
	roots, err := parseCertificates(in, maxRoots)
	if err != nil {
		return nil, nil, err
	}
	var errs []error
	var warnings []string
	pool := x509.NewCertPool()
	valid := 0
	for _, c := range roots {
		if !c.BasicConstraintsValid || !c.IsCA {
			errs = append(errs, in.fail(NoAuthority, nil, "name the certificate of the CA, not one that it issued", "%s is not a CA", certName(c)))
		}
		if problem := keyProblem(c); problem != "" {
			errs = append(errs, in.fail(WeakKey, nil, "remove it, or make a new CA", "%s: %s", certName(c), problem))
		}
		if _, detail := timeProblem(c, now); detail == "" {
			valid++
		} else {
			warnings = append(warnings, fmt.Sprintf("root %s: %s", certName(c), detail))
		}
		pool.AddCert(c)
	}
	if valid == 0 {
		reason, detail := timeProblem(roots[0], now)
		errs = append(errs, in.fail(reason, nil, timeMend(reason), "%s %s", certName(roots[0]), detail))
	}
	return pool, warnings, errors.Join(errs...)
}

// chainWarnings says what peers that are set up like us would dislike in our own certificates.
func chainWarnings(chain []*x509.Certificate, roots *x509.CertPool, now time.Time) []string {
	var warnings []string
	leaf := chain[0]
	for _, c := range chain[1:] {
		if _, detail := timeProblem(c, now); detail != "" {
			warnings = append(warnings, fmt.Sprintf("intermediate %s: %s", certName(c), detail))
		}
	}
	if !hasUsage(leaf, x509.ExtKeyUsageServerAuth) {
		warnings = append(warnings, "the certificate is not for TLS servers (serverAuth): clients will refuse it")
	}
	if !hasUsage(leaf, x509.ExtKeyUsageClientAuth) {
		warnings = append(warnings, "the certificate is not for TLS clients (clientAuth): other gateways will refuse it")
	}
	if _, err := leaf.Verify(verifyOptions(chain, roots, x509.ExtKeyUsageAny, now)); err != nil {
		warnings = append(warnings, "the certificate does not lead to our own roots, so peers with the same roots will refuse it: "+err.Error())
	}
	return warnings
}

// digest returns a hash of texts and their borders.
func digest(texts ...[]byte) (sum [sha256.Size]byte) {
	h := sha256.New()
	for _, text := range texts {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(text))))
		h.Write(text)
	}
	h.Sum(sum[:0])
	return sum
}

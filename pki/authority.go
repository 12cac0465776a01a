package pki

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"culvert/pki/istioca"
	"culvert/pki/spiffe"
	"culvert/pki/workloadapi"
)

const (
	// DefaultIssueTTL is how long a certificate of an Authority is valid if nothing else is said. Members renew at half
	// of it.
	DefaultIssueTTL = time.Hour
	// DefaultMaxTTL is how long a certificate of an Authority is valid at most.
	DefaultMaxTTL = 24 * time.Hour
	// DefaultGrace is how long after its end a certificate may still be renewed, so that a laptop which was shut for some
	// days need not join again. It is no credential for anything else then.
	DefaultGrace = 7 * 24 * time.Hour
	// maxGrace bounds it: so long revoked certificates are remembered after their end.
	maxGrace = 30 * 24 * time.Hour
	// minIssueTTL is less than what a renewal may take with a CA that is down for a moment.
	minIssueTTL = time.Minute

	// The identity of a CA is that of a service account in its trust domain, which nobody else is given.
	authorityNamespace = "culvert"
	authorityAccount   = "ca"
)

// AuthorityConfig says how an Authority signs. Zero values are good.
type AuthorityConfig struct {
	// TrustDomain is that of the CA to be made if there is none yet. Default cluster.local.
	TrustDomain string
	// TTL is how long a certificate is valid if the request does not say. Default 1h, at least 1m.
	TTL time.Duration
	// MaxTTL is how long a certificate is valid at most; a request for more gets this. Default 24h, or TTL if that is more.
	MaxTTL time.Duration
	// Grace is how long after its end a certificate may still be renewed by who has its key, unless it was revoked. Default
	// 7 days, at most 30; negative: none.
	Grace time.Duration
	// MustExist refuses a folder without a CA, instead of making one.
	MustExist bool
	// NameConstraints says whether the intermediate is limited to URIs of its trust domain; nil: as it is. A new one is
	// not: rustls, which ztunnel uses, refuses chains with such constraints.
	NameConstraints *bool
	// Names are DNS names and IP addresses of the CA's own certificate, for clients that verify host names.
	Names []string
	// Tokens says who the bearer of a token is that is not one of NewToken: a JWT of an OIDC issuer or of Kubernetes.
	// Nil: nobody. An error refuses the token; its text goes to the log only. It is called concurrently.
	Tokens func(ctx context.Context, token string) (spiffe.ID, error)
}

// Authority is a CA that issues to others: the root in a state folder, an intermediate that signs, and a record of what
// was signed. Several processes may have the same folder open, such as a server and a command that revokes; one of them
// at a time signs. All methods may be called concurrently.
type Authority struct {
	// immutable after OpenAuthority
	dir         string
	cfg         AuthorityConfig
	log         *slog.Logger
	trustDomain string
	id          spiffe.ID // of the CA as a server

	data      atomic.Pointer[authorityData]
	ledger    atomic.Pointer[ledger]     // nil until this process signs
	serverTLS atomic.Pointer[tls.Config] // for Serve
	guesses   guessLimiter

	updateMu sync.Mutex // one update at a time in this process, as the lock of the folder is for processes
	signMu   sync.Mutex
	unlock   func() // guarded by signMu: lets other processes sign

	waiting   atomic.Int64 // requests that wait for a change
	changedMu sync.Mutex
	changed   chan struct{} // guarded by changedMu: closed at the next change of bundle or CRL
}

// errBarred is the answer to an identity that was revoked.
var errBarred = &istioca.Error{Code: istioca.PermissionDenied, Detail: "the identity was revoked; it has to join again, with a new token",
	Err: workloadapi.ErrRevoked}

// OpenAuthority opens the CA in a state folder, which `gateway run` may use at the same time, and makes what is missing:
// the root, an intermediate, an empty CRL, a key for JWT-SVIDs. Where the root's key is kept elsewhere, the intermediate
// signs as long as it is valid. Problems of files are *ConfigErrors. Close ends it.
func OpenAuthority(dir string, cfg AuthorityConfig, log *slog.Logger) (*Authority, error) {
	if cfg.MaxTTL == 0 {
		cfg.MaxTTL = max(DefaultMaxTTL, cfg.TTL)
	}
	if cfg.TTL == 0 {
		cfg.TTL = min(DefaultIssueTTL, cfg.MaxTTL)
	}
	if cfg.Grace == 0 {
		cfg.Grace = DefaultGrace
	}
	if cfg.Grace > maxGrace {
		return nil, fmt.Errorf("certificates that ended %v ago are not renewed; it must be %v or less", cfg.Grace, maxGrace)
	}
	if cfg.TTL < minIssueTTL || cfg.MaxTTL < cfg.TTL || cfg.MaxTTL > interTTL/2 {
		return nil, &ConfigError{Field: "ttl", Reason: BadValue, Detail: fmt.Sprintf("certificates for %v, at most %v, are not issued", cfg.TTL, cfg.MaxTTL),
			Mend: fmt.Sprintf("it must be %v or more, and no more than the greatest, which may be %v", minIssueTTL, interTTL/2)}
	}
	a := &Authority{dir: dir, cfg: cfg, log: log, changed: make(chan struct{})}
	lock := openStateDir
	if cfg.MustExist {
		if !exists(dir) {
			return nil, errNoCA(dir)
		}
		lock = lockStateDir
	}
	unlock, err := lock(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := a.makeRoot(); err != nil {
		return nil, err
	}
	if !exists(filepath.Join(dir, caKeyFile)) && !exists(a.path(interCertFile)) {
		return nil, errNoAuthority(dir)
	}
	if err := os.MkdirAll(a.path(""), 0o700); err != nil {
		return nil, err
	}
	d, _, err := a.read()
	if err != nil {
		return nil, err
	}
	switch {
	case d.root != nil:
		a.trustDomain = d.root.trustDomain
	case d.inter != nil:
		a.trustDomain = d.inter.trustDomain
	}
	if a.id, err = spiffe.New(a.trustDomain, authorityNamespace, authorityAccount); err != nil {
		return nil, &ConfigError{Field: caCertFile, File: dir, Reason: NoIdentity, Detail: "the CA names no trust domain", Err: err,
			Mend: "use one that does (spiffe://TRUSTDOMAIN as its URI name), such as `gateway cert ca` makes"}
	}
	if err := checkNames(cfg.Names); err != nil {
		return nil, err
	}
	return a, a.updateLocked(nil)
}

// errNoCA is for a folder in which a CA has to be.
func errNoCA(dir string) error {
	return &ConfigError{Field: caCertFile, File: dir, Reason: Missing, Detail: "there is no CA here",
		Mend: "name the folder with --state DIR, or make the CA with gateway ca serve"}
}

// makeRoot makes a root if there is nothing of one.
func (a *Authority) makeRoot() error {
	td := a.cfg.TrustDomain
	st := newState(a.dir, "", a.log)
	if a.cfg.MustExist && !exists(st.cfg.Roots) {
		return errNoCA(a.dir)
	}
	if td == "" || exists(st.cfg.Roots) || exists(filepath.Join(a.dir, caKeyFile)) {
		_, err := st.ca() // as `gateway run` does
		return err
	}
	ca, err := NewCA(td)
	if err != nil {
		return err
	}
	a.log.Info("CA made", "file", st.cfg.Roots)
	return ca.write(a.dir)
}

// ID returns the identity that the CA has as a server, spiffe://TRUSTDOMAIN/ns/culvert/sa/ca.
func (a *Authority) ID() spiffe.ID { return a.id }

// Pin returns what a host that joins knows the CA by: "sha256:" and the SHA-256 of the public key of the root that signs.
func (a *Authority) Pin() string { return pinPrefix + keyPin(a.data.Load().anchor()) }

// Address returns where the CA was last served, as SetAddress noted it, "" if it never was.
func (a *Authority) Address() string { return a.data.Load().state.Address }

// SetAddress notes where hosts reach the CA, as host:port, for commands in other processes.
func (a *Authority) SetAddress(addr string) error {
	if a.Address() == addr {
		return nil
	}
	return a.update(func(d *authorityData) error { d.state.Address = addr; return nil })
}

// SignCSR checks a CSR (PEM) and signs a certificate for what grant says, valid for ttl (0: the default; more than the
// greatest: that). It returns PEM: the leaf, the intermediate if there is one, the root last. The certificate has an empty
// subject, a critical subject alternative name, a random serial number of 128 bits, and is for TLS servers and clients.
// What is wrong with the CSR or the grant is an *istioca.Error. The first call does what Claim does.
func (a *Authority) SignCSR(csrPEM string, grant Grant, ttl time.Duration) (chain []string, err error) {
	csr, err := parseCSR(csrPEM)
	if err != nil {
		return nil, err
	}
	return a.signCSR(csr, grant, ttl)
}

// signCSR is SignCSR for a CSR that was parsed.
func (a *Authority) signCSR(csr *x509.CertificateRequest, grant Grant, ttl time.Duration) (chain []string, err error) {
	if err := a.checkGrant(grant); err != nil {
		return nil, &istioca.Error{Code: istioca.PermissionDenied, Detail: err.Error()}
	}
	if err := checkCSR(csr, grant); err != nil {
		return nil, err
	}
	if ttl < 0 {
		return nil, badCSR(nil, "a validity in the past is asked for")
	}
	d := a.data.Load()
	der, err := a.sign(d, csr.PublicKey, grant, ttl)
	if err != nil {
		return nil, err
	}
	chain = append(chain, string(encodeCert(der)))
	if d.inter != nil {
		chain = append(chain, string(d.inter.PEM()))
	}
	return append(chain, string(encodeCert(d.anchor().Raw))), nil
}

// sign signs and records a leaf.
func (a *Authority) sign(d *authorityData, pub crypto.PublicKey, grant Grant, ttl time.Duration) (der []byte, err error) {
	if d.barred[grant.ID] {
		return nil, errBarred
	}
	l, err := a.writer()
	if err != nil {
		return nil, err
	}
	if ttl == 0 {
		ttl = a.cfg.TTL
	}
	ttl = min(ttl, a.cfg.MaxTTL)
	signer := d.signer()
	cert := issuedCert{signer: signer.id(), until: int32(time.Now().Add(ttl).Unix()-ledgerEpoch) + 1}
	_, _ = rand.Read(cert.serial[:]) // never fails
	if err := l.add(grant.ID, cert); err != nil {
		return nil, err
	}
	return signer.certify(grant.ID, ttl, grant.Names, pub, cert.serial.int())
}

// Claim makes this process the one that signs with the CA, until Close. It waits ten seconds for another one to end, and
// then fails.
func (a *Authority) Claim() error {
	_, err := a.writer()
	return err
}

// writer returns the record for writing, which makes this process the one that signs.
func (a *Authority) writer() (*ledger, error) {
	if l := a.ledger.Load(); l != nil {
		return l, nil
	}
	a.signMu.Lock()
	defer a.signMu.Unlock()
	if l := a.ledger.Load(); l != nil {
		return l, nil
	}
	unlock, err := lockDir(a.path(""))
	if err != nil {
		return nil, fmt.Errorf("another process signs with the CA in %s, such as gateway ca serve; end that one first, or name another folder: %w", a.dir, err)
	}
	l, err := readLedger(a.path(ledgerFile), time.Now())
	if err == nil {
		err = l.open()
	}
	if err != nil {
		unlock()
		return nil, err
	}
	a.unlock = unlock
	a.ledger.Store(l)
	return l, nil
}

// Close ends signing and lets another process do it. It may be called more than once; nothing may be signed after it.
func (a *Authority) Close() error {
	a.signMu.Lock()
	defer a.signMu.Unlock()
	l := a.ledger.Load()
	if l == nil || a.unlock == nil {
		return nil
	}
	defer func() { a.unlock(); a.unlock = nil }()
	return l.close()
}

// errClosed is for a CA that signs after Close.
var errClosed = errors.New("the CA is closed")

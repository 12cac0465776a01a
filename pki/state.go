package pki

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"culvert/pki/spiffe"
)

const (
	// identityTTL is how long a self-made identity is valid: no longer than those of hosts that join its CA, which is here
	// and makes a new one at any time.
	identityTTL = DefaultIssueTTL

	stateTrustDomain = "cluster.local" // Istio's default
	stateNamespace   = "default"

	identityCertFile = "identity.pem"
	identityKeyFile  = "identity.key"
)

// state is a folder with a CA and an identity that it issued.
type state struct {
	dir, host string
	cfg       Config
	log       *slog.Logger
}

// OpenState returns the identity kept in dir and on first start makes it: a CA (ca.pem, ca.key) and an identity
// (identity.pem, identity.key) named spiffe://cluster.local/ns/default/sa/HOST, where HOST is host in lower case
// with everything but letters, digits, "-" and "." replaced. dir is made with mode 0700 and the files with 0600; a
// folder or key that others can write or read is refused with a *ConfigError.
//
// The identity is valid for an hour and renewed, with the same key, after half of that, while the gateway runs
// or when it starts. It keeps its name when host changes later; remove identity.pem and identity.key to take the
// new one, and a new key. A damaged or expired identity is made anew; a CA never is, except that a missing ca.pem is
// made again from ca.key. Without ca.key the host has joined the CA of another: that one renews the identity, and its
// roots and its revocation list are followed.
//
// Processes that share dir lock it (flock) while they write and share the identity. OpenState blocks for the lock
// for at most ten seconds. Close ends the Source.
func OpenState(dir, host string, log *slog.Logger) (*Source, error) {
	return openKept(Config{State: dir}, host, log)
}

func openKept(cfg Config, host string, log *slog.Logger) (*Source, error) {
	st := newState(cfg.State, host, log)
	st.cfg.Trust, st.cfg.State, st.cfg.Poll, st.cfg.NewKeys = cfg.Trust, cfg.State, cfg.Poll, cfg.NewKeys
	st.cfg.Trust.kept = filepath.Join(st.dir, crlFile)
	return st.open()
}

func newState(dir, host string, log *slog.Logger) *state {
	return &state{dir: dir, host: host, log: log, cfg: Config{
		Cert: filepath.Join(dir, identityCertFile), Key: filepath.Join(dir, identityKeyFile), Roots: filepath.Join(dir, caCertFile),
	}}
}

// open makes what is missing and starts the Source.
func (st *state) open() (*Source, error) {
	err := st.prepare()
	if hasReason(err, Expired) && Joined(st.dir) {
		ctx, cancel := context.WithTimeout(context.Background(), renewTimeout)
		defer cancel()
		if _, renewErr := Renew(ctx, st.dir); renewErr != nil {
			return nil, errors.Join(err, renewErr)
		}
		st.log.Info("expired identity was renewed by its CA")
		err = st.prepare()
	}
	if err != nil {
		return nil, err
	}
	s := newSource(st.log, &st.cfg, st.load)
	switch {
	case exists(filepath.Join(st.dir, caKeyFile)):
		s.renew = func(context.Context) error { return st.renew() }
	case Joined(st.dir):
		s.renew = func(ctx context.Context) error {
			_, err := renewIn(ctx, st.dir, st.cfg.NewKeys)
			return err
		}
		s.follow = func(ctx context.Context) { follow(ctx, st.dir, s.push, st.log) }
	}
	return s.start()
}

// loadEver is load for an identity that may have expired: as it was at its end.
func (st *state) loadEver() (*Material, error) {
	m, err := st.load()
	if !hasReason(err, Expired) {
		return m, err
	}
	unlock, err := lockStateDir(st.dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	cert := input{field: "cert", file: st.cfg.Cert}
	if _, err := cert.read(); err != nil {
		return nil, err
	}
	chain, err := parseCertificates(&cert, maxChain)
	if err != nil {
		return nil, err
	}
	return loadAt(&st.cfg, chain[0].NotAfter)
}

// hasReason reports whether err, or one of those that it joins, is a ConfigError of that reason.
func hasReason(err error, reason Reason) bool {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		return slices.ContainsFunc(many.Unwrap(), func(one error) bool { return hasReason(one, reason) })
	}
	file, ok := errors.AsType[*ConfigError](err)
	return ok && file.Reason == reason
}

// load reads the identity while nobody writes it.
func (st *state) load() (*Material, error) {
	unlock, err := lockStateDir(st.dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return loadSettled(&st.cfg)
}

// prepare makes what is missing in the folder, and a new identity if the old one is unusable or due for renewal.
func (st *state) prepare() error {
	unlock, err := openStateDir(st.dir)
	if err != nil {
		return err
	}
	defer unlock()
	ca, err := st.ca()
	if err != nil {
		return err
	}
	return st.issueIfNeeded(ca)
}

// renew makes a new identity if the old one is due for renewal and no other process has renewed it. Unlike prepare
// it never makes a CA: when the folder is emptied under a running gateway, its peers still trust the old one.
func (st *state) renew() error {
	unlock, err := lockStateDir(st.dir)
	if err != nil {
		return err
	}
	defer unlock()
	ca, err := LoadCA(st.dir)
	if err != nil {
		return err
	}
	return st.issueIfNeeded(ca)
}

// issueIfNeeded looks at the kept identity and makes a new one if that is unusable or due for renewal. Without a CA
// it can only say whether the kept one is usable.
func (st *state) issueIfNeeded(ca *CA) error {
	m, err := loadSettled(&st.cfg)
	if err == nil && !leadsToRoots(m) {
		err = &ConfigError{Field: "cert", File: st.cfg.Cert, Reason: Untrusted, Detail: "was not issued by the CA in " + st.cfg.Roots,
			Mend: "put back the CA that issued it, or have a new identity issued"}
	}
	switch {
	case ca == nil:
		return err
	case err == nil && !renewalDue(m, time.Now()):
		return nil
	}
	return st.issue(ca, m, err)
}

// issue makes an identity in place of old, which is nil if it cannot be used because of why.
func (st *state) issue(ca *CA, old *Material, why error) error {
	id, err := st.identity(ca)
	if err != nil {
		return err
	}
	if why != nil && exists(st.cfg.Cert) {
		st.log.Warn("kept identity cannot be used, making a new one", "id", id.String(), "err", why)
	}
	if err := st.write(ca, id); err != nil {
		return err
	}
	if old == nil {
		st.log.Info("identity made", "id", id.String(), "file", st.cfg.Cert)
	}
	return nil
}

// write issues a certificate for the kept key, or for a new one where there is none that will do, and puts both in place.
func (st *state) write(ca *CA, id spiffe.ID) error {
	in := input{field: "key", file: st.cfg.Key, secret: true}
	if _, err := in.read(); err == nil && !st.cfg.NewKeys {
		if key, err := parseKey(&in); err == nil {
			if _, err := keyID(key.Public()); err == nil { // of a kind that names and addresses are made of
				der, err := ca.certify(id, identityTTL, nil, key.Public(), nil)
				if err != nil {
					return fmt.Errorf("issue %s: %w", id, err)
				}
				return writeFile(st.cfg.Cert, encodeCert(der))
			}
		}
	}
	cert, key, err := ca.Issue(id, identityTTL)
	if err != nil {
		return err
	}
	return WriteIdentity(st.cfg.Cert, st.cfg.Key, cert, key)
}

// identity returns the name to issue for: that of the kept certificate, whatever its state, if the CA may sign it,
// otherwise one made of the host's name.
func (st *state) identity(ca *CA) (spiffe.ID, error) {
	td := ca.TrustDomain()
	if kept := st.keptID(); !kept.IsZero() && (td == "" || td == kept.TrustDomain()) {
		return kept, nil
	}
	if td == "" {
		td = stateTrustDomain
	}
	return spiffe.New(td, stateNamespace, hostLabel(st.host))
}

// keptID returns the name in the certificate in the folder, zero if there is none.
func (st *state) keptID() spiffe.ID {
	in := input{field: "cert", file: st.cfg.Cert}
	if _, err := in.read(); err != nil {
		return spiffe.ID{}
	}
	certs, err := parseCertificates(&in, maxChain)
	if err != nil {
		return spiffe.ID{}
	}
	id, _ := spiffe.FromCertificate(certs[0]) // zero with an error
	return id
}

// ca returns the CA in the folder and makes it if there is none; nil if the folder has only another host's
// certificate of it.
func (st *state) ca() (*CA, error) {
	certPath, keyPath := filepath.Join(st.dir, caCertFile), filepath.Join(st.dir, caKeyFile)
	switch hasCert, hasKey := exists(certPath), exists(keyPath); {
	case hasCert && hasKey:
		return LoadCA(st.dir)
	case hasCert:
		return nil, nil
	case hasKey:
		// A crash between the two files, or a lost certificate. The key is what matters: see rootFor.
		in := input{field: caKeyFile, file: keyPath, secret: true}
		_, readErr := in.read()
		key, err := parseKey(&in)
		if err = errors.Join(readErr, err); err != nil {
			return nil, err
		}
		td := stateTrustDomain
		if kept := st.keptID(); !kept.IsZero() {
			td = kept.TrustDomain()
		}
		ca, err := rootFor(key, td)
		if err != nil {
			return nil, err
		}
		st.log.Warn("CA certificate was missing and is made again from its key", "file", certPath)
		return ca, writeFile(certPath, ca.PEM())
	}
	ca, err := NewCA(stateTrustDomain)
	if err != nil {
		return nil, err
	}
	st.log.Info("CA made", "file", certPath)
	return ca, ca.write(st.dir)
}

// leadsToRoots reports whether the certificate of m is one that its own roots vouch for at present.
func leadsToRoots(m *Material) bool {
	_, err := m.chain[0].Verify(verifyOptions(m.chain, m.Roots, x509.ExtKeyUsageAny, time.Now()))
	return err == nil
}

// openStateDir makes a folder for secrets if there is none, and goes on as lockStateDir.
func openStateDir(dir string) (unlock func(), err error) {
	if dir == "" {
		return nil, stateError(dir, Missing, nil, "name a folder", "the state folder has no name")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, stateError(dir, Unreadable, err, "name a folder that the gateway may write to", "cannot be made")
	}
	return lockStateDir(dir)
}

// lockStateDir locks a folder for secrets and refuses one that others can write to.
func lockStateDir(dir string) (unlock func(), err error) {
	info, err := os.Stat(dir)
	if err != nil {
		return nil, stateError(dir, Unreadable, err, "name a folder that the gateway may write to", "cannot be looked at")
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 && runtime.GOOS != "windows" {
		return nil, stateError(dir, OpenKey, nil, "run: chmod go-w "+dir, fmt.Sprintf("others than its owner can write to it (mode %04o)", mode))
	}
	unlock, err = lockDir(dir)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, stateError(dir, Unreadable, err, fmt.Sprintf("let the user that runs the gateway (uid %d) use it", os.Geteuid()), "cannot be opened")
	case err != nil:
		return nil, stateError(dir, Unreadable, err, "see whether another gateway hangs, and whether the file system has locks (flock)", "cannot be locked")
	}
	return unlock, nil
}

// stateError makes the ConfigError of a state folder.
func stateError(dir string, reason Reason, err error, mend, detail string) error {
	return &ConfigError{Field: "state", File: dir, Reason: reason, Detail: detail, Mend: mend, Err: err}
}

// hostLabel makes a service account name of a host name: lower case, with "-" for everything that is not a letter,
// digit, "-" or ".", no dots beside each other, letters or digits at both ends, 63 bytes at most. So it is one
// valid segment of a SPIFFE ID whatever the host is called.
func hostLabel(host string) string {
	const maxLabel = 63
	label := make([]byte, 0, maxLabel)
	for _, r := range strings.ToLower(host) {
		if len(label) == maxLabel {
			break
		}
		last := byte('-')
		if len(label) > 0 {
			last = label[len(label)-1]
		}
		switch {
		case r >= 'a' && r <= 'z' || r >= '0' && r <= '9':
			label = append(label, byte(r))
		case last == '-' || last == '.':
			// one separator is enough
		case r == '.':
			label = append(label, '.')
		default:
			label = append(label, '-')
		}
	}
	if name := strings.TrimRight(string(label), "-."); name != "" {
		return name
	}
	return "gateway"
}

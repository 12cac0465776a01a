package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"culvert/pki/spiffe"
)

// Files of an Authority beside ca.pem and ca.key, which are the root; in the folder authority unless said otherwise.
const (
	authorityDir = "authority"
	crlFile      = "ca.crl" // beside ca.pem: what gateways on this host read

	stateFile     = "state.json"
	ledgerFile    = "issued.log"
	interCertFile = "intermediate.pem"
	interKeyFile  = "intermediate.key"
	oldInterCert  = "intermediate-old.pem" // of the root before, while its certificates live
	oldInterKey   = "intermediate-old.key"
	nextRootKey   = "root-next.key" // of the root that is announced
	oldRootKey    = "root-old.key"  // of the root before
	jwtKeyFile    = "jwt.key"
	nextJWTKey    = "jwt-next.key"
	oldJWTKey     = "jwt-old.key"
)

// authorityState is what an Authority keeps beside keys and certificates. It is small: everything that a request
// changes has a bound.
type authorityState struct {
	Sequence  uint64         `json:"sequence"`   // of the trust bundle: rises with each change
	CRLNumber uint64         `json:"crl_number"` // of the last CRL
	CRLNext   time.Time      `json:"crl_next"`   // when the next CRL is to be made
	Address   string         `json:"address,omitempty"`
	Tokens    []joinToken    `json:"tokens,omitempty"`
	Revoked   []revokedCert  `json:"revoked,omitempty"`
	Barred    []spiffe.ID    `json:"barred,omitempty"` // identities that get no certificate any more
	Rotation  *rotationState `json:"rotation,omitempty"`
}

// authorityData is all of an Authority at one moment. Once it is published it is immutable.
type authorityData struct {
	tag   string // of bundle and crl, for HTTP (RFC 9110, section 8.8.3)
	state authorityState
	roots []*x509.Certificate // ca.pem
	root  *CA                 // nil: the root's key is kept elsewhere
	next  crypto.Signer       // the key of the root that is announced, or nil
	old   crypto.Signer       // the key of the root before, or nil
	inter *CA                 // nil: the root signs by itself
	oldIn *CA                 // the intermediate before, or nil

	jwtKey, jwtNext, jwtOld *ecdsa.PrivateKey // the last two may be nil

	crl      []byte // PEM
	crlDirty bool   // something that a CRL says has changed
	bundle   []byte // JSON
	seen     stamps // the files before they were read
	revoked  map[serialNumber]bool
	barred   map[spiffe.ID]bool
}

// signer returns what signs leaves.
func (d *authorityData) signer() *CA {
	if d.inter != nil {
		return d.inter
	}
	return d.root
}

// anchor returns the root that the signer's certificates lead to.
func (d *authorityData) anchor() *x509.Certificate {
	if d.root != nil {
		return d.root.cert
	}
	i := slices.IndexFunc(d.roots, func(c *x509.Certificate) bool { return d.inter.cert.CheckSignatureFrom(c) == nil })
	return d.roots[i] // readAuthority has seen to it that there is one
}

// path returns where a file of the authority is.
func (a *Authority) path(name string) string { return filepath.Join(a.dir, authorityDir, name) }

// files are those whose change makes this process read all anew.
func (a *Authority) files() []string {
	return []string{filepath.Join(a.dir, caCertFile), filepath.Join(a.dir, caKeyFile), filepath.Join(a.dir, crlFile),
		a.path(stateFile), a.path(interCertFile), a.path(jwtKeyFile)}
}

// update reads everything while nobody else writes, lets change have its way, does what is due, writes what has
// changed and publishes it.
func (a *Authority) update(change func(d *authorityData) error) error {
	a.updateMu.Lock()
	defer a.updateMu.Unlock()
	unlock, err := lockStateDir(a.dir)
	if err != nil {
		return err
	}
	defer unlock()
	return a.updateLocked(change)
}

// updateLocked is update for those that have the folder locked.
func (a *Authority) updateLocked(change func(d *authorityData) error) error {
	seen := statAll(a.files())
	d, before, err := a.read()
	if err != nil {
		return err
	}
	d.seen = seen
	if change != nil {
		if err := change(d); err != nil {
			return err
		}
	}
	now := time.Now()
	if err := a.ensureSigner(d, now); err != nil {
		return err
	}
	d.state.prune(now)
	d.state.Sequence = max(d.state.Sequence, 1)
	a.revokeBarred(d, now)
	if err := a.ensureCRL(d, now); err != nil {
		return err
	}
	after, err := json.MarshalIndent(&d.state, "", " ")
	if err != nil {
		return err
	}
	if string(after) != string(before) {
		if err := writeFile(a.path(stateFile), after); err != nil {
			return err
		}
	}
	if d.bundle, err = encodeBundle(a.trustDomain, d); err != nil {
		return err
	}
	a.publish(d)
	return nil
}

// publish makes d what is used from now on.
func (a *Authority) publish(d *authorityData) {
	d.revoked, d.barred = make(map[serialNumber]bool, len(d.state.Revoked)), make(map[spiffe.ID]bool, len(d.state.Barred))
	for _, r := range d.state.Revoked {
		d.revoked[r.Serial] = true
	}
	for _, id := range d.state.Barred {
		d.barred[id] = true
	}
	sum := digest(d.bundle, d.crl)
	d.tag = `"` + hex.EncodeToString(sum[:16]) + `"`
	old := a.data.Swap(d)
	if old == nil || bytes.Equal(old.bundle, d.bundle) && bytes.Equal(old.crl, d.crl) {
		return
	}
	a.changedMu.Lock()
	defer a.changedMu.Unlock()
	close(a.changed)
	a.changed = make(chan struct{})
}

// nextChange returns a channel that is closed at the next change of bundle or CRL.
func (a *Authority) nextChange() <-chan struct{} {
	a.changedMu.Lock()
	defer a.changedMu.Unlock()
	return a.changed
}

// refresh takes over what another process has changed, and does what is due. It is cheap if there is nothing.
func (a *Authority) refresh(now time.Time) error {
	d := a.data.Load()
	due := now.After(d.state.CRLNext) || d.inter != nil && d.root != nil && renewDue(d.inter.cert, now)
	if !due && d.seen.same(statAll(a.files())) && !d.seen.fresh(now) {
		return nil
	}
	return a.update(nil)
}

// read reads the files. before is the text of the state.
func (a *Authority) read() (d *authorityData, before []byte, err error) {
	d = new(authorityData)
	roots := input{field: caCertFile, file: filepath.Join(a.dir, caCertFile)}
	if _, err := roots.read(); err != nil {
		return nil, nil, err
	}
	if d.roots, err = parseCertificates(&roots, maxRoots); err != nil {
		return nil, nil, err
	}
	if exists(filepath.Join(a.dir, caKeyFile)) {
		if d.root, err = LoadCA(a.dir); err != nil {
			return nil, nil, err
		}
	}
	d.inter, err = loadIntermediate(a.path(interCertFile), a.path(interKeyFile))
	if err != nil && d.root == nil {
		return nil, nil, err // with a root it is made anew
	}
	d.oldIn, _ = loadIntermediate(a.path(oldInterCert), a.path(oldInterKey)) // expired: what it has signed is too
	for _, k := range []struct {
		name string
		to   *crypto.Signer
	}{{nextRootKey, &d.next}, {oldRootKey, &d.old}} {
		if *k.to, err = readKey(a.path(k.name)); err != nil {
			return nil, nil, err
		}
	}
	if err := a.readJWTKeys(d); err != nil {
		return nil, nil, err
	}
	if d.crl, err = readSmall(filepath.Join(a.dir, crlFile)); err != nil {
		return nil, nil, err
	}
	if before, err = readSmall(a.path(stateFile)); err != nil || before == nil {
		return d, before, err
	}
	if err := json.Unmarshal(before, &d.state); err != nil {
		return nil, nil, &ConfigError{Field: stateFile, File: a.path(stateFile), Reason: BadFormat, Detail: "is damaged", Err: err,
			Mend: "put back a copy; without it tokens and revocations are forgotten"}
	}
	return d, before, nil
}

// readJWTKeys reads the keys of JWT-SVIDs, and makes the first one.
func (a *Authority) readJWTKeys(d *authorityData) error {
	for _, k := range []struct {
		name string
		to   **ecdsa.PrivateKey
	}{{jwtKeyFile, &d.jwtKey}, {nextJWTKey, &d.jwtNext}, {oldJWTKey, &d.jwtOld}} {
		key, err := readKey(a.path(k.name))
		if err != nil {
			return err
		}
		if ec, ok := key.(*ecdsa.PrivateKey); ok && ec.Curve == elliptic.P256() {
			*k.to = ec
		} else if key != nil {
			return &ConfigError{Field: k.name, File: a.path(k.name), Reason: WeakKey, Detail: "is not an ECDSA P-256 key", Mend: "move it away, and a new one is made"}
		}
	}
	if d.jwtKey != nil {
		return nil
	}
	var err error
	d.jwtKey, err = makeKey(a.path(jwtKeyFile))
	return err
}

// prune forgets what has expired.
func (s *authorityState) prune(now time.Time) {
	s.Tokens = slices.DeleteFunc(s.Tokens, func(t joinToken) bool { return now.After(t.Until.Add(tokenMemory)) })
	s.Revoked = slices.DeleteFunc(s.Revoked, func(r revokedCert) bool { return now.After(r.Until.Add(maxGrace)) })
}

// loadIntermediate reads a CA certificate with its key; nil if neither is there.
func loadIntermediate(certFile, keyFile string) (*CA, error) {
	if !exists(certFile) && !exists(keyFile) {
		return nil, nil
	}
	cert, key := input{field: filepath.Base(certFile), file: certFile}, input{field: filepath.Base(keyFile), file: keyFile, secret: true}
	_, certErr := cert.read()
	_, keyErr := key.read()
	ca, err := parseCA(&cert, &key, time.Now())
	if err = errors.Join(certErr, keyErr, err); err != nil {
		return nil, err
	}
	return ca, nil
}

// readKey reads a private key, nil if there is none.
func readKey(file string) (crypto.Signer, error) {
	if !exists(file) {
		return nil, nil
	}
	in := input{field: filepath.Base(file), file: file, secret: true}
	if _, err := in.read(); err != nil {
		return nil, err
	}
	return parseKey(&in)
}

// makeKey makes an ECDSA P-256 key and keeps it in a file.
func makeKey(file string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return key, writeKey(file, key)
}

func writeKey(file string, key crypto.Signer) error {
	text, err := encodeKey(key)
	if err != nil {
		return err
	}
	return writeFile(file, text)
}

// maxStateBytes bounds the files that an Authority writes by itself and reads whole.
const maxStateBytes = 64 << 20

// readSmall reads a file of the authority, nil if there is none.
func readSmall(file string) ([]byte, error) {
	info, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case info.Size() > maxStateBytes:
		return nil, fmt.Errorf("%s has %d bytes, more than %d; it is none of ours", file, info.Size(), maxStateBytes)
	}
	return os.ReadFile(file)
}

// keyPin is the SHA-256 of a certificate's public key (SubjectPublicKeyInfo), hexadecimal.
func keyPin(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// removeAll removes files that may not be there.
func removeAll(files ...string) error {
	var errs []error
	for _, file := range files {
		if err := os.Remove(file); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

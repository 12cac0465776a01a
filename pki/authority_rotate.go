package pki

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// rotateSlack is for certificates that a server signs before it hears of a new phase, and for clocks that are apart.
const rotateSlack = time.Minute

// Phase is how far the replacement of a root is.
type Phase int

// The phases of a rotation. From each, Rotate goes on to the next.
const (
	PhaseNone      Phase = iota // one root, which signs
	PhaseAnnounced              // a new root is trusted too; the old one signs
	PhaseSwitched               // the new root signs; the old one is trusted still
)

// String returns the phase in words.
func (p Phase) String() string {
	switch p {
	case PhaseAnnounced:
		return "a new root is announced, the old one signs"
	case PhaseSwitched:
		return "the new root signs, the old one is trusted still"
	}
	return "one root"
}

// rotationState is a rotation that is under way.
type rotationState struct {
	Phase Phase     `json:"phase"`
	Since time.Time `json:"since"`
	// Ready is when every certificate that lived at the beginning of the phase has been replaced, so that every member
	// knows the roots of this phase, or has none of the old one.
	Ready time.Time `json:"ready"`
	Old   string    `json:"old"` // keyPin of the root that goes
	Auto  bool      `json:"auto,omitempty"`
}

// NotReadyError says that the next phase of a rotation would cut members off that have not renewed yet.
type NotReadyError struct {
	Phase Phase
	Ready time.Time
}

// Error says when the next phase may begin.
func (e *NotReadyError) Error() string {
	return fmt.Sprintf("%s; some members renew as late as %s: go on then, or with --now and cut them off", e.Phase, stamp(e.Ready))
}

// Rotate goes on with the replacement of the root by one phase, and returns the one that begins and when the next one
// may. Before that time it is refused with a *NotReadyError, unless now is set. If auto is set with the first phase,
// Serve does the others when their time has come.
func (a *Authority) Rotate(now, auto bool) (phase Phase, ready time.Time, err error) {
	err = a.update(func(d *authorityData) error {
		if d.root == nil {
			return &ConfigError{Field: caKeyFile, File: filepath.Join(a.dir, caKeyFile), Reason: Missing, Detail: "the root's key is not here",
				Mend: "put it back for as long as the rotation takes"}
		}
		if err := a.rotate(d, now, auto, time.Now()); err != nil {
			return err
		}
		if d.state.Rotation != nil {
			phase, ready = d.state.Rotation.Phase, d.state.Rotation.Ready
		}
		return nil
	})
	return phase, ready, err
}

// rotate begins the next phase.
func (a *Authority) rotate(d *authorityData, force, auto bool, now time.Time) error {
	r := d.state.Rotation
	if r != nil && now.Before(r.Ready) && !force {
		return &NotReadyError{Phase: r.Phase, Ready: r.Ready}
	}
	issued, err := a.issued(now)
	if err != nil {
		return err
	}
	ready := issued.end().UTC()
	if !ready.IsZero() {
		ready = ready.Add(rotateSlack)
	}
	begin := func(phase Phase, old string, auto bool) {
		d.state.Rotation = &rotationState{Phase: phase, Since: now.UTC().Truncate(time.Second), Ready: ready, Old: old, Auto: auto}
	}
	d.state.Sequence++
	d.crlDirty = true
	switch {
	case r == nil:
		begin(PhaseAnnounced, keyPin(d.root.cert), auto)
		return a.announceRoot(d)
	case r.Phase == PhaseAnnounced:
		begin(PhaseSwitched, r.Old, r.Auto)
		return a.switchRoot(d, r.Old)
	}
	d.state.Rotation = nil
	return a.dropRoot(d, r.Old)
}

// announceRoot makes a new root, which is trusted from now on and signs later.
func (a *Authority) announceRoot(d *authorityData) error {
	if d.next != nil && rootOf(d.roots, d.next) != nil {
		return nil // a crash came between this and the note of it
	}
	next, err := NewCA(a.trustDomain)
	if err != nil {
		return err
	}
	if d.jwtNext, err = makeKey(a.path(nextJWTKey)); err != nil {
		return err
	}
	if err := writeKey(a.path(nextRootKey), next.key); err != nil {
		return err
	}
	d.next, d.roots = next.key, append(slices.Clone(d.roots), next.cert)
	return a.writeRoots(d)
}

// switchRoot lets the new root sign. The key of the old one is kept for its CRL.
func (a *Authority) switchRoot(d *authorityData, old string) error {
	if d.next == nil && keyPin(d.root.cert) != old {
		return a.reissueOwn(d) // a crash came between this and the note of it
	}
	if d.next == nil {
		return &ConfigError{Field: nextRootKey, File: a.path(nextRootKey), Reason: Missing, Detail: "the key of the announced root is gone",
			Mend: "put it back, or remove that root from ca.pem and \"rotation\" from state.json"}
	}
	cert := rootOf(d.roots, d.next)
	if cert == nil {
		return &ConfigError{Field: caCertFile, File: filepath.Join(a.dir, caCertFile), Reason: Mismatch, Detail: "the announced root is not in it any more", Mend: "put it back"}
	}
	if err := writeKey(a.path(oldRootKey), d.root.key); err != nil {
		return err
	}
	if err := os.Rename(a.path(nextRootKey), filepath.Join(a.dir, caKeyFile)); err != nil {
		return err
	}
	if d.jwtNext != nil {
		if err := errors.Join(os.Rename(a.path(jwtKeyFile), a.path(oldJWTKey)), os.Rename(a.path(nextJWTKey), a.path(jwtKeyFile))); err != nil {
			return err
		}
		d.jwtOld, d.jwtKey, d.jwtNext = d.jwtKey, d.jwtNext, nil
	}
	d.root, d.old, d.next = &CA{cert: cert, key: d.next, trustDomain: a.trustDomain}, d.root.key, nil
	return a.reissueOwn(d)
}

// dropRoot ends the trust in the old root.
func (a *Authority) dropRoot(d *authorityData, old string) error {
	d.roots = slices.DeleteFunc(slices.Clone(d.roots), func(c *x509.Certificate) bool { return keyPin(c) == old })
	d.oldIn, d.old, d.jwtOld = nil, nil, nil
	if err := a.writeRoots(d); err != nil {
		return err
	}
	return removeAll(a.path(oldInterCert), a.path(oldInterKey), a.path(oldRootKey), a.path(oldJWTKey))
}

// rootOf returns the certificate of a key, nil if there is none.
func rootOf(roots []*x509.Certificate, key crypto.Signer) *x509.Certificate {
	if i := slices.IndexFunc(roots, func(c *x509.Certificate) bool { return samePublic(key.Public(), c.PublicKey) }); i >= 0 {
		return roots[i]
	}
	return nil
}

// writeRoots writes ca.pem.
func (a *Authority) writeRoots(d *authorityData) error {
	var out []byte
	for _, c := range d.roots {
		out = append(out, encodeCert(c.Raw)...)
	}
	return writeFile(filepath.Join(a.dir, caCertFile), out)
}

// reissueOwn has the identity of the gateway that shares the folder signed by the new root, for the same key.
func (a *Authority) reissueOwn(d *authorityData) error {
	st := newState(a.dir, "", a.log)
	if !exists(st.cfg.Cert) {
		return nil
	}
	m, err := loadSettled(&st.cfg)
	if err != nil || m.ID.TrustDomain() != a.trustDomain {
		return nil // the gateway itself says what is wrong with it, and makes another
	}
	der, err := d.root.certify(m.ID, identityTTL, nil, m.Certificate.Leaf.PublicKey, nil)
	if err != nil {
		return err
	}
	return writeFile(st.cfg.Cert, encodeCert(der))
}

package pki

import (
	"crypto/elliptic"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"culvert/pki/istioca"
)

// trusts reports whether the roots of one folder are good for the identity of another.
func trusts(t testing.TB, roots, identity string) bool {
	t.Helper()
	st := newState(identity, "", quiet())
	m, err := loadSettled(&st.cfg)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(mustRead(t, roots, caCertFile)))
	_, err = m.chain[0].Verify(verifyOptions(m.chain, pool, x509.ExtKeyUsageAny, time.Now()))
	return err == nil
}

// Through a whole rotation, members that renew in time trust each other at each moment, whichever has renewed first.
func TestRotationWithOverlap(t *testing.T) {
	a := newAuthority(t, AuthorityConfig{TTL: time.Hour})
	own, _ := openState(t, a.dir, "first")
	defer own.Close()
	a.serve("")
	one, two := a.join(webID(t)), a.join(mustID(t, "spiffe://cluster.local/ns/default/sa/two"))
	check := func(when string) {
		t.Helper()
		for _, pair := range [][2]string{{one, two}, {two, one}, {a.dir, one}, {one, a.dir}, {two, a.dir}} {
			if !trusts(t, pair[0], pair[1]) {
				t.Errorf("%s: one member does not trust another", when)
			}
		}
	}
	renew := func(dir string) {
		t.Helper()
		within(t, func() error { _, err := Renew(t.Context(), dir); return err }) // the server hears of a phase within a second or two
	}
	oldPin := a.Pin()
	operator := openAuthority(t, a.dir, AuthorityConfig{}) // `gateway ca rotate`, another process
	phase, ready, err := operator.Rotate(false, false)
	if err != nil || phase != PhaseAnnounced || time.Until(ready) < 55*time.Minute || operator.Pin() != oldPin {
		t.Fatalf("Rotate = %v, %v, %v", phase, ready, err)
	}
	if n := strings.Count(mustRead(t, a.dir, caCertFile), "BEGIN"); n != 2 {
		t.Fatalf("ca.pem has %d roots, want 2", n)
	}
	check("announced")
	if _, _, err := operator.Rotate(false, false); !isNotReady(err) {
		t.Errorf("the next phase at once: %v", err)
	}
	within(t, func() error { // a refresh alone brings the new root
		if err := Refresh(t.Context(), one); err != nil {
			return err
		}
		if strings.Count(mustRead(t, one, caCertFile), "BEGIN") != 2 {
			return errors.New("one root")
		}
		return nil
	})
	renew(two)
	check("announced, and heard by all")
	if phase, _, err = operator.Rotate(true, false); err != nil || phase != PhaseSwitched || operator.Pin() == oldPin {
		t.Fatalf("Rotate = %v, %v", phase, err)
	}
	check("switched")
	within(t, func() error {
		if a.Pin() == oldPin {
			return errors.New("the server signs with the old root")
		}
		return nil
	})
	renew(one)
	check("switched, one has renewed")
	renew(two)
	check("switched, all have renewed")
	if n := countCRLs(t, a.dir); n != 4 {
		t.Errorf("%d CRLs, want those of two intermediates and two roots", n)
	}
	if phase, _, err = operator.Rotate(true, false); err != nil || phase != PhaseNone {
		t.Fatalf("Rotate = %v, %v", phase, err)
	}
	check("ended")
	within(t, func() error { // until the members have heard of it, they trust more than they need
		if err := Refresh(t.Context(), one); err != nil {
			return err
		}
		if strings.Count(mustRead(t, one, caCertFile), "BEGIN") != 1 {
			return errors.New("two roots")
		}
		return nil
	})
	renew(two)
	check("ended, and heard by all")
	for _, name := range []string{nextRootKey, oldRootKey, oldInterCert, oldInterKey, nextJWTKey, oldJWTKey} {
		if exists(a.path(name)) {
			t.Errorf("%s is left", name)
		}
	}
	if n := countCRLs(t, a.dir); n != 2 {
		t.Errorf("%d CRLs at the end, want 2", n)
	}
}

func isNotReady(err error) bool {
	_, ok := errors.AsType[*NotReadyError](err)
	return ok
}

// within waits until f succeeds.
func within(t testing.TB, f func() error) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func countCRLs(t testing.TB, dir string) int {
	t.Helper()
	return strings.Count(mustRead(t, dir, crlFile), "BEGIN X509 CRL")
}

// A rotation that was interrupted goes on where it was.
func TestRotationAfterCrash(t *testing.T) {
	a := newAuthority(t, AuthorityConfig{})
	steps := func() {
		t.Helper()
		state := mustRead(t, a.dir, "authority/state.json")
		if _, _, err := a.Rotate(true, false); err != nil {
			t.Fatal(err)
		}
		put(t, a.dir, "authority/state.json", []byte(state), 0o600) // as if it had died before it was noted
		if err := a.update(nil); err != nil {
			t.Fatalf("after the crash: %v", err)
		}
		if _, _, err := a.Rotate(true, false); err != nil {
			t.Fatalf("again: %v", err)
		}
	}
	steps()
	if n := strings.Count(mustRead(t, a.dir, caCertFile), "BEGIN"); n != 2 {
		t.Fatalf("announced twice: %d roots", n)
	}
	pin := a.Pin()
	steps()
	if a.Pin() == pin {
		t.Fatal("switched twice: the old root signs")
	}
	steps()
	if n := strings.Count(mustRead(t, a.dir, caCertFile), "BEGIN"); n != 1 || a.data.Load().state.Rotation != nil {
		t.Fatalf("ended twice: %d roots, %+v", n, a.data.Load().state.Rotation)
	}
	if _, err := a.SignCSR(csrOf(t, newECKey(t, elliptic.P256()), nil), Grant{ID: webID(t)}, 0); err != nil {
		t.Error(err)
	}
}

// With auto, the phases follow when their time has come.
func TestRotationByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t, AuthorityConfig{})
		csr := csrOf(t, newECKey(t, elliptic.P256()), nil)
		if _, err := a.SignCSR(csr, Grant{ID: webID(t)}, 0); err != nil {
			t.Fatal(err)
		}
		if _, _, err := a.Rotate(false, true); err != nil {
			t.Fatal(err)
		}
		var phases []Phase
		for range 4 * 60 {
			if err := a.rotateIfDue(time.Now()); err != nil {
				t.Fatal(err)
			}
			phase := PhaseNone
			if r := a.data.Load().state.Rotation; r != nil {
				phase = r.Phase
			}
			if len(phases) == 0 || phases[len(phases)-1] != phase {
				phases = append(phases, phase)
			}
			if err := a.ledger.Load().sweep(time.Now()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
		}
		if want := []Phase{PhaseAnnounced, PhaseSwitched, PhaseNone}; !slices.Equal(phases, want) {
			t.Errorf("phases %v, want %v", phases, want)
		}
	})
}

// What is revoked is in a CRL that its signer signed, is not renewed, and may join again by a token only.
func TestRevoke(t *testing.T) {
	a := newAuthority(t, AuthorityConfig{})
	a.serve("")
	id, other := webID(t), mustID(t, "spiffe://cluster.local/ns/default/sa/other")
	dir, spared := a.join(id), a.join(other)
	if _, err := Renew(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	operator := openAuthority(t, a.dir, AuthorityConfig{})
	if n, err := operator.Revoke(id.String()); err != nil || n != 2 {
		t.Fatalf("Revoke = %d, %v, want both certificates of it", n, err)
	}
	if n, err := operator.Revoke(id.String()); err != nil || n != 0 {
		t.Errorf("Revoke again = %d, %v", n, err)
	}
	within(t, func() error {
		_, err := Renew(t.Context(), dir)
		if !isCode(err, istioca.PermissionDenied) {
			return errors.Join(errors.New("a revoked identity is renewed"), err)
		}
		return nil
	})
	if _, err := Renew(t.Context(), spared); err != nil {
		t.Fatalf("another identity: %v", err)
	}
	// What it got before the server heard of it is in the CRL too.
	serial := parseOne(t, []byte(firstBlock(mustRead(t, dir, identityCertFile)))).SerialNumber
	within(t, func() error {
		if err := Refresh(t.Context(), spared); err != nil {
			return err
		}
		block, _ := pem.Decode([]byte(mustRead(t, spared, crlFile)))
		crl, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if err := crl.CheckSignatureFrom(a.data.Load().inter.cert); err != nil || time.Until(crl.NextUpdate) < 6*24*time.Hour {
			t.Fatalf("the CRL of the intermediate: %v, until %v", err, crl.NextUpdate)
		}
		if !slices.ContainsFunc(crl.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool { return e.SerialNumber.Cmp(serial) == 0 }) {
			return errors.New("a certificate of a revoked identity is not in the CRL")
		}
		return nil
	})
	// The serial alone: that certificate is no credential, and the identity is not barred.
	spareSerial := parseOne(t, []byte(firstBlock(mustRead(t, spared, identityCertFile)))).SerialNumber
	if n, err := operator.Revoke(spareSerial.Text(16)); err != nil || n != 1 {
		t.Fatalf("Revoke = %d, %v", n, err)
	}
	within(t, func() error {
		if !a.data.Load().revoked[serialNumberOf(spareSerial)] {
			return errors.New("the server has not heard of it")
		}
		return nil
	})
	if _, err := Renew(t.Context(), spared); !isCode(err, istioca.PermissionDenied) {
		t.Errorf("a revoked certificate is renewed: %v", err)
	}
	cfg := a.joinConfig(id)
	cfg.Dir = dir
	if _, err := Join(t.Context(), cfg); err != nil {
		t.Fatalf("with a new token: %v", err)
	}
	if _, err := Renew(t.Context(), dir); err != nil {
		t.Errorf("after it has joined again: %v", err)
	}
	for _, what := range []string{"", "zz", "spiffe://Bad/x", strings.Repeat("f", 33), "0123", a.ID().String()} {
		if n, err := operator.Revoke(what); err == nil {
			t.Errorf("Revoke(%q) = %d", what, n)
		}
	}
}

// firstBlock returns the first PEM block of a text.
func firstBlock(text string) string {
	const end = "-----END CERTIFICATE-----\n"
	return text[:strings.Index(text, end)+len(end)]
}

// The CRL's number rises, it is made anew before it runs out, and forgets what nobody can renew any more.
func TestCRLIsKeptFresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t, AuthorityConfig{})
		number := func() (n *big.Int, entries int) {
			for block, rest := pem.Decode(a.CRL()); block != nil; block, rest = pem.Decode(rest) {
				crl, err := x509.ParseRevocationList(block.Bytes)
				if err != nil {
					t.Fatal(err)
				}
				n, entries = crl.Number, entries+len(crl.RevokedCertificateEntries)
			}
			return n, entries
		}
		if _, err := a.SignCSR(csrOf(t, newECKey(t, elliptic.P256()), nil), Grant{ID: webID(t)}, 0); err != nil {
			t.Fatal(err)
		}
		n1, e1 := number()
		if _, err := a.Revoke(webID(t).String()); err != nil {
			t.Fatal(err)
		}
		n2, e2 := number()
		time.Sleep(crlEvery + time.Minute)
		if err := a.refresh(time.Now()); err != nil {
			t.Fatal(err)
		}
		n3, e3 := number()
		time.Sleep(maxGrace + crlEvery) // nobody can renew it any more
		if err := a.refresh(time.Now()); err != nil {
			t.Fatal(err)
		}
		n4, e4 := number()
		if n2.Cmp(n1) <= 0 || n3.Cmp(n2) <= 0 || n4.Cmp(n3) <= 0 || e1 != 0 || e2 != 1 || e3 != 1 || e4 != 0 {
			t.Errorf("numbers %v %v %v %v, entries %d %d %d %d, want rising ones, and 0 1 1 0", n1, n2, n3, n4, e1, e2, e3, e4)
		}
	})
}

func TestRevocationsAreBounded(t *testing.T) {
	a := newAuthority(t, AuthorityConfig{})
	csr := csrOf(t, newECKey(t, elliptic.P256()), nil)
	if _, err := a.SignCSR(csr, Grant{ID: webID(t)}, 0); err != nil {
		t.Fatal(err)
	}
	signer := a.data.Load().signer().id()
	if err := a.update(func(d *authorityData) error {
		for i := range maxRevoked {
			d.state.Revoked = append(d.state.Revoked, revokedCert{Serial: serialNumber{0xff, byte(i), byte(i >> 8), 15: 1}, Signer: signer, ID: webID(t), At: time.Now(), Until: time.Now().Add(time.Hour)})
		}
		d.crlDirty = true
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if n := len(a.CRL()); n > maxFileBytes {
		t.Errorf("a full CRL has %d bytes, more than a gateway reads, %d", n, maxFileBytes)
	}
	if n, err := a.Revoke(webID(t).String()); err == nil || !strings.Contains(err.Error(), "replace the root") {
		t.Errorf("one more: %d, %v", n, err)
	}
}

// The bundle is one that go-spiffe reads, through a rotation.
func TestBundle(t *testing.T) {
	a := newAuthority(t, AuthorityConfig{})
	td := spiffeid.RequireTrustDomainFromString(testTD)
	var last uint64
	for _, want := range []struct{ roots, jwts int }{{1, 1}, {2, 2}, {2, 2}, {1, 1}} {
		b, err := spiffebundle.Parse(td, a.Bundle())
		if err != nil {
			t.Fatal(err)
		}
		sequence, _ := b.SequenceNumber()
		hint, _ := b.RefreshHint()
		if len(b.X509Authorities()) != want.roots || len(b.JWTAuthorities()) != want.jwts || sequence <= last || hint != bundleRefresh {
			t.Errorf("%d roots, %d keys of tokens, sequence %d after %d, hint %v", len(b.X509Authorities()), len(b.JWTAuthorities()), sequence, last, hint)
		}
		last = sequence
		roots, err := decodeRoots(a.Bundle())
		if err != nil || len(roots) != want.roots {
			t.Errorf("we read %d roots, %v", len(roots), err)
		}
		if _, _, err := a.Rotate(true, false); err != nil {
			t.Fatal(err)
		}
	}
	for _, kind := range []any{newRSAKey(t, 2048).Public(), newECKey(t, elliptic.P384()).Public()} {
		j, err := encodeJWK(kind)
		if err != nil {
			t.Fatal(err)
		}
		j.Use, j.KeyID = useJWT, "k"
		text, err := json.Marshal(jwkSet{Keys: []jwk{j}})
		if err != nil {
			t.Fatal(err)
		}
		b, err := spiffebundle.Parse(td, text)
		if err != nil {
			t.Fatal(err)
		}
		if key, ok := b.FindJWTAuthority("k"); !ok || !samePublic(key, kind) {
			t.Errorf("a %T is read as %v", kind, key)
		}
	}
}

// JWT-SVIDs are good for go-spiffe, with the keys of the bundle, and for us.
func TestJWTSVID(t *testing.T) {
	a := newAuthority(t, AuthorityConfig{})
	b, err := spiffebundle.Parse(spiffeid.RequireTrustDomainFromString(testTD), a.Bundle())
	if err != nil {
		t.Fatal(err)
	}
	token, err := a.IssueJWT(webID(t), []string{"db", "cache"})
	if err != nil {
		t.Fatal(err)
	}
	svid, err := jwtsvid.ParseAndValidate(token, b, []string{"cache"})
	if err != nil || svid.ID.String() != webID(t).String() || time.Until(svid.Expiry) > jwtTTL {
		t.Errorf("go-spiffe reads %+v, %v", svid, err)
	}
	if id, claims, err := a.ValidateJWT(token, "db"); err != nil || id != webID(t) || !strings.Contains(string(claims), `"sub":"`+webID(t).String()) {
		t.Errorf("ValidateJWT = %v, %s, %v", id, claims, err)
	}
	if _, err := jwtsvid.ParseAndValidate(token, jwtbundle.FromJWTAuthorities(b.TrustDomain(), nil), []string{"db"}); err == nil {
		t.Error("go-spiffe takes it without the key")
	}
	other := newAuthority(t, AuthorityConfig{})
	for name, f := range map[string]func() error{
		"another audience": func() error { _, _, err := a.ValidateJWT(token, "web"); return err },
		"no audience":      func() error { _, _, err := a.ValidateJWT(token, ""); return err },
		"another CA":       func() error { _, _, err := other.ValidateJWT(token, "db"); return err },
		"too long":         func() error { _, _, err := a.ValidateJWT(token+strings.Repeat("A", maxJWTBytes), "db"); return err },
		"cut":              func() error { _, _, err := a.ValidateJWT(token[:len(token)-2], "db"); return err },
	} {
		if f() == nil {
			t.Errorf("%s: it is good", name)
		}
	}
	if _, err := a.IssueJWT(a.ID(), []string{"db"}); err == nil {
		t.Error("a token for the CA itself")
	}
	if _, err := a.Revoke(webID(t).String()); err != nil {
		t.Fatal(err)
	}
	if _, err := a.IssueJWT(webID(t), []string{"db"}); !errors.Is(err, errBarred) {
		t.Errorf("for a revoked identity: %v", err)
	}
}

func TestJWTEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t, AuthorityConfig{})
		token, err := a.IssueJWT(webID(t), []string{"db"})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(jwtTTL)
		if _, _, err := a.ValidateJWT(token, "db"); err != nil {
			t.Errorf("at its end: %v", err)
		}
		time.Sleep(jwtLeeway + 2*time.Second)
		if _, _, err := a.ValidateJWT(token, "db"); err == nil {
			t.Error("an expired token is good")
		}
	})
}

package pki

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A host that has joined renews its identity by the CA, with the same key, and no connection is dropped.
func TestJoinedHostRenews(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds; make test has it")
	}
	testJoinedHostRenews(t, false)
}

// And with new keys, where that is wanted.
func TestJoinedHostRenewsWithNewKeys(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds; make test has it")
	}
	testJoinedHostRenews(t, true)
}

func testJoinedHostRenews(t *testing.T, newKeys bool) {
	a := newAuthority(t, AuthorityConfig{})
	a.cfg.TTL = 4 * time.Second // less than a configuration may say
	a.serve("")
	dir := a.join(webID(t))
	logs, log := newLogs()
	s, err := Open(t.Context(), Config{State: dir, Poll: minPoll, NewKeys: newKeys}, "host", log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	peer, err := Open(t.Context(), Config{State: a.join(mustID(t, "spiffe://cluster.local/ns/default/sa/peer")), Poll: minPoll}, "host", quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { peer.Close() })
	first := handshake(t, s.ServerTLS(nil), peer.ClientTLS(nil))
	if first.clientErr != nil || first.serverErr != nil {
		t.Fatal(first.clientErr, first.serverErr)
	}
	key := s.Current().chain[0].RawSubjectPublicKeyInfo
	for range 3 {
		changed, serial := s.Changed(), s.Current().chain[0].SerialNumber
		for s.Current().chain[0].SerialNumber.Cmp(serial) == 0 {
			wait(t, changed)
			changed = s.Changed()
		}
		if same := string(s.Current().chain[0].RawSubjectPublicKeyInfo) == string(key); same == newKeys {
			t.Errorf("a renewal has the same key: %v", same)
		}
		if p := handshake(t, s.ServerTLS(nil), peer.ClientTLS(nil)); p.clientErr != nil || p.serverErr != nil {
			t.Errorf("handshake after a renewal: %v, %v\n%s", p.clientErr, p.serverErr, logs)
		}
		first.echo(t)
	}
	if n, failed := s.Renewals(); n < 2 || failed != 0 { // the third may be taken before it is counted
		t.Errorf("%d renewals, %d failed", n, failed)
	}
}

// What the CA revokes is refused by its members soon after, without a restart or a poll of theirs.
func TestJoinedHostHearsOfRevocations(t *testing.T) {
	a := newAuthority(t, AuthorityConfig{})
	a.serve("")
	peerID := mustID(t, "spiffe://cluster.local/ns/default/sa/peer")
	peer, err := newState(a.join(peerID), "", nil).load()
	if err != nil {
		t.Fatal(err)
	}
	other, err := newState(a.join(mustID(t, "spiffe://cluster.local/ns/default/sa/other")), "", nil).load()
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), Config{State: a.join(webID(t))}, "host", quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if got := doubted(t, s, peer.chain...); got != "" {
		t.Fatalf("the peer is refused as %q before it was revoked", got)
	}
	// A follower waits for changes by now, or will ask.
	start := time.Now()
	if n, err := a.Revoke(peerID.String()); err != nil || n != 1 {
		t.Fatalf("Revoke = %d, %v", n, err)
	}
	for changed := s.Changed(); doubted(t, s, peer.chain...) != Revoked; changed = s.Changed() {
		wait(t, changed)
	}
	t.Logf("the member knew %v after the CA", time.Since(start))
	if got := doubted(t, s, other.chain...); got != "" {
		t.Errorf("another peer is refused as %q", got)
	}
	if _, err := peer.chain[0].Verify(x509.VerifyOptions{Roots: s.Current().Roots, Intermediates: pool(peer.chain[1:]), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		t.Errorf("the peer is refused for another reason: %v", err)
	}
}

func pool(certs []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}

// A CA that is down for a while leaves what there is, and is asked again.
func TestJoinedHostOutlivesItsCA(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds; make test has it")
	}
	a := newAuthority(t, AuthorityConfig{})
	a.cfg.TTL = 8 * time.Second
	a.serve("")
	dir := a.join(webID(t))
	addr := a.addr
	a.end()
	logs, log := newLogs()
	s, err := Open(t.Context(), Config{State: dir, Poll: minPoll}, "host", log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	changed := s.Changed()
	for deadline := time.Now().Add(20 * time.Second); logs.count("cannot be renewed") == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing was logged of the failure")
		}
	}
	a.serve(addr)
	wait(t, changed)
}

// A host that was away when its certificate ended renews it when it is back, within the CA's grace, and not after it or
// once it was revoked.
func TestJoinedHostWasAway(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds; make test has it")
	}
	for _, tt := range []struct {
		name   string
		grace  time.Duration
		revoke bool
		want   string // of the error
	}{
		{"within the grace", 0, false, ""},
		{"no grace", -1, false, "expired"},
		{"revoked", 0, true, "revoked"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := newAuthority(t, AuthorityConfig{Grace: tt.grace})
			a.cfg.TTL = 2 * time.Second // less than a configuration may say
			a.serve("")
			dir := a.join(webID(t))
			serial := mustRead(t, dir, identityCertFile)
			for m, err := newState(dir, "", quiet()).load(); err == nil; m, err = newState(dir, "", quiet()).load() {
				time.Sleep(time.Until(m.NotAfter) + 10*time.Millisecond)
			}
			if tt.revoke {
				if _, err := a.Revoke(webID(t).String()); err != nil {
					t.Fatal(err)
				}
			}
			s, err := Open(t.Context(), Config{State: dir}, "host", quiet())
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) || mustRead(t, dir, identityCertFile) != serial {
					t.Errorf("Open = %v, want %q and the certificate as it was", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if s.ID() != webID(t) || mustRead(t, dir, identityCertFile) == serial {
				t.Errorf("the identity is %s, and was not renewed", s.Current())
			}
		})
	}
}

// A list of revocations that vanishes revokes as before.
func TestKeptListVanishes(t *testing.T) {
	a := newAuthority(t, AuthorityConfig{})
	a.serve("")
	dir := a.join(webID(t))
	s, err := Open(t.Context(), Config{State: dir}, "host", quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	a.end() // or it would bring the list back
	before := s.Current()
	if err := os.Remove(filepath.Join(dir, crlFile)); err != nil {
		t.Fatal(err)
	}
	if err := s.Reload(); err == nil || !strings.Contains(err.Error(), "is gone") || s.Current() != before {
		t.Errorf("Reload = %v, want that the list that was there stays", err)
	}
}

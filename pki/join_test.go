package pki

import (
	"crypto/elliptic"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"culvert/pki/istioca"
)

// quiet is a log that nobody reads.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// mustRead reads a file of a folder.
func mustRead(t testing.TB, dir, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestJoin(t *testing.T) {
	a := newAuthority(t, AuthorityConfig{})
	a.serve("")
	cfg := a.joinConfig(webID(t))
	m, err := Join(t.Context(), cfg)
	if err != nil || m.ID != webID(t) || time.Until(m.NotAfter) > time.Hour {
		t.Fatalf("Join = %v, %v", m, err)
	}
	for name, want := range map[string]string{caCertFile: string(mustRead(t, a.dir, caCertFile)), caAddressFile: a.addr + "\n", crlFile: string(a.CRL())} {
		if got := mustRead(t, cfg.Dir, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{identityKeyFile, identityCertFile} {
		if info, err := os.Stat(filepath.Join(cfg.Dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", name, info.Mode(), err)
		}
	}
	if !Joined(cfg.Dir) || Joined(a.dir) {
		t.Error("Joined is wrong")
	}
	if secret := strings.TrimPrefix(cfg.Token, joinPrefix); a.logs.count(secret) > 0 || strings.Contains(mustRead(t, a.dir, "authority/state.json"), secret) {
		t.Error("the token is in the log or on the disk")
	} else if raw, err := base64.RawURLEncoding.DecodeString(secret); err != nil || len(raw)*8 < 192 {
		t.Errorf("a token of %d bits, %v", len(raw)*8, err)
	}
	// The answer may have been lost: the same key may ask again, another may not.
	if _, err := Join(t.Context(), cfg); err != nil {
		t.Errorf("the same host again: %v", err)
	}
	cfg.Dir = t.TempDir()
	if _, err := Join(t.Context(), cfg); !isCode(err, istioca.Unauthenticated) || !strings.Contains(err.Error(), "used already") {
		t.Errorf("another host with the same token: %v", err)
	}
	if exists(filepath.Join(cfg.Dir, identityCertFile)) || exists(filepath.Join(cfg.Dir, caAddressFile)) {
		t.Error("a host that was refused has an identity")
	}
}

func isCode(err error, code istioca.Code) bool {
	told, ok := errors.AsType[*istioca.Error](err)
	return ok && told.Code == code
}

func TestJoinRefuses(t *testing.T) {
	a := newAuthority(t, AuthorityConfig{})
	a.serve("")
	other := newAuthority(t, AuthorityConfig{})
	other.serve("")
	member, err := OpenState(a.join(webID(t)), "", quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer member.Close()
	impostor := serveTLS(t, member.ServerTLS(nil))
	own := t.TempDir()
	src, _ := openState(t, own, "own")
	defer src.Close()
	good := func() JoinConfig { return a.joinConfig(mustID(t, "spiffe://cluster.local/ns/default/sa/new")) }
	for _, tc := range []struct {
		name   string
		change func(*JoinConfig)
		want   string
		peer   Reason
	}{
		{"no pin", func(c *JoinConfig) { c.Pin = "" }, "pin", ""},
		{"half a pin", func(c *JoinConfig) { c.Pin = c.Pin[:40] }, "pin", ""},
		{"wrong pin", func(c *JoinConfig) { c.Pin = other.Pin() }, "the root that the pin names", Untrusted},
		{"another CA", func(c *JoinConfig) { c.Address = other.addr }, "the root that the pin names", Untrusted},
		{"a member of the mesh in the CA's place", func(c *JoinConfig) { c.Address = impostor }, "does not show the root", Untrusted},
		{"no address", func(c *JoinConfig) { c.Address = "ca.example" }, "no address of a CA", ""},
		{"nobody there", func(c *JoinConfig) { c.Address = closedPort(t) }, "connection refused", ""},
		{"a token that nobody made", func(c *JoinConfig) { c.Token = joinPrefix + strings.Repeat("A", 32) }, "not known here", ""},
		{"a token of another CA", func(c *JoinConfig) { c.Token = other.joinConfig(webID(t)).Token }, "not known here", ""},
		{"no token", func(c *JoinConfig) { c.Token = "" }, "show a join token", ""},
		{"another issuer's token", func(c *JoinConfig) { c.Token = "eyJ" }, "no tokens but join tokens", ""},
		{"a folder with a CA of its own", func(c *JoinConfig) { c.Dir = own }, "--replace", ""},
		{"the CA's folder", func(c *JoinConfig) { c.Dir = a.dir }, "CA that issues to others", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := good()
			tc.change(&cfg)
			_, err := Join(t.Context(), cfg)
			if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), cfg.Token) && cfg.Token != "" {
				t.Errorf("Join = %v, want %q, and not the token", err, tc.want)
			}
			if p, ok := errors.AsType[*PeerError](err); tc.peer != "" && (!ok || p.Reason != tc.peer) {
				t.Errorf("Join = %v, want a PeerError %s", err, tc.peer)
			}
		})
	}
	cfg := good()
	cfg.Dir, cfg.Replace = own, true
	if _, err := Join(t.Context(), cfg); err != nil || !exists(filepath.Join(own, caKeyFile+replacedSuffix)) || exists(filepath.Join(own, caKeyFile)) {
		t.Errorf("with Replace: %v", err)
	}
}

// A member with the CA's root in its chain is still not the CA.
func TestPinnedRefusesMembers(t *testing.T) {
	a := newAuthority(t, AuthorityConfig{})
	d := a.data.Load()
	cert, _ := leaf(t, d.inter, nil)
	cert.Certificate = append(cert.Certificate, d.inter.cert.Raw, d.root.cert.Raw)
	cfg := a.joinConfig(webID(t))
	cfg.Address = serveTLS(t, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{alpnH2}})
	if _, err := Join(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "a member of the mesh and not its CA") {
		t.Errorf("Join = %v", err)
	}
	// And one that only shows the root, with a certificate of its own making.
	forged, _ := leaf(t, mustCA(t, testTD), func(s *leafSpec) { s.uris = []string{a.ID().String()} })
	forged.Certificate = append(forged.Certificate, d.root.cert.Raw)
	cfg.Address = serveTLS(t, &tls.Config{Certificates: []tls.Certificate{forged}, NextProtos: []string{alpnH2}})
	if _, err := Join(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "chain is not valid") {
		t.Errorf("Join = %v", err)
	}
}

// One token, a hundred hosts at once, and two processes: one wins.
func TestTokenIsUsedOnce(t *testing.T) {
	a := newAuthority(t, AuthorityConfig{})
	if _, err := a.writer(); err != nil {
		t.Fatal(err)
	}
	b := openAuthority(t, a.dir, AuthorityConfig{}) // as another process has it
	token, err := a.NewToken(webID(t), 0)
	if err != nil {
		t.Fatal(err)
	}
	var won, lost atomic.Int32
	var wg sync.WaitGroup
	for i := range 100 {
		csr := csrOf(t, newECKey(t, elliptic.P256()), nil)
		who := []*testAuthority{a, b}[i%2]
		wg.Go(func() {
			_, _, err := who.redeem(token, fmt.Sprintf("10.0.%d.1:5", i), csr)
			switch {
			case err == nil:
				won.Add(1)
			case isCode(err, istioca.Unauthenticated) && strings.Contains(err.Error(), "used already"):
				lost.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 || lost.Load() != 99 {
		t.Errorf("%d have won and %d lost, want 1 and 99", won.Load(), lost.Load())
	}
}

// A CSR that is refused leaves the token as it was.
func TestBadCSRKeepsToken(t *testing.T) {
	a := newAuthority(t, AuthorityConfig{})
	token, err := a.NewToken(webID(t), 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range hostileCSRs(t) {
		if _, _, err := a.redeem(token, "10.0.0.1:1", tc.csr); !isCode(err, tc.code) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := a.redeem(token, "10.0.0.1:1", csrOf(t, newECKey(t, elliptic.P256()), nil)); err != nil {
		t.Errorf("a good one after them: %v", err)
	}
}

func TestTokenEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t, AuthorityConfig{})
		csr := csrOf(t, newECKey(t, elliptic.P256()), nil)
		token, err := a.NewToken(webID(t), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute + 2*time.Second)
		if _, _, err := a.redeem(token, "10.0.0.1:1", csr); !isCode(err, istioca.Unauthenticated) || !strings.Contains(err.Error(), "expired at") {
			t.Errorf("an expired token: %v", err)
		}
		time.Sleep(tokenMemory + time.Minute)
		if err := a.update(nil); err != nil {
			t.Fatal(err)
		}
		if n := len(a.data.Load().state.Tokens); n != 0 {
			t.Errorf("%d expired tokens are kept", n)
		}
		if _, err := a.NewToken(webID(t), 8*24*time.Hour); err == nil {
			t.Error("a token for more than a week")
		}
		if _, err := a.NewToken(webID(t), -1); err == nil {
			t.Error("a token for the past")
		}
	})
}

func TestTokensAreBounded(t *testing.T) {
	a := newAuthority(t, AuthorityConfig{})
	if err := a.update(func(d *authorityData) error {
		for range maxTokens {
			d.state.Tokens = append(d.state.Tokens, joinToken{Hash: "x", ID: webID(t), Until: time.Now().Add(time.Hour)})
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.NewToken(webID(t), 0); err == nil || !strings.Contains(err.Error(), "wait already") {
		t.Errorf("one more token: %v", err)
	}
}

// Wrong tokens are refused unseen after some, per source; others are not hindered.
func TestWrongTokensAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t, AuthorityConfig{})
		csr := csrOf(t, newECKey(t, elliptic.P256()), nil)
		wrong := joinPrefix + strings.Repeat("A", 32)
		for i := range 100 {
			_, _, err := a.redeem(wrong, fmt.Sprintf("[2001:db8::%x]:1", i), csr) // one host's network
			if want := istioca.Unauthenticated; i < guessBurst && !isCode(err, want) {
				t.Fatalf("token %d: %v", i, err)
			}
			if i >= guessBurst+1 && !isCode(err, istioca.ResourceExhausted) {
				t.Fatalf("token %d: %v, want too many", i, err)
			}
		}
		good, err := a.NewToken(webID(t), 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := a.redeem(good, "[2001:db8::1]:1", csr); !isCode(err, istioca.ResourceExhausted) {
			t.Errorf("a good token of that source: %v", err)
		}
		for i := range maxGuessers + 500 { // from everywhere
			_, _, _ = a.redeem(wrong, fmt.Sprintf("10.%d.%d.%d:1", i>>16, i>>8&255, i&255), csr)
		}
		if n := len(a.guesses.sources); n > maxGuessers {
			t.Errorf("%d sources are kept", n)
		}
		if _, _, err := a.redeem(good, "192.0.2.1:1", csr); err != nil {
			t.Errorf("a good token of another source: %v", err)
		}
		time.Sleep(time.Hour)
		if _, _, err := a.redeem(wrong, "[2001:db8::1]:1", csr); !isCode(err, istioca.Unauthenticated) {
			t.Errorf("an hour later: %v", err)
		}
	})
}

// The CA dies while a host joins: before it has answered, and after it has used the token up.
func TestCADiesDuringJoin(t *testing.T) {
	a := newAuthority(t, AuthorityConfig{})
	a.serve("")
	cfg := a.joinConfig(webID(t))
	// A line that lets so many bytes of the CA's answers through and then is cut.
	for _, limit := range []int64{0, 1, 500, 3000, 5000} {
		cut := cfg
		cut.Address = cutLine(t, a.addr, limit)
		if m, err := Join(t.Context(), cut); err == nil {
			t.Fatalf("after %d bytes: Join = %v", limit, m)
		}
		if exists(filepath.Join(cfg.Dir, identityCertFile)) {
			t.Fatalf("after %d bytes there is an identity", limit)
		}
	}
	addr := a.addr
	a.end()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Join(t.Context(), cfg); !isCode(err, istioca.Unavailable) {
		t.Fatalf("Join by a CA that is gone: %v", err)
	}
	b := openAuthority(t, a.dir, AuthorityConfig{})
	b.serve(addr)
	if m, err := Join(t.Context(), cfg); err != nil || m.ID != webID(t) {
		t.Errorf("the next try: %v, %v", m, err)
	}
}

// cutLine is a TCP relay that ends each connection after limit bytes of the server's.
func cutLine(t *testing.T, to string, limit int64) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	wg.Go(func() { // ends with the listener
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", to)
			if err != nil {
				_ = nc.Close()
				continue
			}
			end := func() { _ = nc.Close(); _ = up.Close() }
			wg.Go(func() { defer end(); copyN(up, nc, 1<<30) }) // both end with either connection
			wg.Go(func() { defer end(); copyN(nc, up, limit) })
		}
	})
	return ln.Addr().String()
}

func copyN(dst, src net.Conn, n int64) {
	buf := make([]byte, 4096)
	for n > 0 {
		got, err := src.Read(buf[:min(int64(len(buf)), n)])
		if _, werr := dst.Write(buf[:got]); err != nil || werr != nil {
			return
		}
		n -= int64(got)
	}
}

// serveTLS is a server that finishes handshakes and hears no more.
func serveTLS(t *testing.T, conf *tls.Config) (addr string) {
	t.Helper()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", conf)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	wg.Go(func() { // ends with the listener
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { _ = nc.(*tls.Conn).Handshake(); drainAndClose(nc) }) // ends with the client
		}
	})
	return ln.Addr().String()
}

func closedPort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// A renewal keeps the key and the name, and a gateway that follows the files takes it over.
func TestRenew(t *testing.T) {
	a := newAuthority(t, AuthorityConfig{})
	a.serve("")
	dir := a.join(webID(t))
	l, log := newLogs()
	src, err := OpenState(dir, "", log)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	before, changed := src.Current(), src.Changed()
	if want := before.NotBefore.Add(before.NotAfter.Sub(before.NotBefore) / 2); !RenewAt(before).Equal(want) {
		t.Errorf("renewal at %v, want half the life, %v", RenewAt(before), want)
	}
	m, err := Renew(t.Context(), dir)
	if err != nil || m.ID != webID(t) {
		t.Fatalf("Renew = %v, %v", m, err)
	}
	select {
	case <-changed:
	case <-time.After(10 * time.Second):
		t.Fatalf("the gateway has not taken it over: %s", l)
	}
	after := src.Current()
	if after.Certificate.Leaf.SerialNumber.Cmp(before.Certificate.Leaf.SerialNumber) == 0 || !samePublic(after.Certificate.Leaf.PublicKey, before.Certificate.Leaf.PublicKey) {
		t.Error("the certificate is the same, or the key is another")
	}
}

func TestRenewRefuses(t *testing.T) {
	a := newAuthority(t, AuthorityConfig{})
	a.serve("")
	dir := a.join(webID(t))
	if _, err := Renew(t.Context(), t.TempDir()); err == nil || !strings.Contains(err.Error(), "no CA is known") {
		t.Errorf("without a CA: %v", err)
	}
	if err := Refresh(t.Context(), t.TempDir()); err == nil {
		t.Error("Refresh without a CA = nil")
	}
	// Another CA's answer is none.
	other := newAuthority(t, AuthorityConfig{})
	other.serve("")
	before := mustRead(t, dir, identityCertFile)
	put(t, dir, caAddressFile, []byte(other.addr+"\n"), 0o600)
	for name, f := range map[string]func() error{
		"Renew":   func() error { _, err := Renew(t.Context(), dir); return err },
		"Refresh": func() error { return Refresh(t.Context(), dir) },
	} {
		if p, ok := errors.AsType[*PeerError](f()); !ok || p.Reason != Untrusted {
			t.Errorf("%s by another CA: %v", name, p)
		}
	}
	// Nor is that of a member.
	member, err := OpenState(a.join(mustID(t, "spiffe://cluster.local/ns/default/sa/evil")), "", quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer member.Close()
	put(t, dir, caAddressFile, []byte(serveTLS(t, member.ServerTLS(nil))+"\n"), 0o600)
	if _, err := Renew(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "not the expected one") {
		t.Errorf("by a member: %v", err)
	}
	put(t, dir, caAddressFile, []byte("a b:1\n"), 0o600)
	if _, err := Renew(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "no address") {
		t.Errorf("by a bad address: %v", err)
	}
	if mustRead(t, dir, identityCertFile) != before {
		t.Error("the identity has changed")
	}
}

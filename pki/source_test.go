package pki

import (
	"crypto/tls"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"culvert/pki/spiffe"
)

// rotation is a gateway on loopback whose files change, and a peer that does not. The TLS configurations are made
// once, at the beginning.
type rotation struct {
	t    *testing.T
	ca   *CA
	cfg  Config
	src  *Source
	peer *Source
	logs *logs

	server, client *tls.Config
}

func newRotation(t *testing.T) *rotation {
	r := &rotation{t: t, ca: mustCA(t, testTD)}
	r.cfg = identityFiles(t, t.TempDir(), r.ca, webText)
	r.open()
	r.peer = fixedSource(t, r.ca, "spiffe://cluster.local/ns/default/sa/gw")
	return r
}

func (r *rotation) open() {
	r.t.Helper()
	l, log := newLogs()
	src, err := OpenFiles(r.cfg, log)
	if err != nil {
		r.t.Fatal(err)
	}
	r.src, r.logs = src, l
	r.server, r.client = src.ServerTLS(nil), src.ClientTLS(nil)
	r.t.Cleanup(func() { src.Close() })
}

// issue returns a new identity of the same name.
func (r *rotation) issue() (cert, key []byte) {
	r.t.Helper()
	cert, key, err := r.ca.Issue(webID(r.t), time.Hour)
	if err != nil {
		r.t.Fatal(err)
	}
	return cert, key
}

// write replaces one of the files in place, as an editor or cp would.
func (r *rotation) write(path string, data []byte) {
	r.t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// replace exchanges one of the files in one step, so that no look sees a part of it.
func (r *rotation) replace(path string, data []byte) {
	r.t.Helper()
	if err := writeFile(path, data); err != nil {
		r.t.Fatal(err)
	}
}

// wait waits for a change that was awaited since before it was caused.
func (r *rotation) wait(changed <-chan struct{}) {
	r.t.Helper()
	select {
	case <-changed:
	case <-time.After(20 * time.Second):
		r.t.Fatalf("the change was not noticed; log: %s", r.logs)
	}
}

// waitLog waits until the log has a text, by looking at each poll.
func (r *rotation) waitLog(text string) {
	r.t.Helper()
	tick := time.NewTicker(minPoll)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); r.logs.count(text) == 0; <-tick.C {
		if time.Now().After(deadline) {
			r.t.Fatalf("the log has no %q: %s", text, r.logs)
		}
	}
}

// connect makes a mutually authenticated connection in which the rotating gateway is the server, and one in which
// it is the client.
func (r *rotation) connect() (asServer, asClient pair) {
	r.t.Helper()
	asServer = handshake(r.t, r.server, r.peer.ClientTLS(nil))
	asClient = handshake(r.t, r.peer.ServerTLS(nil), r.client)
	for _, p := range []pair{asServer, asClient} {
		if p.clientErr != nil || p.serverErr != nil {
			r.t.Fatalf("handshake: client %v, server %v", p.clientErr, p.serverErr)
		}
	}
	return asServer, asClient
}

func serialOf(c *tls.Conn) *big.Int { return c.ConnectionState().PeerCertificates[0].SerialNumber }

func (r *rotation) serial() *big.Int { return r.src.Current().Certificate.Leaf.SerialNumber }

// usesCurrent checks that new connections show the current certificate, in both roles.
func (r *rotation) usesCurrent() {
	r.t.Helper()
	asServer, asClient := r.connect()
	if got := serialOf(asServer.client); got.Cmp(r.serial()) != 0 {
		r.t.Errorf("the server shows certificate %x, want the current %x", got, r.serial())
	}
	if got := serialOf(asClient.server); got.Cmp(r.serial()) != 0 {
		r.t.Errorf("the client shows certificate %x, want the current %x", got, r.serial())
	}
}

func TestRotationKeepsConnections(t *testing.T) {
	r := newRotation(t)
	oldServer, oldClient := r.connect()
	for range 3 {
		before := r.serial()
		cert, key := r.issue()
		changed := r.src.Changed()
		r.write(r.cfg.Cert, cert)
		r.write(r.cfg.Key, key)
		r.wait(changed)
		if r.serial().Cmp(before) == 0 {
			t.Fatal("Changed is closed and Current is the old one")
		}
		r.usesCurrent()
		oldServer.echo(t)
		oldClient.echo(t)
	}
	if r.logs.count("identity renewed") != 3 {
		t.Errorf("log %s, want three renewals", r.logs)
	}
}

// A certificate without its key, as a rotation leaves it for a moment, must not replace a pair that works. It is
// logged once.
func TestHalfWrittenIdentityIsNotUsed(t *testing.T) {
	r := newRotation(t)
	before := r.serial()
	cert, key := r.issue()
	changed := r.src.Changed()
	r.replace(r.cfg.Cert, cert)
	r.waitLog("changed identity cannot be used")
	for range 20 { // looks that all find the same
		r.src.reloadIfChanged()
	}
	if got := r.logs.count("changed identity cannot be used"); got != 1 {
		t.Errorf("logged %d times, want once: %s", got, r.logs)
	}
	if r.serial().Cmp(before) != 0 {
		t.Fatal("half a pair is in use")
	}
	r.usesCurrent()
	// A second, different failure is news.
	r.replace(r.cfg.Key, key[:40])
	r.waitLog("no private key")
	r.replace(r.cfg.Key, key)
	r.wait(changed)
	r.usesCurrent()
	if got := r.logs.count("changed identity cannot be used"); got != 2 {
		t.Errorf("logged %d times, want twice: %s", got, r.logs)
	}
}

func TestBadChangesLeaveTheOldIdentity(t *testing.T) {
	other := mustCA(t, testTD)
	for _, tc := range []struct {
		name  string
		spoil func(r *rotation)
		log   string
	}{
		{"key removed", func(r *rotation) { os.Remove(r.cfg.Key) }, "cannot be read"},
		{"certificate emptied", func(r *rotation) { r.write(r.cfg.Cert, nil) }, "holds no certificate"},
		{"roots cut short", func(r *rotation) { r.write(r.cfg.Roots, r.ca.PEM()[:100]) }, "holds no certificate"},
		{"key opened to others", func(r *rotation) { os.Chmod(r.cfg.Key, 0o644) }, "chmod 600"},
		{"expired certificate", func(r *rotation) {
			cert, key := pemOf(r.t, first(leaf(r.t, r.ca, func(s *leafSpec) { s.template.NotAfter = time.Now().Add(-time.Hour) })))
			r.write(r.cfg.Key, key)
			r.write(r.cfg.Cert, cert)
		}, "expired at"},
		{"roots that are no CA", func(r *rotation) {
			cert, _ := r.issue()
			r.write(r.cfg.Roots, slices.Concat(other.PEM(), cert))
		}, "is not a CA"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRotation(t)
			before := r.serial()
			tc.spoil(r)
			r.waitLog(tc.log)
			if r.serial().Cmp(before) != 0 {
				t.Error("the old identity is gone")
			}
			r.usesCurrent()
			if err := r.src.Reload(); err == nil {
				t.Error("Reload of the spoilt files = nil error")
			}
		})
	}
}

// New roots hold for the next handshake, in both roles, without a restart.
func TestRootsRotate(t *testing.T) {
	r := newRotation(t)
	next := mustCA(t, testTD)
	stranger := fixedSource(t, next, "spiffe://cluster.local/ns/default/sa/next")
	trusting := *stranger.Current() // the stranger trusts us already
	trusting.Roots = r.peer.Current().Roots
	stranger = Fixed(&trusting)
	refused := handshake(t, r.server, stranger.ClientTLS(nil))
	if refused.serverErr == nil {
		t.Fatal("a client of an unknown CA was let in")
	}
	changed := r.src.Changed()
	r.write(r.cfg.Roots, slices.Concat(r.ca.PEM(), next.PEM()))
	r.wait(changed)
	for name, p := range map[string]pair{
		"as server": handshake(t, r.server, stranger.ClientTLS(nil)),
		"as client": handshake(t, stranger.ServerTLS(nil), r.client),
	} {
		if p.clientErr != nil || p.serverErr != nil {
			t.Errorf("%s, after the new root: client %v, server %v", name, p.clientErr, p.serverErr)
		}
	}
	changed = r.src.Changed()
	r.write(r.cfg.Roots, r.ca.PEM())
	r.wait(changed)
	if p := handshake(t, r.server, stranger.ClientTLS(nil)); p.serverErr == nil {
		t.Error("a client of a CA that was removed was let in")
	}
}

// Kubernetes mounts a secret as links into a folder that is exchanged in one step.
func TestKubernetesSecretSwap(t *testing.T) {
	r := &rotation{t: t, ca: mustCA(t, testTD)}
	dir := t.TempDir()
	version := func(name string) string {
		path := filepath.Join(dir, name)
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		identityFiles(t, path, r.ca, webText)
		return name
	}
	link := func(to, from string) {
		if err := os.Symlink(to, filepath.Join(dir, from)); err != nil {
			t.Fatal(err)
		}
	}
	link(version("..2026_01"), "..data")
	link(filepath.Join("..data", "tls.crt"), "tls.crt")
	link(filepath.Join("..data", "tls.key"), "tls.key")
	link(filepath.Join("..data", "roots.pem"), "ca.crt")
	r.cfg = Config{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key"), Roots: filepath.Join(dir, "ca.crt"), Poll: minPoll}
	r.open()
	r.peer = fixedSource(t, r.ca, "spiffe://cluster.local/ns/default/sa/gw")
	old, _ := r.connect()
	before := r.serial()
	changed := r.src.Changed()
	link(version("..2026_02"), "..data_tmp")
	if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "..2026_01")); err != nil {
		t.Fatal(err)
	}
	r.wait(changed)
	if r.serial().Cmp(before) == 0 || r.logs.count("level=WARN") != 0 {
		t.Errorf("after the swap: certificate %x, log %s", r.serial(), r.logs)
	}
	r.usesCurrent()
	old.echo(t)
}

// A write that changes neither size nor inode, within one step of the file system's clock, is noticed by the content.
func TestChangeWithinOneClockStep(t *testing.T) {
	r := newRotation(t)
	certA, keyA := r.issue()
	changed := r.src.Changed()
	r.write(r.cfg.Cert, certA)
	r.write(r.cfg.Key, keyA)
	r.wait(changed)
	mtime := time.Now().Add(time.Minute) // a time that never becomes old during the test
	certB, keyB := r.issue()
	changed = r.src.Changed()
	for path, data := range map[string][]byte{r.cfg.Cert: certB, r.cfg.Key: keyB} {
		r.write(path, data)
		if err := os.Chtimes(path, mtime, mtime); err != nil {
			t.Fatal(err)
		}
	}
	r.wait(changed)
	certC, keyC := r.issue()
	changed = r.src.Changed()
	for path, data := range map[string][]byte{r.cfg.Cert: certC, r.cfg.Key: keyC} {
		r.write(path, data)
		if err := os.Chtimes(path, mtime, mtime); err != nil {
			t.Fatal(err)
		}
	}
	r.wait(changed)
	r.usesCurrent()
}

func TestReloadWithoutPolling(t *testing.T) {
	r := &rotation{t: t, ca: mustCA(t, testTD)}
	r.cfg = identityFiles(t, t.TempDir(), r.ca, webText)
	r.cfg.Poll = -1
	r.open()
	before := r.src.Current()
	if err := r.src.Reload(); err != nil || r.src.Current() != before {
		t.Errorf("Reload of unchanged files: %v, a new material %v", err, r.src.Current() != before)
	}
	cert, key := r.issue()
	r.write(r.cfg.Cert, cert)
	if err := r.src.Reload(); !slices.Equal(reasons(err), []string{"key mismatch"}) || r.src.Current() != before {
		t.Errorf("Reload of half a pair: %v", err)
	}
	changed := r.src.Changed()
	r.write(r.cfg.Key, key)
	if err := r.src.Reload(); err != nil || r.src.Current() == before {
		t.Errorf("Reload of a new pair: %v", err)
	}
	r.wait(changed)
}

func TestIdentityMayChangeItsName(t *testing.T) {
	r := newRotation(t)
	changed := r.src.Changed()
	cert, key, err := r.ca.Issue(mustID(t, "spiffe://cluster.local/ns/other/sa/web"), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	r.write(r.cfg.Key, key)
	r.write(r.cfg.Cert, cert)
	r.wait(changed)
	if r.src.ID().Namespace() != "other" || r.logs.count("another name") != 1 {
		t.Errorf("ID = %s, log %s", r.src.ID(), r.logs)
	}
}

func TestCloseTwiceAndAfterwards(t *testing.T) {
	r := newRotation(t)
	var wg sync.WaitGroup
	for range 4 {
		// Ends when Close returns, for which wg.Wait waits.
		wg.Go(func() {
			if err := r.src.Close(); err != nil {
				t.Errorf("Close = %v", err)
			}
		})
	}
	wg.Wait()
	r.usesCurrent()
	fixed := r.peer
	if err := fixed.Reload(); err != nil {
		t.Errorf("Reload of a fixed Source = %v", err)
	}
	if err := fixed.Close(); err != nil || fixed.ID() == (spiffe.ID{}) {
		t.Errorf("Close of a fixed Source = %v", err)
	}
	select {
	case <-fixed.Changed():
		t.Error("a fixed Source has changed")
	default:
	}
}

// Handshakes while the material changes all succeed: none sees half of a change. Run with -race.
func TestHandshakesDuringRotation(t *testing.T) {
	r := newRotation(t)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	// Ends when stop is closed; wg.Wait waits for it.
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			p := handshake(t, r.server, r.peer.ClientTLS(Exactly(webID(t))))
			if p.clientErr != nil || p.serverErr != nil {
				t.Errorf("handshake during rotation: client %v, server %v", p.clientErr, p.serverErr)
				return
			}
		}
	})
	for range 10 {
		cert, key := r.issue()
		changed := r.src.Changed()
		if err := WriteIdentity(r.cfg.Cert, r.cfg.Key, cert, key); err != nil {
			t.Error(err)
			break
		}
		r.wait(changed)
	}
	close(stop)
	wg.Wait()
}

// In synthetic time: an identity from files that nobody renews is announced before it ends, and its end is.
func TestEndIsLoggedOnce(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		cfg := identityFiles(t, dir, mustCA(t, testTD), webText)
		cfg.Poll = time.Minute
		l, log := newLogs()
		src, err := OpenFiles(cfg, log)
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		for _, step := range []struct {
			after       time.Duration
			soon, ended int
		}{{30 * time.Minute, 0, 0}, {25 * time.Minute, 1, 0}, {4 * time.Minute, 1, 0}, {10 * time.Minute, 1, 1}, {time.Hour, 1, 1}} {
			time.Sleep(step.after)
			synctest.Wait()
			if soon, ended := l.count("expires soon"), l.count("has expired"); soon != step.soon || ended != step.ended {
				t.Fatalf("after %v more: announced %d, ended %d, want %d and %d; log %s", step.after, soon, ended, step.soon, step.ended, l)
			}
		}
		if got := l.count("cannot be used"); got > 1 {
			t.Errorf("the expired file was reported %d times, want at most once", got)
		}
	})
}

package pki

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"culvert/pki/spiffe"
)

// openStateEnv names the folder for a test binary that is started as another gateway.
const openStateEnv = "CULVERT_TEST_OPEN_STATE"

// openStateProcess opens the folder as a gateway does and prints what it got.
func openStateProcess(dir string) int {
	src, err := OpenState(dir, "other", slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer src.Close()
	fmt.Printf("%x\n", src.Current().digest)
	return 0
}

func openState(t *testing.T, dir, host string) (*Source, *logs) {
	t.Helper()
	l, log := newLogs()
	src, err := OpenState(dir, host, log)
	if err != nil {
		t.Fatalf("OpenState = %v", err)
	}
	t.Cleanup(func() { src.Close() })
	return src, l
}

func TestOpenStateFirstStart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "var", "culvert")
	src, l := openState(t, dir, "Node_1.Example.ORG")
	m := src.Current()
	if want := "spiffe://cluster.local/ns/default/sa/node-1.example.org"; m.ID.String() != want {
		t.Errorf("ID = %s, want %s", m.ID, want)
	}
	if life := m.NotAfter.Sub(m.NotBefore); life < time.Hour || life > 2*time.Hour || len(m.warnings) > 0 {
		t.Errorf("valid for %v, warnings %q", life, m.warnings)
	}
	if runtime.GOOS != "windows" {
		for name, want := range map[string]os.FileMode{"": os.ModeDir | 0o700, "ca.pem": 0o600, "ca.key": 0o600, "identity.pem": 0o600, "identity.key": 0o600} {
			if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != want {
				t.Errorf("%q has mode %v, %v, want %v", name, info.Mode(), err, want)
			}
		}
	}
	if l.count("level=WARN") != 0 || l.count("CA made") != 1 || l.count("identity made") != 1 {
		t.Errorf("log %s", l)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 4 && runtime.GOOS == "linux" {
		t.Errorf("the folder holds %v, %v, want four files", names, err)
	}
	again, l := openState(t, dir, "node-2")
	if again.Current().digest != m.digest || l.String() != "" {
		t.Errorf("the second start has another identity, %s; log %s", again.ID(), l)
	}
	if p := handshake(t, src.ServerTLS(SameNamespace(src.ID)), again.ClientTLS(SameNamespace(again.ID))); p.clientErr != nil || p.serverErr != nil {
		t.Errorf("handshake: client %v, server %v", p.clientErr, p.serverErr)
	}
}

// Processes that start at once in an empty folder must agree on one CA and one identity.
func TestOpenStateProcesses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	results := make([]string, 4)
	var wg sync.WaitGroup
	for i := range results {
		// Ends with the process; wg.Wait waits for it.
		wg.Go(func() {
			cmd := exec.Command(self)
			cmd.Env = append(os.Environ(), openStateEnv+"="+dir)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("process %d: %v: %s", i, err, out)
			}
			results[i] = string(out)
		})
	}
	wg.Wait()
	src, _ := openState(t, dir, "other")
	for i, got := range results {
		if want := fmt.Sprintf("%x\n", src.Current().digest); got != want {
			t.Errorf("process %d got %q, want %q", i, got, want)
		}
	}
}

func TestOpenStateGoroutines(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	sources := make([]*Source, 8)
	var wg sync.WaitGroup
	for i := range sources {
		// Ends when the state is open; wg.Wait waits for it.
		wg.Go(func() {
			src, err := OpenState(dir, fmt.Sprintf("host%d", i), slog.New(slog.DiscardHandler))
			if err != nil {
				t.Errorf("OpenState %d: %v", i, err)
				return
			}
			sources[i] = src
			src.Close()
		})
	}
	wg.Wait()
	for i, src := range sources {
		if src != nil && src.Current().digest != sources[0].Current().digest {
			t.Errorf("OpenState %d: %s, want the identity of the others", i, src.ID())
		}
	}
}

// damage is something that happened to a state folder and what becomes of it at the next start.
type damage struct {
	name   string
	spoil  func(t *testing.T, dir string)
	id     string // afterwards
	sameCA bool
	log    string
}

func damages() []damage {
	put2 := func(t *testing.T, dir string, cert, key []byte) {
		put(t, dir, identityCertFile, cert, 0o600)
		put(t, dir, identityKeyFile, key, 0o600)
	}
	const firstID, secondID = "spiffe://cluster.local/ns/default/sa/first", "spiffe://cluster.local/ns/default/sa/second"
	return []damage{
		{"certificate without its key, after a crash", func(t *testing.T, dir string) {
			cert, _, err := first(LoadCA(dir)).Issue(mustID(t, firstID), time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			put(t, dir, identityCertFile, cert, 0o600)
		}, firstID, true, "making a new one"},
		{"key lost", func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, identityKeyFile)) },
			firstID, true, "making a new one"},
		{"both lost: the name follows the host", func(t *testing.T, dir string) {
			os.Remove(filepath.Join(dir, identityKeyFile))
			os.Remove(filepath.Join(dir, identityCertFile))
		}, secondID, true, "identity made"},
		{"expired", func(t *testing.T, dir string) {
			ca := first(LoadCA(dir))
			cert, key := pemOf(t, first(leaf(t, ca, func(s *leafSpec) { s.template.NotAfter = time.Now().Add(-time.Second) })))
			put2(t, dir, cert, key)
		}, webText, true, "expired at"},
		{"due for renewal", func(t *testing.T, dir string) {
			ca := first(LoadCA(dir))
			cert, key := pemOf(t, first(leaf(t, ca, func(s *leafSpec) { s.template.NotAfter = time.Now().Add(10 * time.Second) })))
			put2(t, dir, cert, key)
		}, webText, true, ""},
		{"key opened to others", func(t *testing.T, dir string) { os.Chmod(filepath.Join(dir, identityKeyFile), 0o644) },
			firstID, true, ""},
		{"CA certificate lost", func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, caCertFile)) },
			firstID, false, "made again from its key"},
		{"identity of another CA", func(t *testing.T, dir string) {
			cert, key, err := mustCA(t, testTD).Issue(webID(t), time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			put2(t, dir, cert, key)
		}, webText, true, "was not issued by the CA"},
		{"identity of another trust domain", func(t *testing.T, dir string) {
			cert, key, err := mustCA(t, "evil.example").Issue(mustID(t, evilText), time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			put2(t, dir, cert, key)
		}, secondID, true, "was not issued by the CA"},
	}
}

func TestOpenStateMends(t *testing.T) {
	rootSerial := func(dir string) string {
		ca, err := LoadCA(dir)
		if err != nil {
			t.Fatal(err)
		}
		return ca.cert.SerialNumber.String()
	}
	for _, tc := range damages() {
		t.Run(tc.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			src, _ := openState(t, dir, "first")
			src.Close()
			root := rootSerial(dir)
			tc.spoil(t, dir)
			src, l := openState(t, dir, "second")
			if src.ID().String() != tc.id || renewalDue(src.Current(), time.Now()) || !leadsToRoots(src.Current()) {
				t.Errorf("identity %s, want %s, good for long", src.Current(), tc.id)
			}
			if same := rootSerial(dir) == root; same != tc.sameCA {
				t.Errorf("the CA is the same: %v, want %v", same, tc.sameCA)
			}
			if l.count(tc.log) == 0 {
				t.Errorf("log %s, want %q", l, tc.log)
			}
		})
	}
}

// A leaf that was issued before ca.pem was lost leads to the certificate that is made again.
func TestRemadeCACertificateVouchesForOldLeaves(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if _, err := CreateCA(dir, "example.org"); err != nil {
		t.Fatal(err)
	}
	src, _ := openState(t, dir, "gw")
	if src.ID().TrustDomain() != "example.org" {
		t.Errorf("ID = %s, want one of the CA that was there", src.ID())
	}
	src.Close()
	if err := os.Remove(filepath.Join(dir, caCertFile)); err != nil {
		t.Fatal(err)
	}
	again, _ := openState(t, dir, "gw")
	if again.ID() != src.ID() || again.Current().NotAfter != src.Current().NotAfter {
		t.Errorf("identity %s, want the old one, %s", again.Current(), src.Current())
	}
	if p := handshake(t, again.ServerTLS(nil), src.ClientTLS(nil)); p.clientErr != nil || p.serverErr != nil {
		t.Errorf("handshake across the loss: client %v, server %v", p.clientErr, p.serverErr)
	}
}

func TestOpenStateRefuses(t *testing.T) {
	if runtime.GOOS == "windows" {
		return // the cases are about modes
	}
	for _, tc := range []struct {
		name  string
		spoil func(t *testing.T, dir string)
		want  string // "field reason"
	}{
		{"CA key opened to others", func(t *testing.T, dir string) { os.Chmod(filepath.Join(dir, caKeyFile), 0o640) }, "ca.key open-key"},
		{"CA key damaged", func(t *testing.T, dir string) { put(t, dir, caKeyFile, []byte("x"), 0o600) }, "ca.key bad-format"},
		{"CA key damaged and certificate lost", func(t *testing.T, dir string) {
			put(t, dir, caKeyFile, []byte("x"), 0o600)
			os.Remove(filepath.Join(dir, caCertFile))
		}, "ca.key bad-format"},
		{"CA certificate of another", func(t *testing.T, dir string) { put(t, dir, caCertFile, mustCA(t, testTD).PEM(), 0o600) }, "ca.key mismatch"},
		{"folder open to the group", func(t *testing.T, dir string) { os.Chmod(dir, 0o770) }, "state open-key"},
		{"folder open to all", func(t *testing.T, dir string) { os.Chmod(dir, 0o777) }, "state open-key"},
		{"joined, identity of another CA", func(t *testing.T, dir string) {
			os.Remove(filepath.Join(dir, caKeyFile))
			put(t, dir, caCertFile, mustCA(t, testTD).PEM(), 0o600)
		}, "cert untrusted"},
		{"joined, identity lost", func(t *testing.T, dir string) {
			os.Remove(filepath.Join(dir, caKeyFile))
			os.Remove(filepath.Join(dir, identityKeyFile))
		}, "key unreadable"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			src, _ := openState(t, dir, "gw")
			src.Close()
			tc.spoil(t, dir)
			_, err := OpenState(dir, "gw", slog.New(slog.DiscardHandler))
			if !slices.Contains(reasons(err), tc.want) {
				t.Errorf("OpenState = %v, want %q", err, tc.want)
			}
		})
	}
	for name, dir := range map[string]string{"no name": "", "a file": put(t, t.TempDir(), "f", nil, 0o600), "below a file": put(t, t.TempDir(), "f", nil, 0o600) + "/x"} {
		t.Run(name, func(t *testing.T) {
			if _, err := OpenState(dir, "gw", slog.New(slog.DiscardHandler)); len(reasons(err)) != 1 || !strings.HasPrefix(reasons(err)[0], "state ") {
				t.Errorf("OpenState(%q) = %v, want a *ConfigError", dir, err)
			}
		})
	}
}

// A host that joined the CA of another has no CA key: it uses and follows what it was given.
func TestOpenStateJoined(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	src, _ := openState(t, dir, "gw")
	src.Close()
	ca := first(LoadCA(dir))
	if err := os.Remove(filepath.Join(dir, caKeyFile)); err != nil {
		t.Fatal(err)
	}
	joined, l := openState(t, dir, "else")
	if joined.ID() != src.ID() || joined.renew != nil || l.String() != "" {
		t.Errorf("identity %s, renewing %v, log %s", joined.ID(), joined.renew != nil, l)
	}
	cert, key, err := ca.Issue(src.ID(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	changed := joined.Changed()
	if err := WriteIdentity(filepath.Join(dir, identityCertFile), filepath.Join(dir, identityKeyFile), cert, key); err != nil {
		t.Fatal(err)
	}
	if err := joined.Reload(); err != nil {
		t.Fatal(err)
	}
	<-changed
}

// In synthetic time: an identity is renewed after half of its life, and some, keeps its name and its key, and
// a connection that was there before is not dropped.
func TestIdentityIsRenewed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	synctest.Test(t, func(t *testing.T) {
		l, log := newLogs()
		st := newState(dir, "gw", log)
		st.cfg.Poll = time.Hour
		src, err := st.open()
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		server, client := src.ServerTLS(nil), src.ClientTLS(nil)
		old := handshakeInMemory(t, server, client)
		for range 3 {
			first := src.Current()
			changed := src.Changed()
			<-changed
			next := src.Current()
			age := time.Since(first.NotBefore)
			if life := first.NotAfter.Sub(first.NotBefore); age < life/2 || age > life*6/10+time.Minute {
				t.Errorf("renewed at the age of %v of %v", age, life)
			}
			if next.ID != first.ID || next.chain[0].SerialNumber.Cmp(first.chain[0].SerialNumber) == 0 ||
				!bytes.Equal(next.chain[0].RawSubjectPublicKeyInfo, first.chain[0].RawSubjectPublicKeyInfo) {
				t.Errorf("renewed %s to %s", first, next)
			}
			handshakeInMemory(t, server, client)
			old.echo(t)
		}
		if l.count("identity renewed") != 3 || l.count("level=WARN")+l.count("level=ERROR") != 0 {
			t.Errorf("log %s", l)
		}
	})
}

// When the renewal fails the old identity goes on, the log says so at intervals, and the next try may succeed.
func TestFailedRenewalIsRetried(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	synctest.Test(t, func(t *testing.T) {
		l, log := newLogs()
		ca, err := CreateCA(dir, testTD)
		if err != nil {
			t.Fatal(err)
		}
		cert, key, err := ca.Issue(webID(t), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		st := newState(dir, "gw", log)
		st.cfg.Poll = 20 * time.Second
		if err := WriteIdentity(st.cfg.Cert, st.cfg.Key, cert, key); err != nil {
			t.Fatal(err)
		}
		src, err := st.open()
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		changed := src.Changed()
		if err := os.Chmod(filepath.Join(dir, caKeyFile), 0o644); err != nil {
			t.Fatal(err)
		}
		life := src.Current().NotAfter.Sub(src.Current().NotBefore)
		time.Sleep(time.Until(src.Current().NotBefore.Add(life*2/3 + 10*time.Minute)))
		synctest.Wait()
		if got := l.count("identity cannot be renewed"); got < 9 || got > 40 {
			t.Errorf("logged %d times, want soon and then about once a minute", got)
		}
		if err := os.Chmod(filepath.Join(dir, caKeyFile), 0o600); err != nil {
			t.Fatal(err)
		}
		<-changed
	})
}

// A folder that is emptied or removed under a running gateway is not filled with another CA.
func TestRemovedStateIsNotMadeAnew(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	src, l := openState(t, dir, "gw")
	before := src.Current()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	src.reloadIfChanged()
	if err := src.renew(t.Context()); err == nil {
		t.Error("a renewal without a CA = nil error")
	}
	if err := src.Reload(); err == nil || src.Current() != before || exists(dir) {
		t.Errorf("Reload = %v, the folder exists %v; want an error and nothing made", err, exists(dir))
	}
	if l.count("cannot be used") != 1 {
		t.Errorf("log %s, want one warning", l)
	}
}

// handshakeInMemory connects over a pipe, for synthetic time.
func handshakeInMemory(t *testing.T, serverCfg, clientCfg *tls.Config) pair {
	t.Helper()
	a, b := net.Pipe()
	p := pair{client: tls.Client(a, clientCfg), server: tls.Server(b, serverCfg)}
	done := make(chan struct{})
	// Ends with the handshake, which the receive below waits for.
	go func() {
		defer close(done)
		p.serverErr = p.server.Handshake()
	}()
	p.clientErr = p.client.Handshake()
	<-done
	if p.clientErr != nil || p.serverErr != nil {
		t.Fatalf("handshake: client %v, server %v", p.clientErr, p.serverErr)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return p
}

func TestHostLabel(t *testing.T) {
	for in, want := range map[string]string{
		"node-1": "node-1", "Node_1.Example.ORG": "node-1.example.org", "": "gateway", "...": "gateway", "-": "gateway", "ü": "gateway",
		"a/b": "a-b", "../../etc": "etc", "a..b": "a.b", "a%2fb": "a-2fb", "a b\x00c\n": "a-b-c", "büro": "b-ro", "\xff\xfe": "gateway",
		"a.": "a", ".a": "a", "a.-b": "a.b", "*": "gateway", strings.Repeat("x", 300): strings.Repeat("x", 63),
		strings.Repeat("x", 62) + ".y": strings.Repeat("x", 62),
	} {
		t.Run(fmt.Sprintf("%.20q", in), func(t *testing.T) {
			if got := hostLabel(in); got != want {
				t.Errorf("hostLabel(%q) = %q, want %q", in, got, want)
			}
		})
	}
}

func FuzzHostLabel(f *testing.F) {
	f.Add("Node_1.Example.ORG")
	f.Add("../..")
	f.Fuzz(func(t *testing.T, host string) {
		id, err := spiffe.New(stateTrustDomain, stateNamespace, hostLabel(host))
		if err != nil || len(id.ServiceAccount()) > 63 || id.ServiceAccount() == "" {
			t.Fatalf("hostLabel(%q) = %q: %v", host, hostLabel(host), err)
		}
	})
}

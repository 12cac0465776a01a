package pki

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// identityFiles writes an identity of ca to dir and returns its Config, which polls often.
func identityFiles(t testing.TB, dir string, ca *CA, id string) Config {
	t.Helper()
	cert, key, err := ca.Issue(mustID(t, id), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return Config{
		Cert:  put(t, dir, "tls.crt", cert, 0o644),
		Key:   put(t, dir, "tls.key", key, 0o600),
		Roots: put(t, dir, "roots.pem", ca.PEM(), 0o644),
		Poll:  minPoll,
	}
}

func TestConfigValidate(t *testing.T) {
	for _, tc := range []struct {
		name string
		cfg  Config
		want []string
	}{
		{"empty", Config{}, nil},
		{"all three", Config{Cert: "a", Key: "b", Roots: "c"}, nil},
		{"only cert", Config{Cert: "a"}, []string{"key missing", "roots missing"}},
		{"only roots", Config{Roots: "c"}, []string{"cert missing", "key missing"}},
		{"no polling", Config{Poll: -1}, nil},
		{"a Workload API without an address", Config{WorkloadAPI: "agent.sock"}, []string{"workloadAPI bad-value"}},
		{"two sources", Config{SelfMade: true, WorkloadAPI: "unix:///agent.sock"}, []string{" bad-value"}},
		{"too often", Config{Key: "b", Poll: time.Millisecond}, []string{"cert missing", "roots missing", "poll bad-value"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := reasons(tc.cfg.Validate()); !slices.Equal(got, tc.want) {
				t.Errorf("Validate = %q, want %q", got, tc.want)
			}
		})
	}
}

// Files that only a start would read are told of before it.
func TestLoadOfACA(t *testing.T) {
	_, log := newLogs()
	_, err := Load(Config{CA: CAConfig{Address: "ca.example:15012", Roots: "none.pem", TokenFile: "none"}}, log)
	if got := reasons(err); !slices.Equal(got, []string{"ca.roots unreadable", "ca.tokenFile unreadable"}) {
		t.Errorf("Load = %q", got)
	}
}

func TestLoadReportsEverything(t *testing.T) {
	ca := mustCA(t, testTD)
	dir := t.TempDir()
	good := identityFiles(t, dir, ca, webText)
	keyText, err := os.ReadFile(good.Key)
	if err != nil {
		t.Fatal(err)
	}
	openKey := put(t, dir, "open.key", keyText, 0o640)
	big := put(t, dir, "big", bytes.Repeat([]byte("x"), maxFileBytes+1), 0o600)
	for _, tc := range []struct {
		name string
		cfg  Config
		want []string
		text []string // words that must be in the message
	}{
		{"nothing there", Config{Cert: dir + "/a", Key: dir + "/b", Roots: dir + "/c"},
			[]string{"cert unreadable", "key unreadable", "roots unreadable"}, []string{dir + "/a", "gateway cert"}},
		{"a folder", Config{Cert: dir, Key: good.Key, Roots: good.Roots}, []string{"cert unreadable"}, []string{"regular file"}},
		{"a device", Config{Cert: os.DevNull, Key: good.Key, Roots: good.Roots}, []string{"cert unreadable"}, []string{"regular file"}},
		{"too big", Config{Cert: big, Key: good.Key, Roots: good.Roots}, []string{"cert unreadable"}, []string{"bigger"}},
		{"open key", Config{Cert: good.Cert, Key: openKey, Roots: good.Roots}, []string{"key open-key"}, []string{"chmod 600 " + openKey, "0640"}},
		{"one missing, others wrong", Config{Cert: good.Roots, Key: openKey, Roots: dir + "/c"},
			[]string{"key open-key", "roots unreadable", "cert not-leaf", "cert no-identity", "key mismatch"}, []string{"chmod 600", dir + "/c"}},
		{"key missing, cert wrong", Config{Cert: good.Roots, Key: dir + "/b", Roots: good.Cert},
			[]string{"key unreadable", "cert not-leaf", "cert no-identity", "roots no-authority"}, nil},
		{"a setting missing", Config{Cert: good.Cert, Key: good.Key}, []string{"roots missing"}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, log := newLogs()
			m, err := Load(tc.cfg, log)
			got, want := reasons(err), slices.Clone(tc.want)
			if runtime.GOOS == "windows" {
				want = slices.DeleteFunc(want, func(s string) bool { return s == "key open-key" })
			}
			if slices.Sort(got); m != nil && len(want) > 0 {
				t.Fatalf("Load = %v, want an error", m)
			}
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Fatalf("Load: %q (%v), want %q", got, err, want)
			}
			for _, text := range tc.text {
				if err != nil && !strings.Contains(err.Error(), text) {
					t.Errorf("Load: %q lacks %q", err, text)
				}
			}
			if src, err := OpenFiles(tc.cfg, log); err == nil {
				src.Close()
				t.Error("OpenFiles took what Load refuses")
			}
		})
	}
	_, log := newLogs()
	if _, err := Load(Config{Cert: dir + "/a", Key: good.Key, Roots: good.Roots}, log); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load of a missing file: %v, want it to wrap fs.ErrNotExist", err)
	}
	if _, err := OpenFiles(Config{}, log); err == nil {
		t.Error("OpenFiles of nothing = nil error")
	}
}

func TestKeyModes(t *testing.T) {
	if runtime.GOOS == "windows" {
		return // no such bits there; see checkMode
	}
	ca := mustCA(t, testTD)
	for mode, ok := range map[os.FileMode]bool{
		0o600: true, 0o400: true, 0o700: true, 0o611: true,
		0o640: false, 0o604: false, 0o620: false, 0o602: false, 0o644: false, 0o666: false, 0o440: false,
	} {
		t.Run(mode.String(), func(t *testing.T) {
			cfg := identityFiles(t, t.TempDir(), ca, webText)
			if err := os.Chmod(cfg.Key, mode); err != nil {
				t.Fatal(err)
			}
			_, log := newLogs()
			_, err := Load(cfg, log)
			if got := reasons(err); ok && err != nil || !ok && !slices.Equal(got, []string{"key open-key"}) {
				t.Errorf("Load with key mode %v: %v, want ok %v", mode, err, ok)
			}
		})
	}
}

func TestStampsNoticeChanges(t *testing.T) {
	dir := t.TempDir()
	a, b := put(t, dir, "a", []byte("1"), 0o600), put(t, dir, "b", []byte("1"), 0o600)
	past := time.Now().Add(-time.Hour)
	if err := errors.Join(os.Chtimes(a, past, past), os.Chtimes(b, past, past)); err != nil {
		t.Fatal(err)
	}
	paths := []string{a, filepath.Join(dir, "missing")}
	before := statAll(paths)
	if !before.same(statAll(paths)) || before.fresh(time.Now()) {
		t.Error("an unchanged old file looks changed or fresh")
	}
	// Same size and time, another inode.
	if err := os.Rename(b, a); err != nil {
		t.Fatal(err)
	}
	if before.same(statAll(paths)) {
		t.Error("another file under the same name looks unchanged")
	}
	before = statAll(paths)
	put(t, dir, "missing", nil, 0o600)
	if now := statAll(paths); before.same(now) || !now.fresh(time.Now()) {
		t.Error("a file that appeared looks unchanged or old")
	}
	if before.same(nil) {
		t.Error("different sets look the same")
	}
}

func TestWriteIdentityReplaces(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "c"), put(t, dir, "k", []byte("old"), 0o644)
	if err := WriteIdentity(cert, key, []byte("C"), []byte("K")); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{cert: "C", key: "K"} {
		data, err := os.ReadFile(path)
		info, statErr := os.Stat(path)
		if err != nil || statErr != nil || string(data) != want {
			t.Fatalf("%s holds %q, %v, %v", path, data, err, statErr)
		}
		if runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", path, info.Mode())
		}
	}
	if err := WriteIdentity(cert, filepath.Join(dir, "no", "k"), []byte("C2"), nil); err == nil {
		t.Error("WriteIdentity into a missing folder = nil error")
	}
	// A folder in the way of the rename: the temporary file must not stay.
	blocked := filepath.Join(dir, "d")
	if err := os.MkdirAll(filepath.Join(blocked, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteIdentity(cert, blocked, nil, []byte("K")); err == nil {
		t.Error("WriteIdentity over a folder = nil error")
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 3 {
		t.Errorf("the folder holds %v, %v, want c, d and k", names, err)
	}
}

package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// signer has a key, and a folder with files that are signed with it.
type signer struct {
	t   *testing.T
	dir string
}

func newSigner(t *testing.T, dir string) *signer {
	t.Helper()
	s := &signer{t, dir}
	s.run(exitOK, "key", "--out", s.path("config"))
	return s
}

func (s *signer) path(name string) string { return filepath.Join(s.dir, name) }

// run runs `gateway config`.
func (s *signer) run(code int, args ...string) string {
	s.t.Helper()
	var out bytes.Buffer
	if got := execute(s.t.Context(), append([]string{"config"}, args...), &out, &out); got != code {
		s.t.Fatalf("gateway config %q = %d, want %d:\n%s", args, got, code, out.String())
	}
	return out.String()
}

func (s *signer) write(name, text string) string {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return s.path(name)
}

// config writes a configuration with a policy, and signs both.
func (s *signer) config() string {
	s.t.Helper()
	s.write("policy.yaml", "rules:\n- {name: all}\n")
	file := s.write("gw.yaml", "listeners: [{name: mesh, kind: hbone, address: \"127.0.0.1:0\"}]\nroutes: [{listeners: [mesh], destinations: [local]}]\npolicy: {files: [policy.yaml]}\n")
	s.run(exitOK, "sign", "--key", s.path("config.key"), "-c", file)
	return file
}

// check runs `gateway check` with the key and cuts the folder off what it prints.
func (s *signer) check(code int) string {
	s.t.Helper()
	var out bytes.Buffer
	if got := execute(s.t.Context(), []string{"check", "-c", s.path("gw.yaml"), "--config-key", s.path("config.pub")}, &out, &out); got != code {
		s.t.Errorf("gateway check = %d, want %d: %s", got, code, out.String())
	}
	return strings.ReplaceAll(out.String(), s.dir+"/", "")
}

func (s *signer) read(name string) []byte {
	s.t.Helper()
	return must(os.ReadFile(s.path(name)))
}

func (s *signer) key() ed25519.PrivateKey {
	s.t.Helper()
	return must(readSigningKey(s.path("config.key")))
}

// What is not exactly what was signed with the key is refused, of the configuration as of its policies.
func TestSignedConfigurations(t *testing.T) {
	sum := func(text []byte) (s [sha256.Size]byte) { return sha256.Sum256(text) }
	for _, file := range []string{"gw.yaml", "policy.yaml"} {
		for _, tt := range []struct {
			name  string
			spoil func(s *signer)
			want  string
		}{
			{"unsigned", func(s *signer) { _ = os.Remove(s.path(file + ".sig")) }, "is missing, and --config-key asks for it; sign the file with"},
			{"altered by one bit", func(s *signer) {
				text := s.read(file)
				text[len(text)-1] ^= 1
				s.write(file, string(text))
			}, errSignatureSum.Error()},
			{"with a byte more", func(s *signer) { s.write(file, string(s.read(file))+"\n") }, errSignatureSum.Error()},
			{"empty", func(s *signer) { s.write(file, "") }, errSignatureSum.Error()},
			{"signature of another file", func(s *signer) {
				other := map[string]string{"gw.yaml": "policy.yaml", "policy.yaml": "gw.yaml"}[file]
				s.write(file, string(s.read(other)))
				s.write(file+".sig", string(s.read(other+".sig")))
			}, "is of another file"},
			{"another key", func(s *signer) {
				s.run(exitOK, "key", "--out", s.path("other"))
				s.run(exitOK, "sign", "--key", s.path("other.key"), s.path(file))
			}, errSignatureKey.Error()},
			{"altered name", func(s *signer) { s.change(file, "file ", "file \"\" ") }, errSignatureKey.Error()},
			{"altered time", func(s *signer) { s.change(file, "signed 2", "signed 3") }, errSignatureKey.Error()},
			{"another form", func(s *signer) { s.change(file, "signature 1", "signature 2") }, errSignatureKey.Error()},
			{"truncated", func(s *signer) { s.write(file+".sig", string(s.read(file + ".sig"))[:60]) }, errSignatureForm.Error()},
			{"truncated at its end", func(s *signer) { text := s.read(file + ".sig"); s.write(file+".sig", string(text[:len(text)-3])) }, errSignatureForm.Error()},
			{"empty signature", func(s *signer) { s.write(file+".sig", "") }, errSignatureForm.Error()},
			{"huge signature", func(s *signer) { _ = os.Truncate(s.path(file+".sig"), 1<<40) }, errSignatureForm.Error()},
			{"signature without an end of line", func(s *signer) { s.write(file+".sig", strings.TrimSuffix(string(s.read(file+".sig")), "\n")) }, errSignatureForm.Error()},
			{"signature with more behind it", func(s *signer) { s.write(file+".sig", string(s.read(file+".sig"))+"x") }, errSignatureForm.Error()},
			{"signature with a line more", func(s *signer) {
				s.sign(file, fmt.Sprintf("%s\nfile %q\nsigned 2026-01-02T03:04:05Z\nsha256 %x\nx\n", signatureForm, file, sum(s.read(file))))
			}, errSignatureForm.Error()},
			{"signature in other letters", func(s *signer) {
				s.sign(file, fmt.Sprintf("%s\nfile %q\nsigned 2026-01-02T03:04:05Z\nsha256 %X\n", signatureForm, file, sum(s.read(file))))
			}, errSignatureForm.Error()},
			{"signature of something else", func(s *signer) { s.sign(file, "I owe you a beer\n") }, errSignatureForm.Error()},
			{"a folder", func(s *signer) { _ = os.Remove(s.path(file + ".sig")); _ = os.Mkdir(s.path(file+".sig"), 0o700) }, errSignatureForm.Error()},
		} {
			t.Run(file+", "+tt.name, func(t *testing.T) {
				s := newSigner(t, t.TempDir())
				s.config()
				if out := s.check(exitOK); out != "gw.yaml is right: 1 listener, 0 hops, 1 route\n" {
					t.Fatalf("a signed configuration: %s", out)
				}
				tt.spoil(s)
				if out := s.check(exitUsage); !strings.HasPrefix(out, file+": the signature "+file+".sig ") || !strings.Contains(out, tt.want) {
					t.Errorf("%s, want %s", out, tt.want)
				}
			})
		}
	}
}

// change replaces something in a signature.
func (s *signer) change(file, old, with string) {
	s.t.Helper()
	text := strings.Replace(string(s.read(file+".sig")), old, with, 1)
	if text == string(s.read(file+".sig")) {
		s.t.Fatalf("no %q in %s", old, text)
	}
	s.write(file+".sig", text)
}

// sign writes a signature of that text.
func (s *signer) sign(file, text string) {
	s.t.Helper()
	s.write(file+".sig", text+"ed25519 "+base64.StdEncoding.EncodeToString(ed25519.Sign(s.key(), []byte(text)))+"\n")
}

// Two files of one name could be exchanged for each other.
func TestSignedFilesOfOneName(t *testing.T) {
	s := newSigner(t, t.TempDir())
	for _, dir := range []string{"a", "b"} {
		if err := os.Mkdir(s.path(dir), 0o700); err != nil {
			t.Fatal(err)
		}
		s.write(dir+"/policy.yaml", "rules: []\n")
	}
	file := s.write("gw.yaml", dayConfig+"policy: {files: [a/policy.yaml, b/policy.yaml]}\n")
	s.run(exitOK, "sign", "--key", s.path("config.key"), "-c", file)
	if out := s.check(exitUsage); !strings.Contains(out, "b/policy.yaml: the signature b/policy.yaml.sig is refused: another file") {
		t.Errorf("check: %s", out)
	}
}

// A file is read once: what was verified is what is used, whatever takes its place meanwhile.
func TestSignedFilesAreReadOnce(t *testing.T) {
	s := newSigner(t, t.TempDir())
	file := s.config()
	keys := must(readConfigKeys(s.path("config.pub")))
	const evil = "listeners: [{name: evil, kind: socks5, address: \"0.0.0.0:1\", open: true}]\n"
	reads := map[string]int{}
	signed := newSignedFiles(keys, nil)
	signed.open = func(name string) ([]byte, error) {
		text, err := os.ReadFile(name)
		reads[filepath.Base(name)]++
		s.write(filepath.Base(name), evil) // as soon as it was read
		return text, err
	}
	cfg, p, f := readConfigBy(file, signed.read)
	validate(cfg, p, f)
	checkFiles(cfg, p, f, newLogging(new(bytes.Buffer), LogConfig{}).Logger)
	if err := f.err(); err != nil {
		t.Fatal(err)
	}
	if len(cfg.Listeners) != 1 || cfg.Listeners[0].Name != "mesh" || len(cfg.Policy.Rules) != 1 || reads["gw.yaml"] != 1 || reads["policy.yaml"] != 1 {
		t.Errorf("listeners %+v, rules %+v, read %v", cfg.Listeners, cfg.Policy.Rules, reads)
	}
	if _, _, f := readConfigBy(file, newSignedFiles(keys, nil).read); f.err() == nil || !f.broken {
		t.Error("what took the place of the file is taken")
	}
}

// Of a file that runs no older one is taken, nor another of the same moment; the same is, and one that was signed again.
func TestSignedFilesGrowNoOlder(t *testing.T) {
	s := newSigner(t, t.TempDir())
	key, keys := s.key(), must(readConfigKeys(s.path("config.pub")))
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	file := s.path("policy.yaml")
	put := func(text string, at time.Time) {
		s.write("policy.yaml", text)
		one := signature{file: "policy.yaml", at: at, sum: sha256.Sum256([]byte(text))}
		s.write("policy.yaml.sig", string(one.sign(key)))
	}
	var running *signedFiles
	reload := func(want error) {
		t.Helper()
		next := newSignedFiles(keys, running)
		if _, err := next.read(file); !errors.Is(err, want) {
			t.Errorf("read = %v, want %v", err, want)
		} else if err == nil {
			running = next
		}
	}
	put("old", now)
	reload(nil)
	put("new", now.Add(time.Second))
	reload(nil)
	reload(nil)
	put("old", now)
	reload(errSignatureOld)
	put("other", now.Add(time.Second))
	reload(errSignatureOld)
	running = newSignedFiles(keys, running) // a configuration without it
	put("old", now)
	reload(errSignatureOld)
	s.write("policy.yaml.sig", string((&signature{file: "policy.yaml", at: time.Now().Add(time.Hour), sum: sha256.Sum256([]byte("new"))}).sign(key)))
	s.run(exitOK, "sign", "--key", s.path("config.key"), file) // by a clock that is an hour behind
	reload(nil)
	if at := running.seen[file].at; !at.After(time.Now()) {
		t.Errorf("signed again at %v, which is before the signature that was there", at)
	}
}

func TestConfigKey(t *testing.T) {
	s := newSigner(t, t.TempDir())
	info := must(os.Stat(s.path("config.key")))
	if info.Mode().Perm() != 0o600 && runtime.GOOS != "windows" {
		t.Errorf("the key has mode %v", info.Mode())
	}
	if out := s.run(exitFailure, "key", "--out", s.path("config")); !strings.Contains(out, "is there already") {
		t.Errorf("a second time: %s", out)
	}
	s.run(exitOK, "key", "--out", s.path("next"))
	both := string(s.read("config.pub")) + string(s.read("next.pub"))
	s.write("gw.yaml", dayConfig)
	for _, by := range []string{"config", "next"} { // while one key is replaced by another
		s.run(exitOK, "sign", "--key", s.path(by+".key"), "-c", s.path("gw.yaml"))
		s.write("config.pub", both)
		s.check(exitOK)
	}

	other := must(x509.MarshalPKIXPublicKey(&must(rsa.GenerateKey(rand.Reader, 2048)).PublicKey))
	for _, tt := range []struct{ name, text, want string }{
		{"private", string(s.read("config.key")), "is a private key"},
		{"empty", "", "is no PEM file"},
		{"something behind", both + "x", "is no PEM file"},
		{"another kind", string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: other})), "has something else"},
		{"too many", strings.Repeat(both, 5), "has more than 8 keys"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s.write("config.pub", tt.text)
			if out := s.check(exitUsage); !strings.HasPrefix(out, "--config-key: config.pub "+tt.want) || strings.Contains(out, "listeners") {
				t.Errorf("%s, want %s", out, tt.want)
			}
		})
	}
}

func TestConfigSignFaults(t *testing.T) {
	s := newSigner(t, t.TempDir())
	file := s.config()
	s.write("open.key", string(s.read("config.key")))
	if err := os.Chmod(s.path("open.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.write("bad.yaml", "listners: []\n")
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"no key", []string{"-c", file}, "--key is missing"},
		{"nothing to sign", []string{"--key", s.path("config.key")}, "there is nothing to sign"},
		{"a key that others can read", []string{"--key", s.path("open.key"), file}, "chmod 600"},
		{"a public key", []string{"--key", s.path("config.pub"), file}, ""},
		{"no file", []string{"--key", s.path("config.key"), s.path("none.yaml")}, "none.yaml: cannot be read"},
		{"a configuration with a fault", []string{"--key", s.path("config.key"), "-c", s.path("bad.yaml")}, `unknown field "listners"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if out := s.run(exitUsage, append([]string{"sign"}, tt.args...)...); !strings.Contains(out, tt.want) {
				t.Errorf("%s, want %s", out, tt.want)
			}
		})
	}
	if _, err := os.Stat(s.path("bad.yaml.sig")); err == nil {
		t.Error("a configuration with a fault was signed")
	}
	var out bytes.Buffer
	for _, command := range []string{"run", "check"} { // as of a variable that is not set
		if code := execute(t.Context(), []string{command, "-c", file, "--config-key", ""}, &out, &out); code != exitUsage || !strings.Contains(out.String(), "--config-key: ") {
			t.Errorf("%s with an empty name of keys = %d, %s", command, code, out.String())
		}
		out.Reset()
	}
	if code := execute(t.Context(), []string{"run", "--hbone", "127.0.0.1:0", "--config-key", s.path("config.pub")}, &out, &out); code != exitUsage || !strings.Contains(out.String(), "--config-key: there is no -c FILE") {
		t.Errorf("run without a file = %d, %s", code, out.String())
	}
}

// A running gateway takes what is signed, refuses what is not and goes on, and says what to do.
func TestReloadOfSignedFiles(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds; make test has it")
	}
	r := newReloadable(t)
	r.signal(syscall.SIGTERM)
	if code := r.wait(); code != exitOK {
		t.Fatalf("exit code %d", code)
	}
	s := newSigner(t, r.m.dir)
	ln, adm := listenLoopback(t), listenLoopback(t)
	r.running = &running{address: ln.Addr().String(), admin: adm.Addr().String()}
	r.m.write("policy.yaml", []byte("rules:\n- {name: all}\n"))
	r.m.write("gw.yaml", []byte(r.config(r.address, r.admin, routeAll)+"policy: {files: [policy.yaml]}\n"))
	put := func(name string, text []byte) { // in one step, as signatures are
		t.Helper()
		if err := os.Rename(r.m.write("next", text), r.m.path(name)); err != nil {
			t.Fatal(err)
		}
	}
	sign := func(name string) {
		t.Helper()
		s.run(exitOK, "sign", "--key", s.path("config.key"), s.path(name))
	}
	if code, _, stderr := runGateway(t, "run", "-c", r.file, "--config-key", s.path("config.pub")); code != exitUsage || !strings.Contains(stderr, "gw.yaml.sig is missing") {
		t.Errorf("a start without a signature = %d, %s", code, stderr)
	}
	s.run(exitOK, "sign", "--key", s.path("config.key"), "-c", r.file)
	r.process = gatewayProcess(t, "run", "-c", r.file, "--config-key", s.path("config.pub")).inherit(ln, adm).start()
	r.ready()
	passes := func(want bool) {
		t.Helper()
		flow, err := dialSOCKS(t, r.address, r.target)
		if (err == nil) != want {
			t.Errorf("a new flow = %v, want that it passes: %v", err, want)
		}
		if err == nil {
			_ = flow.Close()
		}
	}
	passes(true)

	// Unsigned, it changes nothing; when it is signed, that alone makes it count.
	old, oldSignature := s.read("policy.yaml"), s.read("policy.yaml.sig")
	put("policy.yaml", []byte("rules:\n- {name: closed, action: deny}\n"))
	r.reloaded("failed")
	passes(true)
	if log := r.stderr.String(); !strings.Contains(log, "the signature ") || !strings.Contains(log, "sign it again") || !strings.Contains(log, "old configuration goes on") {
		t.Errorf("the log does not say what to do:\n%s", log)
	}
	sign("policy.yaml")
	r.reloaded("ok")
	passes(false)

	// The old one, with its old signature, does not come back, by whatever way it is put there.
	nextSignature := s.read("policy.yaml.sig")
	put("policy.yaml", old)
	r.reloaded("failed")
	put("policy.yaml.sig", oldSignature)
	r.reloaded("failed")
	r.signal(syscall.SIGHUP)
	r.reloaded("failed")
	passes(false)
	if log := r.stderr.String(); !strings.Contains(log, "is older than that of the file which runs; to go back, sign the old file again") {
		t.Errorf("the log does not say that it is older:\n%s", log)
	}
	sign("policy.yaml")
	r.reloaded("ok")
	passes(true)

	// Neither does one from between, nor a configuration that nobody has signed, nor one by a key that came meanwhile.
	put("policy.yaml.sig", nextSignature)
	r.reloaded("failed")
	sign("policy.yaml")
	r.reloaded("ok")
	put("gw.yaml", bytes.Replace(s.read("gw.yaml"), []byte("policy: "), []byte("policy: {} #"), 1))
	r.reloaded("failed")
	s.run(exitOK, "key", "--out", s.path("evil"))
	put("config.pub", s.read("evil.pub"))
	s.run(exitOK, "sign", "--key", s.path("evil.key"), s.path("gw.yaml"))
	r.reloaded("failed")
	passes(true)
}

// FuzzSignature: whatever a signature file holds, it is one that a key has made, letter by letter, or none.
func FuzzSignature(f *testing.F) {
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	one := signature{file: "gw.yaml", at: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), sum: sha256.Sum256(nil)}
	f.Add(one.text(), false)
	f.Add(one.sign(key), true)
	f.Add([]byte("culvert-signature 1\nfile \"\"\nsigned 2026-01-02T03:04:05Z\nsha256 \n"), false)
	f.Fuzz(func(t *testing.T, text []byte, whole bool) {
		if !whole { // as if our key had signed it
			text = fmt.Appendf(text, "ed25519 %s\n", base64.StdEncoding.EncodeToString(ed25519.Sign(key, text)))
		}
		s, err := parseSignature(text, []ed25519.PublicKey{public})
		if err == nil && !bytes.Equal(s.sign(key), text) {
			t.Errorf("%q is taken for %q", text, s.sign(key))
		}
	})
}

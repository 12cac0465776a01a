package sshkeys

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// testNow is the time of all tests that need none of the machine's.
func testNow() time.Time { return time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC) }

// signerOf makes an Ed25519 key that is the same for the same name.
func signerOf(t testing.TB, name string) ssh.Signer {
	t.Helper()
	seed := sha256.Sum256([]byte(name))
	signer, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(seed[:]))
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

// keyOf is the public key of signerOf.
func keyOf(t testing.TB, name string) ssh.PublicKey {
	t.Helper()
	return signerOf(t, name).PublicKey()
}

// keyText is "TYPE BASE64" of keyOf.
func keyText(t testing.TB, name string) string {
	t.Helper()
	return textOf(keyOf(t, name))
}

func textOf(key ssh.PublicKey) string {
	return strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(key)), "\n")
}

// sshKey makes an SSH key of a public key of crypto.
func sshKey(t testing.TB, pub crypto.PublicKey) ssh.PublicKey {
	t.Helper()
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newP256(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newRSA(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	t.Setenv("GODEBUG", "rsa1024min=0")
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// authorized parses lines that must be right.
func authorized(t testing.TB, lines ...string) *AuthorizedKeys {
	t.Helper()
	k, err := ParseAuthorizedKeys("keys", []byte(strings.Join(lines, "\n")))
	if err != nil {
		t.Fatalf("ParseAuthorizedKeys: %v", err)
	}
	return k
}

// known parses lines that must be right.
func known(t testing.TB, lines ...string) *KnownHosts {
	t.Helper()
	k, err := ParseKnownHosts("hosts", []byte(strings.Join(lines, "\n")))
	if err != nil {
		t.Fatalf("ParseKnownHosts: %v", err)
	}
	return k
}

// lineErrors returns the problems of a file, which must all be typed.
func lineErrors(t testing.TB, err error) (list []*LineError) {
	t.Helper()
	all := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		all = joined.Unwrap()
	}
	for _, err := range all {
		line, ok := errors.AsType[*LineError](err)
		if !ok {
			t.Fatalf("%v (%T) is no *LineError", err, err)
		}
		list = append(list, line)
	}
	return list
}

// wantRefused checks that err refuses for the reason, at the line, and says text.
func wantRefused(t testing.TB, err error, reason Reason, line int, text string) {
	t.Helper()
	refused, ok := errors.AsType[*RefusedError](err)
	if !ok {
		t.Fatalf("%v, want a *RefusedError", err)
	}
	if refused.Reason != reason || refused.Line != line || !strings.Contains(err.Error(), text) {
		t.Errorf("%v (%s, line %d), want %s, line %d, saying %q", err, refused.Reason, refused.Line, reason, line, text)
	}
}

func addr(text string) netip.Addr { return netip.MustParseAddr(text) }

// openssh runs a program of OpenSSH in a folder of its own and returns what it prints. It is part of what the suite
// installs: without it the test fails.
type openssh struct {
	t   testing.TB
	dir string
}

func newOpenSSH(t testing.TB) *openssh {
	t.Helper()
	return &openssh{t: t, dir: t.TempDir()}
}

// try runs a program and returns what it prints, and whether it ended well.
func (o *openssh) try(args ...string) (out string, ok bool) {
	o.t.Helper()
	path, err := exec.LookPath(args[0])
	if err != nil {
		o.t.Fatalf("%v; `make test` installs it", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args[1:]...)
	cmd.Dir = o.dir
	cmd.Env = []string{"HOME=" + o.dir, "TZ=UTC", "PATH=" + os.Getenv("PATH")}
	text, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		o.t.Fatal(err)
	}
	return string(text), cmd.ProcessState.Success()
}

// run runs a program that must end well.
func (o *openssh) run(args ...string) string {
	o.t.Helper()
	out, ok := o.try(args...)
	if !ok {
		o.t.Fatalf("%s: %s", strings.Join(args, " "), out)
	}
	return out
}

// keygen makes a key pair NAME, NAME.pub and returns the line of its .pub file.
func (o *openssh) keygen(name string, args ...string) string {
	o.t.Helper()
	o.run(append([]string{"ssh-keygen", "-q", "-N", "", "-C", name + "@test", "-f", name}, args...)...)
	return strings.TrimSpace(o.read(name + ".pub"))
}

func (o *openssh) read(name string) string {
	o.t.Helper()
	text, err := os.ReadFile(filepath.Join(o.dir, name))
	if err != nil {
		o.t.Fatal(err)
	}
	return string(text)
}

func (o *openssh) write(name, text string) string {
	o.t.Helper()
	path := filepath.Join(o.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		o.t.Fatal(err)
	}
	return path
}

// key reads a .pub file of a key or certificate.
func (o *openssh) key(name string) ssh.PublicKey {
	o.t.Helper()
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(o.read(name)))
	if err != nil {
		o.t.Fatal(err)
	}
	return key
}

// signer reads a private key.
func (o *openssh) signer(name string) ssh.Signer {
	o.t.Helper()
	signer, err := ssh.ParsePrivateKey([]byte(o.read(name)))
	if err != nil {
		o.t.Fatal(err)
	}
	return signer
}

// sign makes a certificate NAME-cert.pub of the key NAME with ssh-keygen -s and returns it.
func (o *openssh) sign(ca, name string, args ...string) *ssh.Certificate {
	o.t.Helper()
	o.run(append(append([]string{"ssh-keygen", "-q", "-s", ca, "-I", name}, args...), name+".pub")...)
	return o.key(name + "-cert.pub").(*ssh.Certificate)
}

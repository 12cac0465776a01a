package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	// signatureSuffix is what the name of a file is followed by in that of its signature.
	signatureSuffix = ".sig"
	// signatureForm begins a signature, so that what is signed can never be taken for something else.
	signatureForm = "culvert-signature 1"
	// maxSignatureBytes is above a signature with the longest name of a file, and keeps others out of memory.
	maxSignatureBytes = 4 << 10
	// maxConfigKeys is how many keys a file may have: one for each who signs, and those that are being replaced.
	maxConfigKeys = 8
)

// signature is a statement about one file: what it is called, what is in it and when that was said.
type signature struct {
	file string // base name
	at   time.Time
	sum  [sha256.Size]byte
}

// text is what is signed: lines of a word and a value.
func (s *signature) text() []byte {
	return fmt.Appendf(nil, "%s\nfile %s\nsigned %s\nsha256 %x\n", signatureForm, strconv.Quote(s.file), s.at.Format(time.RFC3339Nano), s.sum)
}

// sign returns the content of a signature file.
func (s *signature) sign(key ed25519.PrivateKey) []byte {
	text := s.text()
	return append(text, signatureLine(ed25519.Sign(key, text))...)
}

// signatureLine is the last line of a signature.
func signatureLine(bits []byte) []byte {
	return fmt.Appendf(nil, "ed25519 %s\n", base64.StdEncoding.EncodeToString(bits))
}

// Errors of signatures, which operators see with the file that they are about.
var (
	errSignatureForm  = errors.New("has not the form of a signature; sign the file again")
	errSignatureKey   = errors.New("is by none of the keys of --config-key, or was altered; sign the file with the right key")
	errSignatureFile  = errors.New("is of another file")
	errSignatureSum   = errors.New("is of another content: the file was changed after it was signed, or one of the two is not in place yet; sign it again if that is meant")
	errSignatureOld   = errors.New("is older than that of the file which runs; to go back, sign the old file again")
	errSignatureTwice = errors.New("is refused: another file of the configuration has the same name, and a signature tells them apart by that; rename one")
	errNotSigned      = errors.New("is missing, and --config-key asks for it; sign the file with `gateway config sign`")
)

// parseSignature reads the content of a signature file that one of keys has made. There is one way to write a signature:
// what differs from it is none.
func parseSignature(text []byte, keys []ed25519.PublicKey) (*signature, error) {
	at := bytes.LastIndex(text, []byte("\ned25519 "))
	if at < 0 || len(text) > maxSignatureBytes {
		return nil, errSignatureForm
	}
	signed := text[:at+1]
	line := text[at+1:]
	bits, err := base64.StdEncoding.DecodeString(strings.TrimSpace(strings.TrimPrefix(string(line), "ed25519 ")))
	if err != nil || len(bits) != ed25519.SignatureSize || !bytes.Equal(signatureLine(bits), line) {
		return nil, errSignatureForm
	}
	ours := false
	for _, key := range keys {
		ours = ours || ed25519.Verify(key, signed, bits)
	}
	if !ours {
		return nil, errSignatureKey
	}
	lines := strings.Split(string(signed), "\n")
	if len(lines) != 5 {
		return nil, errSignatureForm
	}
	s := new(signature)
	if s.file, err = strconv.Unquote(strings.TrimPrefix(lines[1], "file ")); err != nil {
		return nil, errSignatureForm
	}
	if s.at, err = time.Parse(time.RFC3339Nano, strings.TrimPrefix(lines[2], "signed ")); err != nil {
		return nil, errSignatureForm
	}
	sum, err := hex.DecodeString(strings.TrimPrefix(lines[3], "sha256 "))
	if err != nil || copy(s.sum[:], sum) != len(s.sum) || !bytes.Equal(s.text(), signed) {
		return nil, errSignatureForm
	}
	return s, nil
}

// fileReader returns the content of a file.
type fileReader func(file string) ([]byte, error)

// signedFiles reads the files of one configuration, each of which has to be signed. A file is read once, and what was
// verified is what is returned, so that nothing can be put in its place between check and use.
type signedFiles struct {
	keys   []ed25519.PublicKey
	open   fileReader            // reads a file as it is
	before map[string]*signature // of the files that run, and have run in this process
	seen   map[string]*signature // of those that were read
}

// newSignedFiles reads files that are signed with one of keys, and are no older than those of running, the configuration
// that runs; nil: none does.
func newSignedFiles(keys []ed25519.PublicKey, running *signedFiles) *signedFiles {
	f := &signedFiles{keys: keys, open: readBounded, before: make(map[string]*signature), seen: make(map[string]*signature)}
	if running != nil {
		maps.Copy(f.before, running.before)
		maps.Copy(f.before, running.seen)
	}
	return f
}

// read is a fileReader. Errors of the signature are *signatureErrors.
func (f *signedFiles) read(file string) ([]byte, error) {
	text, err := f.open(file)
	if err != nil {
		return nil, err
	}
	s, err := f.verify(file, text)
	if err != nil {
		return nil, &signatureError{file: file + signatureSuffix, err: err}
	}
	f.seen[file] = s
	return text, nil
}

// signatureError is why a file that has to be signed is refused.
type signatureError struct {
	file string // of the signature
	err  error
}

// Error names the signature and says what is wrong with it.
func (e *signatureError) Error() string { return fmt.Sprintf("the signature %s %v", e.file, e.err) }

// Unwrap returns the cause.
func (e *signatureError) Unwrap() error { return e.err }

// verify finds out whether text is what was signed as file.
func (f *signedFiles) verify(file string, text []byte) (*signature, error) {
	signed, err := readSignature(file + signatureSuffix)
	if err != nil {
		return nil, err
	}
	s, err := parseSignature(signed, f.keys)
	if err != nil {
		return nil, err
	}
	if s.file != filepath.Base(file) {
		return nil, fmt.Errorf("%w, %q; each file has its own", errSignatureFile, s.file)
	}
	if s.sum != sha256.Sum256(text) {
		return nil, errSignatureSum
	}
	for other := range f.seen {
		if other != file && filepath.Base(other) == s.file {
			return nil, errSignatureTwice
		}
	}
	// Of the same moment is only the same file.
	if before := f.before[file]; before != nil && (s.at.Before(before.at) || s.at.Equal(before.at) && s.sum != before.sum) {
		return nil, fmt.Errorf("%w (%s, and %s)", errSignatureOld, s.at.Format(time.RFC3339Nano), before.at.Format(time.RFC3339Nano))
	}
	return s, nil
}

// readSignature reads a signature file.
func readSignature(file string) ([]byte, error) {
	info, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, errNotSigned
	case err != nil:
		return nil, fmt.Errorf("cannot be read: %w", rootCause(err))
	case !info.Mode().IsRegular(): // before Open, which would wait for the other end of a FIFO
		return nil, errSignatureForm
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("cannot be read: %w", rootCause(err))
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxSignatureBytes+1))
	if err != nil {
		return nil, fmt.Errorf("cannot be read: %w", rootCause(err))
	}
	return text, nil
}

// readConfigKeys reads a file of public keys: PEM as `gateway config key` writes it, one or several.
func readConfigKeys(file string) (keys []ed25519.PublicKey, err error) {
	rest, err := readBounded(file)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w; name the public key that `gateway config key` has made", file, rootCause(err))
	}
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type == "PRIVATE KEY" {
			return nil, fmt.Errorf("%s is a private key, which stays where files are signed; name the public one that was made with it", file)
		}
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		public, ok := key.(ed25519.PublicKey)
		if err != nil || !ok || block.Type != "PUBLIC KEY" {
			return nil, fmt.Errorf("%s has something else than public keys of Ed25519; name the file that `gateway config key` has made", file)
		}
		if keys = append(keys, public); len(keys) > maxConfigKeys {
			return nil, fmt.Errorf("%s has more than %d keys; keep those that are in use", file, maxConfigKeys)
		}
	}
	if len(keys) == 0 || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("%s is no PEM file of public keys; name the file that `gateway config key` has made", file)
	}
	return keys, nil
}

package sshkeys

import (
	"bytes"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"golang.org/x/crypto/ssh"
)

const (
	// MaxFileBytes is the longest file that is read. Twenty thousand Ed25519 keys with options fit.
	MaxFileBytes = 4 << 20
	// MaxLines is the greatest number of lines of a file, empty ones and comments included.
	MaxLines = 20_000
	// MaxLineBytes is the longest line. sshd(8): "up to a limit of 8 kilobytes, which permits RSA keys up to 16 kilobits".
	MaxLineBytes = 8 << 10

	// minRSABits is the shortest modulus that is taken, as for certificates of TLS.
	minRSABits = 2048
	// keyTypeDSA is RFC 4253, section 6.6.
	keyTypeDSA = "ssh-dss"
	// maxProblems is how many bad lines of a file are told one by one: nobody reads more.
	maxProblems = 50
)

// load reads a file that says whom to trust, as far as MaxFileBytes. Only its owner may be able to write it, as sshd's
// StrictModes asks; Windows has no such bits.
func load(file string) ([]byte, error) {
	fail := func(reason Reason, err error, detail string) error {
		return &LineError{File: file, Reason: reason, Detail: detail, Err: err}
	}
	info, err := os.Stat(file)
	if err != nil {
		return nil, fail(Unreadable, errors.Unwrap(err), "cannot be read")
	}
	// Before Open, which would wait for the other end of a FIFO.
	if !info.Mode().IsRegular() {
		return nil, fail(Unreadable, nil, "is not a regular file ("+info.Mode().Type().String()+")")
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, fail(Unreadable, errors.Unwrap(err), "cannot be read")
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		return nil, fail(Unreadable, err, "cannot be read")
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 && runtime.GOOS != "windows" {
		return nil, fail(OpenFile, nil, fmt.Sprintf("others than its owner can write it (mode %04o); run: chmod go-w %s", mode, file))
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxFileBytes+1))
	if err != nil {
		return nil, fail(Unreadable, err, "cannot be read")
	}
	return data, nil
}

// eachLine calls parse with the number and the text of every line of data that is neither empty nor a comment, without white
// space around it. It returns the problems that parse tells and those of lines it need not see, joined.
func eachLine(file string, data []byte, parse func(n int, line string) []*problem) error {
	if len(data) > MaxFileBytes {
		return &LineError{File: file, Reason: TooBig, Detail: fmt.Sprintf("is longer than %d bytes", MaxFileBytes)}
	}
	var errs []error
	bad := 0
	n := 0
	for raw := range bytes.Lines(data) {
		if n++; n > MaxLines {
			errs = append(errs, &LineError{File: file, Line: n, Reason: TooMany, Detail: fmt.Sprintf("the file has more than %d lines", MaxLines)})
			break
		}
		problems := lineProblems(raw)
		if problems == nil {
			line := strings.Trim(string(raw), " \t\r\n")
			if line == "" || line[0] == '#' {
				continue
			}
			problems = parse(n, line)
		}
		for _, p := range problems {
			if bad++; bad <= maxProblems {
				errs = append(errs, &LineError{File: file, Line: n, Reason: p.reason, Detail: p.detail, Err: p.err})
			}
		}
	}
	if more := bad - maxProblems; more > 0 {
		errs = append(errs, &LineError{File: file, Reason: TooMany, Detail: fmt.Sprintf("and %d more problems; is it the right file?", more)})
	}
	return errors.Join(errs...)
}

// lineProblems checks the length and the bytes of a line with its end. Control characters would end lines, fields or
// C strings for other readers of the file, and a name or role with them would reach logs.
func lineProblems(raw []byte) []*problem {
	raw = bytes.TrimSuffix(bytes.TrimSuffix(raw, []byte("\n")), []byte("\r"))
	if len(raw) > MaxLineBytes {
		return []*problem{{reason: TooBig, detail: fmt.Sprintf("the line is longer than %d bytes", MaxLineBytes)}}
	}
	for i, c := range raw {
		if c < ' ' && c != '\t' || c == 0x7f {
			return []*problem{badFormat("the line holds the control character %q at byte %d; only text is allowed", rune(c), i+1)}
		}
	}
	return nil
}

// cutField returns the text before the first space or tab, and what follows after the white space.
func cutField(s string) (field, rest string) {
	i := strings.IndexAny(s, " \t")
	if i < 0 {
		return s, ""
	}
	return s[:i], strings.TrimLeft(s[i:], " \t")
}

// parseKey reads "TYPE BASE64 [COMMENT]", what ssh-keygen writes to a .pub file. It does not judge the key's strength.
func parseKey(s string) (key ssh.PublicKey, comment string, p *problem) {
	kind, rest := cutField(s)
	text, comment := cutField(rest)
	if kind != "" && !isKeyType(kind) {
		return nil, "", badFormat("%q is not the type of a key; ssh-ed25519 is one", clip(kind))
	}
	if text == "" {
		return nil, "", badFormat("no key follows; a key is written TYPE BASE64 COMMENT, as in a .pub file of ssh-keygen")
	}
	blob, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, "", &problem{BadFormat, "what follows " + fmt.Sprintf("%q", clip(kind)) + " is not base64", err}
	}
	key, err = ssh.ParsePublicKey(blob)
	if err != nil {
		return nil, "", &problem{BadFormat, "the key cannot be read", err}
	}
	if key.Type() != kind {
		return nil, "", badFormat("the line says %q and the key is %q", clip(kind), key.Type())
	}
	return key, strings.ToValidUTF8(comment, "\uFFFD"), nil
}

// isKeyType reports whether the first field of a line is the kind of a key and not an option. No option of sshd(8)
// begins so.
func isKeyType(field string) bool {
	for _, prefix := range []string{"ssh-", "ecdsa-", "sk-"} {
		if strings.HasPrefix(field, prefix) {
			return true
		}
	}
	return false
}

// weakness says why a key is not taken, "" if it is.
func weakness(key ssh.PublicKey) string {
	switch key.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256:
		return ""
	case ssh.KeyAlgoRSA:
		public, ok := key.(ssh.CryptoPublicKey)
		if !ok {
			return "the RSA key cannot be looked into"
		}
		if pub, ok := public.CryptoPublicKey().(*rsa.PublicKey); !ok || pub.N.BitLen() < minRSABits {
			return fmt.Sprintf("the RSA key has less than %d bits; make an Ed25519 key", minRSABits)
		}
		return ""
	case keyTypeDSA:
		return "DSA keys are too short; make an Ed25519 key"
	}
	return fmt.Sprintf("keys of type %q are not taken; make an Ed25519 key", key.Type())
}

// keyBlob is the key as a map's key: its encoding of RFC 4253, section 6.6.
func keyBlob(key ssh.PublicKey) string { return string(key.Marshal()) }

// plainKey returns the key that a certificate certifies, or key itself.
func plainKey(key ssh.PublicKey) ssh.PublicKey {
	if cert, ok := key.(*ssh.Certificate); ok {
		return cert.Key
	}
	return key
}

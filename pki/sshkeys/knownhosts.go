package sshkeys

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

const (
	markerCA      = "@cert-authority"
	markerRevoked = "@revoked"
	// maxShownKeys is how many keys of a host an error names.
	maxShownKeys = 4
)

// KnownHosts is what a file in the format of known_hosts says of hosts. It is not changed after it was parsed and may
// be used concurrently.
type KnownHosts struct {
	file    string
	lines   []hostLine
	revoked map[string]int // blob of a key → its line
}

// hostLine is a line that is not revoked.
type hostLine struct {
	line     int
	ca       bool
	key      ssh.PublicKey
	blob     string
	hash     *hostHash // set: the only name, hashed
	patterns []hostPattern
}

type hostPattern struct {
	negate bool
	glob   string
}

// hostHash is a name that only who knows it recognises: HMAC-SHA1 with the salt as the key.
type hostHash struct{ salt, sum []byte }

// LoadKnownHosts reads a file as ParseKnownHosts does. It must be a regular file that only its owner can write.
func LoadKnownHosts(file string) (*KnownHosts, error) {
	data, err := load(file)
	if err != nil {
		return nil, err
	}
	return ParseKnownHosts(file, data)
}

// ParseKnownHosts reads data in the format of known_hosts (sshd(8)); file names it in errors. All problems are returned at
// once, joined, each a *LineError; there is no result then, since the line that is left out may be one that revokes.
func ParseKnownHosts(file string, data []byte) (*KnownHosts, error) {
	k := &KnownHosts{file: file, revoked: map[string]int{}}
	err := eachLine(file, data, func(n int, line string) []*problem {
		if p := k.parseLine(n, line); p != nil {
			return []*problem{p}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return k, nil
}

// parseLine reads "[MARKER] HOSTS TYPE BASE64 [COMMENT]".
func (k *KnownHosts) parseLine(n int, text string) *problem {
	l := hostLine{line: n}
	marker := ""
	if text[0] == '@' {
		if marker, text = cutField(text); marker != markerCA && marker != markerRevoked {
			return badFormat("the marker %q is none of %s and %s", clip(marker), markerCA, markerRevoked)
		}
		l.ca = marker == markerCA
	}
	hosts, text := cutField(text)
	if strings.HasPrefix(hosts, "@") {
		return badFormat("a second marker %q; only one is allowed", clip(hosts))
	}
	var p *problem
	if strings.HasPrefix(hosts, "|") {
		l.hash, p = parseHostHash(hosts)
	} else {
		l.patterns, p = parseHostPatterns(hosts)
	}
	if p != nil {
		return p
	}
	if l.key, _, p = parseKey(text); p != nil {
		return p
	}
	if marker == markerRevoked { // a weak key too can be revoked
		if blob := keyBlob(plainKey(l.key)); k.revoked[blob] == 0 {
			k.revoked[blob] = n
		}
		return nil
	}
	if _, ok := l.key.(*ssh.Certificate); ok {
		return badFormat("the line has a certificate; write its CA's key, after %s", markerCA)
	}
	if why := weakness(l.key); why != "" {
		return &problem{reason: WeakKey, detail: why}
	}
	l.blob = keyBlob(l.key)
	k.lines = append(k.lines, l)
	return nil
}

// parseHostHash reads |1|SALT|HASH, which ssh-keygen -H writes. "Only one hashed hostname may appear on a single line."
func parseHostHash(text string) (*hostHash, *problem) {
	parts := strings.Split(text, "|")
	if len(parts) != 4 || parts[1] != "1" {
		return nil, badFormat("a hashed name is |1|SALT|HASH, and the only name of its line")
	}
	var h hostHash
	var err, sumErr error
	h.salt, err = base64.StdEncoding.Strict().DecodeString(parts[2])
	h.sum, sumErr = base64.StdEncoding.Strict().DecodeString(parts[3])
	if err != nil || sumErr != nil || len(h.salt) != sha1.Size || len(h.sum) != sha1.Size {
		return nil, badFormat("salt and hash of a hashed name are base64 of %d bytes each", sha1.Size)
	}
	return &h, nil
}

// parseHostPatterns reads names separated by commas, each with wildcards or a "!" or neither.
func parseHostPatterns(text string) (list []hostPattern, p *problem) {
	for glob := range strings.SplitSeq(text, ",") {
		var h hostPattern
		h.glob, h.negate = strings.CutPrefix(glob, "!")
		if detail := hostPatternProblem(h.glob); detail != "" {
			return nil, badFormat("%s", detail)
		}
		if !strings.HasPrefix(h.glob, spiffeScheme) {
			h.glob = strings.ToLower(h.glob)
		}
		list = append(list, h)
	}
	return list, nil
}

// hostPatternProblem says why a pattern could never be meant as it is written, "" if it could.
func hostPatternProblem(glob string) string {
	switch {
	case glob == "":
		return "an empty name; names are separated by single commas"
	case strings.ContainsFunc(glob, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '!' || r == '|' || r == '"' }):
		return fmt.Sprintf("%q is no name of a host", clip(glob))
	case glob[0] == '[':
		host, port, ok := strings.Cut(glob[1:], "]:")
		if !ok || host == "" || strings.ContainsAny(host, "[]") || !isPortPattern(port) {
			return fmt.Sprintf("%q: brackets are for a port, written [HOST]:PORT", clip(glob))
		}
	case strings.HasPrefix(glob, spiffeScheme):
	case strings.ContainsAny(glob, "[]"):
		return fmt.Sprintf("%q: brackets are for a port, written [HOST]:PORT", clip(glob))
	case strings.Count(glob, ":") == 1:
		// ssh compares this text with the host's name, which holds no colon, and never finds it.
		return fmt.Sprintf("%q: a host with a port is written [HOST]:PORT", clip(glob))
	}
	return ""
}

// isPortPattern reports whether text is a port of 1 to 65535, or has wildcards for one.
func isPortPattern(text string) bool {
	if strings.ContainsAny(text, "*?") {
		return strings.Trim(text, "0123456789*?") == ""
	}
	n, err := strconv.ParseUint(text, 10, 16)
	return err == nil && n > 0 && strconv.FormatUint(n, 10) == text
}

// Check returns nil if the file says that key is one of the host's, otherwise a *RefusedError, most of all UnknownHost,
// ChangedKey and Revoked.
//
// host is the name that was asked for, or an address. With port 22 it is looked up as it is, with another port as
// [host]:port and, if no line has that, as it is; but then another key makes the host unknown and not its key changed. If
// host is empty, the address addr, which was dialled, stands for it; otherwise addr is not asked for, as addresses move from
// host to host (OpenSSH 8.5: CheckHostIP is no). A host that is a SPIFFE ID is looked up as it is, in its case and without
// port, like ssh's HostKeyAlias.
//
// A certificate must be signed by a CA that an @cert-authority line has for the host, be a host's, be valid at the time now,
// have no critical option, and have the host among its principals, by its exact name. If no line has the CA, the certified
// key is looked up as a plain one, as ssh does. A plain key must be on a line of the host without marker. A key on an
// @revoked line is refused for every host, and as a CA: it "must not ever be accepted" (sshd(8)); ssh asks for the host's
// name there.
func (k *KnownHosts) Check(host string, port uint16, addr netip.Addr, key ssh.PublicKey, now time.Time) error {
	if host == "" && addr.IsValid() {
		host = addr.String()
	}
	if host == "" || len(host) > maxNameBytes {
		return k.refuse(UnknownHost, 0, "there is no name of a host to look up")
	}
	if key == nil {
		return k.refuse(UnknownHost, 0, "%s has shown no key", clip(host))
	}
	names := lookupNames(host, port)
	if host = names[len(names)-1]; host == "" {
		return k.refuse(UnknownHost, 0, "there is no name of a host to look up")
	}
	cert, isCert := key.(*ssh.Certificate)
	if isCert && (cert.Key == nil || cert.SignatureKey == nil) {
		return k.refuse(BadSignature, 0, "the certificate of %s has no key", clip(host))
	}
	if line := k.revoked[keyBlob(plainKey(key))]; line != 0 {
		return k.refuse(Revoked, line, "the key %s of %s is revoked", fingerprint(key), clip(host))
	}
	if isCert {
		if line := k.revoked[keyBlob(cert.SignatureKey)]; line != 0 {
			return k.refuse(Revoked, line, "the CA %s of the certificate of %s is revoked", fingerprint(cert.SignatureKey), clip(host))
		}
		for _, name := range names {
			if l := k.find(name, true, keyBlob(cert.SignatureKey)); l != nil {
				rules := certificateRules{certType: ssh.HostCert, principal: host, now: now}
				if p := rules.check(cert); p != nil {
					return &RefusedError{Reason: p.reason, File: k.file, Line: l.line, Detail: clip(host) + ": " + p.detail, Err: p.err}
				}
				return nil
			}
		}
	}
	return k.checkPlain(names, plainKey(key), isCert)
}

// checkPlain looks up a key that is not certified by a CA of the host.
func (k *KnownHosts) checkPlain(names []string, key ssh.PublicKey, isCert bool) error {
	blob := keyBlob(key)
	for i, name := range names {
		if k.find(name, false, blob) != nil {
			return nil
		}
		if i > 0 {
			break // other keys of the host's port 22 say nothing of this port
		}
		if others := k.all(name, false); len(others) > 0 {
			var known []string
			for _, l := range others[:min(len(others), maxShownKeys)] {
				known = append(known, fmt.Sprintf("%s %s (line %d)", l.key.Type(), fingerprint(l.key), l.line))
			}
			return k.refuse(ChangedKey, others[0].line, "the key of %s has changed or somebody is in between: it has shown %s %s, known is %s",
				clip(name), key.Type(), fingerprint(key), strings.Join(known, ", "))
		}
	}
	return k.refuse(UnknownHost, 0, "the host %s with the key %s %s is not known: %s",
		clip(names[0]), key.Type(), fingerprint(key), k.whyUnknown(names, isCert))
}

// whyUnknown says what the file has about a host that it has no key for.
func (k *KnownHosts) whyUnknown(names []string, isCert bool) string {
	for _, name := range names {
		cas := k.all(name, true)
		switch {
		case len(cas) > 0 && isCert:
			return fmt.Sprintf("its certificate is not of the CA of line %d", cas[0].line)
		case len(cas) > 0:
			return fmt.Sprintf("it has shown no certificate, and line %d asks for one", cas[0].line)
		}
	}
	if others := k.all(names[len(names)-1], false); len(others) > 0 {
		return fmt.Sprintf("line %d has another key, for port 22; compare the fingerprint and add a line for %s", others[0].line, names[0])
	}
	return "no line has a key for it; compare the fingerprint and add one"
}

// find returns the first line for the name that has the key, nil if there is none.
func (k *KnownHosts) find(name string, ca bool, blob string) *hostLine {
	for i := range k.lines {
		if l := &k.lines[i]; l.ca == ca && l.blob == blob && l.match(name) {
			return l
		}
	}
	return nil
}

// all returns the lines for the name.
func (k *KnownHosts) all(name string, ca bool) (lines []*hostLine) {
	for i := range k.lines {
		if l := &k.lines[i]; l.ca == ca && l.match(name) {
			lines = append(lines, l)
		}
	}
	return lines
}

// match reports whether the line is for the name: no pattern with a "!" matches it, and one without does.
func (l *hostLine) match(name string) bool {
	if l.hash != nil {
		mac := hmac.New(sha1.New, l.hash.salt)
		mac.Write([]byte(name))
		return hmac.Equal(mac.Sum(nil), l.hash.sum)
	}
	matched := false
	for _, p := range l.patterns {
		if globMatch(p.glob, name) {
			if p.negate {
				return false
			}
			matched = true
		}
	}
	return matched
}

// lookupNames returns the texts that lines are compared with, the most exact first; the last is the host alone.
func lookupNames(host string, port uint16) []string {
	if strings.HasPrefix(host, spiffeScheme) {
		return []string{host}
	}
	host = strings.ToLower(host)
	if inner, ok := strings.CutPrefix(host, "["); ok {
		host = strings.TrimSuffix(inner, "]")
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		host = addr.Unmap().String()
	}
	exact := knownhosts.Normalize(net.JoinHostPort(host, strconv.Itoa(int(port))))
	if exact == host {
		return []string{host}
	}
	return []string{exact, host}
}

// refuse makes the error of a host.
func (k *KnownHosts) refuse(reason Reason, line int, format string, args ...any) error {
	return &RefusedError{Reason: reason, File: k.file, Line: line, Detail: fmt.Sprintf(format, args...)}
}

// fingerprint is how ssh-keygen -l writes a key, without what certifies it.
func fingerprint(key ssh.PublicKey) string { return ssh.FingerprintSHA256(plainKey(key)) }

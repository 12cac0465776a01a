package capture

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"
)

const (
	// maxCredentialBytes is RFC 1929, section 2: ULEN and PLEN are one byte, 1 to 255.
	maxCredentialBytes = 255
	// maxUsersFileBytes bounds a users file: about 30,000 users.
	maxUsersFileBytes = 1 << 20
	// minTokenBytes is the shortest token that is not guessed.
	minTokenBytes = 16
	// minTimeout is the shortest timeout that can be meant; less is a number without its unit.
	minTimeout = 10 * time.Millisecond
	// redacted stands for a password wherever one would be printed.
	redacted = "[redacted]"
)

// Password is a password in a configuration. It prints, logs and marshals as "[redacted]"; a conversion
// to string is the only way to its text.
type Password string

// Format writes "[redacted]" for every verb.
func (Password) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue returns "[redacted]".
func (Password) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns "[redacted]". There is no UnmarshalText: a password is decoded as a string.
func (Password) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Socks5Config configures a SOCKS5 listener. The zero value takes every app that can reach the listener,
// without a login.
type Socks5Config struct {
	// Users are the names and passwords that apps may log in with (RFC 1929), each 1 to 255 bytes. With
	// users, here or in UsersFile, nobody gets through without a login. An empty mapping is an error, so
	// that removing the last user does not open the listener. Prefer UsersFile: a configuration file is
	// read by more people than a password should be.
	Users map[string]Password `yaml:"users"`
	// UsersFile is a file with one user:password per line, added to Users. The name ends at the first
	// colon, and the password is the rest of the line, with its spaces. Empty lines and lines that begin
	// with # are skipped. The file should be readable by its owner only (mode 0600).
	UsersFile string `yaml:"usersFile"`
	// Timeout is how long an app may take for the whole handshake, from the accepted connection to the
	// last byte of its request; 0 is 10s, negative is no limit.
	Timeout time.Duration `yaml:"timeout"`
	// UDP lets apps send datagrams (UDP ASSOCIATE): each gets a port of its own at the listener's address.
	UDP bool `yaml:"udp"`
}

// RequiresLogin reports whether c lets only apps through that log in.
func (c *Socks5Config) RequiresLogin() bool { return c.Users != nil || c.UsersFile != "" }

// Validate returns everything that is wrong with c as joined *FieldErrors, or nil. It reads UsersFile.
func (c *Socks5Config) Validate() error {
	_, _, err := c.load()
	return err
}

// LogValue returns the configuration without names and passwords.
func (c Socks5Config) LogValue() slog.Value {
	return slog.GroupValue(slog.Int("users", len(c.Users)), slog.String("usersFile", c.UsersFile), slog.Duration("timeout", c.Timeout))
}

// load returns the users of c, nil if no login is needed, and what an operator should be warned of.
func (c *Socks5Config) load() (u *users, warnings []string, err error) {
	l := loading{users: c.Users, file: c.UsersFile}
	l.timeout(c.Timeout)
	return l.load()
}

// loading reads who may log in.
type loading struct {
	users        map[string]Password
	file, tokens string // of users and of tokens
	faults       []error
	warnings     []string
}

func (l *loading) fault(field, format string, args ...any) {
	l.faults = append(l.faults, &FieldError{Field: field, What: fmt.Sprintf(format, args...)})
}

func (l *loading) timeout(d time.Duration) {
	if d > 0 && d < minTimeout {
		l.fault("timeout", "%v is too short for any app; it should be a time with its unit, such as 10s", d)
	}
}

func (l *loading) load() (*users, []string, error) {
	if l.users == nil && l.file == "" && l.tokens == "" {
		return nil, nil, errors.Join(l.faults...)
	}
	if l.users != nil && len(l.users) == 0 && l.file == "" && l.tokens == "" {
		l.fault("users", "there is none; name at least one, or remove the field if apps need not log in")
	}
	u := newUsers()
	for _, name := range sortedNames(l.users) {
		if what := u.add(name, string(l.users[name])); what != "" {
			l.fault("users."+printable(name), "%s", what)
		}
	}
	l.read("usersFile", l.file, "user:password", u.add)
	l.read("tokensFile", l.tokens, "user:token", u.addToken)
	return u, l.warnings, errors.Join(l.faults...)
}

// read adds the lines of a file, which have the given form.
func (l *loading) read(field, file, form string, add func(name, secret string) string) {
	if file == "" {
		return
	}
	text, warning, err := readUsersFile(file)
	if err != nil {
		l.fault(field, "%v", err)
	}
	if warning != "" {
		l.warnings = append(l.warnings, warning)
	}
	n, wrong := addLines(text, form, add)
	for _, what := range wrong {
		l.fault(field, "%s: %s", file, what)
	}
	if err == nil && len(wrong) == 0 && n == 0 {
		l.fault(field, "%s names nobody; it should have lines %s", file, form)
	}
}

func sortedNames(m map[string]Password) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// printable returns a user's name for an error, quoted if it would not print as it is.
func printable(name string) string {
	if name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7F }) {
		return fmt.Sprintf("%q", clip(name))
	}
	return clip(name)
}

// readUsersFile returns the text of a users file, or says why it is unusable.
func readUsersFile(path string) (text []byte, warning string, err error) {
	// A pipe would block here, and could be read only once although Validate and a reload read again.
	if info, err := os.Stat(path); err != nil {
		return nil, "", fmt.Errorf("%w; it should be a file with lines user:password", err)
	} else if !info.Mode().IsRegular() {
		return nil, "", fmt.Errorf("%s is not a regular file; it should be a file with lines user:password", path)
	}
	f, err := os.Open(path)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return nil, "", fmt.Errorf("%w; it should belong to the user that the gateway runs as", err)
		}
		return nil, "", err
	}
	defer f.Close()
	warning, err = checkExposure(f)
	if err != nil {
		return nil, "", err
	}
	text, err = io.ReadAll(io.LimitReader(f, maxUsersFileBytes+1))
	if err == nil && len(text) > maxUsersFileBytes {
		text, err = nil, fmt.Errorf("%s is longer than %d bytes; it should have lines user:password and nothing else", path, maxUsersFileBytes)
	}
	return text, warning, err
}

// exposure is who, besides the gateway, can read a file.
type exposure struct {
	mode        fs.FileMode
	ownedByRoot bool // and the gateway does not run as root
	mounted     bool // on a tmpfs or a read-only mount, as an orchestrator's secrets are
}

// judge returns a warning or an error if others can read the file of that name.
func (e exposure) judge(name string) (warning string, err error) {
	const group, others = 0o070, 0o007
	if e.mode.Perm()&(group|others) == 0 {
		return "", nil
	}
	text := fmt.Sprintf("%s can be read by others than its owner (mode %04o)", name, e.mode.Perm())
	if e.ownedByRoot || e.mounted {
		return text, nil
	}
	return "", fmt.Errorf("%s; it should have mode 0600: chmod 600 %s", text, name)
}

// users are names and passwords. They are kept as digests under a key of this process, so that a
// comparison takes the same time whatever differs, and no password stays in memory. Immutable after
// load.
type users struct {
	key     [sha256.Size]byte
	nobody  [sha256.Size]byte            // compared with when there is no such user
	digests map[string][sha256.Size]byte // of passwords, by name
	tokens  map[[sha256.Size]byte]string // names, by digest
}

func newUsers() *users {
	u := &users{digests: make(map[string][sha256.Size]byte), tokens: make(map[[sha256.Size]byte]string)}
	// Neither call fails: crypto/rand.Read ends the process before it returns an error.
	_, _ = rand.Read(u.key[:])
	_, _ = rand.Read(u.nobody[:])
	return u
}

// add adds a user, or says why it can not be one.
func (u *users) add(name, password string) (what string) {
	_, twice := u.digests[name]
	switch {
	case name == "":
		return "the name is empty; it should have 1 to 255 bytes"
	case len(name) > maxCredentialBytes:
		return fmt.Sprintf("the name has %d bytes; it should have 1 to 255", len(name))
	case strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7F }):
		return "the name has a control character; it should have none"
	case password == "":
		return "the password is empty; it should have 1 to 255 bytes"
	case len(password) > maxCredentialBytes:
		return fmt.Sprintf("the password has %d bytes; it should have 1 to 255", len(password))
	case twice:
		return fmt.Sprintf("user %q is there twice; keep one", name)
	}
	u.digests[name] = u.digest(password)
	return ""
}

// addToken adds a token that stands for a user, or says why it can not.
func (u *users) addToken(name, token string) (what string) {
	switch {
	case name == "" || len(name) > maxCredentialBytes || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7F }):
		return "the name should have 1 to 255 bytes, none of them a control character"
	case len(token) < minTokenBytes:
		return fmt.Sprintf("the token has %d bytes; it should have at least %d, as it is all that an app shows", len(token), minTokenBytes)
	case len(token) > maxCredentialBytes:
		return fmt.Sprintf("the token has %d bytes; it should have at most 255", len(token))
	case strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r >= 0x7F }):
		return "the token has a byte that no header field carries; it should be of visible ASCII characters"
	}
	d := u.digest(token)
	if _, twice := u.tokens[d]; twice {
		return "the token is there twice; keep one"
	}
	u.tokens[d] = name
	return ""
}

// addLines adds the lines of a file with names and secrets; it returns how many there are, and what is wrong with them.
func addLines(text []byte, form string, add func(name, secret string) string) (n int, faults []string) {
	lines := bufio.NewScanner(bytes.NewReader(bytes.TrimPrefix(text, []byte("\uFEFF")))) // some editors write a byte order mark
	lines.Buffer(nil, maxUsersFileBytes+1)
	for at := 1; lines.Scan(); at++ { // Scan takes off "\r\n" as well
		line := lines.Text()
		if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		// The line is never quoted: without a colon it may be a password.
		name, secret, ok := strings.Cut(line, ":")
		what := "there is no colon; it should be " + form
		if ok {
			what = add(name, secret)
		}
		if what != "" {
			faults = append(faults, fmt.Sprintf("line %d: %s", at, what))
			continue
		}
		n++
	}
	return n, faults
}

// bearer returns whose token it is. Digests are looked up, not compared: their key is of this process.
func (u *users) bearer(token string) (name string, ok bool) {
	if token == "" || len(token) > maxCredentialBytes {
		return "", false
	}
	name, ok = u.tokens[u.digest(token)]
	return name, ok
}

// valid reports whether password is that of the user name. It takes the same time for a wrong password
// and a wrong name.
func (u *users) valid(name, password string) bool {
	want, known := u.digests[name]
	if !known {
		want = u.nobody
	}
	got := u.digest(password)
	same := subtle.ConstantTimeCompare(got[:], want[:]) == 1
	return same && known && password != ""
}

// digest is a keyed hash of a password. Key and password are hashed one after the other: extending a
// digest (the weakness that HMAC is there for) needs one, and none leaves the process.
func (u *users) digest(password string) [sha256.Size]byte {
	var b [sha256.Size + maxCredentialBytes]byte
	n := copy(b[:], u.key[:])
	n += copy(b[n:], password)
	return sha256.Sum256(b[:n])
}

// LogValue returns how many users there are.
func (u *users) LogValue() slog.Value {
	if u == nil {
		return slog.StringValue("no login")
	}
	return slog.GroupValue(slog.Int("users", len(u.digests)))
}

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
	var faults []error
	fault := func(field, format string, args ...any) {
		faults = append(faults, &FieldError{Field: field, What: fmt.Sprintf(format, args...)})
	}
	if c.Timeout > 0 && c.Timeout < minTimeout {
		fault("timeout", "%v is too short for any app; it should be a time with its unit, such as 10s", c.Timeout)
	}
	if !c.RequiresLogin() {
		return nil, nil, errors.Join(faults...)
	}
	if c.Users != nil && len(c.Users) == 0 && c.UsersFile == "" {
		fault("users", "there is none; name at least one, or remove the field if apps need not log in")
	}
	u = newUsers()
	for _, name := range sortedNames(c.Users) {
		if what := u.add(name, string(c.Users[name])); what != "" {
			fault("users."+printable(name), "%s", what)
		}
	}
	if c.UsersFile != "" {
		text, warning, err := readUsersFile(c.UsersFile)
		if err != nil {
			fault("usersFile", "%v", err)
		}
		if warning != "" {
			warnings = append(warnings, warning)
		}
		before, wrong := len(u.digests), u.addLines(text)
		for _, what := range wrong {
			fault("usersFile", "%s: %s", c.UsersFile, what)
		}
		if err == nil && len(wrong) == 0 && len(u.digests) == before {
			fault("usersFile", "%s names nobody; it should have lines user:password", c.UsersFile)
		}
	}
	return u, warnings, errors.Join(faults...)
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
	nobody  [sha256.Size]byte // compared with when there is no such user
	digests map[string][sha256.Size]byte
}

func newUsers() *users {
	u := &users{digests: make(map[string][sha256.Size]byte)}
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

// addLines adds the users of a users file and returns what is wrong with its lines.
func (u *users) addLines(text []byte) (faults []string) {
	lines := bufio.NewScanner(bytes.NewReader(bytes.TrimPrefix(text, []byte("\uFEFF")))) // some editors write a byte order mark
	lines.Buffer(nil, maxUsersFileBytes+1)
	for n := 1; lines.Scan(); n++ { // Scan takes off "\r\n" as well
		line := lines.Text()
		if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		// The line is never quoted: without a colon it may be a password.
		name, password, ok := strings.Cut(line, ":")
		what := "there is no colon; it should be user:password"
		if ok {
			what = u.add(name, password)
		}
		if what != "" {
			faults = append(faults, fmt.Sprintf("line %d: %s", n, what))
		}
	}
	return faults
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

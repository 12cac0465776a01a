package pki

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"runtime"
	"time"
)

// Load reads and checks the files of cfg once, as Open does at its start, and starts nothing. Every problem is reported at
// once, joined, each a *ConfigError; what does not hinder is logged as a warning. Without files of an identity those of
// cfg.Trust and cfg.CA are read, and the Material is nil.
func Load(cfg Config, log *slog.Logger) (m *Material, err error) {
	if cfg.hasFiles() {
		m, err = loadSettled(&cfg)
	}
	t, trustErr := loadTrust(&cfg.Trust, cfg.State, time.Now())
	if err = errors.Join(err, cfg.CA.check(), trustErr); err != nil {
		return nil, err
	}
	if m != nil {
		m = m.withTrust(t)
		m.logWarnings(log)
	}
	return m, nil
}

// logWarnings logs each warning of the material once.
func (m *Material) logWarnings(log *slog.Logger) {
	for _, warning := range m.warnings {
		log.Warn("identity is usable with a flaw", "id", m.ID.String(), "reason", warning)
	}
}

// loadSettled loads the files, and again if they were exchanged while they were read, so that a rotation in the
// middle (a symbolic link that Kubernetes swaps) does not look like a damaged pair. It tries three times.
func loadSettled(cfg *Config) (*Material, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	paths := []string{cfg.Cert, cfg.Key, cfg.Roots}
	for try := 1; ; try++ {
		before := statAll(paths)
		m, err := loadOnce(cfg)
		if try == 3 || before.same(statAll(paths)) {
			return m, err
		}
	}
}

// loadOnce reads the three files and parses them. Files that can be read are checked even when another cannot.
func loadOnce(cfg *Config) (*Material, error) { return loadAt(cfg, time.Now()) }

// loadAt is loadOnce at a given time.
func loadAt(cfg *Config, now time.Time) (*Material, error) {
	cert, key, roots := input{field: "cert", file: cfg.Cert}, input{field: "key", file: cfg.Key, secret: true}, input{field: "roots", file: cfg.Roots}
	var errs []error
	var warnings []string
	for _, in := range []*input{&cert, &key, &roots} {
		warning, err := in.read()
		if warning != "" {
			warnings = append(warnings, warning)
		}
		errs = append(errs, err)
	}
	m, err := parse(&cert, &key, &roots, now)
	if err = errors.Join(append(errs, err)...); err != nil {
		return nil, err
	}
	m.warnings = append(m.warnings, warnings...)
	return m, nil
}

// read fills in the data of an input from its file, or marks it as unread and returns why. A key that others can
// use is an error or, where the place excuses it, a warning; its data is filled in all the same.
func (in *input) read() (warning string, err error) {
	in.unread = true
	info, err := os.Stat(in.file)
	if err != nil {
		return "", in.unreadable(err)
	}
	// Before Open, which would wait for the other end of a FIFO.
	if !info.Mode().IsRegular() {
		return "", in.fail(Unreadable, nil, "name a PEM file", "is not a regular file (%s)", info.Mode().Type())
	}
	f, err := os.Open(in.file)
	if err != nil {
		return "", in.unreadable(err)
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		return "", in.unreadable(err)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return "", in.unreadable(err)
	}
	if len(data) > maxFileBytes {
		return "", in.fail(Unreadable, nil, "name a PEM file", "is bigger than %d bytes", maxFileBytes)
	}
	in.data, in.unread = data, false
	if in.secret {
		return in.checkMode(f, info)
	}
	return "", nil
}

// checkMode applies the rule about who may read a key, as ssh does: nobody but the owner.
func (in *input) checkMode(f *os.File, info fs.FileInfo) (warning string, err error) {
	mode := info.Mode().Perm()
	// Windows has no such bits; its access lists are not looked at.
	if mode&0o066 == 0 || runtime.GOOS == "windows" {
		return "", nil
	}
	what := fmt.Sprintf("others than its owner can use it (mode %04o)", mode)
	if excuse := openKeyExcuse(f, info); excuse != "" {
		return fmt.Sprintf("key %s: %s; tolerated, because %s", in.file, what, excuse), nil
	}
	return "", in.fail(OpenKey, nil, "run: chmod 600 "+in.file, "%s", what)
}

// unreadable makes the error of a file that cannot be read.
func (in *input) unreadable(err error) error {
	mend := "check the path and the file system"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if mend = "check the path"; in.field == "cert" || in.field == "key" || in.field == "roots" {
			mend += ", or make one with gateway cert"
		}
	case errors.Is(err, fs.ErrPermission):
		mend = fmt.Sprintf("let the user that runs the gateway (uid %d) read it", os.Geteuid())
	}
	// The path is in the text already.
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = pe.Err
	}
	return in.fail(Unreadable, err, mend, "cannot be read")
}

// stamps is what a set of files looked like at one moment; nil for one that was not there.
type stamps []fs.FileInfo

// statAll looks at the files, following symbolic links.
func statAll(paths []string) stamps {
	found := make(stamps, len(paths))
	for i, path := range paths {
		if info, err := os.Stat(path); err == nil {
			found[i] = info
		}
	}
	return found
}

// same reports whether two looks saw the same files, by inode, size, mode and modification time.
func (s stamps) same(other stamps) bool {
	if len(s) != len(other) {
		return false
	}
	for i := range s {
		a, b := s[i], other[i]
		if (a == nil) != (b == nil) {
			return false
		}
		if a != nil && (!os.SameFile(a, b) || a.Size() != b.Size() || a.Mode() != b.Mode() || !a.ModTime().Equal(b.ModTime())) {
			return false
		}
	}
	return true
}

// fresh reports whether a file changed so shortly before now that a further change might not show in its
// time stamp, whose step is some milliseconds to two seconds, depending on the file system.
func (s stamps) fresh(now time.Time) bool {
	for _, info := range s {
		if info != nil && info.ModTime().After(now.Add(-2*time.Second)) {
			return true
		}
	}
	return false
}

package rules

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// commandTimeout bounds each command. A packet filter with ten thousands of rules takes some seconds.
const commandTimeout = 30 * time.Second

// Host is the system that rules are installed on: the network namespace of this process. The zero value is ready.
type Host struct {
	// Dir is where is kept what was installed, until the next boot. Default: /run/culvert.
	Dir string
	// Run runs a command and returns what it printed, and a *CommandError if it fails. Default: os/exec.
	Run func(ctx context.Context, c Command) (string, error)
	// Find reports whether a command is there. Default: in PATH, and where Debian has those of administrators.
	Find func(name string) bool
	// Privileged says what this process lacks to change the network, nil if nothing. Default: it asks the system for
	// CAP_NET_ADMIN.
	Privileged func() error
}

func (h Host) withDefaults() Host {
	h.Dir = cmp.Or(h.Dir, "/run/culvert")
	if h.Run == nil {
		h.Run = run
	}
	if h.Find == nil {
		h.Find = func(name string) bool { return program(name) != "" }
	}
	if h.Privileged == nil {
		h.Privileged = privileged
	}
	return h
}

// program returns the path of a command, "" if there is none. The PATH of people and of services often has none of the
// folders for administrators.
func program(name string) string {
	for _, folder := range []string{"", "/usr/sbin/", "/sbin/"} {
		if path, err := exec.LookPath(folder + name); err == nil {
			return path
		}
	}
	return ""
}

// CommandError is a command of the system that has failed.
type CommandError struct {
	Command Command
	// Said is what it wrote to stderr, in one line.
	Said string
	Err  error
}

// Error returns the command and what it said.
func (e *CommandError) Error() string {
	return fmt.Sprintf("`%s`: %s", shellWords(e.Command.Args), cmp.Or(e.Said, e.Err.Error()))
}

// Unwrap returns the error of running it.
func (e *CommandError) Unwrap() error { return e.Err }

// said reports whether err is a command's that said one of texts.
func said(err error, texts ...string) bool {
	var e *CommandError
	return errors.As(err, &e) && slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(e.Said, text) })
}

func run(ctx context.Context, c Command) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, cmp.Or(program(c.Args[0]), c.Args[0]), c.Args[1:]...)
	cmd.Stdin = strings.NewReader(c.Stdin)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", &CommandError{Command: c, Said: oneLine(errs.String()), Err: err}
	}
	return out.String(), nil
}

// oneLine makes one line of what a program has said, and not a long one.
func oneLine(s string) string {
	const longest = 300
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > longest {
		s = strings.ToValidUTF8(s[:longest], "") + "…"
	}
	return s
}

// record is what is kept of an installation.
type record struct {
	// Namespace tells one network namespace from all there were: the number in the file's name is given again.
	Namespace string
	Config    Config
	IPv6      bool
	// Tables are those of the packet filter that were there only because of us: iptables makes its own.
	Tables []string
}

// path is the record's file, one for each network namespace.
func (h Host) path() (string, error) {
	ns, err := namespace()
	if err != nil {
		return "", err
	}
	return filepath.Join(h.Dir, "capture-"+ns+".json"), nil
}

// load returns what is installed as far as it is recorded, nil if nothing is. The record of a namespace that is no
// more, or of before the last boot, is none.
func (h Host) load() (*record, error) {
	path, err := h.path()
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r := new(record)
	if err = json.Unmarshal(text, r); err == nil {
		err = r.check()
	}
	if err != nil {
		return nil, fmt.Errorf("%s is damaged: %w; remove the file, then run `gateway capture remove`", path, err)
	}
	if now := identity(); now != "" && r.Namespace != "" && now != r.Namespace {
		return nil, nil
	}
	return r, nil
}

// check says what is wrong with a record. Its tables become words of commands.
func (r *record) check() error {
	for _, name := range r.Tables {
		if !slices.Contains(iptablesTables(), name) {
			return fmt.Errorf("%q is no table of iptables", name)
		}
	}
	return r.Config.Validate()
}

// save keeps r, or forgets what was kept if r is nil.
func (h Host) save(r *record) error {
	path, err := h.path()
	if err != nil {
		return err
	}
	if r == nil {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	kept := *r
	kept.Namespace = identity()
	text, err := json.MarshalIndent(kept, "", "\t")
	if err != nil {
		return err
	}
	// A crash between the two leaves the old record.
	if err := write(path+".new", append(text, '\n')); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// write makes a file anew that all may read: the gateway need not be root. It follows no link that somebody may have
// put there.
func write(path string, text []byte) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Chmod(0o644), f.Close()) // whatever the umask
}

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
	// Find reports whether a command is there. Default: exec.LookPath.
	Find func(name string) bool
}

func (h Host) withDefaults() Host {
	h.Dir = cmp.Or(h.Dir, "/run/culvert")
	if h.Run == nil {
		h.Run = run
	}
	if h.Find == nil {
		h.Find = func(name string) bool {
			_, err := exec.LookPath(name)
			return err == nil
		}
	}
	return h
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

// said reports whether err is a command's that said text.
func said(err error, text string) bool {
	var e *CommandError
	return text != "" && errors.As(err, &e) && strings.Contains(e.Said, text)
}

func run(ctx context.Context, c Command) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	cmd.Stdin = strings.NewReader(c.Stdin)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
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
		s = s[:longest] + "…"
	}
	return s
}

// record is what is kept of an installation.
type record struct {
	Config Config
	IPv6   bool
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

// load returns what is installed as far as it is recorded, nil if nothing is.
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
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w; remove the file, and run `gateway capture install` and `remove` again", path, err)
	}
	return r, nil
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
	text, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(h.Dir, 0o755); err != nil {
		return err
	}
	// A crash between the two leaves the old record.
	if err := os.WriteFile(path+".new", append(text, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

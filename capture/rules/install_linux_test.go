package rules

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fakeHost is a system that knows of each command whether what it does is done.
type fakeHost struct {
	Host
	made    []string          // what Do of steps has done and nothing has undone, in that order
	ran     []string          // the commands that change something
	fails   map[string]string // by the beginning of a command: what it says and fails with
	missing []string          // commands that are not there
	foreign map[string]string // by command: what it prints, of somebody else
	after   func(line string) // called after each command
}

func newFakeHost(t *testing.T) *fakeHost {
	t.Helper()
	f := &fakeHost{fails: make(map[string]string), foreign: make(map[string]string)}
	f.Host = Host{
		Dir: t.TempDir(), Run: f.run, Find: func(name string) bool { return !slices.Contains(f.missing, name) },
		Privileged: func() error { return nil },
	}
	return f
}

func (f *fakeHost) run(ctx context.Context, c Command) (string, error) {
	line := strings.Join(c.Args, " ")
	if f.after != nil {
		defer f.after(line)
	}
	if err := ctx.Err(); err != nil {
		return "", &CommandError{Command: c, Err: err}
	}
	for begin, text := range f.fails {
		if strings.HasPrefix(line, begin) {
			return "", &CommandError{Command: c, Said: text, Err: errors.New("exit status 1")}
		}
	}
	if slices.Contains(f.missing, c.Args[0]) {
		return "", &CommandError{Command: c, Err: errors.New("executable file not found in $PATH")}
	}
	if out, ok := f.foreign[line]; ok {
		return out, nil
	}
	key, undo, text := f.meaning(c)
	there := slices.Contains(f.made, key)
	switch {
	case key == "" || slices.Contains(c.Args, "-C"):
		if strings.HasPrefix(line, "nft list table inet") {
			if i := slices.IndexFunc(f.made, func(s string) bool { return strings.HasPrefix(s, "nft ") }); i >= 0 {
				return f.made[i], nil
			}
		} else if there || key == "" && c.Args[0] == "ip" {
			return "", nil
		}
		return "", &CommandError{Command: c, Said: "No such file or directory", Err: errors.New("exit status 1")}
	case text != "" && there != undo:
		return "", &CommandError{Command: c, Said: text, Err: errors.New("exit status 2")}
	}
	f.ran = append(f.ran, line)
	f.made = slices.DeleteFunc(f.made, func(s string) bool { return s == key || c.Stdin != "" && strings.HasPrefix(s, key) })
	if !undo {
		f.made = append(f.made, key+c.Stdin)
	}
	return "", nil
}

// meaning returns what a command makes or undoes, "" if it only looks, and what it says if that is done already.
func (f *fakeHost) meaning(c Command) (key string, undo bool, text string) {
	line := strings.Join(c.Args, " ")
	switch {
	case c.Args[0] == "ip" && slices.Contains(c.Args, "del"):
		return strings.Replace(line, " del ", " add ", 1), true, "RTNETLINK answers: No such process"
	case c.Args[0] == "ip" && slices.Contains(c.Args, "add"):
		return line, false, "RTNETLINK answers: File exists"
	case c.Stdin != "":
		return line + " ", !strings.Contains(c.Stdin, "{") && !strings.Contains(c.Stdin, "-A "), ""
	case c.Args[0] == "ipset" && strings.Contains(line, " create "):
		return "ipset destroy " + c.Args[3], false, ""
	case c.Args[0] == "ipset" && c.Args[1] == "destroy":
		return line, true, "The set with the given name does not exist"
	case slices.Contains(c.Args, "-D"), slices.Contains(c.Args, "-I"), slices.Contains(c.Args, "-C"):
		return strings.NewReplacer(" -D ", " -I ", " -C ", " -I ").Replace(line), slices.Contains(c.Args, "-D"), ""
	}
	return "", false, ""
}

// recorded returns the backend and mode that the record names, "" if there is none.
func (f *fakeHost) recorded(t *testing.T) string {
	t.Helper()
	r, err := f.load()
	if err != nil {
		t.Fatal(err)
	}
	if r == nil {
		return ""
	}
	return r.Config.Backend + " " + r.Config.Mode
}

func (f *fakeHost) install(t *testing.T, c Config) {
	t.Helper()
	if err := Install(t.Context(), &c, f.Host); err != nil {
		t.Fatalf("Install(%s) = %v, want nil", nameOf(c), err)
	}
}

// wantMade checks that all that is made are the steps of c, in their order if it is the first.
func (f *fakeHost) wantMade(t *testing.T, c Config) {
	t.Helper()
	alone := newFakeHost(t)
	alone.install(t, c)
	if got, want := slices.Sorted(slices.Values(f.made)), slices.Sorted(slices.Values(alone.made)); !slices.Equal(got, want) {
		t.Errorf("there is %q, want %q", got, want)
	}
}

func TestInstallTwice(t *testing.T) {
	for _, c := range ways {
		t.Run(nameOf(c), func(t *testing.T) {
			f := newFakeHost(t)
			f.install(t, c)
			first, ran := slices.Clone(f.made), len(f.ran)
			f.install(t, c)
			for _, line := range f.ran[ran:] {
				if !strings.Contains(line, "nft -f -") && !strings.Contains(line, "restore") && !strings.Contains(line, "-exist create") {
					t.Errorf("Install again runs `%s`", line)
				}
			}
			if got, want := slices.Sorted(slices.Values(f.made)), slices.Sorted(slices.Values(first)); !slices.Equal(got, want) {
				t.Errorf("after Install again there is %q, want %q", got, want)
			}
			for range 2 {
				if err := Remove(t.Context(), f.Host); err != nil || len(f.made) > 0 || f.recorded(t) != "" {
					t.Errorf("Remove = %v and there is %q, want nothing", err, f.made)
				}
			}
		})
	}
}

func TestInstallReplaces(t *testing.T) {
	for _, first := range ways {
		for _, second := range ways {
			t.Run(nameOf(first)+" by "+nameOf(second), func(t *testing.T) {
				f := newFakeHost(t)
				first.Port = 7 // with other sets
				f.install(t, first)
				f.install(t, second)
				f.wantMade(t, second)
				if got := f.recorded(t) + " "; got != nameOf(second) {
					t.Errorf("the record is of %q, want %q", got, nameOf(second))
				}
			})
		}
	}
}

// Whichever command fails, nothing is left of Install, neither of a first one nor of one that replaces another.
func TestInstallFailsAtEachStep(t *testing.T) {
	for _, first := range append([]Config{{}}, ways...) {
		for _, second := range ways {
			steps := mustCompile(t, second, ipv6()).plan()
			for i, s := range steps {
				t.Run(fmt.Sprintf("%s then %s at step %d", nameOf(first), nameOf(second), i), func(t *testing.T) {
					f := newFakeHost(t)
					want := ""
					if first.Backend != "" {
						f.install(t, first)
						want = f.recorded(t)
					}
					before := slices.Sorted(slices.Values(f.made))
					f.fails[strings.Join(s.Do.Args, " ")] = "it is against it"
					if second.Backend == first.Backend {
						second.Exclude = []string{"192.0.2.0/24"} // another text
					}
					err := Install(t.Context(), &second, f.Host)
					if done := find(mustCompile(t, first, ipv6()).plan(), s) != nil && s.Do.Stdin == "" && first.Backend != "" && s.Do.Args[0] != "ip" && s.Do.Args[0] != "ipset"; done {
						if err != nil {
							t.Errorf("Install = %v, want nil: it was done before", err)
						}
						return
					}
					if err == nil || !strings.Contains(err.Error(), "it is against it") {
						t.Fatalf("Install = %v, want the error of step %d", err, i)
					}
					if got := slices.Sorted(slices.Values(f.made)); !slices.Equal(got, before) {
						t.Errorf("there is %q, want %q", got, before)
					}
					if got := f.recorded(t); got != want {
						t.Errorf("the record is of %q, want %q", got, want)
					}
				})
			}
		}
	}
}

func TestInstallUndoesInReverse(t *testing.T) {
	f := newFakeHost(t)
	f.fails["nft -f -"] = "Error: no"
	c := Config{Backend: BackendNFT}
	if err := Install(t.Context(), &c, f.Host); err == nil {
		t.Fatal("Install = nil, want an error")
	}
	n := len(f.ran) / 2
	for i, line := range f.ran[:n] {
		if undo := f.ran[len(f.ran)-1-i]; n == 0 || undo != strings.Replace(line, " add ", " del ", 1) {
			t.Errorf("step %d is `%s` and undone by `%s`", i, line, undo)
		}
	}
	if files := records(t, f.Dir); len(files) > 0 {
		t.Errorf("there is %v, want no record", files)
	}
}

// Who stops Install half-way has his host back as it was: what undoes runs although the context has ended.
func TestInstallInterrupted(t *testing.T) {
	for _, c := range ways {
		steps := mustCompile(t, c, ipv6()).plan()
		for i, s := range steps {
			t.Run(fmt.Sprintf("%s at step %d", nameOf(c), i), func(t *testing.T) {
				f := newFakeHost(t)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				f.after = func(line string) {
					if line == strings.Join(s.Do.Args, " ") {
						cancel()
					}
				}
				err := Install(ctx, &c, f.Host)
				if i == len(steps)-1 {
					if err != nil || f.recorded(t) == "" {
						t.Errorf("Install = %v, want nil: all was done", err)
					}
					return
				}
				if !errors.Is(err, context.Canceled) || len(f.made) > 0 || f.recorded(t) != "" {
					t.Errorf("Install = %v and there is %q, want the context's error and nothing", err, f.made)
				}
			})
		}
	}
}

func TestInstallTellsWhatCannotBeUndone(t *testing.T) {
	f := newFakeHost(t)
	f.fails["nft -f -"] = "Error: no"
	f.fails["ip -4 rule del"] = "RTNETLINK answers: busy"
	c := Config{Backend: BackendNFT}
	err := Install(t.Context(), &c, f.Host)
	if err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "Error: no") || !strings.Contains(err.Error(), "busy") {
		t.Errorf("Install = %v, want one line with both errors", err)
	}
}

func TestInstallMissingCommands(t *testing.T) {
	for _, tt := range []struct {
		name    string
		config  Config
		missing []string
		want    string
	}{
		{"nft", Config{Backend: BackendNFT}, []string{"nft"}, "the command nft is not there; install the package nftables, or use --backend iptables"},
		{"ip", Config{}, []string{"ip"}, "the command ip is not there; install the package iproute2"},
		{"ip and nft", Config{}, []string{"ip", "nft"}, "the command ip is not there; install the package iproute2"},
		{"iptables", Config{Backend: BackendIPTables}, []string{"iptables"}, "the command iptables is not there; install the package iptables"},
		{"iptables-restore", Config{Backend: BackendIPTables}, []string{"iptables-restore"}, "the command iptables-restore is not there; install the package iptables"},
		{"nft and iptables", Config{}, []string{"nft", "iptables"}, "the command iptables is not there; install the package iptables, or nftables and use --backend nft"},
		{"ipset", Config{Backend: BackendIPTables}, []string{"ipset"}, "the command ipset is not there, without which iptables cannot let flows pass when the gateway is gone; install the package ipset, or say --fail closed"},
		{"ipset with fail closed", Config{Backend: BackendIPTables, Fail: FailClosed}, []string{"ipset"}, ""},
		{"ip with redirect", Config{Mode: ModeRedirect}, []string{"ip"}, ""},
		{"iptables with nft", Config{}, []string{"iptables", "ipset"}, ""},
		{"nft by default", Config{}, []string{"nft"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFakeHost(t)
			f.missing = tt.missing
			err := Install(t.Context(), &tt.config, f.Host)
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("Install = %v, want nil", err)
			case tt.want != "" && (err == nil || err.Error() != tt.want):
				t.Errorf("Install = %v, want %q", err, tt.want)
			case tt.want != "" && (len(f.ran) > 0 || f.recorded(t) != ""):
				t.Errorf("Install ran %q", f.ran)
			}
		})
	}
}

func TestInstallAmongOthers(t *testing.T) {
	for _, tt := range []struct {
		name, command, prints string
		config                Config
		want                  string // in the error; "": there is none
	}{
		{"a table", "nft list table inet culvert", "table inet culvert {\n}\n", Config{}, "`nft list table inet culvert`"},
		{"a table, and iptables is used", "nft list table inet culvert", "table inet culvert {\n}\n", Config{Backend: BackendIPTables}, ""},
		{"a route", "ip -4 route show table 15001", "default via 10.0.0.1 dev eth0\n", Config{}, "`ip -4 route show table 15001`"},
		{"a route, and redirect is used", "ip -4 route show table 15001", "default via 10.0.0.1 dev eth0\n", Config{Mode: ModeRedirect}, ""},
		{"a rule", "ip -4 rule show priority 15001", "15001: from all lookup 7\n", Config{Backend: BackendIPTables}, "`ip -4 rule show`"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFakeHost(t)
			f.foreign[tt.command] = tt.prints
			err := Install(t.Context(), &tt.config, f.Host)
			if tt.want == "" {
				if err != nil {
					t.Errorf("Install = %v, want nil", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || len(f.ran) > 0 || f.recorded(t) != "" {
				t.Errorf("Install = %v after %q, want it to refuse and name %q", err, f.ran, tt.want)
			}
			if err := Remove(t.Context(), f.Host); err != nil || len(f.ran) > 0 {
				t.Errorf("Remove = %v after %q, want nothing done", err, f.ran)
			}
		})
	}
	t.Run("routes while redirect is ours", func(t *testing.T) {
		f := newFakeHost(t)
		f.install(t, Config{Mode: ModeRedirect})
		f.foreign["ip -4 route show table 15001"] = "default via 10.0.0.1 dev eth0\n"
		if err := Install(t.Context(), &Config{}, f.Host); err == nil || !strings.Contains(err.Error(), "routes that are not ours") {
			t.Errorf("Install = %v, want it to refuse", err)
		}
	})
}

func TestRecordIsDamaged(t *testing.T) {
	for _, text := range []string{
		"", "{", "null garbage", `{"Config":{"Backend":"pf"}}`, `{"Config":{"Forward":["a\" ; b"]}}`,
		`{"Tables":["-f /tmp/evil"]}`, `{"Tables":["inet filter"]}`, `{"Tables":["ip mangle; flush ruleset"]}`,
	} {
		t.Run(text, func(t *testing.T) {
			f := newFakeHost(t)
			path, err := f.path()
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			for name, do := range map[string]func() error{
				"Install": func() error { return Install(t.Context(), &Config{}, f.Host) },
				"Remove":  func() error { return Remove(t.Context(), f.Host) },
				"Look":    func() error { _, err := Look(t.Context(), f.Host); return err },
				"Refresh": func() error { return NewAlive(f.Host).Refresh([]Served{{Port: DefaultPort, TCP: true}}) },
			} {
				if err := do(); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "remove the file") {
					t.Errorf("%s = %v, want it to say which file to remove", name, err)
				}
			}
			if len(f.ran) > 0 {
				t.Errorf("ran %q, want nothing", f.ran)
			}
		})
	}
}

// A link where the record is written is not followed, and all may read the record, whatever the umask.
func TestRecordIsAFileOfItsOwn(t *testing.T) {
	f := newFakeHost(t)
	path, err := f.path()
	if err != nil {
		t.Fatal(err)
	}
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("as it was"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, path+".new"); err != nil {
		t.Fatal(err)
	}
	f.install(t, Config{})
	if text, err := os.ReadFile(victim); err != nil || string(text) != "as it was" {
		t.Errorf("the file that the link leads to has %q, %v", text, err)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode() != 0o644 {
		t.Errorf("the record is %v, %v, want a file that all may read", info.Mode(), err)
	}
	if info, err := os.Lstat(filepath.Join(f.Dir, "capture.lock")); err != nil || info.Mode() != 0o600 {
		t.Errorf("the lock is %v, %v, want one that nobody else can open", info.Mode(), err)
	}
}

func TestInstallWaitsForOthers(t *testing.T) {
	f := newFakeHost(t)
	unlock, err := f.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Install(ctx, &Config{}, f.Host); !errors.Is(err, context.Canceled) || len(f.ran) > 0 {
		t.Errorf("Install while another one runs = %v, want the context's error", err)
	}
	if err := Remove(ctx, f.Host); !errors.Is(err, context.Canceled) {
		t.Errorf("Remove while another one runs = %v, want the context's error", err)
	}
}

func TestNotPrivileged(t *testing.T) {
	f := newFakeHost(t)
	no := errors.New("not permitted: it takes root")
	f.Privileged = func() error { return no }
	if err := Install(t.Context(), &Config{}, f.Host); !errors.Is(err, no) {
		t.Errorf("Install = %v, want %v", err, no)
	}
	if err := Remove(t.Context(), f.Host); !errors.Is(err, no) {
		t.Errorf("Remove = %v, want %v", err, no)
	}
	if _, err := Look(t.Context(), f.Host); !errors.Is(err, no) {
		t.Errorf("Look = %v, want %v", err, no)
	}
	if len(f.ran) > 0 {
		t.Errorf("ran %q", f.ran)
	}
}

func TestInstallExplains(t *testing.T) {
	nft, restore := "nft -f -", "iptables-restore"
	for _, tt := range []struct {
		name, command, says string
		config              Config
		want                string
	}{
		{"nft without TPROXY", nft, "/dev/stdin:28:5-60: Error: Could not process rule: No such file or directory meta nfproto ipv4 meta l4proto { tcp, udp } tproxy ip to 127.0.0.1:15001 accept ^^^^", Config{Backend: BackendNFT}, "use --mode redirect"},
		{"nft without a control group", nft, `/dev/stdin:9:1-2: Error: cgroupv2 path fails: No such file or directory socket cgroupv2 level 1 "x" return`, Config{Backend: BackendNFT}, "--exclude-cgroup"},
		{"no nftables", nft, "netlink: Error: cache initialization failed: Protocol not supported", Config{Backend: BackendNFT}, "use --backend iptables"},
		{"not root", nft, "Error: Could not process rule: Operation not permitted", Config{Backend: BackendNFT}, "CAP_NET_ADMIN"},
		{"ip is not root", "ip -4 route add", "RTNETLINK answers: Operation not permitted", Config{Backend: BackendNFT}, "CAP_NET_ADMIN"},
		{"iptables without TPROXY", restore, "iptables-restore v1.8.9 (nf_tables): line 24: RULE_APPEND failed (No such file or directory): rule in chain CULVERT_DIVERT", Config{Backend: BackendIPTables}, "use --mode redirect"},
		{"iptables has no such target", restore, "iptables-restore v1.8.9 (legacy): Couldn't load target `TPROXY':No such file or directory", Config{Backend: BackendIPTables}, "use --mode redirect"},
		{"iptables says something else", restore, "iptables-restore: line 3 failed", Config{Backend: BackendIPTables}, ""},
		{"no sets", "ipset -exist create", "ipset v7.17: Cannot open session to kernel.", Config{Backend: BackendIPTables}, "--fail closed"},
		{"a set of somebody else", "ipset -exist create", "ipset v7.17: Set cannot be created: set with the same name already exists", Config{Backend: BackendIPTables}, ""},
		{"IPv6 is off on lo", "ip -4 route add", "Error: IPv6 is disabled on nexthop device.", Config{Backend: BackendNFT}, "disable_ipv6"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFakeHost(t)
			f.fails[tt.command] = tt.says
			err := Install(t.Context(), &tt.config, f.Host)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("Install = %v, want one line that has %q and what the command said", err, tt.want)
			}
			if tt.want == "" && !strings.HasPrefix(err.Error(), "`") {
				t.Errorf("Install = %v, want no guess", err)
			}
		})
	}
}

func TestRemoveWithLostRecord(t *testing.T) {
	f := newFakeHost(t)
	f.install(t, Config{Backend: BackendNFT})
	for _, path := range records(t, f.Dir) {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := Remove(t.Context(), f.Host); err != nil || len(f.made) > 0 {
		t.Errorf("Remove = %v and there is %q, want nothing", err, f.made)
	}
}

// What cannot be removed stays recorded.
func TestRemoveFails(t *testing.T) {
	f := newFakeHost(t)
	f.install(t, Config{Backend: BackendNFT})
	f.fails["nft -f -"] = "Error: Could not process rule: Operation not permitted"
	if err := Remove(t.Context(), f.Host); err == nil || !strings.Contains(err.Error(), "CAP_NET_ADMIN") || f.recorded(t) == "" {
		t.Errorf("Remove = %v with the record of %q, want an explained error and the record", err, f.recorded(t))
	}
	clear(f.fails)
	if err := Remove(t.Context(), f.Host); err != nil || len(f.made) > 0 || f.recorded(t) != "" {
		t.Errorf("Remove = %v and there is %q, want nothing", err, f.made)
	}
}

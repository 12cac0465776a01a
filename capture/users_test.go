package capture

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func usersFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "users")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestUsersFile(t *testing.T) {
	text := "# apps\n\nbob:secret\r\n   \nann: with : colons and spaces \n\u00e9milie:\u00fc\n  indented:x\n"
	for name, prefix := range map[string]string{"plain": "", "with a byte order mark": "\uFEFF"} {
		t.Run(name, func(t *testing.T) {
			way := newSocks5(t, Socks5Config{UsersFile: usersFile(t, prefix+text), Users: map[string]Password{"inline": "y"}})
			for user, password := range map[string]string{"bob": "secret", "ann": " with : colons and spaces ", "\u00e9milie": "\u00fc", "  indented": "x", "inline": "y"} {
				if !way.users.valid(user, password) {
					t.Errorf("%q, %q is not let in", user, password)
				}
			}
			if got := len(way.users.digests); got != 5 {
				t.Errorf("%d users, want 5", got)
			}
		})
	}
}

func TestSocks5ConfigRefuses(t *testing.T) {
	long := strings.Repeat("x", 256)
	file := func(text string) func(*testing.T) Socks5Config {
		return func(t *testing.T) Socks5Config { return Socks5Config{UsersFile: usersFile(t, text)} }
	}
	inline := func(users map[string]Password) func(*testing.T) Socks5Config {
		return func(*testing.T) Socks5Config { return Socks5Config{Users: users} }
	}
	for _, tt := range []struct {
		name string
		cfg  func(*testing.T) Socks5Config
		want []string // one per fault
	}{
		{"no users", inline(map[string]Password{}), []string{"users: there is none"}},
		{"empty password", inline(map[string]Password{"bob": ""}), []string{"users.bob: the password is empty"}},
		{"empty name", inline(map[string]Password{"": "secret"}), []string{`users."": the name is empty`}},
		{"both too long", inline(map[string]Password{long: "secret", "bob": Password(long)}), []string{"users.bob: the password has 256 bytes", "the name has 256 bytes"}},
		{"control character", inline(map[string]Password{"a\nb": "secret"}), []string{`users."a\nb": the name has a control character`}},
		{"time without unit", func(*testing.T) Socks5Config { return Socks5Config{Timeout: 10} }, []string{"timeout: 10ns is too short"}},
		{"empty file", file(""), []string{"names nobody"}},
		{"file with comments only", file("# bob:secret\n"), []string{"names nobody"}},
		{"line without colon", file("bob:secret\nhunter2\n"), []string{"line 2: there is no colon"}},
		{"several lines", file("bob:\n:secret\nann:x\nann:y\n" + long + ":x\n"), []string{
			"line 1: the password is empty", "line 2: the name is empty", `line 4: user "ann" is there twice`, "line 5: the name has 256 bytes"}},
		{"file too long", file(strings.Repeat("#", maxUsersFileBytes+1)), []string{"longer than"}},
		{"missing file", func(t *testing.T) Socks5Config {
			return Socks5Config{UsersFile: filepath.Join(t.TempDir(), "none")}
		}, []string{"no such file"}},
		{"directory", func(t *testing.T) Socks5Config { return Socks5Config{UsersFile: t.TempDir()} }, []string{"not a regular file"}},
		{"in both places", func(t *testing.T) Socks5Config {
			return Socks5Config{Users: bob, UsersFile: usersFile(t, "bob:other\n")}
		}, []string{`user "bob" is there twice`}},
		{"all at once", func(t *testing.T) Socks5Config {
			return Socks5Config{Users: map[string]Password{"bob": ""}, UsersFile: usersFile(t, ""), Timeout: 1}
		}, []string{"timeout: ", "users.bob: ", "usersFile: "}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := tt.cfg(t)
			if !cfg.RequiresLogin() && cfg.Timeout == 0 {
				t.Error("RequiresLogin = false, want true")
			}
			err := cfg.Validate()
			way, err2 := NewSocks5(cfg)
			if err == nil || err2 == nil || way != nil || err.Error() != err2.Error() {
				t.Fatalf("Validate = %v, NewSocks5 = %v, %v, want the same error twice", err, way, err2)
			}
			var field *FieldError
			joined, ok := err.(interface{ Unwrap() []error })
			if !ok || len(joined.Unwrap()) != len(tt.want) || !errors.As(err, &field) {
				t.Fatalf("Validate = %v, want %d FieldErrors", err, len(tt.want))
			}
			for i, want := range tt.want {
				if got := joined.Unwrap()[i].Error(); !strings.Contains(got, want) {
					t.Errorf("fault %d = %q, want it to contain %q", i, got, want)
				}
			}
			for _, secret := range []string{"hunter2", "secret"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("%q shows %q", err, secret)
				}
			}
		})
	}
}

func TestSocks5ConfigZero(t *testing.T) {
	var cfg Socks5Config
	if err := cfg.Validate(); err != nil || cfg.RequiresLogin() {
		t.Errorf("Validate = %v, RequiresLogin = %v, want nil, false", err, cfg.RequiresLogin())
	}
	way := newSocks5(t, cfg)
	if way.timeout != 10*time.Second || way.users != nil || way.Warnings() != nil {
		t.Errorf("timeout %v, users %v, warnings %q", way.timeout, way.users, way.Warnings())
	}
}

func TestExposureOfUsersFile(t *testing.T) {
	for _, tt := range []struct {
		name string
		e    exposure
		want string // "", "warning" or "error"
	}{
		{"owner only", exposure{mode: 0o600}, ""},
		{"read-only", exposure{mode: 0o400}, ""},
		{"group", exposure{mode: 0o640}, "error"},
		{"world", exposure{mode: 0o644}, "error"},
		{"world may write", exposure{mode: 0o602}, "error"},
		{"world, owned by root", exposure{mode: 0o644, ownedByRoot: true}, "warning"},
		{"world, on a tmpfs", exposure{mode: fs.FileMode(0o644), mounted: true}, "warning"},
		{"owner only, on a tmpfs", exposure{mode: 0o600, mounted: true}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			warning, err := tt.e.judge("users")
			got := ""
			switch {
			case warning != "":
				got = "warning"
			case err != nil:
				got = "error"
			}
			if got != tt.want || (warning != "" && err != nil) {
				t.Errorf("judge = %q, %v, want %q", warning, err, tt.want)
			}
			if err != nil && !strings.Contains(err.Error(), "chmod 600 users") {
				t.Errorf("judge = %q, want the command that mends it", err)
			}
		})
	}
}

// Whatever the mount of the test's folder makes of it, it is not passed over.
func TestExposedUsersFileIsNoticed(t *testing.T) {
	path := usersFile(t, "bob:secret\n")
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	way, err := NewSocks5(Socks5Config{UsersFile: path})
	if err == nil && len(way.Warnings()) != 1 {
		t.Errorf("NewSocks5 = nil with warnings %q, want an error or a warning", way.Warnings())
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	cfg := Socks5Config{Users: bob, UsersFile: usersFile(t, "ann:hunter2\n")}
	way := newSocks5(t, cfg)
	var out bytes.Buffer
	for _, log := range []*slog.Logger{slog.New(slog.NewTextHandler(&out, nil)), slog.New(slog.NewJSONHandler(&out, nil))} {
		log.Info("values", "password", cfg.Users["bob"], "users", cfg.Users, "config", cfg, "pointer", &cfg, "way", way)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&out, verb+verb+verb, cfg.Users["bob"], cfg.Users, cfg)
	}
	text, err := cfg.Users["bob"].MarshalText()
	if err != nil {
		t.Error(err)
	}
	out.Write(text)
	for _, secret := range []string{"secret", "hunter2", "736563726574"} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("%q is in %s", secret, out.String())
		}
	}
	if !strings.Contains(out.String(), redacted) || !strings.Contains(out.String(), "login.users=2") {
		t.Errorf("logged: %s", out.String())
	}
	out.Reset()
	slog.New(slog.NewTextHandler(&out, nil)).Info("open", "way", newSocks5(t, Socks5Config{}))
	if !strings.Contains(out.String(), `way.login="no login"`) {
		t.Errorf("logged: %s", out.String())
	}
}

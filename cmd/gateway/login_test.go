package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadLogin(t *testing.T) {
	for name, c := range map[string]struct {
		text       string
		mode       os.FileMode
		user, pass string
		want       string // in the error
	}{
		"sound":               {"bob:secret\n", 0o600, "bob", "secret", ""},
		"no end of line":      {"bob:secret", 0o600, "bob", "secret", ""},
		"CRLF":                {"bob:secret\r\n", 0o600, "bob", "secret", ""},
		"colons and blanks":   {"bob: a:b \n", 0o600, "bob", " a:b ", ""},
		"no password":         {"bob:\n", 0o600, "", "", "user:password"},
		"no colon":            {"bob\n", 0o600, "", "", "user:password"},
		"no user":             {":secret\n", 0o600, "", "", "user:password"},
		"two lines":           {"bob:secret\neve:secret\n", 0o600, "", "", "user:password"},
		"a control character": {"bob:sec\x00ret\n", 0o600, "", "", "user:password"},
		"empty":               {"", 0o600, "", "", "user:password"},
		"open to others":      {"bob:secret\n", 0o644, "", "", "chmod 600"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "login")
			if err := os.WriteFile(file, []byte(c.text), c.mode); err != nil {
				t.Fatal(err)
			}
			user, pass, err := readLogin(file)
			if user != c.user || pass != c.pass || (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret")) {
				t.Errorf("readLogin = %q, %q, %v, want %q, %q, %s", user, pass, err, c.user, c.pass, c.want)
			}
		})
	}
}

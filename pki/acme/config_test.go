package acme

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// configErrors returns every *ConfigError that is joined in err.
func configErrors(t testing.TB, err error) (list []*ConfigError) {
	t.Helper()
	if err == nil {
		return nil
	}
	if ce, ok := errors.AsType[*ConfigError](err); ok && !strings.Contains(err.Error(), "\n") {
		return []*ConfigError{ce}
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		t.Fatalf("%v is no *ConfigError and has none joined", err)
	}
	for _, inner := range joined.Unwrap() {
		list = append(list, configErrors(t, inner)...)
	}
	return list
}

func TestValidate(t *testing.T) {
	long := strings.Repeat("a", 64)
	for _, tc := range []struct {
		name   string
		change func(c *Config)
		field  string // "" if it is right
		says   string
	}{
		{"as it should be", func(*Config) {}, "", ""},
		{"everything set", func(c *Config) {
			*c = Config{Directory: "https://ca.example:8443/acme", Names: []string{"a.example", "xn--bcher-kva.example", "localhost", "1.2.3.example"},
				Email: "ops@example.com", AgreeTOS: true, Challenges: []string{HTTP01, TLSALPN01}, Profile: "shortlived",
				ExternalAccount: ExternalAccountConfig{KID: "kid-1", KeyFile: "f"}, RenewBefore: time.Hour, OrdersPerHour: 100}
		}, "", ""},
		{"upper case", func(c *Config) { c.Names = []string{"WWW.Example.COM"} }, "", ""},
		{"http", func(c *Config) { c.Directory = "http://ca.example/dir" }, "directory", "not an https URL"},
		{"no host", func(c *Config) { c.Directory = "https:///dir" }, "directory", "not an https URL"},
		{"no URL", func(c *Config) { c.Directory = "https://[::1/dir" }, "directory", "not a URL"},
		{"user in the URL", func(c *Config) { c.Directory = "https://me:secret@ca.example/dir" }, "directory", "me:xxxxx@"},
		{"long URL", func(c *Config) { c.Directory = "https://ca.example/" + strings.Repeat("a", 2048) }, "directory", "longer"},
		{"no names", func(c *Config) { c.Names = nil }, "names", "empty"},
		{"wildcard", func(c *Config) { c.Names = []string{"*.example.com"} }, "names", "DNS-01"},
		{"inner wildcard", func(c *Config) { c.Names = []string{"a.*.example.com"} }, "names", "letters, digits"},
		{"twice", func(c *Config) { c.Names = []string{"a.example", "A.example"} }, "names", "twice"},
		{"empty name", func(c *Config) { c.Names = []string{""} }, "names", "empty"},
		{"last dot", func(c *Config) { c.Names = []string{"a.example."} }, "names", "empty label"},
		{"two dots", func(c *Config) { c.Names = []string{"a..example"} }, "names", "empty label"},
		{"address", func(c *Config) { c.Names = []string{"192.0.2.1"} }, "names", "IP address"},
		{"IPv6", func(c *Config) { c.Names = []string{"2001:db8::1"} }, "names", "IP address"},
		{"odd address", func(c *Config) { c.Names = []string{"127.1"} }, "names", "number"},
		{"path", func(c *Config) { c.Names = []string{"../../etc/passwd"} }, "names", "label"},
		{"slash", func(c *Config) { c.Names = []string{"a/b.example"} }, "names", "letters, digits"},
		{"underscore", func(c *Config) { c.Names = []string{"_acme.example"} }, "names", "letters, digits"},
		{"NUL", func(c *Config) { c.Names = []string{"a\x00.example"} }, "names", "letters, digits"},
		{"umlaut", func(c *Config) { c.Names = []string{"bücher.example"} }, "names", "xn--"},
		{"kelvin sign", func(c *Config) { c.Names = []string{"\u212a.example"} }, "names", "xn--"},
		{"hyphen", func(c *Config) { c.Names = []string{"-a.example"} }, "names", "begins or ends"},
		{"long label", func(c *Config) { c.Names = []string{long + ".example"} }, "names", "63 bytes"},
		{"long name", func(c *Config) { c.Names = []string{strings.Repeat("a.", 127)} }, "names", "253 bytes"},
		{"many names", func(c *Config) { c.Names = make([]string, 1001) }, "names", "1001 are too many"},
		{"email with a name", func(c *Config) { c.Email = "Ops <ops@example.com>" }, "email", "plain"},
		{"two emails", func(c *Config) { c.Email = "a@example.com,b@example.com" }, "email", "plain"},
		{"email with header fields", func(c *Config) { c.Email = "a@example.com?subject=x" }, "email", "plain"},
		{"terms not agreed", func(c *Config) { c.AgreeTOS = false }, "agreeTOS", "terms of service"},
		{"dns-01", func(c *Config) { c.Challenges = []string{"dns-01"} }, "challenges", "http-01"},
		{"challenge twice", func(c *Config) { c.Challenges = []string{HTTP01, HTTP01} }, "challenges", "twice"},
		{"profile of words", func(c *Config) { c.Profile = "short lived" }, "profile", "one word"},
		{"half an external account", func(c *Config) { c.ExternalAccount.KID = "kid-1" }, "externalAccount", "go together"},
		{"kid with a line end", func(c *Config) { c.ExternalAccount = ExternalAccountConfig{KID: "a\nb", KeyFile: "f"} }, "externalAccount.kid", "one word"},
		{"renewal after the end", func(c *Config) { c.RenewBefore = -time.Hour }, "renewBefore", "after"},
		{"no orders", func(c *Config) { c.OrdersPerHour = -1 }, "ordersPerHour", "1 to 100"},
		{"too many orders", func(c *Config) { c.OrdersPerHour = 101 }, "ordersPerHour", "1 to 100"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := Config{Names: []string{alpha}, AgreeTOS: true}
			tc.change(&c)
			list := configErrors(t, c.Validate())
			if tc.field == "" {
				if len(list) != 0 {
					t.Errorf("Validate = %v, want nothing", list)
				}
				return
			}
			if len(list) != 1 || list[0].Field != tc.field || !strings.Contains(list[0].Error(), tc.says) || list[0].Mend == "" {
				t.Errorf("Validate = %v, want one problem of %s that says %q", list, tc.field, tc.says)
			}
			for _, ce := range list {
				if len(ce.Error()) > 512 || strings.ContainsAny(ce.Error(), "\x00\n") || strings.Contains(ce.Error(), "secret") {
					t.Errorf("the text %q is long, not printable or tells a secret", ce)
				}
			}
		})
	}
}

func TestValidateReportsAllAtOnce(t *testing.T) {
	c := Config{Directory: "ftp://x", Names: []string{"*.a", "b c"}, Email: "@", Challenges: []string{"x"}, Profile: " ",
		ExternalAccount: ExternalAccountConfig{KID: "k"}, RenewBefore: -1, OrdersPerHour: -1}
	var fields []string
	for _, ce := range configErrors(t, c.Validate()) {
		fields = append(fields, ce.Field)
	}
	want := "[directory names names email agreeTOS challenges profile externalAccount renewBefore ordersPerHour]"
	if got := fmt.Sprint(fields); got != want {
		t.Errorf("problems of %s, want %s", got, want)
	}
}

// Open reports what is wrong with the settings and with all the files, and makes nothing.
func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	_, log := newLogs()
	state := filepath.Join(dir, "state")
	cfg := Config{AgreeTOS: true, Roots: file("no.pem", "hello", 0o600),
		ExternalAccount: ExternalAccountConfig{KID: "k", KeyFile: file("short", "c2hvcnQ", 0o600)}}
	_, err := Open(cfg, Env{Dir: state, Log: log})
	var fields []string
	for _, ce := range configErrors(t, err) {
		fields = append(fields, ce.Field)
	}
	if got, want := fmt.Sprint(fields), "[names roots externalAccount.keyFile]"; got != want {
		t.Errorf("Open = %v, want problems of %s", err, want)
	}
	if _, err := os.Stat(state); err == nil {
		t.Error("the folder was made")
	}

	good := Config{AgreeTOS: true, Names: []string{alpha}}
	open := filepath.Join(dir, "open")
	if err := errors.Join(os.Mkdir(open, 0o700), os.Chmod(open, 0o777)); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, dir string
		change    func(c *Config)
		says      string
	}{
		{"no folder", "", func(*Config) {}, "has no name"},
		{"folder is a file", file("plain", "", 0o600), func(*Config) {}, "cannot be made"},
		{"folder that others can write to", open, func(*Config) {}, "chmod go-w"},
		{"roots that are not there", state, func(c *Config) { c.Roots = filepath.Join(dir, "none") }, "cannot be read"},
		{"roots that are a folder", state, func(c *Config) { c.Roots = dir }, "not a regular file"},
		{"roots without end", state, func(c *Config) { c.Roots = file("big", strings.Repeat("a", maxFileBytes+1), 0o600) }, "bigger than"},
		{"key that is not base64url", state, func(c *Config) {
			c.ExternalAccount = ExternalAccountConfig{"k", file("bad", "not base64 at all!", 0o600)}
		}, "base64url"},
		{"key that is not there", state, func(c *Config) { c.ExternalAccount = ExternalAccountConfig{"k", filepath.Join(dir, "none")} }, "cannot be read"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := good
			tc.change(&c)
			m, err := Open(c, Env{Dir: tc.dir, Log: log})
			if list := configErrors(t, err); len(list) != 1 || !strings.Contains(list[0].Error(), tc.says) {
				t.Errorf("Open = %v, %v, want one problem that says %q", m, err, tc.says)
			}
		})
	}
}

func TestExternalAccountKeyFile(t *testing.T) {
	key := "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
	path := filepath.Join(t.TempDir(), "hmac")
	_, log := newLogs()
	for _, text := range []string{key, key + "\n", " " + key + " ", "AAECAwQFBgcICQoLDA0ODw==", "-_-_-_-_-_-_-_-_-_-_-_-_", "+/+/+/+/+/+/+/+/+/+/+/+/"} {
		writeTestFile(t, path, []byte(text))
		if mac, err := readMAC(path, log); err != nil || len(mac) < minMACBytes {
			t.Errorf("readMAC(%q) = %d bytes, %v, want the key", text, len(mac), err)
		}
	}
}

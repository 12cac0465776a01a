package pki

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestClientFiles(t *testing.T) {
	ca := mustCA(t, testTD)
	for name, c := range map[string]struct {
		spoil func(cfg *Config)
		field string // of the fault; "": there is none
		want  string
	}{
		"sound":                     {func(*Config) {}, "", ""},
		"only roots":                {func(c *Config) { c.Cert, c.Key = "", "" }, "", ""},
		"the system's roots":        {func(c *Config) { c.Roots = "" }, "", ""},
		"nothing":                   {func(c *Config) { *c = Config{} }, "", ""},
		"roots are not there":       {func(c *Config) { c.Roots += "x" }, "roots", "cannot be read"},
		"roots hold nothing":        {func(c *Config) { os.WriteFile(c.Roots, nil, 0o600) }, "roots", "holds no certificate"},
		"the key is another's":      {func(c *Config) { c.Key = identityFiles(t, t.TempDir(), ca, webID(t).String()).Key }, "key", "is not the key of"},
		"the key is open to others": {func(c *Config) { os.Chmod(c.Key, 0o644) }, "key", "chmod 600"},
		"they have changed places":  {func(c *Config) { c.Cert, c.Key = c.Key, c.Cert }, "key", "changed places"},
		"the key is a folder":       {func(c *Config) { c.Key = filepath.Dir(c.Key) }, "key", "not a regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := identityFiles(t, t.TempDir(), ca, webID(t).String())
			c.spoil(&cfg)
			err := CheckClientFiles(cfg.Roots, cfg.Cert, cfg.Key)
			conf, openErr := NewClientFiles(quiet()).Config(cfg.Roots, cfg.Cert, cfg.Key)
			if c.field == "" {
				if err != nil || openErr != nil || (conf.RootCAs == nil) != (cfg.Roots == "") || len(conf.Certificates) != min(len(cfg.Cert), 1) {
					t.Errorf("Config = %+v, %v, check = %v", conf, openErr, err)
				}
				return
			}
			var fault *ConfigError
			if !errors.As(err, &fault) || openErr == nil || fault.Field != c.field || !strings.Contains(err.Error(), c.want) {
				t.Errorf("check = %v, Config = %v, want a fault of %s with %q", err, openErr, c.field, c.want)
			}
		})
	}
}

// What has changed is used within a second; what is faulty is not, and what was before is.
func TestClientFilesChange(t *testing.T) {
	ca := mustCA(t, testTD)
	cfg, next := identityFiles(t, t.TempDir(), ca, webID(t).String()), identityFiles(t, t.TempDir(), ca, webID(t).String())
	files := NewClientFiles(quiet())
	get := func() []byte {
		t.Helper()
		conf, err := files.Config(cfg.Roots, cfg.Cert, cfg.Key)
		if err != nil {
			t.Fatal(err)
		}
		return conf.Certificates[0].Certificate[0]
	}
	first := string(get())
	replace := func(path string, data []byte) {
		if err := os.WriteFile(path+".new", data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		for _, r := range files.read {
			r.looked = time.Time{} // a second ago at least
		}
	}
	cert, key := read(t, next.Cert), read(t, next.Key)
	replace(cfg.Cert, cert)
	if string(get()) != first {
		t.Error("a certificate without its key was taken")
	}
	replace(cfg.Key, key)
	if string(get()) == first {
		t.Error("the new pair was not taken")
	}
	replace(cfg.Roots, nil)
	if string(get()) == first {
		t.Error("an empty file of roots has brought the first pair back")
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

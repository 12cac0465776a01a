package capture_test

import (
	"bytes"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"culvert/capture"
)

// The yaml tags are what a configuration file is read with.
func TestSocks5ConfigFromYAML(t *testing.T) {
	text := "users: {bob: secret, ann: \"007\"}\nusersFile: users.txt\ntimeout: 3s\n"
	var cfg capture.Socks5Config
	dec := yaml.NewDecoder(bytes.NewReader([]byte(text)))
	dec.KnownFields(true)
	if err := dec.Decode(&cfg); err != nil {
		t.Fatalf("Decode = %v, want nil", err)
	}
	if string(cfg.Users["bob"]) != "secret" || string(cfg.Users["ann"]) != "007" || cfg.UsersFile != "users.txt" || cfg.Timeout != 3*time.Second {
		t.Errorf("users %d, usersFile %q, timeout %v", len(cfg.Users), cfg.UsersFile, cfg.Timeout)
	}
	out, err := yaml.Marshal(&cfg)
	if err != nil || bytes.Contains(out, []byte("secret")) || bytes.Contains(out, []byte("007")) {
		t.Errorf("Marshal = %s, %v, want no password", out, err)
	}
}

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What the README shows is taken, word for word.
func TestReadmeConfigurationsAreRight(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	section, shown := "", 0
	blocks := strings.Split(string(text), "```")
	for i, block := range blocks {
		if i%2 == 0 {
			if at := strings.LastIndex(block, "\n### "); at >= 0 {
				section, _, _ = strings.Cut(block[at+5:], "\n")
			}
			continue
		}
		config, isYAML := strings.CutPrefix(block, "yaml\n")
		if !isYAML {
			continue
		}
		shown++
		t.Run(section, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "shown.yaml")
			if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
				t.Fatal(err)
			}
			args := []string{"check", "--no-files", "-c", file}
			if strings.Contains(config, "\nrules:") {
				args = []string{"policy", "check", file}
			}
			if code, _, stderr := runGateway(t, args...); code != 0 {
				t.Errorf("gateway %s: %s\n%s", strings.Join(args, " "), stderr, config)
			}
		})
	}
	if shown < 9 {
		t.Errorf("%d configurations were found, want at least one for each role", shown)
	}
}

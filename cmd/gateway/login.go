package main

import (
	"strings"

	"culvert/pki"
)

// readLogin reads a file with user:password. Nobody else may read it.
func readLogin(file string) (user, password string, err error) {
	text, _, err := pki.ReadSecret("login", file)
	if err != nil {
		return "", "", err
	}
	line, more, _ := strings.Cut(strings.TrimRight(string(text), "\r\n"), "\n")
	user, password, ok := strings.Cut(strings.TrimSuffix(line, "\r"), ":")
	if !ok || user == "" || password == "" || more != "" || strings.ContainsFunc(line, func(r rune) bool { return r < ' ' && r != '\r' || r == 0x7f }) {
		return "", "", &pki.ConfigError{Field: "login", File: file, Reason: pki.BadFormat, Detail: "is not one line with user:password", Mend: "write it anew"}
	}
	return user, password, nil
}

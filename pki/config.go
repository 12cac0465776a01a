package pki

import (
	"errors"
	"fmt"
	"time"
)

// defaultPoll is how often files are looked at for a change: three stat calls, and soon enough for a person who
// waits.
const defaultPoll = time.Second

// minPoll keeps a mistyped interval from becoming a busy loop.
const minPoll = 10 * time.Millisecond

// Config names the files that hold who this gateway is and whom it trusts. Cert, Key and Roots are set
// together; with all three empty, a CA and an identity are made and kept in the state folder.
type Config struct {
	// Cert is a PEM file with the gateway's certificate, an X509-SVID, followed by the intermediate CAs that
	// lead to the root, five certificates at most.
	Cert string `yaml:"cert"`
	// Key is a PEM file with the private key of Cert (PKCS #8, SEC 1 or PKCS #1; ECDSA P-256, P-384 or
	// P-521, Ed25519, or RSA of 2048 bits and more; not encrypted). Group and others must have no access to it. On a
	// tmpfs, on a read-only mount, or owned by root while the gateway is not root, that is only a warning.
	Key string `yaml:"key"`
	// Roots is a PEM file with the CA certificates that sign the identities of this trust domain, 500 at most.
	Roots string `yaml:"roots"`
	// Poll is how often the three files are looked at for a change. Default 1s, at least 10ms; negative: only on
	// SIGHUP.
	Poll time.Duration `yaml:"poll"`
}

// IsZero reports whether c names no file.
func (c *Config) IsZero() bool { return c.Cert == "" && c.Key == "" && c.Roots == "" }

// Validate reports all problems that can be seen without reading a file, joined; each is a *ConfigError.
func (c *Config) Validate() error {
	var errs []error
	fields := []struct{ name, file, what string }{
		{"cert", c.Cert, "the certificate"}, {"key", c.Key, "its private key"}, {"roots", c.Roots, "the CA certificates to trust"},
	}
	for _, f := range fields {
		if f.file == "" && !c.IsZero() {
			errs = append(errs, &ConfigError{Field: f.name, Reason: Missing, Detail: "is missing",
				Mend: "cert, key and roots go together: name the PEM file with " + f.what + ", or leave all three out"})
		}
	}
	if c.Poll > 0 && c.Poll < minPoll {
		errs = append(errs, &ConfigError{Field: "poll", Reason: BadValue, Detail: fmt.Sprintf("%v is too often", c.Poll),
			Mend: fmt.Sprintf("use %v or more, or -1s to look only on SIGHUP", minPoll)})
	}
	return errors.Join(errs...)
}

// pollInterval returns the interval to use, 0 if files are not polled.
func (c *Config) pollInterval() time.Duration {
	switch {
	case c.Poll < 0:
		return 0
	case c.Poll == 0:
		return defaultPoll
	default:
		return c.Poll
	}
}

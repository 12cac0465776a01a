package pki

import (
	"errors"
	"fmt"
	"time"
)

// defaultPoll is how often files are looked at for a change: a few stat calls, and soon enough for a flow to end within
// a second of the revocation of its peer.
const defaultPoll = 500 * time.Millisecond

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
	// WorkloadAPI is the address of the SPIFFE Workload API that gives the identity and the roots, such as
	// `unix:///run/spire/agent.sock`. It stands instead of cert, key and roots.
	WorkloadAPI string `yaml:"workloadAPI"`
	// CA signs the identity on request. It stands instead of cert, key and roots.
	CA CAConfig `yaml:"ca"`
	// SelfMade takes a key of one's own as the identity, `key:NAME`, without a CA. It is made on first start, kept in the
	// state folder, and believed by peers whose `trust.keys` has it. It stands instead of cert, key and roots.
	SelfMade bool `yaml:"selfMade"`
	// NewKeys makes a new key with each renewal that is this gateway's own to do. The name of the key (`key:NAME`) and what
	// follows from it, such as its address, change with it. Default: the key is kept.
	NewKeys bool `yaml:"newKeys"`
	// Poll is how often the three files are looked at for a change. Default 500ms, at least 10ms; negative: only on
	// SIGHUP.
	Poll time.Duration `yaml:"poll"`

	// Trust says whom to believe besides.
	Trust TrustConfig `yaml:"-"`
	// State is a folder for what has to be kept: bundles that were fetched, and identities that are not in files of others.
	State string `yaml:"-"`
}

// IsZero reports whether c names no source, so that the identity is made and kept in the state folder.
func (c *Config) IsZero() bool {
	return !c.hasFiles() && c.WorkloadAPI == "" && !c.SelfMade && c.CA.IsZero()
}

func (c *Config) hasFiles() bool { return c.Cert != "" || c.Key != "" || c.Roots != "" }

// Validate reports all problems that can be seen without reading a file, joined; each is a *ConfigError.
func (c *Config) Validate() error {
	var errs []error
	fields := []struct{ name, file, what string }{
		{"cert", c.Cert, "the certificate"}, {"key", c.Key, "its private key"}, {"roots", c.Roots, "the CA certificates to trust"},
	}
	for _, f := range fields {
		if f.file == "" && c.hasFiles() {
			errs = append(errs, &ConfigError{Field: f.name, Reason: Missing, Detail: "is missing",
				Mend: "cert, key and roots go together: name the PEM file with " + f.what + ", or leave all three out"})
		}
	}
	if c.WorkloadAPI != "" {
		if err := checkWorkloadAPI(c.WorkloadAPI); err != nil {
			errs = append(errs, err)
		}
	}
	errs = append(errs, c.CA.validate()...)
	sources := 0
	for _, named := range []bool{c.hasFiles(), c.WorkloadAPI != "", !c.CA.IsZero(), c.SelfMade} {
		if named {
			sources++
		}
	}
	if sources > 1 {
		errs = append(errs, &ConfigError{Field: "", Reason: BadValue, Detail: "there is more than one source of the identity",
			Mend: "keep one of: cert, key and roots; workloadAPI; ca; selfMade"})
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

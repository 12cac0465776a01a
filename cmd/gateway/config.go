package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"culvert/capture/names"
	"culvert/pki"
	"culvert/pki/acme"
	"culvert/pki/jwt"
	"culvert/policy/extauthz"
	"culvert/tunnel"
)

// Config is one gateway, as one YAML file or the flags of `gateway run` describe it. Zero values mean
// the defaults named at the fields; a Config is not changed after validate has accepted it. Paths in a
// file are relative to the folder of that file.
type Config struct {
	// State is the folder for what the gateway must keep, such as the identity made on first start.
	// Default: `$STATE_DIRECTORY` (systemd), `/var/lib/culvert` for root, else
	// `$XDG_STATE_HOME/culvert` or `~/.local/state/culvert`.
	State string `yaml:"state"`
	// Identity is who this gateway is. Without it a CA and an identity
	// (`spiffe://cluster.local/ns/default/sa/HOST`) are made on first start and kept in State.
	Identity pki.Config `yaml:"identity"`
	// Trust says whose identities are believed besides those of the own trust domain, and which are not any more.
	Trust pki.TrustConfig `yaml:"trust"`
	// Tokens says whose tokens (JWT) that come with requests are believed. Those of RequestAuthentications are too.
	Tokens jwt.Config `yaml:"tokens"`
	// ACME says which public names to get certificates for, for `ingress` listeners with `acme`.
	ACME acme.Config `yaml:"acme"`
	// What follows in the file is the path of flows: listeners, hops, workloads, routes, policy, timeouts.
	tunnel.Config `yaml:",inline"`
	// Authorizers are those outside that rules of action `ask` (CUSTOM of Istio's) can name, at most 64: servers of Envoy's
	// ext_authz interface, version 3, over gRPC. What one of them does not allow is refused, also when it does not answer.
	Authorizers []extauthz.Config `yaml:"policy.authorizers"`
	// DNS says how a `dns` listener answers.
	DNS names.Config `yaml:"dns"`
	// Resolver says how the addresses of names are found that this gateway connects to itself: destinations, and hops.
	Resolver names.ResolverConfig `yaml:"resolver"`
	// Admin is the address for probes, metrics and a look at the live flows.
	Admin AdminConfig `yaml:"admin"`
	// Memory is the budget of the process, such as `512MiB`. Half of it may be held by stream
	// buffers. Default: half of what the machine or the control group has.
	Memory Size `yaml:"memory"`
	// Drain is how long live flows may run on after the first SIGTERM or SIGINT, and after
	// a new process has taken this one's place (SIGUSR2). Default 30s;
	// negative: they are cut at once.
	Drain time.Duration `yaml:"drain"`
	// Log says what is logged and how.
	Log LogConfig `yaml:"log"`

	policies *policies    // what was read from Policy.Files; nil: nothing yet
	read     fileReader   // of the file and of Policy.Files; nil: readBounded
	signed   *signedFiles // that read has verified; nil: nothing has to be signed
}

// defaultDrain is the grace that container runtimes and systemd leave by default, and some.
const defaultDrain = 30 * time.Second

func (c *Config) drain() time.Duration {
	switch {
	case c.Drain < 0:
		return 0
	case c.Drain == 0:
		return defaultDrain
	}
	return c.Drain
}

// readConfig reads the file into a Config. Everything wrong with its form is in the faults; what could
// be read is in the Config, so that validate can go on and find the rest.
func readConfig(file string) (*Config, *places, *faults) { return readConfigBy(file, readBounded) }

// readConfigBy is readConfig with another way to read it, and the policies that it names.
func readConfigBy(file string, read fileReader) (*Config, *places, *faults) {
	cfg, p, f := &Config{read: read}, newPlaces(file), new(faults)
	text, err := read(file)
	if err != nil {
		f.broken = true
		f.list = append(f.list, fault{file: file, what: unreadable(err, "; name a configuration with -c FILE")})
		return cfg, p, f
	}
	(&decoder{places: p, faults: f}).decode(text, cfg)
	for i := range cfg.Authorizers {
		cfg.Policy.Authorizers = append(cfg.Policy.Authorizers, cfg.Authorizers[i].Name)
	}
	cfg.resolvePaths(filepath.Dir(file))
	return cfg, p, f
}

// maxConfigBytes is far above what a person writes, and keeps a wrong path, such as that of a disk, out of
// memory.
const maxConfigBytes = 4 << 20

func readBounded(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err == nil && len(text) > maxConfigBytes {
		err = fmt.Errorf("it is longer than %s", Size(maxConfigBytes))
	}
	return text, err
}

// resolvePaths makes the paths of a file relative to its folder.
func (c *Config) resolvePaths(dir string) {
	paths := []*string{&c.ACME.Roots, &c.ACME.ExternalAccount.KeyFile, &c.State, &c.Identity.Cert, &c.Identity.Key, &c.Identity.Roots, &c.Identity.CA.Roots, &c.Identity.CA.TokenFile}
	for i := range c.Trust.Domains {
		d := &c.Trust.Domains[i]
		if paths = append(paths, &d.Roots); !strings.Contains(d.Bundle, "://") {
			paths = append(paths, &d.Bundle)
		}
	}
	for i := range c.Tokens.Issuers {
		is := &c.Tokens.Issuers[i]
		paths = append(paths, &is.JWKSFile, &is.CAFile, &is.TokenFile)
		for j := range is.Keys {
			paths = append(paths, &is.Keys[j].File)
		}
	}
	for _, list := range [][]string{c.Trust.CRLs, c.Trust.Keys} {
		for i := range list {
			paths = append(paths, &list[i])
		}
	}
	for i := range c.Listeners {
		l := &c.Listeners[i]
		paths = append(paths, &l.SOCKS5.UsersFile, &l.HTTP.UsersFile, &l.HTTP.TokensFile, &l.Ingress.ClientRoots)
		for j := range l.Ingress.Certificates {
			paths = append(paths, &l.Ingress.Certificates[j].Cert, &l.Ingress.Certificates[j].Key)
		}
		if x := l.XTun; x != nil {
			paths = append(paths, &x.Cert, &x.Key)
		}
	}
	for name, h := range c.Hops {
		of := append(h.Token.Files(), &h.TLS.Roots, &h.Login)
		for _, p := range of {
			*p = under(dir, *p)
		}
		c.Hops[name] = h
	}
	for i := range c.Routes {
		if t := c.Routes[i].TLS; t != nil {
			paths = append(paths, &t.Roots, &t.Cert, &t.Key)
		}
	}
	for i := range c.Authorizers {
		paths = append(paths, &c.Authorizers[i].TLS.Roots)
	}
	for i := range c.Policy.Files {
		paths = append(paths, &c.Policy.Files[i])
	}
	for _, p := range paths {
		*p = under(dir, *p)
	}
}

// under is path, which is relative to dir, "" if it is that.
func under(dir, path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// stateDir is the folder of State with its default.
func (c *Config) stateDir() (string, error) {
	if c.State != "" {
		return c.State, nil
	}
	if dirs := filepath.SplitList(os.Getenv("STATE_DIRECTORY")); len(dirs) > 0 {
		return dirs[0], nil
	}
	if os.Geteuid() == 0 {
		return "/var/lib/culvert", nil
	}
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "culvert"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("no folder to keep the identity in: %w; name one with --state DIR", err)
	}
	return filepath.Join(home, ".local", "state", "culvert"), nil
}

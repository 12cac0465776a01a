package main

import (
	"context"
	"crypto"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"culvert/capture"
	"culvert/pki"
	"culvert/pki/jwt"
	"culvert/policy"
	"culvert/tunnel"
	"culvert/tunnel/ingress"
)

func checkCommand() *cobra.Command {
	r := new(runFlags)
	var noFiles bool
	cmd := &cobra.Command{
		Use:   "check -c FILE",
		Short: "Check a configuration and report everything that is wrong with it",
		Long: `Check a configuration without starting anything. Every fault is reported at once, as
file:line: what, and what would be right. The exit code is 0 when there is none, else 2.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r.changed = cmd.Flags().Changed
			if r.file == "" {
				return (&faults{list: []fault{{flag: "--config", what: "no configuration is named; give -c FILE, such as `gateway check -c gateway.yaml` " +
					"(flags of `gateway run` are checked by it before it starts)"}}}).err()
			}
			return check(cmd.OutOrStdout(), cmd.ErrOrStderr(), r, noFiles)
		},
	}
	r.addFile(cmd.Flags())
	r.addConfigKey(cmd.Flags())
	cmd.Flags().BoolVar(&noFiles, "no-files", false, "do not read the files that it names, such as keys on another host")
	if err := cmd.MarkFlagFilename("config", "yaml", "yml"); err != nil {
		panic("BUG: " + err.Error())
	}
	return cmd
}

func check(stdout, stderr io.Writer, r *runFlags, noFiles bool) error {
	cfg, p, f := r.readFile()
	validate(cfg, p, f)
	if !noFiles {
		checkFiles(cfg, p, f, newLogging(stderr, LogConfig{Level: "warn"}).Logger)
	}
	if err := f.err(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(stdout, "%s is right: %s\n", r.file, summary(cfg))
	return failed(err)
}

// checkFiles reads every file that cfg names, as build does, and notes what is wrong with them.
func checkFiles(cfg *Config, p *places, f *faults, log *slog.Logger) {
	v := &validator{cfg: cfg, places: p, faults: f}
	checkPolicies(cfg, f)
	if cfg.Identity.Validate() == nil && cfg.Trust.Validate() == nil {
		_, err := pki.Load(cfg.identity(), log)
		v.join("identity", err)
	}
	v.tokenFiles()
	v.proxyFiles()
	for i := range cfg.Authorizers {
		v.join(fmt.Sprintf("policy.authorizers[%d]", i), cfg.Authorizers[i].CheckFiles())
	}
	for i := range cfg.Routes {
		if t := cfg.Routes[i].TLS; t != nil {
			v.join(fmt.Sprintf("routes[%d].tls", i), pki.CheckClientFiles(t.Roots, t.Cert, t.Key))
		}
	}
	for i, l := range cfg.Listeners {
		var warnings []string
		for j, c := range l.Ingress.Certificates {
			if err := ingress.CheckCertificate(c); err != nil && c.Cert != "" {
				v.note(fmt.Sprintf("listeners[%d].ingress.certificates[%d]", i, j), "%v", err)
			}
		}
		if l.SOCKS5.UsersFile != "" && (l.Kind == tunnel.KindSOCKS5 || l.Kind == tunnel.KindProxy) {
			way, err := capture.NewSocks5(l.SOCKS5)
			v.join(fmt.Sprintf("listeners[%d].socks5", i), err)
			if err == nil {
				warnings = way.Warnings()
			}
		}
		if l.HTTP.UsersFile+l.HTTP.TokensFile != "" && (l.Kind == tunnel.KindHTTPProxy || l.Kind == tunnel.KindProxy) {
			way, err := capture.NewHTTPProxy(l.HTTP)
			v.join(fmt.Sprintf("listeners[%d].http", i), err)
			if err == nil {
				warnings = append(warnings, way.Warnings()...)
			}
		}
		for _, warning := range warnings {
			log.Warn("login", "listener", l.Name, "reason", warning)
		}
	}
}

// proxyFiles reads the files that stand for tunnels through proxies of others: certificates, and what tokens are made of.
func (v *validator) proxyFiles() {
	for i := range v.cfg.Listeners {
		if x := v.cfg.Listeners[i].XTun; x != nil && x.Cert != "" && x.Key != "" {
			v.join(fmt.Sprintf("listeners[%d].xTun", i), pki.CheckClientFiles("", x.Cert, x.Key))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(v.cfg.Hops)) {
		h := v.cfg.Hops[name]
		if h.Login != "" {
			_, _, err := readLogin(h.Login)
			v.join("hops."+name, err)
		}
		if h.TLS.Roots != "" {
			v.join("hops."+name+".tls", pki.CheckClientFiles(h.TLS.Roots, "", ""))
		}
		for _, file := range h.Token.Files() {
			if *file == "" {
				continue
			}
			if _, err := readBounded(*file); err != nil {
				v.note("hops."+name, "%s", unreadable(err, "; name a file that is there"))
			}
		}
	}
}

// tokenFiles reads the files of issuers. Keys that are elsewhere are not asked for.
func (v *validator) tokenFiles() {
	if v.cfg.Tokens.Validate() != nil {
		return // validate has noted it
	}
	tokens, err := jwt.New(v.cfg.Tokens, jwt.Env{
		PinnedKey:   func(string) crypto.PublicKey { return nil },
		DialContext: func(context.Context, string, string) (net.Conn, error) { return nil, net.ErrClosed },
	})
	v.join("tokens", err)
	if tokens != nil {
		_ = tokens.Close() // it returns nil
	}
}

// checkPolicies reads the policies of cfg and notes what is wrong with them.
func checkPolicies(cfg *Config, f *faults) {
	read := cfg.read
	if read == nil {
		read = readBounded
	}
	cfg.Policy.TrustDomainAliases = cfg.Trust.Aliases
	cfg.Policy.TokenIssuers = cfg.Tokens.Names()
	cfg.policies = readPoliciesBy(cfg.Policy.Files, f, read)
	cfg.policies.compile(policy.Config{Authorizers: cfg.Policy.Authorizers})
	cfg.policies.checkTokens(cfg)
	cfg.policies.into(&cfg.Policy)
}

// summary counts what a configuration has.
func summary(cfg *Config) string {
	var parts []string
	for _, c := range []struct {
		n    int
		what string
	}{{len(cfg.Listeners), "listener"}, {len(cfg.Hops), "hop"}, {len(cfg.Routes), "route"}} {
		plural := "s"
		if c.n == 1 {
			plural = ""
		}
		parts = append(parts, fmt.Sprintf("%d %s%s", c.n, c.what, plural))
	}
	return strings.Join(parts, ", ")
}

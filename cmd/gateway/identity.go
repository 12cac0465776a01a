package main

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"culvert/pki"
	"culvert/pki/spiffe"
	"culvert/tunnel"
)

// identity is who this gateway is. A reload may put another source in its place; handshakes that begin
// then use that one, and connections that stand go on. All methods may be called concurrently.
type identity struct {
	current atomic.Pointer[identitySource]
}

// identitySource is a source with the TLS configuration that is made of it once.
type identitySource struct {
	*pki.Source
	server *tls.Config
}

func newIdentity(source *pki.Source) *identity {
	i := new(identity)
	i.swap(source)
	return i
}

// swap makes source the one to use and returns the one before, nil if there was none.
func (i *identity) swap(source *pki.Source) *pki.Source {
	// Who the peer may be is left to policy, which answers in HTTP. TLS already refuses other trust domains.
	old := i.current.Swap(&identitySource{Source: source, server: source.ServerTLS(nil)})
	if old == nil {
		return nil
	}
	return old.Source
}

// changed returns a channel that is closed when who we are, or whom we believe, changes.
func (i *identity) changed() <-chan struct{} { return i.current.Load().Changed() }

// expired reports whether the certificate's time is over.
func (i *identity) expired() bool { return time.Now().After(i.current.Load().Current().NotAfter) }

func (i *identity) self() spiffe.ID { return i.current.Load().ID() }

// serverTLS is tunnel.Env.ServerTLS.
func (i *identity) serverTLS(string) *tls.Config { return i.current.Load().server }

// clientTLS is tunnel.Env.ClientTLS.
func (i *identity) clientTLS(hop *tunnel.Hop) *tls.Config {
	return i.current.Load().ClientTLS(i.verifier(hop.Identities...))
}

// identify is tunnel.Env.Identify.
func (i *identity) identify(cs *tls.ConnectionState, at netip.Addr) (spiffe.ID, error) {
	return i.current.Load().Identify(cs, at)
}

// pinned is jwt.Env.PinnedKey.
func (i *identity) pinned(name string) crypto.PublicKey { return i.current.Load().PinnedKey(name) }

// sign is bearer.Env.Sign.
func (i *identity) sign(audience string) (token string, until time.Time, err error) {
	return i.current.Load().SignJWT(audience)
}

// doubt is tunnel.Env.Doubt.
func (i *identity) doubt(certs []*x509.Certificate, server bool) error {
	return i.current.Load().Doubt(certs, server)
}

// authorizerTLS is extauthz.Env.ClientTLS.
func (i *identity) authorizerTLS(id spiffe.ID) *tls.Config {
	if id.IsZero() {
		return i.current.Load().ClientTLS(i.verifier())
	}
	return i.current.Load().ClientTLS(i.verifier(id))
}

// verifier says who a hop, or an authorizer, may be: the one that the configuration names, or anybody of the own trust domain
// and namespace.
func (i *identity) verifier(ids ...spiffe.ID) func(spiffe.ID) error {
	if len(ids) == 0 {
		return i.current.Load().Neighbour
	}
	return pki.Exactly(ids...)
}

// openIdentity opens the identity that cfg names, or the one kept in the state folder, made on first
// start. Faults of the files are faults of the configuration.
func openIdentity(ctx context.Context, cfg *Config, p *places, log *slog.Logger) (*pki.Source, error) {
	dir, err := cfg.stateDir()
	if err != nil && cfg.needsState() {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	from := cfg.identity()
	from.State = dir
	source, err := pki.Open(ctx, from, host, log)
	var file *pki.ConfigError
	if errors.As(err, &file) && (!cfg.Identity.IsZero() || strings.HasPrefix(file.Field, "trust.")) {
		f := new(faults)
		(&validator{cfg: cfg, places: p, faults: f}).join("identity", err)
		return nil, f
	}
	return source, err
}

// identity is what pki is told of who this gateway is and whom it believes.
func (c *Config) identity() pki.Config {
	id := c.Identity
	id.Trust = c.Trust
	id.State, _ = c.stateDir() // where it is needed, openIdentity says why there is none
	return id
}

// needsState reports whether something about identities is kept in the state folder.
func (c *Config) needsState() bool {
	fetched := slices.ContainsFunc(c.Trust.Domains, func(d pki.DomainConfig) bool { return strings.Contains(d.Bundle, "://") })
	return c.Identity.IsZero() || c.Identity.SelfMade || c.wantsACME() || !c.Identity.CA.IsZero() || fetched
}

// identityConfig makes the part of a Config that says who this gateway is: for commands that connect to
// others and do not listen.
func (r *runFlags) identityConfig() (*Config, *places, *faults) {
	if r.file != "" {
		return r.config()
	}
	cfg, p, f := new(Config), newPlaces(""), new(faults)
	cfg.State = r.state
	r.identity(cfg, p)
	(&validator{cfg: cfg, places: p, faults: f}).join("identity", cfg.Identity.Validate())
	return cfg, p, f
}

// identity takes the flags that name the identity's files.
func (r *runFlags) identity(cfg *Config, p *places) {
	cfg.Identity.Cert, cfg.Identity.Key, cfg.Identity.Roots = r.cert, r.key, r.roots
	p.flags["identity.cert"], p.flags["identity.key"], p.flags["identity.roots"] = "--cert", "--key", "--roots"
}

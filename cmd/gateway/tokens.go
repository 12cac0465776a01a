package main

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"

	"culvert/pki/jwt"
	"culvert/policy"
	"culvert/tunnel"
)

// tokens verifies the tokens that come with requests. A reload may put other issuers in place; tokens that were verified
// before go on to count where their issuer does.
type tokens struct {
	// immutable after newTokens
	log    *slog.Logger
	pinned func(name string) crypto.PublicKey
	dial   func(ctx context.Context, network, addr string) (net.Conn, error)

	current atomic.Pointer[tokenVerifier] // nil: no token is looked at

	refreshes, refreshesFailed atomic.Int64
}

// tokenVerifier is a verifier and what it was made of.
type tokenVerifier struct {
	*jwt.Verifier
	cfg jwt.Config
}

// prepare makes a verifier for cfg, or takes the one that is there where nothing has changed. It is not in place before
// swap; what is not put in place is given to drop.
func (t *tokens) prepare(cfg *Config) (*tokenVerifier, error) {
	of := cfg.issuers()
	if of.IsZero() {
		return nil, nil
	}
	if v := t.current.Load(); v != nil && reflect.DeepEqual(v.cfg, of) {
		return v, nil
	}
	v, err := jwt.New(of, jwt.Env{DialContext: t.dial, PinnedKey: t.pinned, Refreshed: t.refreshed})
	if err != nil {
		return nil, err
	}
	return &tokenVerifier{Verifier: v, cfg: of}, nil
}

// swap puts v in place.
func (t *tokens) swap(v *tokenVerifier) { t.drop(t.current.Swap(v)) }

// drop ends a verifier that is not in place.
func (t *tokens) drop(v *tokenVerifier) {
	if v != nil && v != t.current.Load() {
		_ = v.Close() // it returns nil
	}
}

// changed returns a channel that is closed when an issuer withdraws a key; nil, which never is, without issuers.
func (t *tokens) changed() <-chan struct{} {
	if v := t.current.Load(); v != nil {
		return v.Changed()
	}
	return nil
}

// stats are the figures of the verifier in place.
func (t *tokens) stats() jwt.Stats {
	if v := t.current.Load(); v != nil {
		return v.Stats()
	}
	return jwt.Stats{}
}

func (t *tokens) refreshed(issuer string, err error) {
	t.refreshes.Add(1)
	if err != nil {
		t.refreshesFailed.Add(1)
		t.log.Warn("keys of an issuer cannot be read, those that are there count for a day", "issuer", issuer, "err", err)
	}
}

// verify is tunnel.Env.VerifyToken.
func (t *tokens) verify(ctx context.Context, text string) (*tunnel.Token, error) {
	v := t.current.Load()
	if v == nil {
		return nil, nil
	}
	token, err := v.Verify(ctx, text)
	if err != nil {
		return nil, err
	}
	return &tunnel.Token{
		Token: policy.Token{
			Issuer: token.Issuer, Subject: token.Subject, AuthorizedParty: token.AuthorizedParty, Audiences: token.Audiences, Claims: token.Claims,
		},
		Until: token.NotAfter,
		Valid: func() bool { return t.takes(token) },
	}, nil
}

// takes reports whether a token would be taken now, by the verifier that is in place: keys are followed there only.
func (t *tokens) takes(token *jwt.Token) bool {
	v := t.current.Load()
	return v != nil && v.Valid(token)
}

// issuers are those of `tokens` and those that RequestAuthentications name, whose audiences policy looks at. Of an issuer that
// is in both the keys are those of `tokens`.
func (c *Config) issuers() jwt.Config {
	of := c.Tokens
	of.Issuers = slices.Clone(of.Issuers)
	for i := range c.Policy.TokenRules {
		r := &c.Policy.TokenRules[i]
		if slices.ContainsFunc(of.Issuers, func(i jwt.IssuerConfig) bool { return i.Issuer == r.Issuer }) {
			continue
		}
		of.Issuers = append(of.Issuers, issuerOf(r))
	}
	return of
}

// issuerOf is the issuer that a RequestAuthentication names.
func issuerOf(r *policy.TokenRule) jwt.IssuerConfig {
	return jwt.IssuerConfig{Issuer: r.Issuer, AnyAudience: true, JWKS: r.JWKS, JWKSURI: r.JWKSURI, LoopbackHTTP: r.JWKSURI != ""}
}

// eachTokenFault calls note with each fault that jwt.Config.Validate has joined.
func eachTokenFault(err error, note func(*jwt.ConfigError)) {
	many, _ := err.(interface{ Unwrap() []error })
	if many == nil {
		return
	}
	for _, one := range many.Unwrap() {
		var e *jwt.ConfigError
		if errors.As(one, &e) {
			note(e)
		}
	}
}

// checkTokens notes what is wrong with the issuers of policies: keys that cannot be used, those that give other keys to an
// issuer than another, and what is not done as they say.
func (p *policies) checkTokens(c *Config) {
	first := make(map[string]int)
	for i := range p.tokens {
		r := &p.tokens[i]
		note := func(at, format string, args ...any) {
			p.join(&policy.TokenRuleError{Index: i, At: r.At + "." + at, Reason: fmt.Sprintf(format, args...)})
		}
		if r.Timeout != 0 {
			note("timeout", "keys are fetched in the background, and no request waits so long for them; remove it")
		}
		if slices.ContainsFunc(c.Tokens.Issuers, func(i jwt.IssuerConfig) bool { return i.Issuer == r.Issuer }) {
			continue // whose keys count
		}
		if j, known := first[r.Issuer]; !known {
			first[r.Issuer] = i
			of := jwt.Config{Issuers: []jwt.IssuerConfig{issuerOf(r)}}
			eachTokenFault(of.Validate(), func(e *jwt.ConfigError) { note(strings.TrimPrefix(e.Field, "issuers[0]."), "%s", e.What) })
		} else if other := &p.tokens[j]; other.JWKS != r.JWKS || other.JWKSURI != r.JWKSURI {
			note("issuer", "has other keys than in %s (%s); an issuer has one set of keys here: write it in `tokens` of the configuration", other.Name, other.Place)
		}
	}
}

// tokenFaults puts lines to what is wrong with issuers.
func tokenFaults(cfg *Config, p *places, err error) error {
	f := new(faults)
	(&validator{cfg: cfg, places: p, faults: f}).join("tokens", err)
	return f
}

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"culvert/pki/jwt"
	"culvert/pki/spiffe"
)

// CATokens says whose tokens `gateway ca serve --tokens FILE` takes for a certificate, besides its own join tokens.
type CATokens struct {
	jwt.Config `yaml:",inline"`
	// Identities are the SPIFFE IDs that bearers of an issuer's tokens get, by issuer, such as
	// `spiffe://cluster.local/ns/people/sa/{sub}`; `{NAME}` stands for a claim that is one text of letters, digits, ".", "-" and
	// "_". An issuer of Kubernetes needs none: a service account gets `spiffe://TRUSTDOMAIN/ns/NAMESPACE/sa/ACCOUNT`.
	Identities map[string]string `yaml:"identities"`
}

// claimName finds the claims in an entry of CATokens.Identities.
var claimName = regexp.MustCompile(`\{([A-Za-z0-9_.-]+)\}`) // it is never changed

// caTokens verifies tokens for a CA.
type caTokens struct {
	verifier   *jwt.Verifier
	kubernetes string // the trust domain of service accounts
	identities map[string]string
}

// readCATokens reads the file and begins to fetch keys; trustDomain is that of the CA.
func readCATokens(file, trustDomain string) (*caTokens, error) {
	cfg, p, f := new(CATokens), newPlaces(file), new(faults)
	text, err := readBounded(file)
	if err != nil {
		return nil, fmt.Errorf("--tokens: %w", err)
	}
	d := &decoder{places: p, faults: f}
	d.decode(text, cfg)
	for i := range cfg.Issuers {
		is := &cfg.Issuers[i]
		files := []*string{&is.JWKSFile, &is.CAFile, &is.TokenFile}
		for j := range is.Keys {
			files = append(files, &is.Keys[j].File)
		}
		for _, path := range files {
			if *path != "" && !filepath.IsAbs(*path) {
				*path = filepath.Join(filepath.Dir(file), *path)
			}
		}
	}
	v := &validator{cfg: new(Config), places: p, faults: f}
	cfg.validate(v)
	if err := f.err(); err != nil {
		return nil, err
	}
	t := &caTokens{kubernetes: trustDomain, identities: cfg.Identities}
	t.verifier, err = jwt.New(cfg.Config, jwt.Env{})
	if err != nil {
		v.join("", err)
		return nil, f.err()
	}
	return t, nil
}

// validate notes what is wrong.
func (c *CATokens) validate(v *validator) {
	v.join("", c.Config.Validate())
	if c.SelfSigned != nil {
		v.note("selfSigned", "a CA knows no self-made keys; remove it")
	}
	known := make(map[string]bool)
	for i := range c.Issuers {
		is := &c.Issuers[i]
		known[is.Issuer] = true
		switch identity := c.Identities[is.Issuer]; {
		case identity == "" && !is.Kubernetes:
			v.note(fmt.Sprintf("issuers[%d].issuer", i), "%q has no entry in identities, so nobody could use its tokens; add one, such as spiffe://cluster.local/ns/people/sa/{sub}", is.Issuer)
		case identity != "":
			if _, err := spiffe.Parse(claimName.ReplaceAllString(identity, "x")); err != nil {
				v.note("identities."+is.Issuer, "%v; it should be like spiffe://cluster.local/ns/people/sa/{sub}", err)
			}
		}
	}
	for issuer := range c.Identities {
		if !known[issuer] {
			v.note("identities."+issuer, "%q is no issuer of this file", issuer)
		}
	}
}

// errNotOneSegment is why a claim names nobody.
var errNotOneSegment = errors.New("it is not one text of letters, digits, \".\", \"-\" and \"_\"")

// identify is pki.AuthorityConfig.Tokens.
func (t *caTokens) identify(ctx context.Context, text string) (spiffe.ID, error) {
	token, err := t.verifier.Verify(ctx, text)
	if err != nil {
		return spiffe.ID{}, err
	}
	pattern := t.identities[token.Issuer]
	if k := token.Kubernetes; k != nil && pattern == "" {
		return spiffe.New(t.kubernetes, k.Namespace, k.ServiceAccount)
	}
	id := claimName.ReplaceAllStringFunc(pattern, func(name string) string {
		name = strings.Trim(name, "{}")
		value, ok := token.Claims[name].(string)
		if _, bad := spiffe.New("x", "x", value); !ok || bad != nil { // a value with a slash would be a path of its own
			err = errors.Join(err, fmt.Errorf("claim %q: %w", name, errNotOneSegment))
		}
		return value
	})
	if err != nil {
		return spiffe.ID{}, err
	}
	return spiffe.Parse(id)
}

// close ends the fetching of keys.
func (t *caTokens) close() { _ = t.verifier.Close() } // it returns nil

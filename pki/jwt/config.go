package jwt

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// Bounds and defaults of the configuration.
const (
	defaultLeeway = 30 * time.Second
	// maxLeeway is for clocks that are a little off. More makes a token live on after its end.
	maxLeeway = time.Minute
	// maxIssuers bounds goroutines and memory: each issuer with an address has one goroutine and up to 32 keys.
	maxIssuers = 64
	// defaultEntries of 16 KiB at the very most, about 2 KiB usually.
	defaultEntries = 16_384
	// minEntries is what one issuer needs for the bound of one subject to mean anything.
	minEntries = 16
	// maxNameBytes bounds issuers and audiences of the configuration.
	maxNameBytes = 1024
)

// Config says whose tokens are believed. The zero value believes none. It is not changed after it was handed over.
type Config struct {
	// Issuers are those whose tokens are taken, 64 at most, each named once.
	Issuers []IssuerConfig `yaml:"issuers"`
	// SelfSigned, if present, takes tokens that a self-made key (`key:…`) signs for itself, where that key is allowed.
	SelfSigned *SelfSignedConfig `yaml:"selfSigned"`
	// Leeway is how far clocks may differ, for the beginning and the end of a token. Default 30s, 60s at most; negative:
	// none.
	Leeway time.Duration `yaml:"leeway"`
	// CacheEntries is how many verified tokens are remembered, shared out evenly among the issuers, an eighth of its share
	// at most for one subject. Default 16384; negative: none.
	CacheEntries int `yaml:"cacheEntries"`
}

// IssuerConfig is one issuer. Its keys come from exactly one of JWKS, JWKSFile, JWKSURI and Discovery, or from Keys
// alone.
type IssuerConfig struct {
	// Issuer is the `iss` of its tokens, compared byte for byte, such as `https://accounts.example`.
	Issuer string `yaml:"issuer"`
	// Audiences are the `aud` values of which a token must have one.
	Audiences []string `yaml:"audiences"`
	// AnyAudience takes tokens that were made for others, too. Whoever gets such a token can use it here.
	AnyAudience bool `yaml:"anyAudience"`
	// JWKS is the key set itself, as JSON.
	JWKS string `yaml:"jwks"`
	// JWKSFile is a file with the key set, read again every minute.
	JWKSFile string `yaml:"jwksFile"`
	// JWKSURI is the https address of the key set.
	JWKSURI string `yaml:"jwksUri"`
	// Discovery finds the key set by `/.well-known/openid-configuration` below Issuer, which must be an https address.
	Discovery bool `yaml:"discovery"`
	// Hosts are the hosts, as `name` or `name:port`, where Discovery may find the key set. Default: the issuer's.
	Hosts []string `yaml:"hosts"`
	// Keys are fixed public keys, beside the key set or in its place.
	Keys []KeyConfig `yaml:"keys"`
	// CAFile is a PEM file with the CAs for the https address. Default: those of the system.
	CAFile string `yaml:"caFile"`
	// TokenFile is a file with a token that is sent to the https address, as the API server of Kubernetes wants it. It is
	// read again for each request.
	TokenFile string `yaml:"tokenFile"`
	// LoopbackHTTP lets JWKSURI and Discovery be http where the host is a loopback address.
	LoopbackHTTP bool `yaml:"loopbackHttp"`
	// Kubernetes takes only tokens of service accounts, and gives their namespace and name to policy. That a pod or account
	// was deleted since shows at the token's end only.
	Kubernetes bool `yaml:"kubernetes"`
}

// KeyConfig is a fixed public key.
type KeyConfig struct {
	// ID is the `kid` of tokens that it signs. Default: tokens without one.
	ID string `yaml:"id"`
	// File is a PEM file with the public key (PUBLIC KEY), or with a certificate whose key it is.
	File string `yaml:"file"`
}

// SelfSignedConfig takes tokens of self-made keys.
type SelfSignedConfig struct {
	// Audiences are the `aud` values of which a token must have one.
	Audiences []string `yaml:"audiences"`
	// AnyAudience takes tokens that were made for others, too.
	AnyAudience bool `yaml:"anyAudience"`
}

// IsZero reports whether c takes no token at all.
func (c *Config) IsZero() bool { return len(c.Issuers) == 0 && c.SelfSigned == nil }

// Names are the issuers, as tokens have them.
func (c *Config) Names() (list []string) {
	for i := range c.Issuers {
		list = append(list, c.Issuers[i].Issuer)
	}
	return list
}

// Validate reports all problems that can be seen without reading a file, joined; each is a *ConfigError.
func (c *Config) Validate() error {
	var p problems
	if c.Leeway > maxLeeway {
		p.add("leeway", "%v is too long; use %v or less", c.Leeway, maxLeeway)
	}
	if c.CacheEntries > 0 && c.CacheEntries < minEntries {
		p.add("cacheEntries", "%d is too few; use %d or more, or -1 for none", c.CacheEntries, minEntries)
	}
	if len(c.Issuers) > maxIssuers {
		p.add("issuers", "there are %d; use %d or fewer", len(c.Issuers), maxIssuers)
	}
	seen := make(map[string]bool)
	for i := range c.Issuers {
		at := fmt.Sprintf("issuers[%d].", i)
		iss := &c.Issuers[i]
		if seen[iss.Issuer] {
			p.add(at+"issuer", "%q is there already; give one entry all its audiences", iss.Issuer)
		}
		seen[iss.Issuer] = true
		iss.validate(&p, at)
	}
	if c.SelfSigned != nil {
		validateAudiences(&p, "selfSigned.", c.SelfSigned.Audiences, c.SelfSigned.AnyAudience)
	}
	return errors.Join(p...)
}

// validate reports the problems of one issuer, whose fields are below at.
func (c *IssuerConfig) validate(p *problems, at string) {
	switch {
	case c.Issuer == "":
		p.add(at+"issuer", "is missing; give the iss that its tokens have")
	case len(c.Issuer) > maxNameBytes || hasControl(c.Issuer):
		p.add(at+"issuer", "is too long or has control characters; give the iss that its tokens have")
	case strings.HasPrefix(c.Issuer, keyScheme):
		p.add(at+"issuer", "%q is the name of a self-made key; use selfSigned for those", c.Issuer)
	}
	validateAudiences(p, at, c.Audiences, c.AnyAudience)
	c.validateSource(p, at)
	for i, key := range c.Keys {
		field := fmt.Sprintf("%skeys[%d].", at, i)
		if key.File == "" {
			p.add(field+"file", "is missing; name a PEM file with a public key")
		}
		if len(key.ID) > maxKeyIDBytes {
			p.add(field+"id", "is longer than %d bytes", maxKeyIDBytes)
		}
	}
}

// validateSource reports where the keys come from in no way, or in more than one.
func (c *IssuerConfig) validateSource(p *problems, at string) {
	n := 0
	for _, set := range []bool{c.JWKS != "", c.JWKSFile != "", c.JWKSURI != "", c.Discovery} {
		if set {
			n++
		}
	}
	if n > 1 || n == 0 && len(c.Keys) == 0 {
		p.add(at+"jwks", "%d of jwks, jwksFile, jwksUri and discovery are set; set one, or keys alone", n)
	}
	remote := c.JWKSURI != "" || c.Discovery
	if c.JWKSURI != "" {
		c.validateURL(p, at+"jwksUri", c.JWKSURI)
	}
	if c.Discovery {
		c.validateURL(p, at+"issuer", c.Issuer)
	} else if len(c.Hosts) > 0 {
		p.add(at+"hosts", "is only for discovery; leave it out")
	}
	for i, host := range c.Hosts {
		if u, err := url.Parse("https://" + host); err != nil || u.Host != host || host == "" || strings.ToLower(host) != host {
			p.add(fmt.Sprintf("%shosts[%d]", at, i), "%q is no host; write it as name or name:port, in lower case", host)
		}
	}
	if !remote && (c.CAFile != "" || c.TokenFile != "" || c.LoopbackHTTP) {
		p.add(at+"jwksUri", "is missing, and caFile, tokenFile and loopbackHttp are only for it or discovery")
	}
	if c.JWKS != "" {
		if _, err := parseSet([]byte(c.JWKS), nil); err != nil {
			p.add(at+"jwks", "%v", err)
		}
	}
}

// validateURL reports an address that keys are not fetched from.
func (c *IssuerConfig) validateURL(p *problems, field, text string) {
	if _, err := parseAddress(text, c.LoopbackHTTP); err != nil {
		p.add(field, "%v", err)
	}
}

// parseAddress reads an address that keys may be fetched from: https, or http to a loopback address where that is
// allowed.
func parseAddress(text string, loopbackHTTP bool) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || len(text) > maxNameBytes {
		return nil, fmt.Errorf("%q is no address; it should be like https://accounts.example/keys", clip(text))
	}
	switch {
	case u.Hostname() == "" || u.User != nil || u.Fragment != "" || u.Opaque != "":
		return nil, fmt.Errorf("%q is no address for keys; it should be like https://accounts.example/keys", clip(text))
	case u.Scheme == "https", u.Scheme == "http" && loopbackHTTP && isLoopback(u.Hostname()):
		return u, nil
	default:
		return nil, fmt.Errorf("%q is not https; keys that come over anything else are anybody's", clip(text))
	}
}

// isLoopback reports whether host is a loopback address. A name is none, as anybody may say where it leads.
func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

// hostOf is the host of u with its port, for comparing.
func hostOf(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

func validateAudiences(p *problems, at string, audiences []string, anyAudience bool) {
	if len(audiences) == 0 && !anyAudience {
		p.add(at+"audiences", "is missing; name what its tokens for this gateway have as aud, or set anyAudience")
	}
	if len(audiences) > 0 && anyAudience {
		p.add(at+"anyAudience", "makes audiences pointless; set one of the two")
	}
	for i, aud := range audiences {
		if aud == "" || len(aud) > maxNameBytes {
			p.add(fmt.Sprintf("%saudiences[%d]", at, i), "is empty or longer than %d bytes", maxNameBytes)
		}
	}
}

// leeway returns the one to use.
func (c *Config) leeway() time.Duration {
	switch {
	case c.Leeway < 0:
		return 0
	case c.Leeway == 0:
		return defaultLeeway
	default:
		return c.Leeway
	}
}

// entries returns how many results to keep, 0 for none.
func (c *Config) entries() int {
	switch {
	case c.CacheEntries < 0:
		return 0
	case c.CacheEntries == 0:
		return defaultEntries
	default:
		return c.CacheEntries
	}
}

// problems collects what is wrong with a configuration.
type problems []error

func (p *problems) add(field, format string, args ...any) {
	*p = append(*p, &ConfigError{Field: field, What: fmt.Sprintf(format, args...)})
}

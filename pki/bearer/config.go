package bearer

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
)

// Config says where the token comes from that a proxy wants to see: exactly one of File, OIDC and Sign. It is not changed
// after it was handed over.
type Config struct {
	// File is a file with the token, a JWT on one line. It is read again for each use, so that another program may renew it.
	File string `yaml:"file"`
	// OIDC gets the token from an OpenID Connect provider, with client credentials.
	OIDC *OIDCConfig `yaml:"oidc"`
	// Sign has this gateway sign the token with the key of its identity, which is issuer and subject, for five minutes each.
	Sign bool `yaml:"sign"`
	// Audience is the `aud` of a token that is signed here. Default: the name of the proxy.
	Audience string `yaml:"audience"`
}

// OIDCConfig gets tokens with the client credentials grant (RFC 6749, section 4.4). One is kept until shortly before its end.
type OIDCConfig struct {
	// TokenURL is the token endpoint, an https address. Redirects are not followed.
	TokenURL string `yaml:"tokenUrl"`
	// ID is the client's name. Either this or IDFile.
	ID string `yaml:"id"`
	// IDFile is a file with the client's name.
	IDFile string `yaml:"idFile"`
	// SecretFile is a file with the client's secret. It is read again for each token.
	SecretFile string `yaml:"secretFile"`
	// Scope is asked for, where the provider wants that: `openid email`.
	Scope string `yaml:"scope"`
	// Audience is asked for, as several providers want it.
	Audience string `yaml:"audience"`
	// CAFile is a PEM file with the CAs for the https address. Default: those of the system.
	CAFile string `yaml:"caFile"`
	// LoopbackHTTP lets TokenURL be http where the host is a loopback address.
	LoopbackHTTP bool `yaml:"loopbackHttp"`
}

// FieldError is one field of a Config that is wrong.
type FieldError struct {
	Field string // the field as in the configuration file, such as "oidc.tokenUrl"; "" for the whole
	What  string // what is wrong, and what would be right
}

// Error returns "FIELD: WHAT".
func (e *FieldError) Error() string { return e.Field + ": " + e.What }

// IsZero reports whether there is no token at all.
func (c *Config) IsZero() bool { return *c == Config{} }

// Validate reports all problems, joined; each is a *FieldError. It reads no file. The zero value is good.
func (c *Config) Validate() error {
	var errs []error
	note := func(field, format string, args ...any) {
		errs = append(errs, &FieldError{field, fmt.Sprintf(format, args...)})
	}
	n := 0
	for _, there := range []bool{c.File != "", c.OIDC != nil, c.Sign} {
		if there {
			n++
		}
	}
	switch {
	case n > 1:
		note("", "there are several places for one token; write one of file, oidc and sign")
	case n == 0 && !c.IsZero():
		note("", "there is no place for the token; write one of file: FILE, oidc: {…} and sign: true")
	}
	if c.Audience != "" && !c.Sign {
		note("audience", "only a token that is signed here has it (sign: true); that of a provider is oidc.audience")
	}
	if o := c.OIDC; o != nil {
		if what := o.addressProblem(); what != "" {
			note("oidc.tokenUrl", "%s", what)
		}
		if (o.ID == "") == (o.IDFile == "") {
			note("oidc.id", "the client's name is in id or in idFile; write one of them")
		}
		if o.SecretFile == "" {
			note("oidc.secretFile", "it is missing; name a file with the client's secret")
		}
	}
	return errors.Join(errs...)
}

// Files are the places in c where files are named.
func (c *Config) Files() []*string {
	list := []*string{&c.File}
	if o := c.OIDC; o != nil {
		list = append(list, &o.IDFile, &o.SecretFile, &o.CAFile)
	}
	return list
}

// addressProblem says why TokenURL cannot be asked, "" if it can.
func (o *OIDCConfig) addressProblem() string {
	u, err := url.Parse(o.TokenURL)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" {
		return fmt.Sprintf("%q is no address of a token endpoint; it should be like https://accounts.example/token", o.TokenURL)
	}
	addr, err := netip.ParseAddr(u.Hostname())
	loopback := u.Hostname() == "localhost" || err == nil && addr.IsLoopback()
	switch {
	case u.Scheme == "https" || u.Scheme == "http" && o.LoopbackHTTP && loopback:
		return ""
	case u.Scheme == "http" && loopback:
		return "the secret would go over http; write https, or loopbackHttp: true if that is meant"
	}
	return fmt.Sprintf("the secret goes over https only, and this is %q", u.Scheme)
}

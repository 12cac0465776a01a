package extauthz

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"culvert/pki/spiffe"
)

// Config is one external authorizer: a server of Envoy's ext_authz interface over gRPC. A flow that it has to allow is
// refused where it does not answer. It is not changed after it was handed over.
type Config struct {
	// Name is what rules call the authorizer: at most 63 letters, digits, `-`, `_` and `.`. Required, unique.
	Name string `yaml:"name"`
	// Address is where it listens: `host:port`, or `unix:/path` for a socket of this host. Required.
	Address string `yaml:"address"`
	// TLS says how the connection to it is protected. Required where Address is not one of this host.
	TLS TLSConfig `yaml:"tls"`
	// Timeout is how long a flow waits for the answer at most, connecting and waiting for its turn included; then it is
	// refused. It is part of what every flow waits that is asked about. Default 200ms, which is Envoy's too; from 1ms to 10s.
	Timeout time.Duration `yaml:"timeout"`
	// MaxInFlight is how many are asked at once; others wait for their turn. Default 100, which is what most servers of
	// HTTP/2 take on a connection; at most 10000.
	MaxInFlight int `yaml:"maxInFlight"`
	// Headers are the names of the fields of a request that the authorizer is shown, where this gateway has the request in
	// the clear. Default: none.
	Headers []string `yaml:"headers"`
}

// TLSConfig says how the connection to an authorizer is protected.
type TLSConfig struct {
	// Mode is `none`, `tls` (the authorizer shows a certificate for ServerName) or `mtls` (both show an identity of the
	// mesh). Default `none` where the address is one of this host; else it has to be written.
	Mode string `yaml:"mode"`
	// Roots is a file of certificates, PEM, of which one must have signed that of the authorizer, with mode `tls`. Default: those
	// of the system.
	Roots string `yaml:"roots"`
	// ServerName is what the certificate must be for, with mode `tls`. Default: the host of the address.
	ServerName string `yaml:"serverName"`
	// Identity is the SPIFFE ID that the authorizer must have, with mode `mtls`. Default: any with the trust domain and
	// namespace of this gateway.
	Identity string `yaml:"identity"`
}

// Values of TLSConfig.Mode.
const (
	modeNone = "none"
	modeTLS  = "tls"
	modeMTLS = "mtls"
)

// Defaults and bounds of the configuration.
const (
	defaultTimeout = 200 * time.Millisecond // Envoy's ext_authz filters v1.39: DefaultTimeout
	leastTimeout   = time.Millisecond
	mostTimeout    = 10 * time.Second // half of what opening a flow may take by default
	defaultFlight  = 100              // RFC 9113, section 6.5.2: MAX_CONCURRENT_STREAMS should not be below it
	mostFlight     = 10_000
	maxNameBytes   = 63
	maxHeaders     = 64 // names in Config.Headers
)

// FieldError is a fault of one field of a Config.
type FieldError struct {
	// Field is the path of the field in the Config, as in the file: "address", "tls.roots".
	Field string
	// What says what is wrong and what would be right.
	What string
	// Err is what led here, nil if nothing did.
	Err error
}

// Error returns field and fault on one line.
func (e *FieldError) Error() string { return e.Field + ": " + e.What }

// Unwrap returns what led here.
func (e *FieldError) Unwrap() error { return e.Err }

// Validate reports all faults of c at once, each as a *FieldError inside one joined error, or nil. It reads no file.
func (c *Config) Validate() error {
	var faults []error
	note := func(field, format string, args ...any) {
		faults = append(faults, &FieldError{Field: field, What: fmt.Sprintf(format, args...)})
	}
	switch {
	case c.Name == "":
		note("name", "a name is missing; rules call the authorizer by it, such as name: opa")
	case len(c.Name) > maxNameBytes || !isName(c.Name):
		note("name", "%q is no name; it should be at most %d letters, digits, '-', '_' and '.'", cut(c.Name), maxNameBytes)
	}
	local := false
	switch network, host, problem := c.place(); {
	case problem != "":
		note("address", "%s", problem)
		local = true // nothing to say about TLS yet
	default:
		local = network == networkUnix || isLocal(host)
		if network == networkUnix && c.TLS.Mode == modeTLS && c.TLS.ServerName == "" {
			note("tls.serverName", "a socket has no name that a certificate could be for; write serverName")
		}
	}
	c.TLS.validate(local, note)
	if c.Timeout != 0 && (c.Timeout < leastTimeout || c.Timeout > mostTimeout) {
		note("timeout", "timeout: %v is out of bounds; it should be from %v to %v, or left out for %v", c.Timeout, leastTimeout, mostTimeout, defaultTimeout)
	}
	if c.MaxInFlight < 0 || c.MaxInFlight > mostFlight {
		note("maxInFlight", "maxInFlight: %d is out of bounds; it should be from 1 to %d, or left out for %d", c.MaxInFlight, mostFlight, defaultFlight)
	}
	if len(c.Headers) > maxHeaders {
		note("headers", "headers: %d are too many; it should be %d at most", len(c.Headers), maxHeaders)
	}
	for i, name := range c.Headers {
		if !isToken(name) {
			note(fmt.Sprintf("headers[%d]", i), "%q is no name of a field; it should be like authorization", cut(name))
		}
	}
	return errors.Join(faults...)
}

// CheckFiles reads the files that c names, as New does. A fault is a *FieldError.
func (c *Config) CheckFiles() error {
	_, err := c.TLS.readRoots()
	return err
}

// validate notes the faults of t; local tells that the address is one of this host.
func (t *TLSConfig) validate(local bool, note func(field, format string, args ...any)) {
	switch t.Mode {
	case "":
		if !local {
			note("tls.mode", "the address is not one of this host, and whoever is between could answer instead; write tls: {mode: mtls} or {mode: tls}, or {mode: none} if that is meant")
		}
	case modeNone, modeTLS, modeMTLS:
	default:
		note("tls.mode", "mode: %q is none; it should be none, tls or mtls", cut(t.Mode))
		return
	}
	for _, of := range []struct{ field, value, mode string }{
		{"roots", t.Roots, modeTLS}, {"serverName", t.ServerName, modeTLS}, {"identity", t.Identity, modeMTLS},
	} {
		if of.value != "" && t.Mode != of.mode {
			note("tls."+of.field, "%s has a meaning with mode: %s only; write that, or remove it", of.field, of.mode)
		}
	}
	if t.Identity != "" {
		if _, err := spiffe.Parse(t.Identity); err != nil {
			note("tls.identity", "%v", err)
		}
	}
}

// Networks of net.Dial.
const (
	networkTCP  = "tcp"
	networkUnix = "unix"
)

// place reads Address: a path of a socket or, of TCP, the host. problem says what is wrong with it.
func (c *Config) place() (network, host, problem string) {
	const should = "it should be host:port, such as 127.0.0.1:9191, or unix:/path"
	if c.Address == "" {
		return "", "", "an address is missing; " + should
	}
	if path, ok := strings.CutPrefix(c.Address, "unix:"); ok {
		if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
			return "", "", fmt.Sprintf("%q is no socket; it should be unix: and an absolute path, such as unix:/run/authz.sock", cut(c.Address))
		}
		return networkUnix, path, ""
	}
	host, port, err := net.SplitHostPort(c.Address)
	if err != nil || host == "" || strings.ContainsAny(host, "/ ") {
		return "", "", fmt.Sprintf("%q is no address; %s", cut(c.Address), should)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", "", fmt.Sprintf("%q has no port from 1 to 65535; %s", cut(c.Address), should)
	}
	return networkTCP, host, ""
}

// isLocal reports whether host is this one whatever a resolver says.
func isLocal(host string) bool {
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback() || strings.EqualFold(host, "localhost")
}

func (c *Config) timeout() time.Duration { return cmp.Or(c.Timeout, defaultTimeout) }

func (c *Config) maxInFlight() int { return cmp.Or(c.MaxInFlight, defaultFlight) }

// isName reports whether s can be written in rules, metrics and logs as it is.
func isName(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	}) < 0
}

// isToken reports whether s is a name of a field (RFC 9110, section 5.6.2).
func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return s != ""
}

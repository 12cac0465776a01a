package pki

import (
	"crypto/tls"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// clientLook is how often the files of a ClientFiles are looked at for changes.
const clientLook = time.Second

// ClientFiles keeps the files of TLS clients that are no gateways of a mesh: whom they believe, and what they show. It
// reads them again when they have changed. Methods may be called concurrently.
type ClientFiles struct {
	log *slog.Logger

	mu   sync.Mutex // guards the group below
	read map[clientPaths]*clientRead
}

// clientPaths are the files of one client; "" for none.
type clientPaths struct{ roots, cert, key string }

func (p clientPaths) all() (list []string) {
	for _, path := range []string{p.roots, p.cert, p.key} {
		if path != "" {
			list = append(list, path)
		}
	}
	return list
}

// clientRead is what was read of them.
type clientRead struct {
	conf   *tls.Config
	seen   stamps
	looked time.Time
}

// NewClientFiles makes an empty ClientFiles. It logs files that have changed and cannot be used.
func NewClientFiles(log *slog.Logger) *ClientFiles {
	return &ClientFiles{log: log, read: make(map[clientPaths]*clientRead)}
}

// Config returns a configuration with the CAs of roots, those of the system where it is "", and the certificate of cert and
// key, none where these are "". It must not be changed. Files that have changed and are faulty leave what they were; an error
// at first is one of CheckClientFiles.
func (c *ClientFiles) Config(roots, cert, key string) (*tls.Config, error) {
	paths := clientPaths{roots, cert, key}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	r := c.read[paths]
	if r != nil && now.Sub(r.looked) < clientLook {
		return r.conf, nil
	}
	seen := statAll(paths.all())
	if r != nil && !r.seen.fresh(r.looked) && r.seen.same(seen) {
		r.looked = now
		return r.conf, nil
	}
	conf, warnings, err := paths.load(now)
	switch {
	case err != nil && r == nil:
		return nil, err
	case err != nil:
		c.log.Warn("files of TLS have changed and cannot be used: those before are", "err", err)
		r.looked, r.seen = now, seen
		return r.conf, nil
	}
	if r == nil {
		for _, warning := range warnings {
			c.log.Warn("files of TLS are usable with a flaw", "reason", warning)
		}
	}
	c.read[paths] = &clientRead{conf: conf, seen: seen, looked: now}
	return conf, nil
}

// CheckClientFiles reads the files that a client would use. All problems come back at once, joined, each a *ConfigError of
// the field roots, cert or key.
func CheckClientFiles(roots, cert, key string) error {
	_, _, err := clientPaths{roots, cert, key}.load(time.Now())
	return err
}

func (p clientPaths) load(now time.Time) (conf *tls.Config, warnings []string, err error) {
	conf = &tls.Config{MinVersion: tls.VersionTLS12}
	roots, cert, key := input{field: "roots", file: p.roots}, input{field: "cert", file: p.cert}, input{field: "key", file: p.key, secret: true}
	var errs []error
	for _, in := range []*input{&roots, &cert, &key} {
		if in.file == "" {
			continue
		}
		warning, err := in.read()
		if warning != "" {
			warnings = append(warnings, warning)
		}
		errs = append(errs, err)
	}
	if p.roots != "" {
		pool, more, err := parseRoots(&roots, now)
		errs, warnings = append(errs, err), append(warnings, more...)
		conf.RootCAs = pool
	}
	if p.cert != "" {
		own, err := clientCertificate(&cert, &key)
		errs = append(errs, err)
		conf.Certificates = []tls.Certificate{own}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, nil, err
	}
	return conf, warnings, nil
}

// ReadSecret reads a file that nobody else may use, such as one with a password. What is wrong with it comes back as a
// *ConfigError of field; a flaw that the place excuses as a warning.
func ReadSecret(field, file string) (data []byte, warning string, err error) {
	in := input{field: field, file: file, secret: true}
	if warning, err = in.read(); err != nil {
		return nil, "", err
	}
	return in.data, warning, nil
}

// clientCertificate reads a certificate that may name anything, and its key.
func clientCertificate(cert, key *input) (own tls.Certificate, err error) {
	signer, err := parseKey(key)
	if cert.unread {
		return own, err
	}
	chain, certErr := parseCertificates(cert, maxChain)
	if err = errors.Join(err, certErr); err != nil || signer == nil {
		return own, err
	}
	own.PrivateKey, own.Leaf = signer, chain[0]
	for _, c := range chain {
		own.Certificate = append(own.Certificate, c.Raw)
	}
	return own, checkPair(cert, key, chain, signer)
}

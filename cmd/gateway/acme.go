package main

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"path/filepath"
	"reflect"
	"sync/atomic"

	"culvert/pki/acme"
	"culvert/tunnel"
)

// publicCerts has the certificates that are got by ACME. A reload may put another manager in place. Without one it has none.
type publicCerts struct {
	current atomic.Pointer[publicManager]
}

// publicManager is a manager and what it was made of.
type publicManager struct {
	*acme.Manager
	cfg acme.Config
	dir string
}

// wantsACME reports whether names are listed to get certificates for.
func (c *Config) wantsACME() bool { return !reflect.ValueOf(c.ACME).IsZero() }

// openACME begins to order what is missing. It takes over what is in place where nothing has changed.
func (b *parts) openACME(cfg *Config) error {
	if !cfg.wantsACME() {
		b.acme.swap(nil)
		return nil
	}
	state, err := cfg.stateDir()
	if err != nil {
		return err
	}
	dir := filepath.Join(state, "acme")
	if m := b.acme.current.Load(); m != nil && m.dir == dir && reflect.DeepEqual(m.cfg, cfg.ACME) {
		return nil
	}
	// One process at a time orders for a folder, and one manager: the one before goes first.
	b.acme.swap(nil)
	m, err := acme.Open(cfg.ACME, acme.Env{Dir: dir, Log: b.log.Logger, DialContext: b.dialOwn})
	if err != nil {
		return err
	}
	b.acme.swap(&publicManager{Manager: m, cfg: cfg.ACME, dir: dir})
	return nil
}

// swap puts m in place and ends the one before.
func (i *publicCerts) swap(m *publicManager) {
	if before := i.current.Swap(m); before != nil {
		_ = before.Close() // it returns nil
	}
}

// Has is ingress.Issuer.
func (i *publicCerts) Has(name string) bool {
	m := i.current.Load()
	return m != nil && m.Has(name)
}

// GetCertificate is ingress.Issuer.
func (i *publicCerts) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if m := i.current.Load(); m != nil {
		return m.GetCertificate(hello)
	}
	return nil, nil
}

// GetConfigForClient is ingress.Issuer.
func (i *publicCerts) GetConfigForClient(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	if m := i.current.Load(); m != nil {
		return m.GetConfigForClient(hello)
	}
	return nil, nil
}

// HTTPHandler is ingress.Issuer.
func (i *publicCerts) HTTPHandler(next http.Handler) http.Handler {
	if m := i.current.Load(); m != nil {
		return m.HTTPHandler(next)
	}
	return next
}

// acmeNames notes faults of acme, and listeners that want certificates of nobody.
func (v *validator) acmeNames() {
	if v.cfg.wantsACME() {
		v.join("acme", v.cfg.ACME.Validate())
	}
	for i, l := range v.cfg.Listeners {
		if l.Kind == tunnel.KindIngress && l.Ingress.ACME && !v.cfg.wantsACME() {
			v.note(fmt.Sprintf("listeners[%d].ingress.acme", i), "there are no names to get certificates for; add acme: {names: [www.example.com], agreeTOS: true} to the file")
		}
	}
}

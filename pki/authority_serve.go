package pki

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"culvert/pki/istioca"
	"culvert/pki/spiffe"
)

// What strangers may hold of a CA's port.
const (
	caHandshakeTimeout = 5 * time.Second // TLS, and the first request's head
	caIdleTimeout      = 5 * time.Minute // a connection without a request
	caWriteTimeout     = 30 * time.Second
	caMaxHeaderBytes   = 32 << 10 // a bearer token has 16 KiB at most
	caMaxStreams       = 32       // at once on a connection; a member has one
	caMaxConns         = 2048
	caMaxConnsPerHost  = 128
	caShutdown         = 5 * time.Second // for calls that are under way at the end

	// ledgerSweep is how often expired certificates are forgotten.
	ledgerSweep = time.Minute
)

// Serve serves the CA on ln, over TLS 1.3, until ctx ends; it then waits five seconds at most for calls that are under
// way, closes ln and returns nil. It serves Istio's CreateCertificate, GET /crl (PEM) and GET /bundle (JSON, SPIFFE's
// bundle format). Whoever asks for a certificate shows who it is by a join token, another bearer token (see
// AuthorityConfig.Tokens), or the certificate that it has, which it gets again with the same names.
func (a *Authority) Serve(ctx context.Context, ln net.Listener) error {
	defer ln.Close()
	if err := a.Claim(); err != nil {
		return err
	}
	own, err := a.newServerCert(nil, time.Now())
	if err != nil {
		return err
	}
	calls := istioca.NewServer(a.enrol)
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
				calls.ServeHTTP(w, r)
				return
			}
			a.serveFile(ctx, w, r)
		}),
		TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS13, NextProtos: []string{alpnH2, "http/1.1"},
			GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return a.serverTLS.Load(), nil },
		},
		ReadHeaderTimeout: caHandshakeTimeout, IdleTimeout: caIdleTimeout, MaxHeaderBytes: caMaxHeaderBytes,
		HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: caMaxStreams},
		ErrorLog: slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
	}
	limited := newLimitListener(ln, caMaxConns, caMaxConnsPerHost)
	served := make(chan error, 1)
	// Ends with Shutdown or Close; waited for below.
	go func() { served <- srv.ServeTLS(limited, "", "") }()
	err = a.serveLoop(ctx, own, served)
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), caShutdown)
	defer cancel()
	if srv.Shutdown(end) != nil {
		_ = srv.Close() // calls that would not end are cut
	}
	limited.wait()
	return err
}

// serveLoop does what time brings, until ctx ends or the server fails, whose end it has waited for then.
func (a *Authority) serveLoop(ctx context.Context, own *serverCert, served <-chan error) error {
	tick := time.NewTicker(defaultPoll)
	defer tick.Stop()
	lastErr, swept := "", time.Now()
	for {
		select {
		case err := <-served:
			return err
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := time.Now()
		err := a.refresh(now)
		if err == nil {
			err = a.rotateIfDue(now)
		}
		if next, certErr := a.newServerCert(own, now); certErr != nil {
			err = errors.Join(err, certErr)
		} else {
			own = next
		}
		l := a.ledger.Load()
		err = errors.Join(err, l.sync())
		if now.Sub(swept) >= ledgerSweep {
			swept = now
			err = errors.Join(err, l.sweep(now))
		}
		if err != nil && err.Error() != lastErr {
			a.log.Error("the CA cannot do what is due", "err", err)
		}
		lastErr = errText(err)
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// rotateIfDue goes on with a rotation that goes on by itself.
func (a *Authority) rotateIfDue(now time.Time) error {
	if r := a.data.Load().state.Rotation; r == nil || !r.Auto || now.Before(r.Ready) || now.Sub(r.Since) < 2*bundleRefresh {
		return nil
	}
	phase, _, err := a.Rotate(false, false)
	if _, early := errors.AsType[*NotReadyError](err); early {
		return nil // another process was first
	}
	if err == nil {
		a.log.Info("root rotation goes on", "reason", phase.String())
	}
	return err
}

// serverCert is the certificate that the CA serves with, and what it was made of.
type serverCert struct {
	renew  time.Time
	signer *x509.Certificate
	bundle []byte
}

// newServerCert makes the CA's own certificate, with a new key, if old is not good any more.
func (a *Authority) newServerCert(old *serverCert, now time.Time) (*serverCert, error) {
	d := a.data.Load()
	signer := d.signer()
	if old != nil && now.Before(old.renew) && old.signer.Equal(signer.cert) && bytes.Equal(old.bundle, d.bundle) {
		return old, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := signer.certify(a.id, a.cfg.MaxTTL, a.cfg.Names, key.Public(), nil)
	if err != nil {
		return nil, fmt.Errorf("issue the CA's own certificate: %w", err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	// The root goes along, as hosts that join know only its hash.
	certPEM, rootsPEM := encodeCert(der), []byte(nil)
	if d.inter != nil {
		certPEM = append(certPEM, d.inter.PEM()...)
	}
	certPEM = append(certPEM, encodeCert(d.anchor().Raw)...)
	for _, root := range d.roots {
		rootsPEM = append(rootsPEM, encodeCert(root.Raw)...)
	}
	m, err := Parse(certPEM, keyPEM, rootsPEM)
	if err != nil {
		return nil, err
	}
	cfg := Fixed(m).ServerTLS(nil)
	// A certificate is one of the ways to show who one is; if there is one, it must be good.
	cfg.ClientAuth = tls.RequestClientCert
	verify := cfg.VerifyConnection
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return nil
		}
		err := verify(cs)
		if refused, ok := errors.AsType[*PeerError](err); ok && refused.Reason == Expired && a.inGrace(cs.PeerCertificates[0], time.Now()) {
			// As it was at its end; enrol is all that it is good for here.
			err = verifyPeer(m, cs.PeerCertificates, x509.ExtKeyUsageClientAuth, nil, cs.PeerCertificates[0].NotAfter)
		}
		return err
	}
	cfg.NextProtos, cfg.GetConfigForClient = []string{alpnH2, "http/1.1"}, nil
	a.serverTLS.Store(cfg)
	return &serverCert{renew: halfLife(m.NotBefore, m.NotAfter), signer: signer.cert, bundle: d.bundle}, nil
}

// inGrace reports whether a certificate that has expired may still be renewed.
func (a *Authority) inGrace(c *x509.Certificate, now time.Time) bool {
	return a.cfg.Grace > 0 && now.Before(c.NotAfter.Add(a.cfg.Grace))
}

// serveFile serves what everybody may read. A member that knows the present state of it (If-None-Match) and is ready to wait (Prefer:
// wait=SECONDS; RFC 7240, section 4.3) is answered when it changes, so that what is revoked is known everywhere at once. Strangers,
// and members beyond caMaxWaiting, are answered at once.
func (a *Authority) serveFile(ctx context.Context, w http.ResponseWriter, r *http.Request) {
	wait := waitOf(r)
	if wait > 0 {
		defer a.waiting.Add(-1)
		if a.waiting.Add(1) > caMaxWaiting || r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
			wait = 0 // it asks again in its own time
		}
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(wait + caWriteTimeout)) // both versions of HTTP have it
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "only GET is served here", http.StatusMethodNotAllowed)
		return
	}
	if tag, changed := a.state(r, wait, ctx.Done()); !changed {
		w.WriteHeader(http.StatusNotModified)
		return
	} else {
		w.Header().Set("ETag", tag)
	}
	switch r.URL.Path {
	case crlPath:
		w.Header().Set("Content-Type", "application/x-pem-file")
		_, _ = w.Write(a.CRL()) // a client that goes away is its own affair
	case bundlePath:
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(a.Bundle())
	default:
		http.NotFound(w, r)
	}
}

const (
	// caMaxWait is how long a request may wait for a change.
	caMaxWait = time.Minute
	// caMaxWaiting is how many may wait. Each holds a connection, of which half are left for those that want a certificate.
	caMaxWaiting = caMaxConns / 2
)

// waitOf is how long the client wants to wait for a change.
func waitOf(r *http.Request) time.Duration {
	for _, preference := range strings.Split(strings.Join(r.Header.Values("Prefer"), ","), ",") {
		if text, ok := strings.CutPrefix(strings.TrimSpace(preference), "wait="); ok {
			if n, err := strconv.Atoi(text); err == nil && n > 0 {
				return min(time.Duration(n)*time.Second, caMaxWait)
			}
		}
	}
	return 0
}

// state returns the tag of bundle and CRL, when it is another than the client has or its time is over; changed tells which.
func (a *Authority) state(r *http.Request, wait time.Duration, end <-chan struct{}) (tag string, changed bool) {
	known := r.Header.Get("If-None-Match")
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		next := a.nextChange()
		if tag = a.data.Load().tag; tag != known {
			return tag, true
		}
		select {
		case <-next:
		case <-timer.C:
			return tag, false
		case <-r.Context().Done():
			return tag, false
		case <-end:
			return tag, false
		}
	}
}

// Where the CA serves files.
const (
	crlPath    = "/crl"
	bundlePath = "/bundle"
)

// enrol is istioca.Sign: it finds out who asks, and signs.
func (a *Authority) enrol(ctx context.Context, call istioca.Call) (chain []string, err error) {
	var grant Grant
	var csr *x509.CertificateRequest
	how := "no credential"
	switch {
	case isJoinToken(call.Token):
		how = "join token"
		grant, csr, err = a.redeem(call.Token, call.Addr, call.CSR)
	case call.Token != "":
		how = "token"
		grant, err = a.bearer(ctx, call)
	case len(call.Peer) > 0:
		how = "certificate"
		grant, err = a.holder(call.Peer[0])
	default:
		err = &istioca.Error{Code: istioca.Unauthenticated, Detail: "show a join token (gateway ca token makes one), a token or a certificate"}
	}
	if err == nil && csr == nil {
		csr, err = parseCSR(call.CSR)
	}
	if err == nil {
		chain, err = a.signCSR(csr, grant, call.TTL)
	}
	a.logEnrolment(ctx, call.Addr, how, grant.ID, err)
	return chain, err
}

// logEnrolment logs who got a certificate, or why not. Renewals are for the record on disk.
func (a *Authority) logEnrolment(ctx context.Context, addr, how string, id spiffe.ID, err error) {
	told, isTold := errors.AsType[*istioca.Error](err)
	switch {
	case err == nil && how == "certificate":
		a.log.DebugContext(ctx, "certificate renewed", "peer", id.String(), "src", addr)
	case err == nil:
		a.log.InfoContext(ctx, "certificate issued", "peer", id.String(), "src", addr, "reason", how)
	case !isTold:
		a.log.ErrorContext(ctx, "certificate not issued", "peer", id.String(), "src", addr, "reason", how, "err", err)
	case told.Code == istioca.Unauthenticated && how == "no credential" || told.Code == istioca.ResourceExhausted:
		a.log.DebugContext(ctx, "certificate refused", "peer", id.String(), "src", addr, "reason", how, "err", err)
	default:
		a.log.WarnContext(ctx, "certificate refused", "peer", id.String(), "src", addr, "reason", how, "err", err)
	}
}

// bearer asks the hook who the bearer of a token is.
func (a *Authority) bearer(ctx context.Context, call istioca.Call) (Grant, error) {
	now := time.Now()
	switch {
	case a.cfg.Tokens == nil:
		return Grant{}, &istioca.Error{Code: istioca.Unauthenticated, Detail: "this CA takes no tokens but join tokens"}
	case !a.guesses.allowed(call.Addr, now):
		return Grant{}, errTooManyGuesses
	}
	id, err := a.cfg.Tokens(ctx, call.Token)
	if err != nil {
		a.guesses.wrong(call.Addr, now)
		return Grant{}, &istioca.Error{Code: istioca.Unauthenticated, Detail: "the token is not accepted", Err: err}
	}
	return Grant{ID: id}, nil
}

// holder is what the holder of a certificate, which TLS has verified, may have again.
func (a *Authority) holder(c *x509.Certificate) (Grant, error) {
	id, err := spiffe.FromCertificate(c)
	if err != nil {
		return Grant{}, &istioca.Error{Code: istioca.Unauthenticated, Detail: err.Error()}
	}
	grant := Grant{ID: id, Names: c.DNSNames}
	for _, ip := range c.IPAddresses {
		grant.Names = append(grant.Names, ip.String())
	}
	if a.data.Load().revoked[serialNumberOf(c.SerialNumber)] {
		return grant, errBarred
	}
	now := time.Now()
	if reason, detail := timeProblem(c, now); reason != "" && !(reason == Expired && a.inGrace(c, now)) { // the connection may be old
		return grant, &istioca.Error{Code: istioca.Unauthenticated, Detail: detail}
	}
	return grant, nil
}

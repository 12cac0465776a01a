package ingress

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"culvert/tunnel"
	"culvert/tunnel/h2"
)

// Protocols in ALPN.
const (
	alpnHTTP1 = "http/1.1"
	alpnHTTP2 = "h2"
	alpnACME  = "acme-tls/1"
)

// tlsEnd ends TLS.
type tlsEnd struct {
	s      *Server
	config *tls.Config
	files  certificates
	mesh   func(cs tls.ConnectionState) error // verifies a client of the mesh; nil: these are not asked for
}

// newTLS makes what ends TLS of the configuration.
func (s *Server) newTLS() (*tlsEnd, error) {
	t := &tlsEnd{s: s}
	for _, c := range s.conf.Certificates {
		f, err := openCert(c, s.env.Log)
		if err != nil {
			return nil, err
		}
		t.files.files = append(t.files.files, f)
	}
	if s.conf.ACME && s.env.Issuer == nil {
		return nil, errors.New("acme: the file names no CA to get certificates from; add acme: {names: [...]}")
	}
	t.config = &tls.Config{
		MinVersion: tls.VersionTLS12,
		CipherSuites: []uint16{ // of TLS 1.2: AEAD only
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
		GetCertificate: t.certificate,
	}
	if len(s.conf.Protocols) == 0 || s.speaks2() {
		t.config.NextProtos = []string{alpnHTTP2, alpnHTTP1}
	}
	if err := t.askClients(); err != nil {
		return nil, err
	}
	issuer := s.env.Issuer
	if !s.conf.ACME {
		issuer = nil
	}
	// crypto/tls lets a client that offers only http/1.0, or http/1.1 where that is not served, in as if it had offered nothing.
	none := t.config.Clone()
	none.NextProtos = []string{strings.Repeat("-", 256)} // which nobody can offer
	t.config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if issuer != nil && slices.Contains(hello.SupportedProtos, alpnACME) {
			return issuer.GetConfigForClient(hello)
		}
		if len(hello.SupportedProtos) > 0 && len(t.config.NextProtos) > 0 &&
			!slices.ContainsFunc(hello.SupportedProtos, func(p string) bool { return p == alpnHTTP2 || p == alpnHTTP1 }) {
			return none, nil
		}
		return t.stamped(hello), nil
	}
	return t, nil
}

// speaks2 reports whether the listener that names its protocols serves HTTP in TLS.
func (s *Server) speaks2() bool {
	return slices.Contains(s.conf.Protocols, tunnel.IngressHTTP) || slices.Contains(s.conf.Protocols, tunnel.IngressH2C)
}

// askClients has clients show certificates.
func (t *tlsEnd) askClients() error {
	c := &t.s.conf
	if c.Clients == "" || c.Clients == tunnel.ClientsNone {
		return nil
	}
	t.config.SessionTicketsDisabled = true // a session must not outlive what the client was believed for
	require := c.Clients == tunnel.ClientsRequire
	if c.ClientRoots != "" {
		text, err := os.ReadFile(c.ClientRoots)
		if err != nil {
			return fmt.Errorf("clientRoots: %w", err)
		}
		t.config.ClientCAs = x509.NewCertPool()
		if !t.config.ClientCAs.AppendCertsFromPEM(text) {
			return fmt.Errorf("clientRoots: there is no certificate in %s", c.ClientRoots)
		}
		t.config.ClientAuth = tls.VerifyClientCertIfGiven
		if require {
			t.config.ClientAuth = tls.RequireAndVerifyClientCert
		}
		return nil
	}
	if t.s.env.MeshTLS == nil || t.s.env.Identify == nil {
		return errors.New("clients: nobody knows the identities of the mesh; add clientRoots")
	}
	t.mesh = func(cs tls.ConnectionState) error {
		if conf := t.s.env.MeshTLS(t.s.name); conf.VerifyConnection != nil {
			return conf.VerifyConnection(cs)
		}
		return errors.New("clients' certificates cannot be verified")
	}
	t.config.ClientAuth = tls.RequestClientCert
	if require {
		t.config.ClientAuth = tls.RequireAnyClientCert
	}
	t.config.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return nil
		}
		return t.mesh(cs)
	}
	return nil
}

// certificate is tls.Config.GetCertificate. Without one the client gets the alert unrecognized_name.
func (t *tlsEnd) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := strings.ToLower(strings.TrimSuffix(hello.ServerName, "."))
	if cert := t.files.find(name, hello); cert != nil {
		return cert, nil
	}
	if t.s.conf.ACME && t.s.env.Issuer.Has(name) {
		return t.s.env.Issuer.GetCertificate(hello)
	}
	if t.s.conf.Identity {
		return t.s.env.MeshTLS(t.s.name).GetCertificate(hello)
	}
	if name == "" && len(t.files.files) == 1 {
		return t.files.files[0].get(), nil // a client without SNI can only mean that
	}
	return nil, nil
}

// leaf is the certificate for a server name that was chosen, nil if there is none.
func (t *tlsEnd) leaf(name string) *x509.Certificate {
	cert, err := t.certificate(&tls.ClientHelloInfo{ServerName: name})
	if err != nil || cert == nil {
		return nil
	}
	return cert.Leaf
}

// stamp is what a session is bound to: the certificate that it was made with.
func (t *tlsEnd) stamp(name string) []byte {
	leaf := t.leaf(name)
	if leaf == nil || time.Now().After(leaf.NotAfter) {
		return nil
	}
	sum := sha256.Sum256(leaf.Raw)
	return sum[:]
}

// stamped is the configuration for one connection: its sessions end with the certificate that there was when it began. Where that
// changes meanwhile the next connection is a full handshake.
func (t *tlsEnd) stamped(hello *tls.ClientHelloInfo) *tls.Config {
	conf, stamp := t.config.Clone(), t.stamp(hello.ServerName)
	conf.WrapSession = func(cs tls.ConnectionState, ss *tls.SessionState) ([]byte, error) {
		ss.Extra = append(ss.Extra, stamp)
		return t.config.EncryptTicket(cs, ss)
	}
	conf.UnwrapSession = func(ticket []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
		ss, err := t.config.DecryptTicket(ticket, cs)
		if err != nil || ss == nil {
			return nil, err
		}
		if stamp == nil || len(ss.Extra) == 0 || !bytes.Equal(ss.Extra[len(ss.Extra)-1], stamp) {
			return nil, nil // a full handshake
		}
		return ss, nil
	}
	return conf
}

// serveTLS passes TLS on unopened, or ends it and serves what is inside.
func (c *conn) serveTLS(nc net.Conn, ahead []byte) {
	if len(c.s.pass) > 0 {
		var name string
		var err error
		if ahead, name, err = readHello(nc, ahead); err != nil {
			c.refuse(nc, &tunnel.Error{Cause: tunnel.CauseMalformed, Reason: "the client's TLS cannot be read", Err: err}, false)
			return
		}
		if c.s.passes(name) {
			f := c.flow(wayTLS)
			c.toName(f, name)
			c.s.gateway.Carry(f, &raw{nc: nc, ahead: ahead})
			return
		}
	}
	if c.s.tls == nil {
		_, _ = nc.Write(alertUnrecognizedName) // the client may be gone
		c.refuse(nc, &tunnel.Error{Cause: tunnel.CauseMisdirected, Reason: "TLS of that server name is not passed on here, and there is no certificate to end it with"}, true)
		return
	}
	under := nc
	if len(ahead) > 0 {
		under = &prefixed{nc, ahead}
	}
	tc := tls.Server(h2.NewGate(under), c.s.tls.config)
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
	err := tc.HandshakeContext(ctx)
	cancel()
	cs := tc.ConnectionState()
	c.tls = &cs
	if err == nil && cs.NegotiatedProtocol == alpnACME {
		_ = tc.Close() // the handshake was all
		c.done()
		return
	}
	if err == nil && c.s.tls.mesh != nil && len(cs.PeerCertificates) > 0 {
		c.peer, err = c.s.env.Identify(&cs, c.source.Addr())
	}
	if err != nil {
		c.refuse(nc, c.s.tls.failed(cs.ServerName, err), true)
		return
	}
	c.covered.leaf, c.covered.sni = c.s.tls.leaf(cs.ServerName), strings.ToLower(strings.TrimSuffix(cs.ServerName, "."))
	c.covered.verified.Store(time.Now().UnixNano())
	c.serveInside(tc, cs.NegotiatedProtocol)
}

// failed says why the handshake with a client that asked for name has failed.
func (t *tlsEnd) failed(name string, err error) error {
	shown := fmt.Sprintf("%.100q", name)
	switch {
	case tunnel.CauseOf(err) == tunnel.CauseTimeout:
		return &tunnel.Error{Cause: tunnel.CauseSlow, Reason: "TLS handshake with server name " + shown, Err: err}
	case t.leaf(name) == nil:
		return &tunnel.Error{Cause: tunnel.CauseMisdirected, Reason: "there is no certificate for server name " + shown + "; add one to certificates of the listener, or the name to pass"}
	}
	return &tunnel.Error{Cause: tunnel.CauseMalformed, Reason: "TLS handshake with server name " + shown, Err: err}
}

// serveInside serves what TLS has brought. HTTP/2 is spoken where ALPN says so, and only there.
func (c *conn) serveInside(tc *tls.Conn, alpn string) {
	if alpn == alpnHTTP2 {
		c.serveHTTP2(tc)
		return
	}
	if alpn == "" && c.s.speaks(tunnel.IngressTCP) {
		ahead, what := c.s.sniff(tc, nil)
		if what != isHTTP1 {
			c.carry(tc, ahead, wayTLS)
			return
		}
		c.startHTTP1(tc, ahead)
		return
	}
	c.startHTTP1(tc, nil)
}

// alertUnrecognizedName is the record of that alert (RFC 6066, section 3).
var alertUnrecognizedName = []byte{21, 3, 3, 0, 2, 2, 112}

// passes reports whether TLS of a server name is passed on.
func (s *Server) passes(name string) bool {
	for _, p := range s.pass {
		below, wild := strings.CutPrefix(p, "*")
		if p == name || wild && len(name) > len(below) && strings.HasSuffix(name, below) {
			return name != ""
		}
	}
	return false
}

// maxHello is how much is read of a client before its ClientHello has to be complete.
const maxHello = 64 << 10

var errHello = errors.New("it is no ClientHello, or too long")

// readHello reads the ClientHello of a client and returns all that was read, and the server name in lower case.
func readHello(nc net.Conn, ahead []byte) (_ []byte, name string, err error) {
	r := &helloReader{Conn: nc, seen: ahead}
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
	defer cancel()
	found := false
	err = tls.Server(r, &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		name, found = strings.ToLower(strings.TrimSuffix(hello.ServerName, ".")), true
		return nil, errHello // nothing is to be answered
	}}).HandshakeContext(ctx)
	if found {
		return r.seen, name, nil
	}
	return r.seen, "", err
}

// helloReader keeps what is read, and sends nothing.
type helloReader struct {
	net.Conn
	seen []byte
	at   int
}

// Read returns what was read before, then what comes.
func (r *helloReader) Read(p []byte) (int, error) {
	if r.at == len(r.seen) {
		if len(r.seen) >= maxHello {
			return 0, errHello
		}
		n, err := r.Conn.Read(p)
		r.seen = append(r.seen, p[:n]...)
		r.at += n
		return n, err
	}
	n := copy(p, r.seen[r.at:])
	r.at += n
	return n, nil
}

// Write sends nothing.
func (r *helloReader) Write(p []byte) (int, error) { return len(p), nil }

// Close closes nothing: the connection goes on.
func (r *helloReader) Close() error { return nil }

// coverage is which hosts may be asked for on a connection with TLS.
type coverage struct {
	leaf     *x509.Certificate
	sni      string
	last     atomic.Pointer[string] // a host that is covered
	verified atomic.Int64           // when the client's certificate was verified last, Unix time in nanoseconds
}

// covers reports whether the certificate that the client has seen is for host, which has no port and is in lower case.
func (c *coverage) covers(host string) bool {
	if host == c.sni {
		return true
	}
	if last := c.last.Load(); last != nil && *last == host {
		return true
	}
	if c.leaf == nil {
		return false
	}
	if len(c.leaf.DNSNames)+len(c.leaf.IPAddresses) == 0 {
		return c.sni == "" // the identity of this gateway, which names no host
	}
	if c.leaf.VerifyHostname(host) != nil {
		return false
	}
	c.last.Store(&host)
	return true
}

// doubt says why the client of the mesh is not believed any more, nil while it is.
func (c *conn) doubt(now time.Time) error {
	if c.tls == nil || len(c.tls.PeerCertificates) == 0 {
		return nil
	}
	if now.After(c.tls.PeerCertificates[0].NotAfter) {
		return &tunnel.Error{Cause: tunnel.CauseExpired, Reason: "the certificate that the client has shown on this connection has expired"}
	}
	last := c.covered.verified.Load()
	if c.s.tls.mesh == nil || now.UnixNano()-last < int64(lookEvery) || !c.covered.verified.CompareAndSwap(last, now.UnixNano()) {
		return nil
	}
	if err := c.s.tls.mesh(*c.tls); err != nil {
		c.covered.verified.Store(0) // the next request hears it too
		return &tunnel.Error{Cause: tunnel.CauseRevoked, Reason: "the client is not believed any more", Err: err}
	}
	return nil
}

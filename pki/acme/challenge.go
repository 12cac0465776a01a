package acme

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"strings"
	"sync"

	xacme "golang.org/x/crypto/acme"
)

// ALPNProto is the protocol of a handshake that validates a name (RFC 8737, section 4). A listener closes a
// connection that negotiated it as soon as the handshake is over; nothing may be read from it.
const ALPNProto = xacme.ALPNProto

const (
	// challengePath is where HTTP-01 asks (RFC 8555, section 8.3).
	challengePath = "/.well-known/acme-challenge/"
	// minTokenBytes and maxTokenBytes bound a token. RFC 8555, section 8.3: it "MUST have at least 128 bits of entropy",
	// which is 22 letters of base64url.
	minTokenBytes = 22
	maxTokenBytes = 256
)

// answers are what the CA shall find while it validates names. There is at most one for each name that is at work.
type answers struct {
	mu   sync.Mutex
	http map[string]string           // guarded by mu: token → key authorization
	alpn map[string]*tls.Certificate // guarded by mu: name → validation certificate
}

// put makes the answer to a challenge findable until remove is called.
func (a *answers) put(c *xacme.Client, name string, ch *xacme.Challenge) (remove func(), err error) {
	if ch.Type == HTTP01 {
		text, err := c.HTTP01ChallengeResponse(ch.Token)
		if err != nil {
			return nil, err
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		a.http[ch.Token] = text
		return func() {
			a.mu.Lock()
			defer a.mu.Unlock()
			delete(a.http, ch.Token)
		}, nil
	}
	cert, err := c.TLSALPN01ChallengeCert(ch.Token, name)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.alpn[name] = &cert
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.alpn, name)
	}, nil
}

// text returns the answer of HTTP-01 for a token.
func (a *answers) text(token string) (text string, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	text, ok = a.http[token]
	return text, ok
}

// certificate returns the answer of TLS-ALPN-01 for a name, nil if there is none.
func (a *answers) certificate(name string) *tls.Certificate {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.alpn[name]
}

// HTTPHandler returns a handler for port 80. It answers what the CA asks for below /.well-known/acme-challenge/ while it
// validates a name, and passes all else to next, or answers 404 if next is nil. It reads no body, and may be used
// concurrently.
func (m *Manager) HTTPHandler(next http.Handler) http.Handler {
	if next == nil {
		next = http.NotFoundHandler()
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			// No host is looked at: a token is of one order of ours, and something in front may have changed the host.
			token, below := strings.CutPrefix(r.URL.Path, challengePath)
			if text, ok := m.answers.text(token); ok && below {
				w.Header().Set("Content-Type", "application/octet-stream") // RFC 8555, section 8.3
				_, _ = w.Write([]byte(text))
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// GetConfigForClient is made for tls.Config.GetConfigForClient, or to be called from there: for a handshake that
// validates a name (TLS-ALPN-01) it returns a configuration that does only that, for others nil. So the listener's
// own NextProtos need not name acme-tls/1, and no client certificate is asked for. It does not block.
func (m *Manager) GetConfigForClient(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	if !isValidation(hello) {
		return nil, nil
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{ALPNProto}, SessionTicketsDisabled: true,
		GetCertificate: m.GetCertificate,
	}, nil
}

// isValidation reports whether a handshake validates a name. RFC 8737, section 3: the ALPN extension "MUST contain
// the single protocol name acme-tls/1".
func isValidation(hello *tls.ClientHelloInfo) bool {
	return len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == ALPNProto
}

// pickChallenge returns the first challenge of the preferred types that the CA offers, and otherwise an error that
// says what it does offer.
func pickChallenge(offered []*xacme.Challenge, preferred []string) (*xacme.Challenge, error) {
	for _, typ := range preferred {
		for _, ch := range offered {
			if ch.Type != typ {
				continue
			}
			if !isToken(ch.Token) {
				return nil, fmt.Errorf("the CA's token %.100q is not one of %d to %d letters of base64url", ch.Token, minTokenBytes, maxTokenBytes)
			}
			return ch, nil
		}
	}
	var types []string
	for _, ch := range offered {
		types = append(types, ch.Type)
	}
	return nil, fmt.Errorf("the CA offers %.100q and not %s", types, strings.Join(preferred, " or "))
}

// isToken reports whether s may be a challenge's token: base64url (RFC 8555, section 8.3), of a bounded length.
func isToken(s string) bool {
	return len(s) >= minTokenBytes && len(s) <= maxTokenBytes && strings.IndexFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
	}) < 0
}

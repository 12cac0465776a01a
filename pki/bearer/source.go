package bearer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"
)

const (
	// maxTokenBytes is more than any gateway takes, and leaves room in the header list that most proxies accept.
	maxTokenBytes = 16 << 10
	// fetchTimeout is for one request to a provider, with everything.
	fetchTimeout = 5 * time.Second
	// retryAfter is how long a provider that has failed is not asked again.
	retryAfter = time.Second
	// early is how long before its end a token is replaced; one that is short-lived, a quarter of its life before.
	early = 30 * time.Second
	// unknownLife is how long a token is used of which nobody says when it ends, and longestLife how long any is.
	unknownLife = time.Minute
	longestLife = 24 * time.Hour
)

// Env is what a Source gets from the program around it.
type Env struct {
	// DialContext opens the connections to a provider. Nil: any address that the system resolves the host to.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
	// Sign makes a token of this gateway's own for an audience, and says when it ends. Config.Sign needs it.
	Sign func(audience string) (token string, until time.Time, err error)
}

// Source gets the tokens for one proxy. It may be used by any number of goroutines.
type Source struct {
	cfg Config // immutable after New

	mu      sync.Mutex // guards the group below; not held while something is waited for
	token   string
	useTo   time.Time // when the token is replaced
	until   time.Time // when it ends
	failed  error     // of the last attempt to get one, nil if it succeeded
	retryAt time.Time
	asking  chan struct{} // closed when the attempt under way is over; nil: there is none
}

// New makes a Source of a Config that Validate has accepted; nil where there is no token.
func New(cfg Config) *Source {
	if cfg.IsZero() {
		return nil
	}
	return &Source{cfg: cfg}
}

// Token returns a token that is valid now. audience is the proxy's name. It may block while a provider is asked, five
// seconds at most, or until ctx ends.
func (s *Source) Token(ctx context.Context, env *Env, audience string) (string, error) {
	if s.cfg.File != "" {
		return readToken(s.cfg.File)
	}
	if s.cfg.Audience != "" {
		audience = s.cfg.Audience
	}
	for {
		token, asking, err := s.have(env, audience)
		if token != "" || err != nil {
			return token, err
		}
		select {
		case <-asking:
		case <-ctx.Done():
			return "", fmt.Errorf("get a token: %w", ctx.Err())
		}
	}
}

// have returns the token that is there, or why there is none, or what to wait for. One that is about to end is replaced
// meanwhile.
func (s *Source) have(env *Env, audience string) (token string, asking chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if now.Before(s.until) {
		token = s.token
	}
	if token != "" && now.Before(s.useTo) {
		return token, nil, nil
	}
	if s.failed != nil && now.Before(s.retryAt) {
		if token == "" {
			err = s.failed
		}
		return token, nil, err
	}
	if s.asking == nil {
		s.asking = make(chan struct{})
		go s.renew(env, audience, s.asking) // ends within fetchTimeout, and who waits is told
	}
	return token, s.asking, nil
}

// renew gets a token and tells everybody who waits.
func (s *Source) renew(env *Env, audience string, done chan struct{}) {
	defer close(done)
	var token string
	var until time.Time
	var err error
	switch {
	case s.cfg.OIDC != nil:
		ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
		defer cancel()
		if token, until, err = s.cfg.OIDC.fetch(ctx, env); err != nil {
			err = fmt.Errorf("get a token from %s: %w", s.cfg.OIDC.TokenURL, err)
		}
	case env.Sign == nil:
		err = errors.New("there is no key to sign a token with")
	default:
		if token, until, err = env.Sign(audience); err != nil {
			err = fmt.Errorf("sign a token: %w", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asking = nil
	now := time.Now()
	if s.failed = err; err != nil {
		s.retryAt = now.Add(retryAfter)
		return
	}
	life := min(until.Sub(now), longestLife)
	s.token, s.until, s.useTo = token, now.Add(life), now.Add(life-min(early, life/4))
}

// readToken reads a token from a file.
func readToken(file string) (string, error) {
	text, err := readFile(file)
	if err != nil {
		return "", fmt.Errorf("read the token: %w", err)
	}
	if what := tokenProblem(text); what != "" {
		return "", fmt.Errorf("the token in %s %s", file, what)
	}
	return text, nil
}

// readFile reads a short text.
func readFile(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxTokenBytes+1))
	if err != nil {
		return "", err
	}
	text := strings.TrimSpace(string(data))
	switch {
	case len(data) > maxTokenBytes:
		return "", fmt.Errorf("%s is longer than %d bytes", file, maxTokenBytes)
	case text == "":
		return "", errors.New(file + " is empty")
	}
	return text, nil
}

// tokenProblem says why token cannot stand in a header field (RFC 6750, section 2.1), "" if it can.
func tokenProblem(token string) string {
	if token == "" || len(token) > maxTokenBytes {
		return fmt.Sprintf("has %d bytes; it should have 1 to %d", len(token), maxTokenBytes)
	}
	for i := range len(token) {
		switch c := token[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("-._~+/=", c) >= 0:
		default:
			return fmt.Sprintf("holds the byte %#02x, which no token has; it should be a JWT on one line", c)
		}
	}
	return ""
}

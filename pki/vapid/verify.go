package vapid

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"
)

const (
	// defaultSkew is how far the clocks of sender and push service may differ.
	defaultSkew = 30 * time.Second
	// maxSkew is the most that helps clocks and not thieves of tokens.
	maxSkew = time.Minute
	// defaultEntries of some 400 bytes each, plus sub.
	defaultEntries = 16_384
	// minEntries is what the two parts of the cache and the bound of one key need.
	minEntries = 16
)

// Config says how senders are verified. The zero value is good. It is not changed after it was handed over.
type Config struct {
	// Skew is how far the clocks of senders may differ. Default 30s, 60s at most; negative: none.
	Skew time.Duration `yaml:"skew"`
	// CacheEntries is how many verified tokens are remembered. Default 16384, at least 16; negative: none.
	CacheEntries int `yaml:"cacheEntries"`
}

// FieldError is one field of a Config that is wrong.
type FieldError struct {
	Field string // the field as in the configuration file
	What  string // what is wrong, and what would be right
}

// Error returns "FIELD: WHAT".
func (e *FieldError) Error() string { return e.Field + ": " + e.What }

// Validate reports all problems, joined; each is a *FieldError.
func (c *Config) Validate() error {
	var errs []error
	if c.Skew > maxSkew {
		errs = append(errs, &FieldError{"skew", fmt.Sprintf("%v is too long; use %v or less", c.Skew, maxSkew)})
	}
	if c.CacheEntries > 0 && c.CacheEntries < minEntries {
		errs = append(errs, &FieldError{"cacheEntries", fmt.Sprintf("%d is too few; use %d or more, or -1 for none", c.CacheEntries, minEntries)})
	}
	return errors.Join(errs...)
}

// Sender is who has sent a message: the holder of a key. All who verified the same token have the same value, so it is
// not changed.
type Sender struct {
	// Key is the public key, an uncompressed point of P-256.
	Key [KeyBytes]byte
	// Subject is how to reach the sender, a mailto: or https: address, or "". It is a claim that nobody has checked.
	Subject string
	// NotAfter is when the token ends, with the skew. Until then it may be shown again.
	NotAfter time.Time

	audiences []string
}

// Stats says what a Verifier has done and holds.
type Stats struct {
	Hits     int64 // tokens that were remembered
	Verified int64 // tokens that were checked with their signature, good or bad
	Entries  int   // tokens that are remembered
}

// Verifier verifies senders and remembers their tokens, as RFC 8292, section 5, proposes. All methods may be called at
// any time from any goroutine.
type Verifier struct {
	skew           time.Duration
	cache          *cache
	flight         singleflight.Group // by digest
	hits, verified atomic.Int64
}

// NewVerifier makes a Verifier. It returns what Validate finds.
func NewVerifier(c Config) (*Verifier, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	v := &Verifier{skew: c.Skew}
	switch {
	case c.Skew < 0:
		v.skew = 0
	case c.Skew == 0:
		v.skew = defaultSkew
	}
	if c.CacheEntries == 0 {
		c.CacheEntries = defaultEntries
	}
	v.cache = newCache(max(c.CacheEntries, 0))
	return v, nil
}

// Verify checks what a sender shows for a push resource at origin, such as "https://push.example.net", as Origin
// writes it. It returns an *Error. A token that was verified before costs its hash; another costs a signature, once,
// however many show it at the same time. It does not block.
func (v *Verifier) Verify(c Credentials, origin string) (*Sender, error) {
	if len(c.Token) > maxTokenBytes {
		return nil, refuse(TooLarge, "the token is too long")
	}
	sum := digestOf(&c)
	s := v.cache.get(&sum)
	if s != nil {
		v.hits.Add(1)
	} else {
		shown := c // so that c itself stays off the heap when the token is remembered
		result, err, _ := v.flight.Do(string(sum[:]), func() (any, error) { return v.verifyNew(&shown, sum) })
		if err != nil {
			return nil, err
		}
		s = result.(*Sender)
	}
	if err := v.checkTime(s, time.Now()); err != nil {
		return nil, err
	}
	// RFC 8292, section 2: "aud" is the origin of the push resource, so what was made for one says nothing at another.
	if !slices.Contains(s.audiences, origin) {
		return nil, refuse(BadAudience, "aud does not have the origin of the push resource")
	}
	return s, nil
}

// VerifyAuthorization reads and verifies the value of an Authorization field, as ParseAuthorization and Verify do.
func (v *Verifier) VerifyAuthorization(value, origin string) (*Sender, error) {
	c, err := ParseAuthorization(value)
	if err != nil {
		return nil, err
	}
	return v.Verify(c, origin)
}

// Stats returns the present figures.
func (v *Verifier) Stats() Stats {
	return Stats{Hits: v.hits.Load(), Verified: v.verified.Load(), Entries: v.cache.len()}
}

// verifyNew verifies a token and keeps the result. What it returns is an *Error.
func (v *Verifier) verifyNew(c *Credentials, sum digest) (*Sender, error) {
	// It may have been put there since Verify looked.
	if s := v.cache.get(&sum); s != nil {
		return s, nil
	}
	v.verified.Add(1)
	read, err := checkToken(c)
	if err != nil {
		return nil, err
	}
	s := &Sender{Key: c.Key, Subject: read.subject, NotAfter: read.expires.Add(v.skew), audiences: read.audiences}
	if err := v.checkTime(s, time.Now()); err != nil {
		return nil, err
	}
	v.cache.put(sum, s)
	return s, nil
}

// checkTime checks the end of a token (RFC 8292, sections 2 and 4.2).
func (v *Verifier) checkTime(s *Sender, now time.Time) error {
	switch left := s.NotAfter.Sub(now); {
	case left <= 0:
		return refuse(Expired, "the token has ended")
	case left > maxLife+2*v.skew:
		return refuse(TooLong, "the token ends more than 24 hours from now")
	}
	return nil
}

// Origin returns the origin of an address as RFC 6454, section 6.2, writes it: scheme and host in lower case, the port
// only if it is not the scheme's own. It returns "" for an address without a host.
func Origin(u *url.URL) string {
	host := strings.ToLower(u.Hostname())
	if host == "" {
		return ""
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	scheme, port := strings.ToLower(u.Scheme), u.Port()
	if port == "" || scheme == "https" && port == "443" || scheme == "http" && port == "80" {
		return scheme + "://" + host
	}
	return scheme + "://" + host + ":" + port
}

// digestOf is the SHA-256 of token and key together: a token that fails with another key is another thing.
func digestOf(c *Credentials) digest {
	var room [1024]byte // most fit, and then it stays off the heap
	return sha256.Sum256(append(append(room[:0], c.Key[:]...), c.Token...))
}

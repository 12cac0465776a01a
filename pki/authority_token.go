package pki

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"culvert/pki/istioca"
	"culvert/pki/spiffe"
)

const (
	// joinPrefix tells join tokens from those of other issuers.
	joinPrefix = "culvert-join-"
	// joinTokenBytes is the size of a token's secret, 192 bits.
	joinTokenBytes = 24
	// maxTokens is how many tokens wait at once, as each one is looked at for each that is shown.
	maxTokens = 1000
	// maxTokenTTL: a token is to be used at once, and one that lies about is a key.
	maxTokenTTL = 7 * 24 * time.Hour
	// DefaultTokenTTL is how long a join token is good for if nothing else is said.
	DefaultTokenTTL = 10 * time.Minute
	// tokenMemory is how long an expired token is remembered, so that its user can be told what is the matter.
	tokenMemory = time.Hour
)

// joinToken is a token as it is kept: not the token itself.
type joinToken struct {
	Hash  string    `json:"hash"` // SHA-256, hexadecimal
	ID    spiffe.ID `json:"id"`
	Names []string  `json:"names,omitempty"`
	Until time.Time `json:"until"`
	// UsedBy is the SHA-256 of the public key that the token was used for, "" if it was not. Who has that key may ask
	// again, as the answer may have been lost; nobody else may.
	UsedBy string `json:"used_by,omitempty"`
}

// NewToken makes a one-time token for a host that is to get id, and names beside it, within ttl (0:
// DefaultTokenTTL; at most a week). An identity that was revoked may join again by it. The token is shown once, here.
func (a *Authority) NewToken(id spiffe.ID, ttl time.Duration, names ...string) (token string, err error) {
	if ttl == 0 {
		ttl = DefaultTokenTTL
	}
	if ttl < 0 || ttl > maxTokenTTL {
		return "", fmt.Errorf("a token for %v is not made; at most %v", ttl, maxTokenTTL)
	}
	if err := a.checkGrant(Grant{ID: id, Names: names}); err != nil {
		return "", err
	}
	secret := make([]byte, joinTokenBytes)
	_, _ = rand.Read(secret) // never fails
	token = joinPrefix + base64.RawURLEncoding.EncodeToString(secret)
	return token, a.update(func(d *authorityData) error {
		if len(d.state.Tokens) >= maxTokens {
			return fmt.Errorf("%d tokens wait already; ask again when some have expired", maxTokens)
		}
		d.state.Tokens = append(d.state.Tokens, joinToken{Hash: hashText(token), ID: id, Names: names, Until: time.Now().Add(ttl).UTC().Truncate(time.Second)})
		return nil
	})
}

// checkGrant refuses identities that this CA does not sign.
func (a *Authority) checkGrant(grant Grant) error {
	switch {
	case grant.ID.IsZero() || grant.ID.IsKey():
		return errors.New("the identity is none that a CA signs; it is like spiffe://TRUSTDOMAIN/ns/NAMESPACE/sa/ACCOUNT")
	case grant.ID.TrustDomain() != a.trustDomain:
		return fmt.Errorf("%s is not of this CA's trust domain, %q", grant.ID, a.trustDomain)
	case grant.ID == a.id:
		return fmt.Errorf("%s is the identity of the CA itself; choose another", grant.ID)
	}
	return checkNames(grant.Names)
}

// checkNames refuses what cannot stand beside an identity.
func checkNames(names []string) error {
	if len(names) > maxIssuedNames {
		return fmt.Errorf("%d names are too many; at most %d fit beside the identity", len(names), maxIssuedNames)
	}
	for _, name := range names {
		if _, err := netip.ParseAddr(name); err != nil && !isHostName(name) {
			return fmt.Errorf("%q is neither a DNS name in lower case nor an IP address", printable(name))
		}
	}
	return nil
}

// redeem trades a token for what it grants and the CSR asks for, for the key of that CSR only. A CSR that is wrong leaves
// the token as it was. The error is an *istioca.Error.
func (a *Authority) redeem(token, addr, csrPEM string) (grant Grant, csr *x509.CertificateRequest, err error) {
	now := time.Now()
	if !a.guesses.allowed(addr, now) {
		return grant, nil, errTooManyGuesses
	}
	hash := hashText(token)
	// What is in memory first, so that wrong tokens cost no system call; one that was just made is in the files.
	found := findToken(a.data.Load().state.Tokens, hash)
	if found == nil && a.guesses.work(now) {
		if err := a.refresh(now); err != nil {
			return grant, nil, err
		}
		found = findToken(a.data.Load().state.Tokens, hash)
	}
	if found == nil {
		a.guesses.wrong(addr, now)
		return grant, nil, wrongToken("the join token is not known here; it may be of another CA, or long expired; have a new one made by gateway ca token")
	}
	grant = Grant{ID: found.ID, Names: found.Names}
	if csr, err = parseCSR(csrPEM); err != nil {
		return grant, nil, err
	}
	if err := checkCSR(csr, grant); err != nil {
		return grant, nil, err
	}
	key := hashText(string(csr.RawSubjectPublicKeyInfo))
	err = a.update(func(d *authorityData) error { return d.state.use(hash, key, now) })
	if told, ok := errors.AsType[*istioca.Error](err); ok && told.Code == istioca.Unauthenticated {
		a.guesses.wrong(addr, now)
	}
	return grant, csr, err
}

// use uses a token up.
func (s *authorityState) use(hash, key string, now time.Time) error {
	t := findToken(s.Tokens, hash)
	switch {
	case t == nil:
		return wrongToken("the join token is not known here any more")
	case now.After(t.Until):
		return wrongToken("the join token expired at " + stamp(t.Until) + "; have a new one made")
	case t.UsedBy == key:
		return nil
	case t.UsedBy != "":
		return wrongToken("the join token was used already, for another key; have a new one made, and find out who used it")
	}
	t.UsedBy = key
	id := t.ID
	s.Barred = slices.DeleteFunc(s.Barred, func(barred spiffe.ID) bool { return barred == id })
	return nil
}

// findToken looks for a token by its hash, nil if it is not there. It looks at all of them, each in constant time.
func findToken(tokens []joinToken, hash string) (found *joinToken) {
	for i := range tokens {
		if subtle.ConstantTimeCompare([]byte(tokens[i].Hash), []byte(hash)) == 1 {
			found = &tokens[i]
		}
	}
	return found
}

// errTooManyGuesses is the answer to a source of wrong tokens.
var errTooManyGuesses = &istioca.Error{Code: istioca.ResourceExhausted, Detail: "too many wrong tokens; try again in a minute"}

func wrongToken(detail string) error {
	return &istioca.Error{Code: istioca.Unauthenticated, Detail: detail}
}

func isJoinToken(token string) bool { return strings.HasPrefix(token, joinPrefix) }

func hashText(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

const (
	// guessBurst and guessRate are how many wrong tokens one source may show, and how many a second it regains. Guessing
	// 192 bits is hopeless anyway; this is for the work.
	guessBurst, guessRate = 20, 0.2
	// workBurst and workRate bound, for all sources together, how often the files are looked at for a token that is
	// not in memory.
	workBurst, workRate = 100, 50
	// maxGuessers is how many sources are counted. Those beyond are not, as hosts with a good token are among them; what
	// their wrong ones cost is bounded by the rate of work and by the calls that are served at once.
	maxGuessers = 4096
)

// guessLimiter bounds what wrong tokens cost.
type guessLimiter struct {
	mu      sync.Mutex
	sources map[netip.Prefix]*leakyBucket // guarded by mu
	swept   time.Time                     // guarded by mu: when sources that are forgiven were last looked for
	all     leakyBucket                   // guarded by mu
}

// leakyBucket counts what runs in, and loses it at a rate.
type leakyBucket struct {
	level float64
	at    time.Time
}

func (b *leakyBucket) leak(rate float64, now time.Time) {
	b.level = max(0, b.level-rate*now.Sub(b.at).Seconds())
	b.at = now
}

// allowed reports whether a source may show another token.
func (g *guessLimiter) allowed(addr string, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	b := g.sources[guessSource(addr)]
	if b == nil {
		return true
	}
	b.leak(guessRate, now)
	return b.level < guessBurst
}

// wrong notes a wrong token.
func (g *guessLimiter) wrong(addr string, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.sources == nil {
		g.sources = make(map[netip.Prefix]*leakyBucket)
	}
	source := guessSource(addr)
	if g.sources[source] == nil && len(g.sources) >= maxGuessers {
		if now.Sub(g.swept) >= time.Second { // not for each wrong token, of which there are many now
			g.swept = now
			for other, b := range g.sources {
				if b.leak(guessRate, now); b.level == 0 {
					delete(g.sources, other)
				}
			}
		}
		if len(g.sources) >= maxGuessers {
			return
		}
	}
	b := g.sources[source]
	if b == nil {
		b = &leakyBucket{at: now}
		g.sources[source] = b
	}
	b.leak(guessRate, now)
	b.level++
}

// work reports whether the files may be looked at once more.
func (g *guessLimiter) work(now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.all.leak(workRate, now)
	if g.all.level >= workBurst {
		return false
	}
	g.all.level++
	return true
}

// guessSource is what of an address counts as one source: an IPv4 address, or the network of 64 bits that one host may
// choose its IPv6 addresses from.
func guessSource(addr string) netip.Prefix {
	at, err := netip.ParseAddrPort(addr)
	if err != nil {
		return netip.Prefix{}
	}
	ip := at.Addr().Unmap()
	bits := 64
	if ip.Is4() {
		bits = 32
	}
	source, _ := ip.WithZone("").Prefix(bits) // the bits are right for both families
	return source
}

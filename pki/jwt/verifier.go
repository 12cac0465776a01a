package jwt

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	jwtlib "github.com/golang-jwt/jwt/v5"
	"golang.org/x/sync/singleflight"
)

// Env is what a Verifier gets from the program around it. All functions may be called from any goroutine.
type Env struct {
	// DialContext opens the connections to issuers. Nil: any address that the system resolves the host to.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
	// Roots are the CAs for issuers without CAFile. Nil: those of the system.
	Roots *x509.CertPool
	// PinnedKey returns the self-made key with this name ("key:…") if it may sign tokens, else nil. It is asked each time that
	// one of its tokens is verified, remembered or not, so it must not block. Config.SelfSigned needs it.
	PinnedKey func(name string) crypto.PublicKey
	// Refreshed, if set, is told how each refresh of an issuer's keys ended, nil for success. After a failure the old
	// keys are used for 24 h at most.
	Refreshed func(issuer string, err error)
}

// Verifier verifies tokens. All methods may be called at any time from any goroutine.
type Verifier struct {
	// immutable after New
	issuers    map[string]*issuer
	selfSigned *issuer // nil if there is none
	leeway     time.Duration
	parser     *jwtlib.Parser
	cache      *cache
	cancel     context.CancelFunc

	flight         singleflight.Group // by digest
	loops          sync.WaitGroup
	hits, verified atomic.Int64

	changedMu sync.Mutex
	changed   chan struct{} // guarded by changedMu: closed at the next change
}

// issuer is one whose tokens are taken.
type issuer struct {
	// immutable after New
	name        string // "" for self-made keys
	audiences   []string
	anyAudience bool
	kubernetes  bool
	fixed       []*verifyKey
	source      *source // nil if all keys are fixed
	pinned      func(name string) crypto.PublicKey

	share *share
}

// New makes a Verifier. It reads files at once and reports every problem, joined, each a *ConfigError. Keys that come
// over the network are read in the background, so that an issuer that is down does not keep a gateway from starting; the first
// tokens wait for them. Close ends it.
func New(cfg Config, env Env) (*Verifier, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	v := &Verifier{
		issuers: make(map[string]*issuer), leeway: cfg.leeway(), cache: newCache(), cancel: cancel, changed: make(chan struct{}),
		// What readClaims has checked is checked once more by the library that knows the signatures.
		parser: jwtlib.NewParser(jwtlib.WithStrictDecoding(), jwtlib.WithJSONNumber(), jwtlib.WithValidMethods(allAlgorithms),
			jwtlib.WithExpirationRequired(), jwtlib.WithIssuedAt(), jwtlib.WithLeeway(cfg.leeway())),
	}
	shares := len(cfg.Issuers)
	if cfg.SelfSigned != nil {
		shares++
	}
	var p problems
	for i := range cfg.Issuers {
		by := v.newIssuer(ctx, &cfg.Issuers[i], &env, &p, fmt.Sprintf("issuers[%d].", i))
		by.share = newShare(cfg.entries(), shares)
		v.issuers[by.name] = by
	}
	if s := cfg.SelfSigned; s != nil {
		if env.PinnedKey == nil {
			p.add("selfSigned", "there are no self-made keys that are allowed; name some, or leave it out")
		}
		v.selfSigned = &issuer{audiences: slices.Clone(s.Audiences), anyAudience: s.AnyAudience, pinned: env.PinnedKey, share: newShare(cfg.entries(), shares)}
	}
	if len(p) > 0 {
		cancel()
		return nil, errors.Join(p...)
	}
	for _, by := range v.issuers {
		if by.source == nil {
			continue
		}
		first := time.Duration(0)
		if by.source.set.Load() != nil {
			first = fileLife
		}
		// Close ends it and waits for it.
		v.loops.Go(func() { by.source.refreshLoop(ctx, first) })
	}
	return v, nil
}

// newIssuer makes an issuer of its configuration and reads its files. ctx ends when the Verifier is closed.
func (v *Verifier) newIssuer(ctx context.Context, c *IssuerConfig, env *Env, p *problems, at string) *issuer {
	by := &issuer{name: c.Issuer, audiences: slices.Clone(c.Audiences), anyAudience: c.AnyAudience, kubernetes: c.Kubernetes}
	for i, key := range c.Keys {
		k, err := readKey(key)
		if err != nil {
			*p = append(*p, &ConfigError{Field: fmt.Sprintf("%skeys[%d].file", at, i), What: "cannot be used", Err: err})
			continue
		}
		by.fixed = append(by.fixed, k)
	}
	done := func(err error) {
		if env.Refreshed != nil {
			env.Refreshed(c.Issuer, err)
		}
	}
	switch {
	case c.JWKS != "":
		keys, _ := parseSet([]byte(c.JWKS), nil) // Validate has seen that it can be read
		by.fixed = append(by.fixed, keys...)
	case c.JWKSFile != "":
		name := c.JWKSFile
		load := func(context.Context) ([]byte, time.Duration, error) {
			data, err := readFile(name, maxSetBytes)
			return data, fileLife, err
		}
		by.source = newSource(load, done, v.tellChanged, ctx.Done())
		if _, err := by.source.refresh(ctx); err != nil {
			*p = append(*p, &ConfigError{Field: at + "jwksFile", What: "cannot be used", Err: err})
		}
	case c.JWKSURI != "" || c.Discovery:
		for _, file := range []struct{ field, name string }{{"caFile", c.CAFile}, {"tokenFile", c.TokenFile}} {
			if file.name == "" {
				continue
			}
			if _, err := readFile(file.name, maxFileBytes); err != nil {
				*p = append(*p, &ConfigError{Field: at + file.field, What: "cannot be used", Err: err})
			}
		}
		by.source = newSource(newFetcher(c, env).load, done, v.tellChanged, ctx.Done())
	}
	return by
}

// Verify returns what a token says, if it can be believed, else an *Error. A token that was verified before costs its
// hash; another costs a signature, once, however many ask at the same time. It blocks only while the keys of the token's
// issuer are read, because there are none yet or the token names one that is not known, five seconds at most; ctx ends
// that, and then errors.Is finds ctx.Err().
func (v *Verifier) Verify(ctx context.Context, token string) (*Token, error) {
	if len(token) > maxTokenBytes {
		return nil, refuse(TooLarge, fmt.Sprintf("it is longer than %d bytes", maxTokenBytes))
	}
	sum := sha256.Sum256([]byte(token))
	if t := v.remembered(&sum, time.Now()); t != nil {
		v.hits.Add(1)
		return t, nil
	}
	for again := false; ; again = true {
		result, err, _ := v.flight.Do(string(sum[:]), func() (any, error) { return v.verifyNew(token, sum) })
		if err == nil {
			return result.(*Token), nil
		}
		lack, ok := errors.AsType[*lackError](err)
		if !ok {
			return nil, err
		}
		if again {
			lack.by.source.miss(lack.kid)
			return nil, lack.refusal
		}
		if err := lack.by.source.await(ctx, lack.kid, lack.seen); errors.Is(err, errNoRefresh) {
			return nil, lack.refusal
		} else if err != nil {
			return nil, &Error{Reason: KeysUnavailable, Issuer: lack.by.name, Detail: "its keys cannot be had", Err: err}
		}
	}
}

// Valid reports whether Verify would still take the token of t: it has not ended, and its key has not been withdrawn. It
// is for flows that go on under a token: ask at t.NotAfter, and when Changed says so. t may be of a Verifier that this one
// has replaced; until the keys of its issuer are read here, those of that Verifier count.
func (v *Verifier) Valid(t *Token) bool {
	now := time.Now()
	by := v.selfSigned
	if t.Key == "" {
		by = v.issuers[t.Issuer]
	}
	switch {
	case by == nil:
		return false
	case by == t.by:
		return !t.isOver(now)
	case !now.Before(t.NotAfter), !by.isFor(t.Audiences), by.kubernetes && t.Kubernetes == nil:
		return false
	case by.pinned != nil:
		return equalKeys(t.signed.public, by.pinned(t.Key))
	case slices.ContainsFunc(by.fixed, t.signed.same):
		return true
	case by.source == nil:
		return false
	}
	keys, set := by.source.current(now)
	if set == nil {
		return !t.isOver(now)
	}
	return slices.ContainsFunc(keys, t.signed.same)
}

// Changed returns a channel that is closed when an issuer withdraws a key, or its keys are read for the first time. Take the channel first, then ask Valid, then
// wait: so no change is missed. What Env.PinnedKey allows is known to its owner and does not show here.
func (v *Verifier) Changed() <-chan struct{} {
	v.changedMu.Lock()
	defer v.changedMu.Unlock()
	return v.changed
}

// Close ends the refreshes and waits for them. Tokens are verified as before, with the keys that are there. It returns
// nil and may be called more than once.
func (v *Verifier) Close() error {
	v.cancel()
	v.loops.Wait()
	return nil
}

func (v *Verifier) tellChanged() {
	v.changedMu.Lock()
	defer v.changedMu.Unlock()
	close(v.changed)
	v.changed = make(chan struct{})
}

// remembered returns the token with this digest if it was verified and is not over.
func (v *Verifier) remembered(sum *digest, now time.Time) *Token {
	t := v.cache.get(sum)
	if t != nil && t.isOver(now) {
		v.cache.drop(sum)
		return nil
	}
	return t
}

// isOver reports whether a token that was verified is nothing any more.
func (t *Token) isOver(now time.Time) bool {
	switch {
	case !now.Before(t.NotAfter) || t.signed.withdrawn.Load():
		return true
	case t.Key != "":
		return !equalKeys(t.signed.public, t.by.pinned(t.Key))
	case t.from != nil:
		set := t.from.set.Load()
		return set == nil || isStale(set, now)
	default:
		return false
	}
}

// lackError says that a key may be missing, and what to answer if it is not to be had.
type lackError struct {
	by      *issuer
	kid     string
	seen    *keySet // that was looked at, nil for none
	refusal *Error
}

// Error returns the text of the refusal.
func (e *lackError) Error() string { return e.refusal.Error() }

// verifyNew verifies a token and keeps the result. It does not block. What it returns is an *Error or a *lackError.
func (v *Verifier) verifyNew(token string, sum digest) (*Token, error) {
	now := time.Now()
	// It may have been put there since Verify looked.
	if t := v.remembered(&sum, now); t != nil {
		return t, nil
	}
	p, err := parseToken(token)
	if err != nil {
		return nil, err
	}
	by, name, err := v.issuerOf(p)
	if err != nil {
		return nil, err
	}
	t, err := v.readClaims(p.claims, by, now)
	if err != nil {
		return nil, by.named(err)
	}
	if by.pinned != nil {
		t.Issuer, t.Key = name, name
	}
	if err := v.findKey(t, p, token, now); err != nil {
		return nil, by.named(err)
	}
	v.cache.put(sum, t, p.bytes)
	return t, nil
}

// issuerOf finds whose token it is. A token with the name of a self-made key as its issuer, or with no issuer at all and
// such a name as kid or sub, is that key's; it may not name two.
func (v *Verifier) issuerOf(p *parsed) (by *issuer, name string, err error) {
	iss, ok := p.claims["iss"].(string)
	if _, there := p.claims["iss"]; there && !ok {
		return nil, "", refuse(BadClaim, "iss is no text")
	}
	if iss != "" && !strings.HasPrefix(iss, keyScheme) {
		if by = v.issuers[iss]; by == nil {
			return nil, "", refuse(UnknownIssuer, "no issuer "+quote(iss)+" is configured; it is compared byte for byte")
		}
		return by, "", nil
	}
	sub, _ := p.claims["sub"].(string)
	for _, s := range []string{iss, p.kid, sub} {
		switch {
		case !strings.HasPrefix(s, keyScheme):
		case name != "" && s != name:
			return nil, "", refuse(BadClaim, "it names two self-made keys; a key signs for itself only")
		default:
			name = s
		}
	}
	if name == "" {
		return nil, "", refuse(UnknownIssuer, "iss is missing")
	}
	if v.selfSigned == nil || len(name) > maxKeyIDBytes {
		return nil, "", refuse(UnknownIssuer, "tokens of self-made keys are not configured (selfSigned)")
	}
	return v.selfSigned, name, nil
}

// named adds the issuer's name to a refusal.
func (by *issuer) named(err error) error {
	if e, ok := errors.AsType[*Error](err); ok {
		e.Issuer = by.name
	}
	return err
}

// findKey finds the key that has signed the token, and notes it in t.
func (v *Verifier) findKey(t *Token, p *parsed, token string, now time.Time) error {
	by := t.by
	if by.pinned != nil {
		return v.checkPinned(t, p, token)
	}
	keys, fresh := by.fixed, true
	var seen *keySet
	if by.source != nil {
		var more []*verifyKey
		more, seen = by.source.current(now)
		keys, fresh = slices.Concat(by.fixed, more), more != nil
	}
	list, known := candidates(keys, p.kid, p.alg)
	for _, key := range list {
		err := v.checkSignature(token, key)
		if err == nil {
			t.signed = key
			if !slices.Contains(by.fixed, key) {
				t.from = by.source
			}
			return nil
		}
		if err.Reason != BadSignature {
			return err
		}
	}
	// A token without kid may be of a key that is not there yet.
	refusal, final := refuse(UnknownKey, "the issuer has no key "+quote(p.kid)), false
	switch {
	case !fresh:
		refusal = refuse(KeysUnavailable, "the issuer's keys could not be read yet, or not for a day")
	case known && len(list) > 0:
		refusal, final = refuse(BadSignature, "the signature is not one of the issuer's key"), p.kid != ""
	case known:
		refusal, final = refuse(BadAlgorithm, "alg is not one for the issuer's key"), p.kid != ""
	}
	if by.source == nil || final {
		return refusal
	}
	refusal.Issuer = by.name
	return &lackError{by: by, kid: p.kid, seen: seen, refusal: refusal}
}

// checkPinned checks the signature of a self-made key.
func (v *Verifier) checkPinned(t *Token, p *parsed, token string) error {
	public := t.by.pinned(t.Key)
	if public == nil {
		return refuse(UnknownKey, "the key "+quote(t.Key)+" is not among those that are allowed")
	}
	key, err := newKey(t.Key, public)
	if err != nil {
		return refuse(UnknownKey, "the key "+quote(t.Key)+" "+err.Error())
	}
	if !slices.Contains(key.algs, p.alg) {
		return refuse(BadAlgorithm, "alg is not one for this key")
	}
	if err := v.checkSignature(token, key); err != nil {
		return err
	}
	t.signed = key
	return nil
}

// checkSignature checks the signature with one key. Everything else was checked already; what the library finds beyond
// that is refused, too.
func (v *Verifier) checkSignature(token string, key *verifyKey) *Error {
	v.verified.Add(1)
	_, err := v.parser.Parse(token, func(t *jwtlib.Token) (any, error) {
		if !slices.Contains(key.algs, t.Method.Alg()) {
			return nil, jwtlib.ErrTokenSignatureInvalid
		}
		return key.public, nil
	})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jwtlib.ErrTokenSignatureInvalid):
		return refuse(BadSignature, "the signature is not one of the key")
	case errors.Is(err, jwtlib.ErrTokenExpired):
		return refuse(Expired, "it has just ended")
	default:
		return refuse(Malformed, "it is not one that the library takes")
	}
}

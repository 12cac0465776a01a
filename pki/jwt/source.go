package jwt

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// cooldown is how long after the start of a refresh a token may cause the next: a sender of made-up kids makes one
	// request in ten seconds, whatever it sends.
	cooldown = 10 * time.Second
	// maxRetry is the longest wait after a failed refresh; it doubles from cooldown on.
	maxRetry = 5 * time.Minute
	// maxStale is how long keys are believed after the last time that the issuer confirmed them.
	maxStale = 24 * time.Hour
	// missingLife is how long a kid that a fresh set does not have causes no further refresh. It is short, as the key may be
	// published a moment later.
	missingLife = 30 * time.Second
	// maxMissing bounds the kids that are remembered so.
	maxMissing = 256
	// maxWaiting is how many tokens wait for one issuer's keys. Beyond that something is wrong with it, and waiting for it
	// only costs memory.
	maxWaiting = 256
	// fileLife is how long a key set from a file is current; reading it costs nothing.
	fileLife = time.Minute
)

// keySet is what an issuer's keys were when they were last read. It does not change.
type keySet struct {
	keys []*verifyKey
	at   time.Time // of the last success
}

// source holds the keys of one issuer and keeps them current.
type source struct {
	// immutable after newSource
	load    func(ctx context.Context) (data []byte, life time.Duration, err error)
	done    func(err error) // told of each refresh, by refreshLoop
	changed func()          // called after keys were withdrawn or read for the first time, by refreshLoop
	stop    <-chan struct{} // closed when there will be no further refresh
	kick    chan struct{}   // holds one value when asked is to be done now

	set     atomic.Pointer[keySet] // nil before the first success
	waiting atomic.Int64           // tokens that wait for a refresh

	fetches, failures atomic.Int64

	mu      sync.Mutex
	asked   *round               // guarded by mu: the refresh that is wanted or under way
	started time.Time            // guarded by mu: when the last refresh began
	missing map[string]time.Time // guarded by mu: kids that a set did not have, and until when that is believed
}

// round is one refresh.
type round struct {
	over chan struct{} // closed when it is
	err  error         // set before
}

// newSource makes a source whose first refresh is wanted: it is the first thing that refreshLoop does.
func newSource(load func(context.Context) ([]byte, time.Duration, error), done func(error), changed func(), stop <-chan struct{}) *source {
	return &source{
		load: load, done: done, changed: changed, stop: stop, kick: make(chan struct{}, 1), missing: make(map[string]time.Time),
		asked: &round{over: make(chan struct{})},
	}
}

// current returns the keys, none where there are none or they are too old, and the set that was looked at.
func (s *source) current(now time.Time) (keys []*verifyKey, set *keySet) {
	if set = s.set.Load(); set == nil || isStale(set, now) {
		return nil, set
	}
	return set.keys, set
}

// isStale goes by the wall clock, as timers stand still while a machine sleeps.
func isStale(set *keySet, now time.Time) bool { return now.Round(0).Sub(set.at) > maxStale }

// refreshLoop does all refreshes of the source, one after another: when somebody asks, and before the keys are over. The
// first one is due after first.
func (s *source) refreshLoop(ctx context.Context, first time.Duration) {
	timer := time.NewTimer(first)
	defer timer.Stop()
	wait := cooldown
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-s.kick:
		}
		life, err := s.refresh(ctx)
		if ctx.Err() != nil {
			return
		}
		s.done(err)
		if err != nil {
			timer.Reset(wait)
			wait = min(2*wait, maxRetry)
			continue
		}
		wait = cooldown
		// Before the end, and not at the same moment as all other gateways.
		timer.Reset(life*3/4 - rand.N(life/8))
	}
}

// refresh reads the keys once and ends the round that was asked for.
func (s *source) refresh(ctx context.Context) (life time.Duration, err error) {
	s.mu.Lock()
	if s.asked == nil {
		s.asked = &round{over: make(chan struct{})}
	}
	this := s.asked
	s.started = time.Now()
	select {
	case <-s.kick: // it is this one that was asked for
	default:
	}
	s.mu.Unlock()

	s.fetches.Add(1)
	data, life, err := s.load(ctx)
	if err == nil {
		err = s.install(data)
	}
	if err != nil {
		s.failures.Add(1)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = nil
	this.err = err
	close(this.over)
	return life, err
}

// install puts a set in the place of the old one, and withdraws the keys that it has no more.
func (s *source) install(data []byte) error {
	var old []*verifyKey
	before := s.set.Load()
	if before != nil {
		old = before.keys
	}
	keys, err := parseSet(data, old)
	if err != nil {
		return err
	}
	s.set.Store(&keySet{keys: keys, at: time.Now().Round(0)})
	gone := before == nil // a Verifier before this one may have had others
	kept := make(map[*verifyKey]bool, len(keys))
	for _, key := range keys {
		kept[key] = true
	}
	for _, key := range old {
		if !kept[key] {
			key.withdrawn.Store(true)
			gone = true
		}
	}
	if gone {
		s.changed()
	}
	return nil
}

// errNoRefresh says that nothing will be read now: that was done a moment ago.
var errNoRefresh = errors.New("they were looked for a moment ago")

// await waits for a refresh because kid is not in the set seen: for the one that is under way, or for one that it asks
// for. It returns nil at once where there is another set by now, and errNoRefresh where kid was looked for in the last
// half minute or anything in the last ten seconds; else why the refresh failed, or the end of ctx.
func (s *source) await(ctx context.Context, kid string, seen *keySet) error {
	if s.waiting.Add(1) > maxWaiting {
		s.waiting.Add(-1)
		return errors.New("too many tokens wait for them")
	}
	defer s.waiting.Add(-1)
	this := s.ask(kid)
	// After ask: a refresh that ended before it has put its set there.
	if s.set.Load() != seen {
		return nil
	}
	if this == nil {
		return errNoRefresh
	}
	select {
	case <-this.over:
		return this.err
	case <-ctx.Done():
		return ctx.Err()
	case <-s.stop:
		return errors.New("this gateway has stopped to read them")
	}
}

// ask returns the refresh to wait for, nil for none.
func (s *source) ask(kid string) *round {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked != nil {
		return s.asked
	}
	now := time.Now()
	if until, ok := s.missing[kid]; ok && now.Before(until) || now.Sub(s.started) < cooldown {
		return nil
	}
	s.asked = &round{over: make(chan struct{})}
	select {
	case s.kick <- struct{}{}:
	default:
	}
	return s.asked
}

// miss remembers that a fresh set has no kid.
func (s *source) miss(kid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if len(s.missing) >= maxMissing {
		for old, until := range s.missing {
			if !now.Before(until) {
				delete(s.missing, old)
			}
		}
	}
	for old := range s.missing {
		if len(s.missing) < maxMissing {
			break
		}
		delete(s.missing, old) // any of them; the cooldown bounds what that costs
	}
	s.missing[kid] = now.Add(missingLife)
}

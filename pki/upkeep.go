package pki

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"
)

const (
	// renewLook is how often the clock is looked at: a timer stands still while a laptop sleeps.
	renewLook = time.Second
	// A renewal that fails is tried again after renewFirst, then twice as long, up to renewMost, so that a CA which comes
	// back finds its members at its door within a minute, and not all in one second.
	renewFirst = 2 * time.Second
	renewMost  = time.Minute
	// renewTimeout is for one renewal.
	renewTimeout = 30 * time.Second
	// renewSpread is the part of a certificate's life over which the renewals of those issued together are spread.
	renewSpread = 0.1
)

// renewLoop renews the identity from half of its life on, until Close.
func (s *Source) renewLoop() {
	spread, retry, notBefore := rand.Float64()*renewSpread, renewFirst, time.Time{}
	tick := time.NewTicker(renewLook)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		if m := s.Current(); now.Before(notBefore) || !renewalDue(m, now.Add(-time.Duration(spread*float64(m.NotAfter.Sub(m.NotBefore))))) {
			continue
		}
		ctx, cancel := context.WithTimeout(s.ctx, renewTimeout)
		err := s.renew(ctx)
		cancel()
		if err == nil {
			s.renewals.Add(1)
			notBefore, retry = time.Time{}, renewFirst
			s.push()
			continue
		}
		s.renewalsFailed.Add(1)
		notBefore = time.Now().Add(retry/2 + rand.N(retry))
		retry = min(2*retry, renewMost)
		if s.ctx.Err() == nil {
			s.log.Error("identity cannot be renewed, trying again", "id", s.ID().String(), "not_after", s.Current().NotAfter, "err", err)
		}
	}
}

// renewalDue reports whether half of the life of m is over.
func renewalDue(m *Material, now time.Time) bool { return now.After(RenewAt(m)) }

// followPoll is how often a CA is asked that does not wait for changes.
const followPoll = 15 * time.Second

// follow takes over the roots and the revocation list of the CA that the identity in dir came from, as soon as they change,
// until ctx ends. changed is called when there may be new ones. What fails is tried again, as renewals are.
func follow(ctx context.Context, dir string, changed func(), log *slog.Logger) {
	tag, retry, lastErr := "", renewFirst, ""
	for ctx.Err() == nil {
		start := time.Now()
		next, err := waitForCA(ctx, dir, tag)
		moved := next != tag
		if err == nil && moved {
			if err = Refresh(ctx, dir); err == nil {
				tag = next
				changed()
			}
		}
		wait := followPoll - time.Since(start) // a CA that does not wait, as it has many members, is asked no more often
		switch {
		case err == nil:
			retry, lastErr = renewFirst, ""
		default:
			wait = retry/2 + rand.N(retry)
			retry = min(2*retry, renewMost)
			if text := err.Error(); text != lastErr && ctx.Err() == nil {
				log.Warn("roots and revocations of the CA cannot be fetched, those that are there stay", "err", err)
				lastErr = text
			}
		}
		if err != nil || !moved && wait > 0 {
			t := time.NewTimer(wait)
			select {
			case <-ctx.Done():
			case <-t.C:
			}
			t.Stop()
		}
	}
}

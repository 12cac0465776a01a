package endpoint

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"
)

const (
	// maxAnswers is how many endpoints DNS may give a Set; the first of them, in their order, are used. A message of 64 KiB has no more than
	// 4,000 addresses, and nobody serves one name from so many.
	maxAnswers = 1024
	// maxTargets is how many names of an SRV answer are looked up.
	maxTargets = 64
	// leastEvery is how soon a name is looked up again at the soonest, whatever its TTL says.
	leastEvery = time.Second
	// lookupTimeout bounds one look at a name, those of the names in an SRV answer included.
	lookupTimeout = 10 * time.Second
)

// Kind is what a name is looked up for.
type Kind uint8

// The kinds.
const (
	Addresses Kind = iota // A and AAAA
	Services              // SRV
)

// Answer is one record of an answer.
type Answer struct {
	// Addr is the address, of Addresses.
	Addr netip.Addr
	// Host, Port, Priority and Weight are those of an SRV record (RFC 2782).
	Host                   string
	Port, Priority, Weight uint16
}

// Asked is closed when DNS was asked once; nil where it is not asked.
func (s *Set) Asked() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.answered
}

// Refresh looks the name up, where there is one and nothing was found before. It ends with ctx.
func (s *Set) Refresh(ctx context.Context) {
	s.mu.Lock()
	conf, known := s.conf.DNS, !s.foundAt.IsZero()
	s.unlock()
	if conf.Name != "" && !known {
		s.lookUp(ctx, conf)
	}
}

// dnsLoop looks the name up again and again.
func (s *Set) dnsLoop(ctx context.Context, conf DNSConfig) {
	failures := 0
	for {
		ttl, ok := s.lookUp(ctx, conf)
		wait := conf.Every
		switch {
		case ok && ttl > 0:
			failures, wait = 0, min(max(ttl, leastEvery), conf.Every)
		case ok:
			failures = 0
		default:
			wait = min(leastEvery<<min(failures, 20), conf.Every)
			failures++
		}
		if !sleep(ctx, wait) {
			return
		}
	}
}

// lookUp looks the name up once and takes over what it finds. It reports whether it has found something.
func (s *Set) lookUp(ctx context.Context, conf DNSConfig) (ttl time.Duration, ok bool) {
	within, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	list, ttl, err := s.ask(within, conf)
	if ctx.Err() != nil {
		return 0, false
	}
	list, guarded, why := s.permitted(list)
	dropped := max(len(list)-maxAnswers, 0)
	list = list[:len(list)-dropped]
	if err == nil && len(list) == 0 {
		if err = why; err == nil {
			err = errors.New("the name has no address")
		}
	}
	s.mu.Lock()
	defer s.unlock()
	if s.conf.DNS != conf {
		return ttl, err == nil // a reload has come between
	}
	s.counts.guarded += int64(guarded)
	s.counts.dropped += int64(dropped)
	switch {
	case err == nil:
		s.found, s.foundAt = list, time.Now()
		s.compose()
	case len(s.found) > 0 && (time.Since(s.foundAt) >= conf.Keep || guarded > 0): // what is guarded now may be a name rebound
		s.found = nil
		s.compose()
		fallthrough
	default:
		s.counts.dnsFailures++
		s.note(slog.LevelWarn, "endpoints were not found", slog.String("host", conf.Name), slog.Int("kept", len(s.found)), slog.String("err", err.Error()))
	}
	if guarded > 0 && err == nil {
		s.note(slog.LevelWarn, "addresses of endpoints must not be used", slog.String("host", conf.Name), slog.Int("guarded", guarded), slog.String("reason", why.Error()))
	}
	if dropped > 0 {
		s.note(slog.LevelWarn, "a name has too many addresses", slog.String("host", conf.Name), slog.Int("dropped", dropped))
	}
	select {
	case <-s.answered:
	default:
		close(s.answered)
	}
	return ttl, err == nil
}

// ask asks for the name, and of an SRV answer for the names in it.
func (s *Set) ask(ctx context.Context, conf DNSConfig) ([]*Endpoint, time.Duration, error) {
	name := strings.ToLower(strings.TrimSuffix(conf.Name, "."))
	if conf.Type != TypeSRV {
		answers, ttl, err := s.env.Resolve(ctx, name, Addresses)
		if err != nil {
			return nil, 0, err
		}
		return sorted(resolved(nil, answers, &Endpoint{Port: conf.Port, Weight: 1})), ttl, nil
	}
	records, ttl, err := s.env.Resolve(ctx, name, Services)
	if err != nil {
		return nil, 0, err
	}
	slices.SortFunc(records, func(a, b Answer) int {
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Host, b.Host), cmp.Compare(a.Port, b.Port))
	})
	var list []*Endpoint
	var errs []error
	asked := make(map[string][]Answer)
	for _, r := range records {
		host := strings.ToLower(strings.TrimSuffix(r.Host, "."))
		if host == "" || r.Port == 0 { // RFC 2782: "." is that there is no such service
			continue
		}
		answers, known := asked[host]
		if !known && len(asked) < maxTargets {
			var t time.Duration
			if answers, t, err = s.env.Resolve(ctx, host, Addresses); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", host, err))
			} else if t > 0 && (ttl == 0 || t < ttl) {
				ttl = t
			}
			asked[host] = answers
		}
		list = resolved(list, answers, &Endpoint{Port: r.Port, Weight: max(int(r.Weight), 1), priority: r.Priority})
	}
	if len(list) == 0 && len(errs) > 0 {
		return nil, 0, errors.Join(errs...)
	}
	return sorted(list), ttl, nil
}

// resolved appends an endpoint like e for each address.
func resolved(list []*Endpoint, answers []Answer, e *Endpoint) []*Endpoint {
	for _, a := range answers {
		if len(list) > 4*maxAnswers {
			break // more are not even sorted
		}
		one := *e
		one.Addr, one.Resolved = a.Addr.Unmap(), true
		if addr := one.Addr; addr.IsValid() && addr.Zone() == "" {
			list = append(list, &one)
		}
	}
	return list
}

// sorted puts endpoints in an order that does not depend on that of the answer, and leaves out those that are there twice.
func sorted(list []*Endpoint) []*Endpoint {
	slices.SortStableFunc(list, func(a, b *Endpoint) int {
		return cmp.Or(cmp.Compare(a.priority, b.priority), a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port))
	})
	return slices.CompactFunc(list, func(a, b *Endpoint) bool { return a.Addr == b.Addr && a.Port == b.Port })
}

// permitted leaves out the endpoints whose addresses must not be used, and returns how many these are and why the first is one.
func (s *Set) permitted(list []*Endpoint) (_ []*Endpoint, guarded int, why error) {
	kept := list[:0]
	for _, e := range list {
		if s.env.Guard != nil {
			if err := s.env.Guard(e.Addr, e.Port); err != nil {
				if guarded++; why == nil {
					why = err
				}
				continue
			}
		}
		kept = append(kept, e)
	}
	return kept, guarded, why
}

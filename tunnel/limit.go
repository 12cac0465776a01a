package tunnel

import (
	"fmt"
	"hash/maphash"
	"maps"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"culvert/policy"
)

const (
	// maxLimitEntries is how many counts the table of limits holds, one for each limit and identity, of some 500 bytes each. A
	// quarter of them is kept for the counts that new identities share when there is no room for one of their own.
	maxLimitEntries = 100_000
	// limitShards is into how many parts the table is cut, so that flows which begin do not queue at one lock.
	limitShards = 64
	maxOwnOf    = maxLimitEntries / limitShards * 3 / 4 // in a shard
	maxSharedOf = maxLimitEntries/limitShards - maxOwnOf
	// limitEvicts is how many silent counts are looked at to find one that can go.
	limitEvicts = 8
	// maxLimitNames is how many names of limits Stats.Limited tells apart. Those of a configuration are few.
	maxLimitNames = 1000

	// burstOfSecond is which part of a second's bytes may pass at once after a silence, and leastBurst the least such amount:
	// pieces of less would be frames that peers count as splinters.
	burstOfSecond = 4
	leastBurst    = 4 << 10
	maxBurst      = 1 << 30

	// defaultPeriod is policy.Limit.Period where it is zero.
	defaultPeriod = 24 * time.Hour
)

// counted is whom a flow counts for: its peer, or where that has no identity its source, a /32 or a /64. The zero value is
// everybody of whom neither is known.
type counted struct {
	peer   string
	source netip.Prefix
}

// countedFor returns whom the flow counts for that r asks about.
func countedFor(r *policy.Request) counted {
	if !r.Peer.IsZero() {
		return counted{peer: r.Peer.String()}
	}
	addr := r.Remote
	if !addr.IsValid() {
		addr = r.Source.Addr()
	}
	addr, bits := addr.Unmap().WithZone(""), 64
	if addr.Is4() {
		bits = 32
	}
	prefix, _ := addr.Prefix(bits) // of no address it is the zero Prefix
	return counted{source: prefix}
}

// String returns the identity or the prefix, "unknown" for neither.
func (c counted) String() string {
	switch {
	case c.peer != "":
		return c.peer
	case c.source.IsValid():
		return c.source.String()
	}
	return "unknown"
}

// limitKey stands for a limit and whom it counts. It is a hash with secret seeds, so that a count takes the same memory
// however long names are, and nobody can aim at one part of the table.
type limitKey [2]uint64

// limitTable holds the counts of all limits. Its size is bounded: counts that tell nothing more, because nobody uses them
// and they are as they were when new, go first. When there are none of these, a new identity shares one count for each
// limit with all others that come so late; those that have their own keep it.
type limitTable struct {
	seeds  [2]maphash.Seed
	shards [limitShards]limitShard
	next   int // the shard that is swept next; owned by sweepLoop

	entries counter // counts that there are
	shared  counter // flows that had to share one

	mu      sync.Mutex
	refused map[string]int64 // flows refused or ended, by the limit's name; guarded by mu
}

func (t *limitTable) init() { t.seeds = [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()} }

type limitShard struct {
	table *limitTable

	mu             sync.Mutex // guards the group below, and the entries' fields; taken last
	own, shareable int
	entries        map[limitKey]*limitEntry
	oldest, newest *limitEntry // those without a flow, by when the last one has ended
}

// limitEntry is the count of one limit for one identity.
type limitEntry struct {
	shard  *limitShard
	key    limitKey
	shared bool

	// guarded by shard.mu
	limit      *policy.Limit
	flows      int           // that live
	starts     *rate.Limiter // of flows; nil: not limited. It is its own guard
	bytes      *rate.Limiter // nil: not limited
	spare      int           // bytes that were let pass and did not come
	waiting    int           // directions of flows that wait for bytes
	turn       chan struct{} // held by the one that waits now; made for the first
	used       int64         // of the quota
	until      time.Time     // the end of the quota's period
	prev, next *limitEntry   // in the list of those without a flow
	listed     bool
}

// key returns the key of a limit and whom it counts; shared: of the count that those share who have none. line is 0 where the
// name tells the limit from others of its file, so that it may move there.
func (t *limitTable) key(l *policy.Limit, line int, who counted, shared bool) (k limitKey) {
	of := struct {
		name, file string
		line       int
		who        counted
		shared     bool
	}{l.Name, l.Place.File, line, who, shared}
	for i := range k {
		k[i] = maphash.Comparable(t.seeds[i], of)
	}
	return k
}

// admit counts a flow in, or says why there is no room for it. The flow must leave, and started be cancelled where it does
// not begin after all. With force there is always room: the flow lives already. e may be nil then, if the table is full.
func (t *limitTable) admit(l *policy.Limit, line int, who counted, now time.Time, force bool) (e *limitEntry, started *rate.Reservation, why string) {
	for _, shared := range [2]bool{false, true} {
		of := who
		if shared {
			of = counted{}
			t.shared.add(1)
		}
		key := t.key(l, line, of, shared)
		s := &t.shards[key[0]%limitShards]
		s.mu.Lock()
		if e = s.entry(t, key, shared, l, now); e != nil {
			if !force {
				started, why = e.room(now)
			}
			if why == "" {
				s.unlist(e)
				e.flows++
			}
			s.mu.Unlock()
			return e, started, why
		}
		s.mu.Unlock()
	}
	return nil, nil, "the gateway counts more identities than it has room for"
}

// leave counts out a flow that was admitted.
func (t *limitTable) leave(e *limitEntry) {
	s := e.shard
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.flows--; e.flows > 0 {
		return
	}
	if e.fresh(time.Now()) {
		s.drop(e)
		return
	}
	s.list(e)
}

// sweep drops counts that tell nothing more, in one shard at each call. Called by sweepLoop.
func (t *limitTable) sweep(now time.Time) {
	s := &t.shards[t.next%limitShards]
	t.next++
	s.mu.Lock()
	defer s.mu.Unlock()
	for e := s.oldest; e != nil; {
		next := e.next
		if e.fresh(now) {
			s.drop(e)
		}
		e = next
	}
}

// count notes that a limit has refused a flow, or ended one.
func (t *limitTable) count(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.refused == nil {
		t.refused = make(map[string]int64)
	}
	if _, known := t.refused[name]; !known && len(t.refused) >= maxLimitNames {
		name = "" // a Decider of the program's makes up names
	}
	t.refused[name]++
}

// counts returns how many flows each limit has refused or ended.
func (t *limitTable) counts() map[string]int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.refused)
}

// entry returns the count of key, which it makes if there is room; nil if there is none. Called with mu held.
func (s *limitShard) entry(t *limitTable, key limitKey, shared bool, l *policy.Limit, now time.Time) *limitEntry {
	e := s.entries[key]
	if e == nil {
		if !s.makeRoom(shared, now) {
			return nil
		}
		if s.entries == nil {
			s.table, s.entries = t, make(map[limitKey]*limitEntry)
		}
		e = &limitEntry{shard: s, key: key, shared: shared, limit: new(policy.Limit)}
		s.entries[key] = e
		*s.room(shared)++
		t.entries.add(1)
		s.list(e) // until a flow is let in
	}
	if *e.limit != *l {
		e.resize(l, now)
	}
	e.limit = l // the one before may be all that is left of a policy
	return e
}

// room is how many entries of a kind there are.
func (s *limitShard) room(shared bool) *int {
	if shared {
		return &s.shareable
	}
	return &s.own
}

// makeRoom reports whether there is room for an entry, and drops one that tells nothing more if there would be none. It
// looks at a few only, those first that were silent for longest. Called with mu held.
func (s *limitShard) makeRoom(shared bool, now time.Time) bool {
	most := maxOwnOf
	if shared {
		most = maxSharedOf
	}
	for e, tries := s.oldest, 0; *s.room(shared) >= most && e != nil && tries < limitEvicts; tries++ {
		next := e.next
		if e.shared == shared && e.fresh(now) {
			s.drop(e)
		} else { // it comes last, so that the next ones are looked at next time
			s.unlist(e)
			s.list(e)
		}
		e = next
	}
	return *s.room(shared) < most
}

// list puts an entry without a flow last in the list of these. Called with mu held.
func (s *limitShard) list(e *limitEntry) {
	e.listed, e.prev, e.next = true, s.newest, nil
	if s.newest != nil {
		s.newest.next = e
	} else {
		s.oldest = e
	}
	s.newest = e
}

func (s *limitShard) unlist(e *limitEntry) {
	if !e.listed {
		return
	}
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		s.oldest = e.next
	}
	if e.next != nil {
		e.next.prev = e.prev
	} else {
		s.newest = e.prev
	}
	e.listed, e.prev, e.next = false, nil, nil
}

func (s *limitShard) drop(e *limitEntry) {
	s.unlist(e)
	delete(s.entries, e.key)
	*s.room(e.shared)--
	s.table.entries.add(-1)
}

// resize makes l the limit; what was counted stays. Called with the shard's mu held.
func (e *limitEntry) resize(l *policy.Limit, now time.Time) {
	e.starts = resized(e.starts, l.FlowsPerSecond, startBurst(l), now)
	e.bytes = resized(e.bytes, float64(l.BytesPerSecond), byteBurst(l.BytesPerSecond), now)
}

// resized gives a limiter other figures; nil where nothing is limited any more.
func resized(r *rate.Limiter, perSecond float64, burst int, now time.Time) *rate.Limiter {
	switch {
	case !(perSecond > 0): // also what is no number
		if r != nil {
			r.SetLimitAt(now, rate.Inf) // for those that wait
		}
		return nil
	case r == nil:
		return rate.NewLimiter(rate.Limit(perSecond), burst)
	}
	r.SetLimitAt(now, rate.Limit(perSecond))
	r.SetBurstAt(now, burst)
	return r
}

func startBurst(l *policy.Limit) int {
	if l.Burst > 0 {
		return l.Burst
	}
	return int(min(max(1, l.FlowsPerSecond), maxBurst))
}

func byteBurst(perSecond int64) int {
	return int(min(max(perSecond/burstOfSecond, leastBurst), maxBurst))
}

// room takes a place for a flow that begins, or says why there is none. Called with the shard's mu held.
func (e *limitEntry) room(now time.Time) (started *rate.Reservation, why string) {
	l := e.limit
	if e.spent(now) {
		return nil, fmt.Sprintf("the quota of %d bytes is used up until %s", l.Quota, e.until.UTC().Format(time.RFC3339))
	}
	if l.Flows > 0 && e.flows >= l.Flows {
		return nil, fmt.Sprintf("there are %d flows already, as many as may be", e.flows)
	}
	if e.starts == nil {
		return nil, ""
	}
	started = e.starts.ReserveN(now, 1)
	if started.DelayFrom(now) > 0 {
		started.CancelAt(now)
		return nil, fmt.Sprintf("more than %g flows a second", l.FlowsPerSecond)
	}
	return started, ""
}

// spent reports whether the quota is used up. It begins a period where one is over. Called with the shard's mu held.
func (e *limitEntry) spent(now time.Time) bool {
	if e.limit.Quota <= 0 {
		return false
	}
	if !now.Before(e.until) {
		period := e.limit.Period
		if period <= 0 {
			period = defaultPeriod
		}
		e.used, e.until = 0, now.Add(period)
	}
	return e.used >= e.limit.Quota
}

// fresh reports whether an entry tells nothing that a new one would not. Called with the shard's mu held.
func (e *limitEntry) fresh(now time.Time) bool {
	return e.flows == 0 && (e.used == 0 || !now.Before(e.until)) && full(e.starts, now) && full(e.bytes, now)
}

func full(r *rate.Limiter, now time.Time) bool {
	return r == nil || r.TokensAt(now) > float64(r.Burst())-minToken
}

// minToken is what a limiter may miss by rounding and still be full.
const minToken = 1.0 / (1 << 20)

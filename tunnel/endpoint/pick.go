package endpoint

import (
	"errors"
	"slices"
	"sort"
	"strings"
	"time"
)

const (
	// scanAll is up to how many endpoints all are compared. Of more, two are drawn by weight and the less loaded is taken: that
	// spreads nearly as well and costs the same whatever their number.
	scanAll = 8
	// draws is how often two are drawn, where what was drawn cannot be used, before all are compared.
	draws = 4
	// overprovision is by how much the endpoints of a tier can be loaded beyond their share before flows go on to the next tier, in
	// hundredths. Envoy has the same figure (overprovisioning_factor).
	overprovision = 140
)

// Errors of Pick.
var (
	// ErrFull is returned when a limit is reached, of all endpoints or of each that could be used.
	ErrFull = errors.New("a limit of its endpoints is reached")
	// ErrNone is returned when there is no endpoint at all.
	ErrNone = errors.New("it has no endpoint")
	// ErrTried is returned when all endpoints were tried.
	ErrTried = errors.New("no other endpoint is left to try")
)

// tier is the endpoints that are equally near.
type tier struct {
	order   tierOrder
	usable  []*member // neither ejected nor down
	sums    []int64   // of the weights of usable, up to each
	unwell  []*member
	percent int64 // of the flows that come to this tier it takes so many
}

// tierOrder sorts tiers: by the priority that SRV gives, then by what endpoints have in common with this gateway.
type tierOrder struct {
	priority uint16
	far      int
}

func (o tierOrder) before(p tierOrder) bool {
	return o.priority < p.priority || o.priority == p.priority && o.far < p.far
}

// Lease is an endpoint that was picked for a flow. Done must be called.
type Lease struct {
	m         *member
	e         *Endpoint
	connected bool // guarded by Set.mu
	done      bool // guarded by Set.mu
}

// Endpoint is the one that was picked.
func (l *Lease) Endpoint() *Endpoint { return l.e }

// Pick returns the endpoint for a flow, which has tried others before. Those are not picked again. The error is ErrFull, ErrNone or ErrTried.
func (s *Set) Pick(tried ...*Lease) (*Lease, error) {
	now := time.Now()
	s.mu.Lock()
	defer s.unlock()
	if over(s.load.flows, s.conf.Limits.Flows) || over(s.load.pending, s.conf.Limits.Pending) {
		s.counts.full++
		return nil, ErrFull
	}
	if s.stale || !s.until.IsZero() && !now.Before(s.until) {
		s.sort(now)
	}
	p := picker{s: s, tried: tried}
	m := p.pick()
	switch {
	case m != nil:
	case p.limited:
		s.counts.full++
		return nil, ErrFull
	case len(s.members) == 0:
		return nil, ErrNone
	default:
		return nil, ErrTried
	}
	s.counts.picks++
	if len(tried) > 0 {
		s.counts.retries++
	}
	m.load.flows++
	m.load.pending++
	s.load.flows++
	s.load.pending++
	return &Lease{m: m, e: m.e}, nil
}

// over reports whether one more than n is above limit; 0 is none.
func over(n, limit int) bool { return limit > 0 && n >= limit }

// sort makes the tiers. Called with mu held.
func (s *Set) sort(now time.Time) {
	here := ""
	if s.env.Locality != nil {
		here = s.env.Locality()
	}
	byOrder := make(map[tierOrder]*tier)
	var orders []tierOrder
	s.until = time.Time{}
	for _, m := range s.members {
		o := tierOrder{m.e.priority, distance(here, m.e.Locality)}
		t := byOrder[o]
		if t == nil {
			t = &tier{order: o}
			byOrder[o] = t
			orders = append(orders, o)
		}
		ejected := m.isEjected(now)
		if ejected && (s.until.IsZero() || m.ejected.Before(s.until)) {
			s.until = m.ejected
		}
		if ejected || m.down {
			t.unwell = append(t.unwell, m)
			continue
		}
		t.usable = append(t.usable, m)
	}
	sort.Slice(orders, func(i, j int) bool { return orders[i].before(orders[j]) })
	s.tiers = s.tiers[:0]
	for _, o := range orders {
		t := byOrder[o]
		t.weigh()
		s.tiers = append(s.tiers, *t)
	}
	s.stale = false
}

// weigh sums the weights up.
func (t *tier) weigh() {
	var usable, all int64
	for _, m := range t.usable {
		usable += int64(m.e.Weight)
		t.sums = append(t.sums, usable)
	}
	all = usable
	for _, m := range t.unwell {
		all += int64(m.e.Weight)
	}
	t.percent = min(100, usable*overprovision/all)
}

// distance is how many parts of here an endpoint at there does not share; of no known place it is the farthest.
func distance(here, there string) int {
	if here == "" {
		return 0
	}
	a, b := strings.Split(here, "/"), strings.Split(there, "/")
	common := 0
	for common < len(a) && common < len(b) && a[common] == b[common] {
		common++
	}
	return len(a) - common
}

// picker is one Pick. Set.mu is held.
type picker struct {
	s       *Set
	tried   []*Lease
	limited bool // one could have been used but for its limits
}

// pick goes through the tiers, and then through those that are not well.
func (p *picker) pick() *member {
	tiers := p.s.tiers
	skipped := -1 // the first tier that had some left, but gave its part on
	for i := range tiers {
		t := &tiers[i]
		if last := i == len(tiers)-1; t.percent < 100 && !last && len(t.usable) > 0 && p.s.env.Rand(100) >= t.percent {
			if skipped < 0 {
				skipped = i
			}
			continue
		}
		if m := p.from(t); m != nil {
			if i > 0 {
				p.s.counts.overflow++
			}
			return m
		}
	}
	if skipped >= 0 {
		for i := skipped; i < len(tiers); i++ {
			if m := p.from(&tiers[i]); m != nil {
				return m
			}
		}
	}
	if p.limited {
		return nil // what is well has no room, and what is not would not do better
	}
	for i := range tiers {
		if m := p.least(tiers[i].unwell, false); m != nil {
			p.s.counts.unwell++
			return m
		}
	}
	for i := range tiers { // those on trial, which have a flow already
		if m := p.least(tiers[i].usable, false); m != nil {
			p.s.counts.unwell++
			return m
		}
	}
	return nil
}

// from picks among the usable ones of t.
func (p *picker) from(t *tier) *member {
	n := len(t.usable)
	if n == 0 {
		return nil
	}
	if n > scanAll {
		for range draws {
			a, b := p.draw(t), p.draw(t)
			switch okA, okB := p.takes(a, true), p.takes(b, true); {
			case okA && (!okB || !b.lighter(a)):
				return a
			case okB:
				return b
			}
		}
	}
	return p.least(t.usable, true)
}

// draw draws one by weight.
func (p *picker) draw(t *tier) *member {
	at := p.s.env.Rand(t.sums[len(t.sums)-1])
	i, _ := slices.BinarySearchFunc(t.sums, at, func(sum, at int64) int {
		if sum > at {
			return 1
		}
		return -1
	})
	return t.usable[i]
}

// least returns the least loaded that takes a flow; of several one by chance.
func (p *picker) least(list []*member, trials bool) *member {
	var best *member
	equal := int64(0)
	for _, m := range list {
		switch {
		case !p.takes(m, trials):
		case best == nil || m.lighter(best):
			best, equal = m, 1
		case !best.lighter(m):
			if equal++; p.s.env.Rand(equal) == 0 {
				best = m
			}
		}
	}
	return best
}

// takes reports whether m may get the flow. trials: one that is on trial gets one at a time.
func (p *picker) takes(m *member, trials bool) bool {
	for _, l := range p.tried {
		if l.m == m {
			return false
		}
	}
	limits := &p.s.conf.Limits.Endpoint
	if over(m.load.flows, limits.Flows) || over(m.load.pending, limits.Pending) {
		p.limited = true
		return false
	}
	return !trials || !m.trial || m.load.pending == 0
}

// lighter reports whether m has less to carry for its weight than o.
func (m *member) lighter(o *member) bool {
	return int64(m.load.flows+1)*int64(o.e.Weight) < int64(o.load.flows+1)*int64(m.e.Weight)
}

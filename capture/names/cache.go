package names

import (
	"container/list"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// maxTTL is how long an answer is kept at most, whatever it says.
	maxTTL = 24 * time.Hour
	// maxNegativeTTL is that of the news that there is no such name (RFC 2308, section 5).
	maxNegativeTTL = 5 * time.Minute
)

// cache keeps answers for as long as they say, and forgets the one that was used longest ago when it is full.
type cache struct {
	size int // answers; 0 or less: none are kept

	mu      sync.Mutex
	entries map[cacheKey]*list.Element // guarded by mu
	order   list.List                  // of *cached, the last used first; guarded by mu
}

// cacheKey is what an answer is for. Resolvers may know different things.
type cacheKey struct {
	name     string
	kind     uint16
	upstream string
	secure   bool // the question had the DO bit
}

type cached struct {
	key   cacheKey
	m     *dns.Msg // not changed
	made  time.Time
	until time.Time
}

func newCache(size int) *cache { return &cache{size: size, entries: make(map[cacheKey]*list.Element)} }

// get returns a copy of the answer, with the TTLs that are left; nil where there is none.
func (c *cache) get(key cacheKey) *dns.Msg {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[key]
	if e == nil {
		return nil
	}
	v := e.Value.(*cached)
	if !now.Before(v.until) {
		c.order.Remove(e)
		delete(c.entries, key)
		return nil
	}
	c.order.MoveToFront(e)
	m := v.m.Copy()
	age := uint32(now.Sub(v.made) / time.Second)
	eachRecord(m, func(rr dns.RR) {
		h := rr.Header()
		h.Ttl -= min(h.Ttl, age)
	})
	return m
}

// put keeps an answer, of which it makes a copy.
func (c *cache) put(key cacheKey, m *dns.Msg) {
	ttl := timeToLive(m)
	if c.size <= 0 || ttl <= 0 {
		return
	}
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[key]; e != nil {
		c.order.Remove(e)
	}
	c.entries[key] = c.order.PushFront(&cached{key: key, m: m.Copy(), made: now, until: now.Add(ttl)})
	if len(c.entries) > c.size {
		last := c.order.Back()
		c.order.Remove(last)
		delete(c.entries, last.Value.(*cached).key)
	}
}

// timeToLive is how long m may be kept: as long as its shortest record, or, where there is none, as its SOA says of
// what is not there (RFC 2308, section 5).
func timeToLive(m *dns.Msg) time.Duration {
	if m.Truncated || m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return 0
	}
	if len(m.Answer) > 0 && m.Rcode == dns.RcodeSuccess {
		ttl := uint32(maxTTL / time.Second)
		eachRecord(m, func(rr dns.RR) { ttl = min(ttl, rr.Header().Ttl) })
		return time.Duration(ttl) * time.Second
	}
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			return min(time.Duration(min(soa.Minttl, soa.Hdr.Ttl))*time.Second, maxNegativeTTL)
		}
	}
	return 0
}

// eachRecord calls f for the records of m, without OPT, whose TTL is none.
func eachRecord(m *dns.Msg, f func(dns.RR)) {
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if rr.Header().Rrtype != dns.TypeOPT {
				f(rr)
			}
		}
	}
}

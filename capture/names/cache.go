package names

import (
	"container/list"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// maxTTL is how long an answer is kept at most, whatever it says.
	maxTTL = 24 * time.Hour
	// maxNegativeTTL is that of the news that there is no such name (RFC 2308, section 5).
	maxNegativeTTL = 5 * time.Minute
	// maxCached is the longest answer that is kept, in bytes: with the number of answers it bounds the memory.
	maxCached = 4 << 10
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
	name      string
	kind      uint16
	upstream  string
	secure    bool // the question had the DO bit
	unchecked bool // the question had the CD bit: the resolver may have let a forged answer pass
}

// String tells keys apart, whatever the names in them look like.
func (k cacheKey) String() string {
	return fmt.Sprintf("%q %d %q %t %t", k.name, k.kind, k.upstream, k.secure, k.unchecked)
}

type cached struct {
	key   cacheKey
	text  []byte // the answer as it is sent, which needs far less memory than a Msg
	made  time.Time
	until time.Time
}

func newCache(size int) *cache { return &cache{size: size, entries: make(map[cacheKey]*list.Element)} }

// get returns the answer, with the TTLs that are left; nil where there is none.
func (c *cache) get(key cacheKey) *dns.Msg {
	v, age := c.find(key)
	if v == nil {
		return nil
	}
	m, err := unpack(v.text)
	if err != nil {
		return nil
	}
	eachRecord(m, func(rr dns.RR) {
		h := rr.Header()
		h.Ttl -= min(h.Ttl, uint32(age/time.Second))
	})
	return m
}

// find returns what is kept, and for how long it has been.
func (c *cache) find(key cacheKey) (v *cached, age time.Duration) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[key]
	if e == nil {
		return nil, 0
	}
	v = e.Value.(*cached)
	if !now.Before(v.until) {
		c.order.Remove(e)
		delete(c.entries, key)
		return nil, 0
	}
	c.order.MoveToFront(e)
	return v, now.Sub(v.made)
}

// put keeps an answer, if it may be kept and is not too long.
func (c *cache) put(key cacheKey, m *dns.Msg) {
	ttl := timeToLive(m)
	if c.size <= 0 || ttl <= 0 {
		return
	}
	m.Compress = true
	text, err := m.Pack()
	if err != nil || len(text) > maxCached {
		return
	}
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[key]; e != nil {
		c.order.Remove(e)
	}
	c.entries[key] = c.order.PushFront(&cached{key: key, text: text, made: now, until: now.Add(ttl)})
	if len(c.entries) > c.size {
		last := c.order.Back()
		c.order.Remove(last)
		delete(c.entries, last.Value.(*cached).key)
	}
}

// timeToLive is how long m may be kept: as long as its shortest record, and the news that something is not there no
// longer than its SOA says (RFC 2308, section 5).
func timeToLive(m *dns.Msg) time.Duration {
	if m.Truncated || m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return 0
	}
	shortest := uint32(maxTTL / time.Second)
	eachRecord(m, func(rr dns.RR) { shortest = min(shortest, rr.Header().Ttl) })
	ttl := time.Duration(shortest) * time.Second
	if m.Rcode == dns.RcodeSuccess && slices.ContainsFunc(m.Answer, func(rr dns.RR) bool { return rr.Header().Rrtype == m.Question[0].Qtype }) {
		return ttl
	}
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			return min(ttl, time.Duration(soa.Minttl)*time.Second, maxNegativeTTL)
		}
	}
	return 0 // RFC 2308, section 5: it "SHOULD NOT be cached" without one
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

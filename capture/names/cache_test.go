package names

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

func TestCachedUntilShortestTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(t, fixed("www.example. 100 IN CNAME web.example.", "web.example. 60 IN A 192.0.2.1"))
		s := newServer(t, &Config{Upstream: m.addrs()}, m.dial)
		for _, c := range []struct {
			wait  time.Duration
			want  string
			asked int64
		}{
			{0, "NOERROR | www.example. 100 IN CNAME web.example. | web.example. 60 IN A 192.0.2.1", 1},
			{0, "NOERROR | www.example. 100 IN CNAME web.example. | web.example. 60 IN A 192.0.2.1", 1},
			{1500 * time.Millisecond, "NOERROR | www.example. 99 IN CNAME web.example. | web.example. 59 IN A 192.0.2.1", 1},
			{58*time.Second + 499*time.Millisecond, "NOERROR | www.example. 41 IN CNAME web.example. | web.example. 1 IN A 192.0.2.1", 1},
			{time.Millisecond, "NOERROR | www.example. 100 IN CNAME web.example. | web.example. 60 IN A 192.0.2.1", 2},
		} {
			time.Sleep(c.wait) // of synthetic time
			wantShown(t, asks(t, s, question("www.example.", dns.TypeA)), c.want)
			if n := m["r1:53"].asked.Load(); n != c.asked {
				t.Errorf("the resolver was asked %d times, want %d", n, c.asked)
			}
		}
		wantCounts(t, s, "questions=5 cached=3")
	})
}

// TestTimeToLive says how long an answer is kept.
func TestTimeToLive(t *testing.T) {
	soaOf := func(ttl, minimum int) string {
		return fmt.Sprintf("example. %d IN SOA ns. admin. 1 1 1 1 %d", ttl, minimum)
	}
	for _, c := range []struct {
		name   string
		code   int
		answer []string
		ns     []string
		want   time.Duration
	}{
		{"answer", 0, []string{"a.example. 60 IN A 192.0.2.1"}, nil, time.Minute},
		{"no time", 0, []string{"a.example. 0 IN A 192.0.2.1"}, nil, 0},
		{"weeks", 0, []string{"a.example. 9999999 IN A 192.0.2.1"}, nil, maxTTL},
		{"no record of the type", 0, nil, []string{soaOf(300, 30)}, 30 * time.Second},
		{"SOA of a short time", 0, nil, []string{soaOf(20, 30)}, 20 * time.Second},
		{"alias to nothing", 0, []string{"a.example. 60 IN CNAME b.example."}, []string{soaOf(300, 30)}, 30 * time.Second},
		{"short alias to nothing", 0, []string{"a.example. 10 IN CNAME b.example."}, []string{soaOf(300, 30)}, 10 * time.Second},
		{"alias to nothing, without SOA", 0, []string{"a.example. 60 IN CNAME b.example."}, nil, 0},
		{"no such name", dns.RcodeNameError, nil, []string{soaOf(300, 30)}, 30 * time.Second},
		{"no such name for long", dns.RcodeNameError, nil, []string{soaOf(99999, 99999)}, maxNegativeTTL},
		{"no such name, short alias", dns.RcodeNameError, []string{"a.example. 10 IN CNAME b.example."}, []string{soaOf(300, 30)}, 10 * time.Second},
		{"no such name, without SOA", dns.RcodeNameError, nil, nil, 0},
		{"failure", dns.RcodeServerFailure, nil, []string{soaOf(300, 30)}, 0},
		{"refusal", dns.RcodeRefused, []string{"a.example. 60 IN A 192.0.2.1"}, nil, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := replyTo(question("a.example.", dns.TypeA), c.answer...)
			m.Rcode, m.Ns = c.code, parse(c.ns...)
			if got := timeToLive(m); got != c.want {
				t.Errorf("timeToLive = %v, want %v", got, c.want)
			}
			m.Truncated = true
			if got := timeToLive(m); got != 0 {
				t.Errorf("timeToLive of a truncated answer = %v, want 0", got)
			}
		})
	}
}

func TestNoNameIsCached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(t, zoneOf(soa, wwwRecord))
		s := newServer(t, &Config{Upstream: m.addrs()}, m.dial)
		for i, name := range []string{"none.example.", "none.example.", "www.example.", "www.example."} {
			kind := dns.TypeA
			if i >= 2 {
				kind = dns.TypeMX // which the name has none of
			}
			got := asks(t, s, question(name, kind))
			if (got.Rcode == dns.RcodeNameError) != (i < 2) || len(got.Ns) != 1 {
				t.Errorf("answer = %s, want that there is none, and the SOA", shown(got))
			}
		}
		wantCounts(t, s, "questions=4 cached=2")
		time.Sleep(30 * time.Second) // of synthetic time: the SOA's minimum
		asks(t, s, question("none.example.", dns.TypeA))
		wantCounts(t, s, "questions=5 cached=2")
	})
}

func TestCacheForgetsLastUsed(t *testing.T) {
	m := newMemory(t, func(_ string, q *dns.Msg) []*dns.Msg {
		return []*dns.Msg{replyTo(q, q.Question[0].Name+" 60 IN A 192.0.2.1")}
	})
	s := newServer(t, &Config{Upstream: m.addrs(), CacheEntries: 2}, m.dial)
	for _, c := range []struct {
		name  string
		asked int64
	}{{"a.example.", 1}, {"b.example.", 2}, {"a.example.", 2}, {"c.example.", 3}, {"a.example.", 3}, {"b.example.", 4}, {"c.example.", 5}} {
		asks(t, s, question(c.name, dns.TypeA))
		if n := m["r1:53"].asked.Load(); n != c.asked {
			t.Errorf("after %s the resolver was asked %d times, want %d", c.name, n, c.asked)
		}
	}
	if len(s.cache.entries) != 2 || s.cache.order.Len() != 2 {
		t.Errorf("%d entries, %d in order, want 2", len(s.cache.entries), s.cache.order.Len())
	}
}

func TestCacheOff(t *testing.T) {
	m := newMemory(t, fixed(wwwRecord))
	s := newServer(t, &Config{Upstream: m.addrs(), CacheEntries: -1}, m.dial)
	for range 2 {
		wantShown(t, asks(t, s, question("www.example.", dns.TypeA)), wwwFound)
	}
	wantCounts(t, s, "questions=2")
}

func TestCacheReplacesEntry(t *testing.T) {
	c := newCache(2)
	key := cacheKey{name: "www.example.", kind: dns.TypeA}
	for _, addr := range []string{"192.0.2.1", "192.0.2.2"} {
		c.put(key, replyTo(question("www.example.", dns.TypeA), "www.example. 60 IN A "+addr))
	}
	if m := c.get(key); m == nil || shown(m) != "NOERROR | www.example. 60 IN A 192.0.2.2" || c.order.Len() != 1 {
		t.Errorf("get = %v of %d, want the second answer of 1", m, c.order.Len())
	}
}

// TestLongAnswersAreNotCached bounds what the cache takes of memory.
func TestLongAnswersAreNotCached(t *testing.T) {
	c := newCache(10)
	for _, length := range []int{100, maxCached, maxCached + 1, 60_000} {
		q := question("www.example.", dns.TypeTXT)
		m := replyTo(q)
		const each, text = 12 + 1, 200 // name, type, class, TTL, length; the text's own length
		for {
			left := length - len(packedSmall(t, m))
			if left <= 0 {
				break
			}
			n := min(left-each, text)
			if rest := left - each - n; rest > 0 && rest < each {
				n -= each
			}
			m.Answer = append(m.Answer, &dns.TXT{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 60}, Txt: []string{strings.Repeat("x", n)}})
		}
		if n := len(packedSmall(t, m)); n != length {
			t.Fatalf("the answer has %d bytes, want %d", n, length)
		}
		key := cacheKey{name: fmt.Sprint(length)}
		c.put(key, m)
		if got := c.get(key); (got != nil) != (length <= maxCached) {
			t.Errorf("an answer of %d bytes: kept %v", length, got != nil)
		}
	}
}

// packedSmall packs with compression.
func packedSmall(t *testing.T, m *dns.Msg) []byte {
	t.Helper()
	m.Compress = true
	return packed(t, m)
}

// TestCacheKeysAreDistinct has names that hold what the parts of a key are joined with.
func TestCacheKeysAreDistinct(t *testing.T) {
	seen := make(map[string]cacheKey)
	for _, key := range []cacheKey{
		{}, {name: "a."}, {name: `a.\ 1`}, {name: `a.`, kind: 1}, {upstream: "a."}, {upstream: "a. b."}, {secure: true}, {unchecked: true}, {name: `"a." 0 ""`}, {name: "a.", upstream: `"`},
	} {
		if other, ok := seen[key.String()]; ok {
			t.Errorf("%#v and %#v are both %s", key, other, key)
		}
		seen[key.String()] = key
	}
}

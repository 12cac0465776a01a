package names

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

const exampleSOA = "example. 60 IN SOA ns.example. root.example. 1 2 3 4 30"

// newLookup makes a resolver that asks those of m, on a host with an address of each family and the files hosts and conf.
func newLookup(t *testing.T, cfg ResolverConfig, m memory, hosts, conf string) *Resolver {
	t.Helper()
	if conf == "" {
		cfg.Upstream = m.addrs()
	}
	r, err := NewResolver(&cfg, m.dial)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	dir := t.TempDir()
	r.hosts.path, r.conf.path = filepath.Join(dir, "hosts"), filepath.Join(dir, "resolv.conf")
	for file, text := range map[string]string{r.hosts.path: hosts, r.conf.path: conf} {
		if text == "" {
			continue
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.source = func(to netip.Addr) netip.Addr {
		if to.Is4() {
			return netip.MustParseAddr("192.0.2.99")
		}
		return netip.MustParseAddr("2001:db8::99")
	}
	return r
}

// found is what a look-up brings, in one line.
func found(list []netip.Addr, err error) string {
	var wrong *net.DNSError
	switch {
	case errors.As(err, &wrong) && wrong.IsNotFound:
		return "not found"
	case errors.As(err, &wrong) && wrong.IsTimeout:
		return "timeout"
	case errors.As(err, &wrong):
		return "failed"
	case err != nil:
		return err.Error()
	}
	var words []string
	for _, a := range list {
		words = append(words, a.String())
	}
	return strings.Join(words, " ")
}

// slowly waits before it answers questions of a type.
func slowly(kind uint16, wait time.Duration, then script) script {
	return func(network string, q *dns.Msg) []*dns.Msg {
		if q.Question[0].Qtype == kind {
			time.Sleep(wait)
		}
		return then(network, q)
	}
}

// failing answers questions of a type with SERVFAIL.
func failing(kind uint16, then script) script {
	return func(network string, q *dns.Msg) []*dns.Msg {
		if q.Question[0].Qtype == kind {
			return says(dns.RcodeServerFailure)(network, q)
		}
		return then(network, q)
	}
}

func TestLookup(t *testing.T) {
	both := zoneOf("www.example. 60 IN A 192.0.2.1", "www.example. 60 IN AAAA 2001:db8::1", exampleSOA)
	four := zoneOf("www.example. 60 IN A 192.0.2.1", exampleSOA)
	const ms = time.Millisecond
	for name, c := range map[string]struct {
		says script
		host string
		want string
		took time.Duration
	}{
		"both families":            {both, "www.example", "2001:db8::1 192.0.2.1", 0},
		"capitals and a final dot": {both, "WWW.Example.", "2001:db8::1 192.0.2.1", 0},
		"an address":               {silent, "192.0.2.7", "192.0.2.7", 0},
		"localhost":                {silent, "localhost", "::1 127.0.0.1", 0},
		"below localhost":          {silent, "a.localhost", "::1 127.0.0.1", 0},
		"no such name":             {both, "other.example", "not found", 0},
		"no name at all":           {both, "a b", "not found", 0},
		"nothing of the types":     {zoneOf("www.example. 60 IN TXT x", exampleSOA), "www.example", "not found", 0},
		"one family":               {four, "www.example", "192.0.2.1", 0},
		"alias":                    {zoneOf("www.example. 60 IN CNAME a.example.", "a.example. 60 IN A 192.0.2.1", exampleSOA), "www.example", "192.0.2.1", 0},
		"aliases in a circle":      {fixed("www.example. 60 IN CNAME b.example.", "b.example. 60 IN CNAME www.example."), "www.example", "not found", 0},
		"alias of itself":          {fixed("www.example. 60 IN CNAME www.example."), "www.example", "not found", 0},
		"alias without an address": {fixed("www.example. 60 IN CNAME b.example."), "www.example", "not found", 0},
		"address of another name":  {fixed("evil.example. 60 IN A 192.0.2.66"), "www.example", "not found", 0},
		"mapped form":              {fixed("www.example. 60 IN AAAA ::ffff:127.0.0.1"), "www.example", "127.0.0.1", 0},
		"SERVFAIL":                 {says(dns.RcodeServerFailure), "www.example", "failed", 0},
		"one family fails":         {failing(dns.TypeAAAA, both), "www.example", "192.0.2.1", 0},
		"one fails, the other has nothing": {
			failing(dns.TypeAAAA, func(_ string, q *dns.Msg) []*dns.Msg { return []*dns.Msg{replyTo(q)} }), "www.example", "failed", 0,
		},
		"silent":                      {silent, "www.example", "timeout", 4 * time.Second},
		"AAAA is late":                {slowly(dns.TypeAAAA, 400*ms, both), "www.example", "192.0.2.1", 50 * ms},
		"AAAA is a bit late":          {slowly(dns.TypeAAAA, 40*ms, both), "www.example", "2001:db8::1 192.0.2.1", 40 * ms},
		"A is late":                   {slowly(dns.TypeA, 400*ms, both), "www.example", "2001:db8::1", 50 * ms},
		"A is silent":                 {slowly(dns.TypeA, time.Minute, both), "www.example", "2001:db8::1", 50 * ms},
		"A is late, there is no AAAA": {slowly(dns.TypeA, 400*ms, four), "www.example", "192.0.2.1", 400 * ms},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newLookup(t, ResolverConfig{}, newMemory(t, c.says), "", "")
				start := time.Now()
				if got := found(r.Lookup(t.Context(), c.host)); got != c.want {
					t.Errorf("Lookup = %s, want %s", got, c.want)
				}
				if took := time.Since(start); took != c.took {
					t.Errorf("it took %v, want %v", took, c.took)
				}
			})
		})
	}
}

// A family that this host cannot use does not keep the other from being waited for.
func TestLookupWaitsForTheFamilyOfUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		both := zoneOf("www.example. 60 IN A 192.0.2.1", "www.example. 60 IN AAAA 2001:db8::1", exampleSOA)
		r := newLookup(t, ResolverConfig{}, newMemory(t, slowly(dns.TypeA, time.Second, both)), "", "")
		four := r.source
		r.source = func(to netip.Addr) netip.Addr {
			if to.Is6() {
				return netip.Addr{}
			}
			return four(to)
		}
		if got := found(r.Lookup(t.Context(), "www.example")); got != "192.0.2.1 2001:db8::1" {
			t.Errorf("Lookup = %s, want IPv4 first", got)
		}
	})
}

// An answer is kept as long as it says.
func TestLookupCache(t *testing.T) {
	// Of IPv6 there is nothing, which is known for a day.
	const soa = "example. 86400 IN SOA ns.example. root.example. 1 2 3 4 86400"
	for name, c := range map[string]struct {
		cfg    ResolverConfig
		record string
		after  time.Duration
		again  bool // whether it is asked again for the address
	}{
		"within the TTL":      {ResolverConfig{}, "www.example. 60 IN A 192.0.2.1", 59 * time.Second, false},
		"after the TTL":       {ResolverConfig{}, "www.example. 60 IN A 192.0.2.1", 60 * time.Second, true},
		"no TTL":              {ResolverConfig{}, "www.example. 0 IN A 192.0.2.1", 900 * time.Millisecond, false},
		"no TTL, a second on": {ResolverConfig{}, "www.example. 0 IN A 192.0.2.1", time.Second, true},
		"no TTL, none wanted": {ResolverConfig{MinTTL: -1}, "www.example. 0 IN A 192.0.2.1", 0, true},
		"a day":               {ResolverConfig{MaxTTL: 48 * time.Hour}, "www.example. 86400 IN A 192.0.2.1", 4 * time.Minute, false},
		"a day is too long":   {ResolverConfig{}, "www.example. 86400 IN A 192.0.2.1", time.Hour, true},
		"a minute at most":    {ResolverConfig{MaxTTL: time.Minute}, "www.example. 86400 IN A 192.0.2.1", time.Minute, true},
		"nothing is kept":     {ResolverConfig{CacheEntries: -1}, "www.example. 60 IN A 192.0.2.1", 0, true},
		"the alias has gone":  {ResolverConfig{}, "www.example. 5 IN CNAME a.example.", 5 * time.Second, true},
		"the alias is there":  {ResolverConfig{}, "www.example. 5 IN CNAME a.example.", 4 * time.Second, false},
		"an impossible TTL":   {ResolverConfig{}, "www.example. 4294967295 IN A 192.0.2.1", time.Second, true},
		"there is nothing":    {ResolverConfig{}, "x.example. 1 IN A 192.0.2.1", 5*time.Minute - 1, false},
		"nothing, too long":   {ResolverConfig{}, "x.example. 1 IN A 192.0.2.1", 5 * time.Minute, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var asked int
				says := zoneOf(c.record, "a.example. 60 IN A 192.0.2.2", soa)
				m := newMemory(t, func(n string, q *dns.Msg) []*dns.Msg {
					if q.Question[0].Qtype == dns.TypeA {
						asked++
					}
					return says(n, q)
				})
				r := newLookup(t, c.cfg, m, "", "")
				first := found(r.Lookup(t.Context(), "www.example"))
				time.Sleep(c.after)
				if again := found(r.Lookup(t.Context(), "www.example")); again != first {
					t.Errorf("first %s, then %s", first, again)
				}
				if (asked == 2) != c.again {
					t.Errorf("asked %d times, want again = %v", asked, c.again)
				}
			})
		})
	}
}

// That nobody answers is known for a second: a flood of flows is not one of questions.
func TestLookupFailureIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newLookup(t, ResolverConfig{}, newMemory(t, says(dns.RcodeServerFailure)), "", "")
		for _, want := range []int64{2, 2, 4} {
			if got := found(r.Lookup(t.Context(), "www.example")); got != "failed" || r.asked.Load() != want {
				t.Errorf("Lookup = %s after %d questions, want failed after %d", got, r.asked.Load(), want)
			}
			time.Sleep(defaultMinTTL / 2)
		}
	})
}

// What came late is there for the next one.
func TestLookupLateAnswerIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		says := zoneOf("www.example. 60 IN A 192.0.2.1", "www.example. 60 IN AAAA 2001:db8::1")
		r := newLookup(t, ResolverConfig{}, newMemory(t, slowly(dns.TypeAAAA, time.Second, says)), "", "")
		if got := found(r.Lookup(t.Context(), "www.example")); got != "192.0.2.1" {
			t.Errorf("Lookup = %s, want what was there in time", got)
		}
		time.Sleep(time.Second)
		if got := found(r.Lookup(t.Context(), "www.example")); got != "2001:db8::1 192.0.2.1" || r.asked.Load() != 2 {
			t.Errorf("Lookup = %s after %d questions, want both addresses after 2", got, r.asked.Load())
		}
	})
}

// Who asks for the same name waits for one answer, also when the first one goes away.
func TestLookupFlights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		says := slowly(dns.TypeA, time.Second, zoneOf("www.example. 60 IN A 192.0.2.1", exampleSOA))
		r := newLookup(t, ResolverConfig{}, newMemory(t, says), "", "")
		var all sync.WaitGroup
		gone, leave := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer leave()
		all.Go(func() {
			if got := found(r.Lookup(gone, "www.example")); got != "timeout" {
				t.Errorf("Lookup = %s, want timeout", got)
			}
		})
		withdrawn, withdraw := context.WithCancel(t.Context())
		all.Go(func() {
			if _, err := r.Lookup(withdrawn, "www.example"); !errors.Is(err, context.Canceled) {
				t.Errorf("Lookup = %v, want that it was cancelled", err)
			}
		})
		synctest.Wait()
		withdraw()
		for range 100 {
			all.Go(func() {
				if got := found(r.Lookup(t.Context(), "www.example")); got != "192.0.2.1" {
					t.Errorf("Lookup = %s, want 192.0.2.1", got)
				}
			})
		}
		all.Wait()
		if n := r.asked.Load(); n != 2 {
			t.Errorf("%d questions, want 2", n)
		}
	})
}

// However many names peers come up with, and whatever comes back, little is kept, and few questions are under way.
func TestLookupIsBounded(t *testing.T) {
	t.Run("names", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newLookup(t, ResolverConfig{CacheEntries: 10}, newMemory(t, zoneOf(exampleSOA)), "", "")
			for i := range 100 {
				if got := found(r.Lookup(t.Context(), fmt.Sprintf("n%d.example", i))); got != "not found" {
					t.Fatalf("Lookup = %s, want not found", got)
				}
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			if len(r.cache) != 10 || r.order.Len() != 10 || len(r.flights) != 0 {
				t.Errorf("%d answers kept, %d in order, %d under way, want 10, 10 and 0", len(r.cache), r.order.Len(), len(r.flights))
			}
		})
	})
	t.Run("questions", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newLookup(t, ResolverConfig{}, newMemory(t, silent), "", "")
			var all sync.WaitGroup
			for i := range maxFlights {
				all.Go(func() { _, _ = r.Lookup(t.Context(), fmt.Sprintf("n%d.example", i)) })
			}
			synctest.Wait()
			if n := len(r.slots); n != maxFlights {
				t.Errorf("%d questions under way, want %d", n, maxFlights)
			}
			all.Wait()
		})
	})
	t.Run("addresses", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newLookup(t, ResolverConfig{}, newMemory(t, func(_ string, q *dns.Msg) []*dns.Msg {
				m := replyTo(q)
				for i := range 100 {
					m.Answer = append(m.Answer, parse(fmt.Sprintf("www.example. 60 IN A 192.0.2.%d", i))...)
				}
				return []*dns.Msg{m}
			}), "", "")
			if list, err := r.Lookup(t.Context(), "www.example"); len(list) != maxAddresses || err != nil {
				t.Errorf("%d addresses, %v, want %d", len(list), err, maxAddresses)
			}
		})
	})
}

// Several addresses take turns in coming first.
func TestLookupTakesTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newLookup(t, ResolverConfig{}, newMemory(t, zoneOf("www.example. 60 IN A 192.0.2.1", "www.example. 60 IN A 192.0.2.2", exampleSOA)), "", "")
		var got []string
		for range 3 {
			got = append(got, found(r.Lookup(t.Context(), "www.example")))
		}
		if want := []string{"192.0.2.1 192.0.2.2", "192.0.2.2 192.0.2.1", "192.0.2.1 192.0.2.2"}; !slices.Equal(got, want) {
			t.Errorf("Lookup = %q, want %q", got, want)
		}
	})
}

func TestLookupFiles(t *testing.T) {
	const hosts = "127.0.0.1 localhost\n192.0.2.9 db db.corp.example # the database\n2001:db8::9 db\nnonsense db\n192.0.2.8\nfe80::1%eth0 db\n\n10.0.0.1 DB.\n"
	const conf = "nameserver 127.0.0.1\nsearch a.example b.example\noptions ndots:2\n"
	says := zoneOf("db.b.example. 60 IN A 192.0.2.1", "www.example. 60 IN A 192.0.2.2", "www.example.a.example. 60 IN A 192.0.2.3",
		"a.b.c. 60 IN A 192.0.2.4", "web.b.example. 60 IN A 192.0.2.5", exampleSOA)
	for host, want := range map[string]string{
		"db": "2001:db8::9 192.0.2.9 10.0.0.1", "db.corp.example": "192.0.2.9", "localhost": "127.0.0.1",
		"www.example": "192.0.2.3", "a.b.c": "192.0.2.4", "none": "not found", "web": "192.0.2.5",
		strings.Repeat("a.", 120) + "bc": "not found",
	} {
		t.Run(host, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemory(t, says)
				m["127.0.0.1:53"] = m["r1:53"]
				r := newLookup(t, ResolverConfig{}, m, hosts, conf)
				if got := found(r.Lookup(t.Context(), host)); got != want {
					t.Errorf("Lookup = %s, want %s", got, want)
				}
			})
		})
	}
	t.Run("changed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := newMemory(t, zoneOf("www.example. 3600 IN A 192.0.2.1", exampleSOA), zoneOf("www.example. 3600 IN A 192.0.2.2", exampleSOA))
			m["127.0.0.1:53"], m["127.0.0.2:53"] = m["r1:53"], m["r2:53"]
			r := newLookup(t, ResolverConfig{}, m, hosts, conf)
			if got := found(r.Lookup(t.Context(), "www.example")); got != "192.0.2.1" {
				t.Errorf("Lookup = %s, want 192.0.2.1", got)
			}
			for file, text := range map[string]string{r.conf.path: "nameserver 127.0.0.2\n", r.hosts.path: "192.0.2.5 db\n"} {
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(lookEvery)
			if got := found(r.Lookup(t.Context(), "www.example")); got != "192.0.2.2" {
				t.Errorf("Lookup = %s after resolv.conf has changed, want 192.0.2.2", got)
			}
			if got := found(r.Lookup(t.Context(), "db")); got != "192.0.2.5" {
				t.Errorf("Lookup = %s after hosts has changed, want 192.0.2.5", got)
			}
		})
	})
}

func TestLookupTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newLookup(t, ResolverConfig{}, newMemory(t, zoneOf("www.example. 30 IN A 192.0.2.1", "www.example. 60 IN AAAA 2001:db8::1")), "192.0.2.9 db\n", "")
		for host, want := range map[string]time.Duration{"www.example": 30 * time.Second, "db": 0, "192.0.2.1": 0} {
			if _, ttl, err := r.LookupTTL(t.Context(), host); ttl != want || err != nil {
				t.Errorf("LookupTTL(%s) = %v, %v, want %v", host, ttl, err, want)
			}
		}
	})
}

func TestLookupSRV(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newLookup(t, ResolverConfig{}, newMemory(t, zoneOf("_h._tcp.example. 60 IN SRV 2 0 81 b.example.", "_h._tcp.example. 60 IN SRV 1 5 80 a.example.", exampleSOA)), "", "")
		list, ttl, err := r.LookupSRV(t.Context(), "_h._tcp.example")
		if err != nil || ttl != time.Minute || len(list) != 2 || *list[0] != (net.SRV{Target: "a.example.", Port: 80, Priority: 1, Weight: 5}) || list[1].Port != 81 {
			t.Errorf("LookupSRV = %v, %v", list, err)
		}
		if _, _, err := r.LookupSRV(t.Context(), "_x._tcp.example"); !isNotFound(err) {
			t.Errorf("LookupSRV = %v, want that there is none", err)
		}
	})
}

// The order of RFC 6724, as far as it matters: what this host has no way to comes last.
func TestSorted(t *testing.T) {
	for name, c := range map[string]struct {
		four, six string // the host's own addresses; "": none
		in, want  string
	}{
		"both":                {"192.0.2.99", "2001:db8::99", "192.0.2.1 2001:db8::1", "2001:db8::1 192.0.2.1"},
		"no way by IPv6":      {"192.0.2.99", "", "2001:db8::1 192.0.2.1", "192.0.2.1 2001:db8::1"},
		"no way by IPv4":      {"", "2001:db8::99", "192.0.2.1 2001:db8::1", "2001:db8::1 192.0.2.1"},
		"only a local prefix": {"192.0.2.99", "fd00::99", "2001:db8::1 192.0.2.1", "192.0.2.1 2001:db8::1"},
		"both local":          {"192.0.2.99", "fd00::99", "fd00::1 192.0.2.1", "192.0.2.1 fd00::1"},
		"Teredo":              {"192.0.2.99", "2001::99", "2001::1 192.0.2.1", "192.0.2.1 2001::1"},
		"order is kept":       {"192.0.2.99", "2001:db8::99", "192.0.2.3 192.0.2.1 192.0.2.2", "192.0.2.3 192.0.2.1 192.0.2.2"},
	} {
		t.Run(name, func(t *testing.T) {
			r := &Resolver{source: func(to netip.Addr) netip.Addr {
				from, _ := netip.ParseAddr(c.six)
				if to.Is4() {
					from, _ = netip.ParseAddr(c.four)
				}
				return from
			}}
			var in []netip.Addr
			for text := range strings.FieldsSeq(c.in) {
				in = append(in, netip.MustParseAddr(text))
			}
			if got := found(sorted(r.rank(in)), nil); got != c.want {
				t.Errorf("sorted(%s) = %s, want %s", c.in, got, c.want)
			}
		})
	}
	if from := sourceTo(netip.MustParseAddr("127.0.0.1")); from != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("sourceTo(127.0.0.1) = %v, want itself", from)
	}
}

func TestResolverConfig(t *testing.T) {
	err := (&ResolverConfig{Upstream: []string{"1.1.1.1", "dns.example:0"}, Timeout: 1, MaxTTL: time.Second, MinTTL: time.Minute}).Validate()
	for _, field := range []string{"upstream[1]: ", "timeout: ", "minTTL: "} {
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("Validate = %v, want %s", err, field)
		}
	}
	if _, err := NewResolver(&ResolverConfig{MaxTTL: -1}, nil); err == nil {
		t.Error("NewResolver of a negative maxTTL = nil, want an error")
	}
}

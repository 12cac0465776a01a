package tunnel

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"culvert/pki/spiffe"
	"culvert/policy"
)

func newTable() *limitTable {
	t := new(limitTable)
	t.init()
	return t
}

// try counts a flow in with limits, and out again at once if it stays false.
func (t *limitTable) try(who string, stay bool, limits ...*policy.Limit) error {
	l, err := t.enter(&due{who: counted{peer: who}, policy: "rules", limits: limits}, false)
	if err == nil && !stay {
		t.leaveAll(l)
	}
	return err
}

// wantLimited checks that err is the refusal of a limit, which it names.
func wantLimited(t *testing.T, err error, rule, text string) {
	t.Helper()
	var own *Error
	if !errors.As(err, &own) || own.Cause != CauseLimited || own.Rule != rule || !strings.Contains(own.Reason, text) {
		t.Errorf("refused with %v, want a limit of %s: %s", err, rule, text)
	}
}

func TestCountedFor(t *testing.T) {
	id, err := spiffe.Parse("spiffe://cluster.local/ns/shop/sa/web")
	if err != nil {
		t.Fatal(err)
	}
	from := func(s string) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(s), 1) }
	for _, tt := range []struct {
		name string
		r    policy.Request
		want string
	}{
		{"a peer", policy.Request{Peer: id, Source: from("192.0.2.1")}, "spiffe://cluster.local/ns/shop/sa/web"},
		{"IPv4", policy.Request{Source: from("192.0.2.1")}, "192.0.2.1/32"},
		{"IPv4 in IPv6", policy.Request{Source: from("::ffff:192.0.2.1")}, "192.0.2.1/32"},
		{"IPv6", policy.Request{Source: from("2001:db8:1:2:3::4")}, "2001:db8:1:2::/64"},
		{"IPv6 with a zone", policy.Request{Source: from("fe80::1%eth0")}, "fe80::/64"},
		{"a client that a proxy tells", policy.Request{Source: from("192.0.2.1"), Remote: netip.MustParseAddr("198.51.100.7")}, "198.51.100.7/32"},
		{"nothing", policy.Request{}, "unknown"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := countedFor(&tt.r).String(); got != tt.want {
				t.Errorf("counted for %s, want %s", got, tt.want)
			}
		})
	}
}

// Flows that begin are counted by second; each identity has a count of its own, and a refused flow costs none.
func TestLimitFlowsPerSecond(t *testing.T) {
	for _, tt := range []struct {
		name                string
		limit               policy.Limit
		atOnce, aSecond, in int // flows that begin at once, more a second later, more after in seconds
		later               int
	}{
		{"burst by default", policy.Limit{FlowsPerSecond: 5}, 5, 5, 10, 5},
		{"less than one a second", policy.Limit{FlowsPerSecond: 0.25}, 1, 0, 3, 1},
		{"with a burst", policy.Limit{FlowsPerSecond: 2, Burst: 10}, 10, 2, 3, 6},
		{"a fraction", policy.Limit{FlowsPerSecond: 2.5}, 2, 2, 100, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				table, limit := newTable(), tt.limit
				limit.Name = "slow"
				begin := func(who string) (n int) {
					for range 20 {
						err := table.try(who, false, &limit)
						if err == nil {
							n++
							continue
						}
						wantLimited(t, err, "slow", "flows a second")
					}
					return n
				}
				if n := begin("a"); n != tt.atOnce {
					t.Errorf("%d flows begin at once, want %d", n, tt.atOnce)
				}
				if n := begin("b"); n != tt.atOnce {
					t.Errorf("%d flows of another identity begin, want %d", n, tt.atOnce)
				}
				time.Sleep(time.Second)
				if n := begin("a"); n != tt.aSecond {
					t.Errorf("%d flows begin a second later, want %d", n, tt.aSecond)
				}
				time.Sleep(time.Duration(tt.in) * time.Second)
				if n := begin("a"); n != tt.later {
					t.Errorf("%d flows begin %d seconds later, want %d", n, tt.in, tt.later)
				}
				if n := table.counts()["slow"]; n != int64(80-2*tt.atOnce-tt.aSecond-tt.later) {
					t.Errorf("%d flows are counted as refused", n)
				}
			})
		})
	}
}

// Flows that live are counted, and a flow that one of several limits refuses is counted by none.
func TestLimitFlows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable()
		start := &policy.Limit{Name: "start", FlowsPerSecond: 0.001, Burst: 3}
		live := &policy.Limit{Name: "live", Place: policy.Place{File: "p.yaml", Line: 7}, Flows: 2}
		for range 2 {
			if err := table.try("a", true, start, live); err != nil {
				t.Fatal(err)
			}
		}
		err := table.try("a", true, start, live)
		wantLimited(t, err, "live", "2 flows already")
		if !strings.Contains(err.Error(), "for a (p.yaml:7)") {
			t.Errorf("the refusal is %v, want whom it counts and its place", err)
		}
		if err := table.try("a", false, start); err != nil {
			t.Errorf("what was refused has cost a start: %v", err)
		}
		wantLimited(t, table.try("a", false, start), "start", "flows a second")
		if err := table.try("b", true, live); err != nil {
			t.Errorf("another identity is refused: %v", err)
		}
	})
}

// Figures may change while there are flows: what was counted stays.
func TestLimitChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable()
		with := func(l policy.Limit) *policy.Limit {
			l.Name, l.Place = "one", policy.Place{File: "p.yaml", Line: 1}
			return &l
		}
		for range 3 {
			if err := table.try("a", true, with(policy.Limit{Flows: 3, FlowsPerSecond: 1, Burst: 3, Quota: 100})); err != nil {
				t.Fatal(err)
			}
		}
		wantLimited(t, table.try("a", true, with(policy.Limit{Flows: 3})), "one", "3 flows already")
		if err := table.try("a", true, with(policy.Limit{Flows: 4})); err != nil {
			t.Errorf("with room for four the fourth is refused: %v", err)
		}
		wantLimited(t, table.try("a", true, with(policy.Limit{Flows: 2})), "one", "4 flows already")
		if err := table.try("a", true, with(policy.Limit{})); err != nil {
			t.Errorf("without figures it is refused: %v", err)
		}
		moved, other := with(policy.Limit{Flows: 1}), with(policy.Limit{Flows: 1})
		moved.Place.Line = 9
		wantLimited(t, table.try("a", true, moved), "one", "5 flows already")
		other.Place.File = "q.yaml"
		if err := table.try("a", true, other); err != nil {
			t.Errorf("a limit of another file is refused: %v", err)
		}
		// Where several sets of rules have the name, the line tells them apart.
		twins := twins([]policy.Rules{{Name: "one"}, {Name: "two"}, {Name: "one"}})
		if len(twins) != 1 {
			t.Errorf("names that are there twice: %v", twins)
		}
		if _, err := table.enter(&due{who: counted{peer: "a"}, limits: []*policy.Limit{moved}, twins: twins}, false); err != nil {
			t.Errorf("a limit of another set with the same name is refused: %v", err)
		}
	})
}

// However many identities come, the table keeps its size: those that are silent make room, and where none is, the new ones
// share a count while the old ones keep theirs.
func TestLimitTableIsBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds; make test has it")
	}
	const identities = 1_000_000
	limit := &policy.Limit{Name: "q", Quota: 1 << 40, Flows: 1, FlowsPerSecond: 1000, BytesPerSecond: 1 << 20, Period: 1 << 50}
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	t.Run("busy", func(t *testing.T) {
		table, before := newTable(), heap()
		long := strings.Repeat("x", 500)
		var first, shared, refused int
		for i := range identities {
			l, err := table.enter(&due{who: counted{peer: fmt.Sprint(i, long)}, limits: []*policy.Limit{limit}}, false)
			switch {
			case err != nil:
				refused++
				continue
			case l.entries[0].shared:
				shared++
				if first == 0 {
					first = i
				}
			}
			l.entries[0].owe(1, time.Now()) // so that it tells something
			table.leaveAll(l)
		}
		if n := table.entries.load(); n > maxLimitEntries || n < maxLimitEntries/2 {
			t.Errorf("the table has %d counts, want at most %d, and to use them", n, maxLimitEntries)
		}
		grown := heap() - before
		t.Logf("%d counts, %d bytes each; the first that shares is number %d; %d share, %d refused", table.entries.load(), grown/table.entries.load(), first, shared, refused)
		if most := int64(maxLimitEntries * 700); grown > most {
			t.Errorf("it holds %d bytes, want at most %d", grown, most)
		}
		if first < maxLimitEntries/2 || shared+refused < identities-maxLimitEntries {
			t.Errorf("identity %d is the first to share, %d share and %d are refused", first, shared, refused)
		}
		// Who has come first has a count of his own still.
		l, err := table.enter(&due{who: counted{peer: fmt.Sprint(0, long)}, limits: []*policy.Limit{limit}}, false)
		if err != nil || l.entries[0].shared || l.entries[0].used != 1 {
			t.Errorf("the first identity has lost its count: %v", err)
		}
		// Two that are late share one: the second finds no room for a flow.
		for i, want := range []bool{true, false} {
			l, err := table.enter(&due{who: counted{peer: fmt.Sprint("late", i)}, limits: []*policy.Limit{limit}}, false)
			if (err == nil) != want {
				t.Errorf("late identity %d = %v", i, err)
			}
			if err == nil && !l.entries[0].shared {
				t.Errorf("late identity %d has a count of its own", i)
			}
		}
	})
	t.Run("idle", func(t *testing.T) {
		table := newTable()
		for i := range identities / 5 {
			if err := table.try(fmt.Sprint(i), false, &policy.Limit{Name: "f", Flows: 1}); err != nil {
				t.Fatalf("identity %d is refused: %v", i, err)
			}
		}
		if n := table.entries.load(); n != 0 {
			t.Errorf("the table keeps %d counts of nobody", n)
		}
	})
}

// Counts that were busy and are not any more make room, at once when it is needed and else by and by.
func TestLimitTableForgets(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds; make test has it")
	}
	synctest.Test(t, func(t *testing.T) {
		table, limit := newTable(), &policy.Limit{Name: "f", FlowsPerSecond: 1, Burst: 1}
		fill := func(wave string) {
			for i := range 2 * maxLimitEntries {
				_ = table.try(fmt.Sprint(wave, i), false, limit) // most share a count, which refuses them
			}
		}
		fill("a")
		full, shared := table.entries.load(), table.shared.load()
		if shared < maxLimitEntries {
			t.Fatalf("%d have shared a count", shared)
		}
		time.Sleep(2 * time.Second)
		for i := range 1000 {
			if err := table.try(fmt.Sprint("b", i), false, limit); err != nil {
				t.Fatalf("identity b%d is refused though the others are silent: %v", i, err)
			}
		}
		if n := table.entries.load(); n > full || table.shared.load() != shared {
			t.Errorf("%d counts, before %d; %d share, before %d", n, full, table.shared.load(), shared)
		}
		time.Sleep(2 * time.Second)
		for range limitShards {
			table.sweep(time.Now())
		}
		if n := table.entries.load(); n != 0 {
			t.Errorf("%d counts are left when all are silent", n)
		}
	})
}

package tunnel

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"strings"
	"sync"
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
		if err := table.try("a", true, with(policy.Limit{Place: policy.Place{Line: 2}})); err != nil {
			t.Errorf("without figures it is refused: %v", err)
		}
		other := with(policy.Limit{Flows: 1})
		other.Place.Line = 9
		if err := table.try("a", true, other); err != nil {
			t.Errorf("a limit at another place is refused: %v", err)
		}
	})
}

// However many identities come, the table keeps its size: those that are silent make room, and where none is, the new ones
// share a count while the old ones keep theirs.
func TestLimitTableIsBounded(t *testing.T) {
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
		for i := range identities {
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

// limitedRelay is a relay of a flow that counts in limits.
func limitedRelay(t *testing.T, app, dest bool, limits ...*policy.Limit) *relayed {
	t.Helper()
	r := newRelay(app, dest)
	r.limit(t, limits...)
	go r.flow.relay(r.app.end, nil, r.dest.end) // as in startRelay
	return r
}

// limit counts the flow in with limits.
func (r *relayed) limit(t *testing.T, limits ...*policy.Limit) {
	t.Helper()
	r.flow.g.limits.init()
	l, err := r.flow.g.limits.enter(&due{who: counted{peer: "a"}, limits: limits}, false)
	if err != nil {
		t.Fatal(err)
	}
	r.flow.limits.Store(l)
}

// eachLimited runs test for every pair of ends of a limited flow, in synthetic time. In the end nothing may be counted.
func eachLimited(t *testing.T, limit policy.Limit, test func(t *testing.T, r *relayed)) {
	for _, k := range relayKinds {
		t.Run(k.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				limit := limit
				limit.Name = "slow"
				r := limitedRelay(t, k.app, k.dest, &limit)
				test(t, r)
				<-r.done
				r.app.far.Close()
				r.dest.far.Close()
				synctest.Wait()
				wantNothingCounted(t, r.flow.g)
			})
		})
	}
}

// wantNothingCounted checks that no flow counts in a limit, and none waits.
func wantNothingCounted(t *testing.T, g *Gateway) {
	t.Helper()
	if n := g.stats.limitWaiting.load(); n != 0 {
		t.Errorf("%d directions of flows that are over wait", n)
	}
	for i := range g.limits.shards {
		s := &g.limits.shards[i]
		s.mu.Lock()
		for _, e := range s.entries {
			if e.flows != 0 || e.waiting != 0 || len(e.turn) != 0 || !e.listed {
				t.Errorf("%d flows are counted by %s, %d wait", e.flows, e.limit.Name, e.waiting)
			}
		}
		s.mu.Unlock()
	}
}

// Bytes of both directions together keep to the rate, and all arrive.
func TestLimitBytesPerSecond(t *testing.T) {
	const perSecond, each = 100_000, 300_000
	eachLimited(t, policy.Limit{BytesPerSecond: perSecond}, func(t *testing.T, r *relayed) {
		began := time.Now()
		text := strings.Repeat("0123456789", each/10)
		for _, end := range []*side{r.app, r.dest} {
			go func() { // ends with its writes; the readers below wait for them
				io.WriteString(end.far, text)
				end.far.CloseWrite()
			}()
		}
		var readers sync.WaitGroup
		defer readers.Wait()
		for _, end := range []*side{r.app, r.dest} {
			readers.Go(func() { // ends with the flow
				if got, err := io.ReadAll(end.far); string(got) != text || err != nil {
					t.Errorf("read %d bytes, %v, want all %d and the end", len(got), err, each)
				}
			})
		}
		for over := false; !over; {
			select {
			case <-r.done:
				over = true
			case <-time.After(100 * time.Millisecond):
			}
			passed, dur := r.flow.in.carried()+r.flow.out.carried(), time.Since(began)
			// What may pass by now, and for each direction of a source that cannot be looked at a piece.
			if most := perSecond/burstOfSecond + int64(dur.Seconds()*perSecond) + 2*pieceBytes; passed > most {
				t.Errorf("after %v %d bytes have passed, want at most %d", dur, passed, most)
			}
		}
		if dur, most := time.Since(began), 6*time.Second; dur > most || r.err != nil {
			t.Errorf("the flow has taken %v and ended with %v, want at most %v", dur, r.err, most)
		}
		if r.flow.g.stats.limitWaits.load() == 0 {
			t.Error("nothing has waited")
		}
	})
}

// Many flows of an identity share its rate, and none of them is left behind.
func TestLimitBytesAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const flows, perSecond = 20, 64 << 10
		limit := &policy.Limit{Name: "slow", BytesPerSecond: perSecond}
		g := testGateway()
		g.limits.init()
		var list []*relayed
		for i := range flows {
			r := newRelay(true, i%2 == 0)
			r.flow.g = g
			l, err := g.limits.enter(&due{who: counted{peer: "a"}, limits: []*policy.Limit{limit}}, false)
			if err != nil {
				t.Fatal(err)
			}
			r.flow.limits.Store(l)
			go r.flow.relay(r.app.end, nil, r.dest.end)
			go func() { // ends when the flow is cut; r.done waits for that
				for {
					if _, err := r.app.far.Write(make([]byte, 32<<10)); err != nil {
						return
					}
				}
			}()
			go io.Copy(io.Discard, r.dest.far) // as the last
			list = append(list, r)
		}
		time.Sleep(100 * time.Second)
		synctest.Wait()
		var all int64
		for i, r := range list {
			n := r.flow.in.carried()
			if all += n; n < perSecond*100/flows/2 || n > perSecond*100/flows*2 {
				t.Errorf("flow %d has carried %d bytes, want about %d", i, n, perSecond*100/flows)
			}
		}
		if all > perSecond*101+pieceBytes || all < perSecond*99 {
			t.Errorf("%d bytes have passed in 100 seconds, want %d", all, perSecond*100)
		}
		if n := g.stats.limitWaiting.load(); n != flows {
			t.Errorf("%d flows wait, want all %d", n, flows)
		}
		for _, r := range list {
			r.flow.cut(errDraining)
			<-r.done
			r.app.far.Close()
			r.dest.far.Close()
		}
		synctest.Wait()
		wantNothingCounted(t, g)
	})
}

// A flow that waits for its rate ends at once when it is to end, in whatever way, and nothing stays counted.
func TestLimitedFlowEnds(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(r *relayed)
	}{
		{"cut", func(r *relayed) { r.flow.cut(errDraining) }},
		{"reset by the app", func(r *relayed) { r.app.far.SetLinger(0); r.app.far.Close(); r.app.lose() }},
		{"reset by the destination", func(r *relayed) { r.dest.far.SetLinger(0); r.dest.far.Close(); r.dest.lose() }},
		{"both", func(r *relayed) {
			r.dest.far.SetLinger(0)
			r.dest.far.Close()
			r.app.far.SetLinger(0)
			r.app.far.Close()
			r.flow.cut(errDraining)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			eachLimited(t, policy.Limit{BytesPerSecond: 1, Flows: 1}, func(t *testing.T, r *relayed) {
				for _, end := range []*side{r.app, r.dest} {
					go io.Copy(io.Discard, end.far) // ends with the flow, as the next
					go end.far.Write(make([]byte, 1<<20))
				}
				time.Sleep(time.Second)
				synctest.Wait()
				if n := r.flow.g.stats.limitWaiting.load(); n != 2 {
					t.Fatalf("%d directions wait, want 2", n)
				}
				tt.end(r)
				if strings.HasPrefix(tt.name, "reset") {
					// Whoever waits to write to a socket that is gone finds out when it may write.
					time.Sleep(48 * time.Hour)
				}
				synctest.Wait()
				select {
				case <-r.done:
				default:
					t.Error("the flow still waits")
					r.flow.cut(errDraining)
				}
			})
		})
	}
}

// lose tells a stream that the other side has reset it.
func (s *side) lose() {
	if s.stream != nil {
		s.stream.end()
	}
}

// When the quota is used up the flow ends with the reason, other flows of the identity end, and new ones are refused until
// the period is over.
func TestLimitQuota(t *testing.T) {
	const quota = 50_000
	eachLimited(t, policy.Limit{Quota: quota, Period: time.Hour}, func(t *testing.T, r *relayed) {
		g, limit := r.flow.g, r.flow.limits.Load().entries[0].limit
		g.stats.active.add(1) // of r
		g.flows.add(r.flow)
		idle := newRelay(true, true)
		idle.flow.g = g
		idle.flow.Ended = func() { close(idle.done) }
		l, err := g.limits.enter(&due{who: counted{peer: "a"}, limits: []*policy.Limit{limit}}, false)
		if err != nil {
			t.Fatal(err)
		}
		idle.flow.limits.Store(l)
		g.flows.add(idle.flow)
		go idle.flow.relay(idle.app.end, nil, idle.dest.end) // ends with the flow

		go r.dest.far.Write(make([]byte, 10*quota)) // ends with the flow
		got, err := io.ReadAll(r.app.far)
		if err == nil || len(got) > quota+pieceBytes {
			t.Errorf("read %d bytes, %v, want at most %d and a reset", len(got), err, quota)
		}
		<-r.done
		wantLimited(t, r.err, "slow", "quota")
		if n := r.flow.out.carried(); n > quota+pieceBytes || n < quota {
			t.Errorf("%d bytes have passed, want %d", n, quota)
		}
		g.cutSpent(time.Now())
		<-idle.done
		wantLimited(t, idle.flow.reason(), "slow", "quota")
		wantLimited(t, g.limits.try("a", false, limit), "slow", "quota")
		if err := g.limits.try("b", false, limit); err != nil {
			t.Errorf("another identity is refused: %v", err)
		}
		time.Sleep(time.Hour)
		if err := g.limits.try("a", false, limit); err != nil {
			t.Errorf("in the next period it is refused: %v", err)
		}
		if n := g.limits.counts()["slow"]; n != 3 {
			t.Errorf("%d flows are counted as limited, want two that ended and one that was refused", n)
		}
		idle.app.far.Close()
		idle.dest.far.Close()
	})
}

// Limits that come, change and go reach the flows that live.
func TestLimitsOfLiveFlows(t *testing.T) {
	for _, k := range relayKinds {
		t.Run(k.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const second = 20_000
				r := newRelay(k.app, k.dest)
				r.flow.g.limits.init()
				go r.flow.relay(r.app.end, nil, r.dest.end) // as in startRelay
				bind := func(perSecond int64) {
					o := &policy.Obligations{}
					if perSecond > 0 {
						o.Limits = []*policy.Limit{{Name: "slow", BytesPerSecond: perSecond, Flows: 1}}
					}
					r.flow.rebind(&policy.Request{}, &policy.Decision{Allow: true, Obligations: o})
				}
				var writer sync.WaitGroup
				writer.Go(func() { // ends when the flow is cut
					for {
						if _, err := r.app.far.Write(make([]byte, 1000)); err != nil {
							return
						}
						time.Sleep(time.Millisecond) // a million bytes a second
					}
				})
				go io.Copy(io.Discard, r.dest.far) // ends with the flow
				in := func(d time.Duration) int64 {
					before := r.flow.in.carried()
					time.Sleep(d)
					synctest.Wait()
					return r.flow.in.carried() - before
				}
				if n := in(10 * time.Second); n < 9_000_000 {
					t.Errorf("without a limit %d bytes have passed in ten seconds", n)
				}
				bind(second)
				in(10 * time.Second) // what was on the way
				if n := in(10 * time.Second); n > 10*second+2*pieceBytes || n < 9*second {
					t.Errorf("with a limit %d bytes have passed in ten seconds, want %d", n, 10*second)
				}
				bind(1) // and it waits for very long
				in(10 * time.Second)
				bind(5 * second)
				in(10 * time.Second)
				if n := in(10 * time.Second); n > 50*second+2*pieceBytes || n < 45*second {
					t.Errorf("with another limit %d bytes have passed in ten seconds, want %d", n, 50*second)
				}
				bind(0)
				if n := in(10 * time.Second); n < 9_000_000 {
					t.Errorf("without a limit again %d bytes have passed in ten seconds", n)
				}
				if r.flow.limits.Load() != nil {
					bind(0)
				}
				r.flow.cut(errDraining)
				<-r.done
				r.app.far.Close()
				r.dest.far.Close()
				bind(second) // too late
				writer.Wait()
				synctest.Wait()
				wantNothingCounted(t, r.flow.g)
			})
		})
	}
}

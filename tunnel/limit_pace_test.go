package tunnel

import (
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"culvert/policy"
)

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
					r.flow.rebind(r.flow.plan, &policy.Request{}, &policy.Decision{Allow: true, Obligations: o})
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

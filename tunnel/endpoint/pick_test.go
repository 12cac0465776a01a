package endpoint

import (
	"errors"
	"fmt"
	"sync"
	"testing"
)

func TestPickTakesTheLeastLoaded(t *testing.T) {
	s := newSet(t, &Config{Endpoints: addresses(3)}, Env{})
	got := make(map[string]int)
	for range 30 {
		got[take(t, s).Endpoint().String()]++
	}
	for _, i := range s.List() {
		if got[i.Address] != 10 || i.Flows != 10 {
			t.Errorf("%s has got %d flows and has %d, want 10", i.Address, got[i.Address], i.Flows)
		}
	}
}

func TestPickByWeight(t *testing.T) {
	list := addresses(2)
	list[0].Weight = 3
	s := newSet(t, &Config{Endpoints: list}, Env{})
	got := make(map[string]int)
	for range 400 {
		got[take(t, s).Endpoint().String()]++
	}
	if got[list[0].Address] != 300 {
		t.Errorf("the one of weight 3 has got %d of 400 flows, want 300", got[list[0].Address])
	}
}

func TestPickSpreadsOverMany(t *testing.T) {
	list := addresses(1000)
	for i := range 500 {
		list[i].Weight = 4
	}
	s := newSet(t, &Config{Endpoints: list}, Env{})
	for range 10_000 {
		take(t, s)
	}
	heavy, most := 0, 0
	for i, info := range s.List() {
		if i < 500 {
			heavy += info.Flows
			info.Flows /= 4
		}
		most = max(most, info.Flows)
	}
	if heavy < 7700 || heavy > 8500 {
		t.Errorf("the half of weight 4 has got %d of 10000 flows, want about 8000", heavy)
	}
	if most > 10 {
		t.Errorf("one has got %d flows by its weight, want 4 on average and not many more", most)
	}
}

// TestPickLeavesTheSlowAlone has flows to one endpoint that do not end.
func TestPickLeavesTheSlowAlone(t *testing.T) {
	for _, n := range []int{2, 20} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			s := newSet(t, &Config{Endpoints: addresses(n)}, Env{})
			slow := s.List()[0].Address
			got := 0
			for range 1000 {
				l := take(t, s)
				if l.Endpoint().String() == slow {
					got++
					continue
				}
				l.Connected()
				l.Done(Served, nil)
			}
			if got > 10 { // both that are drawn are it once in 400
				t.Errorf("the slow one has got %d of 1000 flows", got)
			}
		})
	}
}

func TestPickByLocality(t *testing.T) {
	list := addresses(5)
	for i, l := range []string{"", "us/a", "eu/b", "eu/a", "eu/a/1"} {
		list[i].Locality = l
	}
	for _, tc := range []struct {
		here string
		want []int // in the order in which they are left when those before have failed
	}{
		{"eu/a", []int{3, 4, 2, 0, 1}}, // equally near: 3 and 4, 0 and 1
		{"eu/a/1", []int{4, 3, 2, 0, 1}},
		{"us/a", []int{1, 0, 2, 3, 4}},
	} {
		t.Run(tc.here, func(t *testing.T) {
			s := newSet(t, &Config{Endpoints: list, Retries: 9}, Env{Locality: func() string { return tc.here }, Rand: func(int64) int64 { return 1 }})
			var tried []*Lease
			for i, want := range tc.want {
				l := take(t, s, tried...)
				if got := l.Endpoint().String(); got != list[want].Address {
					t.Errorf("pick %d = %s, want %s", i, got, list[want].Address)
				}
				tried = append(tried, l)
			}
			if _, err := s.Pick(tried...); !errors.Is(err, ErrTried) {
				t.Errorf("Set.Pick(all) = %v, want ErrTried", err)
			}
			if st := s.Stats(); st.Overflow == 0 || st.Retries != 4 {
				t.Errorf("overflow = %d, retries = %d, want some and 4", st.Overflow, st.Retries)
			}
		})
	}
}

// TestPickOverflows has half of the near endpoints ejected: these take 140 % of a half, the far ones the rest.
func TestPickOverflows(t *testing.T) {
	list := addresses(4)
	list[0].Locality, list[1].Locality = "eu/a", "eu/a"
	s := newSet(t, &Config{Endpoints: list}, Env{Locality: func() string { return "eu/a" }})
	for range 3 {
		failAt(t, s, list[0].Address)
	}
	if got := healthOf(s, list[0].Address); got != "ejected" {
		t.Fatalf("health = %q, want ejected", got)
	}
	near := 0
	for range 1000 {
		if got := serve(t, s); got == list[1].Address {
			near++
		}
	}
	if near < 650 || near > 750 {
		t.Errorf("the near one has got %d of 1000 flows, want about 700", near)
	}
	if st := s.Stats(); st.Overflow < 250 || st.Healthy != 3 || st.Ejected != 1 {
		t.Errorf("stats = %+v, want an overflow of about 300, 3 healthy, 1 ejected", st)
	}
}

func TestPickWithoutEndpoints(t *testing.T) {
	s := newSet(t, &Config{}, Env{})
	if _, err := s.Pick(); !errors.Is(err, ErrNone) {
		t.Errorf("Set.Pick() = %v, want ErrNone", err)
	}
}

func TestLimits(t *testing.T) {
	for _, tc := range []struct {
		name      string
		limits    LimitsConfig
		connected bool
		want      int // flows that are taken
	}{
		{"flows of all", LimitsConfig{Flows: 5}, true, 5},
		{"flows of each", LimitsConfig{Endpoint: EndpointLimitsConfig{Flows: 3}}, true, 6},
		{"pending of all", LimitsConfig{Pending: 5}, false, 5},
		{"pending of each", LimitsConfig{Endpoint: EndpointLimitsConfig{Pending: 2}}, false, 4},
		{"pending, but connected", LimitsConfig{Pending: 1}, true, 50},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSet(t, &Config{Endpoints: addresses(2), Limits: tc.limits}, Env{})
			var leases []*Lease
			for range 50 {
				l, err := s.Pick()
				if err != nil {
					if !errors.Is(err, ErrFull) {
						t.Fatalf("Set.Pick() = %v, want ErrFull", err)
					}
					continue
				}
				if tc.connected {
					l.Connected()
				}
				leases = append(leases, l)
			}
			if len(leases) != tc.want || s.Stats().Full != int64(50-tc.want) {
				t.Errorf("%d of 50 flows were taken, %d counted as full, want %d taken", len(leases), s.Stats().Full, tc.want)
			}
			for _, l := range leases {
				l.Done(Served, nil)
				l.Done(Failed, errDead) // a second call does nothing
			}
			if st := s.Stats(); st.Flows != 0 || st.Pending != 0 {
				t.Errorf("flows = %d, pending = %d when all are over, want 0", st.Flows, st.Pending)
			}
			take(t, s)
		})
	}
}

func TestLimitOfConnections(t *testing.T) {
	s := newSet(t, &Config{Endpoints: addresses(2), Limits: LimitsConfig{Connections: 3, Endpoint: EndpointLimitsConfig{Connections: 2}}}, Env{})
	a, b := take(t, s).Endpoint(), take(t, s).Endpoint()
	for i, want := range []error{nil, nil, ErrFull} {
		if err := a.TakeConn(); !errors.Is(err, want) {
			t.Errorf("connection %d = %v, want %v", i, err, want)
		}
	}
	if err := b.TakeConn(); err != nil {
		t.Error(err)
	}
	if err := b.TakeConn(); !errors.Is(err, ErrFull) {
		t.Errorf("connection above the limit of all = %v, want ErrFull", err)
	}
	a.GiveConn()
	if err := b.TakeConn(); err != nil {
		t.Error(err)
	}
}

// TestFloodAgainstLimits has many goroutines pick at once.
func TestFloodAgainstLimits(t *testing.T) {
	s := newSet(t, &Config{Endpoints: addresses(20), Limits: LimitsConfig{Flows: 50}}, Env{})
	var flood sync.WaitGroup
	for i := range 16 {
		flood.Go(func() {
			for n := range 2000 {
				l, err := s.Pick()
				if err != nil {
					continue
				}
				if n%3 == 0 {
					l.Done(Failed, errDead)
					continue
				}
				l.Connected()
				if st := s.Stats(); st.Flows > 50 {
					t.Errorf("%d flows, want at most 50", st.Flows)
				}
				l.Done(Outcome(i%2)*Broke, errDead)
			}
		})
	}
	flood.Wait()
	if st := s.Stats(); st.Flows != 0 || st.Pending != 0 || st.Ejected > 10 {
		t.Errorf("stats = %+v, want no flows, and at most 10 ejected", st)
	}
}

func BenchmarkPick(b *testing.B) {
	for _, n := range []int{1, 8, 10, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := newSet(b, &Config{Endpoints: addresses(n)}, Env{})
			b.ReportAllocs()
			for b.Loop() {
				l, err := s.Pick()
				if err != nil {
					b.Fatal(err)
				}
				l.Connected()
				l.Done(Served, nil)
			}
		})
	}
}

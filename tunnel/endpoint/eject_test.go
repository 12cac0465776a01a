package endpoint

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestEjection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list := addresses(4)
		s := newSet(t, &Config{Endpoints: list}, Env{})
		bad := list[0].Address
		for i := range 3 {
			if got := healthOf(s, bad); got != "ok" {
				t.Fatalf("health after %d failures = %q, want ok", i, got)
			}
			failAt(t, s, bad)
		}
		for _, wait := range []time.Duration{10 * time.Second, 20 * time.Second, 40 * time.Second} {
			if got := healthOf(s, bad); got != "ejected" {
				t.Fatalf("health = %q, want ejected", got)
			}
			time.Sleep(wait - 1)
			for range 100 {
				if got := serve(t, s); got == bad {
					t.Fatalf("%s was picked within %s", bad, wait)
				}
			}
			time.Sleep(time.Nanosecond)
			if got := healthOf(s, bad); got != "trial" {
				t.Fatalf("health after %s = %q, want trial", wait, got)
			}
			failAt(t, s, bad) // one is enough now
		}
		time.Sleep(80 * time.Second)
		first := take(t, s)
		for first.Endpoint().String() != bad {
			first = take(t, s)
		}
		for range 100 {
			if got := take(t, s).Endpoint().String(); got == bad {
				t.Fatal("it got a second flow before the first has succeeded")
			}
		}
		first.Connected()
		if got := healthOf(s, bad); got != "ok" {
			t.Errorf("health after a success = %q, want ok", got)
		}
	})
}

func TestEjectionIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list := addresses(4)
		s := newSet(t, &Config{Endpoints: list, Ejection: EjectionConfig{Failures: 1, Longest: time.Minute}}, Env{})
		ejectedFor := func() time.Duration {
			failAt(t, s, list[0].Address)
			return time.Until(*s.List()[0].EjectedUntil)
		}
		for i, want := range []time.Duration{10 * time.Second, 20 * time.Second, 40 * time.Second, time.Minute, time.Minute} {
			got := ejectedFor()
			if got != want {
				t.Errorf("ejection %d is for %s, want %s", i, got, want)
			}
			time.Sleep(got)
		}
		time.Sleep(time.Minute)
		if got := ejectedFor(); got != 10*time.Second {
			t.Errorf("ejection after a minute without is for %s, want 10s", got)
		}
	})
}

// TestEjectionHasAFloor has all endpoints fail all flows: half of them stay, and get the flows.
func TestEjectionHasAFloor(t *testing.T) {
	for _, tc := range []struct{ n, most, want int }{{1, 0, 0}, {1, 100, 1}, {2, 0, 1}, {3, 0, 1}, {10, 0, 5}, {10, 30, 3}, {10, 100, 10}} {
		synctest.Test(t, func(t *testing.T) {
			s := newSet(t, &Config{Endpoints: addresses(tc.n), Ejection: EjectionConfig{Most: tc.most}}, Env{})
			for range 300 {
				fail(t, s)
			}
			st := s.Stats()
			if int(st.Ejected) != tc.want {
				t.Errorf("%d of %d are ejected, want %d (most: %d)", st.Ejected, tc.n, tc.want, tc.most)
			}
			if tc.want < tc.n && st.Spared == 0 {
				t.Errorf("nothing counted as spared (%d endpoints, most: %d)", tc.n, tc.most)
			}
			if tc.want == tc.n && st.Unwell == 0 {
				t.Error("all are ejected, and no pick counted as unwell")
			}
		})
	}
}

// TestAllEjectedAreUsed: one of them succeeds, and is back before its time.
func TestAllEjectedAreUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSet(t, &Config{Endpoints: addresses(3), Ejection: EjectionConfig{Failures: 1, Most: 100}}, Env{})
		for range 3 {
			fail(t, s)
		}
		if st := s.Stats(); st.Ejected != 3 {
			t.Fatalf("%d are ejected, want 3", st.Ejected)
		}
		back := serve(t, s)
		if got := healthOf(s, back); got != "ok" {
			t.Errorf("health of the one that has served = %q, want ok", got)
		}
		for range 10 {
			if got := serve(t, s); got != back {
				t.Errorf("picked %s, want %s, the only one that is well", got, back)
			}
		}
	})
}

func TestEjectionOff(t *testing.T) {
	s := newSet(t, &Config{Endpoints: addresses(2), Ejection: EjectionConfig{Failures: -1}}, Env{})
	for range 100 {
		fail(t, s)
	}
	if st := s.Stats(); st.Ejected != 0 || st.Ejections != 0 {
		t.Errorf("stats = %+v, want no ejections", st)
	}
}

// TestSuccessEndsARow: failures that are not in a row eject nobody.
func TestSuccessEndsARow(t *testing.T) {
	list := addresses(2)
	s := newSet(t, &Config{Endpoints: list}, Env{})
	for range 20 {
		failAt(t, s, list[0].Address)
		failAt(t, s, list[0].Address)
		for range 4 {
			l := take(t, s)
			l.Connected()
			defer l.Done(Served, nil)
		}
	}
	if st := s.Stats(); st.Ejections != 0 {
		t.Errorf("%d ejections, want none", st.Ejections)
	}
}

// TestBroken has an endpoint accept flows and break them off: that it accepts does not count then.
func TestBroken(t *testing.T) {
	var log bytes.Buffer
	s := newSet(t, &Config{Endpoints: addresses(2)}, Env{Log: slog.New(slog.NewTextHandler(&log, nil))})
	for range 40 {
		l := take(t, s)
		l.Connected()
		o := Served
		if l.Endpoint().String() == "10.0.0.1:8080" {
			o = Broke
		}
		l.Done(o, errDead)
	}
	if got := healthOf(s, "10.0.0.1:8080"); got != "ejected" {
		t.Errorf("health = %q, want ejected", got)
	}
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, `msg="endpoint is ejected" endpoint=10.0.0.1:8080 dur=10s reason="connection refused"`) {
		t.Errorf("log = %q", got)
	}
}

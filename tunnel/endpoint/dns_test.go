package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func at(list ...string) (answers []Answer) {
	for _, text := range list {
		answers = append(answers, Answer{Addr: netip.MustParseAddr(text)})
	}
	return answers
}

// places returns the addresses of a Set.
func places(s *Set) string {
	var list []string
	for _, i := range s.List() {
		list = append(list, i.Address)
	}
	return strings.Join(list, " ")
}

// looking starts a Set with a name.
func looking(t *testing.T, c DNSConfig, d *fakeDNS, guard func(netip.Addr, uint16) error) *Set {
	s := newSet(t, &Config{DNS: c}, Env{Resolve: d.resolve, Guard: guard})
	s.Start()
	synctest.Wait()
	return s
}

func TestDNS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDNS{ttl: 7 * time.Second}
		d.say(Addresses, "orders.internal", at("10.0.0.2", "::ffff:10.0.0.1", "fd00::1", "10.0.0.2")...)
		s := looking(t, DNSConfig{Name: "Orders.Internal.", Port: 8080}, d, nil)
		defer s.Close()
		<-s.Asked()
		if got := places(s); got != "10.0.0.1:8080 10.0.0.2:8080 [fd00::1]:8080" {
			t.Errorf("endpoints = %s", got)
		}
		for range 3 {
			failAt(t, s, "10.0.0.2:8080")
		}
		d.say(Addresses, "orders.internal", at("10.0.0.9", "10.0.0.2")...)
		time.Sleep(7*time.Second - 1)
		if d.count() != 1 {
			t.Error("it was asked before the TTL was over")
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if got := places(s); got != "10.0.0.2:8080 10.0.0.9:8080" {
			t.Errorf("endpoints when the answer has changed = %s", got)
		}
		if got := healthOf(s, "10.0.0.2:8080"); got != "ejected" {
			t.Errorf("health of the one that stays = %q, want ejected", got)
		}
	})
}

func TestDNSTime(t *testing.T) {
	for _, tc := range []struct {
		name  string
		ttl   time.Duration
		every time.Duration
		want  time.Duration
	}{
		{"TTL", 5 * time.Second, 0, 5 * time.Second},
		{"no TTL", 0, 0, 30 * time.Second},
		{"TTL of a millisecond", time.Millisecond, 0, time.Second},
		{"TTL of a day", 24 * time.Hour, 10 * time.Second, 10 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &fakeDNS{ttl: tc.ttl}
				d.say(Addresses, "x.example", at("10.0.0.1")...)
				s := looking(t, DNSConfig{Name: "x.example", Every: tc.every}, d, nil)
				defer s.Close()
				time.Sleep(10*tc.want + 1)
				if got := d.count(); got != 11 {
					t.Errorf("asked %d times in ten times %s, want 11", got, tc.want)
				}
			})
		})
	}
}

// TestDNSVanishes: the last endpoints are used for as long as Keep says, whether there is no answer or none in it.
func TestDNSVanishes(t *testing.T) {
	for _, tc := range []struct {
		name   string
		vanish func(*fakeDNS)
	}{
		{"no answer", func(d *fakeDNS) { d.fail(errors.New("no resolver answers")) }},
		{"empty answer", func(d *fakeDNS) { d.say(Addresses, "x.example") }},
		{"what is no address", func(d *fakeDNS) { d.say(Addresses, "x.example", Answer{}, Answer{Host: "y"}) }},
		{"addresses with zones", func(d *fakeDNS) { d.say(Addresses, "x.example", at("fe80::1%eth0")...) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &fakeDNS{ttl: 10 * time.Second}
				d.say(Addresses, "x.example", at("10.0.0.1")...)
				s := looking(t, DNSConfig{Name: "x.example", Port: 80}, d, nil)
				defer s.Close()
				tc.vanish(d)
				time.Sleep(5 * time.Minute)
				if got := places(s); got != "10.0.0.1:80" {
					t.Errorf("endpoints = %q, want those of before", got)
				}
				time.Sleep(time.Minute)
				if _, err := s.Pick(); !errors.Is(err, ErrNone) {
					t.Errorf("Set.Pick() = %v, want ErrNone", err)
				}
				if s.Stats().DNSFailures == 0 {
					t.Error("no failure was counted")
				}
				d.fail(nil)
				d.say(Addresses, "x.example", at("10.0.0.2")...)
				time.Sleep(time.Minute)
				if got := places(s); got != "10.0.0.2:80" {
					t.Errorf("endpoints when it is back = %q", got)
				}
			})
		})
	}
}

func TestDNSTooMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := new(fakeDNS)
		var many []Answer
		for i := range 20_000 {
			many = append(many, Answer{Addr: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})})
		}
		d.say(Addresses, "x.example", many...)
		s := looking(t, DNSConfig{Name: "x.example"}, d, nil)
		defer s.Close()
		if st := s.Stats(); st.Endpoints != maxAnswers || st.Dropped == 0 {
			t.Errorf("%d endpoints, %d dropped, want %d and some", st.Endpoints, st.Dropped, maxAnswers)
		}
	})
}

var errGuarded = errors.New("it is guarded")

func guardLoopback(addr netip.Addr, _ uint16) error {
	if addr.IsLoopback() {
		return errGuarded
	}
	return nil
}

func TestDNSGuarded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDNS{ttl: time.Second}
		d.say(Addresses, "x.example", at("127.0.0.1", "10.0.0.1", "::ffff:127.0.0.1")...)
		s := looking(t, DNSConfig{Name: "x.example"}, d, guardLoopback)
		defer s.Close()
		if got := places(s); got != "10.0.0.1" {
			t.Errorf("endpoints = %q, want the one that is not guarded", got)
		}
		d.say(Addresses, "x.example", at("127.0.0.1")...) // rebound
		time.Sleep(2 * time.Second)
		if got := places(s); got != "" {
			t.Errorf("endpoints = %q, want none: what has become a guarded address is not kept", got)
		}
		if s.Stats().Guarded == 0 {
			t.Error("no guarded address was counted")
		}
	})
}

func TestSRV(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fakeDNS{ttl: 20 * time.Second}
		d.say(Services, "_orders._tcp.example", Answer{Host: "B.example.", Port: 81, Priority: 2, Weight: 1}, Answer{Host: "a.example", Port: 80, Weight: 7},
			Answer{Host: ".", Port: 0}, Answer{Host: "gone.example", Port: 80}, Answer{Host: "a.example", Port: 0})
		d.say(Addresses, "a.example", at("10.0.0.1", "fd00::1")...)
		d.say(Addresses, "b.example", at("10.0.0.2")...)
		s := looking(t, DNSConfig{Name: "_orders._tcp.example", Type: TypeSRV}, d, nil)
		defer s.Close()
		if got := places(s); got != "10.0.0.1:80 [fd00::1]:80 10.0.0.2:81" {
			t.Errorf("endpoints = %s", got)
		}
		if got := s.List()[0].Weight; got != 7 {
			t.Errorf("weight = %d, want 7", got)
		}
		var tried []*Lease
		for range 2 {
			l := take(t, s, tried...)
			if l.Endpoint().Port != 80 {
				t.Errorf("picked %s before those of a better priority", l.Endpoint())
			}
			tried = append(tried, l)
		}
		if got := take(t, s, tried...).Endpoint().String(); got != "10.0.0.2:81" {
			t.Errorf("picked %s, want the one of priority 2", got)
		}
	})
}

// TestSRVIsBounded: an answer does not have us look up more names than maxTargets.
func TestSRVIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := new(fakeDNS)
		var many []Answer
		for i := range 1000 {
			many = append(many, Answer{Host: fmt.Sprintf("n%d.example", i), Port: 80})
		}
		d.say(Services, "x.example", many...)
		s := looking(t, DNSConfig{Name: "x.example", Type: TypeSRV}, d, nil)
		s.Close()
		if got := d.count(); got != 1+maxTargets {
			t.Errorf("%d questions, want %d", got, 1+maxTargets)
		}
	})
}

// TestDNSAnotherName: what the former name gave is not used any more, and an answer that comes late neither.
func TestDNSAnotherName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		s := newSet(t, &Config{DNS: DNSConfig{Name: "old.example"}}, Env{Resolve: func(_ context.Context, name string, _ Kind) ([]Answer, time.Duration, error) {
			if name == "old.example" {
				<-gate
				return at("10.0.0.1"), 0, nil
			}
			return at("10.0.0.2"), 0, nil
		}})
		s.Start()
		synctest.Wait()
		s.Update(&Config{DNS: DNSConfig{Name: "new.example"}})
		<-s.Asked()
		close(gate)
		synctest.Wait()
		if got := places(s); got != "10.0.0.2" {
			t.Errorf("endpoints = %s, want that of the new name", got)
		}
		s.Update(&Config{Endpoints: addresses(1)})
		if got := places(s); got != "10.0.0.1:8080" || s.Asked() != nil {
			t.Errorf("endpoints without a name = %s", got)
		}
		s.Close()
	})
}

// TestUpdateGuardsAgain: a reload may have closed what was open.
func TestUpdateGuardsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := new(fakeDNS)
		d.say(Addresses, "x.example", at("10.0.0.1", "10.0.0.2")...)
		var closed []netip.Addr
		c := &Config{DNS: DNSConfig{Name: "x.example"}}
		s := newSet(t, c, Env{Resolve: d.resolve, Guard: func(a netip.Addr, _ uint16) error {
			if slices.Contains(closed, a) {
				return errGuarded
			}
			return nil
		}})
		s.Refresh(t.Context())
		s.Refresh(t.Context())
		if d.count() != 1 {
			t.Errorf("asked %d times, want once", d.count())
		}
		closed = append(closed, netip.MustParseAddr("10.0.0.2"))
		s.Update(c)
		if got := places(s); got != "10.0.0.1" {
			t.Errorf("endpoints = %s", got)
		}
	})
}

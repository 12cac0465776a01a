package endpoint

import (
	"strings"
	"sync"
	"testing"
	"testing/synctest"
)

func TestUpdateKeepsLoadAndHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list := addresses(4)
		s := newSet(t, &Config{Endpoints: list}, Env{})
		for range 3 {
			failAt(t, s, list[0].Address)
		}
		var live []*Lease
		for range 6 {
			l := take(t, s)
			l.Connected()
			live = append(live, l)
		}
		next := addresses(5)[:5]
		next[1].Weight, next[1].Locality = 5, "eu/a"
		next = append(next[:2], next[4]) // 1, 2 and the new 5
		s.Update(&Config{Endpoints: next})
		infos := s.List()
		if len(infos) != 3 || infos[0].Health != "ejected" || infos[0].LastFailure != "connection refused" {
			t.Fatalf("endpoints = %+v, want three, the first ejected as before", infos)
		}
		if infos[1].Flows != 2 || infos[1].Weight != 5 || infos[1].Locality != "eu/a" {
			t.Errorf("the one that stays is %+v, want its 2 flows and the new weight", infos[1])
		}
		if infos[2].Flows != 0 {
			t.Errorf("the new one has %d flows", infos[2].Flows)
		}
		for range 50 {
			if got := serve(t, s); got != infos[1].Address && got != infos[2].Address {
				t.Fatalf("picked %s, which is gone or ejected", got)
			}
		}
		for _, l := range live {
			if l.Endpoint().Weight != 1 {
				t.Error("an Endpoint that is in use has changed")
			}
			l.Done(Served, nil)
		}
		if st := s.Stats(); st.Flows != 0 {
			t.Errorf("%d flows when all are over, want 0", st.Flows)
		}
	})
}

func TestUpdateUnderLoad(t *testing.T) {
	s := newSet(t, &Config{Endpoints: addresses(30)}, Env{})
	s.Start()
	var work sync.WaitGroup
	for range 8 {
		work.Go(func() {
			for n := range 2000 {
				l, err := s.Pick()
				if err != nil {
					t.Errorf("Set.Pick() = %v", err)
					return
				}
				if n%5 == 0 {
					l.Done(Failed, errDead)
				} else {
					l.Connected()
					l.Done(Served, nil)
				}
			}
		})
	}
	for n := range 200 {
		s.Update(&Config{Endpoints: addresses(30)[n%20:]})
	}
	work.Wait()
	if st := s.Stats(); st.Flows != 0 || st.Pending != 0 {
		t.Errorf("flows = %d, pending = %d when all are over, want 0", st.Flows, st.Pending)
	}
}

// TestKey: another identity is another endpoint to share connections with, and the same to count flows at.
func TestKey(t *testing.T) {
	c := Config{Endpoints: []EndpointConfig{{Address: "10.0.0.1:8080", Tun: TunHBONE}}}
	s := newSet(t, &c, Env{})
	a := take(t, s).Endpoint()
	c.Endpoints = []EndpointConfig{{Address: "10.0.0.1:8080", Tun: TunHBONE, Identities: []string{"spiffe://cluster.local/ns/shop/sa/orders"}}}
	s.Update(&c)
	b := take(t, s).Endpoint()
	if a.Key() == b.Key() || !strings.HasPrefix(b.Key(), a.Key()) {
		t.Errorf("keys are %q and %q, want two", a.Key(), b.Key())
	}
	if got := s.List()[0].Flows; got != 2 {
		t.Errorf("%d flows, want 2", got)
	}
}

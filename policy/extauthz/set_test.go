package extauthz

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"culvert/policy"
)

// change makes list the authorizers of s.
func change(tb testing.TB, s *Set, list ...Config) {
	tb.Helper()
	c, err := s.Prepare(list)
	if err != nil {
		tb.Fatal(err)
	}
	c.Stage()
	c.Commit()
}

func askOf(tb testing.TB, s *Set, name string) policy.Decision {
	return s.Ask(tb.Context(), name, &policy.Request{Port: 1})
}

func TestSetReplaces(t *testing.T) {
	yes, no := answers(t, "status {}"), answers(t, "status { code: 7 }")
	s := NewSet(Env{})
	defer s.Close()
	if d := askOf(t, s, "a"); d.Allow || d.Rule != "ask/a" || !strings.Contains(d.Reason, "policy.authorizers") {
		t.Errorf("Ask of a set without authorizers = %+v", d)
	}
	change(t, s, Config{Name: "a", Address: yes.addr, Timeout: long}, Config{Name: "b", Address: yes.addr, Timeout: long})
	if d := askOf(t, s, "a"); !d.Allow {
		t.Errorf("Ask = %+v", d)
	}

	c, err := s.Prepare([]Config{{Name: "a", Address: no.addr, Timeout: long}})
	if err != nil {
		t.Fatal(err)
	}
	if d := askOf(t, s, "a"); !d.Allow {
		t.Errorf("Ask before Stage = %+v", d)
	}
	c.Stage()
	if a, b := askOf(t, s, "a"), askOf(t, s, "b"); a.Allow || !b.Allow {
		t.Errorf("Ask after Stage = %+v and %+v, want the new a and the old b", a, b)
	}
	c.Undo()
	if d := askOf(t, s, "a"); !d.Allow {
		t.Errorf("Ask after Undo = %+v", d)
	}

	change(t, s, Config{Name: "a", Address: no.addr, Timeout: long})
	if a, b := askOf(t, s, "a"), askOf(t, s, "b"); a.Allow || b.Allow {
		t.Errorf("Ask after Commit = %+v and %+v, want refusals", a, b)
	}
	if got := s.Stats(); len(got) != 1 || got["a"].Allowed != 3 || got["a"].Denied != 2 {
		t.Errorf("Stats = %+v, want those of a with all that was counted", got)
	}
}

// A change that comes while flows ask refuses none of them.
func TestSetReplacesWhileFlowsAsk(t *testing.T) {
	a := serve(t, listen(t, "127.0.0.1:0"), func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		return &authv3.CheckResponse{HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{}}}, nil
	})
	s := NewSet(Env{})
	defer s.Close()
	cfg := Config{Name: "a", Address: a.addr, Timeout: long}
	change(t, s, cfg)
	stop := make(chan struct{})
	var flows sync.WaitGroup
	for range 8 {
		flows.Go(func() { // ends with stop
			for {
				select {
				case <-stop:
					return
				default:
				}
				if d := askOf(t, s, "a"); !d.Allow {
					t.Errorf("Ask = %+v", d)
					return
				}
			}
		})
	}
	for range 20 {
		change(t, s, cfg)
	}
	close(stop)
	flows.Wait()
}

func TestSetReportsAllFaults(t *testing.T) {
	s := NewSet(Env{})
	defer s.Close()
	_, err := s.Prepare([]Config{
		{Name: "a", Address: "127.0.0.1:1"}, {Name: "a", Address: "127.0.0.1:2"}, {Name: "b"}, {Name: "c", Address: "127.0.0.1:3", TLS: TLSConfig{Mode: "tls", Roots: "/nonexistent"}},
	})
	many, ok := err.(interface{ Unwrap() []error })
	if !ok || len(many.Unwrap()) != 3 {
		t.Fatalf("Prepare = %v, want three faults", err)
	}
	for i, field := range []string{"name", "address", "tls.roots"} {
		var entry *EntryError
		var fault *FieldError
		if one := many.Unwrap()[i]; !errors.As(one, &entry) || entry.Index != i+1 || !errors.As(one, &fault) || fault.Field != field {
			t.Errorf("fault %d = %v, want one of %s", i, one, field)
		}
	}
}

package endpoint

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

var errDead = errors.New("connection refused")

// newSet makes a Set of c with a log that nobody reads and chance that is the same in every run.
func newSet(t testing.TB, c *Config, env Env) *Set {
	t.Helper()
	if err := c.Validate(false); err != nil {
		t.Fatal(err)
	}
	if env.Log == nil {
		env.Log = slog.New(slog.DiscardHandler)
	}
	if env.Rand == nil {
		var mu sync.Mutex
		r := rand.New(rand.NewPCG(1, 2))
		env.Rand = func(n int64) int64 {
			mu.Lock()
			defer mu.Unlock()
			return r.Int64N(n)
		}
	}
	s := New("orders", c, env)
	t.Cleanup(s.Close)
	return s
}

// addresses makes n endpoints.
func addresses(n int) []EndpointConfig {
	list := make([]EndpointConfig, n)
	for i := range list {
		list[i].Address = fmt.Sprintf("10.0.%d.%d:8080", i/250, i%250+1)
	}
	return list
}

// take picks, which must succeed.
func take(t testing.TB, s *Set, tried ...*Lease) *Lease {
	t.Helper()
	l, err := s.Pick(tried...)
	if err != nil {
		t.Fatalf("Set.Pick() = %v, want an endpoint", err)
	}
	return l
}

// fail picks, and has the flow fail.
func fail(t testing.TB, s *Set) string {
	t.Helper()
	l := take(t, s)
	l.Done(Failed, errDead)
	return l.Endpoint().String()
}

// serve picks, and has the flow succeed and end.
func serve(t testing.TB, s *Set) string {
	t.Helper()
	l := take(t, s)
	l.Connected()
	l.Done(Served, nil)
	return l.Endpoint().String()
}

// healthOf returns the word for how an endpoint fares.
func healthOf(s *Set, address string) string {
	for _, i := range s.List() {
		if i.Address == address {
			return i.Health
		}
	}
	return "gone"
}

// failAt has a flow fail at one endpoint.
func failAt(t testing.TB, s *Set, address string) {
	t.Helper()
	var tried []*Lease
	for {
		l, err := s.Pick(tried...)
		if err != nil {
			t.Fatalf("Set.Pick() = %v before %s was picked", err, address)
		}
		if l.Endpoint().String() == address {
			l.Done(Failed, errDead)
			for _, l := range tried {
				l.Done(Served, nil)
			}
			return
		}
		tried = append(tried, l)
	}
}

// fakeDNS answers as a test says.
type fakeDNS struct {
	mu      sync.Mutex
	answers map[string][]Answer // by kind and name
	ttl     time.Duration
	err     error
	asked   int
}

func (d *fakeDNS) resolve(_ context.Context, name string, kind Kind) ([]Answer, time.Duration, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked++
	if d.err != nil {
		return nil, 0, d.err
	}
	return d.answers[fmt.Sprint(kind, name)], d.ttl, nil
}

func (d *fakeDNS) say(kind Kind, name string, list ...Answer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.answers == nil {
		d.answers = make(map[string][]Answer)
	}
	d.answers[fmt.Sprint(kind, name)] = list
}

func (d *fakeDNS) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = err
}

func (d *fakeDNS) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked
}

// fakePlaces are endpoints that can be connected to, but for those that are dead.
type fakePlaces struct {
	mu     sync.Mutex
	dead   map[string]error
	answer func(net.Conn) // nil: they say nothing
	dials  map[string]int
}

// dialled is how many places were.
func (p *fakePlaces) dialled() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.dials)
}

func (p *fakePlaces) dial(ctx context.Context, e *Endpoint) (net.Conn, error) {
	p.mu.Lock()
	err, answer := p.dead[e.String()], p.answer
	if p.dials == nil {
		p.dials = make(map[string]int)
	}
	p.dials[e.String()]++
	p.mu.Unlock()
	if errors.Is(err, context.DeadlineExceeded) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	near, far := net.Pipe()
	if answer != nil {
		go answer(far) // ends with the pipe, which the probe closes
	}
	return near, nil
}

func (p *fakePlaces) kill(address string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead == nil {
		p.dead = make(map[string]error)
	}
	p.dead[address] = err
}

package endpoint

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// probing starts a Set with places that are probed.
func probing(t *testing.T, n int, h HealthConfig, p *fakePlaces) *Set {
	s := newSet(t, &Config{Endpoints: addresses(n), Health: h}, Env{Dial: p.dial})
	s.Start()
	return s
}

func TestProbeConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := new(fakePlaces)
		s := probing(t, 2, HealthConfig{Probe: ProbeConnect}, p)
		defer s.Close()
		bad := addresses(2)[0].Address
		time.Sleep(time.Minute + time.Second) // between two probes
		if got := healthOf(s, bad); got != "ok" {
			t.Fatalf("health = %q, want ok", got)
		}
		for _, err := range []error{errDead, context.DeadlineExceeded} { // it refuses, it hangs
			p.kill(bad, err)
			time.Sleep(20 * time.Second)
			if got := healthOf(s, bad); got != "ok" {
				t.Errorf("health after two failed probes = %q, want ok", got)
			}
			time.Sleep(15 * time.Second)
			if got := healthOf(s, bad); got != "down" {
				t.Fatalf("health after three failed probes = %q, want down", got)
			}
			for range 100 {
				if got := serve(t, s); got == bad {
					t.Fatal("an endpoint that is down was picked")
				}
			}
			p.kill(bad, nil)
			time.Sleep(11 * time.Second)
			if got := healthOf(s, bad); got != "down" {
				t.Errorf("health after one good probe = %q, want down", got)
			}
			time.Sleep(10 * time.Second)
			if got := healthOf(s, bad); got != "ok" {
				t.Fatalf("health after two good probes = %q, want ok", got)
			}
		}
		if info := s.List()[0]; info.LastFailure != "no answer within 2s" || info.LastFailureAt == nil {
			t.Errorf("last failure = %q, want that it hung", info.LastFailure)
		}
	})
}

func TestProbeHTTP(t *testing.T) {
	for _, tc := range []struct {
		name, answer string
		want         string
		why          string
	}{
		{"200", "HTTP/1.1 200 OK\r\n\r\n", "ok", ""},
		{"302", "HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", "ok", ""},
		{"204 and no end", "HTTP/1.1 204 No Content\r\n\r\n", "ok", ""},
		{"503", "HTTP/1.1 503 Service Unavailable\r\n\r\n", "down", "answered with 503"},
		{"100 only", "HTTP/1.1 100 Continue\r\n\r\n", "down", "answered with 100"},
		{"garbage", "SSH-2.0-x\r\n", "down", "malformed HTTP"},
		{"head without an end", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 64<<10), "down", "unexpected EOF"},
		{"nothing", "", "down", "no answer within 2s"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				asked := make(chan string, 1000)
				p := &fakePlaces{answer: func(c net.Conn) {
					line, _ := bufio.NewReader(c).ReadString('\n')
					asked <- line
					go io.Copy(io.Discard, c)
					if _, err := io.WriteString(c, tc.answer); err == nil && tc.answer != "" {
						_ = c.Close()
					}
				}}
				s := probing(t, 1, HealthConfig{Probe: ProbeHTTP, Path: "/ready", Interval: time.Second}, p)
				defer s.Close()
				time.Sleep(20 * time.Second)
				info := s.List()[0]
				if info.Health != tc.want || !strings.Contains(info.LastFailure, tc.why) {
					t.Errorf("health = %q (%s), want %s (%s)", info.Health, info.LastFailure, tc.want, tc.why)
				}
				if got := <-asked; got != "GET /ready HTTP/1.1\r\n" {
					t.Errorf("request = %q", got)
				}
			})
		})
	}
}

// TestProbesAreSpread: a hundred endpoints that hang are probed one after the other, once in an interval, and none waits for another.
func TestProbesAreSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := new(fakePlaces)
		for _, e := range addresses(100) {
			p.kill(e.Address, context.DeadlineExceeded)
		}
		s := probing(t, 100, HealthConfig{Probe: ProbeConnect}, p)
		defer s.Close()
		time.Sleep(5*time.Second + 1)
		if got := p.dialled(); got != 51 {
			t.Errorf("%d endpoints were probed in half an interval, want 51", got)
		}
		time.Sleep(time.Minute)
		st := s.Stats()
		if st.Down != 100 {
			t.Errorf("%d are down, want 100", st.Down)
		}
		take(t, s) // none is left, so all are used
		if got := s.Stats().Unwell; got != 1 {
			t.Errorf("%d picks counted as unwell, want 1", got)
		}
	})
}

func TestProbePing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wrong := errors.New("it is somebody else")
		c := &Config{Endpoints: addresses(2), Health: HealthConfig{Probe: ProbePing}}
		s := newSet(t, &Config{}, Env{Ping: func(_ context.Context, e *Endpoint) error {
			if e.String() == c.Endpoints[0].Address {
				return wrong
			}
			return nil
		}})
		s.Update(c)
		s.Start()
		defer s.Close()
		time.Sleep(time.Minute)
		if got := fmt.Sprint(healthOf(s, c.Endpoints[0].Address), healthOf(s, c.Endpoints[1].Address)); got != "downok" {
			t.Errorf("health = %s, want down and ok", got)
		}
		c2 := *c
		c2.Health = HealthConfig{}
		s.Update(&c2) // nobody asks any more, so nobody knows
		if got := healthOf(s, c.Endpoints[0].Address); got != "ok" {
			t.Errorf("health without probes = %s, want ok", got)
		}
	})
}

// TestCloseEndsProbes: one that hangs does not hold the end up.
func TestCloseEndsProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := new(fakePlaces)
		p.kill(addresses(1)[0].Address, context.DeadlineExceeded)
		s := probing(t, 1, HealthConfig{Probe: ProbeConnect, Timeout: time.Hour}, p)
		synctest.Wait()
		before := time.Now()
		s.Close()
		if time.Since(before) != 0 {
			t.Errorf("Close has taken %s", time.Since(before))
		}
	})
}

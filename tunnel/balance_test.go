package tunnel_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"culvert/tunnel"
	"culvert/tunnel/endpoint"
	"culvert/tunnel/tunneltest"
	"culvert/tunnel/tunneltest/memnet"
)

// shared is an entry (10.0.0.1) with a hop that has several endpoints, and gateways at those (from 10.0.1.1 on), each of which leads on
// to an echo at 10.9.9.9:80.
type shared struct {
	net   *memnet.Net
	ca    *tunneltest.CA
	entry *tunnel.Gateway
	cfg   *tunnel.Config
	log   tunneltest.Log
}

func gateAt(i int) string { return fmt.Sprintf("10.0.1.%d:15008", i+1) }

// gates are the endpoints of n gateways.
func gates(n int) (list []endpoint.EndpointConfig) {
	for i := range n {
		list = append(list, endpoint.EndpointConfig{Address: gateAt(i)})
	}
	return list
}

// newShared starts the entry, and gateways at the first of the endpoints that conf has.
func newShared(t *testing.T, started int, conf endpoint.Config, mend ...func(*tunnel.Env)) *shared {
	s := &shared{net: memnet.New(), ca: tunneltest.NewCA(t)}
	tunneltest.Echo(t, s.net, "10.9.9.9:80")
	for i := range started {
		s.gate(t, i)
	}
	s.cfg = &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "apps", Kind: tunnel.KindSOCKS5, Address: "127.0.0.1:1080"}},
		Hops:      map[string]tunnel.HopConfig{"lb": {Config: conf, Connections: 1}},
		Routes:    []tunnel.RouteConfig{{Via: []string{"lb"}}},
	}
	s.entry = tunneltest.NewGateway(t, s.net, "10.0.0.1", s.ca.Issue(t, "cluster.local", "default", "entry"), s.cfg, nil, func(e *tunnel.Env) {
		for _, f := range mend {
			f(e)
		}
	}, logTo(&s.log))
	return s
}

// gate starts the gateway at one of the endpoints; its service account is gate-1, gate-2.
func (s *shared) gate(t *testing.T, i int) *tunnel.Gateway {
	address := gateAt(i)
	host := strings.TrimSuffix(address, ":15008")
	return tunneltest.NewGateway(t, s.net, host, s.ca.Issue(t, "cluster.local", "default", fmt.Sprintf("gate-%d", i+1)), &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "mesh", Kind: tunnel.KindHBONE, Address: address}},
		Routes:    []tunnel.RouteConfig{{Destinations: []string{"10.9.9.9"}}},
	}, nil, nil, logTo(&s.log))
}

func (s *shared) dial(t *testing.T) *memnet.Conn {
	t.Helper()
	c, err := tunneltest.Dial(t.Context(), s.entry, "apps", "10.9.9.9:80")
	if err != nil {
		t.Fatalf("dial = %v", err)
	}
	return c
}

// hop returns how the endpoints of the hop fare.
func (s *shared) hop(t *testing.T) (tunnel.EndpointsInfo, map[string]endpoint.Info) {
	t.Helper()
	for _, i := range s.entry.Endpoints() {
		if i.Name == "lb" && i.Kind == "hop" {
			all := make(map[string]endpoint.Info)
			for _, e := range i.Endpoints {
				all[e.Address] = e
			}
			return i, all
		}
	}
	t.Fatal("there is no hop lb")
	return tunnel.EndpointsInfo{}, nil
}

func says(t *testing.T, c *memnet.Conn, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		t.Fatalf("read %q, %v, want %q", got, err, text)
	}
}

func TestHopSpreadsFlowsOverEndpoints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShared(t, 3, endpoint.Config{Endpoints: gates(3)})
		var list []*memnet.Conn
		for range 9 {
			c := s.dial(t)
			says(t, c, "hello")
			list = append(list, c)
		}
		_, all := s.hop(t)
		for i := range 3 {
			if e := all[gateAt(i)]; e.Flows != 3 || e.Pending != 0 || e.Connections != 1 {
				t.Errorf("%s has %+v, want 3 flows on a connection", gateAt(i), e)
			}
		}
		for _, c := range list {
			_ = c.Close()
		}
		synctest.Wait()
		if _, all := s.hop(t); all[gateAt(0)].Flows != 0 {
			t.Errorf("%d flows when all are over, want 0", all[gateAt(0)].Flows)
		}
		if !strings.Contains(s.log.String(), "hop=lb endpoint=10.0.1.2:15008") {
			t.Errorf("no record names the endpoint:\n%s", s.log.String())
		}
	})
}

// TestHopTriesAnotherEndpoint has one endpoint that is not there, or not what it should be: no flow fails, and it gets no more of them.
func TestHopTriesAnotherEndpoint(t *testing.T) {
	for _, tc := range []struct {
		name    string
		prepare func(*testing.T, *shared)
		bad     endpoint.EndpointConfig
		why     string
	}{
		{"refuses", nil, endpoint.EndpointConfig{Address: gateAt(1)}, "connection refused"},
		{"hangs", func(_ *testing.T, s *shared) { s.net.Silence(netip.MustParseAddrPort(gateAt(1))) }, endpoint.EndpointConfig{Address: gateAt(1)}, "deadline exceeded"},
		{"accepts and closes", func(t *testing.T, s *shared) {
			tunneltest.Serve(t, s.net, gateAt(1), func(c *memnet.Conn) { _ = c.Close() })
		}, endpoint.EndpointConfig{Address: gateAt(1)}, "TLS handshake"},
		{"accepts and hangs", func(t *testing.T, s *shared) {
			tunneltest.Serve(t, s.net, gateAt(1), func(c *memnet.Conn) { _, _ = io.Copy(io.Discard, c) })
		}, endpoint.EndpointConfig{Address: gateAt(1)}, "deadline exceeded"},
		{"is somebody else", func(t *testing.T, s *shared) { s.gate(t, 1) },
			endpoint.EndpointConfig{Address: gateAt(1), Identities: []string{"spiffe://cluster.local/ns/default/sa/gate-9"}}, "gate-2"},
		{"is a name that is not known", nil, endpoint.EndpointConfig{Address: "gone.example:15008"}, "no such host"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newShared(t, 1, endpoint.Config{Endpoints: []endpoint.EndpointConfig{{Address: gateAt(0)}, tc.bad}})
				if tc.prepare != nil {
					tc.prepare(t, s)
				}
				for range 12 {
					c := s.dial(t)
					says(t, c, "hello")
					defer c.Close()
				}
				info, all := s.hop(t)
				bad := all[tc.bad.Address]
				if bad.Health != "ejected" || !strings.Contains(bad.LastFailure, tc.why) || bad.Flows != 0 || bad.Pending != 0 || bad.Connections != 0 {
					t.Errorf("it has %+v, want that it is ejected (%s)", bad, tc.why)
				}
				if info.Stats.Retries < 3 || info.Stats.Ejections != 1 {
					t.Errorf("stats = %+v, want 3 retries and an ejection", info.Stats)
				}
			})
		})
	}
}

// TestHopWithoutGoodEndpoints says what the last one said.
func TestHopWithoutGoodEndpoints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShared(t, 0, endpoint.Config{Endpoints: gates(4), Retries: 1})
		for range 10 {
			_, err := tunneltest.Dial(t.Context(), s.entry, "apps", "10.9.9.9:80")
			if tunnel.CauseOf(err) != tunnel.CauseRefused || !strings.Contains(err.Error(), "hop lb at 10.0.1.") {
				t.Fatalf("dial = %v, want the refusal of an endpoint", err)
			}
		}
		info, _ := s.hop(t)
		if info.Stats.Retries != 10 || info.Stats.Ejected != 2 || info.Stats.Flows != 0 {
			t.Errorf("stats = %+v, want one retry for each flow and half of them ejected", info.Stats)
		}
	})
}

// TestRefusalIsNotTriedElsewhere: the hop lives, and what it says holds.
func TestRefusalIsNotTriedElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShared(t, 2, endpoint.Config{Endpoints: gates(2)})
		for _, target := range []string{"10.9.9.9:81", "10.8.8.8:80"} { // nobody listens; no route
			_, err := tunneltest.Dial(t.Context(), s.entry, "apps", target)
			var refused *tunnel.RefusedError
			if !errors.As(err, &refused) {
				t.Errorf("dial %s = %v, want a refusal", target, err)
			}
		}
		info, _ := s.hop(t)
		if info.Stats.Picks != 2 || info.Stats.Retries != 0 || info.Stats.Healthy != 2 {
			t.Errorf("stats = %+v, want two picks, and nobody blamed", info.Stats)
		}
	})
}

func TestHopLimits(t *testing.T) {
	for _, tc := range []struct {
		name   string
		limits endpoint.LimitsConfig
		want   int
	}{
		{"flows", endpoint.LimitsConfig{Flows: 5}, 5},
		{"flows of each", endpoint.LimitsConfig{Endpoint: endpoint.EndpointLimitsConfig{Flows: 2}}, 4},
		{"connections", endpoint.LimitsConfig{Connections: 1}, 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newShared(t, 2, endpoint.Config{Endpoints: gates(2), Limits: tc.limits})
				if tc.limits.Connections > 0 {
					s.cfg.Hops["lb"] = tunnel.HopConfig{Config: s.cfg.Hops["lb"].Config, Connections: 1, StreamsPerConnection: 3}
					if err := s.entry.Reload(t.Context(), s.cfg); err != nil {
						t.Fatal(err)
					}
				}
				var open []*memnet.Conn
				refused := 0
				for range 20 {
					c, err := tunneltest.Dial(t.Context(), s.entry, "apps", "10.9.9.9:80")
					if err == nil {
						open = append(open, c)
						continue
					}
					refused++
					if tunnel.CauseOf(err) != tunnel.CauseCircuit {
						t.Fatalf("dial = %v, want the limit", err)
					}
				}
				if len(open) != tc.want {
					t.Errorf("%d of 20 flows were taken, want %d", len(open), tc.want)
				}
				for _, c := range open {
					_ = c.Close()
				}
				synctest.Wait()
				says(t, s.dial(t), "there is room again")
				if s.entry.Stats().Ended["circuit"] != int64(refused) {
					t.Errorf("ended = %v, want %d at the limit", s.entry.Stats().Ended, refused)
				}
			})
		})
	}
}

// TestReloadChangesEndpoints: a flow that lives stays where it is, new ones go to the new endpoint, and the connection to the old one is
// not kept when it is over.
func TestReloadChangesEndpoints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShared(t, 2, endpoint.Config{Endpoints: gates(1)})
		c := s.dial(t)
		says(t, c, "before")
		for i := range 5 {
			s.cfg.Hops["lb"] = tunnel.HopConfig{Connections: 1, Config: endpoint.Config{Endpoints: gates(2)[1:], Retries: i}}
			if err := s.entry.Reload(t.Context(), s.cfg); err != nil {
				t.Fatal(err)
			}
		}
		says(t, c, "after")
		other := s.dial(t)
		says(t, other, "new")
		info, all := s.hop(t)
		if len(all) != 1 || all[gateAt(1)].Flows != 1 || info.Stats.Flows != 2 {
			t.Errorf("endpoints = %+v, %d flows in all, want one with a flow, and 2", all, info.Stats.Flows)
		}
		_ = c.Close()
		time.Sleep(time.Minute)
		if info, _ := s.hop(t); info.Stats.Flows != 1 || info.Stats.Connections != 1 {
			t.Errorf("stats = %+v, want the new flow on the new connection only", info.Stats)
		}
	})
}

// TestHopOfDNS: flows wait for the first answer, and follow the next ones.
func TestHopOfDNS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var answer atomic.Pointer[[]string]
		answer.Store(&[]string{"10.0.1.1", "127.0.0.1", "169.254.169.254"})
		s := newShared(t, 2, endpoint.Config{DNS: endpoint.DNSConfig{Name: "gates.internal", Port: 15008}}, func(e *tunnel.Env) {
			e.Lookup = func(_ context.Context, name string, _ endpoint.Kind) (list []endpoint.Answer, _ time.Duration, _ error) {
				time.Sleep(time.Second)
				for _, a := range *answer.Load() {
					list = append(list, endpoint.Answer{Addr: netip.MustParseAddr(a)})
				}
				return list, 5 * time.Second, nil
			}
		})
		says(t, s.dial(t), "first")
		if info, all := s.hop(t); len(all) != 1 || info.Stats.Guarded != 2 {
			t.Errorf("endpoints = %+v, guarded = %d, want the one of another host", all, info.Stats.Guarded)
		}
		answer.Store(&[]string{"10.0.1.2"})
		time.Sleep(10 * time.Second)
		says(t, s.dial(t), "second")
		if _, all := s.hop(t); all[gateAt(1)].Flows != 1 {
			t.Errorf("endpoints = %+v, want a flow to the second", all)
		}
	})
}

func TestHopOfDNSWithoutAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShared(t, 1, endpoint.Config{DNS: endpoint.DNSConfig{Name: "gates.internal", Port: 15008}})
		_, err := tunneltest.Dial(t.Context(), s.entry, "apps", "10.9.9.9:80")
		if tunnel.CauseOf(err) != tunnel.CauseNoEndpoint {
			t.Errorf("dial = %v, want that there is no endpoint", err)
		}
		s.net.Name("gates.internal", netip.MustParseAddr("10.0.1.1"))
		time.Sleep(time.Minute)
		says(t, s.dial(t), "found")
	})
}

// TestHopIsPinged: what TLS shows counts, and an endpoint that is down gets no flows.
func TestHopIsPinged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list := gates(3)
		list[1].Identities = []string{"spiffe://cluster.local/ns/default/sa/gate-9"}
		s := newShared(t, 2, endpoint.Config{Endpoints: list, Health: endpoint.HealthConfig{Probe: endpoint.ProbePing}})
		time.Sleep(time.Minute)
		_, all := s.hop(t)
		if got := all[gateAt(0)].Health + all[gateAt(1)].Health + all[gateAt(2)].Health; got != "okdowndown" {
			t.Errorf("health = %s, want ok, down (another identity), down (not there)", got)
		}
		for range 5 {
			says(t, s.dial(t), "hello")
		}
		if info, _ := s.hop(t); info.Stats.Retries != 0 {
			t.Errorf("%d retries, want none", info.Stats.Retries)
		}
		s.gate(t, 2)
		time.Sleep(time.Minute)
		if _, all := s.hop(t); all[gateAt(2)].Health != "ok" {
			t.Errorf("health when it is there = %+v, want ok", all[gateAt(2)])
		}
	})
}

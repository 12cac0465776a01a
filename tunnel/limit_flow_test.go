package tunnel_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"culvert/pki/spiffe"
	"culvert/policy"
	"culvert/tunnel"
	"culvert/tunnel/tunneltest"
	"culvert/tunnel/tunneltest/memnet"
)

// obliged is a Decider that adds obligations, by the port of the destination, to what the policy of the configuration allows.
type obliged struct {
	base *policy.Policy
	by   map[uint16]*policy.Obligations
}

func (o *obliged) Decide(r *policy.Request) policy.Decision {
	d := o.base.Decide(r)
	if d.Allow {
		d.Obligations = o.by[r.Port]
	}
	return d
}

// oblige is for Options.ExitEnv and the like.
func oblige(by map[uint16]*policy.Obligations) func(*tunnel.Env) {
	return func(e *tunnel.Env) {
		e.Decide = func(base *policy.Policy) (tunnel.Decider, error) { return &obliged{base, by}, nil }
	}
}

// limits is one limit as obligations.
func limits(l policy.Limit) *policy.Obligations {
	return &policy.Obligations{Limits: []*policy.Limit{&l}}
}

// wantCause checks why a flow was refused, here or by a hop.
func wantCause(t *testing.T, what string, err error, want tunnel.Cause) {
	t.Helper()
	if err == nil || tunnel.CauseOf(err) != want {
		t.Errorf("%s = %v, want %s", what, err, want)
	}
}

// A refusal names the limit to the operator and its rule to the peer, and is no cause to try elsewhere.
func TestLimitRefuses(t *testing.T) {
	slow := policy.Limit{Name: "two-at-once", Place: policy.Place{File: "p.yaml", Line: 3}, Flows: 2}
	p := tunneltest.NewPair(t, tunneltest.Options{ExitEnv: oblige(map[uint16]*policy.Obligations{80: limits(slow)})})
	p.Echo(t, "10.0.0.2:80")
	p.Echo(t, "10.0.0.2:81")
	var apps []*memnet.Conn
	for range 2 {
		app, err := p.Dial(testContext(t), "10.0.0.2:80")
		if err != nil {
			t.Fatal(err)
		}
		apps = append(apps, app)
	}
	err := p.Refusal(testContext(t), "10.0.0.2:80")
	wantCause(t, "the third", err, tunnel.CauseLimited)
	var refused *tunnel.RefusedError
	if !errors.As(err, &refused) || refused.Status != 503 || refused.Statuses[0].Rule != "two-at-once" || refused.Statuses[0].Error != "connection_limit_reached" {
		t.Errorf("the third = %+v, want 503, the rule and connection_limit_reached", refused)
	}
	if app, err := p.Dial(testContext(t), "10.0.0.2:81"); err != nil {
		t.Errorf("what the limit is not for = %v", err)
	} else {
		wantEcho(t, app, "hello")
	}
	var list []tunnel.FlowInfo
	waitUntil(t, "the two flows alone", func() bool { list = p.Exit.Flows(10); return len(list) == 2 })
	text, err := json.Marshal(list[0].Limits)
	if want := `[{"rule":"two-at-once","place":"p.yaml:3","counts":"spiffe://cluster.local/ns/default/sa/entry","flows":2,"max_flows":2}]`; string(text) != want || err != nil {
		t.Errorf("/flows has %s, %v, want %s", text, err, want)
	}
	wantEcho(t, apps[0], "hello")
	waitUntil(t, "its end", func() bool { return p.Exit.Stats().Active == 1 })
	app, err := p.Dial(testContext(t), "10.0.0.2:80")
	if err != nil {
		t.Errorf("when one has ended another is refused: %v", err)
	} else {
		wantEcho(t, app, "hello")
	}
	wantEcho(t, apps[1], "hello")
	p.Entry.Close()
	p.Exit.Close()
	if log := p.Log.String(); !strings.Contains(log, `rule=two-at-once reason=limited err="at a limit of policy: there are 2 flows already, as many as may be, for spiffe://cluster.local/ns/default/sa/entry (p.yaml:3)"`) {
		t.Errorf("the record does not name the limit:\n%s", log)
	}
	if s := p.Exit.Stats(); s.Ended["limited"] != 1 || s.Limited["two-at-once"] != 1 || s.LimitCounts != 0 || p.Entry.Stats().Ended["limited"] != 1 {
		t.Errorf("%d flows ended as limited, %v, %d counts are left; want 1, 1, 0", s.Ended["limited"], s.Limited, s.LimitCounts)
	}
}

// Flows that wait for their rate, up and down, leave the others of their connection alone, and are drawn from no more than
// what fits on the way.
func TestLimitedBesideUnlimited(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds; make test has it")
	}
	p := tunneltest.NewPair(t, tunneltest.Options{ExitEnv: oblige(map[uint16]*policy.Obligations{
		81: limits(policy.Limit{Name: "up", BytesPerSecond: 1}), 82: limits(policy.Limit{Name: "down", BytesPerSecond: 1}),
	})})
	p.Echo(t, "10.0.0.2:80")
	var sunk, poured, sent atomic.Int64
	tunneltest.Serve(t, p.Net, "10.0.0.2:81", func(c *memnet.Conn) { _, _ = io.Copy(countWriter{&sunk}, c) })
	tunneltest.Serve(t, p.Net, "10.0.0.2:82", func(c *memnet.Conn) { pour(c, &poured) })
	var wg sync.WaitGroup
	var apps []*memnet.Conn
	const flows = 20
	for range flows {
		up, err := p.Dial(testContext(t), "10.0.0.2:81")
		if err != nil {
			t.Fatal(err)
		}
		down, err := p.Dial(testContext(t), "10.0.0.2:82")
		if err != nil {
			t.Fatal(err)
		}
		apps = append(apps, up, down)
		wg.Go(func() { pour(up, &sent) })                  // ends when the app is closed below
		wg.Go(func() { _, _ = io.Copy(io.Discard, down) }) // as well
	}
	const waiting = 3 * flows // those also that read a silent destination in memory, as nobody knows that it is silent
	waitUntil(t, "all of them waiting", func() bool { return p.Exit.Stats().LimitWaiting == waiting })
	want := make([]byte, 8<<20)
	rand.Read(want)
	for range 2 {
		app, err := p.Dial(testContext(t), "10.0.0.2:80")
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() { // ends with its writes, which wantEcho's kind of reading below waits for
			_, _ = app.Write(want)
			_ = app.CloseWrite()
		})
		if got, err := io.ReadAll(app); !bytes.Equal(got, want) || err != nil {
			t.Errorf("beside flows that wait %d of %d bytes came back, %v", len(got), len(want), err)
		}
		_ = app.Close()
	}
	if n := sunk.Load(); n > 64<<10 {
		t.Errorf("%d bytes have passed at a byte a second", n)
	}
	t.Logf("drawn from each app that waits: %d bytes, from each destination %d", sent.Load()/flows, poured.Load()/flows)
	if sent.Load() > flows*512<<10 || poured.Load() > flows*512<<10 {
		t.Errorf("%d and %d bytes were drawn from %d flows that wait", sent.Load(), poured.Load(), flows)
	}
	if s := p.Exit.Stats(); s.LimitWaiting != waiting || s.LimitWaits == 0 {
		t.Errorf("%d directions wait after %d waits, want all %d", s.LimitWaiting, s.LimitWaits, waiting)
	}
	for _, app := range apps {
		_ = app.SetLinger(0)
		_ = app.Close()
	}
	p.Exit.Close()
	wg.Wait()
	if s := p.Exit.Stats(); s.LimitWaiting != 0 {
		t.Errorf("%d directions wait after the end", s.LimitWaiting)
	}
}

// pour writes to c until that fails.
func pour(c net.Conn, n *atomic.Int64) {
	for buf := make([]byte, 16<<10); ; {
		m, err := c.Write(buf)
		if n.Add(int64(m)); err != nil {
			return
		}
	}
}

// countWriter counts what is written to it.
type countWriter struct{ n *atomic.Int64 }

func (w countWriter) Write(p []byte) (int, error) {
	w.n.Add(int64(len(p)))
	return len(p), nil
}

// caught is a flow that a test hands to Carry.
type caught struct {
	app, end *memnet.Conn
	answer   chan error
}

func (c *caught) Accept(*tunnel.Flow) (tunnel.Conn, []byte, error) {
	c.answer <- nil
	return tunnel.NewConn(c.end), nil, nil
}
func (c *caught) Refuse(_ *tunnel.Flow, err error) { c.answer <- err }
func (c *caught) Gone() <-chan struct{}            { return nil }

// carryAs hands g a flow of peer to target and returns the app's end.
func carryAs(g *tunnel.Gateway, peer spiffe.ID, source netip.AddrPort, target tunnel.Target) (*memnet.Conn, error) {
	c := &caught{answer: make(chan error, 1)}
	c.app, c.end = memnet.Pipe(source, netip.MustParseAddrPort("127.0.0.1:1080"))
	go g.Carry(&tunnel.Flow{Listener: "apps", Way: "test", Source: source, Peer: peer, Target: target}, c) // ends with the flow
	err := <-c.answer
	return c.app, err
}

// Ten thousand flows of one identity, and of one network of addresses, take what their limit gives them. Others do not
// notice, and when all has ended nothing is counted.
func TestHostileIdentityOpensFlows(t *testing.T) {
	const tries, may = 10_000, 50
	ca, n := tunneltest.NewCA(t), memnet.New()
	self := ca.Issue(t, "cluster.local", "default", "gw")
	tunneltest.Echo(t, n, "10.0.0.9:80")
	g := tunneltest.NewGateway(t, n, "10.0.0.1", self, &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "apps", Kind: tunnel.KindSOCKS5, Address: "127.0.0.1:1080"}},
		Routes:    []tunnel.RouteConfig{{Destinations: []string{"10.0.0.9/32"}, From: "any"}},
	}, nil, oblige(map[uint16]*policy.Obligations{80: limits(policy.Limit{Name: "fair", Flows: may, BytesPerSecond: 1 << 30})}), logTo(&tunneltest.Log{}))
	target, err := tunnel.ParseAuthority("10.0.0.9:80")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		peer   spiffe.ID
		source func(i int) netip.AddrPort
	}{
		{"an identity", ca.Issue(t, "cluster.local", "default", "hostile").ID, func(i int) netip.AddrPort {
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), 1)
		}},
		{"a network", spiffe.ID{}, func(i int) netip.AddrPort {
			a := netip.MustParseAddr("2001:db8::").As16()
			a[14], a[15] = byte(i>>8), byte(i)
			return netip.AddrPortFrom(netip.AddrFrom16(a), 1)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var wg sync.WaitGroup
			var mu sync.Mutex
			var apps []*memnet.Conn
			var others atomic.Int64
			for i := range tries {
				wg.Go(func() { // ends with the answer
					app, err := carryAs(g, tt.peer, tt.source(i), target)
					if err != nil {
						if tunnel.CauseOf(err) != tunnel.CauseLimited {
							others.Add(1)
						}
						return
					}
					mu.Lock()
					defer mu.Unlock()
					apps = append(apps, app)
				})
			}
			wg.Wait()
			if len(apps) != may || others.Load() != 0 {
				t.Errorf("%d flows live, %d were refused for another reason, want %d and 0", len(apps), others.Load(), may)
			}
			app, err := carryAs(g, self.ID, tt.source(0), target)
			if err != nil {
				t.Fatalf("another identity is refused: %v", err)
			}
			wantEcho(t, app, "hello")
			for i, app := range apps {
				if i%2 == 0 {
					_ = app.SetLinger(0)
				}
				_ = app.Close()
			}
			waitUntil(t, "the end of all", func() bool { return g.Stats().Active == 0 })
			if app, err = carryAs(g, tt.peer, tt.source(1), target); err != nil {
				t.Fatalf("when all have ended it is refused still: %v", err)
			}
			wantEcho(t, app, "hello")
		})
	}
}

// On sockets, in every way that bytes take there: what is limited arrives whole, and has waited.
func TestTCPLimited(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds; make test has it")
	}
	const size, perSecond = 3 << 20, 16 << 20 // with a burst of 4 MiB, for 6 MiB both ways
	for _, tt := range []struct {
		name          string
		entry, direct bool
	}{{"at the exit", false, false}, {"at the entry", true, false}, {"without a hop", true, true}} {
		for _, when := range []string{"from the beginning", "after a reload"} {
			t.Run(tt.name+", "+when, func(t *testing.T) {
				limited := make(map[uint16]*policy.Obligations)
				p := newTCPPairWith(t, func(e *tunnel.Env) {
					// What is limited is decided when the configuration is loaded.
					e.Decide = func(base *policy.Policy) (tunnel.Decider, error) {
						by := make(map[uint16]*policy.Obligations)
						for port, o := range limited {
							by[port] = o
						}
						return &obliged{base, by}, nil
					}
				})
				g, config := p.exit, tunnel.Config{
					Listeners: []tunnel.ListenerConfig{{Name: "mesh", Kind: tunnel.KindHBONE, Address: "127.0.0.1:0"}},
					Routes:    []tunnel.RouteConfig{{Destinations: []string{"local"}}},
				}
				if tt.entry {
					g, config = p.entry, tunnel.Config{
						Listeners: []tunnel.ListenerConfig{{Name: "plain", Kind: tunnel.KindForward, Address: "127.0.0.1:0", To: p.dest.Addr().String()}},
						Routes:    []tunnel.RouteConfig{{Via: []string{p.exit.Addr("mesh").String()}}},
					}
				}
				if tt.direct {
					config.Routes[0] = tunnel.RouteConfig{Destinations: []string{"127.0.0.1/32"}}
				}
				port := uint16(p.dest.Addr().(*net.TCPAddr).Port)
				if when == "from the beginning" {
					limited[port] = limits(policy.Limit{Name: "slow", BytesPerSecond: perSecond})
				}
				if err := g.Reload(testContext(t), &config); err != nil {
					t.Fatal(err)
				}
				app, server := p.open(t)
				bothWays(t, app, server, size, false)
				if when == "after a reload" {
					if n := g.Stats().LimitWaits; n != 0 {
						t.Errorf("without a limit bytes have waited %d times", n)
					}
					limited[port] = limits(policy.Limit{Name: "slow", BytesPerSecond: perSecond})
					if err := g.Reload(testContext(t), &config); err != nil {
						t.Fatal(err)
					}
				}
				bothWays(t, app, server, size, true)
				waitUntil(t, "the end", func() bool { return g.Stats().Active == 0 })
				if s := g.Stats(); s.LimitWaits == 0 || s.LimitWaiting != 0 || s.BytesIn != 2*size || s.BytesOut != 2*size {
					t.Errorf("%d waits, %d wait still, %d and %d bytes were carried", s.LimitWaits, s.LimitWaiting, s.BytesIn, s.BytesOut)
				}
			})
		}
	}
}

// bothWays sends size bytes each way, and then maybe the end, and checks what arrives.
func bothWays(t *testing.T, a, b *net.TCPConn, size int, end bool) {
	t.Helper()
	want := make([]byte, size)
	rand.Read(want)
	var wg sync.WaitGroup
	for _, pair := range [2][2]*net.TCPConn{{a, b}, {b, a}} {
		wg.Go(func() { // ends with its writes; waited for below
			if _, err := pair[0].Write(want); err != nil {
				t.Errorf("Write = %v", err)
			}
			if end {
				_ = pair[0].CloseWrite()
			}
		})
		wg.Go(func() { // ends with its reads, which have a deadline
			got := make([]byte, size)
			if _, err := io.ReadFull(pair[1], got); err != nil || !bytes.Equal(got, want) {
				t.Errorf("other bytes arrived, or %v", err)
			}
			if !end {
				return
			}
			if n, err := pair[1].Read(got); n != 0 || err != io.EOF {
				t.Errorf("read %d bytes, %v, want the end", n, err)
			}
		})
	}
	wg.Wait()
}

// Datagrams are counted as bytes are: the rate delays them, and the quota ends the flow.
func TestUDPLimited(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds; make test has it")
	}
	for _, tt := range []struct {
		name         string
		limit        policy.Limit
		reload, ends bool
	}{
		{"rate", policy.Limit{Name: "slow", BytesPerSecond: 50_000}, false, false},
		{"rate, after a reload", policy.Limit{Name: "slow", BytesPerSecond: 50_000}, true, false},
		{"quota", policy.Limit{Name: "slow", Quota: 20_000}, false, true},
		{"quota, after a reload", policy.Limit{Name: "slow", Quota: 20_000}, true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ca, to := tunneltest.NewCA(t), serveEcho(t)
			id := ca.Issue(t, "cluster.local", "default", "gw")
			limited := !tt.reload
			env := tunnel.Env{Self: id.Self, Decide: func(base *policy.Policy) (tunnel.Decider, error) {
				by := make(map[uint16]*policy.Obligations)
				if limited {
					by[to.Port()] = limits(tt.limit)
				}
				return &obliged{base, by}, nil
			}}
			config := &tunnel.Config{
				Listeners: []tunnel.ListenerConfig{{Name: "plain", Kind: tunnel.KindForward, Network: "udp", Address: "127.0.0.1:0", To: to.String()}},
				Routes:    []tunnel.RouteConfig{{Destinations: []string{to.String()}}},
			}
			g, err := tunnel.New(config, env)
			if err == nil {
				err = g.Start(context.Background())
			}
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			nc, err := net.Dial("udp", g.Addr("plain").String())
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			buf := make([]byte, 1000)
			if tt.reload {
				for range 10 { // more than the limit would let pass
					_, _ = nc.Write(buf[:100])
					_ = nc.SetReadDeadline(time.Now().Add(time.Second))
					_, _ = nc.Read(buf)
				}
				limited = true
				if err := g.Reload(testContext(t), config); err != nil {
					t.Fatal(err)
				}
			}
			// 30,000 bytes both ways, of which a quarter of a second's may pass at once.
			answered := 0
			for range 15 {
				if _, err := nc.Write(buf); err != nil {
					break // the socket is closed
				}
				if err := nc.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
					t.Fatal(err)
				}
				if n, err := nc.Read(buf); n == len(buf) && err == nil {
					answered++
				} else if g.Stats().Limited["slow"] > 0 {
					break
				}
			}
			s := g.Stats()
			if tt.ends && (s.Limited["slow"] == 0 || answered > 10 || answered < 7) {
				t.Errorf("%d datagrams were answered, limited: %v, want some ten and then an end", answered, s.Limited)
			}
			if !tt.ends && (s.LimitWaits == 0 || answered < 14) {
				t.Errorf("%d datagrams were answered after %d waits, want almost all after some", answered, s.LimitWaits)
			}
		})
	}
}

// serveEcho answers every datagram with itself, until the test ends.
func serveEcho(t *testing.T) netip.AddrPort {
	t.Helper()
	pc, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	go func() { // ends with pc
		for buf := make([]byte, 2000); ; {
			n, from, err := pc.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	return pc.LocalAddr().(*net.UDPAddr).AddrPort()
}

// A flow to a name counts in the limits of the addresses that it may go to, and not in those of the name, which are asked
// for before they are known.
func TestLimitOfResolvedAddresses(t *testing.T) {
	var asked sync.Map
	limit := func(name string) *policy.Obligations { return limits(policy.Limit{Name: name, Flows: 1}) }
	by := map[netip.Addr]*policy.Obligations{
		{}: limit("unresolved"), netip.MustParseAddr("10.0.0.2"): limit("one"), netip.MustParseAddr("10.7.0.9"): limit("other"),
	}
	p := tunneltest.NewPair(t, tunneltest.Options{
		Exit: func(c *tunnel.Config) { c.Routes = []tunnel.RouteConfig{{Hosts: []string{"shop.example"}}} },
		ExitEnv: func(e *tunnel.Env) {
			e.Resolve = func(context.Context, string) ([]netip.Addr, error) {
				return []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.7.0.9")}, nil
			}
			e.Decide = func(*policy.Policy) (tunnel.Decider, error) {
				return deciderFunc(func(r *policy.Request) policy.Decision {
					asked.Store(r.Addr, r.Unresolved)
					return policy.Decision{Allow: true, Policy: "mine", Rule: "all", Obligations: by[r.Addr]}
				}), nil
			}
		},
	})
	p.Echo(t, "10.0.0.2:80")
	p.Echo(t, "10.7.0.9:80")
	app, err := p.Dial(testContext(t), "shop.example:80")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range p.Exit.Flows(1)[0].Limits {
		got = append(got, l.Rule)
	}
	if text := strings.Join(got, " "); text != "one other" {
		t.Errorf("the flow counts in %q, want those of both addresses", text)
	}
	wantCause(t, "a second flow", p.Refusal(testContext(t), "shop.example:80"), tunnel.CauseLimited)
	wantEcho(t, app, "hello")
}

// A flow that a rule watches is told of when it begins, and its record says so.
func TestAudit(t *testing.T) {
	watched := &policy.Obligations{Audit: true}
	p := tunneltest.NewPair(t, tunneltest.Options{ExitEnv: oblige(map[uint16]*policy.Obligations{80: watched})})
	p.Echo(t, "10.0.0.2:80")
	p.Echo(t, "10.0.0.2:81")
	app, err := p.Dial(testContext(t), "10.0.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	began := `msg="flow begins" flow=1 listener=mesh way=connect`
	log := p.Log.String()
	if !strings.Contains(log, began) || !strings.Contains(log, "peer=spiffe://cluster.local/ns/default/sa/entry dst=10.0.0.2:80 rule=same-namespace audit=true\n") {
		t.Errorf("while it lives the log has\n%s", log)
	}
	if f := p.Exit.Flows(1); !f[0].Audit {
		t.Errorf("/flows has %+v, want audit", f)
	}
	wantEcho(t, app, "hello")
	if app, err = p.Dial(testContext(t), "10.0.0.2:81"); err != nil {
		t.Fatal(err)
	}
	wantEcho(t, app, "hello")
	p.Entry.Close()
	p.Exit.Close()
	if log = p.Log.String(); strings.Count(log, "audit=true") != 2 || strings.Count(log, "rule=same-namespace audit=true bytes_in=5") != 1 {
		t.Errorf("want one record with audit:\n%s", log)
	}
}

package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"culvert/pki/spiffe"
	"culvert/tunnel/tunneltest/memnet"
)

func TestInterleave(t *testing.T) {
	parse := func(list ...string) (addrs []netip.Addr) {
		for _, s := range list {
			addrs = append(addrs, netip.MustParseAddr(s))
		}
		return addrs
	}
	for _, tt := range []struct {
		name     string
		in, want []netip.Addr
	}{
		{"families take turns", parse("2001:db8::1", "2001:db8::2", "192.0.2.1", "192.0.2.2"), parse("2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2")},
		{"the first address is of IPv4", parse("192.0.2.1", "192.0.2.2", "2001:db8::1"), parse("192.0.2.1", "2001:db8::1", "192.0.2.2")},
		{"one family", parse("192.0.2.1", "192.0.2.2"), parse("192.0.2.1", "192.0.2.2")},
		{"mapped forms are IPv4", parse("::ffff:192.0.2.1", "2001:db8::1", "192.0.2.2"), parse("192.0.2.1", "2001:db8::1", "192.0.2.2")},
		{"none", nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := interleave(tt.in); !slices.Equal(got, tt.want) {
				t.Errorf("interleave = %v, want %v", got, tt.want)
			}
		})
	}
	var many []netip.Addr
	for i := range 50 {
		many = append(many, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
	}
	if got := interleave(many); len(got) != maxAddrs {
		t.Errorf("interleave of 50 addresses keeps %d, want %d", len(got), maxAddrs)
	}
}

// scriptedDial answers each address as the test says, and keeps when it was asked.
type scriptedDial struct {
	start time.Time
	after map[string]time.Duration // how long a connection takes; negative: it is refused after that
	ended chan string
	mu    sync.Mutex
	asked []string // guarded by mu
}

func (d *scriptedDial) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	addr := to.Addr().String()
	d.mu.Lock()
	d.asked = append(d.asked, fmt.Sprintf("%s@%v", addr, time.Since(d.start)))
	d.mu.Unlock()
	wait, ok := d.after[addr]
	defer func() { d.ended <- addr }()
	if !ok {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	select {
	case <-time.After(max(wait, -wait)):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if wait < 0 {
		return nil, syscall.ECONNREFUSED
	}
	c, _ := memnet.Pipe(netip.AddrPortFrom(to.Addr(), 1), to)
	return c, nil
}

func TestDialAny(t *testing.T) {
	const ms = time.Millisecond
	six, four, four2 := "2001:db8::1", "192.0.2.1", "192.0.2.2"
	for _, tt := range []struct {
		name  string
		addrs []string
		after map[string]time.Duration
		won   string // "" for an error
		took  time.Duration
		asked []string
	}{
		{"one address", []string{four}, map[string]time.Duration{four: 10 * ms}, four, 10 * ms, []string{four + "@0s"}},
		{"the first is fast", []string{six, four}, map[string]time.Duration{six: 10 * ms, four: ms}, six, 10 * ms, []string{six + "@0s"}},
		{"the first is silent", []string{six, four}, map[string]time.Duration{four: 10 * ms}, four, 260 * ms, []string{six + "@0s", four + "@250ms"}},
		{"the first refuses", []string{six, four}, map[string]time.Duration{six: -10 * ms, four: 10 * ms}, four, 20 * ms, []string{six + "@0s", four + "@10ms"}},
		{"the first is slow and wins", []string{six, four}, map[string]time.Duration{six: 260 * ms, four: 100 * ms}, six, 260 * ms, []string{six + "@0s", four + "@250ms"}},
		{"all refuse", []string{six, four, four2}, map[string]time.Duration{six: -10 * ms, four: -10 * ms, four2: -10 * ms}, "", 30 * ms, []string{six + "@0s", four + "@10ms", four2 + "@20ms"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &scriptedDial{start: time.Now(), after: tt.after, ended: make(chan string, 10)}
				var addrs []netip.Addr
				for _, s := range tt.addrs {
					addrs = append(addrs, netip.MustParseAddr(s))
				}
				c, err := dialAny(t.Context(), d.dial, addrs, 80)
				if took := time.Since(d.start); took != tt.took || !slices.Equal(d.asked, tt.asked) {
					t.Errorf("dialled %v in %v, want %v in %v", d.asked, took, tt.asked, tt.took)
				}
				if len(d.ended) != len(d.asked) {
					t.Errorf("%d of %d dials have ended when dialAny returns, want all", len(d.ended), len(d.asked))
				}
				switch {
				case tt.won == "" && !errors.Is(err, syscall.ECONNREFUSED):
					t.Errorf("dialAny = %v, want the error of the first address", err)
				case tt.won != "" && err != nil:
					t.Errorf("dialAny = %v, want a connection", err)
				case err == nil:
					if got := addrPort(c.RemoteAddr()).Addr().String(); got != tt.won {
						t.Errorf("connected to %s, want %s", got, tt.won)
					}
				}
			})
		})
	}
	if _, err := dialAny(t.Context(), nil, nil, 80); err == nil {
		t.Error("dialAny without addresses succeeded")
	}
}

// What a decision costs: no allocation for a flow that passes.
func TestDecideAllocs(t *testing.T) {
	self, err := spiffe.New("cluster.local", "default", "gw")
	if err != nil {
		t.Fatal(err)
	}
	c := soundConfig()
	p, err := compile(c, self)
	if err != nil {
		t.Fatal(err)
	}
	g := &Gateway{env: Env{Self: func() spiffe.ID { return self }}}
	f := &Flow{Listener: "apps", Peer: self, Target: Target{Host: "orders.shop.svc", Port: 80}}
	f.prepare(g, 1, p)
	if n := testing.AllocsPerRun(100, func() {
		if err := g.decide(f); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("decide allocates %v times, want 0", n)
	}
	if f.via == nil || f.via.chain.name != "lb,east" || f.rule != "same-namespace" {
		t.Errorf("decided route %+v, rule %q, want lb,east by same-namespace", f.via, f.rule)
	}
}

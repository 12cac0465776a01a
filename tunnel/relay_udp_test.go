package tunnel

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"culvert/pki/spiffe"
	"culvert/tunnel/datagram"
	"culvert/tunnel/tunneltest/memnet"
)

// idleUDPFlow is a flow of datagrams on which nothing moves, between a socket, if at is true, and a stream that does not
// answer. carried are the datagrams that the socket has had both ways.
func idleUDPFlow(t *testing.T, at bool, carried [2]int64, limits TimeoutConfig) (*Gateway, *Flow) {
	t.Helper()
	g, err := New(&Config{}, Env{Self: func() spiffe.ID { return spiffe.ID{} }})
	if err != nil {
		t.Fatal(err)
	}
	a, b := memnet.Pipe(netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2"))
	accepted, opened := Conn(newFakeStream(a)), Conn(newFakeStream(b))
	if at {
		nc, err := net.Dial("udp", "127.0.0.1:9")
		if err != nil {
			t.Fatal(err)
		}
		end := &packetEnd{datagram.New(nc, nil, g.longCapsules.For("peer"))}
		end.Stats().Received.Store(carried[0])
		end.Stats().Sent.Store(carried[1])
		accepted = end
	}
	f := &Flow{UDP: true}
	f.prepare(g, 1, testPlan(limits))
	g.flows.add(f)
	if !f.stand(accepted, opened) {
		t.Fatal("the flow does not stand")
	}
	t.Cleanup(func() {
		g.flows.remove(f)
		accepted.Close()
		opened.Close()
		g.Close()
	})
	return g, f
}

// A flow of datagrams ends by itself when it is idle; a peer that does not go along cannot keep it. Between two gateways
// only the limit for all flows counts.
func TestIdleUDPFlow(t *testing.T) {
	for _, tt := range []struct {
		name      string
		socket    bool
		carried   [2]int64
		limits    TimeoutConfig
		live, cut time.Duration // 0: never
	}{
		{"at a socket", true, [2]int64{1, 1}, TimeoutConfig{}, 2*time.Minute - time.Second, 2*time.Minute + 6*time.Second},
		{"not answered", true, [2]int64{9, 0}, TimeoutConfig{}, 29 * time.Second, 36 * time.Second},
		{"not asked", true, [2]int64{0, 9}, TimeoutConfig{}, 29 * time.Second, 36 * time.Second},
		{"not answered, with a shorter limit", true, [2]int64{9, 0}, TimeoutConfig{UDPIdle: 10 * time.Second}, 9 * time.Second, 16 * time.Second},
		{"at a socket, for ever", true, [2]int64{}, TimeoutConfig{UDPIdle: -1}, time.Hour, 0},
		{"between two", false, [2]int64{}, TimeoutConfig{}, time.Hour, 0},
		{"between two, with a limit", false, [2]int64{}, TimeoutConfig{Idle: 10 * time.Minute}, 3 * time.Minute, 11 * time.Minute},
		{"between two, for ever at the ends", false, [2]int64{}, TimeoutConfig{Idle: 10 * time.Minute, UDPIdle: -1}, 3 * time.Minute, 11 * time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g, f := idleUDPFlow(t, tt.socket, tt.carried, tt.limits)
			g.sweep(f.started)
			g.sweep(f.started.Add(tt.live))
			if err := f.reason(); err != nil {
				t.Errorf("after %v the flow is cut: %v", tt.live, err)
			}
			if tt.cut == 0 {
				return
			}
			g.sweep(f.started.Add(tt.cut))
			var cut *Error
			if err := f.reason(); !errors.As(err, &cut) || cut.Cause != CauseIdle {
				t.Errorf("after %v the flow is cut by %v, want that it is idle", tt.cut, err)
			}
		})
	}
}

package tunnel_test

import (
	"errors"
	"io"
	"net"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// parkedFlows opens flows through a pair of gateways and waits until none of them has a goroutine.
func parkedFlows(t *testing.T, p *tcpPair, flows int) (apps, servers []*net.TCPConn) {
	t.Helper()
	before := runtime.NumGoroutine()
	for range flows {
		app, server := p.open(t)
		pass(t, app, server, "to begin with")
		apps, servers = append(apps, app), append(servers, server)
	}
	waitParked(t, before)
	return apps, servers
}

// waitParked waits until there are hardly more goroutines than before: those of connections between the gateways.
func waitParked(t *testing.T, before int) {
	t.Helper()
	waitUntil(t, "the flows to park", func() bool { return runtime.NumGoroutine() <= before+30 })
}

// pass carries text both ways.
func pass(t *testing.T, app, server *net.TCPConn, text string) {
	t.Helper()
	for _, way := range [][2]*net.TCPConn{{app, server}, {server, app}} {
		if _, err := io.WriteString(way[0], text); err != nil {
			t.Fatal(err)
		}
		wantBytes(t, way[1], []byte(text))
	}
}

const parked = 100

// TestParkedFlowsGoOn wakes flows that have no goroutine by bytes from either end, again and again.
func TestParkedFlowsGoOn(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds; make test has it")
	}
	p := newTCPPair(t)
	before := runtime.NumGoroutine()
	apps, servers := parkedFlows(t, p, parked)
	for range 2 {
		for i := range apps {
			pass(t, apps[i], servers[i], "after a silence")
		}
		waitParked(t, before)
	}
	for i := range apps {
		if i%2 == 0 {
			apps[i], servers[i] = servers[i], apps[i] // the other end goes first
		}
		io.WriteString(apps[i], "the last")
		apps[i].CloseWrite()
		if got, err := io.ReadAll(servers[i]); string(got) != "the last" || err != nil {
			t.Fatalf("flow %d: read %q, %v", i, got, err)
		}
		io.WriteString(servers[i], "thanks")
		servers[i].CloseWrite()
		if got, err := io.ReadAll(apps[i]); string(got) != "thanks" || err != nil {
			t.Fatalf("flow %d: read %q back, %v", i, got, err)
		}
	}
	waitUntil(t, "the flows to end", func() bool { return p.entry.Stats().Active == 0 && p.exit.Stats().Active == 0 })
}

// TestParkedFlowsBreak ends flows that have no goroutine, in every way that a flow ends before its time.
func TestParkedFlowsBreak(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds; make test has it")
	}
	for name, end := range map[string]func(p *tcpPair, app, server *net.TCPConn){
		"the app resets":    func(_ *tcpPair, app, _ *net.TCPConn) { app.SetLinger(0); app.Close() },
		"the server resets": func(_ *tcpPair, _, server *net.TCPConn) { server.SetLinger(0); server.Close() },
		"the exit closes":   func(p *tcpPair, _, _ *net.TCPConn) { p.exit.Close() },
		"the entry closes":  func(p *tcpPair, _, _ *net.TCPConn) { p.entry.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			p := newTCPPair(t)
			apps, servers := parkedFlows(t, p, parked)
			for i := range apps {
				end(p, apps[i], servers[i])
			}
			for i := range apps {
				for _, c := range []*net.TCPConn{apps[i], servers[i]} {
					if n, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, net.ErrClosed) {
						t.Errorf("flow %d: read %d, %v; want a reset", i, n, err)
					}
				}
			}
			waitUntil(t, "the flows to end", func() bool { return p.entry.Stats().Active == 0 && p.exit.Stats().Active == 0 })
		})
	}
}

// TestParkedFlowsEndWhileTheyPark has flows end at the very moment when they fall silent and park.
func TestParkedFlowsEndWhileTheyPark(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds; make test has it")
	}
	p := newTCPPair(t)
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); { // real time: flows park at ticks of a second
		app, server := p.open(t)
		pass(t, app, server, "x")
		time.AfterFunc(1500*time.Millisecond, func() {
			app.SetLinger(0)
			app.Close()
			server.Close()
		})
		time.Sleep(2 * time.Millisecond)
	}
	waitUntil(t, "the flows to end", func() bool { return p.entry.Stats().Active == 0 && p.exit.Stats().Active == 0 })
}

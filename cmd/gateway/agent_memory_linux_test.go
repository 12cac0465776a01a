package main_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert/tunnel/h2"
)

// What TestAgentMemory connects, and what each may cost the gateway.
const (
	memoryAgents     = 1000
	memoryAgentBytes = 40 << 10
)

// TestAgentMemory connects a thousand agents to a gateway, each on a connection of its own with one name, and looks what the
// gateway has grown by when all are idle: the heap and the stacks that Go has in use after a collection. The agents' own ends
// are in the process of the test and do not count; what the system holds for the sockets does not either. The growth of
// what is resident is in the log.
func TestAgentMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds; make test has it")
	}
	m := newMesh(t)
	hub := m.configured(t, "server", fmt.Sprintf(`
listeners:
- {name: mesh, kind: hbone, address: "$ADDR", agents: [{from: [%q], names: ["*.devices.example"], maxConnections: %d}]}
routes: [{hosts: ["*.devices.example"], agents: true}]
log: {level: warn}
`, clientID, memoryAgents))
	conf := m.clientTLS(t, "client", serverID)
	conf.NextProtos = []string{h2.ALPNBidirectional}
	connect := func(n int) {
		var dials sync.WaitGroup
		for worker := range 8 {
			dials.Go(func() { // ends with its share of the agents
				for i := worker; i < n; i += 8 {
					if err := idleAgent(t, hub.addr, conf, fmt.Sprintf("n%d.devices.example", i)); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		dials.Wait()
	}
	connect(10) // so that what a gateway needs at all times is there
	collected := func() soakSample {
		for range 2 { // pools give up what they hold at the second collection
			if _, err := hub.get("/debug/pprof/heap?gc=1&debug=1"); err != nil {
				t.Fatal(err)
			}
		}
		return pair{entry: hub, exit: hub}.sample(t)[0]
	}
	before := collected()
	connect(memoryAgents - 10)
	if page, err := hub.get("/metrics"); err != nil || !strings.Contains(page, fmt.Sprintf("\nculvert_agents %d\n", memoryAgents)) {
		t.Fatalf("not all agents are registered: %v", err)
	}
	var after soakSample
	for range 3 { // polls, as the buffers of a handshake go with the next collections
		time.Sleep(time.Second)
		after = collected()
	}
	const n = memoryAgents - 10
	inUse := (after.heap + after.stacks - before.heap - before.stacks) / n
	t.Logf("an agent costs %.1f KiB of heap, %.1f of stacks, %.1f goroutines; %.1f KiB are resident", (after.heap-before.heap)/n/1024,
		(after.stacks-before.stacks)/n/1024, (after.goroutines-before.goroutines)/n, (after.bytes-before.bytes)/n/1024)
	if inUse > memoryAgentBytes {
		t.Errorf("an agent costs %.1f KiB, want %d at most", inUse/1024, memoryAgentBytes>>10)
	}
}

// idleAgent registers under a name, and stays until the test ends.
func idleAgent(t *testing.T, addr string, conf *tls.Config, name string) error {
	nc, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return err
	}
	c, err := h2.NewClient(tls.Client(nc, conf), &h2.Config{Bidirectional: true})
	if err != nil {
		return err
	}
	t.Cleanup(func() { _ = c.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	st, err := c.Open(ctx, &h2.Header{Method: "POST", Scheme: "https", Authority: "agents", Path: "/.well-known/culvert/agent"}, false)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(st, "claim "+name+"\n"); err != nil {
		return err
	}
	if resp, err := st.Response(ctx); err != nil || resp.Status != 200 {
		return fmt.Errorf("the registration is answered %v, %w", resp, err)
	}
	_ = st.SetReadDeadline(deadline())
	var said strings.Builder
	for buf := make([]byte, 512); !strings.Contains(said.String(), "granted "+name+"\n"); {
		n, err := st.Read(buf)
		if said.Write(buf[:n]); err != nil {
			return fmt.Errorf("%q: %w", said.String(), err)
		}
	}
	return nil
}

package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"culvert/bench/load"
	"culvert/bench/proc"
)

// sampleEvery is how many agents there are for each that is asked whether it is reached.
const sampleEvery = 100

// agentName is the name that agent i claims.
func agentName(i int) string { return fmt.Sprintf("cam%d.devices.example", i) }

// takeAgents measures what a gateway holds for an agent that is connected, and how long nobody is reached after the
// connection of one was closed.
func takeAgents(ctx context.Context, s *site, size *size) (values, error) {
	v := make(values)
	if err := s.hold(ctx, size, v); err != nil {
		return v, fmt.Errorf("%d agents: %w", size.agents, err)
	}
	for i, name := range []string{agentGap, agentGapTwo} {
		gap, err := s.closed(ctx, 1+i, size)
		if err != nil {
			return v, fmt.Errorf("a connection that was closed, of %d: %w", 1+i, err)
		}
		v[name] = gap.Seconds()
	}
	return v, nil
}

// home is a gateway, agents that dial it, and ports that lead to names of these.
type home struct {
	site        *site
	name        string // of its processes, one for each home that runs at the same time
	hub, agents proc.Group
	addr        string // where agents dial
	ports       []string
}

// newHome starts the gateway.
func (s *site) newHome(name string, names ...string) (*home, error) {
	at, err := addrs(1 + len(names))
	if err != nil {
		return nil, err
	}
	h := &home{site: s, name: name, addr: at[0], ports: at[1:]}
	var b strings.Builder
	fmt.Fprintf(&b, "listeners:\n- {name: mesh, kind: hbone, address: %q, agents: [{from: [%s], names: [\"*.devices.example\"], maxConnections: 100000}]}\n",
		h.addr, strings.TrimPrefix(identityOf("exit"), "spiffe://"))
	for i, name := range names {
		fmt.Fprintf(&b, "- {name: app%d, kind: forward, address: %q, to: \"%s:80\"}\n", i, h.ports[i], name)
	}
	b.WriteString("routes: [{hosts: [\"*.devices.example\"], agents: true}]\n")
	return h, s.fileAs(&h.hub, "hub-"+name, "entry", b.String())
}

// join starts a process with n agents that dial the gateway at addr, under the names from agentName(first) on, and offer
// the target.
func (h *home) join(addr string, first, n int) error {
	var b strings.Builder
	b.WriteString("listeners:\n")
	for i := first; i < first+n; i++ {
		fmt.Fprintf(&b, "- {name: agent%d, kind: agent, hop: gw, names: [%s], offer: {80: %q}}\n", i, agentName(i), h.site.target.Addr())
	}
	fmt.Fprintf(&b, "hops: {gw: {address: %q, identity: %q}}\nroutes: [{destinations: [local]}]\n", addr, identityOf("entry"))
	return h.site.fileAs(&h.agents, fmt.Sprintf("agents-%s-%d", h.name, len(h.agents.Processes)), "exit", b.String())
}

// await waits until n agents are connected, and the names of all ports are reached.
func (h *home) await(ctx context.Context, n int) error {
	if err := until(ctx, &h.agents, func() error { return established(h.addr, n) }); err != nil {
		return err
	}
	for _, port := range h.ports {
		if err := until(ctx, &h.hub, func() error { return load.OpenOnce(port, 0) }); err != nil {
			return err
		}
	}
	return nil
}

func (h *home) stop() {
	h.agents.Stop()
	h.hub.Stop()
}

// hold measures the gateway's memory before and after many agents have come.
func (s *site) hold(ctx context.Context, size *size, v values) error {
	var names []string
	for i := 0; i < size.agents; i += sampleEvery {
		names = append(names, agentName(i))
	}
	h, err := s.newHome("many", names...)
	if err != nil {
		return err
	}
	defer h.stop()
	if err := h.join(h.addr, 0, 1); err != nil { // what the first one costs is not for each
		return err
	}
	if err := until(ctx, &h.agents, func() error { return load.OpenOnce(h.ports[0], 0) }); err != nil {
		return err
	}
	if err := load.Pause(ctx, time.Second); err != nil { // its start is over then
		return err
	}
	before, err := h.hub.Usage()
	if err != nil {
		return err
	}
	start := time.Now()
	if err := h.join(h.addr, 1, size.agents); err != nil {
		return err
	}
	if err := until(ctx, &h.agents, func() error { return established(h.addr, 1+size.agents) }); err != nil {
		return err
	}
	v[agentsJoin] = time.Since(start).Seconds()
	if err := load.Pause(ctx, size.settled); err != nil {
		return err
	}
	after, err := h.hub.Usage()
	if err != nil {
		return err
	}
	v[agentMemory] = float64(after.ResidentBytes-before.ResidentBytes) / float64(size.agents) / 1e3
	return h.await(ctx, 1+size.agents) // they have registered, and not only connected
}

// established wants n connections that a server at addr has accepted.
func established(addr string, n int) error {
	has, err := proc.Established(addr)
	if err == nil && len(has) < n {
		err = fmt.Errorf("%d of %d connections stand", len(has), n)
	}
	return err
}

// The names of values.
const (
	agentsJoin   = "agents: seconds until all have connected"
	agentMemory  = "agents: KB of the gateway for each"
	agentGap     = "agents: seconds without an answer, one agent, connection closed"
	agentGapTwo  = "agents: seconds without an answer, two agents, connection of one closed"
	agentHalf    = "agents: seconds without an answer, one agent, packets dropped"
	agentHalfTwo = "agents: seconds without an answer, two agents, packets of one dropped"
)

// closed cuts the connection of one of n agents that have the same name, and returns the longest time without an answer.
func (s *site) closed(ctx context.Context, n int, size *size) (time.Duration, error) {
	h, err := s.newHome("closed", agentName(0))
	if err != nil {
		return 0, err
	}
	defer h.stop()
	r, err := newRoad(h.addr)
	if err != nil {
		return 0, err
	}
	defer r.close()
	for i := range n {
		to := h.addr
		if i == 0 {
			to = r.addr()
		}
		if err := h.join(to, 0, 1); err != nil {
			return 0, err
		}
	}
	if err := h.await(ctx, n); err != nil {
		return 0, err
	}
	a := startAsker(h.ports[0])
	err = load.Pause(ctx, time.Second)
	cut := time.Now()
	r.cut()
	if err == nil {
		err = load.Pause(ctx, time.Second)
	}
	if err == nil {
		err = a.recovered(ctx, size.gap)
	}
	a.stop()
	return a.gap(cut), err
}

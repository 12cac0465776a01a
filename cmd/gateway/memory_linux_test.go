package main_test

import (
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// What TestMemoryIsGivenBack does to a pair of gateways, and what it wants of them.
const (
	givenFlows      = 9000 // at once, with SOAK set
	givenFlowsShort = 3000 // and without
	givenWithin     = time.Minute
	givenKept       = 4 // the part of the growth that may stay is one of so many
)

// TestMemoryIsGivenBack opens many flows, lets them stand idle and closes them: within a minute the gateways have
// given back three quarters of what they had grown by. With SOAK the system has it back; with fewer flows, or the
// race detector, what is resident is not theirs for the most part, and what Go has in use counts.
func TestMemoryIsGivenBack(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds; make test has it")
	}
	flows, size := givenFlowsShort, func(s soakSample) float64 { return s.heap + s.stacks }
	if os.Getenv("SOAK") != "" {
		flows, size = givenFlows, func(s soakSample) float64 { return s.bytes }
	}
	m := newMesh(t)
	exit := m.gateway(t, "server", "--hbone", "$ADDR", "--log-level", "warn")
	entry := m.gateway(t, "client", "--forward", "$ADDR="+serve(t, plainEcho), "--via", exit.addr, "--log-level", "warn")
	p := pair{entry: entry, exit: exit}
	for range 100 { // so that what a gateway needs at all times is there
		roundTrip(t, entry.addr)
	}
	p.idle(t)
	before := p.sample(t)
	conns := make([]net.Conn, flows)
	for i := range conns {
		conns[i] = dial(t, entry.addr)
		echoes(t, conns[i], "i")
	}
	full := p.sample(t)
	for _, c := range conns {
		c.Close()
	}
	p.idle(t)
	var after [2]soakSample
	kept := func(i int) bool {
		return size(after[i]) > size(before[i])+(size(full[i])-size(before[i]))/givenKept
	}
	for end := time.Now().Add(givenWithin); time.Now().Before(end); time.Sleep(500 * time.Millisecond) { // polls the system
		after = p.sample(t)
		if !kept(0) && !kept(1) {
			break
		}
	}
	for i, name := range []string{"entry", "exit"} {
		const mib = 1 << 20
		t.Logf("%s: %.1f MiB before, %.1f with %d flows, %.1f after", name, size(before[i])/mib, size(full[i])/mib, flows, size(after[i])/mib)
		if kept(i) {
			t.Errorf("%s has kept more than 1/%d of what it had grown by", name, givenKept)
		}
	}
}

// plainEcho is echo without a pipe of the system, which would be two files more for each flow.
func plainEcho(nc *net.TCPConn) {
	_, _ = io.Copy(struct{ io.Writer }{nc}, struct{ io.Reader }{nc}) // the client sees what became of it
}

package tunnel

import "sync/atomic"

// counter counts up, and down where it is a gauge. It is used concurrently.
type counter struct{ n atomic.Int64 }

func (c *counter) add(n int64) { c.n.Add(n) }
func (c *counter) load() int64 { return c.n.Load() }

// stats are the counters of a gateway. Their addresses are taken once, so that counting is an addition.
type stats struct {
	flows, active   counter
	ended           [numCauses]counter
	bytesIn         counter
	bytesOut        counter
	tlsRefused      counter
	outerRefused    counter // requests with x-tun that were not let in
	offences        counter // connections ended for what the peer did on them
	captureFailed   counter
	acceptErrors    counter
	shed            counter
	connections     counter // accepted and open
	dials           counter
	dialFailures    counter
	transports      counter // open to hops
	transportDials  counter
	transportFailed counter
	retries         counter
	abandoned       counter
	agentsRefused   counter // registrations
	claimsRefused   counter
	limitWaits      counter
	limitWaiting    counter // directions of flows that wait now
	phases          [numPhases]histogram
	firstByte       histogram
}

// Stats is a snapshot of a gateway's counters. Those that end in s count events since the start; Active,
// Connections and Transports are what is open now.
type Stats struct {
	// Flows is how many flows were accepted, Active how many of them are not over.
	Flows, Active int64
	// Ended is how many flows are over, by Cause.String; "ok" are those that ended well.
	Ended map[string]int64
	// BytesIn went towards destinations, BytesOut came back, those of live flows included.
	BytesIn, BytesOut int64
	// TLSRefused are connections of peers that did not get through the TLS handshake, CaptureFailed those of
	// apps that did not get through theirs.
	TLSRefused, CaptureFailed int64
	// OuterRefused are requests with x-tun that were not let in.
	OuterRefused int64
	// Offences are connections, to peers and to hops, that were ended for what the other end did on them.
	Offences int64
	// AcceptErrors are errors of accepting connections, Shed connections that were closed at once because
	// files, memory or a listener's limit were used up. A flow for which there was no file, port or memory
	// to dial with is none of them: it is in Ended as "full".
	AcceptErrors, Shed int64
	// Connections is how many accepted connections are open.
	Connections int64
	// Dials and DialFailures are connections to destinations, tried and failed.
	Dials, DialFailures int64
	// Transports is how many connections to hops are open; TransportDials and TransportFailures how
	// many were tried and failed.
	Transports, TransportDials, TransportFailures int64
	// Retries are tunnels that a hop had not processed and that were asked for again. Abandoned are those
	// whose app went away before the answer and that were left to end by themselves, so as not to spend
	// the resets that a hop allows.
	Retries, Abandoned int64
	// Agents is how many connections of agents are registered here. AgentsRefused are registrations that were refused or
	// cut off, ClaimsRefused names that an agent did not get.
	Agents, AgentsRefused, ClaimsRefused int64
	// Limited are flows that a limit of policy has refused or ended, by the rule that has it; beyond 1,000 names, which only a
	// Decider can give, they are counted as "".
	Limited map[string]int64
	// LimitWaits is how often bytes had to wait for a rate, LimitWaiting how many directions of flows wait now.
	LimitWaits, LimitWaiting int64
	// LimitCounts is how many counts of limits there are, LimitShared how many flows had to share one with everybody else who
	// had none, as the table was full.
	LimitCounts, LimitShared int64
	// Phases is how long the phases of opening took, by the key that they have in records, of flows that have such a phase;
	// first_byte is counted when the flow ends.
	Phases map[string]Histogram
}

// Stats returns the counters as they are now.
func (g *Gateway) Stats() Stats {
	s := &g.stats
	snapshot := Stats{
		Flows: s.flows.load(), Active: s.active.load(), Ended: make(map[string]int64, numCauses),
		BytesIn: s.bytesIn.load(), BytesOut: s.bytesOut.load(),
		Offences: s.offences.load(), TLSRefused: s.tlsRefused.load(), OuterRefused: s.outerRefused.load(), CaptureFailed: s.captureFailed.load(),
		AcceptErrors: s.acceptErrors.load(), Shed: s.shed.load(), Connections: s.connections.load(),
		Dials: s.dials.load(), DialFailures: s.dialFailures.load(),
		Transports: s.transports.load(), TransportDials: s.transportDials.load(), TransportFailures: s.transportFailed.load(),
		Retries: s.retries.load(), Abandoned: s.abandoned.load(),
		Limited: g.limits.counts(), LimitWaits: s.limitWaits.load(), LimitWaiting: s.limitWaiting.load(),
		Agents: int64(len(g.agents.all())), AgentsRefused: s.agentsRefused.load(), ClaimsRefused: s.claimsRefused.load(),
		LimitCounts: g.limits.entries.load(), LimitShared: g.limits.shared.load(),
	}
	for c := range numCauses {
		snapshot.Ended[c.String()] = s.ended[c].load()
	}
	snapshot.Phases = map[string]Histogram{phaseFirst: s.firstByte.snapshot()}
	for p := range numPhases {
		snapshot.Phases[phaseNames[p]] = s.phases[p].snapshot()
	}
	g.flows.each(func(f *Flow) bool {
		snapshot.BytesIn += f.in.carried()
		snapshot.BytesOut += f.out.carried()
		return true
	})
	return snapshot
}

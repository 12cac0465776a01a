package tunnel

import (
	"context"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"

	"culvert/pki/spiffe"
)

// agentTable is the agents that are registered at a gateway, and what is counted of them.
type agentTable struct {
	mu    sync.Mutex // guards the group below
	conns map[*agentConn]struct{}
	byID  map[spiffe.ID]*agentID
	left  []leftName // the oldest first

	refusals counter // that were logged, or not
}

// agentID is what is counted of one identity.
type agentID struct {
	conns int     // that are registered
	level float64 // of the bucket of registrations
	at    time.Time
}

// leftName is a name whose agent was lost a short time ago.
type leftName struct {
	name string
	at   time.Time
}

const (
	// agentWait is how long a flow waits for an agent that was there until a moment ago, and returnWithin how long ago that
	// may be: one whose connection was lost dials again at once.
	agentWait    = 2 * time.Second
	returnWithin = 10 * time.Second
	// maxLeft is how many such names are remembered, and maxAgentIDs how many identities are.
	maxLeft     = 10_000
	maxAgentIDs = 100_000
)

// enter counts an agent that registers; most is how many of its identity may be. An error says why it may not now.
func (t *agentTable) enter(a *agentConn, most int, now time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	id := a.s.proof.id
	of := t.byID[id]
	if of == nil {
		if len(t.byID) >= maxAgentIDs {
			return &Error{Cause: CauseFull, Reason: "too many identities have agents here"}
		}
		of = &agentID{at: now}
		if t.byID == nil {
			t.byID, t.conns = make(map[spiffe.ID]*agentID), make(map[*agentConn]struct{})
		}
		t.byID[id] = of
	}
	of.drain(now, most)
	switch {
	case of.conns >= most:
		return &Error{Cause: CauseFull, Reason: "as many connections of this identity are registered as maxConnections of agents allows"}
	case of.level+1 > float64(registerBurst*most):
		return &Error{Cause: CauseLimited, Reason: "it registers again and again; it should wait longer before it does"}
	}
	of.level++
	of.conns++
	t.conns[a] = struct{}{}
	return nil
}

// drain lets the bucket leak.
func (i *agentID) drain(now time.Time, most int) {
	i.level = math.Max(0, i.level-now.Sub(i.at).Seconds()*registerRate*float64(most))
	i.at = now
}

// leave takes an agent off the books.
func (t *agentTable) leave(a *agentConn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, there := t.conns[a]; there {
		delete(t.conns, a)
		t.byID[a.s.proof.id].conns--
	}
}

// prune forgets what is not needed any more.
func (t *agentTable) prune(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, of := range t.byID {
		if of.conns == 0 && of.level-now.Sub(of.at).Seconds()*registerRate <= 0 {
			delete(t.byID, id)
		}
	}
	i := 0
	for i < len(t.left) && now.Sub(t.left[i].at) > returnWithin {
		i++
	}
	if t.left = slices.Delete(t.left, 0, i); len(t.left) == 0 {
		t.left = nil
	}
}

// noteLeft notes that an agent of a name has gone.
func (t *agentTable) noteLeft(name string, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.left) < maxLeft {
		t.left = append(t.left, leftName{name, now})
	}
}

// mayReturn reports whether an agent of a name was there until a moment ago.
func (t *agentTable) mayReturn(name string, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.ContainsFunc(t.left, func(l leftName) bool { return l.name == name && now.Sub(l.at) <= returnWithin })
}

// all are the connections that are registered.
func (t *agentTable) all() []*agentConn {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := make([]*agentConn, 0, len(t.conns))
	for a := range t.conns {
		list = append(list, a)
	}
	return list
}

// reconsiderAgents gives and takes names as the plan has it.
func (g *Gateway) reconsiderAgents(p *plan) {
	for _, a := range g.agents.all() {
		a.reconsider(p)
	}
}

// logAgentRefused tells of an agent that was not registered, or did not get a name. A stranger can make any number of these,
// so after the first of them only some are logged.
func (g *Gateway) logAgentRefused(a *agentConn, name, reason string) {
	n := g.agents.refusals.n.Add(1)
	if n > refusedLogEvery && n%refusedLogEvery != 0 {
		return
	}
	attrs := []slog.Attr{slog.String("listener", a.s.l.conf.Load().name), slog.String("peer", a.s.proof.id.String()), slog.String("src", a.s.source.String())}
	if name != "" {
		attrs = append(attrs, slog.String("host", printable(name[:min(len(name), maxNameLen)])))
	}
	g.env.Log.LogAttrs(context.Background(), slog.LevelInfo, "agent refused", append(attrs, slog.String("reason", reason))...)
}

// AgentInfo is a connection of an agent that is registered, for people to look at.
type AgentInfo struct {
	Peer     string    `json:"peer"`
	Listener string    `json:"listener"`
	Src      string    `json:"src"`
	Names    []string  `json:"names"`
	Refused  []string  `json:"refused,omitempty"` // names that it claims and may not have
	Addrs    []string  `json:"addresses"`         // of its key
	Flows    int       `json:"flows"`
	Since    time.Time `json:"since"`
	RTT      string    `json:"rtt,omitempty"`
	Silent   string    `json:"silent,omitempty"` // for how long nothing came from it
}

// Agents returns up to limit of the agents that are registered here, those that were first.
func (g *Gateway) Agents(limit int) []AgentInfo {
	var list []AgentInfo
	for _, a := range g.agents.all() {
		list = append(list, a.info())
	}
	slices.SortFunc(list, func(a, b AgentInfo) int { return a.Since.Compare(b.Since) })
	return list[:min(len(list), max(limit, 0))]
}

func (a *agentConn) info() AgentInfo {
	i := AgentInfo{Peer: a.s.proof.id.String(), Listener: a.s.l.conf.Load().name, Src: a.s.source.String(), Flows: a.Live(), Names: []string{}}
	if rtt := a.conn.RTT(); rtt > 0 {
		i.RTT = rtt.String()
	}
	if silent := a.conn.Silence(); silent > agentPing {
		i.Silent = silent.Round(time.Millisecond).String()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	i.Since, i.Addrs = a.begun, slices.Clone(a.addrs)
	for name, granted := range a.claims {
		if granted {
			i.Names = append(i.Names, name)
		} else {
			i.Refused = append(i.Refused, name)
		}
	}
	slices.Sort(i.Names)
	slices.Sort(i.Refused)
	return i
}

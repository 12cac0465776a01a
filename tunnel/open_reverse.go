package tunnel

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"culvert/tunnel/h2"
)

// maxAgentTries is how many agents of a name are tried for one flow.
const maxAgentTries = 4

// openReverse opens a flow to the agent that has registered under its destination: a tunnel on the connection that the
// agent has dialled. One that has not processed the request, that has died or that cannot reach what it offers is no end of
// it while there are others and nothing of the flow has gone out.
func (g *Gateway) openReverse(ctx context.Context, f *Flow, early *Early) (Conn, error) {
	name := f.Target.Host
	if name == "" {
		name = f.Target.Addr.String()
	}
	req := g.request(f)
	req.Early = early
	var tried []Agent
	for {
		began := time.Now()
		a, err := g.nextAgent(ctx, name, tried)
		f.times.since(phaseQueue, began)
		if err != nil {
			return nil, err
		}
		tried = append(tried, a)
		s, err := g.connectAgent(ctx, f, a, req)
		if err == nil {
			f.in.bytes.add(early.carried())
			return s, nil
		}
		if ctx.Err() != nil || len(tried) == maxAgentTries || !goesOn(a, err) || !early.again(err) || takesFlows(a) && !g.hasOther(name, tried) {
			return nil, err
		}
		g.stats.retries.add(1)
	}
}

// connectAgent asks one agent for a tunnel.
func (g *Gateway) connectAgent(ctx context.Context, f *Flow, a Agent, req *ConnectRequest) (Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, f.plan.timeouts.Dial)
	defer cancel()
	own, _ := a.(*agentConn)
	if own != nil {
		own.live.Add(1)
	}
	asked := time.Now()
	s, _, err := a.Connect(ctx, req)
	f.times.since(phaseAnswer, asked)
	if err != nil {
		if own != nil {
			own.live.Add(-1)
		}
		return nil, fmt.Errorf("agent %s: %w", a.Peer(), timedOut(ctx, err))
	}
	if own == nil {
		return s, nil
	}
	return &agentStream{Stream: s, from: own}, nil
}

// goesOn reports whether another agent may be asked after one has failed with err: nobody has said that the flow may not
// be, and nothing stands.
func goesOn(a Agent, err error) bool {
	var unprocessed *UnprocessedError
	if errors.As(err, &unprocessed) {
		return true
	}
	if !takesFlows(a) {
		return true
	}
	switch CauseOf(err) {
	case CauseRefused, CauseTimeout, CauseUnroutable, CauseUnavailable, CauseFull, CauseLimited, CauseDraining:
		return true
	}
	return false
}

// takesFlows reports whether the connection of an agent stands, and takes new streams or will.
func takesFlows(a Agent) bool {
	select {
	case <-a.Done():
		return false
	case <-a.Draining():
		return false
	default:
		return true
	}
}

// nextAgent returns the agent of a name that has least to do and was not tried yet. Where the last one was lost a moment
// ago it waits for its return.
func (g *Gateway) nextAgent(ctx context.Context, name string, tried []Agent) (Agent, error) {
	var late <-chan time.Time
	for {
		changed, stop := g.env.Agents.Watch(name)
		list := g.env.Agents.Lookup(name)
		a := pickAgent(list, tried)
		if a != nil || slices.ContainsFunc(list, takesFlows) || len(list) == 0 && !g.agents.mayReturn(name, time.Now()) {
			stop()
			return a, g.noAgent(a, name, list)
		}
		if late == nil {
			t := time.NewTimer(agentWait)
			defer t.Stop()
			late = t.C
		}
		select {
		case <-changed:
			stop()
			continue
		case <-late:
		case <-ctx.Done():
		}
		stop()
		return nil, g.noAgent(nil, name, list)
	}
}

// noAgent says why there is no agent to ask, nil where there is one.
func (g *Gateway) noAgent(a Agent, name string, list []Agent) error {
	switch {
	case a != nil:
		return nil
	case slices.ContainsFunc(list, takesFlows):
		return &Error{Cause: CauseFull, Reason: "the agents of " + name + " allow no more streams"}
	case len(list) > 0 || g.agents.mayReturn(name, time.Now()):
		return &Error{Cause: CauseUnavailable, Reason: "the agent of " + name + " has gone a moment ago"}
	}
	return &Error{Cause: CauseUnknownHost, Reason: "no agent is registered under " + name + "; see /agents of the admin address"}
}

// pickAgent returns the best agent that was not tried, nil where none has room: one that answers before one that has been
// silent for so long that it may be gone, then the one with the fewest tunnels, else by chance.
func pickAgent(list, tried []Agent) (best Agent) {
	if len(list) == 1 { // as most often
		if list[0].Slots() > 0 && !slices.Contains(tried, list[0]) {
			return list[0]
		}
		return nil
	}
	least, alike := 0, 0
	for _, a := range list {
		if slices.Contains(tried, a) || a.Slots() <= 0 {
			continue
		}
		load := a.Live()
		if own, ok := a.(*agentConn); ok && own.conn.Silence() > agentPing+agentPing/2 {
			load += 1 << 30
		}
		switch {
		case best == nil || load < least:
			best, least, alike = a, load, 1
		case load == least:
			if alike++; rand.IntN(alike) == 0 {
				best = a
			}
		}
	}
	return best
}

func (g *Gateway) hasOther(name string, tried []Agent) bool {
	return pickAgent(g.env.Agents.Lookup(name), tried) != nil
}

// agentStream is a tunnel to an agent, which counts until it is closed.
type agentStream struct {
	Stream
	from *agentConn
	once sync.Once
}

// Close closes the stream.
func (s *agentStream) Close() error {
	err := s.Stream.Close()
	s.once.Do(s.giveBack)
	return err
}

// Reset resets the stream.
func (s *agentStream) Reset(cause error) {
	s.Stream.Reset(cause)
	s.once.Do(s.giveBack)
}

func (s *agentStream) giveBack() { s.from.live.Add(-1) }

var _ Agent = (*agentConn)(nil)

// agentALPN is what is agreed on in TLS with an agent.
const agentALPN = h2.ALPNBidirectional

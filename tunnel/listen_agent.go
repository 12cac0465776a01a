package tunnel

import (
	"context"
	"errors"

	"culvert/policy"
)

// ListenAgent serves tunnels as Listen does, on a connection that this program dials: it registers at hop under names, and
// under the addresses of its key, and is reached by flows to these, at any port. No port is opened. Of env it needs Self and
// ClientTLS. rules say who may connect, which is the hop; the zero value lets in those of this program's own trust domain
// and namespace. It returns when it is registered, with what the hop says of the names in the log, or with the error of ctx
// when that was not possible in time. A connection that is lost is made again.
func ListenAgent(ctx context.Context, hop HopConfig, names []string, env Env, rules policy.Config) (*Listener, error) {
	const hopName = "hop"
	cfg := &Config{
		Listeners: []ListenerConfig{{Name: listenerName, Kind: KindAgent, Hop: hopName, Names: names}},
		Hops:      map[string]HopConfig{hopName: hop},
		Routes:    []RouteConfig{{Listeners: []string{listenerName}}},
		Policy:    rules,
	}
	l, err := listen(ctx, cfg, env)
	if err != nil {
		return nil, err
	}
	if err := l.g.awaitAgent(ctx); err != nil {
		l.Cut()
		return nil, err
	}
	return l, nil
}

// awaitAgent waits until the one listener, which dials, is registered. Its error says why it is not yet.
func (g *Gateway) awaitAgent(ctx context.Context) error {
	g.mu.Lock()
	var run *agentRun
	for _, l := range g.listeners {
		run = l.runs.current()
	}
	g.mu.Unlock()
	select {
	case <-run.stands:
		return nil
	case <-ctx.Done():
		return errors.Join(ctx.Err(), run.lastError())
	}
}

// current is the run for the configuration that is current.
func (rs *agentRuns) current() *agentRun {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return rs.now
}

// lastError is why the last try to register has failed.
func (r *agentRun) lastError() error {
	if err := r.failed.Load(); err != nil {
		return *err
	}
	return nil
}

package extauthz

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"culvert/policy"
)

// policyAsk is Decision.Policy of what an authorizer decides; Decision.Rule is it, a slash and the authorizer's name.
const policyAsk = "ask"

// Client asks one authorizer. It holds one connection, which is made again when it is lost. All methods may be called
// concurrently.
type Client struct {
	// immutable after New
	name     string
	at       string // for reasons
	timeout  time.Duration
	headers  []string // names in lower case
	conn     *grpc.ClientConn
	authz    authv3.AuthorizationClient
	log      *slog.Logger
	counters *counters

	slots   chan struct{} // one for each question under way
	circuit circuit

	mu     sync.Mutex // guards closed, and orders it with work.Add
	closed bool
	work   sync.WaitGroup // calls of Ask
}

// New makes a Client of cfg, which it validates; TLSConfig.Roots is read now. It does not connect: Connect does, or the first
// question.
func New(cfg *Config, env Env) (*Client, error) { return newClient(cfg, env, new(counters)) }

func newClient(cfg *Config, env Env, n *counters) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	conn, err := newConn(cfg, env)
	if err != nil {
		return nil, err
	}
	return &Client{
		name: cfg.Name, at: cfg.Address, timeout: cfg.timeout(), headers: lowerNames(cfg.Headers), conn: conn,
		authz: authv3.NewAuthorizationClient(conn), log: cmp.Or(env.Log, slog.New(slog.DiscardHandler)), counters: n,
		slots: make(chan struct{}, cfg.maxInFlight()),
	}, nil
}

// Connect begins to connect, so that the first question need not wait for it. It does not block.
func (c *Client) Connect() { c.conn.Connect() }

// Close takes no more questions, waits for those under way, which is for Config.Timeout at most, and ends the connection. It
// may be called again.
func (c *Client) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.work.Wait()
	_ = c.conn.Close() // the error says that it was closed before
}

// enter notes a call of Ask; false: the client is closed.
func (c *Client) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.work.Add(1)
	}
	return !c.closed
}

// Ask asks the authorizer about a flow that policy allows. It blocks for Config.Timeout at most, and ends with ctx, which is
// for flows that nobody waits for any more. Whatever is not a clear yes is a refusal: Decision.Allow is false, and
// Decision.Reason says what to look at. Of a yes, Obligations.Headers are the fields that the request is to have, each in the
// place of all that it has of that name. r must not be nil and is not kept.
func (c *Client) Ask(ctx context.Context, r *policy.Request) policy.Decision {
	d, ok := c.tryAsk(ctx, r)
	if !ok {
		return c.refuse("%v", errClosed)
	}
	return d
}

// tryAsk is Ask; ok is false when the client is closed.
func (c *Client) tryAsk(ctx context.Context, r *policy.Request) (_ policy.Decision, ok bool) {
	if !c.enter() {
		return policy.Decision{}, false
	}
	defer c.work.Done()
	ask, err := c.question(r)
	if err != nil {
		c.counters.failed.Add(1)
		return c.refuse("%v", err), true
	}
	own, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	if t, yes := c.circuit.rests(time.Now()); yes {
		return c.skip(t), true
	}
	select {
	case c.slots <- struct{}{}:
	case <-own.Done():
		return c.unasked(ctx), true
	}
	defer func() { <-c.slots }()
	t := c.circuit.enter(time.Now())
	if !t.ask {
		return c.skip(t), true
	}
	if t.try {
		c.conn.ResetConnectBackoff() // whoever has come back need not be waited for
	}
	started := time.Now()
	answer, err := c.authz.Check(own, ask, grpc.WaitForReady(t.try))
	if err != nil {
		return c.noAnswer(ctx, t, err), true
	}
	c.alive(t)
	return c.decision(answer, r, time.Since(started)), true
}

// alive notes that the authorizer has spoken.
func (c *Client) alive(t turn) {
	if c.circuit.answered(t) {
		c.log.Info("authorizer answers again", slog.String("rule", c.rule()))
	}
}

// decision is what comes of an answer that took so long.
func (c *Client) decision(answer *authv3.CheckResponse, r *policy.Request, took time.Duration) policy.Decision {
	allow, fields, why, err := verdict(answer, r)
	if err != nil {
		c.counters.failed.Add(1)
		return c.refuse("its answer %v; see what it runs, and its log", err)
	}
	c.counters.latency.Add(int64(took))
	if !allow {
		c.counters.denied.Add(1)
		return policy.Decision{Policy: policyAsk, Rule: c.rule(), Reason: "authorizer " + c.name + " " + why}
	}
	c.counters.allowed.Add(1)
	d := policy.Decision{Allow: true, Policy: policyAsk, Rule: c.rule(), Reason: "authorizer " + c.name + " allows it"}
	if len(fields) > 0 {
		d.Obligations = &policy.Obligations{Headers: fields}
	}
	return d
}

func (c *Client) rule() string { return policyAsk + "/" + c.name }

// refuse is the decision about a flow that the authorizer has not decided.
func (c *Client) refuse(format string, args ...any) policy.Decision {
	return policy.Decision{Policy: policyAsk, Rule: c.rule(), Reason: fmt.Sprintf("authorizer %s at %s has not decided: ", c.name, c.at) + fmt.Sprintf(format, args...)}
}

// skip refuses a flow because the authorizer is left alone.
func (c *Client) skip(t turn) policy.Decision {
	c.counters.skipped.Add(1)
	when := "one flow is asked about meanwhile"
	if t.left > 0 {
		when = fmt.Sprintf("it is asked again in %v", t.left.Round(10*time.Millisecond))
	}
	return c.refuse("it is left alone after failures in a row (%s); %s", t.why, when)
}

// unasked is what comes of a question that had no turn in time.
func (c *Client) unasked(flow context.Context) policy.Decision {
	if flow.Err() != nil {
		c.counters.withdrawn.Add(1)
		return c.refuse("%s", nobodyWaits)
	}
	c.counters.timeouts.Add(1)
	return c.refuse("%d questions were under way, and none of them ended within %v; make it faster, or raise maxInFlight if it can take more", cap(c.slots), c.timeout)
}

const nobodyWaits = "nobody waits for the flow any more"

// noAnswer is what comes of an error of gRPC. Those that say that the authorizer is down count towards its rest.
func (c *Client) noAnswer(flow context.Context, t turn, err error) policy.Decision {
	if flow.Err() != nil {
		c.circuit.withdrawn(t)
		c.counters.withdrawn.Add(1)
		return c.refuse("%s", nobodyWaits)
	}
	s := status.Convert(err)
	why, down := c.reason(s)
	if s.Code() == codes.DeadlineExceeded {
		c.counters.timeouts.Add(1)
	} else {
		c.counters.failed.Add(1)
	}
	switch {
	case !down: // it has spoken
		c.alive(t)
	case c.circuit.failed(t, time.Now(), why):
		c.log.Warn("authorizer does not answer: flows that it has to allow are refused", slog.String("rule", c.rule()), slog.String("reason", why))
	}
	return c.refuse("%s", why)
}

// reason says what an error of gRPC means to an operator, and whether the authorizer is down.
func (c *Client) reason(s *status.Status) (why string, down bool) {
	text := cut(s.Message())
	switch s.Code() {
	case codes.DeadlineExceeded:
		why = fmt.Sprintf("no answer within %v; see whether it runs and what keeps it busy, or raise timeout", c.timeout)
		if _, last, ok := strings.Cut(text, "latest balancer error: "); ok {
			why += " (" + strings.Trim(last, `"`) + ")"
		}
		return why, true
	case codes.Unavailable:
		return fmt.Sprintf("it cannot be reached, or ended the connection (%s); see whether it runs, and compare address and tls", text), true
	case codes.Unimplemented:
		return fmt.Sprintf("it does not serve envoy.service.auth.v3.Authorization (%s); see whether the address is that of an authorizer for ext_authz over gRPC, v3", text), false
	case codes.ResourceExhausted:
		return fmt.Sprintf("it is at a limit, or its answer is longer than %d bytes (%s)", maxAnswerBytes, text), false
	case codes.Unauthenticated, codes.PermissionDenied:
		return fmt.Sprintf("it does not let this gateway ask (%v: %s); see what credentials it wants", s.Code(), text), false
	}
	return fmt.Sprintf("it failed (%v: %s); see its log", s.Code(), text), false
}

package tunnel

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"culvert/pki/keyaddr"
	"culvert/pki/spiffe"
	"culvert/policy"
	"culvert/tunnel/h2"
)

// An agent dials a gateway under an ALPN of its own (h2.ALPNBidirectional), by which both ends open streams. It asks with
// POST of pathAgent, whose content are lines, "claim NAME", as long as it wants to be reached. The response is lines as
// well: first "granted ADDRESS" or "refused ADDRESS REASON" for the addresses of its key, and "registered"; then "granted
// NAME" or "refused NAME REASON" for each claim, and "withdrawn NAME REASON" later on. The end of either side ends the
// registration; flows that live go on.
const (
	pathAgent = "/.well-known/culvert/agent"

	wordClaim      = "claim"
	wordRegistered = "registered"
	wordGranted    = "granted"
	wordRefused    = "refused"
	wordWithdrawn  = "withdrawn"
)

const (
	// maxNames is how many names an agent may claim on a connection, and maxClaimLines how many lines it may send there: one
	// that goes on is cut off.
	maxNames      = 64
	maxClaimLines = 4 * maxNames
	// maxClaimLine is the length of a line, and of one that comes back.
	maxClaimLine  = len(wordClaim) + 1 + maxNameLen
	maxAnswerLine = 1024
	// defaultAgentConns is how many connections agents of one identity may have registered.
	defaultAgentConns = 16
	// An identity may register registerBurst times at once and registerRate times a second in the long run, for each of the
	// connections that it may have; who comes more often is sent away, and dials again later.
	registerBurst = 4
	registerRate  = 0.5
	// answerTimeout is how long an agent may take to read its answers.
	answerTimeout = 10 * time.Second
	// An agent that is silent for agentPing is asked, by either end, and dead after agentDead more: 20 s at most from when
	// something between the two has forgotten the connection.
	agentPing = 5 * time.Second
	agentDead = 10 * time.Second
)

// agentConn is the connection of an agent, as the gateway has it that the agent has dialled.
type agentConn struct {
	*h2Transport
	s    *serverConn
	key  [32]byte
	live atomic.Int64 // tunnels

	asked atomic.Bool // a registration was begun, or is about to be

	wmu sync.Mutex // held while writing to st; taken before mu

	mu     sync.Mutex // guards the group below
	st     *h2.Stream // the registration; nil: none yet
	begun  time.Time
	claims map[string]bool // names that were claimed; true: granted
	addrs  []string        // of its key, granted
	line   []byte          // not whole yet
	lines  int
	over   bool // it is not reached any more
}

// newAgentConn makes the agent of a connection that a peer has dialled.
func newAgentConn(s *serverConn) *agentConn {
	return &agentConn{
		h2Transport: &h2Transport{conn: s.conn, hop: s.proof.id.String(), proof: s.proof, stats: &s.g.stats}, s: s,
		key: sha256.Sum256(s.proof.certs[0].RawSubjectPublicKeyInfo),
	}
}

// Key is the digest of the agent's key.
func (a *agentConn) Key() [32]byte { return a.key }

// Live is how many tunnels are open.
func (a *agentConn) Live() int { return int(a.live.Load()) }

// forAgents makes cfg one for a connection on which both ends open streams.
func forAgents(cfg *h2.Config) {
	cfg.Bidirectional, cfg.PingInterval, cfg.PingTimeout = true, agentPing, agentDead
}

// isRegistration reports whether the request is an agent's to be registered.
func (s *serverConn) isRegistration(head *h2.Header) bool {
	return s.agent != nil && head.Method == "POST" && head.Path == pathAgent
}

// register begins a registration, or refuses it. The stream ends with it.
func (a *agentConn) register(st *h2.Stream) {
	if err := a.admit(); err != nil {
		a.s.g.stats.agentsRefused.add(1)
		a.s.g.logAgentRefused(a, "", err.Error())
		h := &h2.Header{Status: verdicts[CauseOf(err)].status}
		h.Fields = []h2.Field{{Name: fieldProxyStatus, Value: proxyStatus(a.s.g.plan.Load().name, err)}}
		_ = st.Respond(h, true) // an agent that has gone wants no answer
		_ = st.Close()
		a.s.streamEnded()
		return
	}
	st.DropHeads()
	a.mu.Lock()
	a.st, a.begun, a.claims = st, time.Now(), make(map[string]bool)
	over := a.over
	a.mu.Unlock()
	over = over || a.s.agentConns(a.s.g.plan.Load()) == 0 // a reload may have missed it
	if over || st.Respond(&h2.Header{Status: statusOK}, false) != nil || a.claimAddrs() != nil || a.say(wordRegistered, "", "") != nil {
		a.ended(errAgentGone)
		return
	}
	st.Pipe(a, func(_ int64, err error) { a.ended(err) })
}

// errAgentGone stands for an agent that has gone before it was registered.
var errAgentGone = errors.New("the agent has gone") // immutable

// admit says why the agent may not register, nil if it may.
func (a *agentConn) admit() error {
	s := a.s
	switch why := s.disowned.Load(); {
	case why != nil:
		return why
	case s.proof.expired(time.Now()):
		return errExpired
	}
	most := s.agentConns(s.g.plan.Load())
	if most == 0 {
		return &Error{Cause: CauseDenied, Rule: "agents", Reason: "no entry of agents at listener " + s.l.conf.Load().name + " names it under from"}
	}
	if !a.asked.CompareAndSwap(false, true) { // streams are served beside each other
		return &Error{Cause: CauseNotConnect, Reason: "an agent registers once on a connection"}
	}
	err := s.g.agents.enter(a, most, time.Now())
	if err != nil {
		a.asked.Store(false)
	}
	return err
}

// agentConns is how many connections agents of the peer's identity may register, 0 where it is no agent.
func (s *serverConn) agentConns(p *plan) (most int) {
	for _, r := range p.agentRules(s) {
		if r.from(s.proof.id) {
			most = max(most, r.number)
		}
	}
	return most
}

// agentRules are those of the connection's listener.
func (p *plan) agentRules(s *serverConn) []*agentRule {
	if l := p.listeners[s.l.conf.Load().name]; l != nil {
		return l.agents
	}
	return nil
}

// Write takes lines of the agent. An error ends the registration.
func (a *agentConn) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		i := bytes.IndexByte(rest, '\n')
		piece := rest
		if i >= 0 {
			piece = rest[:i]
		}
		if len(a.line)+len(piece) > maxClaimLine {
			return 0, errors.New("a line longer than a claim can be")
		}
		a.line = append(a.line, piece...)
		if i < 0 {
			break
		}
		rest = rest[i+1:]
		line := string(a.line)
		a.line = a.line[:0]
		if err := a.take(line); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// take handles one line.
func (a *agentConn) take(line string) error {
	name, ok := strings.CutPrefix(line, wordClaim+" ")
	if !ok {
		return errors.New("a line that is no claim")
	}
	if a.lines++; a.lines > maxClaimLines {
		return errors.New("claims without end")
	}
	return a.answer(name, a.claim(name))
}

// claim enters the agent under a name, or says why not.
func (a *agentConn) claim(name string) error {
	no := func(reason string) error { return &ClaimError{Name: name, Reason: reason} }
	t, problem := parseHost(name, false)
	switch {
	case problem == "" && t.Host == "":
		return no("an address is no name; those of the agent's key it has without a claim")
	case problem != "":
		return no(problem)
	case t.Host != name:
		return no("not the canonical spelling of a name, which is " + t.Host)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, again := a.claims[name]; !again && len(a.claims) >= maxNames {
		return no("a connection has at most " + strconv.Itoa(maxNames) + " names")
	}
	if a.over {
		return no("the connection is being left")
	}
	if a.claims[name] {
		return nil // if it may not any more, reconsider takes it back, with its flows
	}
	a.claims[name] = false
	if !a.s.mayClaim(a.s.g.plan.Load(), name) {
		return no("the gateway lets this agent claim no such name; an entry of agents at its listener " + a.s.l.conf.Load().name + " that has the agent under from needs it under names")
	}
	if err := a.s.g.env.Agents.Claim(name, a); err != nil {
		return err
	}
	a.claims[name] = true
	return nil
}

// mayClaim reports whether the plan lets the peer claim a name.
func (s *serverConn) mayClaim(p *plan, name string) bool {
	return slices.ContainsFunc(p.agentRules(s), func(r *agentRule) bool { return r.lets(s.proof.id, name) })
}

// claimAddrs enters the agent under the addresses of its key. A key of a kind that has none has none.
func (a *agentConn) claimAddrs() error {
	pub := a.s.proof.certs[0].PublicKey
	for _, of := range []func(any) (string, error){
		func(k any) (string, error) { addr, err := keyaddr.V1(k); return addr.String(), err },
		func(k any) (string, error) { addr, err := keyaddr.V2(k); return addr.String(), err },
	} {
		addr, err := of(pub)
		if err != nil {
			return nil // nobody could ask for it
		}
		a.mu.Lock()
		if a.over {
			a.mu.Unlock()
			return errAgentGone
		}
		err = a.s.g.env.Agents.Claim(addr, a)
		if err == nil {
			a.addrs = append(a.addrs, addr)
		}
		a.mu.Unlock()
		if err := a.answer(addr, err); err != nil {
			return err
		}
	}
	return nil
}

// answer tells the agent what became of a claim.
func (a *agentConn) answer(name string, err error) error {
	if err == nil {
		return a.say(wordGranted, name, "")
	}
	reason := err.Error()
	var refused *ClaimError
	if errors.As(err, &refused) {
		reason = refused.Reason
	}
	a.s.g.stats.claimsRefused.add(1)
	a.s.g.logAgentRefused(a, name, reason)
	return a.say(wordRefused, name, reason)
}

// say writes a line. An agent that does not read is none.
func (a *agentConn) say(word, name, reason string) error {
	if len(name) > maxNameLen {
		name = name[:maxNameLen]
	}
	line := word
	for _, part := range []string{name, reason} {
		if part != "" {
			line += " " + printable(part)
		}
	}
	a.wmu.Lock()
	defer a.wmu.Unlock()
	if err := a.st.SetWriteDeadline(time.Now().Add(answerTimeout)); err != nil {
		return err
	}
	defer a.st.SetWriteDeadline(time.Time{}) // else the end could not be told later
	_, err := a.st.Write([]byte(line[:min(len(line), maxAnswerLine-1)] + "\n"))
	return err
}

// printable is s without what would end a line or not be seen.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}

// ended ends a registration whose stream is over, for a reason.
func (a *agentConn) ended(err error) {
	a.leave()
	a.s.g.agents.leave(a) // also where it was left before it was registered
	var refused *h2.SinkError
	if errors.As(err, &refused) { // what it said
		a.s.g.stats.agentsRefused.add(1)
		a.s.g.logAgentRefused(a, "", err.Error())
		a.st.Reset(h2.EnhanceYourCalm)
		a.s.leave()
	}
	_ = a.st.Close()
	a.s.streamEnded()
}

// leave has no new flows go to the agent on this connection, and tells it so. Those that live go on.
func (a *agentConn) leave() {
	a.mu.Lock()
	first, st := !a.over, a.st
	a.over = true
	a.mu.Unlock()
	if !first || st == nil {
		return
	}
	table := &a.s.g.agents
	for _, name := range a.granted() {
		table.noteLeft(name, time.Now())
		a.s.g.env.Agents.Release(name, a)
	}
	table.leave(a)
	a.later(func() { _ = st.CloseWrite() }) // an agent that has gone needs not hear of it
}

// later runs what may wait for the agent, for answerTimeout at most, beside what must not.
func (a *agentConn) later(do func()) {
	g := a.s.g
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state != stateClosed { // else its connection ends at once
		g.work.Go(do) // ends with answerTimeout or the connection; Close waits for it
	}
}

// granted are the names under which the agent is reached on this connection.
func (a *agentConn) granted() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := slices.Clone(a.addrs)
	for name, yes := range a.claims {
		if yes {
			list = append(list, name)
		}
	}
	return list
}

// reconsider gives and takes names as the plan has it: p lets it claim others than the one before.
func (a *agentConn) reconsider(p *plan) {
	if a.s.agentConns(p) == 0 {
		a.leave()
		a.s.g.cutFlows(func(f *Flow) bool { return f.agent() == a }, errNoAgent)
		a.s.leave()
		return
	}
	a.mu.Lock()
	claims := maps.Clone(a.claims)
	a.mu.Unlock()
	for name, had := range claims {
		switch may := a.s.mayClaim(p, name); {
		case had && !may:
			a.mu.Lock()
			a.claims[name] = false
			a.mu.Unlock()
			a.s.g.env.Agents.Release(name, a)
			a.s.g.cutFlows(func(f *Flow) bool { return f.Target.Host == name && f.agent() == a }, errNameTaken(name))
			a.later(func() { // an agent that has gone needs not hear of it
				_ = a.say(wordWithdrawn, name, "the configuration of the gateway does not allow it any more")
			})
		case !had && may:
			err := a.claim(name)
			a.later(func() { _ = a.answer(name, err) }) // as above
		}
	}
}

// errNoAgent is why flows to an agent end that is none any more.
var errNoAgent = &Error{Cause: CauseDenied, Rule: "agents", Reason: "the agent may not register any more"} // immutable

func errNameTaken(name string) error {
	return &Error{Cause: CauseDenied, Rule: "agents", Reason: "the agent may not have the name " + name + " any more"}
}

// agentProblem says why f, which stands, may not go to its agent as p has it, nil if it may: the agent may have answered after
// reconsider.
func (f *Flow) agentProblem(p *plan) error {
	a, name := f.agent(), f.Target.Host
	switch {
	case a == nil:
	case a.s.agentConns(p) == 0:
		return errNoAgent
	case name != "" && !a.s.mayClaim(p, name):
		return errNameTaken(name)
	}
	return nil
}

// agent is the agent to which f has gone, nil where it stands on none.
func (f *Flow) agent() *agentConn {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s, ok := streamUnder(f.in.dst).(*agentStream); ok {
		return s.from
	}
	if f.marked(markAnswered) && f.shown != nil {
		return f.shown.agent
	}
	return nil
}

// newAgentRules makes the rules of a listener, which was validated.
func newAgentRules(list []AgentConfig) (rules []*agentRule, err error) {
	for i := range list {
		c := &list[i]
		from, err := policy.Compile(policy.Config{Allow: c.From})
		if err != nil {
			return nil, fmt.Errorf("agents[%d].from: %w", i, err)
		}
		// It is asked with no identity of our own, so that nobody is an agent for being a neighbour.
		r := &agentRule{number: c.MaxConnections, from: func(id spiffe.ID) bool { return from.Decide(&policy.Request{Peer: id}).Allow }}
		if r.number == 0 {
			r.number = defaultAgentConns
		}
		for _, text := range c.Names {
			if strings.ContainsRune(text, '{') {
				r.own = append(r.own, ownPattern(text))
			} else {
				r.names = append(r.names, parseMatcher(text))
			}
		}
		rules = append(rules, r)
	}
	return rules, nil
}

package tunnel

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"culvert/pki/spiffe"
)

// Agent is a connection that an agent has dialled, on which flows reach it.
type Agent interface {
	Transport
	// Live is how many tunnels are open on the connection.
	Live() int
	// Key is the digest of the key that the agent has proven in TLS.
	Key() [32]byte
}

// Registry says by which names agents are reached: DNS names, and addresses of keys in their canonical text. Several
// agents may share a name. Who may claim which name was decided before. Its methods do not block and may be called by any
// number of goroutines.
type Registry interface {
	// Claim enters an agent under a name. A *ClaimError says why not; it may be claimed again later. To claim a name twice for
	// the same connection is no error.
	Claim(name string, a Agent) error
	// Release takes it out again, if it is there.
	Release(name string, a Agent)
	// Lookup returns the agents of a name, none where there are none. The list is not to be changed.
	Lookup(name string) []Agent
	// Watch returns a channel that is closed when the agents of a name have changed. stop must be called.
	Watch(name string) (changed <-chan struct{}, stop func())
}

// ClaimError says why an agent does not get a name. The agent is told.
type ClaimError struct {
	// Name is what it claimed.
	Name string
	// Reason says why, and what would be right.
	Reason string
}

// Error returns the name and the reason.
func (e *ClaimError) Error() string { return e.Name + ": " + e.Reason }

const (
	// maxClaims bounds the names of all agents together, and maxSharers how many connections may share one.
	maxClaims  = 100_000
	maxSharers = 256
)

// NewRegistry returns a registry in memory, for the agents of one gateway.
func NewRegistry() Registry {
	return &memoryRegistry{names: make(map[string][]Agent), watched: make(map[string]*watched)}
}

// memoryRegistry is a Registry in memory.
type memoryRegistry struct {
	mu      sync.RWMutex        // guards the group below
	names   map[string][]Agent  // a list is replaced, not changed
	claims  int                 // entries of all lists
	watched map[string]*watched // names that somebody watches
}

// watched is what those share who watch a name.
type watched struct {
	changed  chan struct{}
	watchers int
}

// Claim enters an agent.
func (r *memoryRegistry) Claim(name string, a Agent) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := r.names[name]
	_, isAddr := keyAddress(name)
	switch {
	case slices.Contains(list, a):
		return nil
	case isAddr && len(list) > 0 && list[0].Key() != a.Key():
		// An address is an index only: keys can be made until one fits (keyaddr). It leads to the key that is there.
		return &ClaimError{Name: name, Reason: "another key with this address is connected"}
	case r.claims >= maxClaims:
		return &ClaimError{Name: name, Reason: fmt.Sprintf("the gateway has %d names of agents, which is all it takes", maxClaims)}
	case len(list) >= maxSharers:
		return &ClaimError{Name: name, Reason: fmt.Sprintf("%d connections share this name, which is all it takes", maxSharers)}
	}
	r.claims++
	r.names[name] = append(slices.Clip(list), a)
	r.tell(name)
	return nil
}

// Release takes an agent out.
func (r *memoryRegistry) Release(name string, a Agent) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.Index(r.names[name], a)
	if i < 0 {
		return
	}
	r.claims--
	if len(r.names[name]) == 1 {
		delete(r.names, name)
	} else {
		r.names[name] = slices.Delete(slices.Clone(r.names[name]), i, i+1)
	}
	r.tell(name)
}

// Lookup returns the agents of a name.
func (r *memoryRegistry) Lookup(name string) []Agent {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.names[name]
}

// Watch returns what is closed at the next change.
func (r *memoryRegistry) Watch(name string) (<-chan struct{}, func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.watched[name]
	if w == nil {
		w = &watched{changed: make(chan struct{})}
		r.watched[name] = w
	}
	w.watchers++
	return w.changed, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if w.watchers--; w.watchers == 0 && r.watched[name] == w {
			delete(r.watched, name)
		}
	}
}

// tell wakes who watches a name. Called with mu held.
func (r *memoryRegistry) tell(name string) {
	if w := r.watched[name]; w != nil {
		delete(r.watched, name)
		close(w.changed)
	}
}

// keyRange is where the addresses of keys are (RFC 4193, section 3.1: locally assigned).
var keyRange = netip.MustParsePrefix("fd00::/8") // immutable

// keyAddress reads a name that may be the address of a key.
func keyAddress(name string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(name)
	return addr, err == nil && keyRange.Contains(addr)
}

// agentRule is an AgentConfig, ready to decide.
type agentRule struct {
	from   func(spiffe.ID) bool
	names  []matcher
	own    []ownPattern
	number int
}

// ownPattern is a pattern with parts of the agent's identity in it.
type ownPattern string

// name returns the name that an agent with this identity may claim by the pattern, "" for none.
func (p ownPattern) name(id spiffe.ID) string {
	out := []byte(nil)
	for text := string(p); text != ""; {
		part := ""
		switch {
		case len(text) >= len(patternAccount) && text[:len(patternAccount)] == patternAccount:
			part, text = id.ServiceAccount(), text[len(patternAccount):]
		case len(text) >= len(patternNamespace) && text[:len(patternNamespace)] == patternNamespace:
			part, text = id.Namespace(), text[len(patternNamespace):]
		default:
			out, text = append(out, text[0]), text[1:]
			continue
		}
		if !isLabelPart(part) {
			return "" // identities may be spelled in ways that names may not
		}
		out = append(out, part...)
	}
	if nameProblem(string(out)) != "" {
		return ""
	}
	return string(out)
}

// What stands in a pattern for parts of the agent's identity.
const (
	patternAccount   = "{sa}"
	patternNamespace = "{ns}"
)

// isLabelPart reports whether s can be a part of a label, and of one label only, in the spelling that claims have.
func isLabelPart(s string) bool {
	for i := range len(s) {
		if c := s[i]; !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return s != ""
}

// lets reports whether the rule lets an agent claim a name.
func (r *agentRule) lets(id spiffe.ID, name string) bool {
	if !r.from(id) {
		return false
	}
	t := Target{Host: name, Port: 1}
	return slices.ContainsFunc(r.names, func(m matcher) bool { return m.matches(t, false) }) ||
		slices.ContainsFunc(r.own, func(p ownPattern) bool { return p.name(id) == name })
}

package extauthz

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"

	"culvert/policy"
)

// Set is the authorizers of a gateway, by name. A Change replaces them while flows ask. All methods may be called
// concurrently.
type Set struct {
	env     Env
	current atomic.Pointer[map[string]*Client]
	closing sync.WaitGroup // clients that end
}

// NewSet makes a Set without authorizers.
func NewSet(env Env) *Set {
	s := &Set{env: env}
	s.current.Store(new(map[string]*Client))
	return s
}

// Ask is Client.Ask of the authorizer called name. Without one the flow is refused.
func (s *Set) Ask(ctx context.Context, name string, r *policy.Request) policy.Decision {
	for {
		c := (*s.current.Load())[name]
		if c == nil {
			return policy.Decision{
				Policy: policyAsk, Rule: policyAsk + "/" + name,
				Reason: fmt.Sprintf("a rule asks for authorizer %q, and there is none of that name; add it to policy.authorizers", cut(name)),
			}
		}
		if d, ok := c.tryAsk(ctx, r); ok {
			return d
		}
		// Another is in its place: a client is closed after that.
	}
}

// Stats returns the counters of each authorizer.
func (s *Set) Stats() map[string]Stats {
	all := make(map[string]Stats)
	for name, c := range *s.current.Load() {
		all[name] = c.Stats()
	}
	return all
}

// Close ends all authorizers and waits for the questions under way. No Change may be made meanwhile or after.
func (s *Set) Close() {
	s.end(*s.current.Swap(new(map[string]*Client)))
	s.closing.Wait()
}

// end closes clients, without waiting for it.
func (s *Set) end(clients map[string]*Client) {
	for _, c := range clients {
		s.closing.Go(c.Close) // ends with the questions under way; Close waits for it
	}
}

// Change is a new list of authorizers for a Set. After Stage one of Commit and Undo is to be called, else Undo.
type Change struct {
	set         *Set
	before, now map[string]*Client
}

// Prepare makes the authorizers of list. It changes nothing yet, and connects nowhere. Faults come back as one joined error, of
// *EntryErrors. One Change at a time.
func (s *Set) Prepare(list []Config) (*Change, error) {
	c := &Change{set: s, before: *s.current.Load(), now: make(map[string]*Client)}
	var faults []error
	for i := range list {
		n := new(counters)
		if old := c.before[list[i].Name]; old != nil {
			n = old.counters // they go on
		}
		client, err := newClient(&list[i], s.env, n)
		switch {
		case err != nil:
			faults = append(faults, &EntryError{Index: i, Err: err})
		case c.now[client.name] != nil:
			faults = append(faults, &EntryError{Index: i, Err: &FieldError{Field: "name", What: fmt.Sprintf("%q is the name of another one", client.name)}})
			client.Close()
		default:
			c.now[client.name] = client
		}
	}
	if len(faults) > 0 {
		s.end(c.now)
		return nil, errors.Join(faults...)
	}
	return c, nil
}

// Stage has the new authorizers asked from now on, and those before that have no successor as well: flows that are being
// decided may ask for them.
func (c *Change) Stage() {
	both := maps.Clone(c.before)
	if both == nil {
		both = make(map[string]*Client)
	}
	maps.Copy(both, c.now)
	c.set.current.Store(&both)
	for _, client := range c.now {
		client.Connect()
	}
}

// Commit leaves the new authorizers alone, and ends those before when their questions have been answered. It does not wait for
// that.
func (c *Change) Commit() {
	c.set.current.Store(&c.now)
	c.set.end(c.before)
}

// Undo goes back to what was before.
func (c *Change) Undo() {
	c.set.current.Store(&c.before)
	c.set.end(c.now)
}

// EntryError is a fault of one authorizer in a list.
type EntryError struct {
	// Index is its place in the list, from zero.
	Index int
	// Err is the fault, or several that are joined.
	Err error
}

// Error returns place and fault.
func (e *EntryError) Error() string { return fmt.Sprintf("authorizers[%d].%v", e.Index, e.Err) }

// Unwrap returns the fault.
func (e *EntryError) Unwrap() error { return e.Err }

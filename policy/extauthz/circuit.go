package extauthz

import (
	"sync"
	"time"
)

const (
	// failuresToRest is how many failures in a row let an authorizer rest: more than what a restart of a good one cuts off by
	// chance, and few enough that a dead one costs few flows the whole timeout.
	failuresToRest = 5
	// restTime is how long an authorizer is left alone. One that has come back is noticed that soon.
	restTime = time.Second
)

// circuit keeps flows from an authorizer that does not answer. After failuresToRest failures in a row nothing is asked for
// restTime; then one question at a time tries again, until one is answered.
type circuit struct {
	mu       sync.Mutex // guards what follows
	failures int        // in a row
	resting  bool
	until    time.Time // while resting: when to try again
	trying   bool      // somebody does
	why      string    // the last failure
}

// turn is what a question may do.
type turn struct {
	ask  bool
	try  bool          // it is the one that tries again; its end has to be told
	why  string        // if it may not: the last failure
	left time.Duration // and how long the rest will last, 0 while somebody tries
}

// enter says whether something may be asked now. Each turn to ask is followed by one answered, failed or withdrawn.
func (c *circuit) enter(now time.Time) turn {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.look(now)
	c.trying = c.trying || t.try
	return t
}

// rests is enter for who only wants to know whether it is worth while to wait.
func (c *circuit) rests(now time.Time) (t turn, yes bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t = c.look(now)
	return t, !t.ask
}

// look finds out what may be done. Called with mu held.
func (c *circuit) look(now time.Time) turn {
	switch {
	case !c.resting:
		return turn{ask: true}
	case c.trying || now.Before(c.until):
		return turn{why: c.why, left: max(0, c.until.Sub(now))}
	}
	return turn{ask: true, try: true}
}

// answered notes that the authorizer lives. It reports whether it was thought not to.
func (c *circuit) answered(t turn) (back bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.try {
		c.trying = false
	}
	back = c.resting
	c.failures, c.resting = 0, false
	return back
}

// failed notes a failure. It reports whether the authorizer is left alone from now on.
func (c *circuit) failed(t turn, now time.Time, why string) (rests bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.why = why
	switch {
	case t.try:
		c.trying, c.until = false, now.Add(restTime)
	case !c.resting:
		if c.failures++; c.failures >= failuresToRest {
			c.resting, c.until = true, now.Add(restTime)
			return true
		}
	}
	return false
}

// withdrawn notes that a question has come to no end.
func (c *circuit) withdrawn(t turn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.try {
		c.trying = false // the next one tries, at once
	}
}

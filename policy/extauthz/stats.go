package extauthz

import (
	"sync/atomic"
	"time"
)

// counters are what one authorizer has counted. They outlive the Client, as a reload makes another.
type counters struct {
	allowed, denied, failed, timeouts, withdrawn, skipped atomic.Int64
	latency                                               atomic.Int64 // nanoseconds
}

// Stats is a snapshot of the counters of one authorizer, all since the start of the process. Each question is in one of the
// first six.
type Stats struct {
	// Allowed and Denied are answers.
	Allowed, Denied int64
	// Failed are questions without an answer that could be used, but for Timeouts, which had none in time.
	Failed, Timeouts int64
	// Withdrawn are questions whose flow did not wait any more.
	Withdrawn int64
	// Skipped are flows refused without a question, because the authorizer had not answered others before.
	Skipped int64
	// Latency is how long Allowed and Denied have taken together.
	Latency time.Duration
	// InFlight is how many are being asked now.
	InFlight int
}

// Stats returns the counters.
func (c *Client) Stats() Stats {
	n := c.counters
	return Stats{
		Allowed: n.allowed.Load(), Denied: n.denied.Load(), Failed: n.failed.Load(), Timeouts: n.timeouts.Load(),
		Withdrawn: n.withdrawn.Load(), Skipped: n.skipped.Load(), Latency: time.Duration(n.latency.Load()), InFlight: len(c.slots),
	}
}

package policy

import "time"

// Obligations are what the hop that asked has to do with a flow that is allowed. They are made by Compile and never
// change, so that a decision only points to them.
type Obligations struct {
	// Ask are the names of the external authorizers that have to allow the flow as well, of which one refusal counts.
	Ask []string
	// Limits that the flow counts against. Every one of them has to have room.
	Limits []*Limit
	// Headers to add to the request, where the hop has one in the clear.
	Headers []Header
	// Audit tells that the flow is to be recorded as one that a rule watches.
	Audit bool
}

// Header is a field of a request.
type Header struct {
	Name, Value string
}

// Limit bounds what one identity may do. Each identity has a count of its own; peers without one are counted by the
// address that they come from. Zero is no bound.
type Limit struct {
	// Place is where the limit is written.
	Place Place
	// Name of the rule that has the limit: with Place it tells limits apart.
	Name string
	// FlowsPerSecond that may begin, on average; Burst may begin at once. Default of Burst: FlowsPerSecond, at least 1.
	FlowsPerSecond float64
	Burst          int
	// Flows that may live at once.
	Flows int
	// BytesPerSecond that may pass, both ways together. A flow waits; it is not refused.
	BytesPerSecond int64
	// Quota is how many bytes may pass in each Period, which begins with the first flow. When they have passed, live flows
	// end and new ones are refused until the period is over. Default of Period: a day.
	Quota  int64
	Period time.Duration
}

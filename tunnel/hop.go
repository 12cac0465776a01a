package tunnel

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"

	"culvert/pki/spiffe"
)

// Hop is a gateway that flows can be sent through, as configured. It does not change.
type Hop struct {
	// Name is its name in the configuration, or its address where it is given as one.
	Name string
	// Identities are those of which it must have one; none: anybody of this gateway's trust domain and namespace.
	Identities []spiffe.ID
	// Transport names how it is reached: TransportH2, or a key of Env.Transports.
	Transport string

	endpoints      []endpoint
	streamsPerConn int
	spread         int // connections that flows are spread over
	inner          *inner
	sentBy         string // what this gateway tells it to be
	perTarget      bool   // it is a workload, to which an inner tunnel leads
	outer          *outer // it is a proxy of others; nil: a gateway
}

// inner is what is common to the workloads that are reached by a second tunnel inside of one to a hop.
type inner struct {
	identities []spiffe.ID
	network    string
}

// endpoint is one address of a hop.
type endpoint struct {
	target Target
	weight int
}

// emptyIdentities is what is wrong with an inner tunnel to nobody. ztunnel takes such a list for that, too.
const emptyIdentities = "identities is an empty list, so that it could never connect; name who the workload may be, or leave it out for " +
	"anybody of this gateway's trust domain and namespace"

// newHop makes the Hop called name of its configuration, which has been validated.
func newHop(name string, c *HopConfig) (*Hop, error) {
	h := &Hop{Name: name, Transport: c.Transport, streamsPerConn: c.StreamsPerConnection, spread: c.Connections, sentBy: c.IstioSource}
	if h.streamsPerConn <= 0 {
		h.streamsPerConn = defaultStreamsPerConn
	}
	if h.spread <= 0 {
		h.spread = min(runtime.GOMAXPROCS(0), maxDefaultSpread)
	}
	if h.Transport == "" {
		h.Transport = TransportH2
	}
	list := c.Endpoints
	if c.Address != "" {
		list = []EndpointConfig{{Address: c.Address}}
	}
	for _, e := range list {
		t, err := ParseAuthority(e.Address)
		if err != nil {
			return nil, fmt.Errorf("hop %s: %w", name, err)
		}
		h.endpoints = append(h.endpoints, endpoint{target: t, weight: max(e.Weight, 1)})
	}
	if len(h.endpoints) == 0 {
		return nil, fmt.Errorf("hop %s: no address", name)
	}
	if c.Identity != "" {
		id, err := spiffe.ParseName(c.Identity)
		if err != nil {
			return nil, fmt.Errorf("hop %s: %w", name, err)
		}
		h.Identities = []spiffe.ID{id}
	}
	if c.Inner != nil && c.Inner.Identities != nil && len(c.Inner.Identities) == 0 {
		return nil, fmt.Errorf("hop %s: inner.%s", name, emptyIdentities)
	}
	if c.Inner != nil {
		h.inner = &inner{network: c.Inner.Network}
		for _, text := range c.Inner.Identities {
			id, err := spiffe.ParseName(text)
			if err != nil {
				return nil, fmt.Errorf("hop %s: inner: %w", name, err)
			}
			h.inner.identities = append(h.inner.identities, id)
		}
	}
	if c.Tun != "" {
		h.beProxy(c)
	}
	return h, nil
}

// key is what connections to h may be shared by: after a reload a hop with the same name and another
// address or identity is another hop.
func (h *Hop) key() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s %d %d %s", h.Name, h.Transport, h.Identities, h.streamsPerConn, h.spread, h.sentBy)
	for _, e := range h.endpoints {
		fmt.Fprintf(&b, " %s*%d", e.target, e.weight)
	}
	if h.outer != nil {
		b.WriteString(h.outer.key)
	}
	return b.String()
}

// order returns the addresses of h in the order to try: the first by weight, then the others.
func (h *Hop) order() []Target {
	if len(h.endpoints) == 1 {
		return []Target{h.endpoints[0].target}
	}
	left := append([]endpoint(nil), h.endpoints...)
	var list []Target
	for len(left) > 0 {
		sum := 0
		for _, e := range left {
			sum += e.weight
		}
		at, i := rand.IntN(sum), 0
		for at >= left[i].weight {
			at -= left[i].weight
			i++
		}
		list = append(list, left[i].target)
		left = append(left[:i], left[i+1:]...)
	}
	return list
}

// chain is one or more hops, each reached through those before it: CONNECT to the second hop goes to the
// first, and inside that stream is a transport to the second. Every hop sees its peer and the next
// address only.
type chain struct {
	last *Hop
	rest *chain // the hops before the last; nil: the last hop is dialled
	name string // "lb,east", for records
	key  string // what connections may be shared by
}

// newChain makes the chain of hops, nearest first; nil for none.
func newChain(hops []*Hop) *chain {
	var c *chain
	for _, h := range hops {
		next := &chain{last: h, rest: c, name: h.Name, key: h.key()}
		if c != nil {
			next.name, next.key = c.name+","+next.name, c.key+"\n"+next.key
		}
		c = next
	}
	return c
}

// to is the chain by which a flow to t goes: c, or, where its last hop is passed by an inner tunnel, c and the workload at t.
func (c *chain) to(t Target) *chain {
	in := c.last.inner
	if in == nil {
		return c
	}
	address := t.String()
	h := &Hop{
		Name: address, Identities: in.identities, Transport: TransportH2, perTarget: true,
		endpoints: []endpoint{{target: t, weight: 1}}, streamsPerConn: c.last.streamsPerConn, spread: 1,
	}
	return &chain{last: h, rest: c, name: c.name + "," + address, key: c.key + "\ninner " + address + fmt.Sprint(in.identities)}
}

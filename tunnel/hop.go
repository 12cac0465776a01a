package tunnel

import (
	"cmp"
	"fmt"
	"runtime"
	"strings"

	"culvert/pki/spiffe"
	"culvert/tunnel/endpoint"
)

// Hop is a gateway that flows can be sent through, as configured. It does not change.
type Hop struct {
	// Name is its name in the configuration, or its address where it is given as one.
	Name string
	// Identities are those of which it must have one; none: anybody of this gateway's trust domain and namespace.
	Identities []spiffe.ID
	// Transport names how it is reached: TransportH2, or a key of Env.Transports.
	Transport string

	address        Target             // not valid where it has a set
	conf           *endpoint.Config   // of set; nil where it has one address and nothing else is said of that
	set            *endpoint.Set      // of which one is picked for each flow
	endpoint       *endpoint.Endpoint // that was picked; nil where nothing was
	streamsPerConn int
	spread         int // connections that flows are spread over
	inner          *inner
	sentBy         string            // what this gateway tells it to be
	perTarget      bool              // it is a workload, to which an inner tunnel leads
	outer          *outer            // it is a proxy of others; nil: a gateway
	forms          map[string]*outer // of its endpoints that want others than outer
	upstream       *upstream         // it is one that connects to what it is asked for; nil: it is not
}

// inner is what is common to the workloads that are reached by a second tunnel inside of one to a hop.
type inner struct {
	identities []spiffe.ID
	network    string
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
	switch {
	case !c.Config.IsZero():
		conf := c.Config
		if c.Address != "" {
			conf.Endpoints = []endpoint.EndpointConfig{{Address: c.Address}}
		}
		if !conf.Places() {
			return nil, fmt.Errorf("hop %s: no address", name)
		}
		h.conf = &conf
	default:
		var err error
		if h.address, err = ParseAuthority(c.Address); err != nil {
			return nil, fmt.Errorf("hop %s: %w", name, err)
		}
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
	if c.Proxy != "" {
		h.upstream = &upstream{kind: c.Proxy, login: c.Login, tls: TLSConfig{Roots: c.TLS.Roots, ServerName: c.TLS.ServerName, ALPN: []string{protoHTTP1}}}
	}
	return h, nil
}

// places are the address of h, or those of its endpoints in the configuration, or the name that DNS is asked for.
func (h *Hop) places() (list []Target) {
	if h.conf == nil {
		return []Target{h.address}
	}
	for _, e := range h.conf.Endpoints {
		t, _ := ParseAuthority(e.Address) // it was validated
		list = append(list, t)
	}
	if len(list) == 0 {
		list = append(list, Target{Host: strings.ToLower(strings.TrimSuffix(h.conf.DNS.Name, ".")), Port: cmp.Or(h.conf.DNS.Port, 443)})
	}
	return list
}

// key is what connections to h may be shared by: after a reload a hop with the same name and another
// address or identity is another hop. Of one that was picked chain.at has the rest.
func (h *Hop) key() string {
	key := fmt.Sprintf("%s %s %s %d %d %s %s", h.Name, h.Transport, h.Identities, h.streamsPerConn, h.spread, h.sentBy, h.address)
	if h.outer != nil {
		key += h.outer.key
	}
	if u := h.upstream; u != nil {
		key += fmt.Sprintf(" %s %q %v", u.kind, u.login, u.tls)
	}
	return key
}

// String returns the name, and the endpoint that was picked.
func (h *Hop) String() string {
	if h.endpoint == nil {
		return h.Name
	}
	return h.Name + " at " + h.endpoint.String()
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
		address: t, streamsPerConn: c.last.streamsPerConn, spread: 1,
	}
	return &chain{last: h, rest: c, name: c.name + "," + address, key: c.key + "\ninner " + address + fmt.Sprint(in.identities)}
}

// at is c with the endpoint e in the place of the set that its last hop has.
func (c *chain) at(e *endpoint.Endpoint) *chain {
	h := *c.last
	h.set, h.conf, h.endpoint, h.address = nil, nil, e, targetOf(e)
	if len(e.Identities) > 0 {
		h.Identities = e.Identities
	}
	key := c.key + "\nat " + e.Key()
	if o := h.forms[e.Tun]; o != nil {
		h.reachAs(o)
		key += fmt.Sprint(o.key, " ", o.spread)
	}
	return &chain{last: &h, rest: c.rest, name: c.name, key: key}
}

package tunnel

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"culvert/policy"
)

// destLocal is the destination that stands for this host's own.
const destLocal = "local"

// toAgents is what records have for the hop of flows that go to agents.
const toAgents = "agents"

// route is a RouteConfig, ready to match. It does not change.
type route struct {
	name     string    // as in the configuration: "routes[2]"
	matchers []matcher // what it takes
	ports    []uint16  // none: every port
	fromAny  bool
	sentBy   []string       // by what; none: by anybody
	keep     bool           // the destination sees where the flow came from
	source   netip.Addr     // the destination sees this address of the host; not valid: the one that the system takes
	tls      *TLSConfig     // spoken with the destination; nil: nothing is
	agents   bool           // flows go to agents that have registered here
	inner    uint16         // the port of workloads where what is carried goes, a tunnel that is not opened; 0: it is none
	chain    *chain         // nil, and agents is not set: this gateway connects to the destination itself
	guard    *policy.Egress // opens what a direct route names; nil where it names nothing
	http     *httpMatch     // the requests that it takes; nil: every flow
	inspect  bool           // its flows are looked into
	proxy    byte           // the version of the PROXY protocol that the destination is told of a flow by; 0: it is not
	to       Target         // where its flows go; zero: where they want to
}

// matcherKind is what a matcher takes.
type matcherKind uint8

const (
	matchAll   matcherKind = iota // every destination, "*"
	matchLocal                    // this host's own addresses
	matchName                     // one name
	matchBelow                    // all names below one
	matchAddrs                    // an address or a range
)

// matcher is one entry of a route's Hosts or Destinations.
type matcher struct {
	kind   matcherKind
	name   string       // of matchName; of matchBelow with its leading dot
	prefix netip.Prefix // of matchAddrs
	port   uint16       // 0: every port
}

// parseMatcher reads an entry of Hosts or Destinations that checkEntry has found well formed.
func parseMatcher(text string) matcher {
	host, port := cutEntryPort(text)
	host = strings.TrimSuffix(strings.ToLower(strings.Trim(host, "[]")), ".")
	m := matcher{port: port}
	if prefix, err := netip.ParsePrefix(host); err == nil {
		m.kind, m.prefix = matchAddrs, prefix.Masked()
		return m
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		addr = addr.Unmap()
		m.kind, m.prefix = matchAddrs, netip.PrefixFrom(addr, addr.BitLen())
		return m
	}
	below, wild := strings.CutPrefix(host, "*")
	switch {
	case host == destLocal:
		m.kind = matchLocal
	case host == "*":
		m.kind = matchAll
	case wild:
		m.kind, m.name = matchBelow, below
	default:
		m.kind, m.name = matchName, host
	}
	return m
}

// cutEntryPort cuts ":PORT" off an entry: after brackets or a prefix length, or where there is one colon.
func cutEntryPort(text string) (host string, port uint16) {
	i := strings.LastIndexByte(text, ':')
	if i < 0 || strings.Count(text, ":") > 1 && strings.LastIndexAny(text[:i], "]/") < 0 {
		return text, 0
	}
	n, err := strconv.ParseUint(text[i+1:], 10, 16)
	if err != nil {
		return text, 0
	}
	return text[:i], uint16(n)
}

// matches reports whether m takes t. local tells that t is one of this host's own addresses.
func (m *matcher) matches(t Target, local bool) bool {
	if m.port != 0 && m.port != t.Port {
		return false
	}
	switch m.kind {
	case matchAll:
		return true
	case matchLocal:
		return local
	case matchName:
		return t.Host == m.name
	case matchBelow:
		return len(t.Host) > len(m.name) && strings.HasSuffix(t.Host, m.name)
	}
	return t.Addr.IsValid() && m.prefix.Contains(t.Addr)
}

// names reports whether m names a destination, as opposed to taking whatever comes.
func (m *matcher) names() bool { return m.kind >= matchName }

// namesHost reports whether m names hosts.
func (m *matcher) namesHost() bool { return m.kind == matchName || m.kind == matchBelow }

// covers reports whether m takes all that o takes at the given port (0: every port).
func (m *matcher) covers(o *matcher, port uint16) bool {
	if m.port != 0 && m.port != port {
		return false
	}
	switch m.kind {
	case matchAll:
		return true
	case matchLocal:
		return o.kind == matchLocal
	case matchName:
		return o.kind == matchName && o.name == m.name
	case matchBelow:
		return (o.kind == matchName && len(o.name) > len(m.name) || o.kind == matchBelow) && strings.HasSuffix(o.name, m.name)
	}
	return o.kind == matchAddrs && m.prefix.Bits() <= o.prefix.Bits() && m.prefix.Contains(o.prefix.Addr())
}

// fits reports whether r takes flows that are sent by such a gateway, "" for what none has said.
func (r *route) fits(sentBy string) bool {
	return len(r.sentBy) == 0 || slices.Contains(r.sentBy, sentBy)
}

// takesPort reports whether r takes flows to a port.
func (r *route) takesPort(port uint16) bool {
	return len(r.ports) == 0 || slices.Contains(r.ports, port)
}

// match returns the matcher of r that takes t, nil if none does.
func (r *route) match(t Target, local bool) *matcher {
	if !r.takesPort(t.Port) {
		return nil
	}
	for i := range r.matchers {
		if r.matchers[i].matches(t, local) {
			return &r.matchers[i]
		}
	}
	return nil
}

// onlyLocal reports whether r leads to this host's own addresses and nowhere else.
func (r *route) onlyLocal() bool {
	return r.direct() && r.to == (Target{}) && !slices.ContainsFunc(r.matchers, func(m matcher) bool { return m.kind != matchLocal })
}

// direct reports whether this gateway connects to the destinations itself.
func (r *route) direct() bool { return r.chain == nil && !r.agents }

// leadsTo names where r leads, for records.
func (r *route) leadsTo() string {
	switch {
	case r.agents:
		return toAgents
	case r.chain == nil:
		return ""
	}
	return r.chain.name
}

// compileMatchers returns what a route takes; without Hosts and Destinations that is everything.
func compileMatchers(c *RouteConfig) []matcher {
	if len(c.Hosts)+len(c.Destinations) == 0 {
		return []matcher{{kind: matchAll}}
	}
	var list []matcher
	for _, text := range slices.Concat(c.Hosts, c.Destinations) {
		list = append(list, parseMatcher(text))
	}
	return list
}

// guardEntries are the entries of a direct route in the form of an egress list: what the route names is
// opened by it (SECURITY.md, "What is promised"). Ports of the route are written to each entry without one.
func guardEntries(c *RouteConfig) []string {
	if c.To != "" {
		return []string{c.To}
	}
	var list []string
	for _, text := range slices.Concat(c.Hosts, c.Destinations) {
		m := parseMatcher(text)
		if m.kind == matchLocal {
			continue
		}
		if m.port != 0 || len(c.Ports) == 0 {
			list = append(list, text)
			continue
		}
		if addr, err := netip.ParseAddr(text); err == nil && addr.Is6() {
			text = "[" + text + "]"
		}
		for _, port := range c.Ports {
			list = append(list, text+":"+strconv.Itoa(int(port)))
		}
	}
	return list
}

package tunnel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"culvert/policy"
)

// routes checks every route, then what the routes are to each other.
func (v *validator) routes() {
	var names []string
	for i := range v.cfg.Listeners {
		if name := v.cfg.Listeners[i].Name; name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	sound := make([]bool, len(v.cfg.Routes)) // without a fault, so that something can be concluded from it
	v.matchers = make([][]matcher, len(v.cfg.Routes))
	for i := range v.cfg.Routes {
		before := len(v.problems)
		v.route(i, names)
		sound[i] = len(v.problems) == before
		if !sound[i] {
			continue
		}
		v.matchers[i] = compileMatchers(&v.cfg.Routes[i])
		if by := v.shadowedBy(i, sound, names); len(by) > 0 {
			v.note(fmt.Sprintf("routes[%d]", i), "the route can never match: %s before it %s every flow that it would; put this one first, or remove it",
				strings.Join(by, " and "), plural(len(by), "takes", "take"))
			sound[i] = false
		} else if v.beyondForwards(&v.cfg.Routes[i]) {
			v.note(fmt.Sprintf("routes[%d]", i), "the route can never match: its listeners forward to other destinations only; name their to under hosts or destinations, or remove the route")
		}
	}
}

func (v *validator) route(i int, listeners []string) {
	r := &v.cfg.Routes[i]
	at := fmt.Sprintf("routes[%d]", i)
	for _, list := range []struct {
		name  string
		empty bool
	}{
		{"listeners", r.Listeners != nil && len(r.Listeners) == 0}, {"hosts", r.Hosts != nil && len(r.Hosts) == 0},
		{"destinations", r.Destinations != nil && len(r.Destinations) == 0}, {"ports", r.Ports != nil && len(r.Ports) == 0},
		{"istioSource", r.IstioSource != nil && len(r.IstioSource) == 0},
	} {
		if list.empty {
			v.note(at+"."+list.name, "%s is an empty list, so that the route would never match; leave it out to match all", list.name)
		}
	}
	for j, name := range r.Listeners {
		if !slices.Contains(listeners, name) {
			v.note(fmt.Sprintf("%s.listeners[%d]", at, j), "there is no listener %q; %s", name, oneOf("listeners", listeners))
		}
	}
	for j, port := range r.Ports {
		if port == 0 {
			v.note(fmt.Sprintf("%s.ports[%d]", at, j), "0 is no port; it should be from 1 to 65535")
		}
	}
	if r.From != "" && r.From != fromAny {
		v.note(at+".from", "from is %q; it should be any, or left out", r.From)
	}
	switch {
	case r.Source == "":
	case r.Source != keepSource && !isSource(r.Source):
		v.note(at+".source", "source is %q; it should be keep, or an address of this host such as 10.0.0.5", r.Source)
	case len(r.Via) > 0:
		v.note(at+".source", "the next hop sees this gateway, and is told where the flow came from; remove source, or via")
	}
	v.tls(at+".tls", r.TLS)
	v.toAgents(at+".agents", r)
	v.inner(at, r)
	for j, kind := range r.IstioSource {
		v.sender(fmt.Sprintf("%s.istioSource[%d]", at, j), kind)
	}
	v.entries(at, r)
	v.checkHTTP(at, r)
	if r.Inspect != "" && r.Inspect != inspectHTTP {
		v.note(at+".inspect", "inspect is %q; it should be http, or left out", r.Inspect)
	}
	if r.ProxyProtocol != "" && proxyVersions[r.ProxyProtocol] == 0 {
		v.note(at+".proxyProtocol", "proxyProtocol is %q; it should be v1 or v2, or left out", r.ProxyProtocol)
	}
	v.hops(at, r.Via)
}

// hops checks a chain of hops.
func (v *validator) hops(at string, via []string) {
	for j, hop := range via {
		place := fmt.Sprintf("%s.via[%d]", at, j)
		if slices.Contains(via[:j], hop) {
			v.note(place, "hop %q is in the chain twice; name each hop once", hop)
		}
		if _, known := v.cfg.Hops[hop]; known {
			continue
		}
		if strings.Contains(hop, ":") {
			v.hopAddress(place, hop)
		} else {
			v.note(place, "there is no hop %q; %s, or write host:port, such as gw.example:15008", hop, oneOf("hops", v.hopNames()))
		}
	}
}

// tls checks how TLS is to be spoken.
func (v *validator) tls(at string, c *TLSConfig) {
	if c == nil {
		return
	}
	if c.ServerName != "" {
		if t, err := ParseAuthority(net.JoinHostPort(c.ServerName, "443")); err != nil || t.Socket != "" {
			v.note(at+".serverName", "%q is no name of a server; it should be like api.example.com", c.ServerName)
		}
	}
	switch {
	case c.Cert != "" && c.Key == "":
		v.note(at+".key", "the certificate has no key; name its file, or remove cert")
	case c.Cert == "" && c.Key != "":
		v.note(at+".cert", "the key has no certificate; name its file, or remove key")
	}
	for i, p := range c.ALPN {
		if p == "" || len(p) > 255 {
			v.note(fmt.Sprintf("%s.alpn[%d]", at, i), "%q is no protocol; it should be like h2 or http/1.1", p)
		}
	}
	if c.MinVersion != "" && tlsVersion(c.MinVersion) == 0 {
		v.note(at+".minVersion", "%q is no version that is spoken; it should be 1.2 or 1.3", c.MinVersion)
	}
}

// isSource reports whether text is an address that connections may come from.
func isSource(text string) bool {
	a, err := netip.ParseAddr(text)
	return err == nil && a.Zone() == "" && !a.IsUnspecified() && !a.IsMulticast()
}

// upstreamHop checks a hop that is a proxy which connects to what it is asked for.
func (v *validator) upstreamHop(at string, h *HopConfig) {
	switch {
	case h.Proxy == "" && h.Login != "":
		v.note(at+".login", "only a hop that is a proxy has a login; remove it, or write proxy: http")
		return
	case h.Proxy == "":
		return
	case !slices.Contains(proxyKinds(), h.Proxy):
		v.note(at+".proxy", "%q is no kind of proxy; it should be one of %s", h.Proxy, strings.Join(proxyKinds(), ", "))
	}
	if h.TLS.None {
		v.note(at+".tls.none", "a proxy without TLS is of kind http; write proxy: http, and remove tls")
	}
	for _, f := range []struct {
		name  string
		there bool
	}{{"identity", h.Identity != ""}, {"transport", h.Transport != ""}, {"tun", h.Tun != ""}, {"inner", h.Inner != nil}} {
		if f.there {
			v.note(at+"."+f.name, "a proxy of kind %s has no %s; remove it, or write it at the gateway behind", h.Proxy, f.name)
		}
	}
}

// oneOf says what to do about a name that is not in the list.
func oneOf(list string, names []string) string {
	if len(names) == 0 {
		return "add it to " + list
	}
	return "name one of " + list + " (" + strings.Join(names, ", ") + ")"
}

// entries checks the form of Hosts and Destinations; policy knows what an entry may be.
func (v *validator) entries(at string, r *RouteConfig) {
	for name, list := range map[string][]string{"hosts": r.Hosts, "destinations": r.Destinations} {
		for j, text := range list {
			if entryProblem(text) != "" {
				continue
			}
			if m := parseMatcher(text); m.port != 0 && len(r.Ports) > 0 && !slices.Contains(r.Ports, m.port) {
				v.note(fmt.Sprintf("%s.%s[%d]", at, name, j), "%q can never match, as its port is not among the route's ports", text)
			}
		}
	}
	for j, text := range r.Hosts {
		place := fmt.Sprintf("%s.hosts[%d]", at, j)
		if what := entryProblem(text); what != "" {
			v.note(place, "%s", what)
		} else if k := parseMatcher(text).kind; k == matchAddrs || k == matchLocal {
			v.note(place, "%q is no name; it belongs under destinations", text)
		}
	}
	for j, text := range r.Destinations {
		place := fmt.Sprintf("%s.destinations[%d]", at, j)
		if what := entryProblem(text); what != "" {
			v.note(place, "%s", what)
			continue
		}
		switch parseMatcher(text).kind {
		case matchLocal:
			if len(r.Via) > 0 || r.Agents {
				v.note(place, "what is local is reached directly; remove via or agents, or make a route of its own for local")
			}
		case matchAddrs, matchAll:
		default:
			v.note(place, "%q is a name; it belongs under hosts. Destinations are local, addresses and ranges such as 10.0.0.0/8", text)
		}
	}
}

func entryProblem(text string) string {
	_, err := policy.CompileEgress("", []string{text}, policy.Own{})
	var entry *policy.EntryError
	if errors.As(err, &entry) {
		return fmt.Sprintf("%q %s", entry.Entry, entry.Reason)
	}
	return ""
}

// shadowedBy returns the routes before route i that together take every flow that it would, nil if it can
// match. Each listener, entry and port is looked for by itself.
func (v *validator) shadowedBy(i int, sound []bool, all []string) []string {
	r := &v.cfg.Routes[i]
	ports := r.Ports
	if len(ports) == 0 {
		ports = []uint16{0}
	}
	listeners := r.Listeners
	if len(listeners) == 0 {
		listeners = all
	}
	var by []string
	for _, listener := range listeners {
		for _, m := range v.matchers[i] {
			for _, port := range ports {
				if m.port != 0 {
					if port != 0 && port != m.port {
						continue // such a flow does not exist
					}
					port = m.port
				}
				j := v.taker(i, sound, listener, &m, port)
				if j < 0 {
					return nil
				}
				if name := fmt.Sprintf("routes[%d]", j); !slices.Contains(by, name) {
					by = append(by, name)
				}
			}
		}
	}
	return by
}

// taker returns the first route before route i that takes all of m at that port from a listener, -1 if
// none does.
func (v *validator) taker(i int, sound []bool, listener string, m *matcher, port uint16) int {
	http := v.cfg.Routes[i].HTTP
	for j := range i {
		r := &v.cfg.Routes[j]
		if !sound[j] || !r.HTTP.covers(http) || len(r.IstioSource) > 0 || len(r.Listeners) > 0 && !slices.Contains(r.Listeners, listener) ||
			len(r.Ports) > 0 && !slices.Contains(r.Ports, port) {
			continue
		}
		for k := range v.matchers[j] {
			if v.matchers[j][k].covers(m, port) {
				return j
			}
		}
	}
	return -1
}

// beyondForwards reports whether all listeners of r forward to destinations that r does not take.
func (v *validator) beyondForwards(r *RouteConfig) bool {
	if len(r.Listeners) == 0 {
		return false
	}
	takes := route{matchers: compileMatchers(r), ports: r.Ports}
	for _, name := range r.Listeners {
		i := slices.IndexFunc(v.cfg.Listeners, func(l ListenerConfig) bool { return l.Name == name })
		if i < 0 || v.cfg.Listeners[i].Kind != KindForward {
			return false
		}
		to, err := ParseAuthority(v.cfg.Listeners[i].To)
		if err != nil || takes.match(to, to.Addr.IsValid()) != nil {
			return false
		}
	}
	return true
}

func (v *validator) hopNames() []string {
	var names []string
	for name := range v.cfg.Hops {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

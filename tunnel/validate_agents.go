package tunnel

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"culvert/policy"
	"culvert/tunnel/endpoint"
)

// agents checks who may register at a listener.
func (v *validator) agents(at string, l *ListenerConfig) {
	if len(l.Agents) > 0 && l.Kind != KindHBONE && l.Kind != "" {
		v.note(at+".agents", "agents register at a listener of kind hbone; remove agents, or write kind: hbone")
		return
	}
	if len(l.Agents) > 0 && !slices.ContainsFunc(v.cfg.Routes, func(r RouteConfig) bool {
		return r.Agents
	}) {
		v.note(at+".agents", "no route leads to agents, so no flow would reach them; add one, such as {hosts: [NAME], agents: true}")
	}
	for i := range l.Agents {
		c, place := &l.Agents[i], fmt.Sprintf("%s.agents[%d]", at, i)
		if len(c.From) == 0 {
			v.note(place, "it names nobody; add from: with the identities of the agents, such as cluster.local/ns/devices/* or key:…")
		}
		if _, err := policy.Compile(policy.Config{Allow: c.From}); err != nil {
			v.joinAs(place+".from", err)
		}
		if slices.Contains(c.From, fromAny) {
			v.note(place+".from", "an agent has an identity; name it instead of any")
		}
		for j, name := range c.Names {
			if what := patternProblem(name); what != "" {
				v.note(fmt.Sprintf("%s.names[%d]", place, j), "%s", what)
			}
		}
		if c.MaxConnections < 0 {
			v.note(place+".maxConnections", "the number is negative; it should be 1 or more, or left out")
		}
	}
}

// toAgents checks a route to agents.
func (v *validator) toAgents(at string, r *RouteConfig) {
	switch {
	case !r.Agents:
	case len(r.Via) > 0:
		v.note(at, "agents are reached on the connections that they have dialled; remove via, or agents")
	case r.Source != "":
		v.note(at, "an agent sees this gateway, and is told where the flow came from; remove source, or agents")
	case !slices.ContainsFunc(v.cfg.Listeners, func(l ListenerConfig) bool { return len(l.Agents) > 0 }):
		v.note(at, "no agent can register; an hbone listener needs agents: [{from: [PRINCIPAL], names: [NAME]}]")
	}
}

// patternProblem says what is wrong with a name that agents may claim.
func patternProblem(name string) string {
	if strings.ContainsRune(name, '{') {
		for label := range strings.SplitSeq(name, ".") {
			if strings.Contains(label, patternAccount) && strings.Contains(label, patternNamespace) {
				return fmt.Sprintf("%q makes one name of two identities, as {sa} and {ns} may both have a hyphen; they should stand in labels of their own, such as {sa}.{ns}.devices.example", name)
			}
		}
		full := strings.NewReplacer(patternAccount, "a", patternNamespace, "a").Replace(name)
		if strings.ContainsAny(full, "{}*") || nameProblem(full) != "" || full != strings.ToLower(full) {
			return fmt.Sprintf("%q is no pattern for names; it should be a name in lower case with {sa} or {ns} in it, such as {sa}.devices.example", name)
		}
		return ""
	}
	if what := entryProblem(name); what != "" {
		return what
	}
	switch m := parseMatcher(name); {
	case m.port != 0:
		return fmt.Sprintf("%q has a port; an agent claims a name for all ports", name)
	case m.kind == matchAddrs || m.kind == matchLocal:
		return fmt.Sprintf("%q is no name; an agent has the addresses of its own key without a claim, and no others", name)
	}
	return ""
}

// agent checks a listener that dials.
func (v *validator) agent(at string, l *ListenerConfig) {
	if l.Kind != KindAgent {
		for _, f := range []struct {
			field string
			set   bool
		}{{"hop", l.Hop != ""}, {"via", len(l.Via) > 0}, {"names", len(l.Names) > 0}, {"connections", l.Connections != 0}, {"offer", len(l.Offer) > 0}} {
			if f.set {
				v.note(at+"."+f.field, "only a listener of kind agent has %s; remove it, or write kind: agent", f.field)
			}
		}
		return
	}
	if l.Address != "" {
		v.note(at+".address", "a listener of kind agent dials its hop, and listens nowhere; remove address")
	}
	if l.Hop == "" {
		v.note(at, "the agent has no hop where it registers; add hop: with a name of hops, or host:port")
	} else {
		v.hops(at, slices.Concat(l.Via, []string{l.Hop}))
		if h := v.cfg.Hops[l.Hop]; h.Tun != "" || h.Inner != nil || h.DNS.Type == endpoint.TypeSRV {
			v.note(at+".hop", "an agent registers at a gateway that it connects to itself; hop %q needs to be one without tun, inner and dns of type srv", l.Hop)
		}
	}
	for i, name := range l.Names {
		place := fmt.Sprintf("%s.names[%d]", at, i)
		t, problem := parseHost(name, false)
		switch {
		case problem != "":
			v.note(place, "%q is no name: %s", name, problem)
		case t.Host == "":
			v.note(place, "%q is an address; an agent has those of its key without a claim, and no others", name)
		case t.Host != name:
			v.note(place, "%q is not the canonical spelling of the name, which is %s", name, t.Host)
		case slices.Contains(l.Names[:i], name):
			v.note(place, "%q is there twice", name)
		}
	}
	if len(l.Names) > maxNames {
		v.note(at+".names", "these are %d names; an agent claims %d at most, and others by another listener", len(l.Names), maxNames)
	}
	if l.Connections < 0 {
		v.note(at+".connections", "the number is negative; it should be 1 or more, or left out")
	}
	for _, port := range slices.Sorted(maps.Keys(l.Offer)) {
		place := fmt.Sprintf("%s.offer.%d", at, port)
		if port == 0 {
			v.note(place, "0 is no port; it should be from 1 to 65535")
		}
		if _, err := ParseAuthority(l.Offer[port]); err != nil {
			v.note(place, "%v; it should be host:port, such as 127.0.0.1:8080", err)
		}
	}
}

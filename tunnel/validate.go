package tunnel

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"culvert/capture"
	"culvert/pki/spiffe"
	"culvert/policy"
	"culvert/tunnel/endpoint"
)

// Problem is one thing that is wrong with a Config.
type Problem struct {
	// Path is the place, with the names of the file: "routes[2].via[0]", "hops.east.address".
	Path string
	// What says what is wrong there and what would be right.
	What string
}

// Problems are all that is wrong with a Config, in its order.
type Problems []Problem

// Error returns one problem per line.
func (p Problems) Error() string {
	var b strings.Builder
	for i, one := range p {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(one.Path + ": " + one.What)
	}
	return b.String()
}

// Validate returns Problems with everything that is wrong with c, or nil. It opens and resolves nothing,
// and reads no file, so a Config is right or wrong on every host alike. kinds are listener kinds served
// besides those of this package.
func (c *Config) Validate(kinds ...string) error {
	v := &validator{cfg: c, kinds: append([]string{KindHBONE, KindSOCKS5, KindHTTPProxy, KindProxy, KindForward, KindTProxy, KindRedirect, KindDNS, KindXTun, KindAgent, KindIngress}, kinds...)}
	v.join("policy", c.Policy.Validate())
	if _, err := policy.Compile(policy.Config{Allow: c.TrustHeaders}); err != nil {
		v.joinAs("trustHeaders", err)
	}
	v.listeners()
	for name, hop := range c.Hops {
		v.hop(name, &hop)
	}
	for i := range c.Workloads {
		for j, text := range c.Workloads[i].Addresses {
			if a, err := netip.ParseAddr(text); err != nil || a.Zone() != "" {
				v.note(fmt.Sprintf("workloads[%d].addresses[%d]", i, j), "%q is not an IP address; it should be one, such as 10.0.0.9", text)
			}
		}
		v.appTunnel(fmt.Sprintf("workloads[%d].applicationTunnel", i), c.Workloads[i].ApplicationTunnel)
	}
	if e := v.cfg.Expiry; e != "" && e != expiryDrain && e != expiryEnd {
		v.note("expiry", "expiry: %q is neither; it should be drain or end", e)
	}
	if what := endpoint.LocalityProblem(c.Locality); what != "" {
		v.note("locality", "%s", what)
	}
	v.services()
	v.timeouts()
	v.routes()
	if len(v.problems) == 0 {
		return nil
	}
	return v.problems
}

// leastTimeout is the least time that anything on a network can take; less is a mistake in the unit.
const leastTimeout = time.Millisecond

// timeouts wants a bound on what a stranger, or a flow, makes us wait for: these cannot be switched off.
func (v *validator) timeouts() {
	t := &v.cfg.Timeouts
	for _, f := range []struct {
		name string
		d    time.Duration
	}{{"handshake", t.Handshake}, {"dial", t.Dial}, {"open", t.Open}} {
		if f.d != 0 && f.d < leastTimeout {
			v.note("timeouts."+f.name, "%s is no time to wait for %s; it should be at least %s, or left out for the default", f.d, f.name, leastTimeout)
		}
	}
}

// validator collects the problems of one Config.
type validator struct {
	cfg      *Config
	kinds    []string
	matchers [][]matcher // of the routes
	problems Problems
}

func (v *validator) note(path, format string, args ...any) {
	v.problems = append(v.problems, Problem{Path: path, What: fmt.Sprintf(format, args...)})
}

// join notes every error that a package's Validate has joined, at the field it speaks of.
func (v *validator) join(path string, err error) {
	var entry *policy.EntryError
	var field *capture.FieldError
	for _, one := range joined(err) {
		switch {
		case errors.As(one, &entry):
			v.note(fmt.Sprintf("%s.%s[%d]", path, entry.Field, entry.Index), "%q %s", entry.Entry, entry.Reason)
		case errors.As(one, &field):
			v.note(path+"."+field.Field, "%s", field.What)
		default:
			v.note(path, "%v", one)
		}
	}
}

// joinAs notes errors about the entries of a list under the list's own name.
func (v *validator) joinAs(list string, err error) {
	var entry *policy.EntryError
	for _, one := range joined(err) {
		if errors.As(one, &entry) {
			v.note(fmt.Sprintf("%s[%d]", list, entry.Index), "%q %s", entry.Entry, entry.Reason)
		}
	}
}

// joined returns the errors inside of a joined one, itself where it is single, none for nil.
func joined(err error) []error {
	if err == nil {
		return nil
	}
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		return many.Unwrap()
	}
	return []error{err}
}

func (v *validator) listeners() {
	addresses := make(map[string]string)
	for i := range v.cfg.Listeners {
		l := &v.cfg.Listeners[i]
		at := fmt.Sprintf("listeners[%d]", i)
		switch {
		case l.Name == "":
			v.note(at, "the listener has no name; give it one, such as name: apps, for routes, logs and metrics")
		case !isName(l.Name):
			v.note(at+".name", "%q is not a name; it should be of letters, digits, - _ and .", l.Name)
		case slices.ContainsFunc(v.cfg.Listeners[:i], func(o ListenerConfig) bool { return o.Name == l.Name }):
			v.note(at+".name", "listener %q is there twice; give each a name of its own", l.Name)
		}
		if l.Kind == KindAgent && l.Address == "" {
			// It dials.
		} else if what := listenAddressProblem(l.Address); what != "" {
			v.note(at+".address", "%s", what)
		} else if other, taken := addresses[cmp.Or(l.Network, "tcp")+" "+l.Address]; taken && !strings.HasSuffix(l.Address, ":0") {
			v.note(at+".address", "%s is already taken by listener %q; each listener has its own port", l.Address, other)
		} else {
			addresses[cmp.Or(l.Network, "tcp")+" "+l.Address] = l.Name
		}
		v.listenerKind(at, l)
		if _, _, _, ok := portRange(l.Address); ok && l.Kind != KindForward {
			v.note(at+".address", "only a listener of kind forward has several ports; name one")
		}
	}
}

func (v *validator) listenerKind(at string, l *ListenerConfig) {
	switch {
	case l.Kind == "":
		v.note(at, "the listener has no kind; it should be one of %s", strings.Join(v.kinds, ", "))
	case !slices.Contains(v.kinds, l.Kind):
		v.note(at+".kind", "%q is no kind of listener; it should be one of %s", l.Kind, strings.Join(v.kinds, ", "))
	}
	switch {
	case l.Network == "" || l.Kind == KindForward && (l.Network == "tcp" || l.Network == "udp"):
	case l.Kind == KindForward:
		v.note(at+".network", "%q is no network; it should be tcp or udp", l.Network)
	default:
		v.note(at+".network", "only a listener of kind forward has a network; remove it")
	}
	if l.Kind == KindForward {
		if _, err := newForward(l); err != nil {
			v.note(at+".to", "%v", err)
		} else if strings.HasPrefix(l.To, unixPrefix) && l.Network == "udp" {
			v.note(at+".to", "a unix socket takes no datagrams here; remove network: udp")
		}
	} else if l.To != "" {
		v.note(at+".to", "only a listener of kind forward has a destination; remove to, or write kind: forward")
	}
	if l.Strict && !l.isCapture() {
		v.note(at+".strict", "only a listener of kind tproxy or redirect can be strict; remove strict")
	}
	if l.SNIPassthrough && l.Kind != KindHBONE {
		v.note(at+".sniPassthrough", "only a listener of kind hbone has that; remove sniPassthrough")
	}
	if l.Captured && l.Kind != KindDNS {
		v.note(at+".captured", "only a listener of kind dns has that; remove captured")
	}
	if !l.isCapture() && l.Sniff != 0 {
		v.note(at+".sniff", "only a listener of kind tproxy or redirect looks for names; remove sniff")
	}
	v.ingress(at, l)
	v.logins(at, l)
	v.xTun(at, l)
	v.agents(at, l)
	v.agent(at, l)
}

// logins checks who may use a listener that apps are pointed at.
func (v *validator) logins(at string, l *ListenerConfig) {
	socks, web := l.Kind == KindSOCKS5 || l.Kind == KindProxy, l.Kind == KindHTTPProxy || l.Kind == KindProxy
	if !socks && (l.SOCKS5.RequiresLogin() || l.SOCKS5.Timeout != 0 || l.SOCKS5.UDP) {
		v.note(at+".socks5", "only a listener of kind socks5 or proxy has users of SOCKS5; remove socks5, or write kind: socks5")
	}
	if !web && (l.HTTP.RequiresLogin() || l.HTTP.Timeout != 0) {
		v.note(at+".http", "only a listener of kind http-proxy or proxy has users of HTTP; remove http, or write kind: http-proxy")
	}
	// Files are read when the listener is made; what they have, they have besides.
	if s := l.SOCKS5; socks {
		if s.UsersFile != "" && len(s.Users) == 0 {
			s.Users = nil
		}
		s.UsersFile = ""
		v.join(at+".socks5", s.Validate())
	}
	if h := l.HTTP; web {
		if h.UsersFile+h.TokensFile != "" && len(h.Users) == 0 {
			h.Users = nil
		}
		h.UsersFile, h.TokensFile = "", ""
		v.join(at+".http", h.Validate())
	}
	for _, user := range slices.Sorted(maps.Keys(l.Identities)) {
		if _, err := spiffe.Parse(l.Identities[user]); err != nil {
			v.note(at+".identities."+user, "%v; it should be like spiffe://cluster.local/ns/default/sa/bob", err)
		}
	}
	if len(l.Identities) > 0 && !l.SOCKS5.RequiresLogin() && !l.HTTP.RequiresLogin() {
		v.note(at+".identities", "nobody logs in here, so nobody would have one of these; name users under socks5 or http, or remove identities")
	}
	open := socks && !l.SOCKS5.RequiresLogin() || web && !l.HTTP.RequiresLogin() && !l.SOCKS5.RequiresLogin()
	if l.Kind == KindProxy && (l.HTTP.Users != nil || l.HTTP.UsersFile != "") {
		open = false // SOCKS5 has them, too
	} else if l.Kind == KindProxy && open && l.HTTP.RequiresLogin() && !l.Open && isLoopback(l.Address) {
		v.note(at+".http", "SOCKS5 has no tokens, and on the same port everybody could do without; name users as well, or write open: true if that is meant")
	}
	if open && !l.Open && listenAddressProblem(l.Address) == "" && !isLoopback(l.Address) {
		what, users := "SOCKS5", "socks5"
		if !socks {
			what, users = "the HTTP proxy", "http"
		}
		v.note(at+".address", "%s on %s is reachable from other hosts, and everybody there could use this gateway's identity; "+
			"use 127.0.0.1, or ask for a login (%s: {usersFile: FILE}), or write open: true if that is meant", what, l.Address, users)
	}
}

func (v *validator) hop(name string, h *HopConfig) {
	at := "hops." + name
	if !isName(name) {
		v.note(at, "%q is not a name for a hop; it should be of letters, digits, - _ and .", name)
	}
	switch {
	case h.Address == "" && !h.Config.Places():
		v.note(at, "the hop has no address; add address: host:port")
	case h.Address != "" && h.Config.Places():
		v.note(at, "the hop has an address and endpoints; write one of them")
	}
	if h.Address != "" {
		v.hopAddress(at+".address", h.Address)
	}
	v.endpoints(at, &h.Config, true)
	if h.StreamsPerConnection < 0 {
		v.note(at+".streamsPerConnection", "streamsPerConnection is negative; it should be 1 or more, or left out")
	}
	if h.IstioSource != "" {
		v.sender(at+".istioSource", h.IstioSource)
	}
	if h.Connections < 0 {
		v.note(at+".connections", "the number is negative; it should be 1 or more, or left out")
	}
	if h.Identity != "" {
		if _, err := spiffe.ParseName(h.Identity); err != nil {
			v.note(at+".identity", "%v; it should be like spiffe://cluster.local/ns/default/sa/gw", err)
		}
	}
	if h.Inner != nil {
		if h.Inner.Identities != nil && len(h.Inner.Identities) == 0 {
			v.note(at+".inner.identities", "%s", emptyIdentities)
		}
		for i, id := range h.Inner.Identities {
			if _, err := spiffe.ParseName(id); err != nil {
				v.note(fmt.Sprintf("%s.inner.identities[%d]", at, i), "%v; it should be like spiffe://cluster.local/ns/shop/sa/orders", err)
			}
		}
		if n := h.Inner.Network; n != "" && !isName(n) {
			v.note(at+".inner.network", "%q is not a name for a network; it should be of letters, digits, - _ and .", n)
		}
	}
	if h.Transport != "" && h.Transport != TransportH2 {
		v.note(at+".transport", "%q is no transport; it should be %s", h.Transport, TransportH2)
	}
	v.proxyHop(at, h)
	v.upstreamHop(at, h)
}

// endpoints checks where a service or a hop can be had.
func (v *validator) endpoints(at string, c *endpoint.Config, hop bool) {
	var field *endpoint.FieldError
	for _, err := range joined(c.Validate(hop)) {
		if errors.As(err, &field) {
			v.note(at+"."+field.Field, "%s", field.What)
		}
	}
}

func (v *validator) hopAddress(at, address string) {
	_, err := ParseAuthority(address)
	var wrong *AuthorityError
	if errors.As(err, &wrong) {
		what, _, _ := strings.Cut(wrong.Problem, "; ") // what would be right follows, for a hop
		v.note(at, "%q is no address of a hop: %s; it should be host:port, such as gw.example:15008", wrong.Text, what)
	}
}

// listenAddressProblem says why address cannot be listened on, "" if it can.
func listenAddressProblem(address string) string {
	if path, ok := strings.CutPrefix(address, unixPrefix); ok {
		if err := capture.CheckUnixPath(path); err != nil {
			return err.Error()
		}
		return ""
	}
	if _, _, _, ok := portRange(address); ok {
		address = address[:strings.LastIndexByte(address, '-')]
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Sprintf("%q is not an address to listen on; it should be host:port, such as 127.0.0.1:1080, [::1]:1080 or :15008", address)
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "" && host != "localhost" {
		return fmt.Sprintf("%q is not an IP address of this host; it should be an address, localhost, or nothing for all addresses", host)
	}
	if port == "0" {
		return ""
	}
	if _, problem := parsePort(port); problem != "" {
		return fmt.Sprintf("%q: %s", address, problem)
	}
	return ""
}

// isLoopback reports whether what listens on address is reachable from this host only.
func isLoopback(address string) bool {
	if strings.HasPrefix(address, unixPrefix) {
		return true
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

func isName(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.", r))
	})
}

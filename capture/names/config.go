package names

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Config says how names are answered. The zero value hands each question to the resolver that the app has asked, or to
// those of the system. It is not changed after it was handed over.
type Config struct {
	// Upstream are the resolvers, as `host:port` or an address, tried in their order. Default: the one that the app has
	// asked, where the question was captured, else those of the system.
	Upstream []string `yaml:"upstream"`
	// Zones are names whose resolvers are others, with all names below them. The longest one counts.
	Zones []ZoneConfig `yaml:"zones"`
	// Search are domains in which a name without a dot is looked for when there is no such name.
	Search []string `yaml:"search"`
	// Virtual are names that only the mesh knows: `orders.mesh`, or `*.mesh` for all below. They are answered with
	// addresses of IPv4 and IPv6, and flows to these go to the name. A route should name them.
	Virtual []string `yaml:"virtual"`
	// IPv4 is the range of virtual addresses of that family, `none` for none. Default `240.0.0.0/12`, which
	// nobody else uses.
	IPv4 string `yaml:"ipv4"`
	// IPv6 is the same for IPv6. Default `fd63:756c:7665:7274::/96`.
	IPv6 string `yaml:"ipv6"`
	// AllowLocal are names whose answers may be addresses of this host or of its link, as of names in a test, written
	// as in Virtual.
	AllowLocal []string `yaml:"allowLocal"`
	// Timeout is how long a resolver may take. Default 3s. Several share 4s, or this if it is longer: apps wait for 5s.
	Timeout time.Duration `yaml:"timeout"`
	// CacheEntries is how many answers are kept, each of 4 KiB at most. Default 10000; negative: none.
	CacheEntries int `yaml:"cacheEntries"`
}

// ZoneConfig is a name with resolvers of its own.
type ZoneConfig struct {
	// Name of the zone, such as `corp.example`.
	Name string `yaml:"name"`
	// Upstream are its resolvers.
	Upstream []string `yaml:"upstream"`
}

// Defaults of the configuration.
const (
	defaultIPv4    = "240.0.0.0/12"
	defaultIPv6    = "fd63:756c:7665:7274::/96"
	defaultTimeout = 3 * time.Second
	// questionTime is how long one question may take altogether: apps ask again after five seconds (resolv.conf(5)).
	questionTime   = 4 * time.Second
	defaultEntries = 10_000
	noAddresses    = "none"
	dnsPort        = 53
)

// FieldError is one field of a Config that is wrong.
type FieldError struct {
	// Field is the path of the field as in the configuration file, such as "zones[1].name".
	Field string
	// What is what is wrong, and what would be right.
	What string
}

// Error returns field and problem.
func (e *FieldError) Error() string { return e.Field + ": " + e.What }

// Validate returns everything that is wrong with c as joined *FieldErrors, or nil.
func (c *Config) Validate() error {
	_, err := c.compile()
	return err
}

// compiled is a Config, ready to answer. It does not change.
type compiled struct {
	upstream   []string
	zones      []zone // the longest name first
	search     []string
	virtual    patterns
	allowLocal patterns
	four, six  netip.Prefix  // not valid: none
	timeout    time.Duration // of one resolver
	patience   time.Duration // of a question
	entries    int
}

type zone struct {
	name     string // with its final dot
	upstream []string
}

func (c *Config) compile() (*compiled, error) {
	var faults []error
	fault := func(field, format string, args ...any) {
		faults = append(faults, &FieldError{Field: field, What: fmt.Sprintf(format, args...)})
	}
	k := &compiled{timeout: c.Timeout, entries: c.CacheEntries}
	upstream := func(field string, list []string) (servers []string) {
		for i, text := range list {
			server, ok := serverAddress(text)
			if !ok {
				fault(fmt.Sprintf("%s[%d]", field, i), "%q is no resolver; it should be host:port or an address, such as 192.0.2.53", text)
			}
			servers = append(servers, server)
		}
		return servers
	}
	name := func(field, text string) string {
		if _, ok := dns.IsDomainName(text); !ok || text != "." && !isHost(canonical(text)) {
			fault(field, "%q is no name; it should be like corp.example, with others than ASCII letters in their xn-- form", text)
		}
		return canonical(text)
	}
	list := func(field string, texts []string) (p patterns) {
		for i, text := range texts {
			below, wild := strings.CutPrefix(text, "*.")
			p = append(p, pattern{name: name(fmt.Sprintf("%s[%d]", field, i), below), below: wild})
		}
		return p
	}
	k.upstream = upstream("upstream", c.Upstream)
	for i, z := range c.Zones {
		at := fmt.Sprintf("zones[%d]", i)
		if slices.ContainsFunc(k.zones, func(other zone) bool { return other.name == canonical(z.Name) }) {
			fault(at+".name", "there is %s above already; keep one of them", z.Name)
		}
		k.zones = append(k.zones, zone{name(at+".name", z.Name), upstream(at+".upstream", z.Upstream)})
		if len(z.Upstream) == 0 {
			fault(at+".upstream", "the zone has no resolver; name one")
		}
	}
	sortZones(k.zones)
	for i, text := range c.Search {
		k.search = append(k.search, name(fmt.Sprintf("search[%d]", i), text))
	}
	k.virtual, k.allowLocal = list("virtual", c.Virtual), list("allowLocal", c.AllowLocal)
	k.four = addressRange(c.IPv4, defaultIPv4, true, func(what string) { fault("ipv4", "%s", what) })
	k.six = addressRange(c.IPv6, defaultIPv6, false, func(what string) { fault("ipv6", "%s", what) })
	if len(k.virtual) > 0 && !k.four.IsValid() && !k.six.IsValid() && len(faults) == 0 {
		fault("virtual", "there are no addresses for these names; leave ipv4 or ipv6 out")
	}
	switch {
	case k.timeout < 0 || k.timeout > 0 && k.timeout < time.Millisecond:
		fault("timeout", "%v is no time to wait; it should be at least 1ms, or left out for %v", k.timeout, defaultTimeout)
	case k.timeout == 0:
		k.timeout = defaultTimeout
	}
	k.patience = max(questionTime, k.timeout)
	if k.entries == 0 {
		k.entries = defaultEntries
	}
	return k, errors.Join(faults...)
}

// serverAddress adds the port that a resolver has by default.
func serverAddress(text string) (server string, ok bool) {
	if addr, err := netip.ParseAddr(text); err == nil {
		return netip.AddrPortFrom(addr.Unmap(), dnsPort).String(), addr.Zone() == ""
	}
	if ap, err := netip.ParseAddrPort(text); err == nil {
		return ap.String(), ap.Port() != 0 && ap.Addr().Zone() == ""
	}
	host, port, found := strings.Cut(text, ":")
	if !found {
		host, port = text, strconv.Itoa(dnsPort)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	_, valid := dns.IsDomainName(host)
	return host + ":" + port, valid && host != "." && isHost(canonical(host)) && err == nil && n != 0
}

// addressRange reads a range of virtual addresses.
func addressRange(text, def string, v4 bool, fault func(string)) netip.Prefix {
	const leastBits = 4 // sixteen addresses
	switch text {
	case noAddresses:
		return netip.Prefix{}
	case "":
		text = def
	}
	p, err := netip.ParsePrefix(text)
	if err != nil || p.Addr().Is4() != v4 || p.Addr().BitLen()-p.Bits() < leastBits {
		fault(fmt.Sprintf("%q is no range of addresses for names; it should be like %s, or none", text, def))
		return netip.Prefix{}
	}
	for _, taken := range []string{"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "::/8", "fe80::/10", "ff00::/8"} {
		if p.Overlaps(netip.MustParsePrefix(taken)) {
			fault(fmt.Sprintf("%s holds addresses of %s, which mean something else; it should be like %s, or none", text, taken, def))
			return netip.Prefix{}
		}
	}
	return p.Masked()
}

// canonical is a name in lower case with its final dot.
func canonical(name string) string { return dns.CanonicalName(name) }

// within reports whether name is zone, or below it. Both are canonical. A dot in a label is escaped, and ends none.
func within(name, zone string) bool {
	if zone == "." || name == zone {
		return true
	}
	label, ok := strings.CutSuffix(name, "."+zone)
	return ok && (len(label)-len(strings.TrimRight(label, `\`)))%2 == 0
}

// isHost reports whether a canonical name is one that a flow can be to: labels of letters, digits, hyphens and
// underscores. Others, which need escapes, are data.
func isHost(name string) bool {
	name, dot := strings.CutSuffix(name, ".")
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return dot
}

// pattern is one name, or all names below one.
type pattern struct {
	name  string
	below bool
}

type patterns []pattern

// match reports whether one of p takes name, which is canonical.
func (p patterns) match(name string) bool {
	for _, one := range p {
		if one.below && name != one.name && within(name, one.name) || !one.below && name == one.name {
			return true
		}
	}
	return false
}

// sortZones puts the longest name first.
func sortZones(zones []zone) {
	slices.SortStableFunc(zones, func(a, b zone) int { return cmp.Compare(dns.CountLabel(b.name), dns.CountLabel(a.name)) })
}

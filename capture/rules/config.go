package rules

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"culvert/capture"
)

// Backends, modes and what happens when the gateway is gone.
const (
	BackendNFT      = "nft"
	BackendIPTables = "iptables"
	ModeTProxy      = "tproxy"
	ModeRedirect    = "redirect"
	FailOpen        = "open"
	FailClosed      = "closed"
)

// Ports of the gateway, as Istio has them.
const (
	DefaultPort        = 15001 // outbound flows, and those of a router
	DefaultInboundPort = 15006 // plain flows to workloads of this host
	DefaultDNSPort     = 15053
)

// Marks of flows; see package capture.
const (
	markCaptured = capture.MarkCaptured
	markOwn      = capture.MarkOwn
	markSource   = capture.MarkSource
	markMask     = markCaptured | markOwn
)

const (
	// routeTable is the number of the routing table in which everything is local, and the priority of the rule that
	// leads there.
	routeTable = 15001
)

// maxEntries bounds each list of a Config.
const maxEntries = 4096

// The longest path of a control group that iptables takes, and the deepest that nftables does.
const (
	maxCgroupBytes = 511
	maxCgroupDepth = 255
)

// Config says what is caught. The zero value is this host's outbound TCP and DNS, to the default ports, with nft,
// TPROXY and Fail open. It is not changed after it was handed over.
type Config struct {
	// Backend is BackendNFT or BackendIPTables. Default: nft where that command is there, else iptables.
	Backend string
	// Mode is ModeTProxy or ModeRedirect. Default: tproxy.
	Mode string
	// Fail is FailOpen or FailClosed. Default: open.
	Fail string

	// NoOutbound leaves this host's own flows alone.
	NoOutbound bool
	// Ports are the destination ports of TCP flows that are caught, as "443" or "8000-8100". Default: all.
	Ports []string
	// UDPPorts are those of UDP flows. Default: none but DNS.
	UDPPorts []string
	// NoDNS leaves DNS (port 53, UDP and TCP) alone.
	NoDNS bool
	// Inbound are ports of workloads on this host: plain TCP flows of other hosts to them are caught. Default: none.
	Inbound []string
	// Forward are interfaces on which flows come in that this host routes: they are caught as outbound ones are.
	// Default: none.
	Forward []string

	// Exclude are destination addresses and ranges that are left alone. Loopback, link-local, multicast, broadcast and
	// this host's own addresses always are.
	Exclude []string
	// ExcludePorts are destination ports that are left alone, of TCP and UDP. The port of HBONE, 15008, always is: what goes
	// there is a tunnel already, as of `gateway connect`.
	ExcludePorts []string
	// ExcludeUIDs and ExcludeGIDs are users and groups whose flows are left alone, by number.
	ExcludeUIDs, ExcludeGIDs []uint32
	// ExcludeCgroups are control groups (version 2) whose flows are left alone, by path: "system.slice/sshd.service".
	// They must exist.
	ExcludeCgroups []string

	// Port, InboundPort and DNSPort are where the gateway listens. Defaults: 15001, 15006, 15053.
	Port, InboundPort, DNSPort uint16
}

// meshPort is the port of HBONE.
const meshPort = 15008

// withDefaults returns c with its defaults. nft tells whether that command is there.
func (c Config) withDefaults(nft bool) Config {
	if c.Backend == "" && !nft {
		c.Backend = BackendIPTables
	}
	c.Backend = cmp.Or(c.Backend, BackendNFT)
	c.Mode = cmp.Or(c.Mode, ModeTProxy)
	c.Fail = cmp.Or(c.Fail, FailOpen)
	c.Port = cmp.Or(c.Port, DefaultPort)
	c.InboundPort = cmp.Or(c.InboundPort, DefaultInboundPort)
	c.DNSPort = cmp.Or(c.DNSPort, DefaultDNSPort)
	return c
}

// FieldError is one thing that is wrong with a Config.
type FieldError struct {
	// Field is the name of the flag of `gateway capture install`, without dashes.
	Field string
	// What says what is wrong and what would be right.
	What string
}

// Error returns field and problem.
func (e *FieldError) Error() string { return "--" + e.Field + ": " + e.What }

// Validate returns everything that is wrong with c as joined *FieldErrors, or nil. It looks at nothing but c.
func (c *Config) Validate() error {
	var faults []error
	note := func(field, format string, args ...any) {
		faults = append(faults, &FieldError{Field: field, What: fmt.Sprintf(format, args...)})
	}
	choice := func(field, value string, of ...string) {
		if value != "" && !slices.Contains(of, value) {
			note(field, "%q is none; it should be %s", value, strings.Join(of, " or "))
		}
	}
	choice("backend", c.Backend, BackendNFT, BackendIPTables)
	choice("mode", c.Mode, ModeTProxy, ModeRedirect)
	choice("fail", c.Fail, FailOpen, FailClosed)
	for _, list := range []struct {
		field string
		ports []string
	}{{"ports", c.Ports}, {"udp-ports", c.UDPPorts}, {"inbound", c.Inbound}, {"exclude-ports", c.ExcludePorts}} {
		if _, err := parsePorts(list.ports); err != nil {
			note(list.field, "%v", err)
		}
	}
	if _, err := parsePrefixes(c.Exclude); err != nil {
		note("exclude", "%v", err)
	}
	for _, name := range c.Forward {
		if what := interfaceProblem(name); what != "" {
			note("forward", "%q %s", name, what)
		}
	}
	for _, path := range c.ExcludeCgroups {
		if !isCgroup(path) {
			note("exclude-cgroup", "%q is no path of a control group; it should be like system.slice/sshd.service", path)
		}
	}
	if slices.Contains(c.ExcludeUIDs, math.MaxUint32) {
		note("exclude-uid", "%d is no user's", uint32(math.MaxUint32))
	}
	if slices.Contains(c.ExcludeGIDs, math.MaxUint32) {
		note("exclude-gid", "%d is no group's", uint32(math.MaxUint32))
	}
	if len(c.ExcludeUIDs) > maxEntries || len(c.ExcludeGIDs) > maxEntries || len(c.ExcludeCgroups) > maxEntries || len(c.Forward) > maxEntries {
		note("exclude", "there are more than %d entries in a list", maxEntries)
	}
	if c.Mode == ModeRedirect && len(c.UDPPorts) > 0 {
		note("udp-ports", "UDP keeps its destination with --mode tproxy only")
	}
	if c.NoOutbound && len(c.Inbound) == 0 && len(c.Forward) == 0 {
		note("no-outbound", "nothing is left to catch; name ports with --inbound or interfaces with --forward")
	}
	return errors.Join(faults...)
}

// isCgroup reports whether path may be that of a control group: nftables is told how deep it lies, and must not be told
// wrong by empty parts.
func isCgroup(path string) bool {
	if strings.ContainsFunc(path, func(r rune) bool { return r <= ' ' || r == '"' || r == '\\' || r >= 0x7F }) || len(path) > maxCgroupBytes {
		return false
	}
	parts := strings.Split(strings.Trim(path, "/"), "/")
	return len(parts) <= maxCgroupDepth && !slices.ContainsFunc(parts, func(part string) bool { return part == "" || part == "." || part == ".." })
}

// interfaceProblem says why name is no network interface's, "" if it may be.
func interfaceProblem(name string) string {
	const longest = 15 // IFNAMSIZ without its NUL
	switch {
	case name == "" || len(name) > longest:
		return fmt.Sprintf("is no interface; a name has 1 to %d characters, such as eth1", longest)
	case strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7F || strings.ContainsRune(`"'`+"`"+`\/*+!{},;`, r) }):
		return "is no interface; it should be a name as `ip link` shows it, such as eth1"
	case name == "lo":
		return "is this host itself; its own flows are caught without it"
	}
	return ""
}

// portRange is one port or several, first and last included.
type portRange struct{ first, last uint16 }

func (r portRange) String() string {
	if r.first == r.last {
		return strconv.Itoa(int(r.first))
	}
	return fmt.Sprintf("%d-%d", r.first, r.last)
}

// parsePorts reads "443" and "8000-8100", and returns them in order and without overlaps.
func parsePorts(list []string) ([]portRange, error) {
	if len(list) > maxEntries {
		return nil, fmt.Errorf("there are %d entries; at most %d are possible", len(list), maxEntries)
	}
	var ranges []portRange
	for _, text := range list {
		first, last, isRange := strings.Cut(text, "-")
		if !isRange {
			last = first
		}
		a, ok := parsePort(first)
		b, ok2 := parsePort(last)
		if !ok || !ok2 || b < a {
			return nil, fmt.Errorf("%q is neither a port nor a range; it should be like 443 or 8000-8100", text)
		}
		ranges = append(ranges, portRange{a, b})
	}
	return mergePorts(ranges), nil
}

// mergePorts sorts ranges and joins those that touch.
func mergePorts(ranges []portRange) []portRange {
	slices.SortFunc(ranges, func(a, b portRange) int { return cmp.Compare(a.first, b.first) })
	merged := ranges[:0]
	for _, r := range ranges {
		if n := len(merged); n > 0 && int(r.first) <= int(merged[n-1].last)+1 {
			merged[n-1].last = max(merged[n-1].last, r.last)
			continue
		}
		merged = append(merged, r)
	}
	return merged
}

func parsePort(s string) (uint16, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil && n > 0 && strconv.FormatUint(n, 10) == s
}

// parsePrefixes reads addresses and ranges, and returns them without those that others contain.
func parsePrefixes(list []string) ([]netip.Prefix, error) {
	if len(list) > maxEntries {
		return nil, fmt.Errorf("there are %d entries; at most %d are possible", len(list), maxEntries)
	}
	var prefixes []netip.Prefix
	for _, text := range list {
		p, err := netip.ParsePrefix(text)
		if addr, err2 := netip.ParseAddr(text); err2 == nil && addr.Zone() == "" {
			p, err = netip.PrefixFrom(addr.Unmap(), addr.Unmap().BitLen()), nil
		}
		if err != nil || p.Addr().Is4In6() {
			return nil, fmt.Errorf("%q is neither an address nor a range; it should be like 192.0.2.7, 10.0.0.0/8 or fd00::/8", text)
		}
		prefixes = append(prefixes, p.Masked())
	}
	slices.SortFunc(prefixes, func(a, b netip.Prefix) int { return cmp.Or(a.Addr().Compare(b.Addr()), a.Bits()-b.Bits()) })
	merged := prefixes[:0]
	for _, p := range prefixes {
		if n := len(merged); n > 0 && merged[n-1].Contains(p.Addr()) {
			continue // the wider one came first
		}
		merged = append(merged, p)
	}
	return merged, nil
}

// compiled is a Config, ready to be rendered. It does not change.
type compiled struct {
	Config
	ports, udpPorts, inbound, excludePorts []portRange
	exclude4, exclude6                     []netip.Prefix
	ipv6                                   bool              // the system has IPv6
	served                                 map[uint16]string // ports with the protocols that a gateway serves there now
}

// always are destinations that are never caught, besides this host's own: without them a host could lose its
// metadata service or its neighbours.
var always = []string{"127.0.0.0/8", "169.254.0.0/16", "::1/128", "fe80::/10"} // immutable

// compile readies c, which has its defaults.
func (c Config) compile(ipv6 bool) (*compiled, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	k := &compiled{Config: c, ipv6: ipv6}
	k.ports, _ = parsePorts(c.Ports) // Validate has parsed them all
	k.udpPorts, _ = parsePorts(c.UDPPorts)
	k.inbound, _ = parsePorts(c.Inbound)
	k.excludePorts, _ = parsePorts(c.ExcludePorts)
	k.excludePorts = mergePorts(append(k.excludePorts, portRange{meshPort, meshPort}))
	prefixes, _ := parsePrefixes(append(slices.Clone(always), c.Exclude...))
	for _, p := range prefixes {
		if p.Addr().Is4() {
			k.exclude4 = append(k.exclude4, p)
		} else {
			k.exclude6 = append(k.exclude6, p)
		}
	}
	return k, nil
}

// tproxy reports whether the rules keep destinations as they are.
func (k *compiled) tproxy() bool { return k.Mode == ModeTProxy }

// takes reports whether flows are taken on their way out, of this host or of others that it routes for.
func (k *compiled) takes() bool { return !k.NoOutbound || len(k.Forward) > 0 }

// gates are the ports of the gateway that flows are led to: with Fail open, each has a set.
func (k *compiled) gates() (ports []uint16) {
	if k.takes() {
		ports = append(ports, k.Port)
		if !k.NoDNS {
			ports = append(ports, k.DNSPort)
		}
	}
	if len(k.inbound) > 0 {
		ports = append(ports, k.InboundPort)
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

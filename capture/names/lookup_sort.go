package names

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
)

// ranked is an address of a destination with what its place among others depends on (RFC 6724, section 6).
type ranked struct {
	addr       netip.Addr
	usable     bool // this host has a way there
	alike      bool // and on it an address of the same scope and label: rules 2 and 5
	precedence int  // rule 6
}

// labels is the policy table of RFC 6724, section 2.1, the longest prefixes first. It is immutable: nothing writes to it.
var labels = []struct {
	prefix     netip.Prefix
	precedence int
	label      int
}{
	{netip.MustParsePrefix("::1/128"), 50, 0},
	{netip.MustParsePrefix("::ffff:0:0/96"), 35, 4},
	{netip.MustParsePrefix("::/96"), 1, 3},
	{netip.MustParsePrefix("2001::/32"), 5, 5},
	{netip.MustParsePrefix("2002::/16"), 30, 2},
	{netip.MustParsePrefix("3ffe::/16"), 1, 12},
	{netip.MustParsePrefix("fec0::/10"), 1, 11},
	{netip.MustParsePrefix("fc00::/7"), 3, 13},
	{netip.MustParsePrefix("::/0"), 40, 1},
}

// rank finds out what the place of addresses depends on. What else the RFC has, such as the longest common prefix, is left
// out: it would send all flows to one of several addresses.
func (r *Resolver) rank(addrs []netip.Addr) []ranked {
	list := make([]ranked, 0, len(addrs))
	for _, addr := range addrs {
		one := ranked{addr: addr}
		var label int
		one.precedence, label = labelOf(addr)
		if from := r.source(addr); from.IsValid() {
			_, mine := labelOf(from)
			one.usable, one.alike = true, mine == label && scope(from) == scope(addr)
		}
		list = append(list, one)
	}
	return list
}

func labelOf(addr netip.Addr) (precedence, label int) {
	for i := range labels {
		if prefixHas(labels[i].prefix, addr) {
			return labels[i].precedence, labels[i].label
		}
	}
	return 0, 0
}

// prefixHas is Contains that takes addresses of IPv4 for their form in IPv6.
func prefixHas(p netip.Prefix, addr netip.Addr) bool {
	want, got := p.Addr().As16(), addr.As16()
	for i := range p.Bits() {
		if bit := byte(0x80) >> (i % 8); want[i/8]&bit != got[i/8]&bit {
			return false
		}
	}
	return true
}

// scope tells addresses of a link from all others (RFC 6724, section 3.1).
func scope(addr netip.Addr) int {
	if addr = addr.Unmap(); addr.IsLoopback() || addr.IsLinkLocalUnicast() {
		return 2
	}
	return 14
}

// sorted returns the addresses in the order of RFC 6724. Those that are equal keep theirs.
func sorted(list []ranked) []netip.Addr {
	first := func(yes bool) int {
		if yes {
			return 0
		}
		return 1
	}
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b ranked) int {
		return cmp.Or(cmp.Compare(first(a.usable), first(b.usable)), cmp.Compare(first(a.alike), first(b.alike)), cmp.Compare(b.precedence, a.precedence))
	})
	addrs := make([]netip.Addr, 0, len(list))
	for _, one := range list {
		addrs = append(addrs, one.addr)
	}
	return addrs
}

// sourceTo asks the system which address a connection to another would come from. Nothing is sent.
func sourceTo(to netip.Addr) netip.Addr {
	const discard = 9
	nc, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, discard)))
	if err != nil {
		return netip.Addr{}
	}
	defer nc.Close()
	from, ok := nc.LocalAddr().(*net.UDPAddr)
	if !ok {
		return netip.Addr{}
	}
	return from.AddrPort().Addr().Unmap()
}

package sshkeys

import (
	"fmt"
	"net/netip"
	"strings"
)

// globMatch reports whether text matches pattern, in which '*' stands for any bytes and '?' for one (ssh_config(5),
// "PATTERNS"). It takes len(pattern)·len(text) steps at most: after a mismatch only the last '*' takes a byte more.
func globMatch(pattern, text string) bool {
	p, t := 0, 0
	star, from := -1, 0 // the last '*' and where in text what follows it was last tried
	for t < len(text) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, from = p, t
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == text[t]):
			p++
			t++
		case star >= 0:
			from++
			p, t = star+1, from
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// AddrList is a list of addresses as in from=. The zero AddrList allows every address. It is not changed after it was
// parsed.
type AddrList struct {
	text  string
	items []addrItem
}

// addrItem is one pattern of a list: a network, or an address with wildcards.
type addrItem struct {
	negate bool
	prefix netip.Prefix // valid unless glob is set
	glob   string
}

// String returns the list as it was written.
func (l AddrList) String() string { return l.text }

// IsZero reports whether the list is empty, and so allows every address.
func (l AddrList) IsZero() bool { return len(l.items) == 0 }

// Allows reports whether addr matches the list: no pattern with a "!" and at least one without. An IPv4 address in
// IPv6 form counts as IPv4, a zone does not count, and the zero Addr (a peer on a unix socket) matches no list but the
// empty one. ssh_config(5): "a negated match will never produce a positive result by itself".
func (l AddrList) Allows(addr netip.Addr) bool {
	if l.IsZero() {
		return true
	}
	addr = addr.Unmap().WithZone("") // a Prefix contains no address with a zone, not even one that "!" names
	if !addr.IsValid() {
		return false
	}
	allowed := false
	for _, item := range l.items {
		if !item.match(addr) {
			continue
		}
		if item.negate {
			return false
		}
		allowed = true
	}
	return allowed
}

func (i *addrItem) match(addr netip.Addr) bool {
	if i.glob != "" {
		return globMatch(i.glob, addr.String())
	}
	return i.prefix.Contains(addr)
}

// parseAddrList reads the patterns of from=, separated by commas: an address, a network in CIDR form, or an address with
// the wildcards * and ?, each with a "!" before it or not. Names are refused: sshd compares them with what a reverse
// look-up says, which is off by default and which whoever owns the address chooses.
func parseAddrList(text string) (AddrList, *problem) {
	list := AddrList{text: text}
	for pattern := range strings.SplitSeq(text, ",") {
		item, detail := parseAddrItem(pattern)
		if detail != "" {
			return AddrList{}, badOption("%s", detail)
		}
		list.items = append(list.items, item)
	}
	return list, nil
}

// parseAddrItem reads one pattern of a list, or says what is wrong with it.
func parseAddrItem(pattern string) (item addrItem, detail string) {
	pattern, item.negate = strings.CutPrefix(pattern, "!")
	if pattern == "" {
		return item, "an empty pattern; patterns are separated by single commas"
	}
	if strings.Contains(pattern, "/") {
		prefix, err := netip.ParsePrefix(pattern)
		if err != nil {
			return item, fmt.Sprintf("%q is not a network; write it like 192.0.2.0/24 or 2001:db8::/32", clip(pattern))
		}
		if prefix != prefix.Masked() { // sshd refuses it as "inconsistent mask length"
			return item, fmt.Sprintf("%q has bits beyond its mask; did you mean %v?", pattern, prefix.Masked())
		}
		if a := prefix.Addr(); a.Is4In6() { // masked, so that all 96 bits before the IPv4 address are part of it
			prefix = netip.PrefixFrom(a.Unmap(), prefix.Bits()-96)
		}
		item.prefix = prefix
		return item, ""
	}
	if strings.ContainsAny(pattern, "*?") && strings.Trim(pattern, "0123456789abcdefABCDEF.:*?") == "" {
		item.glob = strings.ToLower(pattern)
		return item, ""
	}
	addr, err := netip.ParseAddr(pattern)
	if err != nil || addr.Zone() != "" {
		return item, fmt.Sprintf("%q is not an address; names of clients are not looked up, so write addresses or networks", clip(pattern))
	}
	addr = addr.Unmap()
	item.prefix = netip.PrefixFrom(addr, addr.BitLen())
	return item, ""
}

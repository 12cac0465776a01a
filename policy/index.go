package policy

import (
	"hash/maphash"
	"net/netip"
)

// index finds the rules that may match a request without trying all of them. Each rule stands under values of one attribute
// of which a request that it matches has one; a rule without such an attribute is always tried.
type index struct {
	size    int   // rules
	later   truth // whether an address that is not known yet is taken to match: a DENY asks again when it is known
	seed    maphash.Seed
	heads   []uint32 // by hash: of entries, from 1; 0 is none
	entries []indexEntry
	always  []uint32
	used    [numKeys]bool
	lengths [numKeys][]uint8 // of the prefixes of address keys: IPv4's, and IPv6's from 129
}

// indexEntry is a rule under one of its keys.
type indexEntry struct{ rule, next uint32 }

// keyKind is what a rule stands under.
type keyKind uint8

const (
	byPrincipal keyKind = iota
	byAccount
	byNamespace
	byPort
	bySource
	byDestination
	numKeys
)

// indexKey is one value that a rule asks for.
type indexKey struct {
	kind   keyKind
	text   string
	port   uint16
	prefix netip.Prefix
}

func (x *index) hash(k *indexKey) uint64 {
	const spread = 0x9e3779b97f4a7c15
	switch k.kind {
	case byPort:
		return (uint64(k.port)<<8 | uint64(k.kind)) * spread
	case bySource, byDestination:
		b := k.prefix.Addr().As16()
		return maphash.Bytes(x.seed, b[:]) + (uint64(k.prefix.Bits())<<8|uint64(k.kind))*spread
	}
	return maphash.String(x.seed, k.text) + uint64(k.kind)*spread
}

// place is where the rules under a key begin.
func (x *index) place(k *indexKey) uint64 {
	h := x.hash(k)
	return (h ^ h>>32) & uint64(len(x.heads)-1)
}

// find returns a rule that matches. Which one, if several do, is the same each time.
func (x *index) find(s *snapshot, v *view, least truth) (rule uint32, ok bool) {
	v.later = x.later
	for _, i := range x.always {
		if s.matches(i, v, least) {
			return i, true
		}
	}
	if len(x.entries) == 0 {
		return 0, false
	}
	if v.principal != "" {
		if i, ok := x.under(s, v, least, &indexKey{kind: byPrincipal, text: v.principal}); ok {
			return i, true
		}
		if i, ok := x.under(s, v, least, &indexKey{kind: byAccount, text: v.account}); ok {
			return i, true
		}
		if i, ok := x.under(s, v, least, &indexKey{kind: byNamespace, text: v.Peer.Namespace()}); ok {
			return i, true
		}
	}
	if i, ok := x.under(s, v, least, &indexKey{kind: byPort, port: v.Port}); ok {
		return i, true
	}
	if i, ok := x.underAddr(s, v, least, bySource, v.address(ofSourceIP)); ok {
		return i, true
	}
	return x.underAddr(s, v, least, byDestination, v.Addr)
}

// under tries the rules that stand under a key. Others may share its place; each rule is tried anyway.
func (x *index) under(s *snapshot, v *view, least truth, k *indexKey) (rule uint32, ok bool) {
	if !x.used[k.kind] {
		return 0, false
	}
	for at := x.heads[x.place(k)]; at != 0; at = x.entries[at-1].next {
		if i := x.entries[at-1].rule; s.matches(i, v, least) {
			return i, true
		}
	}
	return 0, false
}

// underAddr tries the rules under all prefixes that an address may lie in.
func (x *index) underAddr(s *snapshot, v *view, least truth, kind keyKind, addr netip.Addr) (rule uint32, ok bool) {
	if !x.used[kind] {
		return 0, false
	}
	if !addr.IsValid() { // then no rule can be ruled out
		for e := range x.entries {
			if i := x.entries[e].rule; s.matches(i, v, least) {
				return i, true
			}
		}
		return 0, false
	}
	for _, length := range x.lengths[kind] {
		bits := int(length)
		if v6 := bits > 32; v6 != addr.Is6() {
			continue
		} else if v6 {
			bits -= lengthIPv6
		}
		prefix, err := addr.Prefix(bits)
		if err != nil {
			continue
		}
		if i, ok := x.under(s, v, least, &indexKey{kind: kind, prefix: prefix}); ok {
			return i, true
		}
	}
	return 0, false
}

// lengthIPv6 is added to the lengths of IPv6 prefixes in index.lengths.
const lengthIPv6 = 33

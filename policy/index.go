package policy

import (
	"hash/maphash"
	"math/bits"
	"net/netip"
	"slices"
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

// build makes the index of some rules of s. Each stands under the values of the attribute that the fewest others share.
func (x *index) build(s *snapshot, list []uint32) {
	x.seed, x.size = maphash.MakeSeed(), len(list)
	x.heads = make([]uint32, 1<<bits.Len(uint(len(list))))
	popular := make([]uint32, len(x.heads)) // rules that could stand in each place
	var keys []indexKey
	for _, i := range list {
		for choice := range numChoices {
			keys, _ = s.keysOf(i, choice, keys[:0])
			for k := range keys {
				popular[x.place(&keys[k])]++
			}
		}
	}
	var best []indexKey
	for _, i := range list {
		least, found := uint32(0), false
		for choice := range numChoices {
			var ok bool
			if keys, ok = s.keysOf(i, choice, keys[:0]); !ok {
				continue
			}
			worst := uint32(0)
			for k := range keys {
				worst = max(worst, popular[x.place(&keys[k])])
			}
			if !found || worst < least {
				best, least, found = append(best[:0], keys...), worst, true
			}
		}
		if !found {
			x.always = append(x.always, i)
			continue
		}
		for k := range best {
			x.add(&best[k], i)
		}
	}
	x.entries, x.always = slices.Clip(x.entries), slices.Clip(x.always)
}

func (x *index) add(k *indexKey, i uint32) {
	x.used[k.kind] = true
	if k.prefix.IsValid() {
		length := uint8(k.prefix.Bits())
		if k.prefix.Addr().Is6() {
			length += lengthIPv6
		}
		if !slices.Contains(x.lengths[k.kind], length) {
			x.lengths[k.kind] = append(x.lengths[k.kind], length)
		}
	}
	head := &x.heads[x.place(k)]
	x.entries = append(x.entries, indexEntry{rule: i, next: *head})
	*head = uint32(len(x.entries))
}

// numChoices is by how many parts of a rule it can be found: from, to, and each kind of condition.
const (
	choiceFrom = iota
	choiceTo
	choiceWhen
	numChoices
)

// keysOf returns the keys under which a rule may stand by one of its parts; ok is false where it has no such values.
func (s *snapshot) keysOf(i uint32, choice int, keys []indexKey) (list []indexKey, ok bool) {
	r := &s.rules[i]
	part := r.from
	switch choice {
	case choiceTo:
		part = r.to
	case choiceWhen:
		return s.keysOfTests(r.when, keys)
	}
	for c := part.from; c < part.to; c++ {
		if keys, ok = s.keysOfTests(s.clauses[c], keys); !ok {
			return nil, false
		}
	}
	return keys, part.from < part.to
}

// keysOfTests adds the keys of one of some tests, all of which have to hold.
func (s *snapshot) keysOfTests(part span, keys []indexKey) (list []indexKey, ok bool) {
	for i := part.from; i < part.to; i++ {
		if more, ok := s.keysOfTest(&s.tests[i], keys); ok {
			return more, true
		}
	}
	return keys, false
}

// keyKinds are the attributes by which rules are found. It is never written.
var keyKinds = map[attribute]keyKind{
	ofPrincipal: byPrincipal, ofServiceAccount: byAccount, ofNamespace: byNamespace, ofPort: byPort, ofSourceIP: bySource, ofDestinationIP: byDestination,
}

func (s *snapshot) keysOfTest(t *test, keys []indexKey) (list []indexKey, ok bool) {
	kind, ok := keyKinds[t.attribute]
	if !ok || t.negated {
		return keys, false
	}
	for i := t.values.from; i < t.values.to; i++ {
		switch kind {
		case byPort:
			keys = append(keys, indexKey{kind: kind, port: s.ports[i]})
		case bySource, byDestination:
			keys = append(keys, indexKey{kind: kind, prefix: s.blocks[i]})
		default:
			if s.strings[i].kind != isExactly {
				return keys, false
			}
			keys = append(keys, indexKey{kind: kind, text: s.strings[i].text})
		}
	}
	return keys, true
}

package policy

import (
	"fmt"
	"net/netip"
)

// Classes of guarded addresses, as Classify returns them and as they follow "guard/" in Decision.Rule.
const (
	classInvalid       = "invalid"      // no address at all
	classZone          = "zone"         // has a zone, so it means something on this host only
	classThisNetwork   = "this-network" // 0.0.0.0/8 and ::, which Linux connects to itself
	classLoopback      = "loopback"
	classLinkLocal     = "link-local"
	classMetadata      = "metadata"     // gives this machine's credentials to whoever asks
	classPrivate       = "private"      // RFC 1918
	classUniqueLocal   = "unique-local" // RFC 4193
	classSiteLocal     = "site-local"   // the ancestor of unique-local
	classShared        = "shared"       // carrier-grade NAT
	classMulticast     = "multicast"
	classBroadcast     = "broadcast"
	classReserved      = "reserved"
	classUnallocated   = "unallocated" // IPv6 outside 2000::/3
	classDocumentation = "documentation"
	classBenchmarking  = "benchmarking"
	classProtocol      = "ietf-protocol" // anycast and dummy addresses of protocols
	classDiscard       = "discard"
	classSegments      = "srv6"            // segment identifiers of a routing domain
	classNAT64         = "nat64"           // IPv6 form of an IPv4 address
	class6to4          = "6to4"            // IPv6 form of an IPv4 address
	classTeredo        = "teredo"          // IPv6 form of an IPv4 address, obscured
	classCompatible    = "ipv4-compatible" // IPv6 form of an IPv4 address
	classTranslated    = "ipv4-translated" // IPv6 form of an IPv4 address
	classOwn           = "own-address"     // a public address of this host
)

// noEmbedding is the value of block.embeds where no IPv4 address stands inside.
const noEmbedding = 0

// block is a range of guarded addresses. An address belongs to the longest block it lies in.
type block struct {
	prefix netip.Prefix
	class  string
	source string // where the range comes from
	// byName tells that an egress entry that is a name lifts the guard for this range. It does for ranges
	// in which organisations keep services of their own; not for what answers differently on every host or
	// hands out credentials, where an answer of DNS is no proof that the operator meant it.
	byName bool
	// embeds is the bit at which an IPv4 address stands in the IPv6 address, or noEmbedding.
	embeds int
}

func blockOf(prefix, class, source string) block {
	return block{prefix: netip.MustParsePrefix(prefix), class: class, source: source}
}

func (b block) liftedByName() block {
	b.byName = true
	return b
}

func (b block) embedding(bit int) block {
	b.embeds = bit
	return b
}

// blocks4 and blocks6 are never written. They hold the IANA registries "IPv4 Special-Purpose Address Space" and
// "IPv6 Special-Purpose Address Space" (RFC 6890 and its updates), multicast, and what clouds put beside them.
// Left out, because the registries call them globally reachable and they serve the public: AS112
// (192.31.196.0/24, 192.175.48.0/24, 2620:4f:8000::/48) and AMT (192.52.193.0/24).
var blocks4 = []block{
	blockOf("0.0.0.0/8", classThisNetwork, "RFC 791, section 3.2"),
	blockOf("10.0.0.0/8", classPrivate, "RFC 1918").liftedByName(),
	blockOf("100.64.0.0/10", classShared, "RFC 6598").liftedByName(),
	blockOf("100.100.100.200/32", classMetadata, "Alibaba Cloud"),
	blockOf("127.0.0.0/8", classLoopback, "RFC 1122, section 3.2.1.3"),
	blockOf("168.63.129.16/32", classMetadata, "Azure WireServer"),
	blockOf("169.254.0.0/16", classLinkLocal, "RFC 3927"),
	blockOf("169.254.0.23/32", classMetadata, "Tencent Cloud"),
	blockOf("169.254.42.42/32", classMetadata, "Scaleway"),
	blockOf("169.254.169.254/32", classMetadata, "AWS, Azure, Google Cloud, Oracle and others"),
	blockOf("169.254.170.2/32", classMetadata, "AWS ECS task credentials"),
	blockOf("169.254.170.23/32", classMetadata, "AWS EKS pod identity"),
	blockOf("172.16.0.0/12", classPrivate, "RFC 1918").liftedByName(),
	blockOf("192.0.0.0/24", classProtocol, "RFC 6890, section 2.1"),
	blockOf("192.0.0.192/32", classMetadata, "Oracle Cloud"),
	blockOf("192.0.2.0/24", classDocumentation, "RFC 5737"),
	blockOf("192.88.99.0/24", class6to4, "RFC 7526, the withdrawn relay anycast"),
	blockOf("192.168.0.0/16", classPrivate, "RFC 1918").liftedByName(),
	blockOf("198.18.0.0/15", classBenchmarking, "RFC 2544"),
	blockOf("198.51.100.0/24", classDocumentation, "RFC 5737"),
	blockOf("203.0.113.0/24", classDocumentation, "RFC 5737"),
	blockOf("224.0.0.0/4", classMulticast, "RFC 5771"),
	blockOf("240.0.0.0/4", classReserved, "RFC 1112, section 4"),
	blockOf("255.255.255.255/32", classBroadcast, "RFC 919, section 7"),
}

var blocks6 = []block{
	// RFC 4291, section 2.4: global unicast is "everything else", of which IANA hands out 2000::/3 only.
	blockOf("::/3", classUnallocated, "RFC 4291, section 2.4"),
	blockOf("4000::/2", classUnallocated, "RFC 4291, section 2.4"),
	blockOf("8000::/1", classUnallocated, "RFC 4291, section 2.4"),
	blockOf("::/128", classThisNetwork, "RFC 4291, section 2.5.2"),
	blockOf("::1/128", classLoopback, "RFC 4291, section 2.5.3"),
	blockOf("::/96", classCompatible, "RFC 4291, section 2.5.5.1").embedding(96),
	blockOf("::ffff:0:0:0/96", classTranslated, "RFC 2765, section 2.1").embedding(96),
	// RFC 6052, section 3.1: "The Well-Known Prefix MUST NOT be used to represent non-global IPv4
	// addresses"; translators do it all the same, so the address inside is judged too. Where DNS64 is in
	// use every IPv4-only name resolves to this range, therefore a name lifts it.
	blockOf("64:ff9b::/96", classNAT64, "RFC 6052").embedding(96).liftedByName(),
	blockOf("64:ff9b:1::/48", classNAT64, "RFC 8215"),
	blockOf("100::/64", classDiscard, "RFC 6666"),
	blockOf("100:0:0:1::/64", classDiscard, "RFC 9780, the dummy prefix"),
	blockOf("2001::/23", classProtocol, "RFC 2928"),
	blockOf("2001::/32", classTeredo, "RFC 4380"),
	blockOf("2001:2::/48", classBenchmarking, "RFC 5180"),
	blockOf("2001:db8::/32", classDocumentation, "RFC 3849"),
	blockOf("2002::/16", class6to4, "RFC 3056").embedding(16),
	blockOf("3fff::/20", classDocumentation, "RFC 9637"),
	blockOf("5f00::/16", classSegments, "RFC 9602"),
	blockOf("fc00::/7", classUniqueLocal, "RFC 4193").liftedByName(),
	blockOf("fd00:42::42/128", classMetadata, "Scaleway"),
	blockOf("fd00:c1::a9fe:a9fe/128", classMetadata, "Oracle Cloud"),
	blockOf("fd00:ec2::23/128", classMetadata, "AWS EKS pod identity"),
	blockOf("fd00:ec2::254/128", classMetadata, "AWS"),
	blockOf("fd20:ce::254/128", classMetadata, "Google Cloud"),
	blockOf("fe80::/10", classLinkLocal, "RFC 4291, section 2.5.6"),
	blockOf("fe80::a9fe:a9fe/128", classMetadata, "OpenStack"),
	blockOf("fec0::/10", classSiteLocal, "RFC 3879"),
	blockOf("ff00::/8", classMulticast, "RFC 4291, section 2.7"),
}

// Classify names the reason for which addr is guarded, such as "loopback", "link-local", "metadata" or "private";
// "" means that addr is global unicast. An IPv4 address inside an IPv6 form of it counts as itself
// ("::ffff:127.0.0.1", "64:ff9b::7f00:1" and "2002:7f00:1::" are "loopback"). The words are those that follow
// "guard/" in Decision.Rule.
func Classify(addr netip.Addr) string {
	return classify(addr).class
}

// guard is what is known of an address: its class, "" for none, and what lifts the guard.
type guard struct {
	class  string
	source string
	block  netip.Prefix // an egress range lifts the guard when it lies inside this one
	byName bool         // an egress name lifts it
	form   string       // "" or the class of the IPv6 form that inner was found in
	inner  netip.Addr   // the IPv4 address inside that form
}

func classify(addr netip.Addr) guard {
	switch {
	case !addr.IsValid():
		return guard{class: classInvalid}
	case addr.Zone() != "":
		// Before Unmap, which would drop the zone of a mapped address; and no Prefix contains an address
		// with a zone, so that it would fall through every range below.
		return guard{class: classZone}
	}
	addr = addr.Unmap()
	b := longest(addr)
	if b == nil {
		return guard{}
	}
	g := guard{class: b.class, source: b.source, block: b.prefix, byName: b.byName}
	if b.embeds == noEmbedding {
		return g
	}
	inner := embedded(addr, b.embeds)
	in := classify(inner)
	if in.class == "" {
		return g
	}
	// Inside is a guarded IPv4 address: the form is guarded for the reasons of both, and the range that lifts it
	// has to lie in the form of the IPv4 range.
	in.block = netip.PrefixFrom(addr, b.embeds+in.block.Bits()).Masked()
	in.byName = in.byName && b.byName
	in.form, in.inner = b.class, inner
	return in
}

// longest returns the narrowest block that addr lies in, or nil.
func longest(addr netip.Addr) *block {
	blocks := blocks6
	if addr.Is4() {
		blocks = blocks4
	}
	var found *block
	for i := range blocks {
		b := &blocks[i]
		if (found == nil || b.prefix.Bits() > found.prefix.Bits()) && b.prefix.Contains(addr) {
			found = b
		}
	}
	return found
}

// embedded returns the IPv4 address at the given bit of an IPv6 address; the bit is a multiple of 8.
func embedded(addr netip.Addr, bit int) netip.Addr {
	b := addr.As16()
	return netip.AddrFrom4([4]byte(b[bit/8:]))
}

// String says why an address is guarded, as the second half of a sentence: "is " + g.String().
func (g guard) String() string {
	switch {
	case g.class == classOwn:
		return "an address of this host"
	case g.form != "":
		return fmt.Sprintf("the %s form of %s, a guarded address: %s (%s)", g.form, g.inner, g.class, g.source)
	}
	return fmt.Sprintf("a guarded address: %s (%s, %s)", g.class, g.block, g.source)
}

package policy

import (
	"net/netip"
	"testing"
)

// TestClassify has, for every class, the first and the last address and what lies just outside, and the IPv6 forms
// in which an IPv4 address can hide.
func TestClassify(t *testing.T) {
	tests := []struct {
		addr, want string
	}{
		// Public addresses.
		{"1.1.1.1", ""}, {"8.8.8.8", ""}, {"93.184.216.34", ""}, {"2606:4700:4700::1111", ""}, {"2000::1", ""},
		{"2001:200::1", ""}, {"2a00:1450:4001:830::200e", ""}, {"::ffff:8.8.8.8", ""},
		{"192.31.196.1", ""}, {"192.175.48.1", ""}, {"192.52.193.1", ""}, {"2620:4f:8000::1", ""}, // AS112, AMT

		{"0.0.0.0", "this-network"}, {"0.255.255.255", "this-network"}, {"1.0.0.0", ""}, {"::", "this-network"},
		{"127.0.0.0", "loopback"}, {"127.0.0.1", "loopback"}, {"127.255.255.255", "loopback"}, {"126.255.255.255", ""},
		{"128.0.0.0", ""}, {"::1", "loopback"}, {"::ffff:127.0.0.1", "loopback"},
		{"169.254.0.0", "link-local"}, {"169.254.255.255", "link-local"}, {"169.253.255.255", ""}, {"169.255.0.0", ""},
		{"fe80::1", "link-local"}, {"febf:ffff::1", "link-local"}, {"::ffff:169.254.1.1", "link-local"},
		{"10.0.0.0", "private"}, {"10.255.255.255", "private"}, {"9.255.255.255", ""}, {"11.0.0.0", ""},
		{"172.16.0.0", "private"}, {"172.31.255.255", "private"}, {"172.15.255.255", ""}, {"172.32.0.0", ""},
		{"192.168.0.0", "private"}, {"192.168.255.255", "private"}, {"192.167.255.255", ""}, {"192.169.0.0", ""},
		{"::ffff:10.1.2.3", "private"},
		{"fc00::", "unique-local"}, {"fdff:ffff::1", "unique-local"}, {"fd00:ec2::253", "unique-local"},
		{"fec0::1", "site-local"}, {"feff:ffff::1", "site-local"},
		{"100.64.0.0", "shared"}, {"100.127.255.255", "shared"}, {"100.63.255.255", ""}, {"100.128.0.0", ""},
		{"224.0.0.1", "multicast"}, {"239.255.255.255", "multicast"}, {"223.255.255.255", ""}, {"ff02::1", "multicast"},
		{"255.255.255.255", "broadcast"}, {"240.0.0.0", "reserved"}, {"255.255.255.254", "reserved"},
		{"192.0.2.1", "documentation"}, {"198.51.100.1", "documentation"}, {"203.0.113.255", "documentation"},
		{"2001:db8::1", "documentation"}, {"3fff:fff::1", "documentation"}, {"3fff:1000::1", ""},
		{"198.18.0.0", "benchmarking"}, {"198.19.255.255", "benchmarking"}, {"198.17.255.255", ""}, {"198.20.0.0", ""},
		{"2001:2::1", "benchmarking"},
		{"192.0.0.0", "ietf-protocol"}, {"192.0.0.9", "ietf-protocol"}, {"192.0.0.255", "ietf-protocol"}, {"192.0.1.0", ""},
		{"2001:1::1", "ietf-protocol"}, {"2001:20::1", "ietf-protocol"}, {"2001:1ff::1", "ietf-protocol"},
		{"100::1", "discard"}, {"100:0:0:1::1", "discard"}, {"5f00::1", "srv6"},
		{"2001::1", "teredo"}, {"2001:0:ffff::1", "teredo"},
		{"192.88.99.1", "6to4"}, {"2002:808:808::1", "6to4"},
		{"64:ff9b::808:808", "nat64"}, {"64:ff9b:1::1", "nat64"}, {"64:ff9b:1:ffff::808:808", "nat64"}, {"64:ff9b:2::1", "unallocated"},
		{"::8.8.8.8", "ipv4-compatible"}, {"::ffff:0:8.8.8.8", "ipv4-translated"},
		{"1000::1", "unallocated"}, {"1fff:ffff::1", "unallocated"}, {"4000::1", "unallocated"}, {"9000::1", "unallocated"},
		{"fe00::1", "unallocated"},

		// Metadata services.
		{"169.254.169.254", "metadata"}, {"169.254.170.2", "metadata"}, {"169.254.170.23", "metadata"},
		{"169.254.0.23", "metadata"}, {"169.254.42.42", "metadata"}, {"100.100.100.200", "metadata"},
		{"168.63.129.16", "metadata"}, {"168.63.129.17", ""}, {"192.0.0.192", "metadata"}, {"fd00:ec2::254", "metadata"},
		{"fd00:ec2::23", "metadata"}, {"fd20:ce::254", "metadata"}, {"fd00:42::42", "metadata"}, {"fd00:c1::a9fe:a9fe", "metadata"},
		{"::ffff:169.254.169.254", "metadata"}, {"::ffff:168.63.129.16", "metadata"},

		// A guarded IPv4 address inside another form.
		{"::127.0.0.1", "loopback"}, {"::ffff:0:127.0.0.1", "loopback"}, {"64:ff9b::7f00:1", "loopback"}, {"2002:7f00:1::", "loopback"},
		{"2002:7f00:1:ffff::1", "loopback"}, {"64:ff9b::a9fe:a9fe", "metadata"}, {"2002:a9fe:a9fe::", "metadata"},
		{"::169.254.169.254", "metadata"}, {"64:ff9b::10.0.0.1", "private"}, {"2002:c0a8:1::1", "private"}, {"64:ff9b::", "this-network"},

		// Zones, also where Unmap would lose them.
		{"fe80::1%eth0", "zone"}, {"2606:4700::1%eth0", "zone"}, {"::ffff:8.8.8.8%eth0", "zone"}, {"::1%lo", "zone"},
	}
	for _, tt := range tests {
		t.Run(tt.addr, func(t *testing.T) {
			if got := Classify(netip.MustParseAddr(tt.addr)); got != tt.want {
				t.Errorf("Classify(%s) = %q, want %q", tt.addr, got, tt.want)
			}
		})
	}
	if got := Classify(netip.Addr{}); got != "invalid" {
		t.Errorf("Classify(zero Addr) = %q, want invalid", got)
	}
}

// TestClassifyAgreesWithNetip walks the address space: what netip calls anything but public unicast is guarded.
func TestClassifyAgreesWithNetip(t *testing.T) {
	check := func(a netip.Addr) {
		special := !a.IsGlobalUnicast() || a.IsPrivate() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.IsUnspecified()
		if special && Classify(a) == "" {
			t.Errorf("Classify(%s) is empty, netip says it is special", a)
		}
	}
	for i := range 1 << 16 {
		hi, lo := byte(i>>8), byte(i)
		check(netip.AddrFrom4([4]byte{hi, lo, 1, 1}))
		check(netip.AddrFrom16([16]byte{hi, lo, 15: 1}))
	}
}

// TestBlocks checks the tables against mistakes of writing.
func TestBlocks(t *testing.T) {
	seen := make(map[netip.Prefix]bool)
	for _, table := range []struct {
		blocks []block
		v4     bool
	}{{blocks4, true}, {blocks6, false}} {
		for _, b := range table.blocks {
			switch {
			case b.prefix != b.prefix.Masked():
				t.Errorf("block %s has bits behind its length", b.prefix)
			case b.prefix.Addr().Is4() != table.v4 || b.prefix.Addr().Is4In6():
				t.Errorf("block %s is in the wrong table", b.prefix)
			case seen[b.prefix]:
				t.Errorf("block %s is there twice", b.prefix)
			case b.class == "" || b.source == "":
				t.Errorf("block %s has no class or source", b.prefix)
			case b.embeds != noEmbedding && (b.embeds%8 != 0 || b.embeds < b.prefix.Bits() || b.embeds > 96):
				t.Errorf("block %s cannot have an IPv4 address at bit %d", b.prefix, b.embeds)
			}
			seen[b.prefix] = true
		}
	}
}

func BenchmarkClassify(b *testing.B) {
	for _, s := range []string{"93.184.216.34", "2606:4700:4700::1111", "64:ff9b::7f00:1"} {
		b.Run(s, func(b *testing.B) {
			addr := netip.MustParseAddr(s)
			b.ReportAllocs()
			for b.Loop() {
				Classify(addr)
			}
		})
	}
}

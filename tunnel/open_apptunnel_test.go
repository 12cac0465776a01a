package tunnel

import (
	"net/netip"
	"strings"
	"testing"

	"culvert/pki/spiffe"
)

func TestAppTunnelHeader(t *testing.T) {
	id, err := spiffe.Parse("spiffe://cluster.local/ns/shop/sa/web")
	if err != nil {
		t.Fatal(err)
	}
	const sign = "\r\n\r\n\x00\r\nQUIT\n"
	tlv := "\xd0\x00\x25spiffe://cluster.local/ns/shop/sa/web"
	ap := netip.MustParseAddrPort
	for _, tt := range []struct {
		name     string
		src, dst netip.AddrPort
		peer     spiffe.ID
		want     string
	}{
		{"IPv4", ap("10.0.0.1:4660"), ap("10.96.0.10:80"), id, sign + "\x21\x11\x00\x34" + "\x0a\x00\x00\x01\x0a\x60\x00\x0a\x12\x34\x00\x50" + tlv},
		{"nobody", ap("10.0.0.1:4660"), ap("10.96.0.10:80"), spiffe.ID{}, sign + "\x21\x11\x00\x0c" + "\x0a\x00\x00\x01\x0a\x60\x00\x0a\x12\x34\x00\x50"},
		{"IPv6", ap("[fd00::1]:1"), ap("[fd00::2]:2"), spiffe.ID{}, sign + "\x21\x21\x00\x24" +
			"\xfd\x00" + strings.Repeat("\x00", 13) + "\x01\xfd\x00" + strings.Repeat("\x00", 13) + "\x02\x00\x01\x00\x02"},
		{"both", ap("[fd00::1]:1"), ap("10.0.0.1:2"), spiffe.ID{}, sign + "\x21\x21\x00\x24" +
			"\xfd\x00" + strings.Repeat("\x00", 13) + "\x01" + strings.Repeat("\x00", 10) + "\xff\xff\x0a\x00\x00\x01\x00\x01\x00\x02"},
		{"from nowhere", netip.AddrPort{}, ap("10.0.0.1:2"), id, sign + "\x21\x00\x00\x28" + tlv},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got, err := appTunnelHeader(tt.src, tt.dst, tt.peer); err != nil || string(got) != tt.want {
				t.Errorf("%q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

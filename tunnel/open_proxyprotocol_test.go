package tunnel

import (
	"bufio"
	"bytes"
	"net/netip"
	"testing"

	proxyproto "github.com/pires/go-proxyproto"

	"culvert/pki/spiffe"
)

// What a destination is told of a flow: the client, what the CONNECT asked for, the peer.
func TestProxyProtocolHeader(t *testing.T) {
	peer, err := spiffe.New("cluster.local", "shop", "cart")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name     string
		version  byte
		source   string
		wanted   Target
		src, dst string // "": none
		tlvs     map[proxyproto.PP2Type]string
	}{
		{"an address", 2, "10.0.0.7:1234", Target{Addr: netip.MustParseAddr("10.96.0.1"), Port: 80}, "10.0.0.7:1234", "10.96.0.1:80", map[proxyproto.PP2Type]string{0xD0: peer.String()}},
		{"a name", 2, "10.0.0.7:1234", Target{Host: "orders.svc", Port: 80}, "10.0.0.7:1234", "10.0.0.9:80", map[proxyproto.PP2Type]string{0xD0: peer.String(), 2: "orders.svc"}},
		{"two families", 2, "[2001:db8::1]:1234", Target{Addr: netip.MustParseAddr("10.96.0.1"), Port: 80}, "[2001:db8::1]:1234", "[::]:80", map[proxyproto.PP2Type]string{0xD0: peer.String()}},
		{"no address", 2, "", Target{Addr: netip.MustParseAddr("10.96.0.1"), Port: 80}, "", "", map[proxyproto.PP2Type]string{0xD0: peer.String()}},
		{"version 1", 1, "10.0.0.7:1234", Target{Addr: netip.MustParseAddr("10.96.0.1"), Port: 80}, "10.0.0.7:1234", "10.96.0.1:80", nil},
		{"version 1, no address", 1, "", Target{Addr: netip.MustParseAddr("10.96.0.1"), Port: 80}, "", "", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := &Flow{Peer: peer, via: &route{proxy: tt.version}}
			if tt.source != "" {
				f.Source = netip.MustParseAddrPort(tt.source)
			}
			text, err := f.proxyHeader(tt.wanted, netip.MustParseAddrPort("10.0.0.9:8080")).Format()
			if err != nil {
				t.Fatal(err)
			}
			h, err := proxyproto.Read(bufio.NewReader(bytes.NewReader(text)))
			if err != nil {
				t.Fatalf("%q: %v", text, err)
			}
			src, dst := "", ""
			if h.SourceAddr != nil {
				src, dst = h.SourceAddr.String(), h.DestinationAddr.String()
			}
			if src != tt.src || dst != tt.dst {
				t.Errorf("from %q to %q, want %q and %q", src, dst, tt.src, tt.dst)
			}
			tlvs, err := h.TLVs()
			if err != nil || len(tlvs) != len(tt.tlvs) {
				t.Errorf("%v, %v, want %v", tlvs, err, tt.tlvs)
			}
			for _, tlv := range tlvs {
				if tt.tlvs[tlv.Type] != string(tlv.Value) {
					t.Errorf("%x is %q, want %q", tlv.Type, tlv.Value, tt.tlvs[tlv.Type])
				}
			}
		})
	}
}

package tunnel

import (
	"net"
	"net/netip"
	"testing"

	"culvert/pki/spiffe"
)

// A flow of datagrams that has the addresses of a TCP connection of this gateway is another one, which may go on.
func TestLoopIsOfOneNetwork(t *testing.T) {
	g, err := New(&Config{}, Env{Self: func() spiffe.ID { return spiffe.ID{} }})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	l := &listener{g: g, ln: ln}
	source, dst := netip.MustParseAddrPort("192.0.2.1:40000"), netip.MustParseAddrPort("192.0.2.2:443")
	if g.loops.enter(addrPair{from: source, to: dst}, true) {
		t.Fatal("the first connection is a loop")
	}
	for _, udp := range []bool{false, true} {
		f := &Flow{Source: source, UDP: udp, Target: Target{Addr: dst.Addr(), Port: dst.Port()}}
		if err := l.comesBack(f); (err == nil) != udp {
			t.Errorf("datagrams %t: comesBack = %v", udp, err)
		}
	}
}

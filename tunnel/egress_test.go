package tunnel_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"culvert/tunnel"
	"culvert/tunnel/tunneltest"
)

// guardedAddrs has an address of every kind that an egress reaches only where somebody has named it:
// loopback, private, shared, link-local, metadata, special ones, and IPv4 addresses in each form of IPv6 that hides them.
func guardedAddrs() []string {
	return []string{
		"0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.254", "10.9.9.9", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1",
		"169.254.0.1", "169.254.169.254", "169.254.170.2", "168.63.129.16", "192.0.0.192", "100.100.100.200", "192.0.0.9", "192.0.2.1",
		"198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.88.99.1",
		"::", "::1", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "2001::1", "2001:2::1", "100::1",
		"::127.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1", "2002:7f00:1::", "2002:a00:1::1", "4000::1",
	}
}

// Under the default policy no guarded address is dialled, neither as a destination nor as what a name resolves to.
func TestEgressReachesNoGuardedAddress(t *testing.T) {
	var dialled []netip.AddrPort
	var answer []netip.Addr
	p := tunneltest.NewPair(t, tunneltest.Options{
		Exit: func(c *tunnel.Config) { c.Routes = []tunnel.RouteConfig{{}} },
		ExitEnv: func(e *tunnel.Env) {
			e.Resolve = func(context.Context, string) ([]netip.Addr, error) { return answer, nil }
			e.Dial = func(_ context.Context, addr netip.AddrPort) (net.Conn, error) {
				dialled = append(dialled, addr)
				return nil, fmt.Errorf("%s was dialled", addr)
			}
		},
	})
	public := netip.MustParseAddr(publicAddr)
	for _, text := range guardedAddrs() {
		addr := netip.MustParseAddr(text)
		if err := p.Refusal(testContext(t), netip.AddrPortFrom(addr, 80).String()); tunnel.CauseOf(err) != tunnel.CauseProhibited {
			t.Errorf("%s: dial = %v (cause %v), want that it is prohibited", text, err, tunnel.CauseOf(err))
		}
		mapped := netip.AddrFrom16(addr.As16())
		for _, answer = range [][]netip.Addr{{addr}, {mapped}, {public, addr}, {mapped, public}} {
			if err := p.Refusal(testContext(t), "www.example:80"); tunnel.CauseOf(err) != tunnel.CauseProhibited {
				t.Errorf("a name of %v: dial = %v (cause %v), want that it is prohibited", answer, err, tunnel.CauseOf(err))
			}
		}
	}
	if len(dialled) > 0 {
		t.Errorf("dialled: %v", dialled)
	}
	if err := p.Refusal(testContext(t), netip.AddrPortFrom(public, 80).String()); err == nil || len(dialled) != 1 {
		t.Errorf("a public address: dial = %v, dialled %v, want that it was", err, dialled)
	}
}

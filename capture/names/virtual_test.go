package names

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// addressOf asks for the virtual address of a name.
func addressOf(t testing.TB, s *Server, name string, kind uint16) netip.Addr {
	t.Helper()
	m := asks(t, s, question(name, kind))
	if len(m.Answer) != 1 || m.Rcode != dns.RcodeSuccess || m.Answer[0].Header().Ttl != virtualTTL || m.Answer[0].Header().Name != name {
		t.Fatalf("answer = %s, want an address", shown(m))
	}
	addr, _ := netip.AddrFromSlice(addresses(m.Answer[0])[0])
	if addr = addr.Unmap(); addr.Is4() != (kind == dns.TypeA) {
		t.Fatalf("address = %v, want one of the family", addr)
	}
	return addr
}

func TestVirtualNames(t *testing.T) {
	cfg := &Config{Virtual: []string{"*.mesh", "Orders.shop.example"}}
	s := newServer(t, cfg, nil)
	four, six := addressOf(t, s, "Orders.Mesh.", dns.TypeA), addressOf(t, s, "orders.mesh.", dns.TypeAAAA)
	if !netip.MustParsePrefix(defaultIPv4).Contains(four) || !netip.MustParsePrefix(defaultIPv6).Contains(six) {
		t.Errorf("addresses = %v, %v, want them of the ranges", four, six)
	}
	for range 2 {
		if got := addressOf(t, s, "oRDERS.mESH.", dns.TypeA); got != four {
			t.Errorf("address = %v, then %v, want the same", four, got)
		}
	}
	if other := addressOf(t, s, "stock.mesh.", dns.TypeA); other == four {
		t.Errorf("two names have the address %v", four)
	}
	addressOf(t, s, "orders.shop.example.", dns.TypeA)
	for _, kind := range []uint16{dns.TypeMX, dns.TypeTXT, dns.TypeHTTPS, dns.TypeSVCB, dns.TypeDS, dns.TypeCNAME, 4242} {
		wantShown(t, asks(t, s, question("orders.mesh.", kind)), "NOERROR")
	}
	for addr, want := range map[string]string{
		four.String(): "orders.mesh true", six.String(): "orders.mesh true", "::ffff:" + four.String(): "orders.mesh true",
		"240.15.255.254": " true", "fd63:756c:7665:7274::1": " true", "192.0.2.1": " false", "2001:db8::1": " false", "::1": " false",
	} {
		if name, virtual := s.Name(netip.MustParseAddr(addr)); fmt.Sprint(name, " ", virtual) != want {
			t.Errorf("Name(%s) = %q, %v, want %s", addr, name, virtual, want)
		}
	}
	if name, virtual := s.Name(netip.Addr{}); name != "" || virtual {
		t.Errorf("Name of no address = %q, %v", name, virtual)
	}
	again := newServer(t, cfg, nil) // after a restart
	if got := addressOf(t, again, "orders.mesh.", dns.TypeA); got != four {
		t.Errorf("address after a restart = %v, want %v", got, four)
	}
	wantCounts(t, again, "questions=1 virtual=1")
	for _, name := range []string{"mesh.", "xmesh.", "a.orders.shop.example.", `a\.mesh.`} {
		wantShown(t, asks(t, s, question(name, dns.TypeA)), "SERVFAIL") // there is no resolver to ask
	}
}

// TestVirtualNamesAreHosts has names that no flow can be to, or that would read as another one.
func TestVirtualNamesAreHosts(t *testing.T) {
	s := newServer(t, &Config{Virtual: []string{"*.mesh"}}, nil)
	for _, name := range []string{`a\.b.mesh.`, `a\000.mesh.`, `a\@b.mesh.`, `*.mesh.`, `a\ b.mesh.`, `a/b.mesh.`, `a:80.mesh.`, `\195\188.mesh.`, `-a.mesh.`, `a-.mesh.`, `a\\.mesh.`} {
		wantShown(t, asks(t, s, question(name, dns.TypeA)), "NXDOMAIN")
	}
	for _, name := range []string{"a-b.mesh.", "_a.mesh.", "9.mesh.", "a.b.c.mesh."} {
		addressOf(t, s, name, dns.TypeA)
	}
}

func TestOneFamilyOnly(t *testing.T) {
	s := newServer(t, &Config{Virtual: []string{"*.mesh"}, IPv4: "none"}, nil)
	wantShown(t, asks(t, s, question("a.mesh.", dns.TypeA)), "NOERROR")
	addressOf(t, s, "a.mesh.", dns.TypeAAAA)
	if _, virtual := s.Name(netip.MustParseAddr("240.0.0.1")); virtual {
		t.Error("an address is virtual without a range")
	}
}

func TestAdopt(t *testing.T) {
	old := newServer(t, &Config{Virtual: []string{"*.mesh"}}, nil)
	four, six := addressOf(t, old, "a.mesh.", dns.TypeA), addressOf(t, old, "a.mesh.", dns.TypeAAAA)
	next := newServer(t, &Config{Virtual: []string{"*.mesh"}, IPv6: "fd00::/112"}, nil)
	next.Adopt(old)
	if name, _ := next.Name(four); name != "a.mesh" {
		t.Errorf("Name(%v) = %q, want that of before", four, name)
	}
	if name, virtual := next.Name(six); name != "" || virtual {
		t.Errorf("Name(%v) = %q, %v, want none: the range is another one", six, name, virtual)
	}
	addressOf(t, next, "b.mesh.", dns.TypeAAAA)
	wantCounts(t, next, "questions=3 virtual=3")
}

// TestNoAddressLeft fills the smallest range. What has not been used for a day makes room.
func TestNoAddressLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, &Config{Virtual: []string{"*.mesh"}, IPv4: "198.18.0.16/28", IPv6: "fd00::/124"}, nil)
		const room = 14 // without the first and the last
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
			seen := make(map[netip.Addr]bool)
			for i := range room {
				addr := addressOf(t, s, fmt.Sprintf("n%d.mesh.", i), kind)
				if seen[addr] || !s.four.prefix.Contains(addr) && !s.six.prefix.Contains(addr) {
					t.Errorf("address %v is given out twice, or not of the range", addr)
				}
				seen[addr] = true
			}
			wantShown(t, asks(t, s, question("late.mesh.", kind)), "SERVFAIL")
		}
		wantCounts(t, s, "questions=30 virtual=30 failed=2")
		time.Sleep(virtualAge - time.Second) // of synthetic time
		kept := addressOf(t, s, "n0.mesh.", dns.TypeA)
		used, _ := s.four.of("n1.mesh.")
		time.Sleep(time.Second)
		if name, _ := s.Name(used); name != "n1.mesh" {
			t.Errorf("Name(%v) = %q, want n1.mesh", used, name)
		}
		late := addressOf(t, s, "late.mesh.", dns.TypeA)
		if name, _ := s.Name(late); name != "late.mesh" || late == kept || late == used {
			t.Errorf("late.mesh has %v, which is %q; n0 has %v and n1 %v", late, name, kept, used)
		}
		if len(s.four.addrs) != room || len(s.four.names) != room || s.four.order.Len() != room {
			t.Errorf("%d names, %d addresses, %d in order, want %d each", len(s.four.addrs), len(s.four.names), s.four.order.Len(), room)
		}
	})
}

// TestFlowKeepsItsAddress has an app that asks once and then makes flows to the address for days.
func TestFlowKeepsItsAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVirtual(netip.MustParsePrefix("198.18.0.0/28"))
		addr, _ := v.of("a.mesh.")
		for range 3 {
			time.Sleep(virtualAge - time.Second) // of synthetic time
			for i := range 20 {
				v.of(fmt.Sprintf("n%d.mesh.", i))
			}
			if name, _ := v.name(addr); name != "a.mesh" {
				t.Fatalf("name(%v) = %q, want a.mesh", addr, name)
			}
		}
	})
}

// TestVirtualNamesAreBounded has an app that asks for ever new names.
func TestVirtualNamesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVirtual(netip.MustParsePrefix(defaultIPv6))
		for i := range maxVirtual {
			if _, ok := v.of(fmt.Sprintf("n%d.mesh.", i)); !ok {
				t.Fatalf("no address for name %d, want %d names", i, maxVirtual)
			}
		}
		if addr, ok := v.of("late.mesh."); ok || addr.IsValid() {
			t.Errorf("of = %v, %v, want none", addr, ok)
		}
		if _, ok := v.of("n7.mesh."); !ok {
			t.Error("a name that has an address has it no more")
		}
		time.Sleep(virtualAge) // of synthetic time
		if addr, ok := v.of("late.mesh."); !ok || !addr.IsValid() || len(v.addrs) != maxVirtual || len(v.names) != maxVirtual {
			t.Errorf("of = %v, %v with %d names, want an address and %d names", addr, ok, len(v.addrs), maxVirtual)
		}
		if _, ok := v.addrs["n0.mesh."]; ok {
			t.Error("the name that was used longest ago is still there")
		}
	})
}

// TestVirtualRanges has the first and last address of a range left out, whatever its length.
func TestVirtualRanges(t *testing.T) {
	for _, text := range []string{"198.18.0.0/28", "240.0.0.0/12", "10.0.0.0/8", "fd00::/124", "fd00::/96", "fd00::/64", "fd00::/32"} {
		p := netip.MustParsePrefix(text)
		v := newVirtual(p)
		size := uint64(1) << min(p.Addr().BitLen()-p.Bits(), 32)
		for _, n := range []uint64{0, size - 1, size, 2*size - 1} {
			if addr := v.at(n); addr.IsValid() {
				t.Errorf("at(%d) of %s = %v, want none", n, text, addr)
			}
		}
		for _, n := range []uint64{1, size - 2, size + 1, 1<<64 - 2} {
			if addr := v.at(n); !p.Contains(addr) {
				t.Errorf("at(%d) of %s = %v, want one of it", n, text, addr)
			}
		}
	}
}

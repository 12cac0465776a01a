package policy

import (
	"net/netip"
	"strings"
	"testing"
)

func mustEgress(t testing.TB, own Own, list ...string) *Egress {
	t.Helper()
	e, err := CompileEgress("egress", list, own)
	if err != nil {
		t.Fatalf("CompileEgress(%q) = %v", list, err)
	}
	return e
}

// wantDecision compares rule and, when it is given, a part of the reason. A rule of "egress[…]", "guard" or "resolve" allows.
func wantDecision(t *testing.T, what string, got Decision, rule, reason string) {
	t.Helper()
	allow := strings.HasSuffix(rule, "]") || rule == "guard" || rule == "resolve"
	if got.Allow != allow || got.Rule != rule || got.Policy != "egress" || !strings.Contains(got.Reason, reason) || got.Reason == "" {
		t.Errorf("%s = %+v, want rule %s, reason with %q", what, got, rule, reason)
	}
}

func TestEgressName(t *testing.T) {
	long := strings.Repeat("a.", 127) + "example"
	tests := []struct {
		name   string
		list   []string
		host   string
		port   uint16
		rule   string
		reason string
	}{
		{"no list", nil, "example.com", 443, "resolve", "will decide"},
		{"no list, guarded port", nil, "example.com", 25, "guard/port", "--egress NAME:25"},
		{"no list, port of the mesh", nil, "example.com", 15008, "guard/port", "one name or address"},
		{"port 0", []string{"*"}, "example.com", 0, "guard/port", "1 to 65535"},
		{"exact", []string{"a.example", "example.com"}, "example.com", 443, "egress[1]", `"example.com"`},
		{"case and dot", []string{"example.com"}, "EXAMPLE.com.", 443, "egress[0]", ""},
		{"case and dot of the entry", []string{"EXAMPLE.com."}, "example.com", 443, "egress[0]", ""},
		{"folded by Unicode only", []string{"kube.example"}, "\u212aube.example", 443, "guard/name", "canonical"},
		{"below", []string{"*.example.com"}, "a.b.example.com", 443, "egress[0]", ""},
		{"not itself", []string{"*.example.com"}, "example.com", 443, "unlisted", "--egress example.com:443"},
		{"not a longer label", []string{"*.example.com"}, "badexample.com", 443, "unlisted", ""},
		{"only the end counts", []string{"example.com"}, "example.com.evil.example", 443, "unlisted", ""},
		{"not the parent's neighbour", []string{"example.com"}, "a.example.com", 443, "unlisted", ""},
		{"port of the entry", []string{"example.com:443"}, "example.com", 443, "egress[0]", ""},
		{"another port", []string{"example.com:443"}, "example.com", 80, "unlisted", "port 80"},
		{"everything", []string{"*"}, "example.com", 443, "egress[0]", ""},
		{"everything at one port", []string{"*:443"}, "example.com", 80, "unlisted", ""},
		{"a range may hold what it resolves to", []string{"10.0.0.0/8"}, "db.corp.example", 5432, "resolve", "will decide"},
		{"a range with another port", []string{"10.0.0.0/8:443"}, "db.corp.example", 5432, "unlisted", ""},
		{"a range does not open port 22", []string{"10.0.0.0/8"}, "db.corp.example", 22, "unlisted", ""},
		{"a range with port 22", []string{"10.0.0.0/8:22"}, "db.corp.example", 22, "resolve", ""},
		{"a name before a range", []string{"10.0.0.0/8", "db.corp.example"}, "db.corp.example", 5432, "egress[1]", ""},
		{"port 22 not written", []string{"example.com"}, "example.com", 22, "guard/port", "SSH"},
		{"port 22 written", []string{"example.com", "example.com:22"}, "example.com", 22, "egress[1]", ""},
		{"port 22 written for everything", []string{"*:22"}, "example.com", 22, "egress[0]", ""},
		{"admin port not written", []string{"example.com"}, "example.com", 15000, "guard/port", "admin"},
		{"port of the mesh, one name", []string{"gw.example"}, "gw.example", 15008, "egress[0]", ""},
		{"port of the mesh, names below", []string{"*.example"}, "gw.example", 15008, "guard/port", ""},
		{"port of the mesh, everything", []string{"*"}, "gw.example", 15008, "guard/port", ""},
		{"address as host", []string{"10.0.0.0/8"}, "10.0.0.1", 443, "egress[0]", ""},
		{"IPv6 address as host", nil, "::1", 443, "guard/loopback", ""},
		{"mapped address as host", nil, "::ffff:7f00:1", 443, "guard/loopback", ""},
		{"address with zone as host", []string{"*"}, "fe80::1%e\nth", 443, "guard/zone", `"e\nth"`},
		{"short spelling", []string{"*"}, "127.1", 443, "guard/name", "canonical"},
		{"number", []string{"*"}, "2130706433", 443, "guard/name", "canonical"},
		{"hexadecimal", []string{"*"}, "0x7f.1", 443, "guard/name", "canonical"},
		{"hexadecimal at the end", []string{"*"}, "127.0.0.0X1", 443, "guard/name", "canonical"},
		{"octal", []string{"*"}, "0177.0.0.1", 443, "guard/name", "canonical"},
		{"address and dot", []string{"*"}, "127.0.0.1.", 443, "guard/name", "canonical"},
		{"brackets", []string{"*"}, "[::1]", 443, "guard/name", "canonical"},
		{"empty", []string{"*"}, "", 443, "guard/name", "canonical"},
		{"dot", []string{"*"}, ".", 443, "guard/name", "canonical"},
		{"control character", []string{"*"}, "a\x00b", 443, "guard/name", `"a\x00b"`},
		{"too long", []string{"*"}, long, 443, "guard/name", "canonical"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := mustEgress(t, Own{}, tt.list...)
			wantDecision(t, "Name", e.Name(tt.host, tt.port), tt.rule, tt.reason)
		})
	}
}

func TestEgressAddr(t *testing.T) {
	own := Own{
		Addrs: []netip.Addr{netip.MustParseAddr("93.184.216.1"), netip.MustParseAddr("::ffff:10.9.9.9")},
		Ports: []uint16{443, 8443, 9090},
	}
	tests := []struct {
		name   string
		list   []string
		host   string
		addr   string
		port   uint16
		rule   string
		reason string
	}{
		{"public", nil, "", "8.8.8.8", 443, "guard", "no egress list"},
		{"public by name", nil, "dns.example", "8.8.8.8", 443, "guard", ""},
		{"private", nil, "", "10.0.0.5", 443, "guard/private", `only --egress 10.0.0.5, or a range inside 10.0.0.0/8, opens it (add --egress "*"`},
		{"private by name", nil, "db.example", "10.0.0.5", 443, "guard/private", `address 10.0.0.5 (what name "db.example" resolves to) is a guarded address: private`},
		{"mapped", nil, "", "::ffff:10.0.0.5", 443, "guard/private", "address 10.0.0.5 is"},
		{"NAT64 of loopback", nil, "", "64:ff9b::7f00:1", 443, "guard/loopback", "the nat64 form of 127.0.0.1"},
		{"zone", []string{"*", "fe80::/10"}, "", "fe80::1%eth0", 443, "guard/zone", `"eth0"`},
		{"guarded port", nil, "", "8.8.8.8", 25, "guard/port", "spam"},
		{"port 0", nil, "", "8.8.8.8", 0, "guard/port", "1 to 65535"},

		{"range inside", []string{"10.0.0.0/8"}, "", "10.0.0.5", 443, "egress[0]", `"10.0.0.0/8"`},
		{"smaller range", []string{"10.0.0.0/24"}, "", "10.0.0.5", 443, "egress[0]", ""},
		{"another range", []string{"10.1.0.0/16"}, "", "10.0.0.5", 443, "unlisted", "--egress 10.0.0.5:443"},
		{"wider range", []string{"8.0.0.0/6"}, "", "10.0.0.5", 443, "guard/private", "inside 10.0.0.0/8"},
		{"whole Internet, private", []string{"0.0.0.0/0"}, "", "10.0.0.5", 443, "guard/private", ""},
		{"whole Internet, metadata", []string{"0.0.0.0/0"}, "", "169.254.169.254", 80, "guard/metadata", "only --egress 169.254.169.254 opens it"},
		{"whole Internet, public", []string{"0.0.0.0/0"}, "", "8.8.8.8", 443, "egress[0]", ""},
		{"whole Internet 6, loopback", []string{"::/0"}, "", "::1", 443, "guard/loopback", ""},
		{"IPv6 range does not hold IPv4", []string{"::/0"}, "", "8.8.8.8", 443, "unlisted", ""},
		{"link-local range, link-local", []string{"169.254.0.0/16"}, "", "169.254.7.7", 80, "egress[0]", ""},
		{"link-local range, metadata", []string{"169.254.0.0/16"}, "", "169.254.169.254", 80, "guard/metadata", ""},
		{"metadata itself", []string{"169.254.169.254"}, "", "169.254.169.254", 80, "egress[0]", ""},
		{"unique-local range, metadata", []string{"fd00::/8"}, "", "fd00:ec2::254", 80, "guard/metadata", ""},
		{"shared range, metadata", []string{"100.64.0.0/10"}, "", "100.100.100.200", 80, "guard/metadata", ""},
		{"loopback", []string{"127.0.0.1"}, "", "127.0.0.1", 8080, "egress[0]", ""},
		{"loopback range", []string{"127.0.0.0/8:8080"}, "localhost", "127.0.0.1", 8080, "egress[0]", ""},
		{"NAT64 range, public inside", []string{"64:ff9b::/96"}, "", "64:ff9b::808:808", 443, "egress[0]", ""},
		{"NAT64 range, metadata inside", []string{"64:ff9b::/96"}, "", "64:ff9b::a9fe:a9fe", 443, "guard/metadata", "only --egress 64:ff9b::a9fe:a9fe opens it"},
		{"NAT64 range of the private range", []string{"64:ff9b::a00:0/104"}, "", "64:ff9b::a00:5", 443, "egress[0]", ""},
		{"private range, its NAT64 form", []string{"10.0.0.0/8"}, "", "64:ff9b::a00:5", 443, "unlisted", ""},
		{"6to4 range, loopback inside", []string{"2002::/16"}, "", "2002:7f00:1::1", 443, "guard/loopback", ""},

		{"name, private", []string{"db.example"}, "db.example", "10.0.0.5", 5432, "egress[0]", ""},
		{"name in capitals, private", []string{"db.example"}, "DB.example.", "10.0.0.5", 5432, "egress[0]", ""},
		{"names below, unique-local", []string{"*.example"}, "db.example", "fd12::1", 5432, "egress[0]", ""},
		{"name, shared", []string{"db.example"}, "db.example", "100.64.0.5", 5432, "egress[0]", ""},
		{"name, NAT64 of public", []string{"db.example"}, "db.example", "64:ff9b::808:808", 5432, "egress[0]", ""},
		{"name, NAT64 of private", []string{"db.example"}, "db.example", "64:ff9b::a00:5", 5432, "egress[0]", ""},
		{"name, NAT64 of loopback", []string{"db.example"}, "db.example", "64:ff9b::7f00:1", 5432, "guard/loopback", ""},
		{"name, loopback", []string{"db.example"}, "db.example", "127.0.0.1", 5432, "guard/loopback", "only --egress 127.0.0.1, or a range inside 127.0.0.0/8"},
		{"name, mapped loopback", []string{"db.example"}, "db.example", "::ffff:127.0.0.1", 5432, "guard/loopback", ""},
		{"name, unspecified", []string{"db.example"}, "db.example", "0.0.0.0", 5432, "guard/this-network", ""},
		{"name, link-local", []string{"db.example"}, "db.example", "169.254.1.1", 80, "guard/link-local", ""},
		{"name, metadata", []string{"db.example"}, "db.example", "169.254.169.254", 80, "guard/metadata", ""},
		{"name, metadata in a shared range", []string{"db.example"}, "db.example", "100.100.100.200", 80, "guard/metadata", ""},
		{"name, metadata in a unique-local range", []string{"db.example"}, "db.example", "fd00:ec2::254", 80, "guard/metadata", ""},
		{"name, WireServer", []string{"db.example"}, "db.example", "168.63.129.16", 80, "guard/metadata", ""},
		{"name, multicast", []string{"db.example"}, "db.example", "224.0.0.1", 80, "guard/multicast", ""},
		{"name and range for loopback", []string{"db.example", "127.0.0.1"}, "db.example", "127.0.0.1", 80, "egress[1]", ""},
		{"another name", []string{"db.example"}, "api.example", "8.8.8.8", 80, "unlisted", "--egress api.example:80 "},
		{"another name, loopback", []string{"db.example"}, "api.example", "127.0.0.1", 80, "unlisted", "--egress 127.0.0.1:80 "},
		{"no name, unlisted", []string{"db.example"}, "a\nb", "10.0.0.5", 80, "unlisted", `name "a\nb" resolves to) with port 80; add --egress 10.0.0.5:80`},
		{"no name, guarded", nil, "a\nb", "10.0.0.5", 80, "guard/private", `name "a\nb" resolves to) is a guarded address: private (10.0.0.0/8, RFC 1918); only --egress 10.0.0.5,`},
		{"address without its name", []string{"db.example"}, "", "8.8.8.8", 80, "unlisted", "--egress 8.8.8.8:80"},
		{"IPv6 address without its name", []string{"db.example"}, "", "2606:4700::1", 80, "unlisted", "--egress [2606:4700::1]:80"},
		{"localhost", []string{"localhost"}, "localhost", "127.0.0.1", 8080, "egress[0]", ""},
		{"localhost 6", []string{"localhost"}, "LOCALHOST", "::1", 8080, "egress[0]", ""},
		{"localhost, metadata", []string{"localhost"}, "localhost", "169.254.169.254", 80, "guard/metadata", ""},
		{"localhost, NAT64 of loopback", []string{"localhost"}, "localhost", "64:ff9b::7f00:1", 80, "guard/loopback", ""},
		{"below localhost", []string{"*.localhost"}, "a.localhost", "127.0.0.1", 80, "guard/loopback", ""},

		{"everything, public", []string{"*"}, "", "8.8.8.8", 443, "egress[0]", ""},
		{"everything, private", []string{"*"}, "db.example", "10.0.0.5", 443, "guard/private", "--egress db.example or --egress 10.0.0.5 opens it"},
		{"everything and a range", []string{"*", "10.0.0.0/8"}, "", "10.0.0.5", 443, "egress[1]", ""},

		{"one entry lifts both", []string{"10.0.0.0/8", "*:22"}, "", "10.0.0.5", 22, "guard/port", "SSH"},
		{"range with the port", []string{"10.0.0.0/8:22"}, "", "10.0.0.5", 22, "egress[0]", ""},
		{"port of the mesh, range", []string{"10.0.0.0/8"}, "", "10.0.0.5", 15008, "guard/port", ""},
		{"port of the mesh, address", []string{"10.0.0.5"}, "", "10.0.0.5", 15008, "egress[0]", ""},

		{"own public address", nil, "", "93.184.216.1", 8080, "guard/own-address", "an address of this host"},
		{"own public address, whole Internet", []string{"0.0.0.0/0"}, "", "93.184.216.1", 8080, "guard/own-address", ""},
		{"own public address by name", []string{"www.example"}, "www.example", "93.184.216.1", 8080, "egress[0]", ""},
		{"own port there", []string{"www.example", "93.184.216.1"}, "www.example", "93.184.216.1", 443, "guard/own-port", "itself listens"},
		{"own port there written", []string{"www.example:443"}, "www.example", "93.184.216.1", 443, "egress[0]", ""},
		{"own port on loopback", []string{"127.0.0.0/8"}, "", "127.0.0.1", 9090, "guard/own-port", ""},
		{"own port on loopback written", []string{"127.0.0.0/8:9090"}, "", "127.0.0.1", 9090, "egress[0]", ""},
		{"own port on an own private address", []string{"10.9.9.9"}, "", "10.9.9.9", 9090, "guard/own-port", ""},
		{"own port on the unspecified address", []string{"0.0.0.0"}, "", "0.0.0.0", 9090, "guard/own-port", ""},
		{"health port of a proxy", []string{"8.8.8.8"}, "", "8.8.8.8", 15021, "guard/port", "health"},
		{"interface for local apps", []string{"8.8.8.8"}, "", "8.8.8.8", 15004, "guard/port", "apps"},
		{"DNS port of a proxy", []string{"8.8.8.8"}, "", "8.8.8.8", 15053, "guard/port", "DNS"},
		{"own port elsewhere", nil, "", "8.8.8.8", 8443, "guard/own-port", "another gateway"},
		{"own port elsewhere, everything", []string{"*"}, "", "8.8.8.8", 8443, "guard/own-port", ""},
		{"own port elsewhere, address", []string{"8.8.8.8"}, "", "8.8.8.8", 8443, "egress[0]", ""},
		{"own port 443 elsewhere", nil, "", "8.8.8.8", 443, "guard", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := mustEgress(t, own, tt.list...)
			addr := netip.MustParseAddr(tt.addr)
			wantDecision(t, "Addr", e.Addr(tt.host, addr, tt.port), tt.rule, tt.reason)
			wantDecision(t, "Addrs of one", e.Addrs(tt.host, []netip.Addr{addr}, tt.port), tt.rule, tt.reason)
		})
	}
	wantDecision(t, "Addr(zero Addr)", new(Egress).Addr("a.example", netip.Addr{}, 80), "guard/invalid", "no address")
}

func TestEgressAddrsMixed(t *testing.T) {
	const public, public2, private, metadata = "8.8.8.8", "2606:4700::1", "10.0.0.5", "::ffff:169.254.169.254"
	tests := []struct {
		name  string
		list  []string
		addrs []string
		rule  string
	}{
		{"none", nil, nil, "guard/no-address"},
		{"all public", nil, []string{public, public2}, "guard"},
		{"guarded last", nil, []string{public, metadata}, "guard/metadata"},
		{"guarded first", nil, []string{metadata, public}, "guard/metadata"},
		{"guarded in the middle", nil, []string{public, private, public2}, "guard/private"},
		{"lifted and not", []string{"a.example"}, []string{private, metadata}, "guard/metadata"},
		{"lifted and public", []string{"a.example"}, []string{private, public}, "egress[0]"},
		{"listed range and not", []string{"10.0.0.0/8"}, []string{private, public}, "unlisted"},
		{"two entries", []string{"10.0.0.0/8", "*"}, []string{private, public}, "egress[0]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var addrs []netip.Addr
			for _, s := range tt.addrs {
				addrs = append(addrs, netip.MustParseAddr(s))
			}
			d := mustEgress(t, Own{}, tt.list...).Addrs("a.example", addrs, 443)
			wantDecision(t, "Addrs", d, tt.rule, "")
			if !d.Allow && len(addrs) > 1 && !strings.Contains(d.Reason, "all are") {
				t.Errorf("Addrs: reason %q does not say that all are refused", d.Reason)
			}
		})
	}
}

// TestEgressListName checks that decisions and errors carry the name of the list they come from.
func TestEgressListName(t *testing.T) {
	e, err := CompileEgress("routes[2].destinations", []string{"10.0.0.0/8"}, Own{})
	if err != nil {
		t.Fatal(err)
	}
	wantDecision(t, "Addr", e.Addr("", netip.MustParseAddr("10.1.1.1"), 80), "routes[2].destinations[0]", "")
	_, err = CompileEgress("routes[2].destinations", []string{"a b"}, Own{})
	if err == nil || !strings.HasPrefix(err.Error(), `routes[2].destinations[0] "a b": `) {
		t.Errorf("CompileEgress = %v, want an error that names the list", err)
	}
}

func TestEgressAllocations(t *testing.T) {
	own := Own{Ports: []uint16{15008}}
	public, private := netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("10.0.0.5")
	for _, list := range [][]string{nil, {"*.example", "10.0.0.0/8", "*"}} {
		e := mustEgress(t, own, list...)
		addrs := []netip.Addr{public}
		if list != nil {
			addrs = append(addrs, private)
		}
		allowed := true
		n := testing.AllocsPerRun(100, func() {
			allowed = allowed && e.Name("a.example", 443).Allow && e.Addr("", public, 443).Allow && e.Addrs("a.example", addrs, 443).Allow
		})
		if n != 0 || !allowed {
			t.Errorf("list %q: %v allocations, allowed %v, want 0, true", list, n, allowed)
		}
	}
}

// TestOwnIsNotKept checks that the caller may go on using what it passed.
func TestOwnIsNotKept(t *testing.T) {
	own := Own{Addrs: []netip.Addr{netip.MustParseAddr("8.8.8.8")}, Ports: []uint16{8080}}
	e := mustEgress(t, own)
	own.Addrs[0], own.Ports[0] = netip.MustParseAddr("9.9.9.9"), 8081
	wantDecision(t, "Addr", e.Addr("", netip.MustParseAddr("8.8.8.8"), 80), "guard/own-address", "")
	wantDecision(t, "Addr", e.Addr("", netip.MustParseAddr("1.1.1.1"), 8080), "guard/own-port", "")
}

func BenchmarkEgress(b *testing.B) {
	e := mustEgress(b, Own{}, "*.example", "10.0.0.0/8", "*:443")
	addrs := []netip.Addr{netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("2606:4700::1")}
	b.ReportAllocs()
	for b.Loop() {
		e.Name("www.example.com", 443)
		e.Addrs("www.example.com", addrs, 443)
	}
}

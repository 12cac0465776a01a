package policy

import (
	"net/netip"
	"strings"
	"testing"
)

func TestParseEntry(t *testing.T) {
	prefix := netip.MustParsePrefix
	tests := []struct {
		text string
		want entry
	}{
		{"example.com", entry{kind: oneName, name: "example.com"}},
		{"Example.COM.", entry{kind: oneName, name: "example.com"}},
		{"example.com:443", entry{kind: oneName, name: "example.com", port: 443}},
		{"example.com.:443", entry{kind: oneName, name: "example.com", port: 443}},
		{"localhost:8080", entry{kind: oneName, name: "localhost", port: 8080}},
		{"_dns.example", entry{kind: oneName, name: "_dns.example"}},
		{"xn--bcher-kva.example", entry{kind: oneName, name: "xn--bcher-kva.example"}},
		{"1.example", entry{kind: oneName, name: "1.example"}},
		{"*.example.com", entry{kind: namesBelow, name: ".example.com"}},
		{"*.Example.com:65535", entry{kind: namesBelow, name: ".example.com", port: 65535}},
		{"*", entry{kind: everything}},
		{"*:443", entry{kind: everything, port: 443}},
		{"10.1.2.3", entry{kind: addresses, prefix: prefix("10.1.2.3/32")}},
		{"10.1.2.3:1", entry{kind: addresses, prefix: prefix("10.1.2.3/32"), port: 1}},
		{"::ffff:10.1.2.3", entry{kind: addresses, prefix: prefix("10.1.2.3/32")}},
		{"[::ffff:10.1.2.3]:80", entry{kind: addresses, prefix: prefix("10.1.2.3/32"), port: 80}},
		{"fd00::1", entry{kind: addresses, prefix: prefix("fd00::1/128")}},
		{"[fd00::1]", entry{kind: addresses, prefix: prefix("fd00::1/128")}},
		{"[fd00::1]:80", entry{kind: addresses, prefix: prefix("fd00::1/128"), port: 80}},
		{"fd00::1:80", entry{kind: addresses, prefix: prefix("fd00::1:80/128")}},
		{"10.0.0.0/8", entry{kind: addresses, prefix: prefix("10.0.0.0/8")}},
		{"10.0.0.0/8:443", entry{kind: addresses, prefix: prefix("10.0.0.0/8"), port: 443}},
		{"0.0.0.0/0", entry{kind: addresses, prefix: prefix("0.0.0.0/0")}},
		{"fd00::/8", entry{kind: addresses, prefix: prefix("fd00::/8")}},
		{"fd00::/8:443", entry{kind: addresses, prefix: prefix("fd00::/8"), port: 443}},
		{"::/0", entry{kind: addresses, prefix: prefix("::/0")}},
	}
	for _, tt := range tests {
		t.Run(tt.text, func(t *testing.T) {
			got, fault := parseEntry(tt.text)
			if fault != "" || got != tt.want {
				t.Errorf("parseEntry(%q) = %+v, %q, want %+v", tt.text, got, fault, tt.want)
			}
		})
	}
}

func TestParseEntryFaults(t *testing.T) {
	tests := []struct {
		name, text string
		want       string // part of the reason
	}{
		{"empty", "", "is empty"},
		{"URL", "https://example.com/x", "scheme"},
		{"space", "example.com ", "space"},
		{"list", "a.example,b.example", "several entries"},
		{"zone", "fe80::1%eth0", "zone"},
		{"zone in brackets", "[fe80::1%eth0]:80", "zone"},
		{"port 0", "example.com:0", "1 to 65535"},
		{"port too great", "example.com:65536", "1 to 65535"},
		{"port that wraps in 32 bits", "example.com:4294967376", "1 to 65535"},
		{"port with sign", "example.com:+80", "1 to 65535"},
		{"port with zeros", "example.com:0080", "1 to 65535"},
		{"port in words", "example.com:https", "1 to 65535"},
		{"port missing", "example.com:", "1 to 65535"},
		{"port range", "example.com:80-90", "1 to 65535"},
		{"port of a range in words", "10.0.0.0/8:x", "1 to 65535"},
		{"two ports", "example.com:80:90", "[ADDRESS]:PORT"},
		{"only a port", ":80", "not a DNS name"},
		{"only brackets", "[]:80", "no IPv6 address"},
		{"name in brackets", "[example.com]:80", "no IPv6 address"},
		{"IPv4 in brackets", "[10.0.0.1]:80", "no IPv6 address"},
		{"open bracket", "[::1", "[ADDRESS]:PORT"},
		{"text after bracket", "[::1]x:80", "[ADDRESS]:PORT"},
		{"range in brackets", "[fd00::/8]:443", "without brackets"},
		{"range beside brackets", "[fd00::]/8", "without brackets"},
		{"host bits", "10.0.0.1/8", "write 10.0.0.0/8 for the range or 10.0.0.1"},
		{"range too long", "10.0.0.0/33", "not a CIDR"},
		{"range with zeros", "10.0.0.0/08", "not a CIDR"},
		{"path", "example.com/24", "not a CIDR"},
		{"mapped range", "::ffff:10.0.0.0/104", "write the IPv4 range"},
		{"three numbers", "127.1", "canonical form"},
		{"one number", "2130706433", "canonical form"},
		{"hexadecimal", "0x7f.1", "canonical form"},
		{"hexadecimal last", "127.0.0.0x1", "canonical form"},
		{"empty hexadecimal", "127.0.0.0x", "canonical form"},
		{"octal", "0177.0.0.1", "canonical form"},
		{"leading zero", "10.0.0.01", "canonical form"},
		{"dot after an address", "127.0.0.1.", "canonical form"},
		{"number below a star", "*.1", "canonical form"},
		{"star inside", "a.*.example", "before the first dot"},
		{"star at the end", "example.*", "before the first dot"},
		{"star without dot", "*example.com", "before the first dot"},
		{"star twice", "*.*.example", "before the first dot"},
		{"star and nothing", "*.", "not a DNS name"},
		{"empty label", "a..b", "not a DNS name"},
		{"dot in front", ".example.com", "not a DNS name"},
		{"two dots at the end", "example.com..", "not a DNS name"},
		{"hyphen in front", "-a.example", "not a DNS name"},
		{"hyphen at the end", "a-.example", "not a DNS name"},
		{"long label", strings.Repeat("a", 64) + ".example", "not a DNS name"},
		{"long name", strings.Repeat("a.", 127) + "example", "not a DNS name"},
		{"user", "me@example.com", "not a DNS name"},
		{"control character", "a\x00.example", "not a DNS name"},
		{"not ASCII", "bücher.example", "xn--"},
		{"Kelvin sign", "\u212aube.example", "xn--"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, fault := parseEntry(tt.text)
			if fault == "" || !strings.Contains(fault, tt.want) {
				t.Errorf("parseEntry(%q) = %+v, %q, want a fault with %q", tt.text, got, fault, tt.want)
			}
		})
	}
}

// FuzzEgressEntry checks of every accepted entry that it is what it was read as, that it lets nothing pass which it
// does not name, and that no entry but one inside the guarded range opens a guarded address.
func FuzzEgressEntry(f *testing.F) {
	for _, s := range []string{
		"example.com", "*.example.com:443", "*", "*:22", "10.0.0.0/8:443", "[fd00::1]:80", "fd00::/8:443", "::/0", "0.0.0.0/0",
		"169.254.0.0/16", "169.254.169.254", "localhost", "127.1", "::ffff:10.0.0.0/104", "[::1", "a:b:c", ":80", "64:ff9b::/96",
		"\u212aube", "2002::/16", "::1%lo",
	} {
		f.Add(s)
	}
	addrs := []netip.Addr{}
	for _, s := range []string{
		"127.0.0.1", "::1", "169.254.169.254", "169.254.1.1", "fe80::1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "::127.0.0.1", "0.0.0.0",
		"100.100.100.200", "fd00:ec2::254", "224.0.0.1", "8.8.8.8", "10.0.0.1", "fd00::1",
	} {
		addrs = append(addrs, netip.MustParseAddr(s))
	}
	f.Fuzz(func(t *testing.T, text string) {
		e, err := CompileEgress("egress", []string{text}, Own{})
		if err != nil {
			return
		}
		en := e.entries[0]
		if again, fault := parseEntry(text); fault != "" || again.kind != en.kind || again.prefix != en.prefix || again.name != en.name {
			t.Fatalf("parseEntry(%q) is %+v, then %+v, %s", text, en, again, fault)
		}
		host := strings.TrimPrefix(en.name, ".")
		if en.kind == oneName && (!validName(host) || !e.Name(host, 443).Allow && en.hasPort(443)) {
			t.Fatalf("entry %q does not name %q", text, host)
		}
		for _, addr := range addrs {
			d := e.Addr("a."+host, addr, 443)
			g := classify(addr)
			named := en.kind == addresses && en.prefix.Contains(addr) && en.prefix.Bits() >= g.block.Bits()
			if d.Allow && g.class != "" && !named && !(g.byName && en.kind == namesBelow) {
				t.Fatalf("entry %q lets %s pass: %+v", text, addr, d)
			}
			if d.Allow && en.kind == addresses && !en.prefix.Contains(addr) {
				t.Fatalf("entry %q lets %s pass, which is outside: %+v", text, addr, d)
			}
		}
	})
}

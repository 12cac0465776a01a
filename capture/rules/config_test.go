package rules

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestValidate(t *testing.T) {
	many := make([]string, maxEntries+1)
	for i := range many {
		many[i] = fmt.Sprint(i + 1)
	}
	for _, tt := range []struct {
		name   string
		config Config
		fields []string // that are wrong; none: nothing is
	}{
		{"zero", Config{}, nil},
		{"all of it", Config{
			Backend: BackendIPTables, Mode: ModeTProxy, Fail: FailClosed, Ports: []string{"443", "8000-8100"}, UDPPorts: []string{"443"}, Inbound: []string{"80"},
			Forward: []string{"eth1", "wlp0s20f3", "br-1.5@x"}, Exclude: []string{"192.0.2.7", "fd00::/8"}, ExcludePorts: []string{"22"},
			ExcludeUIDs: []uint32{0}, ExcludeGIDs: []uint32{math.MaxUint32 - 1}, ExcludeCgroups: []string{"/system.slice/a@b.service/"},
		}, nil},
		{"choices", Config{Backend: "pf", Mode: "tun", Fail: "ajar"}, []string{"backend", "mode", "fail"}},
		{"ports", Config{Ports: []string{"0"}, UDPPorts: []string{"x"}, Inbound: []string{"2-1"}, ExcludePorts: []string{""}}, []string{"ports", "udp-ports", "inbound", "exclude-ports"}},
		{"too many ports", Config{Ports: many}, []string{"ports"}},
		{"too many ranges", Config{Exclude: many}, []string{"exclude"}},
		{"too many users", Config{ExcludeUIDs: make([]uint32, maxEntries+1)}, []string{"exclude"}},
		{"range", Config{Exclude: []string{"10.0.0.0/33"}}, []string{"exclude"}},
		{"nobody", Config{ExcludeUIDs: []uint32{math.MaxUint32}, ExcludeGIDs: []uint32{math.MaxUint32}}, []string{"exclude-uid", "exclude-gid"}},
		{"UDP and redirect", Config{Mode: ModeRedirect, UDPPorts: []string{"443"}}, []string{"udp-ports"}},
		{"nothing is left", Config{NoOutbound: true, NoDNS: true}, []string{"no-outbound"}},
		{"not even DNS, which is outbound", Config{NoOutbound: true}, []string{"no-outbound"}},
		{"inbound alone", Config{NoOutbound: true, Inbound: []string{"80"}}, nil},
		{"a router alone", Config{NoOutbound: true, Forward: []string{"eth1"}}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.config.Validate()
			if got := fieldsOf(err); !slices.Equal(got, tt.fields) {
				t.Errorf("Validate = %v, want faults of %v", err, tt.fields)
			}
			if err != nil && strings.Count(err.Error(), "\n")+1 != len(tt.fields) {
				t.Errorf("Validate = %q, want a line for each fault", err)
			}
		})
	}
}

// fieldsOf names the fields that err, of Validate, is about.
func fieldsOf(err error) (fields []string) {
	many, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return nil
	}
	for _, one := range many.Unwrap() {
		var f *FieldError
		if errors.As(one, &f) {
			fields = append(fields, f.Field)
		}
	}
	return fields
}

// hostileWords would be something else in a rule, or in a command, than a name.
var hostileWords = []string{
	"", " ", "a b", "a\tb", "a\nb", "a\x00b", "a\"", "a'", "a`", "a;b", "a}", "{a", "a,b", "a*", "a\\", "é", "a\x7f", "a\r\nadd rule", "\" accept; \"",
} // immutable

func TestValidateInterfaces(t *testing.T) {
	for _, name := range append([]string{"lo", "eth+", "!", "!eth0", "a/b", "../x", "longer-than-ifnamsiz"}, hostileWords...) {
		c := Config{Forward: []string{name}}
		if got := fieldsOf(c.Validate()); !slices.Equal(got, []string{"forward"}) {
			t.Errorf("Validate of interface %q finds faults of %v, want forward", name, got)
		}
	}
}

func TestValidateCgroups(t *testing.T) {
	for _, path := range []string{
		"", "/", "//", "a b", "a\tb", "a\nb", "a\x00b", "a\"", "a\\", "é", "a\x7f", "\" accept; \"", "a\r\nadd rule",
		"a//b", "a/../b", "..", "a/.", strings.Repeat("a/", 300) + "a", strings.Repeat("a", 600),
	} {
		c := Config{ExcludeCgroups: []string{path}}
		if got := fieldsOf(c.Validate()); !slices.Equal(got, []string{"exclude-cgroup"}) {
			t.Errorf("Validate of control group %q finds faults of %v, want exclude-cgroup", path, got)
		}
	}
}

func TestWithDefaults(t *testing.T) {
	for _, tt := range []struct {
		name    string
		config  Config
		nft     bool
		backend string
	}{
		{"nft is there", Config{}, true, BackendNFT},
		{"nft is not there", Config{}, false, BackendIPTables},
		{"nft is wanted", Config{Backend: BackendNFT}, false, BackendNFT},
		{"iptables is wanted", Config{Backend: BackendIPTables}, true, BackendIPTables},
	} {
		got := tt.config.withDefaults(tt.nft)
		if got.Backend != tt.backend || got.Mode != ModeTProxy || got.Fail != FailOpen || got.Port != 15001 || got.InboundPort != 15006 || got.DNSPort != 15053 {
			t.Errorf("%s: withDefaults = %+v, want backend %s and the documented defaults", tt.name, got, tt.backend)
		}
	}
	if got := (Config{Mode: ModeRedirect, Fail: FailClosed, Port: 1, InboundPort: 2, DNSPort: 3}).withDefaults(true); got.Mode != ModeRedirect || got.Fail != FailClosed || got.Port != 1 || got.InboundPort != 2 || got.DNSPort != 3 {
		t.Errorf("withDefaults = %+v, want what was there to stay", got)
	}
}

func TestGates(t *testing.T) {
	for _, tt := range []struct {
		name   string
		config Config
		want   []uint16
	}{
		{"outbound and DNS", Config{}, []uint16{15001, 15053}},
		{"no DNS", Config{NoDNS: true}, []uint16{15001}},
		{"inbound too", Config{Inbound: []string{"80"}}, []uint16{15001, 15006, 15053}},
		{"inbound alone", Config{NoOutbound: true, Inbound: []string{"80"}}, []uint16{15006}},
		{"one for all", Config{Inbound: []string{"80"}, Port: 9, InboundPort: 9, DNSPort: 9}, []uint16{9}},
		{"a router's", Config{NoOutbound: true, Forward: []string{"eth1"}}, []uint16{15001, 15053}},
	} {
		if got := mustCompile(t, tt.config, true).gates(); !slices.Equal(got, tt.want) {
			t.Errorf("%s: gates = %v, want %v", tt.name, got, tt.want)
		}
	}
}

func mustCompile(t testing.TB, c Config, ipv6 bool) *compiled {
	t.Helper()
	k, err := c.withDefaults(true).compile(ipv6)
	if err != nil {
		t.Fatalf("compile(%+v) = %v, want nil", c, err)
	}
	return k
}

func TestParsePorts(t *testing.T) {
	for _, tt := range []struct{ list, want string }{
		{"", ""},
		{"443", "443"},
		{"443 80", "80 443"},
		{"80 80", "80"},
		{"80-80", "80"},
		{"80 81", "80-81"},
		{"1-10 5-20 21 23", "1-21 23"},
		{"1-100 5-6", "1-100"},
		{"1-65535 65535", "1-65535"},
		{"65535 1", "1 65535"},
	} {
		got, err := parsePorts(strings.Fields(tt.list))
		if text := strings.Join(texts(got), " "); err != nil || text != tt.want {
			t.Errorf("parsePorts(%s) = %s, %v, want %s", tt.list, text, err, tt.want)
		}
	}
	for _, text := range []string{"", "0", "65536", "-1", "+1", "01", " 1", "1 ", "1-", "-", "1-2-3", "2-1", "1–2", "http", "0x50", "1,2", "4294967297"} {
		if got, err := parsePorts([]string{"443", text}); err == nil || !strings.Contains(err.Error(), "8000-8100") {
			t.Errorf("parsePorts(%q) = %v, %v, want an error with an example", text, got, err)
		}
	}
}

func TestParsePrefixes(t *testing.T) {
	for _, tt := range []struct{ list, want string }{
		{"", ""},
		{"192.0.2.7", "192.0.2.7"},
		{"192.0.2.7/24", "192.0.2.0/24"},
		{"::ffff:192.0.2.7", "192.0.2.7"},
		{"10.0.0.0/8 10.1.0.0/16 10.2.3.4", "10.0.0.0/8"},
		{"10.1.0.0/16 10.0.0.0/8", "10.0.0.0/8"},
		{"0.0.0.0/0 10.0.0.0/8 ::1", "0.0.0.0/0 ::1"},
		{"fd00::/8 fd00::1 ::/0", "::/0"},
		{"10.0.0.0/9 10.128.0.0/9", "10.0.0.0/9 10.128.0.0/9"},
		{"192.0.2.7 192.0.2.7/32", "192.0.2.7"},
	} {
		got, err := parsePrefixes(strings.Fields(tt.list))
		if text := strings.Join(texts(got), " "); err != nil || text != tt.want {
			t.Errorf("parsePrefixes(%s) = %s, %v, want %s", tt.list, text, err, tt.want)
		}
	}
	for _, text := range []string{"", "a.example", "10.0.0.0/33", "10.0.0/8", "10.0.0.0/", "10.0.0.0/08", "fe80::1%eth0", "fe80::%eth0/10", "::ffff:10.0.0.0/104", "10.0.0.1-10.0.0.2", "1.2.3.4;"} {
		if got, err := parsePrefixes([]string{"10.0.0.0/8", text}); err == nil || !strings.Contains(err.Error(), "fd00::/8") {
			t.Errorf("parsePrefixes(%q) = %v, %v, want an error with an example", text, got, err)
		}
	}
}

func FuzzParsePorts(f *testing.F) {
	for _, list := range []string{"443", "8000-8100,80", "1-65535,7", "0", "1-,2", "3,2,1", "65535,65534-65535"} {
		f.Add(list)
	}
	f.Fuzz(func(t *testing.T, list string) {
		items := strings.Split(list, ",")
		ranges, err := parsePorts(items)
		if err != nil {
			return
		}
		for i, r := range ranges {
			if r.first == 0 || r.last < r.first || i > 0 && int(r.first) <= int(ranges[i-1].last)+1 {
				t.Fatalf("parsePorts(%q) = %v, want ranges apart and in order", list, ranges)
			}
		}
		for _, item := range items { // each alone is in the whole
			one, err := parsePorts([]string{item})
			if err != nil || len(one) != 1 || !slices.ContainsFunc(ranges, func(r portRange) bool { return r.first <= one[0].first && one[0].last <= r.last }) {
				t.Errorf("parsePorts(%q) = %v, %v, want it within %v", item, one, err, ranges)
			}
		}
		if again, err := parsePorts(texts(ranges)); err != nil || !slices.Equal(again, ranges) {
			t.Errorf("parsePorts(%v) = %v, %v, want the same", ranges, again, err)
		}
	})
}

func FuzzParsePrefixes(f *testing.F) {
	for _, list := range []string{"10.0.0.0/8,10.1.2.3", "::/0,fd00::1", "::ffff:1.2.3.4", "fe80::1%lo", "0.0.0.0/0,::", "1.2.3.4/31,1.2.3.5"} {
		f.Add(list)
	}
	f.Fuzz(func(t *testing.T, list string) {
		items := strings.Split(list, ",")
		prefixes, err := parsePrefixes(items)
		if err != nil {
			return
		}
		for i, p := range prefixes {
			if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() || p.Addr().Zone() != "" {
				t.Fatalf("parsePrefixes(%q) has %v", list, p)
			}
			if i > 0 && prefixes[i-1].Overlaps(p) {
				t.Errorf("parsePrefixes(%q): %v and %v overlap", list, prefixes[i-1], p)
			}
		}
		for _, item := range items {
			one, err := parsePrefixes([]string{item})
			if err != nil || len(one) != 1 || !slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Bits() <= one[0].Bits() && p.Contains(one[0].Addr()) }) {
				t.Errorf("parsePrefixes(%q) = %v, %v, want it within %v", item, one, err, prefixes)
			}
		}
		if again, err := parsePrefixes(texts(prefixes)); err != nil || !slices.Equal(again, prefixes) {
			t.Errorf("parsePrefixes(%v) = %v, %v, want the same", prefixes, again, err)
		}
	})
}

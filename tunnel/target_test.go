package tunnel

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestParseAuthority(t *testing.T) {
	label63 := strings.Repeat("a", 63)
	name253 := strings.Join([]string{label63, label63, label63, strings.Repeat("b", 61)}, ".")
	good := []struct {
		name, in string
		want     Target
		text     string // String(), if it differs from in
	}{
		{"name", "example.com:443", Target{Host: "example.com", Port: 443}, ""},
		{"one label", "orders:80", Target{Host: "orders", Port: 80}, ""},
		{"upper case is lowered", "EXAMPLE.Com:80", Target{Host: "example.com", Port: 80}, "example.com:80"},
		{"root's dot is dropped", "example.com.:80", Target{Host: "example.com", Port: 80}, "example.com:80"},
		{"underscore", "_sip._tcp.example.com:5060", Target{Host: "_sip._tcp.example.com", Port: 5060}, ""},
		{"number in front", "1.2.3.example:80", Target{Host: "1.2.3.example", Port: 80}, ""},
		{"digits and letters last", "a.b1:80", Target{Host: "a.b1", Port: 80}, ""},
		{"longest name", name253 + ":65535", Target{Host: name253, Port: 65535}, ""},
		{"punycode", "xn--bcher-kva.example:80", Target{Host: "xn--bcher-kva.example", Port: 80}, ""},
		{"ipv4", "192.0.2.1:1", Target{Addr: netip.MustParseAddr("192.0.2.1"), Port: 1}, ""},
		{"ipv6", "[2001:db8::1]:65535", Target{Addr: netip.MustParseAddr("2001:db8::1"), Port: 65535}, ""},
		{"ipv6 loopback", "[::1]:80", Target{Addr: netip.MustParseAddr("::1"), Port: 80}, ""},
	}
	for _, tt := range good {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseAuthority(tt.in)
			if err != nil || got != tt.want {
				t.Fatalf("ParseAuthority(%q) = %+v, %v, want %+v", tt.in, got, err, tt.want)
			}
			want := tt.text
			if want == "" {
				want = tt.in
			}
			if got.String() != want {
				t.Errorf("String() = %q, want %q", got.String(), want)
			}
		})
	}
	bad := map[string][]string{
		"no port":                 {"", "example.com", "192.0.2.1", "[::1]", "::1", "example.com:", "[::1]:", ":", "[]", "[]:"},
		"no host":                 {":80", ".:80", "[]:80"},
		"port out of range":       {"a:0", "a:65536", "a:99999", "a:4294967376", "a:18446744073709551696", "a:100000"},
		"port not plain":          {"a:+80", "a:-80", "a:080", "a:0080", "a: 80", "a:80 ", "a:8 0", "a:0x50", "a:8_0", "a:http", "a:٨٠", "a:80:", "a:80/"},
		"userinfo":                {"u@a:80", "u:p@a:80", "@a:80", "a@:80"},
		"zone":                    {"[fe80::1%eth0]:80", "[fe80::1%25eth0]:80", "fe80::1%eth0:80"},
		"control characters":      {"a\r\n:80", "a\x00:80", "\ta:80", "a :80", " a:80", "a\x7f:80", "a:80\n"},
		"ipv4 spellings":          {"127.1:80", "2130706433:80", "0177.0.0.1:80", "0x7f.0.0.1:80", "0x7f000001:80", "127.0.0.1.:80", "127.000.000.001:80", "1.2.3.4.5:80", "256.1.1.1:80", "1.2.3.0x4:80", "a.0x:80", "a.0X7F:80", "a.1:80", "127.0.1:80", "1.2.3.4%:80"},
		"ipv6 spellings":          {"[::FFFF]:80", "[2001:DB8::1]:80", "[0:0:0:0:0:0:0:1]:80", "[2001:db8:0::1]:80", "[::1.2.3.4]:80", "[2001:0db8::1]:80", "[64:ff9b::1.2.3.4]:80"},
		"ipv4-mapped":             {"[::ffff:127.0.0.1]:80", "[::ffff:7f00:1]:80"},
		"brackets where none are": {"[127.0.0.1]:80", "[example.com]:80", "::1:80", "2001:db8::1:80", "[::1:80", "::1]:80", "[[::1]]:80", "[::1]x:80", "x[::1]:80", "[v1.a]:80"},
		"not a name":              {"a..b:80", ".a:80", "a..:80", "-a:80", "a-:80", "a.-b.c:80", "a/b:80", "a?b:80", "a#b:80", "http://a:80", "a,b:80", "*:80", "*.a:80", "a%2eb:80", "bücher.example:80", "a\\b:80"},
		"too long":                {label63 + "a:80", "c." + name253 + ":80", strings.Repeat("a.", 4000) + "b:80"},
	}
	for name, list := range bad {
		t.Run(name, func(t *testing.T) {
			for _, in := range list {
				got, err := ParseAuthority(in)
				var bad *AuthorityError
				if !errors.As(err, &bad) || bad.Problem == "" {
					t.Errorf("ParseAuthority(%q) = %+v, %v, want an *AuthorityError with a problem", in, got, err)
				}
				if got != (Target{}) {
					t.Errorf("ParseAuthority(%q) = %+v with an error, want the zero Target", in, got)
				}
			}
		})
	}
}

func TestTargetOf(t *testing.T) {
	mapped := netip.MustParseAddr("::ffff:192.0.2.1")
	for _, tt := range []struct {
		name string
		host string
		addr netip.Addr
		port uint16
		want string // "" for an error
	}{
		{"name", "Example.com", netip.Addr{}, 80, "example.com:80"},
		{"address as text", "192.0.2.1", netip.Addr{}, 80, "192.0.2.1:80"},
		{"ipv6 as text", "2001:db8::1", netip.Addr{}, 80, "[2001:db8::1]:80"},
		{"address", "", netip.MustParseAddr("2001:db8::1"), 80, "[2001:db8::1]:80"},
		{"mapped address is unmapped", "", mapped, 80, "192.0.2.1:80"},
		{"port 0", "a", netip.Addr{}, 0, ""},
		{"nothing", "", netip.Addr{}, 80, ""},
		{"zone", "", netip.MustParseAddr("fe80::1%eth0"), 80, ""},
		{"zone in text", "fe80::1%eth0", netip.Addr{}, 80, ""},
		{"numeric name", "127.1", netip.Addr{}, 80, ""},
		{"mapped text", "::ffff:192.0.2.1", netip.Addr{}, 80, ""},
		{"with a port", "a:80", netip.Addr{}, 80, ""},
		{"too long", strings.Repeat("a.", 130), netip.Addr{}, 80, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := TargetOf(tt.host, tt.addr, tt.port)
			if got.String() != tt.want || (err != nil) != (tt.want == "") {
				t.Errorf("TargetOf(%q, %v, %d) = %v, %v, want %q", tt.host, tt.addr, tt.port, got, err, tt.want)
			}
		})
	}
}

func FuzzParseAuthority(f *testing.F) {
	for _, s := range []string{"example.com:443", "[2001:db8::1]:80", "192.0.2.1:80", "a.:1", "0x7f.1:80", "[::ffff:1.2.3.4]:1", "u@a:80", "a:00080", "[fe80::1%25x]:9"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseAuthority(s)
		if err != nil {
			if got != (Target{}) {
				t.Fatalf("ParseAuthority(%q) returned %+v with an error", s, got)
			}
			return
		}
		if got.Port == 0 || got.IsName() == got.Addr.IsValid() {
			t.Fatalf("ParseAuthority(%q) = %+v: not exactly one of name and address, with a port", s, got)
		}
		if got.IsName() {
			if _, err := netip.ParseAddr(got.Host); err == nil {
				t.Fatalf("ParseAuthority(%q): the name is an address", s)
			}
		} else if got.Addr.Is4In6() || got.Addr.Zone() != "" {
			t.Fatalf("ParseAuthority(%q) = %v: mapped or with a zone", s, got)
		}
		again, err := ParseAuthority(got.String())
		if err != nil || again != got {
			t.Fatalf("ParseAuthority(%q) = %+v, and its text %q reads as %+v, %v", s, got, got.String(), again, err)
		}
	})
}

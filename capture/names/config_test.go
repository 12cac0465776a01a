package names

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"
)

// fields are those that Validate finds at fault.
func fields(t *testing.T, cfg *Config) (list []string) {
	t.Helper()
	err := cfg.Validate()
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		t.Fatalf("Validate = %T, want joined errors", err)
	}
	for _, one := range joined.Unwrap() {
		var fault *FieldError
		if !errors.As(one, &fault) || fault.Error() != fault.Field+": "+fault.What || fault.What == "" {
			t.Fatalf("Validate = %v, want *FieldErrors", one)
		}
		list = append(list, fault.Field)
	}
	return list
}

func TestValidate(t *testing.T) {
	resolvers := []string{"192.0.2.53"}
	for _, c := range []struct {
		name string
		cfg  Config
		want []string
	}{
		{"zero", Config{}, nil},
		{"all", Config{Upstream: []string{"192.0.2.53", "192.0.2.53:5353", "2001:db8::53", "[2001:db8::53]:53", "dns.example", "dns.example.:53", "localhost:53"},
			Zones:  []ZoneConfig{{"corp.example", resolvers}, {"dev.corp.example.", resolvers}, {".", resolvers}},
			Search: []string{"corp.example"}, Virtual: []string{"*.mesh", "orders.shop"}, IPv4: "198.18.0.0/15", IPv6: "none",
			AllowLocal: []string{"*.test"}, Timeout: time.Second, CacheEntries: -1}, nil},
		{"resolvers", Config{Upstream: []string{"", ":53", "a b", "dns.example:", "dns.example:0", "dns.example:65536", "dns.example:-1", "dns.example:dns", "192.0.2.53:0", "[::1]", "fe80::1%eth0", "a:1:2", "https://dns.example/", ".", "..", "a..b"}},
			indexed("upstream[%d]", 16)},
		{"zones", Config{Zones: []ZoneConfig{{"", resolvers}, {"*.corp", resolvers}, {"a.example", nil}, {"b.example", []string{"x y"}}, {"A.Example.", resolvers}}},
			[]string{"zones[0].name", "zones[1].name", "zones[2].upstream", "zones[3].upstream[0]", "zones[4].name"}},
		{"search", Config{Search: []string{"*.a", "", "a b", `a\.b`, "bücher.example", "-a", "a-.b", "a..b"}}, indexed("search[%d]", 8)},
		{"virtual", Config{Virtual: []string{"*", "*.", "a.*.mesh", "**.mesh", ""}}, indexed("virtual[%d]", 5)},
		{"allowLocal", Config{AllowLocal: []string{"*", "127.0.0.1/8"}}, indexed("allowLocal[%d]", 2)},
		{"families", Config{IPv4: "fd00::/96", IPv6: "240.0.0.0/12"}, []string{"ipv4", "ipv6"}},
		{"too small", Config{IPv4: "240.0.0.0/29", IPv6: "fd00::/125"}, []string{"ipv4", "ipv6"}},
		{"no ranges", Config{IPv4: "240.0.0.1", IPv6: "x"}, []string{"ipv4", "ipv6"}},
		{"everything", Config{IPv4: "0.0.0.0/0", IPv6: "::/0"}, []string{"ipv4", "ipv6"}},
		{"this host", Config{IPv4: "127.0.0.0/16", IPv6: "::/96"}, []string{"ipv4", "ipv6"}},
		{"this link", Config{IPv4: "169.254.7.0/24", IPv6: "fe80::/64"}, []string{"ipv4", "ipv6"}},
		{"groups", Config{IPv4: "239.0.0.0/8", IPv6: "ff05::/64"}, []string{"ipv4", "ipv6"}},
		{"mapped", Config{IPv6: "::ffff:10.0.0.0/104"}, []string{"ipv6"}},
		{"names without addresses", Config{Virtual: []string{"*.mesh"}, IPv4: "none", IPv6: "none"}, []string{"virtual"}},
		{"timeout", Config{Timeout: time.Microsecond}, []string{"timeout"}},
		{"negative timeout", Config{Timeout: -1}, []string{"timeout"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := fields(t, &c.cfg); !slices.Equal(got, c.want) {
				t.Errorf("Validate finds %q, want %q: %v", got, c.want, c.cfg.Validate())
			}
			if _, err := New(&c.cfg, nil, nil); (err == nil) != (c.want == nil) {
				t.Errorf("New = %v, want as Validate says", err)
			}
		})
	}
}

func indexed(format string, n int) (list []string) {
	for i := range n {
		list = append(list, fmt.Sprintf(format, i))
	}
	return list
}

func TestServerAddresses(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.53": "192.0.2.53:53", "192.0.2.53:5353": "192.0.2.53:5353", "2001:db8::53": "[2001:db8::53]:53",
		"::ffff:192.0.2.53": "192.0.2.53:53", "[2001:db8::53]:54": "[2001:db8::53]:54", "dns.example": "dns.example:53", "dns.example:54": "dns.example:54",
	} {
		if got, ok := serverAddress(text); got != want || !ok {
			t.Errorf("serverAddress(%q) = %q, %v, want %q", text, got, ok, want)
		}
	}
}

func TestWithin(t *testing.T) {
	for _, c := range []struct {
		name, zone string
		want       bool
	}{
		{"a.example.", "example.", true},
		{"example.", "example.", true},
		{"xexample.", "example.", false},
		{"example.", "a.example.", false},
		{"a.example.", ".", true},
		{".", ".", true},
		{".", "example.", false},
		{`a\.example.`, "example.", false},
		{`a\\.example.`, "example.", true},
		{`a\\\.example.`, "example.", false},
		{`a\046.example.`, "example.", true},
	} {
		if got := within(c.name, c.zone); got != c.want {
			t.Errorf("within(%s, %s) = %v, want %v", c.name, c.zone, got, c.want)
		}
	}
}

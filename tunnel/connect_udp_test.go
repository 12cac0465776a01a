package tunnel

import (
	"net/netip"
	"strings"
	"testing"

	"culvert/tunnel/h2"
)

// RFC 9298, section 3.4: the request for a tunnel of datagrams, there and back.
func TestConnectUDP(t *testing.T) {
	for _, tt := range []struct {
		target Target
		path   string
	}{
		{Target{Host: "dns.example", Port: 53}, "/.well-known/masque/udp/dns.example/53/"},
		{Target{Addr: netip.MustParseAddr("192.0.2.6"), Port: 443}, "/.well-known/masque/udp/192.0.2.6/443/"},
		{Target{Addr: netip.MustParseAddr("2001:db8::42"), Port: 443}, "/.well-known/masque/udp/2001%3Adb8%3A%3A42/443/"},
	} {
		h := &h2.Header{Method: "CONNECT"}
		udpHeader(h, tt.target, "gw.example")
		if h.Path != tt.path || h.Protocol != "connect-udp" || h.Scheme != "https" || h.Authority != "gw.example" || h.Get("capsule-protocol") != "?1" {
			t.Errorf("head for %s: %+v", tt.target, h)
		}
		if got, err := parseUDPPath(tt.path); got != tt.target || err != nil {
			t.Errorf("parseUDPPath(%q) = %v, %v", tt.path, got, err)
		}
	}
	if got, err := parseUDPPath("/.well-known/masque/udp/2001%3adb8%3A%3a42/443/"); err != nil || got.Addr.String() != "2001:db8::42" {
		t.Errorf("small letters: %v, %v", got, err)
	}
	for name, path := range map[string]string{
		"nothing": "", "another template": "/masque?h=a&p=1", "no port": udpPath + "a.example/", "no slash at the end": udpPath + "a.example/53",
		"more behind": udpPath + "a.example/53/x", "port 0": udpPath + "a.example/0/", "a long port": udpPath + "a.example/00053/",
		"a port beyond": udpPath + "a.example/65536/", "an empty host": udpPath + "/53/", "bare colons": udpPath + "2001:db8::42/53/",
		"brackets": udpPath + "[2001%3Adb8%3A%3A42]/53/", "a zone": udpPath + "fe80%3A%3A1%25eth0/53/", "encoded letters": udpPath + "%61.example/53/",
		"an encoded slash": udpPath + "a%2F53%2F/53/", "mapped": udpPath + "%3A%3Affff%3A192.0.2.1/53/", "a number": udpPath + "2130706433/53/",
		"a scoped wildcard": udpPath + "*/53/", "a list": udpPath + "a.example,b.example/53/", "too long": udpPath + strings.Repeat("a.", 200) + "example/53/",
		"a query": udpPath + "a.example/53/?x",
	} {
		if got, err := parseUDPPath(path); err == nil {
			t.Errorf("%s: parseUDPPath(%q) = %v, want an error", name, path, got)
		}
	}
}

func FuzzParseUDPPath(f *testing.F) {
	f.Add("/.well-known/masque/udp/dns.example/53/")
	f.Add("/.well-known/masque/udp/2001%3Adb8%3A%3A42/443/")
	f.Add("/.well-known/masque/udp/%5B::1%5D/1/")
	f.Fuzz(func(t *testing.T, path string) {
		got, err := parseUDPPath(path)
		if err != nil {
			return
		}
		h := new(h2.Header)
		udpHeader(h, got, "gw")
		if again, err := parseUDPPath(h.Path); err != nil || again != got {
			t.Errorf("%q is %v, which is written %q, which is %v, %v", path, got, h.Path, again, err)
		}
		if text := got.String(); text == "" || got.Port == 0 {
			t.Errorf("%q is %v", path, got)
		}
	})
}

func TestForwardedFor(t *testing.T) {
	for list, want := range map[string]string{
		`for="192.0.2.1:4711"`: "192.0.2.1", `for="[2001:db8::1]:80";host=a, for=10.0.0.1`: "2001:db8::1", `For=192.0.2.1`: "192.0.2.1",
		`for="[2001:db8::1]"`: "2001:db8::1", `for="::ffff:192.0.2.1"`: "192.0.2.1", `host=a;for=192.0.2.1`: "192.0.2.1",
		`for=unknown`: "invalid IP", `for="_hidden"`: "invalid IP", ``: "invalid IP", `host=a, for=192.0.2.1`: "invalid IP",
	} {
		if got := forwardedFor(list); got.String() != want {
			t.Errorf("forwardedFor(%s) = %v, want %s", list, got, want)
		}
	}
}

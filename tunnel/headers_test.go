package tunnel

import (
	"net/netip"
	"strconv"
	"strings"
	"testing"
)

func TestBelieve(t *testing.T) {
	good := Request{Baggage: "a=b", Forwarded: `for="192.0.2.1:1"`, Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", Tracestate: "rojo=00f067aa0ba902b7,t@v= x"}
	believe := func(r Request, trusted bool) Request {
		r.believe(trusted)
		return r
	}
	if got := believe(good, true); got != good {
		t.Errorf("of a trusted peer %+v is believed, want all: %+v", got, good)
	}
	if got := believe(good, false); got != (Request{}) {
		t.Errorf("of any peer %+v is believed, want nothing", got)
	}
	alone := good
	alone.Traceparent = "00-x"
	if got := believe(alone, true); got.Traceparent != "" || got.Tracestate != "" {
		t.Errorf("tracestate %q is believed beside a traceparent that is none", got.Tracestate)
	}
	long := Request{Baggage: strings.Repeat("a", maxTrustedLen+1), Forwarded: strings.Repeat("f", maxTrustedLen+1), Traceparent: "00-x"}
	if got := believe(long, true); got != (Request{}) {
		t.Errorf("of oversized and malformed fields %d, %d bytes and %q are believed, want none", len(got.Baggage), len(got.Forwarded), got.Traceparent)
	}
}

func TestTraceparent(t *testing.T) {
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for _, tt := range []struct {
		name, in string
		want     bool
	}{
		{"example of the specification", parent, true},
		{"other version", "01" + parent[2:], false},
		{"upper case", strings.ToUpper(parent), false},
		{"trace id of zeros", "00-" + strings.Repeat("0", 32) + parent[35:], false},
		{"parent id of zeros", parent[:36] + strings.Repeat("0", 16) + "-01", false},
		{"longer", parent + "-x", false},
		{"empty", "", false},
		{"dash elsewhere", strings.Replace(parent, "-b", "b-", 1), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := validTraceparent(tt.in); got != tt.want {
				t.Errorf("validTraceparent(%q) = %v, want %v", tt.in, got, tt.want)
			}
		})
	}
	child := nextTraceparent(parent)
	if !validTraceparent(child) || child[:36] != parent[:36] || child[52:] != parent[52:] || child == parent {
		t.Errorf("nextTraceparent(%q) = %q, want the same trace and flags and another parent id", parent, child)
	}
	if fresh := nextTraceparent(""); !validTraceparent(fresh) || fresh[52:] != "-00" {
		t.Errorf("nextTraceparent() = %q, want a valid one that is not sampled", fresh)
	}
}

func TestForwardedAndBaggage(t *testing.T) {
	v4, v6 := netip.MustParseAddrPort("192.0.2.1:80"), netip.MustParseAddrPort("[2001:db8::1]:80")
	name, addr := Target{Host: "far.remote.svc.cluster.local", Port: 80}, Target{Addr: v4.Addr(), Port: 80}
	for _, tt := range []struct{ name, got, want string }{
		{"as ztunnel", appendForwarded("", v4, name), `for="192.0.2.1:80";host=far.remote.svc.cluster.local`},
		{"no host for an address", appendForwarded("", v4, addr), `for="192.0.2.1:80"`},
		{"ipv6", appendForwarded("", v6, addr), `for="[2001:db8::1]:80"`},
		{"list", appendForwarded(`for="x"`, v4, addr), `for="x", for="192.0.2.1:80"`},
		{"no address", appendForwarded(`for="x"`, netip.AddrPort{}, addr), `for="x"`},
		{"baggage", baggageOf("shop", "orders", "v1"), "k8s.namespace.name=shop,k8s.deployment.name=orders,service.name=orders,service.version=v1"},
		{"baggage without a version", baggageOf("shop", "", ""), "k8s.namespace.name=shop"},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, tt.got, tt.want)
		}
	}
}

func TestTracestate(t *testing.T) {
	members := func(n int) string {
		var list []string
		for i := range n {
			list = append(list, "k"+strconv.Itoa(i)+"=v")
		}
		return strings.Join(list, ",")
	}
	for _, tt := range []struct {
		name, in string
		want     bool
	}{
		{"none", "", true},
		{"example of the specification", "congo=ucfJifl5GOE,rojo=00f067aa0ba902b7", true},
		{"of a tenant", "0tenant@system=1", true},
		{"spaces and an empty member", " a=1 , ,b=2", true},
		{"32 members", members(32), true},
		{"33 members", members(33), false},
		{"no equals sign", "a", false},
		{"two equals signs", "a=b=c", false},
		{"key twice", "a=1,a=2", false},
		{"upper case", "A=1", false},
		{"empty key", "=1", false},
		{"empty value", "a=", false},
		{"two tenants", "a@b@c=1", false},
		{"a control byte", "a=1\x01", false},
		{"UTF-8", "a=\u00e9", false},
		{"512 bytes", "a=" + strings.Repeat("x", 255) + ",b=" + strings.Repeat("y", 252), true},
		{"too long", "a=" + strings.Repeat("x", 255) + ",b=" + strings.Repeat("y", 253), false},
		{"a long value", "a=" + strings.Repeat("x", 257), false},
		{"100,000 members", strings.Repeat("a=1,", 100_000), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := validTracestate(tt.in); got != tt.want {
				t.Errorf("validTracestate(%.60q) = %v, want %v", tt.in, got, tt.want)
			}
		})
	}
}

func TestTraceOf(t *testing.T) {
	const id = "0af7651916cd43dd8448eb211c80319c"
	for _, tt := range []struct{ name, in, want string }{
		{"valid", "00-" + id + "-b7ad6b7169203331-01", id},
		{"none", "", ""},
		{"text where hex should be", "00-" + strings.Repeat("\"\n=[", 8) + "-b7ad6b7169203331-01", ""},
		{"zeros", "00-" + strings.Repeat("0", 32) + "-b7ad6b7169203331-01", ""},
		{"longer", "00-" + id + "-b7ad6b7169203331-01-x", ""},
	} {
		if got := traceOf(tt.in).String(); got != tt.want {
			t.Errorf("%s: traceOf(%q) = %q, want %q", tt.name, tt.in, got, tt.want)
		}
	}
}

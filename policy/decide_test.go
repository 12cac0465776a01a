package policy

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"culvert/pki/spiffe"
)

const (
	selfID = "spiffe://cluster.local/ns/default/sa/gw"
	shopID = "spiffe://cluster.local/ns/shop/sa/orders"
)

// optionalID parses s, and makes the zero ID of "".
func optionalID(t testing.TB, s string) spiffe.ID {
	t.Helper()
	if s == "" {
		return spiffe.ID{}
	}
	return mustID(t, s)
}

func mustCompile(t testing.TB, allow ...string) *Policy {
	t.Helper()
	p, err := Compile(Config{Allow: allow})
	if err != nil {
		t.Fatalf("Compile(%q) = %v", allow, err)
	}
	return p
}

func TestDecide(t *testing.T) {
	tests := []struct {
		name       string
		allow      []string
		peer, self string
		want       bool
		policy     string
		rule       string
		reason     string // the whole reason when allowed is false, else a part
	}{
		{
			name: "same namespace", peer: "spiffe://cluster.local/ns/default/sa/web", self: selfID,
			want: true, policy: "default", rule: "same-namespace", reason: "trust domain and namespace",
		},
		{
			name: "the same identity", peer: selfID, self: selfID,
			want: true, policy: "default", rule: "same-namespace", reason: "trust domain and namespace",
		},
		{
			name: "the same identity without namespace", peer: "spiffe://corp.example/gw", self: "spiffe://corp.example/gw",
			want: true, policy: "default", rule: "same-identity", reason: "identity of this gateway",
		},
		{
			name: "another namespace", peer: shopID, self: selfID,
			policy: "default", rule: "same-namespace",
			reason: `peer spiffe://cluster.local/ns/shop/sa/orders is in namespace "shop"; the default policy allows only ` +
				`namespace "default" of trust domain "cluster.local"; add --allow cluster.local/ns/shop/sa/orders to let it in`,
		},
		{
			name: "another trust domain", peer: "spiffe://other.example/ns/default/sa/gw", self: selfID,
			policy: "default", rule: "same-namespace",
			reason: `peer spiffe://other.example/ns/default/sa/gw is of trust domain "other.example"; the default policy allows ` +
				`only namespace "default" of trust domain "cluster.local"; add --allow other.example/ns/default/sa/gw to let it in`,
		},
		{
			name: "a path that only begins like a namespace", peer: "spiffe://cluster.local/ns/default/sa/web/extra", self: selfID,
			policy: "default", rule: "same-namespace",
			reason: `peer spiffe://cluster.local/ns/default/sa/web/extra has no path of the form /ns/NAMESPACE/sa/ACCOUNT; the default ` +
				`policy allows only namespace "default" of trust domain "cluster.local"; add --allow ` +
				`cluster.local/ns/default/sa/web/extra to let it in`,
		},
		{
			name: "neither has a namespace", peer: "spiffe://corp.example/app", self: "spiffe://corp.example/gw",
			policy: "default", rule: "same-namespace",
			reason: `peer spiffe://corp.example/app has no path of the form /ns/NAMESPACE/sa/ACCOUNT; the identity of this gateway, ` +
				`spiffe://corp.example/gw, has no namespace, so that its default policy allows only that identity; add --allow ` +
				`corp.example/app to let it in`,
		},
		{
			name: "gateway without identity", peer: shopID, self: "",
			policy: "default", rule: "same-namespace",
			reason: `peer spiffe://cluster.local/ns/shop/sa/orders is of trust domain "cluster.local"; this gateway has no identity, ` +
				`so that its default policy allows nobody; add --allow cluster.local/ns/shop/sa/orders to let it in`,
		},
		{
			name: "no peer", peer: "", self: selfID,
			policy: "default", rule: "unauthenticated",
			reason: `the peer has no authenticated identity; it must show a client certificate with a SPIFFE ID, or "--allow any" ` +
				`must let everybody in, or the route that it takes (from: any)`,
		},
		{
			name: "no peer and no identity of one's own", peer: "", self: "",
			policy: "default", rule: "unauthenticated",
			reason: `the peer has no authenticated identity; it must show a client certificate with a SPIFFE ID, or "--allow any" ` +
				`must let everybody in, or the route that it takes (from: any)`,
		},
		{
			name: "no peer and every wildcard", allow: []string{"*", "cluster.local/*", "*/sa/orders"}, peer: "", self: selfID,
			policy: "default", rule: "unauthenticated",
			reason: `the peer has no authenticated identity; it must show a client certificate with a SPIFFE ID, or "--allow any" ` +
				`must let everybody in, or the route that it takes (from: any)`,
		},
		{
			name: "no peer and any", allow: []string{"*/sa/x", "any"}, peer: "", self: selfID,
			want: true, policy: "allow", rule: "allow[1]", reason: `"any"`,
		},
		{
			name: "exact entry", allow: []string{"a/b", "spiffe://cluster.local/ns/shop/sa/orders"}, peer: shopID, self: selfID,
			want: true, policy: "allow", rule: "allow[1]", reason: `"spiffe://cluster.local/ns/shop/sa/orders"`,
		},
		{
			name: "the first of two same entries", allow: []string{"cluster.local/ns/shop/sa/orders", "spiffe://cluster.local/ns/shop/sa/orders"},
			peer: shopID, self: selfID,
			want: true, policy: "allow", rule: "allow[0]", reason: `"cluster.local/ns/shop/sa/orders"`,
		},
		{
			name: "the first of two wildcards", allow: []string{"a/*", "cluster.local/ns/shop/*", "*"}, peer: shopID, self: selfID,
			want: true, policy: "allow", rule: "allow[1]", reason: `"cluster.local/ns/shop/*"`,
		},
		{
			name: "an entry lets in when the gateway has no identity", allow: []string{"*"}, peer: shopID, self: "",
			want: true, policy: "allow", rule: "allow[0]", reason: `"*"`,
		},
		{
			name: "any lets in who has an identity", allow: []string{"any"}, peer: shopID, self: selfID,
			want: true, policy: "allow", rule: "allow[0]", reason: `"any"`,
		},
		{
			name: "the default policy comes first", allow: []string{"*"}, peer: "spiffe://cluster.local/ns/default/sa/web", self: selfID,
			want: true, policy: "default", rule: "same-namespace", reason: "trust domain and namespace",
		},
		{
			name: "one entry that does not match", allow: []string{"a/b"}, peer: shopID, self: selfID,
			policy: "default", rule: "same-namespace",
			reason: `peer spiffe://cluster.local/ns/shop/sa/orders is in namespace "shop"; the default policy allows only ` +
				`namespace "default" of trust domain "cluster.local", and the one allow entry does not name it; add --allow ` +
				`cluster.local/ns/shop/sa/orders to let it in`,
		},
		{
			name: "two entries that do not match", allow: []string{"a/b", "*c"}, peer: shopID, self: selfID,
			policy: "default", rule: "same-namespace",
			reason: `peer spiffe://cluster.local/ns/shop/sa/orders is in namespace "shop"; the default policy allows only ` +
				`namespace "default" of trust domain "cluster.local", and none of the 2 allow entries names it; add --allow ` +
				`cluster.local/ns/shop/sa/orders to let it in`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := mustCompile(t, tt.allow...)
			r := &Request{Peer: optionalID(t, tt.peer), Self: optionalID(t, tt.self)}
			got := p.Decide(r)
			if got.Allow != tt.want || got.Policy != tt.policy || got.Rule != tt.rule {
				t.Errorf("Decide = %+v, want allow %v by %s, %s", got, tt.want, tt.policy, tt.rule)
			}
			if !tt.want && got.Reason != tt.reason || !strings.Contains(got.Reason, tt.reason) {
				t.Errorf("Decide: reason\n got %s\nwant %s", got.Reason, tt.reason)
			}
			if len(tt.allow) == 0 {
				if zero := new(Policy).Decide(r); zero != got {
					t.Errorf("zero Policy: Decide = %+v, want %+v", zero, got)
				}
			}
		})
	}
}

// TestDecideZeroPeer composes policies at random: without "any", nothing lets in a peer without an identity.
func TestDecideZeroPeer(t *testing.T) {
	pieces := []string{"*", "spiffe://*", "spiffe://", "cluster.local", "/", "ns", "default", "sa", "gw", "x", ".", "any"}
	rng := rand.New(rand.NewPCG(1, 2))
	compiled := 0
	for range 20_000 {
		var allow []string
		for range rng.IntN(4) {
			var entry strings.Builder
			for range 1 + rng.IntN(7) {
				entry.WriteString(pieces[rng.IntN(len(pieces))])
			}
			if _, fault := parsePrincipal(entry.String()); fault == "" && entry.String() != "any" {
				allow = append(allow, entry.String())
			}
		}
		p := mustCompile(t, allow...)
		if len(allow) > 0 {
			compiled++
		}
		for _, self := range []string{"", selfID, "spiffe://corp.example/gw"} {
			r := &Request{Self: optionalID(t, self), Host: "example.com", Port: 443, Local: true}
			if d := p.Decide(r); d.Allow || d.Rule != ruleUnauthenticated || d.Reason == "" {
				t.Fatalf("allow %q, self %q: Decide(no peer) = %+v, want refused as unauthenticated", allow, self, d)
			}
		}
	}
	if compiled < 1000 {
		t.Errorf("only %d policies had entries, want at least 1000", compiled)
	}
}

func TestDecideAllocations(t *testing.T) {
	p := mustCompile(t, "cluster.local/ns/shop/sa/orders", "cluster.local/ns/a/*", "*/sa/b", "any")
	self := mustID(t, selfID)
	for _, peer := range []string{
		selfID, shopID, "spiffe://cluster.local/ns/a/sa/x", "spiffe://cluster.local/ns/z/sa/b", "spiffe://z/z", "",
	} {
		r := &Request{Peer: optionalID(t, peer), Self: self}
		if !p.Decide(r).Allow {
			t.Fatalf("Decide(%q) refused", peer)
		}
		if n := testing.AllocsPerRun(100, func() { p.Decide(r) }); n != 0 {
			t.Errorf("Decide(%q): %v allocations, want 0", peer, n)
		}
	}
}

// entryErrors takes a joined error apart.
func entryErrors(t *testing.T, err error) []string {
	t.Helper()
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		t.Fatalf("error %v is not joined", err)
	}
	var got []string
	for _, e := range joined.Unwrap() {
		var ee *EntryError
		if !errors.As(e, &ee) {
			t.Fatalf("error %v is no *EntryError", e)
		}
		got = append(got, fmt.Sprintf("%s[%d]%s", ee.Field, ee.Index, ee.Entry))
	}
	return got
}

func TestCompileReportsAllFaults(t *testing.T) {
	c := Config{
		Allow:  []string{"cluster.local/ns/a/sa/b", "cluster.local", "any", "A/b"},
		Egress: []string{"example.com", "http://example.com", "10.0.0.1/8"},
	}
	const allowFaults, egressFaults = "allow[1]cluster.local allow[3]A/b", "egress[1]http://example.com egress[2]10.0.0.1/8"

	p, err := Compile(c)
	if got := strings.Join(entryErrors(t, err), " "); p != nil || got != allowFaults {
		t.Errorf("Compile = %v, faults %s, want nil, %s", p, got, allowFaults)
	}
	e, err := CompileEgress("egress", c.Egress, Own{})
	if got := strings.Join(entryErrors(t, err), " "); e != nil || got != egressFaults {
		t.Errorf("CompileEgress = %v, faults %s, want nil, %s", e, got, egressFaults)
	}
	if got, want := strings.Join(entryErrors(t, c.Validate()), " "), allowFaults+" "+egressFaults; got != want {
		t.Errorf("Validate: faults %s, want %s", got, want)
	}
	if err := new(Config).Validate(); err != nil {
		t.Errorf("Validate of the zero Config = %v, want nil", err)
	}
	ee := &EntryError{Field: "allow", Index: 1, Entry: "a\nb", Reason: "is bad"}
	if got, want := ee.Error(), `allow[1] "a\nb": is bad`; got != want {
		t.Errorf("EntryError.Error = %s, want %s", got, want)
	}
}

func BenchmarkDecide(b *testing.B) {
	var exact, wild []string
	for i := range 1000 {
		exact = append(exact, fmt.Sprintf("cluster.local/ns/n%d/sa/a", i))
	}
	for i := range 100 {
		wild = append(wild, fmt.Sprintf("cluster.local/ns/n%d/*", i))
	}
	benches := []struct {
		name  string
		allow []string
		peer  string
	}{
		{"default", nil, "spiffe://cluster.local/ns/default/sa/web"},
		{"exact-of-1000", exact, "spiffe://cluster.local/ns/n999/sa/a"},
		{"wildcard-last-of-100", wild, "spiffe://cluster.local/ns/n99/sa/a"},
		{"refused", nil, shopID},
	}
	for _, bb := range benches {
		b.Run(bb.name, func(b *testing.B) {
			p := mustCompile(b, bb.allow...)
			r := &Request{Peer: mustID(b, bb.peer), Self: mustID(b, selfID)}
			b.ReportAllocs()
			for b.Loop() {
				p.Decide(r)
			}
		})
	}
}

// Peers of the own trust domain under another of its names are neighbours as well; those of others are not.
func TestDefaultPolicyWithAliases(t *testing.T) {
	p, err := Compile(Config{TrustDomain: "cluster.local", TrustDomainAliases: []string{"old.example"}})
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]bool{
		"spiffe://cluster.local/ns/default/sa/a": true, "spiffe://old.example/ns/default/sa/a": true,
		"spiffe://old.example/ns/other/sa/a": false, "spiffe://older.example/ns/default/sa/a": false,
	} {
		peer, err := spiffe.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		self, err := spiffe.Parse("spiffe://cluster.local/ns/default/sa/gw")
		if err != nil {
			t.Fatal(err)
		}
		if d := p.Decide(&Request{Peer: peer, Self: self}); d.Allow != want {
			t.Errorf("%s: %v (%s), want %v", text, d.Allow, d.Reason, want)
		}
	}
}

// A whole gateway may be in report, or off; a mode that is none is refused.
func TestModeOfAGateway(t *testing.T) {
	deny := []Rules{{Name: "closed", Action: ActionDeny, Rules: []Rule{{Place: Place{File: "p", Line: 3}, To: []Operation{{Ports: []string{"22"}}}}}}}
	peer, err := spiffe.Parse("spiffe://cluster.local/ns/default/sa/a")
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := spiffe.Parse("spiffe://other.example/ns/default/sa/a")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		mode   Mode
		peer   spiffe.ID
		port   uint16
		allow  bool
		report string // the rule that would refuse
	}{
		{"", peer, 80, true, ""}, {"", peer, 22, false, ""}, {ModeEnforce, stranger, 80, false, ""},
		{ModeReport, peer, 80, true, ""}, {ModeReport, peer, 22, true, "closed"}, {ModeReport, stranger, 80, true, "same-namespace"},
		{ModeReport, spiffe.ID{}, 80, true, "unauthenticated"}, {ModeOff, stranger, 22, true, ""},
	} {
		p, err := Compile(Config{Mode: tt.mode, Rules: deny})
		if err != nil {
			t.Fatal(err)
		}
		d := p.Decide(&Request{Peer: tt.peer, Self: peer, Port: tt.port, Addr: netip.MustParseAddr("10.0.0.1")})
		got := ""
		if d.Report != nil {
			got = d.Report.Rule
		}
		if d.Allow != tt.allow || got != tt.report {
			t.Errorf("mode %q, %v, port %d: %v, report %q, want %v, %q", tt.mode, tt.peer, tt.port, d.Allow, got, tt.allow, tt.report)
		}
	}
	if err := (&Config{Mode: "Enforce"}).Validate(); err == nil {
		t.Error("a mode that is none was taken")
	}
}

package policy

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"culvert/pki/spiffe"
)

// celRequest is a request that has everything.
func celRequest(t testing.TB) *Request {
	r := asks(t, webID, "10.0.0.9:8080")
	r.SNI, r.Listener, r.Time = "shop.example", "mesh", time.Date(2026, 3, 2, 9, 30, 0, 0, time.UTC)
	r.HTTP = &HTTP{Method: "GET", Path: "/a/b", Host: "shop.example", Header: func(name string) (string, bool) {
		return map[string]string{"x-team": "blue"}[name], name == "x-team"
	}}
	r.Token = &Token{Issuer: "https://i", Subject: "s", Audiences: []string{"one", "two"}, Claims: map[string]any{
		"groups": []any{"admin", "dev"}, "org": map[string]any{"unit": "x"}, "level": 7.0, "on": true,
	}}
	return r
}

// TestCEL is what expressions make of a request; a DENY and an ALLOW tell what is true, false and not known apart.
func TestCEL(t *testing.T) {
	all := func(*Request) {}
	bare := func(r *Request) {
		r.SNI, r.HTTP, r.Token, r.Time, r.Source = "", nil, nil, time.Time{}, netip.AddrPort{}
	}
	clear := func(r *Request) { r.Token = nil }
	name := func(r *Request) { r.Host, r.Addr, r.Unresolved = "db.internal", netip.Addr{}, true }
	for _, tt := range []struct {
		name, text string
		change     func(*Request)
		want       truth
	}{
		{"true", "true", all, yes},
		{"principal", `peer.principal == "cluster.local/ns/default/sa/web"`, all, yes},
		{"parts of the identity", `peer.trust_domain == "cluster.local" && peer.namespace == "default" && peer.service_account == "web" && peer.key == ""`, all, yes},
		{"nobody", `peer.principal == "" && peer.namespace == "" && peer.trust_domain == ""`, func(r *Request) { r.Peer = spiffe.ID{} }, yes},
		{"a self-made key", `peer.key == "key:` + strings.Repeat("a", 52) + `" && peer.principal == peer.key`, func(r *Request) { r.Peer = spiffe.KeyID([32]byte{}) }, yes},
		{"source", `source.ip == "10.9.0.1" && source.port == 4000 && remote.ip == source.ip`, all, yes},
		{"range", `source.ip.inCIDR("10.9.0.0/16") && !source.ip.inCIDR("2001:db8::/32")`, all, yes},
		{"mapped source", `source.ip.inCIDR("10.9.0.0/16")`, func(r *Request) { r.Source = netip.MustParseAddrPort("[::ffff:10.9.0.1]:1") }, yes},
		{"another range", `destination.ip.inCIDR("10.9.0.0/16")`, all, no},
		{"a range that is made up later is no range", `source.ip.inCIDR(listener)`, all, unknown},
		{"destination", `destination.ip == "10.0.0.9" && destination.port == 8080`, all, yes},
		{"a name that is none", `destination.host == "db"`, all, unknown},
		{"name", `destination.host == "db.internal"`, name, yes},
		{"server name and listener", `sni == "shop.example" && listener == "mesh"`, all, yes},
		{"request", `request.method == "GET" && request.path.startsWith("/a/") && request.host == "shop.example"`, all, yes},
		{"header", `request.headers["X-Team"] == "blue"`, all, yes},
		{"header by another attribute", `request.headers["x-" + "team"] == "blue"`, all, yes},
		{"header that is there", `"x-team" in request.headers && !("x-none" in request.headers)`, all, yes},
		{"header that is not there", `request.headers["x-none"] == "blue"`, all, unknown},
		{"token", `token.issuer == "https://i" && token.subject == "s" && "two" in token.audiences`, all, yes},
		{"claims", `"admin" in token.claims.groups && token.claims.org.unit == "x" && token.claims.on && token.claims.level > 5`, all, yes},
		{"claims by a macro", `token.claims.groups.exists(g, g.startsWith("ad"))`, all, yes},
		{"claim that is not there", `token.claims.none == "x"`, all, unknown},
		{"whether a claim is there", `has(token.claims.none)`, all, no},
		{"claim of another type", `token.claims.level == "x"`, all, no},
		{"no token in the clear", `token.issuer == "" && size(token.audiences) == 0 && !has(token.claims.sub)`, clear, yes},
		{"workload", `workload.name == "gw" && workload.namespace == "default" && workload.labels["app"] == "gw"`, all, yes},
		{"hours", `time.getHours() >= 8 && time.getHours() < 18 && time.getDayOfWeek() in [1, 2, 3, 4, 5]`, all, yes},
		{"a date", `time < timestamp("2026-03-01T00:00:00Z")`, all, no},
		{"zone", `time.getHours("Europe/Berlin") == 10`, all, yes},
		{"pattern", `request.path.matches("^/a/[a-z]$")`, all, yes},

		{"a method that nobody sees", `request.method == "GET"`, bare, unknown},
		{"nor its opposite", `request.method != "GET"`, bare, unknown},
		{"what is known decides", `request.method == "GET" || listener == "mesh"`, bare, yes},
		{"in either order", `listener == "other" && request.method == "GET"`, bare, no},
		{"a token that nobody sees", `token.issuer == ""`, bare, unknown},
		{"headers that nobody sees", `"x" in request.headers`, bare, unknown},
		{"a server name that nobody sees", `sni == ""`, bare, unknown},
		{"a time that nobody tells", `time > timestamp("2026-03-01T00:00:00Z")`, bare, unknown},
		{"a source that nobody tells", `source.ip == "10.9.0.1" || source.port == 1`, bare, unknown},
		{"division by nothing", `1 / (destination.port - 8080) == 1`, all, unknown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := celRequest(t)
			tt.change(r)
			allow := compileSets(t, Rules{Name: "a", Rules: []Rule{{CEL: tt.text}}}).Decide(r).Allow
			deny := compileSets(t, Rules{Name: "d", Action: ActionDeny, Rules: []Rule{{CEL: tt.text}}}).Decide(r).Rule == "d"
			if allow != (tt.want == yes) || deny != (tt.want >= unknown) {
				t.Errorf("ALLOW %v, DENY %v, want truth %d", allow, deny, tt.want)
			}
		})
	}
}

// An address that is not known yet is asked about when it is: a DENY does not refuse before, an ALLOW does not allow what it
// would not.
func TestCELUnresolved(t *testing.T) {
	const inside = `destination.ip.inCIDR("169.254.0.0/16")`
	for _, tt := range []struct {
		name   string
		action Action
		text   string
		addr   string // "" is not known yet
		want   bool
	}{
		{"deny before", ActionDeny, inside, "", true},
		{"deny the address", ActionDeny, inside, "169.254.1.1", false},
		{"deny another address", ActionDeny, inside, "10.0.0.1", true},
		{"allow before", ActionAllow, inside, "", true},
		{"allow the address", ActionAllow, inside, "169.254.1.1", true},
		{"allow another address", ActionAllow, inside, "10.0.0.1", false},
		{"deny what is not known else", ActionDeny, `request.method == "GET"`, "", false},
		{"allow before, what the rest rules out", ActionAllow, inside + ` && listener == "other"`, "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := asks(t, webID, "10.0.0.9:80")
			r.Host, r.Unresolved, r.Addr = "db.internal", true, netip.Addr{}
			if tt.addr != "" {
				r.Addr = netip.MustParseAddr(tt.addr)
			}
			if d := compileSets(t, Rules{Name: "x", Action: tt.action, Rules: []Rule{{CEL: tt.text}}}).Decide(r); d.Allow != tt.want {
				t.Errorf("Decide = %v by %s (%s), want %v", d.Allow, d.Rule, d.Reason, tt.want)
			}
		})
	}
}

// Expressions that cannot be taken are refused with their place in the expression.
func TestCELFaults(t *testing.T) {
	for _, tt := range []struct {
		name, text, want string
		line, column     int
	}{
		{"no expression", "peer.principal ==", "Syntax error", 1, 18},
		{"not true or false", "peer.principal", "is of type string; it should be true or false", 0, 0},
		{"any type", "token.claims.admin", "is of type dyn", 0, 0},
		{"an unknown name", `listener == "a" && peer.naem == "x"`, "undeclared reference to 'peer'", 1, 20},
		{"and what is known", "path == \"/\"", "known are destination.host", 1, 1},
		{"in the second line", "true &&\n  nobody", "undeclared reference to 'nobody'", 2, 3},
		{"a wrong type", `destination.port == "80"`, "no matching overload for '_==_'", 1, 18},
		{"a method that is none", `peer.principal.begins("x")`, "undeclared reference to 'begins'", 1, 22},
		{"a range that is none", `source.ip.inCIDR("10.0.0.0/33")`, `"10.0.0.0/33" is neither an address nor a range`, 1, 18},
		{"a pattern that is none", `request.path.matches("(")`, "invalid matches argument", 1, 22},
		{"a time that is none", `time > timestamp("today")`, "invalid timestamp argument", 1, 18},
		{"headers cannot be gone through", `request.headers.exists(h, h == "x")`, "cannot be range of a comprehension", 1, 8},
		{"nor counted", `size(request.headers) > 1`, "no matching overload", 1, 5},
		{"too long", `listener == "` + strings.Repeat("a", maxCELBytes) + `"`, "longer than 4096 bytes", 0, 0},
		{"too deep", strings.Repeat("(", 300) + "true" + strings.Repeat(")", 300), "recursion", 0, 0},
		{"lists in lists", `token.claims.groups.all(a, token.claims.groups.all(b, token.claims.groups.all(c, a == b || b == c)))`, "may cost", 0, 0},
		{"a text that doubles", `token.claims.groups.map(a, token.claims.groups.map(b, token.claims.groups)).size() > 1`, "may cost", 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Compile(Config{Rules: []Rules{{Name: "a", At: "rules[3]", Rules: []Rule{{CEL: tt.text}}}}})
			var fault *RuleError
			if !errors.As(err, &fault) || fault.CEL == nil {
				t.Fatalf("Compile = %v, want a fault of the expression", err)
			}
			if !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "rules[3]") {
				t.Errorf("the fault is %v, want %q", err, tt.want)
			}
			if tt.column != 0 && (fault.CEL.Line != tt.line || fault.CEL.Column != tt.column) {
				t.Errorf("it is at %d:%d, want %d:%d: %v", fault.CEL.Line, fault.CEL.Column, tt.line, tt.column, err)
			}
		})
	}
}

// BenchmarkDecideCEL decides by one rule with an expression, and by the last of many rules that have one each and are found by
// something else.
func BenchmarkDecideCEL(b *testing.B) {
	const text = `request.method == "GET" && request.path.startsWith("/a/") && "admin" in token.claims.groups && source.ip.inCIDR("10.9.0.0/16")`
	many := manyRules(10_000)
	for i := range many {
		many[i].Rules[0].CEL = `listener == "mesh"`
	}
	for _, bench := range []struct {
		name string
		sets []Rules
		peer string
	}{
		{"short", []Rules{{Name: "a", Rules: []Rule{{CEL: `listener == "mesh"`}}}}, webID},
		{"long", []Rules{{Name: "a", Rules: []Rule{{CEL: text}}}}, webID},
		{"one-of-10000", many, "spiffe://cluster.local/ns/default/sa/client-9999"},
	} {
		b.Run(bench.name, func(b *testing.B) {
			p, r := compileSets(b, bench.sets...), celRequest(b)
			r.Peer = mustID(b, bench.peer)
			if d := p.Decide(r); !d.Allow || d.Policy != policyRules {
				b.Fatalf("Decide = %+v", d)
			}
			b.ReportAllocs()
			for b.Loop() {
				p.Decide(r)
			}
		})
	}
}

// An expression that costs more than was known before, as lists are longer than requests have them, ends and is not known.
func TestCELEnds(t *testing.T) {
	r := celRequest(t)
	groups := make([]any, 1_000_000)
	for i := range groups {
		groups[i] = "group"
	}
	r.Token.Claims["groups"] = groups
	const text = `token.claims.groups.exists(g, g == "none")`
	p := compileSets(t, Rules{Name: "d", Action: ActionDeny, Rules: []Rule{{CEL: text}}})
	if d := p.Decide(r); d.Rule != "d" {
		t.Errorf("Decide of a list that is too long = %+v, want the DENY", d)
	}
	r.Token.Claims["groups"] = groups[:1000]
	if d := p.Decide(r); d.Rule == "d" {
		t.Errorf("Decide of a list = %+v, want it to be gone through", d)
	}
}

// FuzzCEL: whatever an expression is, it is refused, or it decides within its bounds.
func FuzzCEL(f *testing.F) {
	for _, text := range []string{
		"true", `peer.principal == "a"`, `token.claims.groups.exists(g, g.startsWith("a"))`, `source.ip.inCIDR("10.0.0.0/8")`, `request.headers["x"] == ""`,
		`time.getHours("Europe/Berlin") > 1 ? true : 1/0 == 1`, `request.path.matches("(a+)+$")`, `[1,2].map(x, x*2) == [2,4]`, `"` + strings.Repeat("a", 100), "((((((", `b"\xff" == b""`,
	} {
		f.Add(text)
	}
	r := celRequest(f)
	f.Fuzz(func(t *testing.T, text string) {
		if text == "" {
			return // which is no expression
		}
		p, err := Compile(Config{Rules: []Rules{{Name: "d", Action: ActionDeny, Rules: []Rule{{CEL: text}}}}})
		if err != nil {
			var fault *RuleError
			if !errors.As(err, &fault) || fault.CEL == nil || fault.CEL.Problem == "" || fault.CEL.Line < 0 || fault.CEL.Column < 0 {
				t.Errorf("Compile = %v", err)
			}
			return
		}
		d := p.Decide(r)
		if again := p.Decide(r); again.Allow != d.Allow {
			t.Errorf("Decide = %v, and then %v", d.Allow, again.Allow)
		}
	})
}

// Only the expressions of rules that match by everything else are tried.
func TestCELIsTriedLast(t *testing.T) {
	sets := manyRules(999)
	for i := range sets {
		sets[i].Action = ActionDeny
		sets[i].Rules[0].CEL = `request.headers["x"] == "y"`
	}
	sets = append(sets, Rules{Name: "elsewhere", Action: ActionDeny, Scope: Scope{Namespace: "shop"}, Rules: []Rule{{CEL: `request.headers["x"] == "y"`}}},
		Rules{Name: "other", Action: ActionDeny, Rules: []Rule{{CEL: `request.headers["x"] == "y"`, To: []Operation{{Methods: []string{"PUT"}}}}}})
	p := compileSets(t, sets...)
	for peer, want := range map[string]int{"spiffe://cluster.local/ns/default/sa/client-300": 1, "spiffe://cluster.local/ns/default/sa/client-301": 0} {
		tried := 0
		r := asks(t, peer, "10.0.0.9:8080")
		r.HTTP = &HTTP{Method: "GET", Header: func(string) (string, bool) {
			tried++
			return "z", true
		}}
		if d := p.Decide(r); !d.Allow || tried != want {
			t.Errorf("%s: Decide = %v, and %d expressions were tried, want %d", peer, d.Allow, tried, want)
		}
	}
}

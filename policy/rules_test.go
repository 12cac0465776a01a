package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strings"
	"testing"

	"culvert/pki/spiffe"
)

func compileSets(t testing.TB, sets ...Rules) *Policy {
	t.Helper()
	p, err := Compile(Config{Rules: sets})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// asks is a request by a peer for a destination.
func asks(t testing.TB, peer, dst string) *Request {
	t.Helper()
	to := netip.MustParseAddrPort(dst)
	return &Request{
		Peer: optionalID(t, peer), Self: mustID(t, selfID), Addr: to.Addr(), Port: to.Port(), Source: netip.MustParseAddrPort("10.9.0.1:4000"),
		Workload: &Workload{Name: "gw", Namespace: "default", Labels: map[string]string{"app": "gw"}},
	}
}

const webID = "spiffe://cluster.local/ns/default/sa/web"

// TestRules is what each field, and each combination of actions and scopes, makes of a request by web of the own namespace
// for 10.0.0.9:8080.
func TestRules(t *testing.T) {
	allow := func(r ...Rule) Rules { return Rules{Name: "a", Rules: r} }
	deny := func(r ...Rule) Rules { return Rules{Name: "d", Action: ActionDeny, Rules: r} }
	from := func(s Source) Rule { return Rule{From: []Source{s}} }
	to := func(o Operation) Rule { return Rule{To: []Operation{o}} }
	when := func(key string, values ...string) Rule { return Rule{When: []Condition{{Key: key, Values: values}}} }
	get := &HTTP{Method: "GET", Path: "/a/b", Host: "shop.example", Header: func(name string) (string, bool) {
		return map[string]string{"x-team": "blue"}[name], name == "x-team"
	}}
	token := &Token{Issuer: "https://i", Subject: "s", Audiences: []string{"one", "two"}, AuthorizedParty: "p", Claims: map[string]any{
		"scope": "read write", "groups": []any{"admin", 7}, "org": map[string]any{"unit": "x"}, "on": true,
	}}
	with := func(change func(*Request)) func(*Request) { return change }
	clear := with(func(r *Request) { r.HTTP, r.Token = get, token })
	for _, tt := range []struct {
		name   string
		sets   []Rules
		change func(*Request)
		want   bool
		rule   string
	}{
		{"no set", nil, nil, true, "same-namespace"},
		{"an allow without rules matches nothing", []Rules{allow()}, nil, false, "no-allow"},
		{"an allow with an empty rule matches everything", []Rules{allow(Rule{})}, nil, true, "a"},
		{"a deny without rules matches nothing", []Rules{deny()}, nil, true, "same-namespace"},
		{"a deny with an empty rule matches everything", []Rules{deny(Rule{}), allow(Rule{})}, nil, false, "d"},
		{"a deny that does not match leaves the default", []Rules{deny(to(Operation{Ports: []string{"9090"}}))}, nil, true, "same-namespace"},
		{"an allow that does not match ends the default", []Rules{allow(to(Operation{Ports: []string{"9090"}}))}, nil, false, "no-allow"},
		{"one of two allows", []Rules{allow(to(Operation{Ports: []string{"9090"}})), {Name: "b", Rules: []Rule{to(Operation{Ports: []string{"8080"}})}}}, nil, true, "b"},
		{"an allow for others leaves the default", []Rules{{Name: "a", Scope: Scope{Namespace: "shop"}, Rules: []Rule{to(Operation{Ports: []string{"1"}})}}}, nil, true, "same-namespace"},
		{"an allow for our labels", []Rules{{Name: "a", Scope: Scope{Namespace: "default", Labels: map[string]string{"app": "gw"}}}}, nil, false, "no-allow"},
		{"an allow for other labels", []Rules{{Name: "a", Scope: Scope{Namespace: "default", Labels: map[string]string{"app": "x"}}}}, nil, true, "same-namespace"},
		{"an allow by name", []Rules{{Name: "a", Scope: Scope{Names: []string{"x", "gw"}}}}, nil, false, "no-allow"},
		{"a set that is off", []Rules{{Name: "d", Action: ActionDeny, Mode: ModeOff, Rules: []Rule{{}}}}, nil, true, "same-namespace"},

		{"principal", []Rules{allow(from(Source{Principals: []string{"x.example/a", "cluster.local/ns/default/sa/web"}}))}, nil, true, "a"},
		{"principal of another", []Rules{allow(from(Source{Principals: []string{"cluster.local/ns/default/sa/webb"}}))}, nil, false, "no-allow"},
		{"principal by prefix", []Rules{allow(from(Source{Principals: []string{"cluster.local/ns/default/*"}}))}, nil, true, "a"},
		{"principal by suffix", []Rules{allow(from(Source{Principals: []string{"*/sa/web"}}))}, nil, true, "a"},
		{"any principal", []Rules{allow(from(Source{Principals: []string{"*"}}))}, nil, true, "a"},
		{"any principal and no peer", []Rules{allow(from(Source{Principals: []string{"*"}}))}, with(func(r *Request) { r.Peer = spiffe.ID{} }), false, "no-allow"},
		{"not a principal and no peer", []Rules{allow(from(Source{NotPrincipals: []string{"*"}}))}, with(func(r *Request) { r.Peer = spiffe.ID{} }), true, "a"},
		{"not this principal", []Rules{deny(from(Source{NotPrincipals: []string{"cluster.local/ns/default/sa/web"}}))}, nil, true, "same-namespace"},
		{"not another principal", []Rules{deny(from(Source{NotPrincipals: []string{"cluster.local/ns/default/sa/other"}}))}, nil, false, "d"},
		{"fields of a source are all needed", []Rules{allow(from(Source{Namespaces: []string{"default"}, IPBlocks: []string{"10.8.0.0/16"}}))}, nil, false, "no-allow"},
		{"of sources one is needed", []Rules{allow(Rule{From: []Source{{IPBlocks: []string{"10.8.0.0/16"}}, {Namespaces: []string{"default"}}}})}, nil, true, "a"},
		{"namespace", []Rules{allow(from(Source{Namespaces: []string{"de*"}}))}, nil, true, "a"},
		{"not the namespace", []Rules{deny(from(Source{NotNamespaces: []string{"default"}}))}, nil, true, "same-namespace"},
		{"service account", []Rules{allow(from(Source{ServiceAccounts: []string{"default/web"}}))}, nil, true, "a"},
		{"service account of the set's namespace", []Rules{{Name: "a", Scope: Scope{Namespace: "default"}, Rules: []Rule{from(Source{ServiceAccounts: []string{"web"}})}}}, nil, true, "a"},
		{"service account of another namespace", []Rules{allow(from(Source{ServiceAccounts: []string{"shop/web"}}))}, nil, false, "no-allow"},
		{"ip block", []Rules{allow(from(Source{IPBlocks: []string{"10.9.0.0/16"}}))}, nil, true, "a"},
		{"ip block of one address", []Rules{allow(from(Source{IPBlocks: []string{"10.9.0.1"}}))}, nil, true, "a"},
		{"not the ip block", []Rules{deny(from(Source{NotIPBlocks: []string{"10.9.0.0/16"}}))}, nil, true, "same-namespace"},
		{"mapped source", []Rules{allow(from(Source{IPBlocks: []string{"10.9.0.1"}}))}, with(func(r *Request) { r.Source = netip.MustParseAddrPort("[::ffff:10.9.0.1]:1") }), true, "a"},
		{"remote ip is the source's where nobody tells", []Rules{allow(from(Source{RemoteIPBlocks: []string{"10.9.0.1"}}))}, nil, true, "a"},
		{"remote ip that was told", []Rules{allow(from(Source{RemoteIPBlocks: []string{"192.0.2.0/24"}}))}, with(func(r *Request) { r.Remote = netip.MustParseAddr("192.0.2.7") }), true, "a"},

		{"port", []Rules{allow(to(Operation{Ports: []string{"80", "8080"}}))}, nil, true, "a"},
		{"not the port", []Rules{deny(to(Operation{NotPorts: []string{"8080"}}))}, nil, true, "same-namespace"},
		{"from and to", []Rules{allow(Rule{From: []Source{{Namespaces: []string{"default"}}}, To: []Operation{{Ports: []string{"9090"}}}})}, nil, false, "no-allow"},
		{"destination by condition", []Rules{allow(when("destination.ip", "10.0.0.0/24"))}, nil, true, "a"},
		{"port by condition", []Rules{allow(when("destination.port", "8080"))}, nil, true, "a"},
		{"conditions are all needed", []Rules{allow(Rule{When: []Condition{{Key: "destination.port", Values: []string{"8080"}}, {Key: "source.ip", NotValues: []string{"10.9.0.0/16"}}}})}, nil, false, "no-allow"},
		{"host of a flow by name", []Rules{allow(to(Operation{Hosts: []string{"Shop.example"}}))}, with(func(r *Request) { r.Host, r.Addr = "shop.example", netip.Addr{} }), true, "a"},

		{"a method that nobody sees does not allow", []Rules{allow(to(Operation{Methods: []string{"GET"}}))}, nil, false, "no-allow"},
		{"nor does one that is excluded", []Rules{allow(to(Operation{NotMethods: []string{"GET"}}))}, nil, false, "no-allow"},
		{"a method that nobody sees is denied", []Rules{deny(to(Operation{Methods: []string{"GET"}}))}, nil, false, "d"},
		{"unless the port is another", []Rules{deny(to(Operation{Methods: []string{"GET"}, Ports: []string{"9090"}}))}, nil, true, "same-namespace"},
		{"an address that is not known yet is denied", []Rules{deny(when("destination.ip", "10.0.0.0/24"))}, with(func(r *Request) { r.Host, r.Addr = "shop.example", netip.Addr{} }), false, "d"},

		{"method", []Rules{allow(to(Operation{Methods: []string{"PUT", "GET"}}))}, clear, true, "a"},
		{"path by prefix", []Rules{allow(to(Operation{Paths: []string{"/a/*"}}))}, clear, true, "a"},
		{"not the path", []Rules{deny(to(Operation{NotPaths: []string{"/a/b"}}))}, clear, true, "same-namespace"},
		{"path by template", []Rules{allow(to(Operation{Paths: []string{"/a/{*}"}}))}, clear, true, "a"},
		{"host by suffix", []Rules{allow(to(Operation{Hosts: []string{"*.example"}}))}, clear, true, "a"},
		{"header", []Rules{allow(when("request.headers[X-Team]", "blue"))}, clear, true, "a"},
		{"header that is not there", []Rules{allow(when("request.headers[x-other]", "*"))}, clear, false, "no-allow"},
		{"request principal", []Rules{allow(from(Source{RequestPrincipals: []string{"https://i/s"}}))}, clear, true, "a"},
		{"any request principal, without a token", []Rules{allow(from(Source{RequestPrincipals: []string{"*"}}))}, with(func(r *Request) { r.HTTP = get }), false, "no-allow"},
		{"no request principal, without a token", []Rules{deny(from(Source{NotRequestPrincipals: []string{"*"}}))}, with(func(r *Request) { r.HTTP = get }), false, "d"},
		{"audience", []Rules{allow(when("request.auth.audiences", "two"))}, clear, true, "a"},
		{"presenter", []Rules{allow(when("request.auth.presenter", "p"))}, clear, true, "a"},
		{"claim of words", []Rules{allow(when("request.auth.claims[scope]", "write"))}, clear, true, "a"},
		{"claim of a list", []Rules{allow(when("request.auth.claims[groups]", "admin"))}, clear, true, "a"},
		{"claim inside", []Rules{allow(when("request.auth.claims[org][unit]", "x"))}, clear, true, "a"},
		{"claim that is true", []Rules{allow(when("request.auth.claims[on]", "true"))}, clear, true, "a"},
		{"claim that is not there", []Rules{allow(when("request.auth.claims[none]", "*"))}, clear, false, "no-allow"},
		{"server name", []Rules{allow(when("connection.sni", "*.example"))}, with(func(r *Request) { r.SNI = "a.example" }), true, "a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := asks(t, webID, "10.0.0.9:8080")
			if tt.change != nil {
				tt.change(r)
			}
			d := compileSets(t, tt.sets...).Decide(r)
			if d.Allow != tt.want || d.Rule != tt.rule {
				t.Errorf("Decide = %v by %s (%s), want %v by %s", d.Allow, d.Rule, d.Reason, tt.want, tt.rule)
			}
		})
	}
}

// Entries of allow add to ALLOW policies, and do not stand above DENY; a route for peers without an identity does neither.
func TestRulesAndEntries(t *testing.T) {
	none := Rules{Name: "a", Rules: []Rule{{To: []Operation{{Ports: []string{"1"}}}}}}
	all := Rules{Name: "d", Action: ActionDeny, Rules: []Rule{{From: []Source{{NotPrincipals: []string{"x/y"}}}}}}
	for _, tt := range []struct {
		name  string
		sets  []Rules
		allow []string
		peer  string
		open  string
		want  bool
		rule  string
	}{
		{"entry beside an allow", []Rules{none}, []string{"cluster.local/ns/shop/*"}, shopID, "", true, "allow[0]"},
		{"entry below a deny", []Rules{all}, []string{"any"}, shopID, "", false, "d"},
		{"route below a deny", []Rules{all}, nil, "", "routes[1]", false, "d"},
		{"route below an allow", []Rules{none}, nil, "", "routes[1]", false, "no-allow"},
		{"route", []Rules{{Name: "d", Action: ActionDeny}}, nil, "", "routes[1]", true, "routes[1]"},
		{"route for who has an identity", []Rules{{Name: "d", Action: ActionDeny}}, nil, shopID, "routes[1]", false, "same-namespace"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := Compile(Config{Rules: tt.sets, Allow: tt.allow})
			if err != nil {
				t.Fatal(err)
			}
			r := asks(t, tt.peer, "10.0.0.9:8080")
			r.Open = tt.open
			if d := p.Decide(r); d.Allow != tt.want || d.Rule != tt.rule {
				t.Errorf("Decide = %v by %s (%s), want %v by %s", d.Allow, d.Rule, d.Reason, tt.want, tt.rule)
			}
		})
	}
}

// Rules in report are told where they would change something.
func TestRulesReport(t *testing.T) {
	denyIt := Rules{Name: "d", Action: ActionDeny, Mode: ModeReport, Rules: []Rule{{Place: Place{"p.yaml", 7}}}}
	allowOther := Rules{Name: "a", Mode: ModeReport, Rules: []Rule{{To: []Operation{{Ports: []string{"1"}}}}}}
	for _, tt := range []struct {
		name string
		sets []Rules
		want string // would be decided by; "" is no report
	}{
		{"deny", []Rules{denyIt}, "d"},
		{"allow of something else", []Rules{allowOther}, "no-allow"},
		{"what is denied already", []Rules{denyIt, {Name: "e", Action: ActionDeny, Rules: []Rule{{}}}}, ""},
		{"an allow that would open", []Rules{{Name: "e"}, {Name: "f", Mode: ModeReport, Rules: []Rule{{}}}}, "f"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := compileSets(t, tt.sets...).Decide(asks(t, webID, "10.0.0.9:8080"))
			switch {
			case tt.want == "" && d.Report != nil:
				t.Errorf("the report is %+v, want none", d.Report)
			case tt.want != "" && (d.Report == nil || d.Report.Rule != tt.want || d.Report.Allow == d.Allow):
				t.Errorf("decided %v by %s, and the report is %+v, want the opposite by %s", d.Allow, d.Rule, d.Report, tt.want)
			}
		})
	}
}

// Faults are told all at once, with the path of the value.
func TestRuleFaults(t *testing.T) {
	_, err := Compile(Config{Rules: []Rules{{At: "spec", Action: "REFUSE", Rules: []Rule{{
		From: []Source{{Principals: []string{"spiffe://a/b", "A/b", "a/b/"}, IPBlocks: []string{"10.0.0.0/33", "::ffff:1.2.3.4/120"}, ServiceAccounts: []string{"web", "a/b*"}}, {}},
		To:   []Operation{{Ports: []string{"0", "65536", "080", "http"}, Paths: []string{"a/{*}", "/{**}/{**}", "/a{*}", "/*/x"}}},
		When: []Condition{{Key: "source.port", Values: []string{"1"}}, {Key: "source.ip"}, {Key: "request.headers[]", Values: []string{"x"}}, {Key: "source.namespace", Values: []string{""}}},
	}}}}})
	if err == nil {
		t.Fatal("Compile accepts all of it")
	}
	for _, want := range []string{
		"spec.action", "spec.rules[0].from[0].principals[0]", "principals[1]", "principals[2]", "ipBlocks[0]", "ipBlocks[1]", "serviceAccounts[0]", "serviceAccounts[1]", "from[1]: has no field",
		"to[0].ports[0]", "to[0].ports[1]", "to[0].ports[2]", "to[0].ports[3]", "paths[0]", "paths[1]", "paths[2]", "paths[3]",
		"when[0].key", "when[1]: has neither", "when[2].key", "when[3].values[0]",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no fault of %s in\n%v", want, err)
		}
	}
}

func TestMatchTemplate(t *testing.T) {
	for _, tt := range []struct {
		template, path string
		want           bool
	}{
		{"/a/{*}", "/a/b", true}, {"/a/{*}", "/a", false}, {"/a/{*}", "/a/", false}, {"/a/{*}", "/a/b/c", false}, {"/{*}/b", "/a/b", true},
		{"/a/{**}", "/a/b/c", true}, {"/a/{**}", "/a/", true}, {"/a/{**}", "/b/a/", false}, {"/{**}/z", "/a/b/z", true}, {"/{**}/z", "/z", true}, {"/{**}/z", "/a/zz", false},
		{"/{*}/{**}/z", "/a/z", true}, {"/{*}/{**}/z", "/z", false},
	} {
		if got := matchTemplate(tt.template, tt.path); got != tt.want {
			t.Errorf("matchTemplate(%s, %s) = %v, want %v", tt.template, tt.path, got, tt.want)
		}
	}
}

// The index decides as trying all rules would.
func TestIndex(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	some := func(make func() string) (list []string) {
		for range r.IntN(3) {
			list = append(list, make())
		}
		return list
	}
	id := func() string {
		return pick("a.b/ns/n1/sa/x", "a.b/ns/n2/sa/x", "a.b/ns/n1/sa/y", "a.b/other", "a.b/*", "*/sa/x", "*")
	}
	ns := func() string { return pick("n1", "n2", "n*", "*") }
	account := func() string { return pick("n1/x", "n2/x", "n1/y") }
	block := func() string {
		return pick("10.0.0.0/8", "10.1.0.0/16", "10.1.1.1", "192.0.2.0/24", "2001:db8::/32", "::/0", "0.0.0.0/0")
	}
	port := func() string { return pick("80", "443", "8080") }
	for range 2000 {
		var sets []Rules
		for i := range 1 + r.IntN(4) {
			set := Rules{Name: fmt.Sprint(i), Action: Action(pick("ALLOW", "DENY", "DENY"))}
			for range r.IntN(4) {
				var one Rule
				for range r.IntN(3) {
					s := Source{Principals: some(id), NotPrincipals: some(id), Namespaces: some(ns), ServiceAccounts: some(account), IPBlocks: some(block), NotIPBlocks: some(block)}
					if fmt.Sprint(s) != fmt.Sprint(Source{}) {
						one.From = append(one.From, s)
					}
				}
				for range r.IntN(2) {
					one.To = append(one.To, Operation{Ports: []string{port()}, NotPorts: some(port)})
				}
				if r.IntN(3) == 0 {
					one.When = append(one.When, Condition{Key: pick("destination.ip", "source.ip"), Values: []string{block()}})
				}
				set.Rules = append(set.Rules, one)
			}
			sets = append(sets, set)
		}
		p := compileSets(t, sets...)
		for range 20 {
			q := &Request{
				Peer: optionalID(t, pick("", "spiffe://a.b/ns/n1/sa/x", "spiffe://a.b/ns/n2/sa/x", "spiffe://a.b/other", "spiffe://c/ns/n1/sa/y")), Self: mustID(t, selfID),
				Source: netip.MustParseAddrPort(pick("10.1.1.1:1", "10.2.0.1:1", "[2001:db8::1]:1", "8.8.8.8:1")), Port: []uint16{80, 443, 8080, 1}[r.IntN(4)],
				Addr: []netip.Addr{{}, netip.MustParseAddr("10.1.1.1"), netip.MustParseAddr("2001:db8::1")}[r.IntN(3)],
			}
			got := p.Decide(q).Allow
			all := *p.rules
			all.deny, all.allow = everyRule(p.rules, &p.rules.deny), everyRule(p.rules, &p.rules.allow)
			if want := (&Policy{rules: &all}).Decide(q).Allow; got != want {
				t.Fatalf("%+v for %+v: %v, want %v", sets, q, got, want)
			}
		}
	}
}

// everyRule is an index that tries each rule of x.
func everyRule(s *snapshot, x *index) (all index) {
	all.size, all.always = x.size, append([]uint32(nil), x.always...)
	for _, e := range x.entries {
		all.always = append(all.always, e.rule)
	}
	return all
}

// manyRules are n sets, a third of them by identity, by range and by port.
func manyRules(n int) (sets []Rules) {
	for i := range n {
		r := Rule{Place: Place{"many.yaml", i}}
		switch i % 3 {
		case 0:
			r.From = []Source{{Principals: []string{fmt.Sprintf("cluster.local/ns/default/sa/client-%d", i)}}}
			r.To = []Operation{{Ports: []string{"8080"}}}
		case 1:
			r.From = []Source{{IPBlocks: []string{fmt.Sprintf("10.%d.%d.%d/32", i>>16&0xff, i>>8&0xff, i&0xff)}}}
		default:
			r.From = []Source{{Namespaces: []string{fmt.Sprintf("ns-%d", i)}}}
			r.To = []Operation{{Ports: []string{fmt.Sprint(1 + i%65000)}}}
		}
		sets = append(sets, Rules{Name: "many", Rules: []Rule{r}})
	}
	return sets
}

// BenchmarkDecideRules decides by identity, range and port among so many rules: what the last of each kind allows, and what
// none does.
func BenchmarkDecideRules(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		gw := &Workload{Name: "gw", Namespace: "default"}
		p, err := Compile(Config{Rules: manyRules(n), Workloads: []*Workload{gw}})
		if err != nil {
			b.Fatal(err)
		}
		last := n - 1
		for last%3 != 0 {
			last--
		}
		for name, peer := range map[string]string{"allow": fmt.Sprintf("spiffe://cluster.local/ns/default/sa/client-%d", last), "deny": shopID} {
			b.Run(fmt.Sprintf("%s/rules=%d", name, n), func(b *testing.B) {
				r := asks(b, peer, "10.0.0.9:8080")
				r.Workload = gw
				if d := p.Decide(r); d.Allow != (name == "allow") {
					b.Fatalf("Decide = %+v", d)
				}
				b.ReportAllocs()
				for b.Loop() {
					p.Decide(r)
				}
			})
		}
	}
}

// A snapshot of 100,000 rules is small.
func TestSnapshotIsSmall(t *testing.T) {
	const n = 100_000
	sets := []Rules{{Name: "many"}}
	for _, one := range manyRules(n) {
		sets[0].Rules = append(sets[0].Rules, one.Rules[0])
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	p := compileSets(t, sets...)
	texts := 0
	for i := range sets[0].Rules { // which the snapshot keeps
		for _, s := range sets[0].Rules[i].From {
			for _, one := range append(s.Principals, s.Namespaces...) {
				texts += len(one)
			}
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := float64(int64(after.HeapAlloc)-int64(before.HeapAlloc)+int64(texts)) / n
	t.Logf("%.0f bytes a rule", each)
	if each > 200 {
		t.Errorf("a rule takes %.0f bytes, want at most 200", each)
	}
	runtime.KeepAlive(p)
	runtime.KeepAlive(sets)
}

// Of rules for peers without an identity that of the narrowest scope counts, and of one scope the first.
func TestPeerRules(t *testing.T) {
	all := PeerRule{Name: "all", Strict: true}
	own := PeerRule{Name: "own", Scope: Scope{Own: true}}
	mine := PeerRule{Name: "mine", Scope: Scope{Namespace: "default", Labels: map[string]string{"app": "gw"}}, Strict: true, Ports: map[uint16]bool{9090: false}}
	for _, tt := range []struct {
		name  string
		rules []PeerRule
		dst   string
		want  string // the rule that refuses, "" for none
	}{
		{"none", nil, "10.0.0.9:8080", ""},
		{"for all", []PeerRule{all}, "10.0.0.9:8080", "all"},
		{"a namespace before all", []PeerRule{all, own}, "10.0.0.9:8080", ""},
		{"labels before a namespace", []PeerRule{own, all, mine}, "10.0.0.9:8080", "mine"},
		{"a port before its rule", []PeerRule{own, all, mine}, "10.0.0.9:9090", ""},
		{"one that leaves it to the wider", []PeerRule{{Name: "unset", Scope: Scope{Own: true}, Unset: true}, all}, "10.0.0.9:8080", "all"},
		{"of another workload", []PeerRule{{Name: "other", Scope: Scope{Namespace: "default", Labels: map[string]string{"app": "x"}}, Strict: true}}, "10.0.0.9:8080", ""},
		{"the first of two", []PeerRule{{Name: "one", Strict: true}, {Name: "two"}}, "10.0.0.9:8080", "one"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := Compile(Config{Peers: tt.rules, Allow: []string{"any"}, Namespace: "default"})
			if err != nil {
				t.Fatal(err)
			}
			d := p.Decide(asks(t, "", tt.dst))
			if d.Allow != (tt.want == "") || !d.Allow && d.Rule != tt.want {
				t.Errorf("Decide = %v by %s, want it to be refused by %q", d.Allow, d.Rule, tt.want)
			}
			if d := p.Decide(asks(t, webID, tt.dst)); !d.Allow {
				t.Errorf("who has an identity is refused by %s", d.Rule)
			}
		})
	}
}

// BenchmarkCompile10000 compiles 10,000 AuthorizationPolicies of Istio that were parsed, of 100 namespaces: one in ten is a DENY, and
// each has two rules.
func BenchmarkCompile10000(b *testing.B) {
	const n = 10_000
	specs, objects := make([]AuthorizationSpec, n), make([]Object, n)
	for i := range n {
		specs[i] = AuthorizationSpec{
			Selector: WorkloadSelector{MatchLabels: map[string]string{"app": fmt.Sprintf("app-%d", i)}},
			Rules: []AuthorizationRule{
				{From: []RuleFrom{{Source{Principals: []string{fmt.Sprintf("cluster.local/ns/ns-%d/sa/client-%d", i%100, i), "cluster.local/ns/ops/*"}}}},
					To: []RuleTo{{Operation{Ports: []string{"8080", "8443"}, Methods: []string{"GET", "POST"}, Paths: []string{"/api/*"}}}}},
				{From: []RuleFrom{{Source{IPBlocks: []string{fmt.Sprintf("10.%d.%d.0/24", i>>8&0xff, i&0xff)}}}}, When: []Condition{{Key: "request.headers[x-team]", Values: []string{"blue"}}}},
			},
		}
		if i%10 == 0 {
			specs[i].Action = "DENY"
		}
		objects[i] = Object{Name: fmt.Sprintf("p-%d", i), Namespace: fmt.Sprintf("ns-%d", i%100), Place: func(string) Place { return Place{"p.yaml", i + 1} }}
	}
	b.ReportAllocs()
	for b.Loop() {
		sets := make([]Rules, n)
		for i := range specs {
			var problems []error
			if sets[i], problems = specs[i].Set(&objects[i]); len(problems) > 0 {
				b.Fatal(problems[0])
			}
		}
		if _, err := Compile(Config{Rules: sets, Namespace: "ns-1", TrustDomain: "cluster.local"}); err != nil {
			b.Fatal(err)
		}
	}
}

package policy

import (
	"errors"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestObligations is what has to be done with a request by web for 10.0.0.9:8080.
func TestObligations(t *testing.T) {
	port := func(p string) []Rule {
		return []Rule{{Place: Place{"p.yaml", 3}, To: []Operation{{Ports: []string{p}}}}}
	}
	method := []Rule{{To: []Operation{{Methods: []string{"GET"}}}}}
	ask := func(who string, rules []Rule) Rules {
		return Rules{Name: "ask", Action: ActionAsk, Authorizer: who, Rules: rules}
	}
	audit := func(rules []Rule) Rules { return Rules{Name: "audit", Action: ActionAudit, Rules: rules} }
	limited := Rules{Name: "limited", Rules: port("8080"), Limit: &Limit{FlowsPerSecond: 2.5, Quota: 10}, Headers: []Header{{"X-Team", "blue"}, {"a", ""}}}
	limit := &Limit{Place: Place{"p.yaml", 3}, Name: "limited", FlowsPerSecond: 2.5, Burst: 3, Quota: 10, Period: 24 * time.Hour}
	headers := []Header{{"a", ""}, {"x-team", "blue"}}
	for _, tt := range []struct {
		name string
		sets []Rules
		want *Obligations
		deny bool
		free bool // of allocations
	}{
		{"none", []Rules{{Name: "a", Rules: port("8080")}}, nil, false, true},
		{"of the rule that allows", []Rules{limited}, &Obligations{Limits: []*Limit{limit}, Headers: headers}, false, true},
		{"not of another", []Rules{limited, {Name: "d", Action: ActionDeny, Rules: port("8080")}}, nil, true, true},
		{"audit of what is allowed by default", []Rules{audit(port("8080"))}, &Obligations{Audit: true}, false, true},
		{"audit of something else", []Rules{audit(port("1"))}, nil, false, true},
		{"audit of what is refused", []Rules{audit(port("8080")), {Name: "d", Action: ActionDeny, Rules: port("8080")}}, &Obligations{Audit: true}, true, true},
		{"audit of what cannot be ruled out", []Rules{audit(method)}, &Obligations{Audit: true}, false, true},
		{"audit that is off", []Rules{{Name: "x", Action: ActionAudit, Mode: ModeOff, Rules: port("8080")}}, nil, false, true},
		{"ask", []Rules{ask("one", port("8080"))}, &Obligations{Ask: []string{"one"}}, false, true},
		{"ask about something else", []Rules{ask("one", port("1"))}, nil, false, true},
		{"ask for nothing", []Rules{ask("one", nil)}, nil, false, true},
		{"ask about what cannot be ruled out", []Rules{ask("one", method)}, &Obligations{Ask: []string{"one"}}, false, true},
		{"ask does not allow", []Rules{ask("one", port("8080")), {Name: "a", Rules: port("1")}}, nil, true, true},
		{"nor stands above a deny", []Rules{ask("one", port("8080")), {Name: "d", Action: ActionDeny, Rules: port("8080")}}, nil, true, true},
		{"ask and audit", []Rules{ask("one", port("8080")), audit(port("8080"))}, &Obligations{Ask: []string{"one"}, Audit: true}, false, true},
		{"ask one twice", []Rules{ask("one", port("8080")), ask("one", port("8080"))}, &Obligations{Ask: []string{"one"}}, false, true},
		{"ask several", []Rules{ask("two", port("8080")), ask("one", port("8080")), ask("three", port("1"))}, &Obligations{Ask: []string{"one", "two"}}, false, false},
		{"all together", []Rules{limited, ask("two", port("8080")), audit(port("8080"))}, &Obligations{Ask: []string{"two"}, Audit: true, Limits: []*Limit{limit}, Headers: headers}, false, false},
		{"a rule with obligations, and audit", []Rules{limited, audit(port("8080"))}, &Obligations{Audit: true, Limits: []*Limit{limit}, Headers: headers}, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := Compile(Config{Rules: tt.sets, Authorizers: []string{"one", "two", "three"}})
			if err != nil {
				t.Fatal(err)
			}
			r := asks(t, webID, "10.0.0.9:8080")
			d := p.Decide(r)
			if d.Allow == tt.deny || !reflect.DeepEqual(d.Obligations, tt.want) {
				t.Errorf("Decide = %v with %+v, want %v with %+v", d.Allow, d.Obligations, !tt.deny, tt.want)
			}
			if n := testing.AllocsPerRun(100, func() { p.Decide(r) }); tt.free && n != 0 && d.Rule != "no-allow" {
				t.Errorf("Decide costs %v allocations", n)
			}
		})
	}
}

// A hop asks without an allocation of its own: the Request stays where it is.
func TestDecideKeepsTheRequestOffTheHeap(t *testing.T) {
	p := compileSets(t, Rules{Name: "a", Rules: []Rule{{To: []Operation{{Ports: []string{"1"}}}, CEL: "true"}, {}}})
	peer, self, addr := mustID(t, webID), mustID(t, selfID), netip.MustParseAddr("10.0.0.9")
	if n := testing.AllocsPerRun(100, func() {
		r := Request{Peer: peer, Self: self, Addr: addr, Port: 8080}
		if d := p.Decide(&r); !d.Allow {
			t.Error(d.Reason)
		}
	}); n != 0 {
		t.Errorf("a decision costs %v allocations", n)
	}
}

// A destination whose address is not known yet is asked about and recorded as if it were the one that a rule means.
func TestObligationsUnresolved(t *testing.T) {
	inside := []Rule{{When: []Condition{{Key: "destination.ip", Values: []string{"10.7.0.0/16"}}}}}
	p, err := Compile(Config{Authorizers: []string{"one"}, Rules: []Rules{{Name: "c", Action: ActionAsk, Authorizer: "one", Rules: inside}, {Name: "w", Action: ActionAudit, Rules: inside}}})
	if err != nil {
		t.Fatal(err)
	}
	r := asks(t, webID, "10.0.0.9:8080")
	for addr, want := range map[string]bool{"": true, "10.7.0.1": true, "10.8.0.1": false} {
		r.Host, r.Unresolved, r.Addr = "db.internal", true, netip.Addr{}
		if addr != "" {
			r.Addr = netip.MustParseAddr(addr)
		}
		if d := p.Decide(r); !d.Allow || (d.Obligations != nil) != want {
			t.Errorf("of address %q: %v with %+v, want obligations: %v", addr, d.Allow, d.Obligations, want)
		}
	}
}

// Figures and fields that cannot be meant are faults with their path.
func TestObligationFaults(t *testing.T) {
	for _, tt := range []struct {
		name string
		set  Rules
		want []string
	}{
		{"an authorizer that nobody knows", Rules{Action: ActionAsk, Authorizer: "none"}, []string{"set.authorizer: \"none\"", "known are one"}},
		{"and of Istio's", Rules{Action: ActionAsk, Authorizer: "none", Wrapped: true}, []string{"set.provider.name: "}},
		{"no authorizer", Rules{Action: ActionAsk}, []string{"set.authorizer: is missing"}},
		{"an authorizer of a rule that allows", Rules{Authorizer: "one"}, []string{"set.authorizer: \"one\" would be asked by nobody"}},
		{"ask in report", Rules{Action: ActionAsk, Authorizer: "one", Mode: ModeReport}, []string{"set.mode: report is for"}},
		{"audit in report", Rules{Action: ActionAudit, Mode: ModeReport}, []string{"set.mode: report is for"}},
		{"limits of a deny", Rules{Action: ActionDeny, Limit: &Limit{Flows: 1}}, []string{"set.limits: is for rules that allow"}},
		{"fields of an audit", Rules{Action: ActionAudit, Headers: []Header{{"a", "b"}}}, []string{"set.headers: is for rules that allow"}},
		{"no figure", Rules{Limit: &Limit{}}, []string{"set.limits: has no figure"}},
		{"negative", Rules{Limit: &Limit{FlowsPerSecond: -1, Burst: -1, Flows: -1, BytesPerSecond: -1, Quota: -1, Period: -1}},
			[]string{"set.limits.flowsPerSecond", "limits.burst", "limits.flows:", "limits.bytesPerSecond", "limits.quota", "limits.period"}},
		{"absurd", Rules{Limit: &Limit{FlowsPerSecond: 1e12, Burst: 2e9, Flows: 2e9, BytesPerSecond: 1 << 60, Quota: 1 << 62, Period: 1000 * 24 * time.Hour}},
			[]string{"limits.flowsPerSecond", "limits.burst", "limits.flows:", "limits.bytesPerSecond", "limits.quota", "limits.period"}},
		{"no number", Rules{Limit: &Limit{FlowsPerSecond: math.NaN()}}, []string{"limits.flowsPerSecond"}},
		{"without end", Rules{Limit: &Limit{FlowsPerSecond: math.Inf(1)}}, []string{"limits.flowsPerSecond"}},
		{"next to nothing", Rules{Limit: &Limit{FlowsPerSecond: 1e-9}}, []string{"limits.flowsPerSecond"}},
		{"parts without the whole", Rules{Limit: &Limit{Burst: 1, Period: time.Hour}}, []string{"limits.burst: stands without", "limits.period: stands without"}},
		{"a period too short", Rules{Limit: &Limit{Quota: 1, Period: time.Millisecond}}, []string{"limits.period"}},
		{"fields that are none", Rules{Headers: []Header{{"", "x"}, {"x y", "x"}, {":path", "x"}, {"x", "a\r\nb"}, {"y", " a"}, {"z", strings.Repeat("a", 5000)}}},
			[]string{`headers.: "" is no name`, `headers.x y: `, `headers.:path: `, `headers.x: "a\r\nb" is no value`, `headers.y: " a"`, "headers.z: "}},
		{"fields of the connection", Rules{Headers: []Header{{"Connection", "x"}, {"Host", "x"}, {"content-length", "1"}}}, []string{"headers.Connection", "headers.Host", "headers.content-length"}},
		{"a field twice", Rules{Headers: []Header{{"X-a", "x"}, {"x-A", "y"}}}, []string{"headers.x-A: \"x-A\" is there twice"}},
		{"too many fields", Rules{Headers: slices.Repeat([]Header{{"a", "b"}}, 33)}, []string{"set.headers: has 33 fields"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.set.At = "set"
			_, err := Compile(Config{Rules: []Rules{tt.set}, Authorizers: []string{"one"}})
			var fault *RuleError
			if !errors.As(err, &fault) {
				t.Fatalf("Compile = %v, want a fault", err)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("no %q in\n%v", want, err)
				}
			}
		})
	}
	if _, err := Compile(Config{Authorizers: make([]string, 65)}); err == nil || !strings.Contains(err.Error(), "authorizers") {
		t.Errorf("65 authorizers: %v", err)
	}
}

package policy_test

import (
	"fmt"

	"culvert/pki/spiffe"
	"culvert/policy"
)

// decider is what a hop asks; the interface stands where it is used.
type decider interface {
	Decide(*policy.Request) policy.Decision
}

// deciderFunc makes a decider of a function.
type deciderFunc func(*policy.Request) policy.Decision

// Decide calls f.
func (f deciderFunc) Decide(r *policy.Request) policy.Decision { return f(r) }

// A program may put its own decider in front of a Policy.
func ExamplePolicy_Decide() {
	rules, err := policy.Compile(policy.Config{
		Rules: []policy.Rules{{Name: "orders", Rules: []policy.Rule{{
			From: []policy.Source{{Namespaces: []string{"shop"}}},
			CEL:  `destination.port == 8080 || peer.service_account == "admin"`,
		}}}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	closed := map[uint16]bool{9090: true}
	var d decider = deciderFunc(func(r *policy.Request) policy.Decision {
		if closed[r.Port] {
			return policy.Decision{Policy: "closing", Rule: "port", Reason: "the port is closed for now"}
		}
		return rules.Decide(r)
	})
	peer, err := spiffe.New("cluster.local", "shop", "web")
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, port := range []uint16{8080, 8081, 9090} {
		answer := d.Decide(&policy.Request{Peer: peer, Port: port})
		fmt.Println(port, answer.Allow, answer.Rule)
	}
	// Output:
	// 8080 true orders
	// 8081 false no-allow
	// 9090 false port
}

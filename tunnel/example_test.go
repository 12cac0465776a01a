package tunnel_test

import (
	"fmt"

	"culvert/pki/spiffe"
	"culvert/policy"
	"culvert/tunnel"
)

// shop decides about the peers that the policy of the configuration allows: nobody while it is closed, and guests get
// ten connections and a MiB a second each.
type shop struct {
	base   *policy.Policy
	closed func() bool
	guest  policy.Obligations
}

func (s *shop) Decide(r *policy.Request) policy.Decision {
	d := s.base.Decide(r)
	switch {
	case !d.Allow:
	case s.closed():
		return policy.Decision{Policy: "shop", Rule: "closed", Reason: "the shop is closed"}
	case r.Peer.Namespace() == "guests":
		d.Obligations = &s.guest
	}
	return d
}

// A program puts its own decisions in the place of the policy that it gives to tunnel.Listen, or to tunnel.New.
func ExampleDecider() {
	closed := false
	env := tunnel.Env{Decide: func(base *policy.Policy) (tunnel.Decider, error) {
		return &shop{
			base: base, closed: func() bool { return closed },
			guest: policy.Obligations{Limits: []*policy.Limit{{Name: "guests", Flows: 10, BytesPerSecond: 1 << 20}}},
		}, nil
	}}
	// l, err := tunnel.Listen(ctx, ":15008", env, config) would ask it about each connection, as is done here.
	config := policy.Config{Allow: []string{"cluster.local/ns/guests/*"}}
	base, err := policy.Compile(config)
	if err != nil {
		fmt.Println(err)
		return
	}
	decider, err := env.Decide(base)
	if err != nil {
		fmt.Println(err)
		return
	}
	ask := func(peer string) {
		id, err := spiffe.Parse(peer)
		if err != nil {
			fmt.Println(err)
			return
		}
		d := decider.Decide(&policy.Request{Peer: id, Port: 80})
		fmt.Println(id.ServiceAccount(), d.Allow, d.Rule, d.Obligations != nil)
	}
	ask("spiffe://cluster.local/ns/guests/sa/ada")
	ask("spiffe://cluster.local/ns/others/sa/bob")
	closed = true
	ask("spiffe://cluster.local/ns/guests/sa/ada")
	// Output:
	// ada true allow[0] true
	// bob false same-namespace false
	// ada false closed false
}

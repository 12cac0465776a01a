// Package policy decides, as a pure function, whether one hop lets a flow pass: who the peer is (Policy)
// and, where this gateway itself resolves or dials the destination, whether that destination may be
// reached from here (Egress). It opens nothing, resolves nothing and keeps no state; what Compile and
// CompileEgress return never changes and may be used from any number of goroutines.
//
// # Peers
//
// The default policy lets in a peer that has the trust domain and the namespace of this gateway, or its very
// identity. Allow entries add to it and are compared with the SPIFFE ID without "spiffe://":
//
//	cluster.local/ns/shop/sa/orders   exactly this identity
//	cluster.local/ns/shop/*           every identity that begins so
//	*/sa/orders                       every identity that ends so, in any trust domain
//	*                                 every peer that has an identity
//	any                               every peer, also one without an identity
//
// Only "any" ever lets in a peer without an identity, and only an entry or "any" a self-made key, which everybody can make.
//
// # Rules
//
// Config.Rules are sets of rules that allow, deny, ask an authorizer or have the flow recorded, for some workloads or all; of
// Istio's AuthorizationPolicy AuthorizationSpec makes one. PeerRule and TokenRule say who has to show an identity, and which
// tokens count. What a hop cannot see it does not know: a rule that allows needs what it asks for, and all others take what
// they cannot rule out. Rules are found by an index of identities, namespaces, ports and addresses, so that a decision takes as
// long among ten thousand as among ten.
//
// A rule may have an expression of CEL (Rule.CEL) over typed attributes: peer.principal, peer.trust_domain, peer.namespace,
// peer.service_account, peer.key, source.ip, source.port, remote.ip, destination.ip, destination.port, destination.host, sni,
// listener, request.method, request.path, request.host, request.headers, token.issuer, token.subject, token.audiences,
// token.claims, workload.name, workload.namespace, workload.labels and time. It is bounded when it is compiled and when it
// runs, tried when all else of the rule matches, and not known when it fails.
//
// # Obligations
//
// A Decision that allows may oblige the hop to ask authorizers, to count the flow against limits and to add fields: of the rule
// that allows, and of all rules that ask or audit and match. This package carries out none of it.
//
// # Other deciders
//
// Who decides in another way writes a function of a Request; there is nothing to register:
//
//	type decider interface{ Decide(*policy.Request) policy.Decision } // where it is used; *Policy is one
//
//	type deciderFunc func(*policy.Request) policy.Decision
//
//	func (f deciderFunc) Decide(r *policy.Request) policy.Decision { return f(r) }
//
// It has to be as this one: it does not block, does not keep the Request, and may be called concurrently.
//
// # Destinations
//
// The egress guard keeps the flows of other hosts away from what only this host or its network can reach:
// loopback, link-local, metadata services, private and special-purpose ranges (see Classify), and the ports
// 22, 25 and those of gateways. Egress entries turn it into an allow list, in which an entry also lifts the
// guard for what it names; CompileEgress has the rules. The caller asks twice, so that a name cannot be
// rebound between check and use:
//
//	if d := egress.Name(host, port); !d.Allow { … }        // before resolving
//	addrs := resolve(host)                                 // once
//	if d := egress.Addrs(host, addrs, port); !d.Allow { … } // then dial one of addrs, never host
package policy

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
// Only "any" ever lets in a peer without an identity.
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

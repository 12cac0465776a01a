// Package tunnel carries flows through mutually authenticated tunnels: from where they are accepted to their
// destination, or to the next gateway. It knows no wire format of its own.
//
// A flow is one accepted connection with its destination and its peer. Whatever role a gateway plays, all
// flows take one path, which is Gateway.Carry in relay.go:
//
//	accept_capture.go  a program of this host, caught by a capture.Way ─┐
//	accept_connect.go  a peer's CONNECT on an hbone listener           ─┤
//	                                                                     ▼
//	relay.go           decide → open → answer → relay → record
//	                                │
//	open_direct.go     resolve once, guard, dial the address that was checked
//	open_connect.go    a tunnel at the next hop, through the chain of the route
//	open_reverse.go    a tunnel at an agent, on the connection that it has dialled (reverse.go, registry.go; the agent: agent.go)
//	service.go         an endpoint of the service that it names, and another one when that fails
//	balance.go         the same for a hop with several endpoints; tunnel/endpoint picks
//	pool.go            one of the connections to that hop, or a new one
//	transport_h2.go    CONNECT over TLS and HTTP/2 (HBONE)
//
// Every hop authenticates its peer and decides by itself: a route says where a flow goes (route.go), policy
// says whether the peer may (package policy), and the egress guard whether this gateway may connect there. A
// refusal becomes the answer in the words of the accepted side; status.go is the one table for that.
//
// Bytes are carried by relay_copy.go. Each direction ends by itself: the end of one side is passed on
// as an end, a break as a break, and neither is taken for the other. An idle flow holds no buffer and at
// most one goroutine, with the smallest stack there is.
//
// What policy allows it may bound: limit.go counts flows and bytes for each identity, and limit_pace.go has a direction wait
// whose bytes are counted. Such a direction leaves the fast ways and waits in its own goroutine, and nobody waits for it.
// A program puts its own decisions in the place of policy with Env.Decide.
//
// A Gateway is what cmd/gateway runs. A Go program that wants no gateway beside it uses Dialer and Listen,
// which speak of net.Conn and net.Listener.
//
// # Locks
//
// In the order in which they may be held together: Gateway.mu, flowShard.mu, Flow.mu, pool.mu, group.mu, limitShard.mu. The
// locks of a transport come last; none of them is held while something is waited for.
package tunnel

// Package names answers the DNS questions of captured apps, so that flows keep their names.
//
// A captured flow carries only an address. Where an app asked for the name before, through this package, there is more
// to be known: names that only the mesh knows are answered with virtual addresses, and a flow to one of them is a flow to
// its name. Other questions go on to a resolver, over connections that whoever uses the package dials, such as through a
// tunnel.
//
//	app ── question ──▶ Server ──▶ virtual address, of names that the mesh knows
//	                       │
//	                       ├──▶ cache, as long as the answer's TTL
//	                       └──▶ resolver of the zone, of the configuration, or the one that the app has asked
//
// What a resolver answers is believed only as far as that goes: it must be the answer to the question, in time, and have
// no address of this host or of its link, which a name of somebody else has no business with (DNS rebinding). Only
// the records of the name and of its aliases are passed on.
//
// Resolver (lookup.go) asks for the gateway itself: where it connects to. It asks for both families at once, and keeps
// what it was told for as long as that says.
//
// server.go holds the way of a question, upstream.go that to a resolver, believe.go what is made of its answer.
package names

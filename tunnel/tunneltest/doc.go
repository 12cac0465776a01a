// Package tunneltest puts gateways into one process for tests and benchmarks: a network in memory
// (memnet), identities of a CA made on the spot, and pairs of an entry and an exit gateway that are joined
// by real TLS and HTTP/2 without a socket.
//
//	pair := tunneltest.NewPair(t, tunneltest.Options{})
//	c, err := pair.Dial(ctx, "10.0.0.2:80") // through both gateways
//
// It stands in for cmd/gateway and pki, and is for tests only: its TLS checks chain, trust domain and
// namespace, and nothing else.
package tunneltest

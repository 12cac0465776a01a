// Command compare measures pairs of proxies side by side: a Culvert entry and exit, a relay that has a TLS
// connection for every flow, pairs on x/net/http2 and grpc-go, Envoy, OpenSSH, and a direct connection as the
// bound. Every pair is started in turn on loopback, carries the same load from the same clients to the same
// target, and is ended before the next one starts; this is repeated for several rounds. `make compare` runs it
// and keeps what came out in bench/RESULTS.md.
//
// Called as `compare pair KIND ROLE …` it is one proxy of the pairs written in Go, in a process of its own.
package main

// Package bench measures whole gateways. Its benchmarks run with `make bench`; what the HTTP/2 stack
// costs by itself is measured beside it, in tunnel/h2.
package bench

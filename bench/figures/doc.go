// Command figures runs the Go benchmarks of identity and policy and writes what they reach beside the goals, into
// bench/IDENTITY.md. `make figures` calls it.
package main

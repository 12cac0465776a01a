// Package sim is what the simulations of package h2 and of whole gateways have in common: seeds, and traffic that
// checks itself.
//
// Run calls a simulation for many seeds, each in synthetic time (testing/synctest). A seed decides everything that
// the simulation draws: limits, links, flows and faults. The order in which goroutines run between two moments is
// the scheduler's, so a seed that has failed once may need some runs to fail again.
//
// A Flow is a script for both ends of a stream: who sends how much, in which pieces, with which pauses, who ends
// first and how. The bytes are known beforehand, so each end can tell whether what it reads is the beginning of
// what the other one writes, and whether an end that looks clean is one.
package sim

package main

import (
	"os"
	"runtime/debug"
)

// Shares of memory. What is available is the machine's memory or the least control group limit.
const (
	// defaultMemoryShare of what is available is the process budget when nothing is configured: a
	// gateway is rarely alone on its host.
	defaultMemoryShare = 2
	// bufferShare of the process budget may be held by stream buffers. The other half is for TLS and
	// stream state, goroutine stacks and the garbage between two collections.
	bufferShare = 2
	// unknownMemory is assumed when the system does not say how much there is.
	unknownMemory = 1 << 30
	// leastMemory is the smallest budget that carries more than a few flows.
	leastMemory = 32 << 20
)

// processMemory is the budget of the whole process in bytes: as configured, or a share of what is
// available.
func processMemory(configured Size) int64 {
	if configured > 0 {
		return int64(configured)
	}
	available := availableMemory()
	if available == 0 {
		available = unknownMemory
	}
	return max(available/defaultMemoryShare>>20<<20, leastMemory) // whole MiB, for people
}

// limitMemory makes the garbage collector keep the process near its budget. A GOMEMLIMIT in the
// environment was meant, so it stays.
func limitMemory(total int64) {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(total)
	}
}

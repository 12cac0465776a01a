//go:build !race

package tunnel_test

// raceCost is 1 without the race detector.
const raceCost = 1

//go:build race

package tunnel_test

// raceCost is what the race detector multiplies memory by.
const raceCost = 20

//go:build race

package h2_test

// raceCost is what the race detector multiplies memory by.
const raceCost = 20

//go:build !race

package h2_test

// raceCost is 1 without the race detector.
const raceCost = 1

package main

import (
	"fmt"
	"strings"
)

// goal is a figure that Culvert is to reach, as a share of what another pair reaches in the same run.
type goal struct {
	what    string
	columns []string // each has to reach it
	to      string   // pair to compare with, "" for a figure as it is
	bound   float64
	atLeast bool // else at most
	unit    string
}

var goals = []goal{
	{what: "one stream, down and up, MB/s", columns: []string{colDown1, colUp1}, to: tlsRelayName, bound: 1.15, atLeast: true},
	{what: "eight streams, down and up, MB/s", columns: []string{colDown8, colUp8}, to: tlsRelayName, bound: 1.0, atLeast: true},
	{what: "processor seconds per GB", columns: []string{colCPU}, to: tlsRelayName, bound: 0.92},
	{what: "round trip, p50", columns: []string{colRTT50}, to: tlsRelayName, bound: 0.9},
	{what: "round trip beside a bulk stream, p99", columns: []string{colBeside99}, to: envoyName, bound: 0.7},
	{what: "streams opened and closed a second", columns: []string{colOpens}, to: netHTTP2Name, bound: 1.6, atLeast: true},
	{what: "processor time for each of them", columns: []string{colOpenCPU}, to: netHTTP2Name, bound: 0.45},
	{what: "memory of an idle stream", columns: []string{colIdle}, bound: 12, unit: " KB"},
	{what: "one stream down over 100 ms, MB/s", columns: []string{colFar}, to: tlsRelayName, bound: 0.8, atLeast: true},
}

// want says what g asks for.
func (g *goal) want() string {
	sign := "≤"
	if g.atLeast {
		sign = "≥"
	}
	if g.to == "" {
		return fmt.Sprintf("%s %.3g%s", sign, g.bound, g.unit)
	}
	return fmt.Sprintf("%s %.2f × %s", sign, g.bound, g.to)
}

// reached says what Culvert has, and "reached", "missed" or "not measured".
func (g *goal) reached(r *results) (has, verdict string) {
	var parts []string
	verdict = "reached"
	for _, column := range g.columns {
		x, ok := r.median(culvertName, column)
		if g.to != "" {
			x, ok = r.ratio(culvertName, g.to, column)
		}
		if !ok {
			return "–", "not measured"
		}
		if g.atLeast && x < g.bound || !g.atLeast && x > g.bound {
			verdict = "**missed**"
		}
		if g.to == "" {
			parts = append(parts, fmt.Sprintf("%.1f%s", x, g.unit))
		} else {
			parts = append(parts, fmt.Sprintf("%.2f ×", x))
		}
	}
	return strings.Join(parts, ", "), verdict
}

package sim

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"testing/synctest"
)

// How many seeds are run: always, and with SOAK set.
const (
	few  = 50
	many = 1000
)

// Found is a seed that has failed once, and what it has found.
type Found struct {
	Seed uint64
	What string
}

// Run calls simulate in a bubble of its own for every seed, as a subtest that is named by it: the seeds that were
// found before, then 1 to 50, or 1 to 1000 with SOAK=1 in the environment. SEED=N runs that one, and SEED=N-M
// those from N to M. It ends with the first seed that fails.
func Run(t *testing.T, found []Found, simulate func(t *testing.T, seed uint64)) {
	first, last := uint64(1), uint64(few)
	if os.Getenv("SOAK") != "" {
		last = many
	}
	if s := os.Getenv("SEED"); s != "" {
		var err error
		if first, last, err = parse(s); err != nil {
			t.Fatal(err)
		}
		found = nil
	}
	run := func(seed uint64, what string) bool {
		ok := t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { simulate(t, seed) })
		})
		if !ok {
			t.Errorf("seed %d failed; again with SEED=%d and -run '^%s$'. %s", seed, seed, t.Name(), what)
		}
		return ok
	}
	for _, f := range found {
		if !run(f.Seed, "It has found before: "+f.What) {
			return
		}
	}
	for seed := first; seed <= last; seed++ {
		if !run(seed, "") {
			return
		}
	}
}

// parse reads "N" or "N-M".
func parse(s string) (first, last uint64, err error) {
	if n, _ := fmt.Sscanf(s, "%d-%d", &first, &last); n == 2 && first <= last {
		return first, last, nil
	}
	if first, err = strconv.ParseUint(s, 10, 64); err != nil {
		return 0, 0, fmt.Errorf("SEED=%s: want a number, or two as in 1-50", s)
	}
	return first, first, nil
}

// Rand is chance that begins with seed. Different streams of one seed are independent.
func Rand(seed, stream uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, stream)) }

// Pick returns one of list.
func Pick[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

// Size returns a number from 0 to most, small ones as often as large ones.
func Size(r *rand.Rand, most int) int {
	if r.IntN(12) == 0 {
		return 0
	}
	bits := 0
	for 1<<bits < most {
		bits++
	}
	return r.IntN(min(1<<r.IntN(bits+1), most) + 1)
}

// Chance reports true in one of n cases.
func Chance(r *rand.Rand, n int) bool { return r.IntN(n) == 0 }

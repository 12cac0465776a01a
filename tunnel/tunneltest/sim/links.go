package sim

import (
	"math/rand/v2"
	"time"

	"culvert/tunnel/tunneltest/memnet"
)

// DrawLinks draws the two links of a connection: prompt ones, far ones, narrow ones, with stalls that no keep-alive
// takes for the end. They lose nothing.
func DrawLinks(r *rand.Rand) (out, back memnet.Link) {
	l := memnet.Link{
		Delay:       Pick(r, 0, 0, time.Millisecond, 20*time.Millisecond, 150*time.Millisecond),
		BufferBytes: Pick(r, 0, 0, 1000, 16<<10, 1<<20),
		Seed:        r.Uint64(),
	}
	if Chance(r, 4) && l.BufferBytes != 1000 {
		l.BytesPerSecond = Pick(r, 200_000, 1_000_000, 10_000_000)
	}
	if l.Delay > 0 && Chance(r, 3) {
		l.Jitter = l.Delay
	}
	if Chance(r, 2) {
		l.PieceBytes = Pick(r, 300, 1500, 20_000)
	}
	if Chance(r, 2) {
		l.ReadBytes = Pick(r, 100, 1500, 20_000)
	}
	out, back = l, l
	back.Seed++
	if Chance(r, 3) {
		out.Stalls = drawStalls(r)
	}
	if Chance(r, 3) {
		back.Stalls = drawStalls(r)
	}
	return out, back
}

// drawStalls draws up to three stalls in the first 10 s. None is as long as a handshake may take.
func drawStalls(r *rand.Rand) (list []memnet.Stall) {
	for range 1 + r.IntN(3) {
		list = append(list, memnet.Stall{
			After: time.Duration(r.IntN(10_000)) * time.Millisecond,
			For:   time.Duration(r.IntN(3000)) * time.Millisecond,
		})
	}
	return list
}

// DrawCut makes one of the links break after a random number of bytes, at most most.
func DrawCut(r *rand.Rand, out, back *memnet.Link, most int) {
	l := Pick(r, out, back)
	l.CutAfterBytes = 1 + int64(Size(r, most))
}

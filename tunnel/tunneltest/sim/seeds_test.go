package sim

import "testing"

func TestParse(t *testing.T) {
	for in, want := range map[string][2]uint64{"7": {7, 7}, "3-9": {3, 9}, "18446744073709551615": {1<<64 - 1, 1<<64 - 1}} {
		if a, b, err := parse(in); err != nil || a != want[0] || b != want[1] {
			t.Errorf("parse(%q) = %d, %d, %v, want %v", in, a, b, err, want)
		}
	}
	for _, in := range []string{"", "x", "9-3", "-1"} {
		if _, _, err := parse(in); err == nil {
			t.Errorf("parse(%q) succeeded", in)
		}
	}
}

func TestSize(t *testing.T) {
	r := Rand(1, 1)
	var none, small, large int
	for range 10_000 {
		switch n := Size(r, 1<<20); {
		case n < 0 || n > 1<<20:
			t.Fatalf("Size = %d", n)
		case n == 0:
			none++
		case n < 1000:
			small++
		case n > 100_000:
			large++
		}
	}
	if none == 0 || small < 1000 || large < 500 {
		t.Errorf("%d empty, %d small, %d large of 10000, want all kinds", none, small, large)
	}
}

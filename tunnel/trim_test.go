package tunnel

import (
	"testing"
	"time"
)

func TestTrimIsDue(t *testing.T) {
	type look struct {
		silent int
		live   int64
		due    bool
	}
	for name, looks := range map[string][]look{
		"few flows":            {{900, 900, false}, {0, 900, false}, {0, 0, false}, {0, 0, false}},
		"many fall silent":     {{2000, 3000, false}, {1000, 3000, false}, {0, 3000, true}, {0, 3000, false}},
		"many end":             {{0, 5000, false}, {0, 5000, false}, {0, 3000, false}, {0, 400, false}, {0, 390, true}, {0, 390, false}},
		"some end, and again":  {{0, 3000, false}, {0, 3000, false}, {0, 2900, false}, {0, 2450, false}, {0, 2000, false}, {0, 2000, true}},
		"a steady coming":      {{50, 1200, false}, {50, 1210, false}, {50, 1190, false}, {50, 1200, false}},
		"silent, slowly":       {{90, 1200, false}, {90, 1200, false}, {900, 1200, false}, {0, 1200, true}},
		"silent, too soon":     {{1000, 1000, false}, {0, 1000, true}, {1000, 2000, false}, {0, 2000, false}},
		"silent, not too soon": {{1000, 1000, false}, {0, 1000, true}, {1000, 2000, false}, {-1, 0, false}, {0, 2000, true}},
	} {
		var tr trimmer
		now := time.Now()
		for i, l := range looks {
			if l.silent < 0 { // time goes by
				now = now.Add(trimPause)
				continue
			}
			now = now.Add(sweepInterval)
			if due := tr.due(l.silent, l.live, 0, now); due != l.due {
				t.Errorf("%s: due at look %d: %v, want %v", name, i, due, l.due)
			}
		}
	}
}

// TestTrimAfterManyConnections has agents come, which have no flows: their handshakes leave as much behind.
func TestTrimAfterManyConnections(t *testing.T) {
	type look struct {
		conns int64
		due   bool
	}
	for name, looks := range map[string][]look{
		"few":                      {{150, false}, {150, false}, {150, false}},
		"many, once":               {{600, false}, {1000, false}, {1000, true}, {1000, false}, {1000, false}},
		"more of them after those": {{1000, false}, {1000, true}, {1150, false}, {1150, false}, {1350, false}, {1350, false}},
		"one by one":               {{1, false}, {2, false}, {3, false}},
	} {
		var tr trimmer
		now := time.Now()
		for i, l := range looks {
			now = now.Add(sweepInterval)
			if due := tr.due(0, 0, l.conns, now); due != l.due {
				t.Errorf("%s: due at look %d: %v, want %v", name, i, due, l.due)
			}
		}
	}
}

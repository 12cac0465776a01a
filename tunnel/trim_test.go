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
			if due := tr.due(l.silent, l.live, now); due != l.due {
				t.Errorf("%s: due at look %d: %v, want %v", name, i, due, l.due)
			}
		}
	}
}

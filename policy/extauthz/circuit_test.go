package extauthz

import (
	"testing"
	"time"
)

func TestCircuitRestsAfterFailuresInARow(t *testing.T) {
	var c circuit
	now := time.Now()
	fail := func() (rests bool) {
		turn := c.enter(now)
		if !turn.ask {
			t.Fatal("nothing may be asked")
		}
		return c.failed(turn, now, "down")
	}
	for range 3 {
		for range failuresToRest - 1 {
			if fail() {
				t.Fatal("it rests before its time")
			}
		}
		c.answered(c.enter(now)) // not in a row
	}
	for range failuresToRest - 1 {
		fail()
	}
	if !fail() {
		t.Fatal("it does not rest after its failures")
	}
	if got := c.enter(now.Add(restTime - 1)); got.ask || got.why != "down" || got.left != 1 {
		t.Errorf("a turn while it rests = %+v, want none, with the last failure and the time left", got)
	}
	if _, yes := c.rests(now); !yes {
		t.Error("it does not say that it rests")
	}
}

func TestCircuitTriesOneAtATime(t *testing.T) {
	now := time.Now()
	resting := func() *circuit {
		var c circuit
		for range failuresToRest {
			c.failed(c.enter(now), now, "down")
		}
		return &c
	}
	later := now.Add(restTime)
	t.Run("one", func(t *testing.T) {
		c := resting()
		if _, yes := c.rests(later); yes {
			t.Error("it rests for longer than its time")
		}
		if first := c.enter(later); !first.ask || !first.try {
			t.Fatalf("the first turn = %+v, want that it tries", first)
		}
		if second := c.enter(later); second.ask {
			t.Error("a second one tries too")
		}
	})
	t.Run("fails", func(t *testing.T) {
		c := resting()
		if c.failed(c.enter(later), later, "still") {
			t.Error("it begins to rest a second time")
		}
		if got := c.enter(later.Add(restTime / 2)); got.ask || got.why != "still" {
			t.Errorf("a turn after the trial = %+v, want none", got)
		}
		if got := c.enter(later.Add(restTime)); !got.try {
			t.Errorf("a turn after another rest = %+v, want a trial", got)
		}
	})
	t.Run("answered", func(t *testing.T) {
		c := resting()
		if !c.answered(c.enter(later)) {
			t.Error("it does not say that it is back")
		}
		if got := c.enter(later); !got.ask || got.try {
			t.Errorf("a turn after the answer = %+v, want a plain one", got)
		}
	})
	t.Run("withdrawn", func(t *testing.T) {
		c := resting()
		c.withdrawn(c.enter(later))
		if got := c.enter(later); !got.try {
			t.Errorf("a turn after a trial without an end = %+v, want another trial", got)
		}
	})
	t.Run("late", func(t *testing.T) { // failures of questions that began before it rested
		c := resting()
		trial := c.enter(later)
		c.failed(turn{ask: true}, later, "late")
		if got := c.enter(later); got.ask {
			t.Error("a late failure has let a second one try")
		}
		c.failed(trial, later, "still")
	})
}

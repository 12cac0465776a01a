package h2

import "time"

// oddity is a kind of what a peer may do now and then and what is an attack in numbers.
type oddity uint8

const (
	peerReset    oddity = iota // Config.PeerResets
	ownReset                   // Config.OwnResets
	controlFrame               // Config.Control
	glitch                     // Config.Glitches
	windowUpdate               // Config.WindowUpdates
	splinter                   // Config.Splinters
	numOddities  = iota
)

// String says what there was too much of.
func (o oddity) String() string {
	return [numOddities]string{
		"streams reset before their answer", "stream errors", "control frames or frames on closed streams",
		"oddities", "WINDOW_UPDATE frames", "tiny DATA frames",
	}[o]
}

// rates returns the limit of every kind.
func (c *Config) rates() [numOddities]Rate {
	return [numOddities]Rate{c.PeerResets, c.OwnResets, c.Control, c.Glitches, c.WindowUpdates, c.Splinters}
}

// softShare is the part of the count from which a connection takes leave in good order: it sends GOAWAY and
// lives on, so that the innocent on a connection that many share can end there and go elsewhere (HAProxy's
// glitches-threshold does the same, at 75 %).
const softShare = 0.75

// oddCount is the one count of oddities of a connection. Each kind is a leaking bucket that takes a Rate's
// Burst at once and drains at PerSecond; the count is how full they are together, 1 being the limit, so
// that nobody gets further by a bit of everything. Owned by readLoop.
type oddCount struct {
	rates [numOddities]Rate
	level [numOddities]float64
	last  time.Time // when the levels were right; an idle count costs nothing
}

// add puts n of a kind in at the time now. It returns the count and whether there is no room for as much
// again, which is what a limit means: the last that fits is the last there is.
func (o *oddCount) add(now time.Time, kind oddity, n float64) (count float64, over bool) {
	passed := 0.0
	if !o.last.IsZero() {
		passed = now.Sub(o.last).Seconds()
	}
	o.last = now
	for k := range o.level {
		r := &o.rates[k]
		if r.Burst < 0 {
			continue
		}
		o.level[k] = max(0, o.level[k]-passed*r.PerSecond)
		if oddity(k) == kind {
			o.level[k] += n
			over = o.level[k]+n > r.Burst
		}
		if r.Burst > 0 {
			count += o.level[k] / r.Burst
		}
	}
	return count, over || count > 1
}

// odd counts n of a kind. The error, where there is one, ends the connection.
func (in *inbound) odd(kind oddity, n float64) error {
	if in.odds.rates[kind].Burst < 0 {
		return nil
	}
	count, over := in.odds.add(in.now, kind, n)
	if over {
		return connError(EnhanceYourCalm, "too many "+kind.String())
	}
	if count >= softShare {
		in.leave = true
	}
	return nil
}

// takeLeave asks a peer that was odd too often to open no more streams here: GOAWAY with the greatest
// stream id, so that nothing under way is lost. Called with mu held.
func (c *Conn) takeLeave() {
	c.in.leave = false
	if c.draining || c.err != nil {
		return
	}
	c.draining, c.goAwayID = true, maxStreamID
	c.ctrl = appendGoAway(c.ctrl, maxStreamID, NoError, "too many oddities")
	c.retire()
	c.openCond.Broadcast()
}

package memnet

import (
	"math/rand/v2"
	"time"
)

// Link is how one direction of a connection carries bytes, and what goes wrong on it. The zero Link carries
// them at once. Its chance comes from Seed: equal links carry equal writes in equal pieces.
type Link struct {
	// Connect is how long a Dial takes, beside a round trip of both links; it counts on the way out only.
	Connect time.Duration
	// Delay is the time from Write to Read, also of an end or a reset; Jitter is added to it at random, differently
	// for each piece. Nothing overtakes.
	Delay, Jitter time.Duration
	// BytesPerSecond is how fast pieces leave. 0: at once.
	BytesPerSecond int
	// BufferBytes is what may be written and not read before Write waits. 0: 64 KiB, as a socket's buffer.
	BufferBytes int
	// PieceBytes makes what is written travel in pieces of random sizes up to it. 0: whole.
	PieceBytes int
	// ReadBytes makes a Read return at most a random number of bytes up to it. 0: what fits.
	ReadBytes int
	// Stalls are times in which nothing arrives.
	Stalls []Stall
	// CutAfterBytes breaks the connection for both ends when so much was written, in the middle of a Write. 0:
	// never.
	CutAfterBytes int64
	// Seed is where chance begins.
	Seed uint64
}

// Stall is a time in the life of a connection, counted from its beginning.
type Stall struct{ After, For time.Duration }

// bufferBytes is the default of Link.BufferBytes.
const bufferBytes = 64 << 10

// line is the state of a Link: it says when things arrive.
type line struct {
	Link
	made time.Time
	rnd  *rand.Rand
	free time.Time // when the piece before has left
	last time.Time // when the piece before arrives
}

func newLine(l Link) line {
	if l.BufferBytes <= 0 {
		l.BufferBytes = bufferBytes
	}
	return line{Link: l, made: time.Now(), rnd: rand.New(rand.NewPCG(l.Seed, 1))}
}

// prompt reports whether everything arrives at once.
func (l *line) prompt() bool {
	return l.Delay == 0 && l.Jitter == 0 && l.BytesPerSecond == 0 && len(l.Stalls) == 0
}

// arrival is when n bytes that are written now arrive; the zero time: at once.
func (l *line) arrival(n int) time.Time {
	if l.prompt() {
		return time.Time{}
	}
	at := time.Now()
	if l.free.After(at) {
		at = l.free
	}
	if l.BytesPerSecond > 0 {
		at = at.Add(time.Duration(n) * time.Second / time.Duration(l.BytesPerSecond))
	}
	l.free = at
	at = at.Add(l.Delay)
	if l.Jitter > 0 {
		at = at.Add(time.Duration(l.rnd.Int64N(int64(l.Jitter))))
	}
	for _, s := range l.Stalls {
		if from := l.made.Add(s.After); !at.Before(from) && at.Before(from.Add(s.For)) {
			at = from.Add(s.For)
		}
	}
	if at.Before(l.last) {
		at = l.last
	}
	l.last = at
	return at
}

// piece is how many of n bytes travel together.
func (l *line) piece(n int) int { return l.upTo(n, l.PieceBytes) }

// portion is how many of n bytes one Read gets.
func (l *line) portion(n int) int { return l.upTo(n, l.ReadBytes) }

func (l *line) upTo(n, most int) int {
	if most <= 0 {
		return n
	}
	return min(n, 1+l.rnd.IntN(most))
}

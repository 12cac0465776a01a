package sim

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"
)

// End is one end of a stream with somebody's bytes.
type End interface {
	io.ReadWriteCloser
	// CloseWrite ends the direction that Write feeds.
	CloseWrite() error
	// Abort ends both directions so that the other end sees a cut.
	Abort()
}

// Finish is what an end does after its last byte.
type Finish uint8

// The ways to finish.
const (
	FinishEnd   Finish = iota // CloseWrite
	FinishAbort               // Abort
)

// Way is one direction of a Flow: the plan of who writes and who reads, and what became of it.
type Way struct {
	// Writer.
	Size   int           // bytes
	Chunk  int           // of one Write, at most
	Begin  time.Duration // after the stream stands
	Every  int           // pauses after so many bytes; 0: never
	Pause  time.Duration
	After  bool // writes only when the opposite way was read to its end
	ParkAt int  // waits at this byte until Flow.Resume is closed; -1: never
	Finish Finish
	Copy   bool // by ReadFrom, where the end has it

	// Reader.
	ReadChunk int
	ReadEvery int // pauses after so many bytes; 0: never
	ReadPause time.Duration
	StopAt    int  // has enough after so many bytes; -1: never
	StopClose bool // and calls Close then, and not Abort
	WriteTo   bool // reads by WriteTo, where the end has it
	Pipe      bool // reads by Pipe, where the end has it

	offset int // of its bytes in pattern

	mu     sync.Mutex // guards what follows
	Sent   int        // bytes that Write has taken
	Ended  bool       // CloseWrite has succeeded after all
	WErr   error
	Got    int  // bytes read
	GotEnd bool // then a clean end
	RErr   error
	wrong  string // what was read and not written
	left   bool   // the writer's end called Close before all was written
}

// Flow is a stream with traffic in both ways.
type Flow struct {
	ID       int
	Up, Down Way
	Resume   <-chan struct{} // closed when parked ways go on
}

// pattern is what all flows carry, each way from another offset. It is not changed.
var pattern = func() []byte {
	b := make([]byte, 1<<20-3)
	rand.NewChaCha8([32]byte{'s', 'i', 'm'}).Read(b)
	return b
}()

// maxChunk bounds a Write and a Read.
const maxChunk = 64 << 10

// DrawFlow draws a flow with at most most bytes in each way.
func DrawFlow(r *rand.Rand, id, most int, resume <-chan struct{}) *Flow {
	f := &Flow{ID: id, Resume: resume}
	f.Up.draw(r, most)
	f.Down.draw(r, most)
	switch r.IntN(6) {
	case 0:
		f.Up.After = true
	case 1:
		f.Down.After = true
	}
	return f
}

func (w *Way) draw(r *rand.Rand, most int) {
	w.offset = r.IntN(len(pattern))
	w.Size = Size(r, most)
	w.Chunk = max(1+r.IntN(maxChunk)>>r.IntN(16), w.Size/300)
	w.ReadChunk = max(1+r.IntN(maxChunk)>>r.IntN(10), w.Size/300)
	w.ParkAt, w.StopAt = -1, -1
	w.Copy, w.WriteTo, w.Pipe = Chance(r, 2), Chance(r, 3), Chance(r, 3)
	if Chance(r, 3) {
		w.Begin = time.Duration(r.IntN(2000)) * time.Millisecond
	}
	pause := func() (every int, pause time.Duration) {
		return w.Size/(1+r.IntN(5)) + 1, Pick(r, time.Millisecond, 50*time.Millisecond, time.Second, 20*time.Second)
	}
	if Chance(r, 3) {
		w.Every, w.Pause = pause()
	}
	if Chance(r, 4) {
		w.ReadEvery, w.ReadPause = pause()
	}
	switch r.IntN(12) {
	case 0:
		w.Finish = FinishAbort
	case 1:
		w.StopAt, w.StopClose = r.IntN(w.Size+1), Chance(r, 2)
	}
	if Chance(r, 10) {
		w.ParkAt = r.IntN(w.Size + 1)
	}
}

// Plain reports whether both ends mean to carry everything and to end well.
func (f *Flow) Plain() bool { return f.Up.plain() && f.Down.plain() }

func (w *Way) plain() bool { return w.Finish == FinishEnd && w.StopAt < 0 }

// Patient reports whether both readers read as fast as bytes come.
func (f *Flow) Patient() bool { return f.Up.ReadEvery == 0 && f.Down.ReadEvery == 0 }

// Parked reports whether the flow waits for Resume.
func (f *Flow) Parked() bool { return f.Up.ParkAt >= 0 || f.Down.ParkAt >= 0 }

// Unpark makes the flow wait for nothing.
func (f *Flow) Unpark() { f.Up.ParkAt, f.Down.ParkAt = -1, -1 }

// RunA is what the end does that writes Up; it returns when both ways are over, and closes the end.
func (f *Flow) RunA(e End) { f.run(e, &f.Up, &f.Down) }

// RunB is what the other end does.
func (f *Flow) RunB(e End) { f.run(e, &f.Down, &f.Up) }

func (f *Flow) run(e End, out, in *Way) {
	readOver := make(chan struct{})
	var both sync.WaitGroup
	both.Go(func() { // ends with the way; waited for below
		defer close(readOver)
		in.read(e, out)
	})
	both.Go(func() { out.write(e, f.Resume, readOver) }) // ends with the way; waited for below
	both.Wait()
	_ = e.Close() // it may be closed
}

// errEnough is the reader's wish to stop, errAbort the writer's.
var (
	errEnough = errors.New("the reader has enough")
	errAbort  = errors.New("the writer aborts")
)

func (w *Way) write(e End, resume, readOver <-chan struct{}) {
	time.Sleep(w.Begin)
	if w.After {
		<-readOver
	}
	src := &source{w: w, resume: resume}
	var sent int
	var err error
	if to, ok := e.(io.ReaderFrom); ok && w.Copy {
		var n int64
		n, err = to.ReadFrom(src)
		sent = int(n)
	} else {
		sent, err = src.writeTo(e)
	}
	switch {
	case errors.Is(err, errAbort):
		e.Abort()
	case err == nil:
		err = e.CloseWrite()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.Sent, w.WErr, w.Ended = sent, err, err == nil
}

func (w *Way) read(e End, out *Way) {
	dst := &sink{w: w}
	var err error
	piper, pipes := e.(interface {
		Pipe(dst io.Writer, done func(n int64, err error))
	})
	to, writes := e.(io.WriterTo)
	switch {
	case pipes && w.Pipe:
		done := make(chan error, 1)
		piper.Pipe(dst, func(_ int64, err error) { done <- err })
		err = <-done
	case writes && w.WriteTo:
		_, err = to.WriteTo(dst)
	default:
		err = dst.readFrom(e)
	}
	w.mu.Lock()
	w.RErr, w.GotEnd = err, err == nil
	w.mu.Unlock()
	if !errors.Is(err, errEnough) {
		return
	}
	if w.StopClose {
		out.mu.Lock()
		out.left = true
		out.mu.Unlock()
		_ = e.Close() // it may be closed
	} else {
		e.Abort()
	}
}

// Check says what is wrong with the way, "" if nothing is. With whole it must have carried everything and ended
// well.
func (w *Way) Check(whole bool) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.wrong != "":
		return w.wrong
	case w.GotEnd && !w.left && w.Finish == FinishAbort:
		return "an abort was seen as a clean end" + w.state()
	case w.GotEnd && !w.left && (w.Got != w.Size || w.WErr != nil):
		return "a cut was seen as a clean end" + w.state()
	case whole && !w.Ended:
		return "the writer could not end" + w.state()
	case whole && !w.GotEnd:
		return "a clean end was seen as a cut" + w.state()
	case whole && w.Got != w.Size:
		return "bytes are missing" + w.state()
	}
	return ""
}

func (w *Way) state() string {
	return fmt.Sprintf(": %d bytes planned, %d sent (%v), %d read (%v)", w.Size, w.Sent, w.WErr, w.Got, w.RErr)
}

// String describes the flow in messages.
func (f *Flow) String() string {
	return fmt.Sprintf("flow %d: up %s; down %s", f.ID, f.Up.describe(), f.Down.describe())
}

func (w *Way) describe() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return fmt.Sprintf("%d bytes by %d, pause %v/%d, after=%v park=%d finish=%d copy=%v; read by %d, pause %v/%d, stop=%d,%v writeTo=%v pipe=%v%s",
		w.Size, w.Chunk, w.Pause, w.Every, w.After, w.ParkAt, w.Finish, w.Copy,
		w.ReadChunk, w.ReadPause, w.ReadEvery, w.StopAt, w.StopClose, w.WriteTo, w.Pipe, w.state())
}

// source is what the writer of a way has to say.
type source struct {
	w      *Way
	resume <-chan struct{}
	at     int
	parked bool
}

// Read returns the next chunk after its pause.
func (s *source) Read(p []byte) (int, error) {
	w := s.w
	if w.ParkAt == s.at && !s.parked {
		s.parked = true
		<-s.resume
	}
	if s.at == w.Size {
		if w.Finish == FinishAbort {
			return 0, errAbort
		}
		return 0, io.EOF
	}
	n := min(len(p), w.Chunk, w.Size-s.at)
	if w.ParkAt > s.at {
		n = min(n, w.ParkAt-s.at)
	}
	if w.Every > 0 {
		if s.at > 0 && s.at%w.Every == 0 {
			time.Sleep(w.Pause)
		}
		n = min(n, w.Every-s.at%w.Every)
	}
	n = copy(p[:n], at(w.offset+s.at))
	s.at += n
	return n, nil
}

// at is the pattern from offset on, a part of it.
func at(offset int) []byte { return pattern[offset%len(pattern):] }

func (s *source) writeTo(e io.Writer) (sent int, err error) {
	buf := make([]byte, min(s.w.Chunk, maxChunk))
	for {
		n, err := s.Read(buf)
		if err == io.EOF {
			return sent, nil
		}
		if err != nil {
			return sent, err
		}
		n, err = e.Write(buf[:n])
		sent += n
		if err != nil {
			return sent, err
		}
	}
}

// sink is what reads a way, and compares.
type sink struct {
	w  *Way
	at int
}

// Write takes p and pauses.
func (s *sink) Write(p []byte) (int, error) {
	w := s.w
	for done := 0; done < len(p); {
		want := at(w.offset + s.at)
		n := min(len(want), len(p)-done)
		if s.at+n > w.Size || !bytes.Equal(p[done:done+n], want[:n]) {
			w.mu.Lock()
			w.wrong = fmt.Sprintf("at byte %d of %d something else was read than written", s.at, w.Size)
			w.mu.Unlock()
			return done, errEnough
		}
		done += n
		before := s.at
		s.at += n
		w.mu.Lock()
		w.Got = s.at
		w.mu.Unlock()
		if w.ReadEvery > 0 && before/w.ReadEvery != s.at/w.ReadEvery {
			time.Sleep(w.ReadPause)
		}
	}
	if w.StopAt >= 0 && s.at >= w.StopAt {
		return len(p), errEnough
	}
	return len(p), nil
}

func (s *sink) readFrom(e io.Reader) error {
	buf := make([]byte, min(s.w.ReadChunk, maxChunk))
	for {
		n, err := e.Read(buf)
		if n > 0 {
			if _, err := s.Write(buf[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

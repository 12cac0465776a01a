package attack

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

func startEntry(t *testing.T) *Entry {
	t.Helper()
	e, err := newTestMesh(t).StartEntry()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		e.Stop()
		if t.Failed() {
			t.Log(e.Log())
		}
	})
	return e
}

// app is a flow that an app opens through the hostile hop, and what became of it.
type app struct {
	nc  net.Conn
	err error
}

func (e *Entry) app(within time.Duration) <-chan app {
	got := make(chan app, 1)
	go func() { // ends with the answer, or after within; the result waits in the channel
		nc, err := e.App(within)
		got <- app{nc, err}
	}()
	return got
}

// TestAttackHop plays what a hostile hop may do to an entry: the flow through it ends, and nothing else does.
func TestAttackHop(t *testing.T) {
	e := startEntry(t)
	nc, err := e.Innocent()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	rows := map[int][]HopAttack{}
	for _, a := range HopAttacks() {
		rows[a.Row] = append(rows[a.Row], a)
	}
	e.Hop.Play(Script{Run: func(p *Peer) { <-p.stopped }})
	for _, row := range slices.Sorted(maps.Keys(rows)) {
		t.Run(fmt.Sprint("row ", row), func(t *testing.T) {
			before := figures(t, e.Gateway)
			for _, a := range rows[row] {
				t.Run(a.Name, func(t *testing.T) {
					playHop(t, e, &a)
					wantEcho(t, nc)
				})
			}
			e.Hop.Play(Script{Run: func(p *Peer) {}})
			wantBack(t, e.Gateway, before)
		})
	}
}

// stillHere is what the hop sends on an innocent tunnel after the attack on another.
const stillHere = "still here"

// playHop plays an attack when the entry asks for a second tunnel on a connection. The first one is innocent:
// it lives on where the attack ends a stream only.
func playHop(t *testing.T, e *Entry, a *HopAttack) {
	t.Helper()
	played := make(chan error, 1)
	var once sync.Once // the flow may be tried again
	e.Hop.Play(Script{Run: func(p *Peer) {
		once.Do(func() { played <- offend(p, a) })
		if len(a.Codes) == 0 {
			p.Wait(patience, func(s *Seen) bool { return s.Ended })
		}
	}})
	innocent := e.appThatPasses(t)
	defer innocent.Close()
	flow := e.app(patience)
	if err := <-played; err != nil {
		t.Error(err)
	}
	_ = innocent.SetReadDeadline(time.Now().Add(patience)) // its passing is told below
	if len(a.Codes) == 0 {
		buf := make([]byte, len(stillHere))
		if _, err := io.ReadFull(innocent, buf); err != nil {
			t.Errorf("another tunnel on the connection: %v", err)
		}
	} else if _, err := io.Copy(io.Discard, innocent); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("another tunnel on the connection outlives it")
	}
	got := <-flow
	if got.nc == nil {
		return
	}
	defer got.nc.Close()
	_ = got.nc.SetReadDeadline(time.Now().Add(patience)) // its passing is told below
	n, err := io.Copy(io.Discard, got.nc)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the app's connection is still open")
	}
	if !a.Answer || n > 0 {
		t.Errorf("the app got a tunnel and %d bytes", n)
	}
}

// appThatPasses opens a flow through the hop as soon as the entry tries that again.
func (e *Entry) appThatPasses(t *testing.T) net.Conn {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		nc, err := e.App(patience)
		if err == nil {
			return nc
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// offend answers a request, attacks the next and wants what is due: the end of the connection, or of the
// stream alone.
func offend(p *Peer, a *HopAttack) error {
	first, ok := p.Request(1)
	if err := errors.Join(p.Headers(first, false, ":status", "200"), p.Flush()); err != nil || !ok {
		return fmt.Errorf("no first tunnel: %w", err)
	}
	id, ok := p.Request(2)
	if !ok {
		return errors.New("the entry asks for no second tunnel")
	}
	var err error
	if a.Answer {
		err = p.Headers(id, false, ":status", "200")
	}
	turns, limit := 0, a.Limit
	if limit > 10 {
		limit += limit/3 + 1 // buckets leak meanwhile
	}
	for ; turns < limit && err == nil; turns++ {
		err = a.Turn(p, id)
	}
	if err == nil {
		err = p.Flush()
	}
	if len(a.Codes) > 0 {
		return wantEnded(p, a, turns)
	}
	if !p.Wait(patience, func(s *Seen) bool { return s.reset(id) || s.Ended }) {
		return fmt.Errorf("nothing came of %d offences: %w", turns, err)
	}
	if seen := p.Look(); seen.Ended || len(seen.GoAways) > 0 {
		return fmt.Errorf("the connection was ended: %v %w", seen.GoAways, seen.EndReason)
	}
	return errors.Join(p.fr.WriteData(first, false, []byte(stillHere)), p.Flush())
}

func wantEnded(p *Peer, a *HopAttack, turns int) error {
	if !p.Wait(patience, func(s *Seen) bool { return s.last() != http2.ErrCodeNo || s.Ended }) {
		return fmt.Errorf("the connection lives after %d offences", turns)
	}
	if seen := p.Look(); !slices.Contains(a.Codes, seen.last()) {
		return fmt.Errorf("ended with GOAWAY %v, want %v", seen.GoAways, a.Codes)
	}
	return nil
}

// A hop's content-length means nothing on a tunnel (RFC 9110, section 9.3.6): what it carries is not cut.
func TestAttackHopContentLengthOnATunnel(t *testing.T) {
	e := startEntry(t)
	const text = "fifteen octets!"
	e.Hop.Play(Script{Run: func(p *Peer) {
		if id, ok := p.Request(1); ok {
			_ = errors.Join(p.Headers(id, false, ":status", "200", "content-length", "3"), p.fr.WriteData(id, true, []byte(text)), p.Flush()) // the app tells
		}
		p.Wait(patience, func(s *Seen) bool { return s.Ended })
	}})
	got := <-e.app(patience)
	if got.err != nil {
		t.Fatal(got.err)
	}
	defer got.nc.Close()
	_ = got.nc.SetReadDeadline(time.Now().Add(patience)) // a broken one fails below
	if all, err := io.ReadAll(got.nc); string(all) != text || err != nil {
		t.Errorf("read %q, %v, want %q", all, err, text)
	}
}

// What a hop has not processed is tried again, but not for ever: 20 flows to a hop that ends every connection
// with GOAWAY(0) at the first request.
func TestAttackHopThatAlwaysSaysGoAway(t *testing.T) {
	e := startEntry(t)
	before := figures(t, e.Gateway)
	e.Hop.Play(Script{Run: func(p *Peer) {
		if _, ok := p.Request(1); ok {
			_ = errors.Join(p.fr.WriteGoAway(0, http2.ErrCodeNo, nil), p.Flush()) // it may have gone
		}
		p.Wait(patience, func(s *Seen) bool { return s.Ended })
	}})
	const flows = 20
	for range flows {
		if got := <-e.app(patience); got.err == nil {
			t.Error("a flow passed")
			got.nc.Close()
		}
	}
	if dials := figures(t, e.Gateway).HopDials - before.HopDials; dials > 3*flows {
		t.Errorf("%.0f connections to the hop for %d flows, want at most three tries each", dials, flows)
	}
	wantBack(t, e.Gateway, before)
}

// A hop that allows no streams at all.
func TestAttackHopThatAllowsNoStreams(t *testing.T) {
	e := startEntry(t)
	before := figures(t, e.Gateway)
	e.Hop.Play(Script{
		Settings: []http2.Setting{{ID: http2.SettingMaxConcurrentStreams, Val: 0}},
		Run:      func(p *Peer) { p.Wait(patience, func(s *Seen) bool { return s.Ended }) },
	})
	var flows []<-chan app
	for range 40 {
		flows = append(flows, e.app(2*time.Second)) // then the app leaves
	}
	for _, f := range flows {
		if got := <-f; got.err == nil {
			t.Error("a flow passed")
			got.nc.Close()
		}
	}
	dials := figures(t, e.Gateway).HopDials - before.HopDials
	if t.Logf("%.0f connections", dials); dials > 20 {
		t.Errorf("%.0f connections to a hop that allows no streams, for 40 flows", dials)
	}
	e.Hop.Play(Script{Run: func(p *Peer) {}})
	wantBack(t, e.Gateway, before)
}

package h2_test

import (
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"culvert/tunnel/h2"
	"culvert/tunnel/h2/h2test"
	"culvert/tunnel/tunneltest/sim"
)

// simPeerFound are the seeds of TestSimPeer that have ever failed.
var simPeerFound = []sim.Found{}

// TestSimPeer has a scripted client send DATA in every way that a client may, drawn by a seed: padded, empty, on
// streams that were reset by either side, that are refused, that nobody reads, and after GOAWAY. The connection's
// window is conserved all along: what the client counts is what the server counts, and nothing of it is lost
// (SECURITY.md, row 10).
func TestSimPeer(t *testing.T) {
	sim.Run(t, simPeerFound, func(t *testing.T, seed uint64) {
		r := sim.Rand(seed, 4)
		cfg := &h2.Config{
			StreamWindow: sim.Pick[int32](r, 0, 2000, 65535, 1<<20),
			ConnWindow:   sim.Pick[int32](r, 65535, 200_000, 1<<20),
			MaxStreams:   sim.Pick[uint32](r, 0, 5, 20),
			Budget:       h2.NewBudget(sim.Pick[int64](r, 0, 128<<10, 1<<20)),
		}
		cfg.Handler = simPeerHandler
		s := &simPeerRun{t: t, seed: seed, r: r, cfg: cfg, p: server(t, cfg), next: 1,
			open: make(map[uint32]bool), live: make(map[uint32]bool)}
		s.p.Take()
		for i := 0; i < 300 && !s.over(); i++ {
			s.step()
		}
		s.compare("at the end")
		s.p.Peer.Close()
		s.p.conn.Close()
		time.Sleep(12 * time.Hour) // a slow handler reads what has arrived
		synctest.Wait()
		if used := cfg.Budget.Used(); used != 0 {
			t.Errorf("seed %d: the budget counts %d bytes when all is over", seed, used)
		}
	})
}

// simPeerHandler treats a stream as its path says.
func simPeerHandler(s *h2.Stream) {
	defer s.Close()
	switch s.Request().Path {
	case "/read":
		io.Copy(io.Discard, s)
		s.Respond(&h2.Header{Status: 200}, true)
	case "/slow":
		for buf := make([]byte, 100); ; time.Sleep(time.Second) {
			if _, err := s.Read(buf); err != nil {
				return
			}
		}
	case "/never":
		<-s.Done()
	case "/answer": // before all is read, and no more is wanted
		s.Respond(&h2.Header{Status: 200}, true)
	case "/reset":
		time.Sleep(time.Second)
		s.Reset(h2.Cancel)
	}
}

// simPeerRun is one seed.
type simPeerRun struct {
	t    *testing.T
	seed uint64
	r    *rand.Rand
	cfg  *h2.Config
	p    *specPeer
	next uint32
	open map[uint32]bool // streams that we have not ended
	live map[uint32]bool // streams that are not closed
}

func (s *simPeerRun) step() {
	r := s.r
	switch r.IntN(12) {
	case 0, 1:
		if limit := int(s.cfg.MaxStreams); len(s.open) >= 5 || limit > 0 && len(s.live) >= limit {
			break // going over the limit is no part of this
		}
		path := sim.Pick(r, "/read", "/slow", "/never", "/answer", "/reset")
		s.p.WriteHeaders(s.next, false, h2test.Request("POST", path)...)
		s.open[s.next], s.live[s.next] = true, true
		s.next += 2
	case 2:
		if id := s.any(); id != 0 && sim.Chance(r, 2) {
			s.p.WriteRST(id, h2test.Cancel)
			delete(s.open, id)
			delete(s.live, id)
		}
	case 3:
		time.Sleep(time.Duration(r.IntN(3000)) * time.Millisecond)
		s.see()
	case 4:
		s.compare("in the middle")
	case 5:
		if sim.Chance(r, 20) {
			go s.p.conn.Drain(s.t.Context()) // ends with the connection
		}
	default:
		s.data()
	}
}

// any returns a stream that is open, 0 if none is.
func (s *simPeerRun) any() uint32 {
	for id := uint32(1); id < s.next; id += 2 {
		if s.open[id] && sim.Chance(s.r, len(s.open)) {
			return id
		}
	}
	return 0
}

// data sends one DATA frame within the windows.
func (s *simPeerRun) data() {
	id := s.any()
	if id == 0 {
		return
	}
	room := int(min(s.p.SendWindow(0), s.p.SendWindow(id), 16384))
	if room <= 0 {
		s.see()
		return
	}
	n := sim.Size(s.r, room)
	end := sim.Chance(s.r, 10)
	if pad := s.r.IntN(256); sim.Chance(s.r, 2) && n+pad+1 <= room {
		s.p.WritePaddedData(id, end, make([]byte, n), uint8(pad))
	} else {
		s.p.WriteData(id, end, make([]byte, n))
	}
	if end {
		delete(s.open, id)
	}
}

// see reads what the server has sent. A stream that it has reset gets some more DATA, as if that had been on its way;
// then it reports true.
func (s *simPeerRun) see() (wrote bool) {
	for _, f := range s.p.Take() {
		if f.Type == h2test.RSTStream || f.EndStream() && !s.open[f.StreamID] {
			delete(s.live, f.StreamID)
		}
		if f.Type != h2test.RSTStream || !s.open[f.StreamID] {
			continue
		}
		for range s.r.IntN(3) {
			if n := min(s.p.SendWindow(0), s.p.SendWindow(f.StreamID), 5000); n > 10 {
				s.p.WritePaddedData(f.StreamID, false, make([]byte, n-10), 9)
				wrote = true
			}
		}
		delete(s.open, f.StreamID)
	}
	return wrote
}

// over reports whether a drain has ended.
func (s *simPeerRun) over() bool {
	var gone *h2.ConnError
	return errors.As(s.p.conn.Err(), &gone) && gone.Code == h2.NoError
}

// compare lets everything arrive and checks that both sides count alike.
func (s *simPeerRun) compare(when string) {
	for s.see() {
	}
	if s.over() {
		return
	}
	s.p.WritePing(false, [8]byte{}) // its ACK tells the audit what the server has seen
	if s.p.conn.Err() != nil {
		s.t.Errorf("seed %d: %s: the connection has ended: %v", s.seed, when, s.p.conn.Err())
		return
	}
	st := s.p.conn.Stats()
	if may := s.p.SendWindow(0); may != st.RecvWindow {
		s.t.Errorf("seed %d: %s: the client may send %d bytes, the server expects %d", s.seed, when, may, st.RecvWindow)
	}
	if sum := st.RecvWindow + st.RecvPending; sum != int64(s.cfg.ConnWindow) {
		s.t.Errorf("seed %d: %s: a window of %d bytes and %d to be given back, want %d in all", s.seed, when, st.RecvWindow, st.RecvPending, s.cfg.ConnWindow)
	}
}

package nowait_test

import (
	"net"
	"sync/atomic"
	"testing"
	"time"

	"culvert/tunnel/nowait"
)

// sleeper counts how often it was woken.
type sleeper struct {
	woken atomic.Int32
	ch    chan struct{}
}

func newSleeper() *sleeper { return &sleeper{ch: make(chan struct{}, 10)} }

func (s *sleeper) Wake() {
	s.woken.Add(1)
	s.ch <- struct{}{}
}

// wait waits for one call of Wake.
func (s *sleeper) wait(t *testing.T, why string) {
	t.Helper()
	select {
	case <-s.ch:
	case <-time.After(10 * time.Second):
		t.Fatalf("not woken: %s", why)
	}
}

// sleeps wants no call of Wake for a while.
func (s *sleeper) sleeps(t *testing.T, why string) {
	t.Helper()
	select {
	case <-s.ch:
		t.Errorf("woken: %s", why)
	case <-time.After(20 * time.Millisecond): // real time: for what must not happen
	}
}

func newWatch(t *testing.T) *nowait.Watch {
	t.Helper()
	w, err := nowait.NewWatch()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

// add has s watch the connection.
func add(t *testing.T, w *nowait.Watch, c net.Conn, s nowait.Sleeper) int {
	t.Helper()
	fd, err := w.Add(nowait.Raw(c), s)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func TestWatch(t *testing.T) {
	for network, ends := range pairs(t) {
		t.Run(network, func(t *testing.T) {
			w, s, c, peer := newWatch(t), newSleeper(), ends[0], ends[1]
			add(t, w, c, s)
			s.sleeps(t, "nothing has come")
			peer.Write([]byte("a"))
			s.wait(t, "a byte has come")
			peer.Write([]byte("b"))
			s.sleeps(t, "it was woken once already")
			add(t, w, c, s)
			s.wait(t, "bytes are there")
			c.Read(make([]byte, 8))
			fd := add(t, w, c, s)
			w.Remove(fd, newSleeper())
			w.Remove(fd, s)
			peer.Write([]byte("c"))
			s.sleeps(t, "it was removed")
			c.Read(make([]byte, 8))
			add(t, w, c, s)
			peer.Close()
			s.wait(t, "the peer has ended")
			c.Close()
			if fd, err := w.Add(nowait.Raw(c), s); err == nil {
				t.Errorf("a closed connection was added, as %d", fd)
			}
		})
	}
}

// TestWatchMany wakes more at once than one system call tells of.
func TestWatchMany(t *testing.T) {
	w := newWatch(t)
	var peers []net.Conn
	var sleepers []*sleeper
	for range 500 {
		ends := pairs(t)["unix"]
		s := newSleeper()
		add(t, w, ends[0], s)
		peers, sleepers = append(peers, ends[1]), append(sleepers, s)
	}
	for _, c := range peers {
		c.Write([]byte("x"))
	}
	for _, s := range sleepers {
		s.wait(t, "a byte has come")
	}
	time.Sleep(10 * time.Millisecond) // real time: for what must not happen
	for i, s := range sleepers {
		if n := s.woken.Load(); n != 1 {
			t.Errorf("sleeper %d was woken %d times", i, n)
		}
	}
}

// TestWatchDescriptorIsUsedAgain closes a watched connection; the next one with its descriptor is not mixed up
// with it.
func TestWatchDescriptorIsUsedAgain(t *testing.T) {
	w := newWatch(t)
	for range 50 {
		ends := pairs(t)["tcp"]
		old, now := newSleeper(), newSleeper()
		fd := add(t, w, ends[0], old)
		ends[0].Close()
		w.Remove(fd, old)
		next := pairs(t)["tcp"]
		add(t, w, next[0], now)
		next[1].Write([]byte("x"))
		now.wait(t, "a byte has come")
		if n := old.woken.Load(); n > 0 {
			t.Errorf("a removed sleeper was woken %d times", n)
		}
	}
}

// TestWatchClose closes while sockets are watched.
func TestWatchClose(t *testing.T) {
	w, err := nowait.NewWatch()
	if err != nil {
		t.Fatal(err)
	}
	ends, s := pairs(t)["tcp"], newSleeper()
	add(t, w, ends[0], s)
	w.Close()
	ends[1].Write([]byte("x"))
	s.sleeps(t, "the watch is closed")
	if _, err := w.Add(nowait.Raw(ends[0]), s); err == nil {
		t.Error("a closed watch takes another connection")
	}
}

package main

import (
	"io"
	"net"
	"testing"
	"time"

	"culvert/bench/load"
)

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// TestDelayRelay wants every byte unchanged, the ends passed on, and each of them as late as a long road makes it:
// a round trip for the connection, and one for the bytes.
func TestDelayRelay(t *testing.T) {
	const delay, rate, n = 20 * time.Millisecond, 10 * megabyte, 1 << 20
	to, err := load.NewTarget()
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	d, err := newDelayRelay(to.Addr(), delay, rate)
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	start := time.Now()
	if err := load.OpenOnce(d.addr(), 0); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < 4*delay {
		t.Errorf("connection and a byte each way took %v, want at least %v", took, 4*delay)
	}
	start = time.Now()
	if err := load.Mirror(d.addr(), n); err != nil {
		t.Error(err)
	}
	seconds := float64(n) / rate
	if took, least := time.Since(start), 4*delay+time.Duration(seconds*float64(time.Second))-delayBurst; took < least {
		t.Errorf("%d bytes there and back took %v, want at least %v", n, took, least)
	}
}

// TestDelayRelayCloses has connections open when the relay is closed: they end.
func TestDelayRelayCloses(t *testing.T) {
	to, err := load.NewTarget()
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	d, err := newDelayRelay(to.Addr(), time.Millisecond, farRate)
	if err != nil {
		t.Fatal(err)
	}
	c, err := load.Dial(d.addr(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := load.UseOnce(c, time.Now().Add(load.OpenPatience)); err != nil {
		t.Fatal(err)
	}
	d.close()
	if n, err := io.ReadFull(c, make([]byte, 1)); n > 0 {
		t.Errorf("Read after close = %d bytes, %v, want the end", n, err)
	}
}

// TestLinkKeepsItsRate takes pieces one after another: together they need the time that the rate says.
func TestLinkKeepsItsRate(t *testing.T) {
	l := link{rate: 1000}
	start := time.Now()
	var last time.Time
	for range 10 {
		last = l.pass(100)
	}
	if took := last.Sub(start); took < time.Second-delayBurst || took > time.Since(start)+time.Second {
		t.Errorf("1000 bytes at 1000 a second have passed after %v", took)
	}
	if l := (link{rate: 1000}); l.pass(1).Before(start) {
		t.Error("a piece has passed before it was sent")
	}
}

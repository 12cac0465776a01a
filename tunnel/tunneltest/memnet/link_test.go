package memnet

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/netip"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func over(ab, ba Link) (*Conn, *Conn) {
	return PipeOver(netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2"), ab, ba)
}

// TestLinkCarriesAll sends a tail through every kind of link that loses nothing: all of it arrives, in order, and
// then the end.
func TestLinkCarriesAll(t *testing.T) {
	want := make([]byte, 300_000)
	rand.NewChaCha8([32]byte{}).Read(want)
	for name, link := range map[string]Link{
		"prompt":  {},
		"delay":   {Delay: 30 * time.Millisecond},
		"jitter":  {Delay: time.Millisecond, Jitter: 50 * time.Millisecond, PieceBytes: 5000},
		"narrow":  {BytesPerSecond: 100_000},
		"pieces":  {PieceBytes: 700, ReadBytes: 300},
		"tight":   {BufferBytes: 100, Delay: time.Millisecond},
		"stalled": {Stalls: []Stall{{After: 0, For: time.Minute}, {After: 2 * time.Minute, For: time.Hour}}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := over(link, Link{})
				start := time.Now()
				go func() { // ends when everything is written
					a.Write(want)
					a.CloseWrite()
				}()
				got, err := io.ReadAll(b)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("read %d bytes, %v, want %d", len(got), err, len(want))
				}
				least := link.Delay
				if link.BytesPerSecond > 0 {
					least += time.Duration(len(want)) * time.Second / time.Duration(link.BytesPerSecond)
				}
				if len(link.Stalls) > 0 {
					least += link.Stalls[0].For
				}
				if took := time.Since(start); took < least {
					t.Errorf("arrived after %v, want at least %v", took, least)
				}
			})
		})
	}
}

// TestLinkCuts breaks connections in the middle: what arrives is a beginning of what was sent, and never an end.
func TestLinkCuts(t *testing.T) {
	want := bytes.Repeat([]byte("0123456789"), 1000)
	for name, link := range map[string]Link{
		"at once": {CutAfterBytes: 4321},
		"on way":  {CutAfterBytes: 4321, Delay: time.Second, PieceBytes: 10, Jitter: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := over(link, Link{})
				n, err := a.Write(want)
				if n != 4321 || !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("Write = %d, %v, want 4321 and ECONNRESET", n, err)
				}
				got, err := io.ReadAll(b)
				if !errors.Is(err, syscall.ECONNRESET) || !bytes.HasPrefix(want[:4321], got) {
					t.Errorf("read %d bytes, %v, want a beginning and ECONNRESET", len(got), err)
				}
				if _, err := b.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("Write of the other end: %v, want ECONNRESET", err)
				}
				if _, err := a.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("Read of the writer: %v, want ECONNRESET", err)
				}
			})
		})
	}
}

// TestLinkNewsTravels checks that a reset and a close are known at the other end after the delay, and not before.
func TestLinkNewsTravels(t *testing.T) {
	far := Link{Delay: time.Second}
	synctest.Test(t, func(t *testing.T) {
		a, b := over(far, far)
		a.Write([]byte("lost"))
		a.SetLinger(0)
		a.Close()
		if _, err := b.Write([]byte("x")); err != nil {
			t.Errorf("Write before the news: %v", err)
		}
		start := time.Now()
		if got, err := io.ReadAll(b); !errors.Is(err, syscall.ECONNRESET) || time.Since(start) != time.Second {
			t.Errorf("read %q, %v after %v, want ECONNRESET after 1s", got, err, time.Since(start))
		}
		a, b = over(far, far)
		a.Write([]byte("tail"))
		a.CloseWrite()
		a.SetLinger(0)
		a.Close()
		if got, err := io.ReadAll(b); err != nil || string(got) != "tail" {
			t.Errorf("read %q, %v after an end and a reset, want all of it", got, err)
		}
		synctest.Wait() // the reset comes in the same moment as the end
		if _, err := b.Write([]byte("x")); err == nil {
			t.Error("Write to who has closed succeeded")
		}
	})
}

// TestNetBooks checks that the network knows which ends are open, and cuts those it is told to.
func TestNetBooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New()
		n.Over(func(netip.Addr, netip.AddrPort) (out, back Link) {
			return Link{Connect: time.Second, Delay: time.Second}, Link{Delay: time.Second}
		})
		l, err := n.Listen("10.0.0.2:80")
		if err != nil {
			t.Fatal(err)
		}
		dial := n.From(netip.MustParseAddr("10.0.0.1"))
		start := time.Now()
		c, err := dial(context.Background(), l.AddrPort())
		if err != nil || time.Since(start) != 3*time.Second {
			t.Fatalf("dial: %v after %v, want 3s", err, time.Since(start))
		}
		if k := len(n.Open()); k != 2 {
			t.Errorf("%d ends open, want 2", k)
		}
		n.Cut(netip.MustParseAddrPort("10.0.0.2:81"))
		if _, err := c.Write([]byte("x")); err != nil {
			t.Errorf("Write: %v", err)
		}
		n.Cut(l.AddrPort())
		if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("Write after the cut: %v, want ECONNRESET", err)
		}
		c.Close()
		l.Close()
		if k := len(n.Open()); k != 0 {
			t.Errorf("%d ends open, want 0", k)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err := dial(ctx, l.AddrPort()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dial with too little time: %v", err)
		}
	})
}

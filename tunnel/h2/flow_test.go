package h2

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestRecvFlowConserved checks that credit is neither made nor lost: what the peer may send, what waits
// to be granted and what is unread are together the window aimed at, whatever happens.
func TestRecvFlowConserved(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		f := recvFlow{window: 65536, size: 65536}
		peer, unread := int64(65536), int64(0)
		for range 2000 {
			if r.IntN(2) == 0 {
				n := uint32(r.Int64N(peer + 1))
				if !f.receive(n) {
					t.Fatalf("seed %d: receive(%d) refused, peer has %d", seed, n, peer)
				}
				peer -= int64(n)
				unread += int64(n)
			} else {
				n := r.Int64N(unread + 1)
				unread -= n
				peer += int64(f.consume(int(n)))
			}
			if got := int64(f.window) + int64(f.pending) + unread; got != int64(f.size) {
				t.Fatalf("seed %d: window %d + pending %d + unread %d = %d, want %d", seed, f.window, f.pending, unread, got, f.size)
			}
			if peer != int64(f.window) {
				t.Fatalf("seed %d: the peer counts %d, we count %d", seed, peer, f.window)
			}
			if unread == 0 && peer == 0 {
				t.Fatalf("seed %d: everything is read and the peer has no credit", seed)
			}
		}
	}
	f := recvFlow{window: 10, size: 10}
	if f.receive(11) {
		t.Error("receive(11) of a window of 10 was accepted")
	}
}

// TestSendFlowBounds checks the greatest window (RFC 9113, section 6.9.1) and negative ones (6.9.2).
func TestSendFlowBounds(t *testing.T) {
	f := sendFlow{window: maxWindow - 1}
	if !f.grant(1) || f.grant(1) {
		t.Error("2^31-1 must be accepted and 2^31 refused")
	}
	f = sendFlow{window: 100}
	if !f.grant(-200) || f.window != -100 {
		t.Errorf("window %d, want -100", f.window)
	}
}

// TestBDP checks that the estimate follows a growing bandwidth, stops where more window brings no more,
// and never counts bytes outside a sample.
func TestBDP(t *testing.T) {
	now := time.Now()
	clock := func() time.Time { return now }
	b := bdp{estimate: 64 << 10}
	rate, rtt := 50e6, 100*time.Millisecond // product: 5 MB
	for range 30 {
		now = now.Add(time.Second)
		sent := min(float64(b.estimate), rate*rtt.Seconds())
		if !b.received(2048, clock) {
			t.Fatal("no sample started")
		}
		b.received(int(sent)-2048, clock)
		now = now.Add(rtt)
		b.finish(now)
	}
	if product := int64(rate * rtt.Seconds()); b.estimate < product || b.estimate > 4*product {
		t.Errorf("estimate %d for a product of %d", b.estimate, product)
	}
	if b.received(100, clock) {
		t.Error("a sample started for a few bytes")
	}
}

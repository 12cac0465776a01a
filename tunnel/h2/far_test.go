package h2_test

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"culvert/tunnel/h2"
	"culvert/tunnel/tunneltest/memnet"
)

// TestWindowGrowsToTheRoad sends one stream over 100 ms of round trip at 50 MB/s: its window grows until
// the road is full, without a hint about it.
func TestWindowGrowsToTheRoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 50_000_000
		road := memnet.Link{Delay: 50 * time.Millisecond, BytesPerSecond: rate, BufferBytes: 16 << 20}
		nc1, nc2 := memnet.PipeOver(netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2"), road, road)
		client, server, accepted := connPair(t, nc1, nc2, h2.Config{}, h2.Config{})
		c, s := tunnelPair(t, client, accepted)
		go func() { // ends with the stream
			for buf := make([]byte, 64<<10); ; {
				if _, err := s.Write(buf); err != nil {
					return
				}
			}
		}()
		carried := func(d time.Duration) (n int64) {
			buf := make([]byte, 1<<20)
			for end := time.Now().Add(d); time.Now().Before(end); {
				k, err := c.Read(buf)
				if err != nil {
					t.Fatal(err)
				}
				n += int64(k)
			}
			return n
		}
		carried(5 * time.Second) // it finds its pace
		if n := carried(5 * time.Second); n < 5*rate*8/10 {
			t.Errorf("one stream carries %d bytes a second, want 80 %% of %d", n/5, rate)
		}
		c.Close()
		s.Close()
		client.Close()
		server.Close()
	})
}

package h2_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"testing"
	"time"

	"culvert/tunnel/h2"
)

// BenchmarkThroughput sends one way through one stream by Write of so many bytes, over loopback TCP
// without TLS: what the stack itself costs.
func BenchmarkThroughput(b *testing.B) {
	for _, size := range []int{64, 1 << 10, 16 << 10, 64 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("write=%d", size), func(b *testing.B) {
			nc1, nc2 := loopback(b)
			// Without TLS nothing parts one Write from the next, so that small ones look like splinters.
			client, _, accepted := connPair(b, nc1, nc2, h2.Config{}, h2.Config{Splinters: h2.Rate{Burst: -1}})
			c, s := tunnelPair(b, client, accepted)
			done := make(chan int64)
			go func() {
				n, _ := s.WriteTo(io.Discard)
				done <- n
			}()
			p := make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				if _, err := c.Write(p); err != nil {
					b.Fatal(err)
				}
			}
			c.CloseWrite()
			if n := <-done; n != int64(size)*int64(b.N) {
				b.Fatalf("received %d bytes, want %d", n, int64(size)*int64(b.N))
			}
			b.StopTimer()
			c.Close()
			s.Close()
		})
	}
}

// BenchmarkRoundTripBytes sends a byte each way through an open stream.
func BenchmarkRoundTripBytes(b *testing.B) {
	nc1, nc2 := loopback(b)
	client, _, accepted := connPair(b, nc1, nc2, h2.Config{}, h2.Config{})
	c, s := tunnelPair(b, client, accepted)
	go io.Copy(s, struct{ io.Reader }{s})
	p := make([]byte, 64)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if _, err := c.Write(p); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, p); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	c.Close()
	s.Close()
}

// BenchmarkOpen opens a stream, sends a byte each way and closes it.
func BenchmarkOpen(b *testing.B) {
	nc1, nc2 := loopback(b)
	client, _, _ := connPair(b, nc1, nc2, h2.Config{}, h2.Config{Handler: func(s *h2.Stream) {
		defer s.Close()
		if s.Respond(&h2.Header{Status: 200}, false) == nil {
			io.Copy(s, s)
		}
	}})
	ctx := context.Background()
	req := &h2.Header{Method: "CONNECT", Authority: "10.0.0.1:80"}
	p := make([]byte, 1)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		s, err := client.Open(ctx, req, false)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := s.Response(ctx); err != nil {
			b.Fatal(err)
		}
		s.Write(p)
		s.CloseWrite()
		if n, err := io.Copy(io.Discard, s); n != 1 || err != nil {
			b.Fatal(n, err)
		}
		s.Close()
	}
}

// BenchmarkBesideStalled sends 64 bytes there and back on one of 1,000 streams after the other, over TLS, alone and
// beside a stream whose reader has stalled while its writer goes on: the p99 must not move by more than a half.
func BenchmarkBesideStalled(b *testing.B) {
	for _, stalled := range []int{0, 1} {
		b.Run(fmt.Sprintf("stalled=%d", stalled), func(b *testing.B) {
			const others = 999
			nc1, nc2 := gated(b)
			client, _, accepted := connPair(b, nc1, nc2, h2.Config{}, h2.Config{MaxStreams: others + 1})
			var streams []*h2.Stream
			for range others {
				c, s := tunnelPair(b, client, accepted)
				s.Pipe(s, func(int64, error) { s.Close() })
				streams = append(streams, c)
			}
			full := make(chan struct{}) // nothing more goes to the stalled reader
			if stalled > 0 {
				c, s := tunnelPair(b, client, accepted)
				defer s.Close()
				defer c.Close()
				c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
				_, err := io.CopyN(c, zeros{}, 1<<30)
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					b.Fatalf("writing to a reader that has stalled: %v", err)
				}
				c.SetWriteDeadline(time.Time{})
				go func() { // ends with the stream
					c.Write(make([]byte, 1<<20))
					close(full)
				}()
			} else {
				close(full)
			}
			p := make([]byte, 64)
			var took []time.Duration
			b.ResetTimer()
			for i := range b.N {
				c, start := streams[i%others], time.Now()
				if _, err := c.Write(p); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(c, p); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(start))
			}
			b.StopTimer()
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
			for _, c := range streams {
				c.Close()
			}
			client.Close()
			<-full
		})
	}
}

// zeros reads without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

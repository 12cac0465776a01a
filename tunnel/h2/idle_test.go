package h2_test

import (
	"context"
	"io"
	"runtime"
	"testing"

	"culvert/tunnel/h2"
	"culvert/tunnel/h2/h2test"
)

// idleStreams is how many streams a connection is to bear that carry nothing.
const idleStreams = 50_000

// idleStreamBytes is what one of them may cost, both ends together, in heap.
const idleStreamBytes = 2 << 10

// TestMemoryOfManyIdleStreams opens 50,000 streams on a connection in memory, wants each to work, and its memory back.
func TestMemoryOfManyIdleStreams(t *testing.T) {
	nc1, nc2 := h2test.Pipe()
	ctx := context.Background()
	before, goroutines := heapBytes(), runtime.NumGoroutine()
	client, _, _ := connPair(t, nc1, nc2, h2.Config{}, h2.Config{MaxStreams: idleStreams, Handler: func(s *h2.Stream) {
		if s.Respond(&h2.Header{Status: 200}, false) != nil {
			t.Error("no answer could be sent")
		}
		s.DropHeads()
		s.Pipe(s, func(int64, error) { s.Close() }) // an echo, without a goroutine while nothing comes
	}})
	streams := make([]*h2.Stream, 0, idleStreams)
	for range idleStreams {
		s, err := client.Open(ctx, &h2.Header{Method: "CONNECT", Authority: "10.0.0.1:80"}, false)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Response(ctx); err != nil {
			t.Fatal(err)
		}
		s.DropHeads()
		streams = append(streams, s)
	}
	if n := runtime.NumGoroutine() - goroutines; n > 10 {
		t.Errorf("%d goroutines for streams on which nothing moves", n)
	}
	grown := heapBytes() - before
	t.Logf("%d bytes of heap for a stream, both ends", grown/idleStreams)
	if raceCost == 1 && grown > idleStreams*idleStreamBytes {
		t.Errorf("%d bytes of heap for a stream, want at most %d", grown/idleStreams, idleStreamBytes)
	}
	b := make([]byte, 8)
	for i, s := range streams {
		s.Write([]byte("are here"))
		if _, err := io.ReadFull(s, b); string(b) != "are here" || err != nil {
			t.Fatalf("stream %d: %q, %v", i, b, err)
		}
	}
	for i, s := range streams {
		s.CloseWrite()
		if n, err := s.Read(b); n != 0 || err != io.EOF {
			t.Fatalf("stream %d after the end: %d, %v", i, n, err)
		}
		s.Close()
	}
	clear(streams)
	if left := heapBytes() - before; left > grown/4 {
		t.Errorf("%d of %d bytes are kept after the streams have ended", left, grown)
	}
}

// heapBytes is the size of what lives.
func heapBytes() int64 {
	runtime.GC()
	runtime.GC() // what a finalizer or a pool has kept
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

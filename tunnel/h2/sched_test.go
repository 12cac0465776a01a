package h2

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// scriptedClient speaks just enough HTTP/2 to be asked for DATA: it opens streams with a large window and
// then reads frames.
func scriptedClient(t *testing.T, streams int) (*Conn, net.Conn, []*Stream) {
	t.Helper()
	near, far := net.Pipe()
	accepted := make(chan *Stream, streams)
	c, err := NewServer(near, &Config{Handler: func(s *Stream) { accepted <- s }})
	if err != nil {
		t.Fatal(err)
	}
	var list []*Stream
	wire := []byte(clientPreface)
	wire = appendFrameHeader(wire, 6, frameSettings, 0, 0)
	wire = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(wire, settingInitialWindow), 1<<30)
	wire = appendWindowUpdate(wire, 0, 1<<30)
	for i := range streams {
		block := []byte{0x42, 7, 'C', 'O', 'N', 'N', 'E', 'C', 'T', 0x41, 3, 'a', ':', '1'}
		wire = appendHeaderBlock(wire, frameHeaders, 0, uint32(2*i+1), nil, block, minMaxFrame)
	}
	go far.Write(wire) // ends when it was read
	for len(list) < streams {
		list = append(list, <-accepted)
	}
	return c, far, list
}

// TestWriterIsFair lets bulk writers and one that writes a little wait behind a peer that does not read.
// When it reads, each has its turn before any has a second one.
func TestWriterIsFair(t *testing.T) {
	const bulk = 7
	c, far, streams := scriptedClient(t, bulk+1)
	var wg sync.WaitGroup
	for i, s := range streams {
		n := 1 << 20
		if i == bulk {
			n = 6
		}
		wg.Go(func() { s.Write(make([]byte, n)) }) // ends with c
		for waiting := false; !waiting; time.Sleep(time.Millisecond) {
			c.mu.Lock()
			waiting = s.out.queued || s.out.inFlight
			c.mu.Unlock()
		}
	}
	turns := map[uint32]int{}
	for turns[streams[bulk].id] == 0 {
		h := nextFrame(t, far)
		if h.kind != frameData {
			continue
		}
		if h.length > quantumBytes {
			t.Fatalf("a frame of %d bytes, a turn has %d", h.length, quantumBytes)
		}
		if turns[h.streamID]++; turns[h.streamID] > 1 {
			// The first stream was being written when the others came: its second turn is behind theirs.
			t.Errorf("stream %d has a second turn before stream %d has one", h.streamID, streams[bulk].id)
		}
	}
	if len(turns) != bulk+1 {
		t.Errorf("%d streams had a turn, want %d", len(turns), bulk+1)
	}
	go io.Copy(io.Discard, far) // ends when Close closes the pipe
	c.Close()
	far.Close()
	wg.Wait()
}

// nextFrame reads a frame and drops its payload.
func nextFrame(t *testing.T, nc net.Conn) frameHeader {
	t.Helper()
	nc.SetReadDeadline(time.Now().Add(10 * time.Second))
	var head [frameHeaderLen]byte
	if _, err := io.ReadFull(nc, head[:]); err != nil {
		t.Fatal(err)
	}
	h := parseFrameHeader(head[:])
	if _, err := io.CopyN(io.Discard, nc, int64(h.length)); err != nil {
		t.Fatal(err)
	}
	return h
}

// TestRingOrder checks the queue by itself: first in, first out, removal from anywhere.
func TestRingOrder(t *testing.T) {
	var r ring
	s := make([]*Stream, 5)
	for i := range s {
		s[i] = &Stream{id: uint32(i)}
		r.push(s[i])
		r.push(s[i]) // again: no effect
	}
	for _, i := range []int{2, 0, 4, 4} {
		r.remove(s[i])
	}
	r.push(s[0])
	var got []uint32
	for !r.empty() {
		got = append(got, r.head.id)
		r.remove(r.head)
	}
	if len(got) != 3 || got[0] != 1 || got[1] != 3 || got[2] != 0 {
		t.Errorf("order %v, want [1 3 0]", got)
	}
}

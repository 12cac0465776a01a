package capture

import (
	"bytes"
	"errors"
	"io"
	"syscall"
	"testing"
	"time"
)

// Each write of a pair for datagrams is a read, also one of nothing, and the end is told.
func TestPairOfPackets(t *testing.T) {
	a, b, err := Pair(true)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	defer b.Close()
	if err := b.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{1, 0, 100, 0, 65507} {
		payload := bytes.Repeat([]byte{'x'}, size)
		if n, err := a.Write(payload); n != size || err != nil {
			t.Fatalf("Write of %d = %d, %v", size, n, err)
		}
		buf := make([]byte, 64<<10)
		if n, err := b.Read(buf); n != size || err != nil || !bytes.Equal(buf[:n], payload) {
			t.Fatalf("Read = %d, %v, want %d", n, err, size)
		}
	}
	for _, room := range []int{4, 5, 6} { // too little, just enough, and more
		if _, err := a.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, room)
		if n, err := b.Read(buf); err != nil || string(buf[:n]) != "hello"[:min(room, 5)] {
			t.Errorf("Read of %d bytes = %q, %v", room, buf[:n], err)
		}
	}
	if n, err := b.Read(nil); n != 0 || err != nil {
		t.Errorf("Read of nothing = %d, %v", n, err)
	}
	a.Close()
	if _, err := b.Read(make([]byte, 9)); err != io.EOF {
		t.Errorf("Read = %v, want the end", err)
	}
}

// TryWrite of a pair does not wait for who does not read.
func TestPairOfPacketsTriesToWrite(t *testing.T) {
	a, b, err := Pair(true)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	defer b.Close()
	try := a.(interface{ TryWrite([]byte) error })
	for n := 0; ; n++ {
		err := try.TryWrite(make([]byte, 1000))
		if err == nil && n < 100_000 {
			continue
		}
		if n == 0 || !errors.Is(err, syscall.EAGAIN) {
			t.Errorf("TryWrite %d = %v, want EAGAIN some time", n, err)
		}
		return
	}
}

package nowait_test

import (
	"bytes"
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"culvert/tunnel/nowait"
)

// pairs returns both ends of a connection of each kind that Raw knows.
func pairs(t *testing.T) map[string][2]net.Conn {
	t.Helper()
	made := map[string][2]net.Conn{}
	for network, addr := range map[string]string{"tcp": "127.0.0.1:0", "unix": filepath.Join(t.TempDir(), "socket")} {
		ln, err := net.Listen(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		a, err := net.Dial(network, ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		b, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { a.Close(); b.Close() })
		made[network] = [2]net.Conn{a, b}
	}
	return made
}

func TestOp(t *testing.T) {
	for network, ends := range pairs(t) {
		t.Run(network, func(t *testing.T) {
			raw, peer := nowait.Raw(ends[0]), ends[1]
			read, peek := nowait.NewOp(nowait.Read), nowait.NewOp(nowait.Peek)
			b := make([]byte, 8)
			if n, err := read.Do(raw.Read, b, false); n != 0 || !errors.Is(err, syscall.EAGAIN) {
				t.Errorf("reading nothing = %d, %v, want EAGAIN", n, err)
			}
			time.AfterFunc(10*time.Millisecond, func() { peer.Write([]byte("four")) })
			if n, err := read.Do(raw.Read, b[:2], true); string(b[:n]) != "fo" || err != nil {
				t.Errorf("reading with patience = %q, %v", b[:n], err)
			}
			if n, err := peek.Do(raw.Read, b, false); string(b[:n]) != "ur" || err != nil {
				t.Errorf("peeking = %q, %v", b[:n], err)
			}
			if n, err := read.Do(raw.Read, b, false); string(b[:n]) != "ur" || err != nil {
				t.Errorf("reading what was peeked at = %q, %v", b[:n], err)
			}
			ends[0].SetReadDeadline(time.Now().Add(10 * time.Millisecond))
			if _, err := read.Do(raw.Read, b, true); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("reading beyond the deadline: %v", err)
			}
			ends[0].SetReadDeadline(time.Time{})
			peer.Close()
			if n, err := read.Do(raw.Read, b, true); n != 0 || err != nil {
				t.Errorf("reading at the end = %d, %v, want 0 and nil", n, err)
			}
			ends[0].Close()
			if _, err := read.Do(raw.Read, b, true); !errors.Is(err, net.ErrClosed) {
				t.Errorf("reading after Close: %v", err)
			}
		})
	}
}

// TestWritesFill fills a connection until it takes no more, and drains it.
func TestWritesFill(t *testing.T) {
	for network, ends := range pairs(t) {
		t.Run(network, func(t *testing.T) {
			raw, peer := nowait.Raw(ends[0]), ends[1]
			more := nowait.NewOp(nowait.WriteMore)
			var want []byte
			for full := false; !full; {
				p := bytes.Repeat([]byte{byte(len(want))}, 10_000)
				m, err := more.Do(raw.Write, p[:5000], false)
				full = errors.Is(err, syscall.EAGAIN)
				if err != nil && !full {
					t.Fatal(err)
				}
				n, err := nowait.TryWrite(raw, p[m:])
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, p[:m+n]...)
			}
			if writable(t, raw) {
				t.Error("a full socket is said to have room")
			}
			got := make([]byte, len(want))
			peer.SetReadDeadline(time.Now().Add(5 * time.Second))
			for n := 0; n < len(got); {
				m, err := peer.Read(got[n:])
				if err != nil {
					t.Fatal(err)
				}
				n += m
			}
			if !bytes.Equal(got, want) {
				t.Error("other bytes arrived than were written")
			}
			if !writable(t, raw) {
				t.Error("an empty socket is said to have no room")
			}
			peer.Close()
			var err error
			for i := 0; i < 100 && err == nil; i++ { // the first ones may reach a connection that is not yet broken
				_, err = nowait.TryWrite(raw, []byte("x"))
				time.Sleep(time.Millisecond)
			}
			if !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("writing to a closed peer: %v", err)
			}
			if writable(t, raw) {
				t.Error("a broken socket is said to have room")
			}
		})
	}
}

func writable(t *testing.T, raw syscall.RawConn) (ok bool) {
	t.Helper()
	if err := raw.Control(func(fd uintptr) { ok = nowait.Writable(fd) }); err != nil {
		t.Fatal(err)
	}
	return ok
}

func TestRawOfOthers(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if raw := nowait.Raw(a); raw != nil {
		t.Errorf("Raw of a pipe in memory = %v", raw)
	}
}

// TestNoAllocations holds the point of Op and TryWrite.
func TestNoAllocations(t *testing.T) {
	ends := pairs(t)["tcp"]
	raw, peer := nowait.Raw(ends[0]), nowait.Raw(ends[1])
	read, b := nowait.NewOp(nowait.Read), make([]byte, 8)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := nowait.TryWrite(raw, b); err != nil {
			t.Fatal(err)
		}
		if _, err := read.Do(peer.Read, b, true); err != nil {
			t.Fatal(err)
		}
	}); n > 0.1 { // the pool may lose an Op to the garbage collector
		t.Errorf("%v allocations for a write and a read", n)
	}
}

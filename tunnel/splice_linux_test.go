package tunnel

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"culvert/tunnel/nowait"
)

// between is a direction from one socket to another.
func between(src, dst net.Conn) *direction {
	d := &direction{flow: new(Flow)}
	d.src, d.dst = newSocket(src), newSocket(dst)
	return d
}

// TestSplice moves bytes, in pieces and against a reader that is slow, up to the end.
func TestSplice(t *testing.T) {
	client, src := tcpPair(t)
	dst, server := tcpPair(t)
	d := between(src, dst)
	done := make(chan error, 1)
	go func() { // ends with the client's end
		src, dst, ok := d.spliced()
		if !ok {
			err := errors.New("it cannot be done")
			done <- err
			return
		}
		d.dst.CloseWrite()
		done <- errors.Join(src, dst)
	}()
	want := make([]byte, 8<<20)
	rand.Read(want)
	go func() { // ends when all is written, which is read below
		for _, piece := range [][]byte{want[:1], want[1:100], want[100 : 1<<20], want[1<<20:]} {
			client.Write(piece)
		}
		client.CloseWrite()
	}()
	server.SetReadDeadline(time.Now().Add(10 * time.Second))
	got, err := io.ReadAll(server)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes arrive, %v, want %d", len(got), err, len(want))
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := d.bytes.load(); n != int64(len(want)) {
		t.Errorf("%d bytes are counted, want %d", n, len(want))
	}
}

// A destination that breaks ends it with its error, a source with its own, and a deadline leaves what follows.
func TestSpliceBreaks(t *testing.T) {
	client, src := tcpPair(t)
	dst, server := tcpPair(t)
	d := between(src, dst)
	src.SetReadDeadline(time.Unix(1, 0))
	if err, _, ok := d.spliced(); !ok || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("beyond the deadline: %v", err)
	}
	src.SetReadDeadline(time.Time{})
	server.SetLinger(0)
	server.Close()
	go func() { // ends when the client is closed
		for {
			if _, err := client.Write(make([]byte, 1000)); err != nil {
				return
			}
		}
	}()
	from, to, ok := d.spliced()
	if !ok || from != nil || !errors.Is(to, syscall.ECONNRESET) && !errors.Is(to, syscall.EPIPE) {
		t.Errorf("to a broken destination: %v, %v", from, to)
	}

	client2, src2 := tcpPair(t)
	dst2, _ := tcpPair(t)
	client2.SetLinger(0)
	client2.Close()
	if from, to, ok := between(src2, dst2).spliced(); !ok || to != nil || !errors.Is(from, syscall.ECONNRESET) {
		t.Errorf("from a broken source: %v, %v", from, to)
	}
}

// What is no TCP connection is not spliced.
func TestSpliceOthers(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	c, _ := tcpPair(t)
	if _, _, ok := between(a, c).spliced(); ok {
		t.Error("a pipe in memory is spliced")
	}
}

// A silent flow holds no pipe.
func TestSpliceHoldsNothing(t *testing.T) {
	client, src := tcpPair(t)
	dst, server := tcpPair(t)
	s := newSplicer(newSocket(src), newSocket(dst))
	for range 3 {
		client.Write([]byte("hello"))
		if n, from, to := s.move(); n != 5 || from != nil || to != nil {
			t.Fatalf("move = %d, %v, %v", n, from, to)
		}
		if s.p != nil || s.n != 0 {
			t.Error("it holds a pipe")
		}
		b := make([]byte, 5)
		if _, err := io.ReadFull(server, b); string(b) != "hello" {
			t.Fatalf("%q arrives, %v", b, err)
		}
	}
}

// A pipe whose bytes nobody takes any more is closed, and what it held is given back at once.
func TestSpliceBreaksAndClosesItsPipe(t *testing.T) {
	client, src := tcpPair(t)
	dst, _ := tcpPair(t)
	s := newSplicer(newSocket(src), newSocket(dst))
	var used *pipe
	fill := s.fill
	s.fill = func(fd uintptr) bool {
		done := fill(fd)
		used = s.p
		return done
	}
	if _, err := client.Write([]byte("nobody's")); err != nil {
		t.Fatal(err)
	}
	if err := dst.SetWriteDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.move(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("move = %v, want the deadline", err)
	}
	for _, fd := range []int{used.r, used.w} {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETPIPE_SZ, 0); !errors.Is(err, syscall.EBADF) {
			t.Errorf("descriptor %d of the pipe: %v, want that it is closed", fd, err)
		}
	}
}

// BenchmarkDirect relays between two sockets by splice, and by reading and writing with buffers of several sizes. The
// processor time is that of the relaying thread alone.
func BenchmarkDirect(b *testing.B) {
	ways := map[string]func(*direction){"splice": func(d *direction) { d.spliced() }}
	for _, size := range []int{16 << 10, 64 << 10, 256 << 10, 1 << 20} {
		ways[fmt.Sprintf("copy%dK", size>>10)] = func(d *direction) {
			read := nowait.NewOp(nowait.Read)
			raw, buf := nowait.Raw(below(d.src)), make([]byte, size)
			for {
				n, err := read.Do(raw.Read, buf, true)
				if n == 0 || err != nil {
					return
				}
				if _, err := d.Write(buf[:n]); err != nil {
					return
				}
			}
		}
	}
	for name, carry := range ways {
		b.Run(name, func(b *testing.B) {
			client, src := tcpPair(b)
			dst, server := tcpPair(b)
			d := between(src, dst)
			used := make(chan time.Duration, 1)
			go func() { // ends with the client's end; what it used is taken below
				runtime.LockOSThread()
				start := threadTime()
				carry(d)
				used <- threadTime() - start
				dst.CloseWrite()
			}()
			go func() { // ends with the client's end
				io.Copy(io.Discard, struct{ io.Reader }{server})
			}()
			const chunk = 1 << 20
			buf := make([]byte, chunk)
			b.SetBytes(chunk)
			for b.Loop() {
				if _, err := client.Write(buf); err != nil {
					b.Fatal(err)
				}
			}
			client.CloseWrite()
			b.ReportMetric((<-used).Seconds()/(float64(b.N)*chunk/1e9), "cpu-s/GB")
		})
	}
}

// threadTime is the processor time of this thread.
func threadTime() time.Duration {
	var u syscall.Rusage
	const thread = 1 // RUSAGE_THREAD
	if err := syscall.Getrusage(thread, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

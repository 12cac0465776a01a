package tunnel_test

import (
	"io"
	"net"
	"runtime"
	"testing"
	"time"
)

// maxIdleBytes is what an idle flow may hold in the entry and the exit together, goroutine stacks included:
// 6 KiB each, and 2.5 KiB for the sockets of app and server, which the test holds in the same process.
const maxIdleBytes = raceCost * (2*6<<10 + 5<<9)

func TestMemoryPerIdleFlow(t *testing.T) {
	p := newTCPPair(t)
	var conns []net.Conn
	open := func(n int) {
		for range n {
			app, server := p.open(t)
			app.Write([]byte("x"))
			io.ReadFull(server, make([]byte, 1))
			server.Write([]byte("x"))
			io.ReadFull(app, make([]byte, 1))
			conns = append(conns, app, server)
		}
	}
	open(100)
	before := memoryInUse()
	const flows = 400
	open(flows)
	// Goroutines are renewed when their flows have been idle for a second or two.
	var per int64
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		if per = (memoryInUse() - before) / flows; per <= maxIdleBytes {
			break
		}
		time.Sleep(200 * time.Millisecond) // polls for what has no event
	}
	t.Logf("%d bytes for each idle flow: entry, exit and the test's own sockets", per)
	if per > maxIdleBytes {
		t.Errorf("an idle flow holds %d bytes, want at most %d", per, maxIdleBytes)
	}
	runtime.KeepAlive(conns)
}

// memoryInUse is heap and stacks after everything that nobody needs was given back.
func memoryInUse() int64 {
	var m runtime.MemStats
	for range 3 {
		runtime.GC() // stacks shrink by half each time
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// BenchmarkFlow opens a flow through two gateways on loopback, sends a byte each way and closes it.
func BenchmarkFlow(b *testing.B) {
	p := newTCPPair(b)
	go func() { // ends when the destination's listener is closed, by the clean-up
		for {
			c, err := p.dest.AcceptTCP()
			if err != nil {
				return
			}
			go func() { // ends with the flow
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		buf := make([]byte, 1)
		for pb.Next() {
			c, err := net.Dial("tcp", p.entry.Addr("plain").String())
			if err != nil {
				b.Error(err)
				return
			}
			c.Write(buf)
			if _, err := io.ReadFull(c, buf); err != nil {
				b.Error(err)
			}
			c.(*net.TCPConn).CloseWrite()
			io.ReadAll(c)
			c.Close()
		}
	})
}

package tunnel_test

import (
	"io"
	"syscall"
	"testing"
	"time"
)

// cpuTime is what the processors have spent on this process.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // it cannot fail for oneself
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkXTun sends bulk to a destination, by CONNECT between gateways (HBONE) and in requests with x-tun. On a machine that
// does other work as well the time of the processors tells more than the throughput.
func BenchmarkXTun(b *testing.B) {
	for _, bb := range []struct {
		name string
		make func(tb testing.TB) *tcpPair
	}{
		{"HBONE", func(tb testing.TB) *tcpPair { return newTCPPair(tb) }},
		{"POST", func(tb testing.TB) *tcpPair { return newOuterTCPPair(tb, "POST", false) }},
		{"POST,TLS", func(tb testing.TB) *tcpPair { return newOuterTCPPair(tb, "POST", true) }},
		{"WEBSOCKET,TLS", func(tb testing.TB) *tcpPair { return newOuterTCPPair(tb, "WEBSOCKET", true) }},
		{"GRPC,TLS", func(tb testing.TB) *tcpPair { return newOuterTCPPair(tb, "GRPC", true) }},
	} {
		b.Run(bb.name, func(b *testing.B) {
			app, server := bb.make(b).open(b)
			const piece = 256 << 10
			_ = app.SetDeadline(time.Time{})
			_ = server.SetDeadline(time.Time{})
			b.SetBytes(piece)
			b.ReportAllocs()
			done := make(chan struct{})
			go func() { // ends with what is sent
				defer close(done)
				_, _ = io.CopyN(io.Discard, server, int64(b.N)*piece)
			}()
			buf := make([]byte, piece)
			before := cpuTime()
			b.ResetTimer()
			for range b.N {
				if _, err := app.Write(buf); err != nil {
					b.Fatal(err)
				}
			}
			<-done
			b.ReportMetric((cpuTime()-before).Seconds()/(float64(b.N)*piece/1e9), "cpu-s/GB")
		})
	}
}

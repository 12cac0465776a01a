package tunnel

import (
	"io"
	"log/slog"
	"net/netip"
	"testing"

	"culvert/pki/spiffe"
)

// BenchmarkRecord takes a flow of an address off the books and writes its line.
func BenchmarkRecord(b *testing.B) {
	for name, log := range map[string]slog.Handler{"json": slog.NewJSONHandler(io.Discard, nil), "text": slog.NewTextHandler(io.Discard, nil)} {
		b.Run(name, func(b *testing.B) {
			g := testGateway()
			g.env.Log = slog.New(log)
			self, err := spiffe.Parse("spiffe://cluster.local/ns/default/sa/exit")
			if err != nil {
				b.Fatal(err)
			}
			g.env.Self = func() spiffe.ID { return self }
			p := testPlan(TimeoutConfig{})
			b.ReportAllocs()
			for i := range b.N {
				f := &Flow{
					Listener: "mesh", Way: "connect", Source: netip.MustParseAddrPort("10.0.0.7:41234"), Peer: self,
					Target: Target{Addr: netip.MustParseAddr("10.0.0.9"), Port: 8080}, rule: "same-namespace", local: true, asked: askedAllow, self: self,
				}
				f.prepare(g, uint64(i), p)
				g.stats.active.add(1)
				g.flows.add(f)
				g.record(f, nil)
			}
		})
	}
}

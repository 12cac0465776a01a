package tunneltest

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"culvert/tunnel"
	"culvert/tunnel/tunneltest/memnet"
)

// The tests of this file are what TestSim has found, each by itself.

// Flows that came together to a hop which allows few streams on a connection were all sent to each new connection,
// refused there three times, and given up.
func TestManyFlowsToAHopThatAllowsFewStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPair(t, Options{ExitEnv: func(e *tunnel.Env) { e.H2.MaxStreams = 3 }})
		p.Net.Over(func(netip.Addr, netip.AddrPort) (out, back memnet.Link) {
			l := memnet.Link{Delay: 20 * time.Millisecond}
			return l, l
		})
		p.Echo(t, ExitAddr+":80")
		var flows sync.WaitGroup
		for range 40 {
			flows.Go(func() {
				c, err := p.Dial(context.Background(), ExitAddr+":80")
				if err != nil {
					t.Error(err)
					return
				}
				time.Sleep(time.Minute)
				c.Close()
			})
		}
		flows.Wait()
		if s := p.Entry.Stats(); s.Retries > 40 || s.TransportDials > 20 {
			t.Errorf("%d flows were asked for again and %d connections made, want 40 and 20 at most", s.Retries, s.TransportDials)
		}
	})
}

package tunnel

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"culvert/tunnel/h2"
	"culvert/tunnel/tunneltest/memnet"
)

// TestAbandonedRequestIsSent gives requests up that early bytes hold, when the hop shall be told by no reset: the
// answer that is waited for instead comes only to what was sent.
func TestAbandonedRequestIsSent(t *testing.T) {
	near, far := memnet.Pipe(netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2"))
	asked := make(chan struct{}, 1)
	server, err := h2.NewServer(far, &h2.Config{Handler: func(s *h2.Stream) {
		defer s.Close()
		asked <- struct{}{}
		_ = s.Respond(&h2.Header{Status: 503}, true) // it may have been closed
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	client, err := h2.NewClient(near, nil)
	if err != nil {
		t.Fatal(err)
	}
	tr := &h2Transport{conn: client, hop: "hop", stats: new(stats)}
	defer tr.Close()
	for i := range 200 {
		tr.mu.Lock()
		tr.withdraw, tr.drained = 2*withdrawBurst, time.Now()
		tr.mu.Unlock()
		app, peer := memnet.Pipe(netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2"))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		early := &Early{app: app, r: newReader(app), b: []byte("hello")}
		if _, _, err := tr.Connect(ctx, &ConnectRequest{Target: Target{Host: "a", Port: 1}, Early: early}); err == nil {
			t.Fatal("connected though nobody waits")
		}
		select {
		case <-asked:
		case <-time.After(2 * time.Second):
			t.Fatalf("request %d was not sent", i)
		}
		app.Close()
		peer.Close()
	}
}

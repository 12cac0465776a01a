package tunnel_test

import (
	"errors"
	"io"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"culvert/tunnel"
	"culvert/tunnel/endpoint"
	"culvert/tunnel/h2"
	"culvert/tunnel/tunneltest"
	"culvert/tunnel/tunneltest/memnet"
)

// newEarlyShared is newEarly with two endpoints; nobody is at the others.
func newEarlyShared(t *testing.T, handles ...func(*h2.Stream)) (e *early, hops []*fakeHop) {
	t.Helper()
	e = &early{net: memnet.New(), log: &tunneltest.Log{}}
	ca := tunneltest.NewCA(t)
	for i, handle := range handles {
		if handle != nil {
			e.hop = newFakeHopOf(t, e.net, ca.Issue(t, "cluster.local", "default", "far"), gateAt(i), h2.Config{}, handle)
			hops = append(hops, e.hop)
		}
	}
	list := gates(len(handles))
	list[0].Weight = 1000 // flows go there first
	tunneltest.NewGateway(t, e.net, "10.0.0.1", ca.Issue(t, "cluster.local", "default", "entry"), &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "plain", Kind: tunnel.KindForward, Address: "10.0.0.1:9000", To: "192.0.2.1:80"}},
		Hops:      map[string]tunnel.HopConfig{"lb": {Config: endpoint.Config{Endpoints: list, Retries: 5}, Connections: 1}},
		Routes:    []tunnel.RouteConfig{{From: "any", Via: []string{"lb"}}},
	}, nil, nil, logTo(e.log))
	return e, hops
}

// TestEarlyBytesReachAnotherEndpoint: where the first is not there, nothing was sent, and where it has not touched the request,
// they are sent again.
func TestEarlyBytesReachAnotherEndpoint(t *testing.T) {
	untouched := func(s *h2.Stream) {
		_, _ = io.ReadFull(s, make([]byte, 5))
		s.Reset(h2.RefusedStream)
	}
	serve := func(s *h2.Stream) {
		defer s.Close()
		echo(s)
	}
	for name, first := range map[string]func(*h2.Stream){"not there": nil, "not touched": untouched} {
		t.Run(name, func(t *testing.T) {
			e, _ := newEarlyShared(t, first, serve)
			app := e.app(t, []byte("hello"))
			wantBytes(t, app, []byte("hello"))
			app.CloseWrite()
			if rest, err := io.ReadAll(app); len(rest) != 0 || err != nil {
				t.Errorf("then %q, %v; want the end", rest, err)
			}
		})
	}
}

// TestEarlyBytesStayAtOneEndpoint: the first has got them, and its connection dies. Nobody knows what has become of them, so no other
// endpoint is asked, however many there are.
func TestEarlyBytesStayAtOneEndpoint(t *testing.T) {
	e, hops := newEarlyShared(t, func(s *h2.Stream) {
		_, _ = io.ReadFull(s, make([]byte, 5))
		_ = s.Conn().NetConn().Close()
	}, func(s *h2.Stream) { s.Close() }, func(s *h2.Stream) { s.Close() })
	if n, err := e.app(t, []byte("crash")).Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read %d, %v; want a reset", n, err)
	}
	e.recorded(t, "endpoint=10.0.1.1:15008", "reason=unavailable")
	if n, m := len(hops[1].asked), len(hops[2].asked); n+m != 0 {
		t.Errorf("the others were asked %d times, want never", n+m)
	}
}

// TestSilentAppIsTriedElsewhere: the connection dies with the request, but the app has not said anything.
func TestSilentAppIsTriedElsewhere(t *testing.T) {
	e, _ := newEarlyShared(t, func(s *h2.Stream) { _ = s.Conn().NetConn().Close() }, func(s *h2.Stream) {
		defer s.Close()
		s.Respond(&h2.Header{Status: 200}, false)
		_, _ = s.Write([]byte("220 hello"))
	})
	nc, err := e.net.From(netip.MustParseAddr("10.0.0.9"))(testContext(t), netip.MustParseAddrPort("10.0.0.1:9000"))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	wantBytes(t, nc, []byte("220 hello"))
}

package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"culvert/capture"
	"culvert/pki/spiffe"
)

// sentFrom is the socket of a flow of datagrams from somewhere.
type sentFrom struct {
	net.Conn
	source net.Addr
}

func (s *sentFrom) RemoteAddr() net.Addr { return s.source }

// packetListener returns a gateway with one listener for datagrams that has room for so many flows, and their
// destination. allowed tells whether they may go there.
func packetListener(t *testing.T, room int, allowed bool) (*Gateway, *listener, netip.AddrPort) {
	t.Helper()
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	to := server.LocalAddr().String()
	c := &Config{Listeners: []ListenerConfig{{Name: "plain", Kind: KindForward, Network: "udp", Address: "127.0.0.1:0", To: to, MaxConnections: room}}}
	if allowed {
		c.Routes = []RouteConfig{{Destinations: []string{to}, From: "any"}}
	}
	id := spiffe.ID{}
	g, err := New(c, Env{Self: func() spiffe.ID { return id }})
	if err == nil {
		err = g.Start(context.Background())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	for _, l := range g.listeners {
		return g, l, addrPort(server.LocalAddr())
	}
	t.Fatal("there is no listener")
	panic("not reached")
}

// sendFrom has the listener catch a flow, and returns the app's end.
func sendFrom(t *testing.T, l *listener, to netip.AddrPort, source string) net.Conn {
	t.Helper()
	app, end, err := capture.Pair(true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { app.Close() })
	at, err := net.ResolveUDPAddr("udp", source)
	if err != nil {
		t.Fatal(err)
	}
	l.catchPackets(&capture.Conn{Conn: &sentFrom{end, at}, Way: capture.WayForward, Packets: true,
		Addr: to.Addr(), Port: to.Port()}, nil)
	return app
}

// A source of another host has a share of a listener's flows, and what is over does not count. Those of this host have
// all of it.
func TestSourceHasItsShare(t *testing.T) {
	const room, share = 16, 16 / packetShare
	g, l, to := packetListener(t, room, true)
	var app net.Conn
	for i := range 10 {
		one := sendFrom(t, l, to, fmt.Sprintf("192.0.2.1:%d", 1000+i))
		if i == 0 {
			app = one
		}
	}
	if n := l.open.Load(); n != share || g.stats.shed.load() != 10-share {
		t.Errorf("a source has %d flows, and %d were dropped, want %d and %d", n, g.stats.shed.load(), share, 10-share)
	}
	for i := range 2 * share {
		sendFrom(t, l, to, fmt.Sprintf("127.0.0.1:%d", 1000+i))
	}
	if n := l.open.Load(); n != 3*share {
		t.Errorf("%d flows live, want %d", n, 3*share)
	}
	app.Close()
	for end := time.Now().Add(10 * time.Second); l.open.Load() == 3*share; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the flow does not end with its app")
		}
	}
	sendFrom(t, l, to, "192.0.2.1:2000")
	if n := l.open.Load(); n != 3*share {
		t.Errorf("%d flows live after one has ended and one has begun, want %d", n, 3*share)
	}
}

// A host of IPv6 has a whole network, and the share of one source.
func TestIPv6SourceIsItsNetwork(t *testing.T) {
	_, l, to := packetListener(t, 16, true)
	for i := range 10 {
		sendFrom(t, l, to, fmt.Sprintf("[2001:db8::%x]:1000", 1+i))
	}
	sendFrom(t, l, to, "[2001:db8:0:1::1]:1000")
	if n := l.open.Load(); n != 16/packetShare+1 {
		t.Errorf("%d flows live, want %d", n, 16/packetShare+1)
	}
}

// What a refused source goes on sending is thrown away for a while, but not by a gateway that is closed.
func TestRefusedPacketsEndWithTheGateway(t *testing.T) {
	g, l, to := packetListener(t, 16, false)
	app := sendFrom(t, l, to, "192.0.2.1:1000")
	for end := time.Now().Add(10 * time.Second); g.silenced.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the flow is not refused")
		}
	}
	g.Close()
	_ = app.SetReadDeadline(time.Now().Add(refusedSilence / 2))
	if _, err := app.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("Read = %v, want the end", err)
	}
}

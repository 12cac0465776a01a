package tunnel_test

import (
	"context"
	"net"
	"testing"
	"time"

	"culvert/tunnel"
	"culvert/tunnel/tunneltest"
)

// serveName answers every datagram with name.
func serveName(t *testing.T, name string) (address string) {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	go func() { // ends with pc
		buf := make([]byte, 100)
		for {
			_, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo([]byte(name), from)
		}
	}()
	return pc.LocalAddr().String()
}

// askOnce sends a datagram from a socket of its own and returns the answer.
func askOnce(t *testing.T, address string) string {
	t.Helper()
	nc, err := net.Dial("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	buf := make([]byte, 100)
	for range 10 { // UDP may lose it
		if err := nc.SetDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := nc.Write([]byte("who")); err != nil {
			t.Fatal(err)
		}
		if n, err := nc.Read(buf); err == nil {
			return string(buf[:n])
		}
	}
	return ""
}

// A listener for datagrams keeps its socket when a reload gives it another destination, where new flows go then.
func TestReloadChangesAPacketListener(t *testing.T) {
	config := func(to string) *tunnel.Config {
		return &tunnel.Config{
			Listeners: []tunnel.ListenerConfig{{Name: "plain", Kind: tunnel.KindForward, Network: "udp", Address: "127.0.0.1:0", To: to}},
			Routes:    []tunnel.RouteConfig{{Destinations: []string{to}}},
		}
	}
	one, two := serveName(t, "one"), serveName(t, "two")
	id := tunneltest.NewCA(t).Issue(t, "cluster.local", "default", "entry")
	g, err := tunnel.New(config(one), tunnel.Env{Self: id.Self})
	if err == nil {
		err = g.Start(context.Background())
	}
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	at := g.Addr("plain").String()
	for _, step := range []struct{ to, want string }{{one, "one"}, {two, "two"}, {one, "one"}} {
		if err := g.Reload(testContext(t), config(step.to)); err != nil {
			t.Fatal(err)
		}
		if got := askOnce(t, at); got != step.want || g.Addr("plain").String() != at {
			t.Errorf("a new flow to %s gets %q at %s, want %q at %s", step.to, got, g.Addr("plain"), step.want, at)
		}
	}
}

// A flow of datagrams that this program has dialled ends well when it closes it.
func TestDialledPacketsEndWell(t *testing.T) {
	to := serveName(t, "one")
	id := tunneltest.NewCA(t).Issue(t, "cluster.local", "default", "entry")
	g, err := tunnel.New(&tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "plain", Kind: tunnel.KindForward, Network: "udp", Address: "127.0.0.1:0", To: to}},
		Routes:    []tunnel.RouteConfig{{Destinations: []string{to}}},
	}, tunnel.Env{Self: id.Self})
	if err == nil {
		err = g.Start(context.Background())
	}
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	nc, err := g.Dial(testContext(t), "plain", "udp", to)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	for _, text := range []string{"who", ""} { // an empty datagram is one
		if _, err := nc.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if n, err := nc.Read(buf); err != nil || string(buf[:n]) != "one" {
			t.Fatalf("the answer to %q is %q, %v", text, buf[:n], err)
		}
	}
	nc.Close()
	waitUntil(t, "the record", func() bool { return g.Stats().Ended["ok"] == 1 })
}

package attack

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestAttackSlow begins things and does not end them (row 22). tunnel/h2 tests the times to the second, and the five
// minutes of a connection without a stream.
func TestAttackSlow(t *testing.T) {
	e := startExit(t, "256MiB")
	check := startInnocent(t, e)
	before := figures(t, e.Gateway)
	tests := []struct {
		name string
		tls  bool
		send string
	}{
		{"nothing at all", false, ""},
		{"half a TLS record", false, "\x16\x03\x01\x02\x00\x01"},
		{"HTTP/2 without TLS", false, http2.ClientPreface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00"},
		{"nothing after TLS", true, ""},
		{"half a preface", true, http2.ClientPreface[:12]},
		{"no SETTINGS", true, http2.ClientPreface},
		{"no acknowledgement", true, http2.ClientPreface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00"},
		{"HTTP/1.1 after TLS", true, "GET / HTTP/1.1\r\nhost: a\r\n\r\n"},
	}
	var conns []net.Conn
	for _, tt := range tests { // all at once: each takes the gateway's time
		nc := rawConn(t, e, tt.tls)
		if _, err := io.WriteString(nc, tt.send); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, nc)
	}
	p, err := e.Peer(e.servers.echo)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.Tunnel(); err != nil {
		t.Fatal(err)
	}
	p.Hush()
	err = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: []byte{0x82}})
	if err = errors.Join(err, p.Flush()); err != nil {
		t.Fatal(err)
	}
	for i, nc := range conns {
		wantClosed(t, nc, tests[i].name)
	}
	if !p.Wait(patience, func(s *Seen) bool { return s.Ended }) || !slices.Equal(p.Look().GoAways, calm) {
		t.Errorf("half a header block: GOAWAY %v, want ENHANCE_YOUR_CALM", p.Look().GoAways)
	}
	check(t)
	wantBack(t, e.Gateway, before)
}

func rawConn(t *testing.T, e *Exit, withTLS bool) net.Conn {
	t.Helper()
	var nc net.Conn
	var err error
	if withTLS {
		var tc *tls.Conn
		tc, err = dialTLS(e.Address, e.attacker.ClientTLS(nil))
		nc = tc
	} else {
		nc, err = net.Dial("tcp", e.Address)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return nc
}

// wantClosed wants the gateway to close the connection.
func wantClosed(t *testing.T, nc net.Conn, after string) {
	t.Helper()
	_ = nc.SetReadDeadline(time.Now().Add(patience)) // its passing is told below
	if _, err := io.Copy(io.Discard, nc); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection is still open %v after %s", patience, after)
	}
}

// TestAttackZeroWindow lets 200 tunnels to a source without end stand still (row 9).
func TestAttackZeroWindow(t *testing.T) {
	e := startExit(t, "256MiB")
	check := startInnocent(t, e)
	before := figures(t, e.Gateway)
	p, err := e.ZeroWindow()
	if p != nil {
		defer p.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	check(t)
	now := figures(t, e.Gateway)
	if grown := now.RSS - before.RSS; grown > memoryGrowth {
		t.Errorf("200 tunnels without window hold %.1f MiB, want at most 16", grown/(1<<20))
	}
	if s := p.Look(); s.Data > 0 || s.Ended {
		t.Errorf("%d bytes came without window; ended: %v", s.Data, s.Ended)
	}
	p.Close()
	wantBack(t, e.Gateway, before)
}

// TestAttackStalledReaders fills the budget of the process with a thousand tunnels that nobody reads from. Those
// that have stalled longest are reset with ENHANCE_YOUR_CALM; a tunnel on one of their connections and one on
// another go on, new ones can be had, and the process stays near its limit.
func TestAttackStalledReaders(t *testing.T) {
	const memory = 64 << 20
	e := startExit(t, "64MiB")
	check := startInnocent(t, e)
	before := figures(t, e.Gateway)
	peers, err := e.Stalled(1000)
	defer func() {
		for _, p := range peers {
			p.Close()
		}
	}()
	if err != nil {
		t.Fatal(err)
	}
	last := peers[len(peers)-1]
	if err := last.Echo(1, "beside stalled ones"); err != nil {
		t.Error(err)
	}
	check(t)
	for end := time.Now().Add(patience); figures(t, e.Gateway).StallResets == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no stream was reset for the memory of others")
		}
	}
	if !peers[0].Wait(patience, func(s *Seen) bool { return s.Resets > 0 }) || peers[0].resetWith(http2.ErrCodeEnhanceYourCalm) == 0 {
		t.Error("the first connection saw no RST_STREAM with ENHANCE_YOUR_CALM")
	}
	fresh := startInnocent(t, e)
	fresh(t)
	now := figures(t, e.Gateway)
	if now.RSS > before.RSS+memory {
		t.Errorf("resident memory is %.1f MiB, with a budget of 64", now.RSS/(1<<20))
	}
	for _, p := range peers {
		if s := p.Look(); s.Ended {
			t.Errorf("a connection has ended: %v %v", s.GoAways, s.EndReason)
		}
	}
	t.Logf("%.0f streams reset, %.1f MiB resident, %.1f before", now.StallResets, now.RSS/(1<<20), before.RSS/(1<<20))
	if err := last.Echo(1, "and still"); err != nil {
		t.Error(err)
	}
	for _, p := range peers {
		p.Close()
	}
	before.Files += 2 // of the fresh one
	before.Connections++
	before.Active++
	before.RSS = now.RSS // what was free goes back to the system in the minutes after
	wantBack(t, e.Gateway, before)
}

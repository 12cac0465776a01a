package tunnel_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"culvert/tunnel"
	"culvert/tunnel/h2"
	"culvert/tunnel/tunneltest"
	"culvert/tunnel/tunneltest/memnet"
)

// early is an entry with a forwarded port before a hop that a test scripts. Apps on it need no answer before they
// send.
type early struct {
	net *memnet.Net
	hop *fakeHop
	log *tunneltest.Log
}

func newEarly(t *testing.T, cfg h2.Config, handle func(*h2.Stream)) *early {
	t.Helper()
	e := &early{net: memnet.New(), log: &tunneltest.Log{}}
	ca := tunneltest.NewCA(t)
	e.hop = newFakeHopOf(t, e.net, ca.Issue(t, "cluster.local", "default", "far"), "10.0.0.3:15008", cfg, handle)
	tunneltest.NewGateway(t, e.net, "10.0.0.1", ca.Issue(t, "cluster.local", "default", "entry"), &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "plain", Kind: tunnel.KindForward, Address: "10.0.0.1:9000", To: "192.0.2.1:80"}},
		Routes:    []tunnel.RouteConfig{{From: "any", Via: []string{"10.0.0.3:15008"}}},
	}, nil, nil, logTo(e.log))
	return e
}

// app opens a connection to the forwarded port and writes text.
func (e *early) app(t *testing.T, text []byte) *memnet.Conn {
	t.Helper()
	nc, err := e.net.From(netip.MustParseAddr("10.0.0.9"))(testContext(t), netip.MustParseAddrPort("10.0.0.1:9000"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	go nc.Write(text) // ends with the connection, if nobody reads
	return nc.(*memnet.Conn)
}

// recorded waits for the flow's record and wants all of parts in it.
func (e *early) recorded(t *testing.T, parts ...string) {
	t.Helper()
	waitUntil(t, "the record", func() bool { return strings.Contains(e.log.String(), "msg=flow") })
	for _, part := range parts {
		if !strings.Contains(e.log.String(), part) {
			t.Errorf("no %q in the record: %s", part, e.log)
		}
	}
}

// wantBytes reads len(want) bytes of r, and no more.
func wantBytes(t *testing.T, r io.Reader, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read other bytes than the %d that were sent: %.20q, %v", len(want), got, err)
	}
}

func TestEarlyBytesComeBeforeTheAnswer(t *testing.T) {
	e := newEarly(t, h2.Config{}, func(s *h2.Stream) {
		defer s.Close()
		wantBytes(t, s, []byte("hello")) // an entry that waited for the answer would never send them
		if s.Respond(&h2.Header{Status: 200}, false) == nil {
			io.WriteString(s, "welcome")
			io.Copy(s, s)
		}
	})
	app := e.app(t, []byte("hello"))
	wantBytes(t, app, []byte("welcome"))
	wantEcho(t, app, "and so on")
	e.recorded(t, "bytes_in=14", "bytes_out=16")
}

// TestEarlyBytesAreBounded has an app that sends much, and a hop that takes its time.
func TestEarlyBytesAreBounded(t *testing.T) {
	text := make([]byte, 1<<20)
	rand.Read(text)
	for name, cfg := range map[string]h2.Config{
		"windows as they are": {},
		"a small window":      {StreamWindow: 4000}, // a write waits for window when the answer comes
	} {
		t.Run(name, func(t *testing.T) {
			e := newEarly(t, cfg, func(s *h2.Stream) {
				defer s.Close()
				time.Sleep(100 * time.Millisecond) // real time: for the entry to send all that it will
				s.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
				ahead, err := io.ReadAll(io.LimitReader(s, 64<<10))
				if len(ahead) < 1000 || len(ahead) >= 64<<10 || err == nil {
					t.Errorf("%d bytes and %v before the answer, want a few thousand and the deadline", len(ahead), err)
				}
				s.SetReadDeadline(time.Time{})
				if s.Respond(&h2.Header{Status: 200}, false) == nil {
					io.Copy(s, io.MultiReader(bytes.NewReader(ahead), s))
					s.CloseWrite()
				}
			})
			app := e.app(t, nil)
			go func() { // ends with the test's connection
				app.Write(text)
				app.CloseWrite()
			}()
			got, err := io.ReadAll(app)
			if err != nil || !bytes.Equal(got, text) {
				t.Errorf("%d bytes came back, %v; want the %d that were sent", len(got), err, len(text))
			}
			app.Close()
			e.recorded(t, "bytes_in=1048576")
		})
	}
}

// TestEarlyEndBeforeTheAnswer has an app that sends all it has and ends its side.
func TestEarlyEndBeforeTheAnswer(t *testing.T) {
	e := newEarly(t, h2.Config{}, func(s *h2.Stream) {
		defer s.Close()
		wantBytes(t, s, []byte("all"))
		time.Sleep(50 * time.Millisecond) // real time: for the entry to see the end
		if s.Respond(&h2.Header{Status: 200}, false) == nil {
			rest, err := io.ReadAll(s)
			if len(rest) != 0 || err != nil {
				t.Errorf("then %q, %v; want the end", rest, err)
			}
			io.WriteString(s, "thanks")
		}
	})
	app := e.app(t, nil)
	io.WriteString(app, "all")
	app.CloseWrite()
	if got, err := io.ReadAll(app); string(got) != "thanks" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestEarlyBytesOfARefusedFlow(t *testing.T) {
	e := newEarly(t, h2.Config{}, func(s *h2.Stream) {
		defer s.Close()
		wantBytes(t, s, []byte("hello"))
		s.Respond(&h2.Header{Status: 403}, true)
	})
	if n, err := e.app(t, []byte("hello")).Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read %d, %v; want a reset", n, err)
	}
	e.recorded(t, "reason=denied", "bytes_in=0")
}

// TestEarlyBytesAreSentAgain has a hop that says it has not touched the first request.
func TestEarlyBytesAreSentAgain(t *testing.T) {
	first := make(chan bool, 1)
	first <- true
	e := newEarly(t, h2.Config{}, func(s *h2.Stream) {
		defer s.Close()
		select {
		case <-first:
			wantBytes(t, s, []byte("hello"))
			s.Reset(h2.RefusedStream)
		default:
			echo(s)
		}
	})
	app := e.app(t, []byte("hello"))
	wantBytes(t, app, []byte("hello"))
	app.CloseWrite()
	if rest, err := io.ReadAll(app); len(rest) != 0 || err != nil {
		t.Errorf("then %q, %v; want the end", rest, err)
	}
	if n := len(e.hop.asked); n != 2 {
		t.Errorf("the hop was asked %d times, want 2", n)
	}
}

// TestEarlyBytesAreNotCarriedTwice has the connection die that the bytes went out on: nobody knows whether they
// have reached the destination.
func TestEarlyBytesAreNotCarriedTwice(t *testing.T) {
	e := newEarly(t, h2.Config{}, func(s *h2.Stream) {
		b := make([]byte, 5)
		if io.ReadFull(s, b); string(b) == "crash" {
			s.Conn().NetConn().Close()
			return
		}
		defer s.Close()
		s.Respond(&h2.Header{Status: 200}, false)
		s.Write(b)
	})
	wantBytes(t, e.app(t, []byte("hello")), []byte("hello")) // the connection has served now
	if n, err := e.app(t, []byte("crash")).Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read %d, %v; want a reset", n, err)
	}
	if n := len(e.hop.asked); n != 2 {
		t.Errorf("the hop was asked %d times, want 2", n)
	}
}

// TestEarlyAppLeaves has the app break its connection before the hop has answered: the request is withdrawn.
func TestEarlyAppLeaves(t *testing.T) {
	asked, over := make(chan struct{}), make(chan struct{})
	e := newEarly(t, h2.Config{}, func(s *h2.Stream) {
		defer s.Close()
		wantBytes(t, s, []byte("hello"))
		close(asked)
		<-s.Done()
		close(over)
	})
	app := e.app(t, []byte("hello"))
	<-asked
	app.SetLinger(0)
	app.Close()
	select {
	case <-over:
	case <-testContext(t).Done():
		t.Fatal("the hop was not told that the app is gone")
	}
	e.recorded(t, "reason=source-gone")
}

// TestEarlyTCPAppLeaves is TestEarlyAppLeaves with a socket, whose error the system tells only once.
func TestEarlyTCPAppLeaves(t *testing.T) {
	asked, over := make(chan struct{}), make(chan struct{})
	n, ca := memnet.New(), tunneltest.NewCA(t)
	newFakeHop(t, n, ca.Issue(t, "cluster.local", "default", "far"), "10.0.0.3:15008", func(s *h2.Stream) {
		defer s.Close()
		close(asked)
		<-s.Done()
		close(over)
	})
	log := &tunneltest.Log{}
	g := tunneltest.NewGateway(t, n, "10.0.0.1", ca.Issue(t, "cluster.local", "default", "entry"), &tunnel.Config{
		Listeners: []tunnel.ListenerConfig{{Name: "plain", Kind: tunnel.KindForward, Address: "127.0.0.1:0", To: "192.0.2.1:80"}},
		Routes:    []tunnel.RouteConfig{{Via: []string{"10.0.0.3:15008"}}},
	}, nil, func(env *tunnel.Env) { env.Listen = nil }, logTo(log))
	app, err := net.Dial("tcp", g.Addr("plain").String())
	if err != nil {
		t.Fatal(err)
	}
	<-asked
	app.(*net.TCPConn).SetLinger(0)
	app.Close()
	select {
	case <-over:
	case <-testContext(t).Done():
		t.Fatal("the hop was not told that the app is gone")
	}
	waitUntil(t, "the record", func() bool { return strings.Contains(log.String(), "reason=source-gone") })
}

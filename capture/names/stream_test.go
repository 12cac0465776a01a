package names

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// served runs serve with one end of a pipe, and returns the other and what tells that serve has ended.
func served(t *testing.T, serve func(context.Context, net.Conn)) (app net.Conn, ended <-chan struct{}, cancel func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	app, ours := net.Pipe()
	done := make(chan struct{})
	// Ends with serve, at the latest when the app's end is closed; the test waits for it.
	go func() {
		defer close(done)
		defer ours.Close()
		serve(ctx, ours)
	}()
	t.Cleanup(func() {
		app.Close()
		cancel()
		<-done
	})
	return app, done, cancel
}

func framed(t testing.TB, q *dns.Msg) []byte {
	t.Helper()
	b := packed(t, q)
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
}

// numbered is a question with an ID.
func numbered(id uint16, name string) *dns.Msg {
	q := question(name, dns.TypeA)
	q.Id = id
	return q
}

// slowFor answers the name slow. after a time, others at once.
func slowFor(d time.Duration) script {
	return func(_ string, q *dns.Msg) []*dns.Msg {
		name := q.Question[0].Name
		if name == "slow.example." {
			time.Sleep(d) // of synthetic time
		}
		return []*dns.Msg{replyTo(q, name+" 60 IN A 192.0.2.1")}
	}
}

func TestStreamAnswersPipelinedQuestions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(t, slowFor(2*time.Second))
		s := newServer(t, &Config{Upstream: m.addrs()}, m.dial)
		app, ended, _ := served(t, func(ctx context.Context, nc net.Conn) { s.ServeStream(ctx, nc, nobody) })
		var text []byte
		text = append(text, framed(t, numbered(1, "slow.example."))...)
		for id := range uint16(9) {
			text = append(text, framed(t, numbered(id+2, "fast.example."))...)
		}
		var group sync.WaitGroup
		group.Go(func() {
			if _, err := app.Write(text); err != nil {
				t.Errorf("Write = %v, want nil", err)
			}
		})
		conn := &dns.Conn{Conn: app}
		seen := make(map[uint16]bool)
		for i := range 10 {
			got, err := conn.ReadMsg()
			if err != nil {
				t.Fatal(err)
			}
			if seen[got.Id] || len(got.Answer) != 1 || (got.Id == 1) != (i == 9) {
				t.Errorf("answer %d is %d with %v, want each once, and the slow one last", i, got.Id, got.Answer)
			}
			seen[got.Id] = true
		}
		group.Wait()
		// The app is silent now.
		start := time.Now()
		<-ended
		if took := time.Since(start); took > tcpIdle {
			t.Errorf("the connection was served for %v of silence, want no more than %v", took, tcpIdle)
		}
		if n := s.stats.Questions.Load(); n != 10 {
			t.Errorf("Questions = %d, want 10", n)
		}
	})
}

// TestStreamHalfClosed has an app that asks, sends its end, and waits, over a socket that knows half-close.
func TestStreamHalfClosed(t *testing.T) {
	r := newResolver(t, fixed(wwwRecord))
	s := newServer(t, &Config{Upstream: []string{r.addr}}, dialLoopback)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	app, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	ours, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := app.Write(framed(t, question("www.example.", dns.TypeA))); err != nil {
		t.Fatal(err)
	}
	if err := app.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	s.ServeStream(t.Context(), ours, nobody)
	ours.Close()
	got, err := (&dns.Conn{Conn: app}).ReadMsg()
	if err != nil {
		t.Fatal(err)
	}
	wantShown(t, got, wwwFound)
}

func TestStreamIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, &Config{Virtual: []string{"*.mesh"}}, nil)
		app, ended, _ := served(t, func(ctx context.Context, nc net.Conn) { s.ServeStream(ctx, nc, nobody) })
		var group sync.WaitGroup
		group.Go(func() {
			for id := range uint16(tcpAtMost + 1) {
				if _, err := app.Write(framed(t, numbered(id, "a.mesh."))); (err != nil) != (id == tcpAtMost) {
					t.Errorf("Write of question %d = %v", id+1, err)
				}
			}
		})
		all, err := io.ReadAll(app)
		if err != nil {
			t.Errorf("Read = %v, want the end", err)
		}
		group.Wait()
		<-ended
		one := len(s.answer(t.Context(), packed(t, numbered(1, "a.mesh.")), nobody, plainSize)) + 2
		if len(all) != tcpAtMost*one {
			t.Errorf("%d bytes of answers, want %d of %d bytes", len(all), tcpAtMost, one)
		}
	})
}

// TestStreamAtOnceIsBounded has an app ask much of a slow resolver.
func TestStreamAtOnceIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(t, silent)
		s := newServer(t, &Config{Upstream: m.addrs()}, m.dial)
		app, ended, _ := served(t, func(ctx context.Context, nc net.Conn) { s.ServeStream(ctx, nc, nobody) })
		var group sync.WaitGroup
		group.Go(func() {
			for id := range uint16(50) {
				if _, err := app.Write(framed(t, numbered(id, fmt.Sprintf("n%d.example.", id)))); err != nil {
					return // closed below
				}
			}
		})
		synctest.Wait()
		if n := m["r1:53"].asked.Load(); n != atOnce {
			t.Errorf("%d questions are being answered, want %d", n, atOnce)
		}
		app.Close()
		<-ended
		group.Wait()
	})
}

func TestStreamEnds(t *testing.T) {
	answer := question("a.mesh.", dns.TypeA)
	answer.Response = true
	for name, c := range map[string]struct {
		text []byte
		took time.Duration
	}{
		"silence":            {nil, tcpIdle},
		"half a question":    {framed(t, question("a.mesh.", dns.TypeA))[:9], tcpIdle},
		"no DNS":             {[]byte("GET / HTTP/1.1\r\n\r\n"), 0}, // GE is a length of 18245
		"malformed":          {[]byte("\x00\x05hello"), 0},
		"empty":              {[]byte("\x00\x00"), 0},
		"an answer":          {framed(t, answer), 0},
		"too long a message": {[]byte("\xff\xff"), 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newServer(t, &Config{Virtual: []string{"*.mesh"}}, nil)
				app, ended, _ := served(t, func(ctx context.Context, nc net.Conn) { s.ServeStream(ctx, nc, nobody) })
				if _, err := app.Write(c.text); err != nil && name != "no DNS" { // which is not read to its end
					t.Fatal(err)
				}
				start := time.Now()
				<-ended
				if took := time.Since(start); took != c.took {
					t.Errorf("ServeStream ended after %v, want %v", took, c.took)
				}
				if b, err := io.ReadAll(app); err != nil || len(b) != 0 {
					t.Errorf("the app reads %x, %v, want the end", b, err)
				}
			})
		})
	}
}

// TestStreamThatReadsNothing has an app that asks and does not take the answer.
func TestStreamThatReadsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, &Config{Virtual: []string{"*.mesh"}}, nil)
		app, ended, _ := served(t, func(ctx context.Context, nc net.Conn) { s.ServeStream(ctx, nc, nobody) })
		if _, err := app.Write(framed(t, question("a.mesh.", dns.TypeA))); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		<-ended
		if took := time.Since(start); took > tcpIdle {
			t.Errorf("ServeStream ended after %v, want at most %v", took, tcpIdle)
		}
	})
}

// TestContextEndsServing ends the context while one question waits for a resolver.
func TestContextEndsServing(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		t.Run(network, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemory(t, silent)
				s := newServer(t, &Config{Upstream: m.addrs()}, m.dial)
				app, ended, cancel := served(t, func(ctx context.Context, nc net.Conn) {
					if network == "tcp" {
						s.ServeStream(ctx, nc, nobody)
					} else {
						s.ServePackets(ctx, nc, nobody, nil)
					}
				})
				text := framed(t, question("www.example.", dns.TypeA))
				if network == "udp" {
					text = text[2:]
				}
				if _, err := app.Write(text); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				start := time.Now()
				cancel()
				<-ended
				if took := time.Since(start); took != 0 {
					t.Errorf("serving ended %v after its context, want at once", took)
				}
			})
		})
	}
}

func TestPackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(t, slowFor(2500*time.Millisecond))
		s := newServer(t, &Config{Upstream: m.addrs()}, m.dial)
		first := [][]byte{packed(t, numbered(1, "slow.example.")), []byte("hello"), packed(t, numbered(2, "fast.example."))}
		app, ended, _ := served(t, func(ctx context.Context, nc net.Conn) { s.ServePackets(ctx, nc, nobody, first) })
		start := time.Now()
		buf := make([]byte, dns.MaxMsgSize)
		hears := func(id uint16, at time.Duration) {
			t.Helper()
			n, err := app.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			m, err := unpack(buf[:n])
			if err != nil || m.Id != id || len(m.Answer) != 1 || time.Since(start) != at {
				t.Errorf("answer after %v = %v (%v), want that to %d after %v", time.Since(start), m, err, id, at)
			}
		}
		hears(2, 0)
		time.Sleep(2 * time.Second) // of synthetic time: the app waits for the other answer
		if _, err := app.Write(packed(t, numbered(3, "fast.example."))); err != nil {
			t.Fatal(err)
		}
		hears(3, 2*time.Second)
		hears(1, 2500*time.Millisecond)
		<-ended
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("ServePackets ended after %v, want a second after the last question, and not before its answers", took)
		}
		wantCounts(t, s, "questions=3 cached=1 dropped=1")
	})
}

// TestPacketsOverSockets has datagrams on a real socket, and answers that fit.
func TestPacketsOverSockets(t *testing.T) {
	r := newResolver(t, long(100))
	s := newServer(t, &Config{Upstream: []string{r.addr}}, dialLoopback)
	app, ours := udpPair(t)
	var group sync.WaitGroup
	group.Go(func() { s.ServePackets(t.Context(), ours, nobody, nil) })
	q := question("many.example.", dns.TypeA)
	q.SetEdns0(800, false)
	if _, err := app.Write(packed(t, q)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, dns.MaxMsgSize)
	n, err := app.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	if got := answerTo(t, q, buf[:n]); n > 800 || !got.Truncated {
		t.Errorf("%d bytes, truncated %v, want at most 800 and truncated", n, got.Truncated)
	}
	if err := ours.SetReadDeadline(time.Unix(1, 0)); err != nil { // as if it had been silent
		t.Fatal(err)
	}
	group.Wait()
	if _, err := ours.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Read = %v, want a connection that is open", err)
	}
}

// udpPair returns two sockets that are connected to each other.
func udpPair(t *testing.T) (app, ours *net.UDPConn) {
	t.Helper()
	free, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	at := free.LocalAddr().(*net.UDPAddr)
	app, err = net.DialUDP("udp", nil, at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { app.Close() })
	free.Close()
	ours, err = net.DialUDP("udp", at, app.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close() })
	return app, ours
}

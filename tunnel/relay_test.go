package tunnel

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"culvert/tunnel/tunneltest/memnet"
)

// side is one end of a relayed flow: what the relay holds, and what the other side of it holds.
type side struct {
	end    Conn
	far    *memnet.Conn // the app, or the destination
	stream *fakeStream  // nil where end is a socket
}

func newSide(stream bool) *side {
	near, far := memnet.Pipe(netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2"))
	s := &side{far: far}
	if stream {
		s.stream = newFakeStream(near)
		s.end = s.stream
	} else {
		s.end = NewConn(near)
	}
	return s
}

// relayed is a flow that runs between two sides.
type relayed struct {
	app, dest *side
	flow      *Flow
	err       error
	done      chan struct{}
}

// relayKinds are all pairs of ends.
var relayKinds = []struct {
	name      string
	app, dest bool // a stream
}{
	{"socket to stream", false, true},
	{"stream to socket", true, false},
	{"stream to stream", true, true},
	{"socket to socket", false, false},
}

func startRelay(app, dest bool, ahead string) *relayed {
	r := newRelay(app, dest)
	go r.flow.relay(r.app.end, []byte(ahead), r.dest.end) // ends with the flow at the latest; every test waits for done
	return r
}

// newRelay makes the sides and a flow that is not relayed yet.
func newRelay(app, dest bool) *relayed {
	r := &relayed{app: newSide(app), dest: newSide(dest), flow: &Flow{Target: Target{Host: "a", Port: 1}}, done: make(chan struct{})}
	r.flow.Ended = func() {
		r.err = r.flow.reason()
		close(r.done)
	}
	r.flow.prepare(testGateway(), 1, testPlan(TimeoutConfig{}))
	return r
}

// eachKind runs test for every pair of ends, in synthetic time.
func eachKind(t *testing.T, test func(t *testing.T, r *relayed)) {
	for _, k := range relayKinds {
		t.Run(k.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startRelay(k.app, k.dest, "")
				test(t, r)
				<-r.done
				r.app.far.Close()
				r.dest.far.Close()
			})
		})
	}
}

// wantEnd reads everything from c and wants text and then a clean end.
func wantEnd(t *testing.T, who string, c *memnet.Conn, text string) {
	t.Helper()
	got, err := io.ReadAll(c)
	if string(got) != text || err != nil {
		t.Errorf("%s read %.40q, %v, want %.40q and the end", who, got, err, text)
	}
}

// wantReset reads from c and wants text at most and then a reset.
func wantReset(t *testing.T, who string, c *memnet.Conn) {
	t.Helper()
	if got, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%s read %.40q, %v, want ECONNRESET", who, got, err)
	}
}

// There may be very many flows. One of more bytes than these, with what the runtime adds, is in the next size class.
func TestFlowIsSmall(t *testing.T) {
	if n := unsafe.Sizeof(Flow{}); n > 632 {
		t.Errorf("a flow takes %d bytes, want at most 632", n)
	}
}

func TestRelayHalfCloseAppFirst(t *testing.T) {
	eachKind(t, func(t *testing.T, r *relayed) {
		question, answer := strings.Repeat("q", 300_000), strings.Repeat("a", 300_000)
		go func() { // ends with its writes; wantEnd at the destination waits for them
			r.app.far.Write([]byte(question))
			r.app.far.CloseWrite()
		}()
		wantEnd(t, "destination", r.dest.far, question)
		time.Sleep(time.Hour) // the other direction is not ended by the end of the first
		go func() {           // ends with its writes; wantEnd at the app waits for them
			r.dest.far.Write([]byte(answer))
			r.dest.far.CloseWrite()
		}()
		wantEnd(t, "app", r.app.far, answer)
		<-r.done
		if r.err != nil || r.flow.in.carried() != 300_000 || r.flow.out.carried() != 300_000 {
			t.Errorf("flow ended with %v after %d, %d bytes, want no error and 300000 each", r.err, r.flow.in.carried(), r.flow.out.carried())
		}
		for _, s := range []*side{r.app, r.dest} {
			if s.stream != nil && (s.stream.wasReset() != nil || !s.stream.closed) {
				t.Errorf("stream was reset with %v, closed: %v, want only closed", s.stream.wasReset(), s.stream.closed)
			}
		}
	})
}

func TestRelayHalfCloseDestinationFirst(t *testing.T) {
	eachKind(t, func(t *testing.T, r *relayed) {
		r.dest.far.Write([]byte("banner"))
		r.dest.far.CloseWrite()
		wantEnd(t, "app", r.app.far, "banner")
		time.Sleep(time.Hour)
		r.app.far.Write([]byte("late"))
		r.app.far.CloseWrite()
		wantEnd(t, "destination", r.dest.far, "late")
		<-r.done
		if r.err != nil {
			t.Errorf("flow ended with %v, want nil", r.err)
		}
	})
}

func TestRelayReset(t *testing.T) {
	for _, tt := range []struct {
		name  string
		from  func(*relayed) *side
		to    func(*relayed) *side
		cause Cause
	}{
		{"by the app", func(r *relayed) *side { return r.app }, func(r *relayed) *side { return r.dest }, CauseSourceBroke},
		{"by the destination", func(r *relayed) *side { return r.dest }, func(r *relayed) *side { return r.app }, CauseDestinationBroke},
	} {
		t.Run(tt.name, func(t *testing.T) {
			eachKind(t, func(t *testing.T, r *relayed) {
				from, to := tt.from(r), tt.to(r)
				synctest.Wait()
				from.far.SetLinger(0)
				from.far.Close()
				wantReset(t, "the other side", to.far)
				<-r.done
				if CauseOf(r.err) != tt.cause {
					t.Errorf("flow ended with %v, want cause %v", r.err, tt.cause)
				}
				if to.stream != nil && CauseOf(to.stream.wasReset()) != tt.cause {
					t.Errorf("stream was reset with %v, want cause %v", to.stream.wasReset(), tt.cause)
				}
			})
		})
	}
}

// A destination that has answered and takes nothing more does not cost the app the answer's tail (RFC 9113,
// section 8.1), even while the app still sends.
func TestRelayAnswerBeforeRequestIsComplete(t *testing.T) {
	eachKind(t, func(t *testing.T, r *relayed) {
		tail := strings.Repeat("t", 200_000)
		stopped := make(chan struct{})
		go func() { // ends when nobody takes bytes any more; waited for below
			defer close(stopped)
			for {
				if _, err := r.app.far.Write(make([]byte, 1000)); err != nil {
					return
				}
				time.Sleep(time.Millisecond) // so that synthetic time goes on
			}
		}()
		closed := make(chan struct{})
		go func() { // ends with its writes; waited for below
			defer close(closed)
			r.dest.far.Write([]byte(tail))
			r.dest.far.CloseWrite()
			io.CopyN(io.Discard, r.dest.far, 5000)
			r.dest.far.Close() // with unread bytes: what comes is refused
		}()
		wantEnd(t, "app", r.app.far, tail)
		<-closed
		time.Sleep(lingerTimeout / 2)
		r.app.far.Close()
		<-stopped
		<-r.done
		if CauseOf(r.err) != CauseDestinationBroke {
			t.Errorf("flow ended with %v, want that the destination did not take everything", r.err)
		}
	})
}

// A half-closed stream that is reset while the other side is silent ends the flow.
func TestRelayHalfClosedStreamIsReset(t *testing.T) {
	for _, k := range relayKinds {
		if !k.app {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startRelay(k.app, k.dest, "")
				r.app.far.Write([]byte("all"))
				r.app.far.CloseWrite()
				wantEnd(t, "destination", r.dest.far, "all")
				time.Sleep(time.Minute)
				r.app.stream.end() // the peer resets it
				<-r.done
				if r.err == nil {
					t.Error("flow ended well, want an error: the destination's side was never ended")
				}
				r.app.far.Close()
				r.dest.far.Close()
			})
		})
	}
}

func TestRelayAheadGoesFirst(t *testing.T) {
	for _, k := range relayKinds[:1] {
		synctest.Test(t, func(t *testing.T) {
			r := startRelay(k.app, k.dest, "ahead ")
			r.app.far.Write([]byte("and after"))
			r.app.far.CloseWrite()
			wantEnd(t, "destination", r.dest.far, "ahead and after")
			r.dest.far.CloseWrite()
			<-r.done
			if r.flow.in.carried() != int64(len("ahead and after")) {
				t.Errorf("carried %d bytes, want those ahead to count", r.flow.in.carried())
			}
			r.app.far.Close()
			r.dest.far.Close()
		})
	}
}

func TestRelayCut(t *testing.T) {
	eachKind(t, func(t *testing.T, r *relayed) {
		synctest.Wait()
		why := &Error{Cause: CauseIdle}
		r.flow.cut(why)
		wantReset(t, "app", r.app.far)
		wantReset(t, "destination", r.dest.far)
		<-r.done
		if !errors.Is(r.err, why) {
			t.Errorf("flow ended with %v, want %v", r.err, why)
		}
	})
}

// The goroutine that waits for a silent socket is replaced, and no byte is lost by it.
func TestRelayRenewed(t *testing.T) {
	eachKind(t, func(t *testing.T, r *relayed) {
		for i := range 5 {
			synctest.Wait()
			r.flow.renew()
			r.app.far.Write([]byte{byte('0' + i)})
			r.flow.renew()
		}
		synctest.Wait()
		r.flow.renew()
		r.app.far.CloseWrite()
		wantEnd(t, "destination", r.dest.far, "01234")
		synctest.Wait()
		r.flow.renew()
		r.dest.far.Write([]byte("answer"))
		r.dest.far.CloseWrite()
		wantEnd(t, "app", r.app.far, "answer")
		<-r.done
		if r.err != nil || r.flow.in.carried() != 5 || r.flow.out.carried() != 6 {
			t.Errorf("flow ended with %v after %d, %d bytes, want no error, 5, 6", r.err, r.flow.in.carried(), r.flow.out.carried())
		}
		r.flow.renew() // it is over
	})
}

// Bytes of any number and size arrive exactly, whichever side ends first.
func TestRelayByteExact(t *testing.T) {
	for _, k := range relayKinds {
		t.Run(k.name, func(t *testing.T) {
			for seed := range uint64(20) {
				synctest.Test(t, func(t *testing.T) { relayByteExact(t, k.app, k.dest, seed) })
			}
		})
	}
}

func relayByteExact(t *testing.T, app, dest bool, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	r := startRelay(app, dest, "")
	make1 := func() []byte {
		b := make([]byte, rnd.IntN(400_000))
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		return b
	}
	up, down := make1(), make1()
	send := func(c *memnet.Conn, b []byte, chunk int) {
		for len(b) > 0 {
			n := min(chunk, len(b))
			c.Write(b[:n])
			b = b[n:]
		}
		c.CloseWrite()
	}
	go send(r.app.far, up, 1+rnd.IntN(70_000))    // ends with its bytes, which are read below
	go send(r.dest.far, down, 1+rnd.IntN(70_000)) // ends with its bytes, which are read below
	got := make(chan []byte)
	go func() { // ends with the destination's bytes; received below
		b, _ := io.ReadAll(r.dest.far)
		got <- b
	}()
	gotDown, err := io.ReadAll(r.app.far)
	gotUp := <-got
	<-r.done
	if err != nil || r.err != nil || sha256.Sum256(gotUp) != sha256.Sum256(up) || !bytes.Equal(gotDown, down) {
		t.Errorf("seed %d: %d of %d bytes up, %d of %d down, errors %v, %v", seed, len(gotUp), len(up), len(gotDown), len(down), err, r.err)
	}
	r.app.far.Close()
	r.dest.far.Close()
}

package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"culvert/pki/spiffe"
	"culvert/tunnel/h2"
)

// poolTest is a pool whose transports the test makes.
type poolTest struct {
	*pool
	stats *stats
	chain *chain
	id    spiffe.ID // ours

	mu    sync.Mutex
	dials int
	made  []*fakeTransport
}

// newPoolTest makes a pool for one hop; dial answers the nth attempt, from 1.
func newPoolTest(dial func(ctx context.Context, n int) (*fakeTransport, error)) *poolTest {
	p := &poolTest{stats: &stats{}}
	p.chain = newChain([]*Hop{{Name: "hop", streamsPerConn: defaultStreamsPerConn, address: Target{Host: "hop", Port: 1}}})
	p.pool = newPool(func() spiffe.ID { return p.id }, func(ctx context.Context, _ *chain, _ *timing) (Transport, error) {
		p.mu.Lock()
		p.dials++
		n := p.dials
		p.mu.Unlock()
		t, err := dial(ctx, n)
		if err != nil {
			return nil, err
		}
		p.mu.Lock()
		p.made = append(p.made, t)
		p.mu.Unlock()
		return t, nil
	}, p.stats)
	return p
}

func (p *poolTest) open(t *testing.T) Stream {
	t.Helper()
	s, _, err := p.connect(context.Background(), p.chain, &ConnectRequest{Target: Target{Host: "a", Port: 1}})
	if err != nil {
		t.Fatalf("connect = %v", err)
	}
	return s
}

func (p *poolTest) dialled() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dials
}

// first is the transport that was made first.
func (p *poolTest) first() *fakeTransport {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.made[0]
}

// slowly makes transports that take a second to connect and have n slots.
func slowly(slots int) func(context.Context, int) (*fakeTransport, error) {
	return func(ctx context.Context, _ int) (*fakeTransport, error) {
		select {
		case <-time.After(time.Second):
			return newFakeTransport(slots), nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func TestPoolOneHandshakeAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPoolTest(slowly(1000))
		defer p.close()
		var wg sync.WaitGroup
		start := time.Now()
		for range 50 {
			wg.Go(func() { p.open(t).Close() })
		}
		wg.Wait()
		if p.dialled() != 1 || time.Since(start) != time.Second {
			t.Errorf("50 flows made %d handshakes in %v, want 1 in 1s", p.dialled(), time.Since(start))
		}
	})
}

// Flows that live at the same time are spread over a few connections, and none of them waits for that.
func TestPoolSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPoolTest(slowly(1000))
		defer p.close()
		p.chain.last.spread = 3
		p.open(t).Close()
		time.Sleep(2 * closely)
		first := p.open(t)
		time.Sleep(2 * time.Second)
		if p.dialled() != 1 {
			t.Fatalf("%d handshakes for one flow at a time, want 1", p.dialled())
		}
		list := []Stream{first}
		for range 8 {
			start := time.Now()
			list = append(list, p.open(t))
			if time.Since(start) != 0 {
				t.Errorf("a flow waited %v for a connection although one had room", time.Since(start))
			}
			time.Sleep(2 * time.Second)
		}
		conns := p.chain.group(p.pool).conns
		if p.dialled() != 3 || len(conns) != 3 {
			t.Fatalf("%d handshakes for %d flows, want 3", p.dialled(), len(list))
		}
		for i, one := range conns {
			if one.inUse != 3 {
				t.Errorf("connection %d carries %d of %d flows, want a third", i, one.inUse, len(list))
			}
		}
		for _, s := range list {
			s.Close()
		}
	})
}

func TestPoolSeveralConnectionsToAHotHop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPoolTest(slowly(1000))
		defer p.close()
		var list []Stream
		for range defaultStreamsPerConn - defaultStreamsPerConn/spareFraction {
			list = append(list, p.open(t))
		}
		if p.dialled() != 1 {
			t.Fatalf("%d handshakes for %d flows, want 1", p.dialled(), len(list))
		}
		// The next flow comes near the limit: another connection is made beside, and the flow does not wait.
		start := time.Now()
		list = append(list, p.open(t), p.open(t))
		if time.Since(start) != 0 {
			t.Errorf("a flow waited %v for a handshake although a stream was free", time.Since(start))
		}
		time.Sleep(2 * time.Second)
		if p.dialled() != 2 {
			t.Fatalf("%d handshakes near the limit, want 2", p.dialled())
		}
		for range 100 {
			list = append(list, p.open(t))
		}
		for _, one := range p.chain.group(p.pool).conns {
			if one.inUse > defaultStreamsPerConn {
				t.Errorf("a connection carries %d streams, want at most %d", one.inUse, defaultStreamsPerConn)
			}
		}
		for _, s := range list {
			s.Close()
			s.Close()
			s.Reset(nil)
		}
		for i, one := range p.chain.group(p.pool).conns {
			if one.inUse != 0 {
				t.Errorf("connection %d: %d streams in use after all were closed, want 0", i, one.inUse)
			}
		}
	})
}

// group is the pool's group of a chain, for looking into it.
func (c *chain) group(p *pool) *group {
	g, err := p.group(c)
	if err != nil {
		panic(err)
	}
	return g
}

func TestPoolPeerLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPoolTest(func(context.Context, int) (*fakeTransport, error) { return newFakeTransport(1), nil })
		defer p.close()
		a := p.open(t)
		p.first().setSlots(0) // the hop allows no more
		b := p.open(t)
		synctest.Wait()
		if p.dialled() < 2 {
			t.Errorf("%d handshakes although the first connection is full, want 2", p.dialled())
		}
		a.Close()
		b.Close()
	})
}

// A hop that takes handshakes and then allows no streams (SETTINGS_MAX_CONCURRENT_STREAMS 0) is not given one
// connection for each flow.
func TestPoolHopThatAllowsNoStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPoolTest(func(context.Context, int) (*fakeTransport, error) {
			tr := newFakeTransport(100) // what is assumed until its SETTINGS are there
			tr.connect = func(ctx context.Context, _ *ConnectRequest) (Stream, error) {
				tr.setSlots(0)
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return tr, nil
		})
		defer p.close()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		full := 0
		var flows sync.WaitGroup
		for range 50 {
			flows.Go(func() { // ends with ctx; waited for below
				_, _, err := p.connect(ctx, p.chain, &ConnectRequest{Target: Target{Host: "a", Port: 1}})
				if CauseOf(err) == CauseFull {
					full++
				}
			})
			synctest.Wait()
		}
		flows.Wait()
		if p.dialled() != maxBarren || full != 50-maxBarren {
			t.Errorf("50 flows made %d connections and %d were refused, want %d and %d", p.dialled(), full, maxBarren, 50-maxBarren)
		}
		p.first().setSlots(10)
		p.first().connect = newFakeTransport(1).connect
		p.open(t).Close()
	})
}

// A hop that serves a flow and then misuses the connection, again and again, gets one connection a second.
func TestPoolHopThatMisusesConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPoolTest(func(context.Context, int) (*fakeTransport, error) { return newFakeTransport(100), nil })
		defer p.close()
		passed := 0
		for start := time.Now(); time.Since(start) < 10*time.Second; time.Sleep(10 * time.Millisecond) {
			s, _, err := p.connect(t.Context(), p.chain, &ConnectRequest{Target: Target{Host: "a", Port: 1}})
			if err != nil {
				continue
			}
			passed++
			s.Close()
			p.mu.Lock()
			last := p.made[len(p.made)-1]
			p.mu.Unlock()
			last.fail(&h2.ConnError{Code: h2.EnhanceYourCalm, By: h2.Local})
			synctest.Wait()
			p.groups[groupKey{chain: p.chain.key}].answered(&pooled{buried: true}) // a flow that is slow to say so
		}
		if p.dialled() != 10 || passed != 10 {
			t.Errorf("%d connections for %d flows in ten seconds, want ten each", p.dialled(), passed)
		}
	})
}

func TestPoolFailedDialWakesAllAndIsNotHammered(t *testing.T) {
	boom := errors.New("boom")
	synctest.Test(t, func(t *testing.T) {
		p := newPoolTest(func(_ context.Context, n int) (*fakeTransport, error) {
			time.Sleep(time.Second)
			if n <= 3 {
				return nil, boom
			}
			return newFakeTransport(10), nil
		})
		defer p.close()
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if _, _, err := p.connect(context.Background(), p.chain, &ConnectRequest{}); !errors.Is(err, boom) {
					t.Errorf("connect = %v, want boom", err)
				}
			})
		}
		wg.Wait()
		if p.dialled() != 1 {
			t.Errorf("20 flows made %d attempts, want 1", p.dialled())
		}
		// Flows that come meanwhile fail at once, and the hop is left alone for longer each time.
		for try, pause := range []time.Duration{retryFirst, 2 * retryFirst, 4 * retryFirst} {
			start := time.Now()
			if _, _, err := p.connect(context.Background(), p.chain, &ConnectRequest{}); !errors.Is(err, boom) || time.Since(start) != 0 {
				t.Errorf("connect within the pause = %v after %v, want boom at once", err, time.Since(start))
			}
			time.Sleep(pause - time.Millisecond)
			if p.connect(context.Background(), p.chain, &ConnectRequest{}); p.dialled() != try+1 {
				t.Errorf("%d attempts within the pause %v, want %d", p.dialled(), pause, try+1)
			}
			time.Sleep(2 * time.Millisecond)
			p.connect(context.Background(), p.chain, &ConnectRequest{})
		}
		time.Sleep(retryMost)
		s, _, err := p.connect(context.Background(), p.chain, &ConnectRequest{})
		if err != nil {
			t.Fatalf("connect after the hop is back = %v", err)
		}
		s.Close()
	})
}

func TestPoolWaiterLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPoolTest(slowly(10))
		defer p.close()
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		if _, _, err := p.connect(ctx, p.chain, &ConnectRequest{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("connect = %v, want its deadline", err)
		}
		p.open(t).Close() // the handshake went on
		if p.dialled() != 1 {
			t.Errorf("%d handshakes, want the first to serve who came later", p.dialled())
		}
	})
}

func TestPoolRetries(t *testing.T) {
	unprocessed := &UnprocessedError{Err: &h2.StreamError{Code: h2.RefusedStream, By: h2.Peer}}
	for _, tt := range []struct {
		name  string
		fails int // how often the hop refuses the stream
		err   error
		tries int
		ok    bool
	}{
		{"refused once", 1, unprocessed, 2, true},
		{"refused twice", 2, unprocessed, 3, true},
		{"refused always", 99, unprocessed, 3, false},
		{"hop says no", 99, &RefusedError{Status: 401}, 1, false},
		{"reset after it was processed", 99, &h2.StreamError{Code: h2.InternalError, By: h2.Peer}, 1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tries := 0
			p := newPoolTest(func(context.Context, int) (*fakeTransport, error) {
				tr := newFakeTransport(10)
				good := tr.connect
				tr.connect = func(ctx context.Context, req *ConnectRequest) (Stream, error) {
					if tries++; tries <= tt.fails {
						return nil, tt.err
					}
					return good(ctx, req)
				}
				return tr, nil
			})
			defer p.close()
			s, _, err := p.connect(context.Background(), p.chain, &ConnectRequest{})
			if (err == nil) != tt.ok || tries != tt.tries {
				t.Errorf("connect = %v after %d tries, want success: %v after %d", err, tries, tt.ok, tt.tries)
			}
			if err == nil {
				s.Close()
			}
			if n := p.chain.group(p.pool).conns[0].inUse; n != 0 {
				t.Errorf("%d streams in use afterwards, want 0", n)
			}
		})
	}
}

// A connection that a firewall has forgotten dies with the first request: that one is sent again on a new
// connection. A connection that dies before it has answered anything is a hop that refuses us.
// TestPoolRetryLeavesEarlyBytesAlone has the second try carry nothing of what the first has sent in vain: a
// connection that was silent for long does so.
func TestPoolRetryLeavesEarlyBytesAlone(t *testing.T) {
	tries := 0
	p := newPoolTest(func(context.Context, int) (*fakeTransport, error) {
		ft := newFakeTransport(100)
		answer := ft.connect
		ft.connect = func(ctx context.Context, req *ConnectRequest) (Stream, error) {
			if tries++; tries == 1 {
				req.Early.b, req.Early.sent = []byte("hello"), 5
				return nil, &UnprocessedError{Err: errors.New("refused")}
			}
			return answer(ctx, req)
		}
		return ft, nil
	})
	defer p.close()
	early := new(Early)
	s, _, err := p.connect(t.Context(), p.chain, &ConnectRequest{Target: Target{Host: "a", Port: 1}, Early: early})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got := string(early.left()); got != "hello" || early.carried() != 0 {
		t.Errorf("%q is left and %d bytes count as carried, want all of hello and none", got, early.carried())
	}
}

func TestPoolConnectionDiesBeforeTheAnswer(t *testing.T) {
	dies := func(tr *fakeTransport) func(context.Context, *ConnectRequest) (Stream, error) {
		return func(context.Context, *ConnectRequest) (Stream, error) {
			tr.fail(io.ErrUnexpectedEOF) // who watches the transport may see its end first, and why
			return nil, io.ErrUnexpectedEOF
		}
	}
	t.Run("after it has served others", func(t *testing.T) {
		p := newPoolTest(func(context.Context, int) (*fakeTransport, error) { return newFakeTransport(10), nil })
		defer p.close()
		p.open(t).Close()
		p.first().connect = dies(p.first())
		p.open(t).Close()
		if p.dialled() != 2 {
			t.Errorf("%d handshakes, want 2", p.dialled())
		}
	})
	t.Run("at once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := newPoolTest(func(context.Context, int) (*fakeTransport, error) {
				tr := newFakeTransport(10)
				tr.connect = dies(tr)
				return tr, nil
			})
			defer p.close()
			for range 5 {
				if _, _, err := p.connect(context.Background(), p.chain, &ConnectRequest{}); !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("connect = %v, want why the connection died", err)
				}
			}
			if p.dialled() != 1 {
				t.Errorf("5 flows made %d handshakes with a hop that refuses us, want 1", p.dialled())
			}
		})
	})
}

func TestPoolDrainingConnectionIsRetired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPoolTest(func(context.Context, int) (*fakeTransport, error) { return newFakeTransport(10), nil })
		defer p.close()
		old := p.open(t)
		first := p.first()
		first.setSlots(0)
		close(first.draining) // GOAWAY
		synctest.Wait()
		p.open(t).Close()
		if p.dialled() != 2 || first.closed {
			t.Errorf("%d handshakes, old connection closed: %v, want 2 and its stream alive", p.dialled(), first.closed)
		}
		if !first.drained {
			t.Error("the old connection is not drained")
		}
		old.Close()
	})
}

// A hop that is replaced while it runs takes a connection, says that it leaves and closes: the flow goes to its
// successor, and the hop is not left alone as one that fails. One that does nothing else is.
func TestPoolHopLeavesAtOnce(t *testing.T) {
	gone := &UnprocessedError{Err: &h2.StreamError{Code: h2.RefusedStream, By: h2.Peer}}
	leaves := map[string]func(tr *fakeTransport){
		"before the dial is over": func(tr *fakeTransport) {
			tr.setSlots(0)
			close(tr.draining)
		},
		"before it has processed a stream": func(tr *fakeTransport) {
			tr.connect = func(context.Context, *ConnectRequest) (Stream, error) {
				tr.setSlots(0)
				close(tr.draining)
				tr.Close()
				return nil, gone
			}
		},
	}
	for name, leave := range leaves {
		for _, tt := range []struct {
			times int
			ok    bool
			dials int
		}{{1, true, 2}, {maxTries - 1, true, maxTries}, {99, false, maxTries}} {
			t.Run(fmt.Sprintf("%s, %d times", name, tt.times), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := newPoolTest(func(_ context.Context, n int) (*fakeTransport, error) {
						tr := newFakeTransport(10)
						if n <= tt.times {
							leave(tr)
						}
						return tr, nil
					})
					defer p.close()
					s, _, err := p.connect(context.Background(), p.chain, &ConnectRequest{})
					if (err == nil) != tt.ok || p.dialled() != tt.dials {
						t.Fatalf("connect = %v after %d handshakes, want success: %v after %d", err, p.dialled(), tt.ok, tt.dials)
					}
					if err == nil {
						s.Close()
						return
					}
					if _, _, err := p.connect(context.Background(), p.chain, &ConnectRequest{}); err == nil || p.dialled() != tt.dials {
						t.Errorf("connect at once after that = %v, %d handshakes; want it to be left alone", err, p.dialled())
					}
				})
			})
		}
	}
}

func TestPoolClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPoolTest(slowly(10))
		s := p.open(t)
		waiting := make(chan error, 1)
		go func() { // ends with the pool; received below
			other := newChain([]*Hop{{Name: "other", streamsPerConn: 1}})
			_, _, err := p.connect(context.Background(), other, &ConnectRequest{})
			waiting <- err
		}()
		synctest.Wait()
		p.close()
		if err := <-waiting; err == nil {
			t.Error("connect during close succeeded")
		}
		if _, _, err := p.connect(context.Background(), p.chain, &ConnectRequest{}); CauseOf(err) != CauseDraining {
			t.Errorf("connect after close = %v, want draining", err)
		}
		if !p.first().closed {
			t.Error("a transport was left open")
		}
		s.Close()
		if n := p.stats.transports.load(); n != 0 {
			t.Errorf("%d transports counted as open, want 0", n)
		}
	})
}

func TestPoolDrainWaitsForStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPoolTest(func(context.Context, int) (*fakeTransport, error) { return newFakeTransport(10), nil })
		s := p.open(t)
		start := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		time.AfterFunc(10*time.Second, func() { p.first().Close() }) // the last stream ends
		p.drain(ctx)
		if d := time.Since(start); d != 10*time.Second {
			t.Errorf("drain took %v, want until the streams had ended after 10s", d)
		}
		s.Close()
	})
}

// TestPoolIdentity checks that a tunnel never travels under an identity that is no longer ours.
func TestPoolIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPoolTest(func(context.Context, int) (*fakeTransport, error) { return newFakeTransport(200), nil })
		defer p.close()
		first := p.open(t)
		var err error
		if p.id, err = spiffe.New("cluster.local", "default", "renamed"); err != nil {
			t.Fatal(err)
		}
		second := p.open(t)
		if n := p.dialled(); n != 2 {
			t.Errorf("%d connections for two identities, want 2", n)
		}
		_ = first.Close()
		_ = second.Close()
	})
}

// Connections that were made for more flows than there are now are ended, but not those that flows are spread over.
func TestPoolPrune(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPoolTest(slowly(1))
		defer p.close()
		p.chain.last.spread = 2
		var list []Stream
		for range 5 * defaultStreamsPerConn {
			list = append(list, p.open(t))
			time.Sleep(time.Millisecond)
		}
		for _, s := range list[1:] {
			s.Close()
		}
		time.Sleep(time.Minute) // connections that were begun are made
		g := p.chain.group(p.pool)
		conns := func() []*pooled {
			g.mu.Lock()
			defer g.mu.Unlock()
			return slices.Clone(g.conns)
		}
		made := conns()
		if len(made) < 5 {
			t.Fatalf("%d connections for %d flows, want 5 or more", len(made), len(list))
		}
		p.prune(time.Now())
		p.prune(time.Now().Add(surplusIdle - 1))
		synctest.Wait()
		if n := len(conns()); n != len(made) {
			t.Errorf("%d connections of %d are left before their time", n, len(made))
		}
		p.prune(time.Now().Add(surplusIdle))
		synctest.Wait()
		left := conns()
		if len(left) != 2 || left[0].inUse+left[1].inUse != 1 {
			t.Errorf("%d connections are left, want 2, and among them that of the flow that lives", len(left))
		}
		for _, one := range made {
			fake := one.Transport.(*fakeTransport)
			fake.mu.Lock()
			if drained := fake.drained; drained == slices.Contains(left, one) {
				t.Errorf("drained: %v, want that of those that are not left", drained)
			}
			fake.mu.Unlock()
		}
		list[0].Close()
	})
}

package tunnel

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// What leads to one target each is forgotten when it is idle, or a peer that asks for many would fill the memory.
func TestPoolDropsIdleGroups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPoolTest(func(context.Context, int) (*fakeTransport, error) { return newFakeTransport(10), nil })
		defer p.close()
		p.chain.last.inner = &inner{}
		connect := func(port uint16) Stream {
			t.Helper()
			s, _, err := p.connect(context.Background(), p.chain.to(Target{Host: "a", Port: port}), &ConnectRequest{Target: Target{Host: "a", Port: port}})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		for port := range uint16(100) {
			connect(port + 1).Close()
		}
		live := connect(1)
		if n := len(p.groups); n != 100 {
			t.Fatalf("%d groups, want one for each target", n)
		}
		p.prune(time.Now()) // notes who is idle
		time.Sleep(surplusIdle)
		p.prune(time.Now()) // drains the connections
		synctest.Wait()
		for _, made := range p.made {
			if made.drained {
				made.Close()
			}
		}
		synctest.Wait()
		time.Sleep(groupIdle)
		p.prune(time.Now())
		if n := len(p.groups); n != 1 {
			t.Errorf("%d groups are left, want that of the flow that lives", n)
		}
		connect(2).Close() // one that was dropped
		live.Close()
	})
}

// A flow that has found its group before that is dropped gets another one.
func TestPoolTakesAnotherGroupForADroppedOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPoolTest(func(context.Context, int) (*fakeTransport, error) { return newFakeTransport(10), nil })
		defer p.close()
		g, err := p.group(p.chain)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(groupIdle)
		p.prune(time.Now())
		if _, err := g.take(context.Background(), nil); !errors.Is(err, errDropped) {
			t.Fatalf("take = %v, want errDropped", err)
		}
		p.open(t).Close()
		if got, err := p.group(p.chain); err != nil || got == g {
			t.Errorf("the group that was dropped is still in use")
		}
	})
}

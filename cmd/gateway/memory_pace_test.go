package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
)

// While garbage comes fast the heap may grow, so that it is collected less often; after that memory is given back.
func TestPaceMemory(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(paceDefault))
	percent := func() uint64 {
		s := []metrics.Sample{{Name: "/gc/gogc:percent"}}
		metrics.Read(s)
		return s[0].Value.Uint64()
	}
	const budget = 1 << 30
	t.Setenv("GOGC", "100")
	paceMemory(budget)
	t.Setenv("GOGC", "")
	paceMemory(budget)
	var sink []byte
	for end := time.Now().Add(time.Minute); percent() == paceDefault; {
		if sink = make([]byte, 64<<10); time.Now().After(end) {
			t.Fatal("garbage comes fast, and the collector is as always")
		}
	}
	runtime.KeepAlive(sink)
	goal := []metrics.Sample{{Name: "/gc/heap/goal:bytes"}}
	metrics.Read(goal)
	if n := goal[0].Value.Uint64(); n < paceHeap/2 || n > 2*paceHeap {
		t.Errorf("the heap may become %d MiB large, want about %d", n>>20, paceHeap>>20)
	}
	for end := time.Now().Add(time.Minute); percent() != paceDefault; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("there is no garbage any more, and the percentage is still %d", percent())
		}
	}
}

package main_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// restartLoad is what TestRestartUnderLoad does to a pair.
type restartLoad struct {
	restarts, rate, long int           // rate: new flows a second
	drain                time.Duration // of both gateways
	pause                time.Duration // between two restarts
}

// talkPause is how long a long flow is silent between two exchanges.
const talkPause = 500 * time.Millisecond

// TestRestartUnderLoad restarts entry and exit in turn under new flows and long ones: no new flow fails, no long one
// loses a byte or ends before the drain of a process that carries it is over, and then it ends as a reset, between the
// gateways as RST_STREAM.
func TestRestartUnderLoad(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds; make test has it")
	}
	load := restartLoad{restarts: 3, rate: 100, long: 100, drain: 4 * time.Second, pause: 2 * time.Second}
	if os.Getenv("SOAK") != "" {
		load = restartLoad{restarts: 20, rate: 500, long: 1000, drain: 17 * time.Second, pause: 4 * time.Second}
	}
	m := newMesh(t)
	drain := []string{"--drain", load.drain.String()}
	exit := m.lineage(t, "server", "", nil, append(drain, "--hbone", "$ADDR")...)
	entry := m.lineage(t, "client", "", nil, append(drain, "--forward", "$ADDR="+serve(t, echo), "--via", exit.addr)...)

	stop := make(chan struct{})
	talkers := make([]talker, load.long)
	var running sync.WaitGroup
	for i := range talkers {
		running.Go(func() { talkers[i].talkLoop(entry.addr, stop) }) // ends with stop; Wait below
	}
	var failed, opened atomic.Int64
	running.Go(func() { // ends with stop; Wait below
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for start := time.Now(); ; {
			select {
			case <-stop:
				return
			case now := <-tick.C:
				for due := int64(now.Sub(start).Seconds() * float64(load.rate)); opened.Load() < due; opened.Add(1) {
					running.Go(func() { // ends with the flow, within patience; Wait below
						if err := exchangeAt(entry.addr); err != nil && failed.Add(1) < 10 {
							t.Errorf("new flow at %s: %v", time.Now().Format(time.StampMilli), err)
						}
					})
				}
			}
		}
	})
	for i := range load.restarts {
		time.Sleep(load.pause) // under load
		[]*lineage{exit, entry}[i%2].restart(t)
	}
	time.Sleep(load.drain + load.pause) // the last drain, and what comes after
	close(stop)
	running.Wait()

	kept, cut := 0, 0
	for i := range talkers {
		for _, f := range talkers[i].flows {
			until, ends := load.mayEnd(f.from, entry.turns, exit.turns)
			switch {
			case f.err == nil:
				kept++
			case !errors.Is(f.err, syscall.ECONNRESET):
				t.Errorf("flow %d: %v, want a reset", i, f.err)
			case !ends || f.to.Before(until):
				t.Errorf("flow %d from %s ended at %s: %v, want it to live until %s", i, f.from.Format(time.StampMilli),
					f.to.Format(time.StampMilli), f.err, until.Format(time.StampMilli))
			default:
				cut++
			}
		}
	}
	t.Logf("%d restarts: %d of %d new flows failed; %d long flows: %d ended with a drain, %d lived to the end",
		load.restarts, failed.Load(), opened.Load(), kept+cut, cut, kept)
	if cut == 0 {
		t.Error("no flow was ended by a drain, so that nothing is known of how")
	}
	resets := entry.wantCuts(t, "destination-broke") + exit.wantCuts(t, "source-broke")
	if resets == 0 {
		t.Error("no record of a flow that the other gateway has cut")
	}
}

// TestRestartAtEveryMoment restarts both gateways of a pair again and again while transfers run through it, so that
// drains meet every state of a flow: all bytes of all transfers arrive, and no flow is cut.
func TestRestartAtEveryMoment(t *testing.T) {
	n, restarts := 150, 4
	if os.Getenv("SOAK") != "" {
		n, restarts = 3000, 40
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	list := transfers(rand.New(rand.NewPCG(seed, 0)), n)
	m := newMesh(t)
	exit := m.lineage(t, "server", "", nil, "--hbone", "$ADDR")
	entry := m.lineage(t, "client", "", nil, "--forward", "$ADDR="+serveTransfers(t, list), "--via", exit.addr)
	var running sync.WaitGroup
	running.Go(func() { runTransfers(t, list, entry.addr) }) // ends with the transfers; Wait below
	for i := range restarts {
		time.Sleep(time.Duration(rand.IntN(500)) * time.Millisecond) // at any moment
		[]*lineage{exit, entry}[i%2].restart(t)
	}
	running.Wait()
	for _, l := range []*lineage{entry, exit} {
		for _, pid := range l.pids[:len(l.pids)-1] {
			within(t, "end of the drains", func() error { return ended(pid) })
		}
		for line := range strings.Lines(l.text(t)) {
			if strings.Contains(line, " msg=flow ") && strings.Contains(line, " reason=") {
				t.Errorf("a flow was cut: %s", line)
			}
		}
	}
}

// mayEnd is when a flow that stood at from may be cut first: the process of the one or of the other gateway that
// carries it is told to leave, and drains.
func (l *restartLoad) mayEnd(from time.Time, lists ...[]changeover) (until time.Time, ends bool) {
	for _, list := range lists {
		for _, turn := range list {
			if end := turn.told.Add(l.drain); turn.left.After(from) {
				if !ends || end.Before(until) {
					until, ends = end, true
				}
				break
			}
		}
	}
	return until, ends
}

// wantCuts looks at the records of flows that ended before their time: they were cut at the end of this gateway's own
// drain, or their streams were reset by the other one, which are counted. No connection between the two broke.
func (l *lineage) wantCuts(t *testing.T, broke string) (resets int) {
	t.Helper()
	reset := regexp.MustCompile(` reason=` + broke + ` err="[^"]*stream \d+ reset by peer: CONNECT_ERROR`)
	bad := 0
	for line := range strings.Lines(l.text(t)) {
		switch {
		case !strings.Contains(line, " msg=flow "), !strings.Contains(line, " reason="), strings.Contains(line, " reason=cut "):
		case reset.MatchString(line):
			resets++
		default:
			if bad++; bad < 5 {
				t.Errorf("a record of neither a cut nor a stream's reset: %s", line)
			}
		}
	}
	return resets
}

// talker is a program that wants one connection all the time.
type talker struct{ flows []talked }

// talked is one connection of it.
type talked struct {
	from, to time.Time
	err      error // why it ended; nil: the test did
}

// talkLoop connects, exchanges random bytes now and then, and connects again when the connection has ended.
func (k *talker) talkLoop(addr string, stop <-chan struct{}) {
	for {
		f := talked{from: time.Now()}
		f.err = talk(addr, stop)
		f.to = time.Now()
		k.flows = append(k.flows, f)
		if f.err == nil {
			return
		}
	}
}

func talk(addr string, stop <-chan struct{}) error {
	nc, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return err
	}
	defer nc.Close()
	tick := time.NewTicker(talkPause)
	defer tick.Stop()
	for n := uint64(0); ; n++ {
		text := binary.BigEndian.AppendUint64(nil, n)
		for range rand.IntN(500) {
			text = binary.BigEndian.AppendUint64(text, rand.Uint64())
		}
		_ = nc.SetDeadline(time.Now().Add(patience))
		if _, err := nc.Write(text); err != nil {
			return resetOf(nc, err)
		}
		got := make([]byte, len(text))
		if _, err := io.ReadFull(nc, got); err != nil {
			return err
		}
		if !bytes.Equal(got, text) {
			return fmt.Errorf("%d other bytes came back than the %d that were sent", len(got), len(text))
		}
		select {
		case <-stop:
			return nil
		case <-tick.C:
		}
	}
}

// resetOf is why a write failed. The system tells a reset once: here as EPIPE, where the reader has not looked.
func resetOf(nc net.Conn, err error) error {
	if errors.Is(err, syscall.EPIPE) {
		if _, rerr := nc.Read(make([]byte, 1)); rerr != nil && !errors.Is(rerr, io.EOF) {
			return rerr
		}
	}
	return err
}

package attack

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// gatewayBinary is the environment variable by which TestMain tells the tests the program that it has built.
const gatewayBinary = "CULVERT_TEST_GATEWAY"

func TestMain(m *testing.M) { os.Exit(withGateway(m)) }

func withGateway(m *testing.M) int {
	dir, err := os.MkdirTemp("", "attack")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin := filepath.Join(dir, "gateway")
	build := exec.Command("go", "build", "-o", bin, "culvert/cmd/gateway")
	build.Stdout, build.Stderr = os.Stdout, os.Stderr
	if err := errors.Join(build.Run(), os.Setenv(gatewayBinary, bin)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func newTestMesh(t *testing.T) *Mesh {
	t.Helper()
	m, err := NewMesh(os.Getenv(gatewayBinary), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func startExit(t *testing.T, memory string) *Exit {
	t.Helper()
	e, err := newTestMesh(t).StartExit(memory)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		e.Stop()
		if t.Failed() {
			t.Log(e.Log())
		}
	})
	return e
}

func figures(t *testing.T, g *Gateway) Figures {
	t.Helper()
	f, err := g.Figures()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// memoryGrowth is how much a gateway may hold after an attack that it did not hold before.
const memoryGrowth = 16 << 20

// wantBack waits until the gateway holds what it held before.
func wantBack(t *testing.T, g *Gateway, before Figures) {
	t.Helper()
	const slack = 8 // goroutines of the runtime and of the admin address, timers
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		now := figures(t, g)
		if now.Goroutines <= before.Goroutines+slack && now.Files <= before.Files && now.Active <= before.Active &&
			now.Connections <= before.Connections && now.Transports <= before.Transports {
			if grown := now.RSS - before.RSS; grown > memoryGrowth {
				t.Errorf("resident memory has grown by %.1f MiB, want at most 16", grown/(1<<20))
			}
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the gateway holds %+v, before %+v; its files: %v", now, before, g.files())
		}
	}
}

// startInnocent opens a tunnel on a connection of its own and returns a check that it lives.
func startInnocent(t *testing.T, e *Exit) (check func(t *testing.T)) {
	t.Helper()
	nc, err := e.Innocent()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return func(t *testing.T) { t.Helper(); wantEcho(t, nc) }
}

func wantEcho(t *testing.T, nc net.Conn) {
	t.Helper()
	_ = nc.SetDeadline(time.Now().Add(patience)) // a broken one fails below
	const text = "nobody notices"
	if _, err := nc.Write([]byte(text)); err != nil {
		t.Fatalf("an innocent tunnel: %v", err)
	}
	for got := ""; got != text; {
		buf := make([]byte, len(text)-len(got))
		n, err := nc.Read(buf)
		if err != nil {
			t.Fatalf("an innocent tunnel: %v", err)
		}
		got += string(buf[:n])
	}
}

// TestAttacks plays every attack on an exit once: it ends with the right code after a counted number of
// offences, and a row of them leaves nothing behind.
func TestAttacks(t *testing.T) {
	e := startExit(t, "256MiB")
	check := startInnocent(t, e)
	rows := map[int][]Attack{}
	for _, a := range Attacks() {
		rows[a.Row] = append(rows[a.Row], a)
	}
	for _, row := range slices.Sorted(maps.Keys(rows)) {
		t.Run(fmt.Sprint("row ", row), func(t *testing.T) {
			before := figures(t, e.Gateway)
			for _, a := range rows[row] {
				t.Run(a.Name, func(t *testing.T) {
					play(t, e, &a)
					check(t)
				})
			}
			wantBack(t, e.Gateway, before)
		})
	}
}

// play plays an attack and wants the connection ended.
func play(t *testing.T, e *Exit, a *Attack) {
	t.Helper()
	p, err := e.For(a)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if a.Begin != nil {
		if err := errors.Join(a.Begin(p), p.Flush()); err != nil {
			t.Fatal(err)
		}
	}
	begun := figures(t, e.Gateway)
	turns, limit := 0, a.Limit
	if limit > 10 {
		limit += limit/3 + 1 // buckets leak meanwhile
	}
	for ; turns < limit && err == nil; turns++ {
		err = a.Turn(p)
	}
	if err == nil {
		err = p.Flush()
	}
	if !p.Wait(patience, func(s *Seen) bool {
		return len(s.GoAways) > 0 && s.GoAways[len(s.GoAways)-1] != http2.ErrCodeNo || s.Ended
	}) {
		t.Fatalf("the connection lives after %d offences (%v); it got %v", turns, err, p.Look().GoAways)
	}
	seen := p.Look()
	if !slices.Contains(a.Codes, seen.last()) {
		t.Errorf("ended with GOAWAY %v, want %v", seen.GoAways, a.Codes)
	}
	now := figures(t, e.Gateway)
	for end := time.Now().Add(patience); now.Offences == begun.Offences && time.Now().Before(end); time.Sleep(time.Millisecond) {
		now = figures(t, e.Gateway)
	}
	if n := now.Offences - begun.Offences; n != 1 {
		t.Errorf("%v offences were counted, want 1", n)
	}
	dials := int(now.Dials - begun.Dials)
	if dials > a.Dials {
		t.Errorf("%d connections to destinations, want at most %d", dials, a.Dials)
	}
	t.Logf("ended with %v after %d offences and %d dials", seen.GoAways, turns, dials)
}

// TestAttackHeads sends every malformed request beside a tunnel on the same connection, which lives on.
func TestAttackHeads(t *testing.T) {
	e := startExit(t, "256MiB")
	check := startInnocent(t, e)
	before := figures(t, e.Gateway)
	for _, h := range Heads() {
		t.Run(h.Name, func(t *testing.T) {
			p, err := e.Peer(e.servers.echo)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			innocent, err := p.Tunnel()
			if err != nil {
				t.Fatal(err)
			}
			wantRefused(t, p, &h)
			if err := p.Echo(innocent, "still here"); err != nil {
				t.Errorf("another tunnel on the connection: %v", err)
			}
			if s := p.Look(); s.Ended || len(s.GoAways) > 0 {
				t.Errorf("the connection was ended: %v %v", s.GoAways, s.EndReason)
			}
		})
	}
	check(t)
	wantBack(t, e.Gateway, before)
}

// wantRefused sends the head and wants its stream ended as it should be.
func wantRefused(t *testing.T, p *Peer, h *Head) {
	t.Helper()
	var id uint32
	var err error
	if h.Then != nil {
		if id, err = p.Tunnel(); err == nil {
			err = h.Then(p, id)
		}
	} else {
		id = p.Next
		p.Next += 2
		err = p.Headers(id, h.End, h.Fields...)
	}
	if err = errors.Join(err, p.Flush()); err != nil {
		t.Fatal(err)
	}
	if !p.Wait(patience, func(s *Seen) bool { return s.reset(id) || s.Ended }) {
		t.Fatalf("nothing came; status %q", p.status(id))
	}
	p.mu.Lock()
	code, status := p.seen.ResetBy[id], p.seen.Status[id]
	p.mu.Unlock()
	want := []http2.ErrCode{http2.ErrCodeProtocol}
	switch {
	case h.Status == "431", h.Answered:
		want = []http2.ErrCode{http2.ErrCodeNo}
	case h.Row == 10:
		want = []http2.ErrCode{http2.ErrCodeFlowControl}
	}
	if !slices.Contains(want, code) || h.Then == nil && status != h.Status {
		t.Errorf("RST_STREAM %v, status %q; want %v, %q", code, status, want, h.Status)
	}
}

package main_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// What TestSoak does to a pair of gateways, and what it allows them.
const (
	soakRate      = 200              // flows opened, used and closed each second
	soakIdle      = 1000             // flows that stand by, with SOAK set
	soakIdleShort = 100              // and without
	soakShort     = 5 * time.Second  // how long it runs without SOAK
	soakWarm      = 5 * time.Minute  // before memory is looked at: pools and windows find their size
	soakJudged    = 30 * time.Minute // of looking, before a slope of memory means anything
	soakGrowth    = 1 << 20          // bytes an hour
	soakSlack     = 10               // goroutines and files more than before
	soakPerConn   = 100              // flows on a connection between gateways
	soakConnCost  = 3                // goroutines that an idle one holds
	soakLines     = 13               // of the log: how memory went
)

// soak is a pair of gateways, and how apps use it.
type soak struct {
	pair
	stand func() (net.Conn, error) // opens a flow that is to stand by
	use   func() error             // opens, uses and closes one
}

// TestSoak opens, uses and closes flows at a steady rate beside idle ones: no flow fails, and when all are
// gone the gateways have the goroutines and files of before. With SOAK it runs for HOURS (default 1), and
// memory must not grow.
func TestSoak(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds; make test has it")
	}
	m := newMesh(t)
	exit := m.gateway(t, "server", "--hbone", "$ADDR", "--log-level", "warn")
	entry := m.gateway(t, "client", "--forward", "$ADDR="+serve(t, echo), "--via", exit.addr, "--log-level", "warn")
	stand := func() (net.Conn, error) { return net.Dial("tcp", entry.addr) }
	soak{pair: pair{entry, exit}, stand: stand, use: func() error { return exchangeAt(entry.addr) }}.run(t)
}

// TestNetnsSoak is TestSoak with flows that are captured, of which one in ten is of datagrams.
func TestNetnsSoak(t *testing.T) {
	h := newHosts(t)
	h.far.echoUDP(far4)
	exit := h.gatewayOn(t, h.mid, "server", append(outOf, "--log-level", "warn")...)
	config := h.write(t, "gw.yaml", []byte(`
identity: {cert: client.pem, key: client.key, roots: root.pem}
listeners:
- {name: out, kind: tproxy, address: "localhost:15001"}
routes:
- {listeners: [out], destinations: ["10.2.0.0/24"], via: ["`+midHop+`"]}
timeouts: {udpIdle: 2s}
log: {level: warn}
`))
	entry := h.gatewayOn(t, h.app, "", "-c", config)
	h.app.gateway("capture", "install", "--ports", "7", "--udp-ports", "7", "--no-dns")
	h.app.captured()
	stand := func() (net.Conn, error) {
		got, nc, err := h.app.from(far4)
		if err == nil && got != outAddr {
			err = fmt.Errorf("the flow comes from %s, want %s", got, outAddr)
		}
		return nc, err
	}
	var n atomic.Int64
	soak{pair: pair{entry, exit}, stand: stand, use: func() error {
		if n.Add(1)%10 == 0 {
			return h.app.arrivesUDP(far4, outAddr)
		}
		nc, err := h.app.dial(t.Context(), "tcp", far4)
		if err != nil {
			return err
		}
		return exchange(nc, outAddr+"\n")
	}}.run(t)
}

func (p soak) run(t *testing.T) {
	t.Helper()
	idle, duration := soakIdleShort, soakShort
	if os.Getenv("SOAK") != "" {
		hours, err := strconv.ParseFloat(os.Getenv("HOURS"), 64)
		if err != nil {
			hours = 1
		}
		idle, duration = soakIdle, time.Duration(hours*float64(time.Hour))
	}
	if err := p.use(); err != nil {
		t.Fatal(err)
	}
	p.idle(t)
	before := p.sample(t)

	standing := make([]net.Conn, idle)
	for i := range standing {
		var err error
		if standing[i], err = p.stand(); err != nil {
			t.Fatal(err)
		}
		defer standing[i].Close()
		echoes(t, standing[i], "i")
	}
	samples := p.churn(t, duration)
	for _, c := range standing {
		echoes(t, c, "still there")
		c.Close()
	}
	p.idle(t)
	more := float64(soakSlack + idle/soakPerConn*soakConnCost) // connections between them stay for minutes
	within(t, "goroutines and files of before", func() error {
		for i, after := range p.sample(t) {
			if after.goroutines > before[i].goroutines+more || after.files > before[i].files+more {
				return fmt.Errorf("gateway %d has %+v, had %+v", i, after, before[i])
			}
		}
		return nil
	})
	for i, name := range []string{"entry", "exit"} {
		for k := range soakLines {
			s := samples[i][k*(len(samples[i])-1)/(soakLines-1)]
			t.Logf("%s after %s: resident %.1f MiB, heap %.1f, stacks %.1f, %.0f threads, %.0f goroutines", name,
				s.at.Sub(samples[i][0].at).Round(time.Second), s.bytes/(1<<20), s.heap/(1<<20), s.stacks/(1<<20), s.threads, s.goroutines)
		}
		growth := slope(samples[i])
		t.Logf("%s: %s of churn, memory %.1f MiB, slope %.2f MiB/h over %d samples", name, duration,
			samples[i][len(samples[i])-1].bytes/(1<<20), growth/(1<<20), len(samples[i]))
		if duration >= soakWarm+soakJudged && growth > soakGrowth {
			t.Errorf("%s grows by %.2f MiB an hour, want at most %d", name, growth/(1<<20), soakGrowth>>20)
		}
	}
}

// roundTrip is a flow of one exchange.
func roundTrip(t *testing.T, addr string) {
	t.Helper()
	c := dial(t, addr)
	defer c.Close()
	echoes(t, c, "hello")
}

func echoes(t *testing.T, c net.Conn, text string) {
	t.Helper()
	got := make([]byte, len(text))
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		t.Fatalf("echo of %q = %q, %v", text, got, err)
	}
}

// soakSample is what a gateway uses at a moment.
type soakSample struct {
	at                time.Time
	bytes             float64 // resident
	heap, stacks      float64 // bytes in use by Go
	threads           float64
	goroutines, files float64
}

// sample asks entry and exit what they use.
func (p pair) sample(t *testing.T) (list [2]soakSample) {
	t.Helper()
	for i, g := range []*gateway{p.entry, p.exit} {
		page, err := g.get("/metrics")
		if err != nil {
			t.Fatal(err)
		}
		s := soakSample{at: time.Now()}
		for line := range strings.Lines(page) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
			n, _ := strconv.ParseFloat(value, 64)
			switch name {
			case "process_resident_memory_bytes":
				s.bytes = n
			case "go_memstats_heap_inuse_bytes":
				s.heap = n
			case "go_memstats_stack_inuse_bytes":
				s.stacks = n
			case "go_threads":
				s.threads = n
			case "go_goroutines":
				s.goroutines = n
			case "process_open_fds":
				s.files = n
			}
		}
		if s.bytes == 0 || s.goroutines == 0 || s.files == 0 {
			t.Fatalf("metrics without memory, goroutines or files:\n%s", page)
		}
		list[i] = s
	}
	return list
}

// churn uses soakRate flows each second for so long, and samples both gateways meanwhile.
func (p soak) churn(t *testing.T, duration time.Duration) (samples [2][]soakSample) {
	t.Helper()
	var flows sync.WaitGroup
	var failed atomic.Int64
	tick := time.NewTicker(time.Second / soakRate)
	defer tick.Stop()
	start := time.Now()
	nextSample := start
	for now := range tick.C {
		if now.Sub(start) > duration {
			break
		}
		flows.Go(func() { // ends with the flow, within patience
			if err := p.use(); err != nil && failed.Add(1) < 10 {
				t.Errorf("after %s: %v", time.Since(start), err)
			}
		})
		if !now.Before(nextSample) {
			nextSample = now.Add(duration / 500)
			for i, s := range p.sample(t) {
				samples[i] = append(samples[i], s)
			}
		}
	}
	flows.Wait()
	return samples
}

// exchangeAt is exchange of a new connection.
func exchangeAt(addr string) error {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	return exchange(nc, "")
}

// exchange is a flow in which both ends say something and end their side: the server greeting first, and then what it was
// told.
func exchange(nc net.Conn, greeting string) error {
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(patience))
	text := strings.Repeat("soak ", 200)
	if _, err := io.WriteString(nc, text); err != nil {
		return err
	}
	if err := nc.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(nc)
	if err == nil && string(got) != greeting+text {
		err = fmt.Errorf("%d bytes came back, want %d", len(got), len(greeting)+len(text))
	}
	return err
}

// slope is the growth of memory in bytes an hour, by least squares, after soakWarm.
func slope(samples []soakSample) float64 {
	var n, sx, sy, sxx, sxy float64
	for _, s := range samples {
		x := s.at.Sub(samples[0].at).Hours()
		if x < soakWarm.Hours() && samples[len(samples)-1].at.Sub(samples[0].at) > soakWarm {
			continue
		}
		n, sx, sy, sxx, sxy = n+1, sx+x, sy+s.bytes, sxx+x*x, sxy+x*s.bytes
	}
	if d := n*sxx - sx*sx; d > 0 {
		return (n*sxy - sx*sy) / d
	}
	return 0
}

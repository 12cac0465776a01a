package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"culvert/bench/goals"
	"culvert/bench/proc"
)

func main() {
	role := flag.String("role", "", "client or server: what a child of this program is")
	gateway := flag.String("gateway", "bin/gateway", "the program")
	plain := flag.String("plain", ".build/gateway-plain", "the program without batches of system calls (-tags plainudp)")
	rounds := flag.Int("rounds", 10, "of each comparison")
	part := flag.String("part", "", "bulk, held or datagrams alone")
	out := flag.String("o", "bench/CAPTURE.md", "where the table goes")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	switch *role {
	case "client":
		err = client(os.Stdin, os.Stdout)
	case "server":
		err = server(ctx)
	default:
		err = measure(ctx, &settings{gateway: *gateway, plain: *plain, rounds: *rounds, out: *out, part: *part})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type settings struct {
	gateway, plain, out, part string
	rounds                    int
}

// What is measured, and how much of it.
const (
	bulkBytes   = 1 << 30
	heldFlows   = 10_000
	udpSeconds  = 2
	settle      = 15 * time.Second // until idle flows hold what they hold
	forwardTCP  = "127.0.0.1:7000"
	forwardUDP  = "127.0.0.1:7001"
	serverTCP   = farAddr + ":9000"
	serverUDP   = farAddr + ":9001"
	serverCount = farAddr + ":9002"
)

// measure makes the hosts, and the table.
func measure(ctx context.Context, s *settings) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces take root: sudo make capture")
	}
	site, err := newSite(s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, site.close()) }()
	began := time.Now()
	t := &goals.Table{}
	for _, one := range []struct {
		name string
		do   func(context.Context, *goals.Table) error
	}{{"bulk", site.bulk}, {"held", site.held}, {"datagrams", site.datagrams}} {
		if s.part != "" && s.part != one.name {
			continue
		}
		if err := one.do(ctx, t); err != nil {
			return err
		}
	}
	fmt.Printf("took %v\n", time.Since(began).Round(time.Second))
	return write(t, s.out, s.rounds)
}

// bulk compares a captured connection with one to a forwarded port.
func (s *site) bulk(ctx context.Context, t *goals.Table) error {
	p, err := s.pair(s.gateway)
	if err != nil {
		return err
	}
	defer p.stop()
	var forwarded, captured []float64
	for round := range s.rounds {
		for _, one := range []struct {
			addr string
			list *[]float64
		}{{forwardTCP, &forwarded}, {serverTCP, &captured}} {
			var seconds float64
			if err := p.ask(ctx, &seconds, "down", one.addr, bulkBytes); err != nil {
				return err
			}
			*one.list = append(*one.list, bulkBytes/1e6/seconds)
		}
		fmt.Printf("round %d  forwarded port %.0f MB/s, TPROXY %.0f MB/s\n", round+1, forwarded[round], captured[round])
	}
	t.Add("one stream down, MB/s: forwarded port", goals.Median(forwarded))
	t.Add("one stream down, MB/s: TPROXY", goals.Median(captured))
	t.Goal(goals.Goal{What: "TPROXY beside a forwarded port, median of the rounds' ratios", Value: goals.Ratio(captured, forwarded), Bound: 0.9, Least: true})
	return nil
}

// held opens many captured connections as fast as one client can, and looks at what they cost when idle.
func (s *site) held(ctx context.Context, t *goals.Table) error {
	p, err := s.pair(s.gateway)
	if err != nil {
		return err
	}
	defer p.stop()
	var warm struct{ Seconds, Errors float64 }
	if err := p.ask(ctx, &warm, "hold", serverTCP, 100); err != nil {
		return err
	}
	if err := p.ask(ctx, nil, "release"); err != nil {
		return err
	}
	if err := sleep(ctx, settle); err != nil {
		return err
	}
	entry := p.entry.cmd.Process.Pid
	before, err := proc.ResidentBytes(entry)
	if err != nil {
		return err
	}
	var got struct{ Seconds, Errors float64 }
	if err := p.ask(ctx, &got, "hold", serverTCP, heldFlows); err != nil {
		return err
	}
	if err := sleep(ctx, settle); err != nil {
		return err
	}
	after, err := proc.ResidentBytes(entry)
	if err != nil {
		return err
	}
	each := float64(after-before) / heldFlows / 1024
	fmt.Printf("%d captured connections in %.1f s, %.0f errors, %.2f KB each in the entry\n", heldFlows, got.Seconds, got.Errors, each)
	t.Add("captured connections opened and held together", heldFlows)
	t.Add("of them a second, with a byte each way", heldFlows/got.Seconds)
	t.Goal(goals.Goal{What: "errors among them", Value: got.Errors, Bound: 0})
	t.Goal(goals.Goal{What: "memory of an idle captured flow in the entry gateway, KB", Value: each, Bound: 6})
	return p.ask(ctx, nil, "release")
}

// datagrams compares pairs with batches of system calls and without, from a sender that has many split by the system.
func (s *site) datagrams(ctx context.Context, t *goals.Table) error {
	rates := map[string][]float64{}
	for round := range s.rounds {
		for _, program := range []string{s.plain, s.gateway} {
			got, _, err := s.sendThrough(ctx, program, 0)
			if err != nil {
				return err
			}
			rates[program] = append(rates[program], got)
		}
		fmt.Printf("round %d  one by one %.0f datagrams/s, batches %.0f\n", round+1, rates[s.plain][round], rates[s.gateway][round])
	}
	t.Add("datagrams of 1,200 bytes through a pair a second: one by one", goals.Median(rates[s.plain]))
	t.Add("datagrams of 1,200 bytes through a pair a second: batches", goals.Median(rates[s.gateway]))
	t.Goal(goals.Goal{What: "batches beside one by one, median of the rounds' ratios", Value: goals.Ratio(rates[s.gateway], rates[s.plain]), Bound: 1.5, Least: true})
	_, lost, err := s.sendThrough(ctx, s.gateway, goals.Median(rates[s.gateway])/2)
	if err != nil {
		return err
	}
	fmt.Printf("at half that rate %.0f of a million are lost\n", lost*1e6)
	t.Goal(goals.Goal{What: "lost of a million at half that rate", Value: lost * 1e6, Bound: 0})
	return nil
}

// sendThrough sends datagrams through a pair of program, rate a second or as many as go, and returns how many arrived a
// second and which part did not.
func (s *site) sendThrough(ctx context.Context, program string, rate float64) (perSecond, lost float64, err error) {
	p, err := s.pair(program)
	if err != nil {
		return 0, 0, err
	}
	defer p.stop()
	if _, err := p.counted(ctx); err != nil {
		return 0, 0, err
	}
	var got struct{ Sent, Seconds float64 }
	if err := p.ask(ctx, &got, "udp", forwardUDP, int(rate), udpSeconds); err != nil {
		return 0, 0, err
	}
	if err := sleep(ctx, time.Second); err != nil {
		return 0, 0, err
	}
	arrived, err := p.counted(ctx)
	return arrived / got.Seconds, 1 - arrived/got.Sent, err
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// write keeps the table.
func write(t *goals.Table, file string, rounds int) error {
	head := fmt.Sprintf("# What capturing costs\n\nMade by `make capture` on %s, %d rounds of each comparison; do not edit. %s, %d cores, %s.\n\n",
		time.Now().Format(time.DateOnly), rounds, cmp.Or(proc.Processor(), runtime.GOARCH), runtime.NumCPU(), runtime.Version())
	return os.WriteFile(file, []byte(head+t.Markdown()), 0o644)
}

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"culvert/bench/compare/peers"
	"culvert/bench/proc"
)

func main() {
	// The kernel ends the proxies when the thread that started them ends: see endWithParent.
	runtime.LockOSThread()
	if len(os.Args) > 1 && os.Args[1] == "pair" {
		if err := servePair(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := compare(ctx, os.Args[1:])
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

// servePair is `compare pair KIND ROLE LISTEN TO DIR`: one proxy, until it is ended from outside.
func servePair(args []string) error {
	if len(args) != 5 {
		return errors.New("usage: compare pair KIND entry|exit LISTEN TO DIR")
	}
	ln, err := net.Listen("tcp", args[2])
	if err != nil {
		return err
	}
	return peers.Serve(args[0], args[1], args[4], args[3], ln)
}

// compare is the command itself.
func compare(ctx context.Context, args []string) error {
	opts, err := parseOptions(args)
	if err != nil {
		return err
	}
	if err := proc.RaiseOpenFiles(); err != nil {
		return err
	}
	s, err := newSite(opts.gateway, opts.tools)
	if err != nil {
		return err
	}
	defer s.close()
	r := &run{site: s, options: opts, progress: os.Stdout}
	if err := r.all(ctx); err != nil {
		return err
	}
	return r.results.write(opts.out)
}

// options is what the flags say.
type options struct {
	rounds   int
	pairs    []*pair
	measures []*measure
	size     size
	quick    bool
	out      string // folder of what comes out
	gateway  string
	tools    string
	command  string // to be shown with the results
}

func parseOptions(args []string) (*options, error) {
	var o options
	var names, what string
	fs := flag.NewFlagSet("compare", flag.ContinueOnError)
	fs.IntVar(&o.rounds, "rounds", 5, "how often every pair is measured")
	fs.StringVar(&names, "pairs", "", "measure only these `PAIRS`, separated by commas (default: all that are installed)")
	fs.StringVar(&what, "measures", "", "take only these `MEASURES`, separated by commas: "+measureNames())
	fs.BoolVar(&o.quick, "quick", false, "one short round, to see that everything works")
	fs.StringVar(&o.out, "out", ".build/results", "write RESULTS.md, results.json and results.svg to `DIR`")
	fs.StringVar(&o.gateway, "gateway", "bin/gateway", "the Culvert `FILE` to measure")
	fs.StringVar(&o.tools, "tools", ".build/bin", "`DIR` where envoy is, if it is not in PATH")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if o.rounds < 1 {
		return nil, errors.New("-rounds: at least one")
	}
	o.size = full
	if o.quick {
		o.size, o.rounds = small, 1
	}
	var err error
	if o.pairs, err = choose(pairs, names, func(p *pair) string { return p.name }); err != nil {
		return nil, fmt.Errorf("-pairs: %w", err)
	}
	if o.measures, err = choose(measures, what, func(m *measure) string { return m.name }); err != nil {
		return nil, fmt.Errorf("-measures: %w", err)
	}
	o.command = strings.Join(append([]string{"compare"}, args...), " ")
	return &o, nil
}

// choose returns those of all that the list names, in the order of all; an empty list names all.
func choose[T any](all []*T, list string, name func(*T) string) ([]*T, error) {
	if list == "" {
		return all, nil
	}
	wanted := make(map[string]bool)
	for n := range strings.SplitSeq(list, ",") {
		wanted[strings.ToLower(strings.TrimSpace(n))] = true
	}
	var chosen []*T
	for _, one := range all {
		if n := strings.ToLower(name(one)); wanted[n] {
			chosen = append(chosen, one)
			delete(wanted, n)
		}
	}
	for n := range wanted {
		return nil, fmt.Errorf("there is no %q", n)
	}
	return chosen, nil
}

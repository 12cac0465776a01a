package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"culvert/bench/proc"
)

func main() {
	// The kernel ends what was started when the thread that started it ends: see proc.Start.
	runtime.LockOSThread()
	if len(os.Args) > 1 && os.Args[1] == "proxy" {
		fmt.Fprintln(os.Stderr, serveProxy(os.Args[2:]))
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var err error
	if len(os.Args) > 1 && os.Args[1] == "half" {
		err = half(ctx, os.Args[2:])
	} else {
		err = roles(ctx, os.Args[1:])
	}
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "roles:", err)
		os.Exit(1)
	}
}

// roles is the command itself.
func roles(ctx context.Context, args []string) error {
	opts, err := parseOptions(args)
	if err != nil {
		return err
	}
	if err := proc.RaiseOpenFiles(); err != nil {
		return err
	}
	s, err := newSite(opts.gateway)
	if err != nil {
		return err
	}
	defer s.close()
	r := &run{options: opts, site: s, progress: os.Stdout}
	if err := r.all(ctx); err != nil {
		return err
	}
	return r.results.write(opts.out)
}

// options is what the flags say.
type options struct {
	rounds  int
	parts   []*part
	size    size
	quick   bool
	out     string // folder of what comes out
	gateway string
	command string // to be shown with the results
}

func parseOptions(args []string) (*options, error) {
	var o options
	var names string
	fs := flag.NewFlagSet("roles", flag.ContinueOnError)
	fs.IntVar(&o.rounds, "rounds", 3, "how often everything is measured")
	fs.StringVar(&names, "parts", "", "measure only these `PARTS`, separated by commas: "+partNames())
	fs.BoolVar(&o.quick, "quick", false, "one short round, to see that everything works")
	fs.StringVar(&o.out, "out", ".build/results", "write ROLES.md and roles.json to `DIR`")
	fs.StringVar(&o.gateway, "gateway", "bin/gateway", "the Culvert `FILE` to measure")
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
	if o.parts, err = choose(names); err != nil {
		return nil, fmt.Errorf("-parts: %w", err)
	}
	o.command = strings.Join(append([]string{"roles"}, args...), " ")
	return &o, nil
}

// choose returns the parts that the list names, in their order; an empty list names all.
func choose(list string) ([]*part, error) {
	if list == "" {
		return parts, nil
	}
	var chosen []*part
	left := "," + strings.ReplaceAll(list, " ", "") + ","
	for _, p := range parts {
		if before, after, found := strings.Cut(left, ","+p.name+","); found {
			chosen = append(chosen, p)
			left = before + "," + after
		}
	}
	if left = strings.Trim(left, ","); left != "" {
		return nil, fmt.Errorf("there is no %q", left)
	}
	return chosen, nil
}

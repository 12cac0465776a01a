package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"time"

	"culvert/bench/load"
	"culvert/bench/proc"
)

// size says how long things are measured, and how much of them.
type size struct {
	warm     time.Duration // before bytes or requests are counted
	bulk     time.Duration // each of the four bulk runs
	requests time.Duration // each run of requests
	routes   int           // the many that are compared with ten
	agents   int
	settled  time.Duration // after the last agent
	gap      time.Duration // how long a client goes on to ask after an agent was cut off
	halfOpen time.Duration // the same, for one whose packets are dropped
}

var (
	full = size{
		warm: 500 * time.Millisecond, bulk: 1500 * time.Millisecond, requests: 2 * time.Second, routes: 10_000,
		agents: 1000, settled: 10 * time.Second, gap: 5 * time.Second, halfOpen: 30 * time.Second,
	}
	small = size{
		warm: 50 * time.Millisecond, bulk: 200 * time.Millisecond, requests: 500 * time.Millisecond, routes: 1000,
		agents: 50, settled: 200 * time.Millisecond, gap: 3 * time.Second, halfOpen: 30 * time.Second,
	}
)

// part is measures of one role.
type part struct {
	name string // as -parts has it
	take func(ctx context.Context, s *site, size *size) (values, error)
	most int // rounds it is taken in, 0 for all
	// missing says what this machine lacks for it, "" if nothing.
	missing func(s *site) string
}

// parts lists what can be measured, in the order it is taken.
var parts = []*part{
	{name: "chain", take: takeChain, missing: missingNothing},
	{name: "ingress", take: takeIngress, missing: missingHAProxy},
	{name: "routes", take: takeRoutes, missing: missingHAProxy},
	{name: "index", take: takeIndex, missing: missingGo, most: 1},
	{name: "xtun", take: takeXTun, missing: missingNothing},
	{name: "agents", take: takeAgents, missing: missingNothing, most: 1},
	{name: "half", take: takeHalf, missing: missingNetwork, most: 1},
}

func missingNothing(*site) string { return "" }

func missingGo(*site) string {
	if _, err := exec.LookPath("go"); err != nil {
		return "no go"
	}
	return ""
}

func partNames() string {
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	return strings.Join(names, ", ")
}

// values are what was measured in one round, by the names that goals and figures have for them.
type values map[string]float64

// String renders the values for progress.
func (v values) String() string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(v)) {
		list = append(list, fmt.Sprintf("    %s = %.4g", name, v[name]))
	}
	return strings.Join(list, "\n")
}

// run is one call of the command.
type run struct {
	*options
	site     *site
	progress io.Writer
	results  results
}

// all takes every part in every round. A part that fails is noted; only the end of ctx ends the run.
func (r *run) all(ctx context.Context) error {
	start := time.Now()
	r.results = results{
		Date: start.UTC().Format(time.DateOnly), Command: r.command, Quick: r.quick, Machine: thisMachine(ctx),
		Faults: make(map[string]string),
	}
	for round := 1; round <= r.rounds; round++ {
		all := make(values)
		for _, p := range r.parts {
			begin := time.Now()
			v, err := r.part(ctx, p, round)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			switch {
			case errors.Is(err, errEnough):
				continue
			case err != nil:
				r.results.Faults[p.name] = strings.ReplaceAll(fmt.Sprint(err), r.site.dir+"/", "") // which is gone then
				fmt.Fprintf(r.progress, "round %d  %-8s failed: %v\n", round, p.name, err)
			}
			maps.Copy(all, v) // also what came before a fault
			fmt.Fprintf(r.progress, "round %d  %-8s %.1f s\n%s\n", round, p.name, time.Since(begin).Seconds(), v)
		}
		r.results.Rounds = append(r.results.Rounds, all)
	}
	fmt.Fprintf(r.progress, "took %v\n", time.Since(start).Round(time.Second))
	return nil
}

// errEnough says that a part is not taken in this round.
var errEnough = errors.New("it was taken often enough")

func (r *run) part(ctx context.Context, p *part, round int) (values, error) {
	if why := p.missing(r.site); why != "" {
		return nil, errors.New(why)
	}
	if p.most > 0 && round > p.most || r.results.Faults[p.name] != "" {
		return nil, errEnough // what has failed is not tried again
	}
	if err := r.site.target.Quiet(ctx); err != nil {
		return nil, err
	}
	return p.take(ctx, r.site, &r.size)
}

// thisMachine is the machine, with the versions of what is compared.
func thisMachine(ctx context.Context) proc.Machine {
	m := proc.ThisMachine()
	m.Programs["Culvert"] = proc.FirstLine(ctx, "git", "describe", "--always", "--dirty")
	m.Programs["HAProxy"] = proc.FirstLine(ctx, "haproxy", "-v")
	m.Programs["h2load"] = proc.FirstLine(ctx, "h2load", "--version")
	return m
}

// await tries until a byte comes back from the target through entry.
func (s *site) await(ctx context.Context, g *proc.Group, entry string) error {
	return until(ctx, g, func() error { return load.Mirror(entry, 1) })
}

// until tries something until it works, as long as the processes of g live.
func until(ctx context.Context, g *proc.Group, try func() error) error {
	for deadline := time.Now().Add(proc.StartPatience); ; {
		err := try()
		if err == nil {
			return nil
		}
		if gone := g.Alive(); gone != nil {
			return gone
		}
		if time.Now().After(deadline) {
			for _, p := range g.Processes {
				err = fmt.Errorf("%w\n%s: %s", err, p.Name, p.Tail())
			}
			return fmt.Errorf("not ready after %v: %w", proc.StartPatience, err)
		}
		if err := load.Pause(ctx, proc.Poll); err != nil {
			return err
		}
	}
}

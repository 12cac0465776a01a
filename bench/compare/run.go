package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"time"

	"culvert/bench/load"
)

// run is one call of the command.
type run struct {
	*options
	site     *site
	progress io.Writer
	results  results
}

// all measures every pair in every round.
func (r *run) all(ctx context.Context) error {
	start := time.Now()
	r.results = results{
		Date: start.UTC().Format(time.DateOnly), Command: r.command, Quick: r.quick, Machine: thisMachine(ctx, r.site),
		Absent: make(map[string]string),
	}
	for round := 1; round <= r.rounds; round++ {
		for _, p := range r.pairs {
			if why := p.missing(r.site); why != "" {
				if r.results.Absent[p.name] == "" {
					fmt.Fprintf(r.progress, "%-12s left out: %s\n", p.name, why)
				}
				r.results.Absent[p.name] = why
				continue
			}
			one := result{Round: round, Pair: p.name, Values: make(values), Faults: make(map[string]string)}
			if err := r.pair(ctx, p, &one); err != nil {
				return err
			}
			r.results.Rounds = append(r.results.Rounds, one)
		}
	}
	fmt.Fprintf(r.progress, "took %v\n", time.Since(start).Round(time.Second))
	return nil
}

// pair takes every measure of one pair. A measure that fails is noted; only the end of ctx ends the run.
func (r *run) pair(ctx context.Context, p *pair, one *result) error {
	t := taker{site: r.site, pair: p, size: &r.size}
	defer t.stop()
	for _, m := range r.measures {
		if m.most > 0 && (one.Round > m.most || r.results.failed(p.name, m.name)) || m.proxies && p.name == directName {
			continue // what costs much time is not tried again
		}
		begin := time.Now()
		v, err := t.take(ctx, m)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			one.Faults[m.name] = err.Error()
			fmt.Fprintf(r.progress, "round %d  %-12s %-7s failed: %v\n", one.Round, p.name, m.name, err)
			t.stop() // who knows what state it is in
			continue
		}
		maps.Copy(one.Values, v)
		fmt.Fprintf(r.progress, "round %d  %-12s %-7s %5.1fs  %s\n", one.Round, p.name, m.name, time.Since(begin).Seconds(), v)
	}
	return nil
}

// taker takes measures of one pair and starts it anew where a measure needs that.
type taker struct {
	site *site
	pair *pair
	size *size
	up   *running // nil while the pair does not run
}

func (t *taker) take(ctx context.Context, m *measure) (values, error) {
	if m.fresh {
		t.stop()
	}
	if t.up == nil {
		var err error
		if t.up, err = t.site.begin(ctx, t.pair, m.far); err != nil {
			return nil, err
		}
	}
	if err := t.site.target.Quiet(ctx); err != nil {
		return nil, err
	}
	if err := load.Pause(ctx, t.size.rest); err != nil {
		return nil, err
	}
	v, err := m.take(ctx, t.site, t.up, t.size)
	if m.fresh {
		t.stop()
	}
	return v, err
}

func (t *taker) stop() {
	if t.up != nil {
		t.up.stop()
		t.up = nil
	}
}

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// run is one call of the command.
type run struct {
	*options
	site     *site
	progress io.Writer
	results  []result
	absent   map[string]string // pair → why it was not measured
}

// result is what one pair reached in one round.
type result struct {
	Round  int               `json:"round"`
	Pair   string            `json:"pair"`
	Values values            `json:"values"`
	Faults map[string]string `json:"faults,omitempty"` // measure → why there is no value
}

// all measures every pair in every round.
func (r *run) all(ctx context.Context) error {
	r.absent = make(map[string]string)
	start := time.Now()
	for round := 1; round <= r.rounds; round++ {
		for _, p := range r.pairs {
			if why := p.missing(r.site); why != "" {
				if r.absent[p.name] == "" {
					fmt.Fprintf(r.progress, "%-12s left out: %s\n", p.name, why)
				}
				r.absent[p.name] = why
				continue
			}
			one := result{Round: round, Pair: p.name, Values: make(values), Faults: make(map[string]string)}
			if err := r.pair(ctx, p, &one); err != nil {
				return err
			}
			r.results = append(r.results, one)
		}
	}
	fmt.Fprintf(r.progress, "took %v\n", time.Since(start).Round(time.Second))
	return nil
}

// pair takes every measure of one pair. A measure that fails is noted; only the end of ctx ends the run.
func (r *run) pair(ctx context.Context, p *pair, one *result) error {
	var up *running
	defer func() {
		if up != nil {
			up.stop()
		}
	}()
	for _, m := range r.measures {
		if m.most > 0 && one.Round > m.most {
			continue
		}
		if m.fresh && up != nil {
			up.stop()
			up = nil
		}
		begin := time.Now()
		v, err := func() (values, error) {
			if up == nil {
				var err error
				if up, err = r.site.begin(ctx, p, adjacent); err != nil {
					return nil, err
				}
			}
			return m.take(ctx, r.site, up, &r.size)
		}()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			one.Faults[m.name] = err.Error()
			fmt.Fprintf(r.progress, "round %d  %-12s %-7s failed: %v\n", one.Round, p.name, m.name, err)
			continue
		}
		for column, x := range v {
			one.Values[column] = x
		}
		fmt.Fprintf(r.progress, "round %d  %-12s %-7s %5.1fs  %s\n", one.Round, p.name, m.name, time.Since(begin).Seconds(), v)
	}
	return nil
}

// write keeps the results in dir.
func (r *run) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r.results, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "results.json"), append(text, '\n'), 0o644)
}

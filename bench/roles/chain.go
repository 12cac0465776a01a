package main

import (
	"context"
	"fmt"
	"time"

	"culvert/bench/load"
	"culvert/bench/proc"
)

// The chains, as values and figures call them.
const (
	twoHops   = "two hops"
	threeHops = "three hops, nested"     // via: [middle, exit] at the entry
	handed    = "three hops, hop by hop" // via: [exit] at the middle
	gigabyte  = 1e9
	megabyte  = 1e6
)

// takeChain measures an entry and an exit, and the same with a middle between them, once as the entry's path, which
// has the tunnel to the exit run closed through the middle, and once as the middle's own choice, which opens it.
func takeChain(ctx context.Context, s *site, size *size) (values, error) {
	v := make(values)
	for _, chain := range []string{twoHops, threeHops, handed} {
		if err := s.chain(ctx, chain, size, v); err != nil {
			return v, fmt.Errorf("%s: %w", chain, err)
		}
	}
	// What the hop adds to the chain: what all processes spend on a gigabyte, less what those of two hops do.
	for _, chain := range []string{threeHops, handed} {
		v[added(chain)] = v[cpu(chain, "all")] - v[cpu(twoHops, "all")]
	}
	return v, nil
}

// chain starts one and measures it.
func (s *site) chain(ctx context.Context, chain string, size *size, v values) error {
	at, err := addrs(3)
	if err != nil {
		return err
	}
	entry, middle, exit := at[0], at[1], at[2]
	g := new(proc.Group)
	defer g.Stop()
	if err := s.flags(g, "exit", "--hbone", exit); err != nil {
		return err
	}
	via := exit
	switch chain {
	case threeHops:
		via = middle + "," + exit
		err = s.flags(g, "middle", "--hbone", middle)
	case handed:
		via = middle
		err = s.file(g, "middle", fmt.Sprintf("listeners: [{name: mesh, kind: hbone, address: %q}]\nroutes: [{via: [%q]}]\n", middle, exit))
	}
	if err != nil {
		return err
	}
	if err := s.flags(g, "entry", "--forward", entry+"="+s.target.Addr(), "--via", via); err != nil {
		return err
	}
	return s.carry(ctx, chain, g, entry, size, v)
}

// carry measures what the processes of g carry from entry to the target, when they bring bytes back unchanged.
func (s *site) carry(ctx context.Context, what string, g *proc.Group, entry string, size *size, v values) error {
	if err := s.await(ctx, g, entry); err != nil {
		return err
	}
	if err := load.Mirror(entry, s.mirror); err != nil {
		return err
	}
	list, err := load.AllWays(ctx, s.target, entry, g, size.warm, size.bulk)
	if err != nil {
		return err
	}
	spent := make([]time.Duration, len(g.Processes))
	var all time.Duration
	var moved int64
	for _, c := range list {
		v[speed(what, c.Way.Name)] = c.PerSecond() / megabyte
		for i, d := range c.CPU {
			spent[i] += d
		}
		all += c.Spent()
		moved += c.Bytes
	}
	for i, p := range g.Processes {
		v[cpu(what, p.Name)] = spent[i].Seconds() / (float64(moved) / gigabyte)
	}
	v[cpu(what, "all")] = all.Seconds() / (float64(moved) / gigabyte)
	return nil
}

// speed, cpu and added are the names of values.
func speed(what, way string) string   { return what + ": " + way + ", MB/s" }
func cpu(what, process string) string { return what + ": CPU of " + process + ", s/GB" }
func added(chain string) string       { return chain + ": CPU more than two hops, s/GB" }

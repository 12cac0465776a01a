package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"culvert/bench/compare/peers"
	"culvert/bench/identity"
	"culvert/bench/load"
	"culvert/bench/proc"
)

// site is what all pairs of a run share: the target, certificates made for the run, and the programs.
type site struct {
	dir     string // removed at the end
	self    string // this program
	gateway string // Culvert
	tools   string // folder with envoy, looked at before PATH
	target  *load.Target
	mirror  int // bytes that a pair brings back unchanged before it is measured
}

func newSite(gateway, tools string) (*site, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "culvert-compare-")
	if err != nil {
		return nil, err
	}
	s := &site{dir: dir, self: self, gateway: gateway, tools: tools, mirror: load.MirrorBytes}
	if err := s.identities(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if s.target, err = load.NewTarget(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return s, nil
}

func (s *site) close() {
	s.target.Close()
	_ = os.RemoveAll(s.dir) // what is left is in the system's folder for such things
}

// identities makes a CA and a certificate with a P-256 key for each end. They have the SPIFFE IDs that Culvert and
// Envoy ask for, and the exit has the name that the others ask for.
func (s *site) identities() error {
	ca, err := identity.NewCA(s.dir)
	if err != nil {
		return err
	}
	_, entryErr := ca.Issue("entry")
	_, exitErr := ca.Issue("exit", peers.ExitName)
	return errors.Join(entryErr, exitErr)
}

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

// pair is one thing that is measured.
type pair struct {
	name string // the first cell of its row
	// start brings both proxies up and says where the entry listens. between is called with the address of the exit
	// and returns where the entry shall find it. What was started goes to r, also if there was an error.
	start func(s *site, r *running, between func(exit string) (string, error)) error
	// missing says what this machine lacks to run the pair, "" if nothing.
	missing func(s *site) string
}

// running is a pair that was started.
type running struct {
	entry string // where clients connect to
	proc.Group
	closers []func()
}

// add starts one more process of the pair.
func (r *running) add(s *site, name, program string, args ...string) error {
	return r.Add(s.dir, name, program, args...)
}

// stop ends the pair, the entry first.
func (r *running) stop() {
	r.Stop()
	for _, c := range r.closers {
		c()
	}
}

// begin starts a pair, waits until it carries bytes, and checks that they arrive as they were sent.
func (s *site) begin(ctx context.Context, p *pair, far bool) (*running, error) {
	r := new(running)
	between := adjacent
	if far {
		between = r.farAway
	}
	err := p.start(s, r, between)
	if err == nil {
		err = s.await(ctx, r)
	}
	if err == nil {
		err = load.Mirror(r.entry, s.mirror)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", p.name, err)
		for _, p := range r.Processes {
			err = fmt.Errorf("%w\n%s: %s", err, p.Name, p.Tail())
		}
		r.stop()
		return nil, err
	}
	return r, nil
}

// adjacent is the between of a pair with nothing between its proxies.
func adjacent(exit string) (string, error) { return exit, nil }

// await tries until a byte comes back from the target.
func (s *site) await(ctx context.Context, r *running) error {
	deadline := time.Now().Add(proc.StartPatience)
	for {
		err := load.Mirror(r.entry, 1)
		if err == nil {
			return nil
		}
		if gone := r.Alive(); gone != nil {
			return gone
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not ready after %v: %w", proc.StartPatience, err)
		}
		time.Sleep(proc.Poll)
	}
}

// farAway is the between of a pair whose proxies are far from each other; r ends the road with the pair.
func (r *running) farAway(exit string) (string, error) {
	d, err := newDelayRelay(exit, farDelay, farRate)
	if err != nil {
		return "", err
	}
	r.closers = append(r.closers, d.close)
	return d.addr(), nil
}

// accepts waits until somebody listens at addr.
func accepts(r *running, addr string) error {
	for deadline := time.Now().Add(proc.StartPatience); ; time.Sleep(proc.Poll) {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			return c.Close()
		}
		if err := r.Alive(); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return err
		}
	}
}

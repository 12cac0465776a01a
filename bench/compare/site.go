package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"culvert/bench/compare/peers"
	"culvert/bench/identity"
)

// site is what all pairs of a run share: the target, certificates made for the run, and the programs.
type site struct {
	dir     string // removed at the end
	self    string // this program
	gateway string // Culvert
	tools   string // folder with envoy, looked at before PATH
	target  *target
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
	s := &site{dir: dir, self: self, gateway: gateway, tools: tools, mirror: mirrorBytes}
	if err := s.identities(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if s.target, err = newTarget(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return s, nil
}

func (s *site) close() {
	s.target.close()
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
	entry     string // where clients connect to
	processes []*process
	closers   []func()
}

// add starts one more process of the pair.
func (r *running) add(s *site, name, program string, args ...string) error {
	p, err := startProcess(s.dir, name, program, args...)
	if err != nil {
		return err
	}
	r.processes = append(r.processes, p)
	return nil
}

// stop ends the pair, the entry first.
func (r *running) stop() {
	for i := len(r.processes) - 1; i >= 0; i-- {
		r.processes[i].stop()
	}
	for _, c := range r.closers {
		c()
	}
}

func (r *running) alive() error {
	for _, p := range r.processes {
		if err := p.alive(); err != nil {
			return err
		}
	}
	return nil
}

// usage is that of all processes of the pair.
func (r *running) usage() (usage, error) { return usageOf(r.processes) }

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
		err = mirror(r.entry, s.mirror)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", p.name, err)
		for _, p := range r.processes {
			err = fmt.Errorf("%w\n%s: %s", err, p.name, p.tail())
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
	deadline := time.Now().Add(startPatience)
	for {
		err := mirror(r.entry, 1)
		if err == nil {
			return nil
		}
		if gone := r.alive(); gone != nil {
			return gone
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not ready after %v: %w", startPatience, err)
		}
		time.Sleep(startPoll)
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
	for deadline := time.Now().Add(startPatience); ; time.Sleep(startPoll) {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			return c.Close()
		}
		if err := r.alive(); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return err
		}
	}
}

// mirrorBytes is enough to go through every window and buffer once.
const mirrorBytes = 9<<20 + 17

// mirrorPatience bounds one mirror.
const mirrorPatience = 20 * time.Second

// mirror sends n random bytes through addr, ends its half, and wants the same bytes and the end back.
func mirror(addr string, n int) error {
	c, err := dialFrom(addr, 0)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(mirrorPatience)); err != nil {
		return err
	}
	body := make([]byte, n)
	_, _ = rand.Read(body) // never fails
	sent := make(chan error, 1)
	// Ends when all is sent or the deadline passes; received from below.
	go func() {
		_, err := c.Write(append([]byte{askMirror}, body...))
		sent <- errors.Join(err, c.CloseWrite())
	}()
	got, err := io.ReadAll(c)
	if err := errors.Join(<-sent, err); err != nil {
		return err
	}
	if !bytes.Equal(got, body) {
		return fmt.Errorf("%d bytes came back that are not the %d that were sent", len(got), n)
	}
	return nil
}

// dialFrom connects to addr from one of many loopback addresses, so that ports do not run out; 0 is the system's
// choice.
func dialFrom(addr string, source int) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: dialPatience}
	if source > 0 && manySources {
		d.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(source))}
		d.Control = lateBind
	}
	c, err := d.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil // net sets TCP_NODELAY
}

// dialPatience bounds the connect to an entry.
const dialPatience = 10 * time.Second

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"culvert/bench/identity"
	"culvert/bench/load"
	"culvert/bench/proc"
)

// site is what all parts of a run share: the target, certificates made for the run, and the programs.
type site struct {
	dir     string // removed at the end
	self    string // this program
	gateway string // Culvert
	ca      *identity.CA
	target  *load.Target
	mirror  int // bytes that a chain brings back unchanged before it is measured
}

func newSite(gateway string) (*site, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if gateway, err = filepath.Abs(gateway); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "culvert-roles-")
	if err != nil {
		return nil, err
	}
	s := &site{dir: dir, self: self, gateway: gateway, mirror: load.MirrorBytes}
	if s.ca, err = identity.NewCA(dir); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	for _, name := range []string{"entry", "middle", "exit"} {
		if _, err := s.ca.Issue(name); err != nil {
			return nil, errors.Join(err, os.RemoveAll(dir))
		}
	}
	if _, err := s.ca.Issue("edge", askedHost); err != nil {
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

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

// flags starts a gateway with the identity of that name, by flags.
func (s *site) flags(g *proc.Group, name string, more ...string) error {
	return g.Add(s.dir, name, s.gateway, append([]string{
		"run", "--cert", s.path(name + ".pem"), "--key", s.path(name + ".key"), "--roots", s.path("roots.pem"),
		"--state", s.path("state-" + name), "--log-level", "warn", "--drain", "0s",
	}, more...)...)
}

// file starts a gateway with the identity of that name, by a configuration without what is the same for all.
func (s *site) file(g *proc.Group, name, config string) error { return s.fileAs(g, name, name, config) }

// fileAs is file for a process of another name.
func (s *site) fileAs(g *proc.Group, process, name, config string) error {
	file := s.path(process + ".yaml")
	text := fmt.Sprintf("identity: {cert: %s.pem, key: %[1]s.key, roots: roots.pem}\nstate: state-%s\nlog: {level: warn}\ndrain: -1s\n%s",
		name, process, config)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	return g.Add(s.dir, process, s.gateway, "run", "-c", file)
}

// addrs finds n different addresses.
func addrs(n int) ([]string, error) {
	taken := make(map[string]bool)
	var list []string
	for len(list) < n {
		addr, err := proc.FreeAddr()
		if err != nil {
			return nil, err
		}
		if !taken[addr] {
			taken[addr] = true
			list = append(list, addr)
		}
	}
	return list, nil
}

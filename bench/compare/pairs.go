package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"culvert/bench/proc"
)

// The rows of the table. Ratios are to tlsRelayName.
const (
	culvertName  = "Culvert"
	tlsRelayName = "TLS relay"
	netHTTP2Name = "x/net/http2"
	grpcName     = "grpc-go"
	envoyName    = "Envoy"
	sshName      = "OpenSSH"
	directName   = "direct"
)

// pairs lists what can be measured, in the order of the table.
var pairs = []*pair{
	{name: culvertName, start: startCulvert, missing: missingCulvert},
	{name: tlsRelayName, start: startGo("tls-relay"), missing: missingNothing},
	{name: netHTTP2Name, start: startGo("x-net-http2"), missing: missingNothing},
	{name: grpcName, start: startGo("grpc-go"), missing: missingNothing},
	{name: envoyName, start: startEnvoy, missing: missingEnvoy},
	{name: sshName, start: startOpenSSH, missing: missingOpenSSH},
	{name: directName, start: startDirect, missing: missingNothing},
}

func missingNothing(*site) string { return "" }

func missingCulvert(s *site) string {
	if _, err := os.Stat(s.gateway); err != nil {
		return "no " + s.gateway + ": run make build"
	}
	return ""
}

// startCulvert runs the gateway as its users do: an entry with a forwarded port, and an exit. Nobody else in the
// table writes a record of every flow, so neither does it.
func startCulvert(s *site, r *running, between func(string) (string, error)) error {
	exit, entry, err := twoAddrs()
	if err != nil {
		return err
	}
	gateway, err := filepath.Abs(s.gateway)
	if err != nil {
		return err
	}
	if err := r.add(s, "Culvert exit", gateway, s.culvertArgs("exit", "--hbone", exit)...); err != nil {
		return err
	}
	via, err := between(exit)
	if err != nil {
		return err
	}
	r.entry = entry
	return r.add(s, "Culvert entry", gateway, s.culvertArgs("entry", "--forward", entry+"="+s.target.Addr(), "--via", via)...)
}

func (s *site) culvertArgs(role string, more ...string) []string {
	return append([]string{
		"run", "--cert", s.path(role + ".pem"), "--key", s.path(role + ".key"), "--roots", s.path("roots.pem"),
		"--state", s.path("state-" + role), "--log-level", "warn", "--drain", "0s",
	}, more...)
}

// startGo runs this program twice as the proxies of package peers.
func startGo(kind string) func(*site, *running, func(string) (string, error)) error {
	return func(s *site, r *running, between func(string) (string, error)) error {
		exit, entry, err := twoAddrs()
		if err != nil {
			return err
		}
		if err := r.add(s, kind+" exit", s.self, "pair", kind, "exit", exit, s.target.Addr(), s.dir); err != nil {
			return err
		}
		via, err := between(exit)
		if err != nil {
			return err
		}
		r.entry = entry
		return r.add(s, kind+" entry", s.self, "pair", kind, "entry", entry, via, s.dir)
	}
}

// startDirect has no proxies: clients connect to the target, through what is between if there is anything.
func startDirect(s *site, r *running, between func(string) (string, error)) (err error) {
	r.entry, err = between(s.target.Addr())
	return err
}

// twoAddrs finds addresses for an exit and an entry.
func twoAddrs() (exit, entry string, err error) {
	if exit, err = proc.FreeAddr(); err != nil {
		return "", "", err
	}
	for entry = exit; entry == exit; {
		if entry, err = proc.FreeAddr(); err != nil {
			return "", "", err
		}
	}
	return exit, entry, nil
}

// tool finds a program in the folder of tools or in PATH.
func (s *site) tool(name string) (string, error) {
	if path, err := filepath.Abs(filepath.Join(s.tools, name)); err == nil {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("no %s in %s or PATH", name, s.tools)
	}
	return path, nil
}

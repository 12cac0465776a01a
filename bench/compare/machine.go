package main

import (
	"context"
	"runtime/debug"

	"culvert/bench/proc"
)

// thisMachine reads what it can; what it cannot stays empty.
func thisMachine(ctx context.Context, s *site) proc.Machine {
	m := proc.ThisMachine()
	for _, p := range []struct {
		pair, tool string
		args       []string
	}{{envoyName, "envoy", []string{"--version"}}, {sshName, "ssh", []string{"-V"}}} {
		if path, err := s.tool(p.tool); err == nil {
			m.Programs[p.pair] = proc.FirstLine(ctx, path, p.args...)
		}
	}
	m.Programs[culvertName] = proc.FirstLine(ctx, "git", "describe", "--always", "--dirty")
	for module, pair := range map[string]string{"golang.org/x/net": netHTTP2Name, "google.golang.org/grpc": grpcName} {
		m.Programs[pair] = moduleVersion(module)
	}
	return m
}

// moduleVersion is the version of a module this program is made with.
func moduleVersion(path string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, m := range info.Deps {
		if m.Path == path {
			return path + " " + m.Version
		}
	}
	return ""
}

package rules

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Status is what is installed on a host.
type Status struct {
	// Installed tells whether anything is. The other fields are zero if not.
	Installed bool
	// Config is what was installed, with its defaults.
	Config Config
	// IPv6 tells whether flows over IPv6 are caught.
	IPv6 bool
	// IPv6Since tells that they are not, although the host has IPv6 now: it was switched on after Install.
	IPv6Since bool
	// Missing are the steps of Install that somebody has undone since: the commands that would do them again.
	Missing []string
	// Serving are the ports that a gateway serves, with Fail open.
	Serving []uint16
	// Flows is how many flows were caught since the installation, as far as the packet filter counts.
	Flows uint64
}

// Look returns what is installed on h.
func Look(ctx context.Context, h Host) (*Status, error) {
	h = h.withDefaults()
	if err := h.Privileged(); err != nil {
		return nil, err
	}
	r, err := h.load()
	if err != nil || r == nil {
		return &Status{}, err
	}
	k, err := r.Config.compile(r.IPv6)
	if err != nil {
		return nil, fmt.Errorf("what is installed is not understood by this version: %w", err)
	}
	s := &Status{Installed: true, Config: k.Config, IPv6: k.ipv6, IPv6Since: !k.ipv6 && ipv6()}
	if k.tproxy() {
		s.lookAtRoutes(ctx, h, k)
	}
	if k.Backend == BackendNFT {
		s.lookAtTable(ctx, h, k)
	} else {
		s.lookAtChains(ctx, h, k)
	}
	return s, nil
}

func (s *Status) lookAtRoutes(ctx context.Context, h Host, k *compiled) {
	for _, v6 := range []bool{false, true} {
		if v6 && !k.ipv6 {
			continue
		}
		steps := k.routeSteps(v6)
		for i, look := range [][]string{
			{"ip", steps[0].Do.Args[1], "route", "show", "table", strconv.Itoa(routeTable)},
			{"ip", steps[0].Do.Args[1], "rule", "show", "priority", strconv.Itoa(routeTable)},
		} {
			if out, err := h.Run(ctx, Command{Args: look}); err != nil || strings.TrimSpace(out) == "" {
				s.Missing = append(s.Missing, steps[i].Do.String())
			}
		}
	}
}

// counted is a rule that counts flows.
var counted = regexp.MustCompile(`counter packets (\d+)`) // immutable

func (s *Status) lookAtTable(ctx context.Context, h Host, k *compiled) {
	out, err := h.Run(ctx, Command{Args: []string{"nft", "list", "table", "inet", tableName}})
	if err != nil {
		s.Missing = append(s.Missing, "gateway capture install")
		return
	}
	for _, m := range counted.FindAllStringSubmatch(out, -1) {
		n, _ := strconv.ParseUint(m[1], 10, 64)
		s.Flows += n
	}
	served := servedIn(out)
	for _, port := range k.gates() {
		if served[port] != "" {
			s.Serving = append(s.Serving, port)
		}
	}
}

// Sets of ports, as nft lists them, and the protocols in one.
var (
	gateListed     = regexp.MustCompile(`set open_(\d+) \{[^}]*elements = \{([^}]*)\}`) // immutable
	protocolListed = regexp.MustCompile(`\b(tcp|udp) [^,]*expires`)                     // immutable
)

// servedIn returns the ports that a gateway serves, of a table as nft lists it, each with elements for its set.
func servedIn(table string) map[uint16]string {
	served := make(map[uint16]string)
	for _, set := range gateListed.FindAllStringSubmatch(table, -1) {
		port, err := strconv.ParseUint(set[1], 10, 16)
		if err != nil {
			continue
		}
		var elements []string
		for _, m := range protocolListed.FindAllStringSubmatch(set[2], -1) {
			elements = append(elements, fmt.Sprintf("%s timeout %ds", m[1], int(aliveFor.Seconds())))
		}
		if len(elements) > 0 {
			served[uint16(port)] = strings.Join(elements, ", ")
		}
	}
	return served
}

func (s *Status) lookAtChains(ctx context.Context, h Host, k *compiled) {
	for _, step := range k.plan() {
		if len(step.check.Args) == 0 {
			continue
		}
		if _, err := h.Run(ctx, step.check); err != nil {
			s.Missing = append(s.Missing, step.Do.String())
		}
	}
	if k.Fail != FailOpen {
		return
	}
	for _, port := range k.gates() {
		out, err := h.Run(ctx, Command{Args: []string{"ipset", "list", ipsetName(port, false)}})
		if err == nil && strings.Contains(out, "/1 timeout") {
			s.Serving = append(s.Serving, port)
		}
	}
}

// Serves reports whether flows to all ports of the gateway are caught now.
func (s *Status) Serves() bool {
	k, err := s.Config.compile(s.IPv6)
	if err != nil || s.Config.Fail == FailClosed {
		return err == nil
	}
	return !slices.ContainsFunc(k.gates(), func(p uint16) bool { return !slices.Contains(s.Serving, p) })
}

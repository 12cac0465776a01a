package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"culvert/bench/load"
	"culvert/bench/proc"
)

func missingNetwork(*site) string {
	if os.Geteuid() != 0 {
		return "network namespaces take root"
	}
	for program, install := range map[string]string{"unshare": "util-linux", "ip": "iproute2", "nft": "nftables"} {
		if _, err := exec.LookPath(program); err != nil {
			return "no " + program + ": install " + install
		}
	}
	return ""
}

// takeHalf measures what happens when the packets of an agent are dropped, in a network namespace of its own: this program
// starts itself there.
func takeHalf(ctx context.Context, s *site, size *size) (values, error) {
	p, err := proc.Start(s.dir, "half-open", "unshare", "--net", s.self, "half", "-gateway", s.gateway, "-for", size.halfOpen.String())
	if err != nil {
		return nil, err
	}
	defer p.Stop()
	if err := p.Wait(ctx); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(s.path("half-open.log"))
	if err != nil {
		return nil, err
	}
	v := make(values)
	return v, json.Unmarshal(text, &v)
}

// half is `roles half`: the part that runs in a network namespace.
func half(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("half", flag.ContinueOnError)
	gateway := fs.String("gateway", "bin/gateway", "the Culvert `FILE` to measure")
	most := fs.Duration("for", full.halfOpen, "how long to wait at most")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if list, err := net.Interfaces(); err != nil || len(list) != 1 {
		return errors.New("this is no network namespace that was made for it")
	}
	for _, line := range [][]string{
		{"ip", "link", "set", "lo", "up"},
		{"nft", "add table inet road; add set inet road dead { type inet_service; }; " +
			"add chain inet road input { type filter hook input priority 0; }; " +
			"add rule inet road input tcp sport @dead drop; add rule inet road input tcp dport @dead drop"},
	} {
		if out, err := exec.CommandContext(ctx, line[0], line[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", line[0], err, out)
		}
	}
	s, err := newSite(*gateway)
	if err != nil {
		return err
	}
	defer s.close()
	v, err := s.dropped(ctx, *most)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(v)
}

// dropped has two homes, one with an agent and one with two of the same name, and drops the packets of one agent each.
func (s *site) dropped(ctx context.Context, most time.Duration) (values, error) {
	names := []string{agentHalf, agentHalfTwo}
	var homes []*home
	var askers []*asker
	defer func() {
		for _, h := range homes {
			h.stop()
		}
	}()
	var ports []string
	for i := range names {
		h, err := s.newHome(fmt.Sprintf("half-%d", 1+i), agentName(0))
		if err != nil {
			return nil, err
		}
		homes = append(homes, h)
		for range 1 + i {
			if err := h.join(h.addr, 0, 1); err != nil {
				return nil, err
			}
		}
		if err := h.await(ctx, 1+i); err != nil {
			return nil, err
		}
		peers, err := proc.Established(h.addr)
		if err != nil {
			return nil, err
		}
		ports = append(ports, strconv.Itoa(peers[0]))
	}
	for _, h := range homes {
		askers = append(askers, startAsker(h.ports[0]))
	}
	err := load.Pause(ctx, time.Second)
	drop := exec.Command("nft", "add element inet road dead { "+strings.Join(ports, ", ")+" }")
	start := time.Now()
	if out, failed := drop.CombinedOutput(); failed != nil {
		err = errors.Join(err, fmt.Errorf("nft: %w: %s", failed, out))
	}
	if err == nil {
		err = load.Pause(ctx, 2*time.Second)
	}
	for _, a := range askers {
		if err == nil {
			err = a.recovered(ctx, most)
		}
	}
	v := make(values)
	for i, a := range askers {
		a.stop()
		v[names[i]] = a.gap(start).Seconds()
	}
	return v, err
}

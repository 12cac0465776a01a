package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"culvert/capture/rules"
	"culvert/tunnel"
)

// captureFlags are what `gateway capture install` and `print` take: a rules.Config in the words of people.
type captureFlags struct {
	config rules.Config
	users  []string
	groups []string
}

func captureCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "capture",
		Short: "Lead this host's flows to the gateway, without the programs knowing, or stop that",
		Long: `Put rules of the packet filter in place that lead flows of this host to a gateway on it.

  gateway run --capture --via exit.example:15008    the gateway that they are led to
  gateway capture install                           lead this host's TCP and DNS there
  gateway capture remove                            and no more

Connections that are open before install, or go past the gateway, stay as they are; remove ends
those through it, so drain the gateway before. With --fail open, the default, flows are
led to the gateway only while it runs. Linux only; it takes root or CAP_NET_ADMIN.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(captureInstallCommand(), captureRemoveCommand(), captureStatusCommand(), capturePrintCommand())
	return cmd
}

func captureInstallCommand() *cobra.Command {
	f := &captureFlags{}
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Put the rules in place, instead of those that may be there",
		Long: `Put the rules in place. Without flags: this host's outbound TCP and DNS, to the gateway's
default ports; nothing inbound. What the host listens on, loopback, link-local, multicast
and this host's own addresses are left alone, and so is what the gateway itself sends.

  gateway capture install --exclude 10.0.0.0/8 --exclude-ports 22
  gateway capture install --inbound 80,443          plain flows to workloads of this host
  gateway capture install --forward eth1            flows that this host routes for others

Called again it replaces what is there, in one step.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := f.rules()
			if err != nil {
				return err
			}
			if err := rules.Install(cmd.Context(), cfg, rules.Host{}); err != nil {
				return ruleFaults(err)
			}
			awaitServed(cmd.Context())
			return captureStatus(cmd.Context(), cmd.OutOrStdout())
		},
	}
	f.add(cmd)
	return cmd
}

func captureRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "remove",
		Short: "Take out the rules; open connections through the gateway end, others stay as they are",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := rules.Remove(cmd.Context(), rules.Host{}); err != nil {
				return failed(err)
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "nothing is captured any more: every rule is as it was before")
			return err
		},
	}
}

func captureStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Say what is captured, and what happens when the gateway is gone",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return captureStatus(cmd.Context(), cmd.OutOrStdout())
		},
	}
}

func capturePrintCommand() *cobra.Command {
	f := &captureFlags{}
	undo := false
	cmd := &cobra.Command{
		Use:   "print",
		Short: "Print the commands that install would run, for a shell; nothing is changed",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := f.rules()
			if err != nil {
				return err
			}
			steps, err := rules.Plan(cfg, rules.Host{})
			if err != nil {
				return ruleFaults(err)
			}
			if undo {
				slices.Reverse(steps)
			}
			for _, s := range steps {
				c := s.Do
				if undo {
					c = s.Undo
				}
				if _, err := fmt.Fprintln(cmd.OutOrStdout(), c); err != nil {
					return err
				}
			}
			return nil
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&undo, "undo", false, "print the commands that remove would run")
	return cmd
}

func (f *captureFlags) add(cmd *cobra.Command) {
	fs, c := cmd.Flags(), &f.config
	fs.StringVar(&c.Backend, "backend", "", "nft or iptables (default: nft where that command is there)")
	fs.StringVar(&c.Mode, "mode", rules.ModeTProxy, "tproxy, or redirect, which rewrites addresses and needs no policy route")
	fs.StringVar(&c.Fail, "fail", rules.FailOpen, "what happens to new flows while no gateway runs: open, they go their way without it; closed, they are refused")
	fs.BoolVar(&c.NoOutbound, "no-outbound", false, "leave this host's own flows alone")
	fs.StringSliceVar(&c.Ports, "ports", nil, "capture TCP to these `PORTS` only, such as 80,443,8000-8100 (default: all)")
	fs.StringSliceVar(&c.UDPPorts, "udp-ports", nil, "capture UDP to these `PORTS` too (default: DNS alone)")
	fs.BoolVar(&c.NoDNS, "no-dns", false, "leave DNS alone")
	fs.StringSliceVar(&c.Inbound, "inbound", nil, "capture plain TCP of other hosts to these `PORTS` of workloads on this one")
	fs.StringSliceVar(&c.Forward, "forward", nil, "capture flows that come in on these `INTERFACES`, for others that this host routes for")
	fs.StringSliceVar(&c.Exclude, "exclude", nil, "leave these addresses and ranges alone, as `CIDR[,CIDR]`")
	fs.StringSliceVar(&c.ExcludePorts, "exclude-ports", nil, "leave these destination `PORTS` alone")
	fs.StringSliceVar(&f.users, "exclude-uid", nil, "leave flows of these `USERS` alone, names or numbers")
	fs.StringSliceVar(&f.groups, "exclude-gid", nil, "leave flows of these `GROUPS` alone, names or numbers")
	fs.StringSliceVar(&c.ExcludeCgroups, "exclude-cgroup", nil, "leave flows of these control groups alone, as `PATH[,PATH]` such as system.slice/sshd.service")
	fs.Uint16Var(&c.Port, "port", rules.DefaultPort, "where the gateway takes outbound flows")
	fs.Uint16Var(&c.InboundPort, "inbound-port", rules.DefaultInboundPort, "where it takes inbound ones")
	fs.Uint16Var(&c.DNSPort, "dns-port", rules.DefaultDNSPort, "where it takes DNS")
	for flag, list := range map[string][]string{"backend": {rules.BackendNFT, rules.BackendIPTables}, "mode": {rules.ModeTProxy, rules.ModeRedirect}, "fail": {rules.FailOpen, rules.FailClosed}} {
		if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(list, cobra.ShellCompDirectiveNoFileComp)); err != nil {
			panic("BUG: " + err.Error())
		}
	}
}

// rules makes a Config of the flags.
func (f *captureFlags) rules() (*rules.Config, error) {
	c := f.config
	var faults faults
	lookup := func(flag string, names []string, find func(string) (string, error)) (list []uint32) {
		for _, name := range names {
			id := name
			if _, err := strconv.ParseUint(name, 10, 32); err != nil {
				if id, err = find(name); err != nil {
					faults.list = append(faults.list, fault{flag: flag, what: fmt.Sprintf("%v; it should be a name or a number of this host", err)})
					continue
				}
			}
			n, err := strconv.ParseUint(id, 10, 32)
			if err != nil {
				panic("BUG: the system's number of " + name + " is " + id)
			}
			list = append(list, uint32(n))
		}
		return list
	}
	c.ExcludeUIDs = lookup("--exclude-uid", f.users, func(name string) (string, error) {
		u, err := user.Lookup(name)
		if err != nil {
			return "", err
		}
		return u.Uid, nil
	})
	c.ExcludeGIDs = lookup("--exclude-gid", f.groups, func(name string) (string, error) {
		g, err := user.LookupGroup(name)
		if err != nil {
			return "", err
		}
		return g.Gid, nil
	})
	return &c, faults.err()
}

// ruleFaults makes faults of flags of what Install says is wrong with a Config; anything else is a failure.
func ruleFaults(err error) error {
	var field *rules.FieldError
	if !errors.As(err, &field) {
		return failed(err)
	}
	f := new(faults)
	list := []error{err}
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		list = many.Unwrap()
	}
	for _, one := range list {
		if errors.As(one, &field) {
			f.list = append(f.list, fault{flag: "--" + field.Field, what: field.What})
		}
	}
	return f.err()
}

// awaitServed gives a gateway that runs the time to say so. Whether one does is told by the status.
func awaitServed(ctx context.Context) {
	for end := time.Now().Add(rules.AliveInterval + rules.AliveInterval/2); time.Now().Before(end); {
		s, err := rules.Look(ctx, rules.Host{})
		if err != nil || s.Config.Fail != rules.FailOpen || s.Serves() {
			return // the status tells
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return
		}
	}
}

// captureStatus prints what is installed.
func captureStatus(ctx context.Context, w io.Writer) error {
	s, err := rules.Look(ctx, rules.Host{})
	if err != nil {
		return failed(err)
	}
	_, err = io.WriteString(w, describeCapture(s))
	return err
}

func describeCapture(s *rules.Status) string {
	if !s.Installed {
		return "nothing is captured; `gateway capture install` changes that\n"
	}
	c := &s.Config
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-9s %s\n", name, fmt.Sprintf(format, args...))
	}
	families := "IPv4 and IPv6"
	switch {
	case s.IPv6Since:
		families = "IPv4; IPv6 is on since then, and passes by: run `gateway capture install` again"
	case !s.IPv6:
		families = "IPv4; IPv6 is off on this host"
	}
	line("captured", "%s, with %s by %s", families, c.Mode, c.Backend)
	what := "TCP to port " + strconv.Itoa(int(c.Port))
	if len(c.Ports) > 0 {
		what = fmt.Sprintf("TCP to %s, to port %d", strings.Join(c.Ports, ","), c.Port)
	}
	if len(c.UDPPorts) > 0 {
		what += ", UDP to " + strings.Join(c.UDPPorts, ",")
	}
	if !c.NoDNS {
		what += ", DNS to port " + strconv.Itoa(int(c.DNSPort))
	}
	if !c.NoOutbound {
		line("outbound", "%s", what)
	}
	if len(c.Forward) > 0 {
		line("routed", "from %s: %s", strings.Join(c.Forward, ", "), what)
	}
	if len(c.Inbound) > 0 {
		line("inbound", "TCP to %s, to port %d", strings.Join(c.Inbound, ","), c.InboundPort)
	}
	if alone := leftAlone(c); alone != "" {
		line("excluded", "%s", alone)
	}
	switch {
	case c.Fail == rules.FailClosed:
		line("fail", "closed: new flows get nowhere unless a gateway runs, such as `%s`", runFor(c))
	case s.Serves():
		line("fail", "open: new flows are captured, as a gateway runs")
	case len(s.Serving) > 0:
		line("fail", "open: a gateway serves port %s only, and other flows pass by", strings.Trim(fmt.Sprint(s.Serving), "[]"))
	default:
		line("fail", "open: no gateway runs, so new flows pass by; start one with `%s`", runFor(c))
	}
	if c.Backend == rules.BackendNFT {
		line("flows", "%d since it was installed", s.Flows)
	}
	for _, m := range s.Missing {
		line("missing", "somebody has undone `%s`; `gateway capture install` does it again", m)
	}
	return b.String()
}

// runFor is the gateway that takes what is captured.
func runFor(c *rules.Config) string {
	run := "gateway run"
	if !c.NoOutbound || len(c.Forward) > 0 {
		run += " --capture"
		if c.Mode == rules.ModeRedirect {
			run = "gateway run --redirect"
		}
		if c.Port != rules.DefaultPort {
			run += fmt.Sprintf("=localhost:%d", c.Port)
		}
	}
	if len(c.Inbound) > 0 {
		run += " --inbound strict"
	}
	return run
}

// leftAlone are the exclusions that the user has made.
func leftAlone(c *rules.Config) string {
	var parts []string
	add := func(name string, list []string) {
		if len(list) > 0 {
			parts = append(parts, name+strings.Join(list, ","))
		}
	}
	add("", c.Exclude)
	add("ports ", c.ExcludePorts)
	if len(c.ExcludeUIDs) > 0 {
		add("users ", strings.Fields(strings.Trim(fmt.Sprint(c.ExcludeUIDs), "[]")))
	}
	if len(c.ExcludeGIDs) > 0 {
		add("groups ", strings.Fields(strings.Trim(fmt.Sprint(c.ExcludeGIDs), "[]")))
	}
	add("control groups ", c.ExcludeCgroups)
	return strings.Join(parts, "; ")
}

// heartbeat tells the rules of this host that flows are served, for as long as they are.
type heartbeat struct {
	alive *rules.Alive
	ports []rules.Served
	sick  bool // the last time has failed
}

// newHeartbeat makes one that has nothing to tell yet.
func newHeartbeat() *heartbeat { return &heartbeat{alive: rules.NewAlive(rules.Host{})} }

// serve has it tell of the listeners of b that the packet filter leads flows to. What was served before, and is no more, is taken back.
func (h *heartbeat) serve(b *parts, log *logging) {
	before := h.ports
	h.ports = nil
	for _, l := range b.cfg.Listeners {
		if l.Kind != tunnel.KindTProxy && l.Kind != tunnel.KindRedirect && l.Kind != tunnel.KindDNS {
			continue
		}
		mode := rules.ModeTProxy
		if l.Kind == tunnel.KindRedirect || l.Kind == tunnel.KindDNS && !l.Captured {
			mode = rules.ModeRedirect
		}
		if at, ok := b.tunnel.Addr(l.Name).(*net.TCPAddr); ok {
			h.ports = append(h.ports, rules.Served{Port: uint16(at.Port), TCP: true, UDP: l.Kind != tunnel.KindRedirect, Mode: mode})
		}
	}
	h.withdraw(slices.DeleteFunc(before, func(s rules.Served) bool { return slices.Contains(h.ports, s) }), log)
}

// beat is called every rules.AliveInterval.
func (h *heartbeat) beat(log *logging) {
	if len(h.ports) == 0 {
		return
	}
	err := h.alive.Refresh(h.ports)
	if err != nil && !h.sick {
		log.Warn("the rules of this host do not hear that the gateway runs, so that flows pass by", "err", err)
	}
	h.sick = err != nil
	if late := h.alive.Late(); late > 0 {
		log.Warn("flows have passed by: the rules of this host did not hear in time that the gateway runs", "dur", late)
	}
}

// stop lets new flows pass by at once.
func (h *heartbeat) stop(log *logging) { h.withdraw(h.ports, log) }

func (h *heartbeat) withdraw(ports []rules.Served, log *logging) {
	if len(ports) == 0 {
		return
	}
	if err := h.alive.Withdraw(ports); err != nil {
		log.Warn("new flows are captured for some seconds more", "err", err)
	}
}

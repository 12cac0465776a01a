package rules

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Plan returns the commands that Install would run, and what undoes each. It changes nothing. What is wrong with c
// comes back as joined *FieldErrors.
func Plan(c *Config, h Host) ([]Step, error) {
	h = h.withDefaults()
	k, err := c.withDefaults(h.Find("nft")).compile(ipv6())
	if err != nil {
		return nil, err
	}
	return k.plan(), nil
}

// Install puts the rules of c in place of those that may be there. It may be called again. When it fails, nothing of
// what it has done is left, and what was installed before still is. An error is one line that says what to do.
func Install(ctx context.Context, c *Config, h Host) error {
	h = h.withDefaults()
	k, err := c.withDefaults(h.Find("nft")).compile(ipv6())
	if err != nil {
		return err
	}
	if err := k.possible(h); err != nil {
		return err
	}
	unlock, err := h.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	before, err := h.load()
	if err != nil {
		return err
	}
	if before == nil {
		before = h.find(ctx, k.Backend == BackendIPTables)
	}
	was, err := before.plan()
	if err != nil {
		return err
	}
	if err := k.inTheWay(ctx, h, was); err != nil {
		return err
	}
	r := &record{Config: k.Config, IPv6: k.ipv6, Tables: k.newTables(ctx, h)}
	if before != nil {
		r.Tables = slices.Compact(slices.Sorted(slices.Values(slices.Concat(before.Tables, r.Tables))))
	}
	return h.replace(ctx, k, r, before, was)
}

// replace puts what k says in place of before, whose steps were was.
func (h Host) replace(ctx context.Context, k *compiled, r, before *record, was []Step) error {
	if k.Backend == BackendNFT {
		if out, err := h.Run(ctx, Command{Args: []string{"nft", "list", "table", "inet", tableName}}); err == nil {
			k.served = servedIn(out)
		}
	}
	// Written first: whatever happens, Remove knows what there may be.
	if err := h.save(r); err != nil {
		return fmt.Errorf("keep what is installed: %w; it should be a folder that root can write", err)
	}
	steps := k.plan()
	if err := h.apply(ctx, steps, was); err != nil {
		made := r.Tables
		if before != nil {
			made = slices.DeleteFunc(slices.Clone(made), func(name string) bool { return slices.Contains(before.Tables, name) })
		}
		_ = h.undoTables(ctx, made)
		return errors.Join(explain(err), h.save(before))
	}
	rest := slices.DeleteFunc(was, func(s Step) bool { return find(steps, s) != nil })
	if err := h.takeBack(ctx, rest, nil); err != nil {
		return fmt.Errorf("the new rules are in place, but something of the old ones is, too; `gateway capture remove` and install them again: %w", err)
	}
	kept := slices.DeleteFunc(slices.Clone(r.Tables), func(name string) bool { return !k.uses(name) })
	if len(kept) == len(r.Tables) {
		return nil
	}
	if err := h.undoTables(ctx, slices.DeleteFunc(r.Tables, k.uses)); err != nil {
		return err
	}
	r.Tables = kept
	return h.save(r)
}

// uses reports whether k has chains in a table of iptables.
func (k *compiled) uses(table string) bool {
	return k.Backend == BackendIPTables && strings.HasSuffix(table, " "+k.table())
}

// plan returns the steps that have led to r; none if there is none.
func (r *record) plan() ([]Step, error) {
	if r == nil {
		return nil, nil
	}
	k, err := r.Config.compile(r.IPv6)
	if err != nil {
		return nil, fmt.Errorf("what is installed is not understood by this version: %w", err)
	}
	return k.plan(), nil
}

// apply runs steps. When one fails, it takes back those that it has done, to how it was when was was installed.
func (h Host) apply(ctx context.Context, steps, was []Step) error {
	var done []Step
	for _, s := range steps {
		if len(s.check.Args) > 0 {
			if _, err := h.Run(ctx, s.check); err == nil {
				continue
			}
		}
		_, err := h.Run(ctx, s.Do)
		switch {
		case err == nil:
			done = append(done, s)
			continue
		case said(err, s.there...):
			continue
		case interrupted(err):
			done = append(done, s) // perhaps
		}
		if back := h.takeBack(ctx, done, was); back != nil {
			return fmt.Errorf("%w; and what was done is there still: %s", err, oneLine(back.Error()))
		}
		return err
	}
	return nil
}

// interrupted reports whether err is of a command that has not come to its end.
func interrupted(err error) bool {
	var exit *exec.ExitError
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &exit) && !exit.Exited()
}

// takeBack undoes steps, the last one first, all of them whatever happens, even when ctx has ended. Those that was has,
// too, are not undone but done as they were.
func (h Host) takeBack(ctx context.Context, steps, was []Step) error {
	ctx = context.WithoutCancel(ctx)
	var errs []error
	for _, s := range slices.Backward(steps) {
		if before := find(was, s); before != nil {
			if before.Do.Stdin != s.Do.Stdin {
				_, err := h.Run(ctx, before.Do)
				errs = append(errs, err)
			}
			continue
		}
		if len(s.check.Args) > 0 {
			if _, err := h.Run(ctx, s.check); err != nil {
				continue
			}
		}
		if _, err := h.Run(ctx, s.Undo); err != nil && !said(err, s.gone...) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Remove takes out what Install has put in place, by this process or another one. It may be called when nothing is
// there.
func Remove(ctx context.Context, h Host) error {
	h = h.withDefaults()
	if err := h.Privileged(); err != nil {
		return err
	}
	unlock, err := h.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	r, err := h.load()
	if err != nil {
		return err
	}
	if r == nil {
		r = h.find(ctx, h.Find("iptables"))
	}
	for range maxLeft {
		if r == nil {
			return h.save(nil) // there may be one of a namespace that is no more
		}
		steps, err := r.plan()
		if err != nil {
			return err
		}
		if err := errors.Join(h.takeBack(ctx, steps, nil), h.undoTables(ctx, r.Tables)); err != nil {
			return explain(err)
		}
		if r, err = nil, h.save(nil); err != nil {
			return err
		}
		r = h.find(ctx, h.Find("iptables"))
	}
	return nil
}

// maxLeft is how many installations may have been left by others that were killed half-way: one for each backend and
// mode.
const maxLeft = 4

// possible says why nothing can be installed on this system, as far as that shows without trying.
func (k *compiled) possible(h Host) error {
	if err := h.Privileged(); err != nil {
		return err
	}
	need := map[string]string{"ip": "iproute2"}
	if !k.tproxy() {
		clear(need)
	}
	if k.Backend == BackendNFT {
		need["nft"] = "nftables"
	} else {
		need["iptables"], need["iptables-restore"] = "iptables", "iptables"
		if k.ipv6 {
			need["ip6tables"], need["ip6tables-restore"] = "iptables", "iptables"
		}
		if k.Fail == FailOpen {
			need["ipset"] = "ipset"
		}
	}
	for _, name := range sorted(need) {
		if h.Find(name) {
			continue
		}
		switch {
		case name == "ipset":
			return errors.New("the command ipset is not there, without which iptables cannot let flows pass when the gateway is gone; install the package ipset, or say --fail closed")
		case name == "nft":
			return errors.New("the command nft is not there; install the package nftables, or use --backend iptables")
		case need[name] == "iptables" && !h.Find("nft"):
			return fmt.Errorf("the command %s is not there; install the package iptables, or nftables and use --backend nft", name)
		}
		return fmt.Errorf("the command %s is not there; install the package %s", name, need[name])
	}
	return nil
}

func sorted(m map[string]string) (names []string) {
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// inTheWay says what of somebody else has a place that is to be ours. was are steps that were ours before.
func (k *compiled) inTheWay(ctx context.Context, h Host, was []Step) error {
	steps := k.plan()
	if last := steps[len(steps)-1]; k.Backend == BackendNFT && find(was, last) == nil && !h.ours(ctx) {
		if _, err := h.Run(ctx, Command{Args: []string{"nft", "list", "table", "inet", tableName}}); err == nil {
			return fmt.Errorf("there is a table inet %s that is not ours; look at it with `nft list table inet %[1]s`, and rename or delete it", tableName)
		}
	}
	if !k.tproxy() {
		return nil
	}
	for _, family := range []string{"-4", "-6"} {
		if v6 := family == "-6"; v6 && !k.ipv6 || find(was, k.routeSteps(v6)[0]) != nil {
			continue
		}
		routes, err := h.Run(ctx, Command{Args: []string{"ip", family, "route", "show", "table", fmt.Sprint(routeTable)}})
		if err == nil && strings.TrimSpace(routes) != "" {
			return fmt.Errorf("the routing table %d has routes that are not ours; look at it with `ip %s route show table %[1]d`, and use another number for them", routeTable, family)
		}
		list, err := h.Run(ctx, Command{Args: []string{"ip", family, "rule", "show", "priority", fmt.Sprint(routeTable)}})
		if err == nil && strings.TrimSpace(list) != "" {
			return fmt.Errorf("there is a routing rule of priority %d that is not ours; look at it with `ip %s rule show`, and use another number for it", routeTable, family)
		}
	}
	return nil
}

// ours reports whether the table of nftables is one that Install has made.
func (h Host) ours(ctx context.Context) bool {
	out, err := h.Run(ctx, Command{Args: []string{"nft", "list", "table", "inet", tableName}})
	return err == nil && strings.Contains(out, `comment "`+tableComment)
}

// find returns what there is without a record: as much of one as it takes to remove it. It is nil if nothing is.
func (h Host) find(ctx context.Context, iptables bool) *record {
	if h.ours(ctx) {
		return &record{Config: Config{}.withDefaults(true), IPv6: ipv6()} // what there may be at most
	}
	if !iptables {
		return nil
	}
	for _, mode := range []string{ModeTProxy, ModeRedirect} {
		c := Config{Backend: BackendIPTables, Mode: mode, Fail: FailClosed, NoDNS: true}.withDefaults(true)
		look := Command{Args: []string{"iptables", "-w", lockSeconds, "-t", (&compiled{Config: c}).table(), "-S"}}
		out, err := h.Run(ctx, look)
		if err != nil || !strings.Contains(out, "-N "+chainOutput) {
			continue
		}
		c.useSets(out)
		return &record{Config: c, IPv6: ipv6()}
	}
	return nil
}

// setUsed is a set in a rule of iptables.
var setUsed = regexp.MustCompile(`--match-set culvert-(\d+)-4 `) // immutable

// useSets makes of c something that has the sets that rules use, whatever for.
func (c *Config) useSets(rules string) {
	var ports []uint16
	for _, m := range setUsed.FindAllStringSubmatch(rules, -1) {
		if n, err := strconv.ParseUint(m[1], 10, 16); err == nil && !slices.Contains(ports, uint16(n)) {
			ports = append(ports, uint16(n))
		}
	}
	for i, port := range ports {
		c.Fail = FailOpen
		switch i {
		case 0:
			c.Port = port
		case 1:
			c.DNSPort, c.NoDNS = port, false
		case 2:
			c.InboundPort, c.Inbound = port, []string{"1"}
		}
	}
}

// newTables are the tables that iptables is about to make, where it is the one that is made of nftables.
func (k *compiled) newTables(ctx context.Context, h Host) (list []string) {
	if k.Backend != BackendIPTables || !h.Find("nft") {
		return nil
	}
	there, err := h.Run(ctx, Command{Args: []string{"nft", "list", "tables"}})
	if err != nil {
		return nil
	}
	for _, family := range []string{"ip", "ip6"} {
		name := family + " " + k.table()
		if !slices.Contains(strings.Split(there, "\n"), "table "+name) {
			list = append(list, name)
		}
	}
	return list
}

// undoTables deletes the tables that there are because of us, if nobody else uses them now.
func (h Host) undoTables(ctx context.Context, tables []string) error {
	var errs []error
	for _, name := range tables {
		text, err := h.Run(ctx, Command{Args: append([]string{"nft", "-s", "list", "table"}, strings.Fields(name)...)})
		if err != nil || inUse(text) {
			continue // it is not there, or somebody has put rules into it since
		}
		if _, err := h.Run(ctx, Command{Args: append([]string{"nft", "delete", "table"}, strings.Fields(name)...)}); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// inUse reports whether a table, as nft lists it, has more than empty chains with a hook.
func inUse(text string) bool {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case line == "", line == "}", strings.HasPrefix(line, "table "), strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "chain ") && strings.HasSuffix(line, "{"):
		case strings.HasPrefix(line, "type ") && strings.Contains(line, "policy accept;"):
		default:
			return true
		}
	}
	return false
}

// explain says what to do about a failed command, as far as that is known.
func explain(err error) error {
	var e *CommandError
	if !errors.As(err, &e) {
		return err
	}
	program := e.Command.Args[0]
	switch {
	case said(err, "Operation not permitted"), said(err, "Permission denied"):
		return fmt.Errorf("not permitted; it takes root, or the capability CAP_NET_ADMIN in this network namespace: %w", err)
	case program == "nft" && said(err, "tproxy") && said(err, "No such file or directory"):
		return fmt.Errorf("the kernel has no TPROXY for nftables (CONFIG_NFT_TPROXY); use --mode redirect: %w", err)
	case strings.HasSuffix(program, "tables-restore") && said(err, "TPROXY", chainDivert, chainInbound) && said(err, "No such file", "No chain/target/match"):
		return fmt.Errorf("the kernel has no TPROXY for iptables (CONFIG_NETFILTER_XT_TARGET_TPROXY); use --mode redirect: %w", err)
	case program == "nft" && said(err, "cgroupv2"):
		return fmt.Errorf("a control group of --exclude-cgroup is not there, or the kernel cannot match by it: %w", err)
	case program == "nft" && (said(err, "Protocol not supported") || said(err, "Unable to initialize Netlink")):
		return fmt.Errorf("the kernel has no nftables (CONFIG_NF_TABLES); use --backend iptables: %w", err)
	case program == "ip" && said(err, "IPv6 is disabled"):
		return fmt.Errorf("IPv6 is off on lo; switch it on (net.ipv6.conf.lo.disable_ipv6=0), or off altogether: %w", err)
	case program == "ipset" && said(err, "Cannot open session to kernel", "Kernel support protocol", "set type not supported", "Invalid argument"):
		return fmt.Errorf("the kernel has no sets for iptables (CONFIG_IP_SET_HASH_NET); say --fail closed: %w", err)
	}
	return err
}

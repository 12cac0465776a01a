package rules

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
	unlock, err := h.lock()
	if err != nil {
		return err
	}
	defer unlock()
	before, err := h.load()
	if err != nil {
		return err
	}
	if err := k.inTheWay(ctx, h, before); err != nil {
		return err
	}
	if before != nil && (before.Config.Backend != k.Backend || k.Backend == BackendIPTables && differs(before, k)) {
		if err := h.undo(ctx, before); err != nil { // what another backend has put there cannot be replaced in one step
			return err
		}
		before = nil
	}
	r := &record{Config: k.Config, IPv6: k.ipv6}
	if before == nil {
		r.Tables = k.newTables(ctx, h)
	} else {
		r.Tables = before.Tables
	}
	// Written first: whatever happens, Remove knows what there may be.
	if err := h.save(r); err != nil {
		return fmt.Errorf("keep what is installed: %w; it should be a folder that root can write", err)
	}
	if err := h.apply(ctx, k.plan()); err != nil {
		if before != nil {
			return errors.Join(explain(err, k), h.save(before))
		}
		_ = h.undoTables(ctx, r.Tables)
		return errors.Join(explain(err, k), h.save(nil))
	}
	return h.dropRest(ctx, before, k)
}

// differs reports whether what is installed has other steps than k.
func differs(before *record, k *compiled) bool {
	was, err := before.Config.compile(before.IPv6)
	return err != nil || fmt.Sprint(was.plan()) != fmt.Sprint(k.plan())
}

// apply runs steps, and takes back those that were done when one fails.
func (h Host) apply(ctx context.Context, steps []Step) error {
	for i, s := range steps {
		if len(s.check.Args) > 0 {
			if _, err := h.Run(ctx, s.check); err == nil {
				continue
			}
		}
		_, err := h.Run(ctx, s.Do)
		if err == nil || said(err, s.there) {
			continue
		}
		return errors.Join(err, h.takeBack(ctx, steps[:i]))
	}
	return nil
}

// takeBack undoes steps, the last one first, all of them whatever happens.
func (h Host) takeBack(ctx context.Context, steps []Step) error {
	var errs []error
	for _, s := range slices.Backward(steps) {
		if len(s.check.Args) > 0 {
			if _, err := h.Run(ctx, s.check); err != nil {
				continue
			}
		}
		if _, err := h.Run(ctx, s.Undo); err != nil && !said(err, s.gone) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// dropRest takes back the steps of before that k does not have.
func (h Host) dropRest(ctx context.Context, before *record, k *compiled) error {
	if before == nil {
		return nil
	}
	was, err := before.Config.compile(before.IPv6)
	if err != nil {
		return nil // it was valid when it was installed
	}
	now := k.plan()
	rest := slices.DeleteFunc(was.plan(), func(s Step) bool {
		return slices.ContainsFunc(now, func(n Step) bool { return slices.Equal(s.Do.Args, n.Do.Args) })
	})
	return h.takeBack(ctx, rest)
}

// Remove takes out what Install has put in place, by this process or another one. It may be called when nothing is
// there.
func Remove(ctx context.Context, h Host) error {
	h = h.withDefaults()
	if err := privileged(); err != nil {
		return err
	}
	unlock, err := h.lock()
	if err != nil {
		return err
	}
	defer unlock()
	r, err := h.load()
	if err != nil {
		return err
	}
	if r == nil {
		if !h.ours(ctx) {
			return nil
		}
		r = &record{Config: Config{}.withDefaults(true), IPv6: ipv6()} // the record is lost; this is what there may be at most
	}
	if err := h.undo(ctx, r); err != nil {
		return err
	}
	return h.save(nil)
}

// undo takes out what r says is there.
func (h Host) undo(ctx context.Context, r *record) error {
	k, err := r.Config.compile(r.IPv6)
	if err != nil {
		return fmt.Errorf("what is installed is not understood by this version: %w", err)
	}
	return errors.Join(h.takeBack(ctx, k.plan()), h.undoTables(ctx, r.Tables))
}

// possible says why nothing can be installed on this system, as far as that shows without trying.
func (k *compiled) possible(h Host) error {
	if err := privileged(); err != nil {
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
		case name == "nft" || k.Backend == BackendIPTables && !h.Find("nft"):
			return fmt.Errorf("the command %s is not there; install the package %s (or nftables, and use --backend nft)", name, need[name])
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

// inTheWay says what of somebody else has a place that is to be ours.
func (k *compiled) inTheWay(ctx context.Context, h Host, before *record) error {
	if before != nil {
		return nil // it is all ours
	}
	if k.Backend == BackendNFT && !h.ours(ctx) {
		if _, err := h.Run(ctx, Command{Args: []string{"nft", "list", "table", "inet", tableName}}); err == nil {
			return fmt.Errorf("there is a table inet %s that is not ours; look at it with `nft list table inet %[1]s`, and rename or delete it", tableName)
		}
	}
	if !k.tproxy() || h.ours(ctx) {
		return nil
	}
	for _, family := range []string{"-4", "-6"} {
		if family == "-6" && !k.ipv6 {
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
func explain(err error, k *compiled) error {
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
	case said(err, "TPROXY"):
		return fmt.Errorf("the kernel has no TPROXY for iptables (CONFIG_NETFILTER_XT_TARGET_TPROXY); use --mode redirect: %w", err)
	case program == "nft" && said(err, "cgroupv2"):
		return fmt.Errorf("a control group of --exclude-cgroup is not there, or the kernel cannot match by it: %w", err)
	case program == "nft" && (said(err, "Protocol not supported") || said(err, "Unable to initialize Netlink")):
		return fmt.Errorf("the kernel has no nftables (CONFIG_NF_TABLES); use --backend iptables: %w", err)
	case program == "ip" && said(err, "IPv6 is disabled"):
		return fmt.Errorf("IPv6 is off on lo; switch it on (net.ipv6.conf.lo.disable_ipv6=0), or off altogether: %w", err)
	case k.Backend == BackendIPTables && said(err, "ipset"):
		return fmt.Errorf("the kernel has no sets for iptables (CONFIG_IP_SET_HASH_NET); say --fail closed: %w", err)
	}
	return err
}

package rules

import (
	"fmt"
	"net/netip"
	"strings"
)

// Chains of iptables, in the table mangle (TPROXY) or nat (redirect).
const (
	chainOutput  = "CULVERT_OUTPUT"
	chainPre     = "CULVERT_PRE"
	chainChoose  = "CULVERT_CHOOSE"
	chainTake    = "CULVERT_TAKE"
	chainDivert  = "CULVERT_DIVERT"
	chainInbound = "CULVERT_INBOUND"
	chainForward = "CULVERT_FORWARD"
	chainAgain   = "CULVERT_AGAIN"
	chainMark    = "CULVERT_MARK"
)

// Marks in the form that iptables takes.
var (
	captured   = fmt.Sprintf("%#x/%#x", markCaptured, markCaptured) // immutable
	own        = fmt.Sprintf("%#x/%#x", markOwn, markOwn)           // immutable
	inName     = fmt.Sprintf("%#x/%#x", markSource, markMask)       // immutable
	onlyCaught = fmt.Sprintf("%#x/%#x", markCaptured, markMask)     // immutable
)

// iptables writes the rules of one address family in the form that iptables-restore --noflush takes. It makes chains
// anew that are there already, so that it can be applied again.
type iptables struct {
	*compiled
	v6    bool
	lines map[string][]string // by chain
}

func (t *iptables) rule(chain, format string, args ...any) {
	t.lines[chain] = append(t.lines[chain], "-A "+chain+" "+fmt.Sprintf(format, args...))
}

// table is the one that the rules live in.
func (k *compiled) table() string {
	if k.tproxy() {
		return "mangle"
	}
	return "nat"
}

// iptablesTables are the tables of nftables that iptables may make, by family and name.
func iptablesTables() []string { return []string{"ip mangle", "ip6 mangle", "ip nat", "ip6 nat"} }

// chains are those of ours, in the order in which they can be deleted.
func (k *compiled) chains() []string {
	return []string{chainOutput, chainPre, chainForward, chainInbound, chainChoose, chainTake, chainDivert, chainAgain, chainMark}
}

// restore returns the text that puts the rules of a family in place, drop the one that takes them out. A packet for
// which the gateway has no socket is dropped by TPROXY itself.
func (k *compiled) restore(v6 bool) string {
	t := &iptables{compiled: k, v6: v6, lines: make(map[string][]string)}
	t.output()
	t.pre()
	t.choose()
	t.again()
	return k.tableText(func(chain string) []string { return t.lines[chain] })
}

func (k *compiled) drop() string {
	return k.tableText(func(chain string) []string { return []string{"-X " + chain} })
}

// tableText makes the chains, or empties them, and goes on with the lines for each.
func (k *compiled) tableText(lines func(chain string) []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%s\n", k.table())
	for _, chain := range k.chains() {
		fmt.Fprintf(&b, ":%s - [0:0]\n", chain)
	}
	for _, chain := range k.chains() {
		for _, line := range lines(chain) {
			b.WriteString(line + "\n")
		}
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

// fresh lets pass what does not begin a flow.
func (t *iptables) fresh(chain string) {
	t.rule(chain, "-p tcp ! --syn -j RETURN")
	t.rule(chain, "-m conntrack ! --ctstate NEW -j RETURN")
}

func (t *iptables) output() {
	if t.tproxy() {
		t.rule(chainOutput, "-m mark --mark %s -j CONNMARK --set-xmark %s", inName, own)
		t.rule(chainOutput, "-m mark --mark %s -j RETURN", own)
		t.rule(chainOutput, "-m conntrack --ctdir REPLY -m connmark --mark %s -j MARK --set-xmark %s", own, captured)
		t.rule(chainOutput, "-m conntrack --ctdir REPLY -j RETURN")
	} else {
		t.rule(chainOutput, "-m mark --mark %s -j RETURN", own)
	}
	if t.NoOutbound {
		return
	}
	if t.tproxy() {
		t.rule(chainOutput, "-m connmark --mark %s -g %s", captured, chainAgain)
	}
	t.fresh(chainOutput)
	for _, uid := range t.ExcludeUIDs {
		t.rule(chainOutput, "-m owner --uid-owner %d -j RETURN", uid)
	}
	for _, gid := range t.ExcludeGIDs {
		t.rule(chainOutput, "-m owner --gid-owner %d -j RETURN", gid)
	}
	for _, path := range t.ExcludeCgroups {
		t.rule(chainOutput, "-m cgroup --path %s -j RETURN", strings.Trim(path, "/"))
	}
	t.rule(chainOutput, "-j %s", chainChoose)
}

func (t *iptables) pre() {
	if t.tproxy() {
		t.rule(chainPre, "-i lo -m mark --mark %s -j %s", onlyCaught, chainDivert)
	}
	t.rule(chainPre, "-i lo -j RETURN")
	if t.tproxy() {
		t.rule(chainPre, "-m conntrack --ctdir REPLY -m connmark --mark %s -j MARK --set-xmark %s", own, captured)
		t.rule(chainPre, "-m conntrack --ctdir REPLY -j RETURN")
		t.diverts()
	}
	for _, r := range t.inbound {
		t.rule(chainPre, "-p tcp --dport %s -m addrtype --dst-type LOCAL -j %s", r.iptables(), chainInbound)
	}
	for _, name := range t.Forward {
		t.rule(chainPre, "-i %s -j %s", name, chainForward)
	}
	if len(t.inbound) > 0 {
		t.inboundChain()
	}
	if len(t.Forward) > 0 {
		if t.tproxy() {
			t.rule(chainForward, "-m connmark --mark %s -j %s", captured, chainAgain)
			t.rule(chainForward, "-m mark --mark %s -g %s", onlyCaught, chainDivert)
		}
		t.fresh(chainForward)
		t.rule(chainForward, "-j %s", chainChoose)
		if t.tproxy() {
			t.rule(chainForward, "-m mark --mark %s -j %s", onlyCaught, chainDivert)
		}
	}
}

func (t *iptables) inboundChain() {
	to := t.to("-p tcp", t.InboundPort)
	if t.tproxy() {
		t.rule(chainInbound, "-p tcp ! --syn -m connmark --mark %s %s", captured, strings.TrimPrefix(to, "-p tcp "))
	}
	t.fresh(chainInbound)
	if !t.tproxy() {
		t.rule(chainInbound, "%s%s", t.open(t.InboundPort), to)
		return
	}
	t.rule(chainInbound, "%s-j CONNMARK --set-xmark %s", t.open(t.InboundPort), captured)
	t.rule(chainInbound, "%s%s", t.open(t.InboundPort), to)
}

// again marks the packets of flows that were taken; see nftAgain.
func (t *iptables) again() {
	if !t.tproxy() || !t.takes() {
		return
	}
	t.rule(chainMark, "-j MARK --set-xmark %s", captured)
	if t.Fail == FailClosed {
		t.rule(chainAgain, "-g %s", chainMark)
		return
	}
	t.rule(chainAgain, "-p tcp ! --syn -g %s", chainMark)
	for _, protocol := range []string{"tcp", "udp"} {
		if !t.NoDNS {
			t.rule(chainAgain, "-p %s --dport 53 %s-g %s", protocol, t.open(t.DNSPort), chainMark)
		}
		t.rule(chainAgain, "-p %s ! --dport 53 %s-g %s", protocol, t.open(t.Port), chainMark)
	}
	t.rule(chainAgain, "-j CONNMARK --set-xmark 0x0/%#x", markCaptured)
}

// diverts gives packets to the gateway's sockets.
func (t *iptables) diverts() {
	if !t.takes() {
		return
	}
	for _, protocol := range []string{"tcp", "udp"} {
		if !t.NoDNS {
			t.rule(chainDivert, "%s", t.to("-p "+protocol+" --dport 53", t.DNSPort))
		}
		t.rule(chainDivert, "%s", t.to("-p "+protocol, t.Port))
	}
}

// to is the end of a rule that leads packets of what to a port of the gateway.
func (t *iptables) to(what string, port uint16) string {
	if !t.tproxy() {
		return fmt.Sprintf("%s -j REDIRECT --to-ports %d", what, port)
	}
	local := "127.0.0.1"
	if t.v6 {
		local = "::1"
	}
	return fmt.Sprintf("%s -j TPROXY --on-ip %s --on-port %d --tproxy-mark %s", what, local, port, captured)
}

// choose lets pass what is left alone, and takes what is to be caught.
func (t *iptables) choose() {
	if !t.takes() {
		return
	}
	t.rule(chainChoose, "-m addrtype ! --dst-type UNICAST -j RETURN")
	exclude := t.exclude4
	if t.v6 {
		exclude = t.exclude6
	}
	for _, p := range exclude {
		t.rule(chainChoose, "-d %s -j RETURN", p)
	}
	for _, protocol := range []string{"tcp", "udp"} {
		for _, r := range t.excludePorts {
			t.rule(chainChoose, "-p %s --dport %s -j RETURN", protocol, r.iptables())
		}
		if !t.NoDNS {
			t.take(fmt.Sprintf("-p %s --dport 53", protocol), t.DNSPort)
			t.rule(chainChoose, "-p %s --dport 53 -j RETURN", protocol)
		}
	}
	if len(t.ports) == 0 {
		t.take("-p tcp", t.Port)
	}
	for _, r := range t.ports {
		t.take("-p tcp --dport "+r.iptables(), t.Port)
	}
	for _, r := range t.udpPorts {
		t.take("-p udp --dport "+r.iptables(), t.Port)
	}
	if t.tproxy() {
		t.rule(chainTake, "-j CONNMARK --set-xmark %s", captured)
		t.rule(chainTake, "-j MARK --set-xmark %s", captured)
	}
}

func (t *iptables) take(what string, port uint16) {
	if t.tproxy() {
		t.rule(chainChoose, "%s %s-g %s", what, t.open(port), chainTake)
		return
	}
	t.rule(chainChoose, "%s%s", t.open(port), t.to(what, port))
}

// open is the condition that a gateway serves port.
func (t *iptables) open(port uint16) string {
	if t.Fail != FailOpen {
		return ""
	}
	return "-m set --match-set " + ipsetName(port, t.v6) + " dst "
}

func (r portRange) iptables() string { return strings.Replace(r.String(), "-", ":", 1) }

// ipsetName is the set whose elements, all addresses there are, say that a gateway serves port.
func ipsetName(port uint16, v6 bool) string {
	if v6 {
		return fmt.Sprintf("culvert-%d-6", port)
	}
	return fmt.Sprintf("culvert-%d-4", port)
}

// halves are the two ranges that are all addresses of a family: a set has no room for a range of length 0.
func halves(v6 bool) []netip.Prefix {
	if v6 {
		return []netip.Prefix{netip.MustParsePrefix("::/1"), netip.MustParsePrefix("8000::/1")}
	}
	return []netip.Prefix{netip.MustParsePrefix("0.0.0.0/1"), netip.MustParsePrefix("128.0.0.0/1")}
}

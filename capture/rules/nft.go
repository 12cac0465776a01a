package rules

import (
	"fmt"
	"net/netip"
	"strings"
)

// tableName is the table of nftables that holds everything; a table with this name and another comment is somebody
// else's.
const (
	tableName    = "culvert"
	tableComment = "culvert capture"
)

// writer writes lines, indented by the braces that are open.
type writer struct {
	b     strings.Builder
	depth int
}

func (w *writer) line(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if strings.HasPrefix(text, "}") {
		w.depth--
	}
	w.b.WriteString(strings.Repeat("\t", w.depth) + text + "\n")
	if strings.HasSuffix(text, "{") {
		w.depth++
	}
}

// nft returns the rules in the language of nft(8), as one transaction that takes the place of whatever the table
// held.
func (k *compiled) nft() string {
	w := new(writer)
	w.line("add table inet %s", tableName)
	w.line("delete table inet %s", tableName)
	w.line("table inet %s {", tableName)
	w.line("comment %q", fmt.Sprintf("%s: mark %#x/%#x", tableComment, markCaptured, markMask))
	k.nftSets(w)
	if k.tproxy() {
		k.nftRoute(w)
		k.nftDivert(w)
	} else {
		k.nftNAT(w)
	}
	k.nftChoose(w)
	w.line("}")
	return w.b.String()
}

// gateSet is the set without which nothing is led to a port, while Fail is open. Its elements are the protocols that
// a gateway serves there.
func gateSet(port uint16) string { return fmt.Sprintf("open_%d", port) }

// gate is the condition that a gateway serves port.
func (k *compiled) gate(port uint16) string {
	if k.Fail != FailOpen {
		return ""
	}
	return " meta l4proto @" + gateSet(port)
}

func (k *compiled) nftSets(w *writer) {
	if k.Fail == FailOpen {
		for _, port := range k.gates() {
			w.line("set %s {", gateSet(port))
			w.line("type inet_proto")
			w.line("flags timeout")
			if protocols := k.served[port]; protocols != "" {
				w.line("elements = { %s }", protocols) // so that nothing passes by until the gateway says it again
			}
			w.line("}")
		}
	}
	set := func(name, kind string, elements []string) {
		if len(elements) == 0 {
			return
		}
		w.line("set %s {", name)
		w.line("type %s", kind)
		w.line("flags interval")
		w.line("elements = { %s }", strings.Join(elements, ", "))
		w.line("}")
	}
	set("exclude4", "ipv4_addr", texts(k.exclude4))
	set("exclude6", "ipv6_addr", texts(k.exclude6))
	set("exclude_ports", "inet_service", texts(k.excludePorts))
	set("ports", "inet_service", texts(k.ports))
	set("udp_ports", "inet_service", texts(k.udpPorts))
	set("inbound", "inet_service", texts(k.inbound))
}

func texts[T fmt.Stringer](list []T) (out []string) {
	for _, v := range list {
		if p, ok := any(v).(netip.Prefix); ok && p.IsSingleIP() {
			out = append(out, p.Addr().String())
			continue
		}
		out = append(out, v.String())
	}
	return out
}

// fresh lets pass what does not begin a flow.
func fresh(w *writer) {
	w.line("tcp flags & (fin | syn | rst | ack) != syn return")
	w.line("ct state != new return")
}

// nftRoute writes the hooks of mode tproxy: flows of this host are marked, which routes them to it again, and what
// comes in so is given to the gateway.
func (k *compiled) nftRoute(w *writer) {
	w.line("chain output {")
	w.line("type route hook output priority mangle; policy accept;")
	w.line("meta mark & %#x == %#x ct mark set ct mark | %#x return comment \"the gateway, in a client's name\"", markMask, markSource, markOwn)
	w.line("meta mark & %#x == %#x return comment \"the gateway's own\"", markOwn, markOwn)
	w.line("ct direction reply ct mark & %#x == %#x meta mark set meta mark | %#x return", markOwn, markOwn, markCaptured)
	if !k.NoOutbound {
		w.line("ct direction original ct mark & %#x == %#x goto again", markCaptured, markCaptured)
		fresh(w)
		k.nftUsers(w)
		w.line("goto choose")
	}
	w.line("}")

	w.line("chain prerouting {")
	w.line("type filter hook prerouting priority mangle; policy accept;")
	w.line("iif lo meta mark & %#x == %#x goto divert", markMask, markCaptured)
	w.line("iif lo return")
	w.line("ct direction reply ct mark & %#x == %#x meta mark set meta mark | %#x return", markOwn, markOwn, markCaptured)
	if len(k.inbound) > 0 {
		w.line("tcp dport @inbound fib daddr type local goto inbound")
	}
	if len(k.Forward) > 0 {
		w.line("iifname { %s } goto forward", quoted(k.Forward))
	}
	w.line("}")
	if k.takes() {
		k.nftAgain(w)
	}
	if len(k.inbound) > 0 {
		k.nftInbound(w)
	}
	if len(k.Forward) > 0 {
		w.line("chain forward {")
		w.line("ct direction original ct mark & %#x == %#x jump again", markCaptured, markCaptured)
		w.line("meta mark & %#x == %#x goto divert", markMask, markCaptured)
		fresh(w)
		w.line("jump choose")
		w.line("meta mark & %#x == %#x goto divert", markMask, markCaptured)
		w.line("}")
	}
}

// nftAgain marks the packets of flows that were taken. One that has not got through to a gateway, as that is gone
// meanwhile, is let go with its next try; so are datagrams.
func (k *compiled) nftAgain(w *writer) {
	marked := fmt.Sprintf("meta mark set meta mark | %#x return", markCaptured)
	w.line("chain again {")
	if k.Fail == FailOpen {
		w.line("tcp flags & (fin | syn | rst | ack) != syn %s", marked)
		if !k.NoDNS {
			w.line("meta l4proto { tcp, udp } th dport 53%s %s", k.gate(k.DNSPort), marked)
		}
		w.line("meta l4proto { tcp, udp } th dport != 53%s %s", k.gate(k.Port), marked)
		w.line("ct mark set ct mark & %#x", ^uint32(markCaptured))
	} else {
		w.line("%s", marked)
	}
	w.line("}")
}

func (k *compiled) nftInbound(w *writer) {
	w.line("chain inbound {")
	w.line("ct direction original ct mark & %#x == %#x tcp flags & (fin | syn | rst | ack) != syn goto divert_inbound", markCaptured, markCaptured)
	fresh(w)
	w.line("meta l4proto tcp%s counter ct mark set ct mark | %#x goto divert_inbound", k.gate(k.InboundPort), markCaptured)
	w.line("}")
	w.line("chain divert_inbound {")
	k.divertTo(w, "meta l4proto tcp", k.InboundPort)
	k.nobody(w)
	w.line("}")
}

// nobody is what becomes of a packet for which the gateway has no socket. The system itself answers none that was
// not made to an address of its own. A flow that may go its own way is not told, so that it tries again.
func (k *compiled) nobody(w *writer) {
	if k.Fail == FailOpen {
		w.line("tcp flags & (fin | syn | rst | ack) == syn drop")
	}
	w.line("meta l4proto tcp reject with tcp reset")
	w.line("meta l4proto udp reject")
}

// nftDivert gives packets to the gateway's sockets.
func (k *compiled) nftDivert(w *writer) {
	w.line("chain divert {")
	if k.takes() {
		if !k.NoDNS {
			k.divertTo(w, "meta l4proto { tcp, udp } th dport 53", k.DNSPort)
		}
		k.divertTo(w, "meta l4proto { tcp, udp }", k.Port)
		k.nobody(w)
	}
	w.line("}")
}

func (k *compiled) divertTo(w *writer, what string, port uint16) {
	w.line("meta nfproto ipv4 %s tproxy ip to 127.0.0.1:%d accept", what, port)
	if k.ipv6 {
		w.line("meta nfproto ipv6 %s tproxy ip6 to [::1]:%d accept", what, port)
	}
}

// nftNAT writes the hooks of mode redirect. Only the first packet of a flow comes by.
func (k *compiled) nftNAT(w *writer) {
	if !k.NoOutbound {
		w.line("chain output {")
		w.line("type nat hook output priority -100; policy accept;")
		w.line("meta mark & %#x == %#x return comment \"the gateway's own\"", markOwn, markOwn)
		fresh(w)
		k.nftUsers(w)
		w.line("goto choose")
		w.line("}")
	}
	if len(k.inbound) == 0 && len(k.Forward) == 0 {
		return
	}
	w.line("chain prerouting {")
	w.line("type nat hook prerouting priority dstnat; policy accept;")
	w.line("iif lo return")
	fresh(w)
	if len(k.inbound) > 0 {
		w.line("tcp dport @inbound fib daddr type local%s counter redirect to :%d", k.gate(k.InboundPort), k.InboundPort)
	}
	if len(k.Forward) > 0 {
		w.line("iifname { %s } goto choose", quoted(k.Forward))
	}
	w.line("}")
}

// nftUsers lets pass flows of users and groups that are left alone.
func (k *compiled) nftUsers(w *writer) {
	if len(k.ExcludeUIDs) > 0 {
		w.line("meta skuid { %s } return", numbers(k.ExcludeUIDs))
	}
	if len(k.ExcludeGIDs) > 0 {
		w.line("meta skgid { %s } return", numbers(k.ExcludeGIDs))
	}
	for _, path := range k.ExcludeCgroups {
		path = strings.Trim(path, "/")
		w.line("socket cgroupv2 level %d %q return", 1+strings.Count(path, "/"), path)
	}
}

// nftChoose lets pass what is left alone, and takes what is to be caught.
func (k *compiled) nftChoose(w *writer) {
	if !k.takes() {
		return
	}
	w.line("chain choose {")
	w.line("fib daddr type != unicast return")
	if len(k.exclude4) > 0 {
		w.line("ip daddr @exclude4 return")
	}
	if len(k.exclude6) > 0 {
		w.line("ip6 daddr @exclude6 return")
	}
	if !k.ipv6 {
		w.line("meta nfproto ipv6 return")
	}
	if len(k.excludePorts) > 0 {
		w.line("meta l4proto { tcp, udp } th dport @exclude_ports return")
	}
	if !k.NoDNS {
		w.line("meta l4proto { tcp, udp } th dport 53%s %s", k.gate(k.DNSPort), k.take(k.DNSPort))
		w.line("meta l4proto { tcp, udp } th dport 53 return")
	}
	ports := " th dport @ports"
	if len(k.ports) == 0 {
		ports = ""
	}
	w.line("meta l4proto tcp%s%s %s", ports, k.gate(k.Port), k.take(k.Port))
	if len(k.udpPorts) > 0 {
		w.line("meta l4proto udp th dport @udp_ports%s %s", k.gate(k.Port), k.take(k.Port))
	}
	w.line("}")
}

// take is what is done with the first packet of a flow that is caught.
func (k *compiled) take(port uint16) string {
	if k.tproxy() {
		return fmt.Sprintf("counter ct mark set ct mark | %#x meta mark set meta mark | %#x return", markCaptured, markCaptured)
	}
	return fmt.Sprintf("counter redirect to :%d", port)
}

func quoted(names []string) string { return `"` + strings.Join(names, `", "`) + `"` }

func numbers(list []uint32) string {
	return strings.ReplaceAll(strings.Trim(fmt.Sprint(list), "[]"), " ", ", ")
}

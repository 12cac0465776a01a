// Package rules puts the rules of the system in place that lead connections of apps to a gateway, and takes them out
// again: packet filter (nftables, or iptables), policy routing. What the gateway does with the connections is package
// capture's matter.
//
//	c := rules.Config{}                       // this host's outbound TCP and DNS
//	err := rules.Install(ctx, &c, rules.Host{})
//	...
//	err = rules.Remove(ctx, rules.Host{})
//
// All of it is text: [Plan] is the list of commands, each with what undoes it, and what Install runs is what
// `gateway capture print` prints. The part of nftables is one transaction; iptables has one for the chains of each family,
// and what leads to them comes afterwards. A command that fails undoes those
// before it, so that nothing is half installed.
//
// What is there stays in effect while other rules take its place: what both have is left or replaced at once, and the rest
// goes last. What is installed is kept in a file, one for each network namespace, by which [Remove] and [Alive] know; without
// it Remove finds what is ours by its names.
//
// # What is caught
//
//	app ── output hook ── mark ── policy route: local ── prerouting hook ── TPROXY ── gateway's listener
//
// A flow is taken when it begins, and only then: a TCP connection with its SYN, so that those which are open already
// stay as they are, whether the system has been tracking them or not. From then on the mark of its conntrack entry
// keeps it. With Mode redirect the address is rewritten instead (NAT), which needs no policy route and knows no UDP but
// DNS.
//
// # When the gateway is gone
//
// With Fail open, rules take flows only while a gateway refreshes elements of a set that expire after a few seconds
// (see [Alive]): who kills the gateway has his network back, without the tunnel. With Fail closed flows are taken
// always, and refused by nobody being there.
package rules

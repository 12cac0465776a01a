package policy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Own is what the guard has to know of this host. The caller collects it and compiles anew when it changes.
type Own struct {
	// Addrs are the addresses of this host's interfaces. A public one among them is guarded, as what listens
	// there may count on a firewall that connections from the host itself do not pass.
	Addrs []netip.Addr
	// Ports are those this gateway listens on, the admin port included. On addresses of this host an entry has to
	// write them; on other hosts, which may be gateways set up alike, an entry has to name the
	// one destination. 80 and 443 are guarded on this host only.
	Ports []uint16
}

// Egress is the guard of destinations that this gateway resolves or dials for others, and their allow list. The
// zero value guards and has no list. It is made by CompileEgress, never changes, and may be used concurrently.
type Egress struct {
	entries []entry
	own     Own
}

// Names that Decision.Rule takes besides those of entries and guard/CLASS.
const (
	ruleGuard    = "guard"    // no list: what is not guarded is allowed
	ruleResolve  = "resolve"  // the addresses will decide
	ruleUnlisted = "unlisted" // there is a list, and it does not name the destination

	ruleGuardPort    = "guard/port"
	ruleGuardOwnPort = "guard/own-port"
	ruleGuardName    = "guard/name"
	ruleGuardAnswer  = "guard/no-address"
)

// CompileEgress makes the guard with the entries of the list called name ("egress", or the place of the destinations
// of a route), which appears in decisions and errors. An empty list allows all that is not guarded; with a list,
// only what it names is allowed. An entry is
//
//	api.example.com     this name, in any case, with or without a dot at its end
//	*.example.com       every name below it, not example.com itself
//	10.1.2.3            this address, also "fd00::1" and "[fd00::1]" (a port wants the brackets)
//	10.0.0.0/8          every address of the range
//	*                   every destination
//
// each with an optional ":PORT"; without one it stands for every port. An entry lifts the guard of the destinations
// it names:
//   - An address or range lifts it for the guarded range that it lies in: 10.1.0.0/16 opens private addresses,
//     0.0.0.0/0 opens none, and 169.254.0.0/16 opens link-local addresses but not 169.254.169.254 in it,
//     which is a guarded range of its own.
//   - A name, also *.name, lifts it for private, unique-local and shared addresses that the name resolves to,
//     and for their NAT64 form. It never lifts it for loopback, link-local, metadata and other
//     special addresses, whatever DNS answers; "localhost" alone opens loopback.
//   - "*" lifts it for no address.
//   - Ports 22 and 25, the administrative ports and those of this gateway on its own addresses are opened by an
//     entry that writes the port. The ports of HBONE and those of this gateway on other hosts are also opened by an
//     entry for one name or one address.
//
// Where an address or range with the right port is listed, a name that no entry names is resolved all the same, and
// its addresses decide.
//
// All faulty entries are reported at once (see EntryError); then the Egress is nil. own is not kept.
func CompileEgress(name string, list []string, own Own) (*Egress, error) {
	entries, faults := parseEntries(name, list)
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	e := &Egress{entries: entries, own: Own{Ports: slices.Clone(own.Ports)}}
	for _, addr := range own.Addrs {
		e.own.Addrs = append(e.own.Addrs, addr.Unmap().WithZone(""))
	}
	return e, nil
}

// Name tells whether host may be resolved in order to reach port. To allow is not yet to let dial: Addrs has to be
// asked with what host resolves to. A host that is an address gets the decision of Addr. An allowed
// request in lower case costs no allocation.
func (e *Egress) Name(host string, port uint16) Decision {
	name := fold(host)
	if strings.Contains(name, ":") || endsInNumber(name) {
		if addr, err := netip.ParseAddr(host); err == nil {
			return e.Addr("", addr, port)
		}
	}
	if !validName(name) {
		return refuseEgress(ruleGuardName, "host %q is neither a DNS name nor an address in its canonical form", host)
	}
	if port == 0 {
		return refusePortZero()
	}
	pg := e.portGuard(netip.Addr{}, port)
	if len(e.entries) == 0 {
		if pg.rule != "" {
			return refusePort(pg, port)
		}
		return Decision{Allow: true, Policy: policyEgress, Rule: ruleResolve, Reason: "there is no egress list, so that the addresses the name resolves to will decide"}
	}
	ranges, closed := false, false
	for i := range e.entries {
		switch en := &e.entries[i]; {
		case en.kind == addresses:
			ranges = ranges || en.hasPort(port) && en.liftsPort(pg)
		case !en.reaches(name, netip.Addr{}, port):
		case en.liftsPort(pg):
			return en.decision
		default:
			closed = true
		}
	}
	switch {
	case ranges:
		return Decision{Allow: true, Policy: policyEgress, Rule: ruleResolve, Reason: "no egress entry names it by name, so that the addresses it resolves to will decide"}
	case closed:
		return refusePort(pg, port)
	}
	return refuseUnlisted(fmt.Sprintf("name %q", name), name, port)
}

// Addr tells whether addr may be dialled at port. host is the name that was resolved to addr, or "" when the
// destination is an address. An allowed request with a host in lower case costs no allocation.
func (e *Egress) Addr(host string, addr netip.Addr, port uint16) Decision {
	g := classify(addr)
	switch g.class {
	case classInvalid:
		return refuseEgress("guard/"+classInvalid, "the destination has no address")
	case classZone:
		// The zone is quoted: it may be any text.
		return refuseEgress("guard/"+classZone, "%s has the zone %q; addresses with a zone are never dialled",
			describe(host, addr.WithZone("")), addr.Zone())
	}
	if port == 0 {
		return refusePortZero()
	}
	addr, host = addr.Unmap(), fold(host)
	if g.class == "" && slices.Contains(e.own.Addrs, addr) {
		g = guard{class: classOwn, block: netip.PrefixFrom(addr, addr.BitLen()), byName: true}
	}
	pg := e.portGuard(addr, port)
	if len(e.entries) == 0 {
		switch {
		case g.class != "":
			return e.refuseGuarded(host, addr, g)
		case pg.rule != "":
			return refusePort(pg, port)
		}
		return Decision{Allow: true, Policy: policyEgress, Rule: ruleGuard, Reason: "there is no egress list, and neither the address nor the port is guarded"}
	}
	byGuard, byPort := false, false
	for i := range e.entries {
		en := &e.entries[i]
		switch {
		case !en.reaches(host, addr, port):
		case !en.lifts(g):
			byGuard = true
		case !en.liftsPort(pg):
			byPort = true
		default:
			return en.decision
		}
	}
	switch {
	case byPort:
		return refusePort(pg, port)
	case byGuard:
		return e.refuseGuarded(host, addr, g)
	}
	example := addr.String()
	if (g.class == "" || g.byName) && validName(host) {
		example = host
	}
	return refuseUnlisted(describe(host, addr), example, port)
}

// Addrs tells whether any of addrs, all that host resolved to, may be dialled at port. It refuses all if it would
// refuse one: an answer that mixes addresses of two kinds is how a name is rebound. Without addresses it
// refuses.
func (e *Egress) Addrs(host string, addrs []netip.Addr, port uint16) Decision {
	if len(addrs) == 0 {
		return refuseEgress(ruleGuardAnswer, "name %q has no address", host)
	}
	var first Decision
	for i, addr := range addrs {
		d := e.Addr(host, addr, port)
		if !d.Allow {
			if len(addrs) > 1 {
				d.Reason += fmt.Sprintf("; as one of %d addresses is refused, all are", len(addrs))
			}
			return d
		}
		if i == 0 {
			first = d
		}
	}
	return first
}

// portGuard is what is known of a port: the rule that guards it, "" for none, and how firmly.
type portGuard struct {
	rule   string
	what   string
	strict bool // only an entry that writes the port opens it
}

// portGuard judges port at addr, which is the zero Addr while it is not known.
func (e *Egress) portGuard(addr netip.Addr, port uint16) portGuard {
	if pg := wellKnown(port); pg.rule != "" {
		return pg
	}
	switch {
	case !slices.Contains(e.own.Ports, port):
		return portGuard{}
	case e.isOwn(addr):
		return portGuard{rule: ruleGuardOwnPort, what: "this gateway itself listens there", strict: true}
	case port == 80 || port == 443:
		// Else an ingress that serves the web would close the web to the egress beside it.
		return portGuard{}
	}
	return portGuard{rule: ruleGuardOwnPort, what: "this gateway listens on the same port, so that another gateway is likely there"}
}

// isOwn tells whether a connection to addr stays on this host.
func (e *Egress) isOwn(addr netip.Addr) bool {
	if !addr.IsValid() {
		return false
	}
	return addr.IsLoopback() || addr.IsUnspecified() || slices.Contains(e.own.Addrs, addr)
}

// wellKnown has the ports that are guarded on every host.
func wellKnown(port uint16) portGuard {
	switch port {
	case 22:
		return portGuard{ruleGuardPort, "SSH", true}
	case 25:
		return portGuard{ruleGuardPort, "mail relay, the way of spam", true}
	case 15000:
		return portGuard{ruleGuardPort, "the admin interface of mesh proxies", true}
	case 15004:
		return portGuard{ruleGuardPort, "a gateway's interface for local apps", true}
	case 15020, 15021:
		return portGuard{ruleGuardPort, "metrics and health of mesh proxies", true}
	case 15053:
		return portGuard{ruleGuardPort, "the DNS proxy of a mesh", true}
	case 15001, 15006, 15008, 15080:
		// ztunnel refuses these with 503 as targets inside a tunnel (src/proxy/inbound.rs at 62d8265).
		return portGuard{ruleGuardPort, "a tunnel or capture port of the mesh", false}
	}
	return portGuard{}
}

func refuseEgress(rule, format string, args ...any) Decision {
	return Decision{Policy: policyEgress, Rule: rule, Reason: fmt.Sprintf(format, args...)}
}

func refusePortZero() Decision {
	return refuseEgress(ruleGuardPort, "port 0 cannot be dialled; the destination needs a port from 1 to 65535")
}

func refusePort(pg portGuard, port uint16) Decision {
	mend := fmt.Sprintf("only an egress entry that writes the port opens it, such as --egress NAME:%d", port)
	if !pg.strict {
		mend = fmt.Sprintf("an egress entry for the one name or address opens it, such as --egress NAME:%d", port)
	}
	return refuseEgress(pg.rule, "port %d is guarded: %s; %s", port, pg.what, mend)
}

// refuseGuarded says what addr is and which entry opens it. host goes unquoted into the entry only when it is a name.
func (e *Egress) refuseGuarded(host string, addr netip.Addr, g guard) Decision {
	mend := fmt.Sprintf("only --egress %s opens it", addr)
	switch {
	case g.byName && validName(host):
		mend = fmt.Sprintf("--egress %s or --egress %s opens it", host, addr)
	case !g.block.IsSingleIP():
		mend = fmt.Sprintf("only --egress %s, or a range inside %s, opens it", addr, g.block)
	}
	if len(e.entries) == 0 {
		mend += ` (add --egress "*" to go on allowing what is not guarded)`
	}
	return refuseEgress("guard/"+g.class, "%s is %s; %s", describe(host, addr), g, mend)
}

// refuseUnlisted says that no entry names what, and gives the entry that would.
func refuseUnlisted(what, example string, port uint16) Decision {
	return refuseEgress(ruleUnlisted, "no egress entry covers %s with port %d; add --egress %s to allow it",
		what, port, net.JoinHostPort(example, strconv.Itoa(int(port))))
}

// describe names an address in a reason. The name is quoted as a peer may have chosen it.
func describe(host string, addr netip.Addr) string {
	if host == "" {
		return "address " + addr.String()
	}
	return fmt.Sprintf("address %s (what name %q resolves to)", addr, host)
}

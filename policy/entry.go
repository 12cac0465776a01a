package policy

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// What an egress entry names.
type entryKind uint8

const (
	everything entryKind = iota // *
	oneName                     // name
	namesBelow                  // *.name
	addresses                   // an address or a range
)

// entry is one parsed egress entry.
type entry struct {
	kind     entryKind
	name     string       // folded; of kind namesBelow with its leading dot, ".example.com"
	prefix   netip.Prefix // of kind addresses, masked
	port     uint16       // 0 stands for every port
	decision Decision     // what it leads to when it applies
}

const entryForms = `write NAME, *.NAME, ADDRESS, CIDR or "*", each with an optional :PORT`

// parseEntries reads the egress entries of the list called name and returns all faults as *EntryError.
func parseEntries(name string, list []string) ([]entry, []error) {
	var entries []entry
	var faults []error
	for i, text := range list {
		en, fault := parseEntry(text)
		if fault != "" {
			faults = append(faults, &EntryError{Field: name, Index: i, Entry: text, Reason: fault})
			continue
		}
		en.decision = Decision{
			Allow:  true,
			Policy: policyEgress,
			Rule:   rule(name, i),
			Reason: fmt.Sprintf("egress entry %q names the destination", text),
		}
		entries = append(entries, en)
	}
	return entries, faults
}

// parseEntry reads one egress entry. fault is "" or says what is wrong with it and what would be right.
func parseEntry(text string) (en entry, fault string) {
	switch {
	case text == "":
		return en, "is empty; " + entryForms
	case strings.Contains(text, "://"):
		return en, "has a scheme; " + entryForms
	case strings.ContainsAny(text, " \t\r\n,"):
		return en, "has a space or comma; several destinations are several entries"
	case strings.Contains(text, "%"):
		return en, `has a "%"; an address with a zone cannot be opened, and names are not percent-encoded`
	}
	host, port, fault := cutPort(text)
	if fault != "" {
		return en, fault
	}
	switch bare, bracketed := strings.CutPrefix(host, "["); {
	case bracketed:
		en, fault = parseBracketed(bare)
	case strings.Contains(host, "/"):
		en, fault = parseRange(host)
	default:
		en, fault = parseHost(host)
	}
	en.port = port
	return en, fault
}

// cutPort takes the port off, if there is one: what follows the last colon behind "]" or "/", or a single colon.
// More colons and neither are an IPv6 address.
func cutPort(text string) (host string, port uint16, fault string) {
	from := max(strings.LastIndexByte(text, ']'), strings.IndexByte(text, '/'))
	if from < 0 {
		if strings.Count(text, ":") != 1 {
			return text, 0, ""
		}
		from = 0
	}
	host, digits, found := strings.Cut(text[from:], ":")
	if !found {
		return text, 0, ""
	}
	port, ok := parsePort(digits)
	if !ok {
		return "", 0, fmt.Sprintf("has the port %q; a port is a number from 1 to 65535 without sign or leading zero", digits)
	}
	return text[:from] + host, port, ""
}

// parsePort reads 1*5DIGIT from 1 to 65535. strconv alone would take "+80" and "0080".
func parsePort(digits string) (uint16, bool) {
	if digits == "" || digits[0] < '1' || digits[0] > '9' {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 16)
	return uint16(n), err == nil
}

// parseBracketed reads what follows "[": an IPv6 address and "]".
func parseBracketed(text string) (en entry, fault string) {
	inside, after, closed := strings.Cut(text, "]")
	addr, err := netip.ParseAddr(inside)
	switch {
	case !closed || after != "" || strings.Contains(inside, "/"):
		return en, `has brackets that are not of the form [ADDRESS]:PORT; a range is written without brackets, "fd00::/8:443"`
	case err != nil || !addr.Is6():
		return en, fmt.Sprintf("has %q in brackets, which is no IPv6 address", inside)
	}
	return addressEntry(addr), ""
}

// parseRange reads a CIDR.
func parseRange(text string) (en entry, fault string) {
	prefix, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return en, fmt.Sprintf("is not a CIDR; write something like 10.0.0.0/8 or fd00::/8, or with a port 10.0.0.0/8:443 (%v)", err)
	case prefix.Addr().Is4In6():
		return en, "is a range of IPv4-mapped addresses, which are judged as IPv4; write the IPv4 range"
	case prefix != prefix.Masked():
		return en, fmt.Sprintf("has bits set behind /%d; write %s for the range or %s for the one address", prefix.Bits(), prefix.Masked(), prefix.Addr())
	}
	return entry{kind: addresses, prefix: prefix}, ""
}

// parseHost reads an address without brackets, a name, *.name or *.
func parseHost(text string) (en entry, fault string) {
	if text == "*" {
		return entry{kind: everything}, ""
	}
	if addr, err := netip.ParseAddr(text); err == nil {
		return addressEntry(addr), ""
	}
	if strings.Contains(text, ":") {
		return en, "is neither an IPv6 address nor a name with a port; an IPv6 address with a port is written [ADDRESS]:PORT"
	}
	name, below := strings.CutPrefix(text, "*.")
	name = fold(name)
	switch {
	case strings.Contains(name, "*"):
		return en, `has a "*" inside; a "*" may stand alone or before the first dot, "*.example.com"`
	case endsInNumber(name):
		return en, "is neither a name nor an address in its canonical form; write an IPv4 address as four decimal numbers without leading zeros"
	case !isASCII(name):
		return en, `has letters beyond ASCII; write the name in its A-label form, "xn--…"`
	case !validName(name):
		return en, `is not a DNS name (labels of 1 to 63 letters, digits, "-" and "_"); ` + entryForms
	case below:
		return entry{kind: namesBelow, name: "." + name}, ""
	}
	return entry{kind: oneName, name: name}, ""
}

// addressEntry makes the entry of one address. Mapped addresses become the IPv4 address they are dialled as.
func addressEntry(addr netip.Addr) entry {
	addr = addr.Unmap()
	return entry{kind: addresses, prefix: netip.PrefixFrom(addr, addr.BitLen())}
}

// reaches tells whether the entry names the destination: the name host, "" for none, or the address addr, the zero
// Addr for none yet, with this port.
func (en *entry) reaches(host string, addr netip.Addr, port uint16) bool {
	if !en.hasPort(port) {
		return false
	}
	switch en.kind {
	case everything:
		return true
	case oneName:
		return host == en.name
	case namesBelow:
		return len(host) > len(en.name) && strings.HasSuffix(host, en.name)
	case addresses:
		return en.prefix.Contains(addr)
	}
	return false
}

// hasPort tells whether the entry stands for port.
func (en *entry) hasPort(port uint16) bool {
	return en.port == 0 || en.port == port
}

// lifts tells whether the entry, which reaches the address that g is about, lifts its guard.
func (en *entry) lifts(g guard) bool {
	switch {
	case g.class == "":
		return true
	case en.kind == addresses:
		// Only a range that lies inside the guarded one names it; a wider one just happens to hold it.
		return g.block.IsValid() && en.prefix.Bits() >= g.block.Bits()
	case en.kind == oneName && en.name == "localhost":
		// RFC 6761, section 6.3: nobody can rebind this name, it is loopback by definition.
		return g.byName || g.class == classLoopback && g.form == ""
	case en.kind == oneName, en.kind == namesBelow:
		return g.byName
	}
	return false
}

// liftsPort tells whether the entry, which reaches the destination, opens a guarded port.
func (en *entry) liftsPort(pg portGuard) bool {
	switch {
	case pg.rule == "", en.port != 0:
		return true
	case pg.strict:
		return false
	}
	// HBONE's refusal of its own ports ends where the configuration names the one destination.
	return en.kind == oneName || en.kind == addresses && en.prefix.IsSingleIP()
}

// fold makes host names comparable: lower case, without the dot of the root. Only ASCII is folded, for DNS does no
// more (RFC 4343, section 3): strings.ToLower would make "k" of the Kelvin sign, and the name that is then resolved
// would be another than the one that was compared. It does not allocate when there is nothing to fold.
func fold(host string) string {
	host = strings.TrimSuffix(host, ".")
	for i := range len(host) {
		if 'A' <= host[i] && host[i] <= 'Z' {
			return strings.Map(lower, host)
		}
	}
	return host
}

func lower(c rune) rune {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// validName tells whether a folded name could be looked up in DNS: labels of letters, digits, "-" and "_" (which
// RFC 1123 lacks and service names have), no "-" at the ends of a label, and no number as the last label.
func validName(name string) bool {
	if name == "" || len(name) > 253 || endsInNumber(name) {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
				return false
			}
		}
	}
	return true
}

// endsInNumber tells whether the last label is a number, decimal or hexadecimal. Such a host is an address or
// nothing: resolvers differ in what they make of "127.1", "0x7f.1" or "2130706433" (URL Standard, section 3.5).
func endsInNumber(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	if hex, ok := strings.CutPrefix(last, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return last != "" && strings.Trim(last, "0123456789") == ""
}

func isASCII(s string) bool {
	for _, c := range []byte(s) {
		if c >= 0x80 {
			return false
		}
	}
	return true
}

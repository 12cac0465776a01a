package tunnel

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Bounds of a name (RFC 1035, section 2.3.4, in the form without the root's dot) and of an authority.
const (
	maxNameLen  = 253
	maxLabelLen = 63
	// maxAuthorityLen is a name with the root's dot, a colon and five digits; no address is longer.
	maxAuthorityLen = maxNameLen + 1 + 1 + 5
)

// Target is the destination of a flow. It is made once, by ParseAuthority or TargetOf, and
// the same value is what routes match, policy judges and the dialler dials: no text is parsed a second
// time. Exactly one of Host and Addr is set. Targets are comparable.
type Target struct {
	// Host is the destination's name in lower case, without a dot at its end; "" where Addr is set.
	Host string
	// Addr is the destination's address, never IPv4-mapped and without a zone; zero where Host is set.
	Addr netip.Addr
	// Port is from 1 to 65535.
	Port uint16
	// Socket is the path of a unix socket of this host, where the configuration of a listener names one; then the
	// other fields are zero. No peer can ask for it.
	Socket string
}

// AuthorityError tells what is wrong with a destination. A peer that sent it gets status 400.
type AuthorityError struct {
	// Text is the destination as it came, cut to a length fit for a log line.
	Text string
	// Problem says what is wrong and what would be right.
	Problem string
}

// Error returns the destination, quoted, and the problem.
func (e *AuthorityError) Error() string {
	return fmt.Sprintf("destination %q: %s", e.Text, e.Problem)
}

// ParseAuthority reads the host and port of a CONNECT request (RFC 9110, section 7.1: authority-form is
// uri-host ":" port). It takes one spelling of an address only, the one that netip.Addr.String writes
// (RFC 5952), with brackets around IPv6, without zone and not IPv4-mapped: what another part of the path
// could read differently is refused. A name has labels of letters, digits, "-" and "_", and its last label is
// no number, so that no resolver can take it for an address. The port has 1 to 5 digits, is from 1 to
// 65535 and has no leading zero. The error is an *AuthorityError.
func ParseAuthority(s string) (Target, error) {
	if len(s) > maxAuthorityLen {
		return Target{}, authorityError(s, "it is longer than a name and a port can be")
	}
	host, port, ok := cutPort(s)
	if !ok {
		return Target{}, authorityError(s, "it has no port; it should be like example.com:443, 192.0.2.1:443 or [2001:db8::1]:443")
	}
	n, problem := parsePort(port)
	if problem != "" {
		return Target{}, authorityError(s, problem)
	}
	bracketed := strings.HasPrefix(host, "[")
	if bracketed {
		inner, closed := strings.CutSuffix(host[1:], "]")
		if !closed {
			return Target{}, authorityError(s, "an IPv6 address stands between [ and ], directly before the port")
		}
		host = inner
	}
	t, problem := parseHost(host, bracketed)
	if problem != "" {
		return Target{}, authorityError(s, problem)
	}
	t.Port = n
	return t, nil
}

// TargetOf makes a Target of a destination that did not come as one text, such as that of a SOCKS
// request: host is a name or the canonical text of an address; if it is "", addr is the destination, of
// which an IPv4-mapped form is unmapped. The error is an *AuthorityError.
func TargetOf(host string, addr netip.Addr, port uint16) (Target, error) {
	if port == 0 {
		return Target{}, authorityError(host, "port 0; it should be from 1 to 65535")
	}
	if host != "" {
		if len(host) > maxNameLen+1 {
			return Target{}, authorityError(host, "the name is longer than 253 bytes")
		}
		t, problem := parseHost(host, strings.Contains(host, ":"))
		if problem != "" {
			return Target{}, authorityError(host, problem)
		}
		t.Port = port
		return t, nil
	}
	switch {
	case !addr.IsValid():
		return Target{}, authorityError("", "there is neither a name nor an address")
	case addr.Zone() != "":
		return Target{}, authorityError(addr.String(), "an address with a zone means something on one host only")
	}
	return Target{Addr: addr.Unmap(), Port: port}, nil
}

// IsName reports whether the destination is a name, which the hop that dials it must resolve.
func (t Target) IsName() bool { return t.Host != "" }

// AddrPort returns the destination for dialling; it is not valid where the destination is a name.
func (t Target) AddrPort() netip.AddrPort { return netip.AddrPortFrom(t.Addr, t.Port) }

// String returns the form that ParseAuthority reads, or "" for the zero Target.
func (t Target) String() string {
	if t.Host != "" {
		return t.Host + ":" + strconv.Itoa(int(t.Port))
	}
	if t.Socket != "" {
		return unixPrefix + t.Socket
	}
	if !t.Addr.IsValid() {
		return ""
	}
	return t.AddrPort().String()
}

// cutPort cuts at the colon before the port. A colon inside brackets, or one of several without
// brackets, is none.
func cutPort(s string) (host, port string, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 || strings.IndexByte(s[i:], ']') >= 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// parsePort reads 1 to 5 digits. strconv would take signs and leading zeros, and net.Dial wraps numbers
// above 2^32 (golang/go#80168).
func parsePort(s string) (uint16, string) {
	if s == "" {
		return 0, "it has no port; it should end in a port such as :443"
	}
	var n uint32
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, "the port is no number; it should be from 1 to 65535"
		}
		if i >= 5 {
			return 0, "the port has more than five digits; it should be from 1 to 65535"
		}
		n = n*10 + uint32(s[i]-'0')
	}
	switch {
	case n == 0 || n > 65535:
		return 0, "the port should be from 1 to 65535"
	case s[0] == '0':
		return 0, "the port should have no leading zero"
	}
	return uint16(n), ""
}

// parseHost reads a name or an address. ipv6 tells that brackets, or the kind of request, say IPv6.
func parseHost(host string, ipv6 bool) (Target, string) {
	addr, err := netip.ParseAddr(host)
	switch {
	case err == nil && addr.Zone() != "":
		return Target{}, "an address with a zone means something on one host only"
	case err == nil && addr.Is4In6():
		return Target{}, "an IPv4-mapped address; write it as IPv4, such as " + addr.Unmap().String()
	case err == nil && addr.String() != host:
		return Target{}, "not the canonical spelling of an address, which is " + addr.String()
	case err == nil && addr.Is6() != ipv6:
		return Target{}, "an IPv6 address stands in brackets, and only that"
	case err == nil:
		return Target{Addr: addr}, ""
	case ipv6:
		return Target{}, "what stands in brackets is no IPv6 address"
	}
	host = strings.TrimSuffix(host, ".")
	if problem := nameProblem(host); problem != "" {
		return Target{}, problem
	}
	return Target{Host: strings.ToLower(host)}, ""
}

// nameProblem says why name is no DNS name, "" if it is one.
func nameProblem(name string) string {
	switch {
	case name == "":
		return "it has no host"
	case len(name) > maxNameLen:
		return "the name is longer than 253 bytes"
	}
	var label string
	for label = range strings.SplitSeq(name, ".") {
		switch {
		case label == "":
			return "the name has an empty label"
		case len(label) > maxLabelLen:
			return "the name has a label longer than 63 bytes"
		case label[0] == '-' || label[len(label)-1] == '-':
			return "the name has a label that begins or ends with a hyphen"
		}
		for i := range len(label) {
			if !isNameByte(label[i]) {
				return nameByteProblem(label[i])
			}
		}
	}
	if looksNumeric(label) {
		return "its last label is a number, and it is no address; an IPv4 address is written as four decimal numbers, such as 192.0.2.1"
	}
	return ""
}

func isNameByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_'
}

func nameByteProblem(c byte) string {
	switch {
	case c == '@':
		return "it has user information; it should be host and port alone"
	case c == ':':
		return "an IPv6 address stands in brackets, and a host has one port"
	case c == '[' || c == ']':
		return "brackets stand around an IPv6 address only"
	case c == '%':
		return "percent-encoding is not decoded; write the name itself"
	case c >= 0x80:
		return "the name is not ASCII; write it in its xn-- form"
	}
	return fmt.Sprintf("the name holds %q; only letters, digits, '-', '_' and '.' are allowed", c)
}

// looksNumeric reports whether resolvers such as getaddrinfo could read a name that ends in label as an
// IPv4 address: decimal, octal or 0x hexadecimal (inet_aton(3)).
func looksNumeric(label string) bool {
	digits := label
	hex := false
	if len(label) >= 2 && label[0] == '0' && (label[1] == 'x' || label[1] == 'X') {
		digits, hex = label[2:], true
	}
	for i := range len(digits) {
		c := digits[i]
		decimal := c >= '0' && c <= '9'
		if !decimal && !(hex && (c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F')) {
			return false
		}
	}
	return true
}

func authorityError(text, problem string) error {
	const maxShown = 128
	if len(text) > maxShown {
		text = text[:maxShown]
	}
	return &AuthorityError{Text: text, Problem: problem}
}

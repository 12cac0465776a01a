package capture

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

const (
	// maxNameBytes is the longest DNS name in dotted form. RFC 1035, section 2.3.4 allows 255 bytes on
	// the wire, which are 253 without the first length byte and the root label.
	maxNameBytes = 253
	// maxLabelBytes is RFC 1035, section 2.3.4: "labels 63 octets or less".
	maxLabelBytes = 63
	// maxQuotedBytes is how much of a foreign text goes into an error.
	maxQuotedBytes = 64
)

var (
	errHostEmpty = errors.New("the host is empty; it should be a DNS name or an IP address")
	errPort      = errors.New("the port should be a number from 1 to 65535, without sign or leading zero")
)

// parseHostPort parses "host:port", "1.2.3.4:port" or "[v6]:port".
func parseHostPort(s string) (host string, addr netip.Addr, port uint16, err error) {
	colon := strings.LastIndexByte(s, ':')
	if colon < 0 {
		return "", netip.Addr{}, 0, errors.New("the port is missing; it should be host:port, such as orders.shop.svc:80")
	}
	text, bracketed := s[:colon], false
	if strings.HasPrefix(text, "[") && strings.HasSuffix(text, "]") {
		text, bracketed = text[1:len(text)-1], true
	}
	host, addr, hostErr := parseHost(text)
	switch {
	case strings.Contains(text, ":") && !bracketed:
		hostErr = errors.New("an IPv6 address should be in brackets, such as [2001:db8::1]:80")
	case bracketed && !strings.Contains(text, ":"):
		hostErr = errors.New("only an IPv6 address is written in brackets")
	}
	port, err = parsePort(s[colon+1:])
	switch {
	case hostErr == nil:
	case err == nil:
		err = hostErr
	default:
		err = fmt.Errorf("%w; %w", hostErr, err)
	}
	return host, addr, port, err
}

// parsePort parses a port strictly: what net.Dial accepts ("+80", "0080", "4294967376") is refused.
func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '0' || s[0] == '+' {
		return 0, errPort
	}
	return uint16(n), nil
}

// parseHost takes s for an address or a DNS name, and nothing else. Either host or addr is set. The
// errors say what is wrong with s without repeating it.
func parseHost(s string) (host string, addr netip.Addr, err error) {
	if s == "" {
		return "", netip.Addr{}, errHostEmpty
	}
	// Every IPv4 address ends in a digit and every IPv6 address has a colon: names need not be tried,
	// which would cost an error each.
	if last := s[len(s)-1]; '0' <= last && last <= '9' || strings.IndexByte(s, ':') >= 0 {
		if addr, err = netip.ParseAddr(s); err == nil {
			addr, err = checkAddr(s, addr)
			return "", addr, err
		}
	}
	host, err = parseName(s)
	return host, netip.Addr{}, err
}

// checkAddr accepts the one spelling of an address and no zone, which would be one of this host.
func checkAddr(s string, addr netip.Addr) (netip.Addr, error) {
	if addr.Zone() != "" {
		return netip.Addr{}, errors.New("an address with a zone has a meaning on one host only; it should be without")
	}
	if canonical := addr.String(); canonical != s {
		return netip.Addr{}, fmt.Errorf("the address is not in its canonical form; it should be written as %s", canonical)
	}
	return addr.Unmap(), nil
}

// parseName checks a DNS name as Go's resolver does and returns it in lower case and without the final
// dot, so that routes and policies of every hop see the same name. A last label that is a number is
// refused: RFC 1123, section 2.1 keeps those for addresses, and the WHATWG URL standard ("ends in a
// number") and getaddrinfo read "127.1", "2130706433" and "0x7f.1" as 127.0.0.1.
func parseName(s string) (string, error) {
	name := strings.TrimSuffix(s, ".")
	if len(name) > maxNameBytes {
		return "", fmt.Errorf("the name has %d bytes; a DNS name has at most %d", len(name), maxNameBytes)
	}
	for start, i := 0, 0; i <= len(name); i++ {
		if i < len(name) && name[i] != '.' {
			if err := checkNameByte(name[i]); err != nil {
				return "", err
			}
			continue
		}
		if err := checkLabel(name[start:i]); err != nil {
			return "", err
		}
		start = i + 1
	}
	if isNumber(name[strings.LastIndexByte(name, '.')+1:]) {
		return "", errors.New("the name ends in a number, so that some would read it as an address; " +
			"it should be a DNS name, or an address in its canonical form, such as 192.0.2.1")
	}
	return strings.ToLower(name), nil
}

func checkNameByte(b byte) error {
	switch {
	case 'a' <= b && b <= 'z', 'A' <= b && b <= 'Z', '0' <= b && b <= '9', b == '-', b == '_':
		return nil
	case b >= 0x80:
		return errors.New("the name is not ASCII; it should be in its xn-- form (RFC 5890)")
	}
	return fmt.Errorf("the name has the byte %q; a DNS name has letters, digits, hyphens, underscores and dots", b)
}

func checkLabel(label string) error {
	switch {
	case label == "":
		return errors.New("the name has an empty label; it should have text on both sides of a dot")
	case len(label) > maxLabelBytes:
		return fmt.Errorf("a label of the name has %d bytes; it has at most %d", len(label), maxLabelBytes)
	case label[0] == '-' || label[len(label)-1] == '-':
		return errors.New("a label of the name begins or ends with a hyphen; no DNS name does")
	}
	return nil
}

// isNumber reports whether inet_aton(3) would take label, the last one, for part of an address:
// decimal or octal digits, or 0x and hexadecimal digits (none at all is 0, too).
func isNumber(label string) bool {
	digits := "0123456789"
	if len(label) >= 2 && label[0] == '0' && (label[1] == 'x' || label[1] == 'X') {
		label, digits = label[2:], "0123456789abcdefABCDEF"
	}
	return strings.Trim(label, digits) == ""
}

// clip cuts foreign text for an error.
func clip(s string) string {
	if len(s) > maxQuotedBytes {
		return s[:maxQuotedBytes] + "…"
	}
	return s
}

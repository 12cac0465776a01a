package sshkeys

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// option is one of the comma-separated words before a key.
type option struct {
	name     string // in lower case: "option keywords are case-insensitive"
	value    string // without its quotes
	hasValue bool
}

// cutOptions cuts the options off a line and returns them and the key that follows. sshd(8): "comma-separated option
// specifications. No spaces are permitted, except within double quotes", and a quote in them has a backslash before it.
func cutOptions(line string) (list []option, rest string, p *problem) {
	for i := 0; ; i++ {
		start := i
		for i < len(line) && isOptionByte(line[i]) {
			i++
		}
		o := option{name: strings.ToLower(line[start:i])}
		if o.name == "" {
			return nil, "", badOption("an option is expected at byte %d: options are separated by single commas, and a space ends them", i+1)
		}
		if i < len(line) && line[i] == '=' {
			length := 0
			o.hasValue = true
			if o.value, length, p = unquote(line[i+1:]); p != nil {
				return nil, "", badOption("%s=: %s", clip(o.name), p.detail)
			}
			i += 1 + length
		}
		list = append(list, o)
		switch {
		case i == len(line):
			return nil, "", badFormat("no key follows %q; a line is OPTIONS TYPE BASE64 COMMENT", clip(o.name))
		case line[i] == ' ' || line[i] == '\t':
			return list, strings.TrimLeft(line[i:], " \t"), nil
		case line[i] != ',':
			return nil, "", badOption("%q after %q; options are separated by single commas, and values are in double quotes", line[i], clip(o.name))
		}
	}
}

func isOptionByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-'
}

// unquote reads a value in double quotes at the start of s, and returns how many bytes of s it takes. A backslash
// escapes a quote and nothing else.
func unquote(s string) (value string, length int, p *problem) {
	if s == "" || s[0] != '"' {
		return "", 0, badOption("the value must be in double quotes")
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s) && s[i+1] == '"':
			i++
			b.WriteByte('"')
		case s[i] == '"':
			return b.String(), i + 1, nil
		default:
			b.WriteByte(s[i])
		}
	}
	return "", 0, badOption("the closing quote is missing")
}

// apply puts the options on e and returns what is wrong with them.
func (e *Entry) apply(list []option) (problems []*problem) {
	var seen []string
	for _, o := range list {
		if slices.Contains(seen, o.name) && slices.Contains([]string{"command", "from", "principals"}, o.name) {
			problems = append(problems, badOption("%s= stands there twice; only one counts, so write one", o.name))
		}
		seen = append(seen, o.name)
		p := e.applyFlag(o)
		if o.hasValue {
			p = e.applyValue(o)
		}
		if p != nil {
			problems = append(problems, p)
		}
	}
	// sshd refuses such a key when it is used.
	if e.Principals != nil && !e.CertAuthority {
		problems = append(problems, badOption("principals= says which certificates a CA may make, and the line is not cert-authority"))
	}
	return problems
}

// applyFlag puts an option without a value on e.
func (e *Entry) applyFlag(o option) *problem {
	switch o.name {
	case "cert-authority":
		e.CertAuthority = true
	case "restrict", "no-port-forwarding":
		e.PortForwarding = false
	case "port-forwarding":
		e.PortForwarding = true
	case "no-pty", "pty", "no-agent-forwarding", "agent-forwarding", "no-x11-forwarding", "x11-forwarding", "no-user-rc", "user-rc",
		"no-touch-required":
		e.Noted = append(e.Noted, o.name)
	case "verify-required":
		return badOption("verify-required cannot be kept: who holds the token is not seen here; take another key")
	case "command", "environment", "expiry-time", "from", "permitlisten", "permitopen", "principals", "tunnel":
		return badOption("%s needs a value: %s=\"...\"", o.name, o.name)
	default:
		return unknownOption(o)
	}
	return nil
}

// unknownOption makes the problem of an option that sshd(8) does not list.
func unknownOption(o option) *problem {
	return badOption("%q is neither an option of sshd(8) nor the type of a key; an option restricts a key, so none is passed over", clip(o.name))
}

// applyValue puts an option with a value on e.
func (e *Entry) applyValue(o option) (p *problem) {
	switch o.name {
	case "command":
		if e.Role = o.value; e.Role == "" {
			p = badOption("command= is empty; it names a role")
		}
	case "environment", "tunnel":
		e.Noted = append(e.Noted, o.name)
	case "expiry-time":
		var at time.Time
		if at, p = parseExpiry(o.value); p == nil && (e.Expires.IsZero() || at.Before(e.Expires)) {
			e.Expires = at
		}
	case "from":
		if e.From, p = parseAddrList(o.value); p != nil {
			p.detail = "from=: " + p.detail
		}
	case "permitopen":
		var permit Permit
		if permit, p = parsePermit(o, false); p == nil {
			e.PermitOpen = append(e.PermitOpen, permit)
		}
	case "permitlisten":
		var permit Permit
		if permit, p = parsePermit(o, true); p == nil {
			e.PermitListen = append(e.PermitListen, permit)
		}
	case "principals":
		e.Principals = strings.Split(o.value, ",")
		for _, name := range e.Principals {
			if name == "" || strings.ContainsAny(name, " \t") {
				p = badOption("principals= %q: names are separated by single commas, without spaces", clip(o.value))
			}
		}
	default:
		if (&Entry{}).applyFlag(option{name: o.name}) == nil {
			return badOption("%s takes no value", o.name)
		}
		return unknownOption(o)
	}
	return p
}

// parseExpiry reads a time of expiry-time=. sshd(8): "YYYYMMDD[Z] date or a YYYYMMDDHHMM[SS][Z] time … interpreted in the
// system time zone unless suffixed by a Z character".
func parseExpiry(text string) (time.Time, *problem) {
	digits, utc := strings.CutSuffix(text, "Z")
	zone := time.Local
	if utc {
		zone = time.UTC
	}
	layout := ""
	switch len(digits) {
	case 8:
		layout = "20060102"
	case 12:
		layout = "200601021504"
	case 14:
		layout = "20060102150405"
	}
	at, err := time.ParseInLocation(layout, digits, zone)
	if layout == "" || err != nil || strings.Trim(digits, "0123456789") != "" {
		return time.Time{}, badOption("expiry-time= %q is no time; write YYYYMMDD, YYYYMMDDHHMM or YYYYMMDDHHMMSS, with Z after it for UTC", clip(text))
	}
	return at, nil
}

// Permit is a destination of permitopen= or an address of permitlisten=.
type Permit struct {
	// Host is a name or an address without brackets; "*" is any. In permitlisten= other names may hold * and ? too.
	Host string
	// Port is 0 for any port.
	Port uint16
}

// parsePermit reads HOST:PORT, [IPv6]:PORT and, for permitlisten, PORT alone, which is any host.
func parsePermit(o option, listen bool) (Permit, *problem) {
	bad := func(why string) (Permit, *problem) {
		return Permit{}, badOption("%s= %q: %s", o.name, clip(o.value), why)
	}
	if strings.Contains(o.value, ",") {
		return bad("one destination only; write the option again for another")
	}
	host, port := "*", o.value
	if i := strings.LastIndexByte(o.value, ':'); i >= 0 {
		host, port = o.value[:i], o.value[i+1:]
	} else if !listen {
		return bad("write HOST:PORT")
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		if host, ok = strings.CutSuffix(inner, "]"); !ok {
			return bad("write [IPv6]:PORT")
		}
	} else if strings.Contains(host, ":") {
		return bad("an IPv6 address needs brackets: [IPv6]:PORT")
	}
	switch {
	case host == "":
		return bad("the host is empty; * is any host")
	case strings.ContainsAny(host, " \t/[]"):
		return bad("that is no name or address")
	case !listen && host != "*" && strings.ContainsAny(host, "*?"):
		return bad("permitopen takes no patterns, only a name, an address or *")
	}
	if port == "*" {
		return Permit{Host: host}, nil
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
		return bad("the port must be 1 to 65535, or * for any")
	}
	return Permit{Host: host, Port: uint16(n)}, nil
}

// String returns the permit as it is written in a file.
func (p Permit) String() string {
	host, port := p.Host, "*"
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if p.Port != 0 {
		port = strconv.Itoa(int(p.Port))
	}
	return fmt.Sprintf("%s:%s", host, port)
}

// opens reports whether the permit has the destination: the same address, or the same name in either case.
func (p Permit) opens(host string, port uint16) bool {
	if p.Port != 0 && p.Port != port {
		return false
	}
	if p.Host == "*" {
		return true
	}
	want, err := netip.ParseAddr(p.Host)
	if got, gotErr := netip.ParseAddr(host); err == nil && gotErr == nil {
		return want.Unmap() == got.Unmap()
	}
	return strings.EqualFold(p.Host, host)
}

// listens reports whether the permit has the address to listen on.
func (p Permit) listens(host string, port uint16) bool {
	return (p.Port == 0 || p.Port == port) && globMatch(strings.ToLower(p.Host), strings.ToLower(host))
}

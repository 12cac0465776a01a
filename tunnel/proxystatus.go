package tunnel

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Bounds of a Proxy-Status field that is read, and of what it may make us keep or pass on.
const (
	maxProxyStatusLen     = 2048
	maxProxyStatusMembers = 8 // as many as gateways in a row
	maxProxyStatusParams  = 16
)

// ProxyStatus is one member of a Proxy-Status field (RFC 9209): what one gateway says of an answer.
type ProxyStatus struct {
	// Name is how the gateway calls itself.
	Name string
	// Error is the error type (RFC 9209, section 2.3), "" if the answer is not its own.
	Error string
	// Details is a short public reason.
	Details string
	// Policy and Rule name what decided, where the gateway is ours.
	Policy, Rule string
	// ReceivedStatus is the status that it received from the next hop, 0 if none.
	ReceivedStatus int
}

// describe returns the member for a person to read.
func (p *ProxyStatus) describe() string {
	var b strings.Builder
	b.WriteString(p.Name)
	if p.Error != "" {
		b.WriteString(" says " + p.Error)
	}
	if p.Details != "" {
		b.WriteString(" (" + p.Details + ")")
	}
	if p.Rule != "" {
		b.WriteString(" by " + strings.TrimPrefix(p.Policy+" ", " ") + p.Rule)
	}
	if p.ReceivedStatus != 0 {
		fmt.Fprintf(&b, " received %d", p.ReceivedStatus)
	}
	return b.String()
}

// cause is the cause that p and the status of the answer it came with stand for, CauseNone if they fit none.
// Several share an error type (RFC 9209, section 2.3); which of them it is, a gateway of ours tells by its
// details. All of it is a peer's word, so only what a gateway may say of a CONNECT is taken from it.
func (p *ProxyStatus) cause(status int) Cause {
	found := CauseNone
	for c := range numCauses {
		v := &verdicts[c]
		if !c.ofHop() || v.proxy != p.Error || v.status/100 != status/100 {
			continue
		}
		if v.public == p.Details {
			return c
		}
		if found == CauseNone {
			found = c
		}
	}
	return found
}

// proxyStatus returns the Proxy-Status of an answer that err caused, as the gateway called name gives
// it. RFC 9209, section 2: the member of the intermediary closest to the origin comes first, and each
// appends itself. Nothing of err but its cause, policy and rule is told.
func proxyStatus(name string, err error) string {
	var b strings.Builder
	mine := ProxyStatus{Name: name}
	var own *Error
	var refused *RefusedError
	switch {
	case errors.As(err, &refused):
		for i := range refused.Statuses {
			refused.Statuses[i].append(&b)
		}
		mine.ReceivedStatus = refused.Status
		if len(refused.Statuses) == 0 {
			mine.Error = verdicts[refused.cause()].proxy
		}
	case errors.As(err, &own):
		mine.Policy, mine.Rule = own.Policy, own.Rule
		fallthrough
	default:
		v := &verdicts[CauseOf(err)]
		mine.Error, mine.Details = v.proxy, v.public
	}
	mine.append(&b)
	return b.String()
}

// append writes the member as RFC 9651 wants it.
func (p *ProxyStatus) append(b *strings.Builder) {
	if b.Len() > 0 {
		b.WriteString(", ")
	}
	quote(b, p.Name)
	if p.ReceivedStatus != 0 {
		b.WriteString("; received-status=" + strconv.Itoa(p.ReceivedStatus))
	}
	if isToken(p.Error) {
		b.WriteString("; error=" + p.Error)
	}
	for _, param := range []struct{ key, value string }{{"details", p.Details}, {"policy", p.Policy}, {"rule", p.Rule}} {
		if param.value != "" {
			b.WriteString("; " + param.key + "=")
			quote(b, param.value)
		}
	}
}

// quote writes s as an sf-string (RFC 9651, section 3.3.3). What it cannot hold becomes "?".
func quote(b *strings.Builder, s string) {
	b.WriteByte('"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < 0x20 || c > 0x7e:
			b.WriteByte('?')
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
}

// parseProxyStatus reads the values of all Proxy-Status fields of an answer. What is not well formed, or
// more than the bounds allow, is dropped: it is a hop's word and only ever shown.
func parseProxyStatus(values []string) []ProxyStatus {
	var list []ProxyStatus
	for _, v := range values {
		if len(v) > maxProxyStatusLen {
			return nil
		}
		p := sfParser{rest: v}
		for {
			p.spaces()
			if p.rest == "" || len(list) == maxProxyStatusMembers {
				break
			}
			m, ok := p.member()
			if !ok {
				return list
			}
			list = append(list, m)
			p.spaces()
			if !p.take(',') {
				break
			}
		}
	}
	return list
}

// sfParser reads the part of RFC 9651 that Proxy-Status needs: a list of strings and tokens with
// parameters that are strings, tokens, integers or true.
type sfParser struct{ rest string }

func (p *sfParser) spaces() { p.rest = strings.TrimLeft(p.rest, " \t") }

func (p *sfParser) take(c byte) bool {
	if p.rest == "" || p.rest[0] != c {
		return false
	}
	p.rest = p.rest[1:]
	return true
}

func (p *sfParser) member() (m ProxyStatus, ok bool) {
	if m.Name, ok = p.item(); !ok {
		return m, false
	}
	for range maxProxyStatusParams {
		p.spaces()
		if !p.take(';') {
			return m, true
		}
		p.spaces()
		key, ok := p.word()
		if !ok {
			return m, false
		}
		value := ""
		if p.take('=') {
			if value, ok = p.item(); !ok {
				return m, false
			}
		}
		switch key {
		case "error":
			m.Error = value
		case "details":
			m.Details = value
		case "policy":
			m.Policy = value
		case "rule":
			m.Rule = value
		case "received-status":
			if n, err := strconv.ParseUint(value, 10, 10); err == nil {
				m.ReceivedStatus = int(n)
			}
		}
	}
	return m, false
}

// item reads a string or a word.
func (p *sfParser) item() (string, bool) {
	if !p.take('"') {
		return p.word()
	}
	var b strings.Builder
	for p.rest != "" {
		c := p.rest[0]
		p.rest = p.rest[1:]
		switch {
		case c == '"':
			return b.String(), true
		case c == '\\':
			if p.rest == "" || p.rest[0] != '"' && p.rest[0] != '\\' {
				return "", false
			}
			c, p.rest = p.rest[0], p.rest[1:]
		case c < 0x20 || c > 0x7e:
			return "", false
		}
		b.WriteByte(c)
	}
	return "", false
}

// word reads a token, a key or a number.
func (p *sfParser) word() (string, bool) {
	n := 0
	for n < len(p.rest) && isTokenByte(p.rest[n]) {
		n++
	}
	w := p.rest[:n]
	p.rest = p.rest[n:]
	return w, n > 0
}

func isToken(s string) bool {
	for i := range len(s) {
		if !isTokenByte(s[i]) {
			return false
		}
	}
	return s != ""
}

// isTokenByte is tchar with ":" and "/" (RFC 9651, section 3.3.4).
func isTokenByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
		strings.IndexByte("!#$%&'*+-.^_`|~:/", c) >= 0
}

package policy

import (
	"net/netip"
	"strconv"
	"strings"
)

// attribute is something of a request that rules compare.
type attribute uint8

const (
	ofPrincipal attribute = iota
	ofNamespace
	ofServiceAccount // NAMESPACE/ACCOUNT
	ofRequestPrincipal
	ofAudience
	ofPresenter
	ofClaim
	ofHeader
	ofHost
	ofMethod
	ofPath
	ofSNI
	ofPort
	ofSourceIP
	ofRemoteIP
	ofDestinationIP
)

// truth is whether something holds. What a hop cannot see it does not know: an ALLOW needs what it asks for, and a DENY
// takes what it cannot rule out.
type truth uint8

const (
	no truth = iota
	unknown
	yes
)

func truthOf(b bool) truth {
	if b {
		return yes
	}
	return no
}

func (t truth) not() truth { return yes - t }

// HTTP is a request of HTTP that the hop has in the clear.
type HTTP struct {
	// Method and Path, which has no query.
	Method, Path string
	// Host is the authority that it names, in lower case and without a port.
	Host string
	// Header returns the values of a field, whose name is in lower case, joined by commas; ok is false where there is none.
	Header func(name string) (value string, ok bool)
}

// Token is a JWT that was verified.
type Token struct {
	// Issuer, Subject, Audiences and AuthorizedParty are claims of the token.
	Issuer, Subject, AuthorizedParty string
	Audiences                        []string
	// Claims are all of them.
	Claims map[string]any
}

// stringKind is how a stringMatch compares.
type stringKind uint8

const (
	isExactly stringKind = iota
	hasPrefix
	hasSuffix
	isPresent
	isTemplate // of a path
)

// stringMatch is one value of a list.
type stringMatch struct {
	text string
	kind stringKind
}

func (m *stringMatch) matches(s string) bool {
	switch m.kind {
	case isExactly:
		return s == m.text
	case hasPrefix:
		return strings.HasPrefix(s, m.text)
	case hasSuffix:
		return strings.HasSuffix(s, m.text)
	case isPresent:
		return s != ""
	}
	return matchTemplate(m.text, s)
}

// matchTemplate matches a path: "{*}" stands for one segment that is not empty, "{**}" for any number, or none.
func matchTemplate(template, path string) bool {
	for {
		var want, got string
		var more, left bool
		want, template, more = strings.Cut(template, "/")
		if want == "{**}" {
			if !more {
				return true
			}
			for rest := path; ; { // as many as are needed for what follows
				if matchTemplate(template, rest) {
					return true
				}
				if _, rest, left = strings.Cut(rest, "/"); !left {
					return false
				}
			}
		}
		got, path, left = strings.Cut(path, "/")
		if want == "{*}" && got == "" || want != "{*}" && want != got {
			return false
		}
		if !more || !left {
			return more == left
		}
	}
}

// view is a request as rules see it.
type view struct {
	*Request
	principal string
	account   string // NAMESPACE/ACCOUNT, "" if the identity has none
	later     truth  // whether a test of the address holds that is not known yet
}

func newView(r *Request) view {
	v := view{Request: r}
	if !r.Peer.IsZero() {
		v.principal = withoutScheme(r.Peer)
		v.account = accountOf(v.principal)
	}
	return v
}

// accountOf returns NAMESPACE/sa/ACCOUNT of TRUSTDOMAIN/ns/NAMESPACE/sa/ACCOUNT, "" of other forms.
func accountOf(principal string) string {
	_, path, _ := strings.Cut(principal, "/")
	rest, ok := strings.CutPrefix(path, "ns/")
	if !ok || strings.Count(rest, "/") != 2 {
		return ""
	}
	if _, after, _ := strings.Cut(rest, "/"); !strings.HasPrefix(after, "sa/") {
		return ""
	}
	return rest
}

// text returns a string attribute; seen is false where the hop cannot see it.
func (v *view) text(a attribute, name string) (s string, seen bool) {
	switch a {
	case ofPrincipal:
		return v.principal, true
	case ofNamespace:
		return v.Peer.Namespace(), true
	case ofServiceAccount:
		return v.account, true
	case ofHost:
		if v.HTTP != nil {
			return v.HTTP.Host, true
		}
		return v.Host, v.Host != ""
	case ofSNI:
		return v.SNI, v.SNI != "" || v.HTTP != nil
	}
	if a == ofPresenter && v.Token != nil {
		return v.Token.AuthorizedParty, true
	}
	if v.HTTP == nil {
		return "", false
	}
	switch a {
	case ofMethod:
		return v.HTTP.Method, true
	case ofPath:
		return v.HTTP.Path, true
	case ofHeader:
		value, _ := v.HTTP.Header(name)
		return value, true
	}
	return "", true
}

// matchText compares a string attribute with a list of values.
func (v *view) matchText(a attribute, name string, values []stringMatch) truth {
	switch a {
	case ofRequestPrincipal, ofAudience, ofClaim:
		return v.matchToken(a, name, values)
	}
	s, seen := v.text(a, name)
	if !seen {
		return unknown
	}
	whole := a == ofPrincipal && v.Peer.IsKey() // which has to be named itself, as in allow entries
	is := no
	for i := range values {
		switch {
		case !values[i].matches(s):
		case !whole || values[i].kind == isExactly:
			return yes
		default:
			is = unknown // a DENY of all is one of it as well
		}
	}
	return is
}

// matchToken compares what a token says.
func (v *view) matchToken(a attribute, name string, values []stringMatch) truth {
	if v.Token == nil {
		if v.HTTP == nil {
			return unknown
		}
		return no
	}
	match := func(s string) bool {
		for i := range values {
			if values[i].matches(s) {
				return true
			}
		}
		return false
	}
	switch a {
	case ofRequestPrincipal:
		return truthOf(v.Token.Issuer != "" && v.Token.Subject != "" && match(v.Token.Issuer+"/"+v.Token.Subject))
	case ofAudience:
		for _, one := range v.Token.Audiences {
			if match(one) {
				return yes
			}
		}
		return no
	}
	return truthOf(claimMatches(v.Token.Claims, name, match))
}

// claimMatches looks for a claim by its path, whose parts are separated by a zero byte, and tries each string of it.
func claimMatches(claims map[string]any, path string, match func(string) bool) bool {
	key, rest, deeper := strings.Cut(path, "\x00")
	value, ok := claims[key]
	if !ok {
		return false
	}
	if deeper {
		inner, ok := value.(map[string]any)
		return ok && claimMatches(inner, rest, match)
	}
	switch c := value.(type) {
	case string:
		if key == "scope" || key == "permission" { // lists of words (RFC 8693, section 4.2); as in Istio no other claim is one
			for word := range strings.FieldsSeq(c) {
				if match(word) {
					return true
				}
			}
		}
		return match(c)
	case bool:
		return match(strconv.FormatBool(c))
	case []string:
		for _, one := range c {
			if match(one) {
				return true
			}
		}
	case []any:
		for _, one := range c {
			if s, ok := one.(string); ok && match(s) {
				return true
			}
		}
	}
	return false
}

// address returns an address attribute; the zero Addr is one that the hop does not know.
func (v *view) address(a attribute) netip.Addr {
	switch a {
	case ofSourceIP:
		return v.Source.Addr().Unmap().WithZone("")
	case ofRemoteIP:
		if v.Remote.IsValid() {
			return v.Remote.Unmap().WithZone("")
		}
		return v.Source.Addr().Unmap().WithZone("")
	}
	return v.Addr
}

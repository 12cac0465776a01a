package policy

import (
	"errors"
	"fmt"
	"strings"

	"culvert/pki/spiffe"
)

// scheme is what principals may or may not begin with, and keyScheme what names of self-made keys do.
const (
	scheme    = "spiffe://"
	keyScheme = "key:"
)

// How a principal matches; the four forms of Istio's StringMatch, and anyone.
type principalKind uint8

const (
	exactly    principalKind = iota // the one identity
	beginsWith                      // x*
	endsWith                        // *x
	present                         // *: any identity, but one there must be
	anyone                          // any: also no identity
)

// principal is one parsed allow entry.
type principal struct {
	kind principalKind
	id   spiffe.ID // of kind exactly
	// text is the fixed part of kind beginsWith and endsWith. What begins with it has the whole trust domain and
	// its slash, so that "cluster.local/*" can never match the trust domain cluster.local.evil.example.
	text string
}

// pattern is a principal with a wildcard and the decision it leads to.
type pattern struct {
	principal
	decision Decision
}

// matches tells whether the principal names id. The zero ID is no identity and matches only anyone. A self-made key, which
// everybody can make, has to be named itself.
func (p *principal) matches(id spiffe.ID) bool {
	if p.kind == anyone {
		return true
	}
	if id.IsZero() || id.IsKey() && p.kind != exactly {
		return false
	}
	switch p.kind {
	case exactly:
		return id == p.id
	case beginsWith:
		return strings.HasPrefix(withoutScheme(id), p.text)
	case endsWith:
		return strings.HasSuffix(withoutScheme(id), p.text)
	case present:
		return true
	}
	return false
}

// withoutScheme is the text of id that principals are compared with, as Istio does.
func withoutScheme(id spiffe.ID) string {
	return strings.TrimPrefix(id.String(), scheme)
}

// parsePrincipal reads an allow entry. fault is "" or says what is wrong with it and what would be right.
func parsePrincipal(entry string) (p principal, fault string) {
	switch {
	case entry == "":
		return p, `is empty; write TRUSTDOMAIN/ns/NAMESPACE/sa/ACCOUNT, "TRUSTDOMAIN/ns/NAMESPACE/*", "*" or "any"`
	case entry == "any":
		return principal{kind: anyone}, ""
	case strings.EqualFold(entry, "any"):
		return p, `write "any" in lower case to let in every peer, also one without an identity`
	}
	text := strings.TrimPrefix(entry, scheme)
	if text == "*" {
		return principal{kind: present}, ""
	}
	if strings.HasPrefix(text, keyScheme) {
		id, err := spiffe.ParseKey(entry)
		if err != nil {
			return p, "is no self-made key; write key: and the 52 letters that follow it"
		}
		return principal{kind: exactly, id: id}, ""
	}
	if fault = foreignText(text); fault != "" {
		return p, fault
	}
	switch strings.IndexByte(text, '*') {
	case -1:
		return parseExact(text)
	case len(text) - 1:
		return parsePrefix(text[:len(text)-1])
	case 0:
		if strings.Count(text, "*") == 1 {
			return parseSuffix(text[1:])
		}
	}
	return p, `has a "*" inside; one "*" may stand at the beginning or at the end`
}

// foreignText finds characters that no SPIFFE ID has, and says for the likely ones what was meant.
//
// SPIFFE-ID.md, sections 2.1 and 2.2: a trust domain has lower-case letters, digits, ".", "-", "_"; a path
// segment has letters, digits, ".", "-", "_"; neither is percent-encoded.
func foreignText(text string) string {
	if strings.Contains(text, "://") {
		return `has a scheme that is not "spiffe://"; leave the scheme away`
	}
	for _, c := range text {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case strings.ContainsRune(".-_/*", c):
		case c == ' ' || c == '\t':
			return "has a space; a SPIFFE ID has none, and several identities are several entries"
		case c == ',':
			return "has a comma; several identities are several entries"
		case c == '%':
			return `has a "%"; a SPIFFE ID is never percent-encoded and has only letters, digits, ".", "-", "_" and "/"`
		case c == ':' || c == '@':
			return fmt.Sprintf(`has a %q; a SPIFFE ID has neither user nor port`, c)
		case c == '?' || c == '#':
			return fmt.Sprintf(`has a %q; a SPIFFE ID has neither query nor fragment`, c)
		default:
			return fmt.Sprintf(`has a %q; a SPIFFE ID has only letters, digits, ".", "-", "_" and "/"`, c)
		}
	}
	return ""
}

func parseExact(text string) (p principal, fault string) {
	td, _, ok := strings.Cut(text, "/")
	if fault = trustDomainFault(td); fault != "" {
		return p, fault
	}
	if !ok {
		return p, fmt.Sprintf(`is a trust domain without a path; write "%s/*" for all of it, or %[1]s/ns/NAMESPACE/sa/ACCOUNT`, td)
	}
	if strings.HasSuffix(text, "/") {
		return p, fmt.Sprintf(`ends in "/"; write "%s*" for all that is below, or "%s" without it`, text, strings.TrimRight(text, "/"))
	}
	id, err := spiffe.Parse(scheme + text)
	if err != nil {
		problem := err.Error()
		if pe := (*spiffe.ParseError)(nil); errors.As(err, &pe) {
			problem = pe.Problem
		}
		return p, fmt.Sprintf("is no SPIFFE ID: %s; write TRUSTDOMAIN/ns/NAMESPACE/sa/ACCOUNT", problem)
	}
	return principal{kind: exactly, id: id}, ""
}

func parsePrefix(text string) (p principal, fault string) {
	td, _, ok := strings.Cut(text, "/")
	if fault = trustDomainFault(td); fault != "" {
		return p, fault
	}
	if !ok {
		return p, fmt.Sprintf(`would match every trust domain that begins with %q; write "%[1]s/*" for the one`, td)
	}
	// An identity begins so exactly if the text with one more character is an identity.
	if _, err := spiffe.Parse(scheme + text + "x"); err != nil {
		return p, fmt.Sprintf(`can match nothing, because no SPIFFE ID begins so (it has no "//", "/./" or "/../"); write "%s/ns/NAMESPACE/*"`, td)
	}
	return principal{kind: beginsWith, text: text}, ""
}

func parseSuffix(text string) (p principal, fault string) {
	// An identity ends so exactly if the text is an identity when something stands before it: a trust domain,
	// its beginning, or a trust domain and the beginning of a path.
	for _, before := range []string{"x", "x/x"} {
		if _, err := spiffe.Parse(scheme + before + text); err == nil {
			return principal{kind: endsWith, text: text}, ""
		}
	}
	return p, `can match nothing, because no SPIFFE ID ends so (it has no "//", "/./", "/../" and no "/" at its end); write "*/sa/ACCOUNT"`
}

func trustDomainFault(td string) string {
	switch {
	case td == "":
		return `has no trust domain; write TRUSTDOMAIN/ns/NAMESPACE/sa/ACCOUNT, or "*/ns/NAMESPACE/sa/ACCOUNT" for any`
	case td != strings.ToLower(td):
		return fmt.Sprintf("has upper-case letters in its trust domain %q; write %q", td, strings.ToLower(td))
	}
	return ""
}

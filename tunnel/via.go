package tunnel

import (
	"crypto/rand"
	"encoding/hex"
	"strings"
)

const (
	// maxHops is how many gateways a tunnel may pass before it is taken for a loop.
	maxHops = 8
	// maxViaLen bounds the via fields that are looked at; what is longer counts as too many gateways. Ours have 26 bytes.
	maxViaLen = 1024
	// maxViaMember bounds a member that is passed on as it is.
	maxViaMember = 64
	// viaAnonymous is how a gateway stands in via whose own word is not passed on.
	viaAnonymous = "2 culvert"
	// viaPrefix comes before the id of a gateway of ours.
	viaPrefix  = viaAnonymous + "-"
	viaIDBytes = 8
	viaOwnLen  = len(viaPrefix) + 2*viaIDBytes
)

// newViaMember makes the word by which one gateway knows itself again in via (RFC 9110, section 7.6.3): the version of the
// protocol and a pseudonym. It is random, so it tells nothing and cannot be guessed, and it ends with the process.
func newViaMember() string {
	var id [viaIDBytes]byte
	_, _ = rand.Read(id[:]) // never fails
	return viaPrefix + hex.EncodeToString(id[:])
}

// passed is the gateways that a request has passed, as its via fields tell. It does not change, and is shared by the requests
// of a connection, which mostly come the same way.
type passed struct {
	fields  string // as they came
	trusted bool   // whether the peer was
	hops    int
	again   bool   // this gateway is one of them
	list    string // of members, for the next hop and for records
}

// readVia reads the via fields of a request that has come to the gateway whose member is own. Of a peer that is not trusted
// only the number of members counts and what has the form of ours: who writes the id of a gateway there has it refuse this one
// request, and no other effect. A member without a name is put in the place of what is not passed on.
func readVia(fields, own string, trusted bool) *passed {
	p := &passed{fields: fields, trusted: trusted}
	if len(fields) > maxViaLen {
		p.fields, p.hops = "", maxHops // which is not asked how many it were
		return p
	}
	var list []string
	for member := range strings.SplitSeq(fields, ",") {
		member = strings.Trim(member, " \t")
		if member == "" {
			continue // RFC 9110, section 5.6.1.2
		}
		if p.hops++; p.hops > maxHops {
			break
		}
		p.again = p.again || member == own
		if !isOurs(member) && !(trusted && isMember(member)) {
			member = viaAnonymous
		}
		list = append(list, member)
	}
	p.list = strings.Join(list, ", ")
	return p
}

// isOurs reports whether member has the form of newViaMember.
func isOurs(member string) bool {
	id, ok := strings.CutPrefix(member, viaPrefix)
	if !ok || len(member) != viaOwnLen {
		return false
	}
	return strings.Trim(id, "0123456789abcdef") == ""
}

// isMember reports whether a member may be passed on and shown: a version and a name, and no comment.
func isMember(member string) bool {
	version, by, ok := strings.Cut(member, " ")
	return ok && len(member) <= maxViaMember && isToken(version) && isToken(by)
}

// viaOf is the via field of a request that has passed p, nil for none, and goes on from the gateway whose member is own.
func viaOf(p *passed, own string) string {
	if p == nil || p.list == "" {
		return own
	}
	return p.list + ", " + own
}

// passedOf returns what the via fields of a request tell; nil where there are none.
func (s *serverConn) passedOf(fields []string) *passed {
	if len(fields) == 0 {
		return nil
	}
	all, trusted := fields[0], s.trusted()
	if len(fields) > 1 {
		all = strings.Join(fields, ",")
	}
	p := s.passed.Load()
	if p == nil || p.fields != all || p.trusted != trusted {
		p = readVia(all, s.g.via, trusted)
		s.passed.Store(p)
	}
	return p
}

// errAgain is why a request is refused that has been here before.
func errAgain(p *passed) error {
	return &Error{Cause: CauseLoop, Reason: "it has been at this gateway before, and has come back by " + p.list +
		"; the routes of the gateways between lead in a circle"}
}

package names

import (
	"net"
	"net/netip"
	"slices"

	"github.com/miekg/dns"
)

// maxChain is how many names an answer may lead through. Resolvers give up at about as many.
const maxChain = 16

// believed returns what of an answer follows from its question: the records of the name, and of those that it is an alias
// of, and where there are none, what says so. All else, which could be about names of others, is left out.
func believed(ask, m *dns.Msg) *dns.Msg {
	q, signed := ask.Question[0], secure(ask)
	chain := follow(q, m.Answer)
	b := new(dns.Msg)
	b.SetRcode(ask, m.Rcode)
	b.AuthenticatedData = m.AuthenticatedData
	// leads reports whether a name of the chain is in the zone.
	leads := func(zone string) bool {
		return slices.ContainsFunc(chain, func(name string) bool { return within(name, zone) })
	}
	there := false
	for _, rr := range m.Answer {
		kind, ok := kindOf(rr, q, signed)
		owner := canonical(rr.Header().Name)
		switch {
		case !ok:
		case kind == q.Qtype && slices.Contains(chain, owner):
			b.Answer, there = append(b.Answer, rr), true
		case kind == dns.TypeCNAME && slices.Contains(chain, owner), kind == dns.TypeDNAME && leads(owner):
			b.Answer = append(b.Answer, rr)
		}
	}
	for _, rr := range m.Ns {
		kind, ok := kindOf(rr, q, signed)
		switch {
		case !ok:
		case kind == dns.TypeSOA && !there && leads(canonical(rr.Header().Name)), signed && (kind == dns.TypeNSEC || kind == dns.TypeNSEC3):
			b.Ns = append(b.Ns, rr)
		}
	}
	eachRecord(b, func(rr dns.RR) {
		if h := rr.Header(); h.Ttl > 1<<31-1 {
			h.Ttl = 0 // RFC 2181, section 8
		}
	})
	return b
}

// follow returns the names that an answer is about: the one in question, and those that it is an alias of.
func follow(q dns.Question, answer []dns.RR) (chain []string) {
	alias := make(map[string]string)
	for _, rr := range answer {
		if rr, ok := rr.(*dns.CNAME); ok && rr.Target != "" {
			alias[canonical(rr.Hdr.Name)] = canonical(rr.Target)
		}
	}
	name, more := q.Name, true
	for more && len(chain) < maxChain && !slices.Contains(chain, name) {
		chain = append(chain, name)
		name, more = alias[name]
		more = more && q.Qtype != dns.TypeCNAME
	}
	return chain
}

// kindOf returns the type of a record, or the one that a signature is of. ok tells that it may be part of an answer.
func kindOf(rr dns.RR, q dns.Question, signed bool) (kind uint16, ok bool) {
	h := rr.Header()
	if h.Class != dns.ClassINET || h.Rdlength == 0 {
		return 0, false
	}
	if sig, isSig := rr.(*dns.RRSIG); isSig && q.Qtype != dns.TypeRRSIG {
		return sig.TypeCovered, signed
	}
	return h.Rrtype, true
}

// check refuses answers with addresses of this host, or of its link, for names that have no business with them: a page of
// such a name could reach what listens here (DNS rebinding).
func (s *Server) check(name string, m *dns.Msg) error {
	if s.c.allowLocal.match(name) {
		return nil
	}
	for _, rr := range m.Answer {
		if slices.ContainsFunc(addresses(rr), s.isLocal) {
			return refusedCode(dns.RcodeRefused)
		}
	}
	return nil
}

// addresses are those that a record gives to a name.
func addresses(rr dns.RR) []net.IP {
	switch rr := rr.(type) {
	case *dns.A:
		return []net.IP{rr.A}
	case *dns.AAAA:
		return []net.IP{rr.AAAA}
	case *dns.SVCB:
		return hints(rr)
	case *dns.HTTPS:
		return hints(&rr.SVCB)
	}
	return nil
}

// hints are the addresses that an app may use instead of asking for them (RFC 9460, section 7.3).
func hints(rr *dns.SVCB) (list []net.IP) {
	for _, value := range rr.Value {
		switch value := value.(type) {
		case *dns.SVCBIPv4Hint:
			list = append(list, value.Hint...)
		case *dns.SVCBIPv6Hint:
			list = append(list, value.Hint...)
		}
	}
	return list
}

// isLocal reports whether ip leads to this host, its link, or a name of the mesh.
func (s *Server) isLocal(ip net.IP) bool {
	addr, _ := netip.AddrFromSlice(ip)
	addr = addr.Unmap()
	return addr.IsLoopback() || addr.IsUnspecified() || addr.IsLinkLocalUnicast() || addr.IsLinkLocalMulticast() || addr.IsInterfaceLocalMulticast() ||
		s.c.four.IsValid() && s.c.four.Contains(addr) || s.c.six.IsValid() && s.c.six.Contains(addr)
}

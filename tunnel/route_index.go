package tunnel

import (
	"net/netip"
	"slices"
	"strings"

	"culvert/policy"
)

// routeIndex finds the first of many routes that takes a flow, at a cost that hardly grows with their number: by the host
// or address, then by the path of a request. It does not change once it is made.
type routeIndex struct {
	all    bucket             // what names no host
	local  bucket             // this host's own addresses
	names  map[string]*bucket // one name
	below  map[string]*bucket // all names below one, by that with its leading dot
	ranges map[netip.Prefix]*bucket
	bits   []int // the lengths of these, without those of the other family
}

// bucket has the routes for one host, in their order.
type bucket struct {
	plain    []indexed // that no path leads to
	looked   []indexed // whose flows are looked into, of those that a path leads to
	exact    map[string][]indexed
	prefixes map[string][]indexed // by the prefix without a slash at its end
	longest  int                  // of prefixes
}

// indexed is one matcher of a route.
type indexed struct {
	order int // among all of the index: the least wins
	route *route
	match *matcher
}

// newRouteIndex makes the index of routes, the first of which wins.
func newRouteIndex(routes []*route) *routeIndex {
	x := &routeIndex{names: make(map[string]*bucket), below: make(map[string]*bucket), ranges: make(map[netip.Prefix]*bucket)}
	order := 0
	for _, r := range routes {
		for i := range r.matchers {
			m := &r.matchers[i]
			x.bucketOf(m).add(indexed{order, r, m})
			order++
		}
	}
	return x
}

// bucketOf returns the bucket for what m takes.
func (x *routeIndex) bucketOf(m *matcher) *bucket {
	switch m.kind {
	case matchAll:
		return &x.all
	case matchLocal:
		return &x.local
	case matchName:
		return bucketIn(x.names, m.name)
	case matchBelow:
		return bucketIn(x.below, m.name)
	}
	if !slices.Contains(x.bits, m.prefix.Bits()) {
		x.bits = append(x.bits, m.prefix.Bits())
	}
	return bucketIn(x.ranges, m.prefix)
}

func bucketIn[K comparable](m map[K]*bucket, key K) *bucket {
	if m[key] == nil {
		m[key] = new(bucket)
	}
	return m[key]
}

func (b *bucket) add(e indexed) {
	h := e.route.http
	if e.route.inspect && h != nil && h.path+h.prefix != "" {
		b.looked = append(b.looked, e)
	}
	switch {
	case h == nil || h.path == "" && h.prefix == "":
		b.plain = append(b.plain, e)
	case h.path != "":
		if b.exact == nil {
			b.exact = make(map[string][]indexed)
		}
		b.exact[h.path] = append(b.exact[h.path], e)
	default:
		if b.prefixes == nil {
			b.prefixes = make(map[string][]indexed)
		}
		key := strings.TrimSuffix(h.prefix, "/")
		b.prefixes[key] = append(b.prefixes[key], e)
		b.longest = max(b.longest, len(key))
	}
}

// find returns the first route that takes a flow, nil if none does. local tells that t is one of this host's own addresses;
// http is nil for a flow that is no request; sentBy is what kind of gateway has sent it, as far as that is believed.
func (x *routeIndex) find(t Target, local bool, http *policy.HTTP, sentBy string) *indexed {
	s := seeker{port: t.Port, http: http, sentBy: sentBy}
	s.in(&x.all)
	if local {
		s.in(&x.local)
	}
	if t.Host != "" {
		s.in(x.names[t.Host])
		for i := 1; i < len(t.Host) && len(x.below) > 0; i++ {
			if t.Host[i] == '.' {
				s.in(x.below[t.Host[i:]])
			}
		}
	}
	if t.Addr.IsValid() {
		for _, bits := range x.bits {
			if p, err := t.Addr.Prefix(bits); err == nil { // else it is of the other family
				s.in(x.ranges[p])
			}
		}
	}
	return s.best
}

// seeker looks for the first route that takes a flow.
type seeker struct {
	port   uint16
	http   *policy.HTTP
	sentBy string
	best   *indexed
}

// in looks in a bucket, nil for none.
func (s *seeker) in(b *bucket) {
	if b == nil {
		return
	}
	s.among(b.plain)
	if s.http == nil {
		s.among(b.looked)
		return
	}
	path := s.http.Path
	if len(b.exact) > 0 {
		s.among(b.exact[path])
	}
	if len(b.prefixes) == 0 {
		return
	}
	s.among(b.prefixes[""])
	for i := 1; i <= min(len(path), b.longest); i++ {
		if i == len(path) || path[i] == '/' {
			s.among(b.prefixes[path[:i]])
		}
	}
}

// among looks through a list that is in order.
func (s *seeker) among(list []indexed) {
	for i := range list {
		e := &list[i]
		if s.best != nil && e.order > s.best.order {
			return
		}
		if e.match.port != 0 && e.match.port != s.port || !e.route.takesPort(s.port) || !e.route.fits(s.sentBy) || !e.route.takesRequest(s.http) {
			continue
		}
		s.best = e
		return
	}
}

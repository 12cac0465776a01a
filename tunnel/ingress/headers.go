package ingress

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"culvert/policy"
	"culvert/tunnel"
)

// Names of fields, as net/http has them.
const (
	headerForwarded   = "Forwarded"
	headerFor         = "X-Forwarded-For"
	headerHost        = "X-Forwarded-Host"
	headerProto       = "X-Forwarded-Proto"
	headerTraceparent = "Traceparent"
	headerTracestate  = "Tracestate"
	headerBaggage     = "Baggage"
	headerVia         = "Via"
)

// toldOfOthers reports whether a field says something about the client that only a proxy between could know, so that it is taken
// from trusted ones only.
func toldOfOthers(name string) bool {
	switch name = plainName(name); name {
	case headerForwarded, headerBaggage, headerTraceparent, headerTracestate, "X-Real-Ip", "X-Client-Ip", "X-Cluster-Client-Ip", "True-Client-Ip":
		return true
	}
	return strings.HasPrefix(name, "X-Forwarded-") || strings.HasPrefix(name, "X-Envoy-")
}

// plainName is the name of a field that applications may take name for: many read X_Forwarded_For as X-Forwarded-For (RFC 3875,
// section 4.1.18, has one variable for both).
func plainName(name string) string {
	if !strings.Contains(name, "_") {
		return name
	}
	return http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-"))
}

// framesOrProves reports whether a field may be no trailer, as it frames, routes or authenticates (RFC 9110, section 6.5.1).
func framesOrProves(name string) bool {
	switch plainName(name) {
	case "Authorization", "Connection", "Content-Length", "Content-Type", "Cookie", "Expect", "Host", "Te", "Trailer", "Transfer-Encoding", "Upgrade", headerVia:
		return true
	}
	return false
}

// mendTrailer takes out of the trailers of a request what counts only where the gateway has written it: an application may take
// them for fields. It is called when the body has ended, by who reads that.
func (q *exchange) mendTrailer() {
	for name := range q.r.Trailer {
		plain := plainName(name)
		if framesOrProves(name) || !q.c.trusted && toldOfOthers(name) ||
			slices.ContainsFunc(q.x.Headers(), func(h policy.Header) bool { return plainName(http.CanonicalHeaderKey(h.Name)) == plain }) {
			delete(q.r.Trailer, name)
		}
	}
}

// clientOf is the client's address as trusted proxies have told it: the last one of X-Forwarded-For that is none of theirs. It is not
// valid where there is none.
func clientOf(h http.Header, trusted []netip.Prefix) (addr netip.Addr) {
	values := h[headerFor]
	for i := len(values) - 1; i >= 0; i-- {
		rest := values[i]
		for rest != "" {
			one := rest
			if j := strings.LastIndexByte(rest, ','); j >= 0 {
				rest, one = rest[:j], rest[j+1:]
			} else {
				rest = ""
			}
			one = strings.TrimSpace(one)
			a, err := netip.ParseAddr(strings.Trim(one, "[]"))
			if err != nil {
				ap, err := netip.ParseAddrPort(one)
				if err != nil {
					return addr // what is before it nobody vouches for
				}
				a = ap.Addr()
			}
			if addr = a.Unmap().WithZone(""); !within(trusted, addr) {
				return addr
			}
		}
	}
	return addr
}

// tellOrigin writes into the fields of a request that goes on where it came from, in.
func (q *exchange) tellOrigin(out, in http.Header) {
	c := q.c
	if !c.trusted {
		for name := range out {
			if toldOfOthers(name) {
				delete(out, name)
			}
		}
		in = nil
	}
	proto := "http"
	if c.tls != nil {
		proto = "https"
	}
	values := make([]string, 6) // of all the fields, in one piece
	set := func(name, value string) {
		values[0] = value
		out[name] = values[:1:1]
		values = values[1:]
	}
	source := ""
	if c.source.IsValid() {
		source = c.source.Addr().String()
		set(headerFor, list(in[headerFor], source))
	}
	set(headerProto, first(in[headerProto], proto))
	set(headerHost, first(in[headerHost], q.r.Host))
	set(headerForwarded, list(in[headerForwarded], forwarded(c.source, q.r.Host, proto)))
	set(headerTraceparent, q.x.Traceparent(first(in[headerTraceparent], "")))
	set(headerVia, q.x.Via())
}

// forwarded is an element of Forwarded (RFC 7239, section 4).
func forwarded(source netip.AddrPort, host, proto string) string {
	b := make([]byte, 0, 64+len(host))
	if source.IsValid() {
		b = append(b, `for="`...)
		b = source.AppendTo(b)
		b = append(b, `";`...)
	}
	b = append(b, `host="`...)
	b = append(b, host...) // it was read, so it has no quotes
	b = append(b, `";proto=`...)
	return string(append(b, proto...))
}

// list adds a value to a list.
func list(before []string, value string) string {
	if len(before) == 0 {
		return value
	}
	return strings.Join(before, ", ") + ", " + value
}

// first is what was told, or a value where nothing was.
func first(told []string, value string) string {
	if len(told) == 0 || told[0] == "" {
		return value
	}
	return told[0]
}

// change changes the fields of a message.
func change(h http.Header, c *tunnel.HeaderChangeConfig) {
	for _, name := range c.Remove {
		h.Del(name)
	}
	for name, value := range c.Set {
		h.Set(name, value)
	}
	for name, value := range c.Add {
		h.Add(name, value)
	}
}

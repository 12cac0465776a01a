package tunnel

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"net/netip"
	"strings"

	"culvert/pki/spiffe"
)

// Names of the fields of a CONNECT and its answer, in the order in which they are sent (HBONE.md,
// "Request"). via is sent only by a gateway that passes a tunnel on.
const (
	fieldBaggage     = "baggage"
	fieldForwarded   = "forwarded"
	fieldTraceparent = "traceparent"
	fieldVia         = "via"
	fieldNetwork     = "x-forwarded-network"
	fieldProxyStatus = "proxy-status"
)

const (
	// maxTrustedLen bounds each field that is believed and passed on: W3C Baggage, section 3.3.2, lets
	// 8192 bytes be dropped above.
	maxTrustedLen = 8192
	// maxHops is how many gateways a tunnel may pass before it is taken for a loop.
	maxHops = 8
	// viaMember is how a gateway stands in via: the protocol version and a name that tells nothing.
	viaMember = "2 culvert"
)

// believe leaves in r what may be believed: all of it from a peer that policy trusts with it, nothing but
// the number of gateways from others. Without trust, forged fields end at this hop.
func (r *Request) believe(trusted bool) {
	if !trusted {
		r.Baggage, r.Forwarded, r.Traceparent = "", "", ""
		return
	}
	for _, field := range []*string{&r.Baggage, &r.Forwarded} {
		if len(*field) > maxTrustedLen {
			*field = ""
		}
	}
	if !validTraceparent(r.Traceparent) {
		r.Traceparent = ""
	}
}

// countHops counts the gateways in the via fields of a request.
func countHops(via []string) int {
	n := 0
	for _, v := range via {
		if v != "" {
			n += strings.Count(v, ",") + 1
		}
	}
	return n
}

// viaOf is the via field of a tunnel that has passed n gateways, this one included. The names that others
// gave themselves are not passed on.
func viaOf(n int) string {
	return strings.TrimSuffix(strings.Repeat(viaMember+", ", n), ", ")
}

// appendForwarded adds where the flow came from, as ztunnel writes it: for="ADDR:PORT", and host only
// where a name was meant. The source is left out where it has no address (RFC 7239, section 4).
func appendForwarded(list string, source netip.AddrPort, t Target) string {
	if !source.IsValid() {
		return list
	}
	b := make([]byte, 0, len(list)+len(t.Host)+64)
	if list != "" {
		b = append(append(b, list...), ", "...)
	}
	b = append(b, `for="`...)
	b = source.AppendTo(b)
	b = append(b, '"')
	if t.Host != "" {
		b = append(append(b, ";host="...), t.Host...)
	}
	return string(b)
}

// forwardedFor returns the address in the first element of a Forwarded field, which is where the flow began; not valid
// where it has none (RFC 7239, section 5.2).
func forwardedFor(list string) netip.Addr {
	first, _, _ := strings.Cut(list, ",")
	for pair := range strings.SplitSeq(first, ";") {
		key, value, _ := strings.Cut(strings.TrimSpace(pair), "=")
		if !strings.EqualFold(key, "for") {
			continue
		}
		value = strings.Trim(value, `"`)
		if ap, err := netip.ParseAddrPort(value); err == nil {
			return ap.Addr().Unmap().WithZone("")
		}
		addr, err := netip.ParseAddr(strings.Trim(value, "[]"))
		if err != nil {
			return netip.Addr{}
		}
		return addr.Unmap().WithZone("")
	}
	return netip.Addr{}
}

// Layout of a traceparent of version 00 (W3C Trace Context, section 3.2):
// 00-TRACEID(32)-PARENTID(16)-FLAGS(2).
const (
	traceparentLen = 55
	parentIDAt     = 36
	flagsAt        = 53
)

// validTraceparent reports whether s is a traceparent of version 00 whose ids are not zero.
func validTraceparent(s string) bool {
	if len(s) != traceparentLen || s[:3] != "00-" || s[parentIDAt-1] != '-' || s[flagsAt-1] != '-' {
		return false
	}
	for _, part := range []string{s[3 : parentIDAt-1], s[parentIDAt : flagsAt-1], s[flagsAt:]} {
		for i := range len(part) {
			if c := part[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
				return false
			}
		}
	}
	return strings.Trim(s[3:parentIDAt-1], "0") != "" && strings.Trim(s[parentIDAt:flagsAt-1], "0") != ""
}

// traceID is the id of a trace, which all that belongs together has in common; zero: none.
type traceID [16]byte

// traceOf returns the trace id of a traceparent, zero if that is not valid.
func traceOf(traceparent string) (id traceID) {
	if validTraceparent(traceparent) {
		_, _ = hex.Decode(id[:], []byte(traceparent[3:parentIDAt-1])) // it is valid
	}
	return id
}

// String returns the id in hex, "" for none.
func (id traceID) String() string {
	if id == (traceID{}) {
		return ""
	}
	return hex.EncodeToString(id[:])
}

// nextTraceparent continues a trace with an id of our own, or begins one that is not sampled. The ids
// have to be distinct and not secret, so they come from the fast generator.
func nextTraceparent(parent string) string {
	var b [traceparentLen]byte
	if parent != "" {
		copy(b[:], parent)
	} else {
		copy(b[:], "00-")
		putHex(b[3:19], rand.Uint64()|1) // |1: an id of zeros is invalid
		putHex(b[19:35], rand.Uint64())
		b[parentIDAt-1] = '-'
		copy(b[flagsAt-1:], "-00")
	}
	putHex(b[parentIDAt:flagsAt-1], rand.Uint64()|1)
	return string(b[:])
}

func putHex(dst []byte, n uint64) {
	var raw [8]byte
	binary.BigEndian.PutUint64(raw[:], n)
	hex.Encode(dst, raw[:])
}

// baggageOf describes a workload with the keys that ztunnel uses (src/baggage.rs); empty ones are left
// out.
func baggageOf(namespace, name, version string) string {
	var b strings.Builder
	for _, kv := range [][2]string{{"k8s.namespace.name", namespace}, {"k8s.deployment.name", name}, {"service.name", name}, {"service.version", version}} {
		if kv[1] == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(kv[0] + "=" + kv[1])
	}
	return b.String()
}

// baggageOfID describes a gateway by what its identity tells.
func baggageOfID(id spiffe.ID) string {
	return baggageOf(id.Namespace(), id.ServiceAccount(), "")
}

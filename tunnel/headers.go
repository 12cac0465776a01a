package tunnel

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"culvert/pki/spiffe"
)

// Names of the fields of a CONNECT and its answer, in the order in which they are sent (HBONE.md,
// "Request"). tracestate and via are not ztunnel's. via is sent by a gateway that a tunnel could come back to.
const (
	fieldBaggage     = "baggage"
	fieldForwarded   = "forwarded"
	fieldTraceparent = "traceparent"
	fieldTracestate  = "tracestate"
	fieldVia         = "via"
	fieldNetwork     = "x-forwarded-network"
	fieldSource      = "x-istio-source"
	fieldProxyStatus = "proxy-status"
)

const (
	// maxTrustedLen bounds each field that is believed and passed on: W3C Baggage, section 3.3.2, lets
	// 8192 bytes be dropped above.
	maxTrustedLen = 8192
	// maxNetworkLen bounds the name of a network, which is a label in Kubernetes.
	maxNetworkLen = 63
	// maxTracestateLen and maxTracestateMembers bound a tracestate: W3C Trace Context, section 3.3.1.5, asks for 512 bytes to
	// be passed on, and section 3.3.1.1 has at most 32 members.
	maxTracestateLen     = 512
	maxTracestateMembers = 32
)

// senders are the values of x-istio-source: what a gateway is that sends a tunnel on (HBONE.md).
var senders = []string{"waypoint", "gateway", "sidecar"}

// believe leaves in r what may be believed: all of it from a peer that policy trusts with it, nothing from others. Without
// trust, forged fields end at this hop.
func (r *Request) believe(trusted bool) {
	if !trusted {
		r.Baggage, r.Forwarded, r.Traceparent, r.Tracestate, r.Network, r.SentBy = "", "", "", "", "", ""
		return
	}
	if !isName(r.Network) || len(r.Network) > maxNetworkLen {
		r.Network = ""
	}
	if !slices.Contains(senders, r.SentBy) {
		r.SentBy = ""
	}
	for _, field := range []*string{&r.Baggage, &r.Forwarded} {
		if len(*field) > maxTrustedLen {
			*field = ""
		}
	}
	if !validTraceparent(r.Traceparent) {
		r.Traceparent = ""
	}
	// W3C Trace Context, section 3.3: "If the vendor failed to parse traceparent, it MUST NOT attempt to parse tracestate."
	if r.Traceparent == "" || !validTracestate(r.Tracestate) {
		r.Tracestate = ""
	}
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

// validTracestate reports whether s is a tracestate that is passed on: a list of KEY=VALUE without a key twice (W3C Trace
// Context, section 3.3.1), and none of it too long.
func validTracestate(s string) bool {
	if len(s) > maxTracestateLen || strings.Count(s, ",") >= maxTracestateMembers { // empty ones are members, too
		return false
	}
	var keys []string
	for member := range strings.SplitSeq(s, ",") {
		member = strings.Trim(member, " \t")
		if member == "" {
			continue // "Empty list members are allowed"
		}
		key, value, ok := strings.Cut(member, "=")
		if !ok || !isTraceKey(key) || !isTraceValue(value) || slices.Contains(keys, key) {
			return false
		}
		keys = append(keys, key)
	}
	return true
}

// isTraceKey reports whether s is the key of a tracestate member: of a vendor, or of a tenant at one.
func isTraceKey(s string) bool {
	const longest = 256
	if s == "" || len(s) > longest || strings.Count(s, "@") > 1 || (s[0] < 'a' || s[0] > 'z') && (s[0] < '0' || s[0] > '9') {
		return false
	}
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_-*/@") == ""
}

// isTraceValue reports whether s is the value of a tracestate member: printable ASCII without comma and equals sign.
func isTraceValue(s string) bool {
	const longest = 256
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c > 0x7e || c == ',' || c == '=' {
			return false
		}
	}
	return s != "" && len(s) <= longest
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

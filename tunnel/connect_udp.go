package tunnel

import (
	"strconv"
	"strings"

	"culvert/tunnel/h2"
)

// Values of CONNECT-UDP over HTTP/2 (RFC 9298, section 3.4; RFC 8441, section 4).
const (
	protocolUDP = "connect-udp"
	// udpPath is the default template's beginning (RFC 9298, section 3); behind it stand host and port, each with a
	// slash.
	udpPath            = "/.well-known/masque/udp/"
	fieldCapsule       = "capsule-protocol"
	capsuleTrue        = "?1"
	schemeUDP          = "https"
	maxUDPPathLen      = len(udpPath) + maxNameLen + 1 + 1 + 5 + 1
	percentColon       = "%3A"
	percentColonLetter = "%3a"
)

// udpHeader makes the head of a CONNECT the one of a CONNECT-UDP to t, at the hop that is called authority.
func udpHeader(h *h2.Header, t Target, authority string) {
	host := t.Host
	if t.Addr.IsValid() {
		host = strings.ReplaceAll(t.Addr.String(), ":", percentColon)
	}
	h.Protocol, h.Scheme, h.Authority = protocolUDP, schemeUDP, authority
	h.Path = udpPath + host + "/" + strconv.Itoa(int(t.Port)) + "/"
	h.Fields = append(h.Fields, h2.Field{Name: fieldCapsule, Value: capsuleTrue})
}

// parseUDPPath reads the destination of a CONNECT-UDP from its path. It is as strict as ParseAuthority: of what a path
// can spell in many ways, one is taken. The error is an *AuthorityError.
func parseUDPPath(path string) (Target, error) {
	rest, ok := strings.CutPrefix(path, udpPath)
	if !ok || len(path) > maxUDPPathLen {
		return Target{}, authorityError(path, "CONNECT-UDP is served under "+udpPath+"HOST/PORT/")
	}
	host, rest, _ := strings.Cut(rest, "/")
	port, end, closed := strings.Cut(rest, "/")
	if !closed || end != "" {
		return Target{}, authorityError(path, "it should end in HOST/PORT/")
	}
	if strings.Contains(host, "%") {
		host = strings.NewReplacer(percentColon, ":", percentColonLetter, ":").Replace(host)
		host = "[" + host + "]" // only an IPv6 address has colons
	} else if strings.Contains(host, ":") {
		return Target{}, authorityError(path, "the colons of an IPv6 address are written "+percentColon)
	}
	return ParseAuthority(host + ":" + port)
}

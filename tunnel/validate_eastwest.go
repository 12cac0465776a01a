package tunnel

import (
	"net/netip"
	"slices"
	"strings"
)

// sender checks a value of x-istio-source.
func (v *validator) sender(at, kind string) {
	if !slices.Contains(senders, kind) {
		v.note(at, "%q is no kind of gateway; it should be one of %s", kind, strings.Join(senders, ", "))
	}
}

// inner checks what a route does with inner tunnels.
func (v *validator) inner(at string, r *RouteConfig) {
	switch {
	case r.Inner == "" && r.InnerPort != 0:
		v.note(at+".innerPort", "it is where inner tunnels go; write inner: pass, or remove innerPort")
	case r.Inner == "":
	case r.Inner != passInner:
		v.note(at+".inner", "inner is %q; it should be pass, or left out", r.Inner)
	case len(r.Via) > 0:
		v.note(at+".inner", "through a hop everything passes unopened; remove inner here, and write it at the gateway before the workload")
	case r.Agents:
		v.note(at+".inner", "agents take their tunnels on connections that they have dialled; remove agents, or inner")
	case r.TLS != nil:
		v.note(at+".inner", "an inner tunnel is TLS already; remove tls, or inner")
	}
}

// appTunnel checks how a workload is told whose flow comes.
func (v *validator) appTunnel(at string, c *AppTunnelConfig) {
	if c == nil {
		return
	}
	if c.Protocol != appTunnelProxy {
		v.note(at+".protocol", "%q is no protocol here; it should be %s", c.Protocol, appTunnelProxy)
	}
	if c.Port == 0 {
		v.note(at+".port", "the workload needs a port of its own for this; it should be from 1 to 65535")
	}
	if _, err := netip.ParseAddr(c.Address); err != nil && c.Address != "" {
		v.note(at+".address", "%q is not an IP address; it should be one, such as 127.0.0.1", c.Address)
	}
}

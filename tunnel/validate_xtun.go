package tunnel

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"culvert/pki/bearer"
	"culvert/tunnel/endpoint"
)

// tunForms are the values of HopConfig.Tun.
var tunForms = []string{tunPost, tunConnect, tunWebSocket, tunGRPC} // immutable

// xTun checks how a listener takes requests with x-tun.
func (v *validator) xTun(at string, l *ListenerConfig) {
	x := l.XTun
	if x == nil {
		return
	}
	switch l.Kind {
	case KindXTun:
	case KindHBONE:
		if x.Cert+x.Key != "" || x.Identity {
			v.note(at+".xTun", "an hbone listener speaks TLS with its own certificate; remove cert, key and identity here")
		}
	default:
		v.note(at+".xTun", "only a listener of kind x-tun or hbone takes x-tun; remove xTun")
	}
	switch {
	case (x.Cert == "") != (x.Key == ""):
		v.note(at+".xTun", "cert and key belong together; name both files, or none where the proxy has ended TLS")
	case x.Cert != "" && x.Identity:
		v.note(at+".xTun.identity", "the certificate is that of cert or that of the identity; write one of them")
	}
}

// proxyHop checks how a hop is reached that is a proxy of others.
func (v *validator) proxyHop(at string, h *HopConfig) {
	if h.Tun == "" {
		for _, f := range []struct {
			name  string
			there bool
		}{{"authority", h.Authority != ""}, {"path", h.Path != ""}, {"tls", h.TLS != HopTLSConfig{} && h.Proxy != proxyHTTPS}, {"token", !h.Token.IsZero()}} {
			if f.there {
				v.note(at+"."+f.name, "only a hop that is a proxy of others has %s; remove it, or write tun: %s", f.name, tunPost)
			}
		}
		for i, e := range h.Endpoints {
			if e.Tun != "" {
				v.note(fmt.Sprintf("%s.endpoints[%d].tun", at, i), "only endpoints of a hop with tun have one; remove it, or give the hop one, such as tun: %s", tunPost)
			}
		}
		return
	}
	for i, e := range h.Endpoints {
		if e.Tun != "" && !slices.Contains(tunForms, e.Tun) {
			v.note(fmt.Sprintf("%s.endpoints[%d].tun", at, i), "%q is no form of a tunnel; it should be one of %s, or left out", e.Tun, strings.Join(tunForms, ", "))
		}
		if len(e.Identities) > 0 {
			v.note(fmt.Sprintf("%s.endpoints[%d].identities", at, i), "a proxy of others has none; who the workload is stands in inner: {identities: […]} of the hop")
		}
	}
	if h.Health.Probe == endpoint.ProbePing {
		v.note(at+".health.probe", "a proxy of others is not known by an identity, and so not pinged; write %s", endpoint.ProbeConnect)
	}
	if !slices.Contains(tunForms, h.Tun) {
		v.note(at+".tun", "%q is no form of a tunnel; it should be one of %s", h.Tun, strings.Join(tunForms, ", "))
	}
	if h.Identity != "" {
		v.note(at+".identity", "a proxy of others has none; who the workload is stands in inner: {identities: […]}")
	}
	if a := h.Authority; a != "" {
		if !hasPort(a) {
			a += ":443"
		}
		if _, err := ParseAuthority(a); err != nil {
			v.note(at+".authority", "%v", err)
		}
	}
	switch p := h.Path; {
	case p == "":
	case h.Tun == tunConnect && !slices.ContainsFunc(h.Endpoints, func(e endpoint.EndpointConfig) bool { return e.Tun != "" && e.Tun != tunConnect }):
		v.note(at+".path", "CONNECT has no path; remove it")
	case !strings.HasPrefix(p, "/") || strings.ContainsFunc(p, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '#' }):
		v.note(at+".path", "%q is no path; it should be like /x-tun", p)
	}
	if t := h.TLS; t.None && (t.Roots != "" || t.ServerName != "") {
		v.note(at+".tls", "there is no TLS with none: true; remove that, or the rest")
	}
	err := h.Token.Validate()
	for _, one := range joined(err) {
		var field *bearer.FieldError
		if errors.As(one, &field) {
			v.note(strings.TrimSuffix(at+".token."+field.Field, "."), "%s", field.What)
		}
	}
}

package tunnel

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
)

// ingressProtocols are what IngressConfig.Protocols may have.
var ingressProtocols = []string{IngressHTTP, IngressH2C, IngressTLS, IngressTCP}

// ingress checks what a listener says of clients.
func (v *validator) ingress(at string, l *ListenerConfig) {
	c := &l.Ingress
	at += ".ingress"
	if l.Kind != KindIngress {
		if !reflect.ValueOf(*c).IsZero() {
			v.note(at, "only a listener of kind ingress has that; remove ingress, or write kind: ingress")
		}
		return
	}
	for i, p := range c.Protocols {
		if !slices.Contains(ingressProtocols, p) {
			v.note(fmt.Sprintf("%s.protocols[%d]", at, i), "%q is no protocol; it should be one of %s", p, strings.Join(ingressProtocols, ", "))
		}
	}
	ends := len(c.Certificates) > 0 || c.ACME || c.Identity
	if slices.Contains(c.Protocols, IngressTLS) && !ends && len(c.Pass) == 0 {
		v.note(at+".protocols", "there is no certificate to end TLS with, and no name whose TLS is passed on; add certificates, acme, identity or pass")
	}
	for i, cert := range c.Certificates {
		if cert.Cert == "" {
			v.note(fmt.Sprintf("%s.certificates[%d]", at, i), "there is no file; add cert: FILE")
		}
	}
	for i, name := range c.Pass {
		if m := parseMatcher(name); entryProblem(name) != "" || m.port != 0 || !m.namesHost() && m.kind != matchAll {
			v.note(fmt.Sprintf("%s.pass[%d]", at, i), "%q is no server name; it should be like db.example or *.db.example", name)
		}
	}
	if c.Clients != "" && c.Clients != ClientsNone && c.Clients != ClientsRequest && c.Clients != ClientsRequire {
		v.note(at+".clients", "%q is none of none, request and require", c.Clients)
	}
	asked := c.Clients == ClientsRequest || c.Clients == ClientsRequire
	switch {
	case asked && !ends:
		v.note(at+".clients", "clients show certificates where TLS is ended; add certificates, acme or identity")
	case c.ClientRoots != "" && !asked:
		v.note(at+".clientRoots", "nobody is asked for a certificate; add clients: request or clients: require")
	}
	for name, list := range map[string][]string{"trustForwarded": c.TrustForwarded, "proxyProtocol": c.ProxyProtocol} {
		for i, text := range list {
			if _, err := ParseRange(text); err != nil {
				v.note(fmt.Sprintf("%s.%s[%d]", at, name, i), "%q is no address and no range; it should be like 10.0.0.0/8", text)
			}
		}
	}
	for name, d := range map[string]int64{
		"sniff": int64(c.Sniff), "headTimeout": int64(c.HeadTimeout), "bodyTimeout": int64(c.BodyTimeout), "idleTimeout": int64(c.IdleTimeout),
		"maxHeadBytes": int64(c.MaxHeadBytes), "maxBodyBytes": c.MaxBodyBytes,
	} {
		if d < 0 {
			v.note(at+"."+name, "it is negative; it should be positive, or left out")
		}
	}
}

// ParseRange reads an address or a range of addresses.
func ParseRange(text string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(text); err == nil {
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	return p.Masked(), err
}

package endpoint

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"culvert/pki/spiffe"
)

const (
	// maxWeight is the largest weight, that of SRV (RFC 2782).
	maxWeight = 65535
	// leastTime is the least that a time of the configuration may be; less is a mistake in the unit.
	leastTime = time.Millisecond
	// maxLocalityParts is a region, a zone and a subzone.
	maxLocalityParts = 3
	// maxNameLen is that of a name (RFC 1035, section 2.3.4).
	maxNameLen = 253
)

// FieldError is one thing that is wrong with a Config.
type FieldError struct {
	// Field is its path inside of the Config, such as "endpoints[0].address".
	Field string
	// What says what is wrong and what would be right.
	What string
}

// Error returns the field and what is wrong with it.
func (e *FieldError) Error() string { return e.Field + ": " + e.What }

// Validate returns FieldErrors, joined, with everything that is wrong with c, or nil. hop tells that it is of a hop, whose
// endpoints need ports, and not of a service.
func (c *Config) Validate(hop bool) error {
	v := new(validator)
	for i := range c.Endpoints {
		at, e := fmt.Sprintf("endpoints[%d]", i), &c.Endpoints[i]
		v.endpoint(at, e, hop)
		if e.Address != "" && slices.ContainsFunc(c.Endpoints[:i], func(o EndpointConfig) bool { return o.Address == e.Address && o.Tun == e.Tun }) {
			v.note(at+".address", "%q is there twice; write it once, with the weight that it should have", e.Address)
		}
	}
	v.dns(&c.DNS, hop)
	v.health(&c.Health, hop)
	v.ejection(&c.Ejection)
	for _, f := range []struct {
		field string
		n     int
	}{
		{"flows", c.Limits.Flows}, {"pending", c.Limits.Pending}, {"connections", c.Limits.Connections},
		{"endpoint.flows", c.Limits.Endpoint.Flows}, {"endpoint.pending", c.Limits.Endpoint.Pending}, {"endpoint.connections", c.Limits.Endpoint.Connections},
	} {
		if f.n < 0 {
			v.note("limits."+f.field, "%d is no number to allow; it should be 1 or more, or left out for no limit", f.n)
		}
	}
	v.time("connectTimeout", c.ConnectTimeout)
	return errors.Join(v.errs...)
}

type validator struct{ errs []error }

func (v *validator) note(field, format string, args ...any) {
	v.errs = append(v.errs, &FieldError{Field: field, What: fmt.Sprintf(format, args...)})
}

// time wants a time that something can take, or none.
func (v *validator) time(field string, d time.Duration) {
	if d != 0 && d < leastTime {
		v.note(field, "%s is no time to wait; it should be at least %s, or left out for the default", d, leastTime)
	}
}

func (v *validator) endpoint(at string, e *EndpointConfig, hop bool) {
	host, _, port, err := splitAddress(e.Address)
	switch {
	case e.Address == "":
		v.note(at, "the endpoint has no address; add address: host:port")
	case err != nil:
		v.note(at+".address", "%q %v; it should be host:port, such as 10.0.0.9:8080", e.Address, err)
	case hop && port == 0:
		v.note(at+".address", "%q has no port; it should be host:port, such as gw.example:15008", e.Address)
	case e.Tun == TunHBONE && host != "" && !hop:
		v.note(at+".address", "%q is a name, and a workload is asked for by its address; write that", e.Address)
	}
	if e.Weight < 0 || e.Weight > maxWeight {
		v.note(at+".weight", "the weight is %d; it should be from 1 to %d", e.Weight, maxWeight)
	}
	if what := LocalityProblem(e.Locality); what != "" {
		v.note(at+".locality", "%s", what)
	}
	for i, name := range e.Identities {
		if _, err := spiffe.ParseName(name); err != nil {
			v.note(fmt.Sprintf("%s.identities[%d]", at, i), "%v; it should be like spiffe://cluster.local/ns/shop/sa/orders", err)
		}
	}
	switch {
	case e.Tun == "" && len(e.Identities) > 0 && !hop:
		v.note(at+".identities", "an endpoint that is reached without a tunnel proves no identity; add tun: %s, or remove identities", TunHBONE)
	case hop: // whoever knows the hop knows what its endpoints may be
	case e.Tun == "" || e.Tun == TunHBONE:
	default:
		v.note(at+".tun", "%q is no way to reach an endpoint; it should be %s, or left out", e.Tun, TunHBONE)
	}
}

func (v *validator) dns(d *DNSConfig, hop bool) {
	if d.Name == "" {
		if *d != (DNSConfig{}) {
			v.note("dns", "there is no name to look up; add name, such as orders.internal")
		}
		return
	}
	if host, _, port, err := splitAddress(d.Name); err != nil || host == "" || port != 0 {
		v.note("dns.name", "%q is not a name; it should be one, such as orders.internal", d.Name)
	}
	switch d.Type {
	case "", TypeAddresses:
		if hop && d.Port == 0 {
			v.note("dns", "addresses have no port; add port, such as port: 15008, or write type: srv")
		}
	case TypeSRV:
		if d.Port != 0 {
			v.note("dns.port", "SRV tells the port; remove port")
		}
	default:
		v.note("dns.type", "%q is no type; it should be %s or %s", d.Type, TypeAddresses, TypeSRV)
	}
	if d.Every != 0 && d.Every < leastEvery {
		v.note("dns.every", "%s would be too often for anybody's resolver; it should be at least %s", d.Every, leastEvery)
	}
}

func (v *validator) health(h *HealthConfig, hop bool) {
	switch {
	case h.Probe == "" && *h != HealthConfig{}:
		v.note("health", "nothing is probed; add probe: %s, for example", ProbeConnect)
	case h.Probe == "" || h.Probe == ProbeConnect || h.Probe == ProbeHTTP && !hop || h.Probe == ProbePing && hop:
	case h.Probe == ProbeHTTP:
		v.note("health.probe", "a hop answers no requests; write %s, or of a gateway %s", ProbeConnect, ProbePing)
	case h.Probe == ProbePing:
		v.note("health.probe", "only hops are pinged; write %s or %s", ProbeConnect, ProbeHTTP)
	default:
		v.note("health.probe", "%q is no probe; it should be %s, %s or %s", h.Probe, ProbeConnect, ProbeHTTP, ProbePing)
	}
	bad := func(r rune) bool { return r <= ' ' || r >= 0x7f }
	if h.Path != "" && (h.Path[0] != '/' || strings.ContainsFunc(h.Path, bad)) {
		v.note("health.path", "%q is no path; it should begin with / and have no spaces, such as /healthz", h.Path)
	}
	if strings.ContainsFunc(h.Host, bad) || strings.Contains(h.Host, "/") {
		v.note("health.host", "%q is no host; it should be a name, such as orders.internal", h.Host)
	}
	v.time("health.interval", h.Interval)
	v.time("health.timeout", h.Timeout)
	if h.Unhealthy < 0 {
		v.note("health.unhealthy", "%d is no number of probes; it should be 1 or more", h.Unhealthy)
	}
	if h.Healthy < 0 {
		v.note("health.healthy", "%d is no number of probes; it should be 1 or more", h.Healthy)
	}
}

func (v *validator) ejection(e *EjectionConfig) {
	v.time("ejection.time", e.Time)
	v.time("ejection.longest", e.Longest)
	if first := cmp.Or(e.Time, defaultEjection); e.Longest != 0 && e.Longest < first {
		v.note("ejection.longest", "%s is less than time, %s; it should be more", e.Longest, first)
	}
	if e.Most < 0 || e.Most > 100 {
		v.note("ejection.most", "%d is no part of a hundred; it should be from 1 to 100 (failures: -1 ejects nothing)", e.Most)
	}
}

// LocalityProblem says why text is no locality, "" if it is one or empty.
func LocalityProblem(text string) string {
	if text == "" {
		return ""
	}
	if parts := strings.Split(text, "/"); len(parts) > maxLocalityParts || slices.Contains(parts, "") {
		return fmt.Sprintf("%q is no locality; it should be region, region/zone or region/zone/subzone, such as eu-west/a", text)
	}
	return ""
}

// splitAddress reads "host", "host:port" or the same with an address, of which an IPv6 one with a port has brackets. One of host and addr is
// set; port is 0 where there is none.
func splitAddress(s string) (host string, addr netip.Addr, port uint16, err error) {
	host = s
	if _, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")); err == nil {
		host = strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")
	} else if h, p, err := net.SplitHostPort(s); err == nil {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 || p[0] == '0' {
			return "", addr, 0, errors.New("has no port from 1 to 65535")
		}
		host, port = h, uint16(n)
	}
	if addr, err = netip.ParseAddr(host); err == nil {
		if what := addrProblem(addr); what != "" {
			err = errors.New(what)
		}
		return "", addr.Unmap(), port, err
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	bad := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	}
	last := host[strings.LastIndexByte(host, '.')+1:]
	if len(host) > maxNameLen || strings.ContainsFunc(host, bad) || strings.Contains("."+host+".", "..") || strings.Trim(last, "0123456789") == "" {
		return "", netip.Addr{}, 0, errors.New("is neither a name nor an address")
	}
	return host, netip.Addr{}, port, nil
}

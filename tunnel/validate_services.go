package tunnel

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"culvert/tunnel/endpoint"
)

// services checks the services, and that no two are meant by one name or address.
func (v *validator) services() {
	names, addresses := make(map[string]string), make(map[netip.Addr]string)
	for _, name := range slices.Sorted(maps.Keys(v.cfg.Services)) {
		s := v.cfg.Services[name]
		at := "services." + name
		t, problem := parseHost(name, false)
		switch {
		case problem != "" || !t.IsName():
			v.note(at, "%q is not a name that flows could ask for; it should be one, such as orders.shop.svc", name)
		case names[t.Host] != "":
			v.note(at, "it is the same name as %s; keep one", names[t.Host])
		default:
			names[t.Host] = name
		}
		for i, text := range s.Addresses {
			place := fmt.Sprintf("%s.addresses[%d]", at, i)
			a, err := netip.ParseAddr(text)
			switch {
			case err != nil || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast():
				v.note(place, "%q is not an address that could stand for a service; it should be an IP address, such as 10.96.0.10", text)
			case addresses[a.Unmap()] != "":
				v.note(place, "%s stands for service %s already; each has addresses of its own", text, addresses[a.Unmap()])
			default:
				addresses[a.Unmap()] = name
			}
		}
		for _, asked := range slices.Sorted(maps.Keys(s.Ports)) {
			if asked == 0 || s.Ports[asked] == 0 {
				v.note(at+".ports", "0 is no port; it should be from 1 to 65535, such as {80: 8080}")
			}
		}
		if !s.Config.Places() {
			v.note(at, "the service has no endpoints; add endpoints: [{address: 10.0.0.9}], or dns: {name: orders.internal}")
		}
		v.endpoints(at, &s.Config, false)
		v.probe(at, &s)
	}
	v.workloadsAreNoServices(addresses)
}

// probe wants a port where endpoints are probed.
func (v *validator) probe(at string, s *ServiceConfig) {
	if s.Health.Probe == "" || len(s.Ports) > 0 {
		return
	}
	for i, e := range s.Endpoints {
		if _, err := ParseAuthority(e.Address); err != nil {
			v.note(fmt.Sprintf("%s.endpoints[%d].address", at, i), "%q has no port that could be probed; add one, or ports to the service", e.Address)
		}
	}
	if s.DNS.Name != "" && s.DNS.Type != endpoint.TypeSRV && s.DNS.Port == 0 {
		v.note(at+".dns", "there is no port that could be probed; add port, or ports to the service")
	}
}

// workloadsAreNoServices: what is local is reached as it is.
func (v *validator) workloadsAreNoServices(addresses map[netip.Addr]string) {
	for i := range v.cfg.Workloads {
		for j, text := range v.cfg.Workloads[i].Addresses {
			if a, err := netip.ParseAddr(text); err == nil && addresses[a.Unmap()] != "" {
				v.note(fmt.Sprintf("workloads[%d].addresses[%d]", i, j), "%s stands for service %s already; remove one", text, addresses[a.Unmap()])
			}
		}
	}
}

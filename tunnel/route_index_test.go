package tunnel

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"culvert/policy"
)

func indexOf(t testing.TB, routes []RouteConfig) (*routeIndex, []*route) {
	t.Helper()
	var list []*route
	for i := range routes {
		h, err := newHTTPMatch(routes[i].HTTP)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, &route{name: fmt.Sprint(i), matchers: compileMatchers(&routes[i]), ports: routes[i].Ports, http: h})
	}
	return newRouteIndex(list), list
}

// The index finds what a look at one route after the other would find.
func TestRouteIndexIsTheList(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	pick := func(list ...string) string { return list[rng.IntN(len(list))] }
	hosts := []string{"a.example", "b.example", "*.example", "*.a.example", "*", "a.example:81"}
	paths := []string{"", "/", "/a", "/a/b", "/a/b/c", "/b"}
	for range 300 {
		var routes []RouteConfig
		for range 1 + rng.IntN(20) {
			r := RouteConfig{}
			switch rng.IntN(4) {
			case 0:
				r.Destinations = []string{pick("10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "local", "2001:db8::/32")}
			case 1:
			default:
				r.Hosts = []string{pick(hosts...), pick(hosts...)}
			}
			if rng.IntN(4) == 0 {
				r.Ports = []uint16{80}
			}
			switch rng.IntN(4) {
			case 0:
				r.HTTP = &RouteHTTPConfig{Prefix: pick(paths...)}
			case 1:
				r.HTTP = &RouteHTTPConfig{Path: pick(paths...), Methods: []string{"GET"}}
			case 2:
				r.HTTP = &RouteHTTPConfig{Regex: "/a/.*"}
			}
			routes = append(routes, r)
		}
		x, list := indexOf(t, routes)
		for range 50 {
			target := Target{Host: pick("a.example", "b.example", "x.a.example", "other"), Port: uint16(80 + rng.IntN(2))}
			if rng.IntN(3) == 0 {
				target = Target{Addr: netip.MustParseAddr(pick("10.1.2.3", "10.1.9.9", "10.9.9.9", "2001:db8::1", "192.0.2.1")), Port: 80}
			}
			var h *policy.HTTP
			if rng.IntN(3) > 0 {
				h = &policy.HTTP{Path: pick("/", "/a", "/a/", "/a/b", "/ab", "/a/b/c/d", "/b/x"), Method: pick("GET", "POST")}
			}
			local := rng.IntN(2) == 0
			want := "none"
			for _, r := range list {
				if r.match(target, local) != nil && r.http.takes(h) && (r.http == nil || underPath(r.http, h.Path)) {
					want = r.name
					break
				}
			}
			got := "none"
			if e := x.find(target, local, h, ""); e != nil {
				got = e.route.name
			}
			if got != want {
				t.Fatalf("%v, local %t, %+v: route %s, want %s of %+v", target, local, h, got, want, routes)
			}
		}
	}
}

// underPath is what the index does with paths, in a plain way.
func underPath(h *httpMatch, path string) bool {
	switch {
	case h.path != "":
		return path == h.path
	case h.prefix != "" && h.prefix != "/":
		return path == h.prefix || len(path) > len(h.prefix) && path[:len(h.prefix)] == h.prefix && path[len(h.prefix)] == '/'
	}
	return true
}

// What a decision costs of 10 and of 10,000 routes: by host, by path below one host, and of a flow that is no request.
func BenchmarkRoutes(b *testing.B) {
	for _, n := range []int{10, 100, 10_000} {
		var byHost, byPath []RouteConfig
		for i := range n {
			byHost = append(byHost, RouteConfig{Hosts: []string{fmt.Sprintf("s%d.shop.example", i)}})
			byPath = append(byPath, RouteConfig{Hosts: []string{"shop.example"}, HTTP: &RouteHTTPConfig{Prefix: fmt.Sprintf("/team%d/service", i)}})
		}
		request := &policy.HTTP{Method: "GET", Path: fmt.Sprintf("/team%d/service/v1/orders/17", n-1)}
		for name, bench := range map[string]struct {
			routes []RouteConfig
			target Target
			http   *policy.HTTP
		}{
			"host": {byHost, Target{Host: fmt.Sprintf("s%d.shop.example", n-1), Port: 80}, nil},
			"path": {byPath, Target{Host: "shop.example", Port: 80}, request},
			"none": {byHost, Target{Host: "unknown.example", Port: 80}, nil},
		} {
			x, _ := indexOf(b, bench.routes)
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if found := x.find(bench.target, false, bench.http, ""); (found == nil) != (name == "none") {
						b.Fatal("not found")
					}
				}
			})
		}
	}
}

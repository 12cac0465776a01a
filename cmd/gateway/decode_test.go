package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// checkText writes text as gw.yaml and returns everything that is wrong with it, with its folder cut off.
func checkText(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "gw.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, p, f := readConfig(file)
	validate(cfg, p, f)
	if f.err() == nil {
		return ""
	}
	return strings.ReplaceAll(f.Error(), dir+"/", "")
}

// right is a configuration without a fault, to which the cases add one.
const right = `listeners:
- {name: apps, kind: socks5, address: 127.0.0.1:1080}
- {name: mesh, kind: hbone, address: ":15008"}
- {name: orders, kind: forward, address: 127.0.0.1:8080, to: "orders.shop.svc:80"}
hops:
  east: {address: "east.example:15008", identity: spiffe://cluster.local/ns/shop/sa/gw}
workloads:
- {name: orders, addresses: [10.0.0.9]}
routes:
- {listeners: [mesh], destinations: [local]}
- {listeners: [apps, orders], hosts: ["*.shop.svc"], via: [east]}
- {listeners: [apps], destinations: [10.0.0.0/8], via: ["gw.example:15008"]}
`

// offering is right with an agent in the place of its first listener, in line 2, that has this offer.
func offering(offer string) string {
	return strings.Replace(right, "{name: apps, kind: socks5, address: 127.0.0.1:1080}",
		"{name: apps, kind: agent, hop: east, names: [apps.example], offer: "+offer+"}", 1)
}

func TestConfigFaults(t *testing.T) {
	tests := []struct {
		name, text string
		want       []string // each is part of the report
	}{
		{"unknown field", right + "adminn: {}\n", []string{`gw.yaml:13: unknown field "adminn"; did you mean "admin"?`}},
		{"unknown field inside", strings.Replace(right, "kind: hbone", "knid: hbone", 1), []string{`gw.yaml:3: unknown field "knid" in listeners[1]; did you mean "kind"?`}},
		{"field twice", right + "admin: {}\nadmin: {}\n", []string{`gw.yaml:14: field "admin" is there twice (first in line 13); keep one`}},
		{"not YAML", "listeners: [\n", []string{"gw.yaml:1: not YAML"}},
		{"tab", "listeners:\n\t- x\n", []string{"gw.yaml:2: not YAML", "a tab"}},
		{"a list is a text", right + "policy: {allow: x/y}\n", []string{`gw.yaml:13: policy.allow is "x/y"; it should be a list, such as [x/y]`}},
		{"a text is a list", right + "state: [x]\n", []string{"gw.yaml:13: state is a list; it should be a text"}},
		{"a mapping is a text", right + "admin: 127.0.0.1:1\n", []string{`gw.yaml:13: admin is "127.0.0.1:1"; it should be a mapping`}},
		{"no value", right + "state:\n", []string{"gw.yaml:13: state has no value"}},
		{"time without unit", right + "drain: 30\n", []string{`gw.yaml:13: drain: "30" is not a time with its unit, such as 30s`}},
		{"yes is not true", right + "admin: {address: '127.0.0.1:9', open: yes}\n", []string{`gw.yaml:13: admin.open: "yes" is not true or false`}},
		{"size", right + "memory: much\n", []string{`gw.yaml:13: memory: "much" is not a size such as 512MiB`}},
		{"too little memory", right + "memory: 1MiB\n", []string{"gw.yaml:13: memory: 1MiB is too little"}},
		{"second document", right + "---\nstate: x\n", []string{"gw.yaml:13: a second YAML document"}},
		{"a port is a name", offering("{http: '127.0.0.1:80'}"), []string{`gw.yaml:2: the key "http" in listeners[0].offer is not a whole number from 0 to 65535`}},
		{"a port is no port", offering("{65536: '127.0.0.1:80'}"), []string{`gw.yaml:2: the key "65536" in listeners[0].offer is not a whole number`}},
		{"a port twice", offering("{80: '127.0.0.1:80', 080: '127.0.0.1:81'}"), []string{"gw.yaml:2: 80 in listeners[0].offer is there twice"}},
		{"merge key", right + "admin:\n  <<: {address: x}\n", []string{"gw.yaml:14: merge keys"}},
		{"no listeners", "state: x\n", []string{"gw.yaml:1: there are no listeners"}},
		{"unknown kind", strings.Replace(right, "kind: hbone", "kind: hbon", 1), []string{`gw.yaml:3: "hbon" is no kind of listener; it should be one of hbone, socks5, http-proxy, proxy, forward, tproxy, redirect, dns`}},
		{"name twice", strings.Replace(right, "name: mesh", "name: apps", 1), []string{`gw.yaml:3: listener "apps" is there twice`, `gw.yaml:10: there is no listener "mesh"`}},
		{"address twice", strings.Replace(right, "127.0.0.1:8080", "127.0.0.1:1080", 1), []string{`gw.yaml:4: 127.0.0.1:1080 is already taken by listener "apps"`}},
		{"address without port", strings.Replace(right, `":15008"`, "127.0.0.1", 1), []string{`gw.yaml:3: "127.0.0.1" is not an address to listen on`}},
		{"port too big", strings.Replace(right, ":15008\"}", ":99999\"}", 1), []string{`gw.yaml:3: ":99999": the port should be from 1 to 65535`}},
		{"name as address", strings.Replace(right, `":15008"`, "gw.example:15008", 1), []string{`gw.yaml:3: "gw.example" is not an IP address of this host`}},
		{"forward to nowhere", strings.Replace(right, `, to: "orders.shop.svc:80"`, "", 1), []string{`gw.yaml:4: destination "": the port is missing; it should be host:port`}},
		{"forward without port", strings.Replace(right, "orders.shop.svc:80", "orders.shop.svc", 1), []string{"gw.yaml:4: "}},
		{"destination of a mesh listener", strings.Replace(right, `":15008"}`, `":15008", to: "x:1"}`, 1), []string{"gw.yaml:3: only a listener of kind forward has a destination"}},
		{"SOCKS off loopback", strings.Replace(right, "127.0.0.1:1080", "0.0.0.0:1080", 1), []string{"gw.yaml:2: SOCKS5 on 0.0.0.0:1080 is reachable from other hosts"}},
		{"SOCKS off loopback, on all", strings.Replace(right, "127.0.0.1:1080", `":1080"`, 1), []string{"gw.yaml:2: SOCKS5 on :1080 is reachable from other hosts"}},
		{"admin off loopback", right + "admin: {address: ':15000'}\n", []string{"gw.yaml:13: the admin address :15000 is reachable from other hosts"}},
		{"hop without address", strings.Replace(right, `address: "east.example:15008", `, "", 1), []string{`gw.yaml:6: the hop has no address`}},
		{"hop without port", strings.Replace(right, "east.example:15008", "east.example", 1), []string{`gw.yaml:6: "east.example" is no address of a hop: it has no port`}},
		{"hop with a bad identity", strings.Replace(right, "spiffe://cluster.local/ns/shop/sa/gw", "cluster.local/gw", 1), []string{`gw.yaml:6: `, "spiffe://"}},
		{"unknown hop where there is none", "listeners: [{name: a, kind: socks5, address: 127.0.0.1:1}]\nroutes: [{via: [east]}]\n",
			[]string{`gw.yaml:2: there is no hop "east"; add it to hops, or write host:port`}},
		{"unknown listener beside two of one name", "listeners:\n- {name: a, kind: socks5, address: 127.0.0.1:1}\n- {name: a, kind: socks5, address: 127.0.0.1:2}\nroutes: [{via: [gw:1]}, {listeners: [b], via: [gw:1]}]\n",
			[]string{`gw.yaml:3: listener "a" is there twice; give each a name of its own`, `gw.yaml:4: there is no listener "b"; name one of listeners (a)`}},
		{"unknown hop", strings.Replace(right, "via: [east]", "via: [eats]", 1), []string{`gw.yaml:11: there is no hop "eats"; name one of hops (east)`}},
		{"unknown listener", strings.Replace(right, "[apps, orders]", "[apps, order]", 1), []string{`gw.yaml:11: there is no listener "order"; name one of listeners (apps, mesh, orders)`, `gw.yaml:4: no route leads anywhere from listener "orders"`}},
		{"hop twice in a chain", strings.Replace(right, "via: [east]", "via: [east, east]", 1), []string{`gw.yaml:11: hop "east" is in the chain twice`}},
		{"local via a hop", strings.Replace(right, "destinations: [local]", "destinations: [local], via: [east]", 1), []string{"gw.yaml:10: what is local is reached directly"}},
		{"address under hosts", strings.Replace(right, `hosts: ["*.shop.svc"]`, `hosts: ["10.0.0.1"]`, 1), []string{`gw.yaml:11: "10.0.0.1" is no name; it belongs under destinations`}},
		{"name under destinations", strings.Replace(right, "10.0.0.0/8", "shop.svc", 1), []string{`gw.yaml:12: "shop.svc" is a name; it belongs under hosts`}},
		{"not a range", strings.Replace(right, "10.0.0.0/8", "10.0.0.1/8", 1), []string{`gw.yaml:12: "10.0.0.1/8" has bits set`}},
		{"a pattern inside", strings.Replace(right, "*.shop.svc", "a.*.svc", 1), []string{`gw.yaml:11: "a.*.svc"`}},
		{"shadowed route", right + `- {listeners: [apps], destinations: ["10.1.0.0/16"], via: [east]}` + "\n", []string{"gw.yaml:13: the route can never match: routes[2] (line 12) before it takes"}},
		{"shadowed by a route for all", strings.Replace(right, "routes:\n", "routes:\n- {via: [east]}\n", 1), []string{"gw.yaml:11: the route can never match: routes[0] (line 10) before it", "gw.yaml:12: the", "gw.yaml:13: the"}},
		{"route against the listener's destination", right + "- {listeners: [orders], hosts: [other.svc], via: [east]}\n", []string{"gw.yaml:13: the route can never match: its listeners forward to other"}},
		{"allow entry", right + "policy: {allow: [cluster.local/ns/x/*, 'spiffe:/x']}\n", []string{"gw.yaml:13: ", "spiffe:/x"}},
		{"egress entry", right + "policy:\n  egress:\n  - ok.example\n  - https://x\n", []string{"gw.yaml:16: ", "https://x"}},
		{"authorizer on another host", right + "policy:\n  authorizers:\n  - {name: opa, address: '10.0.0.1:9191'}\n", []string{"gw.yaml:15: the address is not one of this host"}},
		{"authorizer twice", right + "policy:\n  authorizers:\n  - {name: opa, address: '127.0.0.1:1'}\n  - {name: opa, address: '127.0.0.1:2'}\n", []string{`gw.yaml:16: authorizer "opa" is there twice (first in line 15)`}},
		{"authorizer that fails open", right + "policy: {authorizers: [{name: opa, address: '127.0.0.1:1', failOpen: true}]}\n", []string{`gw.yaml:13: unknown field "failOpen" in policy.authorizers[0]`}},
		{"authorizers misspelt", right + "policy: {authorizer: []}\n", []string{`gw.yaml:13: unknown field "authorizer" in policy; did you mean "authorizers"?`}},
		{"authorizers elsewhere", right + "authorizers: []\n", []string{`gw.yaml:13: unknown field "authorizers"`}},
		{"half an identity", right + "identity:\n  cert: gw.pem\n", []string{"gw.yaml:13: key", "gw.yaml:13: roots"}},
		{"workload's address", strings.Replace(right, "[10.0.0.9]", "[orders]", 1), []string{`gw.yaml:8: "orders" is not an IP address`}},
		{"log", right + "log: {level: loud, format: xml}\n", []string{`gw.yaml:13: "loud" is no log level`, `gw.yaml:13: "xml" is no log format`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := checkText(t, tt.text)
			for _, want := range tt.want {
				if !strings.Contains(got, want) {
					t.Errorf("faults = %q, want among them %q", got, want)
				}
			}
			if n := strings.Count(got, "\n") + 1; n > len(tt.want)+1 {
				t.Errorf("%d faults, want about %d:\n%s", n, len(tt.want), got)
			}
		})
	}
}

func TestConfigWithoutFault(t *testing.T) {
	if got := checkText(t, right); got != "" {
		t.Errorf("faults = %q, want none", got)
	}
}

func TestAllFaultsAtOnceInTheOrderOfTheFile(t *testing.T) {
	text := strings.NewReplacer("kind: hbone", "kind: x", "[apps, orders]", "[apps, orders, z]", "[10.0.0.9]", "[q]").Replace(right) + "drain: x\nnope: 1\n"
	got := checkText(t, text)
	var places []string
	for line := range strings.Lines(got) {
		places = append(places, strings.SplitN(line, ": ", 2)[0])
	}
	want := "gw.yaml:3 gw.yaml:8 gw.yaml:11 gw.yaml:13 gw.yaml:14"
	if strings.Join(places, " ") != want {
		t.Errorf("places = %v, want %s\n%s", places, want, got)
	}
}

func TestConfigWithNumbersForKeys(t *testing.T) {
	if report := checkText(t, offering("{80: '127.0.0.1:8080', 443: '127.0.0.1:8443'}")); report != "" {
		t.Errorf("an offer of two ports: %s, want no fault", report)
	}
}

func TestConfigValues(t *testing.T) {
	file := filepath.Join(t.TempDir(), "gw.yaml")
	text := right + "state: st\nidentity: {cert: a.pem, key: /k.pem, roots: r.pem}\ndrain: 90s\nmemory: 2GiB\nadmin: {address: '127.0.0.1:1'}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, p, f := readConfig(file)
	validate(cfg, p, f)
	if err := f.err(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(file)
	if cfg.State != dir+"/st" || cfg.Identity.Cert != dir+"/a.pem" || cfg.Identity.Key != "/k.pem" {
		t.Errorf("paths = %s %s %s, want them below %s, and an absolute one as it is", cfg.State, cfg.Identity.Cert, cfg.Identity.Key, dir)
	}
	if cfg.drain() != 90*time.Second || cfg.Memory != 2<<30 {
		t.Errorf("drain, memory = %v, %d, want 90s, 2147483648", cfg.drain(), cfg.Memory)
	}
	if got := cfg.Listeners[2].To; got != "orders.shop.svc:80" {
		t.Errorf("to = %q", got)
	}
}

func TestUnreadableConfig(t *testing.T) {
	_, _, f := readConfig(filepath.Join(t.TempDir(), "none.yaml"))
	if err := f.err(); err == nil || !strings.Contains(err.Error(), "none.yaml: cannot be read: no such file") {
		t.Errorf("err = %v, want that the file cannot be read", err)
	}
}

func TestConfigOfBoundlessLength(t *testing.T) {
	_, _, f := readConfig("/dev/zero")
	if err := f.err(); err == nil || err.Error() != "/dev/zero: cannot be read: it is longer than 4MiB; name a configuration with -c FILE" {
		t.Errorf("err = %v, want that it is too long", err)
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]Size{"0": 0, "1000": 1000, "64KiB": 64 << 10, "512MiB": 512 << 20, "2G": 2 << 30, "1 MB": 1 << 20, "1TiB": 1 << 40} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("UnmarshalText(%q) = %d, %v, want %d", text, s, err, want)
		}
		var again Size
		if err := again.UnmarshalText([]byte(s.String())); err != nil || again != s {
			t.Errorf("UnmarshalText(%q) = %d, %v, want %d", s.String(), again, err, s)
		}
	}
	for _, text := range []string{"", "-1", "1.5G", "MiB", "12 apples", "99999999999T", "1e3"} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("UnmarshalText(%q) = %d, want an error", text, s)
		}
	}
}

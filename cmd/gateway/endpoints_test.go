package main

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"culvert/tunnel"
	"culvert/tunnel/endpoint"
)

// TestEndpoints runs a gateway with a service, one of whose endpoints is not there, and changes them beside a live flow.
func TestEndpoints(t *testing.T) {
	r := newReloadable(t)
	gone := listenLoopback(t)
	_ = gone.Close()
	service := func(addresses ...string) string {
		var list []string
		for _, a := range addresses {
			list = append(list, fmt.Sprintf("{address: %q}", a))
		}
		return "- {hosts: [orders.shop.svc]}\nservices:\n  orders.shop.svc: {addresses: [10.96.0.10], endpoints: [" + strings.Join(list, ", ") + "]}\n"
	}
	r.change(r.config(r.address, r.admin, service(r.target, gone.Addr().String())), "ok")
	live, err := dialSOCKS(t, r.address, "orders.shop.svc:80")
	if err != nil {
		t.Fatal(err)
	}
	for range 12 {
		nc, err := dialSOCKS(t, r.address, "10.96.0.10:443")
		if err != nil {
			t.Fatal(err)
		}
		if err := echo(nc, "by the virtual address"); err != nil {
			t.Fatal(err)
		}
		_ = nc.Close()
	}
	const of = `{kind="service",name="orders.shop.svc"`
	r.metric("culvert_endpoint_health{health=\"ejected\",kind=\"service\",name=\"orders.shop.svc\"} 1")
	r.metric("culvert_endpoint_ejections_total" + of + "} 1")
	r.metric("culvert_endpoint_flows" + of + "} 1")
	text, err := r.get("/endpoints")
	if err != nil {
		t.Fatal(err)
	}
	var shown []struct {
		Kind, Name string
		Endpoints  []endpoint.Info
	}
	if err := json.Unmarshal([]byte(text), &shown); err != nil {
		t.Fatal(err)
	}
	if len(shown) != 1 || shown[0].Name != "orders.shop.svc" || len(shown[0].Endpoints) != 2 || shown[0].Endpoints[0].Health != "ok" ||
		shown[0].Endpoints[1].Health != "ejected" || shown[0].Endpoints[1].EjectedUntil == nil || !strings.Contains(shown[0].Endpoints[1].LastFailure, "refused") {
		t.Errorf("/endpoints = %s", text)
	}
	other := echoServer(t)
	r.change(r.config(r.address, r.admin, service(other)), "ok")
	if err := echo(live, "the flow stays where it is"); err != nil {
		t.Error(err)
	}
	if text, err := r.get("/endpoints"); err != nil || !strings.Contains(text, other) || strings.Contains(text, gone.Addr().String()) {
		t.Errorf("/endpoints after the reload = %s, %v", text, err)
	}
	r.change(r.config(r.address, r.admin, service("nowhere:x")), "failed")
	if log := r.stderr.String(); !regexp.MustCompile(`gw\.yaml:\d+`).MatchString(log) || !strings.Contains(log, "no port from 1 to 65535") {
		t.Errorf("the log does not say place and fault:\n%s", log)
	}
}

// TestEndpointFaults: each is told with its line.
func TestEndpointFaults(t *testing.T) {
	const text = `listeners: [{name: apps, kind: socks5, address: "127.0.0.1:1080"}]
locality: eu//a
hops:
  lb:
    address: gw.example:15008
    endpoints:
    - {address: gw.example}
    health: {probe: http}
services:
  orders.shop.svc:
    ports: {80: 0}
    endpoints:
    - {address: 10.0.0.9, weight: -1}
    - {address: 10.0.0.9, identities: [spiffe://cluster.local/ns/shop/sa/orders]}
    limits: {endpoint: {flows: -2}}
    ejection: {most: 200}
  "*.shop.svc": {endpoints: [{address: 10.0.0.9}]}
  empty.shop.svc: {addresses: [here, 10.96.0.10]}
  twice.shop.svc: {addresses: [10.96.0.10], dns: {name: "twice.internal:80"}}
  probed.shop.svc: {endpoints: [{address: 10.0.0.9}], health: {probe: connect}}
routes: [{via: [lb]}]
`
	m := newMesh(t)
	file := m.write("gw.yaml", []byte(text))
	_, _, stderr := runGateway(t, "check", "--no-files", "-c", file)
	for _, want := range []string{
		`:2: "eu//a" is no locality`, ":4: the hop has an address and endpoints", `:7: "gw.example" has no port`, ":8: a hop answers no requests",
		":11: 0 is no port", ":13: the weight is -1", `:14: "10.0.0.9" is there twice`, ":14: an endpoint that is reached without a tunnel proves no identity",
		":15: -2 is no number", ":16: 200 is no part of a hundred", `:17: "*.shop.svc" is not a name`, ":18: the service has no endpoints",
		`:18: "here" is not an address`, ":19: 10.96.0.10 stands for service empty.shop.svc already", `:19: "twice.internal:80" is not a name`,
		`:20: "10.0.0.9" has no port that could be probed`,
	} {
		if !strings.Contains(stderr, want) {
			t.Errorf("check does not say %q; it says\n%s", want, stderr)
		}
	}
}

// TestEndpointMetricNames holds them against the rules for names.
func TestEndpointMetricNames(t *testing.T) {
	r := prometheus.NewRegistry()
	r.MustRegister(newEndpointMetrics(func() []tunnel.EndpointsInfo {
		return []tunnel.EndpointsInfo{{Kind: "hop", Name: "lb", Stats: endpoint.Stats{Healthy: 2, Picks: 7, Flows: 3}}}
	}))
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if counter := f.GetType().String() == "COUNTER"; counter != strings.HasSuffix(f.GetName(), "_total") || !strings.HasPrefix(f.GetName(), "culvert_endpoint_") {
			t.Errorf("%s is a %s", f.GetName(), f.GetType())
		}
		for _, one := range f.GetMetric() {
			for _, l := range one.GetLabel() {
				if name := l.GetName(); name != "kind" && name != "name" && name != "health" {
					t.Errorf("%s has a label %s that is not known", f.GetName(), name)
				}
			}
		}
	}
	if len(families) != 14 {
		t.Errorf("%d metrics, want 14", len(families))
	}
}

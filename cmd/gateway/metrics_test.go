package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	"culvert/pki"
	"culvert/policy/extauthz"
	"culvert/tunnel"
	"culvert/tunnel/h2"
)

// TestMetricNames holds every metric of ours against the rules for names, and its labels against the few
// whose values no peer can choose.
func TestMetricNames(t *testing.T) {
	m := newMesh(t)
	material, err := pki.Parse(must(os.ReadFile(m.path("exit.pem"))), must(os.ReadFile(m.path("exit.key"))), must(os.ReadFile(m.path("roots.pem"))))
	if err != nil {
		t.Fatal(err)
	}
	asked := extauthz.NewSet(extauthz.Env{})
	defer asked.Close()
	authorizers := must(asked.Prepare([]extauthz.Config{{Name: "opa", Address: "127.0.0.1:1"}}))
	authorizers.Stage()
	authorizers.Commit()
	stats := func() tunnel.Stats {
		return tunnel.Stats{Flows: 7, Ended: map[string]int64{"ok": 3, "denied": 1}, Limited: map[string]int64{"shop/slow": 5}, LimitWaiting: 4}
	}
	resolver := new(resolver)
	resolver.swap(must(resolver.newNames(new(Config))), new(Config))
	r := newMetrics(stats, &parts{
		identity: newIdentity(pki.Fixed(material)), budget: h2.NewBudget(1 << 20), counts: new(counts), names: resolver, asked: asked, tokens: new(tokens),
	})
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	withoutUnit := []string{"culvert_agents", "culvert_active_flows", "culvert_connections", "culvert_transports", "culvert_limit_waiting", "culvert_limit_counts", "culvert_build_info", "culvert_asks_in_flight"}
	labels := []string{"cause", "rule", "result", "authorizer", "version", "revision", "goversion"}
	values := map[string]float64{}
	for _, f := range families {
		name := f.GetName()
		if !strings.HasPrefix(name, "culvert_") {
			continue // of the Go and process collectors
		}
		counter := f.GetType().String() == "COUNTER"
		switch {
		case counter != strings.HasSuffix(name, "_total"):
			t.Errorf("%s is a %s; counters, and they alone, end in _total", name, f.GetType())
		case !counter && !strings.HasSuffix(name, "_bytes") && !strings.HasSuffix(name, "_seconds") && !slices.Contains(withoutUnit, name):
			t.Errorf("%s does not end in its unit", name)
		}
		for _, one := range f.GetMetric() {
			for _, l := range one.GetLabel() {
				if !slices.Contains(labels, l.GetName()) {
					t.Errorf("%s has a label %s that is not known", name, l.GetName())
				}
				name += "," + l.GetValue()
			}
			values[name] = one.GetCounter().GetValue() + one.GetGauge().GetValue()
			name = f.GetName()
		}
	}
	for name, want := range map[string]float64{
		"culvert_flows_total": 7, "culvert_flows_ended_total,ok": 3, "culvert_flows_ended_total,denied": 1,
		"culvert_limited_total,shop/slow": 5, "culvert_limit_waiting": 4,
		"culvert_buffer_limit_bytes": 1 << 20, "culvert_reloads_total,failed": 0, "culvert_asks_total,opa,skipped": 0, "culvert_ask_seconds_total,opa": 0,
		"culvert_identity_not_after_seconds": float64(material.NotAfter.Unix()),
	} {
		if got, ok := values[name]; !ok || got != want {
			t.Errorf("%s = %v, %v, want %v", name, got, ok, want)
		}
	}
}

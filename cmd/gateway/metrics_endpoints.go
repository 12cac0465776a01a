package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"culvert/tunnel"
	"culvert/tunnel/endpoint"
)

// endpointMetrics renders the counters of services and hops that have endpoints. Their names are of the configuration.
type endpointMetrics struct {
	list   func() []tunnel.EndpointsInfo
	health *prometheus.Desc
	each   []endpointMetric
}

// endpointMetric is one that each service and hop has.
type endpointMetric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*endpoint.Stats) int64
}

func newEndpointMetrics(list func() []tunnel.EndpointsInfo) *endpointMetrics {
	m := &endpointMetrics{
		list:   list,
		health: describe("endpoint_health", "Endpoints of a service or a hop, by how they fare.", "kind", "name", "health"),
	}
	add := func(kind prometheus.ValueType, name, help string, value func(*endpoint.Stats) int64) {
		m.each = append(m.each, endpointMetric{describe(name, help, "kind", "name"), kind, value})
	}
	gauge, count := prometheus.GaugeValue, prometheus.CounterValue
	add(gauge, "endpoint_flows", "Flows to endpoints.", func(s *endpoint.Stats) int64 { return s.Flows })
	add(gauge, "endpoint_pending", "Flows to endpoints that wait for their connection.", func(s *endpoint.Stats) int64 { return s.Pending })
	add(gauge, "endpoint_connections", "Connections to endpoints that carry tunnels.", func(s *endpoint.Stats) int64 { return s.Connections })
	add(count, "endpoint_picks_total", "Times that an endpoint was picked.", func(s *endpoint.Stats) int64 { return s.Picks })
	add(count, "endpoint_retries_total", "Times that one was picked because another one had failed the flow.", func(s *endpoint.Stats) int64 { return s.Retries })
	add(count, "endpoint_overflow_total", "Times that one was picked which is not among the nearest.", func(s *endpoint.Stats) int64 { return s.Overflow })
	add(count, "endpoint_unwell_total", "Times that one was picked which is ejected or down, as no other was left.", func(s *endpoint.Stats) int64 { return s.Unwell })
	add(count, "endpoint_full_total", "Flows and connections that were refused because a limit was reached.", func(s *endpoint.Stats) int64 { return s.Full })
	add(count, "endpoint_ejections_total", "Times that one was ejected.", func(s *endpoint.Stats) int64 { return s.Ejections })
	add(count, "endpoint_spared_total", "Times that one was not ejected because too many were.", func(s *endpoint.Stats) int64 { return s.Spared })
	add(count, "endpoint_dns_failures_total", "Times that looking the name up has failed, or found nothing.", func(s *endpoint.Stats) int64 { return s.DNSFailures })
	add(count, "endpoint_guarded_total", "Addresses that DNS gave and that must not be used.", func(s *endpoint.Stats) int64 { return s.Guarded })
	add(count, "endpoint_dropped_total", "Addresses that DNS gave beyond those that are used.", func(s *endpoint.Stats) int64 { return s.Dropped })
	return m
}

// Describe sends the descriptions of all metrics.
func (m *endpointMetrics) Describe(to chan<- *prometheus.Desc) {
	to <- m.health
	for i := range m.each {
		to <- m.each[i].desc
	}
}

// Collect sends the values of now.
func (m *endpointMetrics) Collect(to chan<- prometheus.Metric) {
	for _, of := range m.list() {
		for health, n := range map[string]int64{"ok": of.Stats.Healthy, "ejected": of.Stats.Ejected, "down": of.Stats.Down} {
			to <- prometheus.MustNewConstMetric(m.health, prometheus.GaugeValue, float64(n), of.Kind, of.Name, health)
		}
		for i := range m.each {
			e := &m.each[i]
			to <- prometheus.MustNewConstMetric(e.desc, e.kind, float64(e.value(&of.Stats)), of.Kind, of.Name)
		}
	}
}

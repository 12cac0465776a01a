package main

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"culvert/capture/names"
	"culvert/policy/extauthz"
	"culvert/tunnel"
	"culvert/tunnel/h2"
)

// counts are the events that only this package sees.
type counts struct {
	reloads, reloadsFailed atomic.Int64
}

// collector renders the packages' counters. It takes one snapshot per scrape and keeps nothing. Counters
// and what has a unit end in _total, _bytes or _seconds; the number of things that are open now has no
// unit, so it has no ending.
type collector struct {
	stats  func() tunnel.Stats
	id     *identity
	budget *h2.Budget
	counts *counts
	names  *resolver
	asked  *extauthz.Set
	tokens *tokens

	asks     *prometheus.Desc
	askTime  *prometheus.Desc
	asking   *prometheus.Desc
	ended    *prometheus.Desc
	limited  *prometheus.Desc
	phases   *prometheus.Desc
	notAfter *prometheus.Desc
	reloads  *prometheus.Desc
	build    *prometheus.Desc
	plain    []plainMetric
}

// plainMetric is a metric without labels.
type plainMetric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*tunnel.Stats) int64
}

// newMetrics returns a registry with everything that /metrics shows.
func newMetrics(stats func() tunnel.Stats, b *parts) *prometheus.Registry {
	c := &collector{
		stats: stats, id: b.identity, budget: b.budget, counts: b.counts, names: b.names, asked: b.asked, tokens: b.tokens,
		asks:     describe("asks_total", "Flows that an authorizer had to allow, by what came of it; all but allowed were refused.", "authorizer", "result"),
		askTime:  describe("ask_seconds_total", "Time that answers of an authorizer have taken.", "authorizer"),
		asking:   describe("asks_in_flight", "Questions to an authorizer that are under way.", "authorizer"),
		ended:    describe("flows_ended_total", "Flows that are over, by why; ok is a good end.", "cause"),
		limited:  describe("limited_total", "Flows that a limit of policy has refused or ended, by the name of its rule.", "rule"),
		phases:   describe("open_seconds", "Where the time of opening flows went, by phase; open is all of it, first_byte what comes after, until the destination's first byte. Flows without a phase do not count in it.", "phase"),
		notAfter: describe("identity_not_after_seconds", "When this gateway's certificate ends to be valid, Unix time."),
		reloads:  describe("reloads_total", "Reloads of the configuration, by result.", "result"),
		build:    describe("build_info", "Always 1; the labels tell what runs.", "version", "revision", "goversion"),
	}
	c.counters()
	c.gauges()
	r := prometheus.NewRegistry()
	r.MustRegister(c, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("culvert_"+name, help, labels, nil)
}

func (c *collector) counters() {
	add := func(name, help string, value func(*tunnel.Stats) int64) {
		c.plain = append(c.plain, plainMetric{describe(name, help), prometheus.CounterValue, value})
	}
	add("flows_total", "Flows accepted.", func(s *tunnel.Stats) int64 { return s.Flows })
	add("in_bytes_total", "Bytes carried towards destinations.", func(s *tunnel.Stats) int64 { return s.BytesIn })
	add("out_bytes_total", "Bytes carried back from destinations.", func(s *tunnel.Stats) int64 { return s.BytesOut })
	add("xtun_refused_total", "Requests with x-tun that were not let in.", func(s *tunnel.Stats) int64 { return s.OuterRefused })
	add("tls_refused_total", "Peers that did not get through the TLS handshake.", func(s *tunnel.Stats) int64 { return s.TLSRefused })
	add("offences_total", "Connections, to peers and to hops, ended for what the other end did on them.", func(s *tunnel.Stats) int64 { return s.Offences })
	add("capture_failed_total", "Apps that did not get through the handshake of their way, such as SOCKS5.", func(s *tunnel.Stats) int64 { return s.CaptureFailed })
	add("accept_errors_total", "Errors of accepting connections.", func(s *tunnel.Stats) int64 { return s.AcceptErrors })
	add("shed_total", "Accepted connections closed at once because files, memory or a listener's limit were used up; flows that could not be dialled for it end as full.", func(s *tunnel.Stats) int64 { return s.Shed })
	add("dials_total", "Connections to destinations, tried.", func(s *tunnel.Stats) int64 { return s.Dials })
	add("dial_failures_total", "Connections to destinations that failed.", func(s *tunnel.Stats) int64 { return s.DialFailures })
	add("transport_dials_total", "Connections to hops, tried.", func(s *tunnel.Stats) int64 { return s.TransportDials })
	add("transport_failures_total", "Connections to hops that failed.", func(s *tunnel.Stats) int64 { return s.TransportFailures })
	add("identity_renewals_total", "Renewals of this gateway's certificate, where that is its own to do.", func(*tunnel.Stats) int64 {
		n, _ := c.id.current.Load().Renewals()
		return n
	})
	add("identity_renewal_failures_total", "Renewals that failed and are tried again; see identity_not_after_seconds for how long there is.", func(*tunnel.Stats) int64 {
		_, n := c.id.current.Load().Renewals()
		return n
	})
	add("token_hits_total", "Tokens of requests that had been verified before.", func(*tunnel.Stats) int64 { return c.tokens.stats().Hits })
	add("token_verifications_total", "Signatures of tokens that were checked, good or bad.", func(*tunnel.Stats) int64 { return c.tokens.stats().Verified })
	add("issuer_refreshes_total", "Times that the keys of an issuer were read, the failed ones included.", func(*tunnel.Stats) int64 { return c.tokens.refreshes.Load() })
	add("issuer_refresh_failures_total", "Times that the keys of an issuer could not be read.", func(*tunnel.Stats) int64 { return c.tokens.refreshesFailed.Load() })
	add("retries_total", "Tunnels asked for again because a hop had not processed the request.", func(s *tunnel.Stats) int64 { return s.Retries })
	add("abandoned_total", "Requests whose app went away and that were left to end by themselves.", func(s *tunnel.Stats) int64 { return s.Abandoned })
	add("agents_refused_total", "Registrations of agents that were refused or cut off.", func(s *tunnel.Stats) int64 { return s.AgentsRefused })
	add("agent_claims_refused_total", "Names that an agent claimed and did not get.", func(s *tunnel.Stats) int64 { return s.ClaimsRefused })
	add("limit_waits_total", "Times that bytes had to wait for a limit of policy.", func(s *tunnel.Stats) int64 { return s.LimitWaits })
	add("limit_shared_total", "Flows counted together with strangers, because the table of limits was full.", func(s *tunnel.Stats) int64 { return s.LimitShared })
	for _, one := range []struct {
		name, help string
		value      func(*names.Stats) *atomic.Int64
	}{
		{"questions", "Questions for names.", func(s *names.Stats) *atomic.Int64 { return &s.Questions }},
		{"virtual", "Questions answered with a virtual address.", func(s *names.Stats) *atomic.Int64 { return &s.Virtual }},
		{"cached", "Questions answered from the cache.", func(s *names.Stats) *atomic.Int64 { return &s.Cached }},
		{"failed", "Questions that no resolver has answered.", func(s *names.Stats) *atomic.Int64 { return &s.Failed }},
		{"refused", "Questions that are not answered, or whose answer is not passed on.", func(s *names.Stats) *atomic.Int64 { return &s.Refused }},
		{"dropped", "Messages that were no questions, and answers that were not to the question asked.", func(s *names.Stats) *atomic.Int64 { return &s.Dropped }},
	} {
		add("dns_"+one.name+"_total", one.help, func(*tunnel.Stats) int64 { return one.value(c.names.stats()).Load() })
	}
	add("stalled_resets_total", "Stalled streams reset because the buffers were at their limit.", func(*tunnel.Stats) int64 { return c.budget.Resets() })
}

func (c *collector) gauges() {
	add := func(name, help string, value func(*tunnel.Stats) int64) {
		c.plain = append(c.plain, plainMetric{describe(name, help), prometheus.GaugeValue, value})
	}
	add("active_flows", "Flows that are not over.", func(s *tunnel.Stats) int64 { return s.Active })
	add("connections", "Accepted connections that are open.", func(s *tunnel.Stats) int64 { return s.Connections })
	add("transports", "Connections to hops that are open.", func(s *tunnel.Stats) int64 { return s.Transports })
	add("agents", "Connections of agents that are registered.", func(s *tunnel.Stats) int64 { return s.Agents })
	add("limit_waiting", "Directions of flows that wait for a limit of policy.", func(s *tunnel.Stats) int64 { return s.LimitWaiting })
	add("limit_counts", "Counts of limits in the table, one for each limit and identity.", func(s *tunnel.Stats) int64 { return s.LimitCounts })
	add("buffer_bytes", "Bytes of stream buffers in use.", func(*tunnel.Stats) int64 { return c.budget.Used() })
	add("buffer_limit_bytes", "Bytes that stream buffers may use.", func(*tunnel.Stats) int64 { return c.budget.Limit() })
}

// Describe sends the descriptions of all metrics.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.ended, c.limited, c.phases, c.notAfter, c.reloads, c.build, c.asks, c.askTime, c.asking} {
		to <- d
	}
	for _, m := range c.plain {
		to <- m.desc
	}
}

// Collect sends the values of now.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	s := c.stats()
	for _, m := range c.plain {
		to <- prometheus.MustNewConstMetric(m.desc, m.kind, float64(m.value(&s)))
	}
	for cause, n := range s.Ended {
		to <- prometheus.MustNewConstMetric(c.ended, prometheus.CounterValue, float64(n), cause)
	}
	for rule, n := range s.Limited { // of the configuration, not of peers
		to <- prometheus.MustNewConstMetric(c.limited, prometheus.CounterValue, float64(n), rule)
	}
	for phase, h := range s.Phases {
		to <- prometheus.MustNewConstHistogram(c.phases, h.Count, h.Sum.Seconds(), h.Buckets, phase)
	}
	c.collectAsks(to)
	to <- prometheus.MustNewConstMetric(c.notAfter, prometheus.GaugeValue, float64(c.id.current.Load().Current().NotAfter.Unix()))
	to <- prometheus.MustNewConstMetric(c.reloads, prometheus.CounterValue, float64(c.counts.reloads.Load()), "ok")
	to <- prometheus.MustNewConstMetric(c.reloads, prometheus.CounterValue, float64(c.counts.reloadsFailed.Load()), "failed")
	v := buildVersion()
	to <- prometheus.MustNewConstMetric(c.build, prometheus.GaugeValue, 1, v.Version, v.Revision, v.Go)
}

// collectAsks sends what authorizers have been asked. Their names are of the configuration.
func (c *collector) collectAsks(to chan<- prometheus.Metric) {
	for name, a := range c.asked.Stats() {
		for _, one := range []struct {
			result string
			n      int64
		}{
			{"allowed", a.Allowed}, {"denied", a.Denied}, {"failed", a.Failed}, {"timeout", a.Timeouts}, {"withdrawn", a.Withdrawn}, {"skipped", a.Skipped},
		} {
			to <- prometheus.MustNewConstMetric(c.asks, prometheus.CounterValue, float64(one.n), name, one.result)
		}
		to <- prometheus.MustNewConstMetric(c.askTime, prometheus.CounterValue, a.Latency.Seconds(), name)
		to <- prometheus.MustNewConstMetric(c.asking, prometheus.GaugeValue, float64(a.InFlight), name)
	}
}

package endpoint

import (
	"cmp"
	"net/netip"
	"time"
)

// Config is where the endpoints of a service or a hop come from, and how one of them is picked for a flow.
type Config struct {
	// Endpoints are the places that it can be had at. A flow goes to the least loaded of those that are near and well.
	Endpoints []EndpointConfig `yaml:"endpoints"`
	// DNS has a name looked up for endpoints, besides Endpoints.
	DNS DNSConfig `yaml:"dns"`
	// Health has the endpoints asked whether they are well.
	Health HealthConfig `yaml:"health"`
	// Ejection says when an endpoint is left alone because flows have failed there.
	Ejection EjectionConfig `yaml:"ejection"`
	// Limits bound what is carried at a time. A flow above one is refused at once, with 503 (`circuit`).
	Limits LimitsConfig `yaml:"limits"`
	// Retries is on how many other endpoints a flow is tried when one fails before a byte of it was sent on. Default 2;
	// negative: none.
	Retries int `yaml:"retries"`
	// ConnectTimeout is how long connecting to one endpoint may take, TLS included. Default 4s, in which TCP asks three times;
	// `timeouts.dial` bounds all of them together.
	ConnectTimeout time.Duration `yaml:"connectTimeout"`
}

// EndpointConfig is one place that a service or a hop can be had at.
type EndpointConfig struct {
	// Address is `host:port`. An endpoint of a service may leave the port out: then it is what `ports` says, or the one that was
	// asked for.
	Address string `yaml:"address"`
	// Weight is this endpoint's share of the flows, in relation to the others. Default 1.
	Weight int `yaml:"weight"`
	// Locality is where it is: `region`, `region/zone` or `region/zone/subzone`. Those that have the most in common with
	// `locality` of the file come first; others get a part of the flows when less than 72 % of these, by weight, are well.
	Locality string `yaml:"locality"`
	// Identities are who it may be, each such as `spiffe://cluster.local/ns/shop/sa/orders`, where it is reached by a tunnel: a hop,
	// or with Tun. Default: that of the hop, or any with the same trust domain and namespace as this gateway.
	Identities []string `yaml:"identities"`
	// Tun is how the endpoint is reached. Of a service: `HBONE` is a tunnel to port 15008 of its address, under this gateway's own
	// identity; default: a connection. Of a hop that has `tun`: the form in which this one lets tunnels pass; default: the hop's.
	Tun string `yaml:"tun"`
	// Labels of the endpoint, for people.
	Labels map[string]string `yaml:"labels"`
}

// DNSConfig is a name that becomes endpoints. Of a service the egress guard judges the addresses, by the service's name:
// a route or an `egress` entry that names it opens private ones. Of a hop, what is no unicast address of a network is left out.
type DNSConfig struct {
	// Name to look up. Default: none.
	Name string `yaml:"name"`
	// Type is `addresses` (A and AAAA) or `srv`, whose priority, weight and port count as well. Default `addresses`.
	Type string `yaml:"type"`
	// Port of the endpoints, where SRV does not tell it. Required for hops with addresses; of services as in `endpoints`.
	Port uint16 `yaml:"port"`
	// Every is how often the name is looked up, where the answer does not say a shorter time. Default 30s.
	Every time.Duration `yaml:"every"`
	// Keep is for how long the last endpoints are used when the name cannot be looked up any more, or has none. Default 5m; negative:
	// not at all.
	Keep time.Duration `yaml:"keep"`
}

// HealthConfig has endpoints probed.
type HealthConfig struct {
	// Probe is `connect` (to connect is enough), `http` (a GET that is answered with 200 to 399) or, for hops, `ping` (TLS, the
	// expected identity and an HTTP/2 PING). Default: none.
	Probe string `yaml:"probe"`
	// Path of `http`. Default `/`.
	Path string `yaml:"path"`
	// Host is the name that `http` asks for. Default: the endpoint's address.
	Host string `yaml:"host"`
	// Interval is how often each endpoint is probed. Default 10s.
	Interval time.Duration `yaml:"interval"`
	// Timeout is how long one probe may take. Default 2s.
	Timeout time.Duration `yaml:"timeout"`
	// Unhealthy is after how many failed probes in a row an endpoint is down. Default 3.
	Unhealthy int `yaml:"unhealthy"`
	// Healthy is after how many good ones it is up again. Default 2.
	Healthy int `yaml:"healthy"`
}

// EjectionConfig says when an endpoint is left alone because flows have failed there.
type EjectionConfig struct {
	// Failures is how many flows in a row must have failed there: it could not be connected to, or in TLS not be trusted, or has
	// broken off within a second what nobody had said anything on. Default 3; negative: nothing is ejected.
	Failures int `yaml:"failures"`
	// Time is for how long it is left alone first, and twice as long each time that it fails again after. Then one flow at a time
	// goes there until one has succeeded. Default 10s.
	Time time.Duration `yaml:"time"`
	// Longest is the most that becomes of Time, and how long an endpoint must not have been ejected for that to be forgotten. Default 5m.
	Longest time.Duration `yaml:"longest"`
	// Most is how many in a hundred of the endpoints that are up may be ejected at a time; beyond, flows go on to try those that fail. So
	// a single endpoint is never ejected. Default 50.
	Most int `yaml:"most"`
}

// LimitsConfig bounds what is carried at a time. Default of each: no limit.
type LimitsConfig struct {
	// Flows is how many flows there may be to all endpoints together.
	Flows int `yaml:"flows"`
	// Pending is how many of them may be waiting for their connection or the answer of a hop.
	Pending int `yaml:"pending"`
	// Connections is how many connections there may be to all endpoints together that carry tunnels. Where there are no tunnels each flow
	// has a connection of its own, and Flows bounds them.
	Connections int `yaml:"connections"`
	// Endpoint has the same limits for each endpoint.
	Endpoint EndpointLimitsConfig `yaml:"endpoint"`
}

// EndpointLimitsConfig bounds what each endpoint carries at a time. Default of each: no limit.
type EndpointLimitsConfig struct {
	// Flows is how many flows there may be to one endpoint.
	Flows int `yaml:"flows"`
	// Pending is how many of them may be waiting for their connection or the answer of a hop.
	Pending int `yaml:"pending"`
	// Connections is how many connections that carry tunnels there may be to one endpoint.
	Connections int `yaml:"connections"`
}

// TunHBONE is the EndpointConfig.Tun of endpoints that are reached by a tunnel of HBONE.
const TunHBONE = "HBONE"

// Values of DNSConfig.Type.
const (
	TypeAddresses = "addresses"
	TypeSRV       = "srv"
)

// Values of HealthConfig.Probe.
const (
	ProbeConnect = "connect"
	ProbeHTTP    = "http"
	ProbePing    = "ping"
)

// Defaults of the configuration.
const (
	defaultRetries        = 2
	defaultConnectTimeout = 4 * time.Second
	defaultEvery          = 30 * time.Second
	defaultKeep           = 5 * time.Minute
	defaultInterval       = 10 * time.Second
	defaultTimeout        = 2 * time.Second
	defaultUnhealthy      = 3
	defaultHealthy        = 2
	defaultFailures       = 3
	defaultEjection       = 10 * time.Second
	defaultLongest        = 5 * time.Minute
	defaultMost           = 50
)

// IsZero reports whether nothing is configured.
func (c *Config) IsZero() bool {
	return c.Endpoints == nil && c.DNS == DNSConfig{} && c.Health == HealthConfig{} && c.Ejection == EjectionConfig{} &&
		c.Limits == LimitsConfig{} && c.Retries == 0 && c.ConnectTimeout == 0
}

// Places reports whether c says where endpoints are.
func (c *Config) Places() bool { return len(c.Endpoints) > 0 || c.DNS.Name != "" }

// withDefaults returns c with the defaults for zero values.
func (c Config) withDefaults() Config {
	or(&c.Retries, defaultRetries)
	c.Retries = max(c.Retries, 0)
	or(&c.ConnectTimeout, defaultConnectTimeout)
	or(&c.DNS.Type, TypeAddresses)
	or(&c.DNS.Every, defaultEvery)
	or(&c.DNS.Keep, defaultKeep)
	or(&c.Health.Path, "/")
	or(&c.Health.Interval, defaultInterval)
	or(&c.Health.Timeout, defaultTimeout)
	or(&c.Health.Unhealthy, defaultUnhealthy)
	or(&c.Health.Healthy, defaultHealthy)
	or(&c.Ejection.Failures, defaultFailures)
	or(&c.Ejection.Time, defaultEjection)
	or(&c.Ejection.Longest, max(defaultLongest, c.Ejection.Time))
	or(&c.Ejection.Most, defaultMost)
	return c
}

func or[T comparable](v *T, def T) { *v = cmp.Or(*v, def) }

// addrProblem says why addr is no place that an endpoint can be at, "" if it can.
func addrProblem(addr netip.Addr) string {
	switch {
	case addr.Zone() != "":
		return "has a zone, which means something on one host only"
	case addr.IsUnspecified() || addr.IsMulticast():
		return "is no address of one host"
	}
	return ""
}

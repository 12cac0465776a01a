package tunnel

import (
	"net/netip"
	"time"

	"culvert/capture"
	"culvert/pki/bearer"
	"culvert/policy"
	"culvert/tunnel/endpoint"
)

// Config describes the path of flows through one gateway: where they are accepted, what decides, where
// they are opened to. It is one part of the configuration file. Zero values mean the defaults named at the
// fields. A Config is not changed after it was handed over.
type Config struct {
	// Name is how the gateway calls itself in what it says to peers (`proxy-status`). Default: the service
	// account of its identity.
	Name string `yaml:"name"`
	// Locality is where this gateway is: `region`, `region/zone` or `region/zone/subzone`. Endpoints that are near come first.
	Locality string `yaml:"locality"`
	// Listeners are where flows come in. At least one.
	Listeners []ListenerConfig `yaml:"listeners"`
	// Hops are the gateways that flows can be sent through, by name.
	Hops map[string]HopConfig `yaml:"hops"`
	// Services are destinations that can be had at several places, by the name that flows ask for.
	Services map[string]ServiceConfig `yaml:"services"`
	// Workloads are what this gateway knows of its own: their addresses are local.
	Workloads []WorkloadConfig `yaml:"workloads"`
	// Routes say where flows go. The first that matches wins; a flow that none matches is refused.
	Routes []RouteConfig `yaml:"routes"`
	// Policy says which peers may come, and what may be reached from here. Every hop decides for itself.
	Policy policy.Config `yaml:"policy"`
	// TrustHeaders lists the peers whose `baggage`, `forwarded`, `traceparent` and `tracestate`, and whose names in `via`, are
	// believed and passed on, written as in `policy.allow`. Of others these fields end here. Default: none.
	TrustHeaders []string `yaml:"trustHeaders"`
	// Expiry says what becomes of live flows when the certificate expires that their peer, or the hop that they go by, has
	// shown: with `drain` they run on, to `timeouts.age` at most, with `end` they are cut. New ones need a connection with a
	// new certificate either way. Default: drain.
	Expiry string `yaml:"expiry"`
	// Timeouts bound how long things may take and how long flows may last.
	Timeouts TimeoutConfig `yaml:"timeouts"`

	// Reserved are addresses on which the process listens besides the Listeners, such as the admin
	// address. No flow may lead there.
	Reserved []netip.AddrPort `yaml:"-"`
}

// ListenerConfig is one address where flows come in.
type ListenerConfig struct {
	// Name is how routes, logs and metrics call the listener. Required, unique.
	Name string `yaml:"name"`
	// Kind is how flows come in: `hbone` (CONNECT over mutual TLS and HTTP/2, from other gateways),
	// `socks5`, `http-proxy` or `proxy`, which is both on one port (from programs on this host that are
	// pointed at it), `forward` (every connection goes to one destination),
	// `tproxy` or `redirect` (what the packet filter leads here, see `gateway capture`; each flow goes where
	// it was meant to), `dns` (questions for names, of apps; see `dns` of the file), `x-tun` (tunnels that others' load
	// balancers pass on, see XTun), `agent` (from a hop, on a connection that this gateway dials there, such as from behind a
	// NAT), `ingress` (clients that are no gateways, see Ingress).
	Kind string `yaml:"kind"`
	// Address to listen on: `host:port`, or `:port` for all addresses of this host, or `unix:/path`. For
	// `tproxy`, `redirect` and `dns`, `localhost:port` is both 127.0.0.1 and ::1. A `forward` listener may have
	// several ports, `host:8000-8010`.
	Address string `yaml:"address"`
	// Network is `tcp` or `udp`, of a `forward` listener. Default `tcp`.
	Network string `yaml:"network"`
	// To is the destination of a `forward` listener, `host:port`. A name is resolved at the far end. Of a
	// listener with several ports it may have as many, `host:9000-9010`. `unix:/path` is a socket of this
	// host.
	To string `yaml:"to"`
	// SOCKS5 says who may use a `socks5` listener.
	SOCKS5 capture.Socks5Config `yaml:"socks5"`
	// HTTP says who may use an `http-proxy` listener. A `proxy` listener that has users only here or only in SOCKS5
	// takes them for both.
	HTTP capture.HTTPConfig `yaml:"http"`
	// Identities are the SPIFFE IDs that apps carry which have logged in, by user name; policy judges by
	// them. Apps of other users carry this gateway's.
	Identities map[string]string `yaml:"identities"`
	// Open lets a `socks5`, `http-proxy` or `proxy` listener without users be reachable from other hosts.
	// Whoever reaches it uses this gateway's identity.
	Open bool `yaml:"open"`
	// Sniff is how long the first bytes of a flow to a `tproxy` or `redirect` listener are waited for, to
	// find the name that it is for: the server name of TLS, the host of HTTP. A route that names the host
	// takes the flow to that name then, which is resolved where the flow leaves the mesh. It is done where
	// a route names hosts, and not for ports whose servers speak first, such as 22 and 25. Default 200ms;
	// negative: off.
	Sniff time.Duration `yaml:"sniff"`
	// Strict refuses every flow to a `tproxy` or `redirect` listener: what comes in plain where only tunnels
	// should. Other listeners take the tunnels.
	Strict bool `yaml:"strict"`
	// Captured tells that the packet filter leads questions to a `dns` listener that were meant for others.
	Captured bool `yaml:"captured"`
	// XTun says how tunnels are taken that come through load balancers of others, on a listener of kind `x-tun`, or, where it
	// is present, on one of kind `hbone` as well.
	XTun *XTunConfig `yaml:"xTun"`
	// Agents are the peers of an `hbone` listener that may register: flows to their names go to them, on the connection
	// that they have dialled, by a route with `agents: true`.
	Agents []AgentConfig `yaml:"agents"`
	// Hop is the name of the hop that an `agent` listener dials, or its `host:port`. The listener has no address: it registers
	// there, as `agents` of the hop's listener allows it, and flows come in on that connection as on an `hbone` listener. They
	// need a route of this listener, or Offer.
	Hop string `yaml:"hop"`
	// Via are the hops that lead to Hop, nearest first. Default: none, Hop is dialled.
	Via []string `yaml:"via"`
	// Names are the names that an `agent` listener claims. Besides these it is reached by the addresses of its key.
	Names []string `yaml:"names"`
	// Connections is how many connections an `agent` listener keeps to each address of the hop. Default 1.
	Connections int `yaml:"connections"`
	// Offer says for ports that flows to Names and to the addresses of the own key ask for where an `agent` listener takes
	// them: `{80: "127.0.0.1:8080"}`. What is offered needs no route.
	Offer map[uint16]string `yaml:"offer"`
	// SNIPassthrough has an `hbone` listener pass on TLS that is not for itself, unopened, to where its server name leads:
	// `outbound_.PORT_.SUBSET_.HOST`, as Istio writes it (the subset is not looked at), to that port of the host; another name,
	// where a route of the listener names it, to port 443 of it. Such flows have no identity here, so the route needs
	// `from: any`. All else is HBONE. It costs each connection a look at its first bytes.
	SNIPassthrough bool `yaml:"sniPassthrough"`
	// Ingress says what an `ingress` listener takes.
	Ingress IngressConfig `yaml:"ingress"`
	// MaxConnections is how many accepted connections may be open at once; above it new ones are closed
	// at once. Default 100000; negative: no limit but that of the system.
	MaxConnections int `yaml:"maxConnections"`
}

// The kinds of listeners that this package serves. Env.Ways adds others.
const (
	KindHBONE     = "hbone"
	KindSOCKS5    = "socks5"
	KindHTTPProxy = "http-proxy"
	KindProxy     = "proxy"
	KindForward   = "forward"
	KindTProxy    = "tproxy"
	KindRedirect  = "redirect"
	KindDNS       = "dns"
	KindXTun      = "x-tun"
	KindAgent     = "agent"
)

// XTunConfig says how requests are taken that carry a tunnel through a load balancer of others: POST, CONNECT, WebSocket or
// gRPC, in HTTP/2 or HTTP/1.1, with the destination in `x-tun` and a token in `authorization`. The balancer has ended TLS. A
// token that `tokens` of the file believes lets the request in, and nothing more: inside of it is mutual TLS with the client
// itself, and policy judges by that identity and by the destination that the client asks for there, which has to be the one
// in `x-tun`.
type XTunConfig struct {
	// Issuers are those whose tokens count here, as in `tokens`. Default: all that `tokens` has.
	Issuers []string `yaml:"issuers"`
	// Audiences are the `aud` values of which a token must have one, besides what `tokens` asks for. Default: none is asked for.
	Audiences []string `yaml:"audiences"`
	// Cert is a PEM file with the certificate for connections of balancers that speak TLS with this listener. It is read for each
	// connection, with Key. Default: such connections are not encrypted, as the balancer has ended TLS.
	Cert string `yaml:"cert"`
	// Key is a PEM file with the key of Cert.
	Key string `yaml:"key"`
	// Identity has the listener speak TLS with the certificate of this gateway's identity in the place of Cert and Key.
	Identity bool `yaml:"identity"`
}

// AgentConfig lets peers register as agents.
type AgentConfig struct {
	// From lists who may register, written as in `policy.allow`; a self-made key has to be named itself. Every agent is
	// reached by the addresses of the key that it has proven (`[fd00::…]:port`), whatever Names says.
	From []string `yaml:"from"`
	// Names are what these agents may claim: a name, or `*.devices.example`. `{sa}` and `{ns}` stand for the service account
	// and the namespace of the agent's identity: by `{sa}.devices.example` each may claim its own name and no other's.
	// Where a pattern has both, they stand in labels of their own.
	Names []string `yaml:"names"`
	// MaxConnections is how many connections agents of one identity may have registered at once. Default 16.
	MaxConnections int `yaml:"maxConnections"`
}

// HopConfig is another gateway.
type HopConfig struct {
	// Address of the gateway's hbone listener, `host:port`. Either this, or `endpoints` or `dns`.
	Address string `yaml:"address"`
	// Where it can be had at several places, or more is said of one, follows here.
	endpoint.Config `yaml:",inline"`
	// Identity the gateway must have, such as `spiffe://cluster.local/ns/shop/sa/gw`. Default: any
	// with the same trust domain and namespace as this gateway.
	Identity string `yaml:"identity"`
	// Transport is how the hop is reached: `h2`. Default `h2`.
	Transport string `yaml:"transport"`
	// Proxy tells that the hop is a proxy of others that connects to whatever it is asked for: `http` or `https` (CONNECT, in
	// the clear or over TLS, see TLS) or `socks5`. Names go on to it as they are. It may come before gateways in a route, or be
	// its last hop; it carries no datagrams, and has no identity.
	Proxy string `yaml:"proxy"`
	// Login is a file with `user:password`, for a proxy that wants one. It is read for each connection. Only with Proxy.
	Login string `yaml:"login"`
	// Tun tells that the hop is a load balancer or proxy of others, and how it lets a tunnel pass: `POST` (the request and its
	// answer are streams of bytes), `CONNECT`, `WEBSOCKET` or `GRPC` (a call that streams both ways). The connection to it is TLS as
	// browsers have it, and each request names the destination in `x-tun`. What runs inside is mutual TLS with the workload at
	// the destination, see Inner, or with the next hop of the route.
	Tun string `yaml:"tun"`
	// Authority is the host name by which the proxy knows whom a request is for. Default: the host in Address. Only with Tun.
	Authority string `yaml:"authority"`
	// Path is the path of the request, by which a proxy may route. Default `/x-tun`, of GRPC `/culvert.XTun/Tunnel`. Only with Tun.
	Path string `yaml:"path"`
	// TLS says how the proxy is known. Only with Tun, or with `proxy: https`.
	TLS HopTLSConfig `yaml:"tls"`
	// Token is what the proxy, and the gateway behind it, want to see in `authorization`. Only with Tun.
	Token bearer.Config `yaml:"token"`
	// StreamsPerConnection is how many flows share a connection to the hop before another one is
	// opened. Default 100, and never more than the hop allows.
	StreamsPerConnection int `yaml:"streamsPerConnection"`
	// Inner, if present, has a second tunnel lead from here to the workload at the destination itself, inside of the one to
	// this hop: mutual TLS from end to end, of which the hop sees nothing (double HBONE). It counts where the hop is the last
	// of a route; where another one follows, that is what runs inside.
	Inner *InnerConfig `yaml:"inner"`
	// IstioSource is what this gateway tells the hop to be (`x-istio-source`): `waypoint`, `gateway` or `sidecar`. An east-west
	// gateway leads flows of a waypoint past the waypoint. Default: nothing is told.
	IstioSource string `yaml:"istioSource"`
	// Connections is over how many connections flows to the hop are spread when several live at a time or
	// follow closely, so that one does not have to wait behind another; more are opened when these are full.
	// Default the number of processors, at most 4.
	Connections int `yaml:"connections"`
}

// HopTLSConfig says how a proxy of others is known. The zero value is TLS with the CAs of the system and the name in
// Authority.
type HopTLSConfig struct {
	// Roots is a PEM file with the CAs. It is read for each connection. Default: those of the system.
	Roots string `yaml:"roots"`
	// ServerName is the name that the proxy's certificate must have, and that it is told. Default: that of Authority.
	ServerName string `yaml:"serverName"`
	// None leaves TLS out, as to a proxy on the same host. The token and the destination are then to be read on the way.
	None bool `yaml:"none"`
}

// InnerConfig is the tunnel from end to end inside of one to a hop.
type InnerConfig struct {
	// Identities are those of which the workload must have one, such as `spiffe://cluster.local/ns/shop/sa/orders`.
	// Default: any with the same trust domain and namespace as this gateway.
	Identities []string `yaml:"identities"`
	// Network is the network that this gateway is in, which the workload is told (`x-forwarded-network`), so that it takes
	// what it is told of the source for more than the address. Default: none is told.
	Network string `yaml:"network"`
}

// WorkloadConfig is a program that this gateway stands before.
type WorkloadConfig struct {
	// Name of the workload, for people and in the `baggage` that is sent for it.
	Name string `yaml:"name"`
	// Namespace of the workload. Default: that of this gateway's identity.
	Namespace string `yaml:"namespace"`
	// Labels of the workload; `version` is told in `baggage`.
	Labels map[string]string `yaml:"labels"`
	// Addresses of the workload: flows to them are local.
	Addresses []string `yaml:"addresses"`
	// ServiceAccount of the workload.
	ServiceAccount string `yaml:"serviceAccount"`
	// ApplicationTunnel has the workload be told whose flow comes, as Istio's workloads may. Default: it gets the bytes alone.
	ApplicationTunnel *AppTunnelConfig `yaml:"applicationTunnel"`
}

// RouteConfig sends the flows that match it to their next hop, or to their destination.
type RouteConfig struct {
	// Listeners are the names of those it applies to. Default: all.
	Listeners []string `yaml:"listeners"`
	// Hosts are destination names that match: `orders.shop.svc` or `*.shop.svc`, each with `:port` if
	// only that port. `*` is every destination.
	Hosts []string `yaml:"hosts"`
	// Destinations are addresses that match: `local` (what the peer dialled, and Workloads), an
	// address, or a range such as `10.0.0.0/8`, each with `:port` if only that port. A route
	// without Hosts and Destinations matches every flow.
	Destinations []string `yaml:"destinations"`
	// Ports are the destination ports that match. Default: all.
	Ports []uint16 `yaml:"ports"`
	// From is `any` where flows of peers without an identity may pass, as from a plain port that other
	// hosts reach. Default: peers that Policy lets in.
	From string `yaml:"from"`
	// Source is `keep` where the destination is to see the address that the flow came from, not this
	// gateway's: of a captured flow its own, of a tunnel what a peer in TrustHeaders tells in `forwarded`,
	// else the peer's. It takes CAP_NET_ADMIN, and rules that lead the answers back here, which
	// `gateway capture install` makes; only for TCP. Or it is an address of this host, such as `10.0.0.5`, that connections are
	// to come from: destinations of the other family cannot be reached then. Only without Via.
	Source string `yaml:"source"`
	// TLS has this gateway speak TLS with the destination, for apps that speak plain. Default: bytes are carried as they are.
	TLS *TLSConfig `yaml:"tls"`
	// Agents sends the flows to the agent that has registered under the destination's name or, where that is the
	// address of a key (`fd00::/8`), under this. Of several the one with the fewest flows gets it.
	Agents bool `yaml:"agents"`
	// IstioSource are the kinds of gateway that send flows which match (`x-istio-source`): `waypoint`, `gateway`, `sidecar`, as
	// far as a peer in TrustHeaders says so. So flows that come from a waypoint take one route, and others, forged ones included,
	// another one that leads to the waypoint. Default: all flows, whatever is said.
	IstioSource []string `yaml:"istioSource"`
	// Inner is `pass` where what flows carry is a tunnel for the workload at the destination (double HBONE). It is not opened:
	// the flow goes to the destination's address, but to InnerPort of it, as it is. For a flow that a tunnel has brought, and
	// without Via.
	Inner string `yaml:"inner"`
	// InnerPort is where workloads take inner tunnels. Default 15008.
	InnerPort uint16 `yaml:"innerPort"`
	// To is where the flows go that the route takes, `host:port`, instead of to what they asked for. Policy is asked about
	// what is dialled; of a request of HTTP it is also told the host that it names.
	To string `yaml:"to"`
	// HTTP narrows the route to requests of HTTP that it says, and says what is done with them. A route with it takes no
	// other flows. Only where the gateway has requests in the clear: on `ingress` listeners, and by Inspect.
	HTTP *RouteHTTPConfig `yaml:"http"`
	// ProxyProtocol has the connection to the destination begin with a header of the PROXY protocol, `v1` or `v2`: where the flow
	// comes from, and where it wanted to go. Of version 2 it has the peer's SPIFFE ID as well (type 0xD0), and a name that the flow
	// wanted to go to (type 0x02). Where the flow comes from no address, the header says so (LOCAL, UNKNOWN). Only for TCP.
	ProxyProtocol string `yaml:"proxyProtocol"`
	// Inspect is `http` where the gateway looks into the flows: each request of HTTP/1.1 or HTTP/2 in them, in the clear, is a flow of
	// its own, for which policy is asked with its method, path and fields, and which takes the first route of the listener for its
	// destination whose HTTP fits. Bytes that are no HTTP are refused. HTTP of this route does not matter for the flow itself, and
	// policy is asked about the requests only. Not on `ingress` listeners, where it is so anyway.
	Inspect string `yaml:"inspect"`
	// Via is the chain of hops, nearest first: names from Hops, or `host:port`. Empty: this
	// gateway connects to the destination itself.
	Via []string `yaml:"via"`
}

// TLSConfig is how this gateway speaks TLS as a client. The end of a direction is its close_notify: a server that ends the
// connection without one has broken it.
type TLSConfig struct {
	// ServerName is asked for (SNI), and the certificate must be for it. Default: the name, or the address, of the flow.
	ServerName string `yaml:"serverName"`
	// Roots is a file with the CAs, as PEM, that may have signed the certificate. Default: those of the system. It is read again
	// when it changes, as Cert and Key are.
	Roots string `yaml:"roots"`
	// Cert is a file with the certificate that this gateway shows, as PEM, the own one first. Default: none.
	Cert string `yaml:"cert"`
	// Key is the file with its private key.
	Key string `yaml:"key"`
	// ALPN are the protocols that the app may be spoken with, such as `h2` or `http/1.1`. One of them must be agreed on; of a
	// server that knows of none, http/1.1 is taken for granted. Default: none is offered.
	ALPN []string `yaml:"alpn"`
	// MinVersion is `1.2` or `1.3`. Default 1.2.
	MinVersion string `yaml:"minVersion"`
}

// Values of Config.Expiry.
const (
	expiryDrain = "drain"
	expiryEnd   = "end"
)

// inspectHTTP is the value of RouteConfig.Inspect.
const inspectHTTP = "http"

// Values of RouteConfig.From, RouteConfig.Source and RouteConfig.Inner.
const (
	fromAny    = "any"
	keepSource = "keep"
	passInner  = "pass"
)

// hbonePort is where a workload takes tunnels, as in Istio.
const hbonePort = 15008

// TimeoutConfig bounds how long things may take and how long flows may last.
type TimeoutConfig struct {
	// Handshake is how long a peer may take for the TLS handshake. Default 5s.
	Handshake time.Duration `yaml:"handshake"`
	// Dial is how long resolving and connecting to a destination, or to a hop, may take. Default 10s.
	Dial time.Duration `yaml:"dial"`
	// Open is how long it may take from the acceptance of a flow until the tunnel stands, hops
	// included. Default 20s, more than Dial, so that a farther hop can say what went wrong there.
	Open time.Duration `yaml:"open"`
	// Idle ends a flow that has carried no byte in either direction for so long. Default: none, as TCP
	// has none; an end that is dead is found by KeepAlive.
	Idle time.Duration `yaml:"idle"`
	// UDPIdle is the same for flows of datagrams, which have no other end; while none has come back it is 30s at most.
	// Default 2m.
	UDPIdle time.Duration `yaml:"udpIdle"`
	// Age ends a flow that is older. Default: none.
	Age time.Duration `yaml:"age"`
	// KeepAlive is the silence after which the system asks whether the other end of a TCP connection still
	// lives; after nine questions without an answer, as far apart, it is dead. Default 15s; negative: off.
	KeepAlive time.Duration `yaml:"keepAlive"`
}

// Defaults of the configuration.
const (
	defaultHandshake      = 5 * time.Second // SECURITY.md, "What is bounded"
	defaultDial           = 10 * time.Second
	defaultOpen           = 20 * time.Second
	defaultMaxConnections = 100_000
	keepAliveProbes       = 9
)

// withDefaults returns t with the defaults for zero values; negative ones become 0, which is off.
func (t TimeoutConfig) withDefaults() TimeoutConfig {
	or := func(d, def time.Duration) time.Duration {
		switch {
		case d < 0:
			return 0
		case d == 0:
			return def
		}
		return d
	}
	t.Handshake = or(t.Handshake, defaultHandshake)
	t.Dial = or(t.Dial, defaultDial)
	t.Open = or(t.Open, defaultOpen)
	t.Idle = or(t.Idle, 0)
	t.Age = or(t.Age, 0)
	t.UDPIdle = or(t.UDPIdle, defaultUDPIdle)
	return t
}

package tunnel

import "time"

// KindIngress is the kind of listener where clients come in that are no gateways. Env.Servers has what serves it.
const KindIngress = "ingress"

// IngressConfig says what a listener of kind `ingress` takes, and from whom.
type IngressConfig struct {
	// Protocols are what clients may speak, told apart by their first bytes: `http` (HTTP/1.1 in the clear), `h2c`
	// (HTTP/2 in the clear, with prior knowledge), `tls`, and `tcp`, which is everything else, also a client that waits for
	// the server to speak first. Default: http, h2c and, where there is something for it, tls.
	Protocols []string `yaml:"protocols"`
	// Certificates are those that TLS is ended with, each for the names in it. A file that changes is read again.
	Certificates []CertificateConfig `yaml:"certificates"`
	// ACME takes the certificates of `acme` of the file as well.
	ACME bool `yaml:"acme"`
	// Identity shows this gateway's own identity (SPIFFE) to clients that ask for a name that no certificate is for, or for
	// none. Without it they are refused.
	Identity bool `yaml:"identity"`
	// Pass are server names, `db.example` or `*.db.example`, whose TLS is passed on unopened. The flow goes to that name.
	Pass []string `yaml:"pass"`
	// Clients says whether clients show certificates in TLS: `none`, `request` or `require`. Default none.
	Clients string `yaml:"clients"`
	// ClientRoots is a PEM file with the CAs of these certificates; then such a client has no identity for policy. Default:
	// those that this gateway believes, and the client is the peer that policy judges.
	ClientRoots string `yaml:"clientRoots"`
	// TrustForwarded are the addresses of proxies before this gateway, such as `10.0.0.0/8`, whose `forwarded`,
	// `x-forwarded-*`, `traceparent` and `baggage` are believed and added to. Of others these fields end here.
	TrustForwarded []string `yaml:"trustForwarded"`
	// ProxyProtocol are the addresses of load balancers that say in the PROXY protocol (version 1 or 2) where a connection
	// comes from. Each connection from there has to begin with it; from elsewhere it is not taken.
	ProxyProtocol []string `yaml:"proxyProtocol"`
	// Sniff is how long the first bytes of a client are waited for where `tcp` is among the protocols; then it is one that
	// waits for the server. Default 200ms.
	Sniff time.Duration `yaml:"sniff"`
	// HeadTimeout is how long the head of a request may take. Default 10s.
	HeadTimeout time.Duration `yaml:"headTimeout"`
	// BodyTimeout is how long a client may pause in the body of a request. Default 30s.
	BodyTimeout time.Duration `yaml:"bodyTimeout"`
	// IdleTimeout is how long a connection is kept on which no request is under way. Default 2m.
	IdleTimeout time.Duration `yaml:"idleTimeout"`
	// MaxHeadBytes is how long the head of a request may be. Default 65536.
	MaxHeadBytes int `yaml:"maxHeadBytes"`
	// MaxBodyBytes is how long the body of a request may be, where its route says nothing. Default: any length.
	MaxBodyBytes int64 `yaml:"maxBodyBytes"`
}

// Protocols of an ingress listener.
const (
	IngressHTTP = "http"
	IngressH2C  = "h2c"
	IngressTLS  = "tls"
	IngressTCP  = "tcp"
)

// Values of IngressConfig.Clients.
const (
	ClientsNone    = "none"
	ClientsRequest = "request"
	ClientsRequire = "require"
)

// CertificateConfig is a certificate with its key.
type CertificateConfig struct {
	// Cert is a PEM file with the certificate and those that sign it.
	Cert string `yaml:"cert"`
	// Key is a PEM file with its private key, which nobody else can read. Default: Cert.
	Key string `yaml:"key"`
}

// RouteHTTPConfig says which requests of HTTP a route takes, and what is done with them.
type RouteHTTPConfig struct {
	// Path that matches. At most one of Path, Prefix and Regex; default: every path. What is matched, and what policy is
	// asked about, has its percent signs decoded and slashes that follow each other made one.
	Path string `yaml:"path"`
	// Prefix of paths that match: `/api` takes /api and what is below it, not /apis.
	Prefix string `yaml:"prefix"`
	// Regex is a regular expression (RE2) that the whole path matches.
	Regex string `yaml:"regex"`
	// Methods that match. Default: all.
	Methods []string `yaml:"methods"`
	// Headers that match, by name: a value, `abc*`, `*abc`, or `*` for any. All of them have to.
	Headers map[string]string `yaml:"headers"`

	// RequestHeaders are changed before a request goes on, ResponseHeaders before its answer does.
	RequestHeaders HeaderChangeConfig `yaml:"requestHeaders"`
	// ResponseHeaders are changed before the answer goes to the client.
	ResponseHeaders HeaderChangeConfig `yaml:"responseHeaders"`
	// Redirect answers with a redirect; the request goes nowhere.
	Redirect *RedirectConfig `yaml:"redirect"`
	// Rewrite changes what the request asks for.
	Rewrite RewriteConfig `yaml:"rewrite"`
	// Retries is how often a request is tried again when its connection fails: one that was not sent yet, or that has no body
	// and changes nothing (GET, HEAD, OPTIONS, TRACE, PUT, DELETE), before the answer has begun. Default 1; negative: never.
	Retries int `yaml:"retries"`
	// Timeout is how long a request may take, with its answer. Default: any time.
	Timeout time.Duration `yaml:"timeout"`
	// MaxBodyBytes is how long the body of a request may be. Default: that of the listener; negative: any length.
	MaxBodyBytes int64 `yaml:"maxBodyBytes"`
	// MaxHeadBytes is how long the fields of a request may be, less than the listener lets in.
	MaxHeadBytes int `yaml:"maxHeadBytes"`
	// Upstream is what the destination speaks: `http1` or `http2`. Default: http2 for gRPC, http1 for the rest.
	Upstream string `yaml:"upstream"`
}

// Values of RouteHTTPConfig.Upstream.
const (
	UpstreamHTTP1 = "http1"
	UpstreamHTTP2 = "http2"
)

// HeaderChangeConfig changes the fields of a message. What is removed is removed first.
type HeaderChangeConfig struct {
	// Set gives a field one value.
	Set map[string]string `yaml:"set"`
	// Add adds a value to a field.
	Add map[string]string `yaml:"add"`
	// Remove takes fields away.
	Remove []string `yaml:"remove"`
}

// RedirectConfig is an answer that leads elsewhere. What is left out is as the request has it.
type RedirectConfig struct {
	// Scheme is `http` or `https`.
	Scheme string `yaml:"scheme"`
	// Host with its port, if it needs one.
	Host string `yaml:"host"`
	// Path in place of the whole path.
	Path string `yaml:"path"`
	// Prefix in place of the Prefix that the route matches.
	Prefix string `yaml:"prefix"`
	// Status is 301, 302, 303, 307 or 308. Default 302.
	Status int `yaml:"status"`
}

// RewriteConfig changes what a request asks for.
type RewriteConfig struct {
	// Prefix in place of the Prefix that the route matches.
	Prefix string `yaml:"prefix"`
	// Host in place of the host that the client has named.
	Host string `yaml:"host"`
}

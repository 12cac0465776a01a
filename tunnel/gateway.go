package tunnel

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"culvert/capture"
	"culvert/pki/bearer"
	"culvert/pki/spiffe"
	"culvert/policy"
	"culvert/tunnel/datagram"
	"culvert/tunnel/endpoint"
	"culvert/tunnel/h2"
)

// Env is what a Gateway gets from the process around it. Zero fields have the defaults named there. It is
// not changed after it was handed over.
type Env struct {
	// Log gets one record for each flow, and what an operator must know. Default: nothing is logged.
	Log *slog.Logger
	// Self returns this gateway's identity. It is asked for each flow. Required.
	Self func() spiffe.ID
	// ServerTLS returns the TLS configuration for connections of peers to an hbone listener: TLS 1.3, a
	// client certificate with a SPIFFE ID of this trust domain, ALPN h2. It is called for each connection.
	// Required with such a listener.
	ServerTLS func(listener string) *tls.Config
	// ClientTLS returns the TLS configuration for a connection to hop, which must let no server through
	// but one with hop's identity, or with this gateway's trust domain and namespace where hop has none.
	// It is called for each connection. Required with hops.
	ClientTLS func(hop *Hop) *tls.Config

	// OriginTLS returns the roots and the certificate that c names, as they are now; the gateway adds the rest. It is called
	// for each flow of a route with TLS and for each connection to or from proxies whose files are named, and must not block for
	// long. Required with these.
	OriginTLS func(c *TLSConfig) (*tls.Config, error)

	// Identify returns who the peer of a finished TLS handshake is, which came from an address, or was connected to there.
	// Default: who the SPIFFE ID in its certificate names.
	Identify func(cs *tls.ConnectionState, at netip.Addr) (spiffe.ID, error)
	// Doubt returns why a peer is not believed any more that has shown certificates, its own first, when its connection was
	// made; nil while it is. server tells that it was connected to. That the certificates have ended is no reason: what becomes of their
	// flows then is Config.Expiry. It is asked by Gateway.Recheck. Default: nobody is doubted.
	Doubt func(certs []*x509.Certificate, server bool) error

	// VerifyToken verifies a token that came with a request of a peer. Its error, which a peer is not shown, must not hold the
	// token. It may block until ctx ends. Default: tokens are not looked at.
	VerifyToken func(ctx context.Context, token string) (*Token, error)

	// Login reads a file with a user and a password for an upstream proxy. It is called for each connection, and must not
	// block for long. Required with such a file.
	Login func(file string) (user, password string, err error)

	// Bearer is what tokens are made with that proxies of others want to see: connections to providers, and the key of this
	// gateway's identity.
	Bearer bearer.Env

	// H2 are the limits of HTTP/2 connections; Handler and Budget are set by the gateway.
	H2 h2.Config
	// Budget bounds the memory of streams; new flows are refused while it is used up. Default: no bound.
	Budget *h2.Budget
	// Listen opens a socket of a listener. Default: the system's.
	Listen func(ctx context.Context, s Socket) (net.Listener, error)
	// ListenPacket opens a socket of a listener for datagrams. Default: the system's.
	ListenPacket func(ctx context.Context, s Socket) (*net.UDPConn, error)
	// Dial connects to a destination or to a hop. Default: TCP.
	Dial func(ctx context.Context, addr netip.AddrPort) (net.Conn, error)
	// DialUDP connects a socket for datagrams to a destination. Default: the system's.
	DialUDP func(ctx context.Context, addr netip.AddrPort) (net.Conn, error)
	// Resolve returns the addresses of a name. Default: the system's resolver.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	// Lookup looks names of endpoints up; see endpoint.Env. Default: Resolve, and for SRV the system's resolver, which tell no
	// TTLs.
	Lookup func(ctx context.Context, name string, kind endpoint.Kind) ([]endpoint.Answer, time.Duration, error)
	// Ways make capture ways for listener kinds that this package does not know, by kind.
	Ways map[string]func(*ListenerConfig) (capture.Way, error)
	// Servers make what serves the connections of listener kinds whose flows are found in them, by kind. g is the gateway that
	// carries the flows.
	Servers map[string]func(g *Gateway, c *ListenerConfig) (Server, error)
	// Inspector makes what looks into flows, for g. nil: nobody does, and flows of routes with Inspect are refused.
	Inspector func(g *Gateway) (Inspector, error)
	// Transports connect to hops in other ways than TransportH2, by name.
	Transports map[string]TransportDialer
	// DNS returns what answers on a dns listener. Required with one.
	DNS func(listener string) Service
	// NameOf returns the name that was given a virtual address; virtual tells that it is one, if nobody's. nil: none are
	// virtual.
	NameOf func(addr netip.Addr) (name string, virtual bool)
	// Ask asks an external authorizer, by its name in a rule, about a flow that policy allows; a Decision that does not allow
	// refuses the flow, with its rule and reason. It may block up to a deadline of its own, and ends with ctx, which is over when
	// nobody waits for the flow any more. It is called by any number of goroutines. r is not changed and may be kept. nil: there
	// are no authorizers, and a flow that one has to allow is refused.
	Ask func(ctx context.Context, authorizer string, r *policy.Request) policy.Decision
	// Requests returns who serves requests other than CONNECT on an hbone listener; nil: they get 400.
	Requests func(listener string) http.Handler
	// Agents says by which names the agents are reached that have registered here. Default: NewRegistry.
	Agents Registry
	// Decide returns what decides about flows instead of base, the policy of the configuration, which it may ask. It is called
	// for each configuration, the one of New and those of Reload; an error, or no Decider, is one of these. nil: base decides.
	// What a listener and the egress guard refuse stays refused.
	Decide func(base *policy.Policy) (Decider, error)
}

// Decider decides whether a flow may pass, and what this gateway has to do with it then. *policy.Policy is one.
type Decider interface {
	// Decide tells whether the flow may pass that r asks about. It is asked for each flow, for each address of a name that is
	// resolved here (then r.Addr is set), and again after Reload while the flow lives. It is called by any number of goroutines,
	// and flows wait for it, so it should not block. r may be kept. A Limit of Decision.Obligations is
	// known by its name and file from call to call: what is counted is kept by them, whatever becomes of the figures.
	Decide(r *policy.Request) policy.Decision
}

// Service answers apps by itself, on a listener of a Gateway.
type Service interface {
	// Serve answers on c, until the app ends it, and closes it. Where the app meant to reach somebody else, c's
	// destination says whom; else it is zero. ctx ends with the gateway.
	Serve(ctx context.Context, c *capture.Conn)
}

// Server serves the connections of a listener, on which it finds flows that it hands to Gateway.Carry or
// Gateway.CarryExchange.
type Server interface {
	// Serve serves a connection and closes it. It returns at once or when all is over; done is called once, when nothing that
	// belongs to the connection is under way any more.
	Serve(nc net.Conn, done func())
	// Close ends connections on which nothing is under way, the others when that is over, and what was kept for flows to come. It
	// returns at once. Serve may still be called.
	Close()
	// Retire is called when another server has taken the place of this one in the configuration. It is Close but for connections
	// that wait for what their clients ask next: they end with the answer to that, or when nothing comes for long, so that no
	// request is lost on its way. Close may follow.
	Retire()
	// Over reports whether there are no connections.
	Over() bool
}

// Gateway carries flows: it accepts them on its listeners, decides, opens and relays, and keeps the
// transports to hops. New makes it, Start opens its listeners, Drain and Close end it.
type Gateway struct {
	// immutable after New
	env       Env
	inspector Inspector             // nil: there is none
	carry     func(*Flow, Accepted) // Carry, or what a Listener does instead
	first     *Config               // for Start
	pool      *pool
	via       string          // this gateway in via
	base      context.Context // ended by Close
	end       context.CancelFunc
	grace     context.Context // ended by Close, and when the time for draining is over
	over      context.CancelFunc

	plan     atomic.Pointer[plan]
	lastID   atomic.Uint64
	rechecks atomic.Uint64 // how often Recheck was called
	draining atomic.Bool   // state is stateDraining or later
	cutting  atomic.Bool   // flows that live are cut, and no other is served
	stats    stats
	flows    flowTable

	work      sync.WaitGroup // accept loops, connections, the sweeper
	accepting sync.WaitGroup // accept loops

	trimmer trimmer // owned by sweepLoop
	parking parking
	host    neighbours
	pending pendingHandshakes

	silenced     atomic.Int64  // flows of datagrams that were refused, and whose sockets are held
	longCapsules datagram.Room // of all flows of datagrams
	loops        loops
	agents       agentTable
	hellos       hellos
	limits       limitTable
	asking       atomic.Pointer[context.CancelFunc] // ends the questions about live flows; nil: there were none

	replacing sync.Mutex // held while the configuration is replaced; taken before mu

	mu        sync.Mutex // guards the group below
	state     gatewayState
	listeners map[string]*listener // by Socket.key; the map is replaced, not changed
	servers   map[*serverConn]struct{}
	sets      map[setKey]*endpoint.Set // in use; the map is replaced, not changed
	idle      chan struct{}            // closed when no flow is left while draining, and no connection that may bring one
}

// gatewayState is where in its life a gateway is.
type gatewayState uint8

const (
	stateNew gatewayState = iota
	stateRunning
	stateDraining // no new flows
	stateClosed
)

// New makes a gateway of cfg, which it validates. It opens nothing. Problems of cfg come back as Problems.
func New(cfg *Config, env Env) (*Gateway, error) {
	env = env.withDefaults()
	g := &Gateway{env: env, first: cfg, via: newViaMember(), listeners: make(map[string]*listener), servers: make(map[*serverConn]struct{})}
	if g.env.Resolve == nil {
		g.env.Resolve = g.resolveHost
	}
	if g.env.Lookup == nil {
		g.env.Lookup = g.lookup
	}
	p, err := g.compile(cfg)
	if err != nil {
		return nil, err
	}
	g.carry = g.Carry
	if env.Inspector != nil {
		if g.inspector, err = env.Inspector(g); err != nil {
			return nil, err
		}
	}
	g.limits.init()
	g.plan.Store(p)
	g.base, g.end = context.WithCancel(context.Background())
	g.grace, g.over = context.WithCancel(g.base)
	g.pool = newPool(g.env.Self, g.dialChain, &g.stats)
	g.pool.checks, g.pool.check = g.rechecks.Load, g.recheckHop
	if g.env.Dial == nil {
		g.env.Dial = g.dialTCP
	}
	if g.env.DialUDP == nil {
		g.env.DialUDP = g.dialUDP
	}
	return g, nil
}

func (e Env) withDefaults() Env {
	if e.Log == nil {
		e.Log = slog.New(slog.DiscardHandler)
	}
	if e.Listen == nil {
		e.Listen = func(ctx context.Context, s Socket) (net.Listener, error) { return s.Listen(ctx) }
	}
	if e.ListenPacket == nil {
		e.ListenPacket = func(ctx context.Context, s Socket) (*net.UDPConn, error) { return s.ListenPacket(ctx) }
	}
	if e.Agents == nil {
		e.Agents = NewRegistry()
	}
	return e
}

// compile validates cfg and makes a plan of it.
func (g *Gateway) compile(cfg *Config) (*plan, error) {
	if g.env.Self == nil {
		return nil, errors.New("tunnel: no identity (Env.Self)")
	}
	var kinds []string
	for kind := range g.env.Ways {
		kinds = append(kinds, kind)
	}
	for kind := range g.env.Servers {
		kinds = append(kinds, kind)
	}
	slices.Sort(kinds)
	if err := cfg.Validate(kinds...); err != nil {
		return nil, err
	}
	if err := g.env.lacks(cfg); err != nil {
		return nil, err
	}
	p, err := compile(cfg, g.env.Self())
	if err != nil {
		return nil, err
	}
	g.bind(p)
	if g.env.Decide == nil {
		return p, nil
	}
	if p.decider, err = g.env.Decide(p.policy); err != nil {
		return nil, fmt.Errorf("Env.Decide: %w", err)
	}
	if p.decider == nil {
		return nil, errors.New("tunnel: Env.Decide has returned no Decider")
	}
	return p, nil
}

// lacks says what cfg needs and e does not have.
func (e *Env) lacks(cfg *Config) error {
	for i := range cfg.Listeners {
		l := &cfg.Listeners[i]
		if (l.Kind == KindHBONE || l.Kind == KindXTun) && e.ServerTLS == nil {
			return fmt.Errorf("tunnel: an %s listener and no TLS configuration for it (Env.ServerTLS)", l.Kind)
		}
		if (l.XTun != nil || l.Kind == KindXTun) && e.VerifyToken == nil {
			return errors.New("tunnel: a listener that takes x-tun and nobody who verifies tokens (Env.VerifyToken)")
		}
		if l.XTun != nil && l.XTun.Cert != "" && e.OriginTLS == nil {
			return errors.New("tunnel: a listener that takes x-tun in TLS and nothing that reads its files (Env.OriginTLS)")
		}
		if l.Kind == KindAgent && e.ClientTLS == nil {
			return errors.New("tunnel: an agent listener and no TLS configuration for its hop (Env.ClientTLS)")
		}
	}
	for name, h := range cfg.Hops {
		switch {
		case h.Login != "" && e.Login == nil:
			return fmt.Errorf("tunnel: hop %s has a login and nothing reads it (Env.Login)", name)
		case h.Proxy == proxyHTTPS && e.OriginTLS == nil:
			return fmt.Errorf("tunnel: hop %s is an https proxy and nothing reads its roots (Env.OriginTLS)", name)
		case h.TLS.Roots != "" && e.OriginTLS == nil:
			return fmt.Errorf("tunnel: hop %s has tls.roots and nothing reads them (Env.OriginTLS)", name)
		}
	}
	for i := range cfg.Routes {
		if cfg.Routes[i].TLS != nil && e.OriginTLS == nil {
			return errors.New("tunnel: a route with tls and nothing that reads its files (Env.OriginTLS)")
		}
		if len(cfg.Routes[i].Via) > 0 && e.ClientTLS == nil {
			return errors.New("tunnel: a hop and no TLS configuration for it (Env.ClientTLS)")
		}
	}
	for _, s := range cfg.Services {
		if e.ClientTLS == nil && slices.ContainsFunc(s.Endpoints, func(one endpoint.EndpointConfig) bool { return one.Tun != "" }) {
			return errors.New("tunnel: an endpoint that is reached by a tunnel and no TLS configuration for it (Env.ClientTLS)")
		}
	}
	return nil
}

// Start opens the listeners of the configuration given to New and serves them, until Drain or Close.
// When one cannot be opened, none is served. It returns when all are open.
func (g *Gateway) Start(ctx context.Context) error {
	return g.replace(ctx, g.first, g.plan.Load(), stateNew)
}

// Reload replaces the configuration: it opens what is new, and only when everything in cfg is right and
// open does anything change. Then new flows are decided by cfg; flows that run live on, but for those
// that its policy does not let pass, and listeners that are gone accept no more. A listener is the same as one before that had its address. After an error
// the gateway runs as before.
func (g *Gateway) Reload(ctx context.Context, cfg *Config) error {
	p, err := g.compile(cfg)
	if err != nil {
		return err
	}
	if err := g.replace(ctx, cfg, p, stateRunning); err != nil {
		return err
	}
	g.decideAgain(p)
	g.reconsiderAgents(p)
	return nil
}

// replace puts the listeners of cfg and the plan p in the place of those that are there, in one step. The
// gateway must be in the state from.
func (g *Gateway) replace(ctx context.Context, cfg *Config, p *plan, from gatewayState) error {
	g.replacing.Lock()
	defer g.replacing.Unlock()
	g.mu.Lock()
	before, state := g.listeners, g.state
	g.mu.Unlock()
	switch {
	case state >= stateDraining:
		return errDraining
	case state != from:
		return errors.New("tunnel: a gateway is started once, and reloaded after that")
	}
	next, err := g.openListeners(ctx, cfg, before)
	if err != nil {
		return err
	}
	g.mu.Lock()
	if g.state != from { // closed meanwhile
		g.mu.Unlock()
		next.abandon()
		return errDraining
	}
	g.install(next, p)
	if from == stateNew {
		g.state = stateRunning
		g.work.Add(1)
		go g.sweepLoop() // ends with the gateway; Close waits for it
	}
	g.mu.Unlock()
	g.balance(p)
	return nil
}

// install puts next in the place of the listeners that run. Called with mu held.
func (g *Gateway) install(next *listening, p *plan) {
	g.plan.Store(p)
	for key, conf := range next.conf {
		if l := next.all[key]; l.conf.Load() != nil {
			l.reconfigure(conf)
		} else {
			l.conf.Store(conf)
		}
	}
	for key, l := range g.listeners {
		if next.all[key] != nil {
			continue
		}
		l.close()
		for s := range g.servers {
			if s.l == l {
				g.work.Go(func() { s.drain(g.grace) }) // ends with the connection's streams or the gateway; Close waits for it
			}
		}
	}
	g.listeners = next.all
	for _, l := range next.opened {
		if l.runs != nil {
			l.runs.follow(l, l.conf.Load())
			continue
		}
		g.work.Add(1)
		g.accepting.Add(1)
		if l.pc != nil {
			go l.packetLoop() // as the next one
			continue
		}
		l.spare = openSpare()
		if _, ok := l.ln.(*net.TCPListener); ok {
			g.parking.open() // while there are files
		}
		go l.acceptLoop() // ends when the listener is closed, by Drain, Close or a Reload without it; Close waits for it
	}
}

// Via is how this gateway calls itself to other gateways, so that it knows a flow again that comes back: random, and new with
// each start.
func (g *Gateway) Via() string { return g.via }

// Self returns this gateway's identity.
func (g *Gateway) Self() spiffe.ID { return g.env.Self() }

// Addr returns the address on which the listener called name is open, nil if it is not. Of several it is the first
// one.
func (g *Gateway) Addr(name string) net.Addr {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(g.listeners)) {
		if l := g.listeners[key]; l.conf.Load().name == name {
			return l.addr()
		}
	}
	return nil
}

// Ping connects to the last of hops through those before it, as a flow would, and returns who it is and
// the round trip. hops are names of cfg.Hops, or addresses.
func (g *Gateway) Ping(ctx context.Context, cfg *Config, hops ...string) (spiffe.ID, time.Duration, error) {
	var list []*Hop
	for _, name := range hops {
		hc, known := cfg.Hops[name]
		if !known {
			hc = HopConfig{Address: name}
		}
		h, err := newHop(name, &hc)
		if err != nil {
			return spiffe.ID{}, 0, err
		}
		if g.bindHop(&plan{sets: make(map[setKey]setConf)}, name, h); h.set != nil {
			h.set.Refresh(ctx) // where nothing was started
		}
		list = append(list, h)
	}
	c := newChain(list)
	if c == nil {
		return spiffe.ID{}, 0, errors.New("no hop to ping")
	}
	return g.pool.ping(ctx, c)
}

// dialTCP is the default of Env.Dial. It does not use net.Dialer.DialTCP: in Go 1.26 that binds the socket
// before it connects, also where no local address is given, so that all destinations together share the
// system's ephemeral ports instead of having them each.
func (g *Gateway) dialTCP(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{KeepAlive: -1, Control: g.ownMark()} // see socket.watchPeer
	return d.DialContext(ctx, "tcp", addr.String())
}

// dialUDP is the default of Env.DialUDP.
func (g *Gateway) dialUDP(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{Control: g.ownMark()}
	return d.DialContext(ctx, "udp", addr.String())
}

// ownMark is for net.Dialer.Control: it marks what the gateway dials, where the plan captures; nil where not.
func (g *Gateway) ownMark() func(network, address string, raw syscall.RawConn) error {
	if !g.plan.Load().captures {
		return nil
	}
	return func(_, _ string, raw syscall.RawConn) error {
		markOwn(raw, capture.MarkOwn)
		return nil
	}
}

// DialOwn connects to an address that the process itself needs, such as an authorizer's. It is no flow: no route and no
// policy is asked, and where the gateway captures, the connection is marked as its own so that it is not captured. It ends with
// ctx.
func (g *Gateway) DialOwn(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Control: g.ownMark()}
	if d.Control != nil {
		marked := net.Dialer{Control: d.Control}
		d.Resolver = &net.Resolver{PreferGo: true, Dial: marked.DialContext}
	}
	return d.DialContext(ctx, network, address)
}

// resolveHost is the default of Env.Resolve. Its questions carry the mark too.
func (g *Gateway) resolveHost(ctx context.Context, host string) ([]netip.Addr, error) {
	return g.resolver().LookupNetIP(ctx, "ip", host)
}

// resolver is the system's, with the mark on its questions where the plan captures.
func (g *Gateway) resolver() *net.Resolver {
	if mark := g.ownMark(); mark != nil {
		d := net.Dialer{Control: mark}
		return &net.Resolver{PreferGo: true, Dial: d.DialContext}
	}
	return net.DefaultResolver
}

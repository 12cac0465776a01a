package main

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"

	"culvert/pki"
	"culvert/pki/bearer"
	"culvert/policy"
	"culvert/policy/extauthz"
	"culvert/tunnel"
	"culvert/tunnel/h2"
	"culvert/tunnel/ingress"
)

// parts is a gateway put together: what a Config becomes. Owned by the goroutine that runs it, except for
// what each part allows others.
type parts struct {
	cfg      *Config
	log      *logging
	sockets  *sockets
	identity *identity
	budget   *h2.Budget
	tunnel   *tunnel.Gateway
	counts   *counts
	names    *resolver
	lookup   *lookup
	clients  *pki.ClientFiles
	asked    *extauthz.Set
	tokens   *tokens
	acme     publicCerts
	admin    *admin       // nil without an admin address
	adminAt  net.Listener // where admin is served
}

// build puts a gateway together and starts it: who it is, what it may use, where flows go, where it is
// looked at, where flows come in. cfg has been validated. After an error nothing is left behind.
func build(ctx context.Context, cfg *Config, p *places, log *logging, s *sockets) (_ *parts, err error) {
	b := &parts{cfg: cfg, log: log, sockets: s, counts: new(counts)}
	defer func() {
		if err != nil {
			b.close()
		}
	}()

	source, err := openIdentity(ctx, cfg, p, log.Logger)
	if err != nil {
		return nil, err
	}
	b.identity = newIdentity(source)
	if err := cfg.testPolicies(b.identity.self()); err != nil {
		return nil, err
	}

	memory := processMemory(cfg.Memory)
	limitMemory(memory)
	paceMemory(memory)
	b.budget = h2.NewBudget(memory / bufferShare)

	if err := b.openNames(cfg); err != nil {
		return nil, err
	}
	if err := b.openLookup(cfg); err != nil {
		return nil, err
	}
	if err := b.openAdmin(cfg); err != nil {
		return nil, err
	}
	b.clients = pki.NewClientFiles(log.Logger)
	b.asked = b.newAuthorizers()
	b.tokens = b.newTokens()
	cfg.Config.Reserved = b.reserved()
	b.tunnel, err = tunnel.New(&cfg.Config, b.env()) // policy, hops, routes
	if err != nil {
		return nil, err
	}
	if err := b.openTokens(cfg, p); err != nil {
		return nil, err
	}
	if err := b.openAuthorizers(); err != nil {
		return nil, err
	}
	if err := b.openACME(cfg); err != nil {
		return nil, asFaults(cfg, p, err)
	}
	b.serveAdmin()

	if err := b.tunnel.Start(ctx); err != nil { // listeners
		return nil, err
	}
	log.Info("gateway is running", "version", buildVersion().Version, "id", b.identity.self().String(), "via", b.tunnel.Via(),
		"memory", Size(memory).String(), "files", openFilesLimit())
	b.announce()
	logSigned(log.Logger, cfg)
	for _, address := range s.closeRest() {
		log.Warn("inherited socket is no listener's and was closed", "address", address)
	}
	return b, nil
}

// env is what the tunnel gets of the parts around it.
func (b *parts) env() tunnel.Env {
	return tunnel.Env{
		Log:       b.log.Logger,
		Self:      b.identity.self,
		ServerTLS: b.identity.serverTLS,
		ClientTLS: b.identity.clientTLS,
		Identify:  b.identity.identify,
		Doubt:     b.identity.doubt,
		H2:        h2.Config{Logger: b.log.Logger},
		Budget:    b.budget,
		Resolve:   b.lookup.addrs,
		Lookup:    b.lookup.answers,
		Login:     readLogin,
		OriginTLS: func(c *tunnel.TLSConfig) (*tls.Config, error) {
			return b.clients.Config(c.Roots, c.Cert, c.Key)
		},
		Listen: func(_ context.Context, socket tunnel.Socket) (net.Listener, error) {
			return b.sockets.listen(socket)
		},
		ListenPacket: func(_ context.Context, socket tunnel.Socket) (*net.UDPConn, error) {
			return b.sockets.listenPacket(socket)
		},
		DNS:    func(string) tunnel.Service { return b.names },
		NameOf: b.names.nameOf,
		Ask:    b.asked.Ask,

		VerifyToken: b.tokens.verify,
		Bearer: bearer.Env{Sign: b.identity.sign, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return b.tunnel.DialOwn(ctx, network, addr)
		}},
		Servers:   map[string]func(*tunnel.Gateway, *tunnel.ListenerConfig) (tunnel.Server, error){tunnel.KindIngress: ingress.New(b.ingressEnv())},
		Inspector: ingress.NewInspector(b.ingressEnv()),
	}
}

// ingressEnv is what serves requests gets of the parts around it.
func (b *parts) ingressEnv() ingress.Env {
	return ingress.Env{
		Log: b.log.Logger, MeshTLS: b.identity.serverTLS, Identify: b.identity.identify, Issuer: &b.acme,
		H2: h2.Config{Logger: b.log.Logger}, Budget: b.budget,
	}
}

// dialOwn connects to what the process itself needs.
func (b *parts) dialOwn(ctx context.Context, network, addr string) (net.Conn, error) {
	return b.tunnel.DialOwn(ctx, network, addr)
}

// openNames makes what answers questions for names. Its own questions are flows of the tunnel.
func (b *parts) openNames(cfg *Config) error {
	b.names = &resolver{dial: func(ctx context.Context, listener, network, address string) (net.Conn, error) {
		return b.tunnel.Dial(ctx, listener, network, address)
	}}
	server, err := b.names.newNames(cfg)
	if err != nil {
		return err
	}
	b.names.swap(server, cfg)
	return nil
}

// newTokens makes what verifies tokens. The keys of issuers are fetched by connections that are marked as the gateway's own.
func (b *parts) newTokens() *tokens {
	return &tokens{log: b.log.Logger, pinned: b.identity.pinned, dial: b.dialOwn}
}

// openTokens puts the issuers in place. The tunnel is there by then, for their keys are fetched through it at once.
func (b *parts) openTokens(cfg *Config, p *places) error {
	v, err := b.tokens.prepare(cfg)
	if err != nil {
		return tokenFaults(cfg, p, err)
	}
	b.tokens.swap(v)
	return nil
}

// announce logs where the gateway can be reached, with the ports that the system chose.
func (b *parts) announce() {
	for _, l := range b.cfg.Listeners {
		if l.Kind == tunnel.KindAgent {
			b.log.Info("agent dials its hop", "listener", l.Name, "hop", b.tunnel.Addr(l.Name).String(), "names", strings.Join(l.Names, " "))
			continue
		}
		b.log.Info("listener is open", "listener", l.Name, "kind", l.Kind, "address", b.tunnel.Addr(l.Name).String())
	}
	if mode := b.cfg.Policy.Mode; mode != "" && mode != policy.ModeEnforce {
		b.log.Warn("policy is not enforced on this gateway", "reason", "policy.mode is "+string(mode))
	}
	if b.adminAt != nil {
		b.log.Info("admin address is open", "address", b.adminAt.Addr().String())
	}
}

// openAdmin opens the socket of the admin address; serveAdmin answers on it.
func (b *parts) openAdmin(cfg *Config) error {
	if cfg.Admin.Address == "" {
		return nil
	}
	ln, err := listenAdmin(b.sockets, cfg.Admin.Address)
	if err != nil {
		return err
	}
	b.adminAt = ln
	return nil
}

func (b *parts) serveAdmin() {
	if b.adminAt == nil {
		return
	}
	if b.admin == nil {
		metrics := newMetrics(b.tunnel.Stats, b)
		metrics.MustRegister(newEndpointMetrics(b.tunnel.Endpoints))
		b.admin = newAdmin(metrics, b.flows, b.agents, b.endpoints, b.log.Logger)
		b.admin.expired = b.identity.expired
	}
	b.admin.serve(b.adminAt, b.log.Logger)
}

// flows is what /flows shows.
func (b *parts) flows(limit int) any {
	list := b.tunnel.Flows(limit)
	if list == nil {
		list = []tunnel.FlowInfo{} // a list in JSON too
	}
	return list
}

// agents is what /agents shows.
func (b *parts) agents(limit int) any {
	list := b.tunnel.Agents(limit)
	if list == nil {
		list = []tunnel.AgentInfo{} // a list in JSON too
	}
	return list
}

// endpoints is what /endpoints shows: services and hops, each with its endpoints.
func (b *parts) endpoints(limit int) any {
	list := b.tunnel.Endpoints()
	return list[:min(len(list), limit)]
}

// reserved are the addresses of this process that are no listener's.
func (b *parts) reserved() []netip.AddrPort {
	if b.adminAt == nil {
		return nil
	}
	at, err := netip.ParseAddrPort(b.adminAt.Addr().String())
	if err != nil {
		return nil
	}
	return []netip.AddrPort{netip.AddrPortFrom(at.Addr().Unmap().WithZone(""), at.Port())}
}

// close ends everything at once.
func (b *parts) close() {
	if b.tunnel != nil {
		b.tunnel.Close()
	}
	if b.asked != nil {
		b.asked.Close() // nobody asks any more
	}
	if b.tokens != nil {
		b.tokens.swap(nil)
	}
	b.acme.swap(nil)
	if b.lookup != nil {
		b.lookup.swap(nil)
	}
	b.closeAdmin()
	if b.identity != nil {
		_ = b.identity.current.Load().Close() // it returns nil
	}
	b.sockets.closeRest()
}

// releaseAdmin leaves the admin address to another process.
func (b *parts) releaseAdmin() {
	if b.admin != nil {
		b.admin.release()
	}
}

// closeAdmin lets answers that are under way end, for a moment.
func (b *parts) closeAdmin() {
	if b.admin != nil {
		ctx, cancel := context.WithTimeout(context.Background(), adminEnd)
		defer cancel()
		b.admin.close(ctx)
	}
	if b.adminAt != nil {
		_ = b.adminAt.Close() // the server may have closed it
	}
}

// load makes a Config of the flags and checks everything about it that can be checked without changing
// anything: its form, its sense, its files.
func load(r *runFlags) (*Config, *places, error) {
	cfg, p, f := r.config()
	validate(cfg, p, f)
	checkFiles(cfg, p, f, slog.New(slog.DiscardHandler)) // what is only odd is logged when it is opened
	return cfg, p, f.err()
}

// asFaults puts lines to problems that only building has shown.
func asFaults(cfg *Config, p *places, err error) error {
	var problems tunnel.Problems
	var file *pki.ConfigError
	if !errors.As(err, &problems) && !errors.As(err, &file) {
		return err
	}
	f := new(faults)
	v := &validator{cfg: cfg, places: p, faults: f}
	if len(problems) > 0 {
		v.join("", problems)
	} else {
		v.note("state", "%s", strings.TrimPrefix(err.Error(), file.Field+" ")) // the file's name says which it is
	}
	return f
}

package main

import (
	"crypto/ed25519"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"culvert/capture"
	"culvert/capture/rules"
	"culvert/tunnel"
)

// runFlags are the flags that make a Config. Those of the process (logs, admin, memory, drain, state) also
// stand over a file's values; those that describe the path of flows exclude a file.
type runFlags struct {
	file string

	cert, key, roots string
	hbone            string
	socks            string
	httpProxy        string
	socksUDP         bool
	proxyUsers       string
	openProxy        bool
	forward          []string
	capture          string
	redirect         string
	inbound          string
	dns              string
	meshNames        []string
	via              []string
	allow            []string
	policy           []string
	egress           []string

	state     string
	admin     string
	openAdmin bool
	memory    Size
	drain     time.Duration
	logLevel  string
	logFormat string

	configKey  string
	configKeys []ed25519.PublicKey // of that file; nil: not read yet
	running    *signedFiles        // of the configuration that runs; nil: none does

	agent   *agentFlags // of `gateway agent`; nil: it is another command
	changed func(flag string) bool
}

// pathFlags describe the path of flows; with a file they would say the same thing in two places.
func pathFlags() []string {
	return []string{"cert", "key", "roots", "hbone", "socks", "http-proxy", "socks-udp", "proxy-users", "open-proxy", "forward", "capture", "redirect", "inbound", "dns", "mesh-names", "via", "allow", "policy", "egress"}
}

// addFile, addConfigKey, addIdentity, addRun and addProcess add the flags that the commands share.
func (r *runFlags) addFile(fs *pflag.FlagSet) {
	fs.StringVarP(&r.file, "config", "c", "", "configuration `FILE` (YAML)")
}

func (r *runFlags) addConfigKey(fs *pflag.FlagSet) {
	fs.StringVar(&r.configKey, "config-key", "", "public keys, PEM `FILE`: the configuration and its policies have to be signed with one of them; what else they name, such as keys and lists, need not")
}

func (r *runFlags) addIdentity(fs *pflag.FlagSet) {
	fs.StringVar(&r.cert, "cert", "", "certificate chain of this gateway, PEM `FILE`")
	fs.StringVar(&r.key, "key", "", "private key of the certificate, PEM `FILE`")
	fs.StringVar(&r.roots, "roots", "", "certificates that peers' certificates must lead to, PEM `FILE`")
	fs.StringVar(&r.state, "state", "", "`DIR` for what the gateway keeps, such as an identity made on first start")
}

func (r *runFlags) addRun(fs *pflag.FlagSet) {
	fs.StringVar(&r.hbone, "hbone", "", "accept tunnels from other gateways on `ADDR`; alone, only this host's own addresses are destinations")
	fs.StringVar(&r.socks, "socks", "", "accept SOCKS5 on `ADDR`")
	fs.BoolVar(&r.socksUDP, "socks-udp", false, "let programs send datagrams through --socks (UDP ASSOCIATE)")
	fs.StringVar(&r.httpProxy, "http-proxy", "", "be an HTTP proxy on `ADDR`; with --socks at the same address, both on one port")
	fs.StringVar(&r.proxyUsers, "proxy-users", "", "`FILE` with name:password lines that users of --socks and --http-proxy must show")
	fs.BoolVar(&r.openProxy, "open-proxy", false, "let --socks and --http-proxy without users listen off loopback: whoever reaches them uses this gateway's identity")
	fs.StringArrayVar(&r.forward, "forward", nil, "send every connection to LISTEN on to DEST, as `LISTEN=DEST`, such as 127.0.0.1:5432=db.internal:5432; udp:HOST:PORT for datagrams, unix:/PATH for sockets, HOST:FROM-TO for ranges (repeatable)")
	fs.StringVar(&r.capture, "capture", "", "take flows that 'gateway capture install' leads here, with TPROXY; elsewhere with --capture=`ADDR`")
	fs.StringVar(&r.redirect, "redirect", "", "take flows that 'gateway capture install --mode redirect' leads here; elsewhere with --redirect=`ADDR`")
	fs.StringVar(&r.inbound, "inbound", "", "take plain flows to this host that 'gateway capture install --inbound PORTS' leads here: `MODE` strict refuses them, permissive lets them in")
	fs.StringVar(&r.dns, "dns", "", "answer questions for names, on --dns=`ADDR`; there with --capture and --redirect, on "+dnsAddress)
	fs.StringSliceVar(&r.meshNames, "mesh-names", nil, "`NAME[,NAME]` that only the mesh knows, such as *.mesh: they get virtual addresses, and flows to these go to the names")
	for flag, address := range map[string]string{"capture": captureAddress, "redirect": captureAddress, "dns": dnsAddress} {
		fs.Lookup(flag).NoOptDefVal = address
	}
	fs.StringSliceVar(&r.via, "via", nil, "send flows through `HOP[,HOP]`, nearest first, each host:port")
	fs.StringArrayVar(&r.allow, "allow", nil, "let `PRINCIPAL` in besides the own namespace, such as cluster.local/ns/shop/* (repeatable)")
	fs.StringArrayVar(&r.policy, "policy", nil, "decide by the rules in `FILE`, see 'gateway policy' (repeatable)")
	fs.StringArrayVar(&r.egress, "egress", nil, "be an egress for `NAME|CIDR`: a name, *.name, address or range, each with :port if only that, or * (repeatable)")
	r.addProcess(fs)
}

// addProcess adds the flags of a process that serves.
func (r *runFlags) addProcess(fs *pflag.FlagSet) {
	fs.StringVar(&r.admin, "admin", "", "serve /healthz /readyz /metrics /flows /agents /debug/pprof on `ADDR`")
	fs.BoolVar(&r.openAdmin, "open-admin", false, "let the admin address be one that other hosts reach")
	fs.Var(&r.memory, "memory", "budget of the process, such as 512MiB (default: half of what there is)")
	fs.DurationVar(&r.drain, "drain", defaultDrain, "how long live flows may run on after SIGTERM")
	fs.StringVar(&r.logLevel, "log-level", "info", "debug, info, warn or error")
	fs.StringVar(&r.logFormat, "log-format", "text", "text or json")
}

// captureAddress is where `gateway capture install` leads flows, and dnsAddress where it leads questions for names.
var (
	captureAddress = "localhost:" + strconv.Itoa(rules.DefaultPort)        // immutable
	inboundAddress = "localhost:" + strconv.Itoa(rules.DefaultInboundPort) // immutable
	dnsAddress     = "localhost:" + strconv.Itoa(rules.DefaultDNSPort)     // immutable
)

// Values of --inbound.
const (
	inboundStrict     = "strict"
	inboundPermissive = "permissive"
)

// completeRun and completeProcess tell the shell what the flags' values are.
func completeRun(cmd *cobra.Command) {
	completeProcess(cmd)
	completeWords(cmd, map[string][]string{
		"hbone":      {":15008", "127.0.0.1:15008"},
		"socks":      {"127.0.0.1:1080"},
		"http-proxy": {"127.0.0.1:3128"},
		"inbound":    {inboundStrict, inboundPermissive},
	})
	if err := cmd.MarkFlagFilename("config", "yaml", "yml"); err != nil {
		panic("BUG: " + err.Error())
	}
}

func completeProcess(cmd *cobra.Command) {
	completeWords(cmd, map[string][]string{
		"log-level":  {"debug", "info", "warn", "error"},
		"log-format": {"text", "json"},
		"admin":      {"127.0.0.1:15000"},
	})
	if err := cmd.MarkFlagDirname("state"); err != nil {
		panic("BUG: " + err.Error())
	}
}

func completeWords(cmd *cobra.Command, flags map[string][]string) {
	for flag, list := range flags {
		if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(list, cobra.ShellCompDirectiveNoFileComp)); err != nil {
			panic("BUG: " + err.Error())
		}
	}
}

// config makes the Config: from the file if one is named, else from the flags alone.
func (r *runFlags) config() (*Config, *places, *faults) {
	var cfg *Config
	var p *places
	var f *faults
	if r.file != "" {
		cfg, p, f = r.readFile()
		for _, flag := range pathFlags() {
			if r.changed(flag) {
				f.list = append(f.list, fault{flag: "--" + flag, what: "cannot be given together with -c; write it into " + r.file})
			}
		}
	} else {
		cfg, p, f = new(Config), newPlaces(""), new(faults)
		if r.wantsSigned() {
			f.list = append(f.list, fault{flag: "--config-key", what: "there is no -c FILE that could be signed; flags need no signature"})
		}
		r.paths(cfg, p, f)
	}
	r.process(cfg, p)
	return cfg, p, f
}

// process lets the flags of the process stand over what a file says.
func (r *runFlags) process(cfg *Config, p *places) {
	set := func(flag, path string, assign func()) {
		if r.changed(flag) {
			p.flags[path] = "--" + flag
			assign()
		}
	}
	set("state", "state", func() { cfg.State = r.state })
	set("admin", "admin.address", func() { cfg.Admin.Address = r.admin })
	set("open-admin", "admin.open", func() { cfg.Admin.Open = r.openAdmin })
	set("memory", "memory", func() { cfg.Memory = r.memory })
	set("log-level", "log.level", func() { cfg.Log.Level = r.logLevel })
	set("log-format", "log.format", func() { cfg.Log.Format = r.logFormat })
	set("drain", "drain", func() {
		cfg.Drain = r.drain
		if r.drain == 0 {
			cfg.Drain = -1 // said, not left out: no grace
		}
	})
}

// paths makes listeners, routes, identity and policy of the flags.
func (r *runFlags) paths(cfg *Config, p *places, f *faults) {
	r.identity(cfg, p)
	if r.agent != nil {
		r.agent.paths(r, cfg, p, f)
		return
	}
	cfg.Policy.Allow, cfg.Policy.Files = r.allow, r.policy
	p.flags["policy.allow"], p.flags["policy.files"] = "--allow", "--policy"

	var captured, direct, resolvers, mesh []string // listeners, by where their flows go
	add := func(flag string, l tunnel.ListenerConfig) {
		p.flags[fmt.Sprintf("listeners[%d]", len(cfg.Listeners))] = flag
		cfg.Listeners = append(cfg.Listeners, l)
	}
	for _, l := range r.proxies() {
		for _, part := range []string{"socks5", "http"} {
			p.flags[fmt.Sprintf("listeners[%d].%s", len(cfg.Listeners), part)] = "--proxy-users"
		}
		add("--"+l.Name, l)
		captured = append(captured, l.Name)
	}
	for i, text := range r.forward {
		l, ok := forwardOf(i, text, f)
		if !ok {
			continue
		}
		add("--forward", l)
		if strings.HasPrefix(l.To, "unix:") { // it is on this host
			direct = append(direct, l.Name)
		} else {
			captured = append(captured, l.Name)
		}
	}
	for _, one := range []struct{ flag, kind, address string }{
		{"capture", tunnel.KindTProxy, r.capture}, {"redirect", tunnel.KindRedirect, r.redirect},
	} {
		if r.changed(one.flag) {
			add("--"+one.flag, tunnel.ListenerConfig{Name: one.flag, Kind: one.kind, Address: one.address})
			captured = append(captured, one.flag)
		}
	}
	if r.changed("inbound") {
		r.plainInbound(cfg, p, f)
	}
	if address := r.dnsListener(); address != "" {
		cfg.DNS.Virtual = r.meshNames
		p.flags["dns.virtual"] = "--mesh-names"
		add("--dns", tunnel.ListenerConfig{Name: "dns", Kind: tunnel.KindDNS, Address: address, Captured: r.changed("capture")})
		resolvers = append(resolvers, "dns")
	}
	if r.changed("hbone") {
		add("--hbone", tunnel.ListenerConfig{Name: "hbone", Kind: tunnel.KindHBONE, Address: r.hbone})
		mesh = append(mesh, "hbone")
	}
	if len(cfg.Listeners) == 0 && len(f.list) == 0 {
		f.list = append(f.list, fault{what: "nothing to listen on; give -c FILE, --capture, or --socks, --http-proxy, --forward or --hbone with an address (`gateway demo` shows a working pair)"})
	}
	r.idle(f)
	if len(direct) > 0 {
		p.flags[fmt.Sprintf("routes[%d]", len(cfg.Routes))] = "--forward"
		cfg.Routes = append(cfg.Routes, tunnel.RouteConfig{Listeners: direct})
	}
	r.routes(cfg, p, f, captured, mesh)
	if len(resolvers) > 0 { // the resolvers that apps ask are near them
		p.flags[fmt.Sprintf("routes[%d]", len(cfg.Routes))] = "--dns"
		cfg.Routes = append(cfg.Routes, tunnel.RouteConfig{Listeners: resolvers, Destinations: resolverRanges, Ports: []uint16{53}})
	}
}

// plainInbound makes the listener of --inbound, and its route.
func (r *runFlags) plainInbound(cfg *Config, p *places, f *faults) {
	if r.inbound != inboundStrict && r.inbound != inboundPermissive {
		f.list = append(f.list, fault{flag: "--inbound", what: fmt.Sprintf("%q is none; it should be %s or %s", r.inbound, inboundStrict, inboundPermissive)})
	}
	kind, address := tunnel.KindTProxy, inboundAddress
	if r.changed("redirect") { // which leads flows to the address of the interface
		kind, address = tunnel.KindRedirect, strings.TrimPrefix(inboundAddress, "localhost")
	}
	p.flags[fmt.Sprintf("listeners[%d]", len(cfg.Listeners))] = "--inbound"
	cfg.Listeners = append(cfg.Listeners, tunnel.ListenerConfig{Name: "inbound", Kind: kind, Address: address, Strict: r.inbound == inboundStrict})
	p.flags[fmt.Sprintf("routes[%d]", len(cfg.Routes))] = "--inbound"
	cfg.Routes = append(cfg.Routes, tunnel.RouteConfig{Listeners: []string{"inbound"}, Destinations: []string{destLocal}, From: "any"})
}

// resolverRanges are where resolvers are: anywhere, this host and its networks included, which a route has to name.
var resolverRanges = []string{
	"0.0.0.0/0", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16", "::/0", "::1", "fc00::/7",
}

// dnsListener is where questions for names are answered, "" if nowhere.
func (r *runFlags) dnsListener() string {
	switch {
	case r.changed("dns"):
		return r.dns
	case r.changed("capture"), r.changed("redirect"):
		return dnsAddress
	}
	return ""
}

// forwardOf makes the listener of a --forward.
func forwardOf(i int, text string, f *faults) (l tunnel.ListenerConfig, ok bool) {
	listen, to, ok := strings.Cut(text, "=")
	if !ok {
		f.list = append(f.list, fault{flag: "--forward", what: fmt.Sprintf("%q is not LISTEN=DEST, such as 127.0.0.1:8080=orders.shop.svc:80", text)})
		return l, false
	}
	l = tunnel.ListenerConfig{Name: fmt.Sprintf("forward-%d", i+1), Kind: tunnel.KindForward, Address: listen, To: to}
	if address, isUDP := strings.CutPrefix(listen, "udp:"); isUDP {
		l.Address, l.Network = address, "udp"
	}
	return l, true
}

// proxies are the listeners for programs that are pointed at them.
func (r *runFlags) proxies() (list []tunnel.ListenerConfig) {
	if r.changed("socks") {
		list = append(list, tunnel.ListenerConfig{
			Name: "socks", Kind: tunnel.KindSOCKS5, Address: r.socks, Open: r.openProxy, SOCKS5: capture.Socks5Config{UsersFile: r.proxyUsers, UDP: r.socksUDP},
		})
	}
	switch {
	case !r.changed("http-proxy"):
	case r.changed("socks") && r.socks == r.httpProxy:
		list[0].Kind = tunnel.KindProxy
	default:
		list = append(list, tunnel.ListenerConfig{
			Name: "http-proxy", Kind: tunnel.KindHTTPProxy, Address: r.httpProxy, Open: r.openProxy, HTTP: capture.HTTPConfig{UsersFile: r.proxyUsers},
		})
	}
	return list
}

// idle notes flags that would do nothing: who wrote them meant something by it.
func (r *runFlags) idle(f *faults) {
	for _, one := range []struct {
		flag, what string
		needs      bool
	}{
		{"socks-udp", "there is no --socks that it could be for", r.changed("socks")},
		{"proxy-users", "there is no --socks or --http-proxy that it could be for", r.changed("socks") || r.changed("http-proxy")},
		{"open-proxy", "there is no --socks or --http-proxy that it could be for", r.changed("socks") || r.changed("http-proxy")},
		{"allow", "there is no --hbone by which peers could come in", r.changed("hbone")},
		{"mesh-names", "there is no --capture, --redirect or --dns that could be asked for them", r.dnsListener() != ""},
		{"open-admin", "there is no --admin that it could be for", r.changed("admin")},
		{"via", "it names no hop; give the host:port of a gateway, such as gw.example:15008", len(r.via) > 0},
		{"egress", "flows go via --via, and there is no --hbone by which others could come in; the gateway that flows leave from takes --egress",
			r.changed("hbone") || len(r.via) == 0},
	} {
		if r.changed(one.flag) && !one.needs {
			f.list = append(f.list, fault{flag: "--" + one.flag, what: one.what})
		}
	}
}

// routes makes the routes that the flags mean. Flows from this host go via the hops, or out by the egress
// list, or, forwarded, to where the flag says. Tunnels from peers lead to this host's own addresses and to
// the egress list; without a listener for this host's flows they too go on via the hops, which makes the
// gateway one in the middle of a chain.
func (r *runFlags) routes(cfg *Config, p *places, f *faults, captured, mesh []string) {
	add := func(flag string, route tunnel.RouteConfig) {
		p.flags[fmt.Sprintf("routes[%d]", len(cfg.Routes))] = flag
		cfg.Routes = append(cfg.Routes, route)
	}
	hosts, destinations := splitEgress(r.egress)
	if len(mesh) > 0 {
		add("--hbone", tunnel.RouteConfig{Listeners: mesh, Destinations: []string{destLocal}})
	}
	through := captured
	if len(captured) == 0 {
		through = mesh
	}
	out := slices.Clone(mesh)
	if len(r.via) > 0 {
		if len(through) > 0 {
			add("--via", tunnel.RouteConfig{Listeners: through, Via: r.via})
		}
		if len(captured) == 0 && len(r.egress) > 0 {
			f.list = append(f.list, fault{flag: "--egress", what: "cannot be given together with --via and --hbone alone: flows either go on or go out; write routes into a file and give -c FILE"})
		}
	} else {
		out = append(out, captured...)
		r.direct(cfg, f, captured, add)
	}
	if len(r.egress) > 0 && len(out) > 0 {
		add("--egress", tunnel.RouteConfig{Listeners: out, Hosts: hosts, Destinations: destinations})
	}
}

// direct makes the routes of flows from this host when there is no hop: what is forwarded was named, the
// rest needs the egress list.
func (r *runFlags) direct(cfg *Config, f *faults, captured []string, add func(string, tunnel.RouteConfig)) {
	for _, l := range cfg.Listeners {
		switch {
		case !slices.Contains(captured, l.Name):
		case l.Kind == tunnel.KindForward:
			hosts, destinations := splitEgress(destinationsOf(l.To))
			add("--forward", tunnel.RouteConfig{Listeners: []string{l.Name}, Hosts: hosts, Destinations: destinations})
		case len(r.egress) == 0:
			f.list = append(f.list, fault{flag: "--" + l.Name, what: "leads nowhere; give --via HOP to send flows through a gateway, or --egress NAME|CIDR to let them out here"})
		}
	}
}

// destinationsOf are the entries for the destination of a forwarded port, or of several.
func destinationsOf(to string) (list []string) {
	colon, dash := strings.LastIndexByte(to, ':'), strings.LastIndexByte(to, '-')
	if dash < colon || colon < 0 {
		return []string{to}
	}
	first, err := strconv.Atoi(to[colon+1 : dash])
	last, err2 := strconv.Atoi(to[dash+1:])
	if err != nil || err2 != nil || last-first >= 1<<10 {
		return []string{to} // validate says what is wrong with it
	}
	for port := first; port <= last; port++ {
		list = append(list, to[:colon+1]+strconv.Itoa(port))
	}
	return list
}

// splitEgress sorts entries into names and addresses, as routes have them.
func splitEgress(entries []string) (hosts, destinations []string) {
	for _, e := range entries {
		host := strings.TrimPrefix(e, "[")
		if i := strings.IndexAny(host, "/]"); i >= 0 {
			host = host[:i]
		} else if i := strings.LastIndexByte(host, ':'); i >= 0 && strings.Count(host, ":") == 1 {
			host = host[:i]
		}
		if _, err := netip.ParseAddr(host); err == nil {
			destinations = append(destinations, e)
		} else {
			hosts = append(hosts, e)
		}
	}
	return hosts, destinations
}

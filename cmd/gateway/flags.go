package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"culvert/capture"
	"culvert/tunnel"
)

// runFlags are the flags that make a Config. Those of the process (logs, admin, memory, drain, state) also
// stand over a file's values; those that describe the path of flows exclude a file.
type runFlags struct {
	file string

	cert, key, roots string
	hbone            string
	socks            string
	socksUsers       string
	openSOCKS        bool
	forward          []string
	via              []string
	allow            []string
	egress           []string

	state     string
	admin     string
	openAdmin bool
	memory    Size
	drain     time.Duration
	logLevel  string
	logFormat string

	changed func(flag string) bool
}

// pathFlags describe the path of flows; with a file they would say the same thing in two places.
func pathFlags() []string {
	return []string{"cert", "key", "roots", "hbone", "socks", "socks-users", "open-socks", "forward", "via", "allow", "egress"}
}

// addFile, addIdentity and addRun add the flags that the commands share.
func (r *runFlags) addFile(fs *pflag.FlagSet) {
	fs.StringVarP(&r.file, "config", "c", "", "configuration `FILE` (YAML)")
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
	fs.StringVar(&r.socksUsers, "socks-users", "", "`FILE` with name:password lines that SOCKS5 users must show")
	fs.BoolVar(&r.openSOCKS, "open-socks", false, "let SOCKS5 without users listen off loopback: whoever reaches it uses this gateway's identity")
	fs.StringArrayVar(&r.forward, "forward", nil, "send every connection to LISTEN on to DEST, as `LISTEN=DEST` (repeatable)")
	fs.StringSliceVar(&r.via, "via", nil, "send flows through `HOP[,HOP]`, nearest first, each host:port")
	fs.StringArrayVar(&r.allow, "allow", nil, "let `PRINCIPAL` in besides the own namespace, such as cluster.local/ns/shop/* (repeatable)")
	fs.StringArrayVar(&r.egress, "egress", nil, "be an egress for `NAME|CIDR`: a name, *.name, address or range, each with :port if only that, or * (repeatable)")
	fs.StringVar(&r.admin, "admin", "", "serve /healthz /readyz /metrics /flows /debug/pprof on `ADDR`")
	fs.BoolVar(&r.openAdmin, "open-admin", false, "let the admin address be one that other hosts reach")
	fs.Var(&r.memory, "memory", "budget of the process, such as 512MiB (default: half of what there is)")
	fs.DurationVar(&r.drain, "drain", defaultDrain, "how long live flows may run on after SIGTERM")
	fs.StringVar(&r.logLevel, "log-level", "info", "debug, info, warn or error")
	fs.StringVar(&r.logFormat, "log-format", "text", "text or json")
}

// completeRun tells the shell what the flags' values are.
func completeRun(cmd *cobra.Command) {
	words := func(list ...string) cobra.CompletionFunc {
		return cobra.FixedCompletions(list, cobra.ShellCompDirectiveNoFileComp)
	}
	for flag, complete := range map[string]cobra.CompletionFunc{
		"log-level":  words("debug", "info", "warn", "error"),
		"log-format": words("text", "json"),
		"hbone":      words(":15008", "127.0.0.1:15008"),
		"socks":      words("127.0.0.1:1080"),
		"admin":      words("127.0.0.1:15000"),
	} {
		if err := cmd.RegisterFlagCompletionFunc(flag, complete); err != nil {
			panic("BUG: " + err.Error())
		}
	}
	if err := cmd.MarkFlagFilename("config", "yaml", "yml"); err != nil {
		panic("BUG: " + err.Error())
	}
	if err := cmd.MarkFlagDirname("state"); err != nil {
		panic("BUG: " + err.Error())
	}
}

// config makes the Config: from the file if one is named, else from the flags alone.
func (r *runFlags) config() (*Config, *places, *faults) {
	var cfg *Config
	var p *places
	var f *faults
	if r.file != "" {
		cfg, p, f = readConfig(r.file)
		for _, flag := range pathFlags() {
			if r.changed(flag) {
				f.list = append(f.list, fault{flag: "--" + flag, what: "cannot be given together with -c; write it into " + r.file})
			}
		}
	} else {
		cfg, p, f = new(Config), newPlaces(""), new(faults)
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
	cfg.Policy.Allow = r.allow
	p.flags["policy.allow"] = "--allow"

	var captured, mesh []string
	add := func(flag string, l tunnel.ListenerConfig) {
		p.flags[fmt.Sprintf("listeners[%d]", len(cfg.Listeners))] = flag
		cfg.Listeners = append(cfg.Listeners, l)
	}
	if r.changed("socks") {
		p.flags[fmt.Sprintf("listeners[%d].socks5", len(cfg.Listeners))] = "--socks-users"
		add("--socks", tunnel.ListenerConfig{
			Name: "socks", Kind: tunnel.KindSOCKS5, Address: r.socks, Open: r.openSOCKS,
			SOCKS5: capture.Socks5Config{UsersFile: r.socksUsers},
		})
		captured = append(captured, "socks")
	}
	for i, text := range r.forward {
		listen, to, ok := strings.Cut(text, "=")
		if !ok {
			f.list = append(f.list, fault{flag: "--forward", what: fmt.Sprintf("%q is not LISTEN=DEST, such as 127.0.0.1:8080=orders.shop.svc:80", text)})
			continue
		}
		name := fmt.Sprintf("forward-%d", i+1)
		add("--forward", tunnel.ListenerConfig{Name: name, Kind: tunnel.KindForward, Address: listen, To: to})
		captured = append(captured, name)
	}
	if r.changed("hbone") {
		add("--hbone", tunnel.ListenerConfig{Name: "hbone", Kind: tunnel.KindHBONE, Address: r.hbone})
		mesh = append(mesh, "hbone")
	}
	if len(cfg.Listeners) == 0 && len(f.list) == 0 {
		f.list = append(f.list, fault{what: "nothing to listen on; give -c FILE, or --socks, --forward or --hbone with an address (`gateway demo` shows a working pair)"})
	}
	r.idle(f)
	r.routes(cfg, p, f, captured, mesh)
}

// idle notes flags that would do nothing: who wrote them meant something by it.
func (r *runFlags) idle(f *faults) {
	for _, one := range []struct {
		flag, what string
		needs      bool
	}{
		{"socks-users", "there is no --socks that it could be for", r.changed("socks")},
		{"open-socks", "there is no --socks that it could be for", r.changed("socks")},
		{"allow", "there is no --hbone by which peers could come in", r.changed("hbone")},
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
		r.direct(cfg, f, add)
	}
	if len(r.egress) > 0 && len(out) > 0 {
		add("--egress", tunnel.RouteConfig{Listeners: out, Hosts: hosts, Destinations: destinations})
	}
}

// direct makes the routes of flows from this host when there is no hop: what is forwarded was named, the
// rest needs the egress list.
func (r *runFlags) direct(cfg *Config, f *faults, add func(string, tunnel.RouteConfig)) {
	for _, l := range cfg.Listeners {
		switch {
		case l.Kind == tunnel.KindForward:
			hosts, destinations := splitEgress([]string{l.To})
			add("--forward", tunnel.RouteConfig{Listeners: []string{l.Name}, Hosts: hosts, Destinations: destinations})
		case l.Kind == tunnel.KindSOCKS5 && len(r.egress) == 0:
			f.list = append(f.list, fault{flag: "--socks", what: "leads nowhere; give --via HOP to send flows through a gateway, or --egress NAME|CIDR to let them out here"})
		}
	}
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

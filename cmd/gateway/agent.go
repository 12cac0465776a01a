package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"culvert/pki/spiffe"
	"culvert/tunnel"
)

// agentFlags are the flags of `gateway agent` besides those of a gateway.
type agentFlags struct {
	names       []string
	offer       []string
	hopID       string
	connections int
}

// Names of what `gateway agent` makes.
const (
	agentListener = "agent"
	agentHop      = "gateway"
)

func agentCommand() *cobra.Command {
	r := &runFlags{agent: new(agentFlags)}
	cmd := &cobra.Command{
		Use:   "agent --via HOP --name NAME --offer PORT=HOST:PORT",
		Short: "Be reached through a gateway that this host dials, such as from behind a NAT",
		Long: `Dial a gateway and be reached there by name: no port is opened on this host, and none is
needed on the way. Flows to NAME:PORT come in on that connection and go to what is offered.

  gateway agent --via gw.example:15008 --name cam1.devices.example --offer 80=127.0.0.1:8080
  gateway agent --via gw.example:15008 --offer 22=127.0.0.1:22    by the address of its key alone

The gateway decides who may register and under which names, in its configuration:

  listeners:
  - {name: mesh, kind: hbone, address: ":15008", agents: [{from: [IDENTITY], names: [cam1.devices.example]}]}
  routes:
  - {hosts: ["*.devices.example"], destinations: ["fd00::/8"], agents: true}

The log says what the IDENTITY of this host is. For more than one gateway, or with
routes of its own, write a listener of kind agent into a file and use 'gateway run -c FILE'.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r.changed = cmd.Flags().Changed
			return run(cmd, r)
		},
	}
	fs := cmd.Flags()
	fs.StringSliceVar(&r.via, "via", nil, "register at the last `HOP[,HOP]`, each host:port; those before it lead there, nearest first")
	fs.StringVar(&r.agent.hopID, "hop-id", "", "the gateway must be `ID`, such as spiffe://cluster.local/ns/edge/sa/gw, and may send flows here (default: any of the own namespace)")
	fs.StringSliceVar(&r.agent.names, "name", nil, "be reached as `NAME[,NAME]`; without, by the addresses of the own key alone")
	fs.StringSliceVar(&r.agent.offer, "offer", nil, "carry flows to PORT on to HOST:PORT, as `PORT=HOST:PORT`, such as 80=127.0.0.1:8080 (repeatable)")
	fs.IntVar(&r.agent.connections, "connections", 1, "keep `N` connections to each address of the gateway")
	fs.StringArrayVar(&r.allow, "allow", nil, "let `PRINCIPAL` send flows besides --hop-id, or the own namespace (repeatable)")
	fs.StringArrayVar(&r.policy, "policy", nil, "decide by the rules in `FILE`, see 'gateway policy' (repeatable)")
	r.addIdentity(fs)
	r.addProcess(fs)
	completeProcess(cmd)
	return cmd
}

// paths makes the listener of the flags.
func (a *agentFlags) paths(r *runFlags, cfg *Config, p *places, f *faults) {
	cfg.Policy.Allow, cfg.Policy.Files = slices.Clone(r.allow), r.policy
	p.flags["policy.allow"], p.flags["policy.files"] = "--allow", "--policy"
	wrong := func(flag, format string, args ...any) {
		f.list = append(f.list, fault{flag: flag, what: fmt.Sprintf(format, args...)})
	}
	via := slices.DeleteFunc(slices.Clone(r.via), func(hop string) bool { return hop == "" })
	if len(via) == 0 {
		wrong("--via", "there is no gateway to register at; give its host:port, such as --via gw.example:15008")
		return
	}
	l := tunnel.ListenerConfig{Name: agentListener, Kind: tunnel.KindAgent, Hop: agentHop, Via: via[:len(via)-1], Names: a.names, Connections: a.connections}
	cfg.Hops = map[string]tunnel.HopConfig{agentHop: {Address: via[len(via)-1], Identity: a.hopID}}
	if _, err := spiffe.ParseName(a.hopID); err == nil { // else validate says what is wrong with it
		cfg.Policy.Allow = append(cfg.Policy.Allow, a.hopID)
	}
	if len(a.offer) == 0 {
		wrong("--offer", "nothing is offered, so that every flow would be refused; name what flows to a port reach, such as --offer 80=127.0.0.1:8080")
	}
	for _, text := range a.offer {
		port, to, ok := strings.Cut(text, "=")
		n, err := strconv.ParseUint(port, 10, 16)
		switch {
		case !ok || err != nil || n == 0 || strconv.FormatUint(n, 10) != port:
			wrong("--offer", "%q is not PORT=HOST:PORT, such as 80=127.0.0.1:8080", text)
		case l.Offer[uint16(n)] != "":
			wrong("--offer", "port %s is offered twice; a flow to it can go to one place", port)
		default:
			if l.Offer == nil {
				l.Offer = make(map[uint16]string)
			}
			l.Offer[uint16(n)] = to
		}
	}
	cfg.Listeners = append(cfg.Listeners, l)
	for path, flag := range map[string]string{
		"listeners[0]": "--via", "listeners[0].names": "--name", "listeners[0].offer": "--offer", "listeners[0].connections": "--connections",
		"hops." + agentHop + ".address": "--via", "hops." + agentHop + ".identity": "--hop-id",
	} {
		p.flags[path] = flag
	}
}

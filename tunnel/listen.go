package tunnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Socket is a place where a listener is open. Sockets are comparable.
type Socket struct {
	// Network is "tcp", "udp" or "unix".
	Network string
	// Address is "host:port", where an empty host is every address of this host; of a unix socket its path.
	Address string
	// Transparent tells that the system leads connections there that were made to other addresses, which takes
	// IP_TRANSPARENT (ip(7)).
	Transparent bool
	// Spare tells that the listener can do without the socket where this host lacks the address family.
	Spare bool
}

// String returns the network and the address.
func (s Socket) String() string { return s.Network + " " + s.Address }

// sockets are where the listener is open.
func (c *ListenerConfig) sockets() []Socket {
	if c.Kind == KindAgent {
		return nil
	}
	if path, ok := strings.CutPrefix(c.Address, unixPrefix); ok {
		return []Socket{{Network: "unix", Address: path}}
	}
	list := []Socket{{Network: cmp.Or(c.Network, "tcp"), Address: c.Address, Transparent: c.Kind == KindTProxy || c.Kind == KindDNS && c.Captured}}
	if host, first, n, ok := portRange(c.Address); ok {
		list = slices.Repeat(list, n)
		for i := range list {
			list[i].Address = net.JoinHostPort(host, strconv.Itoa(int(first)+i))
		}
	}
	if port, ok := strings.CutPrefix(c.Address, "localhost:"); ok && (c.isCapture() || c.Kind == KindDNS) {
		list = append(list, list[0])
		list[0].Address, list[1].Address, list[1].Spare = "127.0.0.1:"+port, "[::1]:"+port, true
	}
	if c.Kind == KindTProxy || c.Kind == KindDNS {
		for _, s := range list {
			s.Network = "udp"
			list = append(list, s)
		}
	}
	return list
}

// unixPrefix marks the path of a unix socket among addresses.
const unixPrefix = "unix:"

// maxPortRange is how many ports a listener may have.
const maxPortRange = 1024

// portRange reads "host:from-to".
func portRange(address string) (host string, first uint16, n int, ok bool) {
	host, ports, err := net.SplitHostPort(address)
	from, to, isRange := strings.Cut(ports, "-")
	if err != nil || !isRange {
		return "", 0, 0, false
	}
	first, problem := parsePort(from)
	last, problem2 := parsePort(to)
	if problem+problem2 != "" || last < first || int(last-first) >= maxPortRange {
		return "", 0, 0, false
	}
	return host, first, int(last-first) + 1, true
}

// isCapture reports whether the system leads flows to the listener that were meant for other places.
func (c *ListenerConfig) isCapture() bool { return c.Kind == KindTProxy || c.Kind == KindRedirect }

// isProxy reports whether apps tell the listener where they want to go.
func (c *ListenerConfig) isProxy() bool {
	return c.Kind == KindSOCKS5 || c.Kind == KindHTTPProxy || c.Kind == KindProxy
}

// key says which sockets of two configurations are the same.
func (s Socket) key(c *ListenerConfig) string {
	key := s.String()
	if s.Transparent {
		key += " transparent"
	}
	if strings.HasSuffix(s.Address, ":0") {
		key += " " + c.Name // each has a port of its own
	}
	return key
}

// listening is the listeners of a configuration, ready to take the place of others.
type listening struct {
	all    map[string]*listener // by Socket.key
	conf   map[string]*listenerConf
	opened []*listener // those that were not there before
}

// abandon closes what was opened.
func (n *listening) abandon() {
	for _, l := range n.opened {
		l.close()
	}
}

// openListeners opens what cfg has and is not among before.
func (g *Gateway) openListeners(ctx context.Context, cfg *Config, before map[string]*listener) (*listening, error) {
	next := &listening{all: make(map[string]*listener), conf: make(map[string]*listenerConf)}
	var errs []error
	for i := range cfg.Listeners {
		c := &cfg.Listeners[i]
		conf, err := g.newConf(c)
		switch {
		case err != nil:
		case c.Kind == KindAgent:
			if conf.agent, err = newAgentConf(cfg, c); err == nil {
				next.addAgent(g, conf, before)
			}
		default:
			err = g.openSockets(ctx, c, conf, next, before)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("listener %s: %w", c.Name, err))
		}
	}
	if len(errs) == 0 {
		return next, nil
	}
	next.abandon()
	return nil, errors.Join(errs...)
}

// addAgent adds a listener that has no socket.
func (n *listening) addAgent(g *Gateway, conf *listenerConf, before map[string]*listener) {
	key := KindAgent + " " + conf.name
	l := before[key]
	if l == nil {
		l = &listener{g: g, runs: new(agentRuns)}
		n.opened = append(n.opened, l)
	}
	n.all[key], n.conf[key] = l, conf
}

// openSockets opens the sockets of one listener.
func (g *Gateway) openSockets(ctx context.Context, c *ListenerConfig, conf *listenerConf, next *listening, before map[string]*listener) error {
	for _, s := range c.sockets() {
		key := s.key(c)
		l, err := before[key], error(nil)
		if l == nil {
			l, err = g.openSocket(ctx, s)
			if err != nil && s.Spare && (errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT)) {
				continue
			}
			if err != nil {
				return err
			}
			next.opened = append(next.opened, l)
		}
		next.all[key], next.conf[key] = l, conf
	}
	return nil
}

// openSocket opens one socket.
func (g *Gateway) openSocket(ctx context.Context, s Socket) (*listener, error) {
	l := &listener{g: g}
	var err error
	if s.Network == "udp" {
		l.pc, err = g.env.ListenPacket(ctx, s)
	} else {
		l.ln, err = g.env.Listen(ctx, s)
	}
	return l, err
}

// ListenPacket opens the socket of a listener for datagrams. It is the default of Env.ListenPacket.
func (s Socket) ListenPacket(ctx context.Context) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		if err := sharePort(raw); err != nil || !s.Transparent {
			return err
		}
		return makeTransparent(raw)
	}}
	pc, err := lc.ListenPacket(ctx, s.Network, s.Address)
	if err != nil {
		return nil, err
	}
	return pc.(*net.UDPConn), nil
}

// Listen opens the socket. It is the default of Env.Listen.
func (s Socket) Listen(ctx context.Context) (net.Listener, error) {
	lc := net.ListenConfig{KeepAlive: -1} // see socket.watchPeer
	if s.Transparent {
		lc.Control = func(_, _ string, raw syscall.RawConn) error { return makeTransparent(raw) }
	}
	return lc.Listen(ctx, s.Network, s.Address)
}

// Adopt readies a socket that somebody else has opened at the same address.
func (s Socket) Adopt(c syscall.Conn) error {
	raw, err := c.SyscallConn()
	if err == nil && s.Network == "udp" {
		err = sharePort(raw)
	}
	if err != nil || !s.Transparent {
		return err
	}
	return makeTransparent(raw)
}

package main

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"

	"culvert/capture"
	"culvert/capture/names"
	"culvert/tunnel"
)

// resolver answers apps on the dns listener. A reload replaces what is in it.
type resolver struct {
	server   atomic.Pointer[names.Server]
	listener atomic.Pointer[string] // whose routes its questions to resolvers take
	dial     func(ctx context.Context, listener, network, address string) (net.Conn, error)
}

// newNames makes what answers by cfg.
func (r *resolver) newNames(cfg *Config) (*names.Server, error) {
	return names.New(&cfg.DNS, func(ctx context.Context, network, address string) (net.Conn, error) {
		return r.dial(ctx, *r.listener.Load(), network, address)
	}, names.SystemResolvers)
}

// swap has questions answered by s from now on, and by the routes of cfg's dns listener.
func (r *resolver) swap(s *names.Server, cfg *Config) {
	name := ""
	for _, l := range cfg.Listeners {
		if l.Kind == tunnel.KindDNS {
			name = l.Name
		}
	}
	if old := r.server.Load(); old != nil {
		s.Adopt(old)
	}
	r.listener.Store(&name)
	r.server.Store(s)
}

// Serve answers the questions on c.
func (r *resolver) Serve(ctx context.Context, c *capture.Conn) {
	defer c.Close()
	asked := netip.AddrPortFrom(c.Addr, c.Port)
	if c.Packets {
		r.server.Load().ServePackets(ctx, c, asked, c.TakeFirst())
	} else {
		r.server.Load().ServeStream(ctx, c, asked)
	}
}

// nameOf returns the name that has a virtual address.
func (r *resolver) nameOf(addr netip.Addr) (name string, virtual bool) {
	return r.server.Load().Name(addr)
}

// stats are the counters.
func (r *resolver) stats() *names.Stats { return r.server.Load().Stats() }

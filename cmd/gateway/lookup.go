package main

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"

	"culvert/capture/names"
)

// lookup finds the addresses of names for the gateway: those of destinations that are resolved here, and of hops. A
// reload replaces what is in it.
type lookup struct {
	current atomic.Pointer[names.Resolver]
	dial    names.Dial
}

// addrs returns the addresses of host.
func (l *lookup) addrs(ctx context.Context, host string) ([]netip.Addr, error) {
	return l.current.Load().Lookup(ctx, host)
}

// swap has r asked from now on, and ends the one before; nil ends it for good.
func (l *lookup) swap(r *names.Resolver) {
	old := l.current.Swap(r)
	if old != nil {
		old.Close()
	}
}

// openLookup makes what finds addresses. Its questions are marked as the gateway's own.
func (b *parts) openLookup(cfg *Config) error {
	b.lookup = &lookup{dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		return b.tunnel.DialOwn(ctx, network, address)
	}}
	r, err := names.NewResolver(&cfg.Resolver, b.lookup.dial)
	if err == nil {
		b.lookup.swap(r)
	}
	return err
}

package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"culvert/capture/names"
	"culvert/tunnel/endpoint"
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

// answers is tunnel.Env.Lookup. That there is no such name is an answer.
func (l *lookup) answers(ctx context.Context, name string, kind endpoint.Kind) (list []endpoint.Answer, ttl time.Duration, err error) {
	if kind == endpoint.Services {
		var records []*net.SRV
		records, ttl, err = l.current.Load().LookupSRV(ctx, name)
		for _, r := range records {
			list = append(list, endpoint.Answer{Host: r.Target, Port: r.Port, Priority: r.Priority, Weight: r.Weight})
		}
	} else {
		var addrs []netip.Addr
		addrs, ttl, err = l.current.Load().LookupTTL(ctx, name)
		for _, a := range addrs {
			list = append(list, endpoint.Answer{Addr: a})
		}
	}
	var none *net.DNSError
	if errors.As(err, &none) && none.IsNotFound {
		err = nil
	}
	return list, ttl, err
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

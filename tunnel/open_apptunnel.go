package tunnel

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	proxyproto "github.com/pires/go-proxyproto"

	"culvert/pki/spiffe"
)

// appTunnelProxy is the one protocol of AppTunnelConfig: PROXY, version 2.
const appTunnelProxy = "PROXY"

// AppTunnelConfig has a workload be told whose flow comes, before the bytes of it.
type AppTunnelConfig struct {
	// Protocol is `PROXY`: version 2, with the peer's address as the source, the destination that was asked for, and the peer's
	// SPIFFE ID as TLV 0xD0.
	Protocol string `yaml:"protocol"`
	// Port is where the workload takes all flows so, whatever port they are for.
	Port uint16 `yaml:"port"`
	// Address is where it listens. Default 127.0.0.1.
	Address string `yaml:"address"`
}

// at is where the workload listens; not valid where c is not.
func (c *AppTunnelConfig) at() netip.AddrPort {
	addr := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if c.Address != "" {
		addr, _ = netip.ParseAddr(c.Address) // it was validated
	}
	return netip.AddrPortFrom(addr.Unmap(), c.Port)
}

// appTunnel is where the destination takes flows together with whose they are; not valid where it takes them as they are.
func (f *Flow) appTunnel() netip.AddrPort {
	if w := f.plan.workloads[f.Target.Addr]; w != nil && f.local && !f.UDP && f.via.inner == 0 {
		return w.appTunnel
	}
	return netip.AddrPort{}
}

// openAppTunnel connects to a workload at its own place for that and tells it whose flow it is.
func (g *Gateway) openAppTunnel(ctx context.Context, f *Flow) (Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, f.plan.timeouts.Dial)
	defer cancel()
	at := f.appTunnel()
	if f.plan.own.listensOn(at) {
		return nil, &Error{Cause: CauseLoop, Reason: fmt.Sprintf("this gateway itself listens on %s, the workload's applicationTunnel", at)}
	}
	g.stats.dials.add(1)
	began := time.Now()
	nc, err := g.env.Dial(ctx, at)
	f.times.since(phaseDial, began)
	if err != nil {
		g.stats.dialFailures.add(1)
		return nil, fmt.Errorf("dial the workload's applicationTunnel: %w", timedOut(ctx, err))
	}
	head, err := appTunnelHeader(f.Source, f.Target.AddrPort(), f.Peer)
	if err == nil {
		_, err = nc.Write(head) // which a new socket has room for
	}
	if err != nil {
		_ = nc.Close()
		return nil, fmt.Errorf("dial the workload's applicationTunnel: %w", err)
	}
	return newSocket(nc), nil
}

// appTunnelHeader tells that a flow is from src, which need not be known, to dst, and of peer, if that is known: as ztunnel does.
func appTunnelHeader(src, dst netip.AddrPort, peer spiffe.ID) ([]byte, error) {
	h := &proxyproto.Header{Version: 2, Command: proxyproto.PROXY, TransportProtocol: proxyproto.UNSPEC}
	if src.IsValid() && dst.IsValid() {
		h.TransportProtocol = proxyproto.TCPv6 // of two families: IPv4 as ::ffff:0:0/96
		if src.Addr().Is4() && dst.Addr().Is4() {
			h.TransportProtocol = proxyproto.TCPv4
		}
		h.SourceAddr, h.DestinationAddr = net.TCPAddrFromAddrPort(src), net.TCPAddrFromAddrPort(dst)
	}
	if !peer.IsZero() {
		_ = h.SetTLVs([]proxyproto.TLV{peerTLV(peer)}) // as in Flow.proxyHeader
	}
	return h.Format()
}

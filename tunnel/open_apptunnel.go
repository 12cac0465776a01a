package tunnel

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

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
	if _, err := nc.Write(proxyHeader(f.Source, f.Target.AddrPort(), f.Peer)); err != nil { // which a new socket has room for
		_ = nc.Close()
		return nil, fmt.Errorf("dial the workload's applicationTunnel: %w", err)
	}
	return newSocket(nc), nil
}

// The PROXY protocol, version 2 (section 2.2 of its specification), and the TLV in which ztunnel tells an identity.
const (
	proxySignature = "\r\n\r\n\x00\r\nQUIT\n"
	proxyCommand   = 0x21 // version 2, PROXY
	proxyTCP4      = 0x11
	proxyTCP6      = 0x21
	proxyUnknown   = 0x00
	proxyTLVPeer   = 0xd0
)

// proxyHeader tells that a flow is from src, which need not be known, to dst, and of peer, if that is known.
func proxyHeader(src, dst netip.AddrPort, peer spiffe.ID) []byte {
	b := append(make([]byte, 0, 128), proxySignature...)
	b = append(b, proxyCommand, proxyUnknown, 0, 0)
	lengthAt := len(b) - 2
	switch {
	case !src.IsValid() || !dst.IsValid():
	case src.Addr().Is4() && dst.Addr().Is4():
		b[lengthAt-1] = proxyTCP4
		b = append(append(b, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
	default:
		b[lengthAt-1] = proxyTCP6
		s, d := src.Addr().As16(), dst.Addr().As16() // IPv4 as ::ffff:0:0/96
		b = append(append(b, s[:]...), d[:]...)
	}
	if b[lengthAt-1] != proxyUnknown {
		b = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, src.Port()), dst.Port())
	}
	if !peer.IsZero() {
		id := peer.String()
		b = binary.BigEndian.AppendUint16(append(b, proxyTLVPeer), uint16(len(id)))
		b = append(b, id...)
	}
	binary.BigEndian.PutUint16(b[lengthAt:], uint16(len(b)-lengthAt-2))
	return b
}

package tunnel

import (
	"context"
	"net"
	"net/netip"
	"time"

	proxyproto "github.com/pires/go-proxyproto"

	"culvert/pki/spiffe"
)

// proxyVersions are the values of RouteConfig.ProxyProtocol.
var proxyVersions = map[string]byte{"v1": 1, "v2": 2}

// peerTLV tells an identity as ztunnel does.
func peerTLV(id spiffe.ID) proxyproto.TLV {
	return proxyproto.TLV{Type: 0xd0, Value: []byte(id.String())}
}

// tellProxy tells the destination at end where the flow comes from and where it wanted to go, before anything else is said. After an
// error end is closed.
func (f *Flow) tellProxy(ctx context.Context, end Conn) (Conn, error) {
	wanted := f.Target
	if f.shown != nil && f.shown.wanted != (Target{}) {
		wanted = f.shown.wanted
	}
	h := f.proxyHeader(wanted, addrPort(end.RemoteAddr()))
	text, err := h.Format()
	if err == nil {
		stop := context.AfterFunc(ctx, func() { _ = end.SetWriteDeadline(wakeNow) })
		_, err = end.Write(text)
		stop()
		_ = end.SetWriteDeadline(time.Time{}) // what is closed needs none
	}
	if err != nil {
		end.Reset(err)
		return nil, timedOut(ctx, err)
	}
	return end, nil
}

// proxyHeader makes the header for a flow that wanted to go to wanted, which is at dialled.
func (f *Flow) proxyHeader(wanted Target, dialled netip.AddrPort) *proxyproto.Header {
	to := wanted.AddrPort()
	if wanted.IsName() {
		to = netip.AddrPortFrom(dialled.Addr(), wanted.Port)
	}
	h := &proxyproto.Header{Version: f.via.proxy, Command: proxyproto.LOCAL, TransportProtocol: proxyproto.UNSPEC}
	if f.Source.IsValid() {
		if to.Addr().Is4() != f.Source.Addr().Is4() { // which the protocol has no words for
			any := netip.IPv6Unspecified()
			if f.Source.Addr().Is4() {
				any = netip.IPv4Unspecified()
			}
			to = netip.AddrPortFrom(any, to.Port())
		}
		h = proxyproto.HeaderProxyFromAddrs(f.via.proxy, net.TCPAddrFromAddrPort(f.Source), net.TCPAddrFromAddrPort(to))
	}
	var tlvs []proxyproto.TLV
	if wanted.IsName() {
		tlvs = append(tlvs, proxyproto.TLV{Type: proxyproto.PP2_TYPE_AUTHORITY, Value: []byte(wanted.Host)})
	}
	if !f.Peer.IsZero() {
		tlvs = append(tlvs, peerTLV(f.Peer))
	}
	if f.via.proxy == 2 && len(tlvs) > 0 {
		_ = h.SetTLVs(tlvs) // a name and an identity are shorter than it takes
	}
	return h
}

package capture

import (
	"fmt"
	"net"
	"net/netip"
)

// Conn.Way of connections that the system's packet filter has led here.
const (
	WayTProxy   = "tproxy"
	WayRedirect = "redirect"
)

// TProxy catches connections that the system has led to a listener with TPROXY: their own address is the one that the
// app wanted to reach. The listener must have been opened with IP_TRANSPARENT (ip(7)). A connection to the listener's
// own address was made on purpose, and leads there; whoever carries flows must refuse it.
type TProxy struct{}

var _ Way = TProxy{}

// Catch never waits, and reads nothing.
func (TProxy) Catch(nc net.Conn) (*Conn, error) {
	return caughtAt(nc, WayTProxy, addrPortOf(nc.LocalAddr()))
}

// Redirect catches connections whose destination the system has rewritten to the address of a listener (REDIRECT,
// DNAT): conntrack knows where they were meant to go (SO_ORIGINAL_DST). A connection that was not rewritten was made to
// the listener's own address, as with TProxy. It works on Linux only.
type Redirect struct{}

var _ Way = Redirect{}

// Catch never waits, and reads nothing.
func (Redirect) Catch(nc net.Conn) (*Conn, error) {
	dst, err := originalDestination(nc)
	if err != nil {
		return nil, lost(nc, WayRedirect, err)
	}
	return caughtAt(nc, WayRedirect, dst)
}

func caughtAt(nc net.Conn, way string, dst netip.AddrPort) (*Conn, error) {
	if !dst.IsValid() {
		return nil, lost(nc, way, fmt.Errorf("its address is %v", nc.LocalAddr()))
	}
	return &Conn{Conn: nc, Way: way, Addr: dst.Addr(), Port: dst.Port()}, nil
}

// lost closes a connection of which nobody knows where it was meant to go.
func lost(nc net.Conn, way string, err error) error {
	failed := &HandshakeError{Way: way, Cause: CauseDestination, Came: "a connection without its original destination", Err: err,
		Do: "the listener is for flows that `gateway capture install` leads here; see `gateway capture status`"}
	if from := nc.RemoteAddr(); from != nil {
		failed.From = from.String()
	}
	_ = reset(nc) // it is broken already
	return failed
}

// addrPortOf returns the address of a for policy and routes: IPv4-mapped forms unmapped, without a zone. It is not
// valid where a is none.
func addrPortOf(a net.Addr) netip.AddrPort {
	ap, ok := a.(interface{ AddrPort() netip.AddrPort })
	if !ok {
		return netip.AddrPort{}
	}
	return plain(ap.AddrPort())
}

func plain(ap netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

package capture

import "net"

// WayLocal is Conn.Way of what was caught by Local.
const WayLocal = "local"

// Local catches connections and datagrams that are meant for the gateway itself: their destination is the listener's own
// address.
type Local struct{}

var _ Way = Local{}

// Catch returns at once and does not fail.
func (Local) Catch(nc net.Conn) (*Conn, error) {
	at := addrPortOf(nc.LocalAddr())
	return &Conn{Conn: nc, Way: WayLocal, Addr: at.Addr(), Port: at.Port()}, nil
}

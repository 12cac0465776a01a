package capture

import (
	"net"
	"net/netip"
	"sync"
)

// A PacketWay is how datagrams are caught.
type PacketWay interface {
	// ServePackets reads what arrives at pc and calls carry with each flow that begins there: the datagrams of one source
	// to one destination. Its Conn has Packets set. carry must not block; who is given a Conn closes it, and then the
	// source begins a new flow with its next datagram. A flow for which there is no socket is told as an error. It blocks
	// until pc is closed, and returns why it ended.
	ServePackets(pc *net.UDPConn, carry func(*Conn, error)) error
}

const (
	// maxDatagramBytes is the longest datagram there is.
	maxDatagramBytes = 64 << 10
	// maxAtOnce is how many datagrams are looked through for those of a flow that has just begun. More of other flows are
	// not held beside the system's buffer, except what has gone astray.
	maxAtOnce = 64
	// maxAstray is how many datagrams of other flows that were in a new flow's socket are held.
	maxAstray = 256
)

// packetFlow is the two ends of a flow of datagrams, as the app sees them.
type packetFlow struct{ from, to netip.AddrPort }

// packetTable is the flows of a listener that live.
type packetTable struct {
	mu    sync.Mutex
	flows map[packetFlow]struct{} // guarded by mu
}

// enter notes a flow and reports whether it is new.
func (t *packetTable) enter(f packetFlow) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, there := t.flows[f]; there {
		return false
	}
	if t.flows == nil {
		t.flows = make(map[packetFlow]struct{})
	}
	t.flows[f] = struct{}{}
	return true
}

func (t *packetTable) leave(f packetFlow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.flows, f)
}

// packetConn is the socket of one flow.
type packetConn struct {
	*net.UDPConn
	table *packetTable
	flow  packetFlow
	once  sync.Once
}

// NetConn returns the socket itself.
func (c *packetConn) NetConn() net.Conn { return c.UDPConn }

// Close closes the socket and ends the flow.
func (c *packetConn) Close() (err error) {
	c.once.Do(func() {
		err = c.UDPConn.Close()
		c.table.leave(c.flow)
	})
	return err
}

// datagram is what was read from a socket that is shared.
type datagram struct {
	packetFlow
	payload []byte
}

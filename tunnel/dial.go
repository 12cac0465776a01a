package tunnel

import (
	"context"
	"net"

	"culvert/capture"
	"culvert/tunnel/datagram"
)

// WayOwn is Flow.Way of a flow of this gateway's own.
const WayOwn = "own"

// Dial opens a flow of this gateway's own, as if listener had taken it: routes and policy are those of the listener's
// flows, the identity is the gateway's. network is "tcp" or "udp"; then each Read and Write of the connection is a
// datagram. It returns when the flow stands; ctx bounds that.
func (g *Gateway) Dial(ctx context.Context, listener, network, address string) (net.Conn, error) {
	t, err := ParseAuthority(address)
	if err != nil {
		return nil, err
	}
	packets := network == "udp"
	app, end, err := capture.Pair(packets)
	if err != nil {
		return nil, err
	}
	a := &dialled{end: newSocket(end), answer: make(chan error, 1), gone: ctx.Done()}
	if packets {
		a.end = &packetEnd{datagram.New(end, nil, g.longCapsules.For(listener))}
	}
	go g.Carry(&Flow{Listener: listener, Way: WayOwn, UDP: packets, Peer: g.env.Self(), Target: t}, a) // ends with the flow, which Close ends and waits for
	if err := <-a.answer; err != nil {
		_ = app.Close()
		return nil, err
	}
	return app, nil
}

// dialled is the accepted side of a flow of this gateway's own.
type dialled struct {
	end    Conn
	answer chan error
	gone   <-chan struct{}
}

// Accept tells who has dialled that the flow stands.
func (d *dialled) Accept(*Flow) (Conn, []byte, error) {
	d.answer <- nil
	return d.end, nil, nil
}

// Refuse tells why it does not.
func (d *dialled) Refuse(_ *Flow, err error) {
	_ = d.end.Close()
	d.answer <- err
}

// Gone is closed when nobody waits any more.
func (d *dialled) Gone() <-chan struct{} { return d.gone }
